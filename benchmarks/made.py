"""Features of random numbers in the shapes that preprocess.py writes, and sizes to measure with."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models import build_model
from training.data import ClipDataset, Features
from training.loop import Trainer
from training.tasks import TASKS, model_arch, recipe

CLASSES = ["hap", "ang", "dis", "fea", "sad", "neu", "sur"]
SIZES = {  # the recipe, for a GPU; its inputs with fewer clips a batch and the smallest trunks
    "recipe": {mode: {} for mode in TASKS},
    "small": {
        "speech": dict(speech_coeff=0, batch_size=16),
        "face": dict(batch_size=2),
        "text": {},
        "multimodal": dict(speech_coeff=0, batch_size=4),
    },
}


def write_features(folder: Path, mode: str, clips: int, seed: int = 0) -> Features:
    """Log-mels of 2 to 4 s, 4 to 12 word vectors and, for modes that see faces, 20 to 40 crops of
    224 px: as the original made of clips of MERC2020."""
    rng, rows, inputs = np.random.default_rng(seed), [], TASKS[mode].inputs
    for name in ("speech", "video", "text"):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        frames, name = int(rng.integers(20, 41)), f"{number:05d}"
        speech = rng.random((128, int(rng.integers(125, 250))), np.float32)
        words = rng.normal(size=(int(rng.integers(4, 13)), 200)).astype(np.float32)
        np.save(folder / "train" / "speech" / f"{name}.npy", speech)
        if "face" in inputs:
            faces = rng.integers(0, 256, (frames, 224, 224, 3), np.uint8)
            np.save(folder / "train" / "video" / f"{name}.npy", faces)
        np.savez(folder / "train" / "text" / f"{name}.npz", word_embed=words)
        label = dict.fromkeys(("emotion", "speech_emotion", "face_emotion"), CLASSES[number % 7])
        row = {"clip_id": name, "split": "train", "fold": "", "face_valid": "1" * frames}
        rows.append(row | label)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    made = ["speech", "video", "text"]
    settings = {"classes": CLASSES, "modalities": made, "features": {name: {} for name in made}}
    (folder / "settings.json").write_text(json.dumps(settings))
    return Features.open(folder)


def settings_of(mode: str, size: str, device: str) -> dict[str, Any]:
    config = recipe(mode) | SIZES[size][mode]
    return config | {"amp": config["amp"] and device != "cpu"}


def make_trainer(mode: str, config: dict[str, Any], features: Features, device: str) -> Any:
    """A trainer of ours and its clips."""
    clips = ClipDataset(features, features.rows("train"), TASKS[mode], config, training=True)
    torch.manual_seed(0)
    arch = model_arch(TASKS[mode], config, len(CLASSES), clips.shapes())
    model = build_model(**arch).to(device)
    return Trainer(model, TASKS[mode], config, device, 1000), clips


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}"
