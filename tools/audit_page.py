"""Write netinv/static/audit.ipynb, the notebook that `netinv audit` runs: nbs/audit.ipynb without what defines names.

With --check, write nothing, and fail if it is behind the chapter."""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = ROOT / "nbs/audit.ipynb", ROOT / "netinv/static/audit.ipynb"
FRESH = {"execution_count": None, "outputs": []}
IMPORTS = ["import os\n", "from pathlib import Path\n", "\n", "from netinv.audit import Audit, subject_of"]


def alone(cell: dict) -> dict:
    "A cell that stands in a folder of its own: text without pictures and links, code without outputs."
    if cell["cell_type"] == "code": return cell | FRESH
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n*", "", "".join(cell["source"]))
    return cell | {"source": re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).splitlines(keepends=True)}


def page() -> str:
    "The notebook as text: its exported cells are one import."
    book = json.loads(SOURCE.read_text(encoding="utf-8"))
    defines = lambda cell: cell["cell_type"] == "code" and "".join(cell["source"]).startswith("#|")
    title, *others = [alone(cell) for cell in book["cells"] if not defines(cell)]
    imports = {"cell_type": "code", "id": "a0d17000", "metadata": {}, "source": IMPORTS, **FRESH}
    return json.dumps(book | {"cells": [title, imports, *others]}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> int:
    if "--check" not in sys.argv: TARGET.write_text(page(), encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page():
        print("netinv/static/audit.ipynb is behind nbs/audit.ipynb: run python tools/audit_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
