"Notebooks as programs, and the job pool."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clones import clone, injected, write_notebook  # noqa: F401: clone is a fixture
from hypothesis import given
from hypothesis import strategies as st

import netinv
from netinv import runner
from netinv.files import save_tensors
from netinv.runner import (
    PROCESS_SETTINGS, UsageError, find_notebook, notebook_parameters, notebooks, parse_value, process_settings,
    read_parameters, run_notebook, run_tasks,
)
from netinv.values import Computed, read_like

ROOT = Path(__file__).resolve().parent.parent


def test_values_win_over_the_profile(clone: Path) -> None:
    folder = run_notebook("sum", {"right": 3}, profile="smoke", out="out", progress=False)
    assert "left = 10" in injected(folder / "sum.ipynb") and "right = 3" in injected(folder / "sum.ipynb")


def test_a_given_out_dir_is_left_alone(clone: Path) -> None:
    folder = run_notebook("sum", {"out_dir": "elsewhere"}, out="out", progress=False)
    assert 'out_dir = "elsewhere"' in injected(folder / "sum.ipynb")


def test_the_notebook_runs_in_its_own_folder_and_stays_as_it_was(clone: Path) -> None:
    path = write_notebook(Path("nbs/where.ipynb"), "a = 1", "import pathlib\npathlib.Path('mark').touch()")
    before = path.read_bytes()
    run_notebook("where", out="out", progress=False)
    assert Path("nbs/mark").exists() and path.read_bytes() == before


def test_the_kernel_is_this_python_whatever_jupyter_has_installed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoy = Path("jupyter/kernels/python3")
    decoy.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "decoy", "language": "python"}
    (decoy / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(Path("jupyter").resolve()))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write_notebook(Path("nbs/who.ipynb"), "expected = ''", "import sys\nassert sys.executable == expected")
    run_notebook("who", {"expected": sys.executable}, out="out", progress=False)
    assert os.environ["JUPYTER_PATH"] == str(Path("jupyter").resolve())


def test_the_kernel_is_told_the_settings_unless_the_user_has_made_them(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*PROCESS_SETTINGS, "OMP_WAIT_POLICY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123456")
    expected = PROCESS_SETTINGS | {"MALLOC_TRIM_THRESHOLD_": "123456"}
    look = f"from os import environ\nfor name, value in {expected}.items(): assert environ[name] == value"
    write_notebook(Path("nbs/env.ipynb"), "a = 1", look)
    run_notebook("env", out="out", progress=False)
    assert "MALLOC_MMAP_MAX_" not in os.environ


@pytest.mark.parametrize("name", PROCESS_SETTINGS)
def test_a_setting_of_the_user_wins(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in (*PROCESS_SETTINGS, "OMP_WAIT_POLICY"): monkeypatch.delenv(other, raising=False)
    assert process_settings() == PROCESS_SETTINGS
    monkeypatch.setenv(name, "7")
    assert process_settings() == {other: value for other, value in PROCESS_SETTINGS.items() if other != name}


def test_a_way_of_waiting_that_the_user_has_chosen_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in process_settings()


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.one_of(st.integers(-10**9, 10**9), FINITE, st.booleans(), st.none()))
def test_plain_python_values_survive_the_command_line(value: object) -> None:
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    assert parse_value(text) == value and type(parse_value(text)) is type(value)
    if value is not None: assert read_like(text, value) == value and type(read_like(text, value)) is type(value)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    try:
        parse_value(text)
    except UsageError as e:
        assert "expected a YAML scalar or list" in str(e)


def test_tasks_run_side_by_side_from_a_notebook(tmp_path: Path) -> None:
    "A function of __main__ that names torch and an attribute `classes` made the pickler stumble over `torch.classes`."
    script = tmp_path / "experiment.py"
    script.write_text("""
import os
import sys
import torch
from netinv.runner import run_tasks
from netinv.data import load_data

data = load_data("digits", device="cpu")
def work(k):
    told = [os.environ.get(name) for name in ("GOMP_SPINCOUNT", "MALLOC_TRIM_THRESHOLD_")]
    found = {"sum": k + len(data.classes), "told": "+".join(map(str, told))}
    return found, {"row": torch.arange(k)}

if __name__ == "__main__":
    done = run_tasks(work, [(2,), (3,)], folder=sys.argv[1], settings={}, jobs=2)
    print(*done[(3,)][0].values())
""")
    environ = {name: value for name, value in os.environ.items() if name not in (*PROCESS_SETTINGS, "OMP_WAIT_POLICY")}
    environ |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "MALLOC_TRIM_THRESHOLD_": "77"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.stdout.strip() == f"13 {PROCESS_SETTINGS['GOMP_SPINCOUNT']}+77", done.stderr


