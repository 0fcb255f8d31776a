"""Seconds of one clip's prediction on this machine, with untrained B0 models of the recipe's sizes.

python benchmarks/predict_times.py CLIP [--device cpu] [--runs 5]
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from utils.config import Flags, ranged
from utils.errors import run_script
from utils.parallel import available_cores


def main() -> None:
    from inference import Predictor  # torch is loaded in here, as run_script wants it

    flags = Flags(__doc__)
    flags.add("clip", type=Path, help="any clip with sound and a face")
    flags.add("--device", default="cpu", help="auto, cpu, cuda")
    flags.add("--runs", default=5, type=ranged(int, 1), help="predictions of the clip")
    args = flags.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_untrained(Path(folder) / "b0.pth")
        predictor = Predictor([checkpoint], device=args.device, warm=True)
        for run in range(args.runs):
            predictor.work_in(Path(folder) / str(run))  # where no features are yet
            before = time.process_time()
            rows.append(predictor(args.clip).seconds)
            rows[-1]["cpu"] = time.process_time() - before  # of all cores: what others leave out
            rows[-1]["all"] = rows[-1]["extract"] + rows[-1]["network"]
    machine = platform.processor() or platform.machine()
    print(f"{args.clip.name}, {available_cores()} cores, {machine}")
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name:<8} {statistics.median(values):6.2f} s   (least {min(values):.2f})")


def save_untrained(path: Path) -> Path:
    """Speech B0 at 400 columns, face B0 at 16 frames of 224 pixels; weights do not change times."""
    from extract.clip import SETTINGS
    from models import build_model
    from training.checkpoint import save_checkpoint
    from training.tasks import TASKS, model_arch, recipe

    task, config = TASKS["multimodal"], recipe("multimodal") | {"speech_coeff": 0}
    shapes: dict[str, Any] = {"speech": (128, 1), "face": (1, 1, 1, 3), "text": (1, 200)}
    arch = model_arch(task, config, 7, shapes)
    made = {name: SETTINGS[name] for name in ("speech", "video", "text")}
    about = {"classes": list("abcdefg"), "features_config": made, "config": config}
    model = {"arch": arch, "weights": build_model(**arch).state_dict()}
    save_checkpoint(path, {**model, **about, "epoch": 1, "val": {}})
    return path


if __name__ == "__main__":
    run_script(main)
