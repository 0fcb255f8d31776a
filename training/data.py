"""Features -> batches of tensors. Order and augmentation follow from seed, epoch and clip."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler, default_collate

from models.classifier import Inputs
from training.augment import AUGMENTATIONS
from training.features import Features, lacks
from training.loader import Loader
from training.modalities import Shape, modality
from training.randomness import clip_number, generator
from training.standardize import Scales, speaker_scales
from training.stopping import STOPS
from training.tasks import Task
from training.views import Arrays
from utils.distributed import SINGLE_PROCESS, SingleProcess
from utils.errors import UsageError, in_short
from utils.parallel import end_with_parent


def training_rows(
    features: Features, fold: str | None, val_fold: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows to train on and to validate on: the splits train and val, or their folds but one.

    With `val_fold` (a name, or `next`: the one after `fold`) that fold validates, and `fold` stays
    unseen: for choices that a test on `fold` must not know of.
    """
    known = features.folds()
    if fold is None:
        hint = f" and the folds {', '.join(known)}: try --fold" if known else ""
        train, val = (features.rows(split, hint) for split in ("train", "val"))
        return in_order(train), in_order(val)
    table = features.manifest[features.manifest["split"].isin(("train", "val"))]
    if without := int((table["fold"] == "").sum()):
        print(f"{without} clips without a fold are left out", file=sys.stderr)
    if val_fold == "next" and fold in known:
        val_fold = known[(known.index(fold) + 1) % len(known)]
    check_folds(known, fold, val_fold, features.folder / "manifest.csv")
    held_out = [fold] if val_fold is None else [fold, val_fold]
    table = table[table["fold"] != ""]
    validation = table[table["fold"] == held_out[-1]]
    return in_order(table[~table["fold"].isin(held_out)]), in_order(validation)


def check_folds(known: list[str], fold: str, val_fold: str | None, manifest: Path) -> None:
    """UsageError unless both folds are there, differ, and leave a fold to train on."""
    wanted = [fold] if val_fold is None else [fold, val_fold]
    asked = f"--fold {fold}" if val_fold is None else f"--fold {fold} --val_fold {val_fold}"
    remedy = "no folds; preprocess.py makes them where each clip has a speaker"
    have = f"the folds {', '.join(known)}" if known else remedy
    if fold == val_fold:
        raise UsageError(f"{asked}: {manifest} has {have}; they must differ")
    if any(name not in known for name in wanted):
        raise UsageError(f"{asked}: {manifest} has {have}")
    if len(known) <= len(wanted):
        raise UsageError(f"{asked}: {manifest} has {have}; one more is needed to train on")


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """By split and id, whatever the order of the listing: batches follow from it."""
    return rows.sort_values(["split", "clip_id"]).reset_index(drop=True)


