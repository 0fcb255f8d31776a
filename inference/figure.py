"""Answers -> pictures: what the models saw of a clip, how it counted, and what they say."""

from __future__ import annotations

import math
import textwrap
import warnings
from typing import Any

import numpy as np

from inference.prediction import ENSEMBLE, FUSED, MEAN, NAMES, ClipPrediction, Seen
from training.modalities import MODALITIES, modality
from utils.plots import INK, VAL, blank_figure, png

SOFT, PALE, GREY = "#8aa4c8", "#cfd6e0", "#777777"
PARTS = {FUSED: "all together", MEAN: "mean of the parts", ENSEMBLE: "all runs together"}
FRAMES = 8  # of the face strip
UNEQUAL = 1.25  # times the mean: a frame that counted more than the others
FONTS = ("DejaVu Sans", "Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")
CAUTION = "Displayed emotion as a model classifies it, not what a person feels."


def draw_prediction(prediction: ClipPrediction) -> bytes:
    """One clip at a glance, as PNG: evidence, what each part says alone, and the prediction."""
    figure = blank_figure((11, 5.4))
    head = "no answer"
    if prediction.parts:
        head = f"{class_name(prediction.label)}, {prediction.probabilities.max():.0%}"
        show_result(figure.add_axes((0.83, 0.1, 0.13, 0.68)), prediction)
    figure.text(0.02, 0.935, head, fontsize=20, weight="bold", color=INK, va="center")
    if prediction.missing:
        remark = prediction.remarks[0][:110]
        figure.text(0.02, 0.875, remark, fontsize=8.5, color=GREY, va="center")
    name = prediction.title.rpartition("/")[2][-70:]
    figure.text(0.98, 0.935, name, fontsize=9, color=GREY, ha="right", va="center")
    for picture, (low, height) in ROWS.items():
        shown = [name for name, row in MODALITIES.items() if row.picture == picture]
        seen = [name for name in shown if evidence(prediction, name)]
        name = (seen or shown)[0]
        axis = panel(figure, (0.02, low, 0.5, height), name, prediction)
        if seen:
            SHOW[picture](axis, prediction, name)
        if name in prediction.parts and len(prediction.parts) > 1:
            axis = figure.add_axes((0.61, low - 0.01, 0.1, 0.2))
            bars(axis, prediction.parts[name], prediction.classes, 7)
            axis.set_title(f"{part_name(name)} alone", loc="left", fontsize=9, color=INK, pad=3)
    figure.text(0.02, 0.02, CAUTION, fontsize=7.5, color=GREY)
    with warnings.catch_warnings():  # a script that no installed font has: boxes, no noise
        warnings.filterwarnings("ignore", message="Glyph")
        return png(figure)


def part_name(part: str) -> str:
    """A part of a prediction in words for people."""
    return PARTS.get(part) or modality(part).title


def class_name(label: str) -> str:
    return NAMES.get(label, label)


def panel(figure: Any, box: tuple, name: str, prediction: ClipPrediction) -> Any:
    """Axes with a title; in them why the modality is missing, when it is."""
    axis = figure.add_axes(box)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(part_name(name), loc="left", fontsize=9, color=INK, weight="bold", pad=3)
    if not evidence(prediction, name):
        why = prediction.missing.get(name, "not an input of this model")
        axis.set_facecolor("#f4f4f4")
        reason = textwrap.fill(f"none: {why.partition(': ')[2] or why}", 80)
        axis.text(0.02, 0.5, reason, transform=axis.transAxes, va="center", color=GREY, fontsize=9)
    return axis


def evidence(prediction: ClipPrediction, name: str) -> Any:
    """What a model saw of a modality, or else what its encoders did; nothing where neither did."""
    encoded = prediction.encoded.get(name) or (name in prediction.encoders and Seen(None, None))
    return prediction.seen.get(name) or encoded


def read_by(prediction: ClipPrediction, name: str) -> str:
    names = prediction.encoders.get(name)
    return f"read by {', '.join(names)}" if names else ""


def note(axis: Any, text: str) -> None:
    axis.set_title(text, loc="right", fontsize=7, color=GREY, pad=3)


