"The studio as somebody with a keyboard uses it: in JupyterLab, and as an app."
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import ARTEFACTS, ROOT, free_port, noting, served, wait_for
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

SLIDERS = ["α", "β", "γ", "δ", "γ_pix", "dropout", "T"]  # in the order of the screen
HASH = """async selector => {
  const bytes = new Uint8Array(await (await fetch(document.querySelector(selector).src)).arrayBuffer());
  return bytes.reduce((sum, byte) => (31 * sum + byte) >>> 0, 7);
}"""


def of_chapter(name: str, folder: Path, *examples: str, **parameters) -> Path:
    "A chapter with what it defines, and of its examples those with one of these lines; others keep the kernel busy."
    lines = re.compile("|".join([r"^#\| (default_exp|export|hide)", *(f"^{re.escape(line)}" for line in examples)]), re.M)
    notebook = parameterize_notebook(load_notebook_node(str(ROOT / f"nbs/{name}.ipynb")), parameters)
    wanted = lambda cell: cell.metadata.get("tags") or lines.search(cell.source)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" and wanted(cell)]
    for cell in notebook.cells: cell.outputs, cell.execution_count = [], None
    (folder / "nbs").mkdir(parents=True)
    nbformat.write(notebook, folder / f"nbs/{name}.ipynb")
    return folder / f"nbs/{name}.ipynb"


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    "The chapter of the studio for digits, which trains in seconds."
    fast = {"dataset": "digits", "train_size": 1000, "epochs": 1}
    return of_chapter("studio", tmp_path, "source = ", "studio = InversionStudio", **fast)


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
    return page.locator(".widget-html", has_text=re.compile(r"^\s*step \d")).last.inner_text()


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
    "Press a key on every slider, and wait until the status has heard of it."
    for at, symbol in enumerate(symbols):
        readout = page.locator(".widget-slider .widget-readout").nth(at)
        before = readout.inner_text()
        page.locator(".widget-slider .noUi-handle").nth(at).focus()
        page.keyboard.press(key)
        wait_until(page, lambda: readout.inner_text() != before, f"the slider of {symbol} has moved")
        says = lambda: f"{symbol} {readout.inner_text().strip()}," in status(page)
        wait_until(page, says, f"{symbol} is in the status")


def play(page) -> None:
    "Start, move every slider, look at a picture, undo, pause, go on."
    page.wait_for_selector(".netinv-grid img", timeout=180_000)
    page.locator(".netinv-grid").last.scroll_into_view_if_needed()
    first = page.evaluate(HASH, ".netinv-grid img")
    button(page, "Start").click()
    wait_until(page, lambda: "inversion accuracy" in status(page) and step(page) > 5, "training")
    assert page.evaluate(HASH, ".netinv-grid img") != first
    move(page, SLIDERS, "ArrowLeft")
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


@contextmanager
def jupyterlab(notebook: Path, chromium, folder: Path) -> Iterator[object]:
    "A page with all cells of the notebook running; in the end there must have been no error on the console."
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lab = ["jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
           "--IdentityProvider.token=x", f"--ServerApp.root_dir={notebook.parent}"]
    context = chromium.new_context(viewport={"width": 1500, "height": 1050})
    with served(lab, env=at_home(folder)), noting(context) as (page, errors, _):
        wait_for(port)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?reset&token=x")
        run_all(page)
        yield page
        assert not errors, errors
    context.close()


def test_studio_in_jupyterlab(chapter: Path, chromium, tmp_path: Path) -> None:
    with jupyterlab(chapter, chromium, tmp_path) as page:
        play(page)
        page.screenshot(path=ARTEFACTS / "studio.png")
        button(page, "Close").click()
        page.wait_for_selector(".netinv-grid", state="detached")


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
OWN_TERM = """
from netinv.classifier import train_classifier
from netinv.data import load_data
from netinv.frozen import FrozenClassifier
from netinv.generator import Generator
from netinv.objective import Inversion, Term
from netinv.studio import InversionStudio

data = load_data("digits")
classifier = FrozenClassifier(train_classifier(data, epochs=1, progress=False), shape=data.shape)
dark = Term("darkness", "dark", 4.0, "mean pixel: darker images", lambda view: view.images.mean())
InversionStudio(classifier, objective=Inversion(dark), batch_size=40, generator=Generator.sized(width=16))
"""


def of_one_cell(source: str, folder: Path) -> Path:
    "A notebook."
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path = folder / "nbs/cell.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


def test_reconstruction_studio_in_jupyterlab(chromium, tmp_path: Path) -> None:
    with jupyterlab(of_one_cell(RECONSTRUCTION, tmp_path), chromium, tmp_path) as page:
        real = "img[alt='the nearest real image to each of the images above']"
        page.wait_for_selector(real, timeout=180_000)
        before = page.evaluate(HASH, real)
        button(page, "Start").click()
        wait_until(page, lambda: "inversion accuracy" in status(page) and step(page) > 5, "training")
        move(page, [*TERMS, *MOVES, "dropout", "T"], "ArrowRight")
        assert page.evaluate(HASH, real) != before
        button(page, "Pause").click()
        wait_until(page, lambda: button(page, "Start").is_visible(), "paused")
        page.screenshot(path=ARTEFACTS / "reconstruction.png")


def test_a_term_of_the_readers_own_can_be_moved(chromium, tmp_path: Path) -> None:
    with jupyterlab(of_one_cell(OWN_TERM, tmp_path), chromium, tmp_path) as page:
        page.wait_for_selector(".netinv-grid img", timeout=180_000)
        button(page, "Start").click()
        wait_until(page, lambda: "inversion accuracy" in status(page) and step(page) > 5, "training")
        move(page, [*SLIDERS[:5], "dark", *SLIDERS[5:]], "ArrowRight")
        slider = page.locator(".widget-hslider", has_text="dark")
        assert slider.get_attribute("title") or slider.locator("[title*='darker images']").count()
        assert "darkness: 8.0" in page.locator(".netinv-copy textarea").input_value()
        button(page, "Pause").click()
        wait_until(page, lambda: button(page, "Start").is_visible(), "paused")
        page.screenshot(path=ARTEFACTS / "own_term.png")


def test_explorer_in_jupyterlab(chromium, tmp_path: Path) -> None:
    with jupyterlab(of_one_cell(EXPLORER, tmp_path), chromium, tmp_path) as page:
        table = page.locator(".widget-html", has_text="turned away")
        table.wait_for(timeout=120_000)
        for act in (lambda: (page.locator(".noUi-handle").focus(), page.keyboard.press("PageUp")),
                    lambda: page.get_by_role("button", name="late").click(),
                    lambda: page.locator(".jp-OutputArea select").select_option(label="95.0% of in-distribution")):
            before = table.inner_text()
            act()
            wait_until(page, lambda: table.inner_text() != before, "the table has changed")
        page.screenshot(path=ARTEFACTS / "explorer.png")


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
