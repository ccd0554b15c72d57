"The command line, from outside where a process of its own matters and from inside where it does not."
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import pytest
import yaml
from clones import clone, injected, write_notebook  # noqa: F401: clone is a fixture

from netinv.cli import main, print_classes
from netinv.flags import flags_of
from netinv.runner import PROCESS_SETTINGS, find_notebook, notebooks

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from netinv.cli import main; raise SystemExit(main())"]


def sentence(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    "What `netinv argv` complains about; it must be one line, exit code 2."
    try:
        code = main(list(argv))
    except SystemExit as e:  # argparse
        code = e.code
    err = capsys.readouterr().err
    *notes, told = err.splitlines(keepends=True)  # what is found on the way may be said before
    assert code == 2 and told.startswith("netinv: ") and all(note.startswith("netinv: note: ") for note in notes), err
    return told


def test_run_makes_a_folder_with_the_notebook(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "sum", "-p", "left", "-4"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("sum-")
    assert f"out_dir = {str(folder.resolve())!r}".replace("'", '"') in injected(folder / "sum.ipynb")
    assert "sum.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sum", "03_sum", "12_sum.ipynb", "nbs/sum", "nbs/sum.ipynb", "nbs/03_sum.ipynb"])
def test_numbered_names_of_old_still_work(clone: Path, name: str) -> None:
    assert main(["run", name, "--out", "out"]) == 0
    assert Path("out/sum.ipynb").exists()


