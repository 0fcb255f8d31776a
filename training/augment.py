"""Random changes of one clip's arrays in training, and the settings that say how strong they are.

Every function draws from the generator that it is given, which follows from seed, epoch and clip.
"""

from __future__ import annotations

import os
import random
from functools import lru_cache
from typing import Any

import numpy as np

from training.settings import SHARE, Setting
from utils.config import ranged

SPEECH_STRENGTHS = {
    "speech_speed": Setting(0.0, ranged(float, 0, 0.5), "most faster or slower", "augmentation"),
    "speech_pitch": Setting(0.0, ranged(float, 0, 40), "most mel bins up or down", "augmentation"),
    "speech_contrast": Setting(
        0.3, SHARE, "brightness and contrast of the log-mel", "augmentation"
    ),
    "time_warp": Setting(
        0.2, ranged(float, 0, 0.45), "SpecAugment: share of the length", "augmentation"
    ),
    "frequency_masks": Setting(3, ranged(int, 0), "SpecAugment", "augmentation"),
    "frequency_width": Setting(27, ranged(int, 0), "of one, in mel bins", "augmentation"),
    "time_masks": Setting(4, ranged(int, 0), "SpecAugment", "augmentation"),
    "time_width": Setting(0.125, SHARE, "of one, share of the length", "augmentation"),
}
FACE_STRENGTHS = {
    "face_flip": Setting(0.5, SHARE, "share of the clips mirrored", "augmentation"),
    "face_contrast": Setting(0.5, SHARE, "brightness and contrast", "augmentation"),
    "face_rotation": Setting(30.0, ranged(float, 0, 180), "degrees", "augmentation"),
    "face_zoom": Setting(0.0, ranged(float, 0, 0.5), "most of size and place", "augmentation"),
}


def augment_speech(
    view: np.ndarray, mask: np.ndarray, rng: np.random.Generator, config: dict
) -> tuple[np.ndarray, np.ndarray]:
    """A log-mel (F, T) and the mask (T,) of its real columns -> the same, one change after the
    other."""
    view = brighten(view, rng, config)
    return spec_augment(view, mask, rng, config)


def brighten(view: np.ndarray, rng: np.random.Generator, config: dict) -> np.ndarray:
    """Random brightness and contrast of a log-mel (F, T) in [0, 1], as of a grey picture."""
    return _seeded(_spectrogram_pipeline(config["speech_contrast"]), rng)(image=view)["image"]


