"""Samples (N,) -> Wiener filter, loudness of frames, mel spectrogram.

The same values bit for bit as scipy.signal.wiener and librosa's rms and melspectrogram (tested):
importing those two packages takes longer than the sound of many clips.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LINEAR_BELOW = 1000.0  # Hz: Slaney's mel scale is linear up to here, then logarithmic
HZ_PER_MEL = 200 / 3  # of its linear part
LOG_STEP = np.log(6.4) / 27  # of the logarithm of Hz, per mel
BLOCK = 1024  # frames that are transformed at once: the memory grows with their results alone


def wiener(wave: np.ndarray) -> np.ndarray:
    """(N,) -> (N,) float64: each sample drawn to the mean of three, the more the less they vary.

    Lim, Two-dimensional signal and image processing (1990), equations 9.44 to 9.46; the noise is
    the mean of all variances. Not a number where the three do not vary and all is quiet.
    """
    mean = sum_of_three(wave) / 3
    variance = sum_of_three(wave**2) / 3 - mean**2
    noise = variance.mean()
    filtered = (wave - mean) * (1 - noise / variance) + mean
    return np.where(variance < noise, mean, filtered)


def sum_of_three(values: np.ndarray) -> np.ndarray:
    """Each value (N,) with its two neighbours; beyond the ends are zeros."""
    return np.correlate(values, np.ones(3), "full")[1:-1]


def frames_of(wave: np.ndarray, length: int, hop: int) -> np.ndarray:
    """(N,) -> (T, length), T = 1 + N // hop: frames around each hop-th sample, zeros outside."""
    padded = np.pad(wave, length // 2)
    return np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]


def loudness(wave: np.ndarray, length: int, hop: int) -> np.ndarray:
    """(N,) -> (T,): the root of the mean square of each frame."""
    return np.sqrt(np.square(frames_of(wave, length, hop)).mean(axis=1))


def mel_power(wave: np.ndarray, settings: dict) -> np.ndarray:
    """(N,) float32 -> (F, T) float32: the power of each frame under a Hann window, in mel bands."""
    length = settings["n_fft"]
    frames = frames_of(wave, length, settings["hop_length"])  # (T, n_fft)
    window = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, length + 1))[:-1]
    spectrum = np.empty((len(frames), length // 2 + 1), np.complex64)
    for first in range(0, len(frames), BLOCK):
        part = slice(first, first + BLOCK)
        spectrum[part] = np.fft.rfft(window * frames[part])
    power = np.abs(spectrum) ** 2.0  # (T, bins)
    names = ("sample_rate", "n_fft", "n_mels", "fmin", "fmax")
    bands = filters(*(settings[name] for name in names))  # (F, bins)
    return np.einsum("ft,mf->mt", power.T, bands, optimize=True)


@lru_cache(maxsize=4)
def filters(rate: int, length: int, count: int, lowest: float, highest: float) -> np.ndarray:
    """(F, bins) float32: a triangle per band, of equal areas (Slaney, Auditory toolbox, 1998)."""
    edges = band_edges(count, lowest, highest)  # (F + 2,)
    widths = np.diff(edges)[:, np.newaxis]
    distances = edges[:, np.newaxis] - np.fft.rfftfreq(length, 1 / rate)  # (F + 2, bins)
    rising, falling = -distances[:-2] / widths[:-1], distances[2:] / widths[1:]
    bands = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    bands *= (2 / (edges[2:] - edges[:-2]))[:, np.newaxis]
    return bands


def band_edges(count: int, lowest: float, highest: float) -> np.ndarray:
    """(count + 2,) Hz, equally far apart in mel: a band is from each edge to the next but one."""
    mels = np.linspace(to_mel(lowest), to_mel(highest), count + 2)
    bend = LINEAR_BELOW / HZ_PER_MEL
    above = LINEAR_BELOW * np.exp(LOG_STEP * (mels - bend))
    return np.where(mels < bend, HZ_PER_MEL * mels, above)


def to_mel(hertz: float) -> float:
    if hertz < LINEAR_BELOW:
        return hertz / HZ_PER_MEL
    return LINEAR_BELOW / HZ_PER_MEL + np.log(hertz / LINEAR_BELOW) / LOG_STEP
