"""features/ -> batches of tensors. Order and augmentation follow from seed, epoch and clip."""

from __future__ import annotations

import io
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler, default_collate
from tqdm import tqdm

from training.loader import Loader
from training.stopping import STOPS
from training.tasks import FOLDERS, Task
from training.transforms import face_view, feature_view, speech_view, text_view
from utils.distributed import ALONE, Alone
from utils.errors import IntegrityError, UsageError
from utils.files import has_sha256, read_json, read_known
from utils.parallel import available_cores, end_with_parent

CHECKING = {"file": sys.stderr, "unit": "clip", "leave": False, "delay": 2}
COLUMNS = ("clip_id", "split", "emotion", "speech_emotion", "face_emotion", "fold")
ENDINGS = {"text": ".npz"}  # the others are .npy


@dataclass(frozen=True)
class Features:
    """What preprocess.py left in a folder: settings and one manifest row per usable clip."""

    folder: Path
    settings: dict
    manifest: pd.DataFrame

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Read settings.json and manifest.csv; UsageError when preprocess.py has not run."""
        folder = Path(folder)
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            raise UsageError(f"no {manifest}: run preprocess.py first, or give --features_dir")
        settings = read_json(folder / "settings.json")
        wanted = {"classes": list, "modalities": list, "features": dict}
        values = settings if isinstance(settings, dict) else {}
        lacking = [name for name, kind in wanted.items() if not isinstance(values.get(name), kind)]
        if lacking:
            reason = f"{folder / 'settings.json'} lacks {', '.join(lacking)}"
            raise UsageError(f"{reason}: run preprocess.py again")
        try:
            table = pd.read_csv(manifest, dtype=str, keep_default_na=False, index_col=False)
        except (ValueError, OSError) as error:
            raise UsageError(f"cannot read {manifest}: {error}; run preprocess.py again") from error
        lacking = [name for name in COLUMNS if name not in table]
        if lacking or table.duplicated(["split", "clip_id"]).any():
            reason = f"lacks {', '.join(lacking)}" if lacking else "lists a clip twice"
            raise UsageError(f"{manifest} {reason}: run preprocess.py again")
        return cls(folder, settings, table)

    @property
    def classes(self) -> list[str]:
        return self.settings["classes"]

    def config_for(self, inputs: tuple[str, ...]) -> dict:
        """The extraction settings behind these inputs: a checkpoint works on no others."""
        made = self.settings["features"]
        return {folder_of(name): made.get(folder_of(name)) for name in inputs}

    def require(self, inputs: tuple[str, ...]) -> None:
        """UsageError when these features lack a modality that a model reads."""
        for name in inputs:
            folder = folder_of(name)
            made = self.settings["modalities"]
            if folder not in made and (name in FOLDERS or not any(self.folder.glob(f"*/{name}"))):
                own = {path.name for path in self.folder.glob("*/*") if path.is_dir()} - {"records"}
                have = ", ".join([*made, *sorted(own - {*made})])
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

    def folds(self) -> list[str]:
        """Names of the folds among the clips of train and val."""
        rows = self.manifest[self.manifest["split"].isin(("train", "val"))]
        return sorted(set(rows["fold"]) - {""})

    def path(self, row: dict, modality: str) -> Path:
        name = f"{row['clip_id']}{ENDINGS.get(modality, '.npy')}"
        return self.folder.joinpath(row["split"], folder_of(modality), name)

    def record(self, row: dict) -> Path:
        """What preprocess.py says of the clip; own features and made ones may have none."""
        return self.folder / row["split"] / "records" / f"{row['clip_id']}.json"

    def stages(self, row: dict) -> dict[str, Any]:
        """{stage: what its file was made from, and its sha256}, as far as there is a record."""
        return read_known(self.record(row)).get("stages", {})

    def load(self, row: dict, modality: str) -> np.ndarray:
        """A clip's feature; IntegrityError names the file when it is missing or damaged."""
        path = self.path(row, modality)
        try:
            if modality == "text":
                # read at once: zipfile reads from the disk in small pieces
                with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                    return archive["word_embed"]
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            reason = f"{path} is missing or damaged ({error})"
            made = modality in FOLDERS or modality == "video_embedding"
            maker = "delete it and run preprocess.py again" if made else "make it again"
            raise IntegrityError(f"{reason}; {maker}") from error


def folder_of(modality: str) -> str:
    return FOLDERS.get(modality, modality)


