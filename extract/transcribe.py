"""A clip's sound -> the words that are said in it, with times, by a speech recogniser.

    faster-whisper:small

names a model of faster-whisper (tiny, base, small, medium, large-v3 ...), or a folder of one. The
words of a clip are kept as subtitles, features/<split>/transcripts/<clip_id>.srt, beside what tells
from which sound and model they are: a rerun recognises nothing again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extract.audio import SPEECH_SETTINGS, check_wave, read_mono
from utils.errors import ClipError, UsageError, in_short
from utils.files import digest, has_sha256, read_known, sha256, write_bytes, write_json

LIBRARY = "faster-whisper"
FOLDER = "transcripts"  # of a split
LOOP = 2.4  # of zlib: a text that shrinks more repeats itself, as where nothing is understood
LONGEST = 24 * 3600  # seconds
RULE = 1  # raise it when the same model gives other words


class Cue(NamedTuple):
    """One subtitle: its seconds and what is said."""

    start: float
    end: float
    words: str


class Said(NamedTuple):
    """What is said in a clip; "" where nobody speaks. `language`: its code; `confidence`: of the
    words, the mean probability of their pieces, 0 to 1."""

    cues: list[Cue]
    language: str
    confidence: float

    @property
    def transcript(self) -> str:
        return " ".join(cue.words for cue in self.cues)


NOTHING = Said([], "", 0.0)


class Recogniser(NamedTuple):
    """`model` of the library, and what tells it from others."""

    model: Any
    weights: str


def parse(text: str) -> str:
    """--transcribe as typed -> the model's name or folder."""
    library, _, model = text.partition(":")
    if library != LIBRARY or not model:
        raise UsageError(f"--transcribe {text}: expected {LIBRARY}:MODEL, a name or a folder")
    return model


@cache
def load(model: str, device: str) -> Recogniser:
    """UsageError where the package or the model lacks."""
    if not importlib.util.find_spec("faster_whisper"):
        need = "pip install -r requirements-encoders.txt"
        raise UsageError(f"--transcribe needs the package {LIBRARY}: {need}")
    import faster_whisper

    kind, _, number = device.partition(":")
    precision = {"cpu": "int8"}.get(kind, "float16")
    try:
        folder = Path(model) if Path(model).is_dir() else faster_whisper.download_model(model)
        whisper = faster_whisper.WhisperModel(
            str(folder), kind, device_index=int(number or 0), compute_type=precision
        )
        return Recogniser(whisper, sha256(Path(folder) / "model.bin"))
    except Exception as error:  # no internet, no such name, no weights
        what = f"cannot load the recogniser {LIBRARY}:{model}: {in_short(error, 300)}"
        raise UsageError(what) from error


def hear(media: Path) -> tuple[np.ndarray, float]:
    """A file's sound (N,) at 16 kHz and the second it begins at; none where it has none. ClipError
    where nobody can know, as of a file that cannot be read now."""
    try:
        sound = read_mono(media, SPEECH_SETTINGS | {"max_seconds": LONGEST})
        check_wave(sound.wave, media, SPEECH_SETTINGS)
    except ClipError as error:
        if error.code not in ("E_NOAUDIO", "E_SILENT"):
            raise
        return np.zeros(0, np.float32), 0.0
    return sound.wave, sound.offset


def recognise(wave: np.ndarray, start: float, model: str, device: str) -> Said:
    """What is said in samples (N,) at 16 kHz, which begin at `start` seconds.

    Pauses are left out: in them a recogniser hears words that nobody says. So are texts that repeat
    themselves, Whisper's own sign of a failure (Radford et al. 2022, arXiv 2212.04356).
    """
    if not len(wave):
        return NOTHING
    heard, about = load(model, device).model.transcribe(
        wave, vad_filter=True, condition_on_previous_text=False, temperature=0.0
    )
    segments = [
        segment for segment in heard if segment.text.strip() and segment.compression_ratio < LOOP
    ]
    cues = [
        Cue(start + segment.start, start + segment.end, " ".join(segment.text.split()))
        for segment in segments
    ]
    lengths = [max(1, len(segment.tokens)) for segment in segments]
    likely = [math.exp(segment.avg_logprob) for segment in segments]
    confidence = float(np.average(likely, weights=lengths)) if segments else 0.0
    return Said(cues, about.language or "", round(confidence, 4))


def kept(place: Path, key: Any, media: Path | None = None) -> Said | None:
    """What was recognised before, from the same sound by the same model. With `media` (--verify)
    that file, the words and their note are read: they must be as they were then."""
    about = read_known(place.with_suffix(".json"))
    if about.get("key") != digest([RULE, key]) or not place.is_file():
        return None
    if media is not None:
        same = about.pop("digest", None) == digest(about)
        same = same and has_sha256(place, about.get("srt_sha256", ""))
        if not (same and has_sha256(media, about.get("source_sha256", ""))):
            return None
    cues, language, confidence = map(about.get, Said._fields)
    sound = isinstance(language, str) and is_number(confidence)
    if not (sound and isinstance(cues, list) and all(map(is_cue, cues))):
        return None  # damaged: recognised anew
    return Said([Cue(*cue) for cue in cues], about["language"], about["confidence"])


def is_cue(value: Any) -> bool:
    known = isinstance(value, list) and len(value) == len(Cue._fields)
    return known and is_number(value[0]) and is_number(value[1]) and isinstance(value[2], str)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LONGEST  # nan is none


def keep(place: Path, key: Any, said: Said, media: Path) -> None:
    write_bytes(place, srt(said.cues).encode())
    about = {"key": digest([RULE, key]), **said._asdict(), "srt_sha256": sha256(place)}
    about["source_sha256"] = ""
    with contextlib.suppress(OSError):  # a clip that cannot be read: the stages say why
        about["source_sha256"] = sha256(media)
    write_json(place.with_suffix(".json"), about | {"digest": digest(about)})


def srt(cues: list[Cue]) -> str:
    """Subtitles in the form that players read."""
    blocks = [
        f"{number}\n{clock(cue.start)} --> {clock(cue.end)}\n{cue.words}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    return "\n".join(blocks)


def clock(seconds: float) -> str:
    """00:01:02,345"""
    whole = round(1000 * max(0.0, seconds))
    minutes, rest = divmod(whole, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"
