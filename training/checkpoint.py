"""Checkpoints: plain data that rebuilds its own model, read without running any code in it."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import build_model
from models.fusion import EmotionClassifier
from training.fingerprint import known
from training.untrusted import check_archive, check_content
from utils.errors import IntegrityError, UsageError
from utils.files import read_sealed, write_sealed

RESUME = ("step", "sums", "optimizer", "scaler", "ema", "rows", "best", "clips", "leaks")
BEST = re.compile(r"(\d+)_best_(\d+\.\d+)\.pth")
LAST, PREVIOUS = "last.pth", "previous.pth"


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    write_sealed(path, lambda file: torch.save(checkpoint, file))


def save_last(folder: Path, checkpoint: dict[str, Any], keep: bool) -> None:
    """Save as last.pth; with `keep` the one before it becomes previous.pth.

    `keep` must be false where the one before it is damaged: previous.pth is the better one then.
    """
    if keep and (folder / LAST).is_file():
        (folder / LAST).replace(folder / PREVIOUS)
    save_checkpoint(folder / LAST, checkpoint)


def load_last(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest sound checkpoint to go on from; None in a folder without any.

    A damaged last.pth is announced on stderr and passed over. IntegrityError when none is sound.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    for place in found:
        try:
            state = load_checkpoint(place)
            if missing := [key for key in RESUME if key not in state]:
                lacks = ", ".join(missing)
                raise IntegrityError(f"{place} cannot be gone on from: it lacks {lacks}")
            return place, state
        except IntegrityError as error:
            if place == found[-1]:
                remedy = "nothing is left to go on from: start anew with --overwrite"
                raise IntegrityError(f"{error}; {remedy}") from error
            print(f"WARNING: {error}\nWARNING: going on from {found[-1]}", file=sys.stderr)
    return None


def save_best(folder: Path, checkpoint: dict[str, Any]) -> Path:
    """Save as <epoch>_best_<validation loss>.pth."""
    path = folder / best_name(checkpoint["epoch"], checkpoint["val"]["loss"])
    save_checkpoint(path, checkpoint)
    return path


def best_name(epoch: int, loss: float) -> str:
    return f"{epoch}_best_{loss:.4f}.pth"


def keep_best(folder: Path, best: dict[str, Any] | None) -> None:
    """Delete every best checkpoint but this one, if it is there. Only when last.pth knows it: a run
    that goes on from an older one may need the best of then."""
    name = best_name(best["epoch"], best["loss"]) if best else ""
    for path in folder.glob("*_best_*.pth") if name and (folder / name).is_file() else ():
        if path.name != name:
            path.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint of ours to the CPU; UsageError or IntegrityError says what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no checkpoint {path}")
    data = read_sealed(path)
    check_archive(data, path)
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the reader fail in any way; none runs code
        reason = re.split(r"This file can|\n", f"{type(error).__name__} {error}")[0][:200]
        raise IntegrityError(
            f"{path} is damaged, or holds more than plain data, and was not loaded: {reason}"
        ) from error
    check_content(checkpoint, path)
    return checkpoint


def restore_model(checkpoint: dict[str, Any], path: Path) -> EmotionClassifier:
    """The model of a checkpoint with its weights, all of them finite and of its own types.

    It is built twice: first without memory, so that a few bytes cannot ask for all there is.
    """
    weights = checkpoint["weights"]
    try:
        with torch.device("meta"):
            wanted = build_model(**checkpoint["arch"]).state_dict()
    except Exception as error:  # a description from elsewhere makes any layer fail
        reason = f"{type(error).__name__} {error}"[:200]
        raise IntegrityError(f"{path} describes no model of ours: {reason}") from error
    for key in sorted({*wanted, *weights}):
        kinds = [_kind(each.get(key)) for each in (weights, wanted)]
        if kinds[0] != kinds[1]:
            what = f"{key} is {kinds[0]}, the model has {kinds[1]}"
            raise IntegrityError(f"{path}: weights and model do not match: {what}")
        if weights[key].is_floating_point() and not weights[key].isfinite().all():
            raise IntegrityError(f"{path}: the weights {key} are not finite")
    model = build_model(**checkpoint["arch"])
    model.load_state_dict(weights)
    return model


def _kind(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def weights_digest(checkpoint: dict[str, Any]) -> str:
    """Names a checkpoint by what it has learnt, whatever else stands in its file."""
    state = hashlib.sha256()
    for key, value in sorted(checkpoint["weights"].items()):
        state.update(f"{key} {_kind(value)}".encode())
        state.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint of a run folder: lowest validation loss in its name; None without one."""
    found = [(BEST.fullmatch(path.name), path) for path in Path(folder).glob("*_best_*.pth")]
    best = sorted((float(match[2]), path) for match, path in found if match)
    return best[0][1] if best else None


