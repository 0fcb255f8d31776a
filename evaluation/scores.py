"""Answers and truths -> scores: measures, intervals over speakers, paired tests, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import GroupKFold

MEASURES = ("accuracy", "uar", "macro_f1", "weighted_f1")
DRAWS = 2000  # of the bootstrap
BINS = 15  # of confidence, all of one width (Guo et al. 2017, arXiv 1706.04599)


def measure(truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    """accuracy (WA); uar (UA, mean recall); macro and weighted F1. Both (N,) class indices.

    Means are over the classes that occur in `truth`.
    """
    occurs = np.unique(truth)
    table = classification_report(truth, answer, labels=occurs, output_dict=True, zero_division=0)
    mean, weighted = table["macro avg"], table["weighted avg"]
    values = (np.mean(truth == answer), mean["recall"], mean["f1-score"], weighted["f1-score"])
    return dict(zip(MEASURES, map(float, values), strict=True))


def measure_confusions(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The same, and recall (..., K), of many confusion matrices (..., K, K) [truth, answer]."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    truths, answers = confusion.sum(-1), confusion.sum(-2)
    occurs, clips = truths > 0, truths.sum(-1)
    recall = right / np.maximum(truths, 1)
    f1 = 2 * right / np.maximum(truths + answers, 1)
    return {
        "accuracy": right.sum(-1) / clips,
        "uar": (recall * occurs).sum(-1) / occurs.sum(-1),
        "macro_f1": (f1 * occurs).sum(-1) / occurs.sum(-1),
        "weighted_f1": (f1 * truths).sum(-1) / clips,
        "recall": np.where(occurs, recall, np.nan),
    }


class Bootstrap:
    """The same clips drawn again and again, all clips of a speaker together.

    Clips of one person resemble each other, so intervals over clips are too narrow. A clip of an
    unknown speaker is drawn by itself; where at most one speaker is known, clips are drawn. `unit`
    says which.
    """

    def __init__(self, speakers: np.ndarray, seed: int = 0):
        alone = np.array([f"clip {place}" for place in range(len(speakers))])  # as no speaker
        known, people = np.array([name != "" for name in speakers]), len({*speakers} - {""})
        names = np.where(known, [f"speaker {name}" for name in speakers], alone)
        self.unit = "speakers"
        if people < 2:
            self.unit, names = "clips", alone
        elif not known.all():
            self.unit = f"speakers and {np.sum(~known)} clips of unknown ones"
        self.group = np.unique(names, return_inverse=True)[1]  # (N,)
        self.size = int(self.group.max()) + 1
        chances = np.full(self.size, 1 / self.size)
        counts = np.random.default_rng(seed).multinomial(self.size, chances, DRAWS)
        self.counts = counts.astype(np.float32)  # (draws, groups): float for BLAS, exact to 2**24

    def confusions(self, truth: np.ndarray, answer: np.ndarray, n_classes: int) -> np.ndarray:
        """(draws, K, K)."""
        table = np.zeros((self.size, n_classes, n_classes), np.float32)
        np.add.at(table, (self.group, truth, answer), 1)
        return np.tensordot(self.counts, table, 1).astype(np.float64)


def interval(draws: np.ndarray, clips: float = 0) -> list[float]:
    """The middle 95 % of a bootstrap's values. Where all or none of so many `clips` are right, no
    draw differs: Wilson's interval (1927) then."""
    low, high = (float(value) for value in np.nanpercentile(draws, [2.5, 97.5]))
    if clips and low == high and low in (0, 1):
        sure = binomtest(round(low * clips), round(clips)).proportion_ci(method="wilson")
        low, high = float(sure.low), float(sure.high)
    return [low, high]


def full_scores(
    truth: np.ndarray, answer: np.ndarray, speakers: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    """Measures with intervals, each class that occurs, the confusion matrix [truth, answer]."""
    numbers, bootstrap = np.arange(len(classes)), Bootstrap(speakers)
    draws = measure_confusions(bootstrap.confusions(truth, answer, len(classes)))
    table = classification_report(
        truth, answer, labels=numbers, target_names=classes, output_dict=True, zero_division=0
    )
    return {
        "clips": len(truth),
        "groups": bootstrap.size,
        "unit": bootstrap.unit,
        "measures": measure(truth, answer),
        "intervals": {name: interval(draws[name], len(truth)) for name in MEASURES},
        "per_class": {
            classes[k]: table[classes[k]]
            | {"recall_interval": interval(draws["recall"][:, k], table[classes[k]]["support"])}
            for k in np.unique(truth)
        },
        "confusion": confusion_matrix(truth, answer, labels=numbers).tolist(),
    }


def paired(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, n_classes: int, bootstrap: Bootstrap
) -> dict[str, Any]:
    """second - first in accuracy and uar: interval and two-sided p of the paired bootstrap.

    Also McNemar's exact p, which takes clips for independent: not for the last word where speakers
    have many clips.
    """
    draws = [
        measure_confusions(bootstrap.confusions(truth, answer, n_classes))
        for answer in (first, second)
    ]
    values = [measure(truth, answer) for answer in (first, second)]
    result: dict[str, Any] = {}
    for name in ("accuracy", "uar"):
        difference = draws[1][name] - draws[0][name]
        tail = min((difference <= 0).sum(), (difference >= 0).sum()) + 1
        result[name] = {
            "difference": values[1][name] - values[0][name],
            "interval": interval(difference),
            "p": float(min(1, 2 * tail / (DRAWS + 1))),
        }
    gained = int(((first != truth) & (second == truth)).sum())
    lost = int(((first == truth) & (second != truth)).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return result | {"mcnemar": {"gained": gained, "lost": lost, "p": p}}


def reliability(log_p: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Expected calibration error, log loss, and the bins of the diagram; log_p (N, K)."""
    p = np.exp(log_p)
    confidence, right = p.max(1), p.argmax(1) == truth
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count, sure, hits = (np.bincount(place, w, BINS) for w in (None, confidence, right))
    return {
        "ece": float(np.abs(sure - hits).sum() / len(truth)),
        "log_loss": float(-log_p[np.arange(len(truth)), truth].mean()),
        "bins": [
            {"clips": int(n), "confidence": float(s / n), "accuracy": float(h / n)}
            for n, s, h in zip(count, sure, hits, strict=True)
            if n
        ],
    }


def temper(log_p: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax of log p / T: a T above 1 makes every answer less sure, and changes none."""
    return log_softmax(log_p / temperature, axis=1)


def fit_temperature(log_p: np.ndarray, truth: np.ndarray) -> float:
    """The T in 0.05 to 20 with the lowest log loss (temperature scaling, arXiv 1706.04599)."""

    def loss(log_t: float) -> float:
        return -temper(log_p, np.exp(log_t))[np.arange(len(truth)), truth].mean()

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def cross_fitted(
    log_p: np.ndarray, truth: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Each clip tempered by the T of other groups' clips (up to 5 parts); and these T."""
    result, temperatures = np.empty_like(log_p), []
    parts = GroupKFold(min(5, len(set(group)))).split(log_p, truth, group)
    for others, here in parts:
        temperatures.append(fit_temperature(log_p[others], truth[others]))
        result[here] = temper(log_p[here], temperatures[-1])
    return result, temperatures
