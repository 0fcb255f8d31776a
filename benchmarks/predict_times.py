"""Seconds of one clip's answer on this machine, with untrained B0 models of the recipe's sizes.

python benchmarks/predict_times.py CLIP [--device cpu] [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from extract.clip import SETTINGS  # noqa: E402
from inference.predictor import Predictor  # noqa: E402
from inference.sources import find_sources  # noqa: E402
from models import build_model  # noqa: E402
from training.checkpoint import save_checkpoint  # noqa: E402
from training.tasks import TASKS, model_arch, recipe  # noqa: E402
from utils.parallel import available_cores  # noqa: E402


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("clip", type=Path)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--runs", type=int, default=5)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_untrained(Path(folder) / "b0.pth")
        rows = []
        for run in range(args.runs):
            place = Path(folder) / str(run)
            predictor = Predictor([checkpoint], folder=place, device=args.device, times=True)
            (source,) = find_sources([args.clip], None)
            before = time.process_time()
            rows.append(predictor.predict(source).seconds)
            rows[-1]["cpu"] = time.process_time() - before  # of all cores: what others leave out
    print(
        f"{args.clip.name}, {available_cores()} cores, {platform.processor() or platform.machine()}"
    )
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        print(f"{name:<8} {values[len(values) // 2]:6.2f} s   (least {values[0]:.2f})")
    total = sorted(row["extract"] + row["network"] for row in rows)
    print(f"{'all':<8} {total[len(total) // 2]:6.2f} s   (least {total[0]:.2f})")


def save_untrained(path: Path) -> Path:
    """Speech B0 at 400 columns, face B0 at 16 frames of 224 pixels; weights do not change times."""
    task, config = TASKS["multimodal"], recipe("multimodal") | {"speech_coeff": 0}
    shapes: dict[str, Any] = {"speech": (128, 1), "face": (1, 1, 1, 3), "text": (1, 200)}
    arch = model_arch(task, config, 7, shapes)
    made = {name: SETTINGS[name] for name in ("speech", "video", "text")}
    weights = build_model(**arch).state_dict()
    about: dict[str, Any] = {"classes": list("abcdefg"), "features_config": made, "config": config}
    about |= {"epoch": 1, "val": {}, "arch": arch, "weights": weights}
    save_checkpoint(path, about)
    return path


if __name__ == "__main__":
    main()
