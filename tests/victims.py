"A classifier that knows a few digits by heart, and the digits that it has not seen."
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from netinv.classifier import train_classifier
from netinv.data import ImageData, Split, load_data, split_off
from netinv.frozen import FrozenClassifier


@cache
def digits() -> ImageData:
    "The 300 images that the victim learns."
    data = load_data("digits", valid_size=0, device="cpu")
    known, _ = split_off(data.train, 300)
    return replace(data, train=known)


@cache
def unseen() -> Split:
    "All others."
    return split_off(load_data("digits", valid_size=0, device="cpu").train, 300)[1]


@cache
def victim() -> FrozenClassifier:
    "Trained once for all tests, which do not change it."
    model = train_classifier(digits(), epochs=30, device="cpu", progress=False)
    return FrozenClassifier(model, shape=digits().shape, device="cpu")


def perceptron(n_in: int = 784, n_classes: int = 10) -> nn.Module:
    "A network without batch norm."
    torch.manual_seed(0)
    hidden = [nn.Linear(n_in, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(20, n_classes))


class Attention(nn.Module):
    "Rows of the image as tokens."
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(28, 4, 32, batch_first=True), nn.Linear(28, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor: return self.head(self.layer(x[:, 0]).mean(1))


def count_hooks(classifier: FrozenClassifier) -> int:
    "All hooks on its layers."
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in classifier.model.modules())
