"""Write README.md from nbs/index.ipynb (nbdev's own command wants Quarto).

With --check, write nothing, and fail if README.md is behind the notebook."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "README.md"


def readme() -> str:
    "The text of README.md: the first page, with links and pictures as they are found from the top of the repository."
    text, _ = MarkdownExporter().from_notebook_node(nbformat.read(ROOT / "nbs/index.ipynb", 4))
    text = re.sub(r"\]\(((?:experiments/)?\w+\.ipynb|images/)", r"](nbs/\1", text)
    text = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n" + text
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main() -> int:
    if "--check" not in sys.argv: TARGET.write_text(readme(), encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != readme():
        print("README.md is behind nbs/index.ipynb: run make readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
