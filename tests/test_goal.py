"When a run stops, what it says then, which classes it asks for, and what it takes from a first look."
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netinv.conditioning import PATTERNS, class_patterns, label_matrix, make_conditioning
from netinv.first_look import LEVELS, clouds, information, logit_unit, start_brightness, usual_batch
from netinv.frozen import FrozenClassifier
from netinv.generator import Canvas, Generator
from netinv.goal import Goal, variety
from netinv.inversion import Inverter
from netinv.losses import class_cosine_loss, cosine_loss, ortho_loss
from netinv.objective import Inversion
from netinv.samples import Samples, class_accuracy

SHAPE = (1, 12, 12)
TINY = dict(generator=Generator.sized(width=16, latent_dim=8), amp="off")


class Halves(nn.Module):
    "Says which half of an image is brighter: as easy as can be."
    def forward(self, images: Tensor) -> Tensor:
        left, right = images[..., :6].mean((1, 2, 3)), images[..., 6:].mean((1, 2, 3))
        return 20 * torch.stack([left - right, right - left], 1)


class NeverTwo(nn.Module):
    "Three classes, of which the last one cannot win, although its logit has a gradient."
    def __init__(self):
        super().__init__()
        self.halves = Halves()

    def forward(self, images: Tensor) -> Tensor:
        two = self.halves(images)
        return torch.cat([two, two.amin(1, keepdim=True) - 5], 1)


def frozen(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> FrozenClassifier:
    return FrozenClassifier(model.eval(), shape=shape, device="cpu")


# The terms

@pytest.mark.parametrize("shares", [None, [[1.0, 0.5, 1.0, 0.0, 0.25], [1.0] * 5]])
def test_class_cosine_against_a_loop(shares: list | None) -> None:
    images = torch.rand(2, 5, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 0, 1, 0], [3, 3, 3, 0, 1]])
    share = None if shares is None else torch.tensor(shares, dtype=torch.float64)
    x = images.flatten(2) - images.flatten(2).mean(2, keepdim=True)
    means = []
    for k in range(2):
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j and labels[k, i] == labels[k, j]]
        counts = [1.0 if share is None else (share[k, i] * share[k, j]).item() for i, j in pairs]
        cosines = [torch.cosine_similarity(x[k, i], x[k, j], dim=0).item() for i, j in pairs]
        means.append(sum(a * b for a, b in zip(cosines, counts)) / len(pairs))
    assert class_cosine_loss(images, labels, share).item() == pytest.approx(sum(means) / 2, rel=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 5), st.floats(-0.5, 0.5))
def test_within_a_class_only_the_pattern_counts(seed: int, gain: float, shift: float) -> None:
    images = torch.rand(1, 6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert class_cosine_loss(gain * images + shift, labels).item() == pytest.approx(
        class_cosine_loss(images, labels).item(), abs=1e-9)


@pytest.mark.parametrize("loss", [cosine_loss, ortho_loss])
def test_rows_without_a_share_take_no_part(loss) -> None:
    f = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    share = torch.tensor([1.0] * 6 + [0.0] * 2, dtype=torch.float64)
    counted = 6 * 5 / (8 * 7) if loss is cosine_loss else 36 / 64
    assert loss(f, share).item() == pytest.approx(counted * loss(f[:6]).item(), rel=1e-9)
    assert loss(f, torch.ones(8, dtype=torch.float64)).item() == pytest.approx(loss(f).item(), rel=1e-12)


def test_the_recipe_of_the_paper_asks_and_shows_as_the_paper_does() -> None:
    paper, met = Inversion.paper(), torch.zeros(1, 3)
    assert {name for name, weight in paper.weights.items() if weight} == {"alpha", "beta", "gamma", "delta"}
    assert paper.share(met, met) is None and paper.demand(met) is None and paper["unit"] == 1
    images = torch.rand(1, 4, *SHAPE)
    assert paper.show(images, [torch.Generator()]) is images


# Patterns

@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.sampled_from(PATTERNS))
def test_every_class_has_a_pattern_of_its_own(n: int, pattern: str) -> None:
    conditioning = make_conditioning("matrix", n, side=64, pattern=pattern)
    matrices = conditioning.sample(n, torch.arange(n)).matrix
    assert len(matrices.flatten(1).unique(dim=0)) == n and set(matrices.unique().tolist()) <= {0.0, 1.0}
    if pattern == "cross": assert torch.equal(matrices, label_matrix(torch.arange(n), n, conditioning.matrix_size))
    else: assert torch.equal(matrices, class_patterns(n, conditioning.matrix_size))


