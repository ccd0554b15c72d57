"""Take the pictures of widgets that the chapters show, in a real JupyterLab; see nbs/images.

    python tests/pictures.py studio sliders explorer
"""
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from browser import FLAGS, ROOT, chromium_path
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image, ImageChops
from playwright.sync_api import sync_playwright
from test_studio import button, jupyterlab, status, step, wait_until

STUDIO = ["source = ", "studio = InversionStudio"]
SLIDERS = ["source = ", "dark = Term"]
EXPLORER = ["sizes = ", "train = ", "explorer = OODExplorer"]


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


def train(page) -> None:
    "Press Start, wait until nearly all images are hits, choose an image, and pause."
    page.wait_for_selector(".netinv-grid img", timeout=180_000)
    button(page, "Start").click()
    accurate = lambda: "inversion accuracy" in status(page) and step(page) > 250
    wait_until(page, accurate, "250 steps", seconds=600)
    box = page.locator(".netinv-grid .box").last
    size = box.bounding_box()
    box.click(position={"x": size["width"] * 0.25, "y": size["height"] * 0.85})
    page.wait_for_selector("text=/asked for/")
    button(page, "Pause").click()
    wait_until(page, lambda: button(page, "Start").is_visible(), "paused")
    page.wait_for_timeout(3_000)


def settle(page) -> None:
    "Wait for the widgets, and for their pictures."
    page.wait_for_selector(".jp-OutputArea-output .widget-vbox", timeout=180_000)
    page.wait_for_timeout(3_000)


PICTURES: dict[str, tuple[str, list[str], Callable]] = {  # name: chapter, examples that it needs, what to do before
    "studio": ("studio", STUDIO, train), "sliders": ("parts", SLIDERS, settle),
    "explorer": ("explorer", EXPLORER, settle)}


def trimmed(png: bytes, margin: int = 8) -> Image.Image:
    "The picture without what is empty on the right and below."
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.crop((0, 2, picture.width, picture.height - 4))  # without JupyterLab's borders
    *_, right, bottom = ImageChops.invert(picture).getbbox()
    return picture.crop((0, 0, min(right + margin, picture.width), min(bottom + margin, picture.height)))


def take(name: str, browser) -> None:
    "Write nbs/images/NAME.png."
    chapter, examples, act = PICTURES[name]
    with TemporaryDirectory() as folder:
        notebook = of_chapter(chapter, Path(folder), *examples)
        with jupyterlab(notebook, browser, Path(folder)) as page:
            act(page)
            page.add_style_tag(content=".jp-Cell-inputWrapper { display: none }")
            page.wait_for_timeout(2_000)  # for the page to come to rest
            shown = page.locator(".jp-OutputArea-output .widget-vbox").first.screenshot()
            trimmed(shown).save(ROOT / f"nbs/images/{name}.png", optimize=True)


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        for name in sys.argv[1:] or PICTURES: take(name, browser)
        browser.close()


if __name__ == "__main__":
    main()
