"""Which clips a run has seen, by what they are and not by the split that they are in today."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from training.features import Features
from training.modalities import MODALITIES
from utils.files import digest

NONE = 0  # no digest is 0


def fingerprints(features: Features, rows: Iterable[dict[str, Any]]) -> np.ndarray:
    """(N, 3) int64: numbers for each clip's recording, id and transcript, id and file of words.

    Any of them is enough to know a clip again, whatever its split, fold or modalities are by then.
    Recordings and files are told by their sha256, as the clip's record says. Words alone are no
    clip, many say the same; an id alone counts where nothing else is known.
    """
    numbers = [_fingerprint(features.record(row) or {}, row) for row in rows]
    return np.array(numbers, np.uint64).reshape(-1, 3).view(np.int64)


def _fingerprint(stages: dict[str, dict], row: dict[str, Any]) -> list[int]:
    sources = {folder: stage.get("source_sha256") for folder, stage in stages.items()}
    recording = beside = None
    for kind in MODALITIES.values():
        if kind.source == "media":
            recording = recording or sources.get(kind.folder)
        else:
            beside = beside or sources.get(kind.folder)
    named = [row.get("transcript"), beside]
    if not recording and not any(named):
        named = ["nothing", None]
    ids = [_number([row["clip_id"], words]) if words else NONE for words in named]
    return [_number(recording) if recording else NONE, *ids]


def known(numbers: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(N,) whether the clips of these fingerprints (N, 3) are among those `seen` (any shape)."""
    return (np.isin(numbers, seen) & (numbers != NONE)).any(axis=1)


def _number(value: Any) -> int:
    return int(digest(value), 16)
