"""What a training needs before its first step: checked data, a model, and words about both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import build_model
from models.backbone import Backbone, load_pretrained
from training.checkpoint import transfer_weights
from training.data import folder_of
from training.tasks import FOLDERS
from utils.distributed import Alone
from utils.errors import IntegrityError, UsageError
from utils.files import digest, read_known, sha256


def check_data(train_set: Any, val_set: Any, dist: Alone) -> None:
    """Everything that would fail in the middle of a run fails here instead."""
    for dataset in (train_set, val_set):
        dataset.check_files(dist)
        for row, labels in zip(dataset.rows, dataset.labels, strict=True):
            if min(labels.values()) < 0:
                known = " ".join(dataset.features.classes)
                raise IntegrityError(f"clip {row['clip_id']}: a label is not one of {known}")
    check_learnt(train_set)
    if len(train_set) < 2:
        raise UsageError(f"{len(train_set)} training clip: at least 2 are needed")
    size, world = min(len(train_set), train_set.config["batch_size"]), dist.world
    if world > 1 and (size < 2 * world or train_set.config["batch_size"] % world):
        raise UsageError(
            f"--batch_size {train_set.config['batch_size']} for {world} processes and "
            f"{len(train_set)} clips: each needs the same number of clips, and at least 2"
        )


def check_learnt(train_set: Any) -> None:
    """IntegrityError for own features that were learnt from labels of clips which this run holds
    out: `features/<name>.json` says which fold was left out (null: train and val are splits)."""
    config = train_set.config
    for name in (name for name in train_set.task.inputs if name not in FOLDERS):
        about = read_known(train_set.features.folder / f"{name}.json")
        without = about.get("learnt_without_fold")
        if "learnt_without_fold" in about and (without != config["fold"] or config["val_fold"]):
            apart = f"fold {without}" if without is not None else "the split val"
            raise IntegrityError(
                f"{name} was learnt from the labels of all clips but those of {apart}: a run with "
                f"--fold {config['fold']} --val_fold {config['val_fold']} would know its answers; "
                "make it for that fold"
            )


def class_weights(train_set: Any) -> dict[str, torch.Tensor]:
    """{head: (K,)} the inverse of the class's share of the clips, or its root (sqrt): 1 on average
    over the clips. Empty with class_weights=none.
    """
    kind, weights = train_set.config["class_weights"], {}
    for head in train_set.task.heads if kind != "none" else ():
        labels = torch.tensor([each[head] for each in train_set.labels])
        counts = labels.bincount(minlength=len(train_set.features.classes))
        weight = counts.clamp(min=1) ** (-0.5 if kind == "sqrt" else -1.0)
        weights[head] = weight * len(labels) / (weight * counts).sum()
    return weights


def data_of(train_set: Any, val_set: Any) -> dict[str, str]:
    """What a run learns from, to be compared when it goes on: clips, labels, content of the files
    (as the records tell it, where there are any)."""
    rows = [row for each in (train_set, val_set) for row in each.rows]
    features, inputs = train_set.features, train_set.task.inputs
    files: dict[str, list[str]] = {f"content of {name}": [] for name in inputs}
    for row in rows:
        made = features.stages(row)
        for name, known in zip(inputs, files.values(), strict=True):
            own = name not in FOLDERS and folder_of(name) not in made
            stage = {} if own else made.get(folder_of(name), {})
            known.append(stage.get("sha256") or sha256(features.path(row, name)))
    contents = {name: digest(known) for name, known in files.items()}
    return {"training": names(train_set), "validation": names(val_set), **contents}


def names(dataset: Any) -> str:
    """The number of clips and a digest of which ones they are and what they are labelled."""
    clips = [[row["split"], row["clip_id"]] for row in dataset.rows]
    return f"{len(clips)} clips {digest([clips, dataset.labels])}"


def create_model(
    arch: dict, config: dict[str, Any], classes: list[str], clips: dict[str, np.ndarray]
) -> tuple[Any, list[dict[str, Any]]]:
    """A model with its starting weights: fresh, ImageNet trunks, or encoders of earlier runs; and
    which clips these have seen, and what leaked. `clips`: identities of those of this run.
    """
    try:
        model = build_model(**arch)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"no such model: {error}") from error
    for module in model.modules():
        if isinstance(module, Backbone) and config["pretrained"] != "none":
            try:
                place = load_pretrained(module, config["pretrained"])
            except Exception as error:  # no internet, no file, or foreign bytes in it
                reason = f"{type(error).__name__} {error}".splitlines()[0]
                raise UsageError(
                    f"--pretrained {config['pretrained']}: no weights for {module.name}: {reason} "
                    "(hub looks in TORCH_HOME and HF_HOME first; a folder of .pth files works too)"
                ) from error
            print(f"{module.name}: ImageNet weights from {place}")
    earlier = []
    for modality in arch["encoders"]:
        if path := config.get(f"{modality}_load_weights"):
            earlier += [transfer_weights(model, Path(path), modality, classes, config, clips)]
            print(f"{modality}: weights from {path}")
    return model, earlier


def describe(config: dict[str, Any], trainer: Any, train_set: Any, val_set: Any) -> str:
    """The first lines of a run: recipe, device, precision, sizes."""
    precision = str(trainer.dtype).removeprefix("torch.") if config["amp"] else "float32"
    weights = list(trainer.model.parameters())
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    world, batch = trainer.dist.world, config["batch_size"]
    parts = min(config["grad_accumulation"], max(1, batch // world // 2))
    shares = f"{world} x {parts} x {-(-batch // world // parts)} clips (processes, parts)"
    return "\n".join(
        (
            " ".join(f"{name}={value}" for name, value in config.items() if value is not None),
            f"{trainer.device}, {precision}, {total:,} weights, {trained:,} trained",
            clips_by_class(train_set, "training"),
            clips_by_class(val_set, "validation"),
            f"{config['n_epoch']} epochs of {trainer.steps_per_epoch} steps; "
            f"effective batch {batch} = {shares}; "
            f"batch-norm momentum {trainer.batchnorm_momentum():.3g} for that length",
        )
    )


def clips_by_class(dataset: Any, name: str) -> str:
    column = dataset.task.label_columns[dataset.task.answer]
    counts = Counter(row[column] for row in dataset.rows)
    classes = ", ".join(f"{each} {counts[each]}" for each in dataset.features.classes)
    return f"{len(dataset)} {name} clips ({classes})"
