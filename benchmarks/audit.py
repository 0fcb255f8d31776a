"""The leak audit, timed and tested: 10,000 synthetic log-mels, and planted copies of real clips.

    python benchmarks/audit.py                           # seconds for 10,000 clips
    python benchmarks/audit.py --features_dir features   # and how far twins are from other clips

The second plants six copies of every 30th clip with speech, straight in the log-mel: noise of 40 dB
below the maximum, a low-pass at 4 kHz, coarse steps as of a codec, 100 ms cut off, half a column
late, and all of it. It prints the lowest correlation of each kind with the original, how many are
found, and the highest correlation of two different clips.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))

from corpora.audit import (
    CANDIDATE,
    TWIN,
    correlation,
    fine_structure,
    neighbours,
    outline,
    read_mel,
)
from corpora.audit import audit as run_audit
from utils.config import Flags, ranged
from utils.errors import run_script
from utils.files import write_csv, write_json


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


def spoil(mel: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    half = (mel[:, :-1] + mel[:, 1:]) / 2
    kinds = {
        "noise": np.maximum(mel, 0.5 + rng.normal(0, 0.04, mel.shape)),
        "low-pass": np.where(np.arange(128)[:, None] < 96, mel, 0),
        "coarse": np.round(mel * 16) / 16,
        "cut": mel[:, 6:],
        "half a column": half,
    }
    together = np.round(np.maximum(half, 0.4 + rng.normal(0, 0.04, half.shape)) * 16) / 16
    return {**kinds, "all": np.where(np.arange(128)[:, None] < 96, together, 0)[:, 6:]}


def plant(features_dir: Path) -> None:
    rows = pd.read_csv(features_dir / "manifest.csv", dtype=str, keep_default_na=False)
    paths = [
        features_dir / row.split / "speech" / f"{row.clip_id}.npy" for row in rows.itertuples()
    ]
    mels, rng, lowest = [read_mel(path) for path in paths], np.random.default_rng(0), {}
    fine = [fine_structure(mel) for mel in mels]
    outlines = np.stack([outline(mel) for mel in mels])
    for mel, own, shape in list(zip(mels, fine, outlines, strict=True))[::30]:
        for kind, copy in spoil(np.asarray(mel), rng).items():
            copy = copy.astype(np.float32)
            like, alike = correlation(own, fine_structure(copy)), shape @ outline(copy)
            lowest.setdefault(kind, []).append((like, alike))
    print(f"{'copy':14} {'lowest correlation':>18} {'lowest likeness':>16} {'found':>9}")
    for kind, values in lowest.items():
        found = sum(like >= TWIN and alike > CANDIDATE for like, alike in values)
        least, nearest = np.min(values, axis=0)
        print(f"{kind:14} {least:18.3f} {nearest:16.3f} {found:5d}/{len(values)}")
    best = sorted(((correlation(fine[a], fine[b]), a, b) for a, b in neighbours(outlines)))[::-1]
    for like, one, other in best[:3]:
        print(f"two clips: {like:.3f}  {rows['clip_id'][one]}  {rows['clip_id'][other]}")


def main() -> None:
    flags = Flags(__doc__)
    flags.add("--clips", default=10_000, type=ranged(int, 2), help="synthetic clips")
    flags.add("--features_dir", type=Path, help="real speech features to plant copies of")
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
    if args.features_dir:
        plant(args.features_dir)


if __name__ == "__main__":
    run_script(main)
