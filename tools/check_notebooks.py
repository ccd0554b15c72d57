"""Fail if the notebooks and what is made from them have drifted apart.

Two things are checked: `nbdev_export` has nothing left to write into netinv/, and `nbdev_clean` has nothing left to
clean in nbs/. The export is left in place, since that is what the author forgot; cleaning is tried on a copy."""
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

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


def main() -> int:
    stale, untidy = stale_modules(), untidy_notebooks()
    if stale: print(f"netinv/ was behind nbs/: commit what nbdev_export has just written: {', '.join(stale)}", file=sys.stderr)
    if untidy: print(f"not clean: run nbdev_clean and commit: {', '.join(untidy)}", file=sys.stderr)
    if not (stale or untidy): print("the export is in sync and the notebooks are clean")
    return bool(stale or untidy)


if __name__ == "__main__":
    sys.exit(main())
