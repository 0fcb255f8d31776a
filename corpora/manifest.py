"""The contract between raw corpora and everything else: what a clip is, and when one is usable."""

from __future__ import annotations

import filecmp
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.errors import ClipError, UsageError, counted, is_one_line, listed
from utils.files import MAX_ID_BYTES

DEVICES = {"con", "prn", "aux", "nul"}  # what Windows takes for something else than a file
DEVICES |= {f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)}
SPLITS = {  # what people call them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LABELS = ("emotion", "speech_emotion", "face_emotion")  # columns, as in Clip
LABELLED_SPLITS = ("train", "val")  # a clip here must carry its labels
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
# Codes of the classes that several corpora share, with the words that people write for them.
WORDS = {
    "hap": ("happy", "happiness", "joy", "joyful"),
    "ang": ("angry", "anger"),
    "dis": ("disgust", "disgusted"),
    "fea": ("fear", "fearful", "afraid", "scared"),
    "sad": ("sad", "sadness"),
    "neu": ("neutral", "neutrality"),
    "sur": ("surprise", "surprised"),
    "cal": ("calm",),
    "con": ("contempt",),
}
CODE_OF = {word: code for code, words in WORDS.items() for word in (code, *words)}
OTHER_MACHINE = "a path of another machine: write it from {} on, such as a/clip.mp4"


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
    places: dict[tuple[str, Path], str] = field(default_factory=dict)  # clip id, media -> its lines
    word_dim: int | None = None  # width of the word vectors where the corpus fixes it
    notes: list[str] = field(default_factory=list)  # what was left out on purpose
    noted: list[Path] = field(default_factory=list)  # the files that the notes are about
    folders: list[Path] = field(default_factory=list)  # that are read; none: the whole data folder
    warnings: list[str] = field(default_factory=list)


def check_listing(listing: Listing) -> Listing:
    """Move every clip whose name, split, labels or place is unusable from clips to failures.

    Labels become names of classes where they mean one; equal copies of a clip count once.
    UsageError for a class that no terminal can show.
    """
    classes = listing.classes
    for name in classes:
        if not is_one_line(name):
            raise UsageError(f"the class {name!r} holds signs that no terminal shows: rename it")
    listing.clips = without_copies(listing)
    listing.clips = [
        _with_labels(clip, lambda label: as_class(label, classes)) for clip in listing.clips
    ]
    clips_of = defaultdict(list)  # names that look the same are the same to some file systems
    for clip in listing.clips:
        clips_of[clip.split, unicodedata.normalize("NFC", clip.clip_id)].append(clip)
    usable, failures = [], list(listing.failures)
    unknown: Counter[str] = Counter()
    for clip in listing.clips:
        same_id = clips_of[clip.split, unicodedata.normalize("NFC", clip.clip_id)]
        try:
            _check_clip(clip, classes, same_id)
            usable.append(clip)
        except ClipError as error:
            failures.append(Failure(clip.clip_id, clip.media, "list", error.code, error.reason))
            if error.code == "E_LABELS":
                unknown[next(each for each in clip.labels.values() if each not in classes)] += 1
    if unknown:
        counts = listed((f"{name or 'none'} {count}" for name, count in unknown.most_common()), 10)
        listing.warnings.append(
            f"rejected for its label: {counted(unknown.total(), 'clip')} ({counts}); the classes "
            f"are {listed(classes, 30)}; your own go into classes.txt beside manifest.csv, one a "
            "line"
        )
    usable.sort(key=lambda clip: (clip.split, clip.clip_id))
    listing.clips, listing.failures = usable, failures
    return listing


def _with_labels(clip: Clip, rename: Callable[[str], str]) -> Clip:
    labels: Any = {column: rename(label) for column, label in clip.labels.items()}
    return replace(clip, **labels)


def as_class(label: str, classes: tuple[str, ...]) -> str:
    """The class that a label means: by its name, its name in other letters (Sad), or a plain word
    (sadness); the label itself where that is none or not the only one."""
    if label in classes:
        return label
    word = label.casefold()
    same = [name for name in classes if name.casefold() == word]
    code = CODE_OF.get(word)
    same = same or [name for name in classes if code and CODE_OF.get(name.casefold()) == code]
    return same[0] if len(same) == 1 else label


def without_copies(listing: Listing) -> list[Clip]:
    """The clips, of files of one name and the same bytes only the first (some archives hold a
    corpus twice); a note says how many are left out."""
    files: dict[Clip, list[Path]] = defaultdict(list)
    kept, copies = [], []
    rows = list(dict.fromkeys(listing.clips))
    if twice := len(listing.clips) - len(rows):
        listing.notes.append(f"rows that stand there twice: {twice}")
    for clip in rows:
        known = files[replace(clip, media=Path(), words=None)]
        if any(_is_copy(clip.media, file) for file in known):
            copies.append(clip.media)
        else:
            kept.append(clip)
            known.append(clip.media)
    if copies:
        listing.notes.append(f"copies of other files: {len(copies)}, such as {copies[0]}")
        listing.noted += copies
    return kept


def _is_copy(file: Path, other: Path) -> bool:
    if file == other:  # a row that is there twice
        return False
    try:
        return file.stat().st_size > 0 and filecmp.cmp(file, other, shallow=False)
    except OSError:  # the stages say why it cannot be read
        return False


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
    if not clip.split:
        raise ClipError("E_ID", "no split: write train, val or test")
    if not SPLIT_NAME.fullmatch(clip.split):
        raise ClipError("E_ID", f"split {clip.split!r} must be letters, digits and _")
    if len(same_id) > 1:
        raise ClipError("E_DUP", f"clip id {name!r} {_why_twice(same_id)}")
    for column, label in clip.labels.items():
        if label not in classes and (label or clip.split in LABELLED_SPLITS):
            reason = f"{column} {label!r} is not one of {listed(classes, 30)}"
            raise ClipError("E_LABELS", reason)


def _why_twice(same_id: list[Clip]) -> str:
    files = sorted({str(clip.media) for clip in same_id})
    if len(files) == 1:
        return f"is listed {len(same_id)} times: {files[0]}"
    return f"stands for {len(files)} files: {listed(files, 3)}; tell them apart by a column clip_id"


def similar_speakers(clips: list[Clip]) -> list[str]:
    """A warning for people of nearly one name: as two they can stand on both sides of a split."""
    names = sorted({clip.speaker for clip in clips})
    return [
        f"warning: the speakers {' and '.join(map(ascii, group))} count as different people"
        for group in alike(names, lambda n: unicodedata.normalize("NFKC", n).casefold().strip())
    ]


def colliding_names(clips: list[Clip]) -> list[str]:
    """A warning for each group of ids that other systems take for the same file name."""

    def seen_elsewhere(clip: Clip) -> tuple[str, str]:
        return clip.split, unicodedata.normalize("NFC", clip.clip_id).casefold()

    return [
        f"warning: clips {', '.join(ascii(clip.clip_id) for clip in group)} have names that are "
        "one file where capitals or Unicode forms do not count: do not copy features/ there"
        for group in alike(clips, seen_elsewhere)
    ]


def alike(items: Iterable, form: Callable) -> list[list]:
    """Groups of two or more items that have one form."""
    groups = defaultdict(list)
    for item in items:
        groups[form(item)].append(item)
    return [group for group in groups.values() if len(group) > 1]


def keep_inside(listing: Listing, data_dir: Path) -> Listing:
    """Move every clip whose media or words lie elsewhere, behind their links, to failures.

    UsageError for a submission sheet that does: it would be copied into the features.
    """
    root, inside = data_dir.resolve(), []
    for sheet in listing.sheets:
        if not Path(os.path.realpath(sheet)).is_relative_to(root):
            where = f"leaves the data folder {data_dir}"
            raise UsageError(f"{sheet} {where}: copy it, or --follow_links")
    for clip in listing.clips:
        paths = [path for path in (clip.media, clip.words) if path]
        # realpath: unlike Path.resolve it takes a link that leads to itself
        outside = [path for path in paths if not Path(os.path.realpath(path)).is_relative_to(root)]
        if outside:
            reason = f"{outside[0]} leaves the data folder {data_dir}: copy it, or --follow_links"
            if not os.path.lexists(outside[0]):
                reason = f"no {outside[0]}, {OTHER_MACHINE.format(data_dir)}"
            listing.failures.append(Failure(clip.clip_id, clip.media, "list", "E_ID", reason))
        else:
            inside.append(clip)
    listing.clips = inside
    return listing


def keep_classes(listing: Listing, wanted: str) -> Listing:
    """Only these classes, in this order: `hap,sad,neu+cal` counts `cal` as `neu`.

    Clips with another label are left out, and a note says how many of which class.
    """
    groups = [
        [as_class(name.strip(), listing.classes) for name in item.split("+")]
        for item in wanted.split(",")
    ]
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
            listing.noted.append(clip.media)
        else:
            kept.append(_with_labels(clip, renamed.__getitem__))
    if left_out:
        counts = ", ".join(f"{name} {count}" for name, count in left_out.items())
        listing.notes.append(f"{counted(left_out.total(), 'clip')} of other classes ({counts})")
    listing.clips, listing.classes = kept, tuple(group[0] for group in groups)
    return listing
