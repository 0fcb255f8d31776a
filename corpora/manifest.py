"""The contract between raw corpora and everything else: what a clip is, and when one is usable."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.errors import ClipError, UsageError, listed

DEVICES = {"con", "prn", "aux", "nul"}  # what Windows takes for something else than a file
DEVICES |= {f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)}
LABELS = ("emotion", "speech_emotion", "face_emotion")  # columns, as in Clip
LABELLED_SPLITS = ("train", "val")  # a clip here must carry its labels
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
MAX_ID_BYTES = 200  # file systems allow 255, and we add an ending


@dataclass(frozen=True)
class Clip:
    """One clip as its corpus lists it. Labels are names of classes; "" means unknown."""

    clip_id: str
    split: str
    media: Path  # where it is, or would be: a corpus of words alone needs no file there
    emotion: str = ""  # the integrated label: what the clip as a whole expresses
    speech_emotion: str = ""  # what the voice alone expresses
    face_emotion: str = ""  # what the face alone expresses
    speaker: str = ""
    transcript: str = ""
    fold: str = ""
    dialogue: str = ""  # a name that no other dialogue of the corpus has
    utterance: str = ""  # the clip's number within its dialogue
    words: Path | None = None  # npz with key word_embed (L, D)
    span: tuple[float, float] | None = None  # seconds of a clip without sound; default: all
    cropped: bool = False  # its picture is a face already

    @property
    def labels(self) -> dict[str, str]:
        return {column: getattr(self, column) for column in LABELS}


@dataclass(frozen=True)
class Failure:
    """Why one clip was rejected: a row of failed.csv."""

    clip_id: str
    media: Path
    stage: str
    code: str
    reason: str


def relative(media: Path, data_dir: Path) -> Path:
    """As the tables name a clip's file: from the data folder on, where it lies in there."""
    return media.relative_to(data_dir) if media.is_relative_to(data_dir) else media


@dataclass
class Listing:
    """What a corpus adapter returns. `clips` and `failures` together are all that was found."""

    classes: tuple[str, ...]
    modalities: tuple[str, ...]  # what every clip must provide: speech, video, text
    clips: list[Clip]
    failures: list[Failure] = field(default_factory=list)
    sheets: list[Path] = field(default_factory=list)  # submission sheets of the challenge
    word_dim: int | None = None  # width of the word vectors where the corpus fixes it
    notes: list[str] = field(default_factory=list)  # what was left out on purpose


def check_listing(listing: Listing) -> Listing:
    """Move every clip whose name, split, labels or place is unusable from clips to failures."""
    clips_of = defaultdict(list)  # names that look the same are the same to some file systems
    for clip in listing.clips:
        clips_of[clip.split, unicodedata.normalize("NFC", clip.clip_id)].append(clip)
    usable, failures = [], list(listing.failures)
    for clip in listing.clips:
        same_id = clips_of[clip.split, unicodedata.normalize("NFC", clip.clip_id)]
        try:
            _check_clip(clip, listing.classes, same_id)
            usable.append(clip)
        except ClipError as error:
            failures.append(Failure(clip.clip_id, clip.media, "list", error.code, error.reason))
    usable.sort(key=lambda clip: (clip.split, clip.clip_id))
    listing.clips, listing.failures = usable, failures
    return listing


def _check_clip(clip: Clip, classes: tuple[str, ...], same_id: list[Clip]) -> None:
    name = clip.clip_id
    if not name or name[0] in ".-" or re.search(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", name):
        raise ClipError("E_ID", f"clip id {name!r} cannot be a file name; rename the clip")
    if name.partition(".")[0].casefold() in DEVICES:
        raise ClipError("E_ID", f"clip id {name!r} is a device to Windows; rename the clip")
    if "\0" in str(clip.media):
        raise ClipError("E_ID", f"{str(clip.media)!r} cannot be the name of a file")
    if len(name.encode()) > MAX_ID_BYTES:
        raise ClipError("E_ID", f"clip id is longer than {MAX_ID_BYTES} bytes; shorten it")
    if not SPLIT_NAME.fullmatch(clip.split):
        raise ClipError("E_ID", f"split {clip.split!r} must be letters, digits and _")
    if len(same_id) > 1:
        raise ClipError("E_DUP", f"clip id {name!r} {_why_twice(same_id)}")
    for column, label in clip.labels.items():
        if label not in classes and (label or clip.split in LABELLED_SPLITS):
            reason = f"{column} {label!r} is not one of {' '.join(classes)}"
            for known in classes:
                if label.lower().startswith(known.lower()):
                    reason += f"; did you mean {known}?"
                    break
            raise ClipError("E_LABELS", reason)


def _why_twice(same_id: list[Clip]) -> str:
    files = sorted({str(clip.media) for clip in same_id})
    if len(files) == 1:
        return f"is listed {len(same_id)} times: {files[0]}"
    return f"stands for {len(files)} files: {listed(files, 3)}; tell them apart by a column clip_id"


def keep_inside(listing: Listing, data_dir: Path) -> Listing:
    """Move every clip whose media or words lie elsewhere, behind their links, to failures."""
    root, inside = data_dir.resolve(), []
    for clip in listing.clips:
        paths = [path for path in (clip.media, clip.words) if path]
        # realpath: unlike Path.resolve it takes a link that leads to itself
        outside = [path for path in paths if not Path(os.path.realpath(path)).is_relative_to(root)]
        if outside:
            reason = f"{outside[0]} leaves the data folder {data_dir}: copy it, or --follow_links"
            listing.failures.append(Failure(clip.clip_id, clip.media, "list", "E_ID", reason))
        else:
            inside.append(clip)
    listing.clips = inside
    return listing


def keep_classes(listing: Listing, wanted: str) -> Listing:
    """Only these classes, in this order: `hap,sad,neu+cal` counts `cal` as `neu`.

    Clips with another label are left out, and a note says how many of which class.
    """
    groups = [[name.strip() for name in item.split("+")] for item in wanted.split(",")]
    names = [name for group in groups for name in group]
    if set(names) - set(listing.classes) or len(set(names)) < len(names) or len(groups) < 2:
        known = " ".join(listing.classes)
        raise UsageError(f"--classes {wanted}: expected two or more, each once, of {known}")
    renamed = {"": "", **{name: group[0] for group in groups for name in group}}
    kept: list[Clip] = []
    left_out: Counter[str] = Counter()
    for clip in listing.clips:
        if others := sorted({*clip.labels.values()} - {*renamed}):
            left_out[others[0]] += 1
        else:
            labels: Any = {column: renamed[label] for column, label in clip.labels.items()}
            kept.append(replace(clip, **labels))
    if left_out:
        counts = ", ".join(f"{name} {count}" for name, count in left_out.items())
        listing.notes.append(f"{left_out.total()} clips of other classes ({counts})")
    listing.clips, listing.classes = kept, tuple(group[0] for group in groups)
    return listing
