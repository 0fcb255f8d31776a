"""The leak audit, timed and tested: 10,000 synthetic log-mels, and altered copies of real clips.

    python benchmarks/audit.py                           # seconds for 10,000 clips
    python benchmarks/audit.py --features_dir features --data_dir my_clips

The second makes eight copies of every 30th clip with speech: mp3 and AAC at low bitrates, 12 dB
softer, 104 ms cut from the file or from the speech (half a column of the log-mel, the worst case),
and all of it at once. It prints the lowest similarities of each kind with the original, how many
copies are found, and the highest similarities of two different clips.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from corpora.audit import load_audit, log_mels_of
from corpora.same_sound import (
    CANDIDATE,
    SAME,
    fine_structure,
    neighbours,
    outline,
    read_log_mel,
    similarity,
)
from utils.config import Flags, ranged
from utils.errors import run_script
from utils.files import write_csv, write_json

RATE, CUT = 16_000, 1664  # samples a second; samples: 6.5 columns
KINDS = {  # codec, kbit/s, ending, loudness, cut from: nothing, the file, the speech
    "mp3 32 kbit/s": ("libmp3lame", 32, "mp3", 1, ""),
    "mp3 16 kbit/s": ("libmp3lame", 16, "mp3", 1, ""),
    "aac 24 kbit/s": ("aac", 24, "m4a", 1, ""),
    "aac 16 kbit/s": ("aac", 16, "m4a", 1, ""),
    "12 dB softer": ("flac", 0, "flac", 0.25, ""),
    "file cut": ("flac", 0, "flac", 1, "file"),
    "speech cut": ("flac", 0, "flac", 1, "speech"),
    "mp3 24, softer, cut": ("libmp3lame", 24, "mp3", 0.25, "speech"),
}


def main() -> None:
    flags = Flags(__doc__)
    flags.add("--clips", default=10_000, type=ranged(int, 2), help="synthetic clips")
    flags.add("--features_dir", type=Path, help="real speech features")
    flags.add("--data_dir", type=Path, help="the clips that they are from, to make copies of")
    args = flags.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        make_features(Path(folder), args.clips)
        start, cpu = time.perf_counter(), time.process_time()
        load_audit(Path(folder))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{args.clips} clips: {seconds:.1f} s ({cpu:.1f} s of processor)")
    if args.features_dir and args.data_dir:
        find_copies(args.features_dir, args.data_dir)


def make_features(folder: Path, clips: int) -> None:
    """Speech features of `clips` clips of 100 speakers, as preprocess.py leaves them."""
    rng = np.random.default_rng(0)
    voices = rng.uniform(0, 1, (100, 128))
    names = [f"{number:05d}" for number in range(clips)]
    (folder / "train" / "speech").mkdir(parents=True)
    for number, name in enumerate(names):
        np.save(folder / "train" / "speech" / f"{name}.npy", synthetic(rng, voices[number % 100]))
    rows = pd.DataFrame({"clip_id": names, "media": names, "split": "train", "emotion": "hap"})
    write_csv(folder / "manifest.csv", rows)
    write_json(folder / "settings.json", {"modalities": ["speech"]})


def synthetic(rng: np.random.Generator, voice: np.ndarray) -> np.ndarray:
    """(128, T) of about 4 s: syllables with harmonics through a speaker's formants."""
    length = int(rng.integers(150, 350))
    pitch = 6 + 2 * np.cumsum(rng.normal(0, 0.15, length)).clip(-2, 2)
    phase = 2 * np.pi * np.arange(128)[:, None] / pitch
    syllables = np.abs(np.sin(np.cumsum(rng.uniform(0.1, 0.5, length))))
    mel = 0.35 * syllables + 0.25 * voice[:, None] + 0.2 * np.cos(phase) * syllables
    return (mel + rng.normal(0, 0.05, mel.shape)).clip(0, 1).astype(np.float32)


def find_copies(features_dir: Path, data_dir: Path) -> None:
    from extract.audio import extract_speech, read_mono

    rows = pd.read_csv(features_dir / "manifest.csv", dtype=str, keep_default_na=False)
    mels = [read_log_mel(path) for path in log_mels_of(features_dir, rows)]
    fine = [fine_structure(mel) for mel in mels]
    outlines = np.stack([outline(mel) for mel in mels])
    print(f"{'copy':20} {'lowest: fine structure':>22} {'outline':>8} {'found':>9}")
    for kind in KINDS:
        pairs = []
        for row in range(0, len(rows), 30):
            wave = read_mono(data_dir / rows["media"][row]).wave
            with tempfile.TemporaryDirectory() as folder:
                path = make_copy(wave, Path(folder), kind)
                np.save(f"{folder}/copy.npy", extract_speech(path).log_mel)
                copy = np.array(read_log_mel(f"{folder}/copy.npy"))
            alike = float(outlines[row] @ outline(copy))
            pairs.append((similarity(fine[row], fine_structure(copy)), alike))
        found = sum(same >= SAME and alike > CANDIDATE for same, alike in pairs)
        least, nearest = np.min(pairs, axis=0)
        print(f"{kind:20} {least:22.3f} {nearest:8.3f} {found:5d}/{len(pairs)}", flush=True)
    best = sorted((similarity(fine[a], fine[b]), a, b) for a, b in neighbours(outlines))[::-1]
    for same, one, other in best[:3]:
        print(f"two clips: {same:.3f}  {rows['clip_id'][one]}  {rows['clip_id'][other]}")


def make_copy(wave: np.ndarray, folder: Path, kind: str) -> Path:
    """Write an altered copy of a wave (N,) at 16 kHz."""
    from moviepy.audio.AudioClip import AudioArrayClip

    from extract.audio import trim

    codec, kilobits, ending, loudness, cut = KINDS[kind]
    if cut == "speech":
        first, last = trim(wave)
        wave = wave[first:last]
    if cut:
        wave = wave[CUT:]
    path = folder / f"copy.{ending}"
    sound = AudioArrayClip(loudness * np.stack([wave, wave], axis=1), fps=RATE)
    options = {"bitrate": f"{kilobits}k" if kilobits else None, "ffmpeg_params": ["-ac", "1"]}
    sound.write_audiofile(str(path), fps=RATE, codec=codec, logger=None, **options)
    return path


if __name__ == "__main__":
    run_script(main)
