"""The same answer as a web page: drop a clip or record one, add the sentence, see the picture.

    pip install -r requirements-app.txt
    python app.py                       # every run of logs/, at http://127.0.0.1:7860
    make app                            # the same, and installs what it needs

Where logs/ holds no runs the models that come along answer (starter/).

Works without internet, sends nothing anywhere, deletes each upload when it is answered.
Recognising displayed emotion is not knowing what someone feels.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from itertools import count
from pathlib import Path
from typing import Any

from utils.config import Flags, device_name, ranged
from utils.errors import Interrupted, UsageError, run_script
from utils.parallel import short_sockets
from utils.scratch import sweep

STARTER = "built in"  # a name that a phone has room for
STOPS = (signal.SIGTERM, signal.SIGHUP)  # and Ctrl-C, which Python makes a KeyboardInterrupt


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    add("--checkpoints", nargs="+", type=Path, help="these instead of all runs of --logs_dir")
    add("--word_vectors", type=Path, help="file that sentences are looked up in")
    place = "where a pretrained encoder of the models is now; a Python file must be named"
    add("--encoder", action="append", default=[], metavar="NAME=PLACE", help=place)
    transcribe = "recognise the words where no sentence is given"
    add("--transcribe", metavar="faster-whisper:MODEL", help=transcribe)
    add("--examples", type=Path, help="folder of clips to try")
    add("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network: no passwords!")
    add("--port", default=7860, type=ranged(int, 1, 65_535), help="of the page")
    add("--trust", nargs="+", help="other names and addresses that lead to this page")
    add("--max_mb", default=64.0, type=ranged(float, 0.1), help="size of an upload")
    add("--max_seconds", default=60.0, type=ranged(float, 2), help="length of an upload")
    add("--patience", default=120.0, type=ranged(float, 1), help="seconds for one answer")
    add("--device", default="auto", help="auto, cpu, cuda")
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        need = "pip install -r requirements-app.txt"
        raise UsageError(f"the page needs one more package, {error.name}: {need}") from error

    from inference.door import create_server, open_door
    from inference.offer import offer
    from inference.page import UPLOADS, create_page
    from inference.service import Service
    from inference.settings import check_recogniser, check_words, encoder_places
    from training.checkpoint import load_checkpoint

    models = find_models(args)
    if args.word_vectors:
        check_words(models, args.word_vectors)
    device = device_name(args.device)
    if args.transcribe:
        check_recogniser(args.transcribe, device)
    service = Service(
        models=models,
        offers=[offer([*map(load_checkpoint, paths)], name) for name, paths in models.items()],
        examples=find_examples(args.examples),
        word_vectors=args.word_vectors,
        device=device,
        megabytes=args.max_mb,
        seconds=args.max_seconds,
        patience=args.patience,
        encoders=tuple(encoder_places(args.encoder).items()),
        transcribe=args.transcribe,
    )
    host = args.host.strip("[]")
    door = open_door(host, args.trust or (), args.max_mb)
    server = create_server(create_page(service, door), door, host, args.port)
    sweep(UPLOADS)
    short_sockets()  # which sweeps those of pages that were killed
    if service.examples:  # a thread that no end of the program waits for
        threading.Thread(target=service.draw_thumbnails, daemon=True).start()
    place = f"[{host}]" if ":" in host else host
    print(f"open http://{place}:{args.port}/ (models: {len(service.models)})", flush=True)
    serve(server, service)


def serve(server: Any, service: Any) -> None:
    """Until a signal ends it; then nothing of an upload is left.

    The server has a thread of its own: waitress' loop swallows the exceptions of signal handlers.
    """
    for signum in STOPS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            signal.signal(signum, end)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        thread.join()
    finally:
        for signum in (*STOPS, signal.SIGINT):  # a second one must not come between
            signal.signal(signum, signal.SIG_IGN)
        service.close()


def end(signum: int, frame: object) -> None:
    if signum == signal.SIGHUP:
        from training.stopping import leave_terminal

        leave_terminal()
    name = signal.Signals(signum).name
    raise Interrupted(signum, f"ended by {name}; all uploads are deleted")


def find_models(args: argparse.Namespace) -> dict[str, tuple[Path, ...]]:
    """{name: checkpoints}, multimodal runs first; without any run the models that come along, with
    their word vectors."""
    from evaluation.ensemble import group_checkpoints
    from inference.starter import WORDS, starter_models
    from training.checkpoint import is_trained

    runs = args.checkpoints or [run for run in args.logs_dir.glob("*/*") if is_trained(run)]
    if not runs:
        print(f"no runs in {args.logs_dir}: the models that come along answer", file=sys.stderr)
        args.word_vectors = args.word_vectors or WORDS
        return {STARTER: tuple(starter_models())}
    runs.sort(key=lambda run: ("multimodal" not in run.parts, str(run)))
    offered: dict[str, tuple[Path, ...]] = {}
    for run, files in group_checkpoints(runs).items():
        name = first = f"{run.parent.name}/{run.name}"
        for number in count(2):
            if name not in offered:
                break
            name = f"{first} ({number})"
        if can_answer(name, files, args.encoder):
            offered[name] = tuple(files)
    if not offered:
        raise UsageError("no model can answer for a clip alone, see above")
    return offered


def can_answer(name: str, files: list[Path], encoders: list[str]) -> bool:
    """Whether a clip alone gives what the model reads; a line says why not."""
    from inference.settings import check_files_named, encoder_places, settings_of
    from utils.errors import IntegrityError

    try:
        check_files_named(settings_of(files)["features"], encoder_places(encoders))
    except (UsageError, IntegrityError) as error:
        print(f"not offered: {name}: {error}", file=sys.stderr)
        return False
    return True


def find_examples(folder: Path | None) -> dict[str, Path]:
    """{name: clip}, six at most."""
    from inference.sources import find_sources

    if folder is None:
        return {}
    clips = [source.clip.media for source in find_sources([folder], None)]
    return {media.name: media for media in clips[:6]}


if __name__ == "__main__":
    run_script(main)
