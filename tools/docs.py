"""Build the documentation site in _docs from the notebooks and the outputs stored in them.

nbdev runs what defines names and writes their entries (entries.py) into copies of the notebooks. These are arranged for
readers (pages.py) and rendered (renderers.py)."""
import os
import shutil
from pathlib import Path

from nbdev import showdoc
from nbdev.doclinks import NbdevLookup
from nbdev.serve import proc_nbs

import entries
import pages
import renderers

ROOT = Path(__file__).resolve().parent.parent

showdoc.BasicMarkdownRenderer = entries.Entry  # here, since nbdev's worker process imports this file as well
NbdevLookup.link_line = entries.link_names


def main() -> None:
    os.chdir(ROOT)
    copies = Path(proc_nbs(n_workers=1, force=True))
    shutil.rmtree(copies / "runs", ignore_errors=True)  # what chapters write where they are run is no page
    pages.arrange(copies)
    try:
        renderers.render(copies)
    finally:
        shutil.rmtree("_docs", ignore_errors=True)
        if (copies / "_docs").exists(): shutil.move(copies / "_docs", "_docs")
    print(f"the site is in {ROOT / '_docs'}: open index.html")


if __name__ == "__main__":
    main()
