"""Checkpoints x features -> the clips to score each run on, and what makes its numbers too good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from evaluation.ensemble import Member, readable
from training.checkpoint import NO_CLIPS
from training.features import Features
from training.fingerprint import fingerprints, known
from utils.errors import IntegrityError, UsageError, counted


@dataclass(frozen=True)
class Options:
    """How to evaluate, as the flags of evaluate.py say it."""

    split: str | None = None  # None: val, or the fold that a run held out
    label: str | None = None  # the column to be judged by; None: what each run has learnt
    setting: Sequence[str] = ()  # NAME=VALUE of how much of a clip is read (as trained)
    robustness: bool = False  # under each corruption, too
    allow_training_clips: bool = False
    batch_size: int = 8
    num_workers: int = 0
    device: str = "cpu"


class Candidate(NamedTuple):
    """A checkpoint to score, the clips to score it on and those that chose its epoch, the column of
    their labels, and what a reader of its numbers must know."""

    member: Member
    clips: pd.DataFrame
    chosen_on: pd.DataFrame
    label: str
    warnings: list[str]


def candidate_of(member: Member, features: Features, options: Options) -> Candidate:
    """A checkpoint and the clips to score it on; UsageError where there are none, IntegrityError
    for clips that it was trained on."""
    column = options.label or member.label
    if column not in features.manifest:
        raise UsageError(f"{features.folder} has no column {column!r} in its manifest.csv")
    wanted = wanted_clips(member.config, features, options.split)
    # Who reads the score learns how many clips it is not about: each loss below is told.
    labelled = wanted[wanted[column].isin(features.classes)]
    clips = readable(member, labelled, features)
    if clips.empty:
        none = f"none of {counted(len(wanted), 'clip')} has its {column}"
        raise UsageError(f"{member.path}: {none}: nothing to score")
    trained_on, chosen_on = known_clips(member, features)
    warnings = warnings_of(member, clips, trained_on, chosen_on, options.allow_training_clips)
    if len(labelled) < len(wanted):
        warnings.append(left_out_note(len(wanted) - len(labelled), f"without {column}"))
    if lacking := len(labelled) - len(clips):
        warnings.append(left_out_note(lacking, f"without {' or '.join(member.task.inputs)}"))
    return Candidate(member, clips, chosen_on, column, warnings)


def left_out_note(number: int, which: str) -> str:
    """A note that so many clips are not scored."""
    return f"{counted(number, 'clip')} {which} {'is' if number == 1 else 'are'} left out"


def on_common_clips(runs: dict[str, list[Candidate]]) -> dict[str, list[Candidate]]:
    """The runs on those clips that each of them can read."""
    tables = [all_clips([part.clips for part in parts]) for parts in runs.values()]
    common = set.intersection(*(set(each.index) for each in tables))
    reduced: dict[str, list[Candidate]] = {name: [] for name in runs}
    for name, parts in runs.items():
        for part in parts:
            clips = part.clips[part.clips.index.isin(common)]
            lost = len(part.clips) - len(clips)
            more = [left_out_note(lost, "that another run cannot read")] if lost else []
            noted = part._replace(clips=clips, warnings=[*part.warnings, *more])
            reduced[name].append(noted)
    return reduced


def check_comparable(runs: dict[str, list[Candidate]]) -> None:
    """Before anything is computed: IntegrityError for runs to be scored on other clips, or by
    labels that differ there, UsageError for one that has a single clip."""
    labels = {
        name: all_clips([part.clips for part in parts])[parts[0].label]
        for name, parts in runs.items()
    }
    first, expected = next(iter(labels.items()))
    for name, each in labels.items():
        if len(each) < 2:
            raise UsageError(f"{name}: one clip with its label is too few to score")
        if not each.index.equals(expected.index):
            sizes = f"{first} on {len(expected)}, {name} on {len(each)}"
            raise IntegrityError(
                f"runs that are judged on different clips: {sizes}; evaluate them apart"
            )
        if differ := int((each != expected).sum()):
            raise IntegrityError(
                f"{first} and {name} learnt {expected.name} and {each.name}, which differ in "
                f"{differ} of these clips: evaluate them apart, or all by one with --label"
            )


def all_clips(tables: list[pd.DataFrame]) -> pd.DataFrame:
    clips = pd.concat(tables)
    return clips[~clips.index.duplicated()].sort_index()


def wanted_clips(config: dict[str, Any], features: Features, split: str | None) -> pd.DataFrame:
    """The rows to score a run on: a split, or the fold that it held out."""
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
    rows = named(features.manifest)
    # of a checkpoint that does not say its clips none is known; `warnings_of` sees to that
    clips = member.checkpoint.get("clips", NO_CLIPS)
    numbers = fingerprints(features, rows.to_dict("records"))
    seen = {name: rows[known(numbers, each.numpy())] for name, each in clips.items()}
    return seen["training"], seen["validation"]


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of their names, split/clip."""
    return rows.set_index(rows["split"] + "/" + rows["clip_id"]).sort_index()


def warnings_of(
    member: Member,
    clips: pd.DataFrame,
    trained_on: pd.DataFrame,
    chosen_on: pd.DataFrame,
    allowed: bool,
) -> list[str]:
    """What makes these numbers too good; IntegrityError for training clips unless `allowed`."""
    warnings = []
    if "clips" not in member.checkpoint:
        if not allowed:
            raise IntegrityError(
                f"{member.path} does not say which clips it was trained on; with "
                "--allow_training_clips the report carries the warning"
            )
        warnings.append("the checkpoint does not say which clips it was trained on")
    seen = clips.index[clips.index.isin(trained_on.index)]
    if len(seen):
        if not allowed:
            raise IntegrityError(
                f"{member.path} was trained on {len(seen)} of these {len(clips)} clips, as "
                f"{seen[0]}: choose another --split; with --allow_training_clips the report "
                "carries the warning"
            )
        warnings.append(f"TRAINED ON {len(seen)} of these {len(clips)} clips: this is no test")
    if leaks := member.checkpoint.get("leaks"):
        warnings.append(f"TRAINED WITH LEAKS, --allow_leaks: {leaks}")
    speakers = set(clips["speaker"]) - {""}
    # A person's clips resemble each other: a known voice or face is easier than a new one.
    if shared := speakers & set(trained_on["speaker"]):
        warnings.append(f"{len(shared)} of {len(speakers)} speakers are in the training clips too")
    one_of_many = member.config["eval_step"] < member.config["n_epoch"]
    # a training that looked at these clips only once, at its end, has chosen nothing by them
    if one_of_many and clips.index.isin(chosen_on.index).any():
        warnings.append(
            "the training chose its epoch by the loss on these clips: expect less on new ones"
        )
    return warnings