def write_order(*pages: str | dict) -> None:
    "A `_quarto.yml` whose sidebar has these pages."
    site = {"website": {"navbar": {"left": ["experiments/summary.ipynb"]}, "sidebar": {"contents": list(pages)}}}
    Path("_quarto.yml").write_text(json.dumps(site))


def test_the_reading_order_is_that_of_the_site(clone: Path) -> None:
    for name in ("zebra", "apple", "experiments/last"): write_notebook(Path(f"nbs/{name}.ipynb"), "a = 1")
    assert list(notebooks()) == ["apple", "sum", "zebra", "last", "summary"]
    section = {"section": "Experiments", "contents": ["experiments/summary.ipynb", "gone.ipynb"]}
    write_order("zebra.ipynb", section, "sum.ipynb")
    assert list(notebooks()) == ["zebra", "summary", "sum", "apple", "last"]


def test_a_chapter_and_an_experiment_of_one_name(clone: Path) -> None:
    write_notebook(Path("nbs/experiments/sum.ipynb"), "left = 1")
    assert notebooks()["sum"] == Path("nbs/sum.ipynb") == find_notebook("03_sum")
    assert notebooks()["experiments/sum"] == Path("nbs/experiments/sum.ipynb") == find_notebook("experiments/sum")
    Path("both.yaml").write_text("sum: {right: 3}\nexperiments/sum: {left: 4}\n")
    assert "right = 3" in injected(run_notebook("sum", profile="both.yaml", out="out", progress=False) / "sum.ipynb")
    folder = run_notebook("experiments/sum", profile="both.yaml", out="more", progress=False)
    assert "left = 4" in injected(folder / "sum.ipynb")


def test_a_profile_with_numbered_sections_still_works(clone: Path) -> None:
    Path("old.yaml").write_text("03_sum: {left: 7}\nsummary: {left: 8}\n")
    assert "left = 7" in injected(run_notebook("sum", profile="old.yaml", out="out", progress=False) / "sum.ipynb")


@pytest.mark.parametrize("content", ["website: [", "website: 5", "- a list"])
def test_a_damaged_order(clone: Path, content: str) -> None:
    Path("_quarto.yml").write_text(content)
    with pytest.raises(UsageError, match="cannot read the order of the notebooks from _quarto.yml"): notebooks()


TYPED = """amp = "auto"
name = 'x'
steps = 3
rate = 0.5
loud = True
url = "u?a=1#b"  # with a = in it
names = ["a"]
sizes = [1, 2]
rates = [0.1, 1]
pairs = [["a", "b"]]
limit = None
table = {"a": 1}
half = 3 / 6
lines = [
    "one=1",  # a comment
    "two",
]
"""


@pytest.mark.parametrize(("name", "text", "value"), [
    ("amp", "off", "off"), ("name", "no", "no"), ("name", "007", "007"), ("name", "1:30", "1:30"), ("name", "1e3", "1e3"),
    ("name", "true", "true"), ("name", "null", "null"), ("name", "a=b", "a=b"), ("name", "", ""), ("name", "'no'", "no"),
    ("name", "a: b", "a: b"), ("name", "[x", "[x"), ("url", "u?a=2", "u?a=2"), ("url", "~", "~"),
    ("steps", "1e3", 1000), ("steps", "007", 7), ("steps", "-4", -4), ("steps", "2.5", 2.5), ("steps", "none", None),
    ("rate", "1", 1.0), ("rate", "1e-3", 0.001), ("rate", "-.5", -0.5),
    ("loud", "off", False), ("loud", "No", False), ("loud", "1", True),
    ("names", "no,yes", ["no", "yes"]), ("names", "[no, 007]", ["no", "007"]), ("names", "x", ["x"]), ("names", "", []),
    ("sizes", "1e3, 4", [1000, 4]), ("sizes", "[5]", [5]), ("sizes", "010", [10]), ("rates", "1,2", [1.0, 2.0]),
    ("pairs", "[[no, 1], [b, c]]", [["no", "1"], ["b", "c"]]), ("lines", "a=1,b", ["a=1", "b"]),
    ("limit", "3", 3), ("limit", "no", False), ("limit", "None", None), ("limit", "[1, 2]", [1, 2]),
    ("table", "{b: 2}", {"b": 2}), ("half", "0.25", 0.25), ("half", "x", "x"),
])
def test_the_default_says_what_a_value_is(clone: Path, name: str, text: str, value: object) -> None:
    write_notebook(Path("nbs/typed.ipynb"), TYPED, "steps")
    (found,) = read_parameters("typed", [(name, text)]).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("steps", "true", "parameter steps is a number (3 unless you say otherwise): 'true' is not"),
    ("steps", "1:30", "parameter steps is a number"), ("rate", "fast", "parameter rate is a number (0.5 unless"),
    ("rate", "", "parameter rate is a number"), ("loud", "maybe", "parameter loud is true or false (True unless"),
    ("loud", "2", "parameter loud is true or false"), ("sizes", "a,b", "parameter sizes is a list of numbers ([1, 2] unl"),
    ("sizes", "[1, 2", "cannot read the value '[1, 2'"), ("table", "3", "parameter table is a mapping ({'a': 1} unless"),
    ("stepps", "3", "typed.ipynb has no parameter stepps: it has amp, name, steps,"),
])
def test_a_value_that_does_not_fit_is_one_sentence(clone: Path, name: str, text: str, expected: str) -> None:
    write_notebook(Path("nbs/typed.ipynb"), TYPED, "steps")
    with pytest.raises(UsageError) as error: read_parameters("typed", [(name, text)])
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_values_from_python_and_from_profiles_are_checked(clone: Path) -> None:
    write_notebook(Path("nbs/typed.ipynb"), TYPED, "steps")
    assert notebook_parameters(Path("nbs/typed.ipynb"))["url"] == "u?a=1#b"
    assert isinstance(notebook_parameters(Path("nbs/typed.ipynb"))["half"], Computed)
    Path("words.yaml").write_text("amp: off\n")  # which YAML takes for a truth value
    with pytest.raises(UsageError, match="parameter amp is text .*: False is not"):
        run_notebook("typed", profile="words.yaml", progress=False)
    Path("words.yaml").write_text("rate: 1e-3\nsizes: 4\nlimit: no\n")  # text to YAML, a single number, no default
    folder = run_notebook("typed", {"name": "no", "loud": False}, profile="words.yaml", out="out", progress=False)
    for line in ("rate = 0.001", "sizes = [4]", "limit = False", 'name = "no"', "loud = False"):
        assert line in injected(folder / "typed.ipynb")


