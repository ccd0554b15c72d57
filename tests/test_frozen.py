"netinv.frozen: any network can be frozen, none is changed by it, and whatever is unfit gets one sentence."
import copy
import math
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import DERIVED, OwnSoftmax, Wrapped, derived, mlp, resnet, squeezenet, worn_cnn

from netinv.classifier import CNN
from netinv.data import load_data
from netinv.device import borrowed_rng
from netinv.frozen import FrozenClassifier, check_frozen
from netinv.generator import Generator
from netinv.inversion import Inverter


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


class Viewing(nn.Module):
    "A CNN without batch norm that insists on the usual memory layout."

    def __init__(self, channels, n_classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.fc1 = nn.Linear(96, 20)
        self.fc2 = nn.Linear(20, n_classes)

    def forward(self, x):
        x = self.pool(F.relu(self.conv(x)))
        return self.fc2(F.relu(self.fc1(x.view(len(x), -1))))


class FunctionalHead(nn.Module):
    "A head that is no module: cosine similarity to a vector for each class."

    def __init__(self, n_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())
        self.weight = nn.Parameter(torch.randn(n_classes, 12))

    def forward(self, x):
        return F.linear(F.normalize(self.body(x)), F.normalize(self.weight))


ARCHITECTURES = {
    "cnn": (lambda: CNN((1, 28, 28), 10), (1, 28, 28), 10, "input of head", 128),
    "cnn, tiny images": (lambda: CNN((1, 8, 8), 10), (1, 8, 8), 10, "input of head", 128),
    "cnn, non-square": (lambda: CNN((2, 20, 50), 3), (2, 20, 50), 3, "input of head", 128),
    "cnn, large images": (lambda: CNN((3, 224, 160), 2, widths=(4, 8)), (3, 224, 160), 2, "input of head", 128),
    "mlp": (lambda: mlp((3, 9, 7), 26), (3, 9, 7), 26, "input of 3", 24),
    "mlp, 1000 classes": (lambda: mlp((1, 8, 8), 1000), (1, 8, 8), 1000, "input of 3", 24),
    "no batch norm, view": (lambda: Viewing(3, 5), (3, 16, 24), 5, "input of fc2", 20),
    "resnet18 at 32": (lambda: resnet(100), (3, 32, 32), 100, "input of fc", 512),
    "resnet18 at 64": (lambda: resnet(2), (3, 64, 64), 2, "input of fc", 512),
    "convolution as head": (lambda: squeezenet(7), (3, 40, 64), 7, "input of classifier.1", 512),
    "log-softmax at the end": (
        lambda: nn.Sequential(mlp((1, 8, 8), 4), nn.LogSoftmax(1)), (1, 8, 8), 4, "input of 0.3", 24
    ),
    "functional head": (lambda: FunctionalHead(3), (1, 8, 8), 3, "input of linear", 12),
    "one linear layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), (1, 8, 8), 5, "input of 1", 64),
    "no layers": (lambda: nn.Flatten(), (1, 1, 6), 6, "logits", 6),
}


def snapshot(model):
    "Everything about a module that freezing it could change."
    return {
        "weights": {k: (v.clone(), v.dtype, v.device, v.stride()) for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "hooks": [{k: dict(v) for k, v in vars(m).items() if "hooks" in k and v} for m in model.modules()],
    }


def assert_same_snapshot(before, after):
    for key in ("modes", "requires_grad", "gradients", "hooks"):
        assert before[key] == after[key], key
    for name, (value, *rest) in before["weights"].items():
        assert torch.equal(value, after["weights"][name][0]) and rest == list(after["weights"][name][1:]), name


@pytest.fixture(params=ARCHITECTURES, scope="module")
def case(request):
    make, shape, n_classes, layer, dim = ARCHITECTURES[request.param]
    with borrowed_rng(0, torch.device("cpu")):
        model = make()
    for m in list(model.modules())[::2]:
        m.training = False  # a mixture, so that restoring one mode for all would show
    for p in list(model.parameters())[::3]:
        p.requires_grad_(False)
    before = snapshot(model)
    classifier = FrozenClassifier(model, shape=shape, n_classes=n_classes, device="cpu")
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    return model, before, classifier, images, layer, dim


def test_frozen_outputs(case):
    model, _, classifier, images, layer, dim = case
    expected = copy.deepcopy(model).eval()(images)
    logits, features = classifier(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert features.shape == (4, dim) == (4, classifier.feature_dim) and features.dtype == torch.float32
    assert classifier.feature_layer == layer and layer in repr(classifier)
    assert classifier.n_classes == logits.shape[1] and classifier.unreachable == []


def test_model_is_left_as_found(case):
    model, before, classifier, images, *_ = case
    classifier(images.clone().requires_grad_()).logits.sum().backward()
    assert_same_snapshot(before, snapshot(model))
    theirs = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    assert not theirs & {p.data_ptr() for p in (*classifier.model.parameters(), *classifier.model.buffers())}


def test_gradient_is_that_of_the_plain_model(case):
    model, _, classifier, images, *_ = case
    reference = copy.deepcopy(model).eval()
    gradients = []
    for run in (reference, lambda x: classifier(x).logits):
        x = images.clone().requires_grad_()
        weight = torch.linspace(-1, 1, classifier.n_classes)
        gradients.append(torch.autograd.grad((run(x) * weight).sum(), x)[0])
    scale = gradients[0].abs().max()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * scale.item())
    assert all(p.grad is None and not p.requires_grad for p in classifier.model.parameters())


def test_features_by_hand():
    model = CNN((3, 16, 16), 4).eval()
    images = torch.rand(5, 3, 16, 16)
    hidden = model.hidden[2](model.body(images).flatten(1))
    expected = torch.where(hidden > 0, hidden, 0.1 * hidden)
    torch.testing.assert_close(FrozenClassifier(model, shape=(3, 16, 16), device="cpu")(images).features, expected)
    net = squeezenet(7).eval()
    expected = net.features(torch.ones(2, 3, 40, 40)).mean((2, 3))
    features = FrozenClassifier(net, shape=(3, 40, 40), device="cpu")(torch.ones(2, 3, 40, 40)).features
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_features_have_gradients():
    classifier = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    assert torch.autograd.grad(classifier(x).features.sum(), x)[0].abs().sum() > 0


def test_patchwise_head_averages_over_positions():
    model = Wrapped(lambda x, a: a(x.flatten(2).transpose(1, 2)).mean(1), nn.Linear(3, 4))  # [B, HW, 3] -> [B, 4]
    images = torch.rand(2, 3, 5, 5)
    classifier = FrozenClassifier(model, shape=(3, 5, 5), device="cpu")
    torch.testing.assert_close(classifier(images).features, images.mean((2, 3)))


def test_head_is_the_one_whose_output_is_returned():
    def forward(x, main, extra):
        logits = main(x.flatten(1))
        extra(x.flatten(1) * 2)  # an auxiliary head, used later, not returned
        return logits

    model = Wrapped(forward, nn.Linear(4, 3), nn.Linear(4, 3))
    assert FrozenClassifier(model, shape=(1, 2, 2), device="cpu").feature_layer == "input of parts.0"


def test_named_features_survive_in_place_layers():
    model = resnet(10).eval()
    seen = []
    hook = model.layer4[1].bn2.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    images = torch.rand(2, 3, 32, 32)
    model(images)
    hook.remove()
    classifier = FrozenClassifier(model, shape=(3, 32, 32), features="layer4.1.bn2", device="cpu")
    torch.testing.assert_close(classifier(images).features, seen[0].flatten(1), rtol=1e-3, atol=1e-4)
    assert classifier.feature_layer == "layer4.1.bn2"


def test_one_pass_per_call_and_nothing_piles_up():
    passes = []

    def forward(x, layer):
        passes.append(1)
        return layer(x.flatten(1))

    classifier = FrozenClassifier(Wrapped(forward, nn.Linear(64, 3)), shape=(1, 8, 8), device="cpu")
    passes.clear()  # the copy's function is the original's, and so is its counter
    for _ in range(5):
        classifier(torch.rand(2, 1, 8, 8))
    assert len(passes) == 5 and not classifier.tap.kept
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in classifier.model.modules()) == 1


def test_threads_do_not_mix_their_features():
    classifier = FrozenClassifier(mlp((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    batches = [torch.rand(3, 1, 8, 8) for _ in range(8)]
    expected = [classifier(x).features for x in batches]
    wrong = []

    def work(i):
        for _ in range(30):
            if not torch.equal(classifier(batches[i]).features, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and not classifier.tap.kept


def test_copy_of_a_frozen_classifier_has_its_own_tap():
    classifier = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    twin = copy.deepcopy(classifier)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(twin(images).features, classifier(images).features) and twin.tap is not classifier.tap


def test_float32_out_under_autocast_and_from_other_dtypes():
    images = torch.rand(2, 1, 8, 8)
    classifier = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        out = classifier(images)
    assert out.logits.dtype == out.features.dtype == torch.float32
    double = mlp((1, 8, 8), 3).double()
    assert FrozenClassifier(double, shape=(1, 8, 8), device="cpu")(images).logits.dtype == torch.float32
    assert next(double.parameters()).dtype == torch.float64


@pytest.mark.parametrize("as_module", [False, True])
def test_preprocess(as_module):
    from torchvision.transforms import Normalize

    normalize = Normalize([0.5] * 3, [0.2] * 3)
    preprocess = normalize if as_module else lambda x: (x - 0.5) / 0.2
    model = mlp((3, 4, 4), 3)
    images = torch.rand(2, 3, 4, 4)
    classifier = FrozenClassifier(model, shape=(3, 4, 4), preprocess=preprocess, device="cpu")
    torch.testing.assert_close(classifier(images).logits, model(normalize(images)))
    resized = FrozenClassifier(model, shape=(3, 8, 8), preprocess=lambda x: F.avg_pool2d(x, 2), device="cpu")
    assert resized(torch.rand(2, 3, 8, 8)).logits.shape == (2, 3)


def steep(n_classes=5):
    "A perceptron so sure of itself that its probabilities are rounded to 0 and 1."
    model = mlp((1, 8, 8), n_classes)
    with torch.no_grad(): model[3].weight.mul_(3000)
    return model


class OwnSigmoid(nn.Module):
    def forward(self, x): return 1 / (1 + (-x).exp())


TAKEN_OFF = {
    "softmax": ([nn.Softmax(1)], "softmax"),
    "softmax of the last axis": ([nn.Softmax(-1)], "softmax"),
    "own softmax": ([OwnSoftmax()], "softmax"),
    "own softmax, given a name": ([Wrapped(lambda x, own: own(x, dim=1), OwnSoftmax())], "softmax"),
    "softmax of maps": ([nn.Unflatten(1, (5, 1, 1)), nn.Softmax2d(), nn.Flatten()], "softmax"),
    "idle layers behind it": ([nn.Sequential(nn.Softmax(1), nn.Identity()), nn.Dropout()], "softmax"),
    "sigmoids": ([nn.Sigmoid()], "sigmoid"),
    "own sigmoids": ([OwnSigmoid()], "sigmoid"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TAKEN_OFF)
def test_a_layer_that_squashes_the_logits_is_taken_off_the_copy(name):
    last, kind = TAKEN_OFF[name]
    logits, images = steep(), torch.rand(9, 1, 8, 8, requires_grad=True)
    model = nn.Sequential(logits, *last).train()
    before = snapshot(model)
    classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert logits(images).min() < -200 and logits(images).max() > 200
    torch.testing.assert_close(classifier(images).logits, logits(images))
    assert torch.autograd.grad(classifier(images).logits.square().sum(), images)[0].flatten(1).any(1).all()
    assert classifier.ends_with == kind and classifier.from_probabilities and not classifier.by_formula
    assert f"{kind} taken off" in repr(classifier) and classifier.feature_layer == "input of 0.3"
    assert classifier.unreachable == []  # however small the probabilities are
    assert_same_snapshot(before, snapshot(model))
    assert 0 <= model.eval()(images).min() and model(images).max() <= 1


FUNCTIONAL = {
    "softmax": (lambda z: z.softmax(1), "softmax"),
    "sigmoids": (torch.sigmoid, "sigmoid"),
    "sigmoids of maps, bounded": (lambda z: z[:, :, None, None].sigmoid().squeeze().clamp(1e-6, 1 - 1e-6), "sigmoid"),
    "sigmoids in float64": (lambda z: z.double().sigmoid(), "sigmoid"),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_a_squash_that_is_no_layer_is_undone_by_its_formula(name):
    squash, kind = FUNCTIONAL[name]
    logits, images = mlp((1, 8, 8), 5), torch.rand(9, 1, 8, 8)
    with pytest.warns(UserWarning, match=f"no gradient where they are saturated: .* what its {kind} is given") as told:
        classifier = FrozenClassifier(Wrapped(lambda x, m: squash(m(x)), logits), shape=(1, 8, 8), device="cpu")
    assert len(told) == 1 and told[0].filename == __file__
    found, expected = classifier(images).logits, logits(images)
    if kind == "softmax": found, expected = found.log_softmax(1), expected.log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert classifier.ends_with == kind and classifier.from_probabilities and classifier.by_formula
    assert f"{kind} by formula" in repr(classifier) and classifier.feature_layer == "input of parts.0.3"


@pytest.mark.filterwarnings("ignore:the classifier returns")
@pytest.mark.parametrize("squash", [lambda z: z.softmax(1), torch.sigmoid])
def test_formulas_stay_finite_where_outputs_are_rounded(squash):
    model = Wrapped(lambda x, m: squash(m(x) * x.mean((1, 2, 3))[:, None] ** 8), steep())  # unsure of dark images
    classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    images = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 1, 8, 8).clone().requires_grad_()
    found = classifier(images).logits
    assert model(images).eq(0).any() and found.isfinite().all()
    torch.testing.assert_close(squash(found), model(images), atol=1e-6, rtol=1e-4)
    slope = torch.autograd.grad(found.square().sum(), images)[0]
    assert slope.isfinite().all() and slope[4].any()


def test_what_is_no_squash_is_left_alone():
    for last in (nn.Identity(), nn.LogSoftmax(1), nn.ReLU(), nn.ReLU6(), nn.Hardsigmoid(), nn.Softmin(1), nn.Tanh()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if isinstance(last, nn.Softmin) else "error")
            classifier = FrozenClassifier(nn.Sequential(mlp((1, 8, 8), 5), last), shape=(1, 8, 8), device="cpu")
        assert classifier.by_formula == isinstance(last, nn.Softmin)  # which makes probabilities, but no softmax
        assert classifier.by_formula or classifier.ends_with is None and not classifier.from_probabilities


class SumSigmoid(nn.Module):
    def forward(self, x, y): return (x + y).sigmoid()


KEPT = {
    "hidden layers use it": lambda m, last: Wrapped(lambda x, m, last: last(m[3](last(m[1](m[0](x))))), m, last),
    "a bound comes after": lambda m, last: Wrapped(lambda x, m, last: last(m(x)).clamp(min=0.1), m, last),
    "two tensors go in": lambda m, last: Wrapped(lambda x, m, last: last(m(x), 0 * m(x)), m, SumSigmoid()),
}


@pytest.mark.filterwarnings("ignore:the classifier returns sigmoids")
@pytest.mark.parametrize("name", KEPT)
def test_a_layer_that_does_more_than_squash_the_logits_stays(name):
    model, images = KEPT[name](mlp((1, 8, 8), 5), nn.Sigmoid()).eval(), torch.rand(9, 1, 8, 8)
    classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert classifier.ends_with == "sigmoid" and classifier.by_formula
    torch.testing.assert_close(classifier(images).logits.sigmoid(), model(images))


def test_the_squash_of_a_classifier_that_answers_at_random_is_taken_off():
    random = nn.Sequential(mlp((1, 8, 8), 5), Wrapped(lambda x: F.dropout(x)), nn.Softmax(1))
    with pytest.warns(UserWarning, match="classifier is random"):
        assert repr(FrozenClassifier(random, shape=(1, 8, 8), device="cpu")).endswith("softmax taken off, cpu)")


def test_infinite_logits_leave_the_sigmoids_on():
    endless = Wrapped(lambda x, m, last: last(torch.cat([m(x), x.flatten(1)[:, :1] + math.inf], 1)), mlp((1, 8, 8), 2))
    endless.parts.append(nn.Sigmoid())
    with pytest.warns(UserWarning, match="the classifier returns sigmoids"):
        classifier = FrozenClassifier(endless, shape=(1, 8, 8), device="cpu")
    assert classifier(torch.rand(4, 1, 8, 8)).logits.isfinite().all()


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_everything_else_is_the_same_without_the_squash(last):
    model, images = worn_cnn((1, 12, 12), 4), torch.rand(6, 1, 12, 12)
    plain = FrozenClassifier(model, shape=(1, 12, 12), device="cpu")
    squashed = FrozenClassifier(nn.Sequential(model, last), shape=(1, 12, 12), device="cpu")
    expected, weight = plain(images), 2 * plain.model.head.weight
    assert squashed.folded() is not squashed and squashed.feature_layer == "input of 0.head"
    for one in (squashed, squashed.folded(), copy.deepcopy(squashed)):
        for a, b in zip(one(images), expected): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.head(expected.features), expected.logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.answers(), plain.answers(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.with_weights({"0.head.weight": weight}, images).logits,
                                   plain.with_weights({"head.weight": weight}, images).logits, rtol=1e-3, atol=1e-4)


def test_sigmoids_trained_with_binary_cross_entropy_are_inverted():
    data = load_data("digits", device="cpu")
    x, y = data.train.images.float() / 255, F.one_hot(data.train.labels, 10).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        i = torch.randint(len(x), (128,))
        loss = F.binary_cross_entropy(model(x[i]), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier = FrozenClassifier(model, shape=data.shape, device="cpu")
    inverter = Inverter(classifier, generator=Generator.sized(width=32), seed=0)
    inverter.fit(100, progress=False)
    assert inverter.sample(500, seed=0).hits.float().mean() >= 0.95  # two thirds if the sigmoids are taken for logits


@pytest.mark.parametrize("softmax", [False, True])
def test_unreachable_class_is_reported(softmax):
    model = mlp((1, 8, 8), 5)
    with torch.no_grad():
        model[3].bias[[1, 4]] = -math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(model, nn.Softmax(1)) if softmax else model
        classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert classifier.unreachable == [1, 4] and "unreachable: [1, 4]" in repr(classifier)


def raising(x):
    raise KeyError("first line\nsecond line")


UNFIT = {
    "two entries": (lambda x, m: (m(x), 2 * m(x)), "returned a tuple, expected one tensor of logits [8, N], and in it "
                    "'0' [8, 10], '1' [8, 10]: choose one, such as output='0'"),
    "no entry": (lambda x, m: {"maps": x}, "returned a dict, expected one tensor of logits [8, N], and in it 'maps' "),
    "no tensor": (lambda x, m: [None, 3], "returned a list, expected one tensor of logits [8, N], and in it no tensor"),
    "maps": (lambda x, m: m(x)[..., None, None].expand(8, 10, 2, 1), "returned [8, 10, 2, 1], expected one tensor"),
    "no batch": (lambda x, m: m(x).mean(0, keepdim=True), "returned [1, 10], expected one tensor of logits [8, N]"),
    "raises": (lambda x, m: raising(x), "cannot run on images [8, 1, 8, 8] (KeyError: 'first line"),
    "nan": (lambda x, m: m(x) * math.nan, "returned NaN"),
    "infinite": (lambda x, m: m(x) + math.inf, "infinite largest logit"),
    "all minus infinity": (lambda x, m: m(x) - math.inf, "infinite largest logit"),
    "detached": (lambda x, m: m(x).detach(), "no gradient gets from"),
    "numpy": (lambda x, m: torch.from_numpy(m(x).detach().numpy()), "no gradient gets from"),
    "rounded": (lambda x, m: m((255 * x).round()), "no gradient gets from"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_classifier_gets_a_sentence(name):
    function, sentence = UNFIT[name]
    with pytest.raises(ValueError) as error:
        FrozenClassifier(Wrapped(function, mlp((1, 8, 8), 10)), shape=(1, 8, 8), device="cpu")
    assert sentence in str(error.value) and "\n" not in str(error.value)


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("holds an open socket")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(n_classes=12), "classifier returned logits [8, 10] but n_classes=12"),
        (dict(shape=(3, 8, 8)), "cannot run on images [8, 3, 8, 8] (RuntimeError"),
        (dict(shape=(8, 8)), "shape must be (channels, height, width), got (8, 8)"),
        (dict(shape=(1, 0, 8)), "shape must be"),
        (dict(shape=8), "shape must be (channels, height, width), got 8"),
        (dict(n_classes="10"), "a whole number of at least 2, got '10'"),
        (dict(features=5), "features is 5: expected the name of a layer"),
        (dict(n_classes=1), "at least 2"),
        (dict(features="hiden.2"), "has no layer 'hiden.2'"),
        (dict(features="hiden.2"), "hidden.2"),
        (dict(features="unused"), "takes no part"),
        (dict(model=Uncopyable()), "Uncopyable cannot be copied (TypeError: holds an open socket)"),
        (dict(model=nn.Sequential(nn.Flatten(), nn.LazyLinear(3))), "layers without weights yet"),
        (dict(model=nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))), "layers without weights yet"),
        (dict(model=len), "must be an nn.Module, got a builtin_function_or_method"),
        (dict(device="nowhere"), "device 'nowhere' cannot be used"),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments, sentence):
    model = CNN((1, 8, 8), 10)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError) as error:
        FrozenClassifier(arguments.pop("model", model), **{"shape": (1, 8, 8), "device": "cpu", **arguments})
    assert sentence in str(error.value) and "\n" not in str(error.value)


class Casting(nn.Module):
    "A network that computes in its own precision."
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).to(dtype)

    def forward(self, x): return self.inner(x.to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_network_that_casts_its_images_keeps_its_precision(dtype):
    model = Casting(dtype)
    images = torch.rand(4, 1, 8, 8)
    found = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")(images).logits
    assert found.dtype == torch.float32 and torch.allclose(found, model(images).float(), atol=1e-2)


IN_PLACE = {
    "a layer": dict(model=nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5))),
    "preprocess": dict(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), preprocess=lambda x: x.sub_(0.5).div_(0.5)),
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_classifier_that_writes_into_its_images(case):
    classifier = FrozenClassifier(**IN_PLACE[case], shape=(1, 8, 8), device="cpu")
    leaf = torch.rand(4, 1, 8, 8, requires_grad=True)
    images = leaf.sigmoid()  # whose gradient needs its own output
    kept = images.detach().clone()
    classifier(images).logits.square().sum().backward()
    assert torch.equal(images, kept) and leaf.grad.abs().sum() > 0
    assert not FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), shape=(1, 8, 8), device="cpu").in_place


