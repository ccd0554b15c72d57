"The garbage class: how it is added, what is learnt, and how it is measured."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from torch import nn

from netinv.classifier import CNN, train_classifier
from netinv.data import ImageData, load_data
from netinv.frozen import FrozenClassifier
from netinv.garbage import FAMILIES
from netinv.generator import describe_generator
from netinv.heads import with_garbage_class
from netinv.ood import (
    baseline_scores, epoch_garbage, evaluate_ood, in_distribution, log_probabilities, margins, ood_score,
    random_kind, separation, threshold_area, train_with_garbage,
)
from netinv.samples import accuracy

QUIET = {"progress": False, "device": "cpu"}


def freeze(model: nn.Module, shape: tuple[int, int, int] = (1, 28, 28)) -> FrozenClassifier:
    return FrozenClassifier(model, shape=shape, device="cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", device="cpu")


@pytest.fixture(scope="module")
def plain(digits) -> nn.Module:
    return train_classifier(digits, epochs=4, device="cpu", progress=False)


@pytest.fixture(scope="module")
def hardened(digits) -> nn.Module:
    return train_with_garbage(digits, epochs=4, inverted=60, seed=0, **QUIET)


def test_recipes_fill_an_epoch_as_they_say(digits) -> None:
    rng, found = torch.Generator().manual_seed(0), torch.full((40, *digits.shape), 77, dtype=torch.uint8)
    inverted = lambda pool: int((pool == 77).flatten(1).all(1).sum())
    paper, diverse = (epoch_garbage(recipe, 100, digits.train.images, found, rng) for recipe in ("paper", "diverse"))
    assert (len(paper), inverted(paper)) == (140, 40)
    assert (len(diverse), inverted(diverse)) == (100, 25)
    first, later = (epoch_garbage("diverse", 100, digits.train.images, some, rng, []) for some in (found[:0], found))
    assert (len(first), inverted(first)) == (100, 0) and (len(later), inverted(later)) == (100, 100)


def test_a_garbage_class_leaves_the_other_logits_alone() -> None:
    model, images = CNN((1, 28, 28), 10).eval(), torch.rand(4, 1, 28, 28)
    grown = with_garbage_class(model, (1, 28, 28), 10)
    with torch.no_grad(): torch.testing.assert_close(grown(images)[:, :10], model(images))
    assert grown(images).shape == (4, 11) and model(images).shape == (4, 10)
    assert with_garbage_class(grown, (1, 28, 28), 10)(images).shape == (4, 11)


class Heads(nn.Module):
    "The one that answers is registered first, and the last is never used."
    def __init__(self, kind: str):
        super().__init__()
        self.head = nn.Linear(20, 10)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU())
        self.conv, self.aux, self.kind = nn.Conv2d(1, 10, 8), nn.Linear(20, 4), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "convolution": return self.conv(x).flatten(1)
        if self.kind == "cosine": return F.linear(self.body(x), F.normalize(self.head.weight))
        out = self.head(self.body(x))
        if self.kind == "scaled": return 9 * F.normalize(out, dim=1)
        if self.kind == "two": return out + self.conv(x).flatten(1)
        squash = {"softmax": nn.Softmax(1), "sigmoid": nn.Sigmoid()}.get(self.kind)
        return squash(out) if squash else out


@pytest.mark.parametrize("kind", ["plain", "convolution", "cosine", "two", "scaled", "softmax", "sigmoid"])
def test_the_garbage_class_goes_where_the_logits_come_from(kind: str) -> None:
    "Into the last layer where that is all there is to it, and behind the logits elsewhere."
    model, images = Heads(kind).eval(), torch.rand(5, 1, 8, 8)
    grown, before = with_garbage_class(model, (1, 8, 8), 10).eval(), freeze(model, (1, 8, 8))(images).logits
    assert grown(images).shape == (5, 11) and isinstance(grown, Heads) == (kind in ("plain", "convolution"))
    torch.testing.assert_close(grown(images)[:, :10].log_softmax(1), before.log_softmax(1), atol=1e-4, rtol=1e-4)
    if kind == "plain": assert grown.aux.out_features == 4


def test_a_garbage_class_needs_one_logit_for_each_class() -> None:
    with pytest.raises(ValueError, match="CNN returns 10 logits for 7 classes: give a model with 7 or, with a garb"):
        with_garbage_class(CNN((1, 8, 8), 10), (1, 8, 8), 7)