def find_checkpoints(paths: list[Path]) -> list[Path]:
    """Each .pth file as it is, each run folder as its best checkpoint; --fold all has several."""
    found = []
    for path in map(Path, paths):
        folds = sorted(path.glob("fold_*")) if path.is_dir() else []
        best = [best_checkpoint(place) if place.is_dir() else place for place in folds or [path]]
        if not all(each and each.is_file() for each in best):
            beside = best_checkpoint(path.parent)
            hint = f"; the best of that run is {beside.name}" if beside else ""
            runs = sorted(run.name for run in path.glob("*") if best_checkpoint(run))
            hint = f"; below it are the runs {', '.join(runs)}" if runs else hint
            reason = f"no checkpoint at {path}{hint}"
            raise UsageError(f"{reason}: give a .pth file or the folder of a run")
        found += best
    return found


def transfer_weights(
    model: EmotionClassifier,
    path: Path,
    modality: str,
    classes: list,
    config: dict[str, Any],
    clips: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Copy a modality's encoder, and its head where the model has one, from another run: its
    `clips` and `leaks`, which are this run's too from now on.

    IntegrityError when that run held out another fold, or was trained on clips that this one
    validates on. `clips`: identities of its own, `training` and `validation`.
    """
    path, *others = find_checkpoints([path])
    if others:
        raise UsageError(f"{path.parents[1]} holds a run per fold: choose one of them")
    checkpoint = load_checkpoint(path)
    if checkpoint["classes"] != list(classes):
        was = " ".join(checkpoint["classes"])
        raise IntegrityError(f"{path} knows the classes {was}, the features {' '.join(classes)}")
    for name in ("fold", "val_fold"):
        was, now = checkpoint["config"][name], config[name]
        if was != now:
            raise IntegrityError(f"{path} was trained with --{name} {was}, this run has {now}")
    if "clips" not in checkpoint:
        raise IntegrityError(f"{path} does not say which clips it has seen: train it anew")
    own, held_out = clips["training"], clips["validation"]
    # a recording that this run has on both sides is a leak of its own, told elsewhere
    seen = known(held_out, checkpoint["clips"]["training"].numpy()) & ~known(held_out, own)
    if seen.any():
        raise IntegrityError(
            f"{path} was trained on {seen.sum()} of the {len(seen)} clips to validate on: start "
            "from a run on these splits"
        )
    prefixes = (f"encoders.{modality}.", f"heads.{modality}.")
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes)}
    given = {k: v for k, v in checkpoint["weights"].items() if k in wanted}
    misfits = [k for k, v in wanted.items() if k not in given or given[k].shape != v.shape]
    if misfits:
        raise IntegrityError(
            f"--{modality}_load_weights {path}: {len(misfits)} of {len(wanted)} tensors are missing"
            f" or have another shape, the first is {misfits[0]}; was it another mode, another "
            f"--{modality}_coeff or word size?"
        )
    model.load_state_dict(given, strict=False)
    return {"clips": checkpoint["clips"], "leaks": checkpoint.get("leaks", "")}
