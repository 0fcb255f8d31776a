"""Checkpoints -> what each model comes from: corpus, clips, people, what it was right on.

One function for all that shows an answer: the table, the JSON, the picture and the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.ensemble import Member
from evaluation.scores import wilson
from training.card import of_people
from training.checkpoint import Checkpoint
from training.modalities import modality
from training.tasks import task_of

GENERATED = "demo"  # the corpus whose people do not exist
WARNING = "trained on generated clips: its answers mean nothing for real people"
Card = dict[str, Any]


def card_of(checkpoint: Checkpoint, name: str) -> Card:
    """Plain data. `model` (its name), `inputs`, `corpus`, `language`, `clips`, `people` (of the
    training; 0: unknown), `accuracy`, `interval` (95 %) over `interval_over`, `tested_clips`,
    `tested_people`, `chose_epoch` (whether these clips did), `uar`, `recall` by class, `chance`,
    `ece`, `elsewhere` (the same on other corpora), `generated`, `warning`. What the checkpoint does
    not say is missing or "".

    The accuracy of a checkpoint that nobody packed is that of its validation clips, with an
    interval over clips.
    """
    config, packed = checkpoint["config"], "interval" in checkpoint.get("card", {})
    card: Card = {
        "model": name,
        "inputs": list(task_of(config).inputs),
        "corpus": "",
        "chance": round(1 / len(checkpoint["classes"]), 4),
        # a packed run with --val_fold was tested on the fold that it had not seen
        "chose_epoch": config["eval_step"] < config["n_epoch"]
        and not (packed and config["val_fold"]),
    }
    val = checkpoint["val"] or {}
    if clips := int(val.get("clips", 0)):
        ends = wilson(val["accuracy"], clips)
        card |= {"accuracy": round(val["accuracy"], 4), "tested_clips": clips}
        card |= {"interval": [round(end, 4) for end in ends], "interval_over": "clips"}
    card |= checkpoint.get("card", {})
    card["generated"] = card["corpus"] == GENERATED
    card["warning"] = WARNING if card["generated"] else ""
    return card


def cards(members: Sequence[Member]) -> list[Card]:
    """One for each checkpoint, in the order of the inputs that they read."""
    return [
        card_of(each.checkpoint, str(each.path.name if each.run.is_file() else each.run))
        for each in sorted(members, key=lambda each: each.path)
    ]


def by_run(cards: Sequence[Card]) -> list[Card]:
    """One card for all folds of a run; `folds` says how many it stands for."""
    runs: dict[str, list[Card]] = {}
    for place, card in enumerate(cards):
        name = card["model"]  # files may have the same one in other folders
        runs.setdefault(f"{name} {place}" if name.endswith(".pth") else name, []).append(card)
    return [of_folds(folds) for folds in runs.values()]


def of_folds(cards: list[Card]) -> Card:
    """What is true of all, and how often they are right on the clips that each held out."""
    if len(cards) == 1:
        return cards[0]
    same = {name: value for name, value in cards[0].items() if _all_equal(cards, name)}
    same |= {"folds": len(cards), "chose_epoch": any(each["chose_epoch"] for each in cards)}
    for name in ("clips", "people"):
        known = sorted({each[name] for each in cards if each.get(name)})
        if len(known) > 1:
            same[name] = f"{known[0]} to {known[-1]}"
    for name in ("accuracy", "tested_people"):
        same.pop(name, None)
    if all("accuracy" in each for each in cards):
        clips = [each["tested_clips"] for each in cards]
        accuracy = float(np.average([each["accuracy"] for each in cards], weights=clips))
        ends = list(wilson(accuracy, sum(clips)))
        same |= {"accuracy": accuracy, "interval": ends, "interval_over": "clips"}
        same["tested_clips"] = sum(clips)
    return same


def _all_equal(cards: list[Card], name: str) -> bool:
    return all(each.get(name) == cards[0][name] for each in cards)


def card_lines(cards: Sequence[Card]) -> list[str]:
    """A line for each model, for people; a warning where one is due."""
    lines = []
    for card in cards:
        inputs = " + ".join(modality(name).title for name in card["inputs"])
        together = f"; {card['folds']} folds together" if "folds" in card else ""
        lines.append(f"{inputs}: {origin(card)}; {worth(card)}{together}")
        lines += [f"  on {each['corpus']}: {worth(each)}" for each in card.get("elsewhere", ())]
        if card["warning"]:
            lines.append(f"{card['warning'].upper()} ({card['model']})")
    return lines


def origin(card: Card) -> str:
    """What it was trained on."""
    corpus = card["corpus"] or "a corpus that its checkpoint does not name"
    corpus = "clips of one's own" if corpus == "csv" else corpus
    language = f" ({card['language']})" if card.get("language") else ""
    clips = f", {card['clips']} clips" if card.get("clips") else ""
    people = of_people(card.get("people"))
    return f"trained on {corpus}{language}{clips}{people}"


def worth(card: Card) -> str:
    """How often it was right on clips that it was not trained on."""
    if "accuracy" not in card:
        return "never tested"
    people = of_people(card.get("tested_people"))
    low, high = card["interval"]
    interval = f"{low:.0%} to {high:.0%}"
    if card["interval_over"] == "clips":
        interval += " over clips"
    return (
        f"right on {card['accuracy']:.0%} ({interval}) of {card['tested_clips']} other clips"
        f"{people}, chance {card['chance']:.0%}"
    )
