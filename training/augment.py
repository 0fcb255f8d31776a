"""Random changes of clips in training, and the settings that say how strong they are.

A loading process draws for one clip, from a generator that follows from seed, epoch and clip; the
device that trains applies what was drawn to a whole batch. So a batch is the same whatever the
number of processes, and they do nothing but read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from training.settings import SHARE, Setting
from training.views import Arrays, level_of
from utils.config import ranged

if TYPE_CHECKING:  # else the flags would wait for torch, where they read the strengths
    from torch import Tensor

SPEECH_STRENGTHS = {
    "speech_speed": Setting(0.0, ranged(float, 0, 0.5), "most faster or slower", "augmentation"),
    "speech_pitch": Setting(0.0, ranged(float, 0, 40), "most mel bins up or down", "augmentation"),
    "speech_channel": Setting(0.0, SHARE, "of another microphone and room", "augmentation"),
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
Drawn = dict[str, np.ndarray]  # of one clip; of a batch tensors with one more axis in front
OFTEN = 0.7  # share of the clips that get another light, and that are turned


def draw_light(strength: float, rng: np.random.Generator) -> np.ndarray:
    """(2,) contrast and brightness, a gain around 1 and a shift around 0 of values in [0, 1]."""
    light = np.array([1 + rng.uniform(-strength, strength), rng.uniform(-strength, strength)])
    return (light if rng.random() < OFTEN else np.array([1.0, 0.0])).astype(np.float32)


def draw_speech(arrays: Arrays, config: dict, rng: np.random.Generator) -> Drawn:
    """What `augment_speech` does to a log-mel (1, F, T) with the mask (T,) of its real columns:
    light, a warp, masks of bands and columns, and at last the level that it has before all these.

    The widths in time are shares of the input's length: the recipe's 80 and 50 of 400 columns.
    """
    view, mask = arrays
    _, bands, frames = view.shape
    wide = round(config["time_width"] * frames)
    return {
        "light": draw_light(config["speech_contrast"], rng),
        "warp": draw_warp(frames, config["time_warp"], rng),
        "bands": draw_spans(config["frequency_masks"], config["frequency_width"], bands, rng),
        "columns": draw_spans(config["time_masks"], wide, frames, rng),
        "level": level_of(view[0][:, mask], config["speech_norm"]),
    }


def draw_warp(frames: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """(2,) a column, at least `share` of the length from both ends as in SpecAugment (arXiv
    1904.08779), and where it moves to, less than `share` away; twice the same for no warp."""
    width = round(share * frames)
    if width < 1 or frames < 2 * width + 1:
        return np.array([1, 1])
    point = rng.integers(width, frames - width)
    return np.array([point, point + rng.integers(-width + 1, width)])


def draw_spans(count: int, widest: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) first and behind the last of spans of 0 to `widest` among `size`."""
    spans = np.zeros((count, 2), np.int64)
    for span in spans:
        width = rng.integers(0, min(widest, size) + 1)
        span[0] = rng.integers(0, size - width + 1)
        span[1] = span[0] + width
    return spans


def augment_speech(
    view: Tensor, mask: Tensor, drawn: dict[str, Tensor], config: dict
) -> tuple[Tensor, Tensor]:
    """Log-mels (B, 1, F, T) in [0, 1] and the mask (B, T) of their real columns -> the same, at the
    level of --speech_norm. Masked parts are silence and count as real (SpecAugment, arXiv
    1904.08779)."""
    if config["speech_contrast"]:
        gain, shift = drawn["light"].view(-1, 2, 1, 1, 1).unbind(1)
        view = (view * gain + shift).clamp(0, 1)
    if config["time_warp"]:
        view, mask = time_warp(view, mask, *drawn["warp"].unbind(1))
    bands, columns = view.shape[2:]
    if config["frequency_masks"]:
        view = view.masked_fill(covered(drawn["bands"], bands)[:, None, :, None], 0)
    if config["time_masks"]:
        view = view.masked_fill(covered(drawn["columns"], columns)[:, None, None, :], 0)
    mean, deviation = drawn["level"].unsqueeze(2).unbind(1)  # (B, 1, 1 or F, 1)
    return (view - mean) / deviation * mask[:, None, None, :], mask


