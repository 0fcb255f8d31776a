"""Vectors in units of their speaker: how this clip differs from the person's other clips.

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
from training.modalities import modality
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
    """Of the inputs among `names` that are vectors, for the speakers of `rows` who have such clips.

    UsageError where a clip's speaker is not known, or has the feature in fewer than FEW clips.
    """
    custom = [name for name in names if modality(name).is_vectors]
    if custom and (unknown := int((rows["speaker"] == "").sum())):
        what = f"{unknown} of {len(rows)} clips have no speaker in the manifest"
        raise UsageError(f"--standardize speaker: {what}")
    table = features.manifest[features.manifest["speaker"].isin(rows["speaker"])]
    by_speaker = {name: group.to_dict("records") for name, group in table.groupby("speaker")}
    having: dict[tuple[str, str], list[dict[str, Any]]] = {
        (name, speaker): [row for row in clips if not lacks(row, name)]
        for name in custom
        for speaker, clips in by_speaker.items()
    }
    for (name, speaker), clips in having.items():
        if 0 < len(clips) < FEW:
            raise UsageError(
                f"--standardize speaker: speaker {speaker} has {len(clips)} clips with {name}, "
                f"at least {FEW} are needed to know a person's usual"
            )
    scales: Scales = {name: {} for name in custom}
    for (name, speaker), clips in tqdm(
        having.items(), "speakers", file=sys.stderr, leave=False, delay=2
    ):
        if clips:
            scales[name][speaker] = scale_of(vectors_of(features, row, name) for row in clips)
    return scales


def vectors_of(features: Features, row: dict[str, Any], name: str) -> np.ndarray:
    """A clip's feature; of vectors by crop those of crops that show a face."""
    feature = features.load(row, name)
    shown = modality(name).shown
    return feature[shown(row)] if shown else feature
