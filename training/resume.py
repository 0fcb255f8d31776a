"""Whether a run may write to its folder, and whether it may go on from what lies there."""

from __future__ import annotations

import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.card import is_measured
from training.checkpoint import (
    LAST,
    PREVIOUS,
    Checkpoint,
    best_checkpoint,
    best_name,
    is_numbers,
    is_plain,
    is_tensors,
    load_checkpoint,
)
from training.features import comparable
from training.optim import make_optimizer
from utils.errors import IntegrityError, UsageError


def check_folder(folder: Path, options: Any, first: int) -> None:
    """UsageError for a folder that holds what this run would lose or mix with its own. `first`: the
    epoch that is validated first."""
    goes_on = any((folder / name).is_file() for name in (LAST, PREVIOUS))
    there = goes_on or best_checkpoint(folder) or any(folder.glob("fold_*"))
    if there and not (options.resume or options.overwrite):
        raise UsageError(
            f"{folder} holds a run already: --resume goes on with it, --overwrite "
            "throws it away, another --exp_name keeps both"
        )
    best = best_checkpoint(folder)  # that of the first validation is there before any other file
    later = best and int(best.name.partition("_")[0]) > first
    if options.resume and not goes_on and (later or (folder / "best.json").is_file()):
        raise UsageError(
            f"{folder} holds a run without its {LAST}, nothing to go on from: --overwrite throws "
            "it away, another --exp_name keeps it"
        )
    if options.resume and any(folder.glob("fold_*")):
        raise UsageError(f"{folder} holds the runs of --fold all: go on with that, or rename")


def check_best(folder: Path, place: Path, state: Checkpoint) -> None:
    """IntegrityError for a damaged best checkpoint; a warning where it is gone."""
    if not state["best"]:
        return
    best = folder / best_name(state["best"]["epoch"], state["best"]["loss"])
    if best.is_file():
        try:
            load_checkpoint(best)
        except IntegrityError as error:
            remedy = "delete it, then --resume keeps the next epoch that is better"
            raise IntegrityError(f"{error}; {remedy}, or start anew with --overwrite") from error
    elif place.name == LAST:  # an older checkpoint goes on to the same best again
        what = f"WARNING: the best checkpoint {best} is gone: only a better epoch is kept from now"
        print(what, file=sys.stderr)


def check_same(state: Checkpoint, identity: dict[str, Any], path: Path) -> None:
    """IntegrityError that shows what differs between the stopped run and this command. It may have
    more epochs: from here on it follows their schedule."""
    then, now = (
        {
            **part["config"],
            **part.get("data", {}),
            "classes": part["classes"],
            "features": comparable(part["features_config"]),
        }
        for part in (state, identity)
    )
    differs = [name for name in now if then.get(name) != now[name]]
    if differs == ["n_epoch"] and then["n_epoch"] < now["n_epoch"]:
        more = f"{then['n_epoch']} epochs then, {now['n_epoch']} now"
        print(f"{more}: it goes on as one of {now['n_epoch']}", file=sys.stderr)
    elif differs:
        shown = "; ".join(f"{name}: {then.get(name)} then, {now[name]} now" for name in differs)
        raise IntegrityError(f"cannot resume {path}, its run differs: {shown}")


def unusable(path: Path, reason: str) -> IntegrityError:
    """What to raise for a checkpoint of this run with parts that are not of it."""
    remedy = "put back what was there, or start anew with --overwrite"
    return IntegrityError(f"{path} cannot be gone on from: {reason}; {remedy}")


