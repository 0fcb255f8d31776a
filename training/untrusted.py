"""What a checkpoint from anywhere may hold, asked before torch reads it and before models grow."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import ENCODERS
from training.tasks import TASKS, recipe
from utils.errors import IntegrityError

MOST, MOST_LAYERS = 100_000, 256  # of any number in `arch`; of a Transformer's layers
PLAIN = (str, int, float, bool, type(None))


def check_archive(data: bytes, path: Path) -> None:
    """IntegrityError for what is no zip of torch.save, or unpacks to more than its own bytes."""
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise IntegrityError(f"{path} is no zip file as torch.save writes it: {error}") from error
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > len(data):
        raise IntegrityError(f"{path} would unpack to more than it holds; torch.save packs nothing")


def check_content(checkpoint: Any, path: Path) -> None:
    """IntegrityError unless every part is of the kind that train.py writes; settings that an older
    version did not have get their default."""
    missing = [key for key in CONTENT if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise IntegrityError(f"{path} is no checkpoint of train.py: it lacks {', '.join(missing)}")
    for key, fits in CONTENT.items():
        if not fits(checkpoint[key]):
            raise IntegrityError(f"{path} is no checkpoint of train.py: its {key} is none of ours")
    if not _is_clips(checkpoint.get("clips", NO_CLIPS)):
        raise IntegrityError(f"{path} is no checkpoint of train.py: its clips are none of ours")
    classes, outputs = checkpoint["classes"], checkpoint["arch"]["n_classes"]
    if len(classes) != outputs:
        raise IntegrityError(f"{path}: {outputs} outputs for the {len(classes)} classes {classes}")
    config = checkpoint["config"]
    checkpoint["config"] = recipe(config["mode"]) | {"fold": None, "val_fold": None} | config


def _is_arch(value: Any) -> bool:
    encoders, heads = (value.get(k) if isinstance(value, dict) else None for k in ARCH_PARTS)
    return (
        isinstance(encoders, dict)
        and all(isinstance(each, dict) and _is_encoder(each) for each in encoders.values())
        and isinstance(heads, dict)
        and all(isinstance(each, list) and {*each} <= {*encoders} for each in heads.values())
        and _is_number(value.get("n_classes"), MOST)
        and {*value} <= {*ARCH_PARTS, "n_classes", "learn_absent"}
    )


def _is_encoder(options: dict) -> bool:
    return options.get("type") in ENCODERS and all(
        isinstance(value, str | bool) or _is_number(value, MOST_LAYERS if key == "layers" else MOST)
        for key, value in options.items()
    )


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and 0 <= value <= most


def _is_plain(value: Any) -> bool:
    """A scalar, or a list of scalars."""
    return isinstance(value, PLAIN) or (
        isinstance(value, list | tuple) and all(isinstance(each, PLAIN) for each in value)
    )


def _is_dict_of(value: Any, fits: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and fits(each) for key, each in value.items()
    )


def _is_clips(value: Any) -> bool:
    """Identities of the clips that a run has seen (training/fingerprint.py)."""
    return (
        isinstance(value, dict)
        and value.keys() == NO_CLIPS.keys()
        and all(isinstance(each, Tensor) and each.dtype == torch.int64 for each in value.values())
    )


NO_CLIPS = dict.fromkeys(("training", "validation"), torch.empty(0, dtype=torch.int64))
ARCH_PARTS = ("encoders", "heads")
CONTENT = {
    "arch": _is_arch,
    "weights": lambda value: _is_dict_of(value, lambda each: isinstance(each, Tensor)),
    "classes": lambda value: (
        isinstance(value, list)
        and all(isinstance(each, str) for each in value)
        and len({*value}) == len(value) > 1
    ),
    "features_config": lambda value: _is_dict_of(
        value, lambda each: each is None or _is_dict_of(each, _is_plain)
    ),
    "config": lambda value: _is_dict_of(value, _is_plain) and value.get("mode") in TASKS,
    "epoch": lambda value: isinstance(value, int),
    "val": lambda value: value is None or _is_dict_of(value, lambda e: isinstance(e, int | float)),
}
