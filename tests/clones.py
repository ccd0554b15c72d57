"A clone of netinv small enough to look at, for the tests of runner and command line."
import json
from pathlib import Path

import nbformat.v4 as nbf
import pytest


def write_notebook(path: Path, *cells: str, metadata: dict | None = None) -> Path:
    "A notebook whose first code cell holds the parameters."
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nb = nbf.new_notebook(metadata=kernel if metadata is None else metadata)
    nb.cells = [nbf.new_markdown_cell("# Title\n\n> What it does"), *map(nbf.new_code_cell, cells)]
    nb.cells[1].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb))
    return path


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "The current folder, with one chapter and one experiment."
    monkeypatch.chdir(tmp_path)
    parameters = "left = 1\nright = 2.5\nwords = ['a']\nout_dir = '.'"
    write_notebook(Path("nbs/sum.ipynb"), parameters, "total = left + right", "print(total)")
    write_notebook(Path("nbs/experiments/summary.ipynb"), "left = 1", "left")
    Path("nbs/experiments/profiles").mkdir()
    Path("nbs/experiments/profiles/smoke.yaml").write_text("sum: {left: 10, right: 20}\n")
    return tmp_path


def injected(notebook: Path) -> str:
    "The cell in which papermill set the parameters."
    cells = json.loads(notebook.read_text())["cells"]
    return "".join(next(cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", []))["source"])
