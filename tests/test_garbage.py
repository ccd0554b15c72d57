"The families of garbage: images of any shape, repeatable, in equal parts."
import pytest
import torch

from netinv.data import load_data
from netinv.garbage import FAMILIES, _shuffled_tiles, garbage_pool


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 17, 30)])
def test_families_draw_images_of_any_shape(family: str, shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (7, *shape), dtype=torch.uint8)
    once, again = (FAMILIES[family](12, images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert once.shape == (12, *shape) and 0 <= once.min() and once.max() <= 1 and torch.equal(once, again)
    assert (once.flatten(1).std(1) > 0).any() and len(once.flatten(1).unique(dim=0)) > 6


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
