"""What stands behind the page: a short line of visitors, and the process that answers them."""

from __future__ import annotations

import base64
import contextlib
import io
import multiprocessing
import re
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from extract.media import PICTURES, SOUNDS, frames_at, scan_pictures
from inference.door import BUSY
from utils.errors import ClipError, UsageError, joined
from utils.files import write_text
from utils.guard import LOST, RECORDING_MB, Limits, guarded, lift_memory_limit
from utils.parallel import available_cores

IN_LINE = 3  # one is answered, two wait
CLOSING = {"error": "The page is being closed."}
CANCELLED = {"error": "Cancelled."}
DAMAGED = {"error": "This clip could not be read: it is damaged or takes too much."}
FAULT = {"error": "This page cannot answer that: the reason is told to whoever runs it."}
FOR_ITS_KEEPER = re.compile(r"(?<![\w-])--[a-z]|pip install")  # no visitor has flags
LIVE = {  # code -> what is missing before the camera
    "E_NOFACE": "no face is seen",
    "E_NOVOICE": "nobody is heard",
    "E_SILENT": "nobody is heard",
    "E_SHORT": "nobody is heard",
}
# Files by which an answering process tells and is told. They lie beside the upload, so no name is
# that of a clip's words: of an upload stage.mp4 a stage.txt would be the sentence.
STAGE, STOP = ".stage", ".cancelled"
BEFORE = r"(?<![\w.~/-])(?!//)"  # no part of a longer word or address
Checkpoints = Path | tuple[Path, ...]  # of one run, or of an ensemble
THUMBNAIL = 320  # pixels of its longer side
FOLDERS = re.compile(BEFORE + r"~?/[^\s'\",;:()]*/(?=[^\s/])")  # the folders of a path


@dataclass
class Asked:
    """A question that is waiting or being answered."""

    folder: Path
    begun: bool = False
    cancelled: bool = False
    answer: Future | None = None


@dataclass
class Service:
    """What the page offers, and the limits of what it takes."""

    models: Mapping[str, Checkpoints]  # by name; `offers` says more of each
    examples: dict[str, Path]
    word_vectors: Path | None
    device: str
    megabytes: float
    seconds: float
    patience: float  # seconds until an answer is given up
    encoders: tuple[tuple[str, str], ...] = ()  # (name, place) of pretrained encoders
    transcribe: str | None = None  # the recogniser of words
    offers: list[dict[str, Any]] = field(default_factory=list)  # as of inference/offer.py
    thumbnails: dict[str, bytes] = field(default_factory=dict)  # of examples, as JPEG
    asked: dict[str, Asked] = field(default_factory=dict)  # by the tickets of visitors
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_line: int = 0
    places: int = IN_LINE

    def about(self) -> dict[str, Any]:
        return {
            "models": self.offers or [{"name": name, "title": name} for name in self.models],
            "examples": [
                {
                    "name": name,
                    "title": spoken(name),
                    "sound": path.suffix.lower() in SOUNDS,
                    "thumbnail": name in self.thumbnails,
                }
                for name, path in self.examples.items()
            ],
            "words": self.word_vectors is not None,
            "megabytes": self.megabytes,
            "seconds": self.seconds,
            "busy": BUSY if self.in_line >= self.places else "",
        }

    @property
    def limits(self) -> Limits:
        """Of the process that answers."""
        return Limits(self.patience, RECORDING_MB, ("torch", "librosa.filters", "av"))

    def draw_thumbnails(self) -> None:
        """In a process of its own; the libraries that it loads are those of the answers."""
        for name, path in self.examples.items():
            with contextlib.suppress(ClipError):  # a sound has none
                self.thumbnails[name] = guarded(thumbnail_of, path, limits=self.limits)

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

    def answer(
        self,
        model: str,
        clip: Path | None,
        text: str,
        folder: Path,
        ticket: str = "",
        quick: bool = False,
    ) -> dict[str, Any]:
        """The answer of another process: one that dies or hangs costs this answer alone. `quick`:
        without a picture, for the live mode."""
        asked = self.asked[ticket] = Asked(folder)
        call = (answer_one, self.models[model], clip, text, folder)
        options = (self.word_vectors, self.device, self.seconds, self.encoders, self.transcribe)

        def begin() -> dict[str, Any]:
            asked.begun = True
            if asked.cancelled:
                return CANCELLED
            return guarded(*call, *options, quick, limits=self.limits)

        try:
            asked.answer = self.worker.submit(begin)
            return asked.answer.result()
        except CancelledError:
            return CANCELLED if asked.cancelled else CLOSING
        except RuntimeError:
            if self.places:
                raise
            return CLOSING
        except (ClipError, UsageError) as error:
            if not self.places:
                return CLOSING
            code, why = error.args if isinstance(error, ClipError) else ("", str(error))
            if code not in LOST and not FOR_ITS_KEEPER.search(why):
                return {"error": f"{why}." if code else why}
            told = (str(clip or "a sentence"), code, why)
            print(*filter(None, told), sep=": ", file=sys.stderr)
            return DAMAGED if code in LOST else FAULT
        finally:
            self.asked.pop(ticket, None)

    def progress(self, ticket: str) -> str:
        """What is being done for a visitor; "" where nothing is known of him."""
        asked = self.asked.get(ticket)
        if not asked:
            return ""
        if not asked.begun:
            return "Waiting for the visitors before you"
        try:
            return (asked.folder / STAGE).read_text("utf-8")
        except OSError:
            return "Starting"

    def cancel(self, ticket: str) -> None:
        """The answering process sees it at its next stage, and keeps the model that it loaded. Who
        is still waiting leaves the line at once."""
        if asked := self.asked.get(ticket):
            asked.cancelled = True
            if asked.answer:
                asked.answer.cancel()
            with contextlib.suppress(OSError):  # its folder is just being deleted
                (asked.folder / STOP).touch()

    def without_folders(self, text: str) -> str:
        """A message with the bare names of files: no visitor needs to know where they are."""
        models = [[each] if isinstance(each, Path) else each for each in self.models.values()]
        files = [*chain.from_iterable(models), *self.examples.values()]
        files.append(self.word_vectors or Path())
        given = [place for _, place in self.encoders] + [(self.transcribe or "").partition(":")[2]]
        places = [Path(place) for place in given if Path(place).exists()]  # no names of the hub
        folders = {Path(tempfile.gettempdir()), *places, *(each.parent for each in files + places)}
        folders -= {Path()}
        known = {str(each) for folder in folders for each in (folder, folder.resolve())} - {"/"}
        for folder in sorted(known, key=len, reverse=True):  # with spaces, which FOLDERS stops at
            text = re.sub(BEFORE + re.escape(folder) + r"/([^\s/]+/)*", "", text)
        return FOLDERS.sub("", text)


