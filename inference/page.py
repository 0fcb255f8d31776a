"""The web page: uploads in, answers out. The server decodes nothing itself and keeps nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from extract.media import FORMATS, PICTURES
from inference.door import ASKED, BUSY, HEADERS, Door
from inference.service import Service
from utils.errors import UsageError
from utils.scratch import scratch_folder

ASSETS = Path(__file__).parent / "page"
UPLOADS = "upload-"  # how the folders of uploads are named
CHARACTERS = 2000  # of a sentence
COMMON = "such as .mp4, .mov, .webm, .mp3, .wav or .jpg"  # docs/files.md has all
TICKET = 64  # characters of the name by which a visitor asks how far his answer is
# Bytes of an example that are sent for one Range: waitress keeps them, and no thread waits until
# they are read. A browser asks for the next ones.
PIECE = 4 << 20


def create_page(service: Service, door: Door) -> Any:
    """The Flask application."""
    from flask import Flask, Response, jsonify, request, send_file

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = door.most_bytes

    @app.before_request
    def ask_door() -> Any:  # a server without our channel does not
        refusal = door.stranger(request.method, *(request.headers.get(each, "") for each in ASKED))
        return refusal and Response(refusal.message, refusal.code, mimetype="text/plain")

    @app.get("/")
    @app.get("/<any('page.js', 'show.js', 'live.js', 'page.css'):name>")
    def page(name: str = "page.html") -> Any:
        return send_file(ASSETS / name, max_age=0)

    @app.get("/about")
    def about() -> Any:
        return jsonify(service.about())

    @app.get("/example/<name>")
    def example(name: str) -> Any:
        known = service.examples.get(name)
        if not known:
            return "no such example", 404
        part = request.range and request.range.range_for_length(known.stat().st_size)
        if part:
            start, stop = part
            request.environ["HTTP_RANGE"] = f"bytes={start}-{min(stop, start + PIECE) - 1}"
        return send_file(known.resolve())

    @app.get("/thumbnail/<name>")
    def thumbnail(name: str) -> Any:
        known = service.thumbnails.get(name)
        return Response(known, mimetype="image/jpeg") if known else ("no such picture", 404)

    @app.post("/answer")
    def answer() -> Any:
        if not service.enter():
            return jsonify(error=BUSY), 503
        try:
            result = answer_form(service, request)
        finally:
            service.leave()
        return jsonify(result), 400 if "error" in result else 200

    @app.get("/progress/<ticket>")
    def progress(ticket: str) -> Any:
        return jsonify(stage=service.progress(ticket))

    @app.post("/cancel/<ticket>")
    def cancel(ticket: str) -> Any:
        service.cancel(ticket)
        return jsonify(stage="")

    @app.errorhandler(413)
    def too_large(error: Exception) -> Any:
        if (request.content_length or 0) > door.most_bytes:
            return jsonify(error=door.too_large().message), 413
        return jsonify(error=f"The text is too long: the limit is {CHARACTERS} characters."), 413

    @app.after_request
    def protect(response: Any) -> Any:
        response.headers.update(HEADERS)
        return response

    return app


def answer_form(service: Service, request: Any) -> dict[str, Any]:
    """What the page shows for a filled form, or its `error`. No text names a folder, and each calls
    the clip as the visitor does."""
    upload = request.files.get("clip")
    given = Path(upload.filename or "").name if upload else ""

    def told(text: str) -> str:
        text = service.without_folders(text)
        return text.replace(kept_name(given), given) if given else text

    try:
        with scratch_folder(UPLOADS) as scratch:
            question = read_form(service, request, scratch.path)
            ticket = request.form.get("ticket", "")[:TICKET]
            quick = "quick" in request.form
            result = service.answer(*question, scratch.path, ticket, quick)
    except UsageError as error:
        result = {"error": str(error)}
    if "error" in result:
        return {"error": told(result["error"])}
    texts = {name: told(result[name]) for name in ("head", "title") if name in result}
    return result | texts | {"remarks": [told(each) for each in result.get("remarks", ())]}


def read_form(service: Service, request: Any, folder: Path) -> tuple[str, Path | None, str]:
    """Model, clip and sentence; an upload lies in `folder` for the time of one answer."""
    form = request.form
    if form.get("model") not in service.models:
        raise UsageError("Choose a model.")
    clip = service.examples.get(form.get("example", "")) or keep(request.files.get("clip"), folder)
    text = form.get("text", "").strip()
    if len(text) > CHARACTERS:
        raise UsageError(f"The text has {len(text)} characters; the limit is {CHARACTERS}.")
    if not clip and not text:
        raise UsageError("Give a clip or a sentence.")
    return form["model"], clip, text


def keep(upload: Any, folder: Path) -> Path | None:
    """The upload as a file of `folder`."""
    if not upload or not upload.filename:
        return None
    ending = Path(upload.filename).suffix.lower()
    if ending not in (*FORMATS, *PICTURES):
        what = ending or "A file without an ending"
        raise UsageError(f"{what} is not a clip: give a video, a sound or a picture ({COMMON}).")
    path = folder / kept_name(upload.filename)
    try:
        upload.save(path)
    except OSError as error:
        raise UsageError(f"The upload could not be kept: {error.strerror}.") from error
    return path


def kept_name(given: str) -> str:
    """What a file of that name is called here: no folder, nothing odd, not too long."""
    stem = re.sub(r"[^\w.-]+", "_", Path(given).stem).strip(".-")[:60] or "clip"
    return stem + Path(given).suffix.lower()
