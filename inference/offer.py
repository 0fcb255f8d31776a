"""What the page says of a model where it is chosen, and beside its answers: title, card, warning.

All of it is what the checkpoints hold of their training (inference/card.py); nothing is measured
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.card import Card, card_of, of_folds
from inference.wording import part_name, percent
from training.card import of_people
from training.checkpoint import Checkpoint
from utils.errors import joined

TOY = "Trained on generated clips of one face: its answers mean nothing for real people."


def offer(checkpoints: Sequence[Checkpoint], name: str) -> dict[str, Any]:
    """`title` for the menu, the sentences of each checkpoint's card in `cards`, and a `warning` or
    ""; several are an ensemble, and folds of a run have one card."""
    cards = [card_of(each, name) for each in checkpoints]
    folds = {each["config"]["fold"] for each in checkpoints} - {None}
    if 1 < len(folds) == len(cards):
        cards = [of_folds(cards)]
    inputs = dict.fromkeys(part_name(each) for card in cards for each in card["inputs"])
    several = [f"Model {number} of {len(cards)}" for number in range(1, len(cards) + 1)]
    subjects = several if len(cards) > 1 else ["It"]
    return {
        "name": name,
        "title": f"{joined([*inputs])} ({name.rpartition('/')[2]})",
        "cards": [sentences(card, subject) for card, subject in zip(cards, subjects, strict=True)],
        "warning": TOY if any(card["generated"] for card in cards) else "",
    }


def sentences(card: Card, subject: str) -> list[str]:
    """What the model reads and learnt from, and how often it was right; `subject`: its name in the
    first sentence."""
    lines = [f"{subject} reads the {joined([part_name(each) for each in card['inputs']])}."]
    if "folds" in card:
        lines[0] += f" It is {card['folds']} networks that answer together: one for each fold."
    if card.get("clips"):
        people = of_people(card.get("people"))
        is_named = card["corpus"] not in ("", "csv")  # csv: clips of one's own
        source = f" of the corpus {card['corpus']}" if is_named else ""
        language = f" ({card['language']})" if card.get("language") else ""
        lines.append(f"It learnt from {card['clips']} clips{people}{source}{language}.")
    if "accuracy" not in card:
        return [*lines, "How often it is right was not measured."]
    low, high = card["interval"]
    people = of_people(card.get("tested_people"))
    lines.append(
        f"It was right for {percent(card['accuracy'])} of {card['tested_clips']} clips{people} "
        f"that it had not learnt from (95 % interval over {card['interval_over']}: "
        f"{percent(low)} to {percent(high)}). "
        f"Guessing would be right for {percent(card['chance'])}."
    )
    if card["chose_epoch"]:
        lines.append("These clips chose its best epoch: for new people expect less.")
    for each in card.get("elsewhere", ()):
        clips, chance = each["tested_clips"], percent(each["chance"])
        right = f"right for {percent(each['accuracy'])} of {clips} clips; guessing: {chance}"
        lines.append(f"On {each['corpus']}, which it has not seen: {right}.")
    return lines
