"""Which pages of experiments are older than their code?

    python tools/older.py           # what has changed since each page was executed
    python tools/older.py --mark    # and write a line about it onto the pages that are older, off those that are not
    python tools/older.py --same netinv.data netinv.pictures --why "folders of pictures alone are read otherwise"

The last is for a change that can alter no number of any page. Pages of which nothing else has changed take the new
digests, and keep the reason in their metadata.

A page carries, in its metadata, the digests of all code that made its outputs (`netinv.source`), and the parameters.
`tools/execute.py` writes them. `tools/check_notebooks.py` fails for an older page without the line: nobody shall take
its numbers for those of today's code. Chapters need no line, since the tests run them and their asserts."""
import argparse
import json
from datetime import date
from pathlib import Path

from house import source

from netinv.runner import notebook_parameters
from netinv.source import ASIDE, changes, page_code

ROOT = Path(__file__).resolve().parent.parent
TAG = "older"  # of the cell with the line
KEPT = "they stay, as NETINV_ANY_CODE asks"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, book: dict) -> None:
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def pages(root: Path = ROOT) -> list[Path]:
    "The pages whose numbers are reported."
    return sorted(root.glob("nbs/experiments/*.ipynb"))


def shown_parameters(path: Path) -> dict:
    "The parameters of a page with the values that a reader sees, as JSON gives them back."
    shown = {name: value for name, value in notebook_parameters(path).items() if name not in ASIDE}
    return json.loads(json.dumps(shown, default=str))


def changed(path: Path) -> str:
    "What has changed since the outputs of a page were made, in words; empty where nothing has, or nothing is stored."
    book = read(path)
    if not any(cell.get("outputs") for cell in book["cells"]): return ""
    made_by, shown = book["metadata"].get("netinv", {}), shown_parameters(path)
    found = [changes(made_by.get("code"), page_code(path))]
    ran = made_by.get("parameters", shown)
    found += [f"parameter {name}" for name in {**shown, **ran} if shown.get(name) != ran.get(name)]
    stored = json.dumps([cell.get("outputs") for cell in book["cells"]])
    if KEPT in stored: found.append("it shows results of other code")
    return ", ".join(filter(None, found))


def is_marked(book: dict) -> bool:
    return any(TAG in cell["metadata"].get("tags", []) for cell in book["cells"])


def line(made_by: dict) -> str:
    "What an older page says."
    version = made_by.get("versions", {}).get("netinv")
    day = f" of {made_by['made']}" if "made" in made_by else ""
    by = f"netinv {version}{day}" if version else "an earlier netinv"
    return (f"**Older numbers.** What this page shows was computed by {by}. Its code has changed since, as the\n"
            "[changelog](https://github.com/netinv/netinv/blob/main/CHANGELOG.md) tells.")


def mark(path: Path) -> None:
    "Write the line below the title of an older page, and take it off one that is not."
    book, why = read(path), changed(path)
    cells = [cell for cell in book["cells"] if TAG not in cell["metadata"].get("tags", [])]
    said = {"cell_type": "markdown", "id": "01de5000", "metadata": {"tags": ["finding", TAG]},
            "source": line(book["metadata"].get("netinv", {})).splitlines(keepends=True)}
    book["cells"] = [cells[0], said, *cells[1:]] if why else cells
    write(path, book)


def same(path: Path, modules: list[str], why: str) -> None:
    "Write into a page that a change of some modules alters none of its numbers, if nothing else has changed."
    book, now = read(path), page_code(path)
    made_by = book["metadata"].get("netinv", {})
    was = made_by.get("code")
    differ = {name for name in {**now, **(was or {})} if was and was.get(name) != now.get(name)}
    if not differ or not differ <= set(modules): return
    made_by["code"], reasons = now, made_by.setdefault("same", [])
    reasons.append({"modules": sorted(differ), "why": why, "on": date.today().isoformat()})
    write(path, book)


def older(root: Path = ROOT) -> list[str]:
    "Pages that do not say that they are older than their code, and pages that say so without need."
    found = []
    for path in pages(root):
        why, name = changed(path), path.relative_to(root)
        if bool(why) == is_marked(read(path)): continue
        found.append(f"{name}: its outputs are older than its code ({why}): execute it (tools/execute.py), or let "
                     "tools/older.py --mark say so" if why else
                     f"{name}: it says that it is older than its code, and is not: run tools/older.py --mark")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mark", action="store_true", help="write the line")
    parser.add_argument("--same", nargs="+", metavar="MODULE", default=[], help="their change alters no number")
    parser.add_argument("--why", help="how one knows")
    args = parser.parse_args(argv)
    if args.same and not args.why: parser.error("--same needs --why, the reason")
    for path in pages():
        if args.same: same(path, args.same, args.why)
        if args.mark: mark(path)
        print(f"{path.stem:26}{'older' if changed(path) else 'as its code':14}{changed(path)}")


if __name__ == "__main__":
    main()
