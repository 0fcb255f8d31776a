"""One training run: its folder, its start or resume, its epochs, its checkpoints."""

from __future__ import annotations

import math
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from models import build_model
from training.checkpoint import (
    LAST,
    PREVIOUS,
    best_checkpoint,
    best_name,
    keep_best,
    load_checkpoint,
    load_last,
    save_best,
    save_last,
)
from training.data import ClipDataset, Features, make_loader, training_rows
from training.fingerprint import identities
from training.loader import LoaderError
from training.loop import Trainer
from training.prepare import check_data, class_weights, create_model, data_of, describe
from training.stopping import StopSignal
from training.tasks import model_arch, task_of
from utils.distributed import Silent, join, launched
from utils.errors import IntegrityError, Interrupted, UsageError
from utils.files import write_json
from utils.plots import plot_confusion
from utils.run_log import RunLog


def train_run(
    config: dict[str, Any], features: Features, folder: Path, device: str, options: Any
) -> dict[str, Any] | None:
    """Train into `folder`; return what the best checkpoint reached, None after a dry run.

    `options`: num_workers, save_minutes, resume, overwrite, dry_run, leaks (what the audit says).
    The caller holds the folder.
    """
    check_folder(folder, options, config["eval_step"])
    found = None if options.overwrite else load_last(folder)
    dist, device = join(device)
    task = task_of(config)
    features.require(task.inputs)
    rows = training_rows(features, config["fold"], config["val_fold"])
    train_set, val_set = (
        ClipDataset(features, part, task, config, training)
        for part, training in zip(rows, (True, False), strict=True)
    )
    check_data(train_set, val_set, dist)
    sets = {"training": train_set, "validation": val_set}
    clips = {name: identities(features, each.rows) for name, each in sets.items()}

    torch.manual_seed(config["seed"])
    arch = model_arch(task, config, len(features.classes), train_set.shapes())
    if found:  # all weights are in there, and what those it started from have seen
        model, earlier = build_model(**arch), [found[1]]
    else:
        model, earlier = create_model(arch, config, features.classes, clips)
    model.to(device)
    train_loader, val_loader = (
        make_loader(each, config["batch_size"], options.num_workers, device, dist)
        for each in sets.values()
    )
    steps = len(train_loader.batch_sampler)
    trainer = Trainer(model, task, config, device, steps, class_weights(train_set), dist)
    print(describe(config, trainer, train_set, val_set), flush=True)
    identity = {
        "arch": arch,
        "classes": features.classes,
        "features_config": features.config_for(task.inputs),
        "config": config,
        **heritage({"clips": clips, "leaks": options.leaks}, earlier),
        "data": {**data_of(train_set, val_set), "steps": steps},
    }
    if found:
        check_same(found[1], identity, found[0])
        check_best(folder, *found)
    if options.dry_run:
        print("dry run: everything is in place, nothing was trained")
        return None
    with StopSignal(grace=launched()) as stop, closing(train_loader), closing(val_loader):
        if dist.world == 1:  # several processes are stopped behind a step of all
            train_loader.asked = val_loader.asked = lambda: bool(stop.signum)
        run = Run(folder, trainer, identity, options, stop, found)
        run.train(train_loader, val_loader)
        return run.finish()


