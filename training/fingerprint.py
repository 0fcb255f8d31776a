"""Which clips a run has seen, by what they are and not by the split that they are in today."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.files import digest
from utils.parallel import available_cores

NONE = 0  # no digest is 0


def identities(features: Any, rows: Iterable[dict[str, Any]]) -> np.ndarray:
    """(N, 3) int64: numbers for each clip's recording, id and transcript, id and file of words.

    Any of them is enough to know a clip again, whatever its split, fold or modalities are by then.
    Recordings and files are told by their sha256, as the clip's record says. Words alone are no
    clip, many say the same; an id alone counts where nothing else is known.
    """
    rows = list(rows)

    def numbers(row: dict[str, Any]) -> list[int]:
        shas = {name: each.get("source_sha256") for name, each in features.stages(row).items()}
        recording = shas.get("speech") or shas.get("video")
        named = [row.get("transcript"), shas.get("text")]
        if not recording and not any(named):
            named = ["nothing", None]
        ids = [_number([row["clip_id"], words]) if words else NONE for words in named]
        return [_number(recording) if recording else NONE, *ids]

    with ThreadPool(available_cores()) as pool:
        found = tqdm(
            pool.imap(numbers, rows, chunksize=64),
            *("records", len(rows)),
            **{"file": sys.stderr, "unit": "clip", "leave": False, "delay": 2},
        )
        return np.array(list(found), np.uint64).reshape(-1, 3).view(np.int64)


def known(numbers: np.ndarray, seen: Any) -> np.ndarray:
    """(N,) whether the clips of these identities (N, 3) are among those `seen` (any shape)."""
    return (np.isin(numbers, seen) & (numbers != NONE)).any(axis=1)


def _number(value: Any) -> int:
    return int(digest(value), 16)
