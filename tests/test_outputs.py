"netinv.outputs, and what of it a frozen classifier takes: many ways in and out, one kind of logits."
import copy
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from networks import Wrapped, mlp

from netinv.faster import FrozenClassifier  # which adds `folded`

SHAPE, IMAGES = (1, 8, 8), torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "features scores")


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


def freeze(function, *parts, **settings):
    "A module made of a function, frozen."
    return FrozenClassifier(Wrapped(function, *parts), shape=SHAPE, device="cpu", **settings)


ENTRIES = {
    "tensor": (lambda x, m: m(x), {}),
    "tuple with maps": (lambda x, m: (m(x), x), {}),
    "list": (lambda x, m: [m(x)], {}),
    "dict": (lambda x, m: {"out": m(x), "loss": None}, {}),
    "object": (lambda x, m: SimpleNamespace(logits=m(x), hidden_states=(x,), twice=2 * m(x)), {}),
    "nested": (lambda x, m: {"main": (m(x), x.mean()), "aux": None}, {}),
    "labels beside": (lambda x, m: (m(x).argmax(1), m(x)), {}),
    "probabilities beside": (lambda x, m: {"p": m(x).softmax(1), "z": m(x)}, {}),
    "features beside": (lambda x, m: (m[:3](x), m[3](m[:3](x))), {}),
    "features, named tuple": (lambda x, m: Pair(h := m[:3](x), m[3](h)), {}),
    "value beside": (lambda x, m: (m(x).mean(1, keepdim=True), m(x)), {}),
    "known number": (lambda x, m: (x.flatten(1), m(x)), dict(n_classes=5)),
    "two heads, by place": (lambda x, m: (-m(x), m(x)), dict(output=1)),
    "two heads, the last": (lambda x, m: (-m(x), m(x)), dict(output=-1)),
    "two heads, by name": (lambda x, m: {"breed": m(x), "age": -m(x)}, dict(output="breed")),
    "a head with one entry": (lambda x, m: {"breed": [m(x)], "age": [-m(x)]}, dict(output="breed")),
    "maps of one pixel": (lambda x, m: m(x)[..., None, None], {}),
    "maps in a dict": (lambda x, m: {"out": m(x)[..., None, None]}, {}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ENTRIES)
def test_the_logits_are_found_among_what_a_model_returns(name):
    function, settings = ENTRIES[name]
    model = mlp(SHAPE, 5)
    classifier = freeze(function, model, **settings)
    logits, features = classifier(IMAGES)
    torch.testing.assert_close(logits, model(IMAGES))
    torch.testing.assert_close(features, model[:3](IMAGES))
    torch.testing.assert_close(copy.deepcopy(classifier)(IMAGES[:1]).logits, logits[:1])
    told = isinstance(function(IMAGES, model), torch.Tensor)
    assert told or "taken for the logits" in classifier.notes[0] and "\n" not in repr(classifier)


@pytest.mark.parametrize("function, settings, sentence", [
    (lambda x, m: (m(x), -m(x)), {}, r"'0' \[8, 5\], '1' \[8, 5\]: choose one, such as output='0'"),
    (lambda x, m: {"breed": m(x), "age": -m(x)}, dict(output="bread"), "no 'bread': .*'breed' .*'age'.*: choose one"),
    (lambda x, m: (m(x), x), dict(output=1), r"output 1 is \[8, 1, 8, 8\] torch.float32, expected logits"),
    (lambda x, m: m(x), dict(output=1), "output is 1 but classifier returned one tensor"),
    (lambda x, m: m(x), dict(classes=["a", "b"]), "classes has 2 names for 5 classes"),
    (lambda x, m: m(x), dict(pixels="bytes"), "pixels is 'bytes': expected '0..1', '0..255', '-1..1'"),
    (lambda x, m: m(x), dict(preprocess=0.5), r"or a pair \(mean, std\)"),
    (lambda x, m: m(x), dict(preprocess=(0.5, 0)), "std must be above zero"),
])
def test_what_cannot_be_found_gets_a_sentence(function, settings, sentence):
    with pytest.raises(ValueError, match=sentence): freeze(function, mlp(SHAPE, 5), **settings)


def test_images_in_the_range_that_the_model_wants():
    model, images = mlp(SHAPE, 5), IMAGES.clone().requires_grad_()
    for settings, change in (
        (dict(preprocess=(0.5, 0.25)), lambda x: (x - 0.5) / 0.25),
        (dict(preprocess=([0.5], (0.25,))), lambda x: (x - 0.5) / 0.25),
        (dict(pixels="0..255"), lambda x: 255 * x),
        (dict(pixels="-1..1", preprocess=lambda x: x.abs()), lambda x: (2 * x - 1).abs()),
        (dict(pixels="0..255", preprocess=(127.5, 127.5)), lambda x: 2 * x - 1),
        (dict(pixels="0..1"), lambda x: x),
    ):
        classifier = FrozenClassifier(model, shape=SHAPE, device="cpu", **settings)
        torch.testing.assert_close(classifier(images).logits, model(change(images)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(classifier.folded()(images).logits, classifier(images).logits)
        assert classifier(images).logits.requires_grad


def test_names_of_classes():
    model = mlp(SHAPE, 3)
    assert FrozenClassifier(model, shape=SHAPE, device="cpu").classes == ["0", "1", "2"]
    assert FrozenClassifier(model, shape=SHAPE, device="cpu", classes=("a", "b", "c")).classes == ["a", "b", "c"]


ONE = {"[n, 1]": lambda x, m: m(x), "[n]": lambda x, m: m(x)[:, 0], "squeezed": lambda x, m: m(x).squeeze(),
       "in a dict": lambda x, m: {"logit": m(x)}}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("last", [None, nn.Sigmoid()])
def test_one_number_is_the_logit_of_two_classes(name, last):
    model = mlp(SHAPE, 1)
    classifier = freeze(ONE[name], model if last is None else nn.Sequential(*model, last), n_classes=2)
    logits, features = classifier(IMAGES)
    torch.testing.assert_close(logits.softmax(1)[:, 1], model(IMAGES)[:, 0].sigmoid())
    torch.testing.assert_close(classifier(IMAGES[:1]).logits, logits[:1])
    torch.testing.assert_close(features, model[:3](IMAGES))
    assert classifier.n_classes == 2 and "one number for an image" in classifier.notes[-1]


@pytest.mark.filterwarnings("ignore:the classifier returns sigmoids")
def test_one_sigmoid_that_is_no_layer():
    model = mlp(SHAPE, 1)
    classifier = freeze(lambda x, m: torch.sigmoid(m(x)), model)
    torch.testing.assert_close(classifier(IMAGES).logits[:, 1:], model(IMAGES), rtol=1e-3, atol=1e-4)
    assert classifier(IMAGES).logits[:, 0].eq(0).all() and classifier.by_formula
