"""One clip's feature -> the arrays that its encoder sees; training takes random parts of it.

Each view is called as `view(feature, row, config, rng, augment)` with the clip's row of the
manifest and the run's settings, and gives the encoder's arguments for this clip. What else training
changes at random, training/augment.py changes on the device.
"""

from __future__ import annotations

import math

import numpy as np

from utils.errors import IntegrityError, UsageError

Arrays = tuple[np.ndarray, ...]
MOST_VALUES = 1 << 26  # that a model sees of one modality of a clip: 873 faces of 160 pixels
FACES = "face_valid"  # the manifest's column of them: 1 for each crop that shows a face, else 0
RANGE_DB = 80  # of a log-mel, from 0 to 1, as extract/audio.py writes it


def speech_view(
    log_mel: np.ndarray, row: dict, config: dict, rng: np.random.Generator, augment: bool
) -> Arrays:
    """(F, T) -> (1, F, T') and the mask (T',) of its real columns: the middle of the clip, zeros at
    both ends of a short one. In training a random stretch, whose level is left to augmentation."""
    frames = config["speech_frames"]
    check_amount("speech_frames", frames, log_mel.shape[:1])
    if augment:
        log_mel = other_channel(resample(log_mel, rng, config), config["speech_channel"], rng)
    start = (log_mel.shape[1] - frames) / 2
    if augment and start > 0:
        start = rng.integers(0, log_mel.shape[1] - frames + 1)
    view, mask = cut_or_pad(log_mel, int(start), frames)
    if not augment:
        mean, deviation = level_of(view[:, mask], config["speech_norm"])
        view = (view - mean) / deviation * mask
    return np.ascontiguousarray(view[np.newaxis], dtype=np.float32), mask


def level_of(real: np.ndarray, how: str) -> np.ndarray:
    """Mean and deviation, (2, 1, 1) or (2, F, 1), of the clip's columns (F, T): of all bands
    together (clip), of each (bands: then the microphone does not count), or such that nothing
    changes."""
    if how == "none":
        return np.array([0, 1], np.float32).reshape(2, 1, 1)
    axis = 1 if how == "bands" else None
    return np.stack([real.mean(axis, keepdims=True), real.std(axis, keepdims=True) + 1e-2])


