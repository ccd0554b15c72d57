"Planes against closed forms, decisions against the classifier, and the dots in a browser."
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browser import noting
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netinv.frozen import FrozenClassifier
from netinv.interpretability import (
    HoverScatter, Plane, decision_map, describe_images, faithfulness, means_plane, pca_plane, plot_plane, tsne_points,
)
from netinv.samples import Samples


@pytest.fixture(scope="module")
def linear() -> FrozenClassifier:
    "Three classes, whose features are six pixels and whose head is linear."
    torch.manual_seed(0)
    return FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), shape=(1, 2, 3), device="cpu")


def groups(n: int = 90, dim: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % classes
    return torch.randn(n, dim, generator=rng) + 4 * torch.eye(dim)[labels], labels


def test_principal_components_are_those_of_the_covariance():
    x, _ = groups()
    plane, values = pca_plane(x), torch.linalg.eigvalsh(x.double().mT.cov())
    assert plane.explained(x) == pytest.approx((values[-2:].sum() / values.sum()).item(), abs=1e-9)


@given(st.integers(2, 5), st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_a_plane_of_means_goes_back_and_forth(classes: int, seed: int):
    torch.manual_seed(seed)
    labels = torch.arange(60) % classes
    x = torch.randn(60, 7) + 3 * torch.randn(classes, 7)[labels]
    plane, points = means_plane(x, labels), torch.randn(9, 2)
    assert torch.allclose(plane.project(plane.lift(points)), points.double(), atol=1e-6)
    assert 0 < plane.explained(x) <= 1 + 1e-9
    if classes <= 3:
        means = torch.stack([x[labels == k].double().mean(0) for k in range(classes)])
        assert torch.allclose(plane.lift(plane.project(means)), means, atol=1e-5)


def test_discriminants_see_what_components_overlook():
    "Classes that differ along a direction of small variance."
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 5, generator=rng) * torch.tensor([30.0, 20, 10, 1, 1])
    x[:, 3:] += 8 * torch.tensor([[0.0, 0], [1, 0], [0, 1]])[labels]
    def apart(p):
        groups = [p[labels == k] for k in range(3)]
        return torch.pdist(torch.stack([g.mean(0) for g in groups])).min() / max(g.std(0).max() for g in groups)
    assert apart(means_plane(x, labels).project(x)) > 4 > 1 > apart(pca_plane(x).project(x))


def test_the_map_is_what_the_head_says(linear: FrozenClassifier):
    x, _ = groups()
    plane = pca_plane(x)
    found = decision_map(linear, plane, x, resolution=17)
    left, right, bottom, top = found.extent
    corners = torch.tensor([[left, bottom], [right, top], [right, bottom], [left, top]])
    logits, at = linear.head(plane.lift(corners).float()), ([0, -1, 0, -1], [0, -1, -1, 0])  # rows go up, columns right
    assert found.labels[at].tolist() == logits.argmax(1).tolist()
    assert torch.allclose(found.confidence[at], logits.softmax(1).amax(1), atol=1e-5)
    points = plane.project(x)
    assert left < points[:, 0].min() and points[:, 0].max() < right
    assert bottom < points[:, 1].min() and points[:, 1].max() < top


def test_faithfulness_counts_images_on_another_colour(linear: FrozenClassifier):
    x, _ = groups()
    axes = torch.eye(6, dtype=torch.float64)[:2]
    plane = Plane("pixels", x.double().mean(0), axes, axes)
    flat = plane.lift(plane.project(x)).float()
    same = (linear.head(x).argmax(1) == linear.head(flat).argmax(1)).double().mean().item()
    assert faithfulness(linear, plane, x) == pytest.approx(same)
    assert faithfulness(linear, plane, flat) == 1


def test_a_plane_is_drawn_with_its_faithfulness(linear: FrozenClassifier):
    x, labels = groups()
    seen = Samples(torch.rand(90, 1, 2, 3), labels, linear.head(x).softmax(1), x)
    ax = plot_plane(linear, pca_plane(x), {"real": seen, "other": seen.of([0, 1])}, resolution=20)
    assert [text.get_text() for text in ax.get_legend().get_texts()][-2:] == ["real", "other"]
    says = r"\d+% of the variance;\nthe colour below is the answer for \d+% of real, \d+% of other"
    assert re.search(says, ax.get_title())


@pytest.mark.parametrize(("features", "says"), [
    (torch.randn(2, 4), "2 samples are too few: give at least 3"),
    (torch.ones(9, 4), "all rows of features are the same"),
    (torch.randn(9, 1), "features of 1 numbers are too short: give at least 2"),
    (torch.tensor([[1.0, torch.nan]] * 3 + [[0.0, 1.0]] * 3), "3 of 6 rows of features hold NaN or infinity"),
    (torch.randn(4, 2, 2), "expected one row for each image"),
])
def test_bad_features_get_a_sentence(features: Tensor, says: str):
    with pytest.raises(ValueError, match=re.escape(says)):
        pca_plane(features)


def test_bad_classes_get_a_sentence():
    x, labels = groups()
    with pytest.raises(ValueError, match="do not vary within the classes"):
        means_plane(torch.eye(6)[labels], labels)
    with pytest.raises(ValueError, match=r"two classes or more, got \[1\]: use pca_plane"):
        means_plane(x, labels, [1])
    with pytest.raises(ValueError, match=r"classes \[9\] have no samples: choose among \[0, 1, 2\]"):
        means_plane(x, labels, [0, 9])
    with pytest.raises(ValueError, match=r"two classes or more, got \[0\]"):
        means_plane(x, torch.zeros_like(labels))


def test_neighbours_stay_neighbours():
    x, labels = groups(90)
    points, trust = tsne_points(x, perplexity=10)
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert (labels[nearest] == labels).double().mean() > 0.9 and trust > 0.8
    assert torch.equal(points, tsne_points(x, perplexity=10)[0])
    with pytest.raises(ValueError, match="less than the 90 samples"):
        tsne_points(x, perplexity=90)


def dots() -> HoverScatter:
    "Four dots at the corners, each with an image of one shade."
    points = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    images = torch.linspace(0, 1, 4).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    labels, sets = ["zero", "one", "two", "<b>three</b>"], ["real", "real", "inverted", "inverted"]
    about = pd.DataFrame({"label": labels, "set": sets})
    return HoverScatter(points, images, about, colour="label", shape="set", title="four & more")


def test_a_page_needs_nothing_from_outside_and_runs_nothing_it_is_given(tmp_path: Path):
    dots().save(tmp_path / "dots.html")
    page = (tmp_path / "dots.html").read_text()
    assert "<b>three" not in page and not re.search(r"(?:src|href)=.http", page)
    data = json.loads(re.search(r"const D = (.*);", page)[1])
    assert data["texts"][3] == ["<b>three</b>", "inverted"] and data["kinds"] == ["real", "inverted"]
    assert 'srcdoc="&lt;!doctype html&gt;' in dots()._repr_html_() and 'title="four &amp; more"' in dots()._repr_html_()


def test_dots_that_cannot_be_placed_get_a_sentence():
    about, images = pd.DataFrame({"label": ["a", "b"]}), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="points hold NaN"):
        HoverScatter(torch.tensor([[0.0, torch.nan], [1, 1]]), images, about, colour="label")
    with pytest.raises(ValueError, match="classes lack b"):
        HoverScatter(torch.rand(2, 2), images, about, colour="label", classes=["a"])
    wide = torch.zeros(2, 1, 1, 200)
    assert HoverScatter(torch.rand(2, 2), wide, about, colour="label", classes=["b", "a"]).data["group"] == [1, 0]


