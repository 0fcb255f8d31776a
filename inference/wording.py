"""A prediction in plain words, for pictures and the page: no flags, no codes, no folders."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import bidirectional

import numpy as np

from inference.prediction import ENSEMBLE, FUSED, MEAN, NAMES, ClipPrediction
from training.modalities import modality
from utils.errors import joined

PARTS = {FUSED: "all together", MEAN: "mean of the parts", ENSEMBLE: "all models together"}
CLEAR = 0.15  # of the way from chance to certainty that an answer has to go
NEAR = 0.05  # an answer that leads by less has a rival
SENTENCE = "--text"  # how a sentence without a clip is named in tables
WHY = {  # code -> what a visitor understands
    "E_NOAUDIO": "the clip has no sound",
    "E_SILENT": "the clip is silent",
    "E_NOVOICE": "nobody is heard to speak",
    "E_SHORT": "there is too little of it",
    "E_NOVIDEO": "the clip has no picture",
    "E_NOFACE": "none was found in the clip",
    "E_OPEN": "the file could not be read",
    "E_TRUNC": "the file is cut short",
    "E_CODEC": "the file is damaged",
    "E_LIMIT": "the clip is too long or too large",
    "E_TIMEOUT": "it took too long",
}
GIVEN = ("no clip was given", "no sentence was given")


def class_names(classes: Sequence[str]) -> list[str]:
    """The classes for people. Our own codes are written out (hap: happiness); in a list that has
    any other name, all stand as they are: "happy, sadness" would be one of each."""
    known = set(classes) <= set(NAMES)
    return [NAMES[name] if known else name for name in classes]


def isolated(name: str) -> str:
    """A name in a sentence: of a script from right to left, marked so that the sentence keeps its
    order (Unicode's isolates)."""
    backwards = any(bidirectional(letter) in ("R", "AL") for letter in name)
    return f"\u200e\u2068{name}\u2069" if backwards else name


def label_name(prediction: ClipPrediction) -> str:
    return class_names(prediction.classes)[int(prediction.probabilities.argmax())]


def part_name(part: str) -> str:
    """A part of a prediction in words for people."""
    return PARTS.get(part) or modality(part).title


def title_of(prediction: ClipPrediction) -> str:
    """Which clip, or which part of one."""
    if prediction.source.name == SENTENCE:
        return "a sentence"
    return prediction.title.rpartition("/")[2]


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def doubt(probabilities: np.ndarray, names: Sequence[str]) -> str:
    """Why the largest of the probabilities (K,) is no clear answer; "" where it is one."""
    first, second = np.sort(probabilities)[::-1][:2]
    chance = 1 / len(probabilities)
    if first < chance + CLEAR * (1 - chance):
        return f"chance is {percent(chance)}: no clear answer"
    if first - second < NEAR:
        rival = names[int(np.argsort(probabilities)[-2])]
        return f"hardly more than {rival}, {percent(second)}: no clear answer"
    return ""


def likeliest(
    probabilities: np.ndarray, names: Sequence[str], most: int
) -> tuple[np.ndarray, list[str]]:
    """The probabilities (K,) and their names; of more than `most` classes only the largest, in
    their order, and last what the others share."""
    if len(probabilities) <= most:
        return probabilities, list(names)
    first = np.sort(np.argsort(-probabilities, kind="stable")[: most - 1])
    rest = max(0.0, 1 - probabilities[first].sum())
    others = f"{len(probabilities) - len(first)} others"
    return np.append(probabilities[first], rest), [*(names[place] for place in first), others]


def headline(prediction: ClipPrediction) -> str:
    """happiness, 88 %; or happiness, 16 %; chance is 14 %: no clear answer."""
    if not prediction.parts:
        return "no answer"
    names = [isolated(name) for name in class_names(prediction.classes)]
    answer = f"{isolated(label_name(prediction))}, {percent(prediction.probabilities.max())}"
    why = doubt(prediction.probabilities, names)
    return f"{answer}; {why}" if why else answer


def is_clear(prediction: ClipPrediction) -> bool:
    return not doubt(prediction.probabilities, prediction.classes)


def basis(prediction: ClipPrediction) -> str:
    """What the answer rests on, where that is less than the model reads; else ""."""
    if not (prediction.parts and prediction.missing):
        return ""
    text = f"This rests on the {joined([part_name(each) for each in prediction.rests_on])} alone."
    if prediction.not_fused:
        text += " The model was not trained for clips that lack something."
    return text


def absences(prediction: ClipPrediction) -> list[str]:
    """A sentence for each reason why inputs are missing."""
    reasons: dict[str, list[str]] = {}
    for name, why in prediction.missing.items():
        reasons.setdefault(reason(why), []).append(part_name(name))
    return [f"{joined(names).capitalize()} not used: {why}." for why, names in reasons.items()]


def reason(why: str) -> str:
    """A reason of the tables (CODE: numbers, flags and files) as a visitor understands it."""
    code, _, told = why.partition(": ")
    if code == "E_SHORT" and ("none of the words" in told or "none of its words" in told):
        return "the model knows none of them"
    if "no times" in told:
        return "a sentence has no times, and this clip was cut into parts"
    if "no subtitle" in told:
        return "no subtitle stands in them"
    if code != "E_MISSING":
        return WHY.get(code, "it could not be read")
    if "--word_vectors" in told:
        return "sentences cannot be read here"
    if "compared with other clips" in told:
        return "the model compares several clips of a person, and this is one"
    return told if told in GIVEN else "no sentence was given"


def remarks(predictions: list[ClipPrediction]) -> list[str]:
    """All that must be said besides the numbers; what is true of several parts only once."""
    said = [text for each in predictions for text in (basis(each), *absences(each)) if text]
    said += [f"{note[0].upper()}{note[1:]}." for each in predictions for note in each.source.notes]
    return list(dict.fromkeys(text.replace("?.", "?") for text in said))
