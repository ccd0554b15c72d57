"""Measure how the house is built: the rhythm of the chapters, the size of the public face, the arrows between modules.

    python tools/house.py            # of this checkout
    python tools/house.py FOLDER     # of another one

`tools/check_notebooks.py` makes rules of two of these figures: results in sight of definitions, and short lines."""
import ast
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = """evidence source device files splits pictures arrays data runs outputs classifier squash features copies
frozen weights hubs onnx_file bring conditioning generator losses perturbation faster samples first_look objective
goal loop paper inversion graphs metrics interpretability clusters sae convolutional anomalies garbage heads ood traces
reconstruction leaks distil parts workbench studio explorer play values runner flags shell checkup
verdicts report membership shortcuts streams subject questions deeper audit audit_shell cli baselines""".split()  # lower rooms first
LONGEST = 120  # characters of a line
IN_A_ROW = 4   # export cells without a result
PICTURES = {"image/png", "image/jpeg", "image/svg+xml", "text/html", "text/markdown"}
CHECKS = re.compile(r"^\s*assert\b|\btest_\w+\(", re.MULTILINE)


# Notebooks

def source(cell: dict) -> str:
    "The text of a cell."
    return "".join(cell["source"])


def notebooks(root: Path) -> dict[Path, list[dict]]:
    "The cells of every notebook in nbs/."
    paths = (path for path in sorted(root.glob("nbs/**/*.ipynb")) if ".ipynb_checkpoints" not in path.parts)
    return {path.relative_to(root): json.loads(path.read_text(encoding="utf-8"))["cells"] for path in paths}


def has_directive(cell: dict, pattern: str) -> bool:
    "Whether a code cell carries nbdev's directive `#| pattern`."
    return cell["cell_type"] == "code" and re.search(rf"^#\| *{pattern}\b", source(cell), re.MULTILINE) is not None


def is_export(cell: dict) -> bool:
    "Whether the cell goes into a module."
    return has_directive(cell, "exporti?")


def is_result(cell: dict) -> bool:
    "Whether a reader sees something come out: stored output, or an assert, in a cell that is not hidden."
    if cell["cell_type"] != "code" or is_export(cell) or has_directive(cell, "hide"): return False
    return bool(cell["outputs"]) or CHECKS.search(source(cell)) is not None


def runs_without_result(cells: list[dict]) -> Iterator[list[int]]:
    "The numbers, from 1, of the export cells in each run that no result interrupts."
    run = []
    for number, cell in enumerate(cells, 1):
        if is_export(cell): run.append(number)
        elif is_result(cell) and run:
            yield run
            run = []
    if run: yield run


