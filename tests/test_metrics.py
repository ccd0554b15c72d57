"netinv.metrics against closed forms, independent implementations and properties."
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from netinv.data import Split, load_data
from netinv.frozen import FrozenClassifier
from netinv.metrics import (
    check_features, confidence, diversity, draw_per_class, inversion_accuracy, inversion_report, plot_report, prdc,
    report_numbers, vendi_score,
)
from netinv.samples import Samples, look

few = settings(max_examples=40, deadline=None)
entry = st.floats(-4, 4, allow_nan=False, width=32)


def feature_rows(max_rows=8, max_dim=6):
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, max_dim))
    return shapes.flatmap(lambda s: arrays(np.float64, s, elements=entry))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_samples(labels, n_classes=3, seed=0):
    labels = torch.as_tensor(labels)
    n = len(labels)
    features = draw(n, 5, seed=seed) + 4 * torch.nn.functional.one_hot(labels, 5)
    return Samples(draw(n, 1, 4, 4, seed=seed + 1).sigmoid(), labels, features[:, :n_classes].softmax(1), features)


class Flatten(nn.Flatten):
    "Notes the batches that pass; the first look at a classifier, when it is made, may be anything."
    passed = None

    def forward(self, images):
        if Flatten.passed is not None:
            assert not torch.is_grad_enabled() and images.dtype == torch.float32 and images.max() <= 1
            Flatten.passed.append(len(images))
        return super().forward(images)


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    "Features are the first five pixels, logits ten times the first three features."
    first, last = nn.Linear(16, 5, bias=False), nn.Linear(5, 3, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(5, 16))
        last.weight.copy_(10 * torch.eye(3, 5))
    return FrozenClassifier(nn.Sequential(Flatten(), first, last), shape=(1, 4, 4), device="cpu")


def make_split(labels, seed=0):
    labels = torch.as_tensor(labels)
    images = torch.randint(0, 200, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    images.flatten(1)[torch.arange(len(labels)), labels] = 255
    return Split(images.to(torch.uint8), labels)


# Accuracy and confidence.

def test_accuracy_and_confidence_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])
    samples = Samples(torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 1, 1]), probs, torch.eye(4))
    assert inversion_accuracy(samples) == 0.5
    assert confidence(samples) == pytest.approx((0.7 + 0.3 + 0.3 + 0.8) / 4)
    by_class = inversion_accuracy(samples, per_class=True)
    assert by_class.tolist()[:2] == [0.5, 0.5] and math.isnan(by_class[2])
    assert confidence(samples, per_class=True).tolist()[:2] == pytest.approx([0.5, 0.55])


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1]), torch.tensor([0, 1, 3]), torch.tensor([-1, 0, 1])])
def test_missing_or_wrong_labels_get_a_sentence(labels):
    samples = replace(make_samples([0, 1, 2]), labels=labels)
    for metric in (inversion_accuracy, confidence, diversity):
        with pytest.raises(ValueError, match=r"need 3 labels in 0\.\.2"):
            metric(samples)


# Vendi score.

def vendi_by_svd(x):
    "Independent of the package: the eigenvalues are the squared singular values of the unit rows over n."
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    w = np.linalg.svd(x, compute_uv=False) ** 2 / len(x)
    return math.exp(-sum(v * math.log(v) for v in w if v > 0))


@pytest.mark.parametrize("n, d", [(7, 3), (5, 5), (4, 20)])
def test_vendi_equals_an_independent_implementation(n, d):
    x = draw(n, d).double()
    assert vendi_score(x) == pytest.approx(vendi_by_svd(x.numpy()), rel=1e-9)


@pytest.mark.parametrize("kinds, copies", [(1, 9), (2, 5), (4, 1), (6, 3)])
def test_vendi_counts_kinds(kinds, copies):
    assert vendi_score(torch.eye(kinds).repeat(copies, 1)) == pytest.approx(kinds, rel=1e-9)


def test_vendi_of_two_rows_at_an_angle():
    c = math.cos(0.7)
    w = [(1 + c) / 2, (1 - c) / 2]
    rows = torch.tensor([[1.0, 0.0], [c, math.sin(0.7)]], dtype=torch.float64)
    assert vendi_score(rows) == pytest.approx(math.exp(-sum(v * math.log(v) for v in w)), rel=1e-12)


def test_vendi_takes_images_and_black_ones_are_one_kind():
    image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert vendi_score((image * 255).to(torch.uint8).repeat(5, 1, 1, 1)) == pytest.approx(1)
    assert vendi_score(torch.zeros(5, 1, 4, 4)) == pytest.approx(1)
    assert vendi_score(torch.cat([image, torch.zeros(1, 1, 4, 4)])) == pytest.approx(2)