def test_batches_of_one_size_only():
    class Fixed(nn.Module):
        def forward(self, x): return x.view(-1, 8, 64)[:, :, :5].flatten(0, 1)
    with pytest.raises(ValueError, match="takes 8 images at once but not 3 .*make it take any number"):
        FrozenClassifier(Fixed(), shape=(1, 8, 8), device="cpu")


def test_named_layer_that_gives_no_tensor():
    model = Wrapped(lambda x, rnn, head: head(rnn(x[:, 0])[1][0]), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3))
    assert FrozenClassifier(model, shape=(1, 5, 8), device="cpu").feature_layer == "input of parts.1"
    with pytest.raises(ValueError, match="layer 'parts.0' gives a tuple"):
        FrozenClassifier(model, shape=(1, 5, 8), features="parts.0", device="cpu")


def test_images_of_another_shape_get_a_sentence():
    classifier = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    for images in (torch.rand(2, 1, 8, 9), torch.rand(1, 8, 8), torch.rand(2, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"takes images \[B, 1, 8, 8\], got"):
            classifier(images)


def test_warnings_for_random_and_for_batch_dependent_classifiers():
    layer = mlp((1, 8, 8), 3)
    with pytest.warns(UserWarning, match="classifier is random"):
        FrozenClassifier(Wrapped(lambda x, m: F.dropout(m(x)), layer), shape=(1, 8, 8), device="cpu")
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.warns(UserWarning, match="depend on the other images"):
        FrozenClassifier(nn.Sequential(layer, norm), shape=(1, 8, 8), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenClassifier(layer, shape=(1, 8, 8), device="cpu")


def test_watching_hooks_stay_with_the_original():
    model, seen = CNN((1, 8, 8), 3), []
    model.head.register_forward_hook(lambda m, i, o: seen.append(o))
    model.head.register_full_backward_hook(lambda m, i, o: seen.append(o))
    classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    seen.clear()
    classifier(torch.rand(2, 1, 8, 8, requires_grad=True)).logits.sum().backward()
    assert not seen and len(model.head._forward_hooks) == 1 and len(model.head._backward_hooks) == 1


def test_hooks_that_compute_are_kept():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda m, i, o: o * 3 + 1)
    nn.utils.parametrizations.weight_norm(model[3])
    images = torch.rand(2, 1, 8, 8)
    classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    torch.testing.assert_close(classifier(images).logits, model(images))


def test_model_with_leftovers_of_an_earlier_pass():
    class Caching(nn.Sequential):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    model = Caching(nn.Flatten(), nn.Linear(64, 3))
    model(torch.rand(2, 1, 8, 8))
    last = model.last
    FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert model.last is last and last.grad_fn is not None


def test_compiled_model_is_unwrapped():
    model = mlp((1, 8, 8), 3)
    classifier = FrozenClassifier(torch.compile(model), shape=(1, 8, 8), device="cpu")
    assert classifier.feature_layer == "input of 3"


def test_scripted_model():
    model = mlp((1, 8, 8), 3)
    classifier = FrozenClassifier(torch.jit.script(model), shape=(1, 8, 8), device="cpu")
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(classifier(images).logits, model(images))
    assert classifier.feature_layer == "logits" and all(p.requires_grad for p in model.parameters())


def test_inference_mode_around_the_making():
    with torch.inference_mode():
        classifier = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
        classifier(torch.rand(2, 1, 8, 8))
    assert classifier.feature_layer == "input of head"


class Batchwise(nn.Module):
    "Remembers the size of the batch, as many networks with tokens do."
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        return self.head(self.hidden(x.flatten(1)).relu()).view(batch, 3)


@pytest.mark.parametrize("model", [
    Batchwise(),
    nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(1)),
    nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
])
def test_the_head_alone_answers_as_the_whole(model: nn.Module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = FrozenClassifier(model.eval(), shape=(1, 4, 4), device="cpu")
    logits, features = frozen(torch.rand(20, 1, 4, 4))
    assert torch.allclose(frozen.head(features), logits, atol=1e-5)
    other = torch.randn(7, frozen.feature_dim, requires_grad=True)
    frozen.head(other).sum().backward()
    assert other.grad.abs().sum() > 0
    black = torch.zeros(1, 1, 4, 4)  # and nothing has stayed behind
    assert torch.allclose(frozen(black).logits, frozen.head(frozen(black).features), atol=1e-5)


class Viewer(nn.Module):
    "The usual idiom of tutorials, which takes no other layout than the one it was written for."
    def __init__(self, channels):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 6, 3), nn.Linear(54, 4)

    def forward(self, x):
        return self.head(F.max_pool2d(self.conv(x).relu(), 2).view(-1, 54))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_meets_the_layout_it_expects(channels):
    model = Viewer(channels)
    frozen = FrozenClassifier(model, shape=(channels, 8, 8), device="cpu")
    images = torch.rand(5, channels, 8, 8)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(frozen(images.contiguous(memory_format=layout)).logits, model(images))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", DERIVED)
