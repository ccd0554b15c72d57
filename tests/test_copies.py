"netinv.copies: whatever hangs on a network, its copy is independent, or one sentence says why it cannot be."
import threading
from collections import deque, namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from networks import Wrapped, mlp

from netinv.frozen import FrozenClassifier

SHAPE, IMAGES = (1, 8, 8), torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Kept = namedtuple("Kept", "h")


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


def freeze(model, **settings): return FrozenClassifier(model, shape=SHAPE, device="cpu", **settings)


def network():
    "With batch norm, in training mode, as it comes out of a training."
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(24, 5))


def state(model): return {name: t.clone() for name, t in model.state_dict().items()}


def unmoved(model, before): return all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Inner(nn.Module):
    "Compiled in places."
    def __init__(self, change):
        super().__init__()
        self.net, self.head = network()[:-1], nn.Linear(24, 5)
        change(self)

    def forward(self, x): return self.head(self.net(x))


compiled = partial(torch.compile, backend="eager")
COMPILED = {
    "all of it": lambda: compiled(network()),
    "in place": lambda: (model := network(), model.compile(backend="eager"))[0],
    "its forward": lambda: with_forward(network(), lambda model: compiled(model.forward)),
    "a part": lambda: Inner(lambda m: setattr(m, "net", compiled(m.net))),
    "the head": lambda: Inner(lambda m: setattr(m, "head", compiled(m.head))),
    "the forward of a part": lambda: Inner(lambda m: with_forward(m.net, lambda net: compiled(net.forward))),
    "the forward of the head": lambda: Inner(lambda m: with_forward(m.head, lambda head: compiled(head.forward))),
    "the class": lambda: CompiledClass(lambda m: None),
}


class CompiledClass(Inner):
    @torch.compile(backend="eager")
    def forward(self, x): return self.head(self.net(x))


def with_forward(model, make):
    model.forward = make(model)
    return model


@pytest.mark.parametrize("name", COMPILED)
def test_what_was_compiled_runs_uncompiled_in_the_copy(name):
    model = COMPILED[name]()
    model(IMAGES)  # some compile only now
    plain, before = getattr(model, "_orig_mod", model), state(model)
    classifier = freeze(model)
    answer = classifier(IMAGES)
    assert unmoved(model, before) and plain.training and classifier.feature_dim == 24
    assert not any("_orig_mod" in m._modules for m in classifier.model.modules())
    expected = answer.logits.clone()
    with torch.no_grad():
        for p in model.parameters(): p.zero_()
    assert torch.equal(classifier(IMAGES).logits, expected)
    assert any("uncompiled" in note for note in classifier.notes) or name == "in place"


def halved(model):
    inner = model.forward
    return lambda x: inner(x) / 2


def by_default(model):
    def forward(x, model=model): return type(model).forward(model, x) / 2
    return forward


class Callable:
    "A function that is an object cannot hide what it holds from a copy."
    def __init__(self, model): self.inner = model.forward
    def __call__(self, x): return self.inner(x) / 2


REPLACED = {"closure": halved, "default": by_default, "partial of a closure": lambda m: partial(halved(m))}


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("part", [False, True])
def test_a_forward_that_holds_the_original_is_refused_before_statistics_move(name, part):
    model = Inner(lambda m: None).train()
    with_forward(model.net if part else model, REPLACED[name])
    before = state(model)
    with pytest.raises(ValueError, match="would still run the original") as error: freeze(model)
    assert unmoved(model, before) and "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda m: partial(m.forward), Callable])
def test_a_forward_that_can_be_copied_is(make):
    model = with_forward(network(), make)
    before = state(model)
    classifier = freeze(model)
    expected = classifier(IMAGES).logits
    assert unmoved(model, before)
    with torch.no_grad(): model[5].weight.zero_()
    assert torch.equal(classifier(IMAGES).logits, expected)


def test_a_network_outside_of_the_module_is_refused():
    outside = network().train()
    before = state(outside)
    with pytest.raises(ValueError, match="uses a network that is no part of it .Sequential., which cannot be frozen"):
        freeze(Wrapped(lambda x: outside(x)))
    assert unmoved(outside, before)
    model = mlp(SHAPE, 5)
    fresh = lambda x, m: m(nn.Conv2d(1, 1, 1).requires_grad_(False)(x) * 0 + x)  # a layer that is made in every pass
    torch.testing.assert_close(freeze(Wrapped(fresh, model))(IMAGES).logits, model(IMAGES))


def test_functions_that_a_network_keeps_hold_the_copy():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.run = lambda x: self.net(x)

        def forward(self, x): return self.run(x)

    model = Keeping()
    before, classifier = state(model), freeze(model)
    expected = classifier(IMAGES).logits
    with torch.no_grad(): model.net[5].weight.zero_()
    assert torch.equal(classifier(IMAGES).logits, expected)
    assert torch.equal(model.net[1].running_mean, before["net.1.running_mean"])


