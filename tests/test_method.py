"""The method from end to end: what the generator and the classifier are shown, what is weighed, and what is drawn.

tools/mutants.py breaks each of these in turn, and expects the test to fail."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netinv import ood
from netinv.classifier import train_classifier
from netinv.conditioning import CONDITIONINGS, Condition, make_conditioning
from netinv.data import load_data
from netinv.frozen import ClassifierOutput, FrozenClassifier
from netinv.generator import Generator
from netinv.inversion import Inverter
from netinv.objective import Inversion
from netinv.ood import GarbageBatches, garbage_loss, train_with_garbage
from netinv.reconstruction import Reconstruction

QUIET = {"progress": False}
SHAPE, N = (1, 12, 12), 4
SEEN = {"conditions": [], "images": [], "shown": []}  # what networks of these tests were given, latest last


class Drawn(nn.Module):
    "A generator that keeps what it is shown, and what it draws."
    def __init__(self, shape, conditioning):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64 + N, 144), nn.Sigmoid(), nn.Unflatten(1, shape))

    def forward(self, z, condition):
        images = self.layers(torch.cat([z, condition.vector], 1))
        SEEN["conditions"].append(condition)
        SEEN["images"].append(images)
        return images


class Watched(nn.Module):
    "A classifier that keeps the images it is shown."
    def __init__(self):
        super().__init__()
        self.norm, self.hidden, self.head = nn.BatchNorm2d(1), nn.Linear(144, 16), nn.Linear(16, N)

    def forward(self, images):
        SEEN["shown"].append(images)
        return self.head(F.leaky_relu(self.hidden(self.norm(images).flatten(1))))


def made(model: type, *args) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(*args)


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    model = made(Watched)
    model.norm.running_mean.fill_(0.4)
    return FrozenClassifier(model.train(), shape=SHAPE, device="cpu")


def inverter(classifier: FrozenClassifier, **settings) -> Inverter:
    usual = {"batch_size": 8, "amp": "off", "folded": False, "generator": Drawn}
    return Inverter(classifier, **usual | settings)


def latest(name: str): return SEEN[name][-1]


# What the generator is shown

def test_the_generator_is_shown_v_and_the_matrix_of_the_label(classifier: FrozenClassifier) -> None:
    trained = inverter(classifier, temperature=0.3)
    trained.fit(1, **QUIET)
    labels, target, v, matrix = latest("conditions")
    assert (v.argmax(1) == labels).all() and v.min() < -0.1  # normal numbers, not a distribution
    torch.testing.assert_close(target, (v / 0.3).softmax(1))
    assert set(matrix.unique().tolist()) == {0, 1}
    patterns = {label: matrix[labels == label] for label in labels.unique().tolist()}
    assert len(patterns) > 1 and all((of == of[0]).all() for of in patterns.values())  # one for each class
    assert len(torch.stack([of[0] for of in patterns.values()]).flatten(1).unique(dim=0)) == len(patterns)
    trained.fit(1, **QUIET)
    assert not torch.equal(latest("conditions").vector, v)  # drawn anew


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_all_that_the_generator_is_shown_is_heard(name: str) -> None:
    conditioning = make_conditioning(name, N, side=12)
    generator = made(Generator, SHAPE, conditioning)
    z, rng = generator.latent(1, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    condition = conditioning.sample(1, torch.tensor([2]), rng)
    masks = generator.masks(1, torch.Generator().manual_seed(2))
    generator.eval()
    draw = lambda z=z, **other: generator(z, condition._replace(**other), masks)
    apart = lambda images: (images - draw()).abs().max().item()
    assert apart(draw()) == 0 and apart(draw(z + 1)) > 1e-4
    if condition.vector is not None: assert apart(draw(vector=condition.vector.roll(1))) > 1e-4
    if condition.matrix is not None: assert apart(draw(matrix=1 - condition.matrix)) > 1e-4


def test_dropout_is_on_in_training(classifier: FrozenClassifier) -> None:
    drawn = []
    for share in (0.5, 0.0):
        one = inverter(classifier, generator=Generator.sized(width=16, dropout=0.5))
        one.generators[0].dropout = share
        drawn.append(one.draw()[0].detach())
    assert (drawn[0] - drawn[1]).abs().mean() > 1e-4


# What the classifier is shown

def test_half_of_the_images_are_shown_moved(classifier: FrozenClassifier) -> None:
    inverter(classifier).fit(1, **QUIET)
    images, shown = latest("images"), latest("shown")
    assert torch.equal(shown[:4], images[:4]) and (shown[4:] - images[4:]).abs().mean((1, 2, 3)).min() > 1e-3
    inverter(classifier, objective=Inversion.paper()).fit(1, **QUIET)
    assert torch.equal(latest("shown"), latest("images"))


def test_the_classifier_stays_frozen(classifier: FrozenClassifier) -> None:
    before, images = copy.deepcopy(classifier.model.state_dict()), torch.rand(6, *SHAPE)
    alone = torch.cat([classifier(image[None]).logits for image in images])
    torch.testing.assert_close(classifier(images).logits, alone)  # no image has a say in the answer to another
    inverter(classifier).fit(3, **QUIET)
    for name, t in classifier.model.state_dict().items(): assert torch.equal(t, before[name]), name


# What is weighed

def a_view() -> tuple[torch.Tensor, Condition, ClassifierOutput]:
    "Two generators' batches of six, in float64."
    rng = torch.Generator().manual_seed(3)
    normal = lambda *size: torch.randn(*size, generator=rng, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 0, 2, 1, 0], [2, 2, 3, 3, 2, 1]])
    condition = Condition(labels, normal(2, 6, N).softmax(-1), None, None)
    return normal(2, 6, 1, 3, 3).sigmoid(), condition, ClassifierOutput(3 * normal(2, 6, N), normal(2, 6, 5))


def mean_over_pairs(x: torch.Tensor, worth, wanted=lambda i, j: i != j) -> float:
    "The mean over generators of the mean of `worth(cosine, i == j)` over the pairs of rows that are wanted."
    found = []
    for k, rows in enumerate(x):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if wanted(*((k, i), (k, j)))]
        cosine = lambda i, j: F.cosine_similarity(rows[i[1]].flatten(), rows[j[1]].flatten(), dim=0).item()
        pairs = [((k, i), (k, j)) for i, j in pairs]
        found.append(sum(worth(cosine(i, j), i == j) for i, j in pairs) / len(pairs))
    return sum(found) / len(found)


def test_terms_are_what_the_paper_prints() -> None:
    images, condition, (logits, features) = a_view()
    objective = Inversion(unit=2.0)
    found = {name: t.item() for name, t in objective(images, condition, ClassifierOutput(logits, features)).items()}
    log_q, p, labels = (logits / 2).log_softmax(-1), condition.target_probs, condition.labels
    plain, squared = lambda c, same: c, lambda c, same: (c - same) ** 2
    everyone, others = (lambda i, j: True), (lambda i, j: i != j)
    of_one_class = lambda i, j: i != j and labels[i] == labels[j]
    centred = lambda x: x.flatten(2) - x.flatten(2).mean(-1, keepdim=True)
    assert found == pytest.approx({
        "alpha": (p * (p.log() - log_q)).sum(-1).mean().item(),
        "beta": -log_q.gather(-1, labels[..., None]).mean().item(),
        "gamma": mean_over_pairs(features, plain, others), "delta": mean_over_pairs(features, squared, everyone),
        "gamma_pix": mean_over_pairs(images, plain, others),
        "gamma_class": mean_over_pairs(centred(images), plain, of_one_class),
        "gamma_class_feat": mean_over_pairs(centred(features), plain, of_one_class)}, rel=1e-6)


def test_a_step_weighs_every_term_by_its_weight(classifier: FrozenClassifier) -> None:
    objective = Inversion(alpha=2.0, beta=3.0, gamma=0.0, delta=0.5, gamma_pix=7.0, gamma_class=0.0, gamma_class_feat=0)
    row = inverter(classifier, objective=objective).fit(1, **QUIET).iloc[0]
    assert row.total == pytest.approx(2 * row.alpha + 3 * row.beta + 0.5 * row.delta + 7 * row.gamma_pix, rel=1e-5)


def test_a_step_goes_downhill(classifier: FrozenClassifier) -> None:
    history = inverter(classifier, objective=Inversion(lag=0), batch_size=64).fit(30, **QUIET)
    for term in ("total", "alpha", "beta"): assert history[term][-5:].mean() < history[term][:5].mean(), term


def test_a_class_that_is_not_met_takes_little_part(classifier: FrozenClassifier) -> None:
    none, all_of = (inverter(classifier, objective=Inversion(hold=hold)).fit(1, **QUIET).iloc[0] for hold in (0.97, 0))
    assert none.beta == pytest.approx(all_of.beta, rel=1e-5)
    assert none.gamma == pytest.approx(0.02**2 * all_of.gamma, rel=1e-4)


def test_a_class_that_lags_is_asked_for_more_often(classifier: FrozenClassifier) -> None:
    one = inverter(classifier, batch_size=400, objective=Inversion(lag=4))
    one.met[:] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    counts = one.ask(0, torch.Generator().manual_seed(0)).bincount(minlength=N)
    assert counts[1] == pytest.approx(400 * 5 / 8, abs=40) and counts[0] == pytest.approx(400 / 8, abs=30)


# What is drawn

def test_samples_come_from_the_mean_of_the_weights(classifier: FrozenClassifier) -> None:
    one = inverter(classifier, averaging=0.75, lr=0.05)
    first, weight = [], lambda module: module.network.layers[0].weight.detach().clone()
    for _ in range(3):
        one.fit(1, **QUIET)
        first.append(weight(one.generators[0]))
    mean = 0.75 * (0.75 * first[0] + 0.25 * first[1]) + 0.25 * first[2]
    torch.testing.assert_close(weight(one.averaged.module[0]), mean)
    drawn = one.sample(8, seed=1).images
    with torch.no_grad():
        for p in one.generators.parameters(): p.zero_()
        assert torch.equal(one.sample(8, seed=1).images, drawn)
        for p in one.averaged.parameters(): p.zero_()
        assert (one.sample(8, seed=1).images == 0.5).all()


def test_batch_norm_is_at_rest_while_samples_are_drawn(classifier: FrozenClassifier) -> None:
    one = inverter(classifier, generator=Generator.sized(width=16, dropout=0.0))
    one.fit(4, **QUIET)
    before = copy.deepcopy(one.averaged.state_dict())
    one.sample(16, seed=1)
    for name, t in one.averaged.state_dict().items(): assert torch.equal(t, before[name]), name
    generator, conditioning = one.averaged.module[0], one.conditioning
    z, condition = generator.latent(6), conditioning.sample(6)
    alone = [generator(z[k : k + 1], Condition(*(part[k : k + 1] for part in condition))) for k in range(6)]
    torch.testing.assert_close(generator(z, condition), torch.cat(alone), rtol=1e-4, atol=1e-5)


# The garbage class

def test_garbage_has_a_class_and_a_weight_of_its_own() -> None:
    digits = load_data("digits", train_size=64, device="cpu")
    batches = GarbageBatches(digits, "paper", 16, None, torch.Generator().manual_seed(0))
    for images, labels in batches():
        assert (labels[:16] < 10).all() and (labels[16:] == 10).all() and len(images) == 32
    logits, labels = torch.randn(8, 11, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 4] + [10] * 4)
    log_q = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    expected = -log_q[:4].mean() - 0.3 * log_q[4:].mean()
    torch.testing.assert_close(garbage_loss(logits, labels, 0.3), expected)


def test_what_inversion_finds_joins_the_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def found(classifier, n, rng, **how):
        asked.append(classifier.n_classes)
        return torch.full((n, *classifier.shape), 200 + len(asked), dtype=torch.uint8)

    monkeypatch.setattr(ood, "inverted_garbage", found)
    digits = load_data("digits", train_size=64, device="cpu")
    hardened = train_with_garbage(digits, recipe="paper", epochs=3, inverted=5, batch_size=32, device="cpu", **QUIET)
    of = lambda value: int((hardened.garbage == value).flatten(1).all(1).sum())
    assert asked == [11, 11] and [of(201), of(202)] == [5, 5]
    assert hardened.history["inverted"].tolist() == [5, 10, 10]


def test_inversion_for_garbage_asks_for_real_classes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = [], Inverter.__init__

    def note(self, *args, **settings):
        asked.append(settings.get("classes"))
        ask(self, *args, **settings)

    monkeypatch.setattr(Inverter, "__init__", note)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 5))
    images = ood.inverted_garbage(FrozenClassifier(model, shape=SHAPE, device="cpu"), 6, torch.Generator(), steps=7)
    assert asked == [[0, 1, 2, 3]] and images.shape == (6, *SHAPE) and images.dtype == torch.uint8


# Reconstruction

def test_the_span_of_the_weights_draws_images_to_itself() -> None:
    digits = load_data("digits", train_size=100, device="cpu")
    model = train_classifier(digits, epochs=2, device="cpu", **QUIET)
    classifier = FrozenClassifier(model, shape=digits.shape, device="cpu")
    objective = Reconstruction.recipe(classifier, eta_span=40.0)
    history = Inverter(classifier, objective=objective, batch_size=16, amp="off").fit(12, **QUIET)
    assert history.eta_span.iloc[0] > 0 and history.eta_span[-3:].mean() < history.eta_span[:3].mean()
