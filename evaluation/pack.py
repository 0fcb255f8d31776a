"""A run -> one small file for others: half the bytes, confidence that can be believed, its card.

    python -m evaluation.pack logs/speech/voice --features_dir features/pooled \\
        --out starter/voice.pth --corpus "RAVDESS, ASED" --elsewhere MEAD=features/mead@train

The clips that the run held out give the card its accuracy. --elsewhere adds what the run gets on a
split of another corpus with these classes (corpora/pool.py). A temperature divides its
log-probabilities (within the last layer: readers need to know of nothing). It is fitted elsewhere,
where that is given, each corpus counting alike: people bring clips of cameras and voices that no
training has seen, and a model is too sure of these. A model that reads the voice is asked only
about sound in which somebody speaks.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.calibration import calibration, cross_fitted, fit_temperature, temper
from evaluation.ensemble import reading_settings
from evaluation.runs import ALL, Evaluated, Options, evaluate_runs, labels_of
from evaluation.scores import full_scores, group_by_speaker
from training.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from training.features import Features
from training.modalities import modality
from training.tasks import task_of
from utils.config import Flags, device_name
from utils.errors import UsageError, run_script
from utils.files import keep_as_it_is

KEPT = ("arch", "classes", "features_config", "config", "epoch", "val", "clips", "leaks")


class HeldOut(NamedTuple):
    """A run on clips that it was not trained on, its log-probabilities (N, K), the labels (N,)."""

    run: Evaluated
    log_p: np.ndarray
    labels: np.ndarray


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("run", type=Path, help="run folder or .pth file")
    add("--features_dir", type=Path, required=True, help="with the clips that the run held out")
    add("--out", type=Path, required=True, help="the file to write")
    add("--corpus", help="its name on the card (default: that of the features)")
    add("--language", default="", help="of the people, for the card")
    elsewhere = "another corpus with these classes: its name, features and split"
    add("--elsewhere", action="append", default=[], metavar="NAME=DIR@SPLIT", help=elsewhere)
    setting = "how much of a clip the packed model reads, such as face_frames=8 (as trained)"
    add("--setting", action="append", default=[], metavar="NAME=VALUE", help=setting)
    flags.add_machine()
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    device, places = device_name(args.device), [place_of(given) for given in args.elsewhere]
    if args.out.resolve() == find_checkpoint(args.run).resolve():
        raise UsageError(f"--out {args.out} is the run itself, which would be lost: choose another")
    asked = [(args.features_dir, None), *(place[1:] for place in places)]
    with contextlib.ExitStack() as held:
        for folder in {folder for folder, _ in asked}:  # locked once, also for two of its splits
            held.enter_context(keep_as_it_is(folder))
        known = [evaluate_on(args.run, *place, device, args.setting) for place in asked]
    temperature, tempered = calibrated(known)
    (run, _, labels), *others = known
    checkpoint = load_checkpoint(Path(run.checkpoints[0]["path"]))
    checkpoint["config"] |= reading_settings(args.setting)
    card = checkpoint.get("card", {}) | {"language": args.language}
    card |= {"corpus": args.corpus} if args.corpus else {}
    card |= scores(run, tempered[0], labels, checkpoint) | {"temperature": round(temperature, 4)}
    card["voice_only"] = any(modality(name).has_voice for name in run.checkpoints[0]["inputs"])
    card["elsewhere"] = [
        {"corpus": name, **scores(other, log_p, labels, checkpoint)}
        for (name, *_), (other, _, labels), log_p in zip(places, others, tempered[1:], strict=True)
    ]
    soften(checkpoint, temperature)
    weights = {
        # rows of numbers are few, and what batch norm knows of a feature may be large
        name: value.half() if value.dtype == torch.float32 and value.dim() > 1 else value
        for name, value in checkpoint["weights"].items()
    }
    kept = {name: checkpoint[name] for name in KEPT if name in checkpoint}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(args.out, kept | {"weights": weights, "card": card})
    restore_model(load_checkpoint(args.out), args.out)  # IntegrityError for what cannot be read
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")
    for name, value in card.items():
        print(f"  {name}: {value}")


def place_of(given: str) -> tuple[str, Path, str]:
    """NAME=DIR@SPLIT in its parts."""
    name, _, place = given.partition("=")
    folder, _, split = place.partition("@")
    if not (name and folder and split):
        raise UsageError(f"--elsewhere {given}: expected NAME=DIR@SPLIT")
    return name, Path(folder), split


def calibrated(known: list[HeldOut]) -> tuple[float, list[np.ndarray]]:
    """The temperature of the corpora behind the first, or of that one alone, each counting alike;
    and all log-probabilities, each person's tempered by what was fitted without that person."""
    runs, log_p, labels = zip(*(known[1:] or known), strict=True)
    people = [
        f"{number} {person}"
        for number, run in enumerate(runs)
        for person in group_by_speaker(run.clips["speaker"].to_numpy())[0]
    ]
    group = np.unique(people, return_inverse=True)[1]
    sizes = [len(each) for each in labels]
    fitted = np.concatenate(log_p), np.concatenate(labels)
    weights = np.repeat([1 / size for size in sizes], sizes)
    temperature = fit_temperature(*fitted, weights)
    tempered = np.split(cross_fitted(*fitted, group, weights)[0], np.cumsum(sizes)[:-1])
    of_first = [temper(known[0].log_p, temperature)] if known[1:] else []
    return temperature, of_first + tempered


def evaluate_on(
    run: Path, folder: Path, split: str | None, device: str, setting: Sequence[str] = ()
) -> HeldOut:
    features = Features.open(folder)
    options = Options(split=split, setting=setting, batch_size=16, device=device)
    (evaluated,) = evaluate_runs([run], features, options)
    features.check_unchanged()
    return HeldOut(evaluated, evaluated.under(ALL).log_p, labels_of(evaluated, features.classes))


def scores(
    run: Evaluated, log_p: np.ndarray, labels: np.ndarray, checkpoint: Checkpoint
) -> dict[str, Any]:
    """What the card says of these clips; chance is one of the classes that occur."""
    people = run.clips["speaker"].to_numpy()
    scored = full_scores(labels, log_p.argmax(axis=1), people, checkpoint["classes"])
    recall = {name: round(row["recall"], 3) for name, row in scored["per_class"].items()}
    error = calibration(log_p, labels)
    return {
        "tested_clips": len(labels),
        "tested_people": len({*people} - {""}),
        "accuracy": round(scored["measures"]["accuracy"], 4),
        "interval": [round(end, 4) for end in scored["intervals"]["accuracy"]],
        "interval_over": scored["intervals_over"]["accuracy"],
        "uar": round(scored["measures"]["uar"], 4),
        "chance": round(1 / len(recall), 4),
        "recall": recall,
        "ece": round(error["ece"], 4),
        "ece_if_calibrated": round(error["ece_if_calibrated"], 4),
    }


def soften(checkpoint: Checkpoint, temperature: float) -> None:
    """Divide the logits of the deciding head by the temperature, for good."""
    head = task_of(checkpoint["config"]).main_head
    names = [f"heads.{head}.linear.{name}" for name in ("weight", "bias")]
    if missing := [name for name in names if name not in checkpoint["weights"]]:
        raise UsageError(f"no last layer to calibrate: {missing[0]}; --fusion concat has one")
    for name in names:
        checkpoint["weights"][name] = checkpoint["weights"][name] / temperature


if __name__ == "__main__":
    run_script(main)
