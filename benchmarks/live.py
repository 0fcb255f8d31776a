"""How late the live mode of the page answers: a clip stands for camera and microphone.

    python -m benchmarks.live --clip clip.mp4 [--seconds 60]

The page and a browser run on this machine, with the models of --logs_dir, or those of starter/.
Counted are the seconds from the end of each two-second window to its answer on the page, of all
answers but the first, which waits for the models. Needs chromium, chromedriver and
requirements-extras.txt.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.io import wavfile

from benchmarks.screens import PATIENCE, app, browser, show
from extract.audio import read_mono
from extract.media import frames_at
from utils.config import Flags, ranged
from utils.errors import UsageError, run_script

RATE, SIZE = 15, (480, 360)  # frames a second and pixels, as the page asks its camera for


def main() -> None:
    flags = Flags(__doc__, prog="python -m benchmarks.live")
    flags.add("--clip", type=Path, required=True, help="with a face and a voice")
    flags.add("--seconds", default=60.0, type=ranged(float, 5), help="how long to look")
    flags.add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = stand_in(args.clip, Path(folder))
        with browser(*asked) as window, app({"--logs_dir": args.logs_dir}) as address:
            show(window, 1280, address)
            delays = watch(window, args.seconds)
    if len(delays) < 2:
        raise UsageError(f"{len(delays)} answers in {args.seconds:g} s: look longer")
    low, middle, high = np.quantile(delays[1:], (0.05, 0.5, 0.95))
    print(f"{len(delays)} answers in {args.seconds:g} s; the first {delays[0]:.1f} s late,")
    print(f"the others {middle:.2f} s (5 % under {low:.2f} s, 5 % over {high:.2f} s)")


def stand_in(clip: Path, folder: Path) -> list[str]:
    """The clip as camera and microphone of a browser: its flags."""
    sound = read_mono(clip)
    wave = np.int16(32767 * np.clip(sound.wave, -1, 1))
    wavfile.write(folder / "microphone.wav", 16_000, wave)
    times = np.arange(0, len(wave) / 16_000, 1 / RATE)
    with open(folder / "camera.mjpeg", "wb") as file:
        for _, picture in frames_at(clip, times):
            small = cv2.resize(picture[..., ::-1], SIZE, interpolation=cv2.INTER_AREA)
            file.write(cv2.imencode(".jpg", small)[1].tobytes())
    return [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={folder / 'camera.mjpeg'}",
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
    ]


def watch(window: Any, seconds: float) -> list[float]:
    """Start the live mode; the delay of each answer until `seconds` behind the first."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(window, PATIENCE)
    wait.until(lambda _: window.find_element("css selector", "body").get_attribute("data-ready"))
    window.execute_script(
        "window.delays = []; new MutationObserver(() => window.delays.push("
        "document.getElementById('which').dataset.delay)).observe("
        "document.getElementById('which'), {attributes: true, attributeFilter: ['data-delay']});"
    )
    window.find_element("css selector", "#live").click()
    wait.until(lambda _: window.execute_script("return window.delays.length"))
    time.sleep(seconds)
    return [float(each) for each in window.execute_script("return window.delays")]


if __name__ == "__main__":
    run_script(main)
