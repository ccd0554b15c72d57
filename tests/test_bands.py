"""One cheap real run of what each experiment is about, on scikit-learn's digits, held against what it usually gives.

An experiment is run by the tests in its profile `smoke` alone, whose numbers mean nothing. Here they do: each band was
drawn around the numbers of three seeds, wide enough for another machine, and too narrow for a method that is broken."""
import pytest
import torch

from netinv.classifier import train_classifier
from netinv.data import ImageData, load_data
from netinv.frozen import FrozenClassifier
from netinv.garbage import FAMILIES
from netinv.inversion import Inverter
from netinv.metrics import diversity
from netinv.objective import Inversion
from netinv.ood import ood_score, separation, train_with_garbage
from netinv.reconstruction import reconstruct
from netinv.samples import Samples, accuracy, class_accuracy, look

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", device="cpu")


def trained(data: ImageData, seed: int) -> FrozenClassifier:
    return FrozenClassifier(train_classifier(data, epochs=6, seed=seed, **QUIET), shape=data.shape, device="cpu")


@pytest.fixture(scope="module")
def classifier(digits: ImageData) -> FrozenClassifier:
    return trained(digits, seed=0)


@pytest.fixture(scope="module")
def judge(digits: ImageData) -> FrozenClassifier:
    "Another classifier of the same digits, against which nothing is trained."
    return trained(digits, seed=100)


def read_by(judge: FrozenClassifier, samples: Samples) -> float:
    return look(judge, samples.images, samples.labels).hits.float().mean().item()


def in_pixels(samples: Samples, per_class: int) -> float:
    "How many different images a class's images are worth, a mean over the classes."
    return diversity(samples, n_per_class=per_class).drop("all").vendi_pixels.mean()


def test_classifiers_learn_their_digits(digits, classifier, judge) -> None:
    "classifiers, training: .983 to 1 of the test images."
    for one in (classifier, judge): assert accuracy(one, digits.test) > 0.975


def test_inversion_meets_every_class_with_different_images(classifier, judge) -> None:
    "fig2_inversion, defaults, which_conditioning, world: all images hit; worth 1.6 in pixels, and 1.3 without the term."
    def drawn(**weights) -> Samples:
        inverter = Inverter(classifier, seed=10, amp="off", objective=Inversion(**weights))
        inverter.fit(60, progress=False)
        return inverter.sample(400, seed=0)

    usual, copies = drawn(), drawn(gamma_class=0)
    assert usual.hits.float().mean() > 0.98 and class_accuracy(usual.hits, usual.labels, 10).min() > 0.94
    assert 1.4 < in_pixels(usual, 40) < 3 and in_pixels(usual, 40) > 1.1 * in_pixels(copies, 40)
    assert read_by(judge, usual) > 0.9


def test_a_garbage_class_tells_noise_from_digits(digits, classifier) -> None:
    "ood_table: AUROC .997 to .999 by confidence, without the class .86 to .91; 1 by 1 - P; .97 of the test images."
    noise = (255 * FAMILIES["noise"](300, digits.train.images, torch.Generator().manual_seed(1))).byte()
    network = train_with_garbage(digits, epochs=4, inverted=60, seed=0, **QUIET)
    hardened = FrozenClassifier(network, shape=digits.shape, device="cpu")

    def auroc(one: FrozenClassifier, kind: str = "confidence") -> float:
        return separation(*(ood_score(one, of, kind=kind, n_classes=10) for of in (digits.test.images, noise)))["AUROC"]

    assert auroc(hardened) > 0.985 and auroc(hardened, "not garbage") > 0.995
    assert 0.75 < auroc(classifier) < 0.97 and accuracy(hardened, digits.test) > 0.95


def test_reconstructions_are_read_by_another_classifier(classifier, judge) -> None:
    "fig5_reconstruction, reconstruction_ablation: all are read; worth 1.4 in pixels."
    found = reconstruct(classifier, n=100, steps=30, seed=0, progress=False, amp="off")
    assert found.hits.float().mean() > 0.97 and read_by(judge, found) > 0.9
    assert 1.2 < in_pixels(found, 10) < 2.5
