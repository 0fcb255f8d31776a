"""Answers -> pictures: what the models saw of a clip, how it counted, and what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from inference import wording
from inference.card import origin
from inference.prediction import FUSED, ClipPrediction, Seen
from inference.wording import class_names, part_name
from training.modalities import MODALITIES
from utils.fonts import drawable, shortened, wrapped
from utils.plots import GREY, INK, VAL, blank_figure, png

SOFT, PALE = "#8aa4c8", "#cfd6e0"
FRAMES = 8  # of the face strip
STRIDES = (32, 16, 8, 64)  # columns of a log-mel that a token of a backbone stands for
UNEQUAL = 1.25  # times the mean: a frame or moment that counted more than the others
NAME = 14  # columns of a class beside its bar
MOST, ALONE = 12, 8  # bars of the answer, and of what a part says alone
CAUTION = "Displayed emotion as a model classifies it, not what a person feels."


def draw_prediction(prediction: ClipPrediction) -> bytes:
    """One clip at a glance, as PNG: evidence, what each part says alone, and the prediction."""
    figure = blank_figure((11, 5.4))
    clear = bool(prediction.parts) and wording.is_clear(prediction)
    look = dict(fontsize=20, weight="bold", color=INK) if clear else dict(fontsize=15, color=GREY)
    figure.text(0.02, 0.935, shortened(wording.headline(prediction), 90), va="center", **look)
    if prediction.parts:
        show_result(figure.add_axes((0.83, 0.1, 0.13, 0.68)), prediction, clear)
    if remark := wording.basis(prediction):
        figure.text(0.02, 0.875, remark[:130], fontsize=8.5, color=GREY, va="center")
    name = shortened(wording.title_of(prediction), 70)
    figure.text(0.98, 0.02, name, fontsize=7.5, color=GREY, ha="right")
    for picture, (low, height) in ROWS.items():
        shown = [name for name, row in MODALITIES.items() if row.picture == picture]
        seen = [name for name in shown if evidence(prediction, name)]
        name = (seen or shown)[0]
        axis = panel(figure, (0.02, low, 0.5, height), name, prediction)
        if seen:
            SHOW[picture](axis, prediction, name)
        if name in prediction.parts and len(prediction.parts) > 1:
            axis = figure.add_axes((0.61, low - 0.01, 0.1, 0.2))
            names = class_names(prediction.classes)
            bars(axis, prediction.parts[name], names, 7, most=ALONE)
            axis.set_title(f"{part_name(name)} alone", loc="left", fontsize=9, color=INK, pad=3)
    figure.text(0.02, 0.015, CAUTION, fontsize=7.5, color=GREY)
    warnings = {card["warning"] for card in prediction.cards if card["warning"]}
    origins = dict.fromkeys(map(came_from, prediction.cards))  # folds have the same
    told = "; ".join(warnings) or "; ".join(origins)
    look = dict(color=VAL, weight="bold") if warnings else dict(color=GREY)
    figure.text(0.02, 0.045, shortened(told[:1].upper() + told[1:], 190), fontsize=7.5, **look)
    return png(figure)


def came_from(card: dict[str, Any]) -> str:
    """A model's inputs and the clips that it learnt from; how many stands in the table."""
    inputs = " and ".join(map(part_name, card["inputs"]))
    return f"{inputs} {origin({**card, 'clips': 0, 'people': 0})}"


def draw_evidence(prediction: ClipPrediction) -> bytes:
    """What the models saw and heard alone, as a narrow PNG that a phone can show; b"" for none, or
    for a sentence, which the page itself shows."""
    seen = {}
    for name, row in MODALITIES.items():
        if row.picture in ROWS and row.picture not in seen and evidence(prediction, name):
            seen[row.picture] = name
    if prediction.source.clip.transcript:
        seen.pop("words", None)
    if not seen:
        return b""
    rows = {picture: NARROW[picture] for picture in ROWS if picture in seen}  # inches
    total = sum(TITLE + height + below for height, below in rows.values())
    figure, top = blank_figure((WIDE, total)), total
    for picture, (height, below) in rows.items():
        top -= TITLE + height
        box = (0.05, top / total, 0.9, height / total)
        SHOW[picture](panel(figure, box, seen[picture], prediction), prediction, seen[picture])
        top -= below
    return png(figure, dpi=200)  # sharp on a phone, which has many pixels


