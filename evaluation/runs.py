"""Runs x the clips to score them on -> their predictions (evaluation/candidates.py chooses)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evaluation.candidates import (
    Candidate,
    Options,
    all_clips,
    candidate_of,
    check_comparable,
    on_common_clips,
)
from evaluation.corruptions import CORRUPTIONS, corrupt
from evaluation.ensemble import (
    Member,
    check_finite,
    combine,
    group_checkpoints,
    load_members,
    make_dataset,
    readable,
    reading_settings,
)
from evaluation.scores import class_numbers
from models.fusion import Tokens
from training.data import ClipDataset, make_loader
from training.features import Features, lacks
from training.inference import Given, encode, infer
from training.modalities import modality
from utils.files import sha256

MANY = 5  # inputs: their 30 smaller sets can be looked at, those of 12 are 4,094


class Condition(NamedTuple):
    """What a run is given of each clip: all that it reads, `inputs` alone, or all of it with the
    modality `corrupted` made worse to a level of evaluation/corruptions.py."""

    inputs: tuple[str, ...] | None = None
    corrupted: str | None = None
    level: float | None = None


ALL = Condition()  # what headline numbers are about


class HeadPrediction(NamedTuple):
    """What a head says of some clips: log-probabilities (N, K), to be held against a column."""

    head: str
    column: str
    log_p: np.ndarray


Predictions = dict[Condition, HeadPrediction | None]


@dataclass(frozen=True)
class Evaluated:
    """Clips (manifest rows), and the predictions for them under each condition, which are held
    against the column `label`.

    A run is one checkpoint, or is made of `parts`: the folds of a training, the members of an
    ensemble. `validation`: its predictions for the clips that chose its epoch, where these are
    others. `warnings`: what a reader of its numbers must know.
    """

    name: str
    clips: pd.DataFrame
    label: str
    predictions: Predictions
    checkpoints: list[dict[str, Any]]
    warnings: list[str]
    parts: tuple[Evaluated, ...] = ()
    validation: Evaluated | None = None

    def under(self, condition: Condition) -> HeadPrediction:
        """The prediction under a condition that is known to have one."""
        prediction = self.predictions[condition]
        assert prediction is not None
        return prediction


def evaluate_runs(paths: list[Path], features: Features, options: Options) -> list[Evaluated]:
    """The runs of these checkpoints and run folders, all on the same clips.

    Folders fold_* in one place are one run: each clip is predicted by the fold that held it out.
    """
    groups: dict[Path, list[Candidate]] = {run: [] for run in group_checkpoints(paths)}
    members = load_members(paths, features, reading_settings(options.setting))
    for member in sorted(members, key=lambda each: each.path):  # folds in their order
        groups[member.run].append(candidate_of(member, features, options))
    candidates = {name_of(run, parts): parts for run, parts in groups.items()}
    if "missing" in features.manifest:  # of preprocess.py --partial: runs may read other clips
        candidates = on_common_clips(candidates)
    # Whatever can refuse is asked of all runs before the first one predicts, which takes minutes.
    check_comparable(candidates)
    runs = []
    for name, parts in candidates.items():
        predicted = [run_of(part, name, features, options) for part in parts]
        runs.append(merge_parts(name, predicted) if len(predicted) > 1 else predicted[0])
    return runs


def name_of(run: Path, parts: list[Candidate]) -> str:
    return str(run if len(parts) > 1 or run.is_file() else parts[0].member.path.parent)


def run_of(candidate: Candidate, name: str, features: Features, options: Options) -> Evaluated:
    """One checkpoint's predictions."""
    member, clips, chosen_on, label, warnings = candidate
    if label != member.label:
        warnings = [*warnings, f"{name} learnt {member.label} and is judged by {label} here"]
    facts = {
        "path": str(member.path),
        # paired tests know by it that an ensemble holds a run
        "sha256": sha256(member.path),
        "epoch": member.checkpoint["epoch"],
        "label": member.label,
        "inputs": list(member.task.inputs),
        "config": member.config,
    }
    predicted = predictions_of(member, clips, features, options, options.robustness)
    run = Evaluated(name, clips, label, predicted, [facts], warnings)
    apart = chosen_on[chosen_on[label].isin(features.classes)]
    apart = readable(member, apart, features)
    # a temperature that is fitted on clips which are scored would make them look calibrated
    if apart.empty or apart.index.isin(clips.index).any():
        return run
    predicted = predictions_of(member, apart, features, options, robustness=False)
    return replace(run, validation=Evaluated(name, apart, label, predicted, [facts], []))


@torch.inference_mode()  # the heads are asked here, not within `infer`
def predictions_of(
    member: Member, clips: pd.DataFrame, features: Features, options: Options, robustness: bool
) -> Predictions:
    """{condition: prediction}: all inputs, smaller sets of them, and with `robustness` each
    corruption of one input while the others are as they were."""
    inputs = member.task.inputs
    given = {ALL: inputs} | {Condition(inputs=names): names for names in smaller_sets(inputs)}
    logits: dict[Condition, list[dict[str, Tensor]]] = {condition: [] for condition in given}
    # Encoders take nearly all of the time and heads nearly none: each batch is encoded once, and
    # the heads are asked again for each smaller set of inputs.
    clean = []  # the tokens of each batch
    for tokens in encode_batches(member, make_dataset(member, clips, features), options):
        for condition, names in given.items():
            logits[condition].append(classify(member, tokens, names))
        if robustness:
            clean.append(tokens)
    predictions = {
        condition: prediction_of(member, names, logits[condition])
        for condition, names in given.items()
    }
    if robustness:
        predictions |= corrupted_predictions(member, clips, features, options, clean)
    return predictions


