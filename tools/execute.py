"""Execute a page and store its outputs in it, with what made them.

    python tools/execute.py defaults --out runs/defaults                # kept results in that folder are used
    python tools/execute.py defaults --out runs/defaults -p jobs 2      # out_dir, jobs and resume may differ
    python tools/execute.py training --profile cpu                      # a profile must be what the page shows

The page has to show the parameters that it runs with: whoever reads it must be able to do the same. Chapters are
executed in the same way. A line that says that the page is older (tools/older.py) goes. Nothing is written before the
run has come to its end."""
import argparse
import base64
import io
import subprocess
import sys
from pathlib import Path

from PIL import Image

from house import source
from older import TAG, read, shown_parameters, write

from netinv.runner import find_notebook, load_profile, read_parameters, run_notebook, short_path
from netinv.source import ASIDE
from netinv.values import RunFailed, UsageError

LARGE = 300_000  # bytes of a picture


def check(page: Path, values: dict) -> None:
    "A `UsageError` where a page would show other parameters than those that made its outputs."
    shown = shown_parameters(page)
    other = {name: value for name, value in values.items() if name not in ASIDE and shown.get(name) != value}
    if other:
        wanted = ", ".join(f"{name} = {value!r}" for name, value in other.items())
        raise UsageError(f"{page.name} shows other parameters: write {wanted} into its cell of parameters first")


def smaller(outputs: list[dict]) -> list[dict]:
    "The same with 32 levels a channel in pictures of more than `LARGE` bytes: a repository keeps every version."
    for output in outputs:
        picture = base64.b64decode(output.get("data", {}).get("image/png", ""))
        if len(picture) <= LARGE: continue
        image, small = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
        levels = [round(255 / 31 * round(31 / 255 * level)) for level in range(256)]
        image.point(levels * 3).save(small, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()
    return outputs


def store(page: Path, executed: Path) -> None:
    "Copy outputs and stamp of an executed notebook into the page; a `RunFailed` where the page has changed meanwhile."
    book, ran = read(page), read(executed)
    outputs = {cell["id"]: cell for cell in ran["cells"] if cell["cell_type"] == "code"}
    for cell in book["cells"]:
        if cell["cell_type"] != "code": continue
        if cell["id"] not in outputs or source(outputs[cell["id"]]) != source(cell):
            raise RunFailed(f"{page.name} was edited while it ran: its outputs are in {executed}, execute it again")
        cell["outputs"] = smaller(outputs[cell["id"]]["outputs"])
    if page.parent.name == "experiments": book["metadata"]["netinv"] = ran["metadata"]["netinv"]
    book["cells"] = [cell for cell in book["cells"] if TAG not in cell["metadata"].get("tags", [])]
    write(page, book)
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", page], cwd=page.parent, check=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="a path, or a name as `netinv list` shows it")
    parser.add_argument("--profile", help="smoke, cpu, gpu or a YAML file")
    parser.add_argument("--out", help="run folder; runs/NAME-TIMESTAMP unless you say otherwise")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    args = parser.parse_args(argv)
    try:
        page = find_notebook(args.page).resolve()
        profile = load_profile(args.profile, page) if args.profile else {}
        values = profile | read_parameters(page, args.p)
        check(page, values)
        folder = run_notebook(page, values, out=args.out, progress=sys.stderr.isatty())
        store(page, folder / page.name)
    except (UsageError, RunFailed) as e:
        print(e, file=sys.stderr)
        return 2 if isinstance(e, UsageError) else 1
    print(f"{short_path(page)} has its outputs; look at every figure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