@few
@given(feature_rows(), st.integers(0, 1000))
def test_vendi_is_in_range_and_sees_neither_order_nor_rotation(x, seed):
    x = torch.from_numpy(x)
    n, d = x.shape
    value = vendi_score(x)
    assert 1 - 1e-9 <= value <= n + 1e-9
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=g)
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    assert vendi_score(x[order]) == pytest.approx(value, rel=1e-6)
    assert vendi_score(x @ turn) == pytest.approx(value, rel=1e-6)
    assert vendi_score(torch.cat([x, x])) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_features_get_a_sentence(bad):
    x = draw(12, 3)
    x[4, 1] = bad
    for call in (lambda: vendi_score(x), lambda: prdc(x, draw(12, 3)), lambda: prdc(draw(12, 3), x),
                 lambda: diversity(replace(make_samples([0, 1, 2] * 4), features=x))):
        with pytest.raises(ValueError, match="1 of 12 rows of features hold NaN or infinity"):
            call()
    with pytest.raises(ValueError, match="0 samples are too few: give at least 1"):
        vendi_score(torch.zeros(0, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_checked_features_are_the_same_numbers_in_double(dtype):
    x = (100 * draw(6, 3).abs()).to(dtype).requires_grad_(dtype.is_floating_point)
    checked = check_features(x, least=6, wide=3, vary=True)
    assert checked.dtype == torch.float64 and not checked.requires_grad and torch.equal(checked, x.detach().double())


@pytest.mark.parametrize("x, wanted, says", [
    (torch.zeros(9), {}, r"features are \[9\]: expected one row for each image, \[n, D\]"),
    (torch.zeros(9, 1), {"wide": 2}, "features of 1 numbers are too short: give at least 2"),
    (torch.zeros(9, 4), {"least": 10}, "9 samples are too few: give at least 10"),
    (torch.tensor([[0.0, math.inf], [0, 1]]), {}, "1 of 2 rows of features hold NaN or infinity: leave"),
    (torch.ones(9, 4), {"vary": True}, "all rows of features are the same: there is nothing to tell apart"),
])
def test_unfit_features_get_a_sentence(x, wanted, says):
    with pytest.raises(ValueError, match=says):
        check_features(x, **wanted)
    if "vary" in wanted: assert torch.equal(check_features(x), x.double())  # only where it is asked for


# Diversity.

def distance(u, v):
    return 1 - float(u @ v) / float(np.linalg.norm(u) * np.linalg.norm(v))


def test_diversity_equals_loops_over_pairs():
    samples = make_samples([0] * 6 + [1] * 6 + [2] * 6)
    table = diversity(samples, n_per_class=6)
    for space, x in (("features", samples.features), ("pixels", samples.images)):
        x = x.flatten(1).double().numpy()
        for c in range(3):
            mine, others = x[c * 6:(c + 1) * 6], np.delete(x, range(c * 6, (c + 1) * 6), axis=0)
            within = np.mean([distance(mine[i], mine[j]) for i in range(6) for j in range(6) if i != j])
            between = np.mean([distance(u, v) for u in mine for v in others])
            assert table.loc[c, f"within_{space}"] == pytest.approx(within, rel=1e-6)
            assert table.loc[c, f"between_{space}"] == pytest.approx(between, rel=1e-6)
            assert table.loc[c, f"vendi_{space}"] == pytest.approx(vendi_by_svd(mine), rel=1e-6)
        assert table.loc["all", f"within_{space}"] == pytest.approx(table[f"within_{space}"].drop("all").mean())
        assert table.loc["all", f"vendi_{space}"] == pytest.approx(vendi_by_svd(x), rel=1e-6)


def test_diversity_draws_the_same_number_of_each_class_repeatably():
    samples = make_samples([0] * 30 + [1] * 20 + [2] * 4)
    table = diversity(samples, n_per_class=10, seed=3)
    assert table["n"].tolist() == [10, 10, 4, 24]
    assert table.equals(diversity(samples, n_per_class=10, seed=3))
    assert not table.equals(diversity(samples, n_per_class=10, seed=4))


def test_draws_do_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    draw_per_class(torch.tensor([0, 1] * 50), [10, 10], seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_classes_without_samples_are_nan():
    table = diversity(make_samples([0] * 5 + [2]))
    assert table.drop("n", axis=1).loc[[1, 2]].isna().all(axis=None)
    assert table.loc[0].notna().all() and table.loc["all"].notna().all()


# Precision, recall, density, coverage.

def prdc_by_loop(real, fake, k):
    "The four definitions of Naeem et al. (2020), one at a time."
    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]
    inside_real = [[np.linalg.norm(f - r) < radius(real, i) for i, r in enumerate(real)] for f in fake]
    inside_fake = [[np.linalg.norm(f - r) < radius(fake, i) for i, f in enumerate(fake)] for r in real]
    return {"precision": np.mean([any(row) for row in inside_real]),
            "recall": np.mean([any(row) for row in inside_fake]),
            "density": np.mean([sum(row) / k for row in inside_real]),
            "coverage": np.mean([any(row[i] for row in inside_real) for i in range(len(real))])}


@pytest.mark.parametrize("k, shift", [(1, 0.0), (3, 0.5), (5, 1.0), (5, 0.0)])
def test_prdc_equals_an_independent_implementation(k, shift, capsys):
    real, fake = draw(20, 3), draw(25, 3, seed=1) + shift
    by_loop = prdc_by_loop(real.double().numpy(), fake.double().numpy(), k)
    assert prdc(real, fake, k) == pytest.approx(by_loop, abs=1e-12)
    assert capsys.readouterr().out == ""


def test_prdc_far_away_is_zero_and_close_together_is_dense():
    real = draw(40, 3)
    assert list(prdc(real, real + 100).values()) == [0, 0, 0, 0]
    centre = prdc(real, 0.05 * draw(40, 3, seed=1))
    assert centre["precision"] == 1 and centre["density"] > 1 and centre["recall"] < 0.3


@pytest.mark.parametrize("n, m, k", [(6, 20, 5), (20, 6, 5), (3, 3, 3), (20, 20, 0)])
def test_prdc_with_too_few_rows_gets_a_sentence(n, m, k):
    with pytest.raises(ValueError, match=rf"k={k} needs .* but got {n} real and {m} generated"):
        prdc(draw(n, 2), draw(m, 2), k)


def test_prdc_by_class_equals_separate_calls():
    real, fake = make_samples([0, 1] * 15 + [2]), make_samples([0, 1] * 12, seed=5)
    table = prdc(real.features, fake.features, 3, real_labels=real.labels, fake_labels=fake.labels)
    for c in (0, 1):
        separate = prdc(real.features[real.labels == c], fake.features[fake.labels == c], 3)
        assert table.loc[c].to_dict() == pytest.approx(separate)
    assert table.loc[2].isna().all()
    assert table.loc["all"].to_dict() == pytest.approx(prdc(real.features, fake.features, 3))


def test_prdc_with_half_the_labels_gets_a_sentence():
    x, labels = draw(10, 2), torch.zeros(10, dtype=torch.long)
    for half in ({"real_labels": labels}, {"fake_labels": labels}, {"real_labels": labels, "fake_labels": labels[:5]}):
        with pytest.raises(ValueError, match="or neither"):
            prdc(x, x, **half)


# The report.


def see(classifier: FrozenClassifier, split: Split) -> Samples:
    return look(classifier, split.images, split.labels)


def test_look_takes_batches_without_gradients(classifier, monkeypatch):
    monkeypatch.setattr(Flatten, "passed", [])
    split = make_split([0, 1, 2] * 7)
    seen = look(classifier, split.images, split.labels, batch_size=8)
    assert Flatten.passed == [8, 8, 5]
    assert seen.probs.shape == (21, 3) and seen.features.shape == (21, 5)
    assert inversion_accuracy(seen) == 1


def test_report_of_real_images_against_themselves(classifier):
    seen = see(classifier, make_split([0, 1, 2] * 60))
    report = inversion_report(seen, seen, n_per_class=25, k=3)
    assert list(report.columns) == ["samples", "real"]
    assert report.loc["n", "real"].tolist() == report.loc["n", "samples"].tolist() == [25, 25, 25, 75]
    assert report.loc["accuracy", "samples"].tolist() == report.loc["accuracy", "real"].tolist() == [1, 1, 1, 1]
    everything = report.xs("all", level="class")
    assert everything["samples"].drop("n").tolist() == pytest.approx(everything["real"].drop("n").tolist(), rel=0.35)
    assert 0.5 < report.loc[("coverage", "all"), "real"] < 1  # the two halves are different images
    assert report.equals(inversion_report(seen, seen, n_per_class=25, k=3))


def test_report_shows_a_collapse(classifier):
    real = see(classifier, make_split([0, 1, 2] * 60))
    report = inversion_report(real[torch.arange(3).repeat(30)], real, n_per_class=20)
    assert report.loc["vendi_pixels"].drop("all")["samples"].tolist() == pytest.approx([1, 1, 1])
    assert (report.loc["vendi_pixels", "real"] > 2).all()
    assert report.loc[("coverage", "all"), "samples"] < 0.5 < report.loc[("coverage", "all"), "real"]


def test_report_with_few_images_and_an_absent_class(classifier):
    real = see(classifier, make_split([0] * 40 + [1] * 10 + [2] * 40))
    report = inversion_report(make_samples([0] * 12 + [1] * 30), real)
    assert report.loc["n", "samples"].tolist() == [12, 5, 0, 17]
    assert math.isnan(report.loc[("precision", 1), "samples"]) and math.isnan(report.loc[("vendi_pixels", 2), "real"])
    numbers = report_numbers(report)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert "precision_1" not in numbers and numbers["real_accuracy_2"] == 1
    assert all(type(v) is float for v in numbers.values())


def test_report_with_real_labels_that_the_classifier_does_not_know(classifier):
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        inversion_report(make_samples([0, 1, 2]), see(classifier, make_split([0, 1, 3])))


def test_plot_has_a_panel_per_metric(classifier):
    seen = see(classifier, make_split([0, 1, 2] * 30))
    figure = plot_report(inversion_report(seen, seen, k=2), ["cat", "dog", "owl"])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["accuracy", "confidence"] and len(titles) == len(set(titles)) == 12
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["cat", "dog", "owl"]


@pytest.mark.gpu
def test_samples_on_cuda_give_the_same_report(classifier):
    seen = see(classifier, make_split([0, 1, 2] * 30))
    there = Samples(seen.images.cuda(), seen.labels.cuda(), seen.probs.cuda(), seen.features.cuda())
    here = inversion_report(seen, seen, k=2)
    assert inversion_report(there, seen, k=2).equals(here) and inversion_report(there, there, k=2).equals(here)


# Real images.

def test_mnist_digits_differ_as_they_should(real_data):
    test = load_data("mnist", train_size=100, test_size=3000).test
    vendi = [vendi_score(test.images[test.labels == c][:150]) for c in range(10)]
    assert min(vendi) == vendi[1] < 7 and 8 < np.mean(vendi) < 14  # ones are the most alike
    sevens = test.images[test.labels == 7][:280].flatten(1)
    noise = torch.randint(0, 256, (140, 784), generator=torch.Generator().manual_seed(0))
    assert all(0.5 < value < 1.3 for value in prdc(sevens[:140], sevens[140:]).values())
    assert prdc(sevens[:140], noise)["precision"] == 0


# What people bring


def test_numbers_of_any_kind_have_the_same_scores() -> None:
    x, labels = torch.rand(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    for kind in (np.asarray, lambda t: t.double(), lambda t: t.tolist(), list):
        assert vendi_score(kind(x)) == pytest.approx(vendi_score(x), abs=1e-6)
        assert prdc(kind(x[:20]), kind(x[10:]))["coverage"] == prdc(x[:20], x[10:])["coverage"]
    kinds = (labels, labels[:, None], labels.numpy(), labels.tolist())
    tables = [prdc(x, x, real_labels=some, fake_labels=labels) for some in kinds]
    assert all(table.equals(tables[0]) for table in tables)


def test_samples_of_arrays_are_samples_of_tensors() -> None:
    probs = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    made = Samples(np.zeros((4, 1, 8, 8), np.uint8), np.array([[0], [1], [2], [2]]), probs, np.random.rand(4, 5))
    assert inversion_accuracy(made) == 0.75 and made.labels.shape == (4,) and len(made.of([1, 2])) == 3


@pytest.mark.parametrize("call, says", [
    (lambda s: inversion_report(s, s.images), "real is a Tensor: give Samples, such as look"),
    (lambda s: inversion_accuracy(s.probs), "samples is a Tensor: give Samples"),
    (lambda s: inversion_accuracy(replace(s, probs=s.probs / 0)), "answers NaN to 4 of 4 samples"),
    (lambda s: inversion_report(s, replace(s, probs=torch.ones(4, 2))), "samples have 3 classes and 5 features, real ones 2"),
    (lambda s: prdc(s.features, s.probs), "real features have 5 numbers and generated ones 3"),
    (lambda s: prdc(s.features / 0, s.features), "4 of 4 rows of features hold NaN"),
    (lambda s: vendi_score(s.features[0]), r"features are \[5\]: expected one row for each image"),
    (lambda s: vendi_score([]), r"features are \[0\]: expected one row"),
])  # fmt: skip
def test_what_cannot_be_measured(call, says: str) -> None:
    made = Samples(torch.zeros(4, 1, 8, 8), torch.arange(4) % 3, torch.eye(3)[[0, 1, 2, 0]] * 1.0, torch.rand(4, 5))
    if "NaN to" in says: made.probs = made.probs * torch.nan
    with pytest.raises(ValueError, match=says): call(made)
