"The studio as somebody with a keyboard uses it: in JupyterLab, and as an app."
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import ARTEFACTS, ROOT, free_port, noting, served, wait_for

HASH = """async selector => {
  const bytes = new Uint8Array(await (await fetch(document.querySelector(selector).src)).arrayBuffer());
  return bytes.reduce((sum, byte) => (31 * sum + byte) >>> 0, 7);
}"""


def at_home(folder: Path) -> dict[str, str]:
    "An environment in which Jupyter neither reads nor writes anything of the user's, and asks nobody for news."
    news = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    lab = {f"JUPYTERLAB_{name.upper()}_DIR": str(folder / name) for name in ("workspaces", "settings")}
    return os.environ | places | lab | {"PYTHONPATH": str(ROOT)}


def run_all(page) -> None:
    "Run all cells; an order that comes while the kernel is still connecting is lost, so it is given until it is heard."
    from playwright.sync_api import TimeoutError

    page.wait_for_selector("#jp-main-statusbar >> text=/\\| Idle/", timeout=90_000)
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            page.wait_for_selector(".jp-InputPrompt >> text=/\\[(\\*|\\d+)\\]/", timeout=5_000)
            return
        except TimeoutError:
            continue
    pytest.fail("JupyterLab does not run the notebook")


def button(page, name: str):
    return page.locator(".widget-button", has_text=name).last


def status(page) -> str:
    return page.locator(".widget-html", has_text=re.compile(r"^\s*step \d")).first.inner_text()


def wait_until(page, holds: Callable[[], bool], what: str, seconds: float = 30) -> None:
    for _ in range(int(seconds * 10)):
        if holds(): return
        page.wait_for_timeout(100)
    pytest.fail(f"not within {seconds:.0f} seconds: {what}")


def step(page) -> int:
    return int(status(page).split()[1])


def resting(page) -> str:
    "The status, once it has been the same for two seconds: a step at hand may end after Pause."
    for _ in range(15):
        before = status(page)
        page.wait_for_timeout(2_000)
        if status(page) == before: return before
    pytest.fail(f"it does not rest: {before!r}")


def move(page, symbols: list[str], key: str) -> None:
    "Press a key on every slider, found by its name, and wait until the status has heard of what it says."
    for symbol in symbols:
        slider = page.get_by_role("slider", name=symbol, exact=True)
        before = slider.get_attribute("aria-valuetext")
        slider.focus()
        page.keyboard.press(key)
        wait_until(page, lambda: slider.get_attribute("aria-valuetext") != before, f"the slider of {symbol} has moved")
        name, value = slider.get_attribute("aria-valuetext").split(" = ")
        wait_until(page, lambda: f"{name} {value}" in status(page), f"{symbol} is in the status")


def unfold(page, *titles: str) -> None:
    for title in titles: button(page, title).click()


def in_view(page, *selectors: str) -> None:
    "What these find lies between the toolbar and the status bar, and within the window."
    toolbar, below = (page.locator(bar).bounding_box() for bar in (".jp-NotebookPanel-toolbar", "#jp-main-statusbar"))
    for selector in selectors:
        boxes = [box for found in page.locator(selector).all() if (box := found.bounding_box())]
        assert boxes, selector
        for box in boxes: assert toolbar["y"] + toolbar["height"] - 1 <= box["y"], (selector, box)
        for box in boxes: assert box["y"] + box["height"] <= below["y"] + 1 and box["x"] + box["width"] <= 1280, (selector, box)


@contextmanager
def jupyterlab(notebook: Path, chromium, folder: Path) -> Iterator[object]:
    "A page with all cells of the notebook running; in the end there must have been no error on the console."
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lab = ["jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
           "--IdentityProvider.token=x", f"--ServerApp.root_dir={notebook.parent}"]
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    with served(lab, env=at_home(folder)), noting(context) as (page, errors, _):
        wait_for(port)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?reset&token=x")
        run_all(page)
        yield page
        assert not errors, errors
    context.close()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    "The notebook to play with, which comes with its classifier."
    (tmp_path / "nbs").mkdir()
    return Path(shutil.copy(ROOT / "nbs/play.ipynb", tmp_path / "nbs"))


def test_play_in_jupyterlab(app: Path, chromium, tmp_path: Path) -> None:
    with jupyterlab(app, chromium, tmp_path) as page:
        wait_until(page, lambda: page.locator(".netinv-grid img").count() and step(page) > 1, "it moves by itself", 120)
        first = page.evaluate(HASH, ".netinv-grid img.images")
        wait_until(page, lambda: page.evaluate(HASH, ".netinv-grid img.images") != first, "a new picture")
        page.locator(".netinv-grid .box").focus()
        page.keyboard.press("ArrowRight")
        page.get_by_role("group", name="the chosen image").get_by_text("nearest of").wait_for()
        in_view(page, ".netinv-grid", ".netinv-grid .details", "img[alt^='curves']", ".netinv-slider",
                ".jupyter-button")
        button(page, "Keep A").click()
        move(page, ["α", "γ_class"], "ArrowLeft")
        button(page, "Keep B").click()
        page.get_by_role("button", name="A", exact=True).click()
        page.wait_for_selector("img.images[alt^='kept as A']")
        assert page.locator(".netinv-grid .names span").all_inner_texts() == [*"0123456789"]
        assert "points of accuracy" in page.locator(".widget-html", has_text="B − A").last.inner_text()
        in_view(page, ".netinv-grid", "img[alt^='curves']", ".netinv-slider")
        page.get_by_role("button", name="live", exact=True).click()
        page.locator(".jp-OutputArea select").first.select_option(label="7")
        wait_until(page, lambda: {*page.locator(".netinv-grid .names span").all_inner_texts()} == {"7"}, "one class")
        page.screenshot(path=ARTEFACTS / "play.png")