def spoken(name: str) -> str:
    """The name of a file without its ending, as a title."""
    return re.sub(r"[_\s]+", " ", Path(name).stem).strip() or name


def thumbnail_of(clip: Path) -> bytes:
    """A small JPEG of what a clip shows half a second after its start; ClipError for a sound."""
    from PIL import Image

    start = scan_pictures(clip).start
    *_, (_, frame) = frames_at(clip, start + np.array([0.01, 0.5]))  # the last that there is
    picture, file = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "jpeg", quality=80)
    return file.getvalue()


def answer_one(
    checkpoints: Checkpoints,
    clip: Path | None,
    text: str,
    folder: Path,
    word_vectors: Path | None,
    device: str,
    seconds: float,
    encoders: tuple[tuple[str, str], ...],
    transcribe: str | None,
    quick: bool = False,
) -> dict[str, Any]:
    """In the answering process: what the page shows of a clip, a sentence or both."""
    from tqdm import tqdm

    from inference.sources import find_sources
    from inference.windows import cut_long

    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is killed, in /dev/shm
    if device != "cpu":
        lift_memory_limit()
    # a live answer is there before anybody could read what is being done
    told = (lambda stage: None) if quick else partial(tell, folder)
    if clip and clip.suffix.lower() not in PICTURES:
        check_length(clip, seconds)
    told("Loading the model")
    predictor = load(checkpoints, word_vectors, device, encoders, transcribe)
    predictor.work_in(folder)
    # beside a camera that is being encoded, two threads wait for each other: one is quicker
    predictor.job = replace(predictor.job, threads=1 if quick else available_cores())
    told("Listening to what is said")
    (source,) = find_sources([clip] if clip else [], text or None)
    parts = predictor.with_words(cut_long(source, predictor.longest, folder))
    try:
        predictor.look_up([part.clip.transcript for part in parts])
    except UsageError as error:  # for whoever runs the page; a visitor's clip has more than words
        print(error, file=sys.stderr)
        predictor.lookup.unknown = "E_MISSING: --word_vectors is another file"
    predictions = []
    for number, part in enumerate(parts, 1):
        of = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
        told(f"Looking and listening{of}")
        predictions.append(predictor.predict(part))
    told("Drawing the picture")
    return describe(predictions, picture=not quick)


