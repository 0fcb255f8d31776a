"""MELD: three tables of utterances, and their clips where they are there -> clips.

Dialogues from the series Friends: 9,989 train, 1,109 val (its dev) and 2,610 test utterances in
seven emotions; the tables are 1.5 MB, the archive of clips about 10 GB. GPL-3.0 (repository); the
pictures are the producers'. Poria et al. (2019), ACL, arXiv 1810.02508. From the download to
features, words alone:

    git clone https://github.com/declare-lab/MELD.git
    python preprocess.py --corpus meld --data_dir MELD/data/MELD --word_vectors FILE

With the unpacked clips (train_splits/, dev_splits_complete/, output_repeated_splits_test/) anywhere
below --data_dir, speech and video are extracted too. The classes are in the challenge's order, so
that models of both answer alike. The six friends speak in train, val and test alike.
"""

from __future__ import annotations

import re
from pathlib import Path

from corpora.csv_folder import read_manifest
from corpora.manifest import Clip, Listing, check_listing
from corpora.merc2020 import CLASSES
from utils.errors import UsageError
from utils.files import is_file

PLACES = {  # split -> its table, the folder of its clips
    "train": ("train_sent_emo.csv", "train_splits"),
    "val": ("dev_sent_emo.csv", "dev_splits_complete"),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test"),
}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def list_clips(data_dir: Path) -> Listing:
    """One clip for each row of the tables that are there."""
    clips = []
    for split, (table, folder) in PLACES.items():
        if path := shallowest(data_dir, table):
            media_dir = shallowest(data_dir, folder) or data_dir / folder
            # bytes that are not UTF-8 are kept as they are, for `repair`
            rows = read_manifest(path, COLUMNS, "surrogateescape").to_dict("records")
            clips += [clip_from_row(row, split, media_dir) for row in rows]
    if not clips:
        tables = ", ".join(table for table, _ in PLACES.values())
        raise UsageError(
            f"no MELD tables under {data_dir.resolve()}: expected {tables}; "
            "give their folder with --data_dir"
        )
    watched = any(is_file(clip.media) for clip in clips)
    return check_listing(
        Listing(CLASSES, ("speech", "video", "text") if watched else ("text",), clips)
    )


def shallowest(data_dir: Path, name: str) -> Path | None:
    """The file or folder of this name that is nearest to `data_dir`."""
    return min(data_dir.rglob(name), key=lambda path: (len(path.parts), path), default=None)


def clip_from_row(row: dict[str, str], split: str, media_dir: Path) -> Clip:
    """Clip of one row. Dialogues are numbered anew in each table, so their names get the split."""
    dialogue, utterance = row["Dialogue_ID"], row["Utterance_ID"]
    name = f"dia{dialogue}_utt{utterance}"
    label = row["Emotion"]
    return Clip(
        name,
        split,
        media_dir / f"{name}.mp4",
        label,
        label,
        label,
        speaker=repair(row["Speaker"]),
        transcript=repair(row["Utterance"]),
        dialogue=f"{split}{dialogue}",
        utterance=utterance,
    )


def repair(text: str) -> str:
    """Bytes of Windows-1252 that were taken for Latin-1, or left as they were: `\\x92` is ’."""
    wrong = "[\x80-\x9f\udc80-\udcff]"
    return re.sub(wrong, lambda m: bytes([ord(m[0]) & 255]).decode("cp1252", "replace"), text)
