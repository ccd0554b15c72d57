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
from scipy.stats import f_oneway
from torch import Tensor, nn

from netinv.files import save_tensors
from netinv.frozen import FrozenClassifier
from netinv.sae import (
    KINDS, RHO, SparseAutoencoder, auxiliary_loss, between_share, compare_latents, generator_table, keep_largest,
    latent_table, load_sae, mean_jaccard, sae_report, sparsity_loss, top_images, train_sae,
)
from netinv.samples import Samples

QUIET = {"progress": False}


def planted(n: int = 4000, dim: int = 16, latents: int = 24, k: int = 2, seed: int = 0, draw: int | None = None) -> tuple[Tensor, Tensor]:
    "Features that are sums of `k` of some directions, and the directions; `draw` gives other features of the same ones."
    rng = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(latents, dim, generator=rng), dim=1)
    if draw is not None: rng.manual_seed(1000 + draw)
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_is_what_it_says(kind: str, linear: FrozenClassifier):
    x, _ = planted(800)
    sae = train_sae(x, n_latents=40, k=4, kind=kind, steps=300, **QUIET)
    found, z, back = sae_report(sae, linear, seen(linear, x)), sae.encode(x), sae(x).double()
    exact = x.double()
    unexplained = (exact - back).square().sum() / (exact - exact.mean(0)).square().sum()
    assert found["explained variance"] == pytest.approx(1 - unexplained.item(), abs=1e-4)
    least = 2 * RHO if kind == "kl" else 0
    assert found["L0"] == pytest.approx((z > least).double().sum().item() / 800)
    assert found["dead latents"] == (z.amax(0) <= least).double().mean().item()
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


def test_the_share_between_groups_is_that_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    z, groups = rng.normal(size=(60, 1)), np.arange(60) % 3
    z[groups == 1] += 1
    parts = [z[groups == g, 0] for g in range(3)]
    ratio = f_oneway(*parts).statistic * 2 / 57  # between over within
    found = between_share(torch.from_numpy(z), torch.from_numpy(groups)[None]).item()
    assert found == pytest.approx(ratio / (1 + ratio))


def by_two(linear: FrozenClassifier, n: int = 400, apart: bool = True) -> Samples:
    "Features of two generators, which use different directions or the same."
    x = torch.cat([planted(n, seed=0)[0], planted(n, seed=1 if apart else 0, draw=1)[0]])
    return replace(seen(linear, x), labels=torch.zeros(2 * n, dtype=torch.long), generator=torch.arange(2 * n) // n)


def test_generators_that_use_other_directions_are_told_apart(sae: SparseAutoencoder, linear: FrozenClassifier):
    differ, same = (generator_table(sae, by_two(linear, apart=apart)).loc[0] for apart in (True, False))
    assert differ["p"] == 1 / 200 and differ["share"] > 2 * differ["by chance"]
    assert same["p"] > 0.01 and same["share"] < 2 * same["by chance"]
    assert differ["by chance"] == pytest.approx(1 / 799, rel=0.2)  # degrees of freedom: G - 1 of m - 1
    assert len(re.findall(r"\d+: \d+% / \d+%", differ["differ most"])) == 3


def test_shuffled_generators_seldom_differ(sae: SparseAutoencoder, linear: FrozenClassifier):
    "Of 30 random divisions of one generator's images, about 5 % may have p of 0.05 or less."
    x = seen(linear, planted(120)[0])
    one, rng = replace(x, labels=torch.zeros_like(x.labels)), torch.Generator().manual_seed(0)
    tables = [generator_table(sae, replace(one, generator=torch.randint(2, (120,), generator=rng)), draws=39)
              for _ in range(30)]
    ps = torch.tensor([table.p.item() for table in tables])
    assert (ps <= 0.05).sum() <= 5 and 0.3 < ps.mean() < 0.7


def test_a_single_generator_gets_a_sentence(sae: SparseAutoencoder, linear: FrozenClassifier):
    for maker in (None, torch.zeros(50, dtype=torch.long)):
        with pytest.raises(ValueError, match="sample from an Inverter with n_generators=2 or more"):
            generator_table(sae, replace(seen(linear, planted(50)[0]), generator=maker))


def test_the_price_of_a_mean_activation_is_the_divergence_of_coins():
    z = torch.rand(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 + 0.05
    coins = [torch.distributions.Bernoulli(torch.tensor(p, dtype=torch.float64)) for p in (RHO, *z.mean(0).tolist())]
    expected = sum(torch.distributions.kl_divergence(coins[0], coin) for coin in coins[1:]) / 5
    assert sparsity_loss(z).item() == pytest.approx(expected.item())


def test_latents_of_kl_are_active_as_often_as_they_should_be():
    x, _ = planted(2000)
    loose, tight = (train_sae(x, n_latents=48, kind="kl", kl=price, steps=600, **QUIET) for price in (0.0, 100.0))
    means = [sae.encode(x).mean(0) for sae in (loose, tight)]
    assert (means[1] - RHO).abs().mean() < 0.01 < (means[0] - RHO).abs().mean()
    assert (x - loose(x)).square().sum() / (x - x.mean(0)).square().sum() < 0.2
    assert torch.equal(tight.active(tight.encode(x)), tight.encode(x) > 2 * RHO)


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
    (lambda: SparseAutoencoder(4, kind="relu"), "kind is 'relu': expected one of topk, l1, kl"),
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
