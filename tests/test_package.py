"The package as pip sees it: light to import, and complete without the development tools."
import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(ROOT.glob("netinv/*.py"))
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
HEAVY = {"pandas", "matplotlib", "sklearn", "scipy", "torchvision", "torchmetrics", "papermill", "IPython", "prdc", "vendi_score"}


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


def test_import_is_light() -> None:
    modules = ", ".join(f"netinv.{path.stem}" for path in MODULES if path.stem != "widgets")  # which is nothing without IPython
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()
    assert not HEAVY & set(loaded)


def test_the_command_line_starts_without_torch() -> None:
    script = "import sys; from netinv.cli import build_parser; build_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_import_only_what_is_required(module: Path) -> None:
    assert distributions(imported(module.read_text(encoding="utf-8"))) <= requirements("requirements")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_only_what_is_required(notebook: Path) -> None:
    "`netinv run` must work where the package was installed without the development tools."
    assert distributions(imported(code(notebook))) <= requirements("requirements")


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
            if canonicalize_name(need.name) == canonicalize_name(pin.name): assert need.specifier.contains(version), str(pin)