def heritage(own: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """What this run and those whose weights it starts from have seen, and what leaked in them."""
    leaks = dict.fromkeys(each["leaks"] for each in (own, *earlier) if each["leaks"])
    clips = {
        name: np.concatenate([numbers.ravel(), *(each["clips"][name].numpy() for each in earlier)])
        for name, numbers in own["clips"].items()
    }
    seen = {name: torch.from_numpy(np.unique(numbers)) for name, numbers in clips.items()}
    return {"clips": seen, "leaks": "; ".join(leaks)}


class Run:
    """The state of a run between epochs, in memory and in its folder."""

    def __init__(
        self, folder: Path, trainer: Trainer, identity: dict, options: Any, stop: Any, found: Any
    ):
        """`found`: the path of the checkpoint to go on from, and what it holds; None: a new run."""
        self.folder, self.trainer, self.identity = folder, trainer, identity
        self.config, self.task, self.dist = trainer.config, trainer.task, trainer.dist
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.stop, self.pause = stop, 60 * options.save_minutes
        trainer.asked = lambda: bool(stop.signum)
        if found:
            place, state = found
            trainer.load_state(state)
            self.rows, self.best = state["rows"], state["best"]
            print(f"resumed {place} after step {trainer.step}")
        self.saved = time.monotonic()
        writes = self.dist.rank == 0
        self.record = Record(self, found and found[0], options.overwrite) if writes else Silent()

    def train(self, train_loader: Any, val_loader: Any) -> None:
        """The epochs that are left; after saving Interrupted when a signal asks for a stop, or
        LoaderError when clips cannot be read."""
        try:
            self.train_epochs(train_loader, val_loader)
        except LoaderError as error:
            if self.dist.world > 1:  # saving takes all of them, and the others are in a step
                raise
            self.save_last()
            raise LoaderError(f"{error}; {self.saved_where()}", error.exit_code) from error

    def train_epochs(self, train_loader: Any, val_loader: Any) -> None:
        epochs = self.config["n_epoch"]
        while len(self.rows) < epochs and not self.out_of_patience():
            epoch = len(self.rows) + 1
            if not self.trainer.train_epoch(train_loader, epoch, self.after_step):
                self.leave(f"in epoch {epoch} after step {self.trainer.step}")
            first = (epoch - 1) * self.trainer.steps_per_epoch
            lr, summary = self.trainer.learning_rate(first), self.trainer.epoch_summary()
            row = {"epoch": epoch, "lr": lr, **summary}
            if epoch % self.config["eval_step"] == 0 or epoch == epochs:
                row |= self.validate(val_loader, epoch)
            self.rows.append(row)
            self.save_last()
            self.record.add(row)
            print(epoch_line(row, epochs, self.best), flush=True)
            if self.asked()[0]:
                self.leave(f"after epoch {epoch}")
        if len(self.rows) < epochs:
            print(f"no better validation loss in {self.config['patience']} validations: ended")

    def out_of_patience(self) -> bool:
        """True after `patience` validations in a row without a better loss."""
        since = [row for row in self.rows if row["epoch"] > (self.best or {"epoch": 0})["epoch"]]
        waited = sum("val_loss" in row for row in since)
        return waited >= (self.config["patience"] or math.inf)

    def asked(self) -> list[int]:
        """The signal that came, and whether it is time to save: the same in all processes."""
        due = time.monotonic() - self.saved >= self.pause
        return self.dist.most([self.stop.signum, due])

    def after_step(self) -> bool:
        signum, due = self.asked()
        if due and not signum:
            self.save_last()
        return bool(signum)

    def leave(self, where: str) -> NoReturn:
        self.save_last()
        (signum, _) = self.asked()
        raise Interrupted(signum, f"stopped {where}; {self.saved_where()}")

    def saved_where(self) -> str:
        said = f"saved in {self.folder / LAST}, the same command with --resume goes on"
        launcher = "; torchrun itself ends with a traceback about the signal and exit code 1"
        return said + launcher * launched()

    def validate(self, loader: Any, epoch: int) -> dict[str, float]:
        """Measure on the validation clips; keep the model when its loss is the lowest so far."""
        metrics = self.trainer.evaluate(loader, self.trainer.asked)
        if metrics is None:
            self.leave(f"while validating after epoch {epoch}")
        answer = metrics[self.task.answer]
        row = validation_row(metrics, self.task.answer)
        lowest = self.best["loss"] if self.best else math.inf
        if row["val_loss"] < lowest:  # never true for a loss that is not finite
            self.best = {"epoch": epoch, "clips": answer.clips, **answer.summary()}
            weights = self.trainer.ema.model.state_dict()
            self.record.best(self.checkpoint(weights, epoch), answer.confusion)
        return row

    def checkpoint(self, weights: dict[str, Any], epoch: int) -> dict[str, Any]:
        return {**self.identity, "weights": weights, "val": self.best, "epoch": epoch}

    def save_last(self) -> None:
        state = self.trainer.state()
        resume = {"rows": self.rows, "best": self.best, **state}
        self.record.last(self.checkpoint(state["weights"], len(self.rows)) | resume)
        self.saved = time.monotonic()

    def finish(self) -> dict[str, Any]:
        if not self.best:
            table = self.folder / "metrics.csv"
            raise UsageError(f"the validation loss was never finite, see {table}")
        self.record.finish(self.best)
        return self.best


class Record(RunLog):
    """What a run leaves in its folder; only one process of a run has one.

    `resumed`: the checkpoint that the run goes on from; without one it is a new run.
    """

    def __init__(self, run: Run, resumed: Path | None, overwrite: bool):
        if overwrite:
            empty_folder(run.folder)
        for stale in () if resumed else run.folder.glob("*_best_*.pth"):
            stale.unlink()  # of a run that was killed before it saved anything else
        self.sound = resumed is None or resumed.name == LAST
        write_json(run.folder / "config.json", run.config)
        super().__init__(run.folder, run.rows)

    def last(self, checkpoint: dict[str, Any]) -> None:
        save_last(self.folder, checkpoint, keep=self.sound)
        self.sound = True
        keep_best(self.folder, checkpoint["best"])

    def best(self, checkpoint: dict[str, Any], confusion: Any) -> None:
        save_best(self.folder, checkpoint)
        epoch, clips = checkpoint["epoch"], checkpoint["val"]["clips"]
        title = f"{self.folder.name}: epoch {epoch}, {clips} validation clips"
        plot_confusion(self.folder / "confusion.png", confusion, checkpoint["classes"], title)

    def finish(self, best: dict[str, Any]) -> None:
        self.close()
        if best_checkpoint(self.folder) is None:
            raise IntegrityError(
                f"the best checkpoint of {self.folder} is gone and no later epoch was better: put "
                f"it back, use {LAST}, or start anew with --overwrite"
            )
        write_json(self.folder / "best.json", best)
        print("curves.png and confusion.png are beside the best checkpoint:")
        clips = f"{best['clips']} validation clips"
        print(f"{best_checkpoint(self.folder)}: {measures(best)} over {clips}", flush=True)


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


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_best(folder: Path, place: Path, state: dict[str, Any]) -> None:
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


def check_same(state: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """IntegrityError that shows what differs between the stopped run and this command."""
    flat = [
        {
            **part["config"],
            **part.get("data", {}),
            "classes": part["classes"],
            "features": part["features_config"],
        }
        for part in (state, identity)
    ]
    differs = [name for name in flat[1] if flat[0].get(name) != flat[1][name]]
    if differs:
        shown = "; ".join(
            f"{name}: {flat[0].get(name)} then, {flat[1][name]} now" for name in differs
        )
        raise IntegrityError(f"cannot resume {path}, its run differs: {shown}")


def validation_row(metrics: dict[str, Any], answer: str) -> dict[str, float]:
    row = {f"val_{name}": value for name, value in metrics[answer].summary().items()}
    others = (head for head in metrics if head != answer)
    return row | {f"val_{head}_accuracy": metrics[head].summary()["accuracy"] for head in others}


def measures(values: dict[str, float], prefix: str = "") -> str:
    return ", ".join(f"{name} {values[prefix + name]:.4f}" for name in ("loss", "accuracy", "uar"))


def epoch_line(row: dict[str, Any], epochs: int, best: dict[str, Any] | None) -> str:
    line = f"epoch {row['epoch']}/{epochs}: training loss {row['train_loss']:.4f}"
    if "val_loss" in row:
        line += f"; validation {measures(row, 'val_')}"
    return line + " *" * bool(best and best["epoch"] == row["epoch"])