def panel(figure: Any, box: tuple, name: str, prediction: ClipPrediction) -> Any:
    """Axes with a title; in them why the modality is missing, when it is."""
    axis = figure.add_axes(box)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(part_name(name), loc="left", fontsize=9, color=INK, weight="bold", pad=3)
    if not evidence(prediction, name):
        why = prediction.missing.get(name) or prediction.unseen.get(name)
        axis.set_facecolor("#f4f4f4")
        reason = f"not used: {wording.reason(why)}" if why else "not read by this model"
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
    still = bool((view == view[:1]).all())  # repeated for as long as a model wants
    count = 1 if still else min(len(view), FRAMES)
    shown = np.linspace(0, len(view) - 1, count).round().astype(int)
    even = weights is not None and weights.max() <= UNEQUAL * weights[weights > 0].mean()
    even = even or still
    for place, index in enumerate(shown):
        crop = view[index].transpose(1, 2, 0)  # (S, S, 3)
        axis.imshow(crop, extent=(place, place + 0.95, 0, 0.95))
        if weights is not None and not even:
            color = VAL if weights[index] == weights[shown].max() else SOFT
            axis.bar(
                place, 0.3 * weights[index] / weights.max(), 0.95, -0.36, align="edge", color=color
            )
    floor = 0 if weights is None or even else -0.36
    axis.set(xlim=(0, max(6, len(shown))), ylim=(floor, 0.95), aspect="equal", anchor="NW")
    told = "all frames counted about equally" if even else "bars: how much each frame counted"
    told = "the same in all frames" if still else told
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
    even = weights is not None and weights.max() <= UNEQUAL * weights.mean()
    if weights is not None and not even:  # above the sound: over it, it would look like sound
        edges = begin + (token_edges(width, len(weights)) + skipped) / rate
        colors = [VAL if weight == weights.max() else SOFT for weight in weights]
        height = 0.4 * weights / weights.max()
        axis.bar(edges[:-1], height, np.diff(edges), 1.06, align="edge", color=colors)
    axis.set(xlim=seconds, ylim=(0, 1.46 if weights is not None and not even else 1))
    axis.set_xticks(seconds, [f"{second:.1f} s" for second in seconds], fontsize=7, color=GREY)
    told = "all moments counted about equally" if even else "bars: how much each moment counted"
    note(axis, told if weights is not None else read_by(prediction, name))


def token_edges(width: int, tokens: int) -> np.ndarray:
    """The columns where tokens begin and end (tokens + 1,): each stands for STRIDES[0] of them, or
    another of these numbers. What is left at the end makes a token or none, as the backbone has
    it."""
    fits = [stride for stride in STRIDES if tokens in (width // stride, -(-width // stride))]
    return np.arange(tokens + 1) * (fits[0] if fits else width / tokens)


def show_words(axis: Any, prediction: ClipPrediction, name: str) -> None:
    words = f"“{prediction.source.clip.transcript}”"
    if not prediction.source.clip.transcript:
        words = f"{prediction.facts['words']} word vectors (what the words are is not known)"
    inches = axis.get_position().width * axis.figure.get_figwidth()
    text = wrapped(drawable(words)[0], int(inches / 0.1), 2 if inches > WIDE else 3)
    axis.text(0.01, 0.5, text, va="center", color=INK, fontsize=11)
    if name not in prediction.seen:
        note(axis, read_by(prediction, name))


def show_result(axis: Any, prediction: ClipPrediction, clear: bool) -> None:
    part = prediction.deciding_part
    names = class_names(prediction.classes)
    bars(axis, prediction.probabilities, names, 10, clear)
    title = part_name(part) if len(prediction.parts) > 1 else f"{part_name(part)} alone"
    if part == FUSED and len(prediction.parts) == 1 and not prediction.missing:
        title = " + ".join(part_name(name) for name in prediction.rests_on)
    elif part == FUSED and prediction.missing:
        title = "given " + " + ".join(part_name(name) for name in prediction.rests_on)
    axis.set_title(title, loc="left", fontsize=10, color=INK, weight="bold")


SHOW = {"frames": show_frames, "spectrogram": show_spectrogram, "words": show_words}
# On a phone, inches: width, of a title, and of each kind of evidence with the room below it.
WIDE, TITLE = 3.4, 0.25
NARROW = {"frames": (0.62, 0.08), "spectrogram": (0.9, 0.32), "words": (0.6, 0.05)}
ROWS = {"frames": (0.58, 0.23), "spectrogram": (0.335, 0.15), "words": (0.09, 0.12)}
# of each kind of evidence: lower edge and height


def bars(
    axis: Any,
    probabilities: np.ndarray,
    names: list[str],
    size: float,
    clear: bool = True,
    most: int = MOST,
) -> None:
    """One bar per class from the top down with its percent, of many only for the largest; the
    largest in colour, if `clear`."""
    largest, top = VAL if clear else GREY, probabilities.max()
    probabilities, names = wording.likeliest(probabilities, names, most)
    colors = [largest if value == top else PALE for value in probabilities]
    axis.barh(range(len(probabilities)), probabilities, 0.75, color=colors)
    for place, value in enumerate(probabilities):
        number = wording.percent(value)
        axis.text(value + 0.03, place, number, va="center", fontsize=0.8 * size, color=GREY)
    axis.set(xlim=(0, 1), xticks=[])
    shown = [shortened(drawable(name)[0], NAME) for name in names]
    axis.set_yticks(range(len(names)), shown, fontsize=size, color=INK)
    axis.set_ylim(max(len(names), 5) - 0.3, -0.7)  # two bars need not fill the place of five
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_bounds(-0.7, len(names) - 0.3)
