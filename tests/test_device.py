"netinv.device: what is picked where there is little to pick from, the mend of torchvision, and the number of threads."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import one_sentence

from netinv import device as nd
from netinv.classifier import Trainer, train_classifier
from netinv.data import load_data
from netinv.inversion import Inverter
from netinv.loop import Loop


def run(script: str, **env: str) -> str:
    "What a fresh interpreter prints."
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          env={**os.environ, **env}).stdout.strip()


def test_torchvision_can_be_imported_after_netinv():
    script = "import sys, netinv.data; print('torchvision' in sys.modules); import torchvision.models; print('fine')"
    assert run(script).split() == ["False", "fine"]


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def installed(tmp_path) -> Path:
    "A folder that makes netinv's entry points known, as an installation does."
    (point,) = re.findall(r'"torch.backends": \["(.*?)"\]', (ROOT / "setup.py").read_text())
    info = tmp_path / "netinv-99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: netinv\nVersion: 99\n")
    (info / "entry_points.txt").write_text(f"[torch.backends]\n{point}\n")
    return tmp_path


def test_torchvision_can_be_imported_before_netinv(installed):
    script = "import torchvision, torchvision.models, sys; print('netinv.data' in sys.modules); import netinv.data; print('fine')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=installed)
    assert (done.returncode, done.stdout.split()) == (0, ["False", "fine"]), done.stderr


@pytest.mark.parametrize("room", ["device", "pictures"])
def test_any_room_can_be_imported_before_pytorch(installed, room):
    "What imports netinv.device first met its own entry point, half imported."
    script = f"import netinv.{room}, torchvision.models; print('fine')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=installed)
    assert (done.returncode, done.stdout.split()) == (0, ["fine"]), done.stderr


def test_torchvision_can_be_imported_again_after_it_failed():
    script = """
import os, sys
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
try: import torchvision
except RuntimeError: pass  # where its compiled part cannot be loaded
import netinv.data, torchvision.models
print("fine")"""
    assert run(script) == "fine"


@pytest.mark.parametrize("loads, cuda, defined", [(True, None, False), (False, None, True), (False, "13.0", False)])
def test_operators_are_defined_only_where_they_cannot_be_loaded(tmp_path, loads, cuda, defined):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('the mend must not import torchvision')")
    (tmp_path / "torchvision" / "_C.so").touch()
    script = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