def test_scores_are_those_of_eval_mode_and_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 3))
    images = torch.rand(50, 1, 8, 8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    frozen = freeze(model.train(), (1, 8, 8))
    scores = ood_score(frozen, images)
    assert torch.equal(scores, ood_score(frozen, images))
    assert torch.allclose(scores[:9], ood_score(frozen, images[:9]), atol=1e-6)
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_log_probabilities_of_many_kinds_of_models() -> None:
    logits, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(9, 1, 8, 8)
    with torch.no_grad(): expected = logits(images).double().log_softmax(1)
    kinds = [logits, nn.Sequential(logits, nn.Softmax(1)), nn.Sequential(logits, nn.LogSoftmax(1)),
             copy.deepcopy(logits).double()]
    for model in kinds:
        found = log_probabilities(freeze(model, (1, 8, 8)), images)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"images are from .* expected uint8, or float in \[0, 1\]"):
        log_probabilities(freeze(logits, (1, 8, 8)), 255 * images)


def test_scores_are_those_of_frozen_classifiers(digits, plain) -> None:
    for score in (lambda: ood_score(plain, digits.test.images), lambda: evaluate_ood(plain, digits, {}),
                  lambda: baseline_scores(plain, digits, {})):
        with pytest.raises(ValueError, match="CNN, a plain module: freeze it first, FrozenClassifier"): score()


@pytest.mark.parametrize("settings, says", [
    (dict(epochs=0), "must be at least 1"), (dict(batch_size=0), "must be at least 1"),
    (dict(inverted=-1), "inverted is -1"), (dict(families=[]), "families is empty and inverted is 0"),
])  # fmt: skip
def test_settings_of_garbage_that_cannot_be(digits, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says): train_with_garbage(digits, **dict(epochs=1, progress=False) | settings)


def test_training_finds_garbage_and_keeps_the_classes(digits, hardened) -> None:
    drawn = FAMILIES["strokes"](200, digits.test.images, torch.Generator().manual_seed(9))
    table = evaluate_ood(freeze(hardened), digits, {"noise": torch.rand(200, *digits.shape), "strokes": drawn})
    assert table.AUROC.min() > 0.95 and table["to garbage"].loc["noise"] > 0.9
    assert table.accuracy.iloc[0] > 0.85
    assert hardened.garbage.dtype == torch.uint8 and len(hardened.history) == 4 and not hardened.training


def test_opponents_are_of_eighteen_kinds() -> None:
    rng, kinds = torch.Generator().manual_seed(0), set()
    for _ in range(200): kinds.add(tuple(sorted(describe_generator(random_kind(rng)).items())))
    assert len(kinds) == 3 * 3 * 2 and {dict(kind)["canvas"] for kind in kinds} == {0.0, 5.0}


def test_only_the_paper_inverts_by_itself(digits, monkeypatch) -> None:
    from netinv import ood

    asked = []
    def found(classifier, n, rng, **kind): return asked.append(n) or torch.zeros(n, *digits.shape, dtype=torch.uint8)
    monkeypatch.setattr(ood, "inverted_garbage", found)
    for settings in ({}, {"recipe": "paper"}, {"inverted": 7}, {"families": [], "inverted": 5}):
        table = train_with_garbage(digits, epochs=2, **settings, **QUIET).history
        asked.append(int(table.inverted.iloc[-1]))
    assert asked == [0, 1_000, 1_000, 7, 7, 5, 5]


