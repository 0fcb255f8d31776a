"""One training run: its folder, its start or resume, its epochs, its checkpoints."""

from __future__ import annotations

import math
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from models import build_model
from models.backbone import Backbone, load_pretrained
from training.checkpoint import (
    best_checkpoint,
    load_checkpoint,
    save_best,
    save_checkpoint,
    transfer_weights,
)
from training.data import ClipDataset, Features, make_loader, training_rows
from training.loop import Trainer
from training.tasks import model_arch, task_of
from utils.errors import IntegrityError, Interrupted, UsageError
from utils.files import lock_folder, write_json
from utils.plots import plot_confusion
from utils.run_log import RunLog


def train_run(
    config: dict[str, Any], features: Features, folder: Path, device: str, options: Any
) -> dict[str, Any] | None:
    """Train into `folder`; return what the best checkpoint reached, None after a dry run.

    `options`: num_workers, resume, overwrite, dry_run.
    """
    check_folder(folder, options)
    task = task_of(config)
    features.require(task.inputs)
    train_rows, val_rows = training_rows(features, config["fold"], config["val_fold"])
    train_set = ClipDataset(features, train_rows, task, config, training=True)
    val_set = ClipDataset(features, val_rows, task, config, training=False)
    check_data(train_set, val_set)

    torch.manual_seed(config["seed"])
    arch = model_arch(task, config, len(features.classes), train_set.shapes())
    model = create_model(arch, config, features.classes).to(device)
    train_loader = make_loader(train_set, config["batch_size"], options.num_workers, device)
    val_loader = make_loader(val_set, config["batch_size"], options.num_workers, device)
    trainer = Trainer(model, task, config, device, len(train_loader.batch_sampler))
    print(describe(config, trainer, train_set, val_set), flush=True)
    if options.dry_run:
        print("dry run: everything is in place, nothing was trained")
        return None
    identity = {
        "arch": arch,
        "classes": features.classes,
        "features_config": features.config_for(task.inputs),
        "config": config,
    }
    with lock_folder(folder):
        run = Run(folder, trainer, identity, options)
        run.train(train_loader, val_loader)
        return run.finish()


class Run:
    """The state of a run between epochs, in memory and in its folder."""

    def __init__(self, folder: Path, trainer: Trainer, identity: dict[str, Any], options: Any):
        self.folder, self.trainer, self.identity = folder, trainer, identity
        self.config, self.task = trainer.config, trainer.task
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        if options.overwrite:
            empty_folder(folder)
        last = folder / "last.pth"
        if last.is_file():
            state = load_checkpoint(last)
            check_same(state, identity, last)
            trainer.load_state(state)
            self.rows, self.best = state["rows"], state["best"]
            print(f"resumed {last} after step {trainer.step}")
        write_json(folder / "config.json", self.config)
        self.log = RunLog(folder, self.rows)

    def train(self, train_loader: Any, val_loader: Any) -> None:
        """The epochs that are left; Interrupted, after saving, when a signal asks for a stop."""
        stop, epochs = StopSignal(), self.config["n_epoch"]
        for epoch in range(len(self.rows) + 1, epochs + 1):
            if not self.trainer.train_epoch(train_loader, epoch, stop):
                self.save_last()
                raise Interrupted(
                    stop.signum,
                    f"stopped in epoch {epoch} after step {self.trainer.step}; saved in "
                    f"{self.folder / 'last.pth'}, the same command with --resume goes on",
                )
            lr, summary = self.trainer.learning_rate(), self.trainer.epoch_summary()
            row = {"epoch": epoch, "lr": lr, **summary}
            if epoch % self.config["eval_step"] == 0 or epoch == epochs:
                row |= self.validate(val_loader, epoch)
            self.rows.append(row)
            self.save_last()
            self.log.add(row)
            print(epoch_line(row, epochs, self.best), flush=True)
            if stop.signum and epoch < epochs:
                raise Interrupted(stop.signum, f"stopped after epoch {epoch}; go on with --resume")
        self.log.close()

    def validate(self, loader: Any, epoch: int) -> dict[str, float]:
        """Measure on the validation clips; keep the model when its loss is the lowest so far."""
        metrics = self.trainer.evaluate(loader)
        answer = metrics[self.task.answer]
        row = validation_row(metrics, self.task.answer)
        lowest = self.best["loss"] if self.best else math.inf
        if row["val_loss"] < lowest:  # never true for a loss that is not finite
            self.best = {"epoch": epoch, "clips": answer.clips, **answer.summary()}
            save_best(self.folder, self.checkpoint(epoch))
            title = f"{self.folder.name}: epoch {epoch}, {answer.clips} validation clips"
            picture = self.folder / "confusion.png"
            plot_confusion(picture, answer.confusion, self.identity["classes"], title)
        return row

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        weights = self.trainer.model.state_dict()
        return {**self.identity, "weights": weights, "val": self.best, "epoch": epoch}

    def save_last(self) -> None:
        resume = {"rows": self.rows, "best": self.best, **self.trainer.state()}
        save_checkpoint(self.folder / "last.pth", self.checkpoint(len(self.rows)) | resume)

    def finish(self) -> dict[str, Any]:
        best = self.best
        if not best:
            table = self.folder / "metrics.csv"
            raise UsageError(f"the validation loss was never finite, see {table}")
        write_json(self.folder / "best.json", best)
        clips = f"{best['clips']} validation clips"
        print(f"best: epoch {best['epoch']}, {measures(best)} over {clips}")
        place = best_checkpoint(self.folder)
        print(f"{place}  (curves.png and confusion.png are beside it)", flush=True)
        return best


