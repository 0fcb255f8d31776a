"""The page in a real browser: upload, answer, error, example, as a visitor sees them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import (
    QUIET,
    ROOT,
    make_clip,
    moving_picture,
    save_untrained,
    voice,
    write_features,
)
from extras import need, unavailable
from inside import run_main
from PIL import Image

from evaluation import report
from inference.door import create_server, open_door
from inference.page import create_page
from inference.service import Service
from utils import plots
from utils.files import write_bytes

need("flask", "waitress", "selenium")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SAID = "a good day"
PATIENCE = 200  # seconds for one answer: the first one loads torch


@pytest.fixture(scope="module")
def server(place, tmp_path_factory):
    """app.py as a user starts it: its address, and the folder of what it puts on disk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    vectors = {"words": np.array(SAID.split()), "vectors": np.ones((3, 16), "f4")}
    np.savez(folder / "words.npz", **vectors)
    examples = tmp_path_factory.mktemp("examples") / "clips"
    shutil.copytree(place / "clips", examples)
    make_clip(examples / "old.avi", [*moving_picture()], codec="mpeg4")
    flags = ["--checkpoints", place / "any.pth", "--examples", examples, "--port", port]
    flags += ["--word_vectors", folder / "words.npz", "--max_mb", 1]
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
    asked = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *asked):
        options.add_argument(flag)
    opened = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(driver)))
    yield opened
    opened.quit()


def set_width(browser, width: int) -> None:
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


