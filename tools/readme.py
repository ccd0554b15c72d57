"""Write README.md and its figure from nbs/index.ipynb and the outputs stored in it (nbdev's own command wants Quarto).

With --check, write nothing, and fail if README.md is behind the notebook."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FIGURE = "images/figure.png"
CAPTION = "A row a class, 0 to 9: images that the classifier takes for that digit"


def readme() -> tuple[str, bytes]:
    "The text of README.md, and the figure it shows."
    notebook = nbformat.read(ROOT / "nbs/index.ipynb", 4)
    notebook.cells = [cell for cell in notebook.cells if "parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.MULTILINE)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    (name, figure), = resources["outputs"].items()
    text = re.sub(rf"!\[[^]]*\]\({re.escape(name)}\)", f"![{CAPTION}]({FIGURE})", text)
    text = re.sub(r"\]\(((?:experiments/)?\w+\.ipynb)", r"](nbs/\1", text)
    text = text.replace("](images/studio.png", "](nbs/images/studio.png")
    text = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n" + text
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", figure


def main() -> int:
    text, figure = readme()
    targets = {ROOT / "README.md": text.encode(), ROOT / FIGURE: figure}
    behind = [path.name for path, content in targets.items() if not path.exists() or path.read_bytes() != content]
    if "--check" not in sys.argv:
        for path, content in targets.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    elif behind:
        print(f"{' and '.join(behind)} behind nbs/index.ipynb: run make readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
