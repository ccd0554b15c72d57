"Every notebook, from top to bottom, through the same function as `netinv run`, with the least that still runs."
import json
from pathlib import Path

import pytest

from netinv.cli import notebook_parameters, notebooks, run_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = notebooks(ROOT)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_runs(stem: str, tmp_path: Path) -> None:
    notebook = NOTEBOOKS[stem]
    folder = run_notebook(notebook, profile="smoke", out=tmp_path / "run", progress=False)
    executed = json.loads((folder / notebook.name).read_text(encoding="utf-8"))
    assert not executed["metadata"]["papermill"]["exception"]
    if "out_dir" in notebook_parameters(notebook):
        assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_experiments_write_into_their_run_folder() -> None:
    experiments = [path for path in NOTEBOOKS.values() if path.parent.name == "experiments"]
    assert experiments and all("out_dir" in notebook_parameters(path) for path in experiments)


def test_profiles_know_every_experiment() -> None:
    "A section for each experiment in each profile, and none for a notebook that is not there."
    import yaml

    for profile in ("smoke", "cpu", "gpu"):
        sections = yaml.safe_load((ROOT / f"nbs/experiments/profiles/{profile}.yaml").read_text(encoding="utf-8"))
        assert set(sections) <= set(NOTEBOOKS), profile
        assert {path.stem for path in NOTEBOOKS.values() if path.parent.name == "experiments"} <= set(sections), profile
