"""Notebooks as pages, whichever program renders them: what was found comes first, code is folded, tables can be read.

All works on nbdev's copies of the notebooks; the notebooks themselves and their outputs stay as they are. Tags of cells
say what a page cannot guess:

    finding                    of a paragraph and of a cell with a picture: they open the page
    best: AUROC ↑, FPR95 ↓     of a cell with a table: which end of a column is the good one, "↑" alone for all columns"""
import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, Tag
from PIL import Image

NUMBER = re.compile(r"[-+−–]?(\d[\d.,]*(e[-+]?\d+)?( ?± ?[\d.,]+)?( ?(%|s|ms|x))?"
                    r"( \[[-−]?[\d.,]+%?, [-−]?[\d.,]+%?\])?)?|nan|None", re.IGNORECASE)
FIRST = re.compile(r"[-+−]?\d[\d,]*\.?\d*(e[-+]?\d+)?", re.IGNORECASE)
WORDS_A_MINUTE, LINE, PICTURE = 220, 3 / 60, 8 / 60  # minutes that a line of code and a picture take
SHORT = 30  # characters of a row's name that is not broken
THUMBNAIL = (480, 300)
GALLERY = "::: {#gallery}\n:::"


# Cells

def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def data(cell: dict, kind: str) -> Iterator[str]:
    "What the outputs of a cell hold of a kind such as image/png."
    for output in cell.get("outputs", []):
        if kind in output.get("data", {}): yield "".join(output["data"][kind])


def front(cells: list[dict]) -> dict:
    "Title and description, as nbdev leaves them in the first cell."
    return yaml.safe_load(source(cells[0]).strip().strip("-")) if cells and cells[0]["cell_type"] == "raw" else {}


def option(cell: dict, name: str) -> str:
    "The value of `#| name: value` in a cell, without quotes."
    found = re.search(rf"^#\| *{name}: *(.+)$", source(cell), re.MULTILINE)
    return found[1].strip().strip('"') if found else ""


# What was found, first

def finding_first(cells: list[dict]) -> list[dict]:
    "The cells tagged `finding` moved to the top: paragraphs whole, of code the pictures, in whose place a link stays."
    opening, rest = [], []
    for cell in cells:
        if "finding" not in tags(cell): rest.append(cell)
        elif cell["cell_type"] == "markdown": opening.append(cell)
        else:
            drawn = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
            alt = json.dumps(option(cell, "fig-alt"), ensure_ascii=False)
            opening.append(cell | {"source": f"#| echo: false\n#| fig-alt: {alt}\n", "outputs": drawn})
            rest.append(cell | {"outputs": [output for output in cell["outputs"] if output not in drawn]})
            rest.append(markdown("The picture that this makes [opens the page](#finding)."))
    if not opening: return cells
    return [rest[0], markdown("::: {#finding}"), *opening, markdown(":::"), *rest[1:]]


def fold_code(cells: list[dict]) -> list[dict]:
    "All code behind a line that opens it."
    visible = lambda cell: cell["cell_type"] == "code" and "echo: false" not in source(cell) and source(cell).strip()
    called = lambda cell: "Parameters" if "parameters" in tags(cell) else "Code"
    folded = lambda cell: f'#| code-fold: true\n#| code-summary: "{called(cell)}"\n{source(cell)}'
    return [cell | {"source": folded(cell)} if visible(cell) else cell for cell in cells]


def level_headings(cells: list[dict]) -> None:
    "An entry above the first section is a section itself: no level of headings is left out."
    for cell in cells:
        if cell["cell_type"] == "markdown" and re.search(r"^## ", source(cell), re.MULTILINE): return
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            text = "".join(shown.get("text/markdown", ""))
            if text: shown["text/markdown"] = re.sub(r"^### ", "## ", text)


# Tables

