"""Your own clips: a folder with a `manifest.csv` -> clips.

`manifest.csv` needs three columns: `media` (path below the folder), `split` (train, val, test...)
and `emotion`. Used when present: `clip_id` (default: the file's name without its ending),
`speaker`, `transcript`, `speech_emotion`, `face_emotion` (default: `emotion`), `dialogue`,
`utterance`, `fold` (default: by speaker, corpora/splits.py). Word vectors are read from an .npz of
the same name beside the clip (key `word_embed`), or looked up with --word_vectors. The classes are
the seven of the challenge unless the folder holds a `classes.txt`, one a line, in their order.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from corpora.manifest import Clip, Failure, Listing, check_listing
from corpora.merc2020 import CLASSES
from corpora.splits import assign_folds
from utils.errors import UsageError
from utils.files import is_file

NEEDED = ("media", "split", "emotion")
OPTIONAL = ("speaker", "transcript", "fold", "dialogue", "utterance")


def list_clips(data_dir: Path) -> Listing:
    """One clip for each row of `manifest.csv`; text is expected when any clip has word vectors."""
    table = read_manifest(data_dir / "manifest.csv")
    clips, failures = [], []
    for row in table.to_dict("records"):
        clip = clip_from_row(row, data_dir)
        if not row["media"]:
            failures.append(Failure("", data_dir, "list", "E_MISSING", "a row without media"))
        else:
            clips.append(clip)
    has_words = any(clip.words for clip in clips)
    listing = check_listing(
        Listing(
            classes=read_classes(data_dir / "classes.txt"),
            modalities=("speech", "video", "text") if has_words else ("speech", "video"),
            clips=clips,
            failures=failures,
            sheets=sorted(data_dir.glob("test[0-9].csv")),
        )
    )
    if "fold" not in table.columns:
        listing.clips = assign_folds(listing.clips)
    return listing


def clip_from_row(row: dict[str, str], data_dir: Path) -> Clip:
    """Clip of one manifest row; the words are the .npz beside the media, if there is one."""
    media = data_dir / row["media"]
    words = media.with_suffix(".npz") if media.name else media
    return Clip(
        clip_id=row.get("clip_id") or media.stem,
        split=row["split"],
        media=media,
        emotion=row["emotion"],
        speech_emotion=row.get("speech_emotion") or row["emotion"],
        face_emotion=row.get("face_emotion") or row["emotion"],
        words=words if words.suffix == ".npz" and is_file(words) else None,
        **{column: row.get(column, "") for column in OPTIONAL},
    )


def read_manifest(
    path: Path, needed: tuple[str, ...] = NEEDED, encoding_errors: str = "strict"
) -> pd.DataFrame:
    """The table as text (ids keep their leading zeros); UsageError when it is not usable."""
    options = dict(dtype=str, keep_default_na=False, encoding="utf-8-sig")
    try:
        table = pd.read_csv(path, encoding_errors=encoding_errors, **options)
    except FileNotFoundError as error:
        raise UsageError(
            f"no {path}: write one with the columns {','.join(needed)}, one row per clip"
        ) from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UsageError(f"cannot read {path}: {error}") from error
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise UsageError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table)}")
    return table


def read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return CLASSES
    classes = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise UsageError(f"{path}: expected two or more different class names, one a line")
    return classes
