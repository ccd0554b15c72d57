"Every application takes what inversion takes: probabilities, one logit, dictionaries, heads that are no layers."
from types import SimpleNamespace

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netinv.anomalies import AnomalyDetector, anomaly_table
from netinv.clusters import cluster_table
from netinv.data import ImageData
from netinv.frozen import FrozenClassifier
from netinv.heads import with_garbage_class
from netinv.interpretability import describe_images, means_plane, pca_plane, plot_plane, tsne_points
from netinv.leaks import reconstruction_report
from netinv.metrics import inversion_report
from netinv.ood import baseline_scores, evaluate_ood, ood_score, train_with_garbage
from netinv.reconstruction import reconstruct
from netinv.sae import compare_latents, latent_table, sae_report, train_sae
from netinv.samples import Samples, accuracy, look
from netinv.splits import Split

matplotlib.use("agg")
SHAPE = (3, 9, 12)


class Odd(nn.Module):
    "A small network that answers in one of many ways."
    def __init__(self, kind: str, shape: tuple[int, int, int], n: int):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(shape[0], 6, 3, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.Flatten(),
                                  nn.Linear(6 * (-(-shape[1] // 2)) * (-(-shape[2] // 2)), 16), nn.LeakyReLU(0.1))
        self.head = nn.Conv2d(16, n, 1) if kind == "map" else nn.Linear(16, n)
        if kind == "product": self.weight, self.head = nn.Parameter(torch.randn(16, n) / 4), None

    def forward(self, images: Tensor):
        x = self.body(images)
        if self.kind == "product": return x @ self.weight
        if self.kind == "map": return self.head(x[..., None, None])
        if self.kind == "cosine": return 5 * F.linear(F.normalize(x, dim=1), F.normalize(self.head.weight))
        out = self.head(x)
        answers = {"softmax": out.softmax, "log softmax": out.log_softmax}
        if self.kind in answers: return answers[self.kind](1)
        if self.kind in ("sigmoids", "probability"): return out.sigmoid()
        if self.kind == "squeezed": return out.squeeze(1)
        if self.kind == "dict": return {"logits": out, "hidden": x}
        if self.kind == "tuple": return out, x
        if self.kind == "object": return SimpleNamespace(logits=out, hidden_states=None)
        return out


def data_of(shape: tuple[int, int, int], n: int, each: int = 24) -> ImageData:
    "Noise around a picture for each class."
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(n).repeat(max(each, 100 // n) if n < 20 else 4)
    kinds = torch.rand(n, *shape, generator=rng)
    images = (0.7 * kinds[labels] + 0.3 * torch.rand(len(labels), *shape, generator=rng)) * 255
    split = Split(images.round().byte(), labels)
    return ImageData(split, split, split, [f"kind {k}" for k in range(n)], shape, "noise")


KINDS = {  # the model, what else is said when it is frozen, and the classes
    "plain": (Odd("plain", SHAPE, 3), {}, 3), "softmax": (nn.Sequential(Odd("plain", SHAPE, 3), nn.Softmax(1)), {}, 3),
    "softmax inside": (Odd("softmax", SHAPE, 3), {}, 3), "log softmax": (Odd("log softmax", SHAPE, 3), {}, 3),
    "sigmoids": (Odd("sigmoids", SHAPE, 3), {}, 3), "one logit": (Odd("plain", SHAPE, 1), {}, 2),
    "squeezed": (Odd("squeezed", SHAPE, 1), {}, 2), "probability": (Odd("probability", SHAPE, 1), {}, 2),
    "dict": (Odd("dict", SHAPE, 3), {}, 3), "tuple": (Odd("tuple", SHAPE, 3), {}, 3),
    "object": (Odd("object", SHAPE, 3), {}, 3), "product": (Odd("product", SHAPE, 3), {}, 3),
    "map": (Odd("map", SHAPE, 3), {}, 3), "cosine": (Odd("cosine", SHAPE, 3), {}, 3),
    "pair": (Odd("plain", SHAPE, 3), {"preprocess": ((0.4, 0.5, 0.6), 0.25)}, 3),
    "pixels": (Odd("plain", SHAPE, 3), {"preprocess": (120.0, 60.0), "pixels": "0..255"}, 3),
    "five channels": (Odd("plain", (5, 8, 8), 4), {}, 4), "many classes": (Odd("plain", SHAPE, 100), {}, 100),
    "two classes": (Odd("plain", SHAPE, 2), {"classes": ["good", "bad"]}, 2),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def given(request) -> SimpleNamespace:
    "A classifier of some kind, in eval mode, frozen, and images for it."
    model, said, n = KINDS[request.param]
    shape = (5, 8, 8) if request.param == "five channels" else SHAPE
    frozen = FrozenClassifier(model.eval(), shape=shape, device="cpu", **said)
    assert frozen.n_classes == n
    return SimpleNamespace(name=request.param, model=model, frozen=frozen, data=data_of(shape, n), n=n, shape=shape)


pytestmark = pytest.mark.filterwarnings("ignore:the classifier returns", "ignore:.*ViM is left out")


def test_a_garbage_class_for_any_classifier(given) -> None:
    images = torch.rand(6, *given.shape)
    with torch.no_grad():
        before = given.frozen(images).logits.log_softmax(1)
        plain = given.name not in ("pair", "pixels")  # the module alone does not know its preparation
        for model in [given.frozen] + [given.model] * plain:
            grown = with_garbage_class(model, given.shape, given.n).eval()
            after = grown(images)
            after = FrozenClassifier(grown, shape=given.shape, device="cpu")(images).logits
            assert after.shape == (6, given.n + 1)
            torch.testing.assert_close(after[:, :-1].log_softmax(1), before, atol=1e-3, rtol=1e-3)
            assert all(p.requires_grad for p in grown.parameters() if p.is_floating_point())
    assert not any(p.requires_grad for p in given.frozen.model.parameters())


def test_hardening_and_scores(given) -> None:
    model = given.frozen if given.name in ("pair", "pixels", "dict", "squeezed", "softmax") else given.model
    before = {name: t.clone() for name, t in given.model.state_dict().items()}
    hard = train_with_garbage(given.data, model=model, epochs=4, inverted=0, batch_size=32, progress=False, device="cpu")
    assert all(torch.equal(t, before[name]) for name, t in given.model.state_dict().items())
    assert hard.history.loss.iloc[-1] < hard.history.loss.iloc[0]
    hard = FrozenClassifier(hard, shape=given.shape, device="cpu")
    assert hard.n_classes == given.n + 1 and hard.feature_dim > 1
    sets = {"noise": torch.rand(20, *given.shape), "arrays": torch.rand(8, *given.shape).numpy()}
    for classifier in (given.frozen, hard):
        table = evaluate_ood(classifier, given.data, sets)
        assert table.drop(columns="to garbage").notna().all().all()
        assert ood_score(classifier, sets["noise"], n_classes=given.n).isfinite().all()


def test_detectors_of_others(given) -> None:
    sets = {"in": given.data.test.images[:10], "out": torch.rand(5, *given.shape)}
    found = baseline_scores(given.frozen, given.data, sets)
    linear = given.name not in ("product", "map", "cosine")
    assert ("ViM" in found) == linear and all(s["out"].isfinite().all() for s in found.values())


def test_features_planes_and_autoencoders(given) -> None:
    seen = look(given.frozen, given.data.test.images, given.data.test.labels)
    assert len(seen) == len(given.data.test) and 0 <= accuracy(given.frozen, given.data.test) <= 1
    for plane in (pca_plane(seen.features), means_plane(seen.features, seen.labels)):
        plot_plane(given.frozen, plane, {"real": seen}, resolution=20, n=30)
    matplotlib.pyplot.close("all")
    assert tsne_points(seen.features[:40], perplexity=5)[0].shape == (40, 2)
    assert len(describe_images({"real": seen}, given.frozen.classes)) == len(seen)
    sae = train_sae(seen.features, n_latents=12, k=3, steps=20, batch_size=32, progress=False)
    assert sae_report(sae, given.frozen, seen).drop("loss recovered").notna().all()
    assert len(latent_table(sae, seen)) == 12 and len(compare_latents(sae, seen, seen)) == given.n
    table = anomaly_table(AnomalyDetector(sae, seen), seen, {"noise": look(given.frozen, torch.rand(9, *given.shape), [0] * 9)})
    assert table.notna().all().all()


def test_reconstructions_and_reports(given) -> None:
    settings = {"conditioning": "vector"} if given.n == 100 else {}  # a matrix of 10 x 10 is larger than the images
    drawn = reconstruct(given.frozen, n=2 * given.n + 10, steps=2, candidates=1, progress=False, batch_size=8, **settings)
    assert isinstance(drawn, Samples) and drawn.images.shape[1:] == given.shape
    real = look(given.frozen, given.data.test.images, given.data.test.labels)
    assert inversion_report(drawn, real, n_per_class=8).loc[("accuracy", "all")].notna().all()
    cluster_table({"drawn": drawn})
    report = reconstruction_report(drawn, given.data.train, given.data.test, judge=given.frozen, n=12)
    assert report.loc["accuracy under the judge"].notna().all()


def test_inverted_garbage_of_a_wrapped_classifier() -> None:
    data = data_of(SHAPE, 2)
    frozen = FrozenClassifier(Odd("probability", SHAPE, 1), shape=SHAPE, preprocess=(0.5, 0.25), device="cpu")
    hard = train_with_garbage(data, model=frozen, epochs=2, inverted=9, batch_size=32, progress=False, device="cpu")
    assert hard.history["inverted"].tolist() == [9, 9] and hard(torch.rand(2, *SHAPE)).shape == (2, 3)


@pytest.mark.parametrize("make, says", [
    (lambda data, model: train_with_garbage(data.train, model=model), r"data is a Split: give load_data"),
    (lambda data, model: train_with_garbage(data, model="resnet"), r"model is a str: give an nn.Module or a Frozen"),
    (lambda data, model: train_with_garbage(data, model=Odd("plain", SHAPE, 7)), r"7 logits for 3 classes: give a model"),
    (lambda data, model: train_with_garbage(data, model=FrozenClassifier(Odd("plain", (3, 8, 8), 3), shape=(3, 8, 8))),
     r"takes images \[3, 8, 8\], the data has \[3, 9, 12\]"),
])  # fmt: skip
def test_what_cannot_be_hardened(make, says: str) -> None:
    with pytest.raises(ValueError, match=says): make(data_of(SHAPE, 3), Odd("plain", SHAPE, 3))


def test_frozen_weights_stay_frozen_in_a_hardening() -> None:
    "Whoever trains a head alone finds the body unchanged."
    model = Odd("cosine", SHAPE, 3)
    for p in model.body.parameters(): p.requires_grad_(False)
    grown = with_garbage_class(model, SHAPE, 3)
    assert not any(p.requires_grad for p in grown.model.body.parameters()) and grown.model.head.weight.requires_grad
