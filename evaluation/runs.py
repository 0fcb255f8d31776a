"""Checkpoints x features -> the answers of each run to clips that it has not trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evaluation.corruptions import HARMS, Degraded
from evaluation.ensemble import Member, load_members, make_dataset
from training.checkpoint import find_checkpoints, load_checkpoint, weights_digest
from training.data import ClipDataset, Features, make_loader, to_device
from training.fingerprint import identities, known
from training.loop import progress
from training.untrusted import NO_CLIPS
from utils.errors import IntegrityError, UsageError
from utils.files import sha256

ALL = ("inputs", "all")  # the condition that headline numbers are about


class Answer(NamedTuple):
    """What a head says to some clips: log-probabilities (N, K), to be held against a column."""

    head: str
    column: str
    log_p: np.ndarray


@dataclass(frozen=True)
class Evaluated:
    """Clips (manifest rows), and the answers to them under each condition (input, level).

    A run is one checkpoint, or is made of `parts`: the folds of a training, the members of an
    ensemble. `validation`: its answers to the clips that chose its epoch, where these are others.
    `warnings`: what a reader of its numbers must know.
    """

    name: str
    clips: pd.DataFrame
    answers: dict[tuple[str, Any], Answer | None]
    checkpoints: list[dict[str, Any]]
    warnings: list[str]
    parts: tuple[Evaluated, ...] = ()
    validation: Evaluated | None = None


def evaluate_runs(paths: list[Path], features: Features, options: Any) -> list[Evaluated]:
    """The runs of these checkpoints and run folders, all on the same clips.

    Folders fold_* in one place are one run: each clip is answered by the fold that held it out.
    `options`: split (None: val, or the fold held out), robustness, allow_training_clips,
    batch_size, num_workers, device.
    """
    numbers = identities(features, features.manifest.to_dict("records"))
    features = replace(features, manifest=features.manifest.assign(identity=list(numbers)))
    groups: dict[Path, list[Path]] = {}
    for path in map(Path, paths):
        place = path.parent if path.name.startswith("fold_") else path
        groups.setdefault(place, []).extend(find_checkpoints([path]))
    found: dict[str, Path] = {}
    for path in (path for files in groups.values() for path in files):
        if (first := found.setdefault(weights_digest(load_checkpoint(path)), path)) is not path:
            raise IntegrityError(f"{path} and {first} are the same checkpoint: equal weights")
    runs = []
    for place, files in groups.items():
        name = str(place if len(files) > 1 or place.is_file() else files[0].parent)
        parts = [run_of(path, name, features, options) for path in files]
        runs.append(pool(name, parts) if len(parts) > 1 else parts[0])
        if len(runs[-1].clips) < 2:
            raise UsageError(f"{name}: one clip with its label is too few to score")
        check_comparable(runs[0], runs[-1], features.classes)
    return runs


def run_of(path: Path, name: str, features: Features, options: Any) -> Evaluated:
    """One checkpoint's answers; IntegrityError for clips that it was trained on."""
    (member,) = load_members([path], features)
    config, column = member.config, member.task.label_columns[member.task.answer]
    judged = judged_clips(config, features, options.split)
    clips = judged[judged[column].isin(features.classes)]
    if clips.empty:
        raise UsageError(f"{path}: none of {len(judged)} clips has its {column}: nothing to score")
    warnings = warnings_of(member, clips, features, options.allow_training_clips)
    if len(clips) < len(judged):
        warnings.append(f"{len(judged) - len(clips)} clips without {column} are left out")
    facts = {"path": str(path), "sha256": sha256(path), "epoch": member.checkpoint["epoch"]}
    facts |= {"label": column, "inputs": list(member.task.inputs), "config": config}
    run = Evaluated(name, clips, answers_of(member, clips, features, options), [facts], warnings)
    chosen_on = known_clips(member, features)[1]
    apart = chosen_on[chosen_on[column].isin(features.classes)]
    if apart.empty or apart.index.isin(clips.index).any():
        return run
    answers = answers_of(member, apart, features, options, robustness=False)
    return replace(run, validation=Evaluated(name, apart, answers, [facts], []))


