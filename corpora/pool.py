"""Several corpora -> one folder of clips, to train on all of them together: a manifest.csv.

    python -m corpora.pool pooled --classes hap,ang,dis,fea,sad,neu+cal,sur \\
        ravdess=RAVDESS javanese=JAVANESE ased=ASED_V1
    python preprocess.py --corpus csv --data_dir pooled --follow_links --modalities speech

`a+b` in --classes counts b as a; clips of other labels are left out. Speakers and clips get the
corpus's name before theirs, the corpora's own folds stay (a corpus without folds gets those of
corpora/splits.py). No file is copied: the table names each by its whole path, which --follow_links
allows. `ased=ASED_V1@test` puts all clips of a corpus into the split
`test`: what a model of the others is worth on people, microphones and a language of its own. With
--folds corpus each corpus is a fold, so `train.py --fold all` asks that of every corpus in turn.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from corpora import CORPORA, list_corpus
from corpora.manifest import WORDS, Clip
from corpora.splits import assign_folds
from utils.config import Flags
from utils.errors import UsageError, counted, listed, one_of, run_script
from utils.files import write_csv, write_text

COLUMNS = (
    *("clip_id", "split", "media", "emotion", "speech_emotion", "face_emotion", "speaker"),
    *("transcript", "fold"),
)


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("out", type=Path, help="folder of the table")
    add("corpora", nargs="+", metavar="CORPUS=FOLDER", help="as --corpus and --data_dir")
    add("--classes", required=True, help="in this order: hap,sad,neu+cal counts cal as neu")
    folds = "own: those of each corpus; corpus: each corpus is one (people of another are unseen)"
    add("--folds", choices=("own", "corpus"), default="own", help=folds)
    without = "clips to leave out, such as recordings that stand in two folds (corpora/audit.py)"
    add("--without", nargs="+", default=[], metavar="CLIP_ID", help=without)
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    groups = [[name.strip() for name in item.split("+")] for item in args.classes.split(",")]
    renamed = {name: group[0] for group in groups for name in group}
    if len(groups) < 2 or len(renamed) < sum(map(len, groups)):
        raise UsageError(f"--classes {args.classes}: expected two or more, each once")
    places = [place_of(given) for given in args.corpora]
    check_out(args.out, [folder for _, folder, _ in places])
    clips: list[Clip] = []
    for name, folder, split in places:
        added = clips_of(name, folder, renamed)
        if shared := {clip.speaker for clip in added} & {clip.speaker for clip in clips} - {""}:
            who = f"{people(len(shared))} of {folder} named as in another {name}"
            print(f"warning: {who}, as if the same: {listed(sorted(shared), 3)}", file=sys.stderr)
        if split:
            added = [replace(clip, split=split) for clip in added]
        elif args.folds == "corpus":
            added = [replace(clip, split="train", fold=name) for clip in added]
        known = {clip.speaker for clip in added} - {""}
        who = f" of {people(len(known))}" if known else ""
        print(f"{name}: {counted(len(added), 'clip')}{who}")
        clips += added
    if unknown := {*args.without} - {clip.clip_id for clip in clips}:
        raise UsageError(f"--without {sorted(unknown)[0]}: there is no such clip")
    clips = [clip for clip in clips if clip.clip_id not in args.without]
    for name in sorted({group[0] for group in groups} - {clip.emotion for clip in clips}):
        what = f"--classes {name}: no clip of these corpora has this label"
        if name not in WORDS:  # misspelt, most likely
            raise UsageError(what)
        print(f"warning: {what}; the class stays, for models that know it", file=sys.stderr)
    rows = [{column: getattr(clip, column) for column in COLUMNS} for clip in clips]
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    write_csv(args.out / "manifest.csv", table)
    write_text(args.out / "classes.txt", "".join(f"{group[0]}\n" for group in groups))


def people(number: int) -> str:
    return "1 person" if number == 1 else f"{number} people"


def check_out(out: Path, folders: list[Path]) -> None:
    """UsageError where the table of clips that lies there is not one of ours."""
    table = out / "manifest.csv"
    if not table.is_file():
        return
    with open(table, encoding="utf-8", errors="replace") as file:
        ours = file.readline().rstrip("\n") == ",".join(COLUMNS)
    if not ours or out.resolve() in [folder.resolve() for folder in folders]:
        raise UsageError(f"{table} would be written over, and is no table of this command")


def place_of(given: str) -> tuple[str, Path, str]:
    """CORPUS=FOLDER or CORPUS=FOLDER@SPLIT in its parts; UsageError for an unknown corpus."""
    name, _, place = given.partition("=")
    one_of("corpus", name, CORPORA)
    folder, _, split = place.partition("@")
    return name, Path(folder), split


def clips_of(corpus: str, folder: Path, renamed: dict[str, str]) -> list[Clip]:
    """The clips of one corpus that have these labels, under names of the whole."""
    listing = list_corpus(corpus, folder)
    for failure in listing.failures[:3]:
        print(f"{corpus}: rejected {failure.code}: {failure.reason}", file=sys.stderr)
    if more := len(listing.failures[3:]):
        print(f"{corpus}: {more} more rejected", file=sys.stderr)
    kept = [clip for clip in listing.clips if {*clip.labels.values()} <= {*renamed}]
    if not any(clip.fold for clip in kept):
        kept = assign_folds(kept)
    return [
        replace(
            clip,
            clip_id=f"{corpus}-{clip.clip_id}",
            media=clip.media.resolve(),
            emotion=renamed[clip.emotion],
            speech_emotion=renamed[clip.speech_emotion],
            face_emotion=renamed[clip.face_emotion],
            speaker=f"{corpus}-{clip.speaker}" if clip.speaker else "",
        )
        for clip in kept
    ]


if __name__ == "__main__":
    run_script(main)
