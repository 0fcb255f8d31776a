"""A published result as a small file, and whether an evaluation of today repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scipy.stats import t as student

from evaluation.runs import ALL, Evaluated, labels_of
from evaluation.scores import MEASURES
from training.features import Features
from training.modalities import modality
from training.inference import progress
from utils.errors import UsageError
from utils.files import digest, read_json, sha256

FACTS = ("clip_id", "emotion", "speech_emotion", "face_emotion", "speaker", "fold")
OWN = ("seed", "fold", "val_fold", "amp")  # settings that a repetition chooses for itself
COPIED = ("command", "given", "split", "features_dir", "classes", "features", "versions")
NEEDED = {"given": list, "classes": list, "measures": dict, "recipe": dict}
NEEDED |= dict.fromkeys(("checkpoints", "clips", "features"), dict)


def features_digest(features: Features, runs: list[Evaluated]) -> dict[str, str]:
    """{split: digest} of labels, speakers, folds and feature files: what these runs could learn.

    A file's sha256 comes from its clip's record where preprocess.py left one.
    """
    inputs = sorted({name for run in runs for each in run.checkpoints for name in each["inputs"]})
    splits = {"train", "val", *runs[0].clips["split"]}
    rows = features.manifest[features.manifest["split"].isin(splits)].to_dict("records")
    found: dict[str, list] = {}
    for row in progress(rows, desc="digests", unit="clip"):
        line = [[row[name] for name in FACTS], file_digests(features, row, inputs)]
        found.setdefault(row["split"], []).append(line)
    return {split: digest(sorted(lines)) for split, lines in sorted(found.items())}


def file_digests(features: Features, row: dict, inputs: list[str]) -> list[str]:
    stages = features.stages(row)
    paths = {modality(name).folder: features.path(row, name) for name in inputs}
    return [
        stages[name]["sha256"] if name in stages else sha256(path) if path.is_file() else "missing"
        for name, path in paths.items()
    ]


def certificate(
    runs: list[Evaluated], features: Features, report: dict[str, Any]
) -> dict[str, Any]:
    """What a repetition needs and is compared with, as plain data.

    `band`: how far one more run may be from the mean here, 95 % of the time: Student's prediction
    interval from the deviation over the runs. A single run tells nothing of seeds: half of its
    bootstrap interval, which is wider.
    """
    if len(runs) > 1 and not report["systems"][-1]["parts"]:
        raise UsageError("a certificate is of runs of one recipe: these read different inputs")
    configs = [checkpoint["config"] for checkpoint in report["checkpoints"]]
    truth = labels_of(runs[0], ALL, features.classes).tolist()
    scored, measures = report["systems"], {}
    for name in MEASURES:
        if len(runs) > 1:
            spread = scored[-1]["parts"][name]
            band = prediction_band(spread["deviation"], len(runs))
        else:
            spread = {"mean": scored[0]["measures"][name], "deviation": None}
            low, high = scored[0]["intervals"][name]
            band = (high - low) / 2
        measures[name] = {**spread, "band": band}
    return {
        **{name: report[name] for name in COPIED},
        "clips": {"count": len(truth), "digest": digest([runs[0].clips.index.tolist(), truth])},
        "checkpoints": {each["path"]: each["sha256"] for each in report["checkpoints"]},
        "recipe": common(configs),
        "seeds": sorted({config["seed"] for config in configs}),
        "warnings": scored[-1]["warnings"],
        "systems": {each["name"]: each["measures"] for each in scored},
        "measures": measures,
    }


def prediction_band(deviation: float, runs: int) -> float:
    """Half of the 95 % interval of one more value: t(runs - 1) x deviation x sqrt(1 + 1 / runs)."""
    return float(student.ppf(0.975, runs - 1) * deviation * (1 + 1 / runs) ** 0.5)


def common(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all runs share, without those that a repetition chooses for itself."""
    names = (name for name in configs[0] if name not in OWN and not name.endswith("_load_weights"))
    return {n: configs[0][n] for n in names if all(c.get(n) == configs[0][n] for c in configs)}


def read_certificate(path: Path) -> dict[str, Any]:
    known = read_json(path)
    values = known if isinstance(known, dict) else {}
    missing = [name for name, kind in NEEDED.items() if not isinstance(values.get(name), kind)]
    missing = missing or [name for name in MEASURES if name not in known["measures"]]
    if missing:
        raise UsageError(f"{path} is no certificate of evaluate.py: it lacks {', '.join(missing)}")
    return known


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
    lines += files + ["checkpoints: other ones than the published"] * (not same_models)
    wrong |= same_models and bool(files)
    gaps = []
    for name in MEASURES:
        then, value = published["measures"][name], now["measures"][name]["mean"]
        gaps.append((abs(value - then["mean"]), then["band"]))
        lines.append(f"{name}: {then['mean']:.4f} ± {then['band']:.4f} published, {value:.4f} here")
    exact = same_models and not wrong and all(gap <= 1e-6 for gap, _ in gaps)
    inside = all(gap <= band + 1e-6 for gap, band in gaps)
    good = "PASS, the same to 1e-6" if exact else "PASS" if inside else "OUTSIDE THE SEED SPREAD"
    return ["INPUT DIFFERS" if wrong else good, *lines]


def difference(name: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    same = then.get(name) == now.get(name)
    return "" if same else f"{name}: {then.get(name)} published, {now.get(name)} here"
