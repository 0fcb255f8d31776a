"""Your own clip -> what a trained model makes of it: a table, a picture, JSON and CSV.

    python predict.py clip.mp4 --checkpoints logs/multimodal/NAME --text "what is said"
    python predict.py my_clips/ --checkpoints logs/speech/A        # every clip of a folder

The words come from --text, or from a .txt, .srt or .npz of the clip's name beside it. Sound, face or
words may be missing: the answer says what it rests on. A clip that lasts over --longest seconds is
cut at its pauses and gives a time line. Recognising displayed emotion is not knowing what someone
feels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.config import Flags, device_name, ranged
from utils.errors import UsageError, run_script
from utils.files import write_csv, write_json

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
    add("--device", default="auto", help="auto, cpu, cuda")
    return flags.parse_args()


def main() -> int:
    args = parse_args()
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file: give a folder")

    from inference.sources import find_sources

    sources = find_sources(args.clips, args.text)
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        answers = answer_all(args, sources, Path(folder))
        write_tables(args, answers)
        if args.annotate:
            write_videos(args, answers)
    failed = [answer for answer in answers if not answer.parts]
    print(f"{args.out}: predictions.csv, predictions.json" + ", pictures" * (not args.no_pictures))
    if failed:
        print(f"{len(failed)} of {len(answers)} have no answer, see above", file=sys.stderr)
    return REJECTED if failed else 0


def answer_all(args: argparse.Namespace, sources: list, folder: Path) -> list:
    """Every answer, printed as it comes, with its picture."""
    from tqdm import tqdm

    from inference.answer import Predictor
    from inference.windows import cut_long

    device = device_name(args.device)
    predictor = Predictor(
        args.checkpoints, folder, device, args.tta, args.temperature, args.word_vectors
    )
    parts = [(part, source) for source in sources for part in cut_long(source, args.longest, folder)]
    predictor.look_up([part.clip.transcript for part, _ in parts])
    print(header(predictor.classes), flush=True)
    answers = []
    for part, _ in tqdm(parts, unit="clip", desc="predicting", disable=len(parts) < 2, leave=False):
        answers.append(predictor.answer(part))
        print(lines(answers[-1]), flush=True)
    return answers
