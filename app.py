"""The same answer as a web page: drop a clip or record one, add the sentence, see the picture.

    pip install -r requirements-app.txt
    python app.py                       # every run of logs/, at http://127.0.0.1:7860
    make app                            # the demo's runs and clips

Works without internet, sends nothing anywhere, deletes each upload when it is answered.
Recognising displayed emotion is not knowing what someone feels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.config import Flags, device_name, ranged
from utils.errors import UsageError, run_script

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    add("--checkpoints", nargs="+", type=Path, help="these instead of all runs of --logs_dir")
    add("--word_vectors", type=Path, help="file that sentences are looked up in")
    add("--examples", type=Path, help="folder of clips to try")
    add("--host", default=LOOPBACK[0], help="0.0.0.0 opens it to the network: no passwords!")
    add("--port", default=7860, type=ranged(int, 1, 65_535), help="of the page")
    add("--max_mb", default=64.0, type=ranged(float, 0.1), help="size of an upload")
    add("--max_seconds", default=60.0, type=ranged(float, 2), help="length of an upload")
    add("--patience", default=120.0, type=ranged(float, 1), help="seconds for one answer")
    add("--device", default="auto", help="auto, cpu, cuda")
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    try:
        import flask  # noqa: F401
        import waitress
    except ImportError as error:
        need = "pip install -r requirements-app.txt"
        raise UsageError(f"the page needs one more package, {error.name}: {need}") from error

    from inference.page import Service, create_page

    service = Service(
        models=find_models(args),
        examples=find_examples(args.examples),
        word_vectors=args.word_vectors,
        device=device_name(args.device),
        megabytes=args.max_mb,
        seconds=args.max_seconds,
        patience=args.patience,
    )
    app = create_page(service, list(LOOPBACK) if args.host in LOOPBACK else None)
    try:
        server = waitress.create_server(app, host=args.host, port=args.port, ident=None)
    except OSError as error:
        place = f"port {args.port} of {args.host}"
        raise UsageError(f"{place}: {error.strerror}; try --port") from error
    print(f"open http://{args.host}:{args.port} (models: {len(service.models)})", flush=True)
    server.run()


def find_models(args: argparse.Namespace) -> dict[str, Path]:
    """{name: checkpoint}, multimodal runs first."""
    from training.checkpoint import best_checkpoint, find_checkpoints

    runs = args.checkpoints or [run for run in args.logs_dir.glob("*/*") if best_checkpoint(run)]
    if not runs:
        raise UsageError(f"no runs in {args.logs_dir}: train one, or give --checkpoints")
    runs.sort(key=lambda run: ("multimodal" not in run.parts, str(run)))
    return {
        f"{run.parent.name}/{run.name}": path
        for run, path in zip(runs, find_checkpoints(runs), strict=True)
    }


def find_examples(folder: Path | None) -> dict[str, Path]:
    """{name: clip}, six at most."""
    from inference.sources import find_sources

    if folder is None:
        return {}
    clips = [source.clip.media for source in find_sources([folder], None)]
    return {media.name: media for media in clips[:6]}


if __name__ == "__main__":
    run_script(main)
