"""Your own clip -> what a trained model makes of it: a table, a picture, JSON and CSV.

    python predict.py clip.mp4                                     # the models of starter/
    python predict.py clip.mp4 --checkpoints logs/multimodal/NAME --text "what is said"
    python predict.py my_clips/ --checkpoints logs/speech/A        # every clip of a folder

The words come from --text, or from a .txt, .srt, .vtt or .npz of the clip's name beside it. Sound,
face or words may be missing: the answer says what it rests on. A clip that lasts over --longest
seconds is cut at its pauses and gives a time line. Recognising displayed emotion is not knowing
what someone feels.
"""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import Any

from utils.config import Flags, ranged
from utils.errors import ClipError, UsageError, listed, run_script, without_controls
from utils.files import check_place, write_bytes, write_csv, write_json
from utils.fonts import columns, padded, shortened
from utils.guard import RECORDING_MB
from utils.parallel import no_collection
from utils.scratch import sweep

PART = 13  # columns of a part's name in the table
WIDEST, FIRST = 120, 3  # columns of a table with all classes; of a wider one only the first classes

REJECTED = 3  # exit code: finished, but some clips have no answer


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    clips = "video, sound, picture, words, or a folder"
    add("clips", nargs="*", type=Path, metavar="CLIP", help=clips)
    models = ".pth files or run folders (default: those that come along, starter/)"
    add("--checkpoints", nargs="+", type=Path, help=models)
    add("--text", type=as_text, help="the words of the one clip, or alone")
    add("--word_vectors", type=Path, help="file that words are looked up in, as in the training")
    place = "where a pretrained encoder of the model is now: folder, file or name of the hub"
    add("--encoder", action="append", default=[], metavar="NAME=PLACE", help=place)
    transcribe = "recognise the words of clips that come without any"
    add("--transcribe", metavar="faster-whisper:MODEL", help=transcribe)
    add("--classes", help="answer among these only: hap,sad,neu")
    add("--out", default=Path("predictions"), type=Path, help="folder of tables and pictures")
    add("--tta", default=1, type=int, choices=(12, 6, 1), help="views of the face per clip")
    add("--longest", default=15.0, type=ranged(float, 1), help="seconds until a clip is cut")
    add("--no_pictures", action="store_true", help="tables only")
    add("--annotate", action="store_true", help="also the video with the answer drawn in")
    deadline = "of a step of a clip, and as much again per 10 MB"
    add("--clip_seconds", default=120.0, type=ranged(float, 1), help=deadline)
    memory = ranged(int, 0, 1 << 24)
    limit = "limit of the process that reads the clips; 0: no limit"
    add("--memory_mb", default=RECORDING_MB, type=memory, help=limit)
    add("--times", action="store_true", help="where the seconds go: decode, detect, mel, network")
    add("--device", default="auto", help="auto, cpu, cuda")
    return flags.parse_args()


def as_text(given: str) -> str:
    """Words of a command line, where bytes may stand that are no UTF-8."""
    return given.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def main() -> int:
    args = parse_args()
    check_place(args.out)
    args.chosen = bool(args.checkpoints)  # else those that come along, of which the docs tell
    if not args.checkpoints:
        from inference.starter import WORDS, starter_models

        if args.word_vectors:
            what = "the models that come along bring their own word vectors"
            raise UsageError(f"--word_vectors: {what}: leave it out, or give --checkpoints")
        args.checkpoints, args.word_vectors = starter_models(), WORDS

    from inference.sources import FORMATS, SCRATCH, find_sources, left_out

    for path in args.checkpoints:
        if not args.clips and path.suffix.lower() in FORMATS:
            raise UsageError(f"{path} stands behind --checkpoints: put the clips before it")
    # temporary files, faces among them, are deleted also then; what was killed left its own
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) != signal.SIG_IGN:  # as nohup starts it
            signal.signal(stop, lambda number, _: sys.exit(128 + number))
    sweep(SCRATCH)
    sources = find_sources(args.clips, args.text)
    check_out(args, sources)
    if others := left_out(args.clips):
        names = listed([each.name for each in others], 3)
        print(f"left out, of other kinds or of no clip: {names}", file=sys.stderr)
    load_ahead(args, sources)
    predictor = open_predictor(args)
    predictions = predict_all(args, predictor, sources)
    write_tables(args, predictions)
    # the parts of a recording follow each other, and have one picture
    for name, part in groupby(predictions, lambda each: each.source.name):
        write_recording(args, predictor, Path(name), list(part))
    print(*origins(predictions[0].cards), sep="\n")
    failed = [each for each in predictions if not each.parts]
    pictures = "" if args.no_pictures else ", pictures"
    print(f"{args.out}: predictions.csv, predictions.json{pictures}")
    if failed:
        print(f"{len(failed)} of {len(predictions)} have no answer, see above", file=sys.stderr)
    return REJECTED if failed else 0


