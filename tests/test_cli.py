"The command line, from outside where a process of its own matters and from inside where it does not."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat.v4 as nbf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netinv.cli import UsageError, main, notebooks, parse_value, run_notebook

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from netinv.cli import main; raise SystemExit(main())"]


def write_notebook(path: Path, *cells: str, metadata: dict | None = None) -> Path:
    "A notebook whose first code cell holds the parameters."
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nb = nbf.new_notebook(metadata=kernel if metadata is None else metadata)
    nb.cells = [nbf.new_markdown_cell("# Title\n\n> What it does"), *map(nbf.new_code_cell, cells)]
    nb.cells[1].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb))
    return path


def sentence(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    "What `netinv argv` complains about; it must be one line, exit code 2."
    try:
        code = main(list(argv))
    except SystemExit as e:  # argparse
        code = e.code
    out, err = capsys.readouterr()
    assert code == 2 and err.startswith("netinv: ") and err.count("\n") == 1, (code, out, err)
    return err


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "The current folder, with one chapter and one experiment."
    monkeypatch.chdir(tmp_path)
    write_notebook(Path("nbs/03_sum.ipynb"), "left = 1\nright = 2.5\nwords = ['a']\nout_dir = '.'", "total = left + right", "print(total)")
    write_notebook(Path("nbs/experiments/summary.ipynb"), "left = 1", "left")
    Path("nbs/experiments/profiles").mkdir()
    Path("nbs/experiments/profiles/smoke.yaml").write_text("03_sum: {left: 10, right: 20}\n")
    return tmp_path


def injected(notebook: Path) -> str:
    "The cell in which papermill set the parameters."
    cells = json.loads(notebook.read_text())["cells"]
    return "".join(next(cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", []))["source"])


def test_run_makes_a_folder_with_the_notebook(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "sum", "-p", "left", "-4"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("03_sum-")
    assert f"out_dir = {str(folder.resolve())!r}".replace("'", '"') in injected(folder / "03_sum.ipynb")
    assert "03_sum.ipynb" in capsys.readouterr().out


def test_values_win_over_the_profile(clone: Path) -> None:
    folder = run_notebook("sum", {"right": 3}, profile="smoke", out="out", progress=False)
    assert "left = 10" in injected(folder / "03_sum.ipynb") and "right = 3" in injected(folder / "03_sum.ipynb")


def test_a_given_out_dir_is_left_alone(clone: Path) -> None:
    folder = run_notebook("sum", {"out_dir": "elsewhere"}, out="out", progress=False)
    assert 'out_dir = "elsewhere"' in injected(folder / "03_sum.ipynb")


def test_the_notebook_runs_in_its_own_folder_and_stays_as_it_was(clone: Path) -> None:
    path = write_notebook(Path("nbs/where.ipynb"), "a = 1", "import pathlib\npathlib.Path('mark').touch()")
    before = path.read_bytes()
    run_notebook("where", out="out", progress=False)
    assert Path("nbs/mark").exists() and path.read_bytes() == before


def test_the_kernel_is_this_python_whatever_jupyter_has_installed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoy = Path("jupyter/kernels/python3")
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "decoy", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(Path("jupyter").resolve()))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write_notebook(Path("nbs/who.ipynb"), "expected = ''", "import sys\nassert sys.executable == expected")
    run_notebook("who", {"expected": sys.executable}, out="out", progress=False)
    assert os.environ["JUPYTER_PATH"] == str(Path("jupyter").resolve())


def test_the_kernel_keeps_its_memory_unless_told_otherwise(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123456")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    write_notebook(Path("nbs/env.ipynb"), "a = 1", "import os\nassert os.environ['MALLOC_MMAP_MAX_'] == '0' and os.environ['MALLOC_TRIM_THRESHOLD_'] == '123456'")
    run_notebook("env", out="out", progress=False)
    assert "MALLOC_MMAP_MAX_" not in os.environ


def test_a_failing_cell(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_notebook(Path("nbs/bad.ipynb"), "a = 1", "print('reached')", "for i in range(50): pass\na / 0", "print('never')")
    assert main(["run", "bad", "--out", "out"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in err and "----> 2 a / 0" in err
    assert err.rstrip().endswith(f"the partly executed notebook is {Path('out/bad.ipynb')}")
    kept = Path("out/bad.ipynb").read_text()
    assert '"reached\\n"' in kept and '"never\\n"' not in kept


def test_a_kernel_that_dies(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_notebook(Path("nbs/dies.ipynb"), "a = 1", "print('reached')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert main(["run", "dies", "--out", "out"]) == 1
    assert "the kernel died while it ran dies.ipynb" in capsys.readouterr().err
    assert '"reached\\n"' in Path("out/dies.ipynb").read_text()


def test_interrupted(clone: Path) -> None:
    write_notebook(Path("nbs/slow.ipynb"), "a = 1", "print('reached')", "import time\nopen('../started', 'w').close()\ntime.sleep(60)")
    run = subprocess.Popen([*COMMAND, "run", "slow", "--out", "out"], stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background jobs ignore it
    while not Path("started").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err.rstrip().endswith("netinv: interrupted") and "Traceback" not in err
    assert '"reached\\n"' in Path("out/slow.ipynb").read_text()


@pytest.mark.parametrize(("argv", "expected"), [
    ("run summ", "there is no notebook summ: did you mean sum or summary?"),
    ("run nowhere/sums.ipynb", "there is no notebook nowhere/sums.ipynb: did you mean sum"),
    ("run sum -p lift 3", "03_sum.ipynb has no parameter lift: it has left, right, words, out_dir"),
    ("run sum -p left many", "parameter left is a number"),
    ("run sum -p words [a", "cannot read the value '[a'"),
    ("run sum --profile huge", "there is no profile huge: smoke can be had here"),
    ("run sum --profile huge.yaml", "there is no profile huge.yaml"),
    ("run sum --kernel abacus", "there is no Jupyter kernel abacus: give one of"),
    ("run sum --out nbs", "would be overwritten"),
    ("run sum --out nbs/03_sum.ipynb", "cannot make the run folder nbs/03_sum.ipynb"),
    ("run", "the following arguments are required: notebook"),
    ("walk", "invalid choice: 'walk'"),
    ("invert --model m:f --shape 28,28 --classes 10", "expected channels,height,width such as 3,32,32, got 28,28"),
    ("invert --model m:f --shape 1,28,28 --classes 10", "cannot import m: ModuleNotFoundError"),
    ("invert --model m --shape 1,28,28 --classes 10", "expected package.module:factory"),
    ("invert --model m:f --shape 1,8,8 --classes 3 --mean 0.1,x", "expected numbers such as 0.5"),
    ("invert --model torch.nn:Identity --shape 1,8,8 --classes 3 --resume", "--resume needs --out"),
    ("invert --model torch.nn:Identity --shape 1,8,8 --classes 3 --std 0", "--std must be above zero"),
    ("invert --model torch.nn:Identity --shape 1,8,8 --classes 3 --until 95", "expected an accuracy above 0 and up to 1, such as 0.95, got 95"),
    ("invert --model torch.nn:Identity --shape 1,8,8 --classes 3 --steps -5", "expected a whole number such as 300, got -5"),
    ("invert --model torch.nn:Flatten --shape 1,8,8 --classes 64 --alpha nan", "alpha is nan: expected a number of at least 0"),
    ("invert --model torch.nn:Flatten --shape 1,8,8 --classes 3", "64] but n_classes=3"),
    ("invert --model torch.nn:Flatten --shape 1,8,8 --classes 64 --weights no.pt", "no.pt"),
    ("invert --model torch.nn:Flatten --shape 1,8,8 --classes 64 --device abacus", "device 'abacus' cannot be used here"),
])
def test_bad_usage_is_one_sentence(clone: Path, capsys: pytest.CaptureFixture[str], argv: str, expected: str) -> None:
    assert expected in sentence(capsys, *argv.split())


@pytest.mark.parametrize(("content", "expected"), [
    ("", "is not a notebook, or a damaged one"),
    ("{}", "is not a notebook, or a damaged one"),
    ('{"cells": []}', "is not a notebook, or a damaged one"),
    ("[1, 2", "is not a notebook, or a damaged one"),
])
def test_damaged_notebooks(clone: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str) -> None:
    Path("nbs/damaged.ipynb").write_text(content)
    assert expected in sentence(capsys, "run", "damaged")
    assert expected in sentence(capsys, "list")


def test_a_notebook_without_a_kernel(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_notebook(Path("nbs/bare.ipynb"), "a = 1", metadata={})
    assert "does not say which kernel it is for" in sentence(capsys, "run", "bare")


@pytest.mark.parametrize("content", ["- a list", "03_sum: 5", "03_sum: [1", "just words"])
def test_damaged_profiles(clone: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    Path("mine.yaml").write_text(content)
    assert "cannot read the profile mine.yaml" in sentence(capsys, "run", "sum", "--profile", "mine.yaml")


def test_a_profile_must_fit_the_notebook(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("03_sum: {lift: 1}")
    assert "has no parameter lift" in sentence(capsys, "run", "sum", "--profile", "mine.yaml")


def test_nothing_is_left_of_a_command_that_made_no_sense(clone: Path) -> None:
    for argv in (["run", "sum", "-p", "lift", "3"], ["run", "sum", "--kernel", "abacus"], ["run", "sum", "--profile", "huge"]):
        assert main(argv) == 2
    assert not Path("runs").exists()


@given(st.one_of(st.integers(-10**9, 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_plain_python_values_survive_the_command_line(value: object) -> None:
    text = {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else repr(value)
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    try:
        parse_value(text)
    except UsageError as e:
        assert "expected a YAML scalar or list" in str(e)


def test_the_list_shows_this_clone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for stem in notebooks(): assert stem in out


def test_list_outside_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "run netinv in a clone" in sentence(capsys, "list")
    assert "run netinv in a clone" in sentence(capsys, "run", "losses")


@pytest.mark.parametrize("argv", ["--help", "run --help", "list --help", "invert --help", "--version"])
def test_help(capsys: pytest.CaptureFixture[str], argv: str) -> None:
    with pytest.raises(SystemExit) as stop: main(argv.split())
    assert stop.value.code == 0 and "netinv" in capsys.readouterr().out


CLASSIFIER = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))

def one_sided():
    model = small()
    with torch.no_grad(): model[-1].bias[2] = -torch.inf
    return model

def broken():
    raise RuntimeError("no such file")
"""


@pytest.fixture
def classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "usersown", raising=False)
    Path("usersown.py").write_text(CLASSIFIER)
    return tmp_path


INVERT = ["invert", "--shape", "1,8,8", "--classes", "3", "--steps", "4", "--device", "cpu", "--out", "out"]


def test_invert(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    sys.path.insert(0, str(classifiers))
    import usersown

    save_file(usersown.small().state_dict(), "w.safetensors")
    extra = ["--weights", "w.safetensors", "--mean", "0.5", "--std", "0.5", "--generators", "2", "--alpha", "0.5"]
    assert main([*INVERT, "--model", "usersown:small", *extra]) == 0
    out = capsys.readouterr().out
    files = {path.name for path in Path("out").iterdir()}
    assert {"config.yaml", "metrics.json", "history.csv", "generator.safetensors", "samples.safetensors"} <= files
    assert "inversion accuracy" in out and "class" in out


def test_invert_reports_an_unreachable_class(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INVERT, "--model", "usersown:one_sided"]) == 0
    assert "unreachable" in capsys.readouterr().out


def test_invert_resumes(classifiers: Path) -> None:
    assert main([*INVERT, "--model", "usersown:small"]) == 0
    assert main([*INVERT, "--model", "usersown:small", "--steps", "6", "--resume"]) == 0
    assert len(Path("out/history.csv").read_text().splitlines()) == 1 + 6


def test_invert_leaves_a_run_alone_that_it_is_not_told_to_go_on_with(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INVERT, "--model", "usersown:small"]) == 0
    before = Path("out/checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    assert "out holds a run: --resume goes on with it" in sentence(capsys, *INVERT, "--model", "usersown:small")
    assert Path("out/checkpoint.safetensors").read_bytes() == before


def test_invert_with_a_factory_that_fails(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "could not build a model: RuntimeError: no such file" in sentence(capsys, *INVERT, "--model", "usersown:broken")


def test_tasks_run_side_by_side_from_a_notebook(tmp_path: Path) -> None:
    "A function of __main__ that names torch and an attribute `classes` made the pickler stumble over `torch.classes`."
    script = tmp_path / "experiment.py"
    script.write_text("""
import os
import sys
import torch
from netinv.cli import run_tasks
from netinv.data import load_data

data = load_data("digits", device="cpu")
def work(k): return {"sum": k + len(data.classes), "keeps memory": os.environ.get("MALLOC_MMAP_MAX_")}, {"row": torch.arange(k)}
if __name__ == "__main__": print(*run_tasks(work, [(2,), (3,)], folder=sys.argv[1], settings={}, jobs=2)[(3,)][0].values())
""")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, cwd=tmp_path,
                          env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    assert done.stdout.strip() == "13 0", done.stderr
