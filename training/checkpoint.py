"""Checkpoints: plain data that rebuilds its own model, read without running any code in it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import build_model
from models.fusion import EmotionClassifier
from utils.errors import IntegrityError, UsageError
from utils.files import read_sealed, write_sealed

KEYS = ("arch", "weights", "classes", "features_config", "config", "epoch", "val")
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
            return place, load_checkpoint(place)
        except IntegrityError as error:
            if place == found[-1]:
                raise
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
    """Delete every best checkpoint but this one. Only when last.pth knows it: a run that goes on
    from an older one may need the best of then."""
    for path in folder.glob("*_best_*.pth"):
        if not best or path.name != best_name(best["epoch"], best["loss"]):
            path.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint of ours to the CPU; UsageError or IntegrityError says what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no checkpoint {path}")
    try:
        data = io.BytesIO(read_sealed(path))
        checkpoint = torch.load(data, map_location="cpu", weights_only=True)
    except IntegrityError:
        raise
    except Exception as error:  # foreign bytes make the reader fail in any way; none runs code
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise IntegrityError(
            f"{path} is damaged, or holds more than plain data, and was not loaded: {reason}"
        ) from error
    missing = [key for key in KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise IntegrityError(f"{path} is no checkpoint of train.py: it lacks {', '.join(missing)}")
    return checkpoint


def restore_model(checkpoint: dict[str, Any], path: Path) -> EmotionClassifier:
    """The model of a checkpoint with its weights, all of them finite."""
    try:
        model = build_model(**checkpoint["arch"])
        model.load_state_dict(checkpoint["weights"])
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise IntegrityError(f"{path}: weights and model do not match: {error}") from error
    broken = [
        key
        for key, value in checkpoint["weights"].items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise IntegrityError(f"{path}: {len(broken)} weights are not finite, first {broken[0]}")
    return model


def clips_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Identities of the clips that a run was `training` on, and that chose its epoch
    (`validation`); none where an older checkpoint does not say."""
    none = torch.empty(0, dtype=torch.int64)
    return {"training": none, "validation": none} | checkpoint.get("clips", {})


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint of a run folder: lowest validation loss in its name; None without one."""
    found = [(BEST.fullmatch(path.name), path) for path in Path(folder).glob("*_best_*.pth")]
    best = sorted((float(match[2]), path) for match, path in found if match)
    return best[0][1] if best else None


def find_checkpoints(paths: list[Path]) -> list[Path]:
    """Each .pth file as it is, each run folder as its best checkpoint."""
    found = []
    for path in map(Path, paths):
        best = best_checkpoint(path) if path.is_dir() else path
        if best is None or not best.is_file():
            beside = best_checkpoint(path.parent)
            hint = f"; the best of that run is {beside.name}" if beside else ""
            runs = sorted(run.name for run in path.glob("*") if best_checkpoint(run))
            hint = f"; below it are the runs {', '.join(runs)}" if runs else hint
            reason = f"no checkpoint at {path}{hint}"
            raise UsageError(f"{reason}: give a .pth file or the folder of a run")
        found.append(best)
    return found


def transfer_weights(
    model: EmotionClassifier,
    path: Path,
    modality: str,
    classes: list,
    config: dict[str, Any],
    validation: Tensor,
) -> str:
    """Copy a modality's encoder, and its head where the model has one, from another run; what
    leaked into that run leaks into this one: its stamp.

    IntegrityError when that run held out another fold, or has seen clips of `validation` (their
    identities).
    """
    (path,) = find_checkpoints([path])
    checkpoint = load_checkpoint(path)
    if checkpoint["classes"] != list(classes):
        was = " ".join(checkpoint["classes"])
        raise IntegrityError(f"{path} knows the classes {was}, the features {' '.join(classes)}")
    for name in ("fold", "val_fold"):
        was, now = checkpoint["config"][name], config[name]
        if was != now:
            raise IntegrityError(f"{path} was trained with --{name} {was}, this run has {now}")
    seen = torch.isin(validation, clips_of(checkpoint)["training"]).sum().item()
    if seen:
        raise IntegrityError(
            f"{path} was trained on {seen} of the {len(validation)} clips to validate on: start "
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
    return checkpoint.get("leaks", "")
