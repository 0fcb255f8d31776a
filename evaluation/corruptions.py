"""Features made worse on purpose: noise on speech, blur on faces, words left out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.data import Features, folder_of


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
    decibel = 10 * np.log10(np.maximum(power / power.max(), 1e-12))
    return (1 + decibel / settings["range_db"]).clip(0, 1).astype(np.float32)


@lru_cache
def band_widths(bands: int, lowest: float, highest: float) -> np.ndarray:
    """Width in Hz (F,) of librosa's mel filters, at half height."""
    import librosa

    edges = librosa.mel_frequencies(bands + 2, fmin=lowest, fmax=highest)
    return (edges[2:] - edges[:-2]) / 2


def blur(crops: np.ndarray, sigma: float, rng: np.random.Generator, settings: dict) -> np.ndarray:
    """(T, S, S, 3) -> the same under a Gaussian of `sigma` % of the crop's side."""
    import cv2

    width = sigma / 100 * crops.shape[1]
    return np.stack([cv2.GaussianBlur(crop, (0, 0), width) for crop in crops])


def drop_words(
    words: np.ndarray, share: float, rng: np.random.Generator, settings: dict
) -> np.ndarray:
    """(L, D) -> (L', D): each word is lost with probability `share` %, but never all of them."""
    kept = rng.random(len(words)) >= share / 100
    kept[rng.integers(len(words))] |= not kept.any()
    return words[kept]


HARMS = {  # modality -> what is done to it, and in which levels, from mild to hard
    "speech": (add_noise, (30, 20, 10, 5, 0, -5)),
    "face": (blur, (1, 2, 4, 8, 16)),
    "text": (drop_words, (10, 25, 50, 75, 90)),
}


@dataclass(frozen=True)
class Degraded(Features):
    """Features of which one modality is read at a level of its harm; the clip decides the draw."""

    modality: str
    level: float

    def load(self, row: dict, modality: str) -> np.ndarray:
        feature = super().load(row, modality)
        if modality != self.modality:
            return feature
        rng = np.random.default_rng(zlib.crc32(f"{row['split']}/{row['clip_id']}".encode()))
        settings = self.settings["features"].get(folder_of(modality), {})
        return HARMS[modality][0](feature, self.level, rng, settings)
