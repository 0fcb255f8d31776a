"""What models say of one clip: probabilities by part, what they rest on, what the models saw."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from inference.card import by_run, card_lines
from inference.sources import Source
from training.modalities import modality, titles

# The parts of a prediction that are not one modality's: the fused head of a run, the mean of its
# heads where that cannot answer, and several runs together.
FUSED, MEAN, ENSEMBLE = "fused", "mean", "ensemble"
NAMES = {  # of the classes that we know, for people
    "hap": "happiness",
    "ang": "anger",
    "dis": "disgust",
    "fea": "fear",
    "sad": "sadness",
    "neu": "neutral",
    "sur": "surprise",
    "cal": "calm",
}
CODE = re.compile(r"^E_[A-Z]+: ")  # of a reason: for tables and programs, not for people


class Seen(NamedTuple):
    """What a model saw of one modality, and how much each token of it counted (T,), if it says."""

    view: np.ndarray
    weights: np.ndarray | None


@dataclass
class ClipPrediction:
    """`parts`: fused, mean, ensemble or a modality -> probabilities (K,); the first one decides."""

    source: Source
    classes: list[str]
    missing: dict[str, str]  # modality -> why
    facts: dict[str, Any]  # the clip's row of the manifest
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    rests_on: list[str] = field(default_factory=list)  # the modalities behind the first part
    filled_in: bool = False  # in some run learnt tokens stand for inputs that are missing
    not_fused: bool = False  # some run cannot fuse what is there
    seconds: dict[str, float] = field(default_factory=dict)
    encoded: dict[str, Seen] = field(default_factory=dict)  # what pretrained encoders saw of it
    encoders: dict[str, list[str]] = field(default_factory=dict)  # modality -> their names
    unseen: dict[str, str] = field(default_factory=dict)  # modality -> why an encoder sees none
    cards: list[dict[str, Any]] = field(default_factory=list)  # of the models: inference/card.py

    @property
    def title(self) -> str:
        name, start, end = self.source.name, self.source.start, self.source.end
        return name if start is None else f"{name} {start:.1f}-{end:.1f} s"

    @property
    def label(self) -> str:
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) of the classes."""
        return next(iter(self.parts.values()))

    @property
    def deciding_part(self) -> str:
        return next(iter(self.parts))

    @property
    def remarks(self) -> list[str]:
        """What a reader must know besides the numbers."""
        without = [absence(name, why) for name, why in self.missing.items()]
        notes = self.source.notes
        if self.seen and not self.parts:
            here = titles(self.seen)
            why = f"no head answers from {here} alone; a model of --modality_dropout would"
            return [why, *without, *notes]
        if not (self.parts and without):
            return [*without, *notes]
        rests = f"rests on {titles(self.rests_on)}"
        if self.filled_in:
            rests += "; learnt tokens stand for what is missing"
        if self.not_fused:
            rests += (
                "; trained without --modality_dropout: all inputs are needed for a fused answer"
            )
        return [rests, *without, *notes]

    def rows(self) -> list[dict[str, Any]]:
        """One row of predictions.csv per part; one without numbers where there is no answer."""
        remarks = "; ".join(self.remarks)
        start, end = (each and round(each, 2) for each in (self.source.start, self.source.end))
        where = {"clip": self.source.name, "start": start, "end": end}
        if not self.parts:
            return [{**where, "remarks": remarks}]
        rows = []
        for part, probabilities in self.parts.items():
            row = {**where, "part": part, "answer": self.classes[int(probabilities.argmax())]}
            for name, p in zip(self.classes, probabilities, strict=True):
                row[name] = round(float(p), 6)
            rows.append({**row, "remarks": remarks})
        return rows

    def as_dict(self) -> dict[str, Any]:
        """All there is to say, as plain data."""
        return {
            "clip": self.source.name,
            "start": self.source.start,
            "end": self.source.end,
            "answer": self.label if self.parts else None,
            "parts": {
                part: dict(zip(self.classes, probabilities.tolist(), strict=True))
                for part, probabilities in self.parts.items()
            },
            "rests_on": self.rests_on,
            "missing": self.missing,
            "remarks": self.remarks,
            "card": card_lines(by_run(self.cards)),
            "words": self.source.clip.transcript,
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }


def absence(name: str, why: str) -> str:
    """Why a modality is missing: "no voice: a.mp4 has no sound track"."""
    lack, told = f"no {modality(name).title}", CODE.sub("", why)
    return told if told.startswith(lack) else f"{lack}: {told}"
