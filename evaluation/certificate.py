"""A published result as a small file, and whether an evaluation of today repeats it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from evaluation.runs import Evaluated, labels_of
from evaluation.scores import clip_weights
from evaluation.summary import labels_and_log_p
from training.features import Features
from training.inference import progress
from training.modalities import modality
from utils.errors import IntegrityError, UsageError
from utils.files import digest, read_json, sha256

FACTS = ("clip_id", "emotion", "speech_emotion", "face_emotion", "speaker", "fold")
OWN = ("seed", "fold", "val_fold", "amp")  # settings that a repetition chooses for itself
COPIED = ("command", "given", "split", "features_dir", "classes", "features", "versions")
CERTIFIED = ("uar", "accuracy")  # measures that can be declared
SEEDS = 5  # fewer tell too little of how far seeds are apart


def is_text(value: Any) -> bool:
    """Without what no path can hold: much of it names files."""
    return isinstance(value, str) and not re.search(r"[\x00-\x1f\ud800-\udfff]", value)


def is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


NEEDED = {  # what a repetition reads: is the value good, and what it has to be
    "given": (is_list, "a list of paths"),
    "split": (lambda value: value is None or is_text(value), "the name of a split, or null"),
    "features_dir": (is_text, "a path"),
    "classes": (is_list, "a list of names"),
    "features": (is_table, "{split: digest}"),
    "checkpoints": (is_table, "{path: sha256}"),
    "clips": (lambda value: isinstance(value, dict), "their count and digest"),
    "recipe": (lambda value: isinstance(value, dict), "{setting: value}"),
    "measure": (CERTIFIED.__contains__, " or ".join(CERTIFIED)),
    "mean": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "band": (lambda value: is_number(value) and 0 < value < 1, "a number between 0 and 1"),
}


def features_digest(features: Features, runs: list[Evaluated]) -> dict[str, str]:
    """{split: digest} of labels, speakers, folds and feature files: what these runs could learn.

    A file's sha256 comes from its clip's record where preprocess.py left one.
    """
    inputs = sorted({name for run in runs for each in run.checkpoints for name in each["inputs"]})
    splits = {"train", "val", *runs[0].clips["split"]}
    rows = features.manifest[features.manifest["split"].isin(splits)].to_dict("records")
    lines_of: dict[str, list] = {}
    for row in progress(rows, desc="digests", unit="clip"):
        line = [[row[name] for name in FACTS], file_digests(features, row, inputs)]
        lines_of.setdefault(row["split"], []).append(line)
    return {split: digest(sorted(lines)) for split, lines in sorted(lines_of.items())}


def file_digests(features: Features, row: dict, inputs: list[str]) -> list[str]:
    stages = features.record(row) or {}
    paths = {modality(name).folder: features.path(row, name) for name in inputs}
    return [
        stages[name]["sha256"] if name in stages else sha256(path) if path.is_file() else "missing"
        for name, path in paths.items()
    ]


def certificate(runs: list[Evaluated], report: dict[str, Any], measure: str) -> dict[str, Any]:
    """A result to publish: what `describe` says of the runs, and the band that one more must meet.

    UsageError for runs of different recipes, and for fewer than 5 seeds.
    """
    configs = [checkpoint["config"] for checkpoint in report["checkpoints"]]
    shared = common(configs)
    for name in sorted(set(configs[0]) - set(shared) - set(OWN)):
        if not name.endswith("_load_weights"):  # each seed may start from its own encoders
            values = " and ".join(sorted({str(config.get(name)) for config in configs}))
            raise UsageError(f"a certificate is of one recipe, but {name} is {values} here")
    check_seeds({str(sorted(each["config"]["seed"] for each in run.checkpoints)) for run in runs})
    right, weights = right_of(runs, report["classes"], measure)
    band, deviation, noise = prediction_band(right, weights)
    spread = {"runs": len(runs), "deviation": deviation, "clip_noise": noise, "band": band}
    return describe(runs, report, measure) | spread


def check_seeds(seeds: Collection) -> None:
    """UsageError where they are too few; to be asked of the runs before any of them predicts."""
    if len(seeds) < SEEDS:
        raise UsageError(
            f"a certificate is of at least {SEEDS} seeds, here are {len(seeds)}: train the same "
            "recipe with more of them (--seed) and give all to --checkpoints"
        )


def describe(runs: list[Evaluated], report: dict[str, Any], measure: str) -> dict[str, Any]:
    """What a repetition needs and is compared with, as plain data."""
    configs = [checkpoint["config"] for checkpoint in report["checkpoints"]]
    labels = labels_of(runs[0], report["classes"]).tolist()
    right, weights = right_of(runs, report["classes"], measure)
    return {
        **{name: report[name] for name in COPIED},
        "clips": {"count": len(labels), "digest": digest([runs[0].clips.index.tolist(), labels])},
        "checkpoints": {each["path"]: each["sha256"] for each in report["checkpoints"]},
        "recipe": common(configs),
        "seeds": sorted({config["seed"] for config in configs}),
        "warnings": report["systems"][-1]["warnings"],
        "systems": {each["name"]: each["measures"] for each in report["systems"]},
        "measure": measure,
        "mean": float(np.mean(right @ weights)),
    }


def right_of(
    runs: list[Evaluated], classes: list[str], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """(R, N) whether each run is right about each clip, and (N,) how much a clip counts."""
    scored = [labels_and_log_p(run, classes) for run in runs]
    right = np.stack([log_p.argmax(1) == labels for labels, log_p in scored])
    return right, clip_weights(scored[0][0], len(classes))[measure]


def prediction_band(right: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """How far one more honest run is from the mean of these, 95 times in 100; and two deviations.

    Student's prediction interval, t(R - 1) x deviation x sqrt(1 + 1 / R). Five runs can be alike by
    luck, so it is never below what the clips' own noise makes of runs of one quality: the variance
    of each clip, right in some of the runs and wrong in others, and of one clip more.
    """
    runs, share = len(right), right.mean(0)
    # share (1 - share) of a sample of R runs is too small by (R - 1) / R; and 1 / 4 is the variance
    # of a coin, the most that one clip more can add
    deviation = float(np.std(right @ weights, ddof=1))
    noise = (weights**2 * share * (1 - share)).sum() * runs / (runs - 1) + weights.max() ** 2 / 4
    noise = float(np.sqrt(noise))
    half = max(stdtrit(runs - 1, 0.975) * deviation, ndtri(0.975) * noise)
    return float(half * (1 + 1 / runs) ** 0.5), deviation, noise


def common(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all runs share, without those that a repetition chooses for itself."""
    names = (name for name in configs[0] if name not in OWN and not name.endswith("_load_weights"))
    return {n: configs[0][n] for n in names if all(c.get(n) == configs[0][n] for c in configs)}