def show_frames(axis: Any, prediction: ClipPrediction, name: str) -> None:
    """The frames that the model saw; under each how much it counted, the most in colour."""
    view, weights = evidence(prediction, name)
    shown = np.linspace(0, len(view) - 1, min(len(view), FRAMES)).round().astype(int)
    stands_out = weights is not None and weights[shown].max() > UNEQUAL * weights[shown].mean()
    for place, index in enumerate(shown):
        crop = view[index].transpose(1, 2, 0)  # (S, S, 3)
        axis.imshow(crop, extent=(place, place + 0.95, 0, 0.95))
        if weights is not None:
            color = VAL if stands_out and weights[index] == weights[shown].max() else SOFT
            axis.bar(
                place, 0.3 * weights[index] / weights.max(), 0.95, -0.36, align="edge", color=color
            )
    axis.set(xlim=(0, max(6, len(shown))), ylim=(-0.36, 0.95), aspect="equal", anchor="W")
    equally = "" if stands_out else ", about equally"
    told = f"bars: how much each frame counted{equally}"
    note(axis, told if weights is not None else read_by(prediction, name))


def show_spectrogram(axis: Any, prediction: ClipPrediction, name: str) -> None:
    """The log-mel over the clip's seconds, and how much each stretch of it counted."""
    (log_mel,), weights = evidence(prediction, name)
    facts = prediction.facts
    width, total = log_mel.shape[1], float(facts["speech_frames"])
    begin = facts["speech_start"]
    rate = total / (facts["speech_end"] - begin)
    skipped = int((total - width) / 2)  # columns before the view; negative: zeros in front of it
    first, last = max(0, -skipped), min(width, int(total) - skipped)
    seconds = begin + (np.array([first, last]) + skipped) / rate
    axis.imshow(
        log_mel[:, first:last], origin="lower", aspect="auto", cmap="magma", extent=(*seconds, 0, 1)
    )
    if weights is not None:
        edges = begin + (token_edges(width, len(weights)) + skipped) / rate
        axis.stairs(0.9 * weights / weights.max(), edges, color="white", linewidth=2, baseline=None)
    axis.set(xlim=seconds, ylim=(0, 1))
    axis.set_xticks(seconds, [f"{second:.1f} s" for second in seconds], fontsize=7, color=GREY)
    told = "line: how much each moment counted"
    note(axis, told if weights is not None else read_by(prediction, name))


def token_edges(width: int, tokens: int) -> np.ndarray:
    """The columns where tokens begin and end (tokens + 1,): each stands for 2 ** n of them, the
    last one for fewer where the width ends before."""
    stride = 2 ** math.ceil(math.log2(width / tokens))
    return np.arange(tokens + 1) * stride


def show_words(axis: Any, prediction: ClipPrediction, name: str) -> None:
    words = f"“{prediction.source.clip.transcript}”"
    if not prediction.source.clip.transcript:
        words = f"{prediction.facts['words']} word vectors (what the words are is not known)"
    lines = textwrap.wrap(words, 68)
    text = "\n".join(lines[:2]) + (" …" if len(lines) > 2 else "")
    axis.text(0.01, 0.5, text, va="center", color=INK, fontsize=11, fontfamily=fonts())
    if name not in prediction.seen:
        note(axis, read_by(prediction, name))


def fonts() -> list[str]:
    """Those of FONTS that this machine has: together they write Latin and Korean."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [name for name in FONTS if name in installed]


def show_result(axis: Any, prediction: ClipPrediction) -> None:
    part = prediction.deciding_part
    bars(axis, prediction.probabilities, prediction.classes, 10)
    title = part_name(part) if len(prediction.parts) > 1 else f"{part_name(part)} alone"
    if part == FUSED and len(prediction.parts) == 1 and not prediction.missing:
        title = " + ".join(part_name(name) for name in prediction.rests_on)
    elif part == FUSED and prediction.missing:
        title = "given " + " + ".join(part_name(name) for name in prediction.rests_on)
    axis.set_title(title, loc="left", fontsize=10, color=INK, weight="bold")
    for place, value in enumerate(prediction.probabilities):
        axis.text(value + 0.03, place, f"{value:.0%}", va="center", fontsize=8, color=GREY)


SHOW = {"frames": show_frames, "spectrogram": show_spectrogram, "words": show_words}
ROWS = {"frames": (0.58, 0.23), "spectrogram": (0.335, 0.15), "words": (0.09, 0.12)}
# of each kind of evidence: lower edge and height


def bars(axis: Any, probabilities: np.ndarray, names: list[str], size: int) -> None:
    """One bar per class from the top down, the largest in colour."""
    colors = [VAL if value == probabilities.max() else PALE for value in probabilities]
    axis.barh(range(len(probabilities)), probabilities, 0.75, color=colors)
    axis.set(xlim=(0, 1), xticks=[])
    axis.set_yticks(range(len(names)), map(class_name, names), fontsize=size, color=INK)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
