"""Shared by the tests of training: tiny runs, one step at a time, and all that a run leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL

from training.checkpoint import load_checkpoint
from training.data import ClipDataset
from training.features import Features
from training.loop import fit
from training.run import Run
from training.tasks import TASKS, recipe
from utils.distributed import Silent
from utils.errors import Interrupted
from utils.files import sha256

MODES = list(TASKS)
SIZES = "--speech_frames 48 --face_frames 2 --text_layers 1 --n_epoch 3 --batch_size 5"
SIZES = f"{SIZES} --num_workers 0".split()
TINY = [*SIZES, *["--speech_backbone", "small-32", "--face_backbone", "small-16"]]
B0 = [*SIZES, *["--speech_coeff", "0", "--face_coeff", "0"]]  # slow: for what is about these


def dataset(features: Features, mode="multimodal", split="train", **changes) -> ClipDataset:
    config = recipe(mode) | SMALL | {"batch_size": 5} | changes
    rows = features.rows(split)
    return ClipDataset(features, rows, TASKS[mode], config, training=split == "train")


def make_run(
    features: Path, folder: Path, mode="text", resume=False, compile="auto", **changes
) -> Run:
    """A run of batches of seven clips, in this process."""
    config = recipe(mode) | {"fold": None, "val_fold": None} | SMALL | {"amp": False}
    config |= {"batch_size": 7, "n_epoch": 3} | changes
    options = SimpleNamespace(num_workers=0, save_minutes=10.0, resume=resume, overwrite=False)
    options.verify_features, options.leaks, options.given = False, "", set(config)
    options.compile = compile
    return Run(config, Features.open(features), folder, "cpu", options)


class BehindAStep:
    """Stands in for StopSignal: a signal comes within the next step and is seen behind it."""

    def __init__(self, run: Run):
        self.run, self.first = run, run.step

    @property
    def signum(self) -> int:
        return signal.SIGTERM if self.run.step > self.first else 0

    def requested(self) -> bool:
        return False


def one_step(run: Run, record: Any = None) -> None:
    """The next step of a run, and no more: with the validation that is due before it."""
    with pytest.raises(Interrupted):
        fit(run, record or Silent(), BehindAStep(run))


def leaves(value: object) -> list:
    """All the numbers of a nested state, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value]


def remains(run: Path) -> list:
    """Everything by which two runs can differ."""
    best = sorted(path.name for path in run.glob("*_best_*.pth"))
    tables = [(run / name).read_bytes() for name in ("metrics.csv", "best.json", "config.json")]
    checkpoints = [load_checkpoint(run / name) for name in ("last.pth", best[0])]
    return [best, tables, *map(leaves, checkpoints)]


def with_records(folder: Path) -> Path:
    """Records as preprocess.py writes them beside the features."""
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    for split, clip_id in zip(table["split"], table["clip_id"], strict=True):
        stages = {
            name: {"sha256": sha256(path)}
            for name in ("speech", "video", "text")
            for path in (folder / split / name).glob(f"{clip_id}.*")
        }
        record = folder / split / "records" / f"{clip_id}.json"
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps({"stages": stages, "failure": None}))
    return folder


def add_feature(folder: Path, name: str, shape: tuple, first: np.ndarray | None = None) -> None:
    """A custom feature of every clip from which the class can be learnt; T differs by clip."""
    rng = np.random.default_rng(1)
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    for index, (split, clip_id) in enumerate(zip(table["split"], table["clip_id"], strict=True)):
        lengths = [5 + index % 4, *shape[1:]] if len(shape) == 2 else shape
        feature = 1000 * rng.normal(size=lengths)
        feature[..., index % 7] += 5000
        path = folder / split / name / f"{clip_id}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, feature if first is None or index else first)
