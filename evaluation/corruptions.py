"""Features made worse on purpose: noise on sound, blur on faces, words left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from training.features import Features
from training.modalities import modality
from training.randomness import clip_number, generator


def add_noise(
    log_mel: np.ndarray, snr: float, rng: np.random.Generator, settings: dict
) -> np.ndarray:
    """(F, T) in [0, 1] -> the same with white noise `snr` dB below the speech (80-8000 Hz).

    power P = 10 ** (range_db (x - 1) / 10). Librosa's mel filters have equal areas, so white noise
    has the same power n in all of them: mean(P) / 10 ** (snr / 10), each filter weighing its width
    in Hz. A filter that is b Fourier bins wide sees the mean of b bins |sqrt(P) + noise| ** 2, with
    complex normal noise of variance n. Then dB below the new maximum, as in the extraction; its
    trimming and Wiener filter come before that and are not redone.
    """
    power = 10 ** (settings["range_db"] / 10 * (np.asarray(log_mel, np.float64) - 1))
    widths = band_widths(len(log_mel), settings["fmin"], settings["fmax"])
    density = np.average(power.mean(axis=1), weights=widths) / 10 ** (snr / 10)
    bins = np.maximum(1, widths * settings["n_fft"] / settings["sample_rate"])[:, np.newaxis]
    real, imaginary = rng.normal(size=(2, *power.shape)) * np.sqrt(density / bins / 2)
    rest = rng.gamma(bins - 1, density / bins, power.shape)  # of the bins around their mean
    power = (np.sqrt(power) + real) ** 2 + imaginary**2 + rest
    decibel = 10 * np.log10(np.maximum(power / power.max(), 1e-12))  # 0 has no logarithm
    return (1 + decibel / settings["range_db"]).clip(0, 1).astype(np.float32)


@lru_cache
def band_widths(bands: int, lowest: float, highest: float) -> np.ndarray:
    """Width in Hz (F,) of librosa's mel filters, at half height."""
    import librosa

    edges = librosa.mel_frequencies(bands + 2, fmin=lowest, fmax=highest)
    return (edges[2:] - edges[:-2]) / 2


def blur(crops: np.ndarray, sigma: float, rng: np.random.Generator, settings: dict) -> np.ndarray:
    """(T, S, S, 3) -> the same under a Gaussian of `sigma` % of the crop's side."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for news on the internet
    from albumentations import GaussianBlur

    width = sigma / 100 * crops.shape[1]
    return GaussianBlur(blur_limit=0, sigma_limit=(width, width), p=1)(images=crops)["images"]


def drop_words(
    words: np.ndarray, share: float, rng: np.random.Generator, settings: dict
) -> np.ndarray:
    """(L, D) -> (L', D): each word is lost with probability `share` %, but never all of them."""
    kept = rng.random(len(words)) >= share / 100
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return words[kept]


class Corruption(NamedTuple):
    """`apply(feature, level, rng, extraction settings)`; levels from mild to hard; `axis` names
    them in a picture."""

    apply: Callable[..., np.ndarray]
    levels: tuple[float, ...]
    axis: str


CORRUPTIONS = {  # by the name that a modality's row gives
    "white noise": Corruption(add_noise, (30, 20, 10, 5, 0, -5), "white noise, dB SNR"),
    "blur": Corruption(blur, (1, 2, 4, 8, 16), "blurred, sigma in % of its side"),
    "lost words": Corruption(drop_words, (10, 25, 50, 75, 90), "words lost, %"),
}


@dataclass(frozen=True)
class CorruptedFeatures(Features):
    """Features of which one modality is read at a level of its corruption; the clip decides the
    draw."""

    modality: str = ""
    level: float = 0.0

    def load(self, row: dict[str, Any], name: str) -> np.ndarray:
        feature = super().load(row, name)
        if name != self.modality:
            return feature
        kind = modality(name)
        # the seed is of the clip alone: all runs, and all levels, are given the same draw
        rng = generator(0, "corruption", clip_number(row))
        settings = self.settings["features"].get(kind.folder, {})
        return CORRUPTIONS[kind.corruption].apply(feature, self.level, rng, settings)


def corrupt(features: Features, name: str, level: float) -> CorruptedFeatures:
    return CorruptedFeatures(
        folder=features.folder,
        settings=features.settings,
        manifest=features.manifest,
        modality=name,
        level=level,
    )