def spec_augment(
    view: np.ndarray, mask: np.ndarray, rng: np.random.Generator, config: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Time warp, frequency masks and time masks (SpecAugment, arXiv 1904.08779) on a log-mel (F, T)
    whose real columns are those of `mask` (T,). Masked parts are zero and count as real.

    The widths in time are shares of the input's length: the recipe's 80 and 50 of 400 columns.
    """
    view, mask = time_warp(view, mask, rng, config["time_warp"])
    bins, frames = view.shape
    for _ in range(config["frequency_masks"]):
        width = int(rng.integers(0, min(config["frequency_width"], bins) + 1))
        start = int(rng.integers(0, bins - width + 1))
        view[start : start + width] = 0
    for _ in range(config["time_masks"]):
        width = int(rng.integers(0, round(config["time_width"] * frames) + 1))
        start = int(rng.integers(0, frames - width + 1))
        view[:, start : start + width] = 0
    return view, mask


def time_warp(
    view: np.ndarray, mask: np.ndarray, rng: np.random.Generator, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move one point of the time line by up to `share` of it, stretching both sides linearly.

    (F, T), (T,) -> the same. The point lies at least that far from both ends, as in the paper.
    """
    frames = view.shape[1]
    width = round(share * frames)
    if width < 1 or frames < 2 * width + 1:
        return view.copy(), mask
    point = int(rng.integers(width, frames - width))
    target = point + int(rng.integers(-width + 1, width))
    source = np.interp(np.arange(frames), [0, target, frames - 1], [0, point, frames - 1])
    left = np.floor(source).astype(int)
    right = np.minimum(left + 1, frames - 1)
    part = (source - left).astype(np.float32)
    real = mask[left] | mask[right] & (part > 0)  # where anything of the clip is
    if not real.any():  # a few columns that fell between two
        return view.copy(), mask
    return view[:, left] * (1 - part) + view[:, right] * part, real


def resample(log_mel: np.ndarray, rng: np.random.Generator, config: dict) -> np.ndarray:
    """(F, T) -> (F, T'): as if said faster or slower, and by a voice of a longer or shorter throat
    (all bands move up or down alike). Bands that come in at an edge repeat it."""
    speed, pitch = config["speech_speed"], config["speech_pitch"]
    if not speed and not pitch:
        return log_mel  # nothing is drawn: the published recipe's random numbers stay
    import cv2

    rate, shift = 1 + rng.uniform(-speed, speed), rng.uniform(-pitch, pitch)
    bands, frames = log_mel.shape
    matrix = np.array([[rate, 0, (rate - 1) / 2], [0, 1, shift]])  # of the result, in the source
    return cv2.warpAffine(
        np.ascontiguousarray(log_mel, np.float32),
        matrix,
        (max(1, round(frames / rate)), bands),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def augment_faces(crops: np.ndarray, rng: np.random.Generator, config: dict) -> np.ndarray:
    """(T, S, S, 3) uint8 -> the same: flip, brightness and contrast, rotation, zoom; one draw for
    all frames of a clip."""
    flip, contrast, rotation = (config[f"face_{name}"] for name in ("flip", "contrast", "rotation"))
    if config["face_zoom"]:
        return move_faces(crops, rng, config)
    return _seeded(_face_pipeline(flip, contrast, rotation), rng)(
        images=np.ascontiguousarray(crops)
    )["images"]


def move_faces(crops: np.ndarray, rng: np.random.Generator, config: dict) -> np.ndarray:
    """The same changes and a change of size and place, as one warp and one table of values: a fifth
    of the time, which of small pictures is most of a step. The edge repeats."""
    import cv2

    zoom, contrast = config["face_zoom"], config["face_contrast"]
    size = crops.shape[1]
    scale, (right, down) = 1 + rng.uniform(-zoom, zoom), rng.uniform(-zoom / 2, zoom / 2, 2)
    angle = rng.uniform(-1, 1) * config["face_rotation"]
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, scale)  # (2, 3)
    matrix[:, 2] += (right * size, down * size)
    if rng.random() < config["face_flip"]:
        matrix = matrix @ np.array([[-1, 0, size - 1], [0, 1, 0], [0, 0, 1]])
    gain, shift = 1 + rng.uniform(-contrast, contrast), 255 * rng.uniform(-contrast, contrast) / 2
    table = ((np.arange(256) - 127.5) * gain + 127.5 + shift).clip(0, 255).astype(np.uint8)
    border = cv2.BORDER_REPLICATE
    moved = [cv2.warpAffine(crop, matrix, (size, size), borderMode=border) for crop in crops]
    return table[np.stack(moved)]


def _seeded(pipeline: Any, rng: np.random.Generator) -> Any:
    # not set_random_seed: that gives every step the same stream, and they would always act together
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**31))))
    return pipeline


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for news on the internet
    import albumentations

    return albumentations


@lru_cache(maxsize=8)
def _spectrogram_pipeline(contrast: float) -> Any:
    A = _albumentations()
    span = (-contrast, contrast)
    return A.Compose([A.RandomBrightnessContrast(span, span, p=0.7)])


@lru_cache(maxsize=8)
def _face_pipeline(flip: float, contrast: float, rotation: float) -> Any:
    A = _albumentations()
    span = (-contrast, contrast)
    return A.Compose(
        [
            A.HorizontalFlip(p=flip),
            A.RandomBrightnessContrast(span, span, p=0.7),
            A.Rotate((-rotation, rotation), p=0.7),
        ]
    )