def test_computed_weights_become_plain_ones_in_the_copy(kind):
    model, images = derived(kind), torch.rand(5, 1, 8, 8)
    names = list(model.state_dict())
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    torch.testing.assert_close(frozen(images).logits, model(images))
    assert "0.weight" in dict(frozen.model.named_parameters()) and list(model.state_dict()) == names


def test_a_hook_that_only_rarely_changes_something_stays():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda module, inputs, output: output.clamp(max=8))
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    bright = 20 * model[1].weight[:1].sign().view(1, 1, 8, 8)
    torch.testing.assert_close(frozen(bright).logits, model(bright))


def test_answers_tell_preprocessings_apart_and_never_change():
    model = CNN((1, 8, 8), 3)
    plain = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    negative = FrozenClassifier(model, shape=(1, 8, 8), preprocess=lambda x: 1 - x, device="cpu")
    torch.manual_seed(5)
    before, once = torch.get_rng_state(), plain.answers()
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(once, plain.answers()) and not once.requires_grad
    torch.testing.assert_close(once.exp().sum(1), torch.ones(8))
    assert not torch.allclose(once, negative.answers(), atol=1e-3)


def test_answers_of_a_classifier_that_answers_at_random_are_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Wrapped(lambda x, m: F.dropout(m(x)), mlp((1, 8, 8), 3))
        dropping = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert torch.equal(dropping.answers(), dropping.answers())


