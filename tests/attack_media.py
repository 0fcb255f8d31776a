"""Hostile clips for predict.py and the page, for tests/attack.py: each costs at most itself."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attack import Tally, left_in, told_wrongly
from attack_page import exchange, faults_of, form
from conftest import QUIET, ROOT, make_clip, make_place, moving_picture, portrait, voice
from PIL import Image
from test_app import start_app
from test_formats import is_made

BATCH = 8  # clips that predict.py is given at once, and a good one
SECONDS = 120  # that a clip may take
CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 32, 64)
Maker = Callable[[Path], object]


def text(content: str) -> Maker:
    return lambda path: path.write_text(content)


def wave(samples: np.ndarray, rate: int = 16_000, channels: int = 1, kind: int = 3) -> Maker:
    """A WAV of 32-bit floats, or of 16-bit numbers (kind 1), with any header."""
    width = 4 if kind == 3 else 2
    data = samples.astype("<f4" if kind == 3 else "<i2").tobytes()

    def write(path: Path) -> None:
        block = width * channels
        numbers = (kind, channels, rate, min(rate * block, 2**32 - 1), block % 2**16, 8 * width)
        head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, *numbers)
        head += b"data" + struct.pack("<I", len(data))
        path.write_bytes(b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data)

    return write


def made(*flags: str) -> Maker:
    """By FFmpeg's own program."""
    import imageio_ffmpeg  # comes with moviepy

    def make(path: Path) -> None:
        assert is_made(imageio_ffmpeg.get_ffmpeg_exe(), path, *flags), path

    return make


def picture(width: int, height: int) -> Maker:
    return lambda path: Image.new("1", (width, height)).save(path)


def cover(path: Path) -> None:
    """A song whose cover has 900 million pixels."""
    make_clip(path, sound=voice(1), sound_codec="libmp3lame", options={"id3v2_version": "0"})
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    content = b"\0image/png\0\3\0" + file.getvalue()
    frame = b"APIC" + struct.pack(">IH", len(content), 0) + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + frame + path.read_bytes())


def growing(path: Path) -> None:
    """Ten small pictures, and then one of 64 million pixels, in one stream."""
    for name, size, number in (("a.ts", "320x240", 10), ("b.ts", "8000x8000", 1)):
        source = ("-f", "lavfi", "-i", f"testsrc=s={size}:r=10", "-frames:v", str(number))
        made(*source, "-c:v", "libx264", "-preset", "ultrafast")(path.parent / name)
    path.write_bytes(b"".join((path.parent / name).read_bytes() for name in ("a.ts", "b.ts")))
    for name in ("a.ts", "b.ts"):
        (path.parent / name).unlink()


