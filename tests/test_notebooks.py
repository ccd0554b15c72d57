"Every notebook, from top to bottom, through the same function as `netinv run`, with the least that still runs."
import json
import re
from pathlib import Path

import pytest

from netinv.runner import notebook_parameters, notebooks, run_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = notebooks(ROOT)
EXPERIMENTS = {name: path for name, path in NOTEBOOKS.items() if path.parent.name == "experiments"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    notebook = NOTEBOOKS[name]
    folder = run_notebook(notebook, profile="smoke", out=tmp_path / "run", progress=False)
    executed = json.loads((folder / notebook.name).read_text(encoding="utf-8"))
    assert not executed["metadata"]["papermill"]["exception"]
    if "out_dir" in notebook_parameters(notebook):
        assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_experiments_write_into_their_run_folder() -> None:
    assert EXPERIMENTS and all("out_dir" in notebook_parameters(path) for path in EXPERIMENTS.values())


def test_the_sidebar_has_every_notebook_and_none_has_a_number() -> None:
    import yaml

    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    pages = re.findall(r"[\w/]+\.ipynb", str(site["website"]["sidebar"]["contents"]))
    assert [str(path.relative_to(ROOT / "nbs")) for path in NOTEBOOKS.values()] == pages
    assert not any(path.name[0].isdigit() for path in NOTEBOOKS.values())


def test_profiles_know_every_experiment() -> None:
    "A section for each experiment in each profile, and none for a notebook that is not there."
    import yaml

    for profile in ("smoke", "cpu", "gpu"):
        sections = yaml.safe_load((ROOT / f"nbs/experiments/profiles/{profile}.yaml").read_text(encoding="utf-8"))
        assert set(sections) <= set(NOTEBOOKS), profile
        assert set(EXPERIMENTS) <= set(sections), profile


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_profiles_set_what_the_notebooks_have(profile: str) -> None:
    from netinv.runner import check_parameters, load_profile

    for notebook in NOTEBOOKS.values():
        check_parameters(notebook, load_profile(ROOT / f"nbs/experiments/profiles/{profile}.yaml", notebook),
                         notebook_parameters(notebook))
