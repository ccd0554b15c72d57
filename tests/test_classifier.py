"netinv.classifier: any network can be frozen, none is changed by it, and whatever is unfit gets one sentence."
import copy
import math
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import worn_cnn

from netinv.classifier import CNN, augmented, load_weights, predictions, save_weights, train_classifier
from netinv.device import borrowed_rng
from netinv.samples import accuracy
from netinv.frozen import FrozenClassifier
from netinv.data import ImageData, Split, load_data, to_float


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


def resnet(n_classes):
    from torchvision.models import resnet18

    return resnet18(num_classes=n_classes)


def squeezenet(n_classes):
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(num_classes=n_classes)


def mlp(shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 24), nn.ReLU(), nn.Linear(24, n_classes))


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


class Wrapped(nn.Module):
    "A module made of a function."

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


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
    "log-softmax at the end": (lambda: nn.Sequential(mlp((1, 8, 8), 4), nn.LogSoftmax(1)), (1, 8, 8), 4, "input of 0.3", 24),
    "functional head": (lambda: FunctionalHead(3), (1, 8, 8), 3, "output of body.2", 12),
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


def test_probabilities_become_logits():
    model = nn.Sequential(mlp((1, 8, 8), 5), nn.Softmax(1))
    images = torch.rand(3, 1, 8, 8)
    with pytest.warns(UserWarning, match="returns probabilities"):
        classifier = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    torch.testing.assert_close(classifier(images).logits.softmax(1), model(images))
    assert classifier.feature_layer == "input of 0.3" and classifier.unreachable == []


@pytest.mark.parametrize("softmax", [False, True])
def test_unreachable_class_is_reported(softmax):
    model = mlp((1, 8, 8), 5)
    with torch.no_grad():
        model[3].bias[[1, 4]] = -math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = FrozenClassifier(nn.Sequential(model, nn.Softmax(1)) if softmax else model, shape=(1, 8, 8), device="cpu")
    assert classifier.unreachable == [1, 4] and "unreachable: [1, 4]" in repr(classifier)


def raising(x):
    raise KeyError("first line\nsecond line")


UNFIT = {
    "tuple": (lambda x, m: (m(x), x), "returned a tuple, expected one tensor of logits [8, N]"),
    "dict": (lambda x, m: {"logits": m(x)}, "returned a dict, expected one tensor"),
    "list": (lambda x, m: [m(x)], "returned a list, expected one tensor"),
    "one output": (lambda x, m: m(x)[:, 0], "one output per image, [8]"),
    "one column": (lambda x, m: m(x)[:, :1], "one output per image, [8, 1]"),
    "maps": (lambda x, m: m(x)[..., None, None], "returned [8, 10, 1, 1], expected one tensor of logits [8, N]"),
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


class Stubborn(nn.Sequential):
    "Its `train` keeps batch norm at rest, and returns nothing."
    def train(self, mode=True):
        for layer in self: layer.training = mode and not isinstance(layer, nn.BatchNorm1d)


def test_a_train_that_returns_nothing():
    model = Stubborn(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    assert FrozenClassifier(model, shape=(1, 8, 8), device="cpu").n_classes == 3
    data = tiny_set()
    assert train_classifier(data, model=model, epochs=1, device="cpu", progress=False) is model


def tiny_set():
    split = Split(torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8), torch.arange(30) % 3)
    return ImageData(split, split, ["a", "b", "c"], (1, 8, 8), "tiny")


class Auxiliary(nn.Sequential):
    "In training it returns two outputs, as GoogLeNet does."
    def forward(self, x): return (super().forward(x), None) if self.training else super().forward(x)


def test_training_of_a_model_that_returns_a_tuple_then():
    with pytest.raises(ValueError, match="returned a tuple, expected one tensor of logits"):
        train_classifier(tiny_set(), model=Auxiliary(nn.Flatten(), nn.Linear(64, 3)), epochs=1, device="cpu", progress=False)


def test_batches_of_one_size_only():
    class Fixed(nn.Module):
        def forward(self, x): return x.view(-1, 8, 64)[:, :, :5].flatten(0, 1)
    with pytest.raises(ValueError, match="takes 8 images at once but not 3 .*make it take any number"):
        FrozenClassifier(Fixed(), shape=(1, 8, 8), device="cpu")


def test_sigmoids_are_told_from_logits():
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Sigmoid()), Wrapped(lambda x, head: head(x.flatten(1)).sigmoid(), nn.Linear(64, 5))):
        with pytest.warns(UserWarning, match="returns sigmoids"): FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU()), shape=(1, 8, 8), device="cpu")


