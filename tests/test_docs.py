"The site as a reader's browser sees it: every page is visited once, and then asked about."
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from browser import ARTEFACTS, ROOT, free_port, noting, served, wait_for

SITE = ROOT / "_docs"
MENU = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
DESK = {"width": 1440, "height": 900}
SEARCH = "input[type=search], #quarto-search input, .search input, input[placeholder*=earch]"
LOOK = """() => {
  const all = (what, of = document) => [...of.querySelectorAll(what)];
  const seen = e => e.checkVisibility(), top = e => e.getBoundingClientRect().top + scrollY;
  const range = document.createRange();
  const lines = e => (range.selectNodeContents(e), new Set([...range.getClientRects()].map(b => Math.round(b.top))).size);
  const prose = document.querySelector('main').cloneNode(true);
  for (const e of all('pre, code, math, script, style', prose)) e.remove();
  const code = all('main pre').filter(seen);
  const cut = e => [e, e.querySelector('code')].some(x => x && x.scrollWidth > x.clientWidth + 1 && x.clientWidth);
  const pictures = all('main img').filter(e => seen(e) && e.getBoundingClientRect().height > 40);
  return {
    ids: all('[id], a[name]').map(e => e.id || e.name), links: all('a[href]').map(a => a.href),
    edit: all('a[href*="/edit/"]').map(a => a.href), reading: all('.reading-time').map(e => e.innerText),
    nameless: all("main img:not([alt]), main img[alt='']").map(e => e.outerHTML.slice(0, 120)),
    undrawn: all('span.math:not(:has(math))').length, raw: prose.innerText.match(/.{20}(\\]\\(|__main__).{20}/g) || [],
    code: code.length, cut: code.filter(cut).map(e => e.innerText.slice(0, 80)),
    picture: pictures.length ? top(pictures[0]) : null,
    broken: all('main .num').filter(e => seen(e) && lines(e) > 1).map(e => e.innerText),
    wide: all('main header *').filter(e => seen(e) && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
      .map(e => e.outerHTML.slice(0, 80)),
    previous: all('.nav-page-previous a').map(a => a.href), next: all('.nav-page-next a').map(a => a.href),
  }
}"""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    "The address of the site, built anew."
    if importlib.util.find_spec("smalldocs") is None:
        pytest.skip("smalldocs, which builds the site where there is no Quarto, needs Python 3.11")
    done = subprocess.run([sys.executable, ROOT / "tools/docs.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    port = free_port()
    with served(["http.server", str(port), "--bind", "127.0.0.1"], cwd=SITE):
        wait_for(port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def seen(site: str, chromium) -> dict[str, dict]:
    "What a reader at a desk finds on each page, by the page's path."
    context, found = chromium.new_context(viewport=DESK, color_scheme="light"), {}
    for path in pages():
        with noting(context) as (page, errors, asked):
            page.goto(f"{site}/{path}", wait_until="load")
            strange = [url for url in asked if not url.startswith((site, "data:", "blob:"))]
            found[str(path)] = page.evaluate(LOOK) | {"errors": errors, "strange": strange}
    context.close()
    return found


def pages() -> list[Path]:
    "All pages, as paths inside the site; a report that is shown on one is none."
    return sorted(path.relative_to(SITE) for path in SITE.rglob("*.html") if path.parent.name != "images")


def menu(contents: list) -> list[str]:
    "The pages of the menu in its order."
    page = lambda entry: [entry.replace(".ipynb", ".html")]
    listed = (menu(entry["contents"]) if isinstance(entry, dict) else page(entry) for entry in contents)
    return [page for part in listed for page in part]


def faults(seen: dict[str, dict], *names: str) -> dict[str, dict]:
    "The pages on which any of these lists has something in it."
    found = {path: {name: facts[name] for name in names if facts[name]} for path, facts in seen.items()}
    return {path: what for path, what in found.items() if what}


# Every page

def test_every_page_loads_by_itself(seen: dict) -> None:
    assert len(seen) > 50 and not faults(seen, "errors", "strange", "nameless", "undrawn")


def test_every_link_inside_leads_somewhere(site: str, seen: dict) -> None:
    targets = {f"{site}/{path}": set(facts["ids"]) for path, facts in seen.items()}
    targets |= {f"{site}/images/{path.name}": set() for path in SITE.glob("images/*.html")}
    links = [(path, link) for path, facts in seen.items() for link in facts["links"] if link.startswith(site)]
    lost = [(path, link) for path, link in links
            if (url := link.partition("#")[0].removesuffix("/")) not in targets and f"{url}/index.html" not in targets
            or (anchor := link.partition("#")[2]) and url in targets and anchor not in targets[url]]
    assert links and not lost


def test_no_page_shows_its_markup(seen: dict) -> None:
    assert not faults(seen, "raw")
    index = json.loads((SITE / "search.json").read_text(encoding="utf-8"))
    shown = [entry["text"] for entry in index if re.search(r"`\]\(http|__main__\.", entry["text"])]
    assert not shown, shown[:5]


def test_edit_links_lead_to_files_of_this_repository(seen: dict) -> None:
    repository = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["repo-url"]
    for path, facts in seen.items():
        assert facts["edit"], path
        for link in facts["edit"]:
            assert (ROOT / link.removeprefix(f"{repository}/edit/main/")).is_file(), f"{path}: {link}"


def test_no_code_is_cut_and_no_number_broken(seen: dict) -> None:
    assert sum(facts["code"] for facts in seen.values()) > 300
    assert not faults(seen, "cut", "broken", "wide")


def test_each_page_says_how_long_it_takes_and_what_comes_before_and_after(site: str, seen: dict) -> None:
    for path, facts in seen.items():
        assert len(facts["reading"]) == 1 and re.fullmatch(r"\d+ minutes? to read", facts["reading"][0]), path
    order = menu(MENU)
    for before, after in zip(order, order[1:]):
        assert seen[before]["next"] == [f"{site}/{after}"] and seen[after]["previous"] == [f"{site}/{before}"]


# Commands

def commands(page: Path) -> Iterator[tuple[str, bool]]:
    "Every line that a page tells its reader to type, and whether it is whole: in a sentence flags may be missing."
    from bs4 import BeautifulSoup

    main = BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser").find("main")
    for block in main.select("pre code:is(.sh, .bash, .shell)"):
        lines = re.sub(r"\\\n", " ", block.get_text()).splitlines()
        yield from ((line.strip(), True) for line in lines if line.strip())
    starts = re.compile(r"(\.venv/bin/)?(make|netinv|jupyter|voila|papermill|python) ")
    for word in main.select(":not(pre) > code"):
        if starts.match(line := " ".join(word.get_text().split())): yield line, False


def complaint(line: str, whole: bool = True) -> str:
    "What is wrong with a command, seen from the top of a clone; names in capitals stand for the reader's own."
    from netinv.cli import build_parser
    from netinv.runner import UsageError, find_notebook

    words = shlex.split(line, comments=True)
    program = words[0].removeprefix(".venv/bin/") if words else ""
    ours = [word for word in words if word.startswith(("nbs", "tools/", "tests/", "benchmarks/"))]
    if lost := [word for word in ours if not (ROOT / word).exists()]: return f"{lost[0]} is not in the repository"
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "" if set(word for word in words[1:] if "=" not in word) <= set(targets) else "no such target"
    if program != "netinv" or any(word.isupper() or "..." in word for word in words): return ""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()): given = build_parser().parse_args(words[1:])
        if words[1:2] == ["run"]: find_notebook(given.notebook)
    except UsageError as refused:
        return str(refused)
    except SystemExit as refused:
        unfinished = not whole and "are required" in said.getvalue()
        return "" if refused.code == 0 or unfinished else f"refused: {said.getvalue()}"
    return ""


def test_every_command_on_every_page_can_be_typed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = {(str(path), *command) for path in pages() for command in commands(path)}
    wrong = {place: says for place in sorted(found) if (says := complaint(*place[1:]))}
    assert len(found) > 10 and not wrong


def test_a_wrong_command_is_found() -> None:
    for line in ("make demos", "jupyter lab nbs/widgets.ipynb", "netinv run inversoin", "netinv invret"):
        assert complaint(line) and complaint(line, whole=False), line
    assert complaint("netinv run") and not complaint("netinv run", whole=False)


# First page, entries, experiments

def test_the_first_screen_has_a_figure_three_questions_and_a_button(site: str, chromium) -> None:
    context = chromium.new_context(viewport=DESK)
    with noting(context) as (page, _, _):
        page.goto(f"{site}/index.html")
        bottom = lambda what: (box := page.locator(what).first.bounding_box())["y"] + box["height"]
        assert bottom("main img[src*=front]") < DESK["height"]
        questions = page.locator("main ul").first.locator("li")
        assert questions.count() == 3
        for text in questions.all_inner_texts(): assert "?" in text and re.search(r"\d", text)
        assert questions.locator("a").count() == 3 and bottom("main ul") < DESK["height"]
        assert bottom("main a[href='start.html']") < DESK["height"]
    context.close()


def test_ten_minutes_are_ten_minutes(seen: dict) -> None:
    assert 5 <= int(seen["start.html"]["reading"][0].split()[0]) <= 10  # and time to look around


def test_a_class_is_called_a_class_and_its_parameters_are_a_table(site: str, chromium) -> None:
    with noting(chromium) as (page, _, _):
        page.goto(f"{site}/inversion.html")
        heading = page.locator("h3#inverter, h3[data-anchor-id=inverter]")
        assert heading.count() == 1
        assert "class Inverter(classifier" in page.locator("main pre.call, main .call pre").first.inner_text()
        table = page.locator("table.parameters").first
        assert table.is_visible() and "classifier" in table.locator("tbody tr").first.inner_text()
        assert "bf16" in table.inner_text()  # what a comment in the source says of `amp`
        page.goto(f"{site}/runs.html")
        assert not page.locator("details.entry table.parameters").first.is_visible()  # none of the public face
        page.locator("details.entry summary").first.click()
        assert page.locator("details.entry table.parameters").first.is_visible()


def test_tables_of_names_begin_with_the_public_face_and_stand_on_the_left(site: str, chromium) -> None:
    import netinv

    with noting(chromium) as (page, _, _):
        page.goto(f"{site}/api.html")
        names = page.locator("main table").first.locator("tbody tr td:first-child").all_inner_texts()
        assert [name.strip() for name in names] == netinv.__all__
        sides = page.locator("main td").evaluate_all("all => all.map(e => getComputedStyle(e).textAlign)")
        assert set(sides) <= {"left", "start"}
        assert "P || Q" in page.locator("main").inner_text()  # a bar in a sentence does not end its cell


def test_experiments_begin_with_what_was_found(site: str, seen: dict, chromium) -> None:
    experiments = [path for path in seen if path.startswith("experiments/")]
    assert len(experiments) > 10
    late = {path: seen[path]["picture"] for path in experiments if seen[path]["picture"] > DESK["height"]}
    assert not late
    with noting(chromium) as (page, _, _):
        for path in experiments:
            page.goto(f"{site}/{path}")
            assert page.locator("#finding img").count() and page.locator("#finding p strong").count(), path
            assert not page.locator("main pre.sourceCode:visible").count(), f"{path}: code that is not folded"


def test_the_best_value_is_bold_and_heads_stay_in_sight(site: str, chromium) -> None:
    context = chromium.new_context(viewport=DESK)
    with noting(context) as (page, _, _):
        page.goto(f"{site}/experiments/ood_table.html")
        box = page.locator(".table-box").filter(has=page.locator("th", has_text="FPR95 ↓")).first
        best = box.locator("tbody tr").filter(has_text="1 - P(garbage)").locator("td.best")
        assert best.count() and int(best.first.evaluate("e => getComputedStyle(e).fontWeight")) >= 600
        box.evaluate("e => { e.scrollTop = 400; e.scrollLeft = 300 }")
        at = lambda what: box.locator(what).first.bounding_box()
        assert abs(at("thead")["y"] - box.bounding_box()["y"]) < 2
        name = box.locator("tbody th[scope=row]").last
        assert name.bounding_box()["x"] >= box.bounding_box()["x"] - 1
    context.close()


# Finding one's way

def test_search_finds_a_word(site: str, chromium) -> None:
    with noting(chromium) as (page, errors, _):
        page.goto(f"{site}/index.html")
        box = page.locator(SEARCH).first
        box.click()
        page.keyboard.type("orthogonality", delay=20)
        page.wait_for_selector("a[href*='losses.html']:visible", timeout=10_000)
    assert not errors


def barriers(page) -> dict[str, list[str]]:
    "What axe finds that keeps people out, grave or not; equations and, but for one page, code have too many parts."
    from axe_playwright_python.sync_playwright import Axe

    spared = [["math"]] if page.url.endswith("/losses.html") else [["math"], ["pre"]]
    found = Axe().run(page, context={"exclude": spared}, options={"resultTypes": ["violations"]}).response["violations"]
    return {v["id"]: [node["html"][:100] for node in v["nodes"][:3]] for v in found}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_search_results_can_be_read(site: str, chromium, scheme: str) -> None:
    context = chromium.new_context(viewport=DESK, color_scheme=scheme)
    for path in ("index.html", "api.html", "experiments/ood_table.html"):
        with noting(context) as (page, _, _):
            page.goto(f"{site}/{path}")
            page.locator(SEARCH).first.click()
            page.keyboard.type("generator", delay=20)
            page.wait_for_selector("a[href*='generator.html']:visible mark", timeout=10_000)
            assert not barriers(page), path
            if path == "index.html": page.screenshot(path=ARTEFACTS / f"search_{scheme}.png")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_current_page_is_marked(site: str, chromium, scheme: str) -> None:
    context = chromium.new_context(viewport=DESK, color_scheme=scheme)
    with noting(context) as (page, _, _):
        page.goto(f"{site}/losses.html")
        looks = "e => { const s = getComputedStyle(e), t = getComputedStyle(e.querySelector('.menu-text')); " \
                "return [s.backgroundColor, s.boxShadow, t.fontWeight] }"
        marked = page.locator("#quarto-sidebar a.active, #quarto-sidebar a[aria-current=page]")
        other = page.locator("#quarto-sidebar a[href$='sae.html']")
        assert marked.count() == 1 and marked.inner_text().strip() == "Losses"
        ours, theirs = marked.evaluate(looks), other.evaluate(looks)
        assert all(a != b for a, b in zip(ours, theirs, strict=True))
    context.close()


def test_the_keyboard_skips_to_the_text(site: str, chromium) -> None:
    with noting(chromium) as (page, _, _):
        page.goto(f"{site}/losses.html")
        page.keyboard.press("Tab")
        link = page.locator(":focus")
        assert "Skip" in link.inner_text() and link.bounding_box()["x"] >= 0
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('main').contains(document.activeElement)")


def test_the_gallery_has_a_picture_and_a_sentence_of_each_chapter_and_experiment(site: str, chromium) -> None:
    with noting(chromium) as (page, _, _):
        page.goto(f"{site}/gallery.html", wait_until="load")
        cards = page.locator("main .card")
        shown = [re.sub(r"^.*?/(experiments/)?([^/]+)$", r"\1\2", href) for href in
                 cards.locator("strong a").evaluate_all("all => all.map(a => a.href)")]
        sections = {section["section"]: section["contents"] for section in MENU if isinstance(section, dict)}
        wanted = menu(sections["Chapters"]) + menu(sections["Experiments"])
        stored = lambda page: (ROOT / "nbs" / page).with_suffix(".ipynb").read_text(encoding="utf-8")
        wanted = [page for page in wanted if '"image/png":' in stored(page)]  # among the outputs
        assert set(wanted) <= set(shown)
        empty = cards.evaluate_all("all => all.filter(c => !(c.querySelector('img')?.naturalWidth > 40) "
                                   "|| c.innerText.trim().split('\\n').length < 2).map(c => c.innerText)")
        assert not empty


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_pages_fit_the_screen_and_everybody_can_use_them(site: str, chromium, scheme: str, width: int) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = {}
    for path in pages():
        with noting(context) as (page, _, _):
            page.goto(f"{site}/{path}")
            wide = page.evaluate("document.documentElement.scrollWidth") > width
            if wide: found[str(path)] = "wider than the screen"
            if faulty := barriers(page): found[str(path)] = faulty
            if path.name == "inversion.html": page.screenshot(path=ARTEFACTS / f"docs_{scheme}_{width}.png")
    context.close()
    assert not found, found


# The two renderers

def test_what_differs_between_the_renderers_lies_in_one_file(tmp_path: Path, monkeypatch) -> None:
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "renderers.py" or not re.search(r"smalldocs|quarto render|which\(", text), path
    monkeypatch.syspath_prepend(ROOT / "tools")
    import renderers

    quarto = tmp_path / "bin/quarto"
    quarto.parent.mkdir()
    quarto.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n', encoding="utf-8")
    quarto.chmod(0o755)
    monkeypatch.setenv("PATH", str(quarto.parent))
    renderers.render(tmp_path / "pages")
    assert (tmp_path / "asked").read_text().split()[:3] == ["render", str(tmp_path / "pages"), "--no-execute"]
