"""The contract between raw corpora and everything else: what a clip is, and when one is usable."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import ClipError

LABELLED_SPLITS = ("train", "val")  # a clip here must carry its labels
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
MAX_ID_BYTES = 200  # file systems allow 255, and we add an ending


@dataclass(frozen=True)
class Clip:
    """One clip as its corpus lists it. Labels are names of classes; "" means unknown."""

    clip_id: str
    split: str
    media: Path
    emotion: str = ""  # the integrated label: what the clip as a whole expresses
    speech_emotion: str = ""  # what the voice alone expresses
    face_emotion: str = ""  # what the face alone expresses
    speaker: str = ""
    transcript: str = ""
    fold: str = ""
    words: Path | None = None  # npz with key word_embed (L, D)
    span: tuple[float, float] | None = None  # seconds of a clip without sound; default: all

    @property
    def labels(self) -> dict[str, str]:
        return {
            "emotion": self.emotion,
            "speech_emotion": self.speech_emotion,
            "face_emotion": self.face_emotion,
        }


@dataclass(frozen=True)
class Failure:
    """Why one clip was rejected: a row of failed.csv."""

    clip_id: str
    media: Path
    stage: str
    code: str
    reason: str


@dataclass
class Listing:
    """What a corpus adapter returns. `clips` and `failures` together are all that was found."""

    classes: tuple[str, ...]
    modalities: tuple[str, ...]  # what every clip must provide: speech, video, text
    clips: list[Clip]
    failures: list[Failure] = field(default_factory=list)
    sheets: list[Path] = field(default_factory=list)  # submission sheets of the challenge
    word_dim: int | None = None  # width of the word vectors where the corpus fixes it


def check_listing(listing: Listing) -> Listing:
    """Move every clip whose name, split, labels or place is unusable from clips to failures."""
    twins = defaultdict(list)
    for clip in listing.clips:
        twins[clip.split, unicodedata.normalize("NFC", clip.clip_id)].append(clip)
    usable, failures = [], list(listing.failures)
    for clip in listing.clips:
        same = twins[clip.split, unicodedata.normalize("NFC", clip.clip_id)]
        try:
            _check_clip(clip, listing.classes, same)
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
    if len(name.encode()) > MAX_ID_BYTES:
        raise ClipError("E_ID", f"clip id is longer than {MAX_ID_BYTES} bytes; shorten it")
    if not SPLIT_NAME.fullmatch(clip.split):
        raise ClipError("E_ID", f"split {clip.split!r} must be letters, digits and _")
    if len(same_id) > 1:
        places = ", ".join(sorted(str(other.media) for other in same_id))
        raise ClipError("E_DUP", f"clip id {name!r} stands for {len(same_id)} files: {places}")
    for column, label in clip.labels.items():
        if label not in classes and (label or clip.split in LABELLED_SPLITS):
            raise ClipError("E_LABELS", f"{column} {label!r} is not one of {' '.join(classes)}")