torch.version.cuda = {cuda!r}
if {loads}: torch.ops.load_library = lambda path: print(path)
import netinv.data
print(hasattr(torch.ops.torchvision, "nms"))
"""
    compiled = [str(tmp_path / "torchvision" / "_C.so")] * loads
    alone = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # else an installed netinv mends before anything is pretended
    assert run(script, **alone).splitlines() == [*compiled, str(defined)]


def test_devices_and_dtypes(monkeypatch):
    assert nd.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert nd.pick_device() == torch.device("cpu")
    with pytest.raises(ValueError) as info: load_data("digits", device="cuda:99")
    one_sentence(info.value, "cuda:99")
    for has, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert nd.pick_amp("auto", "cpu") is dtype
    assert nd.pick_amp(None) is nd.pick_amp("off") is None and nd.pick_amp(torch.bfloat16) is torch.bfloat16


# Threads


class Machine:
    "A machine of two cores with a clock of its own: a step takes as long as `pace` says for the present threads."
    def __init__(self, monkeypatch, pace):
        self.pace, self.now, self.own = pace, 0.0, 0.0
        self.threads, self.used = 2, []
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(nd, "USUAL_THREADS", 2)
        monkeypatch.setattr(nd, "clocks", lambda: (self.now, self.own))
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda threads: setattr(self, "threads", threads))

    def step(self) -> None:
        self.used.append(self.threads)
        seconds, share = self.pace(self.now, self.threads)
        self.now, self.own = self.now + seconds, self.own + share * seconds

    def train(self, until: float, device: str = "cpu") -> list[int]:
        "The threads of every step up to `until`."
        self.used = []
        with nd.Threads().chosen(torch.device(device)) as run:
            while self.now < until: run(self.step)
        return self.used


def quiet(now, threads): return (0.1, 0.97) if threads > 1 else (0.17, 1.0)
def crowd(now, threads): return (0.7, 0.35) if threads > 1 else (0.25, 0.65)


def test_a_quiet_machine_always_computes_with_all_threads(monkeypatch):
    assert set(Machine(monkeypatch, quiet).train(300)) == {2}


def test_in_a_crowd_one_thread_is_soon_kept_and_all_are_back_when_it_has_left(monkeypatch):
    machine = Machine(monkeypatch, lambda now, threads: (crowd if 10 < now < 60 else quiet)(now, threads))
    used = machine.train(100)
    first = used.index(1)
    assert 100 <= first <= 106  # three steps of a crowd, and perhaps two that were counted before it came
    ones = [step for step, threads in enumerate(used) if threads == 1]
    assert len(ones) == ones[-1] - ones[0] + 1  # without a further try in between
    assert machine.threads == 2 and set(used[-300:]) == {2}


@pytest.mark.parametrize("every, kept", [(0.29, 2), (0.31, 1)])
def test_one_thread_has_to_be_faster_by_a_fifth(monkeypatch, every, kept):
    machine = Machine(monkeypatch, lambda now, threads: (every, 0.4) if threads > 1 else (0.25, 0.65))
    used = machine.train(5)
    assert used[:8] == [2, 2, 2, 1, 1, 1, 1, kept]


def test_tries_cost_two_percent_at_most(monkeypatch):
    "The calling thread waits, and one thread alone is much slower still."
    machine = Machine(monkeypatch, lambda now, threads: (0.2, 0.5) if threads > 1 else (0.9, 0.5))
    used = machine.train(2000)
    lost = used.count(1) * (0.9 - 0.2)
    assert used.count(1) >= 8 and lost < 0.021 * (machine.now + 50 * 4 * 0.7)  # the last try has not been worked off yet


@pytest.mark.parametrize("every", [3, 7])
def test_accidents_are_no_crowd(monkeypatch, every):
    "A step now and then has to wait for long."
    machine = Machine(monkeypatch, lambda now, threads: (0.9, 0.1) if len(machine.used) % every == 0 else (0.1, 0.97))
    assert set(machine.train(60)) == {2}


def test_a_coarse_clock_is_no_crowd(monkeypatch):
    "Steps of 5 ms where the processor's time is counted in ticks of 16 ms."
    machine = Machine(monkeypatch, lambda now, threads: (0.005, 1.0))
    monkeypatch.setattr(nd, "clocks", lambda: (machine.now, machine.own // 0.016 * 0.016))
    assert set(machine.train(30)) == {2}


def test_the_first_step_after_a_change_does_not_count(monkeypatch):
    "It is slow, and so is one of the three that do count."
    machine = Machine(monkeypatch, lambda now, threads: (9.0, 0.1) if 0 < machine.used.count(1) < 3 else crowd(now, threads))
    assert set(machine.train(60)[3:]) == {1}


def test_what_was_decided_is_known_at_the_next_training(monkeypatch):
    machine, threads = Machine(monkeypatch, crowd), nd.Threads()
    for _ in range(4):
        with threads.chosen(torch.device("cpu")) as run:
            for _ in range(3): run(machine.step)
        assert machine.threads == 2
    assert machine.used == [2] * 3 + [1] * 9


def test_the_number_of_threads_is_put_back_after_an_error(monkeypatch):
    machine, threads = Machine(monkeypatch, crowd), nd.Threads()

    def broken() -> None: raise KeyError("broken")

    with pytest.raises(KeyError), threads.chosen(torch.device("cpu")) as run:
        for _ in range(5): run(machine.step)
        assert machine.threads == 1
        run(broken)
    assert machine.threads == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_in_the_environment_stays(monkeypatch, name):
    machine = Machine(monkeypatch, crowd)
    monkeypatch.setenv(name, "2")
    assert set(machine.train(20)) == {2}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_number_that_was_set_stays(monkeypatch, threads):
    machine = Machine(monkeypatch, crowd)
    machine.threads = threads
    assert set(machine.train(20)) == {threads} == {machine.threads}


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_elsewhere_than_on_a_cpu_nothing_is_decided(monkeypatch, device):
    assert set(Machine(monkeypatch, crowd).train(20, device)) == {2}


def test_one_core_leaves_no_choice(monkeypatch):
    machine = Machine(monkeypatch, crowd)
    machine.threads = 1
    monkeypatch.setattr(nd, "USUAL_THREADS", 1)
    assert set(machine.train(20)) == {1}


def test_inverters_and_trainers_choose(monkeypatch, frozen, digits):
    "Each step of theirs takes as long as one of the machine in a crowd; after eight it has one thread."
    machine = Machine(monkeypatch, crowd)
    for kind in (Loop, Trainer):
        plain = kind.train_step
        monkeypatch.setattr(kind, "train_step", lambda *args, plain=plain: (plain(*args), machine.step()))
    Inverter(frozen, batch_size=4).fit(8, progress=False)
    assert machine.used == [2] * 3 + [1] * 5 and machine.threads == 2
    machine.used = []
    train_classifier(digits, epochs=1, batch_size=32, progress=False)
    assert machine.used[:8] == [2] * 3 + [1] * 5 and machine.threads == 2

    def stumble(_: Inverter) -> None:
        if machine.threads == 1: raise KeyError("one thread")

    with pytest.raises(KeyError): Inverter(frozen, batch_size=4).fit(8, on_step=stumble, progress=False)
    assert machine.threads == 2
