"""Fail if the notebooks and what is made from them have drifted apart, or a notebook breaks a rule of the house.

Seven things are checked: `nbdev_export` has nothing left to write into netinv/, `nbdev_clean` has nothing left to clean
in nbs/, at most four export cells stand in a row without a result that readers see, no line is longer than 120
characters, imports stand in cells of their own, pictures have a text for those who cannot see them, and a page of
experiments whose outputs are older than its code says so. The export is left in place, since that is what the author
forgot; cleaning is tried on a copy.

    python tools/check_notebooks.py --rules    # all but the first two, which takes no time"""
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from house import (IN_A_ROW, LONGEST, code_lines, has_directive, is_export, is_too_long, notebooks, runs_without_result,
                   source)
from older import older

ROOT = Path(__file__).resolve().parent.parent


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    "Every file below `folder` that matches `pattern`, checkpoints of editors left out."
    files = (path for path in folder.rglob(pattern) if ".ipynb_checkpoints" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def nbdev(command: str, root: Path) -> None:
    "Run one of nbdev's commands in the folder `root`, with the nbdev that belongs to this Python."
    subprocess.run([Path(sys.executable).with_name(command)], cwd=root, check=True)


def stale_modules() -> list[str]:
    "Files in netinv/ that `nbdev_export` changes, adds or removes."
    before = contents(ROOT / "netinv", "*.py")
    nbdev("nbdev_export", ROOT)
    after = contents(ROOT / "netinv", "*.py")
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def untidy_notebooks() -> list[str]:
    "Notebooks that `nbdev_clean` would change."
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(ROOT / "settings.ini", copy)
        shutil.copytree(ROOT / "nbs", copy / "nbs", symlinks=True)
        nbdev("nbdev_clean", copy)
        before, after = contents(ROOT / "nbs", "*.ipynb"), contents(copy / "nbs", "*.ipynb")
    return sorted(name for name in before if before[name] != after[name])


def unseen(root: Path = ROOT) -> list[str]:
    "Where one export cell follows another for too long before anything is shown."
    found = []
    for path, cells in notebooks(root).items():
        for run in runs_without_result(cells):
            if len(run) <= IN_A_ROW: continue
            first = next(iter(code_lines(cells[run[IN_A_ROW] - 1])), "")
            found.append(f"{path}, cells {run[0]} to {run[-1]}: {len(run)} export cells without a result that readers "
                         f"see (at most {IN_A_ROW}): show what there is before cell {run[IN_A_ROW]}, {first.strip()!r}")
    return found


def long_lines(root: Path = ROOT) -> list[str]:
    "Lines of code and prose that should be wrapped; rows of tables and words without a space cannot be."
    return [f"{path}, cell {number}: a line of {len(line)} characters (at most {LONGEST}): {line.strip()[:60]!r}"
            for path, cells in notebooks(root).items() for number, cell in enumerate(cells, 1)
            for line in source(cell).splitlines() if is_too_long(line, cell["cell_type"])]


def mixed_imports(root: Path = ROOT) -> list[str]:
    "Cells that import and do something else: the site's builder runs cells with imports, and not what comes before."
    found = []
    for path, cells in notebooks(root).items():
        if not any(is_export(cell) for cell in cells): continue  # of the others it runs nothing
        for number, cell in enumerate(cells, 1):
            if cell["cell_type"] != "code" or is_export(cell) or has_directive(cell, "hide"): continue
            nodes = ast.parse(re.sub(r"^\s*[%!].*$", "", source(cell), flags=re.MULTILINE)).body
            imports = [n for node in nodes for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            works = [n for n in nodes if not isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))]
            if imports and works:
                line = ast.unparse(imports[0])
                found.append(f"{path}, cell {number}: move {line!r} to a cell without other code, like the hidden one")
    return found


def nameless_pictures(root: Path = ROOT) -> list[str]:
    "Cells with a picture in their stored output and nothing that a screen reader could say about it."
    drawn = lambda cell: any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    return [f"{path}, cell {number}: give its picture a line '#| fig-alt: ...'"
            for path, cells in notebooks(root).items() for number, cell in enumerate(cells, 1)
            if drawn(cell) and not has_directive(cell, "(fig-alt|hide|include: *false)")]


def main() -> int:
    faults = unseen() + long_lines() + mixed_imports() + nameless_pictures()
    faults += older()
    if "--rules" not in sys.argv:
        stale, untidy = stale_modules(), untidy_notebooks()
        if stale: faults.append(f"netinv/ was behind nbs/: commit what nbdev_export has written: {', '.join(stale)}")
        if untidy: faults.append(f"not clean: run nbdev_clean and commit: {', '.join(untidy)}")
    for fault in faults: print(fault, file=sys.stderr)
    if not faults: print("the notebooks keep the rules, and what is made from them is in step")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
