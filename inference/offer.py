"""What is said of a model where it is chosen, and beside its answers: title, card, warning.

All of it is what the checkpoint holds of its training; nothing is measured here.
"""

from __future__ import annotations

from typing import Any

from evaluation.report import joined
from evaluation.scores import wilson
from inference.wording import part_name, percent

GENERATED = ("demo",)  # corpora that no person was recorded for
TOY = "Trained on generated clips of one face: its answers mean nothing for real people."


def offer(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """`title` for the menu, `lines` of the card, and a `warning` or ""."""
    inputs = [part_name(each) for each in checkpoint["arch"]["encoders"]]
    run = name.rpartition("/")[2]
    toy = checkpoint.get("corpus") in GENERATED
    return {
        "name": name,
        "title": f"{joined(inputs)} ({run})",
        "lines": card(checkpoint),
        "warning": TOY if toy else "",
    }


def card(checkpoint: dict[str, Any]) -> list[str]:
    """Sentences: what the model reads and learnt from, and how often it was right."""
    inputs = joined([part_name(each) for each in checkpoint["arch"]["encoders"]])
    number = str(checkpoint.get("data", {}).get("training", "")).partition(" clips")[0]
    source = f" of the corpus {checkpoint['corpus']}" if checkpoint.get("corpus") else ""
    lines = [f"It reads {inputs}."]
    if number.isdigit():
        lines.append(f"It learnt from {number} clips{source}.")
    measured, chance = checkpoint["val"] or {}, 1 / len(checkpoint["classes"])
    if measured.get("clips"):
        right, clips = measured["accuracy"], int(measured["clips"])
        low, high = wilson(right, clips)
        lines.append(
            f"It was right for {percent(right)} of {clips} clips that it had not learnt from "
            f"(95 % interval over clips: {percent(low)} to {percent(high)}). "
            f"Guessing would be right for {percent(chance)}."
        )
        lines.append("These clips chose its best epoch: for new people expect less.")
    else:
        lines.append("How often it is right was not measured.")
    return lines
