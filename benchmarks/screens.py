"""The demo's models -> docs/screens/: the web page and the evaluation report in a real browser.

    make demo
    python -m benchmarks.screens

Takes a picture of each at 1280 and at 390 pixels: page-1280.png, page-390.png, report-1280.png,
report-390.png. Needs chromium and chromedriver on this machine, and requirements-extras.txt. Only
the demo's generated clips are shown.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from utils.config import Flags
from utils.errors import UsageError, run_script
from utils.files import write_atomic

WIDTHS = (1280, 390)
TALLEST = 1500  # pixels of a picture: what lies further down is not shown
PATIENCE = 120  # seconds for an answer
CHROMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    flags = Flags(__doc__, prog="python -m benchmarks.screens")
    flags.add("--demo", default=Path("demo_run"), type=Path, help="what make demo wrote")
    flags.add("--out", default=Path("docs/screens"), type=Path, help="folder of the pictures")
    args = flags.parse_args()
    report = args.demo / "report-seed42" / "index.html"
    if not report.is_file():
        raise UsageError(f"no {report}: run make demo, or give its folder with --demo")
    args.out.mkdir(parents=True, exist_ok=True)
    with browser() as window:
        for width in WIDTHS:
            show(window, width, report.resolve().as_uri())
            save(window, width, args.out / f"report-{width}.png")
        raw = args.demo / "raw"
        places = {"--logs_dir": args.demo / "logs", "--examples": raw / "qia2020/test"}
        with app(places | {"--word_vectors": raw / "word_vectors.npz"}) as address:
            show(window, WIDTHS[0], address)
            answer_example(window)  # the first answer loads the models
            for width in WIDTHS:
                show(window, width, address)
                answer_example(window)
                save(window, width, args.out / f"page-{width}.png")


@contextlib.contextmanager
def app(places: dict[str, Path]) -> Iterator[str]:
    """app.py with these flags; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port)]
    for flag, place in places.items():
        command += [flag, str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        if "open http" not in process.stdout.readline():
            raise UsageError("app.py did not start: its message is above")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def browser(*more: str) -> Iterator[Any]:
    """A Chromium of this machine without a window, with `more` flags."""
    from selenium import webdriver

    chrome = next(filter(None, map(shutil.which, CHROMES)), None)
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        raise UsageError("no chromium with chromedriver here; in Debian: chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--hide-scrollbars", *more):
        options.add_argument(flag)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield window
    finally:
        window.quit()


def show(window: Any, width: int, address: str) -> None:
    resize(window, width, 900)
    window.get(address)


def resize(window: Any, width: int, height: int) -> None:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def answer_example(window: Any) -> None:
    """Choose the first example of the page and wait for its answer."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(window, PATIENCE)
    wait.until(lambda _: window.find_element("css selector", "body").get_attribute("data-ready"))
    wait.until(lambda _: window.find_elements("css selector", "#examples button"))[0].click()
    window.find_element("css selector", "#go").click()
    wait.until(lambda _: "%" in window.find_element("css selector", "#result").text)


def save(window: Any, width: int, path: Path) -> None:
    """The page from its top on, as a picture of at most TALLEST pixels with few colours."""
    height = window.execute_script("return document.documentElement.scrollHeight")
    resize(window, width, min(height, TALLEST))
    window.execute_script("window.scrollTo(0, 0)")
    picture = Image.open(io.BytesIO(window.get_screenshot_as_png())).convert("RGB")
    small = picture.quantize(128)
    write_atomic(path, lambda file: small.save(file, "png", optimize=True))
    print(path, *picture.size, f"{path.stat().st_size >> 10} KB", flush=True)


if __name__ == "__main__":
    run_script(main)