def tell(folder: Path, stage: str) -> None:
    """Say what is done next; UsageError where the visitor does not want it any more."""
    if (folder / STOP).exists():
        raise UsageError(CANCELLED["error"])
    write_text(folder / STAGE, stage)


def check_length(clip: Path, seconds: float) -> None:
    from inference.windows import whole

    start, end = whole(clip)
    lasts = round(end - start, 2)  # as it is said: "60 s; the limit is 60 s" would help nobody
    if lasts > seconds:
        raise UsageError(f"The clip lasts {lasts:g} s; the limit is {seconds:g} s.")


def describe(predictions: list, picture: bool = True) -> dict[str, Any]:
    """The predictions for a clip, or for the parts of a long one, in words, numbers and as a
    picture; UsageError where there is none."""
    from inference import wording
    from inference.figure import CAUTION, draw_evidence
    from inference.timeline import COLORS, draw_timeline, summary

    usable = [prediction for prediction in predictions if prediction.parts]
    if not usable:
        raise UsageError((no_answer if picture else no_live_answer)(predictions[0]))
    is_long = len(predictions) > 1
    shown = b""
    if picture:
        shown = draw_timeline(predictions) if is_long else draw_evidence(usable[0])
    names = wording.class_names(usable[0].classes)
    return {
        "head": summary(predictions) if is_long else wording.headline(usable[0]),
        "title": Path(usable[0].source.name).name if is_long else wording.title_of(usable[0]),
        "parts": [part_of(each) for each in predictions],
        "extent": usable[0].source.extent,
        "colors": dict(zip(names, COLORS * len(names), strict=False)),
        "remarks": wording.remarks(predictions),
        "caution": CAUTION,
        "picture": base64.b64encode(shown).decode(),
    }


def no_answer(prediction: Any) -> str:
    """Why there is none, in words of a person who gave a clip, or a sentence alone."""
    from inference import wording

    reasons = wording.absences(prediction)
    if prediction.source.name != wording.SENTENCE:
        return " ".join(["Nothing in this clip can be used.", *reasons])
    reasons = [each for each in reasons if wording.GIVEN[0] not in each]
    if reasons:  # of the words
        short = any(why.startswith("E_SHORT") for why in prediction.missing.values())
        return " ".join([*reasons, "Try other words, or give a clip." if short else "Give a clip."])
    reads = "is not enough for" if prediction.seen else "cannot be read by"
    return f"A sentence alone {reads} this model: give a clip."


def no_live_answer(prediction: Any) -> str:
    """The same in the live mode: short, for it is said every second, and no word of the sentence,
    which is not asked for there."""
    codes = {why.partition(":")[0] for why in prediction.missing.values()} - {"E_MISSING"}
    if not codes or codes - {*LIVE}:
        return no_answer(prediction)
    said = joined([*dict.fromkeys(text for code, text in LIVE.items() if code in codes)])
    return f"{said[0].upper()}{said[1:]}."


def part_of(prediction: Any) -> dict[str, Any]:
    """One clip or part of a recording as plain data; `bars` and `alone` are in percent."""
    from inference import wording

    about: dict[str, Any] = {
        "start": prediction.source.start,
        "end": prediction.source.end,
        "head": wording.headline(prediction),
        "words": prediction.source.clip.transcript or "",
    }
    if not prediction.parts:
        return about | {"label": "", "clear": False, "bars": [], "alone": []}
    names = wording.class_names(prediction.classes)

    def bars(shares: Any) -> list[list[Any]]:
        return [[name, round(100 * float(p), 4)] for name, p in zip(names, shares, strict=True)]

    first, *others = prediction.parts.items()
    alone = [
        {"part": wording.part_name(part), "bars": bars(shares)}
        for part, shares in (others or [first])
    ]
    return about | {
        "label": wording.label_name(prediction),
        "clear": wording.is_clear(prediction),
        "bars": bars(first[1]),
        "alone": alone if others else [],
    }


@lru_cache(maxsize=2)
def load(
    checkpoints: Checkpoints,
    word_vectors: Path | None,
    device: str,
    encoders: tuple[tuple[str, str], ...],
    transcribe: str | None,
) -> Any:
    from inference.predictor import Predictor

    predictor = Predictor(
        [checkpoints] if isinstance(checkpoints, Path) else checkpoints,
        folder=Path(),
        device=device,
        word_vectors=word_vectors,
        encoders=dict(encoders),
        transcribe=transcribe,
    )
    predictor.no_words = "no sentence was given"
    return predictor
