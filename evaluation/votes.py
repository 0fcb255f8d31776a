"""Runs x clips x views of the face -> the vote of each run, in one pass over the features.

What several runs see alike is read and prepared once for all of them; what a view does not change
each run encodes once. One batch is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.ensemble import Member, check_finite, mean_over_views
from training.data import ClipDataset, collate, make_loader
from training.features import Features
from training.inference import Given, Views, encode_views, infer
from training.modalities import modality

COMMON = ("feature_frames", "standardize")  # settings of all custom features
Batch = list[Given | None]  # of all items; None: the batch has no clip that those runs can read


class SharedInputs(Dataset):
    """Item (epoch, index) -> a clip's items: each is one input as some runs see it, or None where
    these runs cannot read the clip.

    `of` tells for each member which item is which of its inputs.
    """

    training = False  # what `make_loader` asks: nothing is shuffled

    def __init__(
        self,
        members: Sequence[Member],
        clips_of: Sequence[Sequence[int]],
        rows: pd.DataFrame,
        features: Features,
        **changes: Any,
    ):
        """`clips_of`: the rows that each member reads. `changes`: of the members' settings."""
        self.rows: list[dict[str, Any]] = rows.to_dict("records")
        self.datasets: list[ClipDataset] = []
        self.places: list[dict[int, int]] = []  # row -> item of the dataset
        self.of: list[dict[str, int]] = []
        known: dict[str, int] = {}
        for member, clips in zip(members, clips_of, strict=True):
            config, table = member.config | changes, rows.iloc[clips]
            features.check_files(table.to_dict("records"), member.task.inputs)
            self.of.append({})
            for name in member.task.inputs:
                # runs share an input if they see it alike, and read the same clips
                key = repr((name, seen_by(config, name), list(clips)))
                if key not in known:
                    known[key] = len(self.datasets)
                    alone = replace(member.task, inputs=(name,), heads={})
                    self.datasets.append(
                        ClipDataset(features, table, alone, config, training=False)
                    )
                    self.places.append({row: item for item, row in enumerate(clips)})
                self.of[-1][name] = known[key]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any] | None]:
        epoch, index = key
        items = zip(self.datasets, self.places, strict=True)
        return [data[epoch, at[index]] if index in at else None for data, at in items]


def seen_by(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings that can change what a run sees of one input of a clip."""
    names = [key for key, setting in modality(name).settings.items() if setting.group == "data"]
    return {key: config.get(key) for key in (*names, *COMMON)}


def collate_shared(items: list[list[dict[str, Any] | None]]) -> list[dict[str, Any] | None]:
    """Items of `SharedInputs` -> a batch of each shared input, of the clips that have it."""
    columns = ([each for each in column if each is not None] for column in zip(*items, strict=True))
    return [collate(column) if column else None for column in columns]


def votes(
    members: Sequence[Member],
    shared: SharedInputs,
    device: str,
    views: Views,
    temperatures: Sequence[float],
    batch_size: int = 8,
    num_workers: int = 0,
) -> list[list[np.ndarray]]:
    """For each member, for each temperature (N, K) of its deciding head: the mean over the views
    of each clip that it reads. IntegrityError for what is not a number, or a damaged file."""
    loader = make_loader(shared, batch_size, num_workers, device)
    # that of `make_loader` is for the items of one data set
    loader.collate_fn = collate_shared

    def read(batch: Batch) -> list[list[Tensor]]:
        pairs = zip(members, shared.of, strict=True)
        return [logits_of(member, place_of, batch, views) for member, place_of in pairs]

    collected: list[list[list[np.ndarray]]] = [[[] for _ in temperatures] for _ in members]
    for _, logits in infer([member.model for member in members], loader, device, read):
        for of_member, each in zip(collected, logits, strict=True):
            if not each:  # this run reads no clip of the batch
                continue
            for scores, temperature in zip(of_member, temperatures, strict=True):
                scores.append(mean_over_views(each, temperature).cpu().numpy())
    joined = [[np.concatenate(scores) for scores in of_member] for of_member in collected]
    for member, of_member in zip(members, joined, strict=True):
        check_finite(member, of_member)
    return joined


def logits_of(member: Member, place_of: dict[str, int], batch: Batch, views: Views) -> list[Tensor]:
    """(B, K) under each view; none where the member reads no clip of these."""
    given = [each for place in place_of.values() if (each := batch[place]) is not None]
    if not given:
        return []
    # an input that this batch has no clip of is not there: the model does without, as it learnt
    inputs = {name: tensors for each, _ in given for name, tensors in each.items()}
    absent = {name: lacking for _, each in given for name, lacking in each.items()}
    tokens = encode_views(member.model, (inputs, absent), views)
    return [member.model.classify(each).logits[member.task.main_head] for each in tokens]
