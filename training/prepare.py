"""What a training needs before its first step: checked data, a model, and words about both."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models import build_model
from models.backbone import Backbone, load_pretrained
from models.classifier import EmotionClassifier
from models.fusion import FUSIONS
from models.pooling import POOLINGS
from training.card import LONGEST
from training.checkpoint import Checkpoint, find_checkpoints, load_checkpoint, read_weights
from training.data import ClipDataset
from training.features import Features, lacks
from training.fingerprint import known
from training.losses import LOSSES
from training.modalities import MODALITIES, MODES, modality
from training.optim import OPTIMIZERS, SCHEDULES
from training.tasks import ALL_SETTINGS, Task, learns_missing
from utils.distributed import SingleProcess
from utils.errors import IntegrityError, UsageError, counted, in_short, one_of
from utils.files import digest

CHOICES: dict[str, dict[str, Any]] = {
    "optim": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "fusion": FUSIONS,
    "pooling": POOLINGS,
}
ABOVE_BACKBONE = ("pooling", "grid")  # of an encoder; may be other than in its start
Starts = dict[str, tuple[Path, Checkpoint]]  # modality -> the run that it starts from


def check_choices(config: dict[str, Any]) -> None:
    for name, table in CHOICES.items():
        one_of(f"--{name}", config[name], table)


def load_starts(config: dict[str, Any], task: Task) -> Starts:
    """The checkpoints of --<modality>_load_weights."""
    starts = {}
    for name in MODES:
        if given := config.get(f"{name}_load_weights"):
            if name not in task.inputs:
                inputs = ",".join(task.inputs)
                raise UsageError(f"--{name}_load_weights: --inputs {inputs} has no {name}")
            path, *others = find_checkpoints([Path(given)])
            if others:
                raise UsageError(f"{path.parents[1]} holds a run per fold: choose one of them")
            starts[name] = path, load_checkpoint(path)
    return starts


def settings_of_starts(starts: Starts, given: set[str]) -> dict[str, Any]:
    """An encoder that starts from a run is built as it was there, but for the flags `given`."""
    return {
        setting: checkpoint["config"][setting]
        for name, (_, checkpoint) in starts.items()
        for setting in encoder_settings(name, checkpoint)
        if setting not in given
    }


def encoder_settings(name: str, checkpoint: Checkpoint) -> list[str]:
    """The settings that an encoder of a run was built with and fed with, but no augmentation."""
    names = [key for key, each in modality(name).settings.items() if each.group != "augmentation"]
    built = checkpoint["arch"]["encoders"].get(name, {})
    return [*names, "pooling"] if "pooling" in built else names


def with_inputs(
    features: Features, rows: pd.DataFrame, task: Task, config: dict[str, Any]
) -> pd.DataFrame:
    """The clips that have the inputs of the task, or with modality dropout some of them; the others
    are told."""
    learns = learns_missing(task, config)
    kept = features.having(rows, task.inputs, some=learns)
    if left_out := len(rows) - len(kept):
        what = f"{left_out} of {len(rows)} clips lack {' or '.join(task.inputs)}: left out"
        if not learns and len(task.inputs) > 1:
            what += "; with --modality_dropout 0.3 training learns from what they have"
        print(what, file=sys.stderr)
    if kept.empty:
        raise UsageError(f"{features.folder}: no clip has {' and '.join(task.inputs)}")
    return kept


def check_data(train_set: ClipDataset, val_set: ClipDataset, dist: SingleProcess) -> None:
    """Everything that would fail in the middle of a run, and can be seen cheaply, fails here."""
    for dataset in (train_set, val_set):
        dataset.features.check_files(dataset.rows, dataset.task.inputs)
        for name, having in dataset.donors.items():
            if not having:
                raise UsageError(
                    f"{dataset.features.folder}: no clip to train or validate has {name}"
                )
        for row, labels in zip(dataset.rows, dataset.labels, strict=True):
            if min(labels.values()) < 0:
                classes = " ".join(dataset.features.classes)
                raise IntegrityError(
                    f"{dataset.features.folder / 'manifest.csv'}: a label of clip "
                    f"{row['clip_id']} is not one of {classes}"
                )
            for name in dataset.task.inputs:
                shown = modality(name).shown
                if shown and not lacks(row, name):
                    shown(row)
    if train_set.config["standardize"] == "speaker" and not train_set.scales:
        raise UsageError("--standardize speaker is for custom features and encoders, here are none")
    check_learnt(train_set)
    if len(train_set) < 2:
        folder = train_set.features.folder
        raise UsageError(f"{folder}: {len(train_set)} training clip: at least 2 are needed")
    size, world = min(len(train_set), train_set.config["batch_size"]), dist.world
    if world > 1 and (size < 2 * world or train_set.config["batch_size"] % world):
        raise UsageError(
            f"--batch_size {train_set.config['batch_size']} for {world} processes and "
            f"{len(train_set)} clips: each needs the same number of clips, and at least 2"
        )


def check_learnt(train_set: ClipDataset) -> None:
    """IntegrityError for custom features that were learnt from labels of clips which this run holds
    out: `features/<name>.json` says which fold was left out (null: train and val are splits)."""
    config, features = train_set.config, train_set.features
    for name in train_set.task.inputs:
        if not (about := features.about(name)):
            continue
        without = about["learnt_without_fold"]
        if without != config["fold"] or config["val_fold"]:
            apart = f"fold {without}" if without is not None else "the split val"
            raise IntegrityError(
                f"{features.folder / name}.json: {name} was learnt from the labels of all clips "
                f"but those of {apart}: a run with --fold {config['fold']} --val_fold "
                f"{config['val_fold']} would know its labels; make it for that fold"
            )


def class_weights(train_set: ClipDataset) -> dict[str, torch.Tensor]:
    """{head: (K,)} the inverse of the class's share of the clips, or its root (sqrt): 1 on average
    over the clips. Empty with class_weights=none.
    """
    kind, weights = train_set.config["class_weights"], {}
    if kind == "none":
        return {}
    for head in train_set.task.heads:
        labels = torch.tensor([each[head] for each in train_set.labels])
        counts = labels.bincount(minlength=len(train_set.features.classes))
        weight = counts.clamp(min=1) ** (-0.5 if kind == "sqrt" else -1.0)
        weights[head] = weight * len(labels) / (weight * counts).sum()
    return weights


def card(features: Features, train_set: ClipDataset, val_set: ClipDataset) -> dict[str, Any]:
    """What a checkpoint says of its origin; 0 people: not known."""
    people = [
        len({row.get("speaker", "") for row in each.rows} - {""}) for each in (train_set, val_set)
    ]
    return {
        "corpus": str(features.settings.get("corpus", ""))[:LONGEST],
        "clips": len(train_set),
        "people": people[0],
        "tested_people": people[1],
    }


def content_of(train_set: ClipDataset, val_set: ClipDataset) -> dict[str, str]:
    """What a run learns from, to be compared when it goes on: clips, labels, content of the files
    (as the records tell it, where there are any)."""
    features, rows = train_set.features, [*train_set.rows, *val_set.rows]
    contents = {
        f"content of {name}": digest([features.digest_of(row, name) for row in rows])
        for name in train_set.task.inputs
    }
    clips = {"training": clips_digest(train_set), "validation": clips_digest(val_set)}
    return {**clips, **contents}


def clips_digest(dataset: ClipDataset) -> str:
    """The number of clips and a digest of which ones they are and what they are labelled."""
    clips = [[row["split"], row["clip_id"]] for row in dataset.rows]
    return f"{len(clips)} clips {digest([clips, dataset.labels])}"


def create_model(
    arch: dict[str, Any], config: dict[str, Any], starts: Starts, classes: list[str]
) -> EmotionClassifier:
    """A model with its starting weights: fresh, ImageNet backbones, or encoders of earlier runs."""
    try:
        model = build_model(**arch)
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise UsageError(f"no such model: {error}") from error
    for module in model.modules():
        if isinstance(module, Backbone) and config["pretrained"] != "none":
            fill_backbone(module, config["pretrained"])
    for name, (path, checkpoint) in starts.items():
        same = checkpoint["classes"] == list(classes)
        has_head = any(key.startswith(f"heads.{name}.") for key in checkpoint["weights"])
        but = "" if same else f", all but the last layer: its classes are {checkpoint['classes']}"
        if same and name in model.heads and not has_head:
            but = ", all but the last layer: it has none for this input alone"
        if anew := transfer_weights(
            model, arch, config, name, path, checkpoint, head=same and has_head
        ):
            but = f", all but {', '.join(anew)} and the last layer, which are built in another way"
        print(f"{name}: weights from {path}{but}")
    return model


def fill_backbone(backbone: Backbone, source: str) -> None:
    try:
        place = load_pretrained(backbone, source, read_weights)
    except Exception as error:  # no internet, no file, or foreign bytes in it
        reason = in_short(f"{type(error).__name__} {error}")
        raise UsageError(
            f"--pretrained {source}: no weights for {backbone.name}: {reason} "
            "(hub looks in TORCH_HOME and HF_HOME first; a folder of .pth files works too)"
        ) from error
    print(f"{backbone.name}: ImageNet weights from {place}")


def transfer_weights(
    model: EmotionClassifier,
    arch: dict[str, Any],
    config: dict[str, Any],
    name: str,
    path: Path,
    checkpoint: Checkpoint,
    head: bool,
) -> list[str]:
    """Copy a modality's encoder, and with `head` its head where the model has one, from another
    run. Above the backbone it may be built in another way: its modules that differ are learnt
    anew, and the head with them; they are returned.
    """
    was, now = checkpoint["arch"]["encoders"].get(name), arch["encoders"][name]
    if was is None:
        have = ", ".join(checkpoint["arch"]["encoders"])
        raise IntegrityError(f"--{name}_load_weights {path} is a run of {have}, not of {name}")
    changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    if wrong := [key for key in changed if key not in ABOVE_BACKBONE]:
        flags = [
            f"--{setting} {config[setting]}, it was trained with {checkpoint['config'][setting]}"
            for setting in encoder_settings(name, checkpoint)
            if config[setting] != checkpoint["config"][setting]
            and setting.removeprefix(f"{name}_") not in ABOVE_BACKBONE
        ]
        differs = [f"{key} {now.get(key)}, it has {was.get(key)}" for key in wrong]
        raise IntegrityError(
            f"--{name}_load_weights {path} does not fit: this run has "
            f"{'; '.join(flags or differs)}"
            + (": leave the flag out, it follows the weights" if flags else "")
        )
    weights, start, prefix = model.state_dict(), checkpoint["weights"], f"encoders.{name}."
    module_of = {key: key.split(".")[2] for key in weights if key.startswith(prefix)}
    anew = {"pooling"} & {*changed}
    anew |= {
        module
        for key, module in module_of.items()
        if key not in start or start[key].shape != weights[key].shape
    }
    kept = [key for key, module in module_of.items() if module not in anew]
    if head and not anew:
        kept += [key for key in weights if key.startswith(f"heads.{name}.")]
    model.load_state_dict({key: start[key] for key in kept}, strict=False)
    return sorted(anew)


def check_starts(starts: Starts, config: dict[str, Any], clips: dict[str, np.ndarray]) -> None:
    """IntegrityError for runs of other folds of these clips, and for runs that were trained on
    clips which this one validates on. `clips`: fingerprints of its own, `training` and
    `validation`. A run on another corpus, with folds and classes of its own, is none of those."""
    numbers = np.concatenate(list(clips.values()))
    for path, checkpoint in starts.values():
        if "clips" not in checkpoint:
            raise IntegrityError(f"{path} does not say which clips it has seen: train it anew")
        of_these = any(known(numbers, each.numpy()).any() for each in checkpoint["clips"].values())
        for name in ("fold", "val_fold"):
            was, now = checkpoint["config"][name], config[name]
            if of_these and was != now:
                raise IntegrityError(f"{path} was trained with --{name} {was}, this run has {now}")
        held_out, seen_there = clips["validation"], checkpoint["clips"]["training"].numpy()
        # a recording that this run has on both sides is a leak of its own, told elsewhere
        seen = known(held_out, seen_there) & ~known(held_out, clips["training"])
        if seen.any():
            raise IntegrityError(
                f"{path} was trained on {seen.sum()} of the {len(seen)} clips to validate on: "
                "start from a run on these splits"
            )


def provenance(
    clips: dict[str, np.ndarray], leaks: str, earlier: list[Checkpoint]
) -> dict[str, Any]:
    """What this run and those whose weights it starts from have seen, and what leaked in them."""
    leaked = [leaks, *(each.get("leaks", "") for each in earlier)]
    seen = {}
    for name, numbers in clips.items():
        arrays = [numbers.ravel(), *(each["clips"][name].numpy().ravel() for each in earlier)]
        seen[name] = torch.from_numpy(np.unique(np.concatenate(arrays)))
    return {"clips": seen, "leaks": "; ".join(dict.fromkeys(filter(None, leaked)))}


def describe(run: Any) -> str:
    """The first lines of a run: recipe, device, precision, sizes."""
    config, train_set = run.config, run.train_loader.dataset
    precision = str(run.dtype).removeprefix("torch.") if config["amp"] else "float32"
    weights = list(run.model.parameters())
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    world, micro_batches = run.dist.world, run.micro_batches
    batch = run.train_loader.batch_sampler.clips // world * world
    clips = -(-batch // world // micro_batches)
    compiled = ", compiled" if run.compiled else ""
    has_norm = any(name.endswith("running_mean") for name, _ in run.model.named_buffers())
    momentum = f"; batch-norm momentum {run.batchnorm_momentum():.3g} for that length"
    momentum = momentum if has_norm else ""
    return "\n".join(
        (
            *by_group(shown_settings(config, run.task)),
            f"{run.device}, {precision}{compiled}, {total:,} weights, {trained:,} trained",
            clips_by_class(train_set, "training"),
            clips_by_class(run.val_loader.dataset, "validation"),
            f"{counted(config['n_epoch'], 'epoch')} of {counted(run.steps_per_epoch, 'step')}; "
            f"effective batch {batch} = {world} x {micro_batches} x {clips} clips "
            f"(processes, parts){momentum}",
        )
    )


def by_group(settings: dict[str, Any]) -> list[str]:
    """A line for each group of flags."""
    groups: dict[str, list[str]] = {}
    for name, value in settings.items():
        group = ALL_SETTINGS[name].group if name in ALL_SETTINGS else "run"
        groups.setdefault(group, []).append(f"{name}={value}")
    return [f"{group}: {' '.join(each)}" for group, each in groups.items()]


def shown_settings(config: dict[str, Any], task: Task) -> dict[str, Any]:
    """Those that are set and that this run has a use for."""
    unread = unread_settings(config, task)
    return {k: v for k, v in config.items() if v is not None and k not in unread}


def unread_settings(config: dict[str, Any], task: Task) -> set[str]:
    """Those that change nothing in a run of these inputs."""
    rows = {name: modality(name) for name in task.inputs}
    read = {setting for row in rows.values() for setting in row.settings}
    unread = {setting for row in MODALITIES.values() for setting in row.settings} - read
    if not any(row.is_vectors for row in rows.values()):
        unread |= {"feature_frames", "feature_encoder", "standardize"}
    if not any(f"{name}_backbone" in read for name in rows):
        unread |= {"pretrained", "freeze_backbone"}
    if len(rows) == 1:
        unread |= {"fusion", "modality_dropout"}
    if len(task.heads) == 1:
        unread |= {"lam"}
    if not config["augment"]:
        unread |= {each for each in read if ALL_SETTINGS[each].group == "augmentation"}
    for kind, how in (("mixup", "mixup_alpha"), ("cutmix", "cutmix_beta")):
        if not config[f"{kind}_prob"]:
            unread |= {how}
    return unread


def clips_by_class(dataset: ClipDataset, name: str) -> str:
    column = dataset.task.label_columns[dataset.task.main_head]
    counts = Counter(row[column] for row in dataset.rows)
    classes = ", ".join(f"{each} {counts[each]}" for each in dataset.features.classes)
    lacking = {each: len(dataset) - len(rows) for each, rows in dataset.donors.items()}
    without = "".join(f"; {count} without {each}" for each, count in lacking.items() if count)
    return f"{len(dataset)} {name} clips ({classes}{without})"
