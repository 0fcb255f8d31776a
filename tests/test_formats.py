"""Hundreds of combinations of container, codec, channels, rate, sample and pixel format, made by
FFmpeg's own program: each is read rightly, or refused with its reason. None kills the reader."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from extract import audio, media
from utils import guard
from utils.errors import CLIP_CODES, ClipError

LIMITS = guard.Limits(seconds=60, memory_mb=0)
CHANNELS = {f"{count}c": count for count in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64)}
CHANNELS |= {"quad": 4, "5.1(side)": 6, "6.1": 7, "7.1": 8, "7.1(wide)": 8, "hexadecagonal": 16}
RATES = (8000, 11025, 16_000, 22_050, 44_100, 48_000, 96_000)
SOUND = {  # container -> codecs, some with the format of their samples
    "wav": (
        *("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_s64le", "pcm_f32le", "pcm_f64le"),
        *("pcm_alaw", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms"),
    ),
    "flac": ("flac:s16", "flac:s32"),
    "mp3": ("libmp3lame",),
    "m4a": ("aac", "alac:s16p", "alac:s32p", "ac3"),
    "mp4": ("aac", "libmp3lame", "ac3", "eac3", "flac", "libopus", "mp2", "dca"),
    "mov": ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32be", "pcm_f32le", "pcm_u8", "aac"),
    "mkv": (
        *("pcm_s16le", "pcm_s24le", "pcm_f32le", "flac", "libopus", "libvorbis", "wavpack:fltp"),
        *("wavpack:s16p", "tta", "aac", "ac3", "mp2"),
    ),
    "webm": ("libopus", "libvorbis"),
    "avi": ("pcm_s16le", "pcm_u8", "pcm_f32le", "libmp3lame", "ac3", "aac"),
    "flv": ("aac", "libmp3lame"),  # of raw samples it tells four rates only, others wrongly
}
PICTURE = {  # container -> codecs with the formats of their pixels
    "mp4": (
        *("libx264:yuv420p", "libx264:yuv422p", "libx264:yuv444p", "libx264:yuv420p10le"),
        *("libx264:gray", "libx264:nv12", "libx264:yuvj420p", "libx264rgb:rgb24"),
        *("libx265:yuv420p", "libx265:yuv420p10le", "libx265:yuv444p12le", "libx265:gray"),
        *("mpeg4:yuv420p", "libvpx-vp9:yuv420p", "mjpeg:yuvj422p", "mpeg2video:yuv420p"),
        *("libsvtav1:yuv420p", "libsvtav1:yuv420p10le", "png:rgb24", "png:rgba"),
    ),
    "mov": (
        *("prores_ks:yuv422p10le", "prores_ks:yuva444p10le", "qtrle:rgb24", "qtrle:argb"),
        *("mjpeg:yuvj420p", "png:gray", "png:rgb48be", "rawvideo:rgb24", "rawvideo:uyvy422"),
        *("dnxhd:yuv422p", "v210:yuv422p10le", "jpeg2000:rgb24", "libx264:yuv420p"),
    ),
    "mkv": (
        *("ffv1:yuv420p", "ffv1:yuv444p16le", "ffv1:bgr0", "ffv1:gray", "ffv1:gray16le"),
        *("ffv1:yuva420p", "ffv1:gbrp10le", "huffyuv:rgb24", "huffyuv:yuv422p", "utvideo:gbrp"),
        *("libtheora:yuv420p", "libvpx:yuv420p", "libvpx-vp9:yuv444p", "libvpx-vp9:gbrp"),
        *("mpeg1video:yuv420p", "magicyuv:gbrp", "rawvideo:yuv420p", "snow:yuv420p", "vc2:yuv422p"),
    ),
    "webm": ("libvpx:yuv420p", "libvpx:yuva420p", "libvpx-vp9:yuv420p10le", "libsvtav1:yuv420p"),
    "avi": (
        *("mpeg4:yuv420p", "msmpeg4:yuv420p", "mjpeg:yuvj444p", "rawvideo:bgr24", "rawvideo:pal8"),
        *("ffvhuff:yuv420p", "cinepak:rgb24", "asv1:yuv420p", "zmbv:bgr0", "libxvid:yuv420p"),
        *("wmv2:yuv420p", "h263p:yuv420p", "msvideo1:rgb555le", "snow:yuv444p"),
    ),
    "flv": ("flv:yuv420p", "libx264:yuv420p", "flashsv:bgr24"),
}
RED, BLUE = "0xC83C3C", "0x3C3CC8"


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    import imageio_ffmpeg  # comes with moviepy

    return imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Readers are forked from here: what kills one is a ClipError that says so."""
    monkeypatch.setattr(guard, "START", "fork")
    monkeypatch.setattr(guard, "_here", threading.local())


def is_made(program: str, path: Path, *flags: str) -> bool:
    """Whether FFmpeg can make it at all: not every codec has every layout."""
    command = [program, "-v", "quiet", "-y", *flags, "-strict", "-2", "-t", "1", str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=120)
    return done.returncode == 0 and path.is_file() and path.stat().st_size > 0