def dress(html: str, best: dict[str, str]) -> str:
    "A table whose numbers stand in one line, whose head stays in sight, and whose best values are bold."
    page = BeautifulSoup(html, "html.parser")
    for table in page.find_all("table"):
        if table.find_parent("table") or table.find("img") or not table.select("tbody td"): continue  # pictures
        for style in page.select("style[scoped]"): style.decompose()
        table.attrs = {name: value for name, value in table.attrs.items() if name in ("id", "class")}
        table["data-quarto-disable-processing"] = "true"
        join_heads(table)
        for cell in table.select("thead th"):
            if not text(cell): cell.name = "td"
        for cell in table.select("tbody th"): cell["scope"] = "row"
        for cell in table.select("tbody :is(th, td)"):
            if NUMBER.fullmatch(text(cell)): mark(cell, "num")
            elif cell.name == "th" and len(text(cell)) < SHORT: mark(cell, "name")
        for at, head in enumerate(columns(table)):
            cells = (row.find_all("td")[at] for row in table.select("tbody tr"))
            if all("num" in cell.get("class", []) for cell in cells): mark(head, "num")
        mark_best(table, best)
        table.wrap(page.new_tag("div", attrs={"class": "table-box"}))
    return str(page)


def text(cell: Tag) -> str:
    return cell.get_text(strip=True)


def mark(cell: Tag, name: str) -> None:
    cell["class"] = [*cell.get("class", []), name]


def join_heads(table: Tag) -> None:
    "One line where pandas writes two: the names of the rows' levels go beside the names of the columns."
    heads, width = table.select("thead tr"), len(table.select("tbody tr")[-1].find_all("td"))
    if len(heads) < 2: return
    above, below = (row.find_all(["td", "th"]) for row in heads[-2:])
    names = len(below) - width
    if len(above) != len(below) or any(map(text, below[names:])) or any(map(text, above[:names])): return
    for old, new in zip(above[:names], below[:names]): old.replace_with(new)
    heads[-1].decompose()


def columns(table: Tag) -> list[Tag]:
    "The cell that names each column of values; none where heads span columns in ways that say nothing about one."
    width = len(table.select("tbody tr")[-1].find_all("td"))
    rows = [row.find_all(["td", "th"])[-width:] for row in table.select("thead tr")]
    return next((row for row in reversed(rows) if len(row) == width and any(map(text, row))), [])


def blocks(table: Tag) -> Iterator[list[Tag]]:
    "The rows that are compared with each other: those beside one name in the first column of names."
    block = []
    for row in table.select("tbody tr"):
        if block and row.find("th", rowspan=True):
            yield block
            block = []
        block.append(row)
    yield block


def is_yardstick(row: Tag) -> bool:
    "Whether a row holds what real images get, which competes with nobody."
    return any(text(cell).startswith("real") for cell in row.find_all("th"))


def mark_best(table: Tag, best: dict[str, str]) -> None:
    "The best of each column bold, ties as well, and an arrow in its head."
    for at, head in enumerate(columns(table) if best else []):
        arrow = best.get(text(head), best.get(""))
        if not arrow: continue
        head.append(f" {arrow}")
        for block in blocks(table):
            cells = [row.find_all("td")[at] for row in block if not is_yardstick(row)]
            numbers = [(cell, float(found[0].replace(",", ""))) for cell in cells if (found := FIRST.match(text(cell)))]
            top = (max if arrow == "↑" else min)((number for _, number in numbers), default=None)
            for cell, number in numbers:
                if len(numbers) > 1 and number == top: mark(cell, "best")


def best_of(cell: dict) -> dict[str, str]:
    "Which end of which column is the good one, from the tag; a column without a name stands for all."
    said = next((tag.removeprefix("best:") for tag in tags(cell) if tag.startswith("best:")), "")
    return {part.strip()[:-1].strip(): part.strip()[-1] for part in said.split(",") if part.strip()}


def dress_tables(cells: list[dict]) -> None:
    for cell in cells:
        for output in cell.get("outputs", []):
            html = "".join(output.get("data", {}).get("text/html", ""))
            if "<table" in html: output["data"]["text/html"] = dress(html, best_of(cell))


# Reading time

