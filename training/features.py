"""A folder that preprocess.py wrote -> its settings, its manifest, and one clip's arrays."""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from training.modalities import MODALITIES, SAME, Shape, modality
from utils.errors import IntegrityError, UsageError, in_short, is_one_line, listed
from utils.files import (
    DAMAGED,
    check_packing,
    digest,
    in_threads,
    map_array,
    open_manifest,
    read_array,
    read_json,
    read_stages,
    record_path,
    sha256,
)
from utils.parallel import available_cores

COLUMNS = ("clip_id", "split", "emotion", "speech_emotion", "face_emotion", "fold")
BAR = {"file": sys.stderr, "unit": "clip", "leave": False, "delay": 2}
NUMBERS = {"f": "float", "u": "uint8"}  # kinds of numpy's dtypes; others are any numbers
TABLES = ("settings.json", "manifest.csv")
MOST_BYTES = 64 << 20  # of the words of a clip
SMALL, MEMORY = 256 << 10, 128 << 20  # bytes of a feature that stays in memory, and of all that do
Stages = dict[str, dict[str, Any]]  # folder -> what preprocess.py says of its file
Stamp = tuple[int, int, int]  # of a file: which one it is, its size, and its time of change


class Kept(dict[Path, tuple[Stamp, np.ndarray]]):
    """Small features in memory: a clip's is opened and mapped once, not in each epoch."""

    held = 0  # bytes

    def keep(self, path: Path, version: Stamp, feature: np.ndarray) -> np.ndarray:
        """The feature; where there is room a copy of it, which stays."""
        old = self[path][1].nbytes if path in self else 0
        if feature.nbytes > SMALL or self.held - old + feature.nbytes > MEMORY:
            return feature
        feature = np.array(feature)
        feature.flags.writeable = False  # as those that are mapped
        self.held += feature.nbytes - old
        self[path] = version, feature
        return feature


