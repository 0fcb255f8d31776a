"""Trained runs as an ensemble: load them, check that they fit, and the one rule of their votes.

Every run has one vote, whatever it reads and however it was trained: its probabilities, averaged
over test-time views; the folds of a --fold all share the vote of their run. The ensemble is the
mean of the votes. Evaluation, prediction and submission all go through `combine`.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.classifier import EmotionClassifier
from training.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    best_checkpoint,
    find_checkpoints,
    load_checkpoint,
    restore_model,
    weights_digest,
)
from training.data import ClipDataset
from training.features import Features, comparable
from training.inference import Views
from training.modalities import MODALITIES, modality
from training.tasks import Task, task_of
from utils.errors import IntegrityError, UsageError, listed, one_of

Votes = tuple[pd.Index, np.ndarray]  # clips (N,), and the probabilities (N, K) of one voter


@dataclass(frozen=True)
class Member:
    """One checkpoint: its file, what it holds, its model (on the CPU), and whose run it is."""

    path: Path
    checkpoint: Checkpoint
    model: EmotionClassifier
    run: Path

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint["config"]

    @property
    def task(self) -> Task:
        return task_of(self.config)

    @property
    def label(self) -> str:
        """The column of the manifest that its deciding head has learnt."""
        return self.task.label_columns[self.task.main_head]


def readable(member: Member, rows: pd.DataFrame, features: Features) -> pd.DataFrame:
    """The clips that have what the member reads: all of it, or some where it has learnt to do
    without the rest."""
    return features.having(rows, member.task.inputs, some=len(member.model.missing) > 0)


def combine(votes: Sequence[Votes]) -> Votes:
    """The mean vote for each clip, over those who vote on it."""
    # Voters may have different clips, as folds do: each clip is divided by its own voters.
    clips = np.concatenate([index for index, _ in votes])
    names, place = np.unique(clips, return_inverse=True)
    total = np.zeros((len(names), votes[0][1].shape[1]))
    np.add.at(total, place, np.concatenate([each for _, each in votes]))
    return pd.Index(names), total / np.bincount(place)[:, np.newaxis]


def combine_runs(members: Sequence[Member], votes: Sequence[Votes]) -> Votes:
    """The same of checkpoints: first those of one run, then the runs."""
    # In two steps, or a run of five folds would have five votes.
    runs: dict[Path, list[Votes]] = {}
    for member, each in zip(members, votes, strict=True):
        runs.setdefault(member.run, []).append(each)
    return combine([combine(each) for each in runs.values()])


def mean_over_views(views: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Logits (B, K) of each view -> (B, K): the mean of p ** temperature, each made to sum to 1.

    p ** t, renormalised, is softmax(t x logits). With t = 1 the result is a probability. The
    challenge's 0.1 flattens, so that the mean comes close to a geometric one: scores to rank
    classes by, no probabilities any more.
    """
    return torch.stack([(temperature * each.double()).softmax(dim=1) for each in views]).mean(dim=0)


