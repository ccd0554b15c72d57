"""The two programs that turn pages into a site, and all in which they differ.

Quarto is used where it is installed. Otherwise smalldocs is, which reads the same _quarto.yml and comes from PyPI; what
it leaves out is added to its pages here."""
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from latex2mathml.converter import convert

SCROLLS = "pre, span.math.display, div.cell-output, div.sd-table, div.table-box"
# Its search box and results stand in a dark bar, and take the bar's colours for their ground but not for their letters;
# what folds a part of its menu becomes a button, and should not look like one
STYLE = """
#quarto-header .smalldocs-search input { background: #fff; color: #1b1b1b; border-color: #fff; }
#quarto-header .smalldocs-search input::placeholder, #quarto-header .smalldocs-search > .bi-search { color: #555; }
#quarto-header .smalldocs-search-results { background: #fff; color: #1b1b1b; border-color: #999; }
#quarto-header .smalldocs-search-results * { color: #1b1b1b !important; }
#quarto-header .smalldocs-search-results .search-result-title { color: #174e91 !important; }
#quarto-header .smalldocs-search-results mark { background: #ffe9a8; }
#quarto-sidebar button { border: 0; background: none; color: inherit; font: inherit; }
#quarto-header .search-result { border-color: #ccc; }
#quarto-header .search-result:is(:hover, .active) { background: #e7eef8; }
"""


def render(pages: Path) -> None:
    "The site of `pages` in their folder `_docs`."
    (_quarto if shutil.which("quarto") else _smalldocs)(pages)


def _quarto(pages: Path) -> None:
    subprocess.run(["quarto", "render", str(pages), "--no-execute", "-M", "html-math-method:mathml"], check=True)


def _smalldocs(pages: Path) -> None:
    "Fails for a broken link, but leaves the site."
    smalldocs = Path(sys.executable).with_name("smalldocs")
    if not smalldocs.exists():
        sys.exit("nothing here can render the site: install Quarto, or use Python 3.11 or newer, which gets smalldocs")
    for notebook in pages.rglob("*.ipynb"):  # it takes a page's name from the notebook's alone
        text = notebook.read_text(encoding="utf-8")
        notebook.write_text(re.sub(r"output-file: *\S+\.html\\n", "", text), encoding="utf-8")
    subprocess.run([smalldocs, "render", "--quiet", str(pages)], check=True)
    settings = yaml.safe_load((pages / "_quarto.yml").read_text(encoding="utf-8"))
    _finish(pages / "_docs", settings["website"]["site-url"])
    if subprocess.run([smalldocs, "check", str(pages)]).returncode: sys.exit("the site has faults, see above")


# What smalldocs leaves to do

def _finish(site: Path, address: str) -> None:
    "No equation and no font asks the network, our links work wherever the site is, and everybody can use the pages."
    for path in site.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"@import url\([^)]*//[^)]*\);?", "", style), encoding="utf-8")
    with (site / "styles.css").open("a", encoding="utf-8") as file: file.write(STYLE)
    for path in sorted(set(site.rglob("*.html")) - set(site.glob("images/*"))):  # what is shown is left alone
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        _typeset(page)
        _name_regions(page)
        root = "../" * (len(path.relative_to(site).parts) - 1)
        for link in page.select(f'a[href^="{address}/"]'):
            link["href"] = root + _known(site, link["href"].removeprefix(f"{address}/"))
        path.write_text(str(page), encoding="utf-8")


def _script(letter: str) -> str:
    "A capital in script, as a character of its own: browsers no longer style letters of equations."
    for kind in ("SCRIPT CAPITAL", "MATHEMATICAL SCRIPT CAPITAL"):  # Unicode has had some of them for longer
        try: return unicodedata.lookup(f"{kind} {letter}")
        except KeyError: continue
    return letter


def _typeset(page: BeautifulSoup) -> None:
    "Equations as MathML, which browsers draw by themselves: no script, no font and no request for it."
    for tag in page.select('[src*="katex"], [href*="katex"]'): tag.decompose()
    for tag in page.find_all("script", string=re.compile("renderMathInElement")): tag.decompose()
    for span in page.select("span.math"):
        tex, display = span.get_text()[2:-2].strip(), "display" in span["class"]
        span.clear()
        span.append(BeautifulSoup(convert(tex, display="block" if display else "inline"), "html.parser"))
    for letter in page.select('mi[mathvariant="script"]'): letter.string = _script(letter.get_text())


def _name_regions(page: BeautifulSoup) -> None:
    "Names for those who hear the page, arrow keys for what scrolls, heads of columns that are empty as plain cells."
    for region in page.select(SCROLLS): region["tabindex"] = "0"
    names = {"nav.navbar": "Main", "nav.quarto-secondary-nav": "Where you are", "nav#quarto-sidebar": "All pages",
             "nav#TOC": "On this page", "nav.page-navigation": "Previous and next page",
             "nav.quarto-title-breadcrumbs": "Path"}
    for which, name in names.items():
        for region in page.select(which): region["aria-label"] = name
    for beside in page.select("#quarto-margin-sidebar"):
        beside.attrs |= {"role": "complementary", "aria-label": "Beside the text"}
    for fold in page.select("#quarto-sidebar a[data-bs-toggle]"):  # without an address, no key reaches it
        del fold["role"]
        fold.name, fold["type"] = "button", "button"
    for head in page.select("th"):
        if not head.get_text(strip=True): head.name = "td"


def _known(site: Path, target: str) -> str:
    "`target`, or where its page has no such anchor, that of the class, or the page."
    page, _, anchor = target.partition("#")
    text = (site / page).read_text(encoding="utf-8") if (site / page).exists() else ""
    return next((f"{page}#{name}" for name in (anchor, anchor.split(".")[0]) if name and f'id="{name}"' in text), page)