@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_the_advice_for_one_output_keeps_the_answers(kind):
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), *[nn.Sigmoid()] * (kind == "probability"))
    with pytest.raises(ValueError, match="for a logit, .* for a probability"): FrozenClassifier(one, shape=(1, 8, 8), device="cpu")
    two = Wrapped(lambda x, one: torch.cat([0 * one(x).view(-1, 1) if kind == "logit" else 1 - one(x).view(-1, 1), one(x).view(-1, 1)], 1), one)
    images = torch.rand(20, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FrozenClassifier(two, shape=(1, 8, 8), device="cpu")(images).logits.softmax(1)[:, 1]
    assert torch.allclose(found, one(images)[:, 0].sigmoid() if kind == "logit" else one(images)[:, 0], atol=1e-5)


class Remembering(nn.Sequential):
    "A module with a state that is no tensor."
    def get_extra_state(self): return {"version": 2}
    def set_extra_state(self, state): pass


def test_a_state_that_is_no_tensor(tmp_path):
    with pytest.raises(ValueError, match="has a state that is no tensor"): save_weights(Remembering(nn.Linear(2, 2)), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_state_dicts_of_other_names(tmp_path):
    model = nn.Linear(2, 2)
    for name in ("w.bin", "w.ckpt"):
        torch.save({"state_dict": model.state_dict()}, tmp_path / name)
        assert torch.equal(load_weights(nn.Linear(2, 2), tmp_path / name).weight, model.weight)


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


def test_global_random_state_is_left_alone():
    digits, dropping = load_data("digits", train_size=64, device="cpu"), Wrapped(lambda x, m: F.dropout(m(x)), mlp((1, 8, 8), 3))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FrozenClassifier(dropping, shape=(1, 8, 8), device="cpu")
    train_classifier(digits, epochs=1, progress=False, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


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


def test_cnn_rejects_impossible_sizes():
    for shape, n in (((28, 28), 10), ((1, 28, 28), 1), ((1, 28.0, 28), 10), ((0, 4, 4), 10)):
        with pytest.raises(ValueError):
            CNN(shape, n)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (5, 13, 61), (1, 1, 1), (3, 224, 224)])
def test_cnn_takes_any_size(shape):
    cnn = CNN(shape, 4, widths=(4, 4, 8, 8))
    assert cnn(torch.rand(2, *shape)).shape == (2, 4) and cnn.head.in_features == 128


def tiny(n=40, shape=(1, 8, 8), classes=3, seed=0, name="tiny"):
    "Noise, brighter for the higher classes."
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = (torch.rand(n, *shape, generator=g) * 100 + 75 * labels.view(-1, 1, 1, 1)).byte()
    return ImageData(Split(images, labels), Split(images, labels), [str(i) for i in range(classes)], shape, name)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_training_repeats_bit_for_bit(amp):
    data = tiny()
    runs = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)  # whatever the caller drew before
        runs.append(train_classifier(data, epochs=3, seed=seed, batch_size=16, amp=amp, device="cpu", progress=False))
    once, again, other = (run.state_dict() for run in runs)
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert not torch.equal(once["head.weight"], other["head.weight"]) and not runs[0].training


def test_training_of_a_given_model_is_in_place():
    data, model = tiny(), mlp((1, 8, 8), 3)
    model[1].weight.requires_grad_(False)
    frozen = model[1].weight.clone()
    assert train_classifier(data, model=model, epochs=30, batch_size=8, lr=0.02, device="cpu", progress=False) is model
    assert torch.equal(model[1].weight, frozen) and accuracy(model, data.test) > 0.9


def test_training_for_a_single_step():
    train_classifier(tiny(6), epochs=1, device="cpu", progress=False)


def test_training_errors():
    data = tiny()
    with pytest.raises(ValueError, match=r"logits \[2, 4\] but n_classes=3"):
        train_classifier(data, model=mlp((1, 8, 8), 4), device="cpu", progress=False)
    with pytest.raises(ValueError, match="expected 'auto', 'none', 'shift'"):
        train_classifier(data, augment="spin", device="cpu", progress=False)
    for wrong in (dict(epochs=0), dict(batch_size=0), dict(epochs=-2)):
        with pytest.raises(ValueError, match="must be at least 1"):
            train_classifier(data, device="cpu", progress=False, **wrong)
    with pytest.raises(ValueError, match="cross-entropy is nan"):
        broken = Wrapped(lambda x, m: m(x) * (math.nan if m.training else 1), mlp((1, 8, 8), 3))
        train_classifier(data, model=broken, epochs=1, device="cpu", progress=False)