@dataclass(frozen=True)
class Features:
    """Settings, one manifest row per usable clip, and the files.

    A file is compared with the digest in its clip's record when this process first reads it: so
    a start costs no look at the bytes, and nothing damaged is learnt from. Later reads see by size
    and time that it is still that file, `check_unchanged` that the tables are: a run knows one
    version of the features.
    """

    folder: Path
    settings: dict[str, Any]
    manifest: pd.DataFrame
    shapes: dict[str, Shape] = field(default_factory=dict)  # of a custom feature's first clip
    seen: dict[Path, Stamp] = field(default_factory=dict)  # files as they were at first sight
    checked: set[Path] = field(default_factory=set)  # those that fit the other clips' files
    records: dict[str, dict[str, Stages]] = field(default_factory=dict)  # of the splits in use
    kept: Kept = field(default_factory=Kept)

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Read settings.json and manifest.csv; UsageError when preprocess.py has not run."""
        folder = Path(folder)
        paths = [folder / name for name in TABLES]
        stamps = {path: stamp(path) for path in paths if path.exists()}
        table, settings = open_manifest(folder, COLUMNS), read_settings(folder)
        if "speaker" not in table:
            table["speaker"] = ""  # nobody knows
        return cls(folder, settings, table, seen=stamps)

    def check_unchanged(self) -> None:
        """IntegrityError when the tables are no longer those that were opened."""
        for path in (self.folder / name for name in TABLES):
            now = None
            with contextlib.suppress(OSError):
                now = stamp(path)
            if path in self.seen and self.seen[path] != now:
                raise IntegrityError(f"{path} was changed or removed meanwhile: start anew")

    @property
    def classes(self) -> list[str]:
        return self.settings["classes"]

    def config_for(self, inputs: tuple[str, ...]) -> dict[str, Any]:
        """The extraction settings behind these inputs: a checkpoint works on no others.

        Among them those of what an input follows: a face that was looked for while somebody spoke
        is another one than that of the whole clip.
        """
        made, folders = dict(self.settings["features"]), []
        for name in inputs:
            if name not in made and (about := self.about(name)):
                made[name] = about.get("encoder")
            folders.append(modality(name).folder)
            settings = made.get(name) or {}
            if "library" in settings:  # of a pretrained encoder: what it was shown
                shown = (modality(settings["input"]).folder, settings["reads"])
                folders += [folder for folder in shown if folder in made]
                name = settings["input"]
            while name := modality(name).follows:
                if modality(name).folder in self.settings["modalities"]:
                    folders.append(modality(name).folder)
        return {folder: made.get(folder) for folder in folders}

    def about(self, name: str) -> dict[str, Any]:
        """What <name>.json says of a custom feature: which clips its maker has learnt from, and
        which encoder makes it of a new clip. Empty where there is none; UsageError or
        IntegrityError for one that says nothing, as a link to no file does."""
        path = self.folder / f"{name}.json"
        if name in MODALITIES or not (path.exists() or path.is_symlink()):
            return {}
        about = read_json(path)
        encoder = about.get("encoder", {}) if isinstance(about, dict) else None
        if not _is_known(encoder) or "learnt_without_fold" not in about:
            raise IntegrityError(
                f"{path} does not say what {name} was learnt from: make the feature anew, or "
                "delete that file where no labels were used"
            )
        return about

    def require(self, inputs: tuple[str, ...]) -> None:
        """UsageError when these features lack a modality that a model reads."""
        made = self.settings["modalities"]
        for name in inputs:
            folder = modality(name).folder
            custom = name not in MODALITIES and any(self.folder.glob(f"*/{name}"))
            if folder not in made and not custom:
                there = {path.name for path in self.folder.glob("*/*") if path.is_dir()}
                have = ", ".join([*made, *sorted(there - {*made} - {"records"})])
                raise UsageError(f"{self.folder} holds {have}, but {name} is needed too")

    def rows(self, split: str, hint: str = "") -> pd.DataFrame:
        """Manifest rows of a split; UsageError lists the splits when there are none, and a hint."""
        rows = self.manifest[self.manifest["split"] == split].reset_index(drop=True)
        if rows.empty:
            have = dict(Counter(self.manifest["split"])) or "no clips at all"
            raise UsageError(
                f"{self.folder} has no usable clip in split {split!r}; it has {have}{hint}"
            )
        return rows

    def having(self, rows: pd.DataFrame, inputs: tuple[str, ...], some: bool) -> pd.DataFrame:
        """The rows with all of the inputs, or with `some` of them."""
        if "missing" not in rows or rows.empty:
            return rows
        lacking = [sum(lacks(row, name) for name in inputs) for row in rows.to_dict("records")]
        return rows[[count <= (len(inputs) - 1 if some else 0) for count in lacking]]

    def folds(self) -> list[str]:
        """Names of the folds among the clips of train and val."""
        rows = self.manifest[self.manifest["split"].isin(("train", "val"))]
        return sorted(set(rows["fold"]) - {""})

    def path(self, row: dict, name: str) -> Path:
        kind = modality(name)
        return self.folder / row["split"] / kind.folder / f"{row['clip_id']}{kind.ending}"

    def record(self, row: dict) -> Stages | None:
        """What preprocess.py says of a clip's files; None where it says nothing, as of features
        that another tool made.

        Records are read once, all of a split together: no training opens those of a test split.
        A damaged record counts as none of its clip's files being as they were written.
        """
        split = row["split"]
        if split not in self.records:
            by_clip: dict[str, Stages] = {}
            clips = self.manifest["clip_id"][self.manifest["split"] == split]
            for clip_id in tqdm(clips, f"records of {split}", **BAR):
                stages = read_stages(record_path(self.folder, split, clip_id))
                if stages is not None:
                    by_clip[clip_id] = stages
            self.records[split] = by_clip  # when it is whole: `verify` reads in several threads
        return self.records[split].get(row["clip_id"])

    def digest_of(self, row: dict, name: str) -> str:
        """Tells a clip's file from another one: the sha256 in its record, else of what `ends`
        reads."""
        if lacks(row, name):
            return ""
        stage = (self.record(row) or {}).get(modality(name).folder, {})
        if "sha256" in stage:
            return stage["sha256"]
        path = self.path(row, name)
        self.recognize(row, name)
        return digest(ends(path))

    def load(self, row: dict, name: str) -> np.ndarray:
        """A clip's feature; IntegrityError names the file when it is missing, damaged or does not
        fit."""
        path = self.path(row, name)
        try:
            self.recognize(row, name)
            version, known = self.kept.get(path, (None, None))
            if known is not None and version == self.seen[path]:
                return known
            feature = in_threads(read_feature, path)
        except DAMAGED as error:
            made = modality(name).made_by_preprocess
            maker = "preprocess.py --verify makes it anew" if made else "make it again"
            raise IntegrityError(
                f"{path} is missing or damaged ({in_short(error)}); {maker}"
            ) from error
        if path not in self.checked:
            self.check_layout(row, name, feature)
            self.checked.add(path)
        if self.manifest.empty:  # of an upload nothing stays
            return feature
        return self.kept.keep(path, self.seen[path], feature)

    def recognize(self, row: dict, name: str) -> None:
        """Compare a clip's file with its record, unless this process has done so already."""
        path = self.path(row, name)
        now = stamp(path)
        if self.seen.get(path) != now:
            self.check_digest(row, name)
            self.seen[path] = now

    def check_digest(self, row: dict, name: str) -> None:
        """IntegrityError for a file that is not as its clip's record says."""
        path = self.path(row, name)
        if not self.has_digest(row, name):
            if path in self.seen:
                what = "put back what was there and --resume, or start anew"
                raise IntegrityError(f"{path} was changed meanwhile: {what}")
            return
        stage = (self.record(row) or {}).get(modality(name).folder)
        if not isinstance(stage, dict) or stage.get("sha256") != sha256(path):
            raise IntegrityError(
                f"{path} is not as preprocess.py wrote it; preprocess.py --verify makes it anew"
            )

    def has_digest(self, row: dict, name: str) -> bool:
        """Whether a clip's record tells what its file was, or must do so; else nobody does."""
        record, kind = self.record(row), modality(name)
        return record is not None and (kind.made_by_preprocess or kind.folder in record)

    def check_layout(self, row: dict, name: str, feature: np.ndarray) -> None:
        """IntegrityError for a feature of another type or shape than those of the other clips."""
        kind, shape = self.expected_layout(row, name, feature)
        pairs = zip(feature.shape, shape, strict=False)
        fits = feature.dtype.kind in kind and feature.ndim == len(shape) and feature.size
        if not fits or any(size != wanted for size, wanted in pairs if wanted is not None):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            actual = f"{feature.dtype} {feature.shape}"
            expected = f"{NUMBERS.get(kind, 'numbers')} ({sizes})"
            raise IntegrityError(f"{self.path(row, name)}: {actual}, expected {expected}")
        if feature.dtype.kind == "f" and not np.isfinite(feature).all():
            raise IntegrityError(f"{self.path(row, name)} holds values that are not numbers")

    def expected_layout(self, row: dict, name: str, feature: np.ndarray) -> tuple[str, Shape]:
        """Kinds of numbers, and the shape; None for any size."""
        kind, first = modality(name), self.shapes.get(name)
        made = self.settings["features"].get(kind.folder)
        if kind.layout and made:
            try:
                kinds, shape = kind.layout(made, row)
            except KeyError as error:
                tables = self.folder / "settings.json"
                raise IntegrityError(
                    f"{tables} tells no {error} of {kind.folder}: run preprocess.py again"
                ) from error
        else:  # a custom feature: (D,), (T, D) or (layers, T, D)
            like = first or feature.shape[:3]
            kinds, shape = "fiu", (*like[:-2], *([None] if len(like) > 1 else []), SAME)
        width = first[-1] if first else None
        return kinds, tuple(width if size == SAME else size for size in shape)

    def shape(self, row: dict, name: str) -> Shape:
        """Of a clip's feature; from here on other clips must have as many values a row."""
        if name not in self.shapes:
            self.shapes[name] = self.load(row, name).shape
        return self.shapes[name]

    def check_files(self, rows: list[dict], inputs: tuple[str, ...]) -> None:
        """IntegrityError that lists feature files that are missing.

        Records, and files that no record tells of, are seen here for all processes that are
        started from now on: they read one version.
        """
        pairs = [(row, name) for row in rows for name in inputs if not lacks(row, name)]
        paths = [self.path(row, name) for row, name in pairs]
        there = {
            folder: {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            for folder in {path.parent for path in paths}
        }
        missing = [path for path in paths if path.name not in there[path.parent]]
        if missing:
            maker = "run preprocess.py again, it makes only what is missing"
            if missing[0].parent.name not in self.settings["modalities"]:
                maker = "run again what made this custom feature"
            what = f"{len(missing)} feature files are missing: {listed(missing)}"
            raise IntegrityError(f"{what}; {maker}")
        for path, pair in zip(paths, pairs, strict=True):
            if path not in self.seen and not self.has_digest(*pair):
                with contextlib.suppress(OSError):  # whoever reads it says what is wrong
                    self.seen[path] = stamp(path)

    def verify(self, rows: Iterable[dict], inputs: tuple[str, ...]) -> None:
        """Read every byte now; IntegrityError for the first file that is not as it was written."""
        rows = list(rows)
        for name in inputs:  # what the others are compared with
            self.shape(next(row for row in rows if not lacks(row, name)), name)

        def read(row: dict) -> None:
            for name in inputs:
                if not lacks(row, name):
                    self.load(row, name)

        with ThreadPool(available_cores()) as pool:  # hashing leaves the interpreter free
            for _ in tqdm(pool.imap(read, rows), "verifying", len(rows), **BAR):
                pass


def lacks(row: dict[str, Any], name: str) -> bool:
    """Whether a clip does without this input (preprocess.py --partial)."""
    return modality(name).folder in row.get("missing", "").split()


def comparable(features_config: dict[str, Any]) -> dict[str, Any]:
    """Extraction settings without the place that an encoder's weights came from: the digest of the
    weights tells whether they are others."""
    return {
        stage: {key: value for key, value in made.items() if key not in ("source", "revision")}
        if isinstance(made, dict)
        else made
        for stage, made in features_config.items()
    }


def read_settings(folder: Path) -> dict[str, Any]:
    """settings.json; UsageError when something that all commands need is not in it."""
    path = folder / "settings.json"
    settings = read_json(path)
    values = settings if isinstance(settings, dict) else {}
    wanted = {"classes": list, "modalities": list, "features": dict}
    lacking = [name for name, kind in wanted.items() if not isinstance(values.get(name), kind)]
    if lacking:
        raise UsageError(f"{path} lacks {', '.join(lacking)}: run preprocess.py again")
    for name in ("classes", "modalities"):
        if odd := [
            each for each in values[name] if not (isinstance(each, str) and is_one_line(each))
        ]:
            raise UsageError(f"{path}: {odd[0]!r} among its {name}: run preprocess.py again")
    if len({*values["classes"]}) < max(2, len(values["classes"])):
        raise UsageError(f"{path}: expected two or more different classes: run preprocess.py again")
    for name in sorted({*values["modalities"], *values["features"]}):
        if not _is_known(values["features"].get(name)):
            raise UsageError(f"{path} has no settings for {name}: run preprocess.py again")
    return values


def _is_known(made: Any) -> bool:
    """Whether settings of a feature tell, of a pretrained encoder, what it was shown."""
    shown = ("input", "reads") if isinstance(made, dict) and "library" in made else ()
    return isinstance(made, dict) and all(isinstance(made.get(each), str) for each in shown)


def read_feature(path: Path) -> np.ndarray:
    """Any of DAMAGED for a damaged file."""
    if path.suffix == ".npz":
        return read_words(path)
    return map_array(path)


def read_words(path: Path) -> np.ndarray:
    """The words (L, D) of an .npz; ValueError where it would unpack to more than words take."""
    # read at once: zipfile reads from the disk in small pieces
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        check_packing(archive.infolist())
        size = archive.getinfo("word_embed.npy").file_size
        if size > MOST_BYTES:
            raise ValueError(f"{size} bytes of words, at most {MOST_BYTES}")
        return read_array(archive, "word_embed")


def stamp(path: Path) -> Stamp:
    """Tells a file from another one. IntegrityError for a pipe: opening one would wait for ever."""
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise IntegrityError(f"{path} is no regular file")
    return status.st_ino, status.st_size, status.st_mtime_ns


def ends(path: Path, length: int = 4096) -> list[Any]:
    """A file's size, and its first and last bytes: a start reads no more of custom features."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(length)
        file.seek(max(0, size - length))
        return [size, first.hex(), file.read().hex()]
