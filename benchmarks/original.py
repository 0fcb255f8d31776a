"""Clips as the original's loading processes made them: changed one at a time, and floats."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from training.augment import draw_spans, draw_warp
from training.data import to_device
from training.randomness import generator


class OneByOne(torch.utils.data.Dataset):
    """Clips of a ClipDataset, `augmented` by albumentations and numpy, pictures as floats unless
    they stay `bytes`."""

    def __init__(self, clips: Any, augmented: bool, as_bytes: bool):
        self.clips, self.config, self.training = clips, clips.config, clips.training
        self.augmented, self.as_bytes = augmented, as_bytes

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        item = self.clips[key]
        if self.augmented:
            rng = generator(self.config["seed"], "clip", *key)
            for name in item.pop("drawn"):
                item["inputs"][name] = CHANGES[name](*item["inputs"][name], self.config, rng)
        if not self.as_bytes:
            item["inputs"] = to_device(item["inputs"], "cpu")
        return item


def change_sound(view: torch.Tensor, mask: torch.Tensor, config: dict, rng: Any) -> tuple:
    """Light and SpecAugment of a log-mel (1, F, T)."""
    contrast = config["speech_contrast"]
    sound = seeded(light(contrast), rng)(image=view[0].numpy())["image"]
    bands, frames = sound.shape
    last, (point, target) = frames - 1, draw_warp(frames, config["time_warp"], rng)
    source = np.interp(np.arange(frames), [0, target, last], [0, point, last])
    left = np.floor(source).astype(int)
    right, part = np.minimum(left + 1, last), (source - left).astype(np.float32)
    sound = sound[:, left] * (1 - part) + sound[:, right] * part
    for start, end in draw_spans(config["frequency_masks"], config["frequency_width"], bands, rng):
        sound[start:end] = 0
    widest = round(config["time_width"] * frames)
    for start, end in draw_spans(config["time_masks"], widest, frames, rng):
        sound[:, start:end] = 0
    return torch.from_numpy(sound)[None], mask


def change_faces(crops: torch.Tensor, config: dict, rng: Any) -> tuple:
    """Flip, light and rotation of crops (T, 3, S, S), one draw for all of them."""
    strengths = (config[f"face_{name}"] for name in ("flip", "contrast", "rotation"))
    pictures = np.ascontiguousarray(crops.permute(0, 2, 3, 1).numpy())
    changed = seeded(faces(*strengths), rng)(images=pictures)["images"]
    return (torch.from_numpy(np.ascontiguousarray(changed.transpose(0, 3, 1, 2))),)


CHANGES: dict[str, Callable] = {"speech": change_sound, "face": change_faces}


def seeded(pipeline: Any, rng: np.random.Generator) -> Any:
    # not set_random_seed: that gives every step the same stream, and they would always act together
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**31))))
    return pipeline


def library() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for news on the internet
    import albumentations

    return albumentations


@lru_cache
def light(contrast: float) -> Any:
    A = library()
    span = (-contrast, contrast)
    return A.Compose([A.RandomBrightnessContrast(span, span, p=0.7)])


@lru_cache
def faces(flip: float, contrast: float, rotation: float) -> Any:
    A = library()
    span = (-contrast, contrast)
    return A.Compose(
        [
            A.HorizontalFlip(p=flip),
            A.RandomBrightnessContrast(span, span, p=0.7),
            A.Rotate((-rotation, rotation), p=0.7),
        ]
    )
