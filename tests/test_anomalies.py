"Strange images: scores against closed forms, what is strange is told apart, and what happens to odd input."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from test_sae import QUIET, linear, planted, sae, seen  # noqa: F401

from netinv.anomalies import AnomalyDetector, ClassicalScores, anomaly_table
from netinv.frozen import FrozenClassifier
from netinv.metrics import Samples
from netinv.sae import SparseAutoencoder


def test_classical_scores_against_closed_forms(linear: FrozenClassifier):
    x = planted(300)[0]
    known, other = seen(linear, x), planted(40, draw=1)[0]
    scores = ClassicalScores(known, n_components=5, n_neighbours=3)
    found = scores(other)
    pca = PCA(5).fit(x.double().numpy())
    left = other.double().numpy() - pca.inverse_transform(pca.transform(other.double().numpy()))
    whole = other.double().numpy() - x.double().numpy().mean(0)
    assert found.components.values == pytest.approx(np.log((left**2).sum(1) / (whole**2).sum(1)))
    unit = [torch.nn.functional.normalize(part.double()) for part in (other, x)]
    assert found.neighbours.values == pytest.approx(torch.cdist(*unit).sort(1).values[:, 2].numpy(), abs=1e-6)
    precision = torch.from_numpy(scores.spread.precision_)
    means = [x[known.labels == k].double().mean(0) for k in known.labels.unique()]
    distances = torch.stack([((other - m) @ precision * (other - m)).sum(1) for m in means]).amin(0).sqrt()
    assert found.Mahalanobis.values == pytest.approx(distances.numpy())


def test_few_images_and_few_features_do_no_harm(linear: FrozenClassifier):
    known = seen(linear, planted(5)[0])
    assert np.isfinite(ClassicalScores(known)(planted(9, draw=1)[0]).values).all()
    constant = replace(known, features=torch.cat([known.features[:, :8], torch.ones(5, 8)], 1))
    assert np.isfinite(ClassicalScores(constant)(constant.features).values).all()


def test_strange_features_are_told_apart(sae: SparseAutoencoder, linear: FrozenClassifier):
    known, normal = seen(linear, planted(4000)[0][:3000]), seen(linear, planted(4000)[0][3000:])
    noise = seen(linear, torch.randn(1000, 16, generator=torch.Generator().manual_seed(5)))
    more = seen(linear, planted(4500)[0][4000:])
    table = anomaly_table(AnomalyDetector(sae, known), normal, {"noise": noise, "normal": more})
    assert table.loc["noise", ["error", "both", "neighbours"]].min() > 0.95
    assert (table.loc["normal"] - 0.5).abs().max() < 0.07
    assert list(table) == ["error", "pattern", "both", "doubt", "components", "Mahalanobis", "neighbours"]


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


def test_one_image_and_images_that_are_alike_have_scores(sae: SparseAutoencoder, linear: FrozenClassifier):
    known = seen(linear, planted(400)[0])
    detector = AnomalyDetector(sae, known)
    alone, alike = detector(known[:1]), detector(known[[0, 0, 0]])
    assert len(alone) == 1 and np.isfinite(alone.values).all()
    assert alike.values == pytest.approx(np.repeat(alone.values, 3, 0), abs=1e-5)