def test_more_forms_than_can_be_told_apart_get_a_sentence():
    about = pd.DataFrame({"label": list("aaaaa"), "set": list("vwxyz")})
    with pytest.raises(ValueError, match="column 'set' has 5 values: four forms at most"):
        HoverScatter(torch.rand(5, 2), torch.zeros(5, 1, 8, 8), about, colour="label", shape="set")


def test_what_is_not_finite_is_never_drawn(linear: FrozenClassifier):
    x, _ = groups()
    plane, bad = pca_plane(x), torch.cat([x, torch.full((1, 6), torch.nan)])
    for call in (lambda: decision_map(linear, plane, bad), lambda: faithfulness(linear, plane, bad)):
        with pytest.raises(ValueError, match="1 of 91 rows of features hold NaN"):
            call()
    with pytest.raises(ValueError, match="lie on one line"):
        pca_plane(torch.arange(9.0)[:, None] * torch.ones(4))


def test_samples_and_real_images_are_described_in_one_table():
    x, labels = groups(6)
    seen = Samples(torch.rand(6, 1, 2, 3), labels, torch.eye(3)[labels], x)
    made = Samples(torch.rand(6, 1, 2, 3), labels, torch.eye(3)[labels], x, torch.arange(6) // 3)
    table = describe_images({"real": seen, "inverted": made}, ["a", "b", "c"])
    assert table.columns.tolist() == ["set", "label", "answer", "confidence", "generator"]
    assert table.iloc[1].tolist() == ["real", "b", "b", "1.000", "-"]
    assert table.iloc[11].tolist() == ["inverted", "c", "c", "1.000", "1"]


def test_pointing_at_a_dot_shows_its_image(chromium, tmp_path: Path):
    "With the mouse and with the keyboard; a class can be hidden, and then it is not found."
    dots().save(tmp_path / "dots.html")
    with noting(chromium) as (page, errors, asked):
        page.set_viewport_size({"width": 800, "height": 500})
        page.goto((tmp_path / "dots.html").as_uri())
        box = page.locator("main > svg").bounding_box()
        page.mouse.move(box["x"] + 14, box["y"] + 14)  # top left
        assert page.locator("table td").all_inner_texts() == ["label", "two", "set", "inverted"]
        assert page.locator("#image").get_attribute("aria-label") == "image two, inverted"
        page.locator("main > svg").focus()
        page.keyboard.press("ArrowRight")
        assert "<b>three</b>" in page.locator("table").inner_text()
        page.get_by_role("button", name="two").click()
        page.locator("main > svg").focus()
        page.keyboard.press("ArrowLeft")
        assert "two" not in page.locator("table").inner_text()
        plot = page.locator("main > svg").bounding_box()
        (tmp_path / "plain.html").write_text(dots().page().replace('"title": "four & more"', '"title": ""'))
        page.goto((tmp_path / "plain.html").as_uri())
        assert page.locator("main > svg").bounding_box()["height"] > plot["height"]
        assert errors == [] and all(url.startswith(("file:", "data:")) for url in asked)


# What people bring


def test_planes_and_points_of_any_kind_of_numbers():
    x, labels = groups()
    plane, means = pca_plane(x), means_plane(x, labels)
    for kind in (np.asarray, lambda t: t.double(), lambda t: t.tolist()):
        assert torch.allclose(plane.project(kind(x)), plane.project(x)) and plane.explained(kind(x)) == plane.explained(x)
        assert torch.allclose(pca_plane(kind(x)).axes, plane.axes)
    for same in (labels[:, None], labels.numpy(), labels.tolist(), labels.float()):
        assert torch.allclose(means_plane(x.numpy(), same).axes, means.axes)
    assert tsne_points(x.numpy()[:30], perplexity=np.float32(5))[0].shape == (30, 2)


@pytest.mark.parametrize("call, says", [
    (lambda x, y, c: means_plane(x, y[:5]), "5 labels for 90 rows of features"),
    (lambda x, y, c: means_plane(x, y + 0.5), "labels must be whole numbers"),
    (lambda x, y, c: pca_plane(x).project(x[:, :4]), "the plane lies in a space of 6"),
    (lambda x, y, c: tsne_points(x[:7]), "7 samples are too few: give at least 8"),
    (lambda x, y, c: tsne_points(x[:20]), "perplexity is 30: expected at least 1 and less than the 20 samples"),
    (lambda x, y, c: tsne_points(x / 0), "90 of 90 rows of features hold NaN"),
    (lambda x, y, c: plot_plane(c, pca_plane(x), x), "sets is a Tensor: give samples by name"),
    (lambda x, y, c: describe_images([x]), "sets is a list: give samples by name"),
])  # fmt: skip
def test_what_cannot_be_shown(linear: FrozenClassifier, call, says: str):
    with pytest.raises(ValueError, match=says): call(*groups(), linear)
