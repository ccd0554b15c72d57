"The studio as somebody with a keyboard uses it: in JupyterLab, and as an app."
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from browser import ARTEFACTS, ROOT, free_port, noting, served, wait_for
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

CHAPTER = ROOT / "nbs/11_widgets.ipynb"
SLIDERS = ["α", "β", "γ", "δ", "γ_pix", "dropout", "T"]  # in the order of the screen
HASH = """async selector => {
  const bytes = new Uint8Array(await (await fetch(document.querySelector(selector).src)).arrayBuffer());
  return bytes.reduce((sum, byte) => (31 * sum + byte) >>> 0, 7);
}"""


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    "The chapter for digits, which trains in seconds."
    notebook = parameterize_notebook(load_notebook_node(str(CHAPTER)), {"dataset": "digits", "train_size": 1000, "epochs": 1})
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    shutil.copytree(CHAPTER.parent / "images", tmp_path / "nbs/images")
    nbformat.write(notebook, tmp_path / "nbs/chapter.ipynb")
    return tmp_path / "nbs/chapter.ipynb"


def at_home(folder: Path) -> dict[str, str]:
    "An environment in which Jupyter neither reads nor writes anything of the user's, and asks nobody for news."
    news = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    return os.environ | {f"JUPYTER_{name}_DIR": str(folder / place) for name, place in places.items()} | {
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "PYTHONPATH": str(ROOT)}


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
    return page.locator(".widget-html", has_text=re.compile(r"^\s*step \d")).last.inner_text()


def wait_until(page, holds: Callable[[], bool], what: str, seconds: float = 30) -> None:
    for _ in range(int(seconds * 10)):
        if holds(): return
        page.wait_for_timeout(100)
    pytest.fail(f"not within {seconds:.0f} seconds: {what}; the status is {status(page)!r}")


def step(page) -> int:
    return int(status(page).split()[1])


def resting(page) -> str:
    "The status, once it has been the same for two seconds: a step at hand may end after Pause."
    for _ in range(15):
        before = status(page)
        page.wait_for_timeout(2_000)
        if status(page) == before: return before
    pytest.fail(f"it does not rest: {before!r}")


def play(page) -> None:
    "Start, move every slider, look at a picture, undo, pause, go on."
    page.wait_for_selector(".netinv-grid img", timeout=180_000)
    page.locator(".netinv-grid").last.scroll_into_view_if_needed()
    first = page.evaluate(HASH, ".netinv-grid img")
    button(page, "Start").click()
    wait_until(page, lambda: "inversion accuracy" in status(page) and step(page) > 5, "training")
    assert page.evaluate(HASH, ".netinv-grid img") != first
    for at, symbol in enumerate(SLIDERS):
        page.locator(".widget-slider .noUi-handle").nth(at).focus()
        page.keyboard.press("ArrowLeft")
        readout = page.locator(".widget-slider .widget-readout").nth(at)
        wait_until(page, lambda: f"{symbol} {readout.inner_text().strip()}," in status(page), f"{symbol} has moved")
    page.locator(".netinv-grid .box").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=/asked for/")
    assert "nearest of" in page.locator(".widget-html", has_text="asked for").last.inner_text()
    button(page, "Keep A").click()
    page.wait_for_selector("img[alt='kept images A']")
    button(page, "Pause").click()
    wait_until(page, lambda: button(page, "Start").is_visible(), "paused")
    paused = resting(page)
    button(page, "Undo").click()
    wait_until(page, lambda: status(page) != paused, "undone")
    at = step(page)
    button(page, "Start").click()
    wait_until(page, lambda: step(page) > at + 3, "resumed")


def test_jupyterlab(chapter: Path, chromium, tmp_path: Path) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lab = ["jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=x",
           f"--ServerApp.root_dir={chapter.parent}"]
    context = chromium.new_context(viewport={"width": 1500, "height": 1050})
    with served(lab, env=at_home(tmp_path)), noting(context) as (page, errors, _):
        wait_for(port)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/{chapter.name}?reset&token=x")
        run_all(page)
        play(page)
        page.screenshot(path=ARTEFACTS / "studio.png")
        button(page, "Close").click()
        page.wait_for_selector(".netinv-grid", state="detached")
        assert not errors, errors
    context.close()


def test_voila(chapter: Path, chromium, tmp_path: Path) -> None:
    port = free_port()
    voila = ["voila", "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}", str(chapter)]
    with served(voila, env=at_home(tmp_path)), noting(chromium) as (page, errors, _):
        wait_for(port)
        page.goto(f"http://127.0.0.1:{port}/", timeout=180_000)
        play(page)
        page.screenshot(path=ARTEFACTS / "voila.png")
        ours = [error for error in errors if "anywidget" in error or "netinv" in error]  # Voila has errors of its own
        assert not ours, ours