def check_folder(folder: Path, options: Any) -> None:
    if (folder / "last.pth").is_file() and not (options.resume or options.overwrite):
        raise UsageError(
            f"{folder} holds a run already: --resume goes on with it, --overwrite "
            "throws it away, another --exp_name keeps both"
        )


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_data(train_set: Any, val_set: Any) -> None:
    """Everything that would fail in the middle of a run fails here instead."""
    for dataset in (train_set, val_set):
        dataset.check_files()
        for row, labels in zip(dataset.rows, dataset.labels, strict=True):
            if min(labels.values()) < 0:
                known = " ".join(dataset.features.classes)
                raise IntegrityError(f"clip {row['clip_id']}: a label is not one of {known}")
    if len(train_set) < 2:
        raise UsageError(f"{len(train_set)} training clip: at least 2 are needed")


def create_model(arch: dict, config: dict[str, Any], classes: list[str]) -> Any:
    """A model with its starting weights: fresh, ImageNet trunks, or encoders of earlier runs."""
    try:
        model = build_model(**arch)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"no such model: {error}") from error
    for module in model.modules():
        if isinstance(module, Backbone) and config["pretrained"] != "none":
            try:
                place = load_pretrained(module, config["pretrained"])
            except Exception as error:  # no internet, no file, or foreign bytes in it
                reason = f"{type(error).__name__} {error}".splitlines()[0]
                raise UsageError(
                    f"--pretrained {config['pretrained']}: no weights for {module.name}: {reason} "
                    "(hub looks in TORCH_HOME and HF_HOME first; a folder of .pth files works too)"
                ) from error
            print(f"{module.name}: ImageNet weights from {place}")
    for modality in arch["encoders"]:
        if path := config.get(f"{modality}_load_weights"):
            transfer_weights(model, Path(path), modality, classes, config)
            print(f"{modality}: weights from {path}")
    return model


def describe(config: dict[str, Any], trainer: Any, train_set: Any, val_set: Any) -> str:
    """The first lines of a run: recipe, device, precision, sizes."""
    precision = str(trainer.dtype).removeprefix("torch.") if config["amp"] else "float32"
    weights = list(trainer.model.parameters())
    millions = sum(weight.numel() for weight in weights) / 1e6
    trained = sum(weight.numel() for weight in weights if weight.requires_grad) / 1e6
    column = train_set.task.label_columns[train_set.task.answer]
    counts = Counter(row[column] for row in train_set.rows)
    classes = ", ".join(f"{name} {counts[name]}" for name in train_set.features.classes)
    return "\n".join(
        (
            " ".join(f"{name}={value}" for name, value in config.items() if value is not None),
            f"{trainer.device}, {precision}, {millions:.1f} million weights, {trained:.1f} trained",
            f"{len(train_set)} training clips ({classes}), {len(val_set)} validation clips",
            f"{config['n_epoch']} epochs of {trainer.steps_per_epoch} steps; "
            f"batch-norm momentum {trainer.batchnorm_momentum():.3g} for a run of this length",
        )
    )


def check_same(state: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """IntegrityError that shows what differs between the stopped run and this command."""
    flat = [
        {**part["config"], "classes": part["classes"], "features": part["features_config"]}
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


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: Any) -> None:
        self.signum = signum
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        print("stopping after this step ...", file=sys.stderr)
