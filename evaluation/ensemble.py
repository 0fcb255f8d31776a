"""Trained runs as an ensemble: load them, check that they fit the features, score clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from models.fusion import EmotionClassifier
from training.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    restore_model,
    weights_digest,
)
from training.data import ClipDataset, Features, make_loader, to_device
from training.loop import progress
from training.tasks import Task, task_of
from utils.errors import IntegrityError


@dataclass(frozen=True)
class Member:
    """One trained run: its file, what the file says, its model (on the CPU)."""

    path: Path
    checkpoint: dict[str, Any]
    model: EmotionClassifier

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint["config"]

    @property
    def task(self) -> Task:
        return task_of(self.config)


def load_members(paths: list[Path], features: Features) -> list[Member]:
    """Members for these features, in an order that their paths do not decide.

    IntegrityError for other classes or extraction settings, for one checkpoint given twice, and
    for members that learnt different labels.
    """
    members: dict[str, Member] = {}
    learnt: dict[str, Path] = {}
    for path in find_checkpoints(paths):
        checkpoint = load_checkpoint(path)
        member = Member(path, checkpoint, restore_model(checkpoint, path))
        inputs = member.task.inputs
        features.require(inputs)
        check_match(path, "classes", checkpoint["classes"], features.classes)
        check_match(path, "features", checkpoint["features_config"], features.config_for(inputs))
        name = weights_digest(checkpoint)
        if name in members:
            raise IntegrityError(
                f"{path} and {members[name].path} are the same checkpoint: equal weights"
            )
        members[name] = member
        learnt[member.task.label_columns[member.task.answer]] = path
    if len(learnt) > 1:
        what = ", ".join(f"{path} {column}" for column, path in learnt.items())
        raise IntegrityError(f"the members answer different questions: {what}")
    return [members[name] for name in sorted(members)]


def check_match(path: Path, what: str, trained: Any, here: Any) -> None:
    if trained == here:
        return
    if isinstance(trained, dict) and isinstance(here, dict):  # only what differs
        keys = [key for key in {**trained, **here} if trained.get(key) != here.get(key)]
        for key in keys[:1]:
            check_match(path, f"{what}: {key}", trained.get(key), here.get(key))
    raise IntegrityError(f"{path} was trained on other {what}: {trained} then, {here} here")


def make_dataset(member: Member, rows: list[dict], features: Features, **changes: Any) -> Any:
    """The clips as the member was trained on them, without augmentation; files are checked."""
    config = member.config | changes
    dataset = ClipDataset(features, pd.DataFrame(rows), member.task, config, training=False)
    dataset.check_files()
    return dataset


@torch.inference_mode()
def predict(
    member: Member,
    dataset: ClipDataset,
    device: str,
    views: list | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> Iterator[list[dict[str, Tensor]]]:
    """For each batch of clips, in order, one {head: logits (B, K)} per view of the face.

    Speech, text and own features are encoded once, whatever the number of views.
    """
    model = member.model.to(device).eval()
    views = views if views and "face" in member.task.inputs else [None]
    loader = make_loader(dataset, batch_size, num_workers, device)
    quick = len(loader) < 2
    for batch in progress(loader, desc=member.path.parent.name, unit="batch", disable=quick):
        inputs = to_device(batch["inputs"], device)
        encoded = model.encode({k: v for k, v in inputs.items() if k != "face" or views == [None]})
        faces = [{"face": (view(inputs["face"][0]),)} if view else {} for view in views]
        yield [model.classify(encoded | model.encode(face)) for face in faces]


def face_views(count: int) -> list:
    """Functions (B, T, 3, H, W) in [0, 1] -> the same: flips times factors of brightness.

    12: both flips, 6: left-right only, each with 0.9, 1.0 and 1.1 (ttach); 1: as it is.
    """
    import ttach

    flips = {12: [ttach.HorizontalFlip(), ttach.VerticalFlip()], 6: [ttach.HorizontalFlip()]}
    if count == 1:
        return [lambda faces: faces]
    transforms = ttach.Compose([*flips[count], ttach.Multiply([0.9, 1.0, 1.1])])
    return [
        lambda faces, t=transform: t.augment_image(faces.flatten(0, 1)).view_as(faces)
        for transform in transforms
    ]


def power_mean(views: list[Tensor], temperature: float) -> Tensor:
    """Logits (B, K) of each view -> (B, K): mean of p ** temperature, each made to sum to 1."""
    return torch.stack([(temperature * v.double()).softmax(dim=1) for v in views]).mean(dim=0)