def check_out(args: argparse.Namespace, sources: list) -> None:
    """UsageError where a file of --out would take the place of a clip, or of its words."""
    kinds = {".png": not args.no_pictures, ".mp4": args.annotate, ".srt": args.transcribe}
    given = {Path(each.name).resolve() for each in sources}
    given |= {Path(each.name).with_suffix(".srt").resolve() for each in sources if each.problem}
    for source in sources:
        for ending in (ending for ending, made in kinds.items() if made):
            place = args.out / f"{source.clip.clip_id}{ending}"
            if place.exists() and place.resolve() in given:
                what = f"the new {place.name} would be written over {place}, which was given"
                raise UsageError(f"--out {args.out}: {what}; choose another folder")


def load_ahead(args: argparse.Namespace, sources: list) -> None:
    """Have the libraries of the process that reads clips loaded while this one loads its own."""
    from extract.clip import PICTURE, SOUND
    from utils.guard import begin_loading

    if any(source.clip.media != Path() for source in sources):
        begin_loading((*SOUND, *PICTURE))


def open_predictor(args: argparse.Namespace) -> Any:
    """The models; what they say about themselves is told."""
    with no_collection():
        from evaluation.ensemble import label_note
        from inference.predictor import Predictor
        from inference.settings import encoder_places

    predictor = Predictor(
        args.checkpoints,
        device=args.device,
        tta=args.tta,
        word_vectors=args.word_vectors,
        longest=args.longest,
        warm=args.times,
        clip_seconds=args.clip_seconds,
        memory_mb=args.memory_mb,
        encoders=encoder_places(args.encoder),
        classes=args.classes.split(",") if args.classes else None,
        transcribe=args.transcribe,
    )
    if args.chosen and (note := label_note(predictor.members)):
        print(note, file=sys.stderr)
    return predictor


def predict_all(args: argparse.Namespace, predictor: Any, sources: list) -> list:
    """Every prediction, printed as it comes."""
    from tqdm import tqdm

    if not args.no_pictures:  # loaded while the first clip is read
        Thread(target=import_module, args=("matplotlib.figure",), daemon=True).start()
    parts = [part for source in sources for part in predictor.with_words(predictor.cut(source))]
    write_subtitles(args.out, predictor.heard, parts)
    # All words at once, before the first clip: the file of vectors is read from front to back.
    predictor.look_up([part.clip.transcript for part in parts])
    if predictor.compares:
        compared = ", ".join(predictor.compares)
        print(f"{compared}: compared over all clips given, as those of one person", file=sys.stderr)
        predictor.get_to_know(parts)
    print(without_controls(header(predictor.classes)), flush=True)
    predictions, said = [], set()
    alone = len(parts) < 2 or None  # None: a bar on a terminal alone
    for part in tqdm(parts, unit="clip", desc="predicting", disable=alone, leave=False):
        prediction = predictor.predict(part)
        predictions.append(prediction)
        remarks = [text for text in prediction.remarks if (part.name, text) not in said]
        said |= {(part.name, text) for text in remarks}  # once for all parts of a recording
        tqdm.write(without_controls(lines(prediction, remarks)))
        if args.times:
            seconds = predictions[-1].seconds.items()
            tqdm.write(" " * 28 + ", ".join(f"{name} {value:.2f} s" for name, value in seconds))
    return predictions


def origins(cards: list) -> list[str]:
    """What each model comes from, with a warning in red where the terminal has colours."""
    from inference.card import by_run, card_lines

    red, plain = ("\033[1;31m", "\033[0m") if sys.stdout.isatty() else ("", "")
    warnings = {card["warning"].upper() for card in cards if card["warning"]}
    return [
        f"{red}{line}{plain}" if any(line.startswith(each) for each in warnings) else line
        for line in map(without_controls, card_lines(by_run(cards)))
    ]


def write_subtitles(out: Path, heard: dict, parts: list) -> None:
    """What was recognised, an .srt for each clip. Subtitles count from the first second of a
    recording, whatever its own clock says."""
    from extract.transcribe import Cue, srt

    for name, (part, *_) in groupby(parts, lambda each: each.name):
        if not (cues := heard.get(name)):
            continue
        first = part.extent[0] if part.extent else 0.0
        cues = [Cue(cue.start - first, cue.end - first, cue.words) for cue in cues]
        write_bytes(out / f"{clip_name(part)}.srt", srt(cues).encode())