def group_checkpoints(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """{run: its checkpoints}; folders fold_* in one place are one run, and each file of a folder
    of packed models (evaluation/pack.py) is one."""
    runs: dict[Path, list[Path]] = {}
    for path in each_model(paths):
        run = path.parent if path.name.startswith("fold_") else path
        runs.setdefault(run, []).extend(find_checkpoints([path]))
    return runs


def each_model(paths: Sequence[Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        named = {LAST, PREVIOUS}
        # A run's folder has a best checkpoint. One with other .pth files alone has packed models.
        packed = [
            file
            for file in sorted(path.glob("*.pth"))
            if file.name not in named and not BEST.fullmatch(file.name)
        ]
        yield from packed if packed and best_checkpoint(path) is None else [path]


def reading_settings(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, of how much of a clip is read -> {name: value}; UsageError for others."""
    known = {name: setting for row in MODALITIES.values() for name, setting in row.lengths.items()}
    settings = {}
    for setting in given:
        name, _, value = setting.partition("=")
        one_of("--setting", name, known)
        try:
            settings[name] = known[name].kind(value)
        except (ValueError, ArgumentTypeError) as error:
            raise UsageError(f"--setting {setting}: {error}") from error
    return settings


def load_members(
    paths: Sequence[Path], features: Features, settings: dict[str, Any] | None = None
) -> list[Member]:
    """Members for these features, in an order that their paths do not decide. `settings` stand in
    for those of the runs.

    IntegrityError for other classes or extraction settings, and for one checkpoint given twice.
    """
    members: dict[str, Member] = {}
    for run, files in group_checkpoints(paths).items():
        for path in files:
            member = load_member(path, run, features)
            member.config.update(settings or {})
            name = weights_digest(member.checkpoint)
            if name in members:
                raise IntegrityError(
                    f"{path} and {members[name].path} are the same checkpoint: equal weights"
                )
            members[name] = member
    # sums of floats depend on their order; that of the digests is the same in every folder
    return [members[name] for name in sorted(members)]


def load_member(path: Path, run: Path, features: Features) -> Member:
    checkpoint = load_checkpoint(path)
    member = Member(path, checkpoint, restore_model(checkpoint, path), run)
    inputs = member.task.inputs
    # the settings choose what is read, the description of the model what it can take
    if {*inputs} != {*member.model.encoders} or member.task.main_head not in member.model.heads:
        reads = f"its settings are those of {listed(inputs)}, its model reads"
        raise IntegrityError(f"{path} is damaged: {reads} {listed(member.model.encoders)}")
    features.require(inputs)
    check_match(path, "classes", checkpoint["classes"], features.classes)
    made, here = (
        comparable(each) for each in (checkpoint["features_config"], features.config_for(inputs))
    )
    made = dict.fromkeys(modality(name).folder for name in inputs) | made  # None: another tool's
    # A face that was learnt without sound, as from still pictures, is known while somebody speaks.
    check_match(path, "features", made, {name: here[name] for name in here if name in made})
    return member


def check_match(path: Path, what: str, trained: Any, here: Any) -> None:
    """IntegrityError that shows the first thing that differs."""
    if trained == here:
        return
    if isinstance(trained, dict) and isinstance(here, dict):
        for key in {**trained, **here}:
            check_match(path, f"{what}: {key}", trained.get(key), here.get(key))
    raise IntegrityError(f"{path} was trained on other {what}: {trained} then, {here} here")


def label_note(members: Sequence[Member]) -> str:
    """What to say of members that have learnt different labels; nothing where all are one."""
    learnt = {member.label: member.run for member in members}
    if len(learnt) < 2:
        return ""
    listed = ", ".join(f"{run} {label}" for label, run in learnt.items())
    return f"these runs have learnt different labels and vote all the same: {listed}"


def make_dataset(
    member: Member, rows: pd.DataFrame, features: Features, **changes: Any
) -> ClipDataset:
    """The clips as the member saw them for validation; IntegrityError for missing files."""
    dataset = ClipDataset(features, rows, member.task, member.config | changes, training=False)
    features.check_files(dataset.rows, member.task.inputs)
    return dataset


def check_finite(member: Member, scores: Sequence[np.ndarray]) -> None:
    # argmax takes a nan for the largest value: it would pass for a prediction
    if not all(np.isfinite(each).all() for each in scores):
        raise IntegrityError(f"{member.path} gives probabilities that are not numbers")


def image_views(count: int) -> Views:
    """Test-time augmentation of faces, functions (B, T, 3, H, W) in [0, 1] -> the same: flips times
    factors of brightness.

    12: both flips, 6: left-right only, each with 0.9, 1.0 and 1.1 (ttach); 1: as it is.
    """
    if count == 1:
        return {}
    import ttach

    flips = {12: [ttach.HorizontalFlip(), ttach.VerticalFlip()], 6: [ttach.HorizontalFlip()]}
    transforms = ttach.Compose([*flips[count], ttach.Multiply([0.9, 1.0, 1.1])])

    def view(transform: Any) -> Any:
        # ttach knows pictures (N, C, H, W): all frames of all clips are one batch to it
        return lambda faces: transform.augment_image(faces.flatten(0, 1)).view_as(faces)

    views = [view(transform) for transform in transforms]
    return {name: views for name, row in MODALITIES.items() if row.test_views}
