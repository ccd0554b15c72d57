"Notebooks from top to bottom, through the same function as `netinv run`, with the least that still runs."
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from netinv.runner import notebook_parameters, notebooks

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = notebooks(ROOT)
EXPERIMENTS = {name: path for name, path in NOTEBOOKS.items() if path.parent.name == "experiments"}


SMOKE = yaml.safe_load((ROOT / "nbs/experiments/profiles/smoke.yaml").read_text(encoding="utf-8"))
SLOW = [name for name in SMOKE if "#| slow" in NOTEBOOKS[name].read_text(encoding="utf-8")]
RUN = "import sys; from netinv.cli import main; sys.exit(main(sys.argv[1:]))"


def run(name: str, folder: Path) -> subprocess.CompletedProcess:
    "`netinv run` in a process of its own, with one thread."
    command = [sys.executable, "-c", RUN, "run", str(NOTEBOOKS[name]), "--profile", "smoke", "--out", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    "The runs of all chosen notebooks, two at a time: each with its folder."
    ours = (i for i in request.session.items if getattr(i, "originalname", "") == "test_notebook_runs")
    chosen = [item.callspec.params["name"] for item in ours]
    folder = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(2) as pool:
        yield {name: (pool.submit(run, name, folder / name), folder / name) for name in chosen}


# nbdev_test runs all chapters, with their defaults, but no experiments and no slow cells; one chapter stands for the rest
@pytest.mark.parametrize("name", dict.fromkeys([*EXPERIMENTS, *SLOW, "start"]))
def test_notebook_runs(name: str, runs: dict[str, tuple[Future, Path]]) -> None:
    notebook, (future, folder) = NOTEBOOKS[name], runs[name]
    done = future.result()
    assert done.returncode == 0, done.stderr[-3000:]
    executed = json.loads((folder / notebook.name).read_text(encoding="utf-8"))
    assert not executed["metadata"]["papermill"]["exception"]
    if "out_dir" in notebook_parameters(notebook):
        assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_notebooks_without_a_profile_have_nothing_to_make_smaller() -> None:
    for name, path in NOTEBOOKS.items(): assert name in SMOKE or set(notebook_parameters(path)) <= {"seed"}, name


def test_experiments_write_into_their_run_folder() -> None:
    assert EXPERIMENTS and all("out_dir" in notebook_parameters(path) for path in EXPERIMENTS.values())


def test_the_sidebar_has_every_notebook_and_none_has_a_number() -> None:
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    pages = re.findall(r"[\w/]+\.ipynb", str(site["website"]["sidebar"]["contents"]))
    assert [str(path.relative_to(ROOT / "nbs")) for path in NOTEBOOKS.values()] == pages
    assert not any(path.name[0].isdigit() for path in NOTEBOOKS.values())


def test_profiles_know_every_experiment() -> None:
    "A section for each experiment in each profile, and none for a notebook that is not there."
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