def test_digits_to_97_percent():
    data = load_data("digits", device="cpu")
    assert accuracy(train_classifier(data, epochs=5, progress=False, device="cpu"), data.test) >= 0.97


def test_training_on_real_images(real_data):
    data = load_data("mnist", train_size=1500, test_size=1000, device="cpu")
    model = train_classifier(data, epochs=4, batch_size=64, progress=False, device="cpu")
    assert accuracy(model, data.test) >= 0.93


def test_augmentation_against_a_loop():
    images = torch.arange(2 * 3 * 56 * 28).remainder(251).byte().view(2, 3, 56, 28)
    rows = torch.tensor([1, 0, 1, 1, 0])
    got = augmented(images, rows, "shift-flip", torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    dy, dx = torch.randint(-2, 3, (5, 1), generator=g), torch.randint(-1, 2, (5, 1), generator=g)
    flips = torch.rand(5, 1, generator=g) < 0.5
    for i, row in enumerate(rows):
        image = to_float(images[row])
        if flips[i]:
            image = image.flip(2)
        y, x = 2 + dy[i].item(), 2 + dx[i].item()
        padded = F.pad(image[None], (2, 2, 2, 2), mode="reflect")[0]
        assert torch.equal(got[i], padded[:, y : y + 56, x : x + 28])


def test_accuracy_counts_and_keeps_modes():
    data, model = tiny(9), mlp((1, 8, 8), 3).train()
    model[2].eval()
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert accuracy(model, data.test, batch_size=4) == pytest.approx(1 / 3)
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert predictions(model, data.test.images).tolist() == [1] * 9
    with pytest.raises(ValueError, match="empty split"):
        accuracy(model, Split(data.test.images[:0], data.test.labels[:0]))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "wrapped"])
