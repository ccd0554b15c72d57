"""Write nbs/images/report.html, the report on the demo that the site shows, and report.png, a picture of its beginning.

It takes ninety seconds, and Chromium or Chrome for the picture."""
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from netinv.cli import main

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "nbs/images"

sys.path.insert(0, str(ROOT / "tests"))

from browser import FLAGS, chromium_path  # noqa: E402


def photograph(page: Path, picture: Path) -> None:
    "The first screen of a page."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        screen = browser.new_page(viewport={"width": 1000, "height": 760}, color_scheme="light")
        screen.goto(page.as_uri())
        screen.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        code = main(["audit", "--demo", "--budget", "90s", "--out", folder])
        if code > 1: sys.exit(code)
        shutil.copyfile(Path(folder, "report.html"), IMAGES / "report.html")
    photograph(IMAGES / "report.html", IMAGES / "report.png")
