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


def identities(features: Any, rows: Iterable[dict[str, Any]]) -> np.ndarray:
    """(N,) int64: a number for each clip's id and content, whatever its split or fold.

    The content is the sha256 of the file it was made from, as its record says, else its words.
    """
    rows = list(rows)

    def number(row: dict[str, Any]) -> int:
        return int(digest([row["clip_id"], content(features, row)]), 16)

    with ThreadPool(available_cores()) as pool:
        found = tqdm(
            pool.imap(number, rows, chunksize=64),
            *("records", len(rows)),
            **{"file": sys.stderr, "unit": "clip", "leave": False, "delay": 2},
        )
        return np.fromiter(found, np.uint64, len(rows)).view(np.int64)


def content(features: Any, row: dict[str, Any]) -> str:
    stages = features.stages(row).values()
    sources = (stage["source_sha256"] for stage in stages if "source_sha256" in stage)
    return next(sources, row.get("transcript", ""))
