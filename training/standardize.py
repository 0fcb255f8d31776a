"""Custom features in units of their speaker: how this clip differs from the person's other clips.

Mean and deviation of every number over all clips of a speaker that preprocess.py made, of all
splits; labels are not read. A voice is high or low by birth: what differs from its owner's usual
tells more (Busso et al. 2013, IEEE Transactions on Affective Computing 4(4), on normalization by
speaker). It needs several clips of everybody, of those to predict, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from training.features import Features, lacks
from training.modalities import MODALITIES
from utils.errors import UsageError

FEW = 5  # clips: what deviates from the mean of fewer says little
FLOOR = 1e-6  # of a deviation


class Scale(NamedTuple):
    """`mean` and `deviation` of a feature, (D,), (1, D) or (layers, 1, D)."""

    mean: np.ndarray
    deviation: np.ndarray

    def apply(self, feature: np.ndarray) -> np.ndarray:
        return (feature.astype(np.float32) - self.mean) / (self.deviation + FLOOR)


Scales = dict[str, dict[str, Scale]]  # input -> speaker -> scale


def scale_of(features: Iterable[np.ndarray]) -> Scale:
    """Of one speaker's clips: over them, and over the rows of sequences."""
    count, total, squares = 0, 0.0, 0.0
    for feature in features:
        values = feature.astype(np.float64)
        if values.ndim == 1:
            values = values[np.newaxis]
        count += values.shape[-2]
        total = total + values.sum(axis=-2, keepdims=True)
        squares = squares + (values**2).sum(axis=-2, keepdims=True)
        axes = feature.ndim
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0))
    if axes == 1:
        mean, deviation = mean[0], deviation[0]
    return Scale(mean.astype(np.float32), deviation.astype(np.float32))


def speaker_scales(features: Features, rows: pd.DataFrame, names: Iterable[str]) -> Scales:
    """Of the custom features among `names`, for the speakers of `rows`.

    UsageError where a clip's speaker is not known, or has fewer than FEW clips.
    """
    custom = [name for name in names if name not in MODALITIES]
    table = features.manifest
    if not custom:
        raise UsageError("--standardize speaker is for custom features and encoders, here are none")
    if unknown := int((rows["speaker"] == "").sum()):
        what = f"{unknown} of {len(rows)} clips have no speaker in the manifest"
        raise UsageError(f"--standardize speaker: {what}")
    by_speaker = {name: group.to_dict("records") for name, group in table.groupby("speaker")}
    speakers = sorted(set(rows["speaker"]))
    if few := [name for name in speakers if len(by_speaker[name]) < FEW]:
        raise UsageError(
            f"--standardize speaker: speaker {few[0]} has {len(by_speaker[few[0]])} clips, "
            f"at least {FEW} are needed to know a person's usual"
        )
    scales: Scales = {name: {} for name in custom}
    work = [(name, speaker) for name in custom for speaker in speakers]
    bar = tqdm(work, "speakers", file=sys.stderr, leave=False, delay=2)
    for name, speaker in bar:
        clips: list[dict[str, Any]] = by_speaker[speaker]
        scales[name][speaker] = scale_of(
            features.load(row, name) for row in clips if not lacks(row, name)
        )
    return scales
