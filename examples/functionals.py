"""How each clip sounds as one vector (D,), beside its log-mel: a custom feature for train.py.

    python examples/functionals.py --data_dir ravdess          # -> features/<split>/functionals/
    python train.py --mode multimodal --inputs functionals --feature_frames 1 --exp_name first

Statistics over the speech of pitch, level, cepstrum and spectrum; their course in 12 equal parts;
how they go together (the logarithm of their covariance); and how fast each band beats. The file
holds three rows: the clip at 0.9, 1 and 1.1 times its speed, which stand for speakers of
other sizes (speed perturbation, Ko et al. 2015, Interspeech). Every number is standardized over all
clips of its speaker, whose clips must therefore be at hand, labels not: (x - mean) / deviation.

A model of these numbers cannot answer for a single clip of somebody new. `--raw` makes numbers of
the clip alone, -> features/<split>/functionals_raw/: what they reach holds for such a clip, too.

As an encoder they are made by preprocess.py, and by predict.py for a clip of anybody:

    python preprocess.py ... --encoder functionals=speech:file:examples/functionals.py,pool=frames
    python train.py --mode multimodal --inputs functionals --feature_frames 1 --exp_name first

(`--standardize speaker` in the training is the comparison with the person's other clips.)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from extract.audio import SPEECH_SETTINGS, check_wave, denoise, read_mono, trim
from training.features import Features
from utils.config import Flags
from utils.errors import ClipError, UsageError, counted, run_script
from utils.files import lock_folder, write_atomic
from utils.parallel import available_cores

RATE, HOP, FFT = (SPEECH_SETTINGS[name] for name in ("sample_rate", "hop_length", "n_fft"))
SPEEDS = ((10, 9), (1, 1), (10, 11))  # new samples for so many old ones
FEW = 5  # clips: what deviates from their mean says little
FLOOR = 1e-6  # of amplitudes and powers, -120 dB
WINDOW = 256  # columns, 4.1 s
BEATS = (0.5, 1.5, 2.5, 3.5, 5, 7, 9, 12, 16, 22, 31)  # Hz


def main() -> None:
    flags = Flags(__doc__)
    flags.add("--features_dir", default=Path("features"), type=Path, help="of preprocess.py")
    flags.add("--data_dir", required=True, type=Path, help="as given to preprocess.py")
    flags.add("--raw", action="store_true", help="do not standardize per speaker")
    args = flags.parse_args()
    clips = Features.open(args.features_dir).manifest
    with lock_folder(args.features_dir):
        write(args, clips)


def write(args: argparse.Namespace, clips: pd.DataFrame) -> None:
    """The feature of each clip, beside those of preprocess.py."""
    if clips.empty:
        raise UsageError(f"{args.features_dir} has no usable clips: see failed.csv")
    if "media" not in clips:
        place = args.features_dir / "manifest.csv"
        raise UsageError(f"{place} lacks media: run preprocess.py again")
    if not args.raw:
        check_speakers(clips, args.features_dir)
    sounds = measure([args.data_dir / media for media in clips["media"]])
    name = "functionals_raw" if args.raw else "functionals"
    values = [of_clip(views) for views in sounds] if args.raw else by_speaker(sounds, clips)
    for clip, value in zip(clips.itertuples(), values, strict=True):
        path = args.features_dir / clip.split / name / f"{clip.clip_id}.npy"
        write_atomic(path, partial(np.save, arr=value))
    numbers = f"{values[0].shape[1]} numbers at {len(SPEEDS)} speeds each"
    print(f"{counted(len(values), 'clip')}: {numbers}")


def check_speakers(clips: pd.DataFrame, features_dir: Path) -> None:
    if unknown := (clips["speaker"] == "").sum():
        reason = f"{counted(unknown, 'clip')} of {features_dir} without a speaker in the manifest"
        raise UsageError(f"{reason}: --raw does without")
    if few := (clips["speaker"].value_counts() < FEW).sum():
        who = f"{counted(few, 'speaker')} with under {FEW} clips"
        print(f"warning: {who}, too few to know their voice: --raw")


def measure(media: list[Path]) -> list[list[Sound]]:
    """Every clip at every speed, on all cores."""
    jobs = [delayed(views)(path) for path in media]
    work = Parallel(available_cores(), return_as="generator")
    with own_compilations():
        first = list(work(jobs[:1]))
        rest = tqdm(work(jobs[1:]), "functionals", len(media), initial=1, unit="clip")
        return first + list(rest)


@contextlib.contextmanager
def own_compilations() -> Iterator[None]:
    """What librosa compiles is kept for this run alone; its first clip must be done by itself.

    The usual place serves all processes of the environment, in files that belong together. Two that
    compile at once can mix theirs, and from then on every call of pyin there is a crash.
    """
    with tempfile.TemporaryDirectory(prefix="librosa-") as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        yield


def of_clip(sounds: list[Sound]) -> np.ndarray:
    """A clip at every speed -> (3, D) float32, as measured, from this clip alone."""
    rows = [with_covariance(sound, sound.tracks.std(axis=1, keepdims=True)) for sound in sounds]
    return np.stack(rows).astype(np.float32)


def by_speaker(clips: list[list[Sound]], rows: pd.DataFrame) -> np.ndarray:
    """N clips at every speed -> (N, 3, D) float32, deviations from the mean of each clip's speaker,
    at most 4 (outliers)."""
    values: dict[int, np.ndarray] = {}
    for indices in rows.groupby("speaker").indices.values():
        speeds = []
        for sounds in zip(*(clips[index] for index in indices), strict=True):  # of one speed
            scale = np.concatenate([sound.tracks for sound in sounds], axis=1).std(axis=1)
            own = np.stack([with_covariance(sound, scale[:, None]) for sound in sounds])
            speeds.append((own - own.mean(axis=0)) / (own.std(axis=0) + FLOOR))
        values |= zip(indices, np.stack(speeds, axis=1).clip(-4, 4), strict=True)
    return np.stack([values[index] for index in range(len(rows))]).astype(np.float32)


def with_covariance(sound: Sound, scale: np.ndarray) -> np.ndarray:
    """(D,) the functionals, and how the tracks go together, each in units of its scale (2 N, 1)."""
    return np.concatenate([sound.values, log_covariance(sound.tracks / (scale + FLOOR))])


class Sound(NamedTuple):
    """A clip at one speed: its own functionals (D',) and tracks (2 N, T) to compare with others."""

    values: np.ndarray
    tracks: np.ndarray


def views(media: Path) -> list[Sound]:
    """A clip at every speed."""
    try:
        wave = read_mono(media).wave
        check_wave(wave, media, SPEECH_SETTINGS)
    except ClipError as error:
        hint = "; --data_dir is the folder that preprocess.py had"
        raise UsageError(error.reason + (hint if error.code == "E_MISSING" else "")) from error
    first, last = trim(wave)
    if last - first < HOP * SPEECH_SETTINGS["min_frames"]:
        raise UsageError(f"only {(last - first) / RATE:.2f} s of sound in {media.name}")
    return at_speeds(wave[first:last], first / RATE)


def at_speeds(wave: np.ndarray, start: float) -> list[Sound]:
    """Speech (N,) that starts so many seconds after its clip, at every speed."""
    from scipy.signal import resample_poly

    wave = denoise(wave)
    return [describe(resample_poly(wave, new, old), start) for new, old in SPEEDS]


def load(settings: dict[str, str], device: str) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder of extract/encoders.py: speech (N,) -> (3, D) as with --raw. When the speech
    starts in its clip an encoder does not know: that number is 0."""
    return lambda wave: of_clip(at_speeds(wave, 0.0))


def describe(wave: np.ndarray, start: float) -> Sound:
    """A wave (N,) that starts so many seconds after the clip."""
    import librosa

    # NaN where there is no pitch (pYIN, Mauch & Dixon 2014)
    pitch = librosa.pyin(wave, fmin=65, fmax=800, sr=RATE, frame_length=1024, hop_length=HOP)[0]
    of = {"y": wave, "sr": RATE, "n_fft": FFT, "hop_length": HOP}
    mels = {name: SPEECH_SETTINGS[name] for name in ("n_mels", "fmin", "fmax")}
    power = librosa.feature.melspectrogram(**of, **mels)
    mel = librosa.power_to_db(power, ref=1.0, top_db=None)  # (F, T)
    frames = mel.shape[1]
    rms = librosa.feature.rms(y=wave, frame_length=FFT, hop_length=HOP)[0, :frames]
    level = 20 * np.log10(rms + FLOOR)
    voiced = np.isfinite(pitch)
    octave = fill_in(np.log2(pitch))
    cepstrum = librosa.feature.mfcc(S=mel, n_mfcc=25)
    contrast = librosa.feature.spectral_contrast(**of)
    centroid = librosa.feature.spectral_centroid(**of)
    rest = [
        centroid,
        librosa.feature.zero_crossing_rate(wave, frame_length=FFT, hop_length=HOP),
        np.log(librosa.feature.spectral_flatness(y=wave, n_fft=FFT, hop_length=HOP) + FLOOR),
        librosa.feature.spectral_rolloff(**of),
        contrast,
    ]
    bands = band_means(mel, 12)
    heard_pitch = octave[voiced] if voiced.sum() > 3 else octave
    over_time = [(cepstrum[:20], 12), (octave, 24), (voiced, 12), (level, 24), (contrast, 6)]
    values = np.concatenate(
        [
            *(statistics(track) for track in (cepstrum, level, bands, heard_pitch, *rest)),
            [voiced.mean(), np.ptp(heard_pitch), len(wave) / RATE, start],
            [np.count_nonzero(np.diff(voiced)) / frames],
            (mel[::4] * rms).sum(axis=1) / rms.sum(),  # the spectrum where it is loud
            librosa.feature.chroma_stft(y=wave, sr=RATE, n_fft=1024, hop_length=HOP).mean(axis=1),
            *(in_parts(track, parts).ravel() for track, parts in (*over_time, (centroid, 12))),
            beats(band_means(mel, 16)).ravel(),
        ]
    )
    tracks = np.vstack([cepstrum[:20], octave, voiced, level])
    width = min(9, (frames - 1) // 2 * 2 + 1)
    return Sound(values, np.concatenate([tracks, librosa.feature.delta(tracks, width=width)]))


def fill_in(octave: np.ndarray) -> np.ndarray:
    """Straight lines where there is no pitch; one pitch for all where there is next to none."""
    known = np.flatnonzero(np.isfinite(octave))
    if len(known) < 4:
        return np.full(len(octave), 7.0)  # 128 Hz
    return np.interp(np.arange(len(octave)), known, octave[known])


def band_means(mel: np.ndarray, bands: int) -> np.ndarray:
    return np.stack([part.mean(axis=0) for part in np.array_split(mel, bands)])


def statistics(track: np.ndarray) -> np.ndarray:
    """(N, T) -> (10 N,): mean, deviation, five percentiles, two of the change, slope."""
    track = np.atleast_2d(track)
    change = np.diff(track, axis=1)
    time = np.linspace(-1, 1, track.shape[1])
    shares = np.percentile(track, (5, 25, 50, 75, 95), axis=1)
    slope = (track * time).mean(axis=1)
    moved = np.abs(change).mean(axis=1), change.std(axis=1)
    return np.concatenate([track.mean(axis=1), track.std(axis=1), *shares, *moved, slope])


def in_parts(track: np.ndarray, parts: int) -> np.ndarray:
    """(N, T) -> (N, parts): means over equal parts of the time, whatever T."""
    track = np.atleast_2d(track).astype(float)
    edges = np.linspace(0, track.shape[1], parts + 1)
    sums = np.pad(track.cumsum(axis=1), ((0, 0), (1, 0)))
    at = np.stack([np.interp(edges, np.arange(sums.shape[1]), row) for row in sums])
    return np.diff(at, axis=1) / np.diff(edges)


def log_covariance(tracks: np.ndarray) -> np.ndarray:
    """Upper half of the matrix logarithm of the covariance of tracks (N, T): (N (N + 1) / 2,)."""
    values, vectors = np.linalg.eigh(np.cov(tracks) + 0.05 * np.eye(len(tracks)))
    logarithm = (vectors * np.log(values)) @ vectors.T
    return logarithm[np.triu_indices(len(logarithm))]


def modulation(bands: np.ndarray) -> np.ndarray:
    """(N, T) -> (N, 1 + WINDOW // 2): the power of each frequency, T <= WINDOW."""
    bands = (bands - bands.mean(axis=1, keepdims=True)) * np.hanning(bands.shape[1])
    return np.abs(np.fft.rfft(bands, WINDOW, axis=1)) ** 2 / bands.shape[1]


def beats(bands: np.ndarray) -> np.ndarray:
    """(N, T) in dB -> (N, 10): log power of the modulation between the frequencies BEATS; of a
    long clip the mean over windows that overlap by half or more (Welch 1967)."""
    count = max(1, -(-2 * bands.shape[1] // WINDOW) - 1)
    firsts = np.linspace(0, max(0, bands.shape[1] - WINDOW), count).astype(int)
    power = np.mean([modulation(bands[:, first:][:, :WINDOW]) for first in firsts], axis=0)
    frequency = np.fft.rfftfreq(WINDOW, HOP / RATE)
    edges = np.searchsorted(frequency, BEATS)
    means = [power[:, a:b].mean(axis=1) for a, b in pairwise(edges)]
    return np.log(np.stack(means, axis=1) + FLOOR)


if __name__ == "__main__":
    run_script(main)