def test_weights_round_trip(tmp_path, kind):
    model, other = CNN((1, 8, 8), 3), CNN((1, 8, 8), 3)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = model.state_dict()
    if kind == "safetensors":
        save_weights(model, path)
    else:
        content = {"pt": state, "nested": {"state_dict": state, "epoch": 3}, "wrapped": {f"module.{k}": v for k, v in state.items()}}
        torch.save(content[kind], path)
    assert load_weights(other, path) is other
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in state.items())


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickle_bomb_is_refused(tmp_path, suffix, how):
    path, boom = tmp_path / f"bomb{suffix}", tmp_path / "boom"
    if how == "torch":
        torch.save({"head.weight": Bomb(boom)}, path)
    else:
        path.write_bytes(pickle.dumps({"head.weight": Bomb(boom)}))
    model = CNN((1, 8, 8), 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_weights(model, path)
    assert "\n" not in str(error.value) and not boom.exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unfit_weights_change_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(CNN((1, 8, 8), 5), path)
    model = CNN((1, 8, 8), 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit CNN \(with another shape: head.weight \[5, 128\] instead of \[3, 128\]"):
        load_weights(model, path)
    with pytest.raises(ValueError, match="missing: 1.weight, 1.bias, 3.weight and 1 more; not known: body.0.0.weight, "):
        load_weights(mlp((1, 8, 8), 3), path)
    torch.save(model, tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "short.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    for name in ("whole.pt", "list.pt", "short.pt"):
        with pytest.raises(ValueError, match="save model.state_dict"):
            load_weights(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_weights(model, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="call the file w.safetensors"):
        save_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Batchwise(nn.Module):
    "Remembers the size of the batch, as many networks with tokens do."
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        return self.head(self.hidden(x.flatten(1)).relu()).view(batch, 3)


@pytest.mark.parametrize("model", [Batchwise(), nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(1)),
                                   nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())])
def test_the_head_alone_answers_as_the_whole(model: nn.Module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = FrozenClassifier(model.eval(), shape=(1, 4, 4), device="cpu")
    logits, features = frozen(torch.rand(20, 1, 4, 4))
    assert torch.allclose(frozen.head(features), logits, atol=1e-5)
    other = torch.randn(7, frozen.feature_dim, requires_grad=True)
    frozen.head(other).sum().backward()
    assert other.grad.abs().sum() > 0
    assert torch.allclose(frozen(torch.zeros(1, 1, 4, 4)).logits, frozen.head(frozen(torch.zeros(1, 1, 4, 4)).features), atol=1e-5)  # and nothing has stayed behind


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
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(-0.5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 3))

    def forward(self, x): return self.body(x)


class ReadTwice(nn.Module):
    "A flattened map that a second reader wants in the usual order."
    def __init__(self):
        super().__init__()
        self.conv, self.flat, self.hidden, self.head = nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 8), nn.Linear(8, 3)

    def forward(self, x):
        row = self.flat(self.conv(x))
        return self.head((self.hidden(row) + row[:, :8]).relu())


class TiedLinear(nn.Module):
    "A linear layer behind a flattened map whose weight a second layer has too."
    def __init__(self):
        super().__init__()
        self.conv, self.flat, self.hidden, self.head = nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 400), nn.Linear(400, 3)
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
    assert [name for name, _ in classifier.folded().model.named_modules()] == [name for name, _ in classifier.model.named_modules()]
    quick, before = classifier.folded(), {name: t.clone() for name, t in classifier.model.state_dict().items()}
    assert quick is not classifier
    x = torch.rand(6, 2, 17, 13, requires_grad=True)
    gradients = []
    for c in (classifier, quick):
        logits, taken = c(x)
        gradients.append((logits, taken, torch.autograd.grad(logits.square().sum() + taken.square().sum(), x)[0]))
    for a, b in zip(*gradients): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert all(torch.equal(t, before[name]) for name, t in classifier.model.state_dict().items())


def test_linear_layers_take_maps_as_they_lie_in_memory() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 10 * 7, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    classifier = FrozenClassifier(model, shape=(1, 12, 9))
    quick, x = classifier.folded(), torch.rand(5, 1, 12, 9, requires_grad=True)
    assert torch.equal(quick.model[4].weight[:, :4], classifier.model[4].weight[:, ::70])  # the four channels of the first pixel
    gradients = [torch.autograd.grad(c(x).logits.square().sum(), x)[0] for c in (classifier, quick)]
    torch.testing.assert_close(*gradients)


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


def derived(kind):
    "A convolution whose weight is computed in every pass, and batch norm."
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, 3, padding=1)
    if kind == "pruned": nn.utils.prune.l1_unstructured(conv, "weight", 0.3)
    elif kind == "weight norm, parametrized": nn.utils.parametrizations.weight_norm(conv)
    elif kind == "spectral norm, parametrized": nn.utils.parametrizations.spectral_norm(conv)
    else: {"weight norm": nn.utils.weight_norm, "spectral norm": nn.utils.spectral_norm}[kind](conv)
    return nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)).eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["pruned", "weight norm", "spectral norm", "weight norm, parametrized", "spectral norm, parametrized"])
def test_computed_weights_become_plain_ones_in_the_copy(kind):
    model, images = derived(kind), torch.rand(5, 1, 8, 8)
    names = list(model.state_dict())
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    torch.testing.assert_close(frozen(images).logits, model(images))
    torch.testing.assert_close(frozen.folded()(images).logits, model(images), rtol=1e-4, atol=1e-5)
    assert frozen.folded() is not frozen and frozen.folded() is frozen.folded()
    assert "0.weight" in dict(frozen.model.named_parameters()) and list(model.state_dict()) == names


def test_convolutions_with_one_weight_between_them_are_not_folded():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(nn.Conv2d(1, 4, 1), first, nn.BatchNorm2d(4), second, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3)).eval()
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    assert frozen.folded() is frozen


def test_a_hook_that_only_rarely_changes_something_stays():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda module, inputs, output: output.clamp(max=8))
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    bright = 20 * model[1].weight[:1].sign().view(1, 1, 8, 8)
    torch.testing.assert_close(frozen(bright).logits, model(bright))


class Locked:
    "A preprocessing that has no copy."
    def __init__(self): self.lock = threading.Lock()
    def __call__(self, images): return 2 * images - 1


def test_folding_needs_no_copy_of_the_preprocessing():
    frozen = FrozenClassifier(worn_cnn((1, 12, 12), 4), shape=(1, 12, 12), preprocess=Locked(), device="cpu")
    images = torch.rand(3, *frozen.shape)
    torch.testing.assert_close(frozen.folded()(images).logits, frozen(images).logits, rtol=1e-3, atol=1e-3)