def print_through(inverter: Inverter, n: int = 10) -> float:
    "How much larger a class's difference from the mean image is on its own pattern than elsewhere."
    samples = inverter.sample(60 * n, seed=3)
    means = torch.stack([samples.images[samples.labels == k].mean((0, 1)) for k in range(n)])
    odd, matrix = (means - means.mean(0)).abs(), inverter.conditioning.sample(n, torch.arange(n)).matrix
    on = torch.nn.functional.interpolate(matrix, odd.shape[1:])[:, 0] > 0.5
    return (odd[on].mean() / odd[~on].mean()).item()


def test_the_pattern_does_not_print_through(digits) -> None:
    from netinv.classifier import train_classifier

    classifier = FrozenClassifier(train_classifier(digits, epochs=8, progress=False), shape=digits.shape, device="cpu")
    inverter = Inverter(classifier, seed=1, batch_size=80)
    inverter.fit(60, progress=False)
    assert inverter.sample(500, seed=1).hits.float().mean() > 0.95
    assert print_through(inverter) < 1.2


# Which classes are asked for

def test_classes_that_lag_are_asked_more_often_and_only_those_that_may_be() -> None:
    inverter = Inverter(frozen(nn.Sequential(nn.Flatten(), nn.Linear(144, 6))), classes=[0, 2, 5], batch_size=60, **TINY)
    inverter.met[0, [0, 2]] = 1.0
    asked = torch.cat([inverter.ask(0, inverter.rngs[0]) for _ in range(100)]).bincount(minlength=6)
    assert asked[[1, 3, 4]].sum() == 0
    assert 4 < 2 * asked[5] / (asked[0] + asked[2]) < 6  # 1 + lag is 5


def test_many_classes_come_in_groups_of_four() -> None:
    inverter = Inverter(frozen(nn.Sequential(nn.Flatten(), nn.Linear(144, 50))), batch_size=30, **TINY)
    counts = inverter.ask(0, inverter.rngs[0]).bincount()
    assert counts.sum() == 30 and (counts > 0).sum() <= 7 and counts[counts > 0].float().mean() > 4


def test_the_share_of_hits_is_followed_for_each_generator(tmp_path: Path) -> None:
    inverter = Inverter(frozen(Halves()), n_generators=2, batch_size=8, **TINY)
    inverter.fit(10, checkpoint_dir=tmp_path, progress=False)
    assert inverter.met.shape == (2, 2) and 0 < inverter.met.max() <= 1
    again = Inverter(frozen(Halves()), n_generators=2, batch_size=8, **TINY)
    again.fit(10, checkpoint_dir=tmp_path, resume=True, progress=False)
    assert torch.equal(again.met, inverter.met)


# When a run stops

def test_an_easy_classifier_is_trained_until_its_images_vary() -> None:
    first = Inverter(frozen(Halves()), batch_size=32, seed=0, **TINY)
    first.fit(10, progress=False)
    long = Inverter(frozen(Halves()), batch_size=32, seed=0, **TINY)
    long.fit(900, until=0.95, progress=False)
    assert long.goal.reached is not None and 50 < long.step < 900
    early, late = (variety(inverter.judged()) for inverter in (first, long))
    assert late > 1.5 * early


def test_fit_without_arguments_ends_by_itself() -> None:
    inverter = Inverter(frozen(Halves()), batch_size=32, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverter.fit(progress=False)
    assert inverter.goal.reached and inverter.step < 1_000
    assert inverter.goal.verdict(inverter.judged()) == "every class is at 95%"


def test_a_run_that_cannot_reach_a_class_gives_up_and_says_which() -> None:
    inverter = Inverter(frozen(NeverTwo()), batch_size=16, **TINY)
    with pytest.warns(UserWarning, match=r"without gain, below 95%: class 2 at 0% \(mostly answered [01]\)"):
        inverter.fit(progress=False)
    assert 300 <= inverter.step < 1_000 and inverter.goal.reached is None


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_stops_at_an_accuracy_has_it_in_its_table(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 3))
    inverter = Inverter(frozen(model), batch_size=48, seed=seed, **TINY)
    inverter.fit(until=0.95, progress=False)
    numbers = inverter.save(tmp_path)
    assert min(numbers["inversion_accuracy_per_class"]) >= 0.95 - 1e-6 and numbers["reached"] <= inverter.step
    samples = inverter.sample(1000, seed=seed)  # another draw
    assert class_accuracy(samples.hits, samples.labels, 3).min() >= 0.95 - 1e-6


