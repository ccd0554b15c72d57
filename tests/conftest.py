"What all tests share: real data where there is some, a patient hypothesis, a CUDA device where there is one."
import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # another number of threads makes other bits

import torch  # noqa: E402: reads OMP_NUM_THREADS
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

if not os.environ.get("NETINV_DATA") and (ROOT / "../shared/data").is_dir():
    os.environ["NETINV_DATA"] = str((ROOT / "../shared/data").resolve())

from netinv.data import NAMED_SETS, data_root, first_available  # noqa: E402: reads NETINV_DATA

settings.register_profile("netinv", deadline=None)  # a slow machine is not a wrong result
settings.load_profile("netinv")


def missing_sets() -> list[str]:
    "The paper's data sets that are not on this machine."
    with redirect_stdout(io.StringIO()):  # one line in the header is enough
        return [name for name in NAMED_SETS if first_available(name) != name]


def data_line() -> str:
    "Which data the tests use, in one line."
    missing = missing_sets()
    if not missing: return f"real data at {data_root()}"
    return f"real data not found: the tests use digits and generated images ({', '.join(missing)} not in {data_root()})"


def pytest_report_header() -> str:
    return data_line()


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder with MNIST, FashionMNIST, SVHN and CIFAR-10; tests that ask for it are skipped where it is not complete."
    if missing_sets(): pytest.skip(data_line())
    return data_root()


@pytest.fixture(scope="session")
def digits():
    "The digits that the victim knows by heart, as `ImageData`."
    import victims

    return victims.digits()


@pytest.fixture(scope="session")
def unseen():
    "Those that it has not seen, a `Split`."
    import victims

    return victims.unseen()


@pytest.fixture(scope="session")
def frozen():
    "The victim, a `FrozenClassifier` that tests do not change."
    import victims

    return victims.victim()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Skip the tests marked `gpu` where there is no CUDA device."
    if torch.cuda.is_available(): return
    for item in items:
        if item.get_closest_marker("gpu"): item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


@pytest.fixture(scope="module")  # while it is open its event loop runs, which tests of other modules cannot have
def chromium() -> Iterator[object]:
    "A headless browser; tests that ask for it are skipped where there is none."
    from browser import FLAGS, chromium_path
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    if path is None: pytest.skip("there is no Chromium or Chrome here: install Debian's chromium, or run 'playwright install chromium'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
