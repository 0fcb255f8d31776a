"""app.py: answers, friendly errors, nothing kept; in a test client and in a real browser."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import QUIET, ROOT

flask = pytest.importorskip("flask", reason="needs requirements-app.txt")
pytest.importorskip("waitress", reason="needs requirements-app.txt")

from inference import page  # noqa: E402


@pytest.fixture
def service(place):
    models = {"any": place / "any.pth"}
    examples = {"anna.mp4": place / "clips" / "anna.mp4"}
    return page.Service(models, examples, None, "cpu", megabytes=1, seconds=20, patience=100)


@pytest.fixture
def client(service):
    return page.create_page(service, ["localhost"]).test_client()


def post(client, name="", content=b"", **form):
    data = {"model": "any", **form} | ({"clip": (io.BytesIO(content), name)} if name else {})
    return client.post("/answer", data=data)


REFUSED = {
    "Choose a model.": dict(model="other"),
    "Give a clip or a sentence.": dict(),
    ".exe is not a clip": dict(name="x.exe", content=b"MZ"),
    "A file without an ending is not a clip": dict(name="clip", content=b"x"),
    "over the limit of 1 MB": dict(name="x.mp4", content=bytes(2_100_000)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_anything_is_read(client, message):
    response = post(client, **REFUSED[message])
    assert response.status_code in (400, 413) and message in response.json["error"]


def test_other_sites_and_other_names_are_refused(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    response = client.post("/answer", headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 403
    assert client.get("/example/..%2fanna.npz").status_code == 404
    about = client.get("/about")
    assert about.json["models"] == ["any"] and "default-src 'self'" in str(about.headers)


def test_the_page_asks_nothing_of_the_internet():
    for name in ("page.html", "page.css", "page.js"):
        text = (page.ASSETS / name).read_text()
        assert "//" not in text.replace("// ", ""), name


def dies(*_):
    os._exit(3)


def hangs(*_):
    time.sleep(60)


def answers(*_):
    return {"head": "still here"}


@pytest.mark.parametrize(("bad", "patience"), [(dies, 60), (hangs, 3)])
def test_a_process_that_dies_or_hangs_costs_one_answer(service, monkeypatch, bad, patience):
    service.patience = patience
    monkeypatch.setattr(page, "answer_one", bad)
    client = page.create_page(service, None).test_client()
    assert "could not be read" in post(client, text="x").json["error"]
    monkeypatch.setattr(page, "answer_one", answers)
    service.patience = 60
    assert post(client, text="x").json == {"head": "still here"}


def test_a_busy_port_is_one_line(place):
    from inside import run_main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_main("app", "--checkpoints", place / "any.pth", "--port", port)
    assert done.code == 2 and f"port {port}" in done.err and "--port" in done.err


@pytest.fixture
def server(place, tmp_path):
    """app.py as a user starts it; its address. What it puts on disk goes to tmp_path/tmp."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "tmp").mkdir()
    flags = ["--checkpoints", place / "any.pth", "--examples", place / "clips", "--port", port]
    command = [sys.executable, "app.py", *map(str, flags), "--max_seconds", "20"]
    environment = {**os.environ, **QUIET, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert "1 models; open http://127.0.0.1" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chrome, driver = shutil.which("chromium") or shutil.which("google-chrome"), "chromedriver"
    if not (chrome and shutil.which(driver)):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(driver)))
    yield opened
    opened.quit()


def test_a_visit(server, browser, place, tmp_path):
    """Upload, answer, error, example, as a visitor sees them; nothing stays on disk."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 100)

    def part(name):
        return browser.find_element("id", name)

    def ask():
        part("go").click()
        wait.until(lambda _: part("go").text == "Answer")
        return part("error").text or part("head").get_attribute("textContent")

    browser.get(server)
    wait.until(lambda _: browser.find_element("tag name", "body").get_attribute("data-ready"))
    assert "not knowing what someone feels" in " ".join(browser.page_source.split())
    part("clip").send_keys(str(place / "clips" / "anna.mp4"))
    assert "%" in ask() and part("picture").is_displayed()
    assert int(part("picture").get_property("naturalWidth")) > 1000
    assert "no sentence was given" in part("remarks").text
    (tmp_path / "junk.mp4").write_text("not a video")
    part("clip").send_keys(str(tmp_path / "junk.mp4"))
    assert "cannot open junk.mp4" in ask() and not part("found").is_displayed()
    browser.find_element("css selector", "#examples button").click()
    assert "%" in ask() and "no sentence" not in part("remarks").text  # its .npz lies beside it
    assert not list((tmp_path / "tmp").glob("upload-*"))
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.suffix in (".mp4", ".npy")]
