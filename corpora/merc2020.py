"""MERC2020 / QIA2020: `qia2020/{train,val,test}/` and `2020-3/test3/` -> clips.

Korean actors, 7 emotions, 44,370 train and 5,386 val clips (720p H.264 + AAC) with one label each
for the whole clip, the face and the speech. Data: handed to the participants of the challenge.
Names: `<FileID>-<...>-<integrated>-<face>-<speech>.mp4`, the word vectors in `<FileID>.npz`
(key `word_embed`, 200 values a word). Clips of the test splits carry no labels.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

from corpora.manifest import Clip, Listing, check_listing
from utils.errors import UsageError

CLASSES = ("hap", "ang", "dis", "fea", "sad", "neu", "sur")  # the challenge's order
FOLDERS = {
    "train": "qia2020/train",
    "val": "qia2020/val",
    "test": "qia2020/test",
    "test_merc": "2020-3/test3",
}
SHEETS = ("test1.csv", "test2.csv", "test3.csv")
SHEET_FOLDERS = (".", "qia2020", "2020-3")  # of two sheets of one name the first counts
WORD_DIM = 200


def list_clips(data_dir: Path) -> Listing:
    """Every .mp4 of the challenge's folders; a folder that is absent is simply not there yet."""
    folders = {split: data_dir / place for split, place in FOLDERS.items()}
    if not any(folder.is_dir() for folder in folders.values()):
        raise UsageError(
            f"no MERC2020 data under {data_dir.resolve()}: expected {', '.join(FOLDERS.values())}; "
            "give their parent folder with --data_dir, or another --corpus (csv for your own clips)"
        )
    clips = [
        parse_name(media, split)
        for split, folder in folders.items()
        for media in sorted(folder.glob("[!.]*.[mM][pP]4"))  # macOS adds a ._ file to each
    ]
    sheets, warnings = [], []
    for sheet in SHEETS:
        places = (data_dir / folder / sheet for folder in SHEET_FOLDERS)
        found = [place for place in places if place.is_file()]
        sheets += found[:1]
        warnings += [
            f"{other} is another sheet than {found[0]}, which is taken: keep the one that you mean"
            for other in found[1:]
            if not filecmp.cmp(found[0], other, shallow=False)
        ]
    return check_listing(
        Listing(
            classes=CLASSES,
            modalities=("speech", "video", "text"),
            clips=clips,
            sheets=sheets,
            warnings=warnings,
            word_dim=WORD_DIM,
            folders=sorted({folder.parent for folder in folders.values()}),
        )
    )


def parse_name(media: Path, split: str) -> Clip:
    """Clip from `<FileID>-<...>-<integrated>-<face>-<speech>.mp4`, labels only where they exist."""
    file_id, *rest = media.stem.split("-")
    words = media.with_name(f"{file_id}.npz")
    if not split.startswith("test") and len(rest) >= 3:
        integrated, face, speech = rest[-3:]
        return Clip(file_id, split, media, integrated, speech, face, words=words)
    return Clip(file_id, split, media, words=words)