def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = Inverter(frozen(Halves()), batch_size=16, seed=2, **TINY)
    whole.fit(300, until=0.9, progress=False)
    killed = Inverter(frozen(Halves()), batch_size=16, seed=2, **TINY)
    killed.fit(300, until=0.9, checkpoint_dir=tmp_path, checkpoint_every=20, on_step=lambda run: run.step == 60,
               progress=False)
    resumed = Inverter(frozen(Halves()), batch_size=16, seed=2, **TINY)
    resumed.fit(300, until=0.9, checkpoint_dir=tmp_path, resume=True, progress=False)
    assert resumed.step == whole.step and resumed.goal.reached == whole.goal.reached


@pytest.mark.parametrize("k", [1, 2, 5])
def test_looks_cost_a_tenth_whatever_the_batch(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inverter, drawn = Inverter(frozen(Halves()), batch_size=8, n_generators=k, **TINY), []
    generate = inverter.generate
    monkeypatch.setattr(inverter, "generate", lambda n, **how: drawn.append(n) or generate(n, **how))
    inverter.fit(600, until=0.95, progress=False)
    assert inverter.goal.rows and sum(drawn) <= 3 * 8 * k * inverter.step / 10  # forward is a third of training


def test_a_class_that_lies_between_the_wish_and_the_bar_is_no_failure() -> None:
    inverter = Inverter(frozen(Halves()), batch_size=16, **TINY)
    inverter.fit(60, progress=False)
    stuck = Goal(0.95, patience=300, best=(-300, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inverter.is_done(stuck, inverter.log.table[-10:])
    assert stuck.verdict(inverter.judged()) == "every class is at 95%"


def test_the_unit_of_the_loss_may_be_changed_on_the_way() -> None:
    loud = frozen(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)))
    inverter = Inverter(loud, objective=Inversion(unit=1), batch_size=8, **TINY)
    images, condition = inverter.draw()
    out = type(loud(images[0]))(*(part[None] for part in loud(images[0])))
    before = inverter.objective(images, condition, out)["beta"].item()
    inverter.objective["unit"] = 100.0
    assert inverter.objective(images, condition, out)["beta"].item() == pytest.approx(torch.tensor(3.0).log().item(), abs=0.05)
    assert before != pytest.approx(torch.tensor(3.0).log().item(), abs=1e-4)


@settings(max_examples=30)
@given(st.lists(st.floats(1, 50), min_size=3, max_size=12))
def test_a_goal_is_not_met_while_variety_grows(values: list[float]) -> None:
    goal = Goal(0.9)
    for i, value in enumerate(values):
        done = goal.look(30 * (i + 1), torch.ones(1, 3), 100, value)
        before = [v for step, _, v in goal.rows[:-1] if step <= 30 * (i + 1) - 50]
        assert done == (bool(before) and value <= 1.05 * max(before))


def test_variety_is_one_for_copies_and_counts_patterns() -> None:
    spots = torch.eye(36).view(36, 1, 6, 6)[:8]
    samples = lambda x: Samples(x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), 1), x.flatten(1))
    assert variety(samples(spots[:1].expand(20, -1, -1, -1))) == pytest.approx(1, abs=1e-3)
    assert variety(samples(spots)) == pytest.approx(8, abs=0.2)
    assert variety(samples((255 * spots).byte())) == pytest.approx(8, abs=0.2)


# A first look

class Ramp(nn.Module):
    "Tells images apart around one level of gray only."
    def __init__(self, level: float, gain: float = 1.0):
        super().__init__()
        self.level, self.gain = level, gain

    def forward(self, images: Tensor) -> Tensor:
        x = torch.nn.functional.avg_pool2d(images, 6).flatten(1)
        near = torch.exp(-((images.mean((1, 2, 3)) - self.level) / 0.08).square())
        return self.gain * near[:, None] * (x - x.mean(1, keepdim=True)) * 30


@pytest.mark.parametrize("level", [0.1, 0.3, 0.7, 0.9])
def test_a_start_is_where_answers_move(level: float) -> None:
    assert abs(start_brightness(frozen(Ramp(level))) - level) < 0.11


