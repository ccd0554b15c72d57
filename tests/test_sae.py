"Sparse autoencoders: planted directions are found, measures against closed forms, and what happens to bad input."
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netinv.files import save_tensors
from netinv.frozen import FrozenClassifier
from netinv.sae import (
    AnomalyDetector, SparseAutoencoder, anomaly_table, auxiliary_loss, compare_latents, keep_largest, latent_table,
    load_sae, mean_jaccard, sae_report, top_images, train_sae,
)
from netinv.samples import Samples

QUIET = {"progress": False}


def planted(n: int = 4000, dim: int = 16, latents: int = 24, k: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    "Features that are sums of `k` of some directions, and the directions."
    rng = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(latents, dim, generator=rng), dim=1)
    chosen = torch.rand(n, latents, generator=rng).topk(k, 1).indices
    z = torch.zeros(n, latents).scatter(1, chosen, 1 + torch.rand(n, k, generator=rng))
    return z @ directions, directions


@pytest.fixture(scope="module")
def sae() -> SparseAutoencoder:
    return train_sae(planted()[0], n_latents=32, k=3, steps=1500, **QUIET)


@pytest.fixture(scope="module")
def linear() -> FrozenClassifier:
    torch.manual_seed(0)
    return FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), shape=(1, 4, 4), device="cpu")


def seen(linear: FrozenClassifier, x: Tensor) -> Samples:
    probs = linear.head(x).softmax(1).detach()
    return Samples(torch.rand(len(x), 1, 4, 4), probs.argmax(1), probs, x)