def read_certificate(path: Path) -> dict[str, Any]:
    """UsageError for a file that is none, or of an earlier version; IntegrityError for damage."""
    known = read_json(path)
    values = known if isinstance(known, dict) else {}
    if "measures" in values:
        raise UsageError(
            f"{path} is a certificate of an earlier version, which asked for four measures at "
            f"once: make it anew, evaluate.py --certificate with {SEEDS} seeds"
        )
    missing = [name for name in NEEDED if name not in values]
    if missing:
        raise UsageError(f"{path} is no certificate of evaluate.py: it lacks {', '.join(missing)}")
    for name, (is_good, expected) in NEEDED.items():
        if not is_good(values[name]):
            raise IntegrityError(
                f"{path} is damaged: {name} is {values[name]!r}, expected {expected}; "
                "take the published file again"
            )
    return values


def compare(published: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The verdict (PASS, OUTSIDE THE SEED SPREAD or INPUT DIFFERS) and the lines that explain it.

    New checkpoints are expected of a repetition, and so are feature files that differ in some
    bits; for the published checkpoints themselves such files are an input that differs.
    """
    lines = [difference(name, published, now) for name in ("classes", "clips")]
    recipes = published["recipe"], now["recipe"]
    lines = list(filter(None, lines + [difference(name, *recipes) for name in recipes[0]]))
    wrong = bool(lines)
    same_models = sorted(published["checkpoints"].values()) == sorted(now["checkpoints"].values())
    files = [difference(split, published["features"], now["features"]) for split in now["features"]]
    files = [f"features of split {text}" for text in files if text]
    lines += files
    if not same_models:
        lines.append("checkpoints: other ones than the published")
    wrong |= same_models and bool(files)
    measure, mean, band = (published[name] for name in ("measure", "mean", "band"))
    gap = abs(now["mean"] - mean)
    lines.append(f"{measure}: {mean:.4f} ± {band:.4f} published, {now['mean']:.4f} here")
    # 1e-6: sums of floats in another order
    good = "PASS" if gap <= band + 1e-6 else "OUTSIDE THE SEED SPREAD"
    if same_models and gap <= 1e-6:
        good = "PASS, the same to 1e-6"
    return ["INPUT DIFFERS" if wrong else good, *lines]


def difference(name: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    same = then.get(name) == now.get(name)
    return "" if same else f"{name}: {then.get(name)} published, {now.get(name)} here"
