"""A clip's sound -> log-mel spectrogram (F, T) in [0, 1], and when in the clip it is."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extract.media import (
    FORMATS,
    check_complete,
    check_decoder,
    forget_places,
    mp3_seconds,
    open_media,
    packets_of,
    without,
)
from utils.errors import ClipError
from utils.stopwatch import timed

SPEECH_SETTINGS = {
    "sample_rate": 16_000,  # Hz
    "n_fft": 512,  # 32 ms
    "hop_length": 256,  # 16 ms: 62.5 frames a second
    "n_mels": 128,
    "fmin": 80,  # Hz
    "fmax": 8000,
    "trim_db": 20,  # quieter than this below the loudest frame counts as silence at both ends
    "range_db": 80,  # of the spectrogram: its loudest point is 1, range_db below is 0
    "silent_below": 1e-4,  # peak amplitude of full scale 1: -80 dB
    "min_frames": 10,  # 0.16 s of speech
    "max_seconds": 1200,  # of sound: 20 minutes are filtered in 1 GB
}
WAVE_SETTINGS = {"dtype": "float16"}  # of what encoders hear: its noise is 70 dB below the voice
JITTER = 0.04  # seconds, one picture: timestamps off by more say that samples are missing
MEAN = -1  # in place of a channel's number
CANCELLED = 0.1  # of the power of a mean of unrelated channels: below, they cancel out
MAX_AMPLITUDE = 1e6  # of a sample: files of floats can hold more, sound cannot
LOWEST = 1e-10  # power that is told from none: 100 dB below the loudest
BLOCK = 4096  # columns of a spectrogram that are computed at once: 32 MB
FULL_SCALE = 0.999  # of the largest sample that a file of integers can hold


class Speech(NamedTuple):
    """`log_mel` (F, T) float32; start and end of the speech in seconds on the clip's clock; the
    share of its samples that are at full scale or beyond (recorded too loud); and of the whole
    sound what `Sound` says."""

    log_mel: np.ndarray
    start: float
    end: float
    clipped: float
    track: int
    gaps: float
    channel: int


class Sound(NamedTuple):
    """Samples (N,) float32 as the mean of all channels and the time of the first one in seconds.

    `track`: which of the file's tracks they are from. `gaps`: by how many seconds in all its
    timestamps jump; nearly always 0. `channel`: which one was taken where the channels cancel each
    other out; nearly always MEAN.
    """

    wave: np.ndarray
    offset: float
    track: int
    gaps: float
    channel: int


def extract_speech(path: Path, settings: dict = SPEECH_SETTINGS) -> Speech:
    """Mono mix, silence trimmed at both ends, Wiener filter, log-mel. ClipError without speech."""
    wave, offset, track, gaps, channel = read_mono(path, settings)
    check_wave(wave, path, settings)
    first, last = trim(wave, settings)
    log_mel = log_mel_spectrogram(denoise(wave[first:last]), settings)
    rate = settings["sample_rate"]
    if log_mel.shape[1] < settings["min_frames"]:
        seconds = (last - first) / rate
        raise ClipError("E_SHORT", f"only {seconds:.2f} s of sound in {path.name}")
    clipped = float((np.abs(wave[first:last]) >= FULL_SCALE).mean())
    start, end = offset + first / rate, offset + last / rate
    return Speech(log_mel, start, end, clipped, track, gaps, channel)


def read_between(path: Path, start: float, end: float, settings: dict) -> np.ndarray:
    """(N,) float32 from `start` to `end` on the clip's clock, neither filtered nor scaled; but of
    sound beyond full scale (files of floats hold it) the loudest sample becomes 1."""
    sound = read_mono(path, settings)
    first, last = (round((time - sound.offset) * settings["sample_rate"]) for time in (start, end))
    wave = sound.wave[max(0, first) : last]
    return wave / max(1.0, np.abs(wave).max())


def trim(wave: np.ndarray, settings: dict = SPEECH_SETTINGS) -> tuple[int, int]:
    """First sample, and the one behind the last, that are not silence at the two ends.

    The same samples as librosa.effects.trim, without the seconds that its imports take.
    """
    hop = settings["hop_length"]
    power = np.square(frames_of(wave, settings)).mean(axis=0)
    loud = np.flatnonzero(power > power.max() * 10 ** (-settings["trim_db"] / 10))
    return int(loud[0]) * hop, min(len(wave), (int(loud[-1]) + 1) * hop)


@timed("decode")
def read_mono(path: Path, settings: dict = SPEECH_SETTINGS) -> Sound:
    """The sound of a clip, each sample at its own time. ClipError where there is none.

    Of several tracks: the one that players take by default, or else the first that is not silent
    (screen recorders keep the desktop and the microphone apart). Packets may be missing, come
    twice, or be hidden by an edit list. What is missing is silence of its true length, and of
    samples for the same time the first count: so the sound stays on the picture's clock.
    """
    sounds = []
    for track in sound_tracks(path):
        sounds.append(read_track(path, track, MEAN, settings))
        if not np.abs(sounds[-1].wave).max() < settings["silent_below"]:  # or no number
            return sounds[-1]
    return sounds[0]


def sound_tracks(path: Path) -> list[int]:
    """The tracks of sound that can be decoded, first those that players take by default."""
    from av.stream import Disposition

    with open_media(path) as container:
        tracks = container.streams.audio
        if not tracks:
            raise ClipError("E_NOAUDIO", f"{path.name} has no sound track")
        known = [track for track in tracks if track.codec_context is not None]
        if not known:
            check_decoder(tracks[0], path)
        by_choice = sorted(known, key=lambda track: not track.disposition & Disposition.default)
        return [track.index for track in by_choice]


def read_track(path: Path, track: int, channel: int, settings: dict) -> Sound:
    """One track as the mean of its channels, or one `channel` of it.

    Where the mean has lost what the channels hold (one is the other with its sign turned: a broken
    cable, some recorders) it is the loudest channel.
    """
    with open_media(path) as container:
        stream = container.streams[track]
        forget_places(stream)
        timeline = Timeline(settings["sample_rate"], channel)
        for packet in packets_of(container, stream, path):
            for frame in packet.decode():
                timeline.add(frame)
                if timeline.length > settings["max_seconds"]:
                    reason = f"{path.name} is longer than {settings['max_seconds']} s"
                    raise ClipError("E_LIMIT", reason)
        if not timeline.stretches:
            raise without("E_NOAUDIO", path, "a sound track without any samples")
        timeline.end_stretch()
        if FORMATS[path.suffix.lower()] == "mp3":
            check_complete(path, timeline.decoded, mp3_seconds(stream, path))
        if FORMATS[path.suffix.lower()] == "flac":  # what is damaged in it is left out
            check_complete(path, timeline.decoded, timeline.end - timeline.start)
    if channel == MEAN and timeline.cancelled:
        return read_track(path, track, timeline.loudest, settings)
    return Sound(timeline.wave(), timeline.start, track, timeline.gaps, channel)


def samples_of(packed: Any) -> np.ndarray:
    """The samples (N, C) of a frame.

    They must be packed (those of all channels in turn, in one plane): of sound with one plane for
    each channel PyAV reads wild memory where there are 8 or more.
    """
    return packed.to_ndarray().reshape(-1, packed.layout.nb_channels)


class Timeline:
    """Decoded frames -> mono samples at one rate, each at its time."""

    def __init__(self, rate: int, channel: int):
        self.rate, self.channel = rate, channel
        self.stretches: list[tuple[float, list[np.ndarray]]] = []  # (seconds, blocks of samples)
        self.blocks: list[np.ndarray] = []  # of the stretch that is decoded now
        self.end = -math.inf  # seconds: where the next frame should begin
        self.kind: tuple = ()  # of the stretch's frames
        self.decoded = 0.0  # seconds of all frames
        self.gaps = 0.0  # seconds by which timestamps jumped, forward or back
        self.energy = np.zeros(1)  # of the mean, then of each channel

    def add(self, frame: Any) -> None:
        time = frame.time
        if time is None:
            time = max(self.end, 0.0)
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if abs(time - self.end) > JITTER:
            self.begin_stretch(time)
        elif kind != self.kind:  # as where a broadcast goes from stereo to 5.1
            self.begin_stretch(self.end)
        self.kind = kind
        samples = [self.mono(part) for part in self.resampler.resample(frame)]
        if samples and not self.blocks:  # a first frame can be too short for the resampler
            self.stretches.append((time, self.blocks))
        self.blocks += samples
        seconds = frame.samples / frame.sample_rate
        self.end += seconds
        self.decoded += seconds

    def begin_stretch(self, time: float) -> None:
        """With a resampler of its own: one for all would join what does not belong together."""
        import av

        self.end_stretch()
        if self.stretches:
            self.gaps += abs(time - self.end)
        self.resampler = av.AudioResampler(format="flt", rate=self.rate)  # keeps the channels
        self.blocks = []
        self.end = time

    def end_stretch(self) -> None:
        if self.blocks:
            self.blocks += [self.mono(part) for part in self.resampler.resample(None)]

    def mono(self, part: Any) -> np.ndarray:
        """The channel, or the mean of all, (1, N * C) -> (N,)."""
        channels = samples_of(part).T  # (C, N)
        mean = np.ascontiguousarray(channels).mean(axis=0)
        with np.errstate(all="ignore"):  # files of floats may hold anything
            energy = [np.square(each, dtype=float).sum() for each in (mean, *channels)]
        if len(energy) > len(self.energy):  # a stream may change its channels
            self.energy = np.pad(self.energy, (0, len(energy) - len(self.energy)))
        self.energy[: len(energy)] += energy
        return mean if self.channel == MEAN else channels[min(self.channel, len(channels) - 1)]

    @property
    def loudest(self) -> int:
        return int(self.energy[1:].argmax())

    @property
    def cancelled(self) -> bool:
        """Whether the mean has lost what is in the channels.

        C unrelated ones have a mean with 1 / C^2 of the sum of their powers, as one that speaks
        beside others that are silent; of two channels 0.1 of that is a correlation of -0.9.
        """
        mean, *channels = self.energy
        return mean < CANCELLED * sum(channels) / max(1, len(channels)) ** 2

    @property
    def start(self) -> float:
        return self.stretches[0][0]

    @property
    def length(self) -> float:
        """Seconds from the first sample to the last, or of all frames where they overlap."""
        return max(self.end - self.start, self.decoded) if self.stretches else self.decoded

    def wave(self) -> np.ndarray:
        """(N,) float32 from `start` on; zeros where nothing lies."""
        places = [round((time - self.start) * self.rate) for time, _ in self.stretches]
        parts = [np.concatenate(blocks) for _, blocks in self.stretches]
        pairs = list(zip(places, parts, strict=True))
        wave = np.zeros(max(place + len(part) for place, part in pairs), np.float32)
        for place, part in reversed(pairs):  # where two overlap the first stays
            wave[max(place, 0) : max(place + len(part), 0)] = part[max(-place, 0) :]
        return wave


def check_wave(wave: np.ndarray, path: Path, settings: dict) -> None:
    """ClipError for samples that are not numbers, and for silence."""
    with np.errstate(invalid="ignore"):
        broken = np.flatnonzero(~(np.abs(wave) < MAX_AMPLITUDE))
    if len(broken):
        reason = f"sample {broken[0]} of {path.name} is {wave[broken[0]]:g}, full scale is 1"
        raise ClipError("E_NONFINITE", reason)
    peak = np.abs(wave).max()
    if peak < settings["silent_below"]:
        loudest = f" (peak {peak:.1e} of full scale)" if peak else ""
        reason = f"the sound track of {path.name} is silent{loudest}"
        raise ClipError("E_SILENT", reason)


@timed("mel")
def denoise(wave: np.ndarray) -> np.ndarray:
    """Wiener filter over 3 samples, (N,) -> (N,), finite for every finite input.

    Where the samples do not vary the filter divides 0 by 0; there is no noise to remove there, so
    the samples stay.
    """
    from scipy.signal import wiener

    with np.errstate(divide="ignore", invalid="ignore"):
        filtered = wiener(wave)
    return np.where(np.isfinite(filtered), filtered, wave).astype(np.float32)


@timed("mel")
def log_mel_spectrogram(wave: np.ndarray, settings: dict = SPEECH_SETTINGS) -> np.ndarray:
    """(N,) -> (F, T) float32 in [0, 1], T = 1 + N // hop: mel power in dB below the clip's maximum.

    1 is the loudest point of the clip and 0 everything `range_db` or more below it, so the level of
    the recording does not matter.
    """
    import librosa

    with warnings.catch_warnings():  # 128 filters on 257 bins: the lowest can fall between two bins
        warnings.filterwarnings("ignore", message="Empty filters")
        sizes = {name: settings[name] for name in ("n_fft", "n_mels", "fmin", "fmax")}
        filters = librosa.filters.mel(sr=settings["sample_rate"], **sizes)  # (F, bins)
    mel = filters @ power_spectrogram(wave, settings)
    mel /= max(mel.max(), np.finfo(np.float32).tiny)
    decibel = 10 * np.log10(np.maximum(mel, LOWEST))  # <= 0
    return (1 + decibel / settings["range_db"]).clip(0, 1).astype(np.float32)


def power_spectrogram(wave: np.ndarray, settings: dict) -> np.ndarray:
    """(N,) -> (1 + n_fft // 2, T) float32, of windows (Hann) around every `hop_length`-th sample.

    What librosa.stft computes. Its module and those of librosa.feature have functions compiled when
    they are loaded, which takes seconds in a fresh environment and some of each start.
    """
    from scipy.signal import get_window

    frames = frames_of(wave, settings)
    window = get_window("hann", settings["n_fft"])[:, None]
    # column after column in memory, as librosa's: so the mel filters give the same bits
    power = np.empty((1 + settings["n_fft"] // 2, frames.shape[1]), np.float32, order="F")
    for first in range(0, frames.shape[1], BLOCK):
        part = slice(first, first + BLOCK)
        spectrum = np.fft.rfft(window * frames[:, part], axis=0).astype(np.complex64)
        power[:, part] = np.abs(spectrum) ** 2
    return power


def frames_of(wave: np.ndarray, settings: dict) -> np.ndarray:
    """(N,) -> (n_fft, T) the samples around every `hop_length`-th one, zeros beyond the ends."""
    padded = np.pad(wave, settings["n_fft"] // 2)
    every = np.lib.stride_tricks.sliding_window_view(padded, settings["n_fft"])
    return every[:: settings["hop_length"]].T