def time_warp(view: Tensor, mask: Tensor, point: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Move one column of each clip to another, stretching both sides linearly.

    (B, 1, F, T), (B, T) and the columns (B,) -> the same. A clip of which nothing would be left, a
    few columns that fell between two, stays as it is.
    """
    import torch

    last = view.shape[3] - 1
    at = torch.arange(last + 1, device=view.device)  # (T,)
    point, target = point.unsqueeze(1), target.unsqueeze(1)  # (B, 1)
    behind = point + (at - target) * ((last - point) / (last - target).clamp(min=1))
    source = torch.where(at <= target, at * (point / target), behind)  # (B, T) in the clip
    left = (source + 1e-4).floor().clamp(max=last).long()
    part = (source - left).clamp(min=0)
    right = (left + 1).clamp(max=last)
    real = mask.gather(1, left) | (mask.gather(1, right) & (part > 1e-4))  # where the clip is
    moves = (point != target) & real.any(dim=1, keepdim=True)  # (B, 1)

    def columns(places: Tensor) -> Tensor:
        return view.gather(3, places[:, None, None, :].expand_as(view))

    warped = torch.lerp(columns(left), columns(right), part[:, None, None, :])
    return torch.where(moves[:, :, None, None], warped, view), torch.where(moves, real, mask)


def covered(spans: Tensor, size: int) -> Tensor:
    """(B, spans, 2) -> (B, size): which places lie in any of a clip's spans."""
    import torch

    at = torch.arange(size, device=spans.device)
    first, behind = spans.unsqueeze(3).unbind(2)  # (B, spans, 1)
    return ((at >= first) & (at < behind)).any(dim=1)


def draw_faces(arrays: Arrays, config: dict, rng: np.random.Generator) -> Drawn:
    """What `augment_faces` does to all crops of a clip: light, and from where in the picture each
    place comes (2, 3), as torch's affine_grid takes it: mirrored, turned, smaller or larger, moved.
    """
    light = draw_light(config["face_contrast"], rng)
    side = -1.0 if rng.random() < config["face_flip"] else 1.0
    angle = np.deg2rad(config["face_rotation"]) * rng.uniform(-1, 1) * (rng.random() < OFTEN)
    size, *shift = rng.uniform(-1, 1, 3) * config["face_zoom"]  # of half the side, as all here
    across, along = np.cos(angle) / (1 + size), np.sin(angle) / (1 + size)
    place = [[side * across, -along, shift[0]], [side * along, across, shift[1]]]
    return {"light": light, "place": np.array(place, np.float32)}


def augment_faces(crops: Tensor, drawn: dict[str, Tensor], config: dict) -> tuple[Tensor]:
    """Crops (B, T, 3, S, S) in [0, 1] -> the same; at the edges pictures go on mirrored."""
    from torch.nn.functional import affine_grid, grid_sample

    if config["face_contrast"]:
        gain, shift = drawn["light"].view(-1, 2, 1, 1, 1, 1).unbind(1)
        crops = (crops * gain + shift).clamp(0, 1)
    if config["face_flip"] or config["face_rotation"] or config["face_zoom"]:
        flat = crops.flatten(1, 2)  # (B, T 3, S, S): one grid for all frames of a clip
        grid = affine_grid(drawn["place"], list(flat.shape), align_corners=False)
        moved = grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
        crops = moved.view_as(crops)
    return (crops,)


class Augmentation(NamedTuple):
    """`draw(a clip's arrays, settings, rng)` says what `apply(*tensors of a batch, what was drawn,
    settings)` does to them."""

    draw: Callable[[Arrays, dict, np.random.Generator], Drawn]
    apply: Callable[..., tuple]


AUGMENTATIONS = {  # by the name that a modality's row gives
    "sound": Augmentation(draw_speech, augment_speech),
    "pictures": Augmentation(draw_faces, augment_faces),
}
