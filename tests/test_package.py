"The package as pip sees it: light to import, and complete without the development tools."
import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import netinv
from netinv import moved

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(ROOT.glob("netinv/*.py"))
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
HEAVY = {"pandas", "matplotlib", "sklearn", "scipy", "torchvision", "torchmetrics", "papermill", "IPython", "prdc",
         "vendi_score"}
WIDGETS = {"parts", "workbench", "studio", "explorer"}  # which are nothing without IPython
OLD_NAMES = json.loads((ROOT / "tests/names_0_1_0.json").read_text(encoding="utf-8"))  # of each module in 0.1.0


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def requirements(key: str) -> set[str]:
    "The canonical names in one of settings.ini's lists."
    return {canonicalize_name(Requirement(line).name) for line in settings()[key].split()}


def imported(source: str) -> set[str]:
    "The packages that Python source imports, wherever in it, without its own and those of the standard library."
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0: names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"netinv", "__future__"}


def distributions(packages: set[str]) -> set[str]:
    "The canonical names under which PyPI has `packages`: sklearn is scikit-learn."
    known = importlib.metadata.packages_distributions()
    return {canonicalize_name(known.get(package, [package])[0]) for package in packages}


def code(notebook: Path) -> str:
    "All Python of a notebook."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)


def in_a_new_python(script: str, folder: Path = ROOT, **env: str) -> str:
    "What a script prints in a process of its own, started in `folder`."
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_netinv_imports_next_to_nothing() -> None:
    script = "import sys; before = set(sys.modules); import netinv; dir(netinv); print(*set(sys.modules) - before)"
    loaded = {name.split(".")[0] for name in in_a_new_python(script).split()}
    assert loaded <= {"netinv", *sys.stdlib_module_names}


def test_rooms_are_light() -> None:
    rooms = ", ".join(f"netinv.{path.stem}" for path in MODULES if path.stem not in WIDGETS)
    assert not HEAVY & set(in_a_new_python(f"import sys, {rooms}; print(*sys.modules)").split())


def test_the_command_line_starts_without_torch() -> None:
    script = "import sys; from netinv.cli import build_parser; build_parser(); assert 'torch' not in sys.modules"
    in_a_new_python(script)


def test_the_public_face_is_small() -> None:
    assert 20 <= len(netinv.__all__) <= 30 and len(set(netinv.__all__)) == len(netinv.__all__)
    assert set(netinv.__all__) <= set(dir(netinv))


@pytest.mark.parametrize("name", netinv.__all__)
def test_a_public_name_comes_from_its_room(name: str) -> None:
    room = import_module(f"netinv.{netinv._ROOM_OF[name]}")
    assert getattr(netinv, name) is getattr(room, name) and getattr(netinv, name).__module__ == room.__name__
    assert name in room.__all__ and name in vars(netinv)  # kept, so that it is looked up once


def test_a_star_brings_the_public_face() -> None:
    names: dict[str, object] = {}
    exec("from netinv import *", names)
    assert set(netinv.__all__) <= set(names)


def test_the_export_leaves_the_public_face_alone(tmp_path: Path) -> None:
    "nbdev writes the version into netinv/__init__.py, and nothing else."
    from nbdev.config import update_version

    text = (ROOT / "netinv/__init__.py").read_text(encoding="utf-8")
    (tmp_path / "__init__.py").write_text(text, encoding="utf-8")
    update_version(tmp_path)
    assert (tmp_path / "__init__.py").read_text(encoding="utf-8") == text
    assert netinv.__version__ == settings()["version"]


@pytest.mark.parametrize("room, name", [(room, name) for room, names in OLD_NAMES.items() for name in names])
def test_a_name_of_0_1_0_is_there_or_says_where_it_went(room: str, name: str) -> None:
    if room in moved.DIVIDED: return
    module = import_module(f"netinv.{room}")
    if hasattr(module, name): return
    line = f"from netinv.{room} import {name}"
    with pytest.raises(ImportError, match=rf"^{name} is (now|private)") as said: exec(line, {})
    with pytest.raises(AttributeError) as asked: getattr(module, name)
    assert str(asked.value) == str(said.value)
    for other in re.findall(r"netinv\.([a-z]+)", str(said.value)): import_module(f"netinv.{other}")  # it is there