class Visit:
    """The page, opened in a window of `width` pixels."""

    def __init__(self, browser, address: str, width: int):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.wait = browser, WebDriverWait(browser, PATIENCE)
        set_width(browser, width)
        browser.get_log("browser")  # of the visit before
        browser.get(address)
        self.wait.until(lambda _: self.find("body").get_attribute("data-ready"))

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def upload(self, path) -> None:
        self.find("#clip").send_keys(str(path))

    def ask(self) -> str:
        """Press the button; the answer, or the error, when it is there."""
        self.find("#go").click()
        self.wait.until(lambda _: not self.find("#working").is_displayed())
        return self.find("#error").text or self.find("#head").text

    def run(self, script: str, *args):
        return self.browser.execute_script(script, *args)

    def is_asked_before_leaving(self) -> bool:
        """Whether the browser asks before a reload, which would lose what is on the page."""
        return not self.run("return dispatchEvent(new Event('beforeunload', {cancelable: true}))")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_clip_is_answered(server, browser, place, width):
    visit = Visit(browser, server.address, width)
    assert visit.run("return window.innerWidth") == width
    assert "not knowing what someone feels" in " ".join(visit.find("header").text.split())
    visit.upload(place / "clips" / "anna.mp4")
    answer = visit.ask()
    assert "%" in answer
    top = visit.run("return document.getElementById('head').getBoundingClientRect().top")
    assert 0 <= top < 400, "the answer is out of sight"
    rows = [row.text.split() for row in browser.find_elements("css selector", "#bars li")]
    assert len(rows) == 7 and all(row[-1] == "%" for row in rows)
    assert sum(int(row[1]) for row in rows) == pytest.approx(100, abs=4)
    assert visit.run("return parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    assert int(visit.find("#picture").get_property("naturalWidth")) > 600
    assert "Words not used: no sentence was given." in visit.find("#remarks").text
    assert "It reads the voice, face and words." in visit.find("#card").text
    assert "answer" in visit.find("#spoken").get_attribute("textContent").lower()
    for sign in ("--", "E_", str(place)):
        assert sign not in visit.find("main").text
    wide = visit.run("return document.documentElement.scrollWidth")
    assert wide <= width, "the page has to be scrolled sideways"
    assert visit.complaints() == []


def test_errors_and_examples(server, browser, tmp_path):
    visit = Visit(browser, server.address, 1280)
    (tmp_path / "junk.mp4").write_text("not a video")
    visit.upload(tmp_path / "junk.mp4")
    assert "cannot open junk.mp4" in visit.ask() and not visit.find("#found").is_displayed()
    assert any("400" in each for each in visit.complaints())  # so complaints are seen
    seen = "return [...document.querySelectorAll('#examples img')].map((each) => each.naturalWidth)"
    visit.wait.until(lambda _: visit.run(seen) == [240, 240, 120])
    named = [each.text for each in browser.find_elements("css selector", "#examples button")]
    assert named == ["anna", "ben", "old"]
    visit.find("#examples button").click()
    answer, remarks = visit.ask(), visit.find("#remarks").text
    assert "%" in answer and "no sentence" not in remarks  # its .npz lies beside it
    assert visit.find("#which").text.startswith("anna, answered in ")
    browser.find_elements("css selector", "#examples button")[2].click()
    visit.wait.until(lambda _: "(this browser cannot play it" in visit.find("#chosen").text)
    assert visit.find("#still").is_displayed() and not visit.find("#video").is_displayed()
    assert "Nothing in this clip can be used." in visit.ask()  # nobody is in it


def test_nothing_typed_is_lost_and_no_old_clip_is_answered(server, browser, place, tmp_path):
    visit = Visit(browser, server.address, 1280)
    visit.find("#text").send_keys(SAID)
    visit.upload(place / "clips" / "anna.mp4")
    assert visit.find("#text").get_property("value") == SAID
    assert "%" in visit.ask() and SAID in visit.find("#words").text
    visit.upload(place / "clips" / "ben.mp4")
    assert visit.find("#old_words").is_displayed()
    visit.find("#clear").click()
    assert visit.find("#text").get_property("value") == ""
    (tmp_path / "huge.mp4").write_bytes(bytes(1_200_000))
    visit.upload(tmp_path / "huge.mp4")
    assert "huge.mp4 has 1.2 MB; the limit is 1 MB" in visit.find("#error").text
    assert not visit.find("#video").is_displayed() and visit.find("#chosen").text == ""
    assert visit.ask() == "Give a clip or a sentence."


def test_a_still_picture_is_answered_under_the_name_that_it_has(
    server, browser, face_image, tmp_path
):
    name = "<b>a & b</b>".replace("/", "\u2044") + " (1).png"
    Image.fromarray(face_image).save(tmp_path / name)
    visit = Visit(browser, server.address, 390)
    visit.upload(tmp_path / name)
    visit.wait.until(lambda _: visit.run("return get('still').naturalWidth") == 240)
    assert "%" in visit.ask() and visit.find("#which").text.startswith(f"{name}, answered in")
    assert visit.find("#still").is_displayed() and visit.complaints() == []


ANSWER_LATE = """window.sent = send;
send = (form) => new Promise((done) => { window.reply = async () => done(await sent(form)); });
"""
OPEN_LATE = """window.opened = null;
navigator.mediaDevices.getUserMedia = (wanted) => new Promise((done) => {
  window.open = async () => {
    opened = await MediaDevices.prototype.getUserMedia.call(navigator.mediaDevices, wanted);
    done(opened);
  };
});
"""


def check_chosen(visit: Visit, name: str) -> None:
    """Only this clip stands there, and nothing else goes on."""
    assert visit.find("#chosen").text == name
    assert visit.run("return get('video').src.startsWith('blob:') && !get('video').srcObject")
    assert visit.find("#video").is_displayed() and not visit.find("#working").is_displayed()
    assert not visit.find("#found").is_displayed() and not visit.find("#error").is_displayed()
    assert visit.find("#camera").text == "Record video" and visit.find("#live").text == "Live"
    assert visit.find("#go").is_enabled()


def test_what_is_begun_ends_what_was_going_on(server, browser, place):
    anna, ben = (place / "clips" / f"{name}.mp4" for name in ("anna", "ben"))
    visit = Visit(browser, server.address, 1280)
    visit.run(ANSWER_LATE)
    visit.upload(anna)
    visit.find("#go").click()
    visit.wait.until(lambda _: visit.run("return Boolean(window.reply)"))
    visit.upload(ben)
    check_chosen(visit, "ben.mp4")
    visit.browser.execute_async_script("reply().then(() => setTimeout(arguments[0]))")
    check_chosen(visit, "ben.mp4")  # the answer for anna comes, and nobody sees it
    visit.run("send = sent")
    assert "%" in visit.ask() and visit.find("#which").text.startswith("ben.mp4, ")

    visit.find("#camera").click()
    visit.wait.until(lambda _: "Stop" in visit.find("#camera").text)
    assert not visit.find("#found").is_displayed(), "an old answer beside a new recording"
    visit.upload(anna)
    check_chosen(visit, "anna.mp4")
    visit.find("#microphone").click()
    visit.wait.until(lambda _: "Stop" in visit.find("#microphone").text)
    visit.find("#live").click()
    visit.wait.until(lambda _: visit.find("#live").text == "Stop")
    assert visit.find("#microphone").text == "Record sound"
    visit.upload(ben)
    time.sleep(0.3)  # as long as a recording that was ended may take to say so
    check_chosen(visit, "ben.mp4")

    visit.run(OPEN_LATE)
    for button in ("live", "camera"):
        visit.find(f"#{button}").click()  # the browser asks whether the page may
        visit.upload(anna)
        visit.browser.execute_async_script("open().then(() => setTimeout(arguments[0]))")
        check_chosen(visit, "anna.mp4")
        assert visit.run("return opened.getTracks().every((each) => each.readyState === 'ended')")


def test_a_recording_that_goes_on_is_ended_and_answered(server, browser):
    visit = Visit(browser, server.address, 1280)
    visit.find("#camera").click()
    visit.wait.until(lambda _: "Stop (1" in visit.find("#camera").text)
    said = visit.ask()
    assert "%" in said or "Nothing in this clip can be used" in said
    assert visit.find("#chosen").text.startswith("your recording, ")


def test_what_is_chosen_can_be_taken_back_by_keyboard(server, browser, place):
    from selenium.webdriver.common.keys import Keys

    visit = Visit(browser, server.address, 390)
    assert not visit.find("#remove").is_displayed() and not visit.is_asked_before_leaving()
    visit.upload(place / "clips" / "anna.mp4")
    assert visit.is_asked_before_leaving()
    assert "%" in visit.ask() and visit.is_asked_before_leaving()
    visit.find("#remove").send_keys(Keys.ENTER)
    assert not visit.is_asked_before_leaving()
    for gone in ("#found", "#video", "#chosen", "#remove"):
        assert not visit.find(gone).is_displayed(), gone
    assert visit.find("#hint").text.startswith("The answer appears here")
    assert visit.run("return document.activeElement.id") == "clip"
    assert visit.ask() == "Give a clip or a sentence."


def test_a_long_recording_is_answered_in_step_with_its_playing(
    server, browser, face_image, tmp_path
):
    pause = np.zeros(16_000)
    sound = np.concatenate([voice(7.0), pause, voice(6.0, 1), pause, voice(3.0, 2)])
    clip = make_clip(tmp_path / "long.mp4", np.stack([face_image] * 54), sound, fps=3)
    visit = Visit(browser, server.address, 390)
    visit.upload(clip)
    answer = visit.ask()
    buttons = browser.find_elements("css selector", "#line button")
    assert len(buttons) > 2 and f" {len(buttons)} parts" in answer
    assert all("%" in each.get_attribute("aria-label") for each in buttons)
    assert "This rests on the voice and face alone." in visit.find("#remarks").text
    assert visit.find("#part").text.startswith("0:00.")
    assert len(visit.find("#bars").text.splitlines()) == 14
    buttons[1].click()  # plays this part
    assert visit.find("#part").text[:6] == buttons[1].get_attribute("aria-label")[:6]
    player = "const video = document.querySelector('#player video'); "
    visit.wait.until(lambda _: visit.run(player + "return video.currentTime") > 1)
    visit.run(player + "video.currentTime = 16;")  # as its own slider does
    visit.wait.until(lambda _: buttons[-1].get_attribute("aria-current") == "true")
    assert visit.find("#part").text.startswith("0:1")


@pytest.mark.parametrize(("button", "element"), [("camera", "video"), ("microphone", "audio")])
def test_a_recording_can_be_seen_heard_and_answered(server, browser, button, element):
    visit = Visit(browser, server.address, 1280)
    visit.find(f"#{button}").click()
    running = r"Stop \((\d+) of 59 s\)"
    told = lambda _: re.findall(running, visit.find(f"#{button}").text)  # noqa: E731
    visit.wait.until(lambda _: told(_) and int(told(_)[0]) > 1)
    visit.find(f"#{button}").click()
    visit.wait.until(lambda _: "your recording, " in visit.find("#chosen").text)
    assert visit.find(f"#{element}").is_displayed()
    assert visit.run(f"return document.getElementById('{element}').muted") is False
    assert "%" in visit.ask() or "Nothing in this clip can be used" in visit.find("#error").text


def test_an_answer_can_be_cancelled(server, browser, place):
    visit = Visit(browser, server.address, 1280)
    visit.run(ANSWER_LATE)
    visit.upload(place / "clips" / "anna.mp4")
    visit.find("#go").click()
    assert visit.find("#stage").text and visit.find("#cancel").is_displayed()
    visit.find("#cancel").click()  # as the second half of a double click on Answer
    assert visit.find("#working").is_displayed()
    visit.run("turn.asked = 1")  # as if some time had passed
    visit.find("#cancel").click()
    assert not visit.find("#working").is_displayed()
    assert visit.find("#hint").text == "Cancelled. What you chose is still here."
    assert visit.find("#error").text == "" and not visit.find("#found").is_displayed()
    visit.run("send = sent")
    assert "%" in visit.ask()  # the clip is still there


def test_the_page_is_used_by_keyboard_alone(server, browser):
    from selenium.webdriver.common.keys import Keys

    visit = Visit(browser, server.address, 1280)
    visit.find("#text").send_keys(SAID, Keys.ENTER)
    visit.wait.until(lambda _: visit.find("#found").is_displayed())
    assert visit.find("#which").text.startswith("a sentence")
    assert visit.run("return document.activeElement.id") == "head"


def test_live_answers_come_by_themselves(server, browser):
    visit = Visit(browser, server.address, 390)
    visit.find("#live").click()
    visit.wait.until(lambda _: visit.find("#which").get_attribute("data-delay"))
    first = visit.find("#which").text
    assert "this answer came" in first
    visit.wait.until(lambda _: visit.find("#which").text != first)
    assert visit.find("#player video").is_displayed()
    visit.find("#player button").click()
    assert visit.find("#live").text == "Live" and not visit.find("#video").is_displayed()


def test_nothing_stays_on_disk(server, browser, place):
    visit = Visit(browser, server.address, 1280)
    visit.upload(place / "clips" / "ben.mp4")
    assert "%" in visit.ask()
    assert not list(server.folder.glob("upload-*"))
    assert not [path for path in server.folder.rglob("*") if path.suffix in (".mp4", ".npy")]


def serve(place, **options) -> tuple[Service, str]:
    """A page of this process, and its address."""
    models = {"any": place / "any.pth"}
    service = Service(models, {}, None, "cpu", megabytes=1, seconds=20, patience=20, **options)
    guard = open_door("127.0.0.1", (), 1)
    waitress = create_server(create_page(service, guard), guard, "127.0.0.1", 0)
    threading.Thread(target=waitress.run, daemon=True).start()
    return service, f"http://127.0.0.1:{waitress.effective_port}"


def test_a_visitor_of_a_busy_page_is_told_before_the_upload(browser, place):
    _, address = serve(place, places=0)
    visit = Visit(browser, address, 1280)
    visit.upload(place / "clips" / "anna.mp4")
    assert "please try again" in visit.ask()
    assert visit.complaints() == []  # a refused upload would be one


def test_who_leaves_the_page_leaves_the_line(browser, place):
    """Nobody would see the answer of a page that was loaded anew."""
    service, address = serve(place)
    others = threading.Event()  # they are answered first, until this is set
    service.worker.submit(others.wait)
    visit = Visit(browser, address, 1280)
    visit.upload(place / "clips" / "anna.mp4")
    visit.find("#go").click()
    visit.wait.until(lambda _: service.asked)
    browser.refresh()
    visit.wait.until(lambda _: not service.asked and not service.in_line)
    others.set()
    visit.wait.until(lambda _: visit.find("body").get_attribute("data-ready"))
    assert visit.find("#go").is_enabled() and not visit.find("#working").is_displayed()


# --- the report of evaluate.py ------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{number of classes: a report}: of two runs with long names, and the same with 28 classes."""
    folder, drawn = tmp_path_factory.mktemp("reports"), io.BytesIO()
    Image.new("RGB", (1600, 1200)).save(drawn, "png")
    features, name = write_features(folder / "features", 1), "a_long_name_of_a_run_" * 3
    runs = [
        folder / mode / f"{name}{mode}" / "1_best_1.0000.pth" for mode in ("multimodal", "face")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", lambda figure, path: write_bytes(path, drawn.getvalue()))
        patch.setattr(report, "training_png", lambda *args: drawn.getvalue())
        for seed, path in enumerate(runs):
            save_untrained(path, features, path.parts[-3], seed, modality_dropout=0.3)
            (path.parent / "metrics.csv").write_text("epoch\n1\n")
        made = run_main(
            *("evaluate", "--features_dir", features, "--out", folder / "7", "--num_workers", 0),
            *("--checkpoints", *runs, "--allow_training_clips"),
        )
        assert made.code == 0, made.err
        known = json.loads((folder / "7" / "metrics.json").read_text())
        names = [f"an_emotion_of_many_letters_{number}" for number in range(28)]
        row = known["systems"][-1]["per_class"]["hap"]
        known["systems"][-1] |= {
            "per_class": dict.fromkeys(names, row),
            "confusion": [[3] * 28] * 28,
        }
        table = pd.read_csv(folder / "7" / "predictions.csv")
        report.write_report(folder / "28", known | {"classes": names}, table)
    return {7: folder / "7", 28: folder / "28"}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("classes", [7, 28])
def test_a_report_is_not_scrolled_sideways(browser, reports, classes, width):
    set_width(browser, width)
    browser.get((reports[classes] / "index.html").as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    script = (
        "return [...document.querySelectorAll('.wide')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    moved = browser.execute_script(script)  # in its own box a matrix of many classes may be
    assert len(moved) == (classes == 28) and any(moved) == ((classes, width) == (28, 390))
