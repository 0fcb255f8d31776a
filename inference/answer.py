"""What models say of one clip: probabilities by part, what they rest on, what the models saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from inference.sources import Source
from training.tasks import FOLDERS

FUSED, MEAN = "fused", "mean"  # the parts of an answer that are not one modality's
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


class Look(NamedTuple):
    """What a model saw of one modality, and how much each step of it counted (T,), if it says."""

    view: np.ndarray
    weights: np.ndarray | None


@dataclass
class Answer:
    """`parts`: fused, mean or modality -> probabilities (K,); the first one is the answer."""

    source: Source
    classes: list[str]
    missing: dict[str, str]  # modality -> why
    facts: dict[str, Any]  # the clip's row of the manifest
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        name, start, end = self.source.name, self.source.start, self.source.end
        return name if start is None else f"{name} {start:.1f}-{end:.1f} s"

    @property
    def label(self) -> str:
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probabilities(self) -> np.ndarray:
        return next(iter(self.parts.values()))

    @property
    def rests_on(self) -> list[str]:
        """The modalities behind the answer."""
        return [name for name in self.looks if FUSED in self.parts or name in self.parts]

    @property
    def remarks(self) -> list[str]:
        """What a reader must know besides the numbers."""
        without = [f"no {name}: {reason}" for name, reason in self.missing.items()]
        if self.looks and not self.parts:
            here = " and ".join(self.looks)
            why = f"no head answers from {here} alone; a model of --modality_dropout would"
            return [why, *without]
        if not (self.parts and without):
            return without
        known = {*self.looks, *self.missing}
        why = "learnt vectors stand for what is missing"
        if FUSED not in self.parts:
            why = "trained without --modality_dropout: all inputs are needed for a fused answer"
        rests = f"rests on {' and '.join(self.rests_on)}"
        return [f"{rests}; {why}" if len(known) > 1 else rests, *without]

    def rows(self) -> list[dict[str, Any]]:
        """One row of predictions.csv per part; one without numbers where there is no answer."""
        source, why = self.source, "; ".join(self.remarks)
        where = {"clip": source.name, "start": source.start, "end": source.end}
        return [
            {**where, "part": part, "answer": self.classes[int(each.argmax())]}
            | {name: round(float(p), 6) for name, p in zip(self.classes, each, strict=True)}
            | {"remarks": why}
            for part, each in self.parts.items()
        ] or [{**where, "remarks": why}]

    def as_dict(self) -> dict[str, Any]:
        """All there is to say, as plain data."""
        parts = {
            part: dict(zip(self.classes, each.tolist(), strict=True))
            for part, each in self.parts.items()
        }
        return {
            **{"clip": self.source.name, "start": self.source.start, "end": self.source.end},
            "answer": self.label if parts else None,
            **{"parts": parts, "rests_on": self.rests_on, "missing": self.missing},
            **{"remarks": self.remarks, "words": self.source.clip.transcript},
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }


def answer_first(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The answer first: what all inputs say, else the mean of what each says alone."""
    if FUSED not in parts and len(parts) > 1:
        parts = {MEAN: np.mean(list(parts.values()), axis=0)} | parts
    return {name: parts[name] for name in (FUSED, MEAN, *FOLDERS) if name in parts}
