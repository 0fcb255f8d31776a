"""Log-probabilities and labels -> how far confidences hold, and temperatures for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.model_selection import GroupKFold

from evaluation.scores import wilson

BINS = 15  # of the calibration error, all of one width (Guo et al. 2017, arXiv 1706.04599)
POINTS = 10  # of the calibration curve at most, each of as many clips and of at least 10
DRAWS = 400  # of the right and wrong predictions of a perfectly calibrated model


def calibration(log_p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Expected calibration error, log loss and calibration curve of log_p (N, K).

    `ece_if_calibrated`: what a model of the same confidences shows on so many clips if it is right
    just as often as it says; in 95 of 100 cases below `ece_if_calibrated_high`. Few clips alone
    make an error.
    """
    p, clips = np.exp(log_p), len(labels)
    confidence, right = p.max(1), p.argmax(1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)  # 1.0 is in the last bin

    def error(right: np.ndarray) -> float:
        return float(np.abs(np.bincount(place, confidence - right)).sum() / clips)

    rng = np.random.default_rng(0)  # a report made again says the same
    calibrated = [error(rng.random(clips) < confidence) for _ in range(DRAWS)]
    parts = np.array_split(np.argsort(confidence), np.clip(clips // 10, 1, POINTS))
    curve = []
    for part in parts:
        share = float(right[part].mean())
        point = {"clips": len(part), "confidence": float(confidence[part].mean())}
        curve.append(point | {"accuracy": share, "interval": wilson(share, len(part))})
    return {
        "ece": error(right),
        "ece_if_calibrated": float(np.mean(calibrated)),
        "ece_if_calibrated_high": float(np.quantile(calibrated, 0.95)),
        "log_loss": float(-log_p[np.arange(clips), labels].mean()),
        "curve": curve,
    }


def temper(log_p: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax of log p / T: a T above 1 makes every prediction less sure, and changes none."""
    return log_softmax(log_p / temperature, axis=1)


def fit_temperature(
    log_p: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The T in 0.05 to 20 with the lowest log loss (temperature scaling, arXiv 1706.04599).
    `weights` (N,): how much each clip counts."""

    def loss(log_t: float) -> float:
        right = temper(log_p, np.exp(log_t))[np.arange(len(labels)), labels]
        return -float(np.average(right, weights=weights))

    # over log T: half as sure and twice as sure are equally far from 1
    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def cross_fitted(
    log_p: np.ndarray, labels: np.ndarray, group: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, list[float]]:
    """Each clip tempered by the T of other groups' clips (up to 5 parts); and these T."""
    weights = np.ones(len(labels)) if weights is None else weights
    result, temperatures = np.empty_like(log_p), []
    parts = GroupKFold(min(5, len(set(group)))).split(log_p, labels, group)
    for others, here in parts:
        temperatures.append(fit_temperature(log_p[others], labels[others], weights[others]))
        result[here] = temper(log_p[here], temperatures[-1])
    return result, temperatures