def training_rows(
    features: Features, fold: str | None, val_fold: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows to train on and to validate on: the splits train and val, or their folds but one.

    With `val_fold` (a name, or `next`: the one after `fold`) that fold validates, and `fold` stays
    unseen: for choices that a test on `fold` must not know of.
    """
    if fold is None:
        folds = ", ".join(features.folds())
        hint = f" and the folds {folds}: try --fold" if folds else ""
        return tuple(in_order(features.rows(split, hint)) for split in ("train", "val"))
    table = features.manifest[features.manifest["split"].isin(("train", "val"))]
    if without := int((table["fold"] == "").sum()):
        print(f"{without} clips without a fold are left out", file=sys.stderr)
    table, known = table[table["fold"] != ""], features.folds()
    if val_fold == "next" and fold in known:
        val_fold = known[(known.index(fold) + 1) % len(known)]
    for name in (fold, val_fold or fold):
        if name not in known or len(known) < 2 + (val_fold is not None) or fold == val_fold:
            have = f"the folds {', '.join(known)}" if known else "no folds"
            asked = f"--fold {fold}{f' --val_fold {val_fold}' * bool(val_fold)}"
            needed = "; a third is needed to train on" * (sorted((fold, val_fold or fold)) == known)
            needed = "; they must differ" if fold == val_fold else needed
            raise UsageError(f"{asked}: the manifest has {have}{needed}")
    training = table[~table["fold"].isin((fold, val_fold))]
    held_out = table[table["fold"] == (val_fold or fold)]
    return in_order(training), in_order(held_out)


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """By split and id, whatever the order of the listing: batches follow from it."""
    return rows.sort_values(["split", "clip_id"]).reset_index(drop=True)


class ClipDataset(Dataset):
    """Item (epoch, index) -> inputs, label indices per head (-1: unknown) and the clip's id."""

    def __init__(
        self,
        features: Features,
        rows: pd.DataFrame,
        task: Task,
        config: dict,
        training: bool,
    ):
        self.features, self.task, self.config = features, task, config
        self.training, self.augment = training, training and config["augment"]
        self.rows = rows.to_dict("records")
        number = {name: index for index, name in enumerate(features.classes)}
        self.labels = [
            {head: number.get(row[column], -1) for head, column in task.label_columns.items()}
            for row in self.rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        row = self.rows[index]
        name = zlib.crc32(f"{row['split']}/{row['clip_id']}".encode())
        rng = np.random.default_rng([self.config["seed"], epoch, name])
        try:
            inputs = {modality: self.view(row, modality, rng) for modality in self.task.inputs}
        except Exception as error:
            error.add_note(f"in clip {row['split']}/{row['clip_id']} of {self.features.folder}")
            raise
        return {"inputs": inputs, "labels": self.labels[index], "clip_id": row["clip_id"]}

    def view(self, row: dict, modality: str, rng: np.random.Generator) -> tuple[Tensor, ...]:
        feature = self.features.load(row, modality)
        if modality == "speech":
            view = speech_view(feature, self.config["speech_frames"], rng, self.augment)
            return (torch.from_numpy(view),)
        if modality == "face":
            valid = self.faces(row)
            view = face_view(feature, valid, self.config["face_frames"], rng, self.augment)
            return (torch.from_numpy(view),)
        if modality == "text":
            words, mask = text_view(feature, self.config["max_words"])
            return torch.from_numpy(words), torch.from_numpy(mask)
        if modality == "video_embedding":
            feature = feature[self.faces(row)]
        view = feature_view(feature, self.config["feature_frames"], rng, self.augment)
        return (torch.from_numpy(view),)

    def faces(self, row: dict) -> np.ndarray:
        """(T,) which of the clip's frames show a face; IntegrityError when none does."""
        flags = row.get("face_valid", "")
        valid = np.array([flag == "1" for flag in flags], bool)
        if not valid.any():
            shown = f"face_valid {flags!r} of clip {row['clip_id']} has no frame to see"
            path = self.features.path(row, "face")
            raise IntegrityError(f"{shown}; delete {path} and run preprocess.py again")
        return valid

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{modality: the first clip's shape} of text and own features."""
        names = (name for name in self.task.inputs if name not in ("speech", "face"))
        return {name: self.features.load(self.rows[0], name).shape for name in names}

    def check_files(self, dist: Alone = ALONE) -> None:
        """IntegrityError that names what is missing, changed or does not fit, before any step.

        Of several processes each compares its share of the files with the digests.
        """
        paths = (self.features.path(row, name) for row in self.rows for name in self.task.inputs)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            maker = "run preprocess.py again, it makes only what is missing"
            if missing[0].parent.name not in FOLDERS.values():
                maker = "run again what made this feature of your own"
            listed = ", ".join(map(str, missing[:5])) + ", ..." * (len(missing) > 5)
            raise IntegrityError(f"{len(missing)} feature files are missing: {listed}; {maker}")
        for row in self.rows if "face" in self.task.inputs else ():
            self.faces(row)
        with ThreadPool(available_cores()) as pool:  # hashing leaves the interpreter free
            own = self.rows[dist.rank :: dist.world]
            found = tqdm(pool.imap(self._changed, own), "digests", len(own), **CHECKING)
            if changed := [path for path in found if path]:
                raise IntegrityError(
                    f"{len(changed)} feature files are not as preprocess.py wrote them, the first "
                    f"is {changed[0]}; preprocess.py --verify makes them anew"
                )
        for name, expected in self.shapes().items():
            for row in self.rows:
                self._check_shape(name, row, expected)

    def _changed(self, row: dict) -> Path | None:
        """A file of this clip that is not what its record says; made by others it has none."""
        record = self.features.record(row)
        if not record.is_file():
            self._check_layout(row)
            return None
        try:
            stages = read_json(record)["stages"]
            for name in self.task.inputs:
                path, stage = self.features.path(row, name), folder_of(name)
                made_here = name in FOLDERS or stage in stages
                if made_here and not has_sha256(path, stages[stage]["sha256"]):
                    return path
        except (UsageError, KeyError, TypeError):
            return record
        return None

    def _check_layout(self, row: dict) -> None:
        made = self.features.settings["features"]
        for name in {"speech", "face"}.intersection(self.task.inputs):
            feature = self.features.load(row, name)
            shape, kind = feature.shape, feature.dtype.kind
            if name == "speech":
                mels = made["speech"]["n_mels"]
                expected, fits = f"float ({mels}, T)", kind == "f" and shape[:-1] == (mels,)
            else:
                size, count = made["video"]["face_size"], len(row.get("face_valid", ""))
                wanted = (count, size, size, 3)
                expected, fits = f"uint8 {wanted}", feature.dtype == np.uint8 and shape == wanted
            if not fits or not feature.size:
                path = self.features.path(row, name)
                raise IntegrityError(f"{path}: {feature.dtype} {shape}, expected {expected}")

    def _check_shape(self, name: str, row: dict, expected: tuple[int, ...]) -> None:
        feature = self.features.load(row, name)
        path, shape = self.features.path(row, name), feature.shape
        if len(shape) not in (1, 2) or 0 in shape or feature.dtype.kind not in "fiu":
            found = f"{feature.dtype} {shape}"
            raise IntegrityError(f"{path}: expected numbers (D,) or (T, D), found {found}")
        if len(shape) != len(expected) or shape[-1] != expected[-1]:
            raise IntegrityError(f"{path}: shape {shape}, other clips have {expected}")
        if not np.isfinite(feature).all():
            raise IntegrityError(f"{path} holds values that are not numbers")


class EpochBatches(Sampler):
    """Batches of (epoch, index): shuffled by (seed, epoch), or in order for evaluation.

    Of several processes each trains on its share of every batch, all shares
    equal, and evaluates its share of the batches. A last batch with less than two clips for each
    process is left out of training: batch norm has no statistics of one.
    """

    def __init__(self, size: int, batch_size: int, seed: int | None, dist: Alone = ALONE):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world = dist.rank, dist.world
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """The epoch to draw, and how many of its batches were already done."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        if self.seed is None:
            return len(range(self.rank, full + (rest > 0), self.world))
        return full + (rest >= 2 * self.world or (full == 0 and rest > 0))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        batches = np.split(order, range(self.batch_size, self.size, self.batch_size))
        for indices in self._own(batches)[self.first :]:
            yield [(self.epoch, int(index)) for index in indices]

    def _own(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        if self.seed is None:
            return batches[self.rank :: self.world]
        ends = (len(batch) // self.world * self.world for batch in batches)
        own = slice(len(self))
        return [b[self.rank : end : self.world] for b, end in zip(batches, ends, strict=True)][own]


def make_loader(
    dataset: ClipDataset, batch_size: int, workers: int, device: str, dist: Alone = ALONE
) -> Loader:
    """Loader whose `batch_sampler` is an EpochBatches: shuffled for a training set."""
    seed = dataset.config["seed"] if dataset.training else None
    return Loader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, seed, dist),
        num_workers=workers,
        pin_memory=device.startswith("cuda"),
        persistent_workers=workers > 0,
        timeout=min(workers, 1),  # seconds after which the loader asks whether to stop
        worker_init_fn=_start_worker,
        collate_fn=collate,
    )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of a dataset -> a batch; words are padded to its longest text, not to `max_words`:
    what every clip masks only costs time."""
    texts = [item["inputs"].pop("text") for item in items if "text" in item["inputs"]]
    batch = default_collate(items)
    if texts:
        words_and_mask = zip(*texts, strict=True)
        batch["inputs"]["text"] = [pad_sequence(each, batch_first=True) for each in words_and_mask]
    return batch


def _start_worker(worker: int) -> None:
    """A stop asked of the whole process group is the training's to answer, not the loaders'; they
    end with it, however it ends."""
    import cv2

    cv2.setNumThreads(0)
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    end_with_parent()


def to_device(inputs: dict[str, list[Tensor]], device: str) -> dict[str, tuple[Tensor, ...]]:
    """Model inputs on the device; pictures travel as bytes and become floats in [0, 1] there."""

    def convert(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor

    return {name: tuple(map(convert, tensors)) for name, tensors in inputs.items()}