def code_lines(cell: dict) -> list[str]:
    "The lines of a cell without blanks and directives."
    return [line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|")]


def is_too_long(line: str, cell_type: str) -> bool:
    "Whether a line could and should be wrapped: the row of a table and a single long word cannot."
    table = cell_type == "markdown" and line.lstrip().startswith("|")
    return len(line) > LONGEST and not table and " " in line.strip()


def first_picture(cells: list[dict]) -> int | None:
    "The number, from 1, of the first cell with a figure or a table in its output."
    shows = lambda cell: any(PICTURES & set(output.get("data", {})) for output in cell.get("outputs", []))
    return next((number for number, cell in enumerate(cells, 1) if shows(cell)), None)


def definitions(cell: dict) -> list[str]:
    "The public functions, classes and methods that an export cell defines."
    if not has_directive(cell, "export"): return []
    nodes = ast.parse(source(cell)).body
    return [n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]


def used_at_once(cells: list[dict]) -> Iterator[bool]:
    "For every public name, whether a cell uses it before the next export cell."
    for at, cell in enumerate(cells):
        following = []
        for other in cells[at + 1:]:
            if is_export(other): break
            if other["cell_type"] == "code": following.append(source(other))
        for name in definitions(cell): yield re.search(rf"\b{name}\b", "\n".join(following)) is not None


# Modules

def modules(root: Path) -> dict[str, str]:
    "The text of every room."
    paths = (path for path in sorted(root.glob("netinv/*.py")) if path.stem not in ("__init__", "_modidx"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def public_names(text: str) -> list[str]:
    "`__all__` of a module."
    assigned = (node for node in ast.parse(text).body if isinstance(node, ast.Assign))
    named = (node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__")
    return next(map(ast.literal_eval, named), [])


def arrows(texts: dict[str, str]) -> set[tuple[str, str]]:
    "Which room imports from which, inside functions as well."
    found = set()
    for room, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("netinv.")):
                found.add((room, (node.module or "").removeprefix("netinv.")))
    return {(room, other) for room, other in found if other in texts}


def applications(texts: dict[str, str]) -> list[str]:
    "The rooms that import public names from `netinv` itself, which no arrow shows."
    imports = lambda text: (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
    face = lambda node: node.module == "netinv" or (node.level == 1 and node.module is None)
    return sorted(room for room, text in texts.items() if any(map(face, imports(text))))


def circles(edges: set[tuple[str, str]]) -> set[str]:
    "The rooms from which arrows lead back to themselves."
    reached = {room: {b for a, b in edges if a == room} for room, _ in edges}
    for _ in reached:
        reached = {room: others.union(*(reached.get(o, set()) for o in others)) for room, others in reached.items()}
    return {room for room, others in reached.items() if room in others}


def upward(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    "Arrows from a lower room to a higher one."
    return {(a, b) for a, b in edges if a in ROOMS and b in ROOMS and ROOMS.index(a) < ROOMS.index(b)}


def face(root: Path) -> list[str]:
    "The names that `netinv` itself offers."
    text = (root / "netinv/__init__.py").read_text(encoding="utf-8")
    found = re.search(r"^_HOMES = (\{.*?^\})", text, re.DOTALL | re.MULTILINE)
    return [name for names in ast.literal_eval(found[1]).values() for name in names] if found else []


def places(root: Path, books: dict[Path, list[dict]], term: str = "gamma_pix") -> list[str]:
    "What names the weight of a term and has to be edited for a new one: definitions, parameters, profiles, glossary."
    found, named = [], re.compile(rf"\b{term}\b")
    for room, text in modules(root).items():
        nodes = (node for node in ast.parse(text).body if named.search(ast.unparse(node)))
        found += [f"{room}.{getattr(node, 'name', ast.unparse(node).split(' ')[0])}" for node in nodes]
    for path, cells in books.items():
        marked = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", []) or path.stem == "glossary"]
        found += [f"{path.stem}.ipynb"] * any(named.search(source(cell)) for cell in marked)
    profiles = sorted(root.glob("nbs/**/*.yaml"))
    return found + [path.name for path in profiles if named.search(path.read_text(encoding="utf-8"))]


# The figures

def figures(root: Path) -> dict[str, object]:
    "All figures by name."
    books, texts = notebooks(root), modules(root)
    chapters = {path: cells for path, cells in books.items() if any(is_export(cell) for cell in cells)}
    exports = [code_lines(cell) for cells in chapters.values() for cell in cells if is_export(cell)]
    lengths = sorted(map(len, exports))
    longest = {path.stem: max(map(len, runs_without_result(cells))) for path, cells in chapters.items()}
    worst = sorted(longest, key=longest.get, reverse=True)[:5]
    used = [use for cells in chapters.values() for use in used_at_once(cells)]
    exported = [line for lines in exports for line in lines]
    written = [line for cells in books.values() for cell in cells for line in source(cell).splitlines()]
    share = lambda lines: f"{sum(len(line) > LONGEST for line in lines) / len(lines):.1%}"
    p90 = lengths[int(0.9 * len(lengths))]
    pictures = [f"{path.stem} {first_picture(cells)}/{len(cells)}" for path, cells in chapters.items()]
    largest = max((len(text.splitlines()), room) for room, text in texts.items())
    edges = arrows(texts)
    return {
        "lines of an export cell": f"median {statistics.median(lengths):g}, p90 {p90}, of {len(lengths)}",
        "export cells in a row without a result": ", ".join(f"{longest[stem]} in {stem}" for stem in worst),
        "public names used before the next export cell": f"{statistics.mean(used):.0%} of {len(used)}",
        "public names of all modules": sum(len(public_names(text)) for text in texts.values()),
        "names in netinv.__all__": len(face(root)),
        f"lines over {LONGEST} characters, export cells": share(exported),
        f"lines over {LONGEST} characters, notebooks": share(written),
        "lines of the largest module": f"{largest[0]} in {largest[1]}",
        "lines of all modules": sum(len(text.splitlines()) for text in texts.values()),
        "arrows between modules": len(edges),
        "rooms that use the public face": ", ".join(applications(texts)) or "none",
        "rooms in circles": ", ".join(sorted(circles(edges))) or "none",
        "upward arrows": ", ".join(f"{a} -> {b}" for a, b in sorted(upward(edges))) or "none",
        "places to edit for a new term": f"{len(at := places(root, books))}: {', '.join(at)}",
        "first picture": ", ".join(pictures),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    for name, figure in figures(root).items(): print(f"{name:46}  {figure}")


if __name__ == "__main__":
    main()