def minutes(cells: list[dict]) -> int:
    "How long a page takes to read: its prose, the code that is not folded, and a look at each picture."
    total = 0.0
    for cell in cells:
        text = re.sub(r"\]\([^)]*\)", "]", source(cell))  # nobody reads where a link leads
        if cell["cell_type"] == "markdown": total += len(text.split()) / WORDS_A_MINUTE
        if cell["cell_type"] == "code" and "code-fold" not in text and "echo: false" not in text:
            total += LINE * len(text.splitlines())
        total += PICTURE * len(list(data(cell, "image/png")))
    return max(1, round(total))


def say_minutes(cells: list[dict]) -> list[dict]:
    "The reading time below the title."
    number = minutes(cells)
    says = f"{number} minute{'s' * (number > 1)} to read"
    return [cells[0], markdown(f"[{says}]{{.reading-time}}"), *cells[1:]]


# The gallery

def pictures(cell: dict) -> Iterator[bytes]:
    "What a cell shows, be it a plot or a sheet of images in HTML."
    yield from map(base64.b64decode, data(cell, "image/png"))
    for html in data(cell, "text/html"):
        yield from map(base64.b64decode, re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]{2000,})", html))


def cover(cells: list[dict]) -> tuple[bytes, str] | None:
    "The picture of a page, with what it shows: that of the finding, else the first plot, else the first picture."
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    ranked = sorted(code, key=lambda cell: ("finding" not in tags(cell), not option(cell, "fig-alt")))
    found = ((picture, option(cell, "fig-alt")) for cell in ranked for picture in pictures(cell))
    return next(found, None)


def thumbnail(picture: bytes, path: Path) -> None:
    "The picture in the size of a card, on white; the pixels of a tiny one stay squares."
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    times = max(1, THUMBNAIL[0] // image.width)
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    white.thumbnail(THUMBNAIL)
    path.parent.mkdir(parents=True, exist_ok=True)
    white.convert("RGB").save(path, optimize=True)


def card(pages: Path, page: str, cells: list[dict]) -> str:
    "Title, picture and sentence of a page; empty for one without a picture."
    shown = cover(cells)
    if shown is None: return ""
    title, says = front(cells)["title"], front(cells).get("description", "")
    path = Path("images/gallery", page.replace("/", "_")).with_suffix(".png")
    thumbnail(shown[0], pages / path)
    alt = shown[1].replace("]", ")").replace("[", "(") or f"A picture from {title}"
    return f"::: {{.card}}\n[![{alt}]({path})]({page})\n\n**[{title}]({page})**\n\n{says}\n:::\n"


def gallery(pages: Path, books: dict[str, list[dict]]) -> str:
    "A card for every page of the menu, in its order and under its headings, the experiments first."
    menu = yaml.safe_load((pages / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    sections, parts = [entry for entry in menu if isinstance(entry, dict)], []
    for section in sorted(sections, key=lambda entry: entry["section"] != "Experiments"):
        cards = list(filter(None, (card(pages, page, books[page]) for page in section["contents"])))
        if cards: parts.append(f"## {section['section']}\n\n:::: {{.cards}}\n{''.join(cards)}\n::::\n")
    return "\n".join(parts)


# All pages

def arrange(pages: Path) -> None:
    "Bring the notebooks in `pages` into the form that readers see."
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    books = {str(path.relative_to(pages)): read(path) for path in sorted(pages.rglob("*.ipynb"))}
    cells = {page: book["cells"] for page, book in books.items()}
    for page, book in books.items():
        for cell in book["cells"]:
            if source(cell).strip() == GALLERY: cell["source"] = gallery(pages, cells)
        level_headings(book["cells"])
        dress_tables(book["cells"])
        if page.startswith("experiments/"): book["cells"] = fold_code(finding_first(book["cells"]))
        if book["cells"][0]["cell_type"] == "raw": book["cells"] = say_minutes(book["cells"])
        (pages / page).write_text(json.dumps(book), encoding="utf-8")
