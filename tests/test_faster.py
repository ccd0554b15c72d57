"netinv.faster: the same answer in fewer steps, or the classifier as it was."
import threading

import pytest
import torch
from torch import nn

from networks import DERIVED, derived, worn_cnn

from netinv.faster import accelerate  # gives `folded` to a frozen classifier
from netinv.frozen import FrozenClassifier


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


class Branch(nn.Module):
    "A convolution whose output goes two ways; its batch norm cannot be folded into it."
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(400, 3)
        self.norm.running_mean.fill_(2)
        self.norm.running_var.fill_(3)

    def forward(self, x):
        x = self.conv(x)
        return self.head((self.norm(x).relu() + x).flatten(1))


class Falls(nn.Module):
    "The same with an activation that falls, before a pooling."
    def __init__(self):
        super().__init__()
        falls = nn.LeakyReLU(-0.5)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), falls, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 3))

    def forward(self, x): return self.body(x)


class ReadTwice(nn.Module):
    "A flattened map that a second reader wants in the usual order."
    def __init__(self):
        super().__init__()
        self.conv, self.flat = nn.Conv2d(1, 4, 3), nn.Flatten()
        self.hidden, self.head = nn.Linear(400, 8), nn.Linear(8, 3)

    def forward(self, x):
        row = self.flat(self.conv(x))
        return self.head((self.hidden(row) + row[:, :8]).relu())


class TiedLinear(nn.Module):
    "A linear layer behind a flattened map whose weight a second layer has too."
    def __init__(self):
        super().__init__()
        self.conv, self.flat = nn.Conv2d(1, 4, 3), nn.Flatten()
        self.hidden, self.head = nn.Linear(400, 400), nn.Linear(400, 3)
        self.again = nn.Linear(400, 400)
        self.again.weight = self.hidden.weight

    def forward(self, x): return self.head(self.again(self.hidden(self.flat(self.conv(x))).relu()).relu())


@pytest.mark.parametrize("make", [Branch, Falls, ReadTwice, TiedLinear])
def test_what_cannot_be_folded_stays_as_it_is(make) -> None:
    torch.manual_seed(0)
    classifier = FrozenClassifier(make(), shape=(1, 12, 12))
    assert classifier.folded() is classifier


@pytest.mark.parametrize("features", [None, "body.0.1", "body.0.2", "hidden.2"])
def test_a_folded_classifier_has_the_same_logits_features_and_gradients(features) -> None:
    model = worn_cnn((2, 17, 13), 5)
    classifier = FrozenClassifier(model, shape=(2, 17, 13), features=features)
    folded, before = classifier.folded(), {name: t.clone() for name, t in classifier.model.state_dict().items()}
    assert folded is not classifier
    assert [name for name, _ in folded.model.named_modules()] == [name for name, _ in classifier.model.named_modules()]
    x = torch.rand(6, 2, 17, 13, requires_grad=True)
    gradients = []
    for c in (classifier, folded):
        logits, taken = c(x)
        gradients.append((logits, taken, torch.autograd.grad(logits.square().sum() + taken.square().sum(), x)[0]))
    for a, b in zip(*gradients): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert all(torch.equal(t, before[name]) for name, t in classifier.model.state_dict().items())


def test_linear_layers_take_maps_as_they_lie_in_memory() -> None:
    top = [nn.Linear(4 * 10 * 7, 6), nn.ReLU(), nn.Linear(6, 3)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), *top).eval()
    classifier = FrozenClassifier(model, shape=(1, 12, 9))
    folded, x = classifier.folded(), torch.rand(5, 1, 12, 9, requires_grad=True)
    first_pixel = classifier.model[4].weight[:, ::70]  # its four channels
    assert torch.equal(folded.model[4].weight[:, :4], first_pixel)
    gradients = [torch.autograd.grad(c(x).logits.square().sum(), x)[0] for c in (classifier, folded)]
    torch.testing.assert_close(*gradients)


def test_convolutions_with_one_weight_between_them_are_not_folded():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    both = [first, nn.BatchNorm2d(4), second, nn.BatchNorm2d(4)]
    model = nn.Sequential(nn.Conv2d(1, 4, 1), *both, nn.Flatten(), nn.Linear(256, 3)).eval()
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert frozen.folded() is frozen


class Locked:
    "A preprocessing that has no copy."
    def __init__(self): self.lock = threading.Lock()
    def __call__(self, images): return 2 * images - 1


def test_folding_needs_no_copy_of_the_preprocessing():
    frozen = FrozenClassifier(worn_cnn((1, 12, 12), 4), shape=(1, 12, 12), preprocess=Locked(), device="cpu")
    images = torch.rand(3, *frozen.shape)
    torch.testing.assert_close(frozen.folded()(images).logits, frozen(images).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", DERIVED)
def test_computed_weights_are_folded_too(kind):
    model, images = derived(kind), torch.rand(5, 1, 8, 8)
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    torch.testing.assert_close(frozen.folded()(images).logits, model(images), rtol=1e-4, atol=1e-5)
    assert frozen.folded() is not frozen and frozen.folded() is frozen.folded()
