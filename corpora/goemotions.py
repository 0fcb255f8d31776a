"""GoEmotions, English comments in Ekman's six emotions and neutral: tables -> clips of words alone.

58,009 comments of Reddit, 4 MB; raters could give several emotions, of which the lines with one are
taken (the others are counted and left out). Apache-2.0. Demszky et al. (2020), ACL, arXiv
2005.00547. The tables are those that fold the 27 emotions into seven; DIR is data/ekman of

    git clone https://github.com/monologg/GoEmotions-pytorch
    python preprocess.py --corpus goemotions --data_dir DIR --word_vectors FILE

A comment of train that stands in dev or test, too ("Thanks!"), is left out. The classes are in the
challenge's order. Who wrote a comment is not told.
"""

from __future__ import annotations

from pathlib import Path

from corpora.manifest import Clip, Listing, check_listing
from corpora.merc2020 import CLASSES
from utils.errors import UsageError, counted
from utils.files import is_file, read_text

TABLES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}


def list_clips(data_dir: Path) -> Listing:
    """One clip for each line with one emotion: text, number of the label, name."""
    if not is_file(data_dir / "labels.txt"):
        what = "expected labels.txt beside train.tsv, dev.tsv and test.tsv"
        raise UsageError(f"no GoEmotions under {data_dir.resolve()}: {what}")
    names = read_text(data_dir / "labels.txt").split()
    clips, several = [], 0
    for split, name in TABLES.items():
        if not is_file(data_dir / name):
            continue
        for number, line in enumerate(read_text(data_dir / name).splitlines(), 1):
            text, labels, comment = read_line(line, data_dir / name, number, len(names))
            if len(labels) > 1:
                several += 1
                continue
            label = names[labels[0]]
            media = data_dir / f"{comment}.txt"  # there is no such file: words need none
            clips.append(Clip(comment, split, media, label, label, label, transcript=text))
    held_out = {said(clip) for clip in clips if clip.split != "train"}
    kept = [clip for clip in clips if clip.split != "train" or said(clip) not in held_out]
    listing = check_listing(Listing(CLASSES, ("text",), kept))
    if twice := len(clips) - len(kept):
        stands = "stands" if twice == 1 else "stand"
        what = f"of train that {stands} in dev or test, too"
        listing.notes.append(f"{counted(twice, 'comment')} {what}")
    if several:
        listing.notes.append(f"{counted(several, 'comment')} with several emotions")
    return listing


def said(clip: Clip) -> str:
    return " ".join(clip.transcript.casefold().split())


def read_line(line: str, path: Path, number: int, classes: int) -> tuple[str, list[int], str]:
    fields = line.split("\t")
    labels = fields[1].split(",") if len(fields) == 3 else []
    if not labels or not all(label.isdecimal() and int(label) < classes for label in labels):
        what = f"text, numbers below {classes} and a name, with tabs between"
        raise UsageError(f"{path} line {number}: expected {what}: {line[:60]!r}")
    return fields[0], [int(label) for label in labels], fields[2]
