"The recipe `paper` is the paper: what the generator is shown in each use of it, its settings, and runs that come back."
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import Tensor

from netinv.classifier import CNN
from netinv.conditioning import CONDITIONINGS, Condition, make_conditioning
from netinv.data import ImageData, load_data
from netinv.frozen import FrozenClassifier
from netinv.generator import Generator
from netinv.inversion import Inverter
from netinv.objective import Inversion
from netinv.ood import train_with_garbage
from netinv.paper import PaperGenerator, settings_of_recipe
from netinv.reconstruction import Reconstruction, reconstruct, reconstruction_inverter
from netinv.splits import Split

SMALL = {"batch_size": 8, "generator": PaperGenerator.sized(width=2, latent_dim=8), "amp": "off"}


@pytest.fixture(scope="module")
def frozen() -> FrozenClassifier:
    torch.manual_seed(0)
    return FrozenClassifier(CNN((1, 12, 12), 4), shape=(1, 12, 12), device="cpu")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Condition]:
    "All conditions that a generator of the paper is given from now on."
    conditions, forward = [], PaperGenerator.forward
    def listening(self, z: Tensor, condition: Condition, masks=None) -> Tensor:
        conditions.append(condition)
        return forward(self, z, condition, masks)
    monkeypatch.setattr(PaperGenerator, "forward", listening)
    return conditions


def is_cross(matrix: Tensor, labels: Tensor) -> bool:
    "Whether row and column of each label are one, and all else zero."
    wanted = torch.zeros_like(matrix)
    for own, k in zip(wanted, labels.tolist()): own[0, k, :] = own[0, :, k] = 1
    return torch.equal(matrix, wanted)


def test_inversion_shows_the_softmaxed_vector_and_the_cross(frozen: FrozenClassifier, shown: list[Condition]) -> None:
    inverter = Inverter(frozen, recipe="paper", **SMALL)
    shown.clear()
    inverter.fit(2, progress=False)
    inverter.sample(8, seed=0)
    assert len(shown) >= 3
    for condition in shown:
        assert torch.equal(condition.vector, condition.target_probs)     # P itself, not v
        torch.testing.assert_close(condition.vector.sum(1), torch.ones(8))
        assert torch.equal(condition.vector.argmax(1), condition.labels)
        assert condition.vector.max() < 1 and condition.vector.min() > 0  # soft: T = 1
        assert is_cross(condition.matrix, condition.labels)
    assert len(torch.cat([c.vector for c in shown]).unique(dim=0)) == 8 * len(shown)  # each its own


def test_netinv_itself_shows_the_vector(frozen: FrozenClassifier, shown: list[Condition]) -> None:
    Inverter(frozen, **SMALL).fit(1, progress=False)
    condition = shown[-1]
    assert condition.vector.min() < 0 and torch.equal(condition.vector.argmax(1), condition.labels)
    torch.testing.assert_close((condition.vector / 0.15).softmax(1), condition.target_probs)


def test_reconstruction_shows_the_hot_vector(frozen: FrozenClassifier, shown: list[Condition]) -> None:
    reconstruct(frozen, recipe="paper", steps=1, n=8, progress=False, **SMALL)
    assert len(shown) >= 2
    for condition in shown:
        assert torch.equal(condition.vector, torch.nn.functional.one_hot(condition.labels, 4).float())
        assert torch.equal(condition.vector, condition.target_probs) and is_cross(condition.matrix, condition.labels)


@pytest.mark.parametrize("shows", ["vector", "softmax", "hot"])
def test_a_class_that_is_left_out_is_shown_nowhere(shows: str) -> None:
    three = make_conditioning("vector-matrix", 4, classes=[0, 1, 3], shows=shows)
    condition = three.sample(200, rng=torch.Generator().manual_seed(0))
    assert 2 not in condition.labels and (condition.target_probs[:, 2] == 0).all()
    if shows != "vector": assert (condition.vector[:, 2] == 0).all()
    assert torch.equal(condition.vector.argmax(1), condition.labels)


def test_what_is_shown_changes_nothing_about_labels_and_targets() -> None:
    draws = [make_conditioning("vector", 5, temperature=0.7, shows=shows).sample(50, rng=torch.Generator().manual_seed(3))
             for shows in ("vector", "softmax")]
    assert torch.equal(draws[0].labels, draws[1].labels) and torch.equal(draws[0].target_probs, draws[1].target_probs)


def test_the_recipe_has_the_settings_of_the_paper_and_what_is_given_wins(frozen: FrozenClassifier) -> None:
    plain = Inverter(frozen, recipe="paper")
    assert {name: plain.config[name] for name in ("conditioning", "pattern", "shows", "temperature", "averaging")} == {
        "conditioning": "vector-matrix", "pattern": "cross", "shows": "softmax", "temperature": 1.0, "averaging": 0.0}
    assert plain.config["generator"] == {"kind": "PaperGenerator", "latent_dim": 100, "width": 64, "dropout": 0.1}
    assert plain.objective.numbers == Inversion.paper().numbers
    given = Inverter(frozen, recipe="paper", lr=0.5, conditioning="vector", objective=Inversion(gamma=3),
                     generator=Generator.sized(width=16), shows="vector", batch_size=None)
    assert [given.config[name] for name in ("lr", "conditioning", "shows", "batch_size")] == [0.5, "vector", "vector", 128]
    assert given.objective["gamma"] == 3 and type(given.generators[0]) is not PaperGenerator
    with pytest.raises(ValueError, match="'papper' is unknown: expected 'paper', or no recipe"): Inverter(frozen, recipe="papper")
    with pytest.raises(ValueError, match="expected one of vector, softmax, hot"): Inverter(frozen, shows="label")


