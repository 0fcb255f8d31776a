"""The leak audit, timed and tested: 10,000 synthetic log-mels, and copies of real clips.

    python benchmarks/audit.py                           # seconds for 10,000 clips
    python benchmarks/audit.py --features_dir features --data_dir my_clips

The second makes eight copies of every 30th clip with speech: mp3 and AAC at low bitrates, 12 dB
softer, 104 ms cut from the file or from the speech (half a column of the log-mel, the worst case),
and all of it at once. It prints the lowest correlation and likeness of each kind with the original,
how many are found, and the highest correlations of two different clips.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))

from corpora.audit import (
    CANDIDATE,
    LONGEST,
    TWIN,
    fine_structure,
    neighbours,
    outline,
    read_mel,
    resemblance,
)
from corpora.audit import audit as run_audit
from utils.config import Flags, ranged
from utils.errors import run_script
from utils.files import write_csv, write_json

RATE, CUT = 16_000, 1664  # samples a second; samples: 6.5 columns


def synthetic(rng: np.random.Generator, voice: np.ndarray) -> np.ndarray:
    """(128, T) of about 4 s: syllables with harmonics through a speaker's formants."""
    length = int(rng.integers(150, 350))
    pitch = 6 + 2 * np.cumsum(rng.normal(0, 0.15, length)).clip(-2, 2)
    phase = 2 * np.pi * np.arange(128)[:, None] / pitch
    syllables = np.abs(np.sin(np.cumsum(rng.uniform(0.1, 0.5, length))))
    mel = 0.35 * syllables + 0.25 * voice[:, None] + 0.2 * np.cos(phase) * syllables
    return (mel + rng.normal(0, 0.05, mel.shape)).clip(0, 1).astype(np.float32)


def make_features(folder: Path, clips: int) -> None:
    rng, rows = np.random.default_rng(0), []
    voices = rng.uniform(0, 1, (100, 128))
    for number in range(clips):
        name, speaker = f"{number:05d}", number % 100
        path = folder / "train" / "speech" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, synthetic(rng, voices[speaker]))
        record = {"stages": {"speech": {"sha256": name}}}
        write_json(folder / "train" / "records" / f"{name}.json", record)
        row = {"clip_id": name, "split": "train", "media": name, "emotion": "hap"}
        rows.append({**row, "speaker": f"s{speaker}", "transcript": f"sentence {number % 50}"})
    frame = pd.DataFrame(rows).assign(fold="", dialogue="")
    write_csv(folder / "manifest.csv", frame)
    write_json(folder / "settings.json", {"modalities": ["speech"]})


def encode(path: Path, wave: np.ndarray, codec: str, kilobit: int) -> Path:
    """Write (N,) float32 at 16 kHz with this codec."""
    import av

    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=RATE)
        track.bit_rate, track.layout = 1000 * kilobit, "mono"
        sound = av.AudioFrame.from_ndarray(wave.astype("f4")[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts = RATE, 0
        fifo, place = av.AudioFifo(), 0
        resampler = av.AudioResampler(track.codec_context.format.name, "mono", RATE)
        for frame in (*resampler.resample(sound), *resampler.resample(None)):
            fifo.write(frame)
        while frame := fifo.read(track.codec_context.frame_size or 1024, partial=True):
            frame.pts, frame.time_base = place, Fraction(1, RATE)
            place += frame.samples
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


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


def make_copy(wave: np.ndarray, folder: Path, kind: str) -> Path:
    from librosa.effects import trim

    codec, kilobit, ending, level, cut = KINDS[kind]
    if cut == "speech":
        wave = trim(wave, top_db=20, frame_length=512, hop_length=256)[0]
    return encode(folder / f"copy.{ending}", level * wave[CUT * bool(cut) :], codec, kilobit)


def plant(features_dir: Path, data_dir: Path) -> None:
    from extract.audio import extract_speech, read_mono

    rows = pd.read_csv(features_dir / "manifest.csv", dtype=str, keep_default_na=False)
    paths = [
        features_dir / row.split / "speech" / f"{row.clip_id}.npy" for row in rows.itertuples()
    ]
    mels, values = [read_mel(path) for path in paths], {}
    fine = [fine_structure(mel) for mel in mels]
    outlines = np.stack([outline(mel) for mel in mels])
    for place in range(0, len(rows), 30):
        wave = read_mono(data_dir / rows["media"][place], RATE).wave
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                copy = extract_speech(make_copy(wave, Path(folder), kind)).log_mel[:, :LONGEST]
            like = resemblance(fine[place], fine_structure(copy)), outlines[place] @ outline(copy)
            values.setdefault(kind, []).append(like)
    print(f"{'copy':20} {'lowest correlation':>18} {'lowest likeness':>16} {'found':>9}")
    for kind, pairs in values.items():
        found = sum(like >= TWIN and alike > CANDIDATE for like, alike in pairs)
        least, nearest = np.min(pairs, axis=0)
        print(f"{kind:20} {least:18.3f} {nearest:16.3f} {found:5d}/{len(pairs)}")
    best = sorted(((resemblance(fine[a], fine[b]), a, b) for a, b in neighbours(outlines)))[::-1]
    for like, one, other in best[:3]:
        print(f"two clips: {like:.3f}  {rows['clip_id'][one]}  {rows['clip_id'][other]}")


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
        findings = run_audit(Path(folder))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{args.clips} clips: {seconds:.1f} s ({cpu:.1f} s of processor), {len(findings)} findings"
    )
    if args.features_dir and args.data_dir:
        plant(args.features_dir, args.data_dir)


if __name__ == "__main__":
    run_script(main)
