"""Hostile requests, hostile media and odd surroundings: what breaks?

    python tests/attack.py                   # all three sets: 20 minutes on 2 busy cores
    python tests/attack.py --sets requests   # one of them: requests, media, surroundings

Prints a table: how much was tried, what broke, what could not be tried here and why. Ends with exit
code 1 if anything broke. Everything is made in a temporary folder, and nothing needs the internet.
Full and read-only discs are small file systems of a name space of their own (`unshare -rm`): where
the system allows none they are skipped. tests/attack_page.py has the requests,
tests/attack_media.py the files, tests/attack_surroundings.py the rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

SETS = {
    "requests": "attack_page",
    "media": "attack_media",
    "surroundings": "attack_surroundings",
}
NEVER_TOLD = ("Traceback", "root:x:", "site-packages", 'File "')  # in no answer and no message
OF_LIBRARIES = ("torchinductor_", ".ses")  # what torch and ONNX Runtime keep after export.py


class Tally:
    """What was tried, by its kind, and what was wrong with it."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.skipped: dict[str, tuple[int, str]] = {}  # how many, and why

    def count(self, kind: str, name: str, faults: list[str]) -> None:
        self.tried[kind] += 1
        self.broken[kind] += bool(faults)
        for fault in faults:
            print(f"BROKEN {kind}: {ascii(name)[:100]}: {fault}", file=sys.stderr, flush=True)

    def skip(self, kind: str, why: str) -> None:
        self.skipped[kind] = self.skipped.get(kind, (0, ""))[0] + 1, why

    def table(self, title: str) -> str:
        rows = [f"| {title} | tried | broken | skipped |", "|---|---|---|---|"]
        for kind in [*self.tried, *(self.skipped.keys() - self.tried.keys())]:
            number, why = self.skipped.get(kind, (0, ""))
            told = f"{number}: {why}" if number else "0"
            rows.append(f"| {kind} | {self.tried[kind]} | {self.broken[kind]} | {told} |")
        numbers = self.tried.total(), self.broken.total(), sum(n for n, _ in self.skipped.values())
        rows.append("| together | {} | {} | {} |".format(*numbers))
        return "\n".join(rows)


def told_wrongly(text: str, *places: object) -> list[str]:
    """What no answer and no message may have: tracebacks, and where the page's files are."""
    return [f"says {each}" for each in (*NEVER_TOLD, *map(str, places)) if each in text]


def left_in(folder: Path) -> list[str]:
    """Faults: what lies in a folder for temporary files."""
    left = [path.name for path in folder.iterdir() if not path.name.startswith(OF_LIBRARIES)]
    return [f"left {name}" for name in left]


def attack(name: str) -> Tally:
    """One set, in a temporary folder whose path is short enough for sockets."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="a") as folder:
        try:
            import_module(SETS[name]).attack(Path(folder), tally)
        finally:  # also after Ctrl-C
            print(tally.table(name), flush=True)
    return tally


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--sets", default=",".join(SETS))
    tallies = [attack(name) for name in flags.parse_args().sets.split(",")]
    sys.exit(any(tally.broken.total() for tally in tallies))


if __name__ == "__main__":
    main()
