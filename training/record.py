"""What a run leaves in its folder, from its first file to the line that says where it stopped."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from training.checkpoint import (
    LAST,
    PREVIOUS,
    best_checkpoint,
    best_checkpoints,
    is_tensors,
    keep_best,
    save_best,
    save_last,
)
from training.data import ClipDataset
from training.metrics import commonest
from training.run import Run
from training.stopping import StopSignal
from utils.distributed import Silent, launched_by_torchrun
from utils.errors import IntegrityError, Interrupted, UsageError, counted
from utils.files import check_held, write_json
from utils.plots import plot_confusion
from utils.run_log import RunLog
from utils.trackers import start_tracker


@contextlib.contextmanager
def started(run: Run) -> Iterator[tuple[Record, StopSignal]]:
    """What `fit` needs while a run is on: its record in one of the processes, and the stop that
    signals ask for. Loading processes end with it."""
    record: Any = Record(run) if run.dist.rank == 0 else NoRecord()
    loaders = (run.train_loader, run.val_loader)
    with StopSignal(grace=launched_by_torchrun()) as stop, contextlib.ExitStack() as end:
        for loader in loaders:
            end.enter_context(contextlib.closing(loader))
            if run.dist.world == 1:  # several processes are stopped behind a step of all
                loader.stop_requested = stop.requested
        try:
            yield record, stop
        finally:  # whatever ended it, the curves say how far it came
            with contextlib.suppress(IntegrityError, UsageError):
                check_folder(run.folder)
                record.draw_curves()


def check_folder(folder: Path) -> None:
    """IntegrityError where a run's folder is not the one any more that it has begun in."""
    check_held(folder)
    if not (folder / "config.json").is_file():  # of a fold, whose folder has no lock of its own
        raise IntegrityError(f"{folder} was removed meanwhile: nothing is written there")


class NoRecord(Silent):
    """Of the processes that leave the writing to the first one."""

    def is_due(self) -> bool:
        return False


class Record(RunLog):
    """What a run leaves in its folder. Only one process of a run writes."""

    def __init__(self, run: Run):
        self.run, folder = run, run.folder
        if run.options.overwrite:
            empty_folder(folder)
        if run.resumed is None:
            for stale in best_checkpoints(folder):
                stale.unlink()  # of a run that was killed before it saved anything else
        self.confusion = known_confusion(run)  # {"counts": (K, K)} of the best epoch
        self.undrawn = bool(self.confusion)  # a run that was killed may not have come to it
        self.last_is_sound = run.resumed is None or run.resumed[0].name == LAST
        self.saved_at = time.monotonic()
        write_json(folder / "config.json", run.config)
        name = getattr(run.options, "tracker", None)
        tracker = start_tracker(name, folder, run.config) if name else None
        super().__init__(folder, run.rows, tracker=tracker, **guesses(run))
        if run.resumed:
            print(f"resumed {run.resumed[0]} after step {run.step}")

    def is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= 60 * self.run.options.save_minutes

    def save_last(self, state: dict[str, Any]) -> None:
        run = self.run
        self.check_ground()
        checkpoint = run.checkpoint(state["weights"], len(run.rows)) | state
        checkpoint["confusion"] = self.confusion
        save_last(self.folder, checkpoint, keep=self.last_is_sound)
        self.last_is_sound = True
        keep_best(self.folder, run.best)
        self.saved_at = time.monotonic()

    def check_ground(self) -> None:
        """IntegrityError before anything is saved that was learnt from two versions of the
        features, or into a folder that is not this run's any more."""
        self.run.features.check_unchanged()
        check_folder(self.folder)

    def save_best(self, confusion: Any, epoch: int) -> None:
        self.check_ground()
        weights = self.run.mean_weights.model.state_dict()
        checkpoint = self.run.checkpoint(weights, epoch)
        save_best(self.folder, checkpoint)
        self.confusion, self.undrawn = {"counts": torch.from_numpy(confusion)}, True

    def draw_curves(self) -> None:
        """Both pictures, as often as the curves need it: one takes as long as many short epochs."""
        super().draw_curves()
        if self.undrawn and self.run.best:
            counts, classes = self.confusion["counts"].numpy(), self.run.features.classes
            epoch = self.run.best["epoch"]
            title = f"{self.folder.name}: epoch {epoch}, {counts.sum()} validation clips"
            plot_confusion(self.folder / "confusion.png", counts, classes, title)
            self.undrawn = False

    def finish(self, best: dict[str, Any]) -> None:
        self.close()
        if best_checkpoint(self.folder) is None:
            raise IntegrityError(
                f"the best checkpoint of {self.folder} is gone and no later epoch was better: put "
                f"it back, use {LAST}, or start anew with --overwrite"
            )
        write_json(self.folder / "best.json", best)
        (self.folder / PREVIOUS).unlink(missing_ok=True)  # last.pth is enough for more epochs
        print("curves.png and confusion.png are beside the best checkpoint:")
        clips = counted(best["clips"], "validation clip")
        print(f"{best_checkpoint(self.folder)}: {measures(best)} over {clips}", flush=True)
        if said := no_better_than_guessing(best, self.run.val_loader.dataset):
            print(said, file=sys.stderr)


