"""The tables of a folder's README.md, made of the cards of the models in it (evaluation/pack.py).

    python -m evaluation.cards starter

What stands between the two marks of README.md is made anew; the rest is written by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.card import of_people
from training.checkpoint import Checkpoint, load_checkpoint
from utils.config import Flags
from utils.errors import UsageError, run_script
from utils.files import write_text

FIRST, LAST = "<!-- cards -->", "<!-- end of cards -->"
UNKNOWN = "–"  # what a card does not say
MODELS = ("file", "trained on", "clips and people", "MB")
WORTH = ("model", "tested on", "accuracy [95 %]", "mean recall", "chance", "calibration error")


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    flags.add("folder", type=Path, help="of packed models (.pth) and a README.md")
    return flags.parse_args()


def main() -> None:
    folder = parse_args().folder
    page = folder / "README.md"
    if not page.is_file():
        raise UsageError(f"{page}: no such file; it needs the lines {FIRST} and {LAST}")
    write_text(page, with_cards(page.read_text("utf-8"), folder))
    print(page)


def with_cards(text: str, folder: Path) -> str:
    """The page with the tables of the models in `folder`; UsageError where the marks are not."""
    before, first, rest = text.partition(f"{FIRST}\n")
    _, last, after = rest.partition(f"{LAST}\n")
    if not (first and last):
        raise UsageError(f"{folder / 'README.md'}: expected the lines {FIRST} and {LAST}")
    paths = sorted(folder.glob("*.pth"))
    models = {path: load_checkpoint(path) for path in paths}
    if missing := [path for path in paths if "card" not in models[path]]:
        raise UsageError(f"{missing[0]} has no card: python -m evaluation.pack makes one")
    classes = dict.fromkeys(name for model in models.values() for name in model["classes"])
    tables = (
        table(MODELS, [about(path, model["card"]) for path, model in models.items()]),
        table(WORTH, [row for path, model in models.items() for row in worth(path, model)]),
        table(("recall", *classes), list(recalls(models, tuple(classes)))),
    )
    return before + first + "\n" + "\n".join(tables) + "\n" + last + after


def about(path: Path, card: dict[str, Any]) -> tuple[str, ...]:
    clips, language = counted(card, "clips", "people"), card.get("language")
    learnt = f"{clips}; {language}" if language else clips
    return f"`{path.name}`", card.get("corpus") or UNKNOWN, learnt, megabytes(path)


def worth(path: Path, model: Checkpoint) -> Iterator[tuple[str, ...]]:
    """At home first, then each corpus of which the model knew nothing."""
    for number, (name, card) in enumerate(tests_of(model["card"])):
        clips = counted(card, "tested_clips", "tested_people")
        where = f"**elsewhere**: {clips} of {name}" if number else f"held out: {clips}"
        yield (
            "" if number else f"`{path.name}`",
            where,
            accuracy(card),
            share(card, "uar"),
            share(card, "chance"),
            calibration_error(card),
        )


def accuracy(card: dict[str, Any]) -> str:
    if "accuracy" not in card:
        return UNKNOWN
    low, high = card["interval"]
    return f"**{card['accuracy']:.2f}** [{low:.2f}, {high:.2f}]"


def share(told: dict[str, Any], name: str) -> str:
    return f"{told[name]:.2f}" if name in told else UNKNOWN


def calibration_error(card: dict[str, Any]) -> str:
    """Beside what few clips alone make of it; models that were packed before do not know that."""
    alone = card.get("ece_if_calibrated")
    return share(card, "ece") + (f" ({alone:.2f} if calibrated)" if alone is not None else "")


def recalls(models: dict[Path, Checkpoint], classes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for path, model in models.items():
        for number, (name, card) in enumerate(tests_of(model["card"])):
            of_each = (share(card.get("recall", {}), label) for label in classes)
            yield f"`{path.name}`{f', {name}' if number else ''}", *of_each


def tests_of(card: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The corpus and the numbers of each test: on the clips held out, then elsewhere."""
    elsewhere = ((other["corpus"], other) for other in card.get("elsewhere", ()))
    return [(card.get("corpus", ""), card), *elsewhere]


def counted(card: dict[str, Any], clips: str, people: str) -> str:
    """What stands under these two names of the card."""
    if clips not in card:
        return UNKNOWN
    named = "clip" if card[clips] == 1 else "clips"
    return f"{card[clips]:,} {named}" + of_people(card.get(people))


def megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(cell, cells))} |\n" for cells in lines)


def cell(text: str) -> str:
    """A card's text can come from anywhere."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    run_script(main)