def test_a_classifier_that_answers_alike_everywhere_starts_at_gray() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    nn.init.normal_(model[1].weight, std=1e-3)
    assert start_brightness(frozen(model)) == 0.5


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(LEVELS), st.sampled_from([(1, 8, 8), (3, 20, 31)]))
def test_clouds_are_images(level: float, shape: tuple[int, int, int]) -> None:
    x = clouds(shape, level)
    assert x.shape[1:] == shape and 0 <= x.min() and x.max() <= 1 and torch.equal(x, clouds(shape, level))


def test_information_is_zero_for_one_answer_and_never_above_the_classes() -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    nn.init.normal_(constant[1].weight, std=1e-6)
    assert information(frozen(constant), clouds(SHAPE, 0.5)) == pytest.approx(0, abs=1e-6)
    assert 0 < information(frozen(Ramp(0.5)), clouds(SHAPE, 0.5)) <= torch.tensor(4.0).log()


def test_the_unit_of_logits_follows_their_size() -> None:
    units = [logit_unit(frozen(Ramp(0.5, gain))) for gain in (0.01, 10.0, 100.0)]
    assert units[0] == 1.0 and units[2] == pytest.approx(10 * units[1], rel=1e-3)


def test_a_minus_infinite_logit_spoils_no_look() -> None:
    class Hole(nn.Module):
        def __init__(self):
            super().__init__()
            self.ramp = Ramp(0.3, 10.0)

        def forward(self, images: Tensor) -> Tensor:
            return self.ramp(images).index_fill(1, torch.tensor([2]), -torch.inf)

    classifier = frozen(Hole())
    assert start_brightness(classifier) in LEVELS and logit_unit(classifier) >= 1


def test_a_batch_follows_from_the_work_for_one_image() -> None:
    light, heavy = nn.Linear(1, 1), nn.Conv2d(8, 800, 15, padding=7)

    class Costly(nn.Module):
        def __init__(self, layer: nn.Module, n: int):
            super().__init__()
            self.layer, self.n = layer, n

        def forward(self, images: Tensor) -> Tensor:
            x = images.expand(-1, 8, -1, -1) if isinstance(self.layer, nn.Conv2d) else images.mean((2, 3))
            x = self.layer(x).flatten(1).mean(1, keepdim=True) + images.mean((1, 2, 3))[:, None]
            return x * torch.arange(self.n) + images.flatten(1)[:, : self.n]

    assert usual_batch(frozen(Costly(light, 4))) == 160
    assert usual_batch(frozen(Costly(heavy, 4))) == 16 and usual_batch(frozen(Costly(heavy, 30))) == 30
    assert Inverter(frozen(Costly(light, 4)), **TINY).config["batch_size"] == 160


# The canvas

def test_a_canvas_is_of_its_class_alone_and_bounded() -> None:
    canvas = Canvas(5, (3, 9, 7))
    with torch.no_grad(): canvas.weight[2] += 1
    drawn = canvas(torch.tensor([2, 4, 2]))
    assert drawn.shape == (3, 3, 9, 7) and drawn[[0, 2]].eq(1).all() and drawn[1].eq(0).all()
    assert Canvas(1000, (3, 300, 200)).weight.numel() <= 4_000_000


@pytest.mark.parametrize("sizes", [{"canvas": -1.0}, {"canvas": float("nan")}])
def test_a_gain_that_cannot_be(sizes: dict) -> None:
    with pytest.raises(ValueError, match="canvas is .*: expected 0, or a number above"):
        Generator(SHAPE, make_conditioning("label", 3), **sizes)


def test_a_run_of_version_0_2_is_drawn_from_as_it_was(tmp_path: Path) -> None:
    import yaml

    classifier = frozen(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)))
    sizes = dict(width=16, latent_dim=8, canvas=0.0, brightness=0.05)
    old = Inverter(classifier, generator=Generator.sized(**sizes), pattern="cross", batch_size=8, amp="off")
    old.fit(3, progress=False)
    old.save(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())  # as 0.2.0 wrote it
    del config["pattern"], config["generator"]["canvas"], config["settings"]
    for name in ("gamma_class", "gamma_class_feat"): del config["weights"][name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    again = Inverter.load(tmp_path, classifier)
    torch.testing.assert_close(again.sample(12, seed=0).images, old.sample(12, seed=0).images, atol=1e-3, rtol=0)
    assert again.objective["gamma_class"] == 0 and again.conditioning.pattern == "cross"