def known_confusion(run: Run) -> dict[str, Tensor]:
    """Of the best epoch of a run that goes on; IntegrityError where it is none of ours."""
    path, checkpoint = run.resumed or (run.folder, {})
    confusion, classes = checkpoint.get("confusion", {}), len(run.features.classes)
    ours = is_tensors(confusion) and confusion.keys() <= {"counts"}
    if not ours or any(
        counts.shape != (classes, classes) or counts.dtype != torch.int64
        for counts in confusion.values()
    ):
        raise IntegrityError(f"{path} is no checkpoint of train.py: its confusion is none of ours")
    return confusion


def no_better_than_guessing(best: dict[str, Any], clips: ClipDataset) -> str:
    """What to say of a model whose accuracy and mean recall are both within two standard errors of
    what one gets without looking at a clip; nothing of others."""
    head = clips.task.main_head
    counts = occurrences(clips, head)
    total, (number, usual), chance = counts.sum(), commonest(counts), 1 / (counts > 0).sum()
    there = counts[counts > 0]
    rare = total * (1 / there).sum() / len(there) ** 2  # a mean of classes rests on fewer clips
    for value, guessed, more in ((best["accuracy"], usual, 1), (best["uar"], chance, rare)):
        if value > guessed + 2 * math.sqrt(guessed * (1 - guessed) / total * more):
            return ""
    usual_class = clips.features.classes[number]
    return (
        f"not shown to be better than guessing: accuracy {best['accuracy']:.2f} over {total} "
        f"clips, always answering {usual_class} gives {usual:.2f}; see docs/questions.md"
    )


def guesses(run: Run) -> dict[str, Any]:
    """What the curves are held against: the classes' number, the commonest one and its share of
    the validation clips."""
    classes = run.features.classes
    number, share = commonest(occurrences(run.val_loader.dataset, run.task.main_head))
    return {"classes": len(classes), "majority": (classes[number], share)}


def occurrences(clips: ClipDataset, head: str) -> np.ndarray:
    """(K,) how many clips are of each class; those without a label (-1) do not count."""
    labels = [each[head] for each in clips.labels if each[head] >= 0]
    return np.bincount(labels, minlength=len(clips.features.classes))


def empty_folder(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def saved_where(folder: Path) -> str:
    said = f"saved in {folder / LAST}, the same command with --resume goes on"
    if launched_by_torchrun():
        said += "; torchrun itself ends with a traceback about the signal and exit code 1"
    return said


def interrupted(run: Run, signum: int, where: str) -> NoReturn:
    raise Interrupted(signum, f"stopped {where}; {saved_where(run.folder)}")


def measures(values: dict[str, float], prefix: str = "") -> str:
    return ", ".join(f"{name} {values[prefix + name]:.4f}" for name in ("loss", "accuracy", "uar"))
