"Pages of experiments that are older than their code say so, and a page is executed with the parameters that it shows."
import shutil
import sys
from pathlib import Path

import pytest
from clones import write_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import execute  # noqa: E402
import older  # noqa: E402

from netinv.source import page_code  # noqa: E402


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A clone with one page that was executed with today's code."
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "settings.ini", folder)
    page = write_notebook(folder / "nbs/experiments/thing.ipynb", "n = 2\nout_dir = '.'", "print(n * 21)")
    assert execute.main([str(page), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def page(executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "The page in a clone of the test's own, which is the current folder."
    shutil.copytree(executed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "nbs/experiments/thing.ipynb"


def edit(path: Path, change) -> None:
    book = older.read(path)
    change(book)
    older.write(path, book)


def set_source(cell: int, text: str):
    return lambda book: book["cells"][cell].update(source=[text])


def shown(path: Path) -> str:
    return "".join(text for cell in older.read(path)["cells"] for out in cell.get("outputs", []) for text in out["text"])


def test_an_executed_page_has_outputs_and_what_made_them(page: Path) -> None:
    made_by = older.read(page)["metadata"]["netinv"]
    assert shown(page) == "42\n" and made_by["code"] == page_code(page) and made_by["parameters"] == {"n": 2}
    assert older.changed(page) == "" and older.older(page.parents[2]) == []
    assert len(older.read(page)["cells"]) == 3  # without the cell that papermill injects


@pytest.mark.parametrize("change, why", [
    (set_source(2, "print(n * 22)"), "this page"), (set_source(1, "n = 3\nout_dir = '.'"), "parameter n"),
    (set_source(1, "n = 2\nm = 1"), "parameter m"), (lambda book: book["metadata"].pop("netinv"), "nobody wrote down"),
    (lambda book: book["metadata"]["netinv"]["code"].update({"netinv.loop": "1"}), "netinv.loop"),
    (lambda book: book["cells"][2]["outputs"][0].update(text=[older.KEPT]), "results of other code"),
])  # fmt: skip
def test_an_older_page_says_so(page: Path, change, why: str) -> None:
    edit(page, change)
    assert why in older.changed(page)
    (fault,) = older.older(page.parents[2])
    assert fault.startswith("nbs/experiments/thing.ipynb: its outputs are older than its code") and why in fault
    older.mark(page)
    assert older.older(page.parents[2]) == []
    said = "".join(older.read(page)["cells"][1]["source"])
    assert said.startswith("**Older numbers.** What this page shows was computed by ")
    older.mark(page)
    assert len(older.read(page)["cells"]) == 4  # one line, however often


@pytest.mark.parametrize("change", [
    set_source(2, "print(n * 21)  # the answer"), set_source(1, "n = 2\nout_dir = 'elsewhere'\njobs = 4"),
    set_source(0, "# Another title"),
])  # fmt: skip
def test_prose_makes_no_page_older(page: Path, change) -> None:
    edit(page, change)
    assert older.changed(page) == ""


def test_a_line_without_need_is_a_fault_and_goes(page: Path) -> None:
    edit(page, set_source(2, "print(n * 22)"))
    older.mark(page)
    assert execute.main(["thing", "--out", "again"]) == 0
    assert shown(page) == "44\n" and not older.is_marked(older.read(page))
    line = {"cell_type": "markdown", "metadata": {"tags": ["older"]}, "source": []}
    edit(page, lambda book: book["cells"].insert(1, line))
    (fault,) = older.older(page.parents[2])
    assert "it says that it is older than its code, and is not" in fault
    older.mark(page)
    assert older.older(page.parents[2]) == []


def test_a_page_without_outputs_is_not_older(page: Path) -> None:
    edit(page, lambda book: [cell.update(outputs=[]) for cell in book["cells"] if "outputs" in cell])
    edit(page, set_source(2, "print(n)"))
    assert older.changed(page) == ""


def test_a_page_shows_what_it_runs_with(page: Path, capsys: pytest.CaptureFixture) -> None:
    assert execute.main(["thing", "-p", "n", "3"]) == 2
    assert "thing.ipynb shows other parameters: write n = 3 into its cell" in capsys.readouterr().err
    Path("fast.yaml").write_text("thing: {n: 4}\n")
    assert execute.main(["thing", "--profile", "fast.yaml"]) == 2
    assert execute.main(["thing", "-p", "n", "2", "-p", "out_dir", "x", "--out", "more"]) == 0


def test_a_failed_or_edited_page_stays_as_it_was(page: Path, capsys: pytest.CaptureFixture) -> None:
    edit(page, set_source(2, "1 / 0"))
    before = page.read_bytes()
    assert execute.main(["thing", "--out", "bad"]) == 1 and page.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err
    edit(page, set_source(2, "print(n * 21)"))
    executed = Path("run/thing.ipynb")
    edit(page, set_source(2, "print(n * 23)"))
    with pytest.raises(execute.RunFailed, match="was edited while it ran"): execute.store(page, executed)


def test_every_page_of_experiments_is_as_its_code_or_says_that_it_is_not() -> None:
    assert older.older() == []


def test_a_change_that_alters_no_number_can_be_told_and_no_other(page, monkeypatch):
    now = page_code(page)
    one, other = "this page", "netinv.data"
    monkeypatch.setattr(older, "page_code", lambda path: {**now, one: "0", other: "1"})
    older.same(page, [one], "a reason")
    assert older.read(page)["metadata"]["netinv"]["code"] == now, "another module has changed as well"
    older.same(page, [one, other], "a reason")
    made_by = older.read(page)["metadata"]["netinv"]
    assert made_by["code"][one] == "0" and made_by["same"][0]["why"] == "a reason" and not older.changed(page)


def test_large_pictures_are_stored_smaller_and_small_ones_as_they_are():
    import base64
    import io

    import numpy as np
    from PIL import Image

    def stored(side):
        noise, file = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8), io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()
    small, large = stored(20), stored(400)
    output = [{"data": {"image/png": picture}} for picture in (small, large)] + [{"text": "no picture"}]
    found = [one["data"]["image/png"] for one in execute.smaller(output)[:2]]
    assert found[0] == small and len(found[1]) < 0.85 * len(large)
    before, after = (np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).astype(int) for one in (large, found[1]))
    assert abs(before - after).max() <= 5
