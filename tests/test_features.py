"netinv.features: the input of the head, whatever makes the logits, and never the logits themselves where there is more."
import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import Wrapped, mlp, resnet, squeezenet

from netinv.faster import FrozenClassifier  # which adds `folded`

SHAPE, IMAGES = (1, 8, 8), torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
UNTOLD = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


def freeze(model, **settings): return FrozenClassifier(model.eval(), shape=SHAPE, device="cpu", **settings)


def body(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())


class OwnHead(nn.Module):
    "A head that is a function of features [B, 12] and weights [5, 12]."
    def __init__(self, function, n=5):
        super().__init__()
        self.body, self.function, self.weight = body(), function, nn.Parameter(torch.randn(n, 12))

    def forward(self, x): return self.function(self.body(x), self.weight)


PRODUCTS = {
    "matmul": lambda h, w: h @ w.T,
    "matmul, bias": lambda h, w: torch.matmul(h, w.T) + 1,
    "mm": lambda h, w: h.mm(w.t()),
    "addmm": lambda h, w: torch.addmm(torch.ones(5), h, w.T),
    "linear": lambda h, w: F.linear(h, w),
    "linear, by keyword": lambda h, w: F.linear(input=h, weight=w),
    "einsum": lambda h, w: torch.einsum("bd,nd->bn", h, w),
    "einsum, weights first": lambda h, w: torch.einsum("nd, bd -> bn", w, h),
    "weights first": lambda h, w: (w @ h.T).T,
    "columns": lambda h, w: torch.matmul(w, h[:, :, None])[..., 0],
    "batches of matrices": lambda h, w: torch.bmm(h[:, None], w.T.expand(len(h), -1, -1))[:, 0],
    "inner": lambda h, w: torch.inner(h, w),
    "convolution": lambda h, w: F.conv2d(h[..., None, None], w[..., None, None]).flatten(1),
    "scaled, tempered": lambda h, w: 7 * (h @ w.T) / 3,
    "log-softmax": lambda h, w: (h @ w.T).log_softmax(1),
    "softmax by formula": lambda h, w: (h @ w.T).softmax(1),
    "bounded": lambda h, w: 30 * torch.tanh((h @ w.T) / 30),
    "normalised": lambda h, w: 9 * F.normalize(h @ w.T),
}


@pytest.mark.filterwarnings("ignore:the classifier returns probabilities")
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_head_that_is_a_product(name):
    model, images = OwnHead(PRODUCTS[name]), IMAGES.clone().requires_grad_()
    classifier = freeze(model)
    logits, features = classifier(images)
    torch.testing.assert_close(features, model.body(images))
    assert torch.autograd.grad(features.sum(), images, retain_graph=True)[0].any()
    assert torch.autograd.grad(logits.square().sum(), images)[0].any()
    with torch.no_grad(): torch.testing.assert_close(classifier(IMAGES).features, features)  # nothing asks for gradients
    torch.testing.assert_close(classifier.head(features), logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(copy.deepcopy(classifier)(IMAGES).features, features)
    weights = {"weight": 2 * classifier.model.weight}
    assert not torch.equal(classifier.with_weights(weights, images).logits, logits) or name == "normalised"
    assert "a product between layers" in classifier.notes[0] and not classifier.tap.kept


def test_functions_of_pytorch_all_the_way():
    def forward(x, one, two): return F.linear(F.relu(F.linear(x.flatten(1), one.weight, one.bias)), two.weight)
    model = Wrapped(forward, nn.Linear(64, 12), nn.Linear(12, 5))
    expected = F.relu(model.parts[0](IMAGES.flatten(1)))
    torch.testing.assert_close(freeze(model)(IMAGES).features, expected)


def test_cosines_are_of_the_direction_alone():
    model = OwnHead(lambda h, w: F.normalize(h) @ F.normalize(w).T)
    torch.testing.assert_close(freeze(model)(IMAGES).features, F.normalize(model.body(IMAGES)))


TWO = {
    "zero beside": lambda x: torch.cat([0 * x, x], 1),
    "zeros beside": lambda x: torch.cat([torch.zeros_like(x), x], 1),
    "its negative": lambda x: torch.cat([-x, x], 1),
    "stacked": lambda x: torch.stack([-x[:, 0], x[:, 0]], 1),
    "probabilities": lambda x: torch.cat([1 - x.sigmoid(), x.sigmoid()], 1),
    "stacked probabilities": lambda x: torch.stack([1 - x.sigmoid()[:, 0], x.sigmoid()[:, 0]], -1),
    "log-probabilities": lambda x: torch.cat([F.logsigmoid(-x), F.logsigmoid(x)], 1),
    "the number alone": lambda x: x,
}


@pytest.mark.filterwarnings("ignore:the classifier returns probabilities")
@pytest.mark.parametrize("name", TWO)
def test_the_features_of_two_classes_are_below_the_one_logit(name):
    model = mlp(SHAPE, 1)
    classifier = freeze(Wrapped(lambda x, m: TWO[name](m(x)), model))
    torch.testing.assert_close(classifier(IMAGES).features, model[:3](IMAGES))
    log_odds = classifier(IMAGES).logits.diff(dim=1)
    torch.testing.assert_close(log_odds, (2 if name in ("its negative", "stacked") else 1) * model(IMAGES),
                               rtol=1e-3, atol=1e-4)


class Gated(nn.Module):
    "Squeeze and excite with one channel for each class, and one more layer of that width."
    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.hidden = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 5, 1), nn.Linear(5, 7)
        self.vectors = nn.Parameter(torch.randn(5, 7))

    def forward(self, x):
        maps = self.conv(x)
        maps = maps * self.gate(maps.mean((2, 3), keepdim=True)).sigmoid()
        return -torch.cdist(self.hidden(maps.mean((2, 3))), self.vectors)


