"Captured steps as far as a CPU can tell: what Python does between replays. The graphs are checked on a CUDA device."
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from netinv import graphs
from netinv.classifier import CNN
from netinv.frozen import FrozenClassifier
from netinv.generator import Generator
from netinv.inversion import Inverter


class Stand:
    "In a CUDA graph's stead: replaying runs the step again, and fills the same tensors."
    made = 0

    def __init__(self, inverter: Inverter, step):
        self.inverter, self.step, self.numbers = inverter, step, []
        type(self).made += 1

    def replay(self) -> None:
        inverter, counted = self.inverter, (self.inverter.step, self.inverter.seconds)
        inverter.record = self.keep
        self.step()
        del inverter.record
        inverter.step, inverter.seconds = counted

    def keep(self, terms: dict[str, Tensor], *rest: Tensor) -> None:
        self.numbers[:] = [{name: t.detach() for name, t in terms.items()}, *rest]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    "CUDA's streams and graphs, replaced."
    class Stream:
        def wait_stream(self, other: object) -> None: pass

    def record(inverter: Inverter, step) -> tuple:
        stand = Stand(inverter, step)
        return stand, stand.numbers

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(graphs, "_record", record)
    Stand.made = 0


def inverter(captured: bool = False) -> Inverter:
    "A small one; the same each time."
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = Inverter(FrozenClassifier(CNN((1, 12, 12), 3), shape=(1, 12, 12), device="cpu"), batch_size=8,
                        generator=Generator.sized(width=16), n_generators=2)
    if captured: made.train_step = graphs.CapturedStep(made)
    return made


def same(a: Inverter, b: Inverter) -> None:
    ours, theirs = a.state(), b.state()
    assert a.step == b.step and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(a.log.table, b.log.table) and len(a.log.seconds) == len(b.log.seconds)


def test_captured_steps_are_counted_and_logged_as_plain_ones(pretend: None) -> None:
    plain, captured = inverter(), inverter(True)
    for run in (plain, captured): run.fit(25, progress=False)
    same(plain, captured)
    assert Stand.made == 1 and captured.train_step.ran == 3


@pytest.mark.parametrize("change", [
    lambda run: run.objective.update(gamma=4.0), lambda run: run.adjust(lr=1e-3), lambda run: run.adjust(temperature=0.5),
    lambda run: run.adjust(dropout=0.5), lambda run: run.rewind(*run.snapshot())],
    ids=["weight", "lr", "temperature", "dropout", "rewind"])
def test_a_change_is_recorded_anew(change, pretend: None) -> None:
    plain, captured = inverter(), inverter(True)
    for run in (plain, captured):
        run.fit(10, progress=False)
        change(run)
        run.fit(10, progress=False)
    same(plain, captured)
    assert Stand.made == 2


def test_a_checkpoint_is_gone_on_with(pretend: None, tmp_path) -> None:
    plain, half, captured = inverter(), inverter(True), inverter(True)
    plain.fit(40, progress=False)
    half.fit(20, checkpoint_dir=tmp_path, progress=False)
    captured.fit(40, checkpoint_dir=tmp_path, resume=True, progress=False)
    same(plain, captured)


@pytest.mark.parametrize("n_generators", [1, 2])
@pytest.mark.parametrize("conditioning", ["label", "vector", "matrix", "vector-matrix"])
def test_no_step_waits_for_the_device(conditioning: str, n_generators: int) -> None:
    classifier = FrozenClassifier(CNN((1, 12, 12), 3), shape=(1, 12, 12), device="cpu")
    run = Inverter(classifier, conditioning=conditioning, n_generators=n_generators, batch_size=8, classes=[0, 2])
    for _ in range(2): run.train_step()
    with graphs.Operations() as operations: run.train_step()
    assert operations.counts.total() > 100 and not operations.waits


def test_what_waits_is_noticed() -> None:
    with graphs.Operations() as operations:
        x = torch.rand(4)
        x[x > 0.5]  # as many as there are
        x.max().item()
        torch.tensor([1, 2])
        torch.nn.functional.one_hot(torch.arange(3), 4)  # looks at its labels, on a CPU alone
    assert operations.waits == {"index by mask": 1, "_local_scalar_dense": 1, "lift_fresh": 1}
