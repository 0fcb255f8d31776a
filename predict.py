"""Your own clip -> what a trained model makes of it: a table, a picture, JSON and CSV.

    python predict.py clip.mp4 --checkpoints logs/multimodal/NAME --text "what is said"
    python predict.py my_clips/ --checkpoints logs/speech/A        # every clip of a folder

The words come from --text, or from a .txt, .srt or .npz of the clip's name beside it. Sound, face
or words may be missing: the answer says what it rests on. A clip that lasts over --longest seconds
is cut at its pauses and gives a time line. Recognising displayed emotion is not knowing what
someone feels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from utils.config import Flags, device_name, ranged
from utils.errors import run_script
from utils.files import check_place, write_bytes, write_csv, write_json

REJECTED = 3  # exit code: finished, but some clips have no answer


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("clips", nargs="*", type=Path, metavar="CLIP", help="video, sound, .npz, or a folder")
    add("--checkpoints", nargs="+", type=Path, required=True, help=".pth files or run folders")
    add("--text", help="the words of the one clip, or alone")
    add("--word_vectors", type=Path, help="file that words are looked up in, as in the training")
    add("--out", default=Path("predictions"), type=Path, help="folder of tables and pictures")
    add("--tta", default=1, type=int, choices=(12, 6, 1), help="views of the face per clip")
    add(
        "--temperature",
        default=1.0,
        type=ranged(float, 1e-6),
        help="power on each view's probabilities (submissions: 0.1)",
    )
    add("--longest", default=15.0, type=ranged(float, 1), help="seconds until a clip is cut")
    add("--no_pictures", action="store_true", help="tables only")
    add("--annotate", action="store_true", help="also the video with the answer drawn in")
    add("--times", action="store_true", help="where the seconds go: decode, detect, mel, network")
    add("--device", default="auto", help="auto, cpu, cuda")
    return flags.parse_args()


def main() -> int:
    args = parse_args()
    check_place(args.out)

    from inference.sources import find_sources

    sources = find_sources(args.clips, args.text)
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        answers = answer_all(args, sources, Path(folder))
    write_tables(args, answers)
    for name, part in groupby(answers, lambda answer: answer.source.name):
        write_recording(args, Path(name), list(part))
    failed = [answer for answer in answers if not answer.parts]
    print(f"{args.out}: predictions.csv, predictions.json" + ", pictures" * (not args.no_pictures))
    if failed:
        print(f"{len(failed)} of {len(answers)} have no answer, see above", file=sys.stderr)
    return REJECTED if failed else 0


def answer_all(args: argparse.Namespace, sources: list, folder: Path) -> list:
    """Every answer, printed as it comes."""
    from tqdm import tqdm

    from inference.predictor import Predictor
    from inference.windows import cut_long

    device = device_name(args.device)
    predictor = Predictor(
        *(args.checkpoints, folder, device, args.tta, args.temperature, args.word_vectors),
        times=args.times,
    )
    parts = [part for source in sources for part in cut_long(source, args.longest, folder)]
    predictor.look_up([part.clip.transcript for part in parts])
    print(header(predictor.classes), flush=True)
    answers = []
    for part in tqdm(parts, unit="clip", desc="predicting", disable=len(parts) < 2, leave=False):
        answers.append(predictor.answer(part))
        tqdm.write(lines(answers[-1]))
        if args.times:
            seconds = answers[-1].seconds.items()
            tqdm.write(" " * 28 + ", ".join(f"{name} {value:.2f} s" for name, value in seconds))
    return answers


def write_recording(args: argparse.Namespace, path: Path, answers: list) -> None:
    """One picture per clip, one time line per long recording, and the annotated video."""
    from inference.figure import draw_answer
    from inference.timeline import annotate, draw_timeline

    is_long = answers[0].source.start is not None
    name = answers[0].source.clip.clip_id
    name = name.rpartition("-")[0] if is_long else name
    if not args.no_pictures:
        picture = draw_timeline(answers) if is_long else draw_answer(answers[0])
        write_bytes(args.out / f"{name}.png", picture)
    video = annotate(path, answers) if args.annotate else None
    if video:
        write_bytes(args.out / f"{name}.mp4", video)
    elif args.annotate:
        print(f"{path}: no picture to draw the answer in", file=sys.stderr)


def header(classes: list[str]) -> str:
    return f"{'clip':<28}{'part':<8}{'answer':>8}  " + "".join(f"{name:>7}" for name in classes)


def lines(answer: Any) -> str:
    """The rows of one clip: the answer first, then its parts, then what is missing."""
    name = answer.title if len(answer.title) < 28 else f"…{answer.title[-26:]}"
    rows = []
    for part, probabilities in answer.parts.items():
        label = answer.classes[int(probabilities.argmax())]
        numbers = "".join(f"{value:>7.3f}" for value in probabilities)
        rows.append(f"{name:<28}{part:<8}{label:>8}  {numbers}")
        name = ""
    rows += [f"{name:<28}no answer"] * (not rows)
    rows += [f"{'':<28}{text}" for text in answer.remarks]
    return "\n".join(rows)


def write_tables(args: argparse.Namespace, answers: list) -> None:
    """predictions.csv, one row per clip and part; predictions.json with all there is to say."""
    import pandas as pd

    rows = [row for answer in answers for row in answer.rows()]
    write_csv(args.out / "predictions.csv", pd.DataFrame(rows))
    about = {"checkpoints": [str(path) for path in args.checkpoints], "tta": args.tta}
    clips = [answer.as_dict() for answer in answers]
    write_json(args.out / "predictions.json", {**about, "clips": clips})


if __name__ == "__main__":
    run_script(main)