def test_a_room_of_0_1_0_is_there_or_says_what_it_became() -> None:
    for room in OLD_NAMES:
        if room not in moved.DIVIDED:
            import_module(f"netinv.{room}")
            continue
        for line in (f"import netinv.{room}", f"from netinv.{room} import anything", f"from netinv import {room}"):
            with pytest.raises(ImportError, match=rf"^netinv\.{room} is now"): exec(line, {})


def test_sentences_about_old_names_tell_the_truth() -> None:
    "What the table names can be imported, and is not an old name itself."
    for old, sentence in moved.RENAMED.items():
        for name, room in re.findall(r"(\w+) in netinv\.([a-z]+)", sentence):
            assert hasattr(import_module(f"netinv.{room}"), name), old
        assert any(old in names for names in OLD_NAMES.values()), old


def test_a_name_that_never_was_is_an_ordinary_error() -> None:
    for room in ("netinv.losses", "netinv"):
        with pytest.raises(ImportError, match="cannot import name 'nonsense'"): exec(f"from {room} import nonsense", {})
    with pytest.raises(AttributeError, match="'netinv' has no attribute 'nonsense'"): netinv.nonsense
    with pytest.raises(ModuleNotFoundError, match="No module named 'netinv.nonsense'"):
        exec("import netinv.nonsense", {})
    assert not hasattr(import_module("netinv.losses"), "observe")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_import_only_what_is_required(module: Path) -> None:
    assert distributions(imported(module.read_text(encoding="utf-8"))) <= requirements("requirements")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_only_what_is_required(notebook: Path) -> None:
    "`netinv run` must work where the package was installed without the development tools."
    source = code(notebook)
    own = set(re.findall(r"""Path\(["'](\w+)\.py["']\)\.write_text""", source))  # modules that an example writes
    assert distributions(imported(source) - own) <= requirements("requirements")


def test_every_requirement_is_used() -> None:
    used = distributions(set().union(*(imported(path.read_text(encoding="utf-8")) for path in MODULES)))
    used |= distributions(set().union(*(imported(code(path)) for path in NOTEBOOKS)))
    indirect = {"ipykernel", "ipywidgets"}  # the kernel that papermill starts, and what tqdm's bars are made of there
    assert requirements("requirements") - used <= indirect, "remove them from settings.ini"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_every_module_has_its_notebook(module: Path) -> None:
    if module.stem in ("__init__", "_modidx"): return
    source = re.search(r"File to edit: \.\./(\S+)\.$", module.read_text(encoding="utf-8"), re.MULTILINE)
    assert source and (ROOT / source[1]).is_file()


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    assert requirements("requirements") | requirements("dev_requirements") <= pins


def test_constraints_belong_to_the_requirements() -> None:
    "Each pin lies in the range that settings.ini allows, for every Python version it names."
    wanted = [Requirement(line) for key in ("requirements", "dev_requirements") for line in settings()[key].split()]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for pin in (Requirement(line) for line in lines if line and not line.startswith("#")):
        version = str(pin.specifier).removeprefix("==")
        for need in wanted:
            if canonicalize_name(need.name) == canonicalize_name(pin.name):
                assert need.specifier.contains(version), str(pin)


def test_a_wheel_is_complete(tmp_path: Path) -> None:
    "Built, installed into an empty folder and used from there: a studio opens, with its JavaScript and CSS."
    source, site = tmp_path / "source", tmp_path / "site"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "netinv", source / "netinv", ignore=skip)
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    here = ["--no-build-isolation"] if find_spec("setuptools") else []  # else pip fetches it
    subprocess.run([*pip, "wheel", "--no-deps", *here, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)], check=True)
    files = lambda package: {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    assert files(site / "netinv") == files(source / "netinv")
    script = """
from pathlib import Path
import netinv
from netinv import CNN, FrozenClassifier, InversionStudio
studio = InversionStudio(FrozenClassifier(CNN((1, 8, 8), 3), shape=(1, 8, 8), device="cpu"))
print(Path(netinv.__file__).parent, studio.inverter.step)
studio.close()
"""
    assert in_a_new_python(script, tmp_path, PYTHONPATH=str(site)).split() == [str(site / "netinv"), "0"]
