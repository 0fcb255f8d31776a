"""Predictions for one recording -> a time line as a picture, and what is drawn into its video."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from inference.figure import CAUTION, GREY, class_name, part_name
from inference.prediction import ClipPrediction
from utils.plots import INK, blank_figure, literal, png

COLORS = ("#e8b93c", "#c8553d", "#6a9a4f", "#7d5ba6", "#4a78b5", "#b9bec6", "#e58a35", "#4fb3a5")


def draw_timeline(predictions: list[ClipPrediction]) -> bytes:
    """The utterances of one recording over its seconds: shares of the classes, the first named."""
    from matplotlib.patches import Patch

    spans = [(each.source.start or 0.0, each.source.end or 0.0) for each in predictions]
    first, last = spans[0][0], spans[-1][1]
    figure = blank_figure((11, 3.6))
    name = Path(predictions[0].source.name).name
    figure.text(0.03, 0.93, name, fontsize=14, weight="bold", color=INK, va="center")
    grey = dict(fontsize=7.5, color=GREY, va="center")
    figure.text(0.03, 0.86, bases(predictions), **grey)
    axis = figure.add_axes((0.03, 0.24, 0.83, 0.44))
    for prediction, (start, end) in zip(predictions, spans, strict=True):
        stack(axis, prediction, start, end)
        share = (end - start) / (last - first)
        if prediction.parts and share > 1 / 90:  # else its colour must do
            middle, label = (start + end) / 2, class_name(prediction.label)
            narrow = dict(rotation=90, fontsize=7) if share < 1 / 14 else dict(fontsize=9)
            axis.text(middle, 1.04, label, ha="center", va="bottom", color=INK, **narrow)
    named = zip(COLORS * 9, predictions[0].classes, strict=False)
    handles = [Patch(color=color, label=class_name(name)) for color, name in named]
    figure.legend(handles=handles[::-1], loc="center right", frameon=False, fontsize=9)
    axis.set(xlim=(first, last), ylim=(0, 1), yticks=[])
    axis.set_xlabel("seconds", fontsize=8, color=INK)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.text(0.03, 0.03, CAUTION, **grey)
    return png(figure)


def bases(predictions: list[ClipPrediction]) -> str:
    """What the predictions rest on: no colour tells whether a voice was heard at all."""
    names = Counter(" + ".join(part_name(name) for name in each.rests_on) for each in predictions)
    shares = (
        f"{what or 'no answer'} ({count} of {len(predictions)})" for what, count in names.items()
    )
    return f"rests on {', '.join(shares)}"


def stack(axis: Any, prediction: ClipPrediction, start: float, end: float) -> None:
    """One utterance: the probabilities on top of each other, or an empty box."""
    if not prediction.parts:
        axis.bar(start, 1, end - start, align="edge", color="none", edgecolor="#cccccc", hatch="//")
        return
    floors = np.cumsum([0, *prediction.probabilities[:-1]])
    for value, floor, color in zip(prediction.probabilities, floors, COLORS * 9, strict=False):
        axis.bar(start, value, end - start, floor, align="edge", color=color, edgecolor="white")


def overlay(prediction: ClipPrediction, width: int) -> np.ndarray:
    """A dark, half transparent plate with the answer and its bars, (H, W, 4) uint8."""
    side = max(140, round(0.34 * width))  # pixels
    figure = blank_figure((2.4, 1.5), dpi=side / 2.4, facecolor=(0, 0, 0, 0.55))
    head = f"{class_name(prediction.label)} {prediction.probabilities.max():.0%}"
    figure.text(0.06, 0.86, head, color="white", fontsize=13, weight="bold", va="center")
    axis = figure.add_axes((0.36, 0.05, 0.58, 0.68), facecolor="none")
    axis.barh(range(len(prediction.classes)), prediction.probabilities, color="white", height=0.7)
    axis.set_yticks(
        range(len(prediction.classes)),
        map(class_name, prediction.classes),
        color="white",
        fontsize=7,
    )
    axis.set(xlim=(0, 1), xticks=[])
    axis.tick_params(length=0)
    axis.invert_yaxis()
    axis.spines[:].set_visible(False)
    literal(figure).canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()