@UNTOLD
def test_a_convolution_that_happens_to_be_as_wide_is_no_head():
    classifier = freeze(Gated())
    assert classifier.feature_layer == "output of hidden" and classifier.feature_dim == 7
    assert "no linear layer makes the logits" in classifier.notes[0]


class Twin(nn.Module):
    "Two heads, for two views of the image."
    def __init__(self, joined):
        super().__init__()
        self.body, self.joined, n = body(), joined, 5 if joined == "mean" else 3
        self.one, self.two = nn.Linear(12, n), nn.Linear(12, n)

    def forward(self, x):
        h = self.body(x)
        if self.joined == "cat": return torch.cat([self.one(h), self.two(h)], 1)
        return (self.one(h) + self.two(self.body(x.flip(3)))) / 2


def test_two_heads():
    averaged, side_by_side = Twin("mean").eval(), Twin("cat").eval()
    assert freeze(averaged).feature_layer == "input of two"
    torch.testing.assert_close(freeze(averaged)(IMAGES).features, averaged.body(IMAGES.flip(3)))
    torch.testing.assert_close(freeze(side_by_side)(IMAGES).features, side_by_side.body(IMAGES))


@UNTOLD
@pytest.mark.parametrize("model, layer", [
    (lambda: resnet(5), "input of fc"), (lambda: squeezenet(5), "input of classifier.1"),
])
def test_networks_of_torchvision(model, layer):
    assert FrozenClassifier(model(), shape=(3, 40, 40), device="cpu").feature_layer == layer


@pytest.mark.parametrize("model", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "regnet_y_400mf", "mnasnet0_5"])
def test_more_networks_of_torchvision(model):
    from torchvision import models

    network = getattr(models, model)(num_classes=5).eval()
    classifier = FrozenClassifier(network, shape=(3, 32, 32), device="cpu")
    head = network.get_submodule(classifier.head_layer)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits, features = classifier(images)
    torch.testing.assert_close(head(features), logits)
    assert torch.autograd.grad(logits.square().sum(), images)[0].any()


def exported(model, dynamic=True):
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    return torch.export.export(model, (IMAGES[:2],), dynamic_shapes=shapes)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_graphs():
    model = mlp(SHAPE, 5).eval()
    expected = model[:3](IMAGES)
    for graph in (exported(model).module(), exported(model).run_decompositions().module(), torch.fx.symbolic_trace(model)):
        classifier = freeze_graph(graph)
        torch.testing.assert_close(classifier(IMAGES).features, expected)
        torch.testing.assert_close(classifier.head(expected), model(IMAGES))
    for name in ("1", "linear"):
        named = freeze_graph(exported(model).module(), features=name)
        torch.testing.assert_close(named(IMAGES).features, model[:2](IMAGES))
        torch.testing.assert_close(named(IMAGES).logits, model(IMAGES))
    with pytest.raises(ValueError, match="has no layer 'lienar': give one it has, such as linear"):
        freeze_graph(exported(model).module(), features="lienar")
    with pytest.raises(ValueError, match="got a ExportedProgram: give its module"): freeze_graph(exported(model))
    with pytest.raises(ValueError, match="exported for another size of batch or image, use dynamic_shapes"):
        freeze_graph(exported(model, dynamic=False).module())


def freeze_graph(graph, **settings): return FrozenClassifier(graph, shape=SHAPE, device="cpu", **settings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_says_why_there_are_no_features():
    script = torch.jit.trace(mlp(SHAPE, 5).eval(), IMAGES)
    with pytest.warns(UserWarning, match="features are the logits themselves, because TorchScript takes no hooks"):
        classifier = freeze_graph(script)
    assert classifier.feature_layer == "logits" and "TorchScript" in classifier.notes[-1]
    with pytest.raises(ValueError, match="layer '2' is TorchScript, which takes no hooks"):
        freeze_graph(script, features="2")


def test_a_head_behind_torchscript_has_features():
    model = nn.Sequential(torch.jit.trace(body().eval(), IMAGES), nn.Linear(12, 5))
    assert freeze(model).feature_dim == 12


@pytest.mark.parametrize("says, model, settings", [
    ("the features are the logits themselves", lambda: nn.Flatten(), dict(shape=(1, 1, 5))),
    ("the features .3. are the logits themselves: name an earlier layer", lambda: mlp(SHAPE, 5), dict(features="3")),
    ("are one number for an image", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Linear(1, 5)), {}),
])
def test_features_that_say_little_are_said(says, model, settings):
    with pytest.warns(UserWarning, match=says): FrozenClassifier(model(), **dict(shape=SHAPE, device="cpu") | settings)


def test_threads_do_not_mix_the_features_of_a_product():
    classifier = freeze(OwnHead(PRODUCTS["matmul"]))
    batches = [torch.rand(3, *SHAPE) for _ in range(4)]
    expected, wrong = [classifier(x).features for x in batches], []

    def work(i):
        for _ in range(20):
            if not torch.equal(classifier(batches[i]).features, expected[i]): wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong and not classifier.tap.kept
