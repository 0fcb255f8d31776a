"""Your own clips: a folder with a `manifest.csv` -> clips.

`manifest.csv` needs three columns: `media` (path below the folder), `split` (train, val, test...)
and `emotion`. Used when present: `clip_id` (default: the file's name without its ending; no two of
a split may be the same), `speaker`, `transcript`, `speech_emotion`, `face_emotion` (default:
`emotion`), `dialogue`, `utterance`, `fold` (default: by speaker, corpora/splits.py). Word vectors
are read from an .npz of the same name beside the clip (key `word_embed`), or looked up with
--word_vectors. The classes are the seven of the challenge unless the folder holds a `classes.txt`,
one a line, in their order; labels may be written with capitals, or as plain English words (happy,
happiness). What is unknown is an empty field, or what programs write for it (nan, N/A); a speaker
also what people write (unknown, ?).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from pathlib import Path, PureWindowsPath
from typing import Any

import pandas as pd

from corpora.manifest import (
    LABELS,
    OTHER_MACHINE,
    SPLITS,
    Clip,
    Failure,
    Listing,
    as_class,
    check_listing,
)
from corpora.merc2020 import CLASSES
from corpora.splits import assign_folds
from utils.errors import UsageError, listed
from utils.files import is_file, read_text
from utils.sheet import SEPARATOR_LINE

NEEDED = ("media", "split", "emotion")
OPTIONAL = ("speaker", "transcript", "fold", "dialogue", "utterance")
UNKNOWN = {"nan", "none", "null", "n/a", "na", "<na>"}  # what programs write for an empty field
NOBODY = {"unknown", "unk", "?", "-"}  # what people write for a speaker they do not know
OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a path that begins at a disc or a server


def list_clips(data_dir: Path) -> Listing:
    """One clip for each row of `manifest.csv`; text is expected when any clip has word vectors."""
    table = read_manifest(data_dir / "manifest.csv")
    classes = read_classes(data_dir / "classes.txt")
    clips, failures = [], []
    lines = defaultdict(list)  # of the clips in the file
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        clip = clip_from_row(row, data_dir, classes)
        lines[clip.clip_id, clip.media].append(str(line))
        if not row["media"]:
            reason = f"manifest.csv line {line} names no media"
            failures.append(Failure("", data_dir, "list", "E_MISSING", reason))
        elif OF_WINDOWS.match(row["media"]) and not is_file(clip.media):
            reason = f"{OTHER_MACHINE.format(data_dir)} (manifest.csv line {line})"
            name = PureWindowsPath(row["media"]).stem
            failures.append(Failure(name, Path(row["media"]), "list", "E_ID", reason))
        else:
            clips.append(clip)
    has_words = any(clip.words for clip in clips)
    listing = check_listing(
        Listing(
            classes=classes,
            modalities=("speech", "video", "text") if has_words else ("speech", "video"),
            clips=clips,
            failures=failures,
            sheets=sorted(data_dir.glob("test[0-9].csv")),
            places={
                clip: f"manifest.csv line{'s' if len(found) > 1 else ''} {listed(found, 3)}"
                for clip, found in lines.items()
            },
        )
    )
    if "fold" not in table.columns:
        listing.clips = assign_folds(listing.clips)
    return listing


def clip_from_row(row: dict[str, str], data_dir: Path, classes: tuple[str, ...]) -> Clip:
    """Clip of one manifest row; the words are the .npz beside the media, if there is one."""
    media = data_dir / row["media"]
    if "\\" in row["media"] and not is_file(media):  # written by Windows
        media = data_dir / row["media"].replace("\\", "/")
    words = media.with_suffix(".npz") if media.name else media
    more: Any = {column: known(row.get(column, "")) for column in OPTIONAL}
    if more["speaker"].lower() in NOBODY:
        more["speaker"] = ""  # else all of these would be one person
    more["transcript"] = row.get("transcript", "")  # "None!" may be what somebody says
    if more["transcript"].lower() in ("nan", "<na>"):
        more["transcript"] = ""
    split = known(row["split"])
    for column in LABELS:  # "None" may be a class
        label = row.get(column, "")
        label = label if as_class(label, classes) in classes else known(label)
        more[column] = label or more.get("emotion", "")
    return Clip(
        clip_id=known(row.get("clip_id", "")) or media.stem,
        split=SPLITS.get(split.lower(), split),
        media=media,
        words=words if words.suffix == ".npz" and is_file(words) else None,
        **more,
    )


def known(field: str) -> str:
    """The field, or "" where it says that nothing is known."""
    return "" if field.lower() in UNKNOWN else field


def read_manifest(
    path: Path, needed: tuple[str, ...] = NEEDED, encoding_errors: str = "strict"
) -> pd.DataFrame:
    """The table as text (ids keep their leading zeros); UsageError when it is not usable.

    Commas, semicolons or tabs between fields; spaces around them and capitals of the header do not
    count. A field may be missing at the end of a line, none may be there too many. The index is the
    line of the file that a row begins in.
    """
    if not path.exists():
        what = f"write one with the columns {','.join(needed)}, a row a clip"
        raise UsageError(f"no {path}: {what}")
    text = read_text(path, encoding_errors)
    skipped = SEPARATOR_LINE.match(text)
    text = text[skipped.end() :] if skipped else text
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, above = [], 1 if skipped else 0
    line = above + 1
    try:
        for row in reader:
            if any(row):
                rows.append((line, [field.strip() for field in row]))
            line = above + reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"cannot read {path}: line {line}: {error}") from error
    header = [name.casefold() for name in rows[0][1]] if rows else []
    if missing := [column for column in needed if column.casefold() not in header]:
        has = ", ".join(header) or "nothing"
        raise UsageError(f"{path} has no column {', '.join(missing)}; it has {has}")
    spelled = {name.casefold(): name for name in needed}
    columns = [spelled.get(name, name) for name in header]
    if len({*columns}) < len(columns):
        raise UsageError(f"{path} names a column twice: {', '.join(columns)}")
    filled = {}
    for line, row in rows[1:]:
        if any(row[len(columns) :]):
            raise UsageError(
                f"{path} line {line}: {len(row)} fields, the header has {len(columns)}; "
                f"a text that holds {separator!r} needs double quotes"
            )
        filled[line] = (row + [""] * len(columns))[: len(columns)]
    # objects: pyarrow, where it is installed, takes no text that is not UTF-8
    return pd.DataFrame([*filled.values()], [*filled], columns, dtype=object)


def read_classes(path: Path) -> tuple[str, ...]:
    """The challenge's seven where the folder has no list of its own."""
    if not path.exists():
        return CLASSES
    classes = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice or len(classes) < 2:
        wrong = f"more than once: {listed(twice, 3)}" if twice else f"it names {len(classes)}"
        raise UsageError(f"{path}: expected two or more different classes, one a line; {wrong}")
    return tuple(classes)
