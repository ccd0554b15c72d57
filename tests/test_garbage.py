"The families of garbage: images of any shape, repeatable, in equal parts."
import pytest
import torch

from netinv.data import load_data
from netinv.garbage import FAMILIES, _shuffled_tiles, garbage_pool, muted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 17, 30)])
def test_families_draw_images_of_any_shape(family: str, shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (7, *shape), dtype=torch.uint8)
    once, again = (FAMILIES[family](12, images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert once.shape == (12, *shape) and 0 <= once.min() and once.max() <= 1 and torch.equal(once, again)
    assert (once.flatten(1).std(1) > 0).any() and len(once.flatten(1).unique(dim=0)) > 6


def test_colours_are_muted_and_brightness_stays() -> None:
    rng, images = torch.Generator().manual_seed(0), torch.rand(400, 3, 4, 4, dtype=torch.float64)
    kept = muted(images, rng) - images.mean(1, keepdim=True)
    torch.testing.assert_close(kept.mean(1), torch.zeros(400, 4, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    share = kept.flatten(1).norm(dim=1) / (images - images.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    assert 0 <= share.min() and share.max() <= 1 and abs(share.mean() - 0.5) < 0.05 and abs(share.std() - 12**-0.5) < 0.03
    assert torch.equal(muted(images[:, :1], rng), images[:, :1])


@pytest.mark.parametrize("family, gray", [("noise", 0.05), ("coordinate", 0.05), ("strokes", 0.2)])
def test_colours_do_not_give_drawn_garbage_away(family: str, gray: float) -> None:
    "Some images of each family are nearly gray, and some are colourful."
    images = FAMILIES[family](300, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.Generator().manual_seed(1))
    chroma = (images.amax(1) - images.amin(1)).amax((1, 2))  # of the most colourful pixel
    assert (chroma < 0.06).float().mean() > gray and (chroma > 0.3).float().mean() > 0.1


def test_shuffled_tiles_keep_every_pixel() -> None:
    images = torch.rand(5, 3, 28, 28)
    shuffled = _shuffled_tiles(images, 7, torch.Generator().manual_seed(0))
    assert not torch.equal(shuffled, images)
    assert torch.equal(shuffled.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_a_pool_has_all_families_and_the_size_asked_for() -> None:
    digits = load_data("digits", device="cpu")
    rng = torch.Generator().manual_seed(0)
    assert garbage_pool(100, digits.train.images, rng).shape == (100, *digits.shape)
    with pytest.raises(ValueError, match="'shoes' of garbage is unknown"):
        garbage_pool(10, digits.train.images, rng, ["shoes"])
    with pytest.raises(ValueError, match="families is empty"): garbage_pool(10, digits.train.images, rng, [])
