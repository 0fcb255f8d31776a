"""Log-mels -> pairs of clips of the same sound: re-encoded, louder, softer, or cut at an end.

Two steps, so that not all pairs need the slow one: clips whose outlines are alike are candidates,
and of these the fine structure is compared. An excerpt of a clip, or another tempo, is not found.
"""

from __future__ import annotations

from functools import lru_cache
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from utils.errors import IntegrityError, in_short
from utils.files import DAMAGED, in_threads, is_file, map_array
from utils.parallel import available_cores

LOUD = 0.5  # the part of a log-mel above it, 40 dB below the maximum, survives low bitrates
LONGEST = 512  # columns of 16 ms that are compared
CANDIDATE, NEIGHBOURS = 0.88, 5  # least similarity of two outlines; most candidates of a clip
SIMILARITIES = 8_000_000  # held in memory at once
BANDS = 96  # of the fine structure, up to 4 kHz
SHIFT = 30  # columns that one of two copies may begin earlier
SAME = 0.81  # least correlation of the fine structure; copies have 0.83, other takes 0.79
UNSURE = 0.6  # from here on it is worth looking between the columns


def same_sound(paths: list[str]) -> list[tuple[int, int]]:
    """Pairs of indices into `paths`, log-mels (128, T) as .npy; shows its progress on stderr."""
    from tqdm import tqdm

    with ThreadPool(available_cores()) as pool:
        read = pool.imap(lambda path: outline(read_log_mel(path)), paths)
        outlines = np.stack([*tqdm(read, "audit: sounds", len(paths), leave=False)])
    candidates = neighbours(outlines)
    fine = lru_cache(maxsize=2000)(lambda index: fine_structure(read_log_mel(paths[index])))
    return [
        (one, other)
        for one, other in tqdm(candidates, "audit: candidates", leave=False)
        if similarity(fine(one), fine(other)) >= SAME
    ]


def read_log_mel(path: str) -> np.ndarray:
    """(128, T), T <= LONGEST; IntegrityError for a file that is none."""
    try:
        if not is_file(Path(path)):  # reading a pipe would wait for ever
            raise ValueError("no regular file")
        log_mel = in_threads(map_array, Path(path))
    except DAMAGED as error:
        reason, remedy = in_short(error), "preprocess.py --verify makes it anew"
        raise IntegrityError(f"{path} is missing or damaged ({reason}): {remedy}") from error
    if log_mel.ndim != 2 or len(log_mel) != 128 or not log_mel.size or log_mel.dtype.kind != "f":
        raise IntegrityError(f"{path}: {log_mel.dtype} {log_mel.shape}, expected float (128, T)")
    return log_mel[:, :LONGEST]


def outline(log_mel: np.ndarray) -> np.ndarray:
    """(F, T) -> (1024,), length 1: how 32 bands of the loud parts change, wherever they begin."""
    bands = np.clip(log_mel - LOUD, 0, None).reshape(32, -1, log_mel.shape[1]).mean(axis=1)
    bands -= bands.mean(axis=1, keepdims=True)  # (32, T)
    change = np.abs(np.fft.rfft(bands, LONGEST, axis=1))[:, 1:65]  # magnitudes know no shift
    change = change.reshape(32, 32, 2).mean(axis=2).ravel().astype(np.float32)
    return change / max(np.linalg.norm(change), 1e-9)


def neighbours(outlines: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows with a similarity over CANDIDATE, the NEIGHBOURS nearest of each; sorted.

    All rows are compared with all, a block at a time: the memory does not grow with the square.
    """
    from tqdm import tqdm

    count, pairs = len(outlines), set()
    block = max(1, SIMILARITIES // count)
    for first in tqdm(range(0, count, block), "audit: neighbours", leave=False, delay=2):
        alike = outlines[first : first + block] @ outlines.T
        np.fill_diagonal(alike[:, first:], -1)  # each row with itself
        for row in np.flatnonzero(alike.max(axis=1) > CANDIDATE):
            near = np.flatnonzero(alike[row] > CANDIDATE)
            for other in near[np.argsort(-alike[row, near])[:NEIGHBOURS]].tolist():
                pairs.add((min(first + int(row), other), max(first + int(row), other)))
    return sorted(pairs)


def fine_structure(log_mel: np.ndarray) -> np.ndarray:
    """(F, T) -> (T, BANDS): harmonics and onsets of the loud parts, without the voice's shape."""
    from scipy.ndimage import uniform_filter1d

    log_mel = log_mel[:BANDS].T
    detail = log_mel - uniform_filter1d(log_mel, 9, axis=1)
    detail = (detail - uniform_filter1d(detail, 31, axis=0)) * np.clip(log_mel - LOUD, 0, None)
    return np.ascontiguousarray(detail, np.float16)  # half the memory


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Their correlation; a cut may have moved one of them by half a column against the other."""
    best = correlation(one, other)
    if best < UNSURE:
        return best
    between = [(each[1:].astype(np.float32) + each[:-1]) / 2 for each in (one, other)]
    return max(best, correlation(between[0], other), correlation(one, between[1]))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The best over shifts of up to SHIFT columns that leave 60 % of the shorter clip."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    powers = [np.r_[0, np.cumsum(np.square(each).sum(axis=1))] for each in (one, other)]
    best, least = 0.0, 0.6 * min(len(one), len(other))
    for shift in range(-SHIFT, SHIFT + 1):
        a, b = max(0, shift), max(0, -shift)  # where the part that both have begins in each
        length = min(len(one) - a, len(other) - b)
        if length >= least:
            product = float(np.vdot(one[a : a + length], other[b : b + length]))
            power = (powers[0][a + length] - powers[0][a]) * (powers[1][b + length] - powers[1][b])
            best = max(best, product / max(1e-6, power) ** 0.5)
    return best