def test_two_inverters_share_no_objective() -> None:
    assert settings_of_recipe("paper")["objective"] is not settings_of_recipe("paper")["objective"]


@pytest.mark.parametrize("kind", ["inversion", "reconstruction"])
def test_a_saved_run_of_the_recipe_comes_back_and_repeats(frozen: FrozenClassifier, kind: str, tmp_path: Path) -> None:
    make = {"inversion": lambda: Inverter(frozen, recipe="paper", seed=3, **SMALL),
            "reconstruction": lambda: reconstruction_inverter(frozen, recipe="paper", seed=3, **SMALL)}[kind]
    one, again = make(), make()
    for inverter in (one, again): inverter.fit(3, progress=False)
    assert one.history.total.tolist() == again.history.total.tolist()
    one.save(tmp_path)
    loaded = Inverter.load(tmp_path, frozen, amp="off")
    assert loaded.config == one.config and loaded.objective.numbers == one.objective.numbers
    assert loaded.conditioning.shows == {"inversion": "softmax", "reconstruction": "hot"}[kind]
    assert torch.equal(loaded.sample(12, seed=1).images, one.sample(12, seed=1).images)


def test_a_run_from_before_is_shown_the_vector(frozen: FrozenClassifier, tmp_path: Path) -> None:
    inverter = Inverter(frozen, batch_size=8, amp="off", generator=Generator.sized(width=16))
    inverter.save(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config.pop("shows") == "vector"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    again = Inverter.load(tmp_path, frozen, amp="off")
    assert again.conditioning.shows == "vector"
    assert torch.equal(again.sample(8, seed=1).images, inverter.sample(8, seed=1).images)


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_the_generator_hears_what_its_conditioning_says_and_no_more(name: str) -> None:
    torch.manual_seed(0)
    conditioning = make_conditioning(name, 4, side=12, pattern="cross", shows="hot")
    generator = PaperGenerator((1, 12, 12), conditioning, width=4, dropout=0.0).eval()
    z = generator.latent(1, torch.Generator().manual_seed(0))
    images = [generator(z, conditioning.sample(1, torch.tensor([k]))) for k in (0, 1, 0)]
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert images[0].dtype == torch.float32 and 0 <= images[0].min() and images[0].max() <= 1


def test_the_objective_of_the_paper_brings_its_generator(frozen: FrozenClassifier) -> None:
    factory = Reconstruction.recipe(frozen, "paper").generator()
    assert type(factory(frozen.shape, make_conditioning("vector-matrix", 4, side=12))) is PaperGenerator


@pytest.fixture(scope="module")
def digits() -> ImageData:
    "With many zeros and few nines, so that a weight for each class shows."
    data = load_data("digits", device="cpu")
    rows = torch.cat([(data.train.labels == k).nonzero()[: 60 - 5 * k, 0] for k in range(10)])
    return replace(data, train=Split(data.train.images[rows], data.train.labels[rows]))


def test_class_weights_follow_the_counts_after_every_epoch(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, given = [], []
    def weighed(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        if not weights or not torch.equal(weights[-1], weight): weights.append(weight.clone())
        given.append(labels)
        return torch.nn.functional.cross_entropy(logits, labels, weight)
    monkeypatch.setattr("netinv.ood.F", SimpleNamespace(cross_entropy=weighed))
    monkeypatch.setattr("netinv.ood.inverted_garbage", lambda c, n, rng, varied: torch.zeros(n, *c.shape).byte())
    hardened = train_with_garbage(digits, recipe="paper", epochs=3, inverted=40, batch_size=16, device="cpu", progress=False)
    real = torch.bincount(digits.train.labels, minlength=10).tolist()
    noise, n = len(digits.train) // 10, len(digits.train)
    assert len(weights) == 3
    for epoch, found in enumerate(weights):
        counts = [*real, noise + 40 * epoch]
        assert found.tolist() == pytest.approx([sum(counts) / (11 * count) for count in counts], rel=1e-6)
    heaps = [n + noise + 40 * epoch for epoch in range(3)]
    assert len(given) == sum(heap // 16 for heap in heaps)  # one pass over all there is, and the schedule knows it
    share = torch.cat(given[-(heaps[-1] // 16):]).eq(10).float().mean().item()
    assert share == pytest.approx((noise + 80) / heaps[-1], abs=0.03)
    assert hardened.history["inverted"].tolist() == [40, 80, 80] and hardened.history["garbage"].tolist() == [
        noise, noise + 40, noise + 80]


def test_garbage_is_found_by_an_inverter_of_the_recipe_class_by_class(
        digits: ImageData, shown: list[Condition], monkeypatch: pytest.MonkeyPatch) -> None:
    small = settings_of_recipe("paper") | {"generator": SMALL["generator"], "batch_size": 8}
    monkeypatch.setattr("netinv.inversion.settings_of_recipe", lambda recipe: small if recipe == "paper" else {})
    train_with_garbage(digits, recipe="paper", epochs=2, inverted=50, batch_size=64, device="cpu", progress=False)
    drawn = shown[-1]  # the garbage itself is drawn last
    assert torch.bincount(drawn.labels, minlength=11).tolist() == [5] * 10 + [0]
    for condition in shown[3:]:
        assert torch.equal(condition.vector, condition.target_probs) and (condition.vector[:, 10] == 0).all()