def judged_clips(config: dict[str, Any], features: Features, split: str | None) -> pd.DataFrame:
    """The rows on which a run is judged: a split, or the fold that it held out."""
    if split is not None or config["fold"] is None:
        return named(features.rows(split or "val"))
    table = features.manifest[features.manifest["split"].isin(("train", "val"))]
    rows = table[table["fold"] == config["fold"]]
    if rows.empty:
        have = ", ".join(features.folds()) or "none"
        raise UsageError(f"a run held out fold {config['fold']}, {features.folder} has {have}")
    return named(rows)


def known_clips(member: Member, features: Features) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that a run was trained on, and those that chose its epoch, in whatever split or
    fold they are now."""
    rows, clips = named(features.manifest), member.checkpoint.get("clips", NO_CLIPS)
    numbers = np.stack(rows["identity"])
    return tuple(rows[known(numbers, clips[name].numpy())] for name in ("training", "validation"))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of their names, split/clip."""
    return rows.set_index(rows["split"] + "/" + rows["clip_id"]).sort_index()


def warnings_of(
    member: Member, clips: pd.DataFrame, features: Features, allowed: bool
) -> list[str]:
    """What makes these numbers too good; IntegrityError for training clips unless `allowed`."""
    trained_on, chosen_on = known_clips(member, features)
    unknown = "clips" not in member.checkpoint
    if unknown and not allowed:
        raise IntegrityError(
            f"{member.path} does not say which clips it was trained on; with "
            "--allow_training_clips the report carries the warning"
        )
    found = ["the checkpoint does not say which clips it was trained on"] * unknown
    seen = clips.index[clips.index.isin(trained_on.index)]
    if len(seen) and not allowed:
        raise IntegrityError(
            f"{member.path} was trained on {len(seen)} of these {len(clips)} clips, as {seen[0]}: "
            "choose another --split; with --allow_training_clips the report carries the warning"
        )
    if len(seen):
        found.append(f"TRAINED ON {len(seen)} of these {len(clips)} clips: this is no test")
    if leaks := member.checkpoint.get("leaks"):
        found.append(f"TRAINED WITH LEAKS, --allow_leaks: {leaks}")
    speakers = set(clips["speaker"]) - {""}
    if shared := speakers & set(trained_on["speaker"]):
        found.append(f"{len(shared)} of {len(speakers)} speakers are in the training clips too")
    one_of_many = member.config["eval_step"] < member.config["n_epoch"]
    if one_of_many and clips.index.isin(chosen_on.index).any():
        found.append("the training chose its epoch by the loss on these clips: new ones are harder")
    return found


def answers_of(
    member: Member, clips: pd.DataFrame, features: Features, options: Any, robustness: bool = True
) -> dict[tuple[str, Any], Answer | None]:
    """{condition: answer}: all inputs, each smaller set of them, and with --robustness each harm
    of one input while the others are as they were."""
    inputs = member.task.inputs
    make_dataset(member, clips.to_dict("records"), features)  # checks the files
    clean = encode(member, clips, features, inputs, options)
    found = {ALL: answer(member, clean, inputs)}
    for size in range(1, len(inputs)):
        for names in combinations(inputs, size):
            found["inputs", "+".join(names)] = answer(member, clean, names)
    for modality in filter(HARMS.get, inputs) if options.robustness and robustness else ():
        for level in HARMS[modality][1]:
            worse = Degraded(*vars(features).values(), modality=modality, level=level)
            encoded = clean | encode(member, clips, worse, (modality,), options)
            found[modality, level] = answer(member, encoded, inputs)
    return found