def test_nobody_watches_and_a_reopened_tab_finds_its_studio(app: Path, chromium, tmp_path: Path) -> None:
    with jupyterlab(app, chromium, tmp_path) as page:
        wait_until(page, lambda: page.locator(".netinv-grid img").count() and step(page) > 1, "it moves by itself", 120)
        def saved() -> bool:
            page.keyboard.press("Control+s")  # again, where JupyterLab was not ready for it yet
            page.wait_for_timeout(900)
            return any(cell.get("outputs") for cell in nbformat.read(app, 4).cells)
        wait_until(page, saved, "the page is saved")
        first, _ = step(page), page.wait_for_timeout(5_000)
        before, address, tab = step(page), page.url, page.context.new_page()
        pace = (before - first) / 5  # steps in a second while somebody watches
        page.goto("about:blank")
        page.wait_for_timeout(30_000)
        tab.goto(address)
        tab.wait_for_selector(".netinv-grid img", timeout=90_000)
        wait_until(tab, lambda: status(tab).strip(), "its line is there")
        found = step(tab)
        # it ends some seconds after the page has gone, and begins again before its line can be read
        assert before <= found < before + max(40, 20 * pace), f"{found - before} steps at {pace} a second, nobody watching"
        wait_until(tab, lambda: step(tab) > found, "it goes on", 60)


EXPLORER = """
import torch
from netinv.classifier import train_classifier
from netinv.data import load_data
from netinv.explorer import OODExplorer
from netinv.frozen import FrozenClassifier

data = load_data("digits")
noise = torch.randint(0, 256, (60, *data.shape), dtype=torch.uint8)
train = lambda epochs: FrozenClassifier(train_classifier(data, epochs=epochs, progress=False), shape=data.shape)
OODExplorer({"early": train(1), "late": train(3)}, data, noise)
"""


RECONSTRUCTION = """
from netinv.classifier import train_classifier
from netinv.data import load_data
from netinv.frozen import FrozenClassifier
from netinv.generator import Generator
from netinv.studio import ReconstructionStudio

data = load_data("digits")
classifier = FrozenClassifier(train_classifier(data, epochs=2, progress=False), shape=data.shape)
ReconstructionStudio(classifier, data=data, batch_size=40, generator=Generator.sized(width=16))
"""
TERMS = ["α", "α′", "β", "β′", "γ", "δ", "η_var", "η_pix", "η_grad", "η_bn", "η_span", "γ_class"]
MOVES = ["ε", "shift", "angle", "scale", "channels", "clean"]


def of_one_cell(source: str, folder: Path) -> Path:
    "A notebook."
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path = folder / "nbs/cell.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


def test_reconstruction_studio_in_jupyterlab(chromium, tmp_path: Path) -> None:
    with jupyterlab(of_one_cell(RECONSTRUCTION, tmp_path), chromium, tmp_path) as page:
        page.wait_for_selector(".netinv-grid img", timeout=180_000)
        button(page, "Start").click()
        wait_until(page, lambda: "inversion accuracy" in status(page) and step(page) > 2, "training")
        move(page, TERMS, "ArrowRight")
        unfold(page, "weights", "moved images", "the run")
        assert not page.get_by_role("slider", name="α", exact=True).is_visible()
        move(page, [*MOVES, "dropout", "T"], "ArrowRight")
        button(page, "Pause").click()
        wait_until(page, lambda: button(page, "Start").is_visible(), "paused")
        page.screenshot(path=ARTEFACTS / "reconstruction.png")


def test_explorer_in_jupyterlab(chromium, tmp_path: Path) -> None:
    with jupyterlab(of_one_cell(EXPLORER, tmp_path), chromium, tmp_path) as page:
        table = page.locator(".widget-html", has_text="turned away")
        table.wait_for(timeout=120_000)
        for act in (lambda: (page.get_by_role("slider", name="log-odds").focus(), page.keyboard.press("PageUp")),
                    lambda: page.get_by_role("button", name="late").click(),
                    lambda: page.locator(".jp-OutputArea select").select_option(label="95.0% of in-distribution")):
            before = table.inner_text()
            act()
            wait_until(page, lambda: table.inner_text() != before, "the table has changed")
        page.screenshot(path=ARTEFACTS / "explorer.png")


def test_voila(app: Path, chromium, tmp_path: Path) -> None:
    "An app: a title, a sentence, the studio; no chapter, no code, no picture of itself."
    port = free_port()
    voila = ["voila", "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}", str(app)]
    with served(voila, env=at_home(tmp_path)), noting(chromium) as (page, errors, _):
        wait_for(port)
        page.goto(f"http://127.0.0.1:{port}/", timeout=180_000)
        page.wait_for_selector(".netinv-grid img", timeout=180_000)
        wait_until(page, lambda: step(page) > 1, "it moves by itself", 60)
        assert len(" ".join(page.locator(".jp-MarkdownOutput").all_inner_texts())) < 300
        assert not page.locator(".jp-MarkdownOutput img, .jp-InputArea-editor:visible").count()
        page.screenshot(path=ARTEFACTS / "voila.png")
        ours = [error for error in errors if "anywidget" in error or "netinv" in error]  # Voila has errors of its own
        assert not ours, ours