def test_a_class_out_of_reach_has_finite_answers():
    model = mlp((1, 8, 8), 3)
    with torch.no_grad(): model[3].bias[1] = -math.inf
    assert FrozenClassifier(model, shape=(1, 8, 8), device="cpu").answers()[:, 1].tolist() == [-20] * 8


@pytest.mark.parametrize("wrong, told", [
    (mlp((1, 8, 8), 3), "classifier is a Sequential, a plain module: freeze it first, "),
    (len, "classifier is a builtin_function_or_method: freeze it first, "),
    (None, "classifier is a NoneType: freeze it first, "),
])
def test_what_is_not_frozen_gets_the_line_to_write(wrong, told):
    with pytest.raises(ValueError) as error: check_frozen(wrong)
    assert str(error.value) == told + "FrozenClassifier(classifier, shape=(channels, height, width))"
    check_frozen(FrozenClassifier(mlp((1, 8, 8), 3), shape=(1, 8, 8), device="cpu"))


def test_other_weights_are_only_tried_on():
    model = CNN((1, 8, 8), 3).eval()
    frozen, images = FrozenClassifier(model, shape=(1, 8, 8), device="cpu"), torch.rand(4, 1, 8, 8)
    before, weight = frozen(images), (2 * frozen.model.head.weight).requires_grad_()
    after = frozen.with_weights({"head.weight": weight}, images)
    torch.testing.assert_close(after.logits - model.head.bias, 2 * (before.logits - model.head.bias))
    torch.testing.assert_close(after.features, before.features)
    [slope] = torch.autograd.grad(after.logits.sum(), [weight])
    torch.testing.assert_close(slope, after.features.sum(0).expand(3, -1))
    assert torch.equal(frozen(images).logits, before.logits)


