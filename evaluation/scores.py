"""Predictions and labels -> scores: measures, intervals over speakers, paired tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtri, stdtrit

from utils.errors import counted

MEASURES = ("accuracy", "uar", "macro_f1", "weighted_f1")
MIN_SPEAKERS = 6  # the smallest p that the sign flips of 5 can have is 2 / 2**5 = 0.0625


def class_scores(labels: np.ndarray, predictions: np.ndarray) -> dict[int, dict[str, float]]:
    """Precision, recall, F1 and number of clips of each class that occurs in `labels`."""
    from sklearn.metrics import precision_recall_fscore_support

    # Classes without a clip have no recall. In a mean they would count as 0.
    occurs, names = np.unique(labels), ("precision", "recall", "f1-score", "support")
    # zero_division: a class that is never predicted has precision 0
    columns = precision_recall_fscore_support(labels, predictions, labels=occurs, zero_division=0)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {int(k): dict(zip(names, row, strict=True)) for k, row in zip(occurs, rows, strict=True)}


def class_numbers(labels: Iterable[str], classes: list[str]) -> np.ndarray:
    """(N,) the number of each label among the classes; -1 for what is none of them."""
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers.get(label, -1) for label in labels], np.int64)


def count_right(labels: np.ndarray, predictions: np.ndarray) -> int:
    """How many predictions are right. Both (N,) class indices; -1 is an unknown label."""
    return int((labels == predictions).sum())


def measure(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """accuracy (WA); uar (UA, mean recall); macro and weighted F1. Both (N,) class indices.

    Means are over the classes that occur in `labels`. A training counts in a confusion matrix
    instead (training/metrics.py): that adds up over batches and processes.
    """
    rows = class_scores(labels, predictions).values()
    f1, support = [row["f1-score"] for row in rows], [row["support"] for row in rows]
    accuracy = count_right(labels, predictions) / len(labels)
    uar = np.mean([row["recall"] for row in rows])
    values = (accuracy, uar, np.mean(f1), np.average(f1, weights=support))
    return dict(zip(MEASURES, map(float, values), strict=True))


def influences(
    labels: np.ndarray, predictions: np.ndarray, n_classes: int
) -> dict[str | int, np.ndarray]:
    """{measure, or class for its recall: (N,)}: what each clip adds to the deviation, first order.

    Their sums over speakers give the variance (Taylor linearization, as for survey statistics).
    """
    of_label, of_prediction = np.eye(n_classes)[labels], np.eye(n_classes)[predictions]
    right, either = of_label * of_prediction, of_label + of_prediction  # (N, K)
    clips, total = of_label.sum(0), len(labels)
    # Each measure is a ratio a / b of sums over clips: a clip adds (its a - ratio * its b) / b.
    # The maximum with 1 is for classes without clips, which no mean below includes.
    recall = right.sum(0) / np.maximum(clips, 1)
    f1 = 2 * right.sum(0) / np.maximum(either.sum(0), 1)  # 2 TP / (labels + predictions)
    on_recall = (right - recall * of_label) / np.maximum(clips, 1)
    on_f1 = (2 * right - f1 * either) / np.maximum(either.sum(0), 1)
    return {
        "accuracy": (right.sum(1) - right.sum() / total) / total,
        "uar": on_recall[:, clips > 0].mean(1),
        "macro_f1": on_f1[:, clips > 0].mean(1),
        # the F1 of each class changes, and so does the class's share of the clips
        "weighted_f1": on_f1 @ clips / total + (of_label @ f1 - f1 @ clips / total) / total,
        **dict(enumerate(on_recall.T)),
    }


def clip_weights(labels: np.ndarray, n_classes: int) -> dict[str | int, np.ndarray]:
    """The same names -> (N,) how much each clip counts; in means over classes rare ones do more."""
    clips = np.bincount(labels, minlength=n_classes)
    alike = np.full(len(labels), 1 / len(labels))
    of_class = np.eye(n_classes)[labels] / np.maximum(clips, 1)
    rare = of_class[:, clips > 0].mean(1)
    return {
        "accuracy": alike,
        "uar": rare,
        "macro_f1": rare,
        "weighted_f1": alike,
        **dict(enumerate(of_class.T)),
    }


def group_by_speaker(speakers: np.ndarray) -> tuple[np.ndarray, str]:
    """(N,) the number of each clip's group, and what a group is.

    Clips of one person resemble each other, so intervals over clips are too narrow. A clip of an
    unknown speaker is a group by itself; where at most one speaker is known, every clip is.
    """
    known = speakers != ""
    # one group has no spread: nothing could be said of other people
    if len({*speakers[known]}) < 2:
        return np.arange(len(speakers)), "clips"
    names = [name or f" clip {place}" for place, name in enumerate(speakers)]
    unit = "speakers"
    if alone := int((~known).sum()):
        unit += f" and {counted(alone, 'clip')} of unknown ones"
    return np.unique(names, return_inverse=True)[1], unit


def effective_number(weights: np.ndarray) -> float:
    """How many equal weights vary a mean as much as these, which add up to 1 (Kish 1965)."""
    return float(1 / (weights**2).sum())


def student_half(influence: np.ndarray, weights: np.ndarray, group: np.ndarray) -> float:
    """Half of a 95 % interval over groups, by Student's t; 0 for a single group."""
    groups = effective_number(np.bincount(group, weights))
    if groups < 1.000001:  # a single group, but for rounding
        return 0.0
    # groups - 1, as in the variance of a sample: the groups' mean is not known but estimated
    error = np.sqrt((np.bincount(group, influence) ** 2).sum() * groups / (groups - 1))
    # at least 0.1 degrees of freedom, as where one group has nearly all clips: t is huge there
    return float(stdtrit(max(groups - 1, 0.1), 0.975) * error)


