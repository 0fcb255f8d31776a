"""Whether a run may write to its folder, and whether it may go on from what lies there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from training.checkpoint import (
    LAST,
    PREVIOUS,
    Checkpoint,
    best_checkpoint,
    best_name,
    load_checkpoint,
)
from training.features import comparable
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
