"""One clip's feature -> the array that a model sees. Augmentation draws from the given generator.

speech (F, T) -> (1, F, T'); face (T, S, S, 3) uint8 -> (T', 3, S, S) uint8;
text (L, D) -> (L', D), L' <= L, and its mask (L',);
own features (D,) -> (D,) or (T, D) -> (T', D) or (D,).
"""

from __future__ import annotations

import os
import random
from functools import lru_cache
from typing import Any

import numpy as np

# SpecAugment, arXiv 1904.08779. The widths in time are those of the recipe's 400 frames (80 and 50)
# and shrink with shorter inputs, of which they would leave nothing.
TIME_WARP = 80 / 400
FREQUENCY_MASKS, FREQUENCY_WIDTH = 3, 27
TIME_MASKS, TIME_WIDTH = 4, 50 / 400


def speech_view(
    log_mel: np.ndarray, frames: int, rng: np.random.Generator, augment: bool
) -> np.ndarray:
    """(F, T) -> (1, F, frames): a random clip in training, the middle one else; zeros at both ends
    of short ones. With `augment` also brightness and contrast, and SpecAugment."""
    start = (log_mel.shape[1] - frames) / 2
    if augment and start > 0:
        start = rng.integers(0, log_mel.shape[1] - frames + 1)
    view = clip_or_pad(log_mel, int(start), frames)
    if augment:
        view = brighten(view, rng)
        view = spec_augment(view, rng)
    return np.ascontiguousarray(view[np.newaxis], dtype=np.float32)


def clip_or_pad(log_mel: np.ndarray, start: int, frames: int) -> np.ndarray:
    """Columns start to start + frames of (F, T); columns outside are zero (silence)."""
    view = np.zeros((log_mel.shape[0], frames), np.float32)
    first, last = max(0, start), min(log_mel.shape[1], start + frames)
    view[:, first - start : last - start] = log_mel[:, first:last]
    return view


def brighten(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness and contrast of a log-mel (F, T) in [0, 1], as of a grey picture."""
    return _seeded(_speech_pipeline(), rng)(image=view)["image"]


def spec_augment(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Time warp, frequency masks and time masks (arXiv 1904.08779) on (F, T); masks are zero."""
    view = time_warp(view, rng)
    bins, frames = view.shape
    for _ in range(FREQUENCY_MASKS):
        width = int(rng.integers(0, min(FREQUENCY_WIDTH, bins) + 1))
        start = int(rng.integers(0, bins - width + 1))
        view[start : start + width] = 0
    for _ in range(TIME_MASKS):
        width = int(rng.integers(0, round(TIME_WIDTH * frames) + 1))
        start = int(rng.integers(0, frames - width + 1))
        view[:, start : start + width] = 0
    return view


def time_warp(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move one point of the time line by up to a fifth of it, stretching both sides linearly.

    (F, T) -> (F, T), T >= 5. The point lies at least that far from both ends, as in the paper.
    """
    frames = view.shape[1]
    width = round(TIME_WARP * frames)
    point = int(rng.integers(width, frames - width))
    target = point + int(rng.integers(-width + 1, width))
    source = np.interp(np.arange(frames), [0, target, frames - 1], [0, point, frames - 1])
    left = np.floor(source).astype(int)
    right = np.minimum(left + 1, frames - 1)
    share = (source - left).astype(np.float32)
    return view[:, left] * (1 - share) + view[:, right] * share


def face_view(
    crops: np.ndarray, valid: np.ndarray, frames: int, rng: np.random.Generator, augment: bool
) -> np.ndarray:
    """(T, S, S, 3) uint8 and its face flags (T,) -> (frames, 3, S, S) uint8, only real faces.

    Random frames in order in training, evenly spaced over the whole clip else. Augmentation draws
    once for all frames of a clip.
    """
    chosen = np.flatnonzero(valid)[choose_frames(int(valid.sum()), frames, rng, augment)]
    view = np.ascontiguousarray(crops[chosen])  # (T', S, S, 3)
    if augment:
        view = _seeded(_face_pipeline(), rng)(images=view)["images"]
    return np.ascontiguousarray(view.transpose(0, 3, 1, 2))


def choose_frames(
    available: int, frames: int, rng: np.random.Generator, augment: bool
) -> np.ndarray:
    """`frames` ascending indices below `available`; short clips repeat some."""
    if augment:
        return np.sort(rng.choice(available, frames, replace=available < frames))
    return ((np.arange(frames) + 0.5) * available / frames).astype(int)  # middles of equal parts


def feature_view(
    feature: np.ndarray, frames: int, rng: np.random.Generator, augment: bool
) -> np.ndarray:
    """An own feature: (D,) as it is, (T, D) -> (frames, D), chosen like face crops.

    One frame is a vector, (T, D) -> (D,): a random row in training, the mean of all rows else. So
    the rows may be the same clip made in several ways (faster, slower, noisier).
    """
    if feature.ndim == 2 and frames == 1:
        feature = feature[rng.integers(len(feature))] if augment else feature.mean(axis=0)
    elif feature.ndim == 2:
        feature = feature[choose_frames(len(feature), frames, rng, augment)]
    return np.array(feature, dtype=np.float32)  # a copy: the file is mapped, and not to be written


def text_view(word_embed: np.ndarray, max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """(L, D) -> the first words (L', D), L' <= max_words, and their mask (L',), all true: batches
    pad both."""
    words = word_embed[:max_words].astype(np.float32, copy=False)
    return words, np.ones(len(words), bool)


def _seeded(pipeline: Any, rng: np.random.Generator) -> Any:
    # not set_random_seed: that gives every step the same stream, and they would always act together
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**31))))
    return pipeline


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for news on the internet
    import albumentations

    return albumentations


@lru_cache(maxsize=1)
def _speech_pipeline() -> Any:
    A = _albumentations()
    return A.Compose([A.RandomBrightnessContrast((-0.3, 0.3), (-0.3, 0.3), p=0.7)])


@lru_cache(maxsize=1)
def _face_pipeline() -> Any:
    A = _albumentations()
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast((-0.5, 0.5), (-0.5, 0.5), p=0.7),
            A.Rotate((-30, 30), p=0.7),
        ]
    )
