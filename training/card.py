"""What a checkpoint says of its origin and its worth, as any file may claim it -> is it a card?

training/prepare.py begins a card, evaluation/pack.py adds the rest, inference/card.py shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

MOST = 1 << 53  # of what is counted: a larger number is no exact float
LONGEST = 10_000  # characters of a text
TOLD_WITH = {"accuracy": ("interval", "interval_over", "tested_clips", "chance")}


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def is_count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MOST


def is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_share, value))


def is_recall(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_share, value.values()))


def is_elsewhere(value: Any) -> bool:
    known = isinstance(value, list | tuple) and all(map(is_card, value))
    return known and all({"corpus", "accuracy"} <= each.keys() for each in value)


KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("corpus", "language", "interval_over"), is_text),
    **dict.fromkeys(("clips", "people", "tested_clips", "tested_people"), is_count),
    **dict.fromkeys(("accuracy", "uar", "chance", "ece", "ece_if_calibrated"), is_share),
    "temperature": lambda value: type(value) in (int, float) and 0 < value < math.inf,
    "voice_only": lambda value: isinstance(value, bool),
    "interval": is_interval,
    "recall": is_recall,
    "elsewhere": is_elsewhere,
}


def is_card(value: Any) -> bool:
    """Whether each entry is of its kind, and all are there that are told together."""
    return (
        isinstance(value, dict)
        and all(name in KINDS and KINDS[name](each) for name, each in value.items())
        and all({*others} <= value.keys() for name, others in TOLD_WITH.items() if name in value)
    )


def is_measured(val: dict[str, float]) -> bool:
    """Whether an accuracy can be told of so many clips, where there are any."""
    known = "accuracy" in val or not val.get("clips")
    return known and is_count(val.get("clips", 0)) and is_share(val.get("accuracy", 0))


def of_people(count: int | None) -> str:
    """Such as " of 8 people", behind a number of clips; nothing where they are not known."""
    return f" of {count} {'person' if count == 1 else 'people'}" if count else ""