class Tapped(nn.Module):
    "A hook hands features to `forward` through a dict."
    def __init__(self, place, own):
        super().__init__()
        self.body, self.head = network()[:-1], nn.Linear(24, 5)
        if own: self.place = place
        else: self.read = lambda: place["out"]
        self.body.register_forward_hook(lambda module, given, out: place.update(out=out))

    def forward(self, x):
        self.body(x)
        return self.head(self.place["out"] if hasattr(self, "place") else self.read())


@pytest.mark.parametrize("own", [True, False])
def test_a_hook_that_hands_on_what_it_sees_stays(own):
    place = {}
    model = Tapped(place, own).eval()
    classifier = freeze(model)
    for images in (IMAGES, OTHERS, IMAGES[:2]):
        torch.testing.assert_close(classifier(images).logits, model(images), rtol=1e-3, atol=1e-4)
    assert classifier.feature_layer == "input of head"
    x = OTHERS.clone().requires_grad_()
    assert torch.autograd.grad(classifier(x).logits.square().sum(), x)[0].flatten(1).any(1).all()


def test_an_error_names_the_hook():
    model = network()
    def insist(module, given, out): raise RuntimeError("not here")
    model[0].register_forward_hook(insist)
    with pytest.raises(ValueError, match="not here.*whether its hook can be copied .*insist of 0"): freeze(model)


KEEPING = {"tensor": lambda h: h, "dict": lambda h: {"h": h}, "list": lambda h: [h], "nested": lambda h: {"a": [(h,)]},
           "named tuple": Kept, "deque": lambda h: deque([h]), "object": lambda h: SimpleNamespace(h=h),
           "set": lambda h: {h}}


class Leaving(nn.Module):
    "It keeps activations of its latest pass."
    def __init__(self, keep):
        super().__init__()
        self.net, self.keep, self.kept = mlp(SHAPE, 5), keep, None

    def forward(self, x):
        h = self.net[:3](x)
        self.kept = self.keep(h)
        return self.net[3](h)


@pytest.mark.parametrize("name", KEEPING)
def test_activations_of_an_earlier_pass(name):
    model = Leaving(KEEPING[name])
    expected = model(IMAGES)
    kept = model.kept
    torch.testing.assert_close(freeze(model)(IMAGES).logits, expected)
    assert model.kept is kept


def test_what_cannot_be_copied_is_named():
    model = nn.Sequential(mlp(SHAPE, 5))
    model[0].store = {"lock": threading.Lock()}
    with pytest.raises(ValueError, match="has an attribute '0.store' that cannot be copied .TypeError: cannot pickle"):
        freeze(model)


class Thrifty(nn.Module):
    def __init__(self, reentrant=True):
        super().__init__()
        self.body, self.head, self.reentrant = network()[:-1], nn.Linear(24, 5), reentrant

    def forward(self, x): return self.head(checkpoint.checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    model = Thrifty(reentrant).eval()
    classifier, x = freeze(model), IMAGES.clone().requires_grad_()
    logits, features = classifier(x)
    torch.testing.assert_close(features, model.body(IMAGES), rtol=1e-3, atol=1e-4)
    assert torch.autograd.grad(logits.square().sum(), x)[0].any()
    assert classifier.thrifty == reentrant and checkpoint.CheckpointFunction.__module__ == "torch.utils.checkpoint"


def quantised(): return torch.ao.quantization.quantize_dynamic(mlp(SHAPE, 5), {nn.Linear}, dtype=torch.qint8)


class Int8Linear(nn.Module):
    "As libraries for large networks keep their weights."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-128, 127, (5, 64), dtype=torch.int8), requires_grad=False)

    def forward(self, x): return x.flatten(1) @ self.weight.float().T


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, says", [
    (quantised, "is quantised .Linear., and whole numbers have no gradient: give the float model"),
    (lambda: torch.jit.trace(quantised(), IMAGES), "is quantised .a quantised graph."),
    (Int8Linear, "is quantised .torch.int8."),
    (lambda: mlp(SHAPE, 5).to("meta"), "weights on the meta device, shapes without numbers: load its weights first"),
    (lambda: broken(mlp(SHAPE, 5)), "returned NaN .*1.weight holds NaN"),
])
def test_weights_that_cannot_be_inverted(make, says):
    with pytest.raises(ValueError, match=says): freeze(make())


def broken(model):
    with torch.no_grad(): model[1].weight[0, 0] = torch.nan
    return model


def test_a_float_model_that_is_to_be_quantised_is_fine():
    model = nn.Sequential(torch.ao.quantization.QuantStub(), mlp(SHAPE, 5), torch.ao.quantization.DeQuantStub())
    model.add = torch.ao.nn.quantized.FloatFunctional()
    assert freeze(Wrapped(lambda x, m: m[1](m[0](x)), model)).feature_layer == "input of parts.0.1.3"
