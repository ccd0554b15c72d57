"The inverter on classifiers of many kinds, and what is left when a run is killed, its disk full or its files damaged."
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from networks import worn_cnn

from netinv.baselines import DeepInverter, PixelInverter
from netinv.classifier import CNN
from netinv.first_look import bytes_kept, usual_batch
from netinv.frozen import FrozenClassifier
from netinv.generator import Generator
from netinv.inversion import Inverter, summary
from netinv.objective import Inversion, Term
from netinv.reconstruction import Reconstruction
from netinv.runs import Log, fingerprint
from netinv.samples import Samples, spread

SIZES = dict(width=16, latent_dim=8)
SMALL = dict(batch_size=8, generator=Generator.sized(**SIZES), amp="off")
QUIET = dict(progress=False)


def small_model(n: int = 4, *, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.LeakyReLU(), nn.Linear(32, n))


def frozen(model: nn.Module, **settings) -> FrozenClassifier:
    return FrozenClassifier(model, shape=(1, 12, 12), **settings)


def small_inverter(**settings) -> Inverter:
    sizes = {name: settings.pop(name) for name in list(settings) if name in Generator.__init__.__kwdefaults__}
    return Inverter(frozen(small_model()), **{**SMALL, "generator": Generator.sized(**SIZES | sizes), **settings})


class Biased(nn.Module):
    "A classifier with something added to its logits."
    def __init__(self, bias: list[float]):
        super().__init__()
        self.model = small_model(len(bias))
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, images): return self.model(images) + self.bias


def without_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 16), nn.ReLU(), nn.Linear(16, 10))


def resnet18(n: int) -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=n)


