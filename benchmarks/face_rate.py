"""How many face crops a second, and how large: loss and accuracy of --mode face against both.

    python benchmarks/face_rate.py --data_dir demo_run/raw      # the demo corpus, minutes a row

Each row extracts the faces anew and trains the demo's face model with `--seeds` seeds on all the
crops of a second and a half (frames = 1.5 x fps). The demo's faces are about 90 pixels wide.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = "--mode face --face_coeff 0 --optim adamw --learning_rate 1e-3 --augment False"
TRAIN += " --num_workers 0 --n_epoch 6 --batch_size 8 --cutmix_prob 0"
RATES, SIZES = (2.0, 5.0, 10.0, 16.0), (32, 64, 96)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--data_dir", type=Path, default=Path("demo_run/raw"))
    flags.add_argument("--seeds", type=int, default=2)
    args = flags.parse_args()
    print("fps  size  frames  KB/clip  loss            accuracy")
    rows = [(fps, 64) for fps in RATES] + [(10.0, size) for size in SIZES if size != 64]
    for fps, size in rows:
        with tempfile.TemporaryDirectory() as folder:
            kilobytes = extract(args.data_dir, Path(folder), fps, size)
            frames = max(1, round(1.5 * fps))
            best = [train(Path(folder), frames, seed) for seed in range(args.seeds)]
        cells = (spread([each[name] for each in best]) for name in ("loss", "accuracy"))
        print(f"{fps:<5g}{size:<6}{frames:<8}{kilobytes:<9.0f}{'  '.join(cells)}", flush=True)


def extract(data_dir: Path, folder: Path, fps: float, size: int) -> float:
    """Faces of the corpus into `folder`/features; kilobytes per clip."""
    run(
        f"preprocess.py --corpus demo --data_dir {data_dir} --features_dir {folder / 'features'} "
        f"--modalities video --face_fps {fps} --face_size {size}"
    )
    files = list(folder.glob("features/*/video/*.npy"))
    return sum(file.stat().st_size for file in files) / 1e3 / len(files)


def train(folder: Path, frames: int, seed: int) -> dict[str, float]:
    """What the best epoch reached on the validation clips."""
    places = f"--features_dir {folder / 'features'} --logs_dir {folder / 'logs'}"
    run(f"train.py {TRAIN} --face_frames {frames} --seed {seed} --exp_name s{seed} {places}")
    return json.loads((folder / "logs" / "face" / f"s{seed}" / "best.json").read_text())


def run(command: str) -> None:
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}\n{done.stderr[-2000:]}")


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
