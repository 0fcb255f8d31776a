"""What random folds promise and folds by speaker keep: one recipe on both, and the picture of it.

    python benchmarks/leak.py --features_dir features -- --mode speech --batch_size 32

Everything behind `--` goes to train.py as it is. The manifest's folds are shuffled over the clips,
so that every speaker is in all of them; nothing else changes. docs/leak.png shows both.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from utils.files import write_bytes, write_csv

KINDS = {"speakers": "speakers apart", "random": "folds drawn at random"}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--features_dir", type=Path, default=Path("features"))
    flags.add_argument("--work_dir", type=Path, default=Path("leak_run"))
    flags.add_argument("--picture", type=Path, default=Path("leak.png"))
    flags.add_argument("train", nargs="*", help="-- flags of train.py")
    args = flags.parse_args()
    shuffled = shuffle_folds(args.features_dir, args.work_dir / "features")
    places = {"speakers": args.features_dir, "random": shuffled}
    found = {kind: train(kind, place, args) for kind, place in places.items()}
    for kind, values in found.items():
        spread = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        print(f"{KINDS[kind]:24}{spread}   {' '.join(f'{value:.3f}' for value in values)}")
    draw(args.picture, found)
    print(args.picture)


def shuffle_folds(features_dir: Path, folder: Path) -> Path:
    """The same features by links, with a manifest whose folds know nothing of the speakers."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in features_dir.iterdir():
        if path.name not in ("manifest.csv", "audit.json") and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    manifest = pd.read_csv(features_dir / "manifest.csv", dtype=str, keep_default_na=False)
    order = np.random.default_rng(0).permutation(len(manifest))
    write_csv(folder / "manifest.csv", manifest.assign(fold=manifest["fold"].to_numpy()[order]))
    return folder


def train(kind: str, features_dir: Path, args: argparse.Namespace) -> list[float]:
    """Accuracy of every fold."""
    command = f"train.py --exp_name {kind} --fold all --allow_leaks --resume".split()
    places = ["--features_dir", str(features_dir), "--logs_dir", str(args.work_dir / "logs")]
    run = [sys.executable, *command, *places, *args.train]
    done = subprocess.run(run, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)
    (folds,) = (args.work_dir / "logs").glob(f"*/{kind}/folds.json")
    return [each["accuracy"] for each in json.loads(folds.read_text()).values()]


def draw(path: Path, found: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    for place, (kind, color) in enumerate(zip(found, ("#3b6ea5", "#c8553d"), strict=True)):
        mean = statistics.mean(found[kind])
        axis.barh(place, mean, color=color, height=0.6)
        axis.plot(found[kind], [place] * len(found[kind]), "o", color="#222222", ms=4)
        axis.text(0.01, place, f"{KINDS[kind]}: {mean:.3f}", color="white", va="center")
    axis.set(xlim=(0, 1), xlabel="accuracy; a dot is a fold", yticks=[])
    axis.set_title("The same clips, model and settings", loc="left", fontsize=11)
    axis.invert_yaxis()
    axis.spines[["top", "right", "left"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_bytes(path, picture.getvalue())


if __name__ == "__main__":
    main()