KINDS = {
    "an MLP": (lambda: small_model(3), (1, 12, 12)),
    "a CNN without batch norm": (without_batch_norm, (1, 28, 28)),
    "resnet18 at 32 pixels": (lambda: resnet18(10), (3, 32, 32)),
    "resnet18 at 64 pixels, 100 classes": (lambda: resnet18(100), (3, 64, 64)),
    "2 classes": (lambda: CNN((1, 28, 28), 2), (1, 28, 28)),
    "3 classes, colour": (lambda: CNN((3, 32, 32), 3), (3, 32, 32)),
    "26 classes": (lambda: CNN((1, 28, 28), 26), (1, 28, 28)),
    "100 classes": (lambda: CNN((3, 32, 32), 100), (3, 32, 32)),
    "not square": (lambda: CNN((1, 24, 40), 10), (1, 24, 40)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_inverts_any_classifier(kind: str) -> None:
    make, shape = KINDS[kind]
    inverter = Inverter(FrozenClassifier(make(), shape=shape), batch_size=4, generator=Generator.sized(width=16))
    history = inverter.fit(2, **QUIET)
    assert history[["total", "alpha", "beta", "gamma", "delta"]].notna().all(axis=None)
    samples = inverter.sample(2 * inverter.classifier.n_classes)
    assert samples.images.shape[1:] == shape and (samples.labels.bincount() == 2).all()


@pytest.mark.parametrize("conditioning", ["label", "vector", "matrix", "vector-matrix"])
def test_reaches_every_class_of_an_easy_classifier(conditioning: str) -> None:
    until = 0.75 if conditioning == "vector" else 0.95  # the label has to be guessed from a vector thinned by dropout
    inverter = small_inverter(conditioning=conditioning, batch_size=64, objective=Inversion(gamma=1, gamma_pix=0))
    inverter.fit(500, until=until, **QUIET)
    assert inverter.step < 500 and inverter.measure().min() >= until


def test_pixel_descent_reaches_every_class() -> None:
    pixels = PixelInverter(frozen(small_model()))
    history = pixels.fit(100, until=0.95, per_class=20)
    assert history.accuracy.iloc[-1] >= 0.95
    assert pixels.sample(40, seed=0).hits.float().mean() >= 0.9


@pytest.mark.parametrize("kind", [PixelInverter, DeepInverter])
def test_descents_on_pixels_answer_the_same_folded_and_in_half_precision(kind: type) -> None:
    classifier = frozen(worn_cnn((1, 12, 12), 4), device="cpu")
    plain, folded, coarse = kind(classifier, folded=False), kind(classifier), kind(classifier, amp="bf16")
    assert plain.target is plain.classifier
    assert (folded.target is folded.classifier) == (kind is DeepInverter)  # which has layers to watch
    for inverter in (plain, folded, coarse): inverter.step = 5
    images = [inverter.sample(8, seed=0).images for inverter in (plain, folded, coarse)]
    apart = (images[1] - images[0]).abs()
    assert apart.quantile(0.98) < 1e-3 and apart.max() < 0.05  # rounding turns a few gradients that are nearly nothing, and Adam makes much of them
    assert coarse.amp is torch.bfloat16 and images[2].dtype is torch.float32
    plain.step = 0
    start = plain.sample(8, seed=0).images
    ways = [(x - start).flatten() for x in images]
    assert not torch.equal(ways[0], ways[2]) and torch.cosine_similarity(ways[0], ways[2], dim=0) > 0.8  # Adam makes much of small gradients


def test_a_seed_repeats_a_run_and_leaves_the_global_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    one, other, third = small_inverter(seed=1), small_inverter(seed=1), small_inverter(seed=2)
    for inverter in (one, other, third): inverter.fit(5, **QUIET)
    one.sample(10)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.history.total.tolist() == other.history.total.tolist() != third.history.total.tolist()
    assert all(torch.equal(t, other.state()[name]) for name, t in one.state().items())


def test_generators_trained_at_once_learn_what_each_learns_alone() -> None:
    three = small_inverter(n_generators=3)
    three.fit(4, **QUIET)
    alone = small_inverter()
    alone.fit(4, **QUIET)
    for a, b in zip(three.generators[0].parameters(), alone.generators[0].parameters()):
        assert torch.allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("conditioning", ["label", "vector", "matrix", "vector-matrix"])
def test_generators_run_as_one_network_are_those_run_one_by_one(conditioning: str) -> None:
    classifier = FrozenClassifier(CNN((1, 16, 16), 4), shape=(1, 16, 16))
    apart, at_once = (Inverter(classifier, n_generators=3, conditioning=conditioning, seed=5, **SMALL) for _ in range(2))
    at_once.at_once = True  # what a GPU does
    for inverter in (apart, at_once): inverter.train_step()
    torch.testing.assert_close(apart.log.block[0], at_once.log.block[0], rtol=1e-4, atol=1e-5)
    ours, theirs = ([p.grad for p in inverter.generators.parameters()] for inverter in (apart, at_once))
    scale = max(g.abs().max() for g in ours).item()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(list(apart.generators.buffers()), list(at_once.generators.buffers()))


def test_the_folded_and_the_plain_classifier_give_a_generator_the_same_gradient() -> None:
    model = worn_cnn((3, 20, 20), 4)
    classifier = FrozenClassifier(model, shape=(3, 20, 20))
    folded, plain = (Inverter(classifier, seed=3, folded=how, **SMALL) for how in (True, False))
    assert folded.target is not classifier and plain.target is classifier
    for inverter in (folded, plain): inverter.train_step()
    ours, theirs = ([p.grad for p in inverter.generators.parameters()] for inverter in (folded, plain))
    scale = max(g.abs().max() for g in theirs).item()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale)


def test_an_objective_of_ones_own_sees_the_classifier_as_it_is() -> None:
    classifier = frozen(CNN((1, 12, 12), 4))
    class Watching(Inversion): watches = True

    assert Inverter(classifier, objective=Watching(), **SMALL).target is classifier


def test_sampling_leaves_training_as_it_is() -> None:
    plain, looked_at = small_inverter(), small_inverter()
    plain.fit(6, **QUIET)
    looked_at.fit(6, on_step=lambda inverter: bool(inverter.sample(5) and inverter.measure(2) is None), **QUIET)
    assert all(torch.equal(t, looked_at.state()[name]) for name, t in plain.state().items())


def test_weights_may_change_while_training_goes_on() -> None:
    inverter = small_inverter()
    def silence(inverter): inverter.objective.update(**dict.fromkeys(set(inverter.objective.weights) - {"delta"}, 0))
    history = inverter.fit(3, on_step=silence, **QUIET)
    assert history.total.iloc[0] > history.delta.iloc[0] and history.alpha.notna().tolist() == [True, False, False]
    total, delta = (torch.tensor(history[name].iloc[1:].values) for name in ("total", "delta"))
    assert torch.allclose(total, inverter.objective["delta"] * delta)


def test_history_counts_what_the_batches_asked_for() -> None:
    history = small_inverter().fit(25, **QUIET)
    assert history.step.tolist() == list(range(1, 26)) and history.seconds.is_monotonic_increasing
    assert history.accuracy.between(0, 1).all()
    assert list(history.filter(like="accuracy_")) == [f"accuracy_{k}" for k in range(4)]


def test_a_class_of_logit_minus_infinity_is_left_out_and_reported() -> None:
    with pytest.warns(UserWarning, match=r"classes \[2\] are minus infinity"):
        inverter = Inverter(frozen(Biased([0.0, 0.0, -torch.inf, 0.0])), **SMALL)
    history = inverter.fit(20, until=0.5, **QUIET)
    assert history.total.notna().all() and history.accuracy_2.isna().all()
    numbers = summary(inverter, inverter.sample(30))
    assert numbers["unreachable"] == [2] and numbers["inversion_accuracy_per_class"][2] is None


def test_a_class_that_is_out_of_reach_is_reported_and_does_not_fail_the_run() -> None:
    inverter = Inverter(frozen(Biased([0.0, 0.0, 0.0, -1e4])), **SMALL)
    inverter.fit(20, until=0.9, **QUIET)
    assert summary(inverter, inverter.sample(40))["unreached"][-1] == 3


def test_no_class_can_be_reached() -> None:
    class Nothing(nn.Module):
        def forward(self, images): return torch.full((len(images), 3), -torch.inf)

    with pytest.raises(ValueError), warnings.catch_warnings():
        Inverter(frozen(Nothing()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [1, 7, 13])
def test_a_term_that_is_not_finite_stops_the_run_by_name(value: float, at: int) -> None:
    calls = []
    def loss(view):
        calls.append(1)
        return view.images.mean() * (value if len(calls) == at else 1)
    inverter, whole = (small_inverter(objective=Inversion(Term("eta_light", "η", 1.0, "light", f)))
                       for f in (loss, lambda view: view.images.mean()))
    with pytest.raises(FloatingPointError, match=f"'eta_light' became {value} at step {at}"): inverter.fit(30, **QUIET)
    assert inverter.step == (at - 1) // 10 * 10 == len(inverter.history)
    inverter.fit(30 - inverter.step, **QUIET)
    whole.fit(30, **QUIET)
    assert all(torch.equal(t, whole.state()[name]) for name, t in inverter.state().items())


def test_a_term_of_weight_zero_may_be_infinite() -> None:
    infinite = Term("eta_hole", "η", 0.0, "infinite", lambda view: view.images.mean() * torch.inf)
    history = small_inverter(objective=Inversion(infinite)).fit(3, **QUIET)
    assert history.total.notna().all() and history.eta_hole.isna().all()


def test_bad_settings_get_a_sentence() -> None:
    for settings, sentence in [(dict(batch_size=1), "at least 2"), (dict(n_generators=0), "expected 1 or more"),
                               (dict(conditioning="x"), "expected one of"), (dict(dropout=1.0), "dropout is 1.0"),
                               (dict(temperature=0.0), "above 0")]:
        with pytest.raises(ValueError, match=sentence): small_inverter(**settings)
    with pytest.raises(ValueError, match="2 labels for 5 images"): spread([1, 2], 5, [0], [0])
    with pytest.raises(ValueError, match="at least one image"): small_inverter().sample(0)


# ---- files

RUN = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_inversion import small_inverter
inverter = small_inverter()
print("ready", flush=True)
inverter.fit(200, checkpoint_dir={folder!r}, checkpoint_every=10, resume=True, progress=False)
print("done", flush=True)
"""


def start_run(folder: Path) -> subprocess.Popen:
    code = RUN.format(tests=str(Path(__file__).parent), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    rng, kills = random.Random(0), 0
    for _ in range(3):
        run = start_run(tmp_path / "killed")
        assert run.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.1, 1.0))
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.wait()
    last = start_run(tmp_path / "killed")
    assert last.communicate()[0].endswith("done\n")
    whole = start_run(tmp_path / "whole")
    assert whole.communicate()[0].endswith("done\n")
    ends = [small_inverter(), small_inverter()]
    for inverter, name in zip(ends, ("killed", "whole")): inverter.load_checkpoint(tmp_path / name)
    assert kills and ends[0].step == ends[1].step == 200
    assert all(torch.equal(t, ends[1].state()[name]) for name, t in ends[0].state().items())
    assert ends[0].history.drop(columns="seconds").equals(ends[1].history.drop(columns="seconds"))


def test_damaged_checkpoints_are_refused_in_a_sentence_or_load_correctly(tmp_path: Path) -> None:
    inverter = small_inverter()
    inverter.fit(3, checkpoint_dir=tmp_path, **QUIET)
    path, truth = tmp_path / "checkpoint.safetensors", {name: t.clone() for name, t in inverter.state().items()}
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for i in range(100):
        blob = bytearray(whole)
        if i % 2: del blob[rng.randrange(len(blob)):]
        else: blob[rng.randrange(min(len(blob), 4000) if i % 4 else len(blob))] ^= 1 << rng.randrange(8)
        path.write_bytes(blob)
        fresh = small_inverter()
        try: fresh.load_checkpoint(tmp_path)
        except ValueError as e:
            refused += 1
            assert "\n" not in str(e)
        else: assert all(torch.equal(t, fresh.state()[name]) for name, t in truth.items())
    assert refused > 90


def test_a_pickle_in_place_of_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "checkpoint.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="pickle"): small_inverter().fit(1, checkpoint_dir=tmp_path, resume=True, **QUIET)
    assert not (tmp_path / "exploded").exists()


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    small_inverter().fit(2, checkpoint_dir=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="'seed': 0.*'seed': 5"): small_inverter(seed=5).load_checkpoint(tmp_path)
    other = Inverter(frozen(small_model(seed=9)), **SMALL)
    with pytest.raises(ValueError, match="another classifier"): other.load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="needs checkpoint_dir"): small_inverter().fit(2, resume=True)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    settings = lambda: dict(batch_size=64, objective=Inversion(gamma=1, gamma_pix=0))
    first = small_inverter(**settings())
    first.fit(300, until=0.9, checkpoint_dir=tmp_path, **QUIET)
    again = small_inverter(**settings())
    again.fit(300, until=0.9, checkpoint_dir=tmp_path, resume=True, **QUIET)
    assert again.step == first.step < 300


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    "In a child process whose files may not grow beyond a few bytes."
    inverter = small_inverter()
    inverter.fit(2, checkpoint_dir=tmp_path, **QUIET)
    path, good = tmp_path / "checkpoint.safetensors", (tmp_path / "checkpoint.safetensors").read_bytes()
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_inversion import small_inverter
inverter = small_inverter()
inverter.fit(4, progress=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try: inverter.fit(2, checkpoint_dir={str(tmp_path)!r}, progress=False)
except OSError as e: sys.exit(0 if "could not be written" in str(e) and inverter.step == 6 else 3)
sys.exit(4)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_saved_run_is_one_folder_that_loads_again(tmp_path: Path) -> None:
    import json

    import pandas as pd

    classifier = frozen(small_model())
    inverter = Inverter(classifier, n_generators=2, **SMALL)
    inverter.fit(12, **QUIET)
    numbers = inverter.save(tmp_path)
    names = {"config.yaml", "metrics.json", "history.csv", "source.json", "generator.safetensors", "samples.safetensors",
             "samples.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "metrics.json").read_text()) == numbers
    assert len(pd.read_csv(tmp_path / "history.csv")) == 12
    assert torch.equal(Inverter.load(tmp_path, classifier, amp="off").sample(8, seed=1).images, inverter.sample(8, seed=1).images)
    with pytest.raises(ValueError, match="another classifier"): Inverter.load(tmp_path, frozen(small_model(seed=3)))


def test_a_run_of_version_0_1_has_the_width_of_then(tmp_path: Path) -> None:
    import yaml

    classifier = frozen(small_model())
    Inverter(classifier, batch_size=8, amp="off", generator=Generator.sized(width=64, latent_dim=8)).save(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    sizes = config.pop("generator")
    assert sizes.pop("kind") == "Generator" and {"latent_dim", "width", "dropout", "brightness", "smooth"} <= set(sizes)
    assert config.pop("objective") == "Inversion"
    old = {**config, **{name: value for name, value in sizes.items() if name != "width"}}  # named neither kind nor width
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    again = Inverter.load(tmp_path, classifier, amp="off")
    assert again.config["generator"]["width"] == 64 and again.objective.numbers == Inversion().numbers


LIGHT = Term("eta_light", "η_light", 2.0, "total brightness", lambda view: view.images.mean())
RUNS = {
    "inversion": lambda c: Inverter(c, **SMALL),
    "other weights": lambda c: Inverter(c, objective=Inversion(gamma=3, delta=0), conditioning="vector", **SMALL),
    "the paper's terms": lambda c: Inverter(c, objective=Inversion.paper(), **SMALL),
    "three generators": lambda c: Inverter(c, n_generators=3, **SMALL),
    "a term of one's own": lambda c: Inverter(c, objective=Inversion(LIGHT), **SMALL),
    "reconstruction": lambda c: Inverter(c, objective=Reconstruction.recipe(c, "prior"), **SMALL),
    "reconstruction by the paper": lambda c: Inverter(c, objective=Reconstruction.recipe(c, "paper"), **SMALL),
    "reconstruction's own generator": lambda c: Inverter(c, objective=Reconstruction.recipe(c), batch_size=8, amp="off"),
    "the recipe of the paper": lambda c: Inverter(c, recipe="paper", **SMALL),
}


@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_of_run_is_loaded(kind: str, tmp_path: Path) -> None:
    classifier = frozen(CNN((1, 12, 12), 4), device="cpu")
    inverter = RUNS[kind](classifier)
    inverter.fit(2, **QUIET)
    inverter.save(tmp_path)
    again = Inverter.load(tmp_path, classifier, amp="off")
    assert torch.equal(again.sample(8, seed=1).images, inverter.sample(8, seed=1).images)
    assert again.objective.numbers == inverter.objective.numbers and again.config == inverter.config
    if kind == "a term of one's own":
        with pytest.raises(ValueError, match="'eta_light' is of the run's own"): again.fit(1, **QUIET)
        again = Inverter.load(tmp_path, classifier, objective=Inversion(LIGHT))
    again.fit(1, **QUIET)


def test_a_generator_of_ones_own_has_to_be_handed_in(tmp_path: Path) -> None:
    class Perceptron(nn.Module):
        def __init__(self, shape, conditioning):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64 + conditioning.n_classes, 144), nn.Sigmoid(), nn.Unflatten(1, shape))

        def forward(self, z, condition): return self.layers(torch.cat([z, condition.vector], 1))

    classifier = frozen(small_model())
    inverter = Inverter(classifier, generator=Perceptron, batch_size=8)
    inverter.fit(3, **QUIET)
    inverter.save(tmp_path)
    with pytest.raises(ValueError, match="load it with generator=Perceptron"): Inverter.load(tmp_path, classifier)
    again = Inverter.load(tmp_path, classifier, generator=Perceptron)
    assert torch.equal(again.sample(8, seed=1).images, inverter.sample(8, seed=1).images)


class Own(Generator):
    "A generator whose layers are those of `Generator`."


class Noisy(nn.Module):
    "A network that draws with dropout of PyTorch's own."
    def __init__(self, shape, conditioning):
        super().__init__()
        seen = 64 + conditioning.n_classes
        self.layers = nn.Sequential(nn.Linear(seen, 64), nn.Unflatten(1, (16, 2, 2)), nn.Dropout2d(0.5), nn.Flatten(),
                                    nn.Linear(64, 144), nn.Sigmoid(), nn.Unflatten(1, shape))

    def forward(self, z, condition): return self.layers(torch.cat([z, condition.vector], 1))


@pytest.mark.parametrize("factory", [Own.sized(width=16), Noisy])
def test_any_generator_repeats_itself_by_its_seed_and_has_its_dropout(factory) -> None:
    before = torch.get_rng_state()
    one, other = (Inverter(frozen(small_model()), generator=factory, batch_size=8, amp="off", seed=4) for _ in range(2))
    for inverter in (one, other): inverter.fit(3, **QUIET)
    assert torch.equal(before, torch.get_rng_state())
    assert one.history.total.tolist() == other.history.total.tolist()
    draw = lambda inverter, **how: inverter.sample(16, labels=2, seed=7, **how).images
    assert torch.equal(draw(one), draw(other)) and not torch.equal(draw(one), draw(one, dropout=False))
    assert draw(one).std(0).mean() > 1e-3  # neither all dropped nor all alike


@pytest.mark.parametrize("generator, says", [(7, "generator is a int: give a factory"),
                                             (nn.Linear(2, 2), "generator is a Linear: give a factory")])
def test_what_is_no_factory_of_generators(generator, says: str) -> None:
    with pytest.raises(ValueError, match=says): small_inverter(generator=generator)


@pytest.mark.parametrize("name", ["total", "accuracy", "accuracy_3", "step", "hits_0"])
def test_a_term_has_no_name_of_another_column(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be called {name!r}"): Inversion(Term(name, "x", 1.0, "x", len))


def test_a_term_more_or_less_is_another_run(tmp_path: Path) -> None:
    small_inverter().fit(2, checkpoint_dir=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="was trained with the terms alpha.*this inverter has alpha.*eta_light.*: use"):
        small_inverter(objective=Inversion(LIGHT)).fit(4, checkpoint_dir=tmp_path, resume=True, **QUIET)


def test_a_checkpoint_of_version_0_1_is_refused_by_name(tmp_path: Path) -> None:
    from netinv.files import save_tensors

    inverter = small_inverter()
    about = {"classifier": fingerprint(inverter.classifier.model), "config": {"seed": 0}}
    save_tensors(tmp_path / "checkpoint.safetensors", {"answers": inverter.classifier.answers()}, about)
    with pytest.raises(ValueError, match="was written by netinv 0.1.0"): inverter.load_checkpoint(tmp_path)


@pytest.mark.parametrize("key", ["generator", "objective", "weights"])
def test_a_damaged_config_is_called_damaged(key: str, tmp_path: Path) -> None:
    import yaml

    classifier = frozen(small_model())
    Inverter(classifier, **SMALL).save(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for broken in ({name: value for name, value in config.items() if name != key}, config | {"weights": None}):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(broken))
        with pytest.raises(ValueError, match="config.yaml is damaged"): Inverter.load(tmp_path, classifier)


SCALARS = {"numpy": lambda value: np.array([value])[0], "small": lambda value: (
    np.float32 if isinstance(value, float) else np.int32)(value), "torch": torch.tensor, "arrays": np.array,
    "whole floats": lambda value: np.float64(value)}


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_of_numpy_and_torch_are_saved_as_numbers(kind: str, tmp_path: Path) -> None:
    import yaml

    scalar, classifier = SCALARS[kind], frozen(small_model())
    settings = {"batch_size": 8, "n_generators": 2, "seed": 3, "temperature": 0.25, "lr": 0.5, "averaging": 0.5}
    made = lambda: Inverter(
        classifier, objective=Inversion(beta=scalar(4.0), clean=scalar(0.25)), amp="off", classes=[0, 2] if kind == "whole floats" else scalar([0, 2]),
        generator=Generator.sized(width=16 if kind == "whole floats" else scalar(16), latent_dim=8, dropout=scalar(0.25)),
        **{name: scalar(value) for name, value in settings.items()})
    inverter = made()
    inverter.fit(scalar(12), checkpoint_dir=tmp_path, checkpoint_every=scalar(10), until=scalar(1.0), **QUIET)
    numbers = inverter.save(tmp_path, samples=scalar(20), max_mb=scalar(1.0), max_classes=scalar(3))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings.items() <= config.items() and config["classes"] == [0, 2] and numbers["samples"] == 20
    assert config["weights"]["beta"] == 4 and config["settings"]["clean"] == 0.25
    assert config["generator"]["width"] == 16 and config["generator"]["dropout"] == 0.25
    assert isinstance(config["batch_size"], int) and isinstance(config["seed"], int)
    resumed = made()
    resumed.fit(15, until=1.0, checkpoint_dir=tmp_path, resume=True, **QUIET)
    again = Inverter.load(tmp_path, classifier)
    assert resumed.step == 15 and len(again.sample(scalar(4), seed=scalar(1))) == 4
    again.adjust(temperature=scalar(0.5), lr=scalar(0.25))
    assert again.config["temperature"] == 0.5 and type(again.config["temperature"]) is float


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("batch_size", 8.5, "batch_size is 8.5: expected a whole number, or 'auto'"), ("batch_size", "many", "or 'auto'"),
    ("n_generators", 1.5, "n_generators is 1.5: expected a whole number"), ("lr", "fast", "lr is 'fast'"),
    ("lr", torch.ones(2), "lr is tensor"), ("averaging", None, "averaging is None"), ("seed", True, "seed is True")])
def test_settings_of_another_kind_are_one_sentence(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)): small_inverter(**{name: value})


def test_auto_is_the_usual_batch() -> None:
    classifier = frozen(small_model())
    auto, usual = (Inverter(classifier, amp="off", batch_size=size).batch_size for size in ("auto", None))
    assert auto == usual == usual_batch(classifier)
    kept = bytes_kept(classifier)
    assert 32 * 4 <= kept < 10_000  # what leaky ReLU needs of the hidden layer, and nothing of the weights
    one = kept + 600 * 144
    assert [usual_batch(classifier, k, most=6 * one) for k in (1, 2, 3, 100)] == [6, 3, 2, 2]


def many_classes(n: int, side: int) -> FrozenClassifier:
    "A classifier of photographs, more or less."
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, n)
    return FrozenClassifier(nn.Sequential(*layers), shape=(3, side, side), device="cpu")


def test_a_run_of_many_classes_is_saved_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    from netinv import loop

    inverter, seen = Inverter(many_classes(300, 64), batch_size=4, amp="off", generator=Generator.sized(**SIZES)), []
    look = loop.look
    monkeypatch.setattr(loop, "look", lambda c, images, *more, **how: seen.append(len(images)) or look(c, images, *more, **how))
    numbers = inverter.save(tmp_path, samples=600, max_mb=3, max_classes=10)
    assert max(seen) <= 256 and sum(seen) >= 600 and numbers["samples"] == 600  # never all at once
    assert all(a is not None for a in numbers["inversion_accuracy_per_class"]) and len(numbers["pictured"]) == 10
    assert (tmp_path / "samples.safetensors").stat().st_size < 3 * 2**20 + 2**14
    kept = load_file(tmp_path / "samples.safetensors")
    assert len(kept["images"]) == numbers["saved"] and kept["images"].shape[1:] == (3, 64, 64)
    picture = Image.open(tmp_path / "samples.png")
    assert picture.height < 10 * 130 + 100 and picture.width < 13 * 130
    assert len(Inverter.load(tmp_path, inverter.classifier).sample(3)) == 3


def test_the_worst_and_the_best_classes_are_kept(tmp_path: Path) -> None:
    inverter = Inverter(many_classes(60, 32), batch_size=4, amp="off", generator=Generator.sized(**SIZES))
    numbers = inverter.save(tmp_path, samples=120, max_mb=0.1, max_classes=6)  # fewer images than classes
    accuracy = numbers["inversion_accuracy_per_class"]
    assert len(numbers["pictured"]) == 6 and numbers["saved"] < 60
    order = sorted(range(60), key=accuracy.__getitem__)
    assert {accuracy[k] for k in numbers["pictured"]} >= {accuracy[order[0]], accuracy[order[-1]]}


def test_looks_at_a_large_run_are_small_and_count_the_same() -> None:
    inverter = Inverter(many_classes(5, 32), batch_size=4, amp="off", n_generators=2, generator=Generator.sized(**SIZES))
    whole, small = inverter.judged(100), inverter.judged(100, most=3e5)
    assert whole.images.shape[1:] == (3, 32, 32) and small.images.numel() * 4 <= 3e5 and small.features.shape == (100, 0)
    hits = lambda samples: torch.bincount(samples.labels[samples.hits], minlength=5).tolist()
    assert hits(whole) == hits(small) and len(small) == 100


@pytest.mark.parametrize("bounds", [{"max_mb": 0}, {"max_mb": "much"}, {"max_classes": 0}, {"max_classes": 2.5}])
def test_bounds_that_cannot_be(bounds: dict, tmp_path: Path) -> None:
    (name,) = bounds
    with pytest.raises(ValueError, match=f"{name} is"): small_inverter().save(tmp_path, **bounds)
    assert not list(tmp_path.iterdir())


def test_a_bar_without_an_end_shows_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    small_inverter().fit(on_step=lambda run: run.step >= 20)
    assert "left=at most 0" in capsys.readouterr().err


def test_an_objective_that_reads_layers_is_of_one_classifier() -> None:
    objective, two = Reconstruction(), [frozen(CNN((1, 12, 12), 4)) for _ in range(2)]
    Inverter(two[0], objective=objective, batch_size=8)
    Inverter(two[0], objective=objective, batch_size=8)
    with pytest.raises(ValueError, match="reads the layers of another classifier"):
        Inverter(two[1], objective=objective, batch_size=8)


def test_a_loaded_run_is_saved_with_its_steps_and_its_history(tmp_path: Path) -> None:
    classifier = frozen(small_model())
    inverter = Inverter(classifier, **SMALL)
    inverter.fit(7, **QUIET)
    inverter.save(tmp_path)
    history = (tmp_path / "history.csv").read_text()
    again = Inverter.load(tmp_path, classifier)
    steps = again.save(tmp_path)["steps"]
    assert steps == 7 and isinstance(steps, int) and (tmp_path / "history.csv").read_text() == history
    assert again.history.step.tolist() == list(range(1, 8))
    again.fit(2, **QUIET)
    numbers = again.save(tmp_path / "further")
    assert numbers["steps"] == 9 and numbers["seconds"] > inverter.seconds
    longer = pd.read_csv(tmp_path / "further/history.csv")
    assert longer.step.tolist() == list(range(1, 10)) and longer.seconds.is_monotonic_increasing
    (tmp_path / "history.csv").write_text("{broken")
    assert len(Inverter.load(tmp_path, classifier).sample(4)) == 4


def test_weights_of_old_are_told_where_they_are() -> None:
    with pytest.raises(AttributeError, match=r"inverter.objective\['gamma'\] = 4"): small_inverter().weights
    with pytest.raises(AttributeError, match="part of the objective now"): small_inverter().weights = {"gamma": 4}


def test_a_plain_module_gets_the_line_to_write() -> None:
    line = r"FrozenClassifier\(classifier, shape=\(channels, height, width\)\)"
    with pytest.raises(ValueError, match=line): Inverter(small_model())


def test_a_term_that_is_off_is_never_computed() -> None:
    never = Term("eta_never", "η", 0.0, "costs nothing", lambda view: 1 / 0)
    history = small_inverter(objective=Inversion(never)).fit(2, **QUIET)
    assert history.eta_never.isna().all() and history.total.notna().all()


def test_a_saved_run_is_loaded_with_the_preprocess_it_was_trained_with(tmp_path: Path) -> None:
    model = small_model()
    scaled = lambda: frozen(model, preprocess=lambda x: (x - 0.1) / 0.3)
    Inverter(scaled(), **SMALL).save(tmp_path)
    Inverter.load(tmp_path, scaled())
    with pytest.raises(ValueError, match="answers differently: use the preprocess it was trained with"):
        Inverter.load(tmp_path, frozen(model))


def test_a_run_against_a_classifier_that_answers_at_random_is_loaded(tmp_path: Path) -> None:
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_model()

        def forward(self, x): return self.model(nn.functional.dropout(x, 0.5, training=True))
    model = Random()
    with pytest.warns(UserWarning, match="is random"): Inverter(frozen(model), **SMALL).save(tmp_path)
    with pytest.warns(UserWarning, match="is random"): assert len(Inverter.load(tmp_path, frozen(model)).sample(4)) == 4


def test_an_answer_of_nan_is_no_hit(tmp_path: Path) -> None:
    probs = torch.tensor([[torch.nan, torch.nan], [0.9, 0.1]])
    samples = Samples(torch.zeros(2, 1, 8, 8), torch.tensor([0, 0]), probs, torch.zeros(2, 1), torch.zeros(2))
    assert samples.hits.tolist() == [False, True]
    numbers = summary(small_inverter(), samples)
    assert numbers["confidence"] is None and numbers["worst_class_accuracy"] is None and numbers["inversion_accuracy"] == 0.5


@pytest.mark.parametrize("settings, says", [
    (dict(classes=3), "classes is 3: expected a list of whole numbers"), (dict(classes=[0.5]), "classes is [0.5]"), (dict(seed=None), "seed is None"), (dict(lr=0.0), "lr is 0.0"),
    (dict(averaging=1.0), "averaging is 1.0"), (dict(latent_dim=0), "latent_dim is 0"), (dict(smooth=-1), "smooth is -1"), (dict(objective={"alpha": 1}), "give an Objective, such as Inversion(gamma=8)")])
def test_settings_that_cannot_be(settings: dict, says: str) -> None:
    with pytest.raises(ValueError) as error: small_inverter(**settings)
    assert says in str(error.value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much"])
def test_weights_are_numbers_of_at_least_zero(value: object) -> None:
    with pytest.raises(ValueError, match="beta is .*expected 0 or a positive number"): Inversion(beta=value)
    with pytest.raises(ValueError, match="beta is .*expected 0 or a positive number"): Inversion()["beta"] = value


@pytest.mark.parametrize("settings, says", [(dict(steps=-5), "steps is -5"), (dict(steps=5, until=95), "until is 95"), (dict(steps=5, until=0), "until is 0")])
def test_a_fit_that_cannot_be(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says): small_inverter().fit(**settings, **QUIET)


def test_classes_and_seeds_of_numpy_and_torch() -> None:

    ours = small_inverter(classes=[1, 2], seed=3).sample(8, seed=0)
    for classes in (np.array([1, 2]), torch.tensor([1, 2]), (1, 2)):
        assert torch.equal(small_inverter(classes=classes, seed=np.int64(3)).sample(8, seed=0).images, ours.images)
    with pytest.raises(ValueError, match="labels are torch.float32"): small_inverter().sample(4, labels=3.7)


def test_a_run_that_goes_on_with_other_weights_says_so(tmp_path: Path) -> None:
    small_inverter().fit(10, checkpoint_dir=tmp_path, **QUIET)
    with pytest.warns(UserWarning, match="was trained with .*'alpha': 1.0.*from here on with .*'alpha': 3.0"):
        small_inverter(objective=Inversion(alpha=3.0)).fit(20, checkpoint_dir=tmp_path, resume=True, **QUIET)


def test_a_classifier_with_a_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Remembering(nn.Sequential):
        def get_extra_state(self): return {"version": 2}
        def set_extra_state(self, state): pass
    Inverter(frozen(Remembering(*small_model())), **SMALL).fit(10, checkpoint_dir=tmp_path, **QUIET)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_the_log_is_read_in_order() -> None:
    log = Log(["a"], torch.device("cpu"))
    for i in range(10): log.write(torch.tensor([float(i)]), i)
    assert log.read().flatten().tolist() == list(range(10)) and log.read().numel() == 0
    log.cut(3)
    assert log.table.flatten().tolist() == [0, 1, 2] and log.seconds == [0, 1, 2]


def test_samples_draw_themselves() -> None:
    five_channels = Samples(torch.rand(6, 5, 8, 8), torch.tensor([0, 1] * 3), torch.rand(6, 2), torch.rand(6, 4), torch.zeros(6))
    assert five_channels.rows(2).shape == (4, 5, 8, 8) and five_channels._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize("at", [7, 10, 13])
def test_an_interrupted_run_can_be_looked_at_saved_and_gone_on_with(at: int, tmp_path: Path) -> None:
    def interrupt(inverter: Inverter) -> None:
        if inverter.step == at: raise KeyboardInterrupt

    inverter, whole = small_inverter(), small_inverter()
    with pytest.raises(KeyboardInterrupt): inverter.fit(20, on_step=interrupt, progress=False)
    assert len(inverter.history) == at
    inverter.save_checkpoint(tmp_path, start=0, reached=None)
    inverter.fit(20 - at, progress=False)
    resumed = small_inverter()
    resumed.fit(20, checkpoint_dir=tmp_path, resume=True, progress=False)
    whole.fit(20, progress=False)
    for run in (inverter, resumed): pd.testing.assert_frame_equal(run.history.drop(columns="seconds"), whole.history.drop(columns="seconds"))


def test_a_checkpoint_knows_preprocessing_apart_and_classes_however_they_are_given(tmp_path: Path) -> None:
    plain, dark = (frozen(small_model(), preprocess=p, device="cpu") for p in (None, lambda x: 5 * (1 - x)))
    start = lambda classifier, classes: Inverter(classifier, classes=classes, batch_size=4, generator=Generator.sized(width=16))
    start(plain, (0, 1)).fit(2, checkpoint_dir=tmp_path, progress=False)
    start(plain, range(2)).fit(2, checkpoint_dir=tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="preprocess"): start(dark, [0, 1]).fit(2, checkpoint_dir=tmp_path, resume=True, progress=False)


def test_without_any_weight_there_is_a_sentence() -> None:
    nothing = Inversion(**dict.fromkeys(Inversion().weights, 0.0))
    with pytest.raises(ValueError, match="weight above 0"): small_inverter(objective=nothing).fit(1, progress=False)