class ClipDataset(Dataset):
    """Item (epoch, index) -> inputs, label indices per head (-1: unknown) and the clip's id; in
    training also what is `drawn` for the device to change them by.

    Where some clips lack an input also which ones do (`absent`). Another clip's stands there, so
    that batch norm sees real features, and the clip has no label for heads that see nothing else.
    An input that no clip has is in no item.
    """

    def __init__(
        self,
        features: Features,
        rows: pd.DataFrame,
        task: Task,
        config: dict[str, Any],
        training: bool,
        scales: Scales | None = None,
    ):
        """`scales`: of the speakers, for --standardize speaker; default: of the manifest's."""
        self.features, self.task, self.config = features, task, config
        self.training, self.augment = training, training and config["augment"]
        self.rows: list[dict[str, Any]] = rows.to_dict("records")
        self.scales = scales or {}
        if scales is None and config["standardize"] == "speaker":
            self.scales = speaker_scales(features, rows, task.inputs)
        self.donors = {
            name: [row for row in self.rows if not lacks(row, name)] for name in task.inputs
        }
        self.is_partial = any(len(each) < len(self.rows) for each in self.donors.values())
        kinds = {name: modality(name).augmentation for name in task.inputs}
        self.augmentations = {
            name: AUGMENTATIONS[kind] for name, kind in kinds.items() if kind and self.augment
        }
        number = {name: index for index, name in enumerate(features.classes)}
        self.labels = [
            {head: number.get(row[column], -1) for head, column in task.label_columns.items()}
            for row in self.rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        row, names = self.rows[index], [name for name, rows in self.donors.items() if rows]
        rng = generator(self.config["seed"], "clip", epoch, clip_number(row))
        try:
            arrays = {name: self.view(self.donor(index, name), name, rng) for name in names}
        except Exception as error:
            error.add_note(f"in clip {row['split']}/{row['clip_id']} of {self.features.folder}")
            raise
        inputs = {name: tuple(map(torch.from_numpy, each)) for name, each in arrays.items()}
        item = {"inputs": inputs, "labels": self.labels[index], "clip_id": row["clip_id"]}
        if self.augment:
            item["drawn"] = {
                name: augmentation.draw(arrays[name], self.config, rng)
                for name, augmentation in self.augmentations.items()
            }
        if self.is_partial:
            absent = {name: lacks(row, name) for name in names}
            seen = {head: inputs for head, (inputs, _) in self.task.heads.items()}
            blind = [
                head
                for head, inputs in seen.items()
                if all(absent.get(name, True) for name in inputs)
            ]
            item |= {"absent": absent, "labels": item["labels"] | dict.fromkeys(blind, -1)}
        return item

    def donor(self, index: int, name: str) -> dict[str, Any]:
        """The clip itself, or the one whose input stands in where it has none."""
        row, having = self.rows[index], self.donors[name]
        return having[index % len(having)] if lacks(row, name) else row

    def view(self, row: dict, name: str, rng: np.random.Generator) -> Arrays:
        feature = self.features.load(row, name)
        if name in self.scales:
            feature = self.scales[name][row["speaker"]].apply(feature)
        return modality(name).view(feature, row, self.config, rng, self.augment)

    def shapes(self) -> dict[str, Shape]:
        """{input: the shape of the first clip's feature}."""
        return {name: self.features.shape(rows[0], name) for name, rows in self.donors.items()}


class EpochBatches(Sampler):
    """Batches of (epoch, index): shuffled by (seed, epoch), or in order for evaluation.

    Of several processes each trains on its share of every batch, all shares equal, and evaluates
    its share of the batches. In training all batches have one size, up to `batch_size`, because a
    GPU looks for the quickest way to compute each new size, for seconds: the size that leaves the
    fewest clips out, in each epoch others.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int | None, dist: SingleProcess = SINGLE_PROCESS
    ):
        self.size, self.seed = size, seed
        self.rank, self.world = dist.rank, dist.world
        self.clips, self.count = batch_size, -(-size // batch_size)  # of a batch, and batches
        if seed is not None:
            self.clips, self.count = equal_batches(size, batch_size, least=2 * self.world)
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """The epoch to draw, and how many of its batches were already done."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        if self.seed is None:
            return len(range(self.rank, self.count, self.world))
        return self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = generator(self.seed, "order", self.epoch).permutation(self.size)
        batches = [order[at * self.clips : (at + 1) * self.clips] for at in range(self.count)]
        if self.seed is None:
            share = batches[self.rank :: self.world]
        else:
            shared = self.clips // self.world * self.world
            share = [batch[self.rank : shared : self.world] for batch in batches]
        for indices in share[self.first :]:
            yield [(self.epoch, int(index)) for index in indices]


def equal_batches(size: int, batch_size: int, least: int) -> tuple[int, int]:
    """How many clips a batch has, and how many batches there are: of at least `least` clips where
    it can be, for batch norm has no statistics of one."""
    counts = [max(1, size // batch_size), -(-size // batch_size)]
    ways = [(min(batch_size, size // count), count) for count in counts]
    enough = [way for way in ways if way[0] >= least] or ways
    return max(enough, key=lambda way: (way[0] * way[1], way[0]))


def make_loader(
    dataset: ClipDataset,
    batch_size: int,
    workers: int,
    device: str,
    dist: SingleProcess = SINGLE_PROCESS,
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
    """Items of a dataset -> a batch. Modalities whose clips differ in length are padded to the
    batch's longest one: what every clip masks only costs time."""
    batch = default_collate([{k: v for k, v in item.items() if k != "inputs"} for item in items])
    batch["inputs"] = {}
    for name in items[0]["inputs"]:
        columns = zip(*(item["inputs"][name] for item in items), strict=True)
        if modality(name).pads:
            batch["inputs"][name] = [pad_sequence(each, batch_first=True) for each in columns]
        else:
            # unlike torch.stack it writes into shared memory at once in a loading process
            batch["inputs"][name] = [default_collate(list(each)) for each in columns]
    return batch


def _start_worker(worker: int) -> None:
    """A stop asked of the whole process group is the training's to act on, not the loaders'; they
    end with it, however it ends."""
    import cv2

    cv2.setNumThreads(0)
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    end_with_parent()
    # the method of the standard library tells it, and goes on without the batch
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_give_up))  # noqa: B010


def _give_up(error: Exception, batch: Any) -> None:
    """A batch that cannot be handed over ends its worker: else the training waits for ever."""
    try:
        told = f"a process that reads clips cannot hand them over: {in_short(error)}"
        print(told, file=sys.stderr, flush=True)
    finally:  # what has no room for a batch may have none for a line
        os._exit(1)


def on_device(batches: Iterable[dict[str, Any]], device: str) -> Iterator[tuple[dict, Inputs]]:
    """Each batch, and its inputs on the device; a GPU gets the next ones while it computes."""
    if not device.startswith("cuda"):
        for batch in batches:
            yield batch, to_device(batch["inputs"], device)
        return
    copies = torch.cuda.Stream(device)
    before: tuple | None = None

    def arrived(batch: dict, inputs: dict[str, list[Tensor]], event: Any) -> tuple[dict, Inputs]:
        now = torch.cuda.current_stream(device)
        now.wait_event(event)
        for tensor in (each for tensors in inputs.values() for each in tensors):
            tensor.record_stream(now)  # its memory is not free before `now` is done with it
        return batch, to_device(inputs, device)

    for batch in batches:
        with torch.cuda.stream(copies):
            inputs = {
                name: [each.to(device, non_blocking=True) for each in tensors]
                for name, tensors in batch["inputs"].items()
            }
            event = copies.record_event()
        if before:
            yield arrived(*before)
        before = batch, inputs, event
    if before:
        yield arrived(*before)


def to_device(inputs: dict[str, list[Tensor]], device: str) -> Inputs:
    """Model inputs on the device; pictures travel as bytes and become floats in [0, 1] there."""

    def convert(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor

    return {name: tuple(map(convert, tensors)) for name, tensors in inputs.items()}