def test_the_parameters_of_another_language(clone: Path) -> None:
    r = {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}
    write_notebook(Path("nbs/other.ipynb"), "steps = 3", metadata=r)
    assert set(notebook_parameters(Path("nbs/other.ipynb"))) <= {"steps"}


def twice(x: int) -> tuple[dict, dict]:
    "Work whose code a test changes."
    DONE.append(x)
    return {"twice": 2 * x}, {}


DONE = []


def test_a_kept_result_of_other_code_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = lambda: run_tasks(twice, [(1,), (2,)], folder=tmp_path, settings={"a": 1})
    made_by = lambda **code: monkeypatch.setattr(runner, "code_of", lambda work: code)
    DONE.clear()
    made_by(twice="1", loop="1")
    first = run()
    assert run() == first and DONE == [1, 2] and capsys.readouterr().out == ""
    made_by(twice="1", loop="2", losses="1")
    monkeypatch.setenv("NETINV_ANY_CODE", "1")
    assert run() == first and DONE == [1, 2]
    assert capsys.readouterr().out == ("2 kept results of twice are of other code (loop, losses): they stay, as "
                                       "NETINV_ANY_CODE asks\n")
    monkeypatch.delenv("NETINV_ANY_CODE")
    assert run() == first and DONE == [1, 2, 1, 2]
    assert capsys.readouterr().out.endswith("(loop, losses): they are made anew\n")
    run()
    assert DONE == [1, 2, 1, 2] and capsys.readouterr().out == ""


def test_a_result_kept_before_code_was_written_down_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    DONE.clear()
    kept = {"task": [3], "settings": {}, "found": {"twice": 0}}
    save_tensors(tmp_path / "done/twice-3.safetensors", {}, kept)
    assert run_tasks(twice, [(3,)], folder=tmp_path, settings={})[(3,)][0] == {"twice": 6}
    assert "(nobody wrote down what made it): they are made anew" in capsys.readouterr().out


@pytest.mark.parametrize("resume, settings", [(False, {}), (True, {"b": 1})])
def test_no_line_where_code_is_not_the_reason(tmp_path, monkeypatch, capsys, resume: bool, settings: dict) -> None:
    DONE.clear()
    for code, more in (("1", {}), ("2", settings)):
        monkeypatch.setattr(runner, "code_of", lambda work, code=code: {"twice": code})
        run_tasks(twice, [(1,)], folder=tmp_path, settings=more, resume=resume)
    assert DONE == [1, 1] and capsys.readouterr().out == ""


def test_a_run_says_what_made_it(clone: Path) -> None:
    folder = run_notebook("sum", {"right": 3}, out="out", progress=False)
    made_by = json.loads((folder / "source.json").read_text())
    assert made_by["parameters"] == {"left": 1, "right": 3, "words": ["a"]} and [*made_by["code"]] == ["this page"]
    assert json.loads((folder / "sum.ipynb").read_text())["metadata"]["netinv"] == made_by
    assert made_by["versions"]["netinv"] == netinv.__version__
