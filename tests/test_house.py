"The rules of the house, and the tools that see to them."
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import check_notebooks  # noqa: E402
import house  # noqa: E402

EXPORT = "#| export\ndef f(x): return x"


def cell(source: str, kind: str = "code", outputs: list | None = None, **metadata: object) -> dict:
    "A notebook's cell as JSON."
    made = {"cell_type": kind, "id": "0", "metadata": metadata, "source": source.splitlines(keepends=True)}
    return made | ({"outputs": outputs or [], "execution_count": None} if kind == "code" else {})


def notebook(folder: Path, cells: list[dict], name: str = "x") -> Path:
    "A folder with one notebook in it."
    path = folder / f"nbs/{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return folder


RESULTS = {"assert": cell("assert f(1) == 1"), "test": cell("test_eq(f(1), 1)"),
           "print": cell("print(f(1))", outputs=[{"output_type": "stream", "name": "stdout", "text": ["1"]}]),
           "figure": cell("plt.plot([1]);", outputs=[{"output_type": "display_data", "data": {"image/png": ""}}])}
NO_RESULTS = {"hidden": cell("#| hide\nassert f(1) == 1"), "prose": cell("assert", "markdown"),
              "silent": cell("y = f(1)"), "parameters": cell("n = 1", tags=["parameters"])}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_ends_a_row_of_export_cells(kind: str, tmp_path: Path) -> None:
    assert not check_notebooks.unseen(notebook(tmp_path, [cell(EXPORT)] * 4 + [RESULTS[kind]] + [cell(EXPORT)] * 4))


@pytest.mark.parametrize("kind", NO_RESULTS)
def test_five_export_cells_in_a_row_are_found(kind: str, tmp_path: Path) -> None:
    late = cell("#| exporti\ndef _late(x): return x")
    cells = [cell(EXPORT)] * 4 + [NO_RESULTS[kind], late, RESULTS["assert"]]
    (fault,) = check_notebooks.unseen(notebook(tmp_path, cells))
    assert fault.startswith("nbs/x.ipynb, cells 1 to 6: 5 export cells")
    assert "before cell 6, 'def _late(x): return x'" in fault


def test_long_lines_are_found_in_code_and_prose(tmp_path: Path) -> None:
    word, words = "x" * 130, "xx " * 45
    prose = [cell(text, "markdown") for text in (words, f"| {words} |", word)]  # a table and a word cannot be wrapped
    cells = [cell(f"a = 1\n# {words}"), *prose]
    faults = check_notebooks.long_lines(notebook(tmp_path, cells))
    assert [fault.split(":")[0] for fault in faults] == ["nbs/x.ipynb, cell 1", "nbs/x.ipynb, cell 2"]
    assert "a line of 137 characters (at most 120): '# xx xx" in faults[0]


def test_an_import_among_other_code_is_found(tmp_path: Path) -> None:
    mixed = cell("import math\nx = math.pi")
    fine = [cell("#| export\nimport math\nx = math.pi"), cell("import math"), cell("#| hide\nimport math\nx = math.pi"),
            cell("def f():\n    import math\n    return math.pi")]
    (fault,) = check_notebooks.mixed_imports(notebook(tmp_path, [*fine, mixed]))
    assert fault == "nbs/x.ipynb, cell 5: move 'import math' to a cell without other code, like the hidden one"
    assert not check_notebooks.mixed_imports(notebook(tmp_path, [mixed]))  # a page that exports nothing


def test_a_picture_without_words_is_found(tmp_path: Path) -> None:
    drawn = RESULTS["figure"]["outputs"]
    named, hidden = cell('#| fig-alt: "A line"\nplt.plot([1]);', outputs=drawn), cell("#| hide\nx", outputs=drawn)
    cells = [named, hidden, RESULTS["figure"]]
    (fault,) = check_notebooks.nameless_pictures(notebook(tmp_path, cells))
    assert fault == "nbs/x.ipynb, cell 3: give its picture a line '#| fig-alt: ...'"


def test_figures_of_a_small_house(tmp_path: Path) -> None:
    cells = [cell("# Title", "markdown"), cell(EXPORT), cell("f(1)"), cell("#| export\ndef g(): pass"),
             cell("#| export\ndef h(): pass"), RESULTS["figure"]]
    package = notebook(tmp_path, cells) / "netinv"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0"\n')
    (package / "data.py").write_text('__all__ = ["f", "g"]\nfrom .inversion import h\n')
    upper = '__all__ = ["h"]\ndef h():\n    from netinv.data import f\n    gamma_pix = f\n'
    (package / "inversion.py").write_text(upper)
    figures = house.figures(tmp_path)
    assert figures["export cells in a row without a result"] == "3 in x"
    assert figures["public names used before the next export cell"] == "33% of 3"
    assert figures["public names of all modules"] == 3 and figures["first picture"] == "x 6/6"
    assert figures["rooms in circles"] == "data, inversion" and figures["upward arrows"] == "data -> inversion"
    assert figures["places to edit for a new term"] == "1: inversion.h"


def test_imports_run_one_way() -> None:
    texts = house.modules(ROOT)
    edges = house.arrows(texts)
    assert set(texts) - {"moved"} <= set(house.ROOMS), "name the new room in tools/house.py, at its height"
    assert edges and not house.circles(edges) and not house.upward(edges)


def test_modules_are_small() -> None:
    lengths = {room: len(text.splitlines()) for room, text in house.modules(ROOT).items()}
    assert max(lengths.values()) <= 500 and lengths["loop"] <= 450, lengths


def test_a_new_term_is_one_row() -> None:
    assert house.places(ROOT, house.notebooks(ROOT), "eta_span")[0].startswith("reconstruction.")
