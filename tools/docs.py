"""Build the documentation site in _docs from the notebooks and the outputs stored in them.

nbdev turns the notebooks into pages (_proc). Quarto renders them where it is installed, otherwise smalldocs does, which
reads the same _quarto.yml and comes from PyPI."""
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from fastcore import docments
from latex2mathml.converter import convert
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
OUTPUT_FILE = re.compile(r"^output-file: *(\S+)\.html\n", re.MULTILINE)


def signature(symbol: object, **how: bool) -> inspect.Signature:
    "`inspect.signature`, which leaves names of types alone where a module imports them only when it needs them."
    try:
        return inspect.signature(symbol, **how)
    except NameError:
        return inspect.signature(symbol)


docments.signature = signature


def page_name(notebook: Path) -> str | None:
    "The name that nbdev's front matter gives the page of `notebook`, taken out of it: smalldocs does not read it."
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    front = nb["cells"][0]
    source = "".join(front["source"])
    named = OUTPUT_FILE.search(source) if front["cell_type"] == "raw" else None
    if named is None: return None
    front["source"] = OUTPUT_FILE.sub("", source)
    notebook.write_text(json.dumps(nb), encoding="utf-8")
    return f"{named[1]}.ipynb"


def rename_pages(pages: Path) -> None:
    "Give every notebook the name of its page (00_data -> data), in the menu and in links as well."
    notebooks = sorted(pages.rglob("*.ipynb"))
    renamed = {path: path.with_name(page_name(path) or path.name) for path in notebooks}
    for old, new in renamed.items(): old.rename(new)
    names = {old.name: new.name for old, new in renamed.items() if old != new}
    if not names: return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for path in [pages / "_quarto.yml", *renamed.values()]:
        text = path.read_text(encoding="utf-8")
        path.write_text(pattern.sub(lambda found: names[found[0]], text), encoding="utf-8")


def render_quarto(pages: Path) -> None:
    subprocess.run(["quarto", "render", str(pages), "--no-execute", "-M", "html-math-method:mathml"], check=True)


def script(letter: str) -> str:
    "A capital in script, as a character of its own: browsers no longer style letters of equations."
    for kind in ("SCRIPT CAPITAL", "MATHEMATICAL SCRIPT CAPITAL"):  # Unicode has had some of them for longer
        try: return unicodedata.lookup(f"{kind} {letter}")
        except KeyError: continue
    return letter


def typeset(page: BeautifulSoup) -> None:
    "Equations as MathML, which browsers draw by themselves: no script, no font and no request for it."
    for tag in page.select('[src*="katex"], [href*="katex"]'): tag.decompose()
    for tag in page.find_all("script", string=re.compile("renderMathInElement")): tag.decompose()
    for span in page.select("span.math"):
        tex, display = span.get_text()[2:-2].strip(), "display" in span["class"]
        span.clear()
        span.append(BeautifulSoup(convert(tex, display="block" if display else "inline"), "html.parser"))
    for letter in page.select('mi[mathvariant="script"]'): letter.string = script(letter.get_text())


def known(site: Path, target: str) -> str:
    "`target`, or where its page has no such anchor, that of the class, or the page."
    page, _, anchor = target.partition("#")
    text = (site / page).read_text(encoding="utf-8") if (site / page).exists() else ""
    return next((f"{page}#{name}" for name in (anchor, anchor.split(".")[0]) if name and f'id="{name}"' in text), page)


def finish(site: Path, address: str) -> None:
    "What smalldocs leaves to do: no equation and no font asks the network, and our links work wherever the site is."
    for path in site.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"@import url\([^)]*//[^)]*\);?", "", style), encoding="utf-8")
    for path in sorted(site.rglob("*.html")):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        typeset(page)
        for region in page.select("pre, span.math.display, div.cell-output, div.sd-table"):
            region["tabindex"] = "0"  # so that arrow keys can scroll it
        root = "../" * (len(path.relative_to(site).parts) - 1)
        for link in page.select(f'a[href^="{address}/"]'):
            link["href"] = root + known(site, link["href"].removeprefix(f"{address}/"))
        path.write_text(str(page), encoding="utf-8")


def render_smalldocs(pages: Path) -> None:
    "Fails for a broken link, but leaves the site."
    smalldocs = Path(sys.executable).with_name("smalldocs")
    if not smalldocs.exists():
        sys.exit("nothing here can render the site: install Quarto, or use Python 3.11 or newer, which gets smalldocs")
    rename_pages(pages)
    subprocess.run([smalldocs, "render", "--quiet", str(pages)], check=True)
    finish(pages / "_docs", yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["site-url"])
    if subprocess.run([smalldocs, "check", str(pages)]).returncode: sys.exit("the site has faults, see above")


def main() -> None:
    os.chdir(ROOT)
    pages = Path(proc_nbs(n_workers=1, force=True))
    try:
        (render_quarto if shutil.which("quarto") else render_smalldocs)(pages)
    finally:
        shutil.rmtree("_docs", ignore_errors=True)
        if (pages / "_docs").exists(): shutil.move(pages / "_docs", "_docs")
    print(f"the site is in {ROOT / '_docs'}: open index.html")


if __name__ == "__main__":  # nbdev's worker process imports this file as well
    main()