def wilson(share: float, clips: float) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share of so many independent clips."""
    z = ndtri(0.975)
    middle = share + z**2 / 2 / clips
    half = z * np.sqrt(share * (1 - share) / clips + (z / 2 / clips) ** 2)
    ends = np.clip([middle - half, middle + half] / (1 + z**2 / clips), 0, 1)
    return float(ends[0]), float(ends[1])


def interval(
    value: float, influence: np.ndarray, weights: np.ndarray, group: np.ndarray, unit: str
) -> tuple[list[float], str]:
    """A 95 % interval over speakers, or over clips where that is wider; and which it is.

    Over speakers: Student's, on the scale of log odds as for survey shares (Korn & Graubard 1998,
    Survey Methodology 24), so that it holds near 1, too. Over clips: Wilson's, which says something
    even where all clips are right, or where a model gives one answer to all of them.
    """
    over_clips = wilson(value, effective_number(weights))
    if unit == "clips" or not 0 < value < 1:  # 0 and 1 have no log odds
        return [*over_clips], "clips"
    # d logit(p) / dp = 1 / (p (1 - p)) takes a deviation to the scale of log odds
    half = student_half(influence, weights, group) / (value * (1 - value))
    over_groups = [float(expit(logit(value) - half)), float(expit(logit(value) + half))]
    if over_groups[1] - over_groups[0] < over_clips[1] - over_clips[0]:
        return [*over_clips], "clips"
    return over_groups, unit


def full_scores(
    labels: np.ndarray, predictions: np.ndarray, speakers: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    """Measures with intervals, each class that occurs, the confusion matrix [label, prediction]."""
    from sklearn.metrics import confusion_matrix

    numbers, (group, unit) = np.arange(len(classes)), group_by_speaker(speakers)
    influence = influences(labels, predictions, len(classes))
    weights = clip_weights(labels, len(classes))
    values = measure(labels, predictions)
    intervals = {
        name: interval(value, influence[name], weights[name], group, unit)
        for name, value in values.items()
    }
    per_class = {}
    for k, row in class_scores(labels, predictions).items():
        ends, over = interval(row["recall"], influence[k], weights[k], group, unit)
        per_class[classes[k]] = row | {"recall_interval": ends, "recall_interval_over": over}
    return {
        "clips": len(labels),
        "groups": int(group.max()) + 1,
        "unit": unit,
        "measures": values,
        "intervals": {name: ends for name, (ends, _) in intervals.items()},
        "intervals_over": {name: over for name, (_, over) in intervals.items()},
        "per_class": per_class,
        "confusion": confusion_matrix(labels, predictions, labels=numbers).tolist(),
    }


def paired(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, n_classes: int, speakers: np.ndarray
) -> dict[str, Any]:
    """second - first in accuracy and uar: Student's interval over speakers, and a two-sided p;
    none of the clips of one person, which show nothing of others."""
    # Both models saw the same clips: what varies is their difference, from person to person.
    group, unit = group_by_speaker(speakers)
    one_person = len({*speakers}) == 1 and speakers[0] != ""
    before, after = (influences(labels, each, n_classes) for each in (first, second))
    # (N,) 1 where only the second is right, -1 where only the first is; where they agree 0
    gain = (second == labels).astype(int) - (first == labels)
    result: dict[str, Any] = {"groups": int(group.max()) + 1, "unit": unit}
    for name in ("accuracy", "uar"):
        weights = clip_weights(labels, n_classes)[name]
        change, difference = after[name] - before[name], float(gain @ weights)
        # over clips: as if one more were gained and one more lost, or equal models had no interval
        variance = (change**2).sum() + 2 / effective_number(weights) ** 2
        half, over = float(ndtri(0.975) * np.sqrt(variance)), "clips"
        if unit != "clips" and (wide := student_half(change, weights, group)) > half:
            half, over = wide, unit
        ends = [max(-1.0, difference - half), min(1.0, difference + half)]
        p = None if one_person else sign_flip(np.bincount(group, gain * weights))
        result[name] = {"difference": difference, "interval": ends, "over": over, "p": p}
    if one_person:
        result |= {"groups": 1, "unit": "speakers"}
    return result | {"gained": int((gain > 0).sum()), "lost": int((gain < 0).sum())}


def sign_flip(differences: np.ndarray) -> float | None:
    """Two-sided p of the differences (G,) between two models, one for each speaker.

    Were both equally good, each speaker's could as well have the other sign: the share of all such
    flips whose sum is as far from 0 (Fisher 1935). None for fewer than MIN_SPEAKERS. Of single
    clips it is McNemar's exact test.
    """
    if len(differences) < MIN_SPEAKERS:
        return None
    differ = differences[differences != 0]  # to flip a 0 changes nothing
    size, seen = len(differ), differ.sum()
    if size <= 13:  # at most 8,192 flips, fewer than are drawn below: all of them
        # bit k of each number below 2**size is the sign of difference k
        signs = 1 - 2 * (np.arange(2**size)[:, np.newaxis] >> np.arange(size) & 1)
        sums = signs @ differ
    else:
        rng = np.random.default_rng(0)
        drawn = [rng.choice((-1.0, 1.0), (1000, size)) @ differ for _ in range(10)]
        sums = np.append(drawn, seen)  # which is one of them, so that no p is 0
    return float(np.mean(np.abs(sums) >= abs(seen) - 1e-12))  # equal sums can differ by rounding


def holm(p: list[float]) -> list[float]:
    """Each p so corrected that among all of them a false one is as rare as p says (Holm 1979)."""
    order = np.argsort(p)
    # the smallest times n, the next one times n - 1, the largest times 1
    steps = np.array(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    # the maximum: no p is corrected to less than a smaller one
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()
