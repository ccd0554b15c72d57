"The site as a reader's browser sees it."
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import ARTEFACTS, ROOT, free_port, noting, served, wait_for

SITE = ROOT / "_docs"


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


def pages() -> list[Path]:
    "All pages, as paths inside the site."
    return sorted(path.relative_to(SITE) for path in SITE.rglob("*.html"))


def test_every_page_loads_by_itself(site: str, chromium) -> None:
    faults = {}
    for path in pages():
        with noting(chromium) as (page, errors, asked):
            page.goto(f"{site}/{path}", wait_until="load")
            strange = [url for url in asked if not url.startswith((site, "data:", "blob:"))]
            pictures = page.locator("main img:not([alt]), main img[alt='']")
            nameless = pictures.evaluate_all("all => all.map(e => e.outerHTML.slice(0, 120))")
            undrawn = page.locator("span.math:not(:has(math))").count()
        found = {"errors": errors, "requests that leave": strange, "pictures without alt text": nameless,
                 "equations as source": undrawn}
        if any(found.values()): faults[str(path)] = {what: value for what, value in found.items() if value}
    assert not faults, faults


def test_every_link_inside_leads_somewhere(site: str, chromium) -> None:
    targets, links = {}, []
    for path in pages():
        with noting(chromium) as (page, _, _):
            page.goto(f"{site}/{path}")
            names = page.evaluate("[...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)")
            leads = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
            targets[f"{site}/{path}"] = set(names)
            links += [(str(path), link) for link in leads if link.startswith(site)]
    lost = [(path, link) for path, link in links
            if (url := link.partition("#")[0].removesuffix("/")) not in targets and f"{url}/index.html" not in targets
            or (anchor := link.partition("#")[2]) and url in targets and anchor not in targets[url]]
    assert links and not lost


def test_search_finds_a_word(site: str, chromium) -> None:
    with noting(chromium) as (page, errors, _):
        page.goto(f"{site}/index.html")
        box = page.locator("input[type=search], #quarto-search input, .search input, input[placeholder*=earch]").first
        box.click()
        page.keyboard.type("orthogonality", delay=20)
        page.wait_for_selector("a[href*='losses.html']:visible", timeout=10_000)
    assert not errors


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_pages_fit_the_screen_and_everybody_can_use_them(site: str, chromium, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    faults = {}
    for path in pages():
        with noting(context) as (page, _, _):
            page.goto(f"{site}/{path}")
            wide = page.evaluate("document.documentElement.scrollWidth") > width
            if wide: faults[str(path)] = "wider than the screen"
            serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
            if serious: faults[str(path)] = {v["id"]: [node["html"][:100] for node in v["nodes"][:3]] for v in serious}
            if path.name == "inversion.html": page.screenshot(path=ARTEFACTS / f"docs_{scheme}_{width}.png")
    context.close()
    assert not faults, faults