def smaller_sets(inputs: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All that are smaller; of more than MANY inputs each alone, and all but one."""
    sizes = [*range(1, len(inputs))] if len(inputs) <= MANY else [1, len(inputs) - 1]
    return [names for size in sizes for names in combinations(inputs, size)]


def corrupted_predictions(
    member: Member,
    clips: pd.DataFrame,
    features: Features,
    options: Options,
    clean: list[dict[str, Tokens]],
) -> Predictions:
    """`clean`: the tokens of all inputs, batch by batch. Only the corrupted input is encoded anew:
    its batches are of the same clips, for both data sets are of `clips` and are read in order."""
    predictions: Predictions = {}
    for name in member.task.inputs:
        corruption = CORRUPTIONS.get(modality(name).corruption)
        # vectors of other programs have no corruption; and an input that no clip has, no tokens
        if corruption is None or name not in clean[0]:
            continue
        task = replace(member.task, inputs=(name,))
        for level in corruption.levels:
            worse = corrupt(features, name, level)
            dataset = ClipDataset(worse, clips, task, member.config, training=False)
            batches = zip(clean, encode_batches(member, dataset, options), strict=True)
            logits = [
                classify(member, others | corrupted, member.task.inputs)
                for others, corrupted in batches
            ]
            condition = Condition(corrupted=name, level=level)
            predictions[condition] = prediction_of(member, member.task.inputs, logits)
    return predictions


def encode_batches(
    member: Member, dataset: ClipDataset, options: Options
) -> Iterator[dict[str, Tokens]]:
    """The tokens {modality: Tokens} of each batch."""

    def read(given: Given) -> dict[str, Tokens]:
        return encode(member.model, given)

    loader = make_loader(dataset, options.batch_size, options.num_workers, options.device)
    title = f"{member.path.parent.name} {'+'.join(dataset.task.inputs)}"
    for _, tokens in infer([member.model], loader, options.device, read, title=title):
        yield tokens


def classify(
    member: Member, tokens: dict[str, Tokens], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """{head: logits} from these inputs alone; nothing where no clip has any of them."""
    given = {name: tokens[name] for name in names if name in tokens}
    return member.model.classify(given).logits if given else {}


def prediction_of(
    member: Member, names: tuple[str, ...], batches: list[dict[str, Tensor]]
) -> HeadPrediction | None:
    """Of the deciding head, else of the head that sees just these inputs; None without such."""
    heads = [head for head, inputs in member.model.head_inputs.items() if {*inputs} == {*names}]
    # A head that lacks one of its inputs gives no logits, unless it learnt a token for it.
    candidates = [head for head in (member.task.main_head, *heads) if head in batches[0]]
    if not candidates:
        return None
    head = candidates[0]
    log_p = np.concatenate(
        [logits[head].double().log_softmax(dim=1).cpu().numpy() for logits in batches]
    )
    check_finite(member, [log_p])
    return HeadPrediction(head, member.task.label_columns[head], log_p)


def merge_parts(name: str, parts: list[Evaluated]) -> Evaluated:
    """One run on all clips of its parts."""
    clips = all_clips([part.clips for part in parts])
    predictions = {
        condition: merged_prediction(parts, clips.index, condition)
        for condition in parts[0].predictions
    }
    checkpoints = [checkpoint for part in parts for checkpoint in part.checkpoints]
    warnings = list(dict.fromkeys(text for part in parts for text in part.warnings))
    apart = [part.validation for part in parts if part.validation]
    validation = merge_parts(name, apart) if len(apart) == len(parts) else None
    if validation and validation.clips.index.isin(clips.index).any():
        validation = None  # of all folds together the same clips are scored and chose
    label = parts[0].label
    return Evaluated(
        name, clips, label, predictions, checkpoints, warnings, tuple(parts), validation
    )


def merged_prediction(
    parts: list[Evaluated], clips: pd.Index, condition: Condition
) -> HeadPrediction | None:
    """The mean probabilities of the parts that predict a clip.

    From all inputs, whatever the heads that decide. Under another condition None, unless each part
    has a prediction and all these are of one head and one label.
    """
    given = [part.predictions.get(condition) for part in parts]
    predictions = [prediction for prediction in given if prediction is not None]
    # The voice head of one run and the fused head of another answer different questions.
    same = len({(prediction.head, prediction.column) for prediction in predictions}) == 1
    if len(predictions) < len(parts) or not (same or condition == ALL):
        return None
    votes = [
        (part.clips.index, np.exp(prediction.log_p))
        for part, prediction in zip(parts, predictions, strict=True)
    ]
    index, mean = combine(votes)
    # 1e-300: a probability that underflows to 0 has no logarithm
    log_p = np.log(np.maximum(mean, 1e-300))[index.get_indexer(clips)]
    column = predictions[0].column if same else parts[0].label
    return HeadPrediction(predictions[0].head, column, log_p)


def labels_of(run: Evaluated, classes: list[str]) -> np.ndarray:
    """(N,) class indices in the column that the run is judged by; -1 for an unknown label."""
    return class_numbers(run.clips[run.label], classes)


def head_labels(run: Evaluated, condition: Condition, classes: list[str]) -> np.ndarray:
    """(N,) the same in the column that the deciding head has learnt."""
    return class_numbers(run.clips[run.under(condition).column], classes)


def has_inputs(run: Evaluated, condition: Condition) -> np.ndarray:
    """(N,) which clips have any of the condition's inputs: others tell nothing about it."""
    if condition.inputs is None:
        return np.ones(len(run.clips), bool)
    rows = run.clips.to_dict("records")
    return np.array([not all(lacks(row, name) for name in condition.inputs) for row in rows], bool)