@pytest.mark.parametrize("model, preprocess", [
    (lambda: mlp((1, 8, 8), 5), lambda x: x / 255),
    (lambda: mlp((1, 8, 8), 5), lambda x: (x / 255 - 0.13) / 0.31),
    (lambda: Wrapped(lambda x, m: m(x / 255), mlp((1, 8, 8), 5)), None),
    (lambda: CNN((1, 8, 8), 5), lambda x: x / 255),
])
def test_images_that_are_divided_by_255_twice(model, preprocess):
    with pytest.warns(UserWarning, match="seem to be divided by 255 twice") as told:
        classifier = FrozenClassifier(model(), shape=(1, 8, 8), preprocess=preprocess, device="cpu")
    assert len(told) == 1 and told[0].filename == __file__ and str(told[0].message) in classifier.notes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenClassifier(model(), shape=(1, 8, 8), preprocess=preprocess, pixels="0..255", device="cpu")


def test_a_model_without_a_head():
    headless = resnet(10)
    headless.fc = nn.Identity()
    with pytest.warns(UserWarning, match="512 outputs of ResNet seem to be features .* 'fc' is an nn.Identity"):
        FrozenClassifier(headless, shape=(3, 32, 32), device="cpu")
    without = Wrapped(lambda x, m: m(x).relu(), nn.Sequential(nn.Conv2d(1, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    without.num_classes = 0
    with pytest.warns(UserWarning, match="because its num_classes is 0: give a model with a head, or n_classes=64"):
        FrozenClassifier(without, shape=(1, 8, 8), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenClassifier(headless, shape=(3, 32, 32), n_classes=512, device="cpu")


@pytest.mark.parametrize("transform", ["ToTensor", "PILToTensor"])
def test_a_training_transform_as_preprocess(transform):
    from torchvision import transforms

    steps = transforms.Compose([transforms.RandomCrop(8), getattr(transforms, transform)()])
    with pytest.raises(ValueError, match=f"preprocess cannot take images .*: leave out {transform}"):
        FrozenClassifier(mlp((1, 8, 8), 5), shape=(1, 8, 8), preprocess=steps, device="cpu")


def test_formulas_compute_in_float32_whatever_autocast_says():
    logits = mlp((1, 8, 8), 5)
    with torch.no_grad(): logits[3].weight.mul_(30)
    images = torch.rand(9, 1, 8, 8)
    for squash in (torch.sigmoid, lambda z: torch.logit(z.sigmoid(), 1e-7)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier = FrozenClassifier(Wrapped(lambda x, m: squash(m(x)), logits), shape=(1, 8, 8), device="cpu")
        with torch.autocast("cpu", torch.bfloat16): found = classifier(images).logits
        torch.testing.assert_close(found, logits(images), rtol=1e-2, atol=1e-1)
