"netinv.samples: counts are right, and the classifier that is asked stays as it was."
import pytest
import torch
from torch import nn

from networks import mlp

from netinv.data import Split
from netinv.frozen import FrozenClassifier
from netinv.samples import accuracy, look


def test_accuracy_counts_and_keeps_modes():
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
