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