def write_recording(
    args: argparse.Namespace, predictor: Any, path: Path, predictions: list
) -> None:
    """One picture per clip, one time line per long recording, and the annotated video."""
    from inference.figure import draw_prediction
    from inference.timeline import draw_timeline

    is_long = predictions[0].source.start is not None
    name = clip_name(predictions[0].source)
    if not args.no_pictures:
        picture = draw_timeline(predictions) if is_long else draw_prediction(predictions[0])
        write_bytes(args.out / f"{name}.png", picture)
    if args.annotate:
        try:
            write_bytes(args.out / f"{name}.mp4", predictor.annotate(path, predictions))
        except ClipError as error:
            print(f"{path} is not annotated: {error.reason}", file=sys.stderr)


def clip_name(part: Any) -> str:
    """The id of a clip, or of the recording that it is a part of."""
    name = part.clip.clip_id
    return name if part.start is None else name.rpartition("-")[0]


def header(classes: list[str]) -> str:
    start = f"{'clip':<28}{'part':<{PART}}"
    if has_many(classes):
        return f"{start}most probable (all {len(classes)} are in predictions.csv)"
    first, *widths = column_widths(classes)
    named = (padded(name, width) for name, width in zip(classes, widths, strict=True))
    return f"{start}{padded('answer', first)}  " + "".join(named)


def has_many(classes: list[str]) -> bool:
    """Whether a table with a column for each class is too wide to be read."""
    return 28 + PART + 2 + sum(column_widths(classes)) > WIDEST


def column_widths(classes: list[str]) -> list[int]:
    """Of the answer, then of each class; a Korean or Chinese letter is as wide as two."""
    return [max(8, *map(columns, classes))] + [max(7, columns(name) + 2) for name in classes]


def lines(prediction: Any, remarks: list[str] | None = None) -> str:
    """The rows of one clip: what decides first, its parts, a doubt, and what there is to say."""
    from inference.wording import PARTS, doubt, part_name, percent

    name = "?".join(prediction.title.splitlines())  # a name on two lines would begin a row
    if columns(name) > 27:  # the file says more than its folders
        name = shortened(name.rpartition("/")[2], 27)
    rows: list[str] = []
    for part, probabilities in prediction.parts.items():
        shown = shortened(part if part in PARTS else part_name(part), PART - 1)
        start = padded(name, 28, left=True) + padded(shown, PART, left=True)
        rows.append(start + numbers(probabilities, prediction.classes))
        name = ""
    if not rows:
        rows = [f"{name:<28}no answer"]
    elif why := doubt(prediction.probabilities, prediction.classes):
        rows.append(f"{'':<28}{prediction.label}, {percent(prediction.probabilities.max())}; {why}")
    said = prediction.remarks if remarks is None else remarks
    rows += [f"{'':<28}{text}" for text in said]
    return "\n".join(rows)


def numbers(probabilities: Any, classes: list[str]) -> str:
    """The answer and the probability of each class; of many only the largest, and what is left."""
    if has_many(classes):
        # stable: equal ones stay in the order of the classes, on every machine
        most = (-probabilities).argsort(kind="stable")[:FIRST]
        named = (f"{shortened(classes[k], 16)} {probabilities[k]:.3f}" for k in most)
        rest = max(0.0, 1 - probabilities[most].sum())
        others = f"; {len(classes) - FIRST} others {rest:.3f}" if len(classes) > FIRST else ""
        return ", ".join(named) + others
    first, *widths = column_widths(classes)
    pairs = zip(probabilities, widths, strict=True)
    each = "".join(f"{value:>{width}.3f}" for value, width in pairs)
    return f"{padded(classes[int(probabilities.argmax())], first)}  {each}"


def write_tables(args: argparse.Namespace, predictions: list) -> None:
    """predictions.csv, one row per clip and part; predictions.json with all there is to say."""
    import pandas as pd

    rows = [row for prediction in predictions for row in prediction.rows()]
    table = pd.DataFrame(rows, dtype=object)  # strings of pyarrow cannot hold every file name
    write_csv(args.out / "predictions.csv", table, for_people=True)
    about = {
        "checkpoints": [str(path) for path in args.checkpoints],
        "models": predictions[0].cards,
        "tta": args.tta,
    }
    clips = [prediction.as_dict() for prediction in predictions]
    write_json(args.out / "predictions.json", {**about, "clips": clips})


if __name__ == "__main__":
    run_script(main)
