"""What stands behind the page: a short line of visitors, and the process that answers them."""

from __future__ import annotations

import base64
import multiprocessing
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference.door import BUSY
from utils.errors import ClipError, UsageError
from utils.guard import LOST, Limits, guarded, lift_memory_limit

MEMORY_MB = 6000  # that the answering process may hold beyond its libraries
IN_LINE = 3  # one is answered, two wait
CLOSING = {"error": "The page is being closed."}
BEFORE = r"(?<![\w.~:/-])"  # no part of a longer word or address
FOLDERS = re.compile(BEFORE + r"~?/[^\s'\",;:()]*/(?=[^\s/])")  # the folders of a path


@dataclass
class Service:
    """What the page offers, and the limits of what it takes."""

    models: dict[str, Path]  # name -> checkpoint
    examples: dict[str, Path]
    word_vectors: Path | None
    device: str
    megabytes: float
    seconds: float
    patience: float  # seconds until an answer is given up
    encoders: tuple[tuple[str, str], ...] = ()  # (name, place) of pretrained encoders
    transcribe: str | None = None  # the recogniser of words
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_line: int = 0
    places: int = IN_LINE

    def about(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "examples": list(self.examples),
            "words": self.word_vectors is not None,
            "megabytes": self.megabytes,
            "seconds": self.seconds,
            "busy": BUSY if self.in_line >= self.places else "",
        }

    def enter(self) -> bool:
        """Take a place in the line; False where none is free."""
        with self.lock:
            if self.in_line >= self.places:
                return False
            self.in_line += 1
            return True

    def leave(self) -> None:
        with self.lock:
            self.in_line -= 1

    def close(self, patience: float = 10) -> None:
        """End what is being answered, take no more, and wait until the uploads are deleted."""
        self.places = 0
        self.worker.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + patience
        while self.in_line and time.monotonic() < until:
            for child in multiprocessing.active_children():  # a second one, too: it is tried twice
                child.kill()
            time.sleep(0.02)

    def answer(self, model: str, clip: Path | None, text: str, folder: Path) -> dict[str, Any]:
        """The answer of another process: one that dies or hangs costs this answer alone."""
        call = (answer_one, self.models[model], clip, text, folder)
        options = (self.word_vectors, self.device, self.seconds, self.encoders, self.transcribe)
        limits = Limits(self.patience, MEMORY_MB, ("torch", "librosa", "av"))
        try:
            return self.worker.submit(guarded, *call, *options, limits=limits).result()
        except (CancelledError, RuntimeError):
            if self.places:
                raise
            return CLOSING
        except ClipError as error:
            if not self.places:
                return CLOSING
            if error.code not in LOST:
                return {"error": f"{error.reason}."}
            print(f"{clip}: {error.code} {error.reason}", file=sys.stderr)
            return {"error": "This clip could not be read: it is damaged or takes too much."}

    def without_folders(self, text: str) -> str:
        """A message with the bare names of files: no visitor needs to know where they are."""
        files = [*self.models.values(), *self.examples.values(), self.word_vectors or Path()]
        folders = {Path(tempfile.gettempdir()), *(file.parent for file in files)} - {Path()}
        known = {str(each) for folder in folders for each in (folder, folder.resolve())} - {"/"}
        for folder in sorted(known, key=len, reverse=True):  # with spaces, which FOLDERS stops at
            text = re.sub(BEFORE + re.escape(folder) + r"/([^\s/]+/)*", "", text)
        return FOLDERS.sub("", text)


def answer_one(
    checkpoint: Path,
    clip: Path | None,
    text: str,
    folder: Path,
    word_vectors: Path | None,
    device: str,
    seconds: float,
    encoders: tuple[tuple[str, str], ...],
    transcribe: str | None,
) -> dict[str, Any]:
    """In the answering process: what the page shows of a clip, a sentence or both."""
    from tqdm import tqdm

    from inference.sources import find_sources
    from inference.windows import cut_long

    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is killed, in /dev/shm
    if device != "cpu":
        lift_memory_limit()
    if clip:
        check_length(clip, seconds)
    predictor = load(checkpoint, word_vectors, device, encoders, transcribe)
    predictor.work_in(folder)
    (source,) = find_sources([clip] if clip else [], text or None)
    parts = predictor.with_words(cut_long(source, predictor.longest, folder))
    predictor.look_up([part.clip.transcript for part in parts])
    return describe([predictor.predict(part) for part in parts])


def check_length(clip: Path, seconds: float) -> None:
    from inference.windows import whole

    start, end = whole(clip)
    lasts = round(end - start, 2)  # as it is said: "60 s; the limit is 60 s" would help nobody
    if lasts > seconds:
        raise UsageError(f"The clip lasts {lasts:g} s; the limit is {seconds:g} s.")


def describe(predictions: list) -> dict[str, Any]:
    """The predictions for a clip, or for the parts of a long one, in words and as a picture."""
    from inference.card import card_lines
    from inference.figure import CAUTION, class_name, draw_prediction, part_name
    from inference.timeline import draw_timeline

    usable = [prediction for prediction in predictions if prediction.parts]
    if not usable:
        missing = predictions[0].missing.items()
        reasons = "; ".join(f"{part_name(name)}: {why.partition(': ')[2]}" for name, why in missing)
        raise UsageError(f"Nothing in this clip can be used. {reasons}.")
    if len(predictions) > 1:
        picture, remarks = draw_timeline(predictions), []
    else:
        picture, remarks = draw_prediction(usable[0]), usable[0].remarks
    heads = [f"{class_name(each.label)} ({each.probabilities.max():.0%})" for each in usable]
    shown = base64.b64encode(picture).decode()
    return {
        "head": ", ".join(heads),
        "remarks": remarks,
        "card": card_lines(usable[0].cards),
        "warning": next((card["warning"] for card in usable[0].cards if card["warning"]), ""),
        "caution": CAUTION,
        "picture": shown,
    }


@lru_cache(maxsize=2)
def load(
    checkpoint: Path,
    word_vectors: Path | None,
    device: str,
    encoders: tuple[tuple[str, str], ...],
    transcribe: str | None,
) -> Any:
    from inference.predictor import Predictor

    predictor = Predictor(
        [checkpoint],
        folder=Path(),
        device=device,
        word_vectors=word_vectors,
        encoders=dict(encoders),
        transcribe=transcribe,
    )
    predictor.no_words = "no sentence was given"
    return predictor
