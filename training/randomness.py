"""Random numbers that follow from the seed, a purpose and a position: nothing is carried along.

So a resumed run, another number of loading processes or of machines draw the same ones, and two
purposes never share a stream.
"""

from __future__ import annotations

import zlib

import numpy as np

PURPOSES = ("order", "clip", "mixing", "modality dropout", "dropout", "corruption")


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """`position`: what the draw belongs to, such as (epoch, clip) or (step, rank)."""
    return np.random.default_rng([seed, PURPOSES.index(purpose), *position])


def torch_seed(seed: int, purpose: str, *position: int) -> int:
    return int(generator(seed, purpose, *position).integers(2**63))


def clip_number(row: dict) -> int:
    """A clip's own number, the same whatever other clips there are."""
    return zlib.crc32(f"{row['split']}/{row['clip_id']}".encode())
