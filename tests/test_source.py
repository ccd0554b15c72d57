"netinv.source: digests hear every change of what is computed, and are deaf to prose."
import json
import subprocess
import sys
from pathlib import Path

import nbformat.v4 as nbf
import pytest

from netinv import source
from netinv.source import changes, code_of, digest, digests, page_code

ROOT = Path(__file__).resolve().parent.parent
CODE = '''
class A(Base):
    "A thing."
    x: int = 1

    def f(self, n: int = 2) -> float:
        "Divide."
        if n == 0: raise ValueError(f"n is {n}: give another number")
        return self.x / n  # exact
'''


@pytest.mark.parametrize("old, new", [
    ('    "A thing."\n', ""), ('"Divide."', '"Divide, exactly."'), ("x: int = 1", "x: float = 1"), ("# exact", "#"),
    (" -> float", ""), ("n: int = 2", "n=2"), ("give another number", "it must not be"), ("self.x / n", "(self.x /\n n)"),
    ("class A", "import typing\nif typing.TYPE_CHECKING:\n    import torch\nclass A"),
])  # fmt: skip
def test_prose_is_not_heard(old: str, new: str) -> None:
    assert old in CODE
    changed = CODE.replace(old, new).replace("import typing\n", "")
    assert digest(changed) == digest(CODE)