def test_training_repeats_itself(digits) -> None:
    one, other = (train_with_garbage(digits, epochs=1, inverted=0, seed=5, amp="off", **QUIET) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_a_trained_classifier_can_be_taught_garbage(digits, plain) -> None:
    before = {name: t.clone() for name, t in plain.state_dict().items()}
    tuned = train_with_garbage(digits, model=plain, epochs=2, inverted=0, lr=1e-3, **QUIET)
    assert all(torch.equal(t, before[name]) for name, t in plain.state_dict().items())
    table = evaluate_ood(freeze(tuned), digits, {"noise": torch.rand(100, *digits.shape)})
    assert table.accuracy.iloc[0] > accuracy(freeze(plain), digits.test) - 0.05


def test_a_killed_training_goes_on_to_the_same_end(digits, tmp_path, monkeypatch) -> None:
    from netinv import ood

    settings = {"epochs": 3, "inverted": 40, "seed": 2, "amp": "off", **QUIET}
    whole = train_with_garbage(digits, **settings)
    real, calls = ood.inverted_garbage, []

    def killed(*given, **named):
        calls.append(given)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(ood, "inverted_garbage", killed)
    with pytest.raises(KeyboardInterrupt): train_with_garbage(digits, checkpoint_dir=tmp_path, **settings)
    monkeypatch.undo()
    resumed = train_with_garbage(digits, checkpoint_dir=tmp_path, resume=True, **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert whole.history.loss.tolist() == resumed.history.loss.tolist()
    assert torch.equal(whole.garbage, resumed.garbage)
    finished = train_with_garbage(digits, checkpoint_dir=tmp_path, resume=True, **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), finished.state_dict().values()))
    assert whole.history.loss.tolist() == finished.history.loss.tolist() and len(finished.garbage) == len(whole.garbage)
    with pytest.raises(ValueError, match="was written with"):
        train_with_garbage(digits, checkpoint_dir=tmp_path, resume=True, **settings | {"seed": 3})
    with pytest.raises(ValueError, match="needs checkpoint_dir"): train_with_garbage(digits, resume=True, **settings)


def test_recipe_must_be_known(digits) -> None:
    with pytest.raises(ValueError, match="'papper' is unknown: expected one of diverse, paper"):
        train_with_garbage(digits, recipe="papper", **QUIET)


def test_scores_leave_the_garbage_class_out(digits, hardened) -> None:
    frozen, images = freeze(hardened), digits.test.images
    log_probs = log_probabilities(frozen, images)
    torch.testing.assert_close(ood_score(frozen, images).sigmoid(), log_probs[:, :10].amax(1).exp())
    not_garbage = ood_score(frozen, images, kind="not garbage")
    torch.testing.assert_close(not_garbage.sigmoid(), 1 - log_probs[:, 10].exp())
    with pytest.raises(ValueError, match="expected 'confidence' or 'not garbage'"):
        in_distribution(log_probs, 10, "entropy")
    with pytest.raises(ValueError, match="needs a garbage class"):
        in_distribution(log_probs[:, :10], 10, "not garbage")


def test_scores_survive_saving_and_loading_the_weights(digits, hardened) -> None:
    again = CNN(digits.shape, 11).eval()
    again.load_state_dict(hardened.state_dict())  # a model that has forgotten that its last class is garbage
    scores = ood_score(freeze(again), digits.test.images, n_classes=10)
    torch.testing.assert_close(scores, ood_score(freeze(hardened), digits.test.images))


def test_scores_rank_where_probabilities_tie_in_float32() -> None:
    log_probs = torch.tensor([[30.0, 0.0, 0.0], [35.0, 0.0, 0.0]], dtype=torch.float64).log_softmax(1)
    sure, surer = in_distribution(log_probs, 2)
    assert surer > sure


scores = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=60)


@given(scores, scores)
def test_separation_against_the_roc_curve(inside: list[float], outside: list[float]) -> None:
    found = separation(torch.tensor(inside), torch.tensor(outside))
    fpr, tpr, _ = roc_curve([1] * len(inside) + [0] * len(outside), np.float64(inside + outside))
    assert found["AUROC"] == pytest.approx(np.trapezoid(tpr, fpr) if hasattr(np, "trapezoid") else np.trapz(tpr, fpr))
    assert found["FPR100"] == pytest.approx(fpr[tpr == 1].min())
    assert 0 <= found["FPR95"] <= found["FPR100"] <= 1
    assert 0 <= threshold_area(torch.tensor(inside), torch.tensor(outside)) <= 1


def test_margins_say_whether_the_claim_holds() -> None:
    assert margins(torch.tensor([0.9, 0.8]), torch.tensor([0.3, 0.5]))["margin"] == pytest.approx(0.3)
    assert margins(torch.tensor([0.9, 0.2]), torch.tensor([0.5]))["margin"] == pytest.approx(-0.3)
    assert margins(torch.tensor([0.9]), torch.tensor([])) == {"margin": 1.0, "margin 1%": 1.0}