def cut_or_pad(log_mel: np.ndarray, start: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns start to start + frames of (F, T), and which of them the clip has; others are zero
    (silence)."""
    view, mask = np.zeros((log_mel.shape[0], frames), np.float32), np.zeros(frames, bool)
    first, last = max(0, start), min(log_mel.shape[1], start + frames)
    view[:, first - start : last - start] = log_mel[:, first:last]
    mask[first - start : last - start] = True
    return view, mask


def resample(log_mel: np.ndarray, rng: np.random.Generator, config: dict) -> np.ndarray:
    """(F, T) -> (F, T'): as if said faster or slower, and by a voice of a longer or shorter throat
    (all bands move up or down alike). Bands that come in at an edge repeat it."""
    speed, pitch = config["speech_speed"], config["speech_pitch"]
    if not speed and not pitch:
        return log_mel
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


def other_channel(log_mel: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """(F, T) in [0, 1] -> the same, as if recorded elsewhere: a microphone that makes bands louder
    and quieter, by a smooth curve of up to about 20 dB, and steady noise up to 40 dB below the
    loudest point, at a strength of 1. The result is scaled as features are: 1 is the loudest."""
    if not strength:
        return log_mel
    bands = log_mel.shape[0]
    waves = np.cos(np.pi * np.outer(np.arange(1, 5), (np.arange(bands) + 0.5) / bands))  # (4, F)
    colour, slope = rng.uniform(-1, 1, (2, 4)) / np.arange(1, 5) @ waves * 0.15 * strength  # (F,)
    noise = rng.uniform(0, 0.5 * strength) + slope[:, None]
    noise = noise + 0.03 * rng.standard_normal(log_mel.shape, np.float32)
    nats = RANGE_DB / 10 * np.log(10)  # from 0 to 1
    both = np.logaddexp(nats * (log_mel + colour[:, None]), nats * noise) / nats
    return np.float32((both + 1 - both.max()).clip(0, 1))


def face_view(
    crops: np.ndarray, row: dict, config: dict, rng: np.random.Generator, augment: bool
) -> Arrays:
    """(T, S, S, 3) uint8 -> (T', 3, S, S) uint8, only frames with a face: random ones in order in
    training, evenly spaced over the whole clip else."""
    check_amount("face_frames", config["face_frames"], crops.shape[1:])
    faces = np.flatnonzero(face_flags(row))
    chosen = faces[choose_frames(len(faces), config["face_frames"], rng, augment)]
    shown = np.empty((len(chosen), 3, *crops.shape[1:3]), crops.dtype)
    for place, frame in enumerate(chosen):  # all at once takes three times as long
        shown[place] = crops[frame].transpose(2, 0, 1)
    return (shown,)


def face_flags(row: dict) -> np.ndarray:
    """(T,) which of the clip's frames show a face; IntegrityError when none does."""
    flags = row.get(FACES, "")
    valid = np.array([flag == "1" for flag in flags], bool)
    if not valid.any():
        raise IntegrityError(
            f"{FACES} {flags!r} of clip {row['split']}/{row['clip_id']} has no frame to see; "
            "delete its crops and run preprocess.py again"
        )
    return valid


def row_with_faces(frames: int) -> dict[str, str]:
    """What a row of the manifest says of a feature whose frames all show a face."""
    return {FACES: "1" * frames}


def check_amount(setting: str, frames: int, shape: tuple[int, ...]) -> None:
    """UsageError where so many frames of this shape take too much: a short clip repeats some, so
    its own size is no limit, and the setting can be that of a checkpoint from anywhere."""
    if frames * math.prod(shape) > MOST_VALUES:
        what = f"{frames} times {' x '.join(map(str, shape))} values of each clip"
        raise UsageError(f"{setting} {frames}: {what}, the limit is {MOST_VALUES}: take fewer")


def choose_frames(
    available: int, frames: int, rng: np.random.Generator, augment: bool
) -> np.ndarray:
    """`frames` ascending indices below `available`; short clips repeat some."""
    if augment:
        return np.sort(rng.choice(available, frames, replace=available < frames))
    return ((np.arange(frames) + 0.5) * available / frames).astype(int)  # middles of equal parts


def text_view(
    word_embed: np.ndarray, row: dict, config: dict, rng: np.random.Generator, augment: bool
) -> Arrays:
    """(L, D) -> the first words (L', D) and their mask (L',), all true: batches pad both."""
    words = np.array(word_embed[: config["max_words"]], np.float32)
    return words, np.ones(len(words), bool)


def custom_view(
    feature: np.ndarray, row: dict, config: dict, rng: np.random.Generator, augment: bool
) -> Arrays:
    """A custom feature: (D,) as it is, (T, D) -> (T', D), chosen like face crops.

    With --feature_frames 1 it becomes a vector, (T, D) -> (D,): a random row in training, the mean
    of all rows else. So the rows may be the same clip made in several ways (faster, noisier).

    Of several layers of an encoder (L, T, D) -> (L, T', D), or their means (L, D); a single row
    stands for the clip as a whole, (L, 1, D) -> (L, D).
    """
    frames = config["feature_frames"]
    if feature.ndim > 1:
        check_amount("feature_frames", frames, (*feature.shape[:-2], feature.shape[-1]))
    if feature.ndim == 3:
        if frames == 1 or feature.shape[1] == 1:
            return (np.asarray(feature, np.float32).mean(axis=1),)
        feature = feature[:, choose_frames(feature.shape[1], frames, rng, augment)]
    if feature.ndim == 2 and frames == 1:
        feature = feature[rng.integers(len(feature))] if augment else feature.mean(axis=0)
    elif feature.ndim == 2:
        feature = feature[choose_frames(len(feature), frames, rng, augment)]
    return (np.array(feature, dtype=np.float32),)  # a copy: the file is mapped, not to be written


def embedding_view(
    feature: np.ndarray, row: dict, config: dict, rng: np.random.Generator, augment: bool
) -> Arrays:
    """A vector per face crop (T, D): only those of frames with a face."""
    return custom_view(feature[face_flags(row)], row, config, rng, augment)
