"""Answers -> pictures: what the models saw of a clip, how it counted, and what they say."""

from __future__ import annotations

import textwrap
import warnings
from typing import Any

import numpy as np

from inference.answer import FUSED, MEAN, NAMES, Answer
from utils.plots import INK, VAL, blank_figure, png

SOFT, PALE, GREY = "#8aa4c8", "#cfd6e0", "#777777"
PARTS = {FUSED: "all together", MEAN: "mean of the parts", "speech": "voice", "face": "face"}
PARTS["text"] = "words"
FRAMES = 8  # of the face strip
UNEQUAL = 1.25  # times the mean: a frame that counted more than the others
FONTS = ("DejaVu Sans", "Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")
CAUTION = "Displayed emotion as a model classifies it, not what a person feels."


def draw_answer(answer: Answer) -> bytes:
    """One clip at a glance, as PNG: evidence, what each part says alone, and the answer."""
    figure = blank_figure((11, 5.4))
    head = "no answer"
    if answer.parts:
        head = f"{class_name(answer.label)}, {answer.probabilities.max():.0%}"
        show_result(figure.add_axes((0.83, 0.1, 0.13, 0.68)), answer)
    figure.text(0.02, 0.935, head, fontsize=20, weight="bold", color=INK, va="center")
    if answer.missing:
        figure.text(0.02, 0.875, answer.remarks[0][:110], fontsize=8.5, color=GREY, va="center")
    name = answer.title.rpartition("/")[2][-70:]
    figure.text(0.98, 0.935, name, fontsize=9, color=GREY, ha="right", va="center")
    for (modality, show), (low, height) in zip(EVIDENCE.items(), ROWS, strict=True):
        show(panel(figure, (0.02, low, 0.5, height), modality, answer), answer)
        if modality in answer.parts and len(answer.parts) > 1:
            axis = figure.add_axes((0.61, low - 0.01, 0.1, 0.2))
            bars(axis, answer.parts[modality], answer.classes, 7)
            axis.set_title(f"{PARTS[modality]} alone", loc="left", fontsize=9, color=INK, pad=3)
    figure.text(0.02, 0.02, CAUTION, fontsize=7.5, color=GREY)
    with warnings.catch_warnings():  # a script that no installed font has: boxes, no noise
        warnings.filterwarnings("ignore", message="Glyph")
        return png(figure)


def class_name(label: str) -> str:
    return NAMES.get(label, label)


def panel(figure: Any, box: tuple, modality: str, answer: Answer) -> Any:
    """Axes with a title; in them why the modality is missing, when it is."""
    axis = figure.add_axes(box)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(PARTS[modality], loc="left", fontsize=9, color=INK, weight="bold", pad=3)
    if modality not in answer.looks:
        why = answer.missing.get(modality, "not an input of this model")
        axis.set_facecolor("#f4f4f4")
        note = textwrap.fill(f"none: {why.partition(': ')[2] or why}", 80)
        axis.text(0.02, 0.5, note, transform=axis.transAxes, va="center", color=GREY, fontsize=9)
    return axis


def note(axis: Any, text: str) -> None:
    axis.set_title(text, loc="right", fontsize=7, color=GREY, pad=3)


def show_face(axis: Any, answer: Answer) -> None:
    """The frames that the model saw; under each how much it counted, the most in colour."""
    if "face" not in answer.looks:
        return
    view, weights = answer.looks["face"]
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
    note(axis, "bars: how much each frame counted" + ", about equally" * (not stands_out))


def show_speech(axis: Any, answer: Answer) -> None:
    """The log-mel over the clip's seconds, and how much each stretch of it counted."""
    if "speech" not in answer.looks:
        return
    (log_mel,), weights = answer.looks["speech"]
    width, total = log_mel.shape[1], float(answer.facts["speech_frames"])
    begin = answer.facts["speech_start"]
    rate = total / (answer.facts["speech_end"] - begin)
    skipped = int((total - width) / 2)  # columns before the view; negative: zeros in front of it
    first, last = max(0, -skipped), min(width, int(total) - skipped)
    seconds = begin + (np.array([first, last]) + skipped) / rate
    axis.imshow(
        log_mel[:, first:last], origin="lower", aspect="auto", cmap="magma", extent=(*seconds, 0, 1)
    )
    if weights is not None:
        edges = begin + (np.linspace(0, width, len(weights) + 1) + skipped) / rate
        axis.stairs(0.9 * weights / weights.max(), edges, color="white", linewidth=2, baseline=None)
    axis.set(xlim=seconds, ylim=(0, 1))
    axis.set_xticks(seconds, [f"{second:.1f} s" for second in seconds], fontsize=7, color=GREY)
    note(axis, "line: how much each moment counted")


def show_words(axis: Any, answer: Answer) -> None:
    if "text" not in answer.looks:
        return
    words = f"“{answer.source.clip.transcript}”"
    if not answer.source.clip.transcript:
        words = f"{answer.facts['words']} word vectors (what the words are is not known)"
    lines = textwrap.wrap(words, 68)
    text = "\n".join(lines[:2]) + " …" * (len(lines) > 2)
    axis.text(0.01, 0.5, text, va="center", color=INK, fontsize=11, fontfamily=fonts())


def fonts() -> list[str]:
    """Those of FONTS that this machine has: together they write Latin and Korean."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [name for name in FONTS if name in installed]


def show_result(axis: Any, answer: Answer) -> None:
    part, probabilities = next(iter(answer.parts.items()))
    bars(axis, probabilities, answer.classes, 10)
    title = PARTS[part] if len(answer.parts) > 1 else f"{PARTS[part]} alone"
    if part == FUSED and answer.missing:
        title = "given " + " + ".join(PARTS[name] for name in answer.rests_on)
    axis.set_title(title, loc="left", fontsize=10, color=INK, weight="bold")
    for place, value in enumerate(probabilities):
        axis.text(value + 0.03, place, f"{value:.0%}", va="center", fontsize=8, color=GREY)


EVIDENCE = {"face": show_face, "speech": show_speech, "text": show_words}
ROWS = ((0.58, 0.23), (0.335, 0.15), (0.09, 0.12))  # of each: lower edge and height


def bars(axis: Any, probabilities: np.ndarray, names: list[str], size: int) -> None:
    """One bar per class from the top down, the largest in colour."""
    colors = [VAL if value == probabilities.max() else PALE for value in probabilities]
    axis.barh(range(len(probabilities)), probabilities, 0.75, color=colors)
    axis.set(xlim=(0, 1), xticks=[])
    axis.set_yticks(range(len(names)), map(class_name, names), fontsize=size, color=INK)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
