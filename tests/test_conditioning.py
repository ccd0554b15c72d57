"Properties of the conditions, and of the generator that reads them, for any number of classes and any image shape."
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netinv.conditioning import CONDITIONINGS, label_matrix, label_vector, make_conditioning, matrix_size
from netinv.faster import _ByteDropout, _random_bytes, accelerate
from netinv.generator import Dropout, Generator, stage_sizes

sides = st.integers(8, 64)


@given(st.integers(2, 400), sides)
def test_every_label_has_its_own_matrix(n: int, side: int) -> None:
    size = matrix_size(n, side)
    patterns = label_matrix(torch.arange(n), n, size)
    assert patterns.shape == (n, 1, size, size)
    assert len(patterns.flatten(1).unique(dim=0)) == n
    assert (patterns.sum((1, 2, 3)) == 2 * size - 1).all()  # one full row and one full column


@given(st.integers(2, 50), st.integers(0, 1000))
def test_vector_has_its_largest_entry_at_the_label(n: int, seed: int) -> None:
    labels = torch.randint(n, (20,), generator=torch.Generator().manual_seed(seed))
    assert (label_vector(labels, n, torch.Generator().manual_seed(seed)).argmax(1) == labels).all()


def test_vector_given_its_label_is_distributed_as_among_all_vectors() -> None:
    "Against rejection: draw many vectors, keep those whose largest entry is where we want it."
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(60_000, 4, generator=rng)
    kept = drawn[drawn.argmax(1) == 2]
    made = label_vector(torch.full((len(kept),), 2), 4, rng)
    assert torch.allclose(kept.mean(0), made.mean(0), atol=0.04)
    assert torch.allclose(kept.T.cov(), made.T.cov(), atol=0.05)


@given(st.sampled_from(CONDITIONINGS), st.integers(2, 30), st.floats(0.05, 3), st.integers(0, 99))
def test_target_is_a_distribution_that_peaks_at_the_label(name: str, n: int, temperature: float, seed: int) -> None:
    c = make_conditioning(name, n, temperature=temperature, side=28).sample(8, rng=torch.Generator().manual_seed(seed))
    assert torch.allclose(c.target_probs.sum(1), torch.ones(8), atol=1e-5)
    assert torch.allclose(c.target_probs.gather(1, c.labels[:, None])[:, 0], c.target_probs.amax(1))


@given(sides, sides, st.integers(2, 64))
def test_stages_double_up_to_the_image(height: int, width: int, n: int) -> None:
    stages = stage_sizes(height, width, matrix_size(n, min(height, width)))
    assert stages[-1] == (height, width) and len(stages) > 1
    for small, large in zip(stages, stages[1:]): assert small == tuple(math.ceil(side / 2) for side in large)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224), (2, 17, 40)])
@pytest.mark.parametrize("name", CONDITIONINGS)
def test_generator_gives_images_of_any_shape_and_gradients_to_all_its_weights(name: str, shape: tuple) -> None:
    conditioning = make_conditioning(name, 10, side=min(shape[1:]))
    generator = Generator(shape, conditioning, width=16, dropout=0.0)
    images = generator(generator.latent(3), conditioning.sample(3, torch.tensor([1, 2, 3])))
    assert images.shape == (3, *shape) and images.dtype == torch.float32 and 0 <= images.min() and images.max() <= 1
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_the_label_matters(name: str) -> None:
    "With latent and dropout masks held, another label gives another image."
    conditioning = make_conditioning(name, 10)
    generator = Generator((1, 28, 28), conditioning, width=16).eval()
    z = torch.randn(1, 64)
    masks = generator.masks(1, torch.Generator().manual_seed(0))
    one, other = (generator(z, conditioning.sample(1, torch.tensor([k]), torch.Generator().manual_seed(0)), masks)
                  for k in (3, 4))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 3, 3)])
def test_dropout_keeps_the_mean_and_drops_the_share(shape: tuple[int, int, int], by_bytes: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    if by_bytes: mask = _ByteDropout(0.3, shape).mask(_random_bytes(4000 * math.prod(shape), rng))
    else: mask = Dropout(0.3, shape).mask(torch.rand(4000, *shape, generator=rng))
    assert mask.shape == (4000, *shape)
    assert abs(mask.mean().item() - 1) < 0.03
    assert abs((mask == 0).float().mean().item() - 0.3) < 0.02


@given(st.sampled_from(CONDITIONINGS), sides, sides, st.sampled_from([1, 3]), st.integers(0, 3))
def test_an_accelerated_generator_draws_the_same_images(name: str, height: int, width: int, channels: int, smooth: int) -> None:
    conditioning = make_conditioning(name, 5, side=min(height, width))
    torch.manual_seed(0)
    plain = Generator((channels, height, width), conditioning, width=16, smooth=smooth)
    given = plain.latent(4), conditioning.sample(4), plain.masks(4)
    images = plain(*given)
    state = {key: t.clone() for key, t in plain.state_dict().items()}
    sooner = accelerate(plain)
    assert torch.allclose(sooner(*given), images, atol=1e-5)
    assert list(state) == list(sooner.state_dict()) and accelerate(sooner) is sooner