def cut(path: Path) -> None:
    make_clip(path, moving_picture(), voice(1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """A whole clip of which every 50th byte behind its first 2,000 is another."""
    make_clip(path, moving_picture(), voice(1), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    data[2000::50] = bytes(each ^ 0xFF for each in data[2000::50])
    path.write_bytes(data)


def speech(channels: int) -> np.ndarray:
    return np.repeat(voice(1), channels) * 32_000


LIST = "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
HTML = "<html><script>alert(1)</script></html>"
LOUD = np.resize(voice(1), 16_000).astype("f4")
MEDIA: dict[str, Maker] = {
    "ffconcat.mp4": text("ffconcat version 1.0\nfile /etc/passwd\n"),
    "ffconcat.mkv": text("ffconcat version 1.0\nfile good.mp4\n"),
    "list.mp4": text(LIST),
    "list.ts": text(LIST),
    "page.mp4": text(HTML),
    "page.wav": text(HTML),
    "vector.png": text('<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'),
    "nan.wav": wave(LOUD * np.nan),
    "some nan.wav": wave(np.where(np.arange(16_000) % 100, LOUD, np.nan)),
    "inf.wav": wave(LOUD * np.inf),
    "1e38.wav": wave(LOUD * 1e38),
    "silence.wav": wave(LOUD * 0),
    "1 Hz.wav": wave(LOUD, rate=1),
    "no Hz.wav": wave(LOUD, rate=0),
    "2 GHz.wav": wave(LOUD, rate=2_000_000_000),
    "1000 channels.wav": wave(LOUD, channels=1000),
    "no channels.wav": wave(LOUD, channels=0),
    "cover.mp3": cover,
    "large.png": picture(30_000, 30_000),
    "thin.png": picture(1, 60_000),
    "growing.ts": growing,
    "50000 frames.mp4": made("-f", "lavfi", "-i", "color=s=16x16:r=50000:d=1"),
    "cut.mp4": cut,
    "flipped.mp4": flipped,
    "empty.mp4": text(""),
    "zeros.mp4": lambda path: path.write_bytes(bytes(1_000_000)),
    "random.mkv": lambda path: path.write_bytes(np.random.default_rng(0).bytes(300_000)),
    "empty.jpg": text(""),
    "pipe.mp4": lambda path: os.mkfifo(path),
    "endless.mp4": lambda path: path.symlink_to("/dev/zero"),
} | {f"{count}c.wav": wave(speech(count), channels=count, kind=1) for count in CHANNELS}
READ = {"cover.mp3"} | {f"{count}c.wav" for count in CHANNELS}  # must be answered


def attack(folder: Path, tally: Tally) -> None:
    place, temporary = make_place(folder / "place", portrait()), folder / "t"
    temporary.mkdir()
    (folder / "media").mkdir()
    good = folder / "media" / "good.mp4"
    shutil.copy(place / "clips" / "anna.mp4", good)
    for name, make in MEDIA.items():
        make(folder / "media" / name)
    expected = predict([], place, folder, good)[0]["good.mp4"]
    names = list(MEDIA)
    for batch in (names[first : first + BATCH] for first in range(0, len(names), BATCH)):
        found, faults = predict([folder / "media" / name for name in batch], place, folder, good)
        faults += left_in(temporary)
        if found.get("good.mp4") != expected:
            faults.append("the clip beside it has another answer, or none")
        for name in batch:
            own = [] if name in found else ["nothing is said of it"]
            own += ["it has no answer"] if name in READ and not found.get(name) else []
            tally.count(f"{kind_of(name)}, predict.py", name, own + faults)
    server = start_app(place, temporary, more=("--max_mb", 8), stdin=subprocess.DEVNULL)
    try:
        for name in [*MEDIA, "good.mp4"]:
            path = folder / "media" / name
            if path.is_file() and not path.is_symlink():
                began, data = time.monotonic(), form((name, path.read_bytes()), model=server.model)
                answer = exchange(server.port, data, patience=2 * SECONDS)
                right = "200" if name in READ | {"good.mp4"} else "200 400"
                faults = faults_of(answer, right, folder)
                if time.monotonic() - began > SECONDS:
                    faults.append(f"it took over {SECONDS} s")
                faults += [f"left {each.name}" for each in temporary.glob("upload-*")]
                tally.count(f"{kind_of(name)}, page", name, faults)
    finally:
        server.terminate()
        _, said = server.communicate(timeout=30)
    tally.count("files, page", "its end", told_wrongly(said) + left_in(temporary))


def kind_of(name: str) -> str:
    return "channels" if name.endswith("c.wav") else "files"


def predict(clips: list[Path], place: Path, folder: Path, *more: Path) -> tuple[dict, list[str]]:
    """({file name: its probabilities, or None}, faults) of predict.py."""
    out = folder / "out"
    flags = ["--checkpoints", place / "any.pth", "--out", out, "--no_pictures", "--device", "cpu"]
    command = [sys.executable, "predict.py", *clips, *more, *flags, "--clip_seconds", SECONDS]
    env = {**os.environ, **QUIET, "TMPDIR": str(folder / "t")}
    try:
        done = subprocess.run(
            [*map(str, command)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=BATCH * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}, ["it hangs"]
    faults = told_wrongly(done.stdout + done.stderr)
    if done.returncode not in (0, 3):
        faults.append(f"exit code {done.returncode}: {done.stderr[-300:]}")
    found: dict[str, list] = {}
    if (out / "predictions.json").is_file():
        for clip in json.loads((out / "predictions.json").read_text())["clips"]:
            found.setdefault(Path(clip["clip"]).name, []).extend(clip["parts"].items())
    shutil.rmtree(out, ignore_errors=True)
    return found, faults
