"netinv.samples: counts are right, and the classifier that is asked stays as it was."
import pytest
import torch
from torch import nn

from networks import mlp

from netinv.data import Split
from netinv.frozen import FrozenClassifier
from netinv.samples import Samples, accuracy, look


def test_accuracy_counts_and_keeps_modes():
    torch.manual_seed(0)
    model = mlp((1, 8, 8), 3).train()
    model[2].eval()
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].weight[0, 0] = 1e-6  # a gradient must get through
        model[3].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    split = Split(torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8), torch.arange(9) % 3)
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert accuracy(frozen, split) == pytest.approx(1 / 3)
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert look(frozen, split.images, split.labels, batch_size=4).probs.argmax(1).tolist() == [1] * 9
    with pytest.raises(ValueError, match="empty split"):
        accuracy(frozen, Split(split.images[:0], split.labels[:0]))


def test_drawn_and_real_images_are_added_on_one_scale() -> None:
    real = Samples(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([0, 1]), torch.eye(2), torch.eye(2))
    drawn = Samples(torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 0]), torch.ones(3, 2) / 2, torch.rand(3, 2), torch.zeros(3))
    both = drawn + real
    assert both.images.dtype == torch.float32 and both.images.max() == 1 and both.generator is None and len(both) == 5
    assert (real + real).images.dtype == torch.uint8
    assert both[-1].images.shape == (1, 1, 8, 8) and both[1:3].labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="there are no images to draw"): both.of(7).picture()


def test_look_wants_a_label_for_each_image() -> None:
    classifier = FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), shape=(1, 8, 8), device="cpu")
    with pytest.raises(ValueError, match="2 labels for 3 images: give one label for each"):
        look(classifier, torch.rand(3, 1, 8, 8), torch.tensor([0, 1]))


def shown(n_classes: int, each: int, side: int, channels: int = 3) -> Samples:
    "Noise, the first half of the classes answered rightly."
    labels = torch.arange(n_classes).repeat(each)
    probs = torch.eye(n_classes)[torch.where(labels < n_classes // 2, labels, 0)]
    return Samples(torch.rand(len(labels), channels, side, side), labels, probs, torch.zeros(len(labels), 1))


@pytest.mark.parametrize(("n_classes", "side", "channels"), [(1000, 8, 3), (60, 64, 1), (45, 100, 3), (41, 20, 5)])
def test_a_picture_of_many_classes_can_be_opened(n_classes: int, side: int, channels: int) -> None:
    picture = shown(n_classes, 2, side, channels).picture()
    rows = 40 * (2 * side + 2)
    assert rows <= picture.height < rows + 300 and picture.width * picture.height < 2**24


def test_a_picture_is_bounded_in_pixels_and_side() -> None:
    large = shown(3, 12, 200)
    for pixels in (2**24, 3e5, 2e4):
        picture = large.picture(pixels=pixels)
        assert 0.2 * min(pixels, 2 * 10**6) < picture.width * picture.height <= pixels
    tall = Samples(torch.rand(2, 1, 70_000, 2), torch.arange(2), torch.eye(2), torch.eye(2)).picture()
    assert max(tall.size) <= 2**15


def test_a_picture_shows_the_worst_and_the_best() -> None:
    from netinv.samples import class_accuracy, extremes

    samples = shown(100, 2, 8)
    drawn = extremes(class_accuracy(samples.hits, samples.labels, 100), 4)
    assert sum(k >= 50 for k in drawn) == 2 and len(drawn) == 4
    assert extremes(torch.tensor([0.5, torch.nan, 0.2]), 1) == [2]
    assert extremes(torch.full((50,), 0.5), 50) == list(range(50))
