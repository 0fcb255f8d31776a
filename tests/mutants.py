"""Damaged clips and word vectors, and what reads them in a process of its own: little to import."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from extract.audio import read_mono
from extract.media import frames_at
from extract.words import read_words
from utils.errors import ClipError


def mutant(data: bytes, seed: int) -> bytes:
    """`data` with bits or bytes flipped, a part cut, zeroed or doubled, or its index damaged."""
    rng, made = np.random.default_rng(seed), bytearray(data)
    kind, at = seed % 6, int(rng.integers(8, len(data)))
    places = rng.integers(8, [len(data), len(data) // 8][kind == 5], [1, 20, 0, 0, 0, 5][kind])
    for place in places:
        made[place] ^= 0xFF if kind else 1 << int(rng.integers(8))
    parts = {2: made[:at], 3: made[:at] + bytes(256) + made[at + 256 :]}
    return bytes(parts.get(kind, made[:at] + made[at // 2 :] if kind == 4 else made))


def read_all(folder: Path, read, seeds: range) -> list[str]:
    """What became of each mutant: a code, or that it was read."""
    codes = []
    for seed in seeds:
        try:
            read(folder, seed)
            codes.append("read")
        except ClipError as error:
            assert error.reason
            codes.append(error.code)
    return codes


def read_mutant_clip(folder: Path, seed: int) -> None:
    path = folder / "a.mp4"
    path.write_bytes(mutant((folder / "whole").read_bytes(), seed))
    read_mono(path)
    list(frames_at(path, np.arange(5) / 10))


def read_mutant_words(folder: Path, seed: int) -> None:
    (folder / "a.npz").write_bytes(mutant((folder / "words").read_bytes(), seed))
    words = read_words(folder / "a.npz", 8)
    assert words.dtype == np.float32 and words.shape[1] == 8
