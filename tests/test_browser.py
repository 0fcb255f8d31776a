"""The page in a real browser: upload, answer, error, example, as a visitor sees them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import QUIET, ROOT
from extras import need, unavailable

from inference.door import create_server, open_door
from inference.page import create_page
from inference.service import Service

pytestmark = pytest.mark.extra
need("flask", "waitress", "selenium")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 200  # seconds for one answer: the first one loads torch


@pytest.fixture(scope="module")
def server(place, tmp_path_factory):
    """app.py as a user starts it: its address, and the folder of what it puts on disk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    flags = ["--checkpoints", place / "any.pth", "--examples", place / "clips", "--port", port]
    command = [sys.executable, "app.py", *map(str, flags), "--patience", str(PATIENCE)]
    environment = {**os.environ, **QUIET, "TMPDIR": str(folder)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert "open http://127.0.0.1" in process.stdout.readline()
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}", folder=folder)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    """A Chromium of this machine without a window."""
    from selenium import webdriver

    chrome, driver = next(filter(None, map(shutil.which, BROWSERS)), None), "chromedriver"
    if not chrome or not shutil.which(driver):
        unavailable("needs chromium and chromedriver, in Debian: chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(driver)))
    yield opened
    opened.quit()


class Visit:
    """The page, opened in a window of `width` pixels."""

    def __init__(self, browser, address: str, width: int):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.wait = browser, WebDriverWait(browser, PATIENCE)
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get(address)
        self.wait.until(lambda _: self.find("body").get_attribute("data-ready"))

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def upload(self, path) -> None:
        self.find("#clip").send_keys(str(path))

    def ask(self) -> str:
        """Press the button; the answer, or the error, when it is there."""
        self.find("#go").click()
        self.wait.until(lambda _: self.find("#go").text == "Answer")
        return self.find("#error").text or self.find("#head").get_attribute("textContent")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_clip_is_answered(server, browser, place, width):
    visit = Visit(browser, server.address, width)
    assert browser.execute_script("return window.innerWidth") == width
    assert "not knowing what someone feels" in " ".join(visit.find("header").text.split())
    visit.upload(place / "clips" / "anna.mp4")
    assert "%" in visit.ask() and visit.find("#picture").is_displayed()
    assert int(visit.find("#picture").get_property("naturalWidth")) > 1000
    assert "no sentence was given" in visit.find("#remarks").text
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, "the page has to be scrolled sideways"
    assert visit.complaints() == []


def test_errors_and_examples(server, browser, tmp_path):
    visit = Visit(browser, server.address, 1280)
    (tmp_path / "junk.mp4").write_text("not a video")
    visit.upload(tmp_path / "junk.mp4")
    assert "cannot open junk.mp4" in visit.ask() and not visit.find("#found").is_displayed()
    assert any("400" in each for each in visit.complaints())  # so complaints are seen
    visit.find("#examples button").click()
    answer, remarks = visit.ask(), visit.find("#remarks").text
    assert "%" in answer and "no sentence" not in remarks  # its .npz lies beside it


def test_nothing_stays_on_disk(server, browser, place):
    visit = Visit(browser, server.address, 1280)
    visit.upload(place / "clips" / "ben.mp4")
    assert "%" in visit.ask()
    assert not list(server.folder.glob("upload-*"))
    assert not [path for path in server.folder.rglob("*") if path.suffix in (".mp4", ".npy")]


def test_a_visitor_of_a_busy_page_is_told_before_the_upload(browser, place):
    models = {"any": place / "any.pth"}
    full = Service(models, {}, None, "cpu", megabytes=1, seconds=20, patience=20, places=0)
    guard = open_door("127.0.0.1", (), 1)
    waitress = create_server(create_page(full, guard), guard, "127.0.0.1", 0)
    threading.Thread(target=waitress.run, daemon=True).start()
    visit = Visit(browser, f"http://127.0.0.1:{waitress.effective_port}", 1280)
    visit.upload(place / "clips" / "anna.mp4")
    assert "please try again" in visit.ask()
    assert visit.complaints() == []  # a refused upload would be one