def test_a_failing_cell(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = "for i in range(50): pass\na / 0"
    write_notebook(Path("nbs/bad.ipynb"), "a = 1", "print('reached')", failing, "print('never')")
    assert main(["run", "bad", "--out", "out"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in err and "----> 2 a / 0" in err
    assert err.rstrip().endswith(f"the partly executed notebook is {Path('out/bad.ipynb')}")
    kept = Path("out/bad.ipynb").read_text()
    assert '"reached\\n"' in kept and '"never\\n"' not in kept


def test_a_kernel_that_dies(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dying = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    write_notebook(Path("nbs/dies.ipynb"), "a = 1", "print('reached')", dying)
    assert main(["run", "dies", "--out", "out"]) == 1
    assert "the kernel died while it ran dies.ipynb" in capsys.readouterr().err
    assert '"reached\\n"' in Path("out/dies.ipynb").read_text()


def test_interrupted(clone: Path) -> None:
    waiting = "import time\nopen('../started', 'w').close()\ntime.sleep(60)"
    write_notebook(Path("nbs/slow.ipynb"), "a = 1", "print('reached')", waiting)
    run = subprocess.Popen(
        [*COMMAND, "run", "slow", "--out", "out"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not Path("started").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err
    assert err.rstrip().endswith("netinv: interrupted: the partly executed notebook is out/slow.ipynb")
    assert '"reached\\n"' in Path("out/slow.ipynb").read_text()


def test_a_command_without_words_is_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: netinv" in capsys.readouterr().out


def test_list_and_run_from_any_folder_of_a_clone(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("nbs/deep").mkdir()
    monkeypatch.chdir("nbs/deep")
    assert main(["list"]) == 0 and "sum" in capsys.readouterr().out


def test_a_parameter_with_an_equals_sign(clone: Path) -> None:
    assert main(["run", "sum", "-p", "left=40", "-p", "right", "2", "--out", "out"]) == 0
    assert "42" in Path("out/sum.ipynb").read_text()


def test_run_says_which_data_set_is_missing(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETINV_DATA", str(clone / "empty"))
    write_notebook(Path("nbs/asks.ipynb"), "dataset = 'svhn'\nothers = ['digits', 'mnist']", "print(1)")
    assert main(["run", "asks", "--out", "out"]) == 0
    said = capsys.readouterr().err
    assert all(f"{name} is not on this machine" in said for name in ("svhn", "mnist")) and "digits is" not in said


def test_an_assertion_under_other_parameters_has_a_sentence(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_notebook(Path("nbs/checks.ipynb"), "steps = 9", "assert steps > 5")
    assert main(["run", "checks", "-p", "steps", "3", "--out", "out"]) == 1
    assert "holds for the notebook's own parameters, and steps had another value" in capsys.readouterr().err


IDENTITY = "invert --model torch.nn:Identity --shape 1,8,8 --n_classes 3"
FLATTEN = "invert --model torch.nn:Flatten --shape 1,8,8 --n_classes 64"


@pytest.mark.parametrize(("argv", "expected"), [
    ("run summ", "there is no notebook summ: did you mean sum or summary?"),
    ("run nowhere/sums.ipynb", "there is no notebook nowhere/sums.ipynb: did you mean sum"),
    ("run sum -p lift 3", "sum.ipynb has no parameter lift: it has left, right, words, out_dir"),
    ("run sum -p left many", "parameter left is a number (1 unless you say otherwise): 'many' is not"),
    ("run sum -p left 1:30", "parameter left is a number"),
    ("run sum -p words [a", "cannot read the value '[a'"),
    ("run sum --profile huge", "there is no profile huge: smoke can be had here"),
    ("run sum --profile huge.yaml", "there is no profile huge.yaml"),
    ("run 11_widgets", "there is no notebook 11_widgets any more: its content is now in parts, studio and explorer"),
    ("run sum extra", "unrecognized arguments: extra (see netinv run --help)"),
    ("run sum --profil smoke --kernle x", "unrecognized arguments: --kernle x: did you mean --kernel?"),
    ("run sum --kernel abacus", "there is no Jupyter kernel abacus: give one of"),
    ("run sum --out nbs", "would be overwritten"),
    ("run sum --out nbs/sum.ipynb", "cannot make the run folder nbs/sum.ipynb"),
    ("run", "the following arguments are required: notebook"),
    ("walk", "invalid choice: 'walk'"),
    ("invert --model m:f --shape 28,28 --n_classes 10", "expected channels,height,width such as 3,32,32, got 28,28"),
    ("invert --model m:f --shape 1,28,28 --n_classes 10", "cannot import m: ModuleNotFoundError"),
    ("invert --model m --shape 1,28,28 --n_classes 10", "expected package.module:factory"),
    ("invert --model m:f --shape 1,8,8 --n_classes 3 --mean 0.1,x", "expected numbers such as 0.5"),
    (f"{IDENTITY} --resume", "--resume needs --out"),
    (f"{IDENTITY} --std 0", "std must be above zero"),
    (f"{IDENTITY} --until 95", "expected an accuracy above 0 and up to 1, such as 0.95, got 95"),
    (f"{IDENTITY} --steps -5", "expected a whole number such as 300, got -5"),
    (f"{FLATTEN} --alpha nan", "alpha is nan: expected 0 or a positive number"),
    (f"{FLATTEN} --gamma -1", "gamma is -1.0: expected 0 or a positive number"),
    (f"{FLATTEN} --gamma many", "argument --gamma: expected a number such as 16.0, got many"),
    (f"{FLATTEN} --eta_var 2", "unrecognized arguments: --eta_var (see netinv invert --help)"),
    (f"{FLATTEN} --learning-rate 2", "unrecognized arguments: --learning-rate (see netinv"),
    (f"{FLATTEN} --batch-sice 2", "did you mean --batch_size?"),
    (f"{FLATTEN} --lr fast", "argument --lr: expected a number such as 0.01, got fast"),
    (f"{FLATTEN} --n-generators 1.5", "expected a whole number such as 300, got 1.5"),
    (f"{FLATTEN} --dropout 1", "dropout is 1.0: expected a share"),
    (f"{FLATTEN} --conditioning labels", "expected one of label, vector, matrix"),
    (f"{FLATTEN} --amp fp8", "amp is 'fp8': expected 'auto', 'bf16' or 'off'"),
    (f"{FLATTEN} --batch_size many", "batch_size is 'many': expected a whole number, or 'auto'"),
    (f"{FLATTEN} --max_mb 0", "max_mb is 0.0: expected a number above 0"),
    (f"{FLATTEN} --max-classes 0", "max_classes is 0: expected 1 or more"),
    (f"{FLATTEN} --features nowhere", "has no layer 'nowhere'"),
    (f"{FLATTEN} --class-names a,b", "2 names for 64 classes"),
    (f"{FLATTEN} --class-names none.txt", "or a text file with a name a line, got none.txt"),
    (f"{FLATTEN} torch.nn:Identity", "two models are given, torch.nn:Identity and torch.nn:Flatten: give one"),
    ("invert --shape 1,8,8", "the following arguments are required: --model"),
    ("invert --model torch.nn:Flatten", "--shape"),
    ("look torch.nn:Flatten --shape 1,8,8 --data nowhere", "no data source 'nowhere'"),
    ("look torch.nn:Flatten --shape 1,8,8 --data digits", "images of 1x28x28 and the classifier takes 1x8x8: --resize"),
    ("look torch.nn:Flatten --shape 1,8,8 --images 1", "images is 1: expected 2 or more"),
    ("look torch.nn:Flatten --shape 1,8,8 --steps 3", "unrecognized arguments: --steps 3"),
    ("distil torch.nn:Flatten --shape 1,8,8 --resume", "--resume needs --out"),
    ("distil torch.nn:Flatten --shape 1,8,8 --steps 0", "steps is 0: expected 1 or more"),
    ("distil torch.nn:Flatten --shape 1,8,8 --seconds 0", "seconds is 0.0: expected a number above 0"),
    ("distil torch.nn:Flatten --shape 1,8,8 --lessons 0", "lessons is 0: expected 1 or more"),
    ("distil torch.nn:Flatten --shape 1,8,8 --student torch.nn:Flatten", "no weights that can be trained"),
    ("distil torch.nn:Flatten --shape 1,8,8 --student nowhere.py:net", "there is no file nowhere.py"),
    ("distil torch.nn:Flatten --shape 1,8,8 --data nowhere", "no data source 'nowhere'"),
    ("distil torch.nn:Flatten --shape 1,8,8 --data digits", "and the classifier takes 1x8x8: --resize scales them"),
    ("distil torch.nn:Flatten --shape 1,8,8 --recipe papper", "recipe 'papper' is unknown"),
    ("distil torch.nn:Flatten --shape 1,8,8 --lesons 3", "unrecognized arguments: --lesons 3: did you mean --lessons or --lesson_size?"),
    ("distil", "the following arguments are required: --model"),
    ("invret", "invalid choice: 'invret' (choose from 'list', 'run', 'look', 'invert', 'distil', 'audit'): did you mean invert?"),
    (f"{FLATTEN} --gama 2", "did you mean --gamma or --gamma_pix?"),
    (f"{FLATTEN} --generators 2", "did you mean --n_generators?"),
    (f"{FLATTEN} --classes 64", "classes is [64]: expected some of the labels 0 to 63"),
    (f"{FLATTEN} --classes two", "expected labels such as 0,3,5, got two"),
    (f"{FLATTEN} --batch_size 1", "batch_size is 1"),
    ("invert --model torch.nn:Flatten --shape 1,8,8 --n_classes 3", "64] but n_classes=3"),
    (f"{FLATTEN} --weights no.pt", "no.pt"),
    (f"{FLATTEN} --device abacus", "device 'abacus' cannot be used here"),
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


@pytest.mark.parametrize("content", ["- a list", "sum: 5", "sum: [1", "just words"])
def test_damaged_profiles(clone: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    Path("mine.yaml").write_text(content)
    assert "cannot read the profile mine.yaml" in sentence(capsys, "run", "sum", "--profile", "mine.yaml")


def test_a_profile_must_fit_the_notebook(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("sum: {lift: 1}")
    assert "has no parameter lift" in sentence(capsys, "run", "sum", "--profile", "mine.yaml")


def test_nothing_is_left_of_a_command_that_made_no_sense(clone: Path) -> None:
    for flags in (["-p", "lift", "3"], ["--kernel", "abacus"], ["--profile", "huge"]):
        assert main(["run", "sum", *flags]) == 2
    assert not Path("runs").exists()


def test_the_list_shows_this_clone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for stem in notebooks(): assert stem in out


def test_list_outside_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "go into a clone of netinv" in sentence(capsys, "list")
    assert "go into a clone of netinv" in sentence(capsys, "run", "losses")


@pytest.mark.parametrize("argv", ["--help", "run --help", "list --help", "invert --help", "distil --help", "--version"])
def test_help(capsys: pytest.CaptureFixture[str], argv: str) -> None:
    with pytest.raises(SystemExit) as stop: main(argv.split())
    assert stop.value.code == 0 and "netinv" in capsys.readouterr().out


def help_of(*argv: str) -> str:
    "What `netinv argv --help` prints, from a process in which PyTorch is imported where signatures are read off alone."
    script = """
import sys
from netinv.cli import main
LATE = [["invert"], ["look"], ["distil"]]
try: main([*sys.argv[1:], "--help"])
finally: assert not {"torch", "yaml", "papermill", "joblib"} & set(sys.modules) or sys.argv[1:] in LATE
"""
    options = dict(capture_output=True, text=True, check=True)
    environ = {**os.environ, "COLUMNS": "1000", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", script, *argv], env=environ, **options).stdout


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "77"}])
def test_the_command_is_told_its_settings_before_torch_is_loaded(own: dict[str, str]) -> None:
    script = """
import os, sys
class Spy:
    def find_spec(name, path=None, target=None):
        if name == "torch": print("torch sees", os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Spy)
from netinv.cli import main
main(["invert", "--help"])
"""
    hidden = (*PROCESS_SETTINGS, "OMP_WAIT_POLICY")
    environ = {name: value for name, value in os.environ.items() if name not in hidden} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environ | own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"torch sees {(PROCESS_SETTINGS | own)['GOMP_SPINCOUNT']}"


@pytest.mark.parametrize("command", ["", "list", "run"])
def test_help_needs_nothing_heavy(command: str) -> None:
    assert "usage: netinv" in help_of(*command.split())


def test_the_weights_of_invert_come_from_the_table() -> None:
    from netinv.objective import Inversion

    lines = help_of("invert").splitlines()
    for term in Inversion.terms:
        (line,) = [line for line in lines if line.split()[:1] == [f"--{term.name}"]]
        assert term.says in line and line.endswith(f"({term.default:g})")


def test_every_setting_is_a_flag() -> None:
    "The help of `netinv invert` is compared with the signatures, so that no parameter is left out."
    from netinv import Generator, Inversion, Inverter
    from netinv.bring import load_classifier

    lines = re.sub(r"\n {20,}", "  ", help_of("invert")).splitlines()  # what is long begins on the next line
    flags = ((line, line.strip().split("  ")[0]) for line in lines if line.startswith("  -"))
    shown = {flag: line for line, start in flags for flag in re.findall(r"--(\w+)", start)}
    left = {load_classifier: {"source", "preprocess", "classes", "wrap"}, Inverter.fit: {"checkpoint_dir", "on_step"},
            Inverter.__init__: {"classifier", "objective", "generator"}, Inverter.save: {"folder"},
            Generator.__init__: {"shape", "conditioning"}}
    for function, not_flags in left.items():
        names = set(signature(function).parameters) - not_flags - {"self"}
        assert names <= set(shown), names - set(shown)
        for flag in flags_of(function, *not_flags):
            assert flag.says and " ".join(flag.says.split()) in shown[flag.name], flag
            if isinstance(flag.default, str) or flag.default: assert shown[flag.name].endswith(")")
    assert {row.name for row in (*Inversion.terms, *Inversion.settings)} | {"mean", "std", "class_names"} <= set(shown)


def test_a_new_parameter_is_a_new_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    from netinv import Inverter
    from netinv.cli import build_parser

    def more(self, classifier, *, lr: float = 0.01, new_one: int | None = None, how: str = "well"): pass
    monkeypatch.setattr(Inverter, "__init__", more)
    args = build_parser().parse_args("invert --model m:f --new-one 3 --how 007".split())
    assert args.new_one == 3 and args.how == "007" and set(args.taken["inverter"]) == {"lr", "new_one", "how"}


def shown_commands() -> list[str]:
    "Every command that does something, in the code blocks of the pages."
    cells = [cell for path in notebooks(ROOT).values() for cell in json.loads(path.read_text())["cells"]]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", prose, re.DOTALL)).replace("\\\n", " ")
    return re.findall(r"^(?:\S*/)?netinv ((?:run|invert|look|distil) .*)$", blocks, re.MULTILINE)


def test_commands_on_the_pages_can_be_parsed() -> None:
    from netinv.cli import build_parser

    commands = shown_commands()
    assert len(commands) > 3 and {command.split()[0] for command in commands} == {"run", "invert", "look", "distil"}
    for command in commands:
        args = build_parser().parse_args(shlex.split(command, comments=True))
        if "notebook" in args: find_notebook(args.notebook, ROOT)


def test_a_new_term_is_a_new_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    from netinv.cli import build_parser
    from netinv.objective import Inversion, Term

    term = Term("zeta", "ζ", 3.0, "a term of 100 % fantasy", lambda view: view.images.mean())
    monkeypatch.setattr(Inversion, "terms", (*Inversion.terms, term))
    args = build_parser().parse_args("invert --model m:f --shape 1,8,8 --n_classes 3 --zeta 2".split())
    assert args.zeta == 2 and "zeta" in args.taken["weights"] and args.alpha is None


@pytest.mark.parametrize("words", ["--batch-size 8 --no-folded", "--batch_size=8 --no_folded", "--batch-siz 8 --no-fold"])
def test_words_in_a_flag_are_joined_in_either_way(words: str) -> None:
    from netinv.cli import build_parser

    args = build_parser().parse_args(["invert", "m:f", *words.split()])
    assert args.batch_size == 8 and args.folded is False


def test_a_value_may_begin_with_a_minus() -> None:
    from netinv.cli import build_parser

    args = build_parser().parse_args("invert m:f --mean -1,0,.5 --std .5 --output -1".split())
    assert args.mean == (-1, 0, 0.5) and args.std == (0.5,) and args.output == -1


def test_95_hits_of_100_are_95_percent(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    share = float(torch.tensor(0.95))
    assert share < 0.95
    print_classes([1.0, share, 0.94, None], unreachable=[])
    assert "below 95%: 2\n" in capsys.readouterr().out


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
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "usersown", raising=False)
    Path("usersown.py").write_text(CLASSIFIER)
    return tmp_path


INVERT = ["invert", "--shape", "1,8,8", "--n_classes", "3", "--steps", "4", "--device", "cpu", "--out", "out"]


def test_invert(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    import usersown

    save_file(usersown.small().state_dict(), "w.safetensors")
    extra = ["--weights", "w.safetensors", "--mean", "0.5", "--std", "0.5", "--n_generators", "2", "--alpha", "0.5"]
    assert main([*INVERT, "--model", "usersown:small", *extra]) == 0
    out = capsys.readouterr().out
    files = {path.name for path in Path("out").iterdir()}
    assert {"config.yaml", "metrics.json", "history.csv", "generator.safetensors", "samples.safetensors"} <= files
    assert "inversion accuracy" in out and "class" in out


def test_a_run_folder_of_invert_can_be_loaded(classifiers: Path) -> None:
    import usersown

    from netinv.bring import normaliser
    from netinv.frozen import FrozenClassifier
    from netinv.inversion import Inverter

    settings = {"n_generators": 2, "temperature": 0.25, "batch_size": 12, "lr": 0.005, "averaging": 0.5, "seed": 3}
    weights = {"alpha": 0.5, "gamma_pix": 0.0}
    flags = [part for name, value in (settings | weights).items() for part in (f"--{name}", str(value))]
    scale = ["--mean", "0.5", "--std", "0.25", "--classes", "0,2", "--conditioning", "label"]
    assert main([*INVERT, "--model", "usersown:small", *flags, *scale]) == 0

    preprocess = normaliser((0.5,), (0.25,), 1)
    frozen = FrozenClassifier(usersown.small(), shape=(1, 8, 8), preprocess=preprocess, device="cpu")
    inverter = Inverter.load("out", frozen)
    assert settings.items() <= inverter.config.items() and inverter.config["conditioning"] == "label"
    assert weights.items() <= inverter.objective.weights.items() and inverter.objective["beta"] == 8
    assert set(inverter.sample(8).labels.tolist()) == {0, 2}


def test_the_recipe_of_the_paper_and_what_is_given_beside_it(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper = [*INVERT, "--model", "usersown:small", "--recipe", "paper", "--batch_size", "8"]
    assert main([*paper, "--width", "2", "--gamma", "3", "--lr", "0.1"]) == 0
    config = yaml.safe_load(Path("out/config.yaml").read_text())
    assert [config[name] for name in ("shows", "pattern", "temperature", "lr", "batch_size")] == [
        "softmax", "cross", 1.0, 0.1, 8]
    assert config["generator"] == {"kind": "PaperGenerator", "latent_dim": 100, "width": 2, "dropout": 0.1}
    assert {name for name, weight in config["weights"].items() if weight} == {"alpha", "beta", "gamma", "delta"}
    assert config["weights"]["gamma"] == 3
    capsys.readouterr()
    told = sentence(capsys, *paper[:-2], "--recipe", "papper", "--out", "other")
    assert told == "netinv: recipe 'papper' is unknown: expected 'paper', or no recipe\n"


def test_config_and_flags_use_the_same_names(classifiers: Path) -> None:
    assert main([*INVERT, "--model", "usersown:small"]) == 0
    config = yaml.safe_load(Path("out/config.yaml").read_text())
    flags = set(re.findall(r"--(\w+)", help_of("invert")))
    run = {*config} - {"generator", "objective", "weights", "settings", "classifier"}
    assert {*run, *config["weights"], *config["settings"], *config["generator"]} - {"kind"} <= flags


def test_invert_reports_an_unreachable_class(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INVERT, "--model", "usersown:one_sided"]) == 0
    assert "unreachable" in capsys.readouterr().out


def test_invert_resumes(classifiers: Path) -> None:
    assert main([*INVERT, "--model", "usersown:small"]) == 0
    assert main([*INVERT, "--model", "usersown:small", "--steps", "6", "--resume"]) == 0
    assert len(Path("out/history.csv").read_text().splitlines()) == 1 + 6


def test_invert_begins_anew_where_there_is_nothing_to_resume(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INVERT, "--model", "usersown:small", "--resume"]) == 0
    assert "no checkpoint in out, beginning anew" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_inversion_says_how_to_go_on(classifiers: Path, number: int) -> None:
    words = [*INVERT, "--model", "usersown:small", "--steps", "1000000", "--checkpoint-every", "10"]
    run = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)},
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not Path("out/checkpoint.safetensors").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    _, err = run.communicate(timeout=120)
    told = re.search(r"interrupted: after step (\d+); go on with netinv (.*)", err)
    assert run.returncode == 130 and told and "Traceback" not in err
    assert main([*shlex.split(told[2]), "--steps", str(int(told[1]) + 1)]) == 0
    assert len(Path("out/history.csv").read_text().splitlines()) == 1 + int(told[1]) + 1


def test_invert_leaves_a_run_alone_that_it_is_not_told_to_go_on_with(
    classifiers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*INVERT, "--model", "usersown:small"]) == 0
    before = Path("out/checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    assert "out holds a run: --resume goes on with it" in sentence(capsys, *INVERT, "--model", "usersown:small")
    assert Path("out/checkpoint.safetensors").read_bytes() == before


def test_invert_with_a_factory_that_fails(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = sentence(capsys, *INVERT, "--model", "usersown:broken")
    assert "could not build a model: RuntimeError: no such file" in told


def test_a_factory_whose_import_fails_shows_the_line(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("usersbad.py").write_text("import os\nimport no_such_package\n")
    told = sentence(capsys, *INVERT, "--model", "usersbad:net")
    assert "No module named 'no_such_package' (usersbad.py, line 2)" in told
    assert "(usersown.py, line 15)" in sentence(capsys, *INVERT, "--model", "usersown:broken")


def test_settings_of_the_generator_and_of_the_objective_reach_the_run(classifiers: Path) -> None:
    flags = "--width 24 --brightness 0.4 --smooth 0 --stretch 0.1 --canvas 0 --latent-dim 8 --clean 0 --shift .1 --lag 0"
    more = "--features 1 --amp off --no-folded --batch-size auto --samples 30 --class-names a,b,c --checkpoint-every 2"
    assert main([*INVERT, "usersown:small", *flags.split(), *more.split()]) == 0
    config = yaml.safe_load(Path("out/config.yaml").read_text())
    wanted = {"width": 24, "brightness": 0.4, "smooth": 0, "stretch": 0.1, "canvas": 0, "latent_dim": 8}
    assert wanted.items() <= config["generator"].items() and isinstance(config["batch_size"], int)
    assert {"clean": 0, "shift": 0.1, "lag": 0}.items() <= config["settings"].items()
    assert json.loads(Path("out/metrics.json").read_text())["samples"] == 30


def test_the_end_of_a_run_says_how_to_go_on(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INVERT, "--model", "usersown:small", "--class-names", "ape,bee,cat", "--mean", ".5"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^    1 .*%  bee$", out, re.MULTILINE) and "look at it: out/samples.png" in out
    (command,) = re.findall(r"^train on:   netinv (.*)$", out, re.MULTILINE)
    (line,) = re.findall(r"^in Python:  (.*)$", out, re.MULTILINE)
    assert main([word if word != "100" else "8" for word in shlex.split(command)]) == 0
    assert len(Path("out/history.csv").read_text().splitlines()) == 1 + 8
    from netinv import Inverter
    from netinv.bring import load_classifier

    again = eval(line, {"Inverter": Inverter, "load_classifier": load_classifier})
    assert again.classifier.classes == ["ape", "bee", "cat"] and len(again.sample(6)) == 6


def test_warnings_are_sentences(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INVERT, "--model", "usersown:one_sided", "--no-progress"]) == 0
    err = capsys.readouterr().err
    (line,) = err.strip().splitlines()
    assert line.startswith("netinv: note: the logits of classes [2] are minus infinity")
    assert ".py" not in err and "Warning" not in err


def test_look_prints_one_page_and_writes_its_numbers(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("look usersown:small --shape 1,8,8 --data digits --resize --images 50 --json n.json".split()) == 0
    out, numbers = capsys.readouterr().out, json.loads(Path("n.json").read_text())
    assert "50 images of digits" in out and "warning signs:" in out and len(out.splitlines()) < 30
    assert numbers["n_classes"] == 3 and numbers["data"]["images"] == 50
    assert any("the data has 10 classes and the classifier has 3" in sign for sign in numbers["signs"])


def test_look_takes_a_folder_of_pictures_of_other_sizes(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    from PIL import Image

    for k in range(30):
        Path(f"photos/{'abc'[k % 3]}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 255, (9 + k % 4, 12), np.uint8)
        Image.fromarray(pixels).save(f"photos/{'abc'[k % 3]}/{k}.png")
    assert main("look usersown:small --shape 1,8,8 --data photos --resize".split()) == 0
    assert "6 images of" in capsys.readouterr().out


DISTIL = "distil netinv.play:digit_reader --shape 1,28,28 --lessons 1 --memory 200 --batch-size 10 --no-progress --out out"
STUDENT = """
from torch import nn

def net(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def short(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
"""


def test_distil_teaches_tests_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import netinv
    from netinv.bring import load_classifier
    from netinv.distil import small_student
    from netinv.play import digit_reader

    monkeypatch.chdir(tmp_path)
    assert main([*DISTIL.split(), "--steps", "2", "--data", "digits"]) == 0
    out, numbers = capsys.readouterr().out, json.loads(Path("out/metrics.json").read_text())
    assert {"config.yaml", "history.csv", "student.safetensors", "samples.png"} <= {p.name for p in Path("out").iterdir()}
    assert numbers["steps"] == 2 and numbers["images"] == 20
    (line,) = re.findall(r"^in Python:  (.*)$", out, re.MULTILINE)
    student = eval(line, {"load_classifier": load_classifier, "load_weights": netinv.load_weights,
                          "small_student": small_student}).eval()
    test, teacher = netinv.load_data("digits").test, digit_reader()
    with torch.no_grad(): told, wanted = (net(test.images.float() / 255).argmax(1) for net in (student, teacher))
    shares = [numbers[name] for name in ("student_accuracy", "teacher_accuracy", "agreement")]
    own = [(a == b).float().mean().item() for a, b in ((told, test.labels), (wanted, test.labels), (told, wanted))]
    assert shares == pytest.approx(own, abs=2e-3) and shares[1] > 0.95 and numbers["test_images"] == len(test)
    assert f"teacher {shares[1]:.1%} right, student {shares[0]:.1%}, the same answer to {shares[2]:.1%}" in out


def test_a_student_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from netinv.bring import load_network
    from netinv.weights import load_weights

    monkeypatch.chdir(tmp_path)
    Path("userstudent.py").write_text(STUDENT)
    told = sentence(capsys, *DISTIL.split(), "--steps", "2", "--student", "userstudent.py:short")
    assert told == "netinv: the student has 3 classes and the teacher 10: give one with as many\n" and not Path("out").exists()
    words = "--steps 2 --student userstudent.py:net --recipe paper --width 2 --gamma 3 --batch-size 8".split()
    assert main([*DISTIL.split(), *words]) == 0
    (line,) = re.findall(r"^in Python:  (.*)$", capsys.readouterr().out, re.MULTILINE)
    student = eval(line, {"load_network": load_network, "load_weights": load_weights})
    config = yaml.safe_load(Path("out/config.yaml").read_text())
    assert student[1].weight.shape == (10, 784) and "student_accuracy" not in Path("out/metrics.json").read_text()
    assert config["generator"]["kind"] == "PaperGenerator" and config["weights"]["gamma"] == 3 and config["lessons"] == 1


def test_a_distillation_goes_on_and_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from netinv.distil import Distiller

    def pressing(self: Distiller) -> None:
        study(self)
        if self.step == 12 and not Path("pressed").exists():
            Path("pressed").touch()
            signal.raise_signal(signal.SIGINT)
    monkeypatch.chdir(tmp_path)
    study = Distiller.study
    monkeypatch.setattr(Distiller, "study", pressing)
    assert main([*DISTIL.split(), "--steps", "14"]) == 130
    told = re.search(r"interrupted: after step (\d+); go on with netinv (.*)", capsys.readouterr().err)
    assert told[1] == "12" and not Path("out/student.safetensors").exists()
    assert "out holds a run: --resume goes on with it" in sentence(capsys, *DISTIL.split(), "--steps", "14")
    assert main(shlex.split(told[2])) == 0 and len(Path("out/history.csv").read_text().splitlines()) == 1 + 14
    words = shlex.split(told[2].replace("--out out", "--out whole").replace(" --resume", ""))
    assert main(words) == 0
    assert Path("out/student.safetensors").read_bytes() == Path("whole/student.safetensors").read_bytes()


def test_every_setting_of_a_distillation_is_a_flag() -> None:
    from netinv import Inverter
    from netinv.distil import Distiller

    lines = help_of("distil").splitlines()
    named = {flag for line in lines if line.startswith("  -") for flag in re.findall(r"--(\w+)", line.split("  ")[1])}
    for function in (Distiller.__init__, Distiller.teach, Inverter.__init__):
        left = {"self", "teacher", "student", "settings", "classifier", "objective", "generator", "checkpoint_dir", "on_step"}
        assert set(signature(function).parameters) - left <= named
    assert any("--student small.py:net" in line for line in lines) and {"student", "data", "resize", "gamma"} <= named
    for flag in flags_of(Distiller.__init__): assert flag.says, f"{flag.name} says nothing"


def test_a_student_is_not_tested_on_classes_that_the_teacher_does_not_have(
    classifiers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = sentence(capsys, *"distil usersown:small --shape 1,8,8 --data digits --resize --out out".split())
    assert "labels" in told and "3 classes" in told and not Path("out").exists()