def test_baselines_know_noise_from_digits(digits, plain) -> None:
    noise = torch.randint(0, 256, (100, *digits.shape), dtype=torch.uint8)
    found = baseline_scores(freeze(plain), digits, {"in": digits.test.images, "out": noise})
    assert set(found) == {"max softmax", "energy", "ODIN", "Mahalanobis", "KNN", "ViM"}
    for by_set in found.values():
        assert by_set["in"].shape == (len(digits.test),) and by_set["in"].isfinite().all()
    assert separation(found["KNN"]["in"], found["KNN"]["out"])["AUROC"] > 0.8


def test_one_detector_needs_a_linear_head(digits) -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten())
    with pytest.warns(UserWarning, match="Sequential has no nn.Linear that gives its logits, which ViM reads"):
        assert "ViM" not in baseline_scores(freeze(model), digits, {"in": digits.test.images})


def test_scores_of_other_toolboxes() -> None:
    good = torch.rand(20)
    as_given = separation(good, good - 0.1)
    for kind in (np.asarray, list, lambda x: x.double()[:, None], lambda x: x.tolist()):
        assert separation(kind(good), kind(good - 0.1)) == pytest.approx(as_given)
    assert separation(torch.tensor([3, 4]), np.array([1, 2]))["AUROC"] == 1
    assert 0 <= separation(good.half(), good.half())["FPR95"] <= 1
    for bad, says in (([1.0, np.nan, np.inf], "has 2 scores of 3 that are NaN or infinite"), ([], "has 0 scores"),
                      ("abc", "a str is no table"), (torch.rand(2, 2), r"is \[2, 2\]: expected one score for each")):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match=says): separation(*pair)
    with pytest.raises(ValueError, match="is from -1 to 3: expected probabilities"): threshold_area([-1.0, 3.0], good)


def test_more_scores_than_torch_has_quantiles_for() -> None:
    outside = torch.zeros(2**24 + 8, dtype=torch.uint8)
    assert margins(outside, torch.ones(3))["margin 1%"] == -1


def test_sets_of_images_that_cannot_be_evaluated(digits) -> None:
    frozen, images = freeze(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), torch.rand(9, 1, 28, 28)
    frozen.preprocess = lambda x: torch.where(x.amin((1, 2, 3), keepdim=True) > 0.6, torch.nan, x)
    bright = torch.cat([images[:6] / 2, 0.7 + images[:3] / 9])
    with pytest.raises(ValueError, match="answers NaN to 3 of 9 images of 'a': check its weights"):
        evaluate_ood(frozen, digits, {"a": bright})
    for sets, says in (({"a": images[:0]}, "images of 'a' are none"), (images, "came as a Tensor: give a dict"),
                       ({"a": images[:, :, 1:]}, r"images of 'a' are \[9, 1, 27, 28\]: expected \[n, 1, 28, 28\]"),
                       ({"a": images - 1}, "undo their normalisation"), ({"a": 255 * images}, "divide them by 255"),
                       ({"a": images / 0}, "9 of 9 images of 'a' hold NaN"), ({"a": "noise"}, "a str is no table")):
        with pytest.raises(ValueError, match=says): evaluate_ood(frozen, digits, sets)
    with pytest.raises(ValueError, match="data is a Split: give load_data"): evaluate_ood(frozen, digits.test, {})
    with pytest.raises(ValueError, match="has 4 classes, and the data 10"):
        evaluate_ood(freeze(nn.Sequential(nn.Flatten(), nn.Linear(784, 4))), digits, {})


def test_images_of_any_kind_have_the_same_scores(digits, plain) -> None:
    frozen, images = freeze(plain), digits.test.images[:9]
    expected = ood_score(frozen, images)
    kinds = [images.numpy(), images.float() / 255, (images.double() / 255).numpy(), images[:, 0], images.int().byte(),
             list(images), images.permute(0, 2, 3, 1).numpy()[::-1][::-1], np.asfortranarray(images.numpy())]
    for kind in kinds: torch.testing.assert_close(ood_score(frozen, kind), expected)
    torch.testing.assert_close(ood_score(frozen, images[0]), expected[:1], atol=1e-4, rtol=1e-4)
    assert ood_score(frozen, images.half() / 255).shape == (9,)
    table = evaluate_ood(frozen, digits, {"a": images, "b": digits.test, "c": kinds[0]})
    assert table.loc["a"].equals(table.loc["c"])
