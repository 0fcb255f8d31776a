"""What random folds promise and folds by speaker keep: one recipe on both, and the picture of it.

    python benchmarks/leak.py --features_dir features -- --mode speech --batch_size 32

Everything behind `--` goes to train.py as it is. The manifest's folds are shuffled over the clips,
so that every speaker is in all of them; nothing else changes. docs/leak.png shows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from utils.files import write_bytes, write_csv
from utils.plots import GREY, INK, blank_figure, png

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
    settings = json.loads((args.features_dir / "settings.json").read_text("utf-8"))
    draw(args.picture, found, settings["corpus"])
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


def draw(path: Path, found: dict[str, list[float]], corpus: str) -> None:
    """A bar and its folds for each kind; the title says what the picture is about."""
    figure = blank_figure((7.4, 2.9), layout="constrained")
    axis = figure.subplots()
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    for place, (kind, color) in enumerate(zip(found, ("#3b6ea5", "#c8553d"), strict=True)):
        axis.barh(place, means[kind], color=color, height=0.6)
        axis.plot(found[kind], [place] * len(found[kind]), "o", color=INK, ms=4)
        axis.text(0.01, place, f"{KINDS[kind]}: {means[kind]:.3f}", color="white", va="center")
    axis.set(xlim=(0, 1), xlabel="accuracy; a dot is a fold", yticks=[])
    gain = 100 * (means["random"] - means["speakers"])
    said = f"Folds drawn at random promise {gain:.0f} points too much"
    if gain < 0.5:
        said = "Folds drawn at random promise no more than folds by speaker"
    figure.suptitle(said, x=0.01, ha="left", fontsize=12, weight="bold", color=INK)
    same = f"{corpus}: the same clips, model and settings; only who is in the training differs"
    axis.set_title(same, loc="left", fontsize=9, color=GREY)
    axis.invert_yaxis()
    axis.spines[["top", "right", "left"]].set_visible(False)
    write_bytes(path, png(figure))


if __name__ == "__main__":
    main()
