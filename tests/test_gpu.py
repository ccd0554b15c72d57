"Every notebook on a CUDA device, in the profile `gpu`, its numbers held against what the project promises; kept in benchmarks/results/gpu."
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from netinv.cli import notebook_parameters, notebooks, run_notebook
from netinv.data import write_atomic

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = notebooks(ROOT)


def below(metrics: dict, part: str, measure: str) -> Iterator[float]:
    "The measure of every entry whose name has `part` in it."
    return (entry[measure] for name, entry in metrics.items() if part in name)


BARS: dict[str, Callable[[dict], bool]] = {
    "fig2_inversion": lambda m: all(numbers["worst_class_accuracy"] >= 0.95 for numbers in m["datasets"].values()),
    "fig3_interpretability": lambda m: m["inversion accuracy"] >= 0.95 and min(below(m["autoencoders"], "topk", "explained variance")) >= 0.95,
    "ood_table": lambda m: m["mnist, diverse"]["AUROC"] >= 0.99,
    "fig5_reconstruction": lambda m: m["mnist, 1000, cnn, prior"]["accuracy under the judge"] >= 0.95,
    "speed": lambda m: m["seconds to 95 %"]["mnist"] < 2 and m["steps per second / literal"]["mnist"] >= 8 and m["8 generators / one"] <= 3,
}


@pytest.mark.gpu
@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_on_a_gpu(stem: str, tmp_path: Path) -> None:
    notebook = NOTEBOOKS[stem]
    folder = run_notebook(notebook, profile="gpu", out=tmp_path / "run", progress=False)
    if "out_dir" not in notebook_parameters(notebook): return
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kept = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(), "metrics": metrics}
    write_atomic(ROOT / f"benchmarks/results/gpu/{stem}.json", json.dumps(kept, indent=1))
    assert stem not in BARS or BARS[stem](metrics), json.dumps(metrics, indent=1)


def test_bars_are_for_notebooks_that_exist() -> None:
    assert set(BARS) <= set(NOTEBOOKS)
