"""Features of random numbers in the shapes that preprocess.py writes, and sizes to measure with."""

from __future__ import annotations

import json
import os
import platform
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from training.features import Features
from training.modalities import modality
from training.run import Run
from training.tasks import TASKS, half_pays, recipe

CLASSES = ["hap", "ang", "dis", "fea", "sad", "neu", "sur"]
EXTRACTION = {"speech": {"n_mels": 128}, "video": {"face_size": 224}, "text": {"dim": 200}}
DISTINCT = 4  # batches of clips; others are links to their files
# The recipe, for a GPU; its inputs with fewer clips a batch and the smallest backbones.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "recipe": {mode: {} for mode in TASKS},
    "small": {
        "speech": dict(speech_coeff=0, batch_size=16),
        "face": dict(batch_size=2),
        "text": {},
        "multimodal": dict(speech_coeff=0, batch_size=4),
    },
}


def write_features(
    folder: Path, mode: str, batch_size: int, batches: int = 16, split: str = "train"
) -> Features:
    """Log-mels of 2 to 4 s, 4 to 12 word vectors, 20 to 40 crops of 224 px, as the original made of
    clips of MERC2020: what the mode sees of these. And two clips to validate on."""
    rng, rows, inputs = np.random.default_rng(0), [], TASKS[mode].inputs
    names = [("val", number) for number in range(2)]
    names += [(split, number) for number in range(batches * batch_size)]
    for place, number in names:
        frames = 20 + number % (DISTINCT * batch_size) % 21
        label = dict.fromkeys(("emotion", "speech_emotion", "face_emotion"), CLASSES[number % 7])
        row: dict[str, Any] = {"clip_id": f"{number:05d}", "split": place, "fold": "", **label}
        row["media"] = f"{place}/{number:05d}.mp4"
        row["transcript"] = f"of {place}"  # else equal numbers of two splits are one clip
        row["face_valid"] = "1" * frames
        rows.append(row)
        for name in inputs:
            path = feature_path(folder, row, name)
            if number < DISTINCT * batch_size:
                write_feature(path, random_feature(name, frames, rng))
            else:
                first = {**row, "clip_id": f"{number % (DISTINCT * batch_size):05d}"}
                os.link(feature_path(folder, first, name), path)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    made = [modality(name).folder for name in inputs]
    settings = {"classes": CLASSES, "modalities": made, "features": EXTRACTION}
    (folder / "settings.json").write_text(json.dumps(settings))
    return Features(folder, settings, pd.DataFrame(rows))


def feature_path(folder: Path, row: dict, name: str) -> Path:
    return Features(folder, {}, pd.DataFrame()).path(row, name)


def random_feature(name: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    if name == "speech":
        return rng.random((128, int(rng.integers(125, 250))), np.float32)
    if name == "face":
        return rng.integers(0, 256, (frames, 224, 224, 3), np.uint8)
    return rng.normal(size=(int(rng.integers(4, 13)), 200)).astype(np.float32)


def write_feature(path: Path, feature: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, word_embed=feature)
    else:
        np.save(path, feature)


def settings_of(mode: str, size: str, device: str) -> dict[str, Any]:
    """The recipe's, for a run without end that validates nothing."""
    config = recipe(mode) | {"fold": None, "val_fold": None, "n_epoch": 10**6, "eval_step": 10**6}
    config |= SIZES[size][mode]
    return config | {"amp": device != "cpu" and half_pays(config)}


def make_run(
    config: dict[str, Any], features: Features, device: str, workers: int, compile: str = "auto"
) -> Run:
    """A run as train.py makes it, of which nothing is kept."""
    options = Namespace(num_workers=workers, save_minutes=10.0, resume=False, overwrite=False)
    options.verify_features, options.leaks, options.given = False, "", set(config)
    options.compile = compile
    return Run(dict(config), features, features.folder / "run", device, options)


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}"