@torch.inference_mode()
def encode(
    member: Member, clips: pd.DataFrame, features: Features, names: tuple[str, ...], options: Any
) -> dict[str, Tensor]:
    """{modality: (N, D)} of these inputs, which are read as for validation in training."""
    task = replace(member.task, inputs=names)
    dataset = ClipDataset(features, clips, task, member.config, training=False)
    model = member.model.to(options.device).eval()
    loader = make_loader(dataset, options.batch_size, options.num_workers, options.device)
    bar = progress(loader, desc=f"{member.path.parent.name} {'+'.join(names)}", unit="batch")
    batches = [model.encode(to_device(batch["inputs"], options.device)) for batch in bar]
    return {name: torch.cat([batch[name] for batch in batches]) for name in names}


@torch.inference_mode()
def answer(member: Member, encoded: dict[str, Tensor], names: tuple[str, ...]) -> Answer | None:
    """The answer from these inputs alone: of the model's answering head, else of the head that
    sees just them; None where there is no such head."""
    logits = member.model.classify({name: encoded[name] for name in names})
    own = (head for head in logits if set(member.model.heads[head].inputs) == set(names))
    head = member.task.answer if member.task.answer in logits else next(own, None)
    if head is None:
        return None
    log_p = logits[head].double().log_softmax(dim=1).cpu().numpy()
    if not np.isfinite(log_p).all():
        raise IntegrityError(f"{member.path} gives probabilities that are not numbers")
    return Answer(head, member.task.label_columns[head], log_p)


def pool(name: str, parts: list[Evaluated]) -> Evaluated:
    """All clips of the parts; the probabilities of parts that answer the same clip are averaged."""
    clips = pd.concat([part.clips for part in parts])
    names, first, place = np.unique(clips.index, return_index=True, return_inverse=True)
    answers = {}
    for key in parts[0].answers:
        each, answers[key] = [part.answers.get(key) for part in parts], None
        if all(each) and (key == ALL or len({item[:2] for item in each}) == 1):
            total = np.zeros((len(names), each[0].log_p.shape[1]))
            np.add.at(total, place, np.exp(np.concatenate([item.log_p for item in each])))
            mean = total / total.sum(axis=1, keepdims=True)
            answers[key] = each[0]._replace(log_p=np.log(np.maximum(mean, 1e-300)))
    checkpoints = [checkpoint for part in parts for checkpoint in part.checkpoints]
    warnings = list(dict.fromkeys(text for part in parts for text in part.warnings))
    apart = [part.validation for part in parts if part.validation]
    validation = pool(name, apart) if len(apart) == len(parts) else None
    kept = clips.iloc[first]
    if validation and validation.clips.index.isin(kept.index).any():
        validation = None  # of all folds together the same clips are judged and chose
    return Evaluated(name, kept, answers, checkpoints, warnings, tuple(parts), validation)


def check_comparable(first: Evaluated, other: Evaluated, classes: list[str]) -> None:
    """IntegrityError for runs that are judged on other clips, or by labels that differ there."""
    if not first.clips.index.equals(other.clips.index):
        sizes = f"{first.name} on {len(first.clips)}, {other.name} on {len(other.clips)}"
        raise IntegrityError(
            f"runs that are judged on different clips: {sizes}; evaluate them apart"
        )
    differ = int((truth_of(first, ALL, classes) != truth_of(other, ALL, classes)).sum())
    if differ:
        columns = " and ".join(run.answers[ALL].column for run in (first, other))
        raise IntegrityError(
            f"{first.name} and {other.name} learnt {columns}, which differ in {differ} of these "
            "clips: evaluate them apart"
        )


def truth_of(run: Evaluated, condition: tuple[str, Any], classes: list[str]) -> np.ndarray:
    """(N,) class indices in the column that the answer is about; -1 for an unknown label."""
    number = {name: index for index, name in enumerate(classes)}
    labels = run.clips[run.answers[condition].column]
    return labels.map(lambda label: number.get(label, -1)).to_numpy()