def channels_of(path: Path) -> int:
    """FFmpeg mixes down what a codec cannot hold."""
    with av.open(str(path)) as container:
        return container.streams.audio[0].layout.nb_channels


def level_of(program: str, path: Path, channels: int) -> float:
    """As FFmpeg's own program decodes it: the encoders take some channels for a subwoofer's."""
    command = [program, "-v", "quiet", "-i", str(path), "-f", "f32le", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True).stdout
    mean = np.frombuffer(decoded, "<f4").reshape(-1, channels).mean(axis=1)
    return float(np.sqrt(np.mean(mean[len(mean) // 4 : len(mean) * 3 // 4] ** 2)))


def read_sound(path: Path) -> audio.Sound:
    return audio.read_mono(path)


def first_frame(path: Path) -> np.ndarray:
    [(_, frame), *_] = media.frames_at(path, np.array([0.5]))
    return frame


class Tally:
    """How many files were read, why others were refused, and what is wrong."""

    def __init__(self) -> None:
        self.read, self.refused, self.wrong = 0, [], []

    def attempt(self, read: Callable, path: Path) -> Any:
        """What was read; None for a refusal for the file's fault: a reader that died is ours."""
        try:
            found = guard.guarded(read, path, limits=LIMITS)
        except ClipError as error:
            self.refused.append(f"{path.name}: {error.code} {error.reason}")
            if error.code not in CLIP_CODES or error.code in guard.LOST:
                self.wrong.append(self.refused[-1])
            return None
        self.read += 1
        return found

    def check(self, least: int, most_refused: int) -> None:
        print(f"{self.read} are read, {len(self.refused)} refused", *self.refused, sep="\n")
        assert self.wrong == [], "\n".join(self.wrong)
        assert self.read > least and len(self.refused) < most_refused


@pytest.mark.slow
def test_every_sound_is_read_or_refused(ffmpeg, tmp_path):
    """A tone of 440 Hz on its channels is one of 440 Hz, as loud as their mean and as long."""
    tally = Tally()
    for container, codecs in SOUND.items():
        for number, coded in enumerate(codecs):
            codec, _, samples = coded.partition(":")
            for index, (layout, channels) in enumerate(CHANNELS.items()):
                rate = RATES[(number + index) % len(RATES)]
                path = tmp_path / f"{container}-{codec}{samples}-{layout}-{rate}.{container}"
                pan = "|".join(f"c{each}=c0" for each in range(channels))
                flags = ["-f", "lavfi", "-i", f"sine=440:r={rate},volume=4,pan={layout}|{pan}"]
                flags += ["-c:a", codec] + (["-sample_fmt", samples] if samples else [])
                if not is_made(ffmpeg, path, *flags) or channels_of(path) != channels:
                    continue
                sound = tally.attempt(read_sound, path)
                if sound is None:
                    continue
                expected = level_of(ffmpeg, path, channels)
                path.unlink()
                middle = sound.wave[4000:12_000]
                level = float(np.sqrt(np.mean(middle**2)))
                pitch = np.abs(np.fft.rfft(middle)).argmax() * 2  # 8,000 samples of 16,000 a second
                if not (abs(pitch - 440) <= 4 and level == pytest.approx(expected, rel=0.05)):
                    tally.wrong.append(
                        f"{path.name}: {pitch} Hz, level {level:.3f} of {expected:.3f}"
                    )
                if not 0.93 < len(sound.wave) / 16_000 < 1.2:  # codecs work in blocks
                    tally.wrong.append(f"{path.name}: {len(sound.wave) / 16_000:.3f} s")
    tally.check(least=300, most_refused=25)


@pytest.mark.slow
def test_every_picture_is_read_or_refused(ffmpeg, tmp_path):
    """Left red, right blue; grey ones keep that red is brighter."""
    tally = Tally()
    for container, codecs in PICTURE.items():
        for coded in codecs:
            codec, _, pixels = coded.partition(":")
            for size in ("320x240", "354x290"):
                path = tmp_path / f"{container}-{codec}-{pixels}-{size}.{container}"
                width, height = map(int, size.split("x"))
                half = f"s={width // 2}x{height}:r=10"
                flags = ["-f", "lavfi", "-i", f"color={RED}:{half}"]
                flags += ["-f", "lavfi", "-i", f"color={BLUE}:{half}", "-filter_complex", "hstack"]
                flags += ["-c:v", codec, "-pix_fmt", pixels]
                if not is_made(ffmpeg, path, *flags):
                    continue
                frame = tally.attempt(first_frame, path)
                path.unlink()
                if frame is None:
                    continue
                left, right = (
                    part.reshape(-1, 3).mean(0).round()
                    for part in (frame[:, 10 : width // 2 - 10], frame[:, width // 2 + 10 : -10])
                )
                if "gray" in pixels:
                    good = left.mean() > right.mean() + 10 and np.ptp(left) <= 2
                else:
                    good = np.abs(left - (200, 60, 60)).max() < 30
                    good &= np.abs(right - (60, 60, 200)).max() < 30
                if not good or frame.shape != (height, width, 3):
                    tally.wrong.append(f"{path.name}: {frame.shape}, left {left}, right {right}")
    tally.check(least=100, most_refused=10)
