"""Predictions for one recording -> a time line as a picture, and what is drawn into its video."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from inference import wording
from inference.figure import CAUTION
from inference.prediction import ClipPrediction
from inference.wording import class_names, part_name
from utils.errors import counted
from utils.fonts import columns, drawable, shortened
from utils.plots import GREY, INK, LETTER, blank_figure, literal, png

WIDTH = 8.58  # inches of the time line
BARS_FROM = 480  # pixels of width: a narrower picture shows the answer alone
COLORS = ("#e8b93c", "#c8553d", "#6a9a4f", "#7d5ba6", "#4a78b5", "#b9bec6", "#e58a35", "#4fb3a5")
OTHERS = "#eeeeee"  # of many classes those without a colour, together


def draw_timeline(predictions: list[ClipPrediction]) -> bytes:
    """The utterances of one recording over its seconds: shares of the classes, the first named."""
    from matplotlib.patches import Patch

    spans = [(each.source.start or 0.0, each.source.end or 0.0) for each in predictions]
    first, last = predictions[0].source.extent or (spans[0][0], spans[-1][1])
    figure = blank_figure((11, 4))
    head = shortened(summary(predictions), 80)
    figure.text(0.03, 0.94, head, fontsize=14, weight="bold", color=INK, va="center")
    grey = dict(fontsize=7.5, color=GREY, va="center")
    figure.text(0.03, 0.87, bases(predictions), **grey)
    axis = figure.add_axes((0.06, 0.22, WIDTH / 11, 0.43))
    shown = in_colour(predictions)
    for prediction, (start, end) in zip(predictions, spans, strict=True):
        stack(axis, prediction, shown, start, end)
        inches = WIDTH * (end - start) / (last - first)
        if prediction.parts and inches > WIDTH / 90:  # else its colour must do
            clear = wording.is_clear(prediction)
            name = shortened(drawable(wording.label_name(prediction))[0], 14)
            narrow = dict(fontsize=9)
            if (columns(name) + 1) * LETTER > inches:
                name, narrow = shortened(name, 12), dict(rotation=90, fontsize=7)
            label = wording.isolated(name) + ("" if clear else "?")
            place = ((start + end) / 2, 1.04)
            color = INK if clear else GREY
            axis.text(*place, label, ha="center", va="bottom", color=color, **narrow)
    names = class_names(predictions[0].classes)
    named = {names[place]: color for place, color in shown.items()}
    if rest := len(names) - len(shown):
        named[f"{rest} others"] = OTHERS
    handles = [
        Patch(color=color, label=shortened(drawable(name)[0], 16)) for name, color in named.items()
    ]
    figure.legend(handles=handles[::-1], loc="center right", frameon=False, fontsize=9)
    axis.set(xlim=(first, last), ylim=(0, 1), yticks=[0, 0.5, 1])
    axis.set_yticklabels(["0 %", "50 %", "100 %"], fontsize=8, color=GREY)
    axis.set_xlabel("seconds", fontsize=8, color=INK)
    axis.set_ylabel("probability", fontsize=8, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    name = shortened(Path(predictions[0].source.name).name, 70)
    figure.text(0.03, 0.03, CAUTION, **grey)
    figure.text(0.97, 0.03, f"{name}; ?: no clear answer", ha="right", **grey)
    return png(figure)


def in_colour(predictions: list[ClipPrediction]) -> dict[int, str]:
    """{class: its colour}: all, or of more than there are colours first the answers of the parts,
    then what is likely over the recording."""
    weights = np.zeros(len(predictions[0].classes))
    for each in filter(lambda each: each.parts, predictions):
        weights += each.probabilities
        weights[each.probabilities.argmax()] += len(predictions)
    most = np.sort(np.argsort(-weights, kind="stable")[: len(COLORS)])
    return dict(zip(most.tolist(), COLORS, strict=False))


def summary(predictions: list[ClipPrediction]) -> str:
    """What is said most often, and in how many of the parts."""
    clear = [each for each in predictions if each.parts and wording.is_clear(each)]
    names = (wording.isolated(wording.label_name(each)) for each in clear)
    counts = Counter(names).most_common()
    parts = counted(len(predictions), "part")
    if not counts:
        return "no clear answer" + (f" in any of {parts}" if len(predictions) > 1 else "")
    if len(counts) > 2 and counts[0][1] == counts[2][1]:
        answers = counted(len(clear), "clear answer")
        return f"no emotion prevails: {len(counts)} different ones in {answers} of {parts}"
    has_second = len(counts) == 2 or (len(counts) > 2 and counts[1][1] > counts[2][1])
    leading = counts[: 1 + has_second]  # not one of several that are as frequent
    said = " and ".join(f"{name} in {count}" for name, count in leading)
    return f"{said} of {parts}"


def bases(predictions: list[ClipPrediction]) -> str:
    """What the predictions rest on: no colour tells whether a voice was heard at all."""
    names = Counter(" + ".join(part_name(name) for name in each.rests_on) for each in predictions)
    shares = (
        f"{what or 'no answer'} ({count} of {len(predictions)})" for what, count in names.items()
    )
    reasons = dict.fromkeys(text for each in predictions for text in wording.absences(each))
    return ". ".join([f"rests on {', '.join(shares)}", " ".join(list(reasons)[:2])]).strip(". ")


def stack(
    axis: Any, prediction: ClipPrediction, shown: dict[int, str], start: float, end: float
) -> None:
    """One utterance: the probabilities of the classes `shown` on top of each other and what the
    others share, or an empty box."""
    if not prediction.parts:
        axis.bar(start, 1, end - start, align="edge", color="none", edgecolor="#cccccc", hatch="//")
        return
    values = prediction.probabilities[[*shown]]
    values, floors = np.append(values, max(0.0, 1 - values.sum())), np.cumsum([0, *values])
    for value, floor, color in zip(values, floors, (*shown.values(), OTHERS), strict=True):
        axis.bar(start, value, end - start, floor, align="edge", color=color, edgecolor="white")


def overlay(prediction: ClipPrediction, width: int) -> np.ndarray:
    """A dark, half transparent plate with the answer, (H, W, 4) uint8; on a picture wide enough
    also with the bars of the likeliest classes. It must not hide a face."""
    names = [shortened(drawable(name)[0], 14) for name in class_names(prediction.classes)]
    percent = wording.percent(prediction.probabilities.max())
    head = f"{wording.isolated(names[int(prediction.probabilities.argmax())])} {percent}"
    head = head if wording.is_clear(prediction) else f"{head}?"
    side = max(130, round(0.26 * width))  # pixels
    dark = (0, 0, 0, 0.55)
    if width < BARS_FROM:
        figure = blank_figure((2.4, 0.4), dpi=side / 2.4, facecolor=dark)
        figure.text(0.05, 0.45, head, color="white", fontsize=13, weight="bold", va="center")
        return pixels(figure)
    figure = blank_figure((2.4, 1.2), dpi=side / 2.4, facecolor=dark)
    figure.text(0.06, 0.84, head, color="white", fontsize=13, weight="bold", va="center")
    axis = figure.add_axes((0.46, 0.06, 0.48, 0.62), facecolor="none")
    most = np.argsort(-prediction.probabilities, kind="stable")[:4]
    axis.barh(range(len(most)), prediction.probabilities[most], color="white", height=0.7)
    labels = [names[place] for place in most]
    axis.set_yticks(range(len(most)), labels, color="white", fontsize=8)
    axis.set(xlim=(0, 1), xticks=[])
    axis.tick_params(length=0)
    axis.invert_yaxis()
    axis.spines[:].set_visible(False)
    return pixels(figure)


def pixels(figure: Any) -> np.ndarray:
    """(H, W, 4) uint8 of a figure."""
    literal(figure).canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()