def check_resume_keys(state: Checkpoint, sums: tuple[str, ...], steps: int, path: Path) -> None:
    """IntegrityError unless the parts that only --resume reads are of the kind that train.py
    writes. `sums`: the names of an epoch's sums; `steps`: how many an epoch has."""
    rows, best, step = state["rows"], state["best"], state["step"]
    done = len(rows) if isinstance(rows, list) else 0
    measured = {"epoch", "clips", "loss", "accuracy", "uar"}
    fits = {
        "rows": isinstance(rows, list)
        and all(map(_is_row, rows))
        and [row["epoch"] for row in rows] == [*range(1, done + 1)],
        "step": type(step) is int and done * steps <= step <= (done + 1) * steps,
        "best": best is None or (_has_numbers(best, measured) and is_measured(best)),
        "sums": _has_numbers(state["sums"], {*sums}) and len(state["sums"]) == len(sums),
        "ema": is_tensors(state["ema"]),
        "optimizer": _is_optimizer(state["optimizer"])
        and (step == 0 or state["optimizer"]["state"] or state["scaler"]),  # float16 overflowed
        "scaler": _has_numbers(state["scaler"], set()),
    }
    if wrong := [name for name, good in fits.items() if not good]:
        raise unusable(path, f"its {wrong[0]} is none of ours")


def _has_numbers(value: Any, names: set[str]) -> bool:
    return isinstance(value, dict) and is_plain(value) and is_numbers(value) and names <= {*value}


def _is_row(value: Any) -> bool:
    """Of an epoch, with what its curves show."""
    measured = {"val_accuracy"} if isinstance(value, dict) and "val_loss" in value else set()
    return _has_numbers(value, {"epoch", "train_loss", "train_accuracy", *measured})


def _is_optimizer(value: Any) -> bool:
    """Whether it has the parts of one; `check_optimizer` sees to what is in them."""
    parts = (value.get("state"), value.get("param_groups")) if isinstance(value, dict) else ()
    return [*map(type, parts)] == [dict, list]


def check_optimizer(saved: Any, optimizer: Optimizer, name: str, steps: int, path: Path) -> None:
    """IntegrityError unless it holds of each parameter what one of this `name` does after some of
    the `steps` that are done, or nothing yet.

    Asked before torch loads it: that casts values of other types, so of many views of one small
    place it would make as many tensors.
    """
    parameters = [*chain.from_iterable(group["params"] for group in optimizer.param_groups)]
    numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    groups, state = saved["param_groups"], saved["state"]
    held = [state.get(number) for number in range(len(parameters))]
    like = _after_a_step(name)
    is_whole = not state or (
        len(state) == len(held)
        and all(map(partial(_is_held, like=like, steps=steps), held, parameters))
        and _are_apart(held)
    )
    is_ours = is_plain(groups) and all(isinstance(group, dict) for group in groups)
    if not (is_whole and is_ours and [group.get("params") for group in groups] == numbers):
        raise unusable(path, "its optimizer is none of ours")


def _after_a_step(name: str) -> dict[str, Any]:
    """What an optimizer holds of a parameter of shape (1,)."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = make_optimizer(name, [parameter], 0.1, 0.0)
    optimizer.step()
    return optimizer.state[parameter]


def _is_held(held: Any, parameter: Tensor, like: dict[str, Any], steps: int) -> bool:
    """Whether this is what an optimizer holds of a parameter."""
    if not isinstance(held, dict) or held.keys() != like.keys():
        return False
    alike = all(_is_alike(held[key], each, parameter.shape) for key, each in like.items())
    alike = alike and type(held.get("step")) is type(like.get("step"))
    return alike and 0 <= held.get("step", 0) <= steps


def _is_alike(value: Any, like: Any, shape: torch.Size) -> bool:
    """A tensor of `shape` where `like` is one of (1,), and no value twice; else one number, in a
    tensor or not: some optimizers hold either."""
    is_ordinary = is_tensors({"": value}) if isinstance(value, Tensor) else False
    if not isinstance(like, Tensor) or not like.dim():
        return value.dim() == 0 if is_ordinary else isinstance(value, int | float)
    if not is_ordinary or value.dtype != like.dtype or value.shape != shape:
        return False
    # torch keeps the strides of a tensor in another one like it only where each value has its place
    return value.stride() == torch.empty_like(value, device="meta").stride()


def _are_apart(held: list[dict[str, Any]]) -> bool:
    """Whether no two tensors share their place."""
    tensors = [part for each in held for part in each.values() if isinstance(part, Tensor)]
    return len({each.untyped_storage().data_ptr() for each in tensors}) == len(tensors)