def test_planted_directions_are_found(sae: SparseAutoencoder):
    features, directions = planted()
    best = (directions @ sae.directions.mT).amax(1)
    assert (best > 0.9).double().mean() > 0.8
    x, _ = planted(500, seed=0)
    assert (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum() < 0.1


@given(st.integers(1, 12), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_largest_are_kept(k: int, seed: int):
    z = torch.rand(5, 12, generator=torch.Generator().manual_seed(seed))
    kept = keep_largest(z, k)
    assert ((kept > 0).sum(1) == k).all() and torch.equal(kept[kept > 0], z[kept > 0])
    assert torch.allclose(kept.sum(1), z.sort(1).values[:, 12 - k :].sum(1))


def test_the_auxiliary_loss_teaches_dead_latents_only():
    sae = SparseAutoencoder(4, 8, k=2)
    with torch.no_grad():
        sae.decoder.copy_(torch.randn(8, 4))
        sae.encoder.weight.copy_(sae.decoder)
    x, dead = torch.randn(20, 4), torch.arange(8) >= 5
    drive = sae.encoder(x).relu()
    auxiliary_loss(sae, drive, x, dead).backward()
    moved = sae.encoder.weight.grad.abs().sum(1) > 0
    assert not moved[:5].any() and moved[5:].any()
    assert auxiliary_loss(sae, drive, x, torch.zeros(8, dtype=torch.bool)) == 0


@pytest.mark.parametrize("kind", ["topk", "l1"])
def test_the_report_is_what_it_says(kind: str, linear: FrozenClassifier):
    x, _ = planted(800)
    sae = train_sae(x, n_latents=40, k=4, kind=kind, steps=300, **QUIET)
    found, z, back = sae_report(sae, linear, seen(linear, x)), sae.encode(x), sae(x).double()
    exact = x.double()
    unexplained = (exact - back).square().sum() / (exact - exact.mean(0)).square().sum()
    assert found["explained variance"] == pytest.approx(1 - unexplained.item(), abs=1e-4)
    assert found["L0"] == pytest.approx((z > 0).double().sum().item() / 800)
    assert found["dead latents"] == (z.amax(0) == 0).double().mean().item()
    logits = [linear.head(f.float()).detach() for f in (x, back, sae.mean.expand_as(x))]
    labels = logits[0].argmax(1)
    losses = [-part.log_softmax(1)[torch.arange(800), labels].mean().item() for part in logits]
    assert found["loss recovered"] == pytest.approx((losses[2] - losses[1]) / (losses[2] - losses[0]), abs=1e-4)
    assert found["accuracy through it"] == (logits[1].argmax(1) == labels).double().mean().item() < found["accuracy"]
    wrong = replace(seen(linear, x), labels=logits[0].argmin(1))
    assert math.isnan(sae_report(sae, linear, wrong)["loss recovered"])
    if kind == "topk": assert found["L0"] <= 4


def test_features_of_any_precision_will_do(sae: SparseAutoencoder):
    x, _ = planted(20)
    assert torch.equal(sae(x.double()), sae(x))


def test_a_higher_price_makes_fewer_active():
    x, _ = planted(800)
    saes = [train_sae(x, n_latents=40, kind="l1", l1=price, steps=300, **QUIET) for price in (0.001, 0.05, 0.5)]
    counts = [(sae.encode(x) > 0).double().sum(1).mean() for sae in saes]
    assert counts[0] > counts[1] > counts[2]


def test_the_same_seed_gives_the_same_autoencoder():
    x, _ = planted(300)
    once, again, other = (train_sae(x, n_latents=20, k=3, steps=30, seed=seed, **QUIET) for seed in (0, 0, 1))
    assert torch.equal(once.decoder, again.decoder) and not torch.equal(once.decoder, other.decoder)


def test_latents_are_described_by_what_they_fire_for():
    sae = SparseAutoencoder(3, 3, k=1)
    with torch.no_grad():
        sae.decoder.copy_(torch.eye(3))
        sae.encoder.weight.copy_(torch.eye(3))
        sae.encoder.bias.zero_()
    x = torch.tensor([[5.0, 0, 0], [3, 1, 0], [0, 4, 0], [0, 2, 0]])
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2) / 4
    found = Samples(images, torch.tensor([0, 1, 1, 1]), torch.eye(2)[[0, 1, 1, 1]], x)
    sae.names[1] = "second axis"
    table = latent_table(sae, found, ["a", "b"])
    assert table.name.tolist() == ["", "second axis", ""] and table.fires.tolist() == [0.5, 0.5, 0.0]
    assert table.strength.tolist() == [4, 3, 0]
    assert table["class"].tolist() == ["a", "b", ""] and table.classes.tolist() == ["a, b", "b", ""]
    best = top_images(sae, [0, 1], [found], per_latent=3)
    assert best[:, 0, 0, 0].tolist() == pytest.approx([0, 0.25, 0, 0.5, 0.75, 0])  # only two fire: the third is black


def test_overlap_of_known_patterns():
    a = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    b = torch.tensor([[0, 0, 0, 1]], dtype=torch.bool)
    assert mean_jaccard(a, a) == pytest.approx(1 / 3) and mean_jaccard(a, b) == 0 and math.isnan(mean_jaccard(b, b))


def test_overlap_by_class(sae: SparseAutoencoder, linear: FrozenClassifier):
    x, y = seen(linear, planted(400)[0]), seen(linear, planted(400, seed=3)[0])
    table = compare_latents(sae, x, y, most=2)
    assert ((table["real, real"] >= 0) & (table["real, real"] <= 1)).all()
    assert all(re.fullmatch(r"\d+: \d+% → \d+%, \d+: \d+% → \d+%", text) for text in table["differ most"])


def test_strange_features_are_told_apart(sae: SparseAutoencoder, linear: FrozenClassifier):
    known, normal = seen(linear, planted(4000)[0][:3000]), seen(linear, planted(4000)[0][3000:])
    noise = seen(linear, torch.randn(1000, 16, generator=torch.Generator().manual_seed(5)))
    more = seen(linear, planted(4500)[0][4000:])
    table = anomaly_table(AnomalyDetector(sae, known), normal, {"noise": noise, "normal": more})
    assert table.loc["noise", ["error", "both"]].min() > 0.95
    assert (table.loc["normal"] - 0.5).abs().max() < 0.07


def test_an_unusual_pattern_is_strange_even_if_it_comes_back():
    "Two classes with a latent each; images that the classifier puts into the class of the other latent."
    sae = SparseAutoencoder(2, 2, kind="l1")
    with torch.no_grad():
        sae.decoder.copy_(torch.eye(2))
        sae.encoder.weight.copy_(torch.eye(2))
        sae.encoder.bias.zero_()
    labels = torch.arange(40) % 2
    x = torch.eye(2)[labels] * torch.linspace(1, 2, 40)[:, None]
    known = Samples(torch.rand(40, 1, 2, 2), labels, torch.eye(2)[labels], x)
    scores = AnomalyDetector(sae, known)(replace(known, probs=torch.eye(2)[1 - labels]))
    rates = torch.tensor([20.5, 0.5]).double() / 21
    assert scores.pattern.tolist() == pytest.approx([-2 * math.log(rates[1].item())] * 40)
    assert scores.error.max() < -20


def test_a_class_that_was_never_seen_does_no_harm(sae: SparseAutoencoder, linear: FrozenClassifier):
    some = seen(linear, planted(300)[0])
    known = some[some.labels != 0]
    assert AnomalyDetector(sae, known)(some).map(math.isfinite).all().all()


def test_an_autoencoder_comes_back_from_its_file(sae: SparseAutoencoder, tmp_path: Path):
    x, _ = planted(50)
    sae.names[np.int64(3)] = "a loop"  # as an index of a table comes
    sae.save(tmp_path / "sae.safetensors")
    again = load_sae(tmp_path / "sae.safetensors")
    assert torch.equal(again(x), sae(x)) and again.names == {3: "a loop"} and (again.kind, again.k) == ("topk", 3)


def test_a_file_of_something_else_gets_a_sentence(tmp_path: Path):
    save_tensors(tmp_path / "other.safetensors", {"decoder": torch.zeros(2, 3)}, {"kind": "topk"})
    with pytest.raises(ValueError, match="other.safetensors holds no sparse autoencoder"):
        load_sae(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("call", "says"), [
    (lambda: train_sae(torch.randn(1, 4), **QUIET), "1 samples are too few: give at least 2"),
    (lambda: train_sae(torch.full((4, 2), torch.nan), **QUIET), "4 of 4 rows of features hold NaN"),
    (lambda: train_sae(torch.zeros(4, 2), **QUIET), "all rows of features are the same"),
    (lambda: train_sae(torch.randn(4, 2), steps=0, **QUIET), "steps is 0: expected 1 or more"),
    (lambda: SparseAutoencoder(4, 8, k=9), "k is 9: expected at least 1 and at most the 8 latents"),
    (lambda: SparseAutoencoder(4, kind="relu"), "kind is 'relu': expected one of topk, l1"),
])
def test_bad_input_gets_a_sentence(call, says: str):
    with pytest.raises(ValueError, match=re.escape(says)):
        call()


# What features may be


def some_features(n: int = 40, d: int = 8) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("features", [
    1 + 1e-9 * some_features(), 1 + 1e-7 * some_features().float(), 1e6 + 1e-3 * some_features(), 1e-40 * some_features(),
    1e35 * some_features(), 1e300 * some_features(), (5 + 1e-9 * some_features()).numpy(),
])  # fmt: skip
def test_features_that_float32_cannot_tell_apart_are_refused(features):
    with pytest.raises(ValueError, match="which float32 cannot tell apart: subtract their mean and scale them"):
        train_sae(features, n_latents=16, k=2, steps=2, **QUIET)


@pytest.mark.parametrize("features", [
    1e-12 * some_features(), 1e-25 * some_features().float(), 1e20 * some_features(), some_features() + 1000, some_features().half(),
    some_features().bfloat16(), some_features().numpy(), list(some_features()), some_features().tolist(),
    torch.cat([some_features(), torch.full((40, 3), 1e7)], 1), (255 * some_features()).byte(), some_features() > 0.5,
])  # fmt: skip
def test_features_of_any_kind_and_size_are_learnt_from(features):
    sae = train_sae(features, n_latents=16, k=2, steps=3, **QUIET)
    given = features if isinstance(features, torch.Tensor) else torch.as_tensor(np.asarray(features))
    assert sae.scale > 0 and all(t.isfinite().all() for t in sae.state_dict().values())
    assert sae(features).isfinite().all() and sae(features).shape == given.shape


@pytest.mark.parametrize("features, says", [
    (some_features()[:1], "1 samples are too few: give at least 2"), (some_features() / 0, "40 of 40 rows of features hold NaN"),
    (torch.ones(9, 4), "all rows of features are the same"), (some_features()[:, 0], r"features are \[40\]: expected one row"),
    ([[1.0, 2.0], [3.0]], "a list is no table of numbers"), ("features", "a str is no table of numbers"),
])  # fmt: skip
def test_features_that_nothing_can_be_learnt_from(features, says: str):
    with pytest.raises(ValueError, match=says): train_sae(features, steps=2, **QUIET)


def test_an_autoencoder_names_the_features_it_takes():
    sae = train_sae(some_features(), n_latents=16, k=2, steps=2, **QUIET)
    with pytest.raises(ValueError, match=r"features are \[40, 5\]: this autoencoder takes \[n, 8\]"): sae(some_features()[:, :5])
