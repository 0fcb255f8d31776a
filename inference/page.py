"""The web page: uploads in, answers out. The server decodes nothing itself and keeps nothing."""

from __future__ import annotations

import base64
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from extract.media import FORMATS
from utils.errors import ClipError, UsageError
from utils.guard import LOST, Limits, guarded, lift_memory_limit

ASSETS = Path(__file__).parent / "page"
MEMORY_MB = 6000  # that the answering process may hold beyond its libraries
POLICY = "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'"


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
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def about(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "examples": list(self.examples),
            "words": self.word_vectors is not None,
            "megabytes": self.megabytes,
            "seconds": self.seconds,
        }

    def answer(self, model: str, clip: Path | None, text: str, folder: Path) -> dict[str, Any]:
        """The answer of another process: one that dies or hangs costs this answer alone."""
        call = (answer_one, self.models[model], clip, text, folder)
        options = (self.word_vectors, self.device, self.seconds)
        limits = Limits(self.patience, MEMORY_MB, ("torch", "librosa", "av"))
        try:
            return self.worker.submit(guarded, *call, *options, limits=limits).result()
        except ClipError as error:
            if error.code not in LOST:
                return {"error": f"{error.reason}."}
            print(f"{clip}: {error.code} {error.reason}", file=sys.stderr)
            return {"error": "This clip could not be read: it is damaged or takes too much."}


def answer_one(
    checkpoint: Path,
    clip: Path | None,
    text: str,
    folder: Path,
    word_vectors: Path | None,
    device: str,
    seconds: float,
) -> dict[str, Any]:
    """In the answering process: what the page shows of a clip, a sentence or both."""
    from inference.sources import find_sources
    from inference.windows import cut_long

    if device != "cpu":
        lift_memory_limit()
    if clip:
        check_length(clip, seconds)
    predictor = load(checkpoint, word_vectors, device)
    predictor.work_in(folder)
    (source,) = find_sources([clip] if clip else [], text or None)
    parts = cut_long(source, predictor.longest, folder)
    predictor.look_up([part.clip.transcript for part in parts])
    return describe([predictor.predict(part) for part in parts])


def check_length(clip: Path, seconds: float) -> None:
    from inference.windows import whole

    start, end = whole(clip)
    if end - start > seconds:
        raise UsageError(f"The clip lasts {end - start:.0f} s; the limit is {seconds:.0f} s.")


def describe(predictions: list) -> dict[str, Any]:
    """The predictions for a clip, or for the parts of a long one, in words and as a picture."""
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
    return {"head": ", ".join(heads), "remarks": remarks, "caution": CAUTION, "picture": shown}


@lru_cache(maxsize=2)
def load(checkpoint: Path, word_vectors: Path | None, device: str) -> Any:
    from inference.predictor import Predictor

    predictor = Predictor([checkpoint], folder=Path(), device=device, word_vectors=word_vectors)
    predictor.no_words = "no sentence was given"
    return predictor


def create_page(service: Service, hosts: list[str] | None) -> Any:
    """The Flask application; `hosts`: the names it answers to, None for any."""
    from flask import Flask, jsonify, request, send_file

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = int((service.megabytes + 1) * 1e6)
    app.config["TRUSTED_HOSTS"] = hosts

    @app.get("/")
    @app.get("/<any('page.js', 'page.css'):name>")
    def page(name: str = "page.html") -> Any:
        return send_file(ASSETS / name, max_age=0)

    @app.get("/about")
    def about() -> Any:
        return jsonify(service.about())

    @app.get("/example/<name>")
    def example(name: str) -> Any:
        known = service.examples.get(name)
        return send_file(known.resolve()) if known else ("no such example", 404)

    @app.post("/answer")
    def answer() -> Any:
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return jsonify(error="Open this page itself to use it."), 403
        form, upload = request.form, request.files.get("clip")
        if form.get("model") not in service.models:
            return jsonify(error="Choose a model."), 400
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            try:
                clip = service.examples.get(form.get("example", "")) or keep(upload, Path(folder))
                text = form.get("text", "").strip()[:2000]
                if not clip and not text:
                    raise UsageError("Give a clip or a sentence.")
                result = service.answer(form["model"], clip, text, Path(folder))
            except UsageError as error:
                result = {"error": str(error)}
        return jsonify(result), 400 if "error" in result else 200

    @app.errorhandler(413)
    def too_large(error: Exception) -> Any:
        return jsonify(error=f"The clip is over the limit of {service.megabytes:g} MB."), 413

    @app.after_request
    def protect(response: Any) -> Any:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def keep(upload: Any, folder: Path) -> Path | None:
    """The upload as a file of `folder` for the time of one answer, under a name of ours."""
    if not upload or not upload.filename:
        return None
    ending = Path(upload.filename).suffix.lower()
    if ending not in FORMATS:
        raise UsageError(
            f"{ending or 'A file without an ending'} is not a clip: give {' '.join(FORMATS)}."
        )
    name = re.sub(r"[^\w.-]+", "_", Path(upload.filename).stem).strip(".-")[:60] or "clip"
    path = folder / f"{name}{ending}"
    upload.save(path)
    return path