@pytest.mark.parametrize("old, new", [
    ("= 2", "= 3"), ("= 2", "= 2.0"), ("x: int = 1", "x: int"), ("self.x / n", "self.x // n"), ("ValueError", "KeyError"),
    ("n == 0", "n is 0"), ("(Base)", ""), ("self.x / n", "'self.x / n'"), ("def f", "async def f"), ("f(self", "g(self"),
])  # fmt: skip
def test_everything_else_is(old: str, new: str) -> None:
    assert old in CODE and digest(CODE.replace(old, new)) != digest(CODE)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    "Four modules, of which `top` uses `middle` and, inside a function, `low`."
    texts = {"low": "x = 1", "middle": "from netinv.low import x", "aside": "y = 2",
             "top": "from .middle import x\nif TYPE_CHECKING:\n    from .aside import y\n"
                    "def f():\n    import netinv.low\n    from . import middle"}
    for name, text in texts.items(): (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_a_change_reaches_all_that_use_it(package: Path) -> None:
    was = {room: digests(room, folder=package) for room in ("top", "middle", "low", "aside")}
    assert [*was["top"]] == ["netinv.low", "netinv.middle", "netinv.top"] and [*was["aside"]] == ["netinv.aside"]
    (package / "low.py").write_text("x = 3")
    now = {room: digests(room, folder=package) for room in was}
    assert {room for room in was if now[room] != was[room]} == {"top", "middle", "low"}
    assert changes(was["top"], now["top"]) == "netinv.low"


def test_modules_in_a_circle_end(package: Path) -> None:
    (package / "low.py").write_text("from .top import f")
    assert len(digests("low", folder=package)) == 3


def test_the_public_face_stands_for_modules() -> None:
    found = digests("studio")  # imports Inverter from netinv itself
    assert {"netinv.inversion", "netinv.loop"} < {*found} and "netinv.cli" not in found


def helper(x): return x + 1
def through(x): return [helper(one) for one in x]
def apart(x): return x
class Thing:
    def grow(self): return helper(self)
THING, TABLE = Thing(), {"one": [helper]}
def of_an_object(): return THING.grow()
def of_a_table(): return TABLE["one"][0](1)
def of_an_import():
    from netinv import Generator
    return Generator


@pytest.mark.parametrize("work, own, room", [
    (through, {"through", "helper"}, None), (apart, {"apart"}, None), (of_a_table, {"of_a_table", "helper"}, None),
    (of_an_object, {"of_an_object", "Thing.grow", "helper"}, None), (of_an_import, {"of_an_import"}, "netinv.generator"),
    (digest, set(), "netinv.source"), (Thing(), {"Thing.grow", "helper"}, None),
])  # fmt: skip
def test_the_code_of_a_function_is_all_it_reaches(work, own: set, room: str | None) -> None:
    found = code_of(work)
    assert {name for name in found if not name.startswith("netinv.")} == own
    assert (room in found) if room else own == {*found}


def test_a_function_without_a_text_has_a_digest() -> None:
    made = [{}, {}, {}]
    for space, code in zip(made, ("def f(x): return x + 1", "def f(x): return x + 1", "def f(x): return x + 2")):
        exec(code, space)
        space["f"].__module__ = "elsewhere"
    same, again, other = (code_of(space["f"])["f"] for space in made)
    assert same == again != other


def page(folder: Path, *cells: str, parameters: str = "steps = 3") -> Path:
    nb = nbf.new_notebook(cells=[nbf.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
                                 nbf.new_markdown_cell("Words"), *map(nbf.new_code_cell, cells)])
    (folder / "page.ipynb").write_text(json.dumps(nb))
    return folder / "page.ipynb"


def test_the_code_of_a_page_is_that_of_its_cells_modules_and_scripts(tmp_path: Path) -> None:
    (tmp_path / "nbs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/fast.py").write_text("from netinv.metrics import prdc")
    cells = "%matplotlib inline\nfrom netinv import Inversion", "run('benchmarks/fast.py')"
    was = page_code(page(tmp_path / "nbs", *cells))
    assert {"this page", "benchmarks/fast.py", "netinv.metrics", "netinv.objective"} < {*was}
    assert page_code(page(tmp_path / "nbs", *cells, parameters="steps = 4")) == was
    assert changes(was, page_code(page(tmp_path / "nbs", *cells, "1"))) == "this page"
    (tmp_path / "benchmarks/fast.py").write_text("from netinv.metrics import diversity")
    assert changes(was, page_code(page(tmp_path / "nbs", *cells))) == "benchmarks/fast.py"


def test_a_page_in_another_language_has_a_digest(tmp_path: Path) -> None:
    assert [*page_code(page(tmp_path, "x <- c(1, 2)"))] == ["this page"]


def test_nothing_is_imported_to_find_out() -> None:
    script = "import sys; from netinv.source import digests; digests('inversion'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_versions_name_what_computes() -> None:
    assert {"python", "netinv", "torch", "numpy"} <= {*source.versions()}


PAGE = '''
from functools import wraps
LR, WAYS, KINDS = 3, {"a": {"gamma": 16}}, {"a": lambda x: x, "b": 0}
def deep(x): return x + 1
def loud(f):
    @wraps(f)
    def g(*a): return f(*a)
    return g
@loud
def wrapped(x): return deep(x)
class Base:
    def f(self): return 1
class Sub(Base): pass
def work(x, g=deep): return LR, WAYS, KINDS["a"](x), wrapped(x), Sub().f()
'''


@pytest.mark.parametrize("old, new", [
    ("LR, WAYS, KINDS = 3", "LR, WAYS, KINDS = 4"), ('"gamma": 16', '"gamma": 8'), ("lambda x: x,", "lambda x: x + 1,"),
    ("return x + 1", "return x + 2"), ("return f(*a)", "return 2 * f(*a)"), ("return 1", "return 2"), ("g=deep", "g=loud"),
])  # fmt: skip
def test_constants_lambdas_wrappers_bases_and_defaults_are_code_too(tmp_path: Path, old: str, new: str) -> None:
    def of(text: str, name: str) -> dict:
        (tmp_path / f"{name}.py").write_text(text)
        script = f"import json, {name} as page; from netinv.source import code_of; print(json.dumps(code_of(page.work)))"
        paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
        return json.loads(subprocess.run([sys.executable, "-c", script], env=paths, capture_output=True, check=True).stdout)

    assert old in PAGE and of(PAGE, "one") == of(PAGE, "two") != of(PAGE.replace(old, new), "three")


def test_where_things_are_kept_is_no_code(tmp_path: Path) -> None:
    made = {}
    for folder in ("here", "there"):
        names = {"out_dir": folder, "jobs": 1}
        exec("def work(): return out_dir, jobs", names)
        made[folder] = code_of(names["work"])
    assert made["here"] == made["there"]
