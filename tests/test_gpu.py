"""What needs a CUDA device: the checks of `benchmarks/checks.py`, then every notebook in the profile `gpu`, its numbers
held against what the project promises and kept in benchmarks/results/gpu. `pytest -m gpu -k quick` is the checks alone.
"""
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from netinv.files import write_atomic
from netinv.runner import notebook_parameters, notebooks, run_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import checks  # noqa: E402
import gpu  # noqa: E402

NOTEBOOKS = notebooks(ROOT)


def below(metrics: dict, part: str, measure: str) -> Iterator[float]:
    "The measure of every entry whose name has `part` in it."
    return (entry[measure] for name, entry in metrics.items() if part in name)


def fast_enough(metrics: dict) -> bool:
    "The three bars of the chapter on speed."
    ratio = metrics["steps per second / literal"]["mnist"]
    return metrics["seconds to 95 %"]["mnist"] < 2 and ratio >= 8 and metrics["8 generators / one"] <= 3


BARS: dict[str, Callable[[dict], bool]] = {
    "fig2_inversion": lambda m: all(of["worst_class_accuracy"] >= 0.95 for of in m["datasets"].values()),
    "fig3_interpretability": lambda m: (min(m["inversion accuracy"].values()) >= 0.9
                                        and min(below(m["autoencoders"], "topk", "explained variance")) >= 0.95),
    "ood_table": lambda m: m["mnist, families only"]["AUROC"] >= 0.99,
    "fig5_reconstruction": lambda m: m["mnist, 1000, cnn, prior"]["accuracy under the judge"] >= 0.95,
    "speed": fast_enough,
}


def check(name: str, device: str) -> None:
    "One of the checks, skipped with its own reason."
    try: checks.CHECKS[name](torch.device(device))
    except checks.Skipped as e: pytest.skip(str(e))


@pytest.mark.gpu
@pytest.mark.parametrize("name", checks.CHECKS)
def test_quick_check_on_a_gpu(name: str) -> None:
    check(name, "cuda:0")


@pytest.mark.parametrize("name", checks.CHECKS)
def test_check_on_a_cpu(name: str) -> None:
    check(name, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_on_a_gpu(stem: str, tmp_path: Path) -> None:
    notebook = NOTEBOOKS[stem]
    folder = run_notebook(notebook, profile="gpu", out=tmp_path / "run", progress=False)
    if "out_dir" not in notebook_parameters(notebook): return
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    kept = {"device": torch.cuda.get_device_name(), **versions, "metrics": metrics}
    write_atomic(ROOT / f"benchmarks/results/gpu/{stem}.json", json.dumps(kept, indent=1))
    assert stem not in BARS or BARS[stem](metrics), json.dumps(metrics, indent=1)


def test_bars_are_for_notebooks_that_exist() -> None:
    assert set(BARS) <= set(NOTEBOOKS) and set(gpu.NOTEBOOKS) <= set(NOTEBOOKS)


def run_script(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    "`benchmarks/gpu.py` at its smallest, without a CUDA device and without data."
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--out", out, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NETINV_DATA": str(out)})


def test_the_script_for_a_gpu_runs_here(tmp_path: Path) -> None:
    parts = [name for name in gpu.PARTS if name not in ("correctness", "notebooks")]  # which other tests run
    done = run_script(tmp_path, "--smoke", "--only", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("*.json")} == set(parts)
    for part in parts:
        kept = json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8"))
        assert kept["result"] and kept["torch"] == torch.__version__ and not {"failed", "cut off"} & set(kept), kept


def test_a_part_has_a_process_of_its_own(tmp_path: Path) -> None:
    found = list(gpu.results_apart("classifier", gpu.Setting(True, tmp_path, 300.0), "cpu"))
    assert found[0]["torch"] == torch.__version__ and found[-1]["result"]["data"] == "generated-200"
    assert (tmp_path / "mnist.safetensors").exists()


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    last = list(gpu.results_apart("steps", gpu.Setting(True, tmp_path, 300.0), "cpu"))[-1]  # without a classifier
    assert "FileNotFoundError" in last["failed"] and "failed" in gpu.summary("steps", last)


def test_a_part_that_takes_too_long_leaves_what_it_had(tmp_path: Path) -> None:
    last = list(gpu.results_apart("classifier", gpu.Setting(True, tmp_path, 0.0), "cpu"))[-1]
    assert last["cut off"] == "after 0 seconds" and "failed" not in last


def test_the_script_wants_a_device(tmp_path: Path) -> None:
    done = run_script(tmp_path)
    assert done.returncode == 2 and "there is no CUDA device here" in done.stderr


def test_the_area_under_the_curve_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    inside, outside = torch.randint(5, 20, (50,)).double(), torch.randint(0, 12, (70,)).double()
    truth = [1] * len(inside) + [0] * len(outside)
    assert abs(gpu.rank_auroc(inside, outside) - roc_auc_score(truth, torch.cat([inside, outside]))) < 1e-9
