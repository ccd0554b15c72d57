"netinv.classifier: any network can be trained, the same seed gives the same bits, and a killed training goes on."
import copy
import math
import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import Wrapped, mlp

from netinv.classifier import (
    CNN, Trainer, augmented, augmented_batches, one_cycle, shuffled_batches, train_classifier,
)
from netinv.data import ImageData, Split, load_data, to_float
from netinv.device import borrowed_rng
from netinv.frozen import FrozenClassifier
from netinv.generator import Generator
from netinv.inversion import Inverter
from netinv.samples import accuracy, look

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


def right(model, data):
    "The share of test images that a network gets right."
    return accuracy(FrozenClassifier(model, shape=data.shape, device="cpu"), data.test)


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
    return ImageData(split, split, split, ["a", "b", "c"], (1, 8, 8), "tiny")


class Auxiliary(nn.Sequential):
    "In training it returns two outputs, as GoogLeNet does."
    def forward(self, x): return (super().forward(x), None) if self.training else super().forward(x)


def test_training_of_a_model_that_returns_a_tuple_then():
    model = Auxiliary(nn.Flatten(), nn.Linear(64, 3))
    assert train_classifier(tiny_set(), model=model, epochs=1, device="cpu", progress=False) is model


def test_global_random_state_is_left_alone():
    digits = load_data("digits", train_size=64, device="cpu")
    dropping = Wrapped(lambda x, m: F.dropout(m(x)), mlp((1, 8, 8), 3))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FrozenClassifier(dropping, shape=(1, 8, 8), device="cpu")
    train_classifier(digits, epochs=1, progress=False, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


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
    split = Split(images, labels)
    return ImageData(split, split, split, [str(i) for i in range(classes)], shape, name)


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
    assert torch.equal(model[1].weight, frozen) and right(model, data) > 0.9


def test_training_for_a_single_step():
    train_classifier(tiny(6), epochs=1, device="cpu", progress=False)


def test_training_errors():
    data = tiny()
    with pytest.raises(ValueError, match=r"logits \[8, 4\] but n_classes=3"):
        train_classifier(data, model=mlp((1, 8, 8), 4), device="cpu", progress=False)
    with pytest.raises(ValueError, match="expected 'auto', 'none', 'shift'"):
        train_classifier(data, augment="spin", device="cpu", progress=False)
    for wrong in (dict(epochs=0), dict(batch_size=0), dict(epochs=-2)):
        with pytest.raises(ValueError, match="must be at least 1"):
            train_classifier(data, device="cpu", progress=False, **wrong)
    with pytest.raises(ValueError, match="the loss is nan"):
        broken = Wrapped(lambda x, m: m(x) * (math.nan if m.training else 1), mlp((1, 8, 8), 3))
        train_classifier(data, model=broken, epochs=1, device="cpu", progress=False)


def test_digits_to_97_percent():
    data = load_data("digits", device="cpu")
    assert right(train_classifier(data, epochs=5, progress=False, device="cpu"), data) >= 0.97


def test_training_on_real_images(real_data):
    data = load_data("mnist", train_size=1500, test_size=1000, device="cpu")
    model = train_classifier(data, epochs=4, batch_size=64, progress=False, device="cpu")
    assert right(model, data) >= 0.93


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


@pytest.mark.parametrize("steps", range(1, 12))
def test_the_schedule_lasts_for_as_many_steps_as_asked(steps):
    "Five divided by zero: sixty images for five passes."
    [(optimizer, schedule)] = one_cycle(nn.Linear(2, 2), 1e-3, 0.0, steps)
    for _ in range(steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1e-3
        optimizer.step()
        schedule.step()


def halves(model, lr, weight_decay, steps):
    "The head learns by gradient descent, the rest as usual."
    [(optimizer, schedule)] = one_cycle(model.body, lr, weight_decay, steps)
    head = torch.optim.SGD(model.head.parameters(), lr, momentum=0.9)
    return [(optimizer, schedule), (head, torch.optim.lr_scheduler.LambdaLR(head, lambda step: 1 / (1 + step)))]


class Counting(Trainer):
    "Keeps a tensor of its own, as a training does that finds new images after every epoch."
    seen = torch.zeros(0, dtype=torch.uint8)

    def more(self): return {"seen": self.seen}

    def take(self, state): self.seen = state["seen"]

    def note(self, trainer):
        assert trainer is self and self.epochs[-1]["epoch"] == len(self.epochs)
        drawn = torch.randint(0, 256, (2,), generator=self.rngs[0], dtype=torch.uint8)
        self.seen = torch.cat([self.seen, drawn])
        return {"seen": len(self.seen)}


def trainer(averaging=0.9, steps=12, **settings):
    "Four steps a pass, with dropout in the network."
    data, rng = tiny(48), torch.Generator().manual_seed(4)
    batches = partial(augmented_batches, data.train.images, data.train.labels, 12, "shift", rng)
    settings |= dict(steps=steps, averaging=averaging, optimizers=halves, rng=rng)
    return Counting(CNN((1, 8, 8), 3), batches, **settings)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, averaging):
    with borrowed_rng(0, CPU):
        whole = trainer(averaging=averaging)
        whole.fit(3, after_epoch=whole.note, progress=False)

    def kill(killed):
        killed.note(killed)
        if len(killed.epochs) == 3: raise KeyboardInterrupt

    with borrowed_rng(0, CPU), pytest.raises(KeyboardInterrupt):
        killed = trainer(averaging=averaging)
        killed.fit(3, after_epoch=lambda t: kill(t), checkpoint_dir=tmp_path, progress=False)
    with borrowed_rng(1, CPU):
        again = trainer(averaging=averaging)
        again.fit(3, after_epoch=again.note, checkpoint_dir=tmp_path, resume=True, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]
    assert len(again.epochs) == 3 and again.epochs[-1]["seen"] == 6
    for name, t in whole.state().items(): assert torch.equal(t, again.state()[name]), name
    assert torch.equal(whole.log.table, again.log.table)
    rates = [[group["lr"] for o in run.optimizers for group in o.param_groups] for run in (whole, again)]
    assert rates[0] == rates[1] and len(rates[0]) == 3


def test_a_finished_training_is_only_read(tmp_path):
    with borrowed_rng(0, CPU):
        trainer().fit(2, checkpoint_dir=tmp_path, progress=False)
        again = trainer()
        again.fit(2, checkpoint_dir=tmp_path, resume=True, progress=False)
    assert again.step == 8 and len(again.epochs) == 2 and not again.model.training


@pytest.mark.parametrize("other", [dict(lr=1e-2), dict(averaging=0.5), dict(steps=20), dict(weight_decay=0.1)])
def test_a_training_is_not_resumed_with_other_settings(tmp_path, other):
    trainer().fit(1, checkpoint_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match=f"written with .*{[*other][0]}.*: use the same settings, or another folder"):
        trainer(**other).fit(1, checkpoint_dir=tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        trainer().fit(1, resume=True, progress=False)


def test_the_mean_of_the_weights_by_hand():
    data, rng = tiny(48), torch.Generator().manual_seed(4)
    batches = lambda: augmented_batches(data.train.images, data.train.labels, 12, "none", rng)
    run = Trainer(CNN((1, 8, 8), 3), batches, steps=8, averaging=0.75, rng=rng)
    mean = None
    for images, labels in [batch for _ in range(2) for batch in batches()]:
        run.train_step(images, labels)
        now = {name: t.clone() for name, t in run.model.state_dict().items() if t.is_floating_point()}
        mean = now if mean is None else {name: 0.75 * mean[name] + 0.25 * t for name, t in now.items()}
    for name, t in mean.items(): torch.testing.assert_close(run.averaged.state_dict()[name], t)
    assert not run.averaged.training and run.averaged is not run.model
    assert trainer(averaging=0.0).averaged.training  # the network itself


def test_any_loss_and_any_source_of_batches():
    x, y = torch.rand(9, 1, 8, 8), torch.arange(9) % 3
    rng = torch.Generator().manual_seed(0)
    weighed = lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.1) + logits.square().mean()
    run = Trainer(mlp((1, 8, 8), 3), lambda: [(x, y)] * 4, steps=80, loss=weighed, lr=1e-2, rng=rng)
    model = run.fit(20, progress=False)
    assert model is run.model and not model.training
    assert run.epochs[-1]["loss"] < run.epochs[0]["loss"] and run.epochs[-1]["accuracy"] > 0.9
    assert [row["epoch"] for row in run.epochs] == list(range(1, 21))
    assert run.epochs[-1]["loss"] == pytest.approx(run.log.table[-4:, 0].mean().item())


def test_the_first_loss_that_is_not_finite_is_named():
    rng = torch.Generator().manual_seed(0)
    batch = (torch.rand(4, 1, 8, 8), torch.arange(4) % 3)
    losses = iter([1.0, 1.0, math.inf, math.nan] * 5)
    run = Trainer(mlp((1, 8, 8), 3), lambda: [batch] * 20, steps=20, loss=lambda a, b: a.mean() + next(losses), rng=rng)
    with pytest.raises(ValueError, match="the loss is inf after step 3 of 20: try a smaller lr"):
        run.fit(1, progress=False)


def test_the_bar_shows_loss_and_accuracy(capsys):
    trainer().fit(3)
    shown = capsys.readouterr().err
    assert "training" in shown and "loss=" in shown and "accuracy=" in shown and "12/12" in shown


@pytest.mark.parametrize("settings, told", [
    (dict(averaging=1.0), "averaging is 1.0: expected a decay from 0 up to, not including, 1"),
    (dict(averaging=-0.1), "averaging is -0.1"),
    (dict(amp="fp8"), "amp is 'fp8'"),
])
def test_settings_that_a_trainer_refuses(settings, told):
    with pytest.raises(ValueError, match=told): trainer(**settings)
    frozen = FrozenClassifier(mlp((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    with pytest.raises(ValueError, match="model is a FrozenClassifier: a trainer takes the nn.Module that it trains"):
        Trainer(frozen, lambda: [], steps=1, rng=torch.Generator())


def test_every_image_is_shown_once_a_pass():
    rng = torch.Generator().manual_seed(0)
    rows = torch.cat(shuffled_batches(20, 5, rng))
    assert sorted(rows.tolist()) == list(range(20)) and rows.tolist() != list(range(20))


SQUASHED = {"softmax": nn.Softmax(1), "sigmoid": nn.Sigmoid(), "softmax, no layer": None}


@pytest.mark.parametrize("name", SQUASHED)
def test_probabilities_are_trained_as_the_logits_behind_them(name):
    data, plain = tiny(), mlp((1, 8, 8), 3)
    last = Wrapped(lambda x: x.softmax(1)) if SQUASHED[name] is None else SQUASHED[name]
    squashed = nn.Sequential(copy.deepcopy(plain), last)
    settings = dict(epochs=20, batch_size=20, device="cpu", progress=False, amp="off")
    train_classifier(data, model=plain, **settings)
    with pytest.warns(UserWarning, match=f"the model ends with a {name.split(',')[0]} and returns probabilities") as told:
        train_classifier(data, model=squashed, **settings)
    assert told[0].filename == __file__ and 0 <= squashed(torch.rand(2, 1, 8, 8)).min()
    images = to_float(data.train.images)
    torch.testing.assert_close(squashed[0](images), plain(images), rtol=1e-2, atol=1e-2)


def test_one_number_is_trained_for_two_classes():
    data, model = tiny(classes=2), mlp((1, 8, 8), 1)
    train_classifier(data, model=model, epochs=30, batch_size=8, lr=0.02, device="cpu", progress=False)
    assert right(model, data) > 0.95


@pytest.mark.filterwarnings("error")
def test_log_probabilities_are_as_good_as_logits():
    train_classifier(tiny(), model=nn.Sequential(mlp((1, 8, 8), 3), nn.LogSoftmax(1)), epochs=1, device="cpu",
                     progress=False)


@pytest.mark.parametrize("change, says", [
    (lambda labels: labels + 1, "labels go from 1 to 3, expected 0..2 for 3 classes: subtract 1"),
    (lambda labels: labels - 1, "labels go from -1 to 1"),
    (lambda labels: F.one_hot(labels), r"one whole number for each image, got \[40, 3\]"),
    (lambda labels: labels + 0.5, "labels must be whole numbers, got"),
])
def test_labels_that_are_no_classes(change, says):
    data = tiny()
    frozen = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    labels = change(data.train.labels)
    with pytest.raises(ValueError, match=says): look(frozen, data.train.images, labels)
    try: split = Split(data.train.images, labels)
    except ValueError: return  # refused already
    with pytest.raises(ValueError, match=says): accuracy(frozen, split)
    with pytest.raises(ValueError, match=says): ImageData(split, split, split, data.classes, data.shape, "other")


def test_a_column_of_labels():
    data = tiny()
    frozen = FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu")
    samples = look(frozen, data.train.images, data.train.labels[:, None])
    assert torch.equal(samples.labels, data.train.labels) and samples.hits.shape == (40,)


OFF = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "set_grad_enabled": None,
       "float64": lambda: float64_by_default()}


@contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


@contextmanager
def gradients_off_for_good():
    torch.set_grad_enabled(False)
    try: yield
    finally: torch.set_grad_enabled(True)


@pytest.mark.parametrize("name", OFF)
def test_whatever_the_program_around_has_switched_off(name):
    data = tiny()
    with (OFF[name] or gradients_off_for_good)():
        enabled, default = torch.is_grad_enabled(), torch.get_default_dtype()
        model = train_classifier(data, epochs=1, device="cpu", progress=False)
        frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
        inverter = Inverter(frozen, batch_size=8, generator=Generator.sized(width=16))
        inverter.fit(2, progress=False)
        images, _, _ = inverter.generate(4)
        assert (torch.is_grad_enabled(), torch.get_default_dtype()) == (enabled, default)
    assert images.dtype == torch.float32 and inverter.step == 2
    frozen(torch.rand(2, 1, 8, 8, requires_grad=True)).logits.sum().backward()


def test_what_is_wrong_with_a_model_is_named():
    class Two(nn.Module):
        def forward(self, x, age): return x

    normed = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    settings = dict(epochs=1, device="cpu", progress=False)
    for model, says, more in (
        (normed, "batch norm learns from two images or more, give a larger batch_size", dict(batch_size=1)),
        (Two(), "its forward also wants 'age'", {}),
        (mlp((1, 8, 8), 3).double(), "different precision, call model.float", {}),
        (mlp((1, 9, 9), 3), "it is made for images of another size, check shape", {}),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(), nn.LazyLinear(3)), "it takes 3 channels, not 1: check shape", {}),
        (nn.Sequential(nn.Conv2d(1, 3, 30), nn.Flatten()), "images are too small for its layers", {}),
        (Wrapped(lambda x: {}["key"]), "see whether it runs alone", {}),
    ):
        with pytest.raises(ValueError, match=says) as error: train_classifier(tiny(), model=model, **settings, **more)
        assert "\n" not in str(error.value)
