"""One training run: everything that a step needs, and the state that it goes on from."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import build_model
from models.backbone import Backbone, set_batchnorm_momentum
from models.classifier import Inputs
from training.accelerate import accelerate
from training.checkpoint import Checkpoint, load_last
from training.data import ClipDataset, make_loader, training_rows
from training.features import Features
from training.fingerprint import fingerprints
from training.losses import LOSSES, smooth_one_hot
from training.metrics import Metrics
from training.mixing import Mixer, draw_left_out
from training.optim import MeanWeights, batchnorm_momentum, lr_factor, make_optimizer
from training.prepare import (
    Starts,
    card,
    check_choices,
    check_data,
    check_starts,
    class_weights,
    content_of,
    create_model,
    load_starts,
    provenance,
    settings_of_starts,
    with_inputs,
)
from training.randomness import generator
from training.readings import Readings
from training.resume import (
    check_best,
    check_folder,
    check_optimizer,
    check_resume_keys,
    check_same,
    unusable,
)
from training.stopping import interruptible
from training.tasks import model_arch, task_of
from utils.distributed import init_distributed
from utils.errors import UsageError, in_short, listed

SUMS = ("loss", "right", "clips", "skipped")


class Run:
    """Model, data and optimizer of a run, the position in it, and its folder.

    Everything but the state (`state`, `load_state`) follows from the settings. `options`:
    num_workers, save_minutes, resume, overwrite, verify_features, leaks (what the audit says),
    `given`, the settings that the user chose, and if need be compile and tracker. The caller holds
    the folder.
    """

    def __init__(
        self, config: dict[str, Any], features: Features, folder: Path, device: str, options: Any
    ):
        check_choices(config)
        check_folder(folder, options, config["eval_step"])
        self.folder, self.options = folder, options
        self.features, self.task = features, task_of(config)
        self.resumed = None if options.overwrite else load_last(folder)
        starts = {} if self.resumed else load_starts(config, self.task)
        config = config | settings_of_starts(self.as_it_started(config) or starts, options.given)
        self.config = config
        self.dist, self.device = init_distributed(device)
        features.require(self.task.inputs)
        train_set, val_set = self.data_sets()
        clips = {
            "training": fingerprints(features, train_set.rows),
            "validation": fingerprints(features, val_set.rows),
        }
        check_starts(starts, config, clips)
        torch.manual_seed(config["seed"])
        arch = model_arch(self.task, config, len(features.classes), train_set.shapes())
        if self.resumed:  # all weights are in there, and what those it started from have seen
            model, earlier = build_model(**arch), [self.resumed[1]]
        else:
            model = create_model(arch, config, starts, features.classes)
            earlier = [checkpoint for _, checkpoint in starts.values()]
        self.model = model.to(self.device)
        self.train_loader, self.val_loader = (
            make_loader(each, config["batch_size"], options.num_workers, self.device, self.dist)
            for each in (train_set, val_set)
        )
        self.steps_per_epoch = len(self.train_loader.batch_sampler)
        self.identity = {
            "arch": arch,
            "classes": features.classes,
            "features_config": features.config_for(self.task.inputs),
            "config": config,
            **provenance(clips, options.leaks, earlier),
            "card": card(features, train_set, val_set),
            "data": {**content_of(train_set, val_set), "steps": str(self.steps_per_epoch)},
        }
        self.prepare_steps(class_weights(train_set))
        if self.resumed:
            self.go_on_from(*self.resumed)
        here = [self.step, -self.step]
        if self.dist.all_reduce_max(here) != here:
            what = "its processes go on from different steps: they need one folder of runs"
            raise UsageError(f"{folder}: {what}, on a file system that all of them see")

    def as_it_started(self, config: dict[str, Any]) -> Starts:
        """A run that goes on in place of the runs that its encoders started from: it has their
        settings."""
        if not self.resumed:
            return {}
        started = [name for name in self.task.inputs if config.get(f"{name}_load_weights")]
        return dict.fromkeys(started, self.resumed)

    def data_sets(self) -> tuple[ClipDataset, ClipDataset]:
        """The clips to train on and to validate on, checked."""
        features, task, config = self.features, self.task, self.config
        sets = training_rows(features, config["fold"], config["val_fold"])
        train_rows, val_rows = (with_inputs(features, rows, task, config) for rows in sets)
        train_set = ClipDataset(features, train_rows, task, config, training=True)
        val_set = ClipDataset(features, val_rows, task, config, training=False)
        check_data(train_set, val_set, self.dist)
        if self.options.verify_features:
            features.verify([*train_set.rows, *val_set.rows], task.inputs)
        return train_set, val_set

    def prepare_steps(self, weights: dict[str, Tensor]) -> None:
        """Optimizer, loss and all else that a step needs, at the start of a run."""
        config, model = self.config, self.model
        largest = max(1, self.train_loader.batch_sampler.clips // self.dist.world // 2)
        self.micro_batches = min(config["grad_accumulation"], largest)
        self.set_training()
        set_batchnorm_momentum(model, self.batchnorm_momentum())
        self.optimizer = make_optimizer(
            config["optim"], model.parameters(), config["learning_rate"], config["weight_decay"]
        )
        self.trained = [each for group in self.optimizer.param_groups for each in group["params"]]
        self.mean_weights = MeanWeights(model, config["ema"])  # what is validated and kept
        steps = self.steps_per_epoch * config["n_epoch"]
        how = getattr(self.options, "compile", "auto")
        self.compiled = accelerate(model, how, self.device, steps, self.dist.world)
        self.parallel_model = self.dist.wrap(model)  # what is called in training
        self.loss = partial(LOSSES[config["loss"]], config=config)
        self.class_weights = {head: each.to(self.device) for head, each in weights.items()}
        mixing = ("mixup_prob", "mixup_alpha", "cutmix_prob", "cutmix_beta")
        self.mixer = Mixer(*(config[name] for name in mixing))
        self.dtype = half_precision(self.device)
        fp16 = config["amp"] and self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(torch.device(self.device).type, enabled=fp16)
        # Scaling float16 waits for the device anyway, and decides by what it finds.
        self.readings = Readings(lag=int(self.device.startswith("cuda") and not fp16))
        self.step = 0  # steps done since the start of the run
        self.sums = dict.fromkeys(SUMS, 0.0)  # of this epoch and process
        self.rows: list[dict[str, Any]] = []  # of the epochs that are done
        self.best: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "sums": self.all_sums(),
            "weights": self.model.state_dict(),
            "ema": self.mean_weights.model.state_dict() if self.config["ema"] else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rows": self.rows,
            "best": self.best,
        }

    def go_on_from(self, path: Path, checkpoint: Checkpoint) -> None:
        """Take the state of a stopped run; IntegrityError for that of another run, or a forged
        one."""
        check_same(checkpoint, self.identity, path)
        check_resume_keys(checkpoint, SUMS, self.steps_per_epoch, path)
        check_best(self.folder, path, checkpoint)
        saved = checkpoint["optimizer"]
        check_optimizer(saved, self.optimizer, self.config["optim"], checkpoint["step"], path)
        try:
            self.load_state(checkpoint)
        except Exception as error:  # of torch, which fails in any way at what is of another model
            raise unusable(path, in_short(f"{type(error).__name__} {error}")) from error

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.rows, self.best = state["step"], state["rows"], state["best"]
        for name, value in state["sums"].items():
            self.sums[name] = value if self.dist.rank == 0 else 0.0
        self.model.load_state_dict(state["weights"])
        self.mean_weights.model.load_state_dict(state["ema"] or state["weights"])
        groups = [{**group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
            group.update({key: each for key, each in settings.items() if key != "lr"})
        if state["scaler"]:  # of float16; a run of bfloat16 may go on where there is only that
            self.scaler.load_state_dict(state["scaler"])

    # What the loop asks for

    def begin_epoch(self, epoch: int) -> int:
        """Set the loader to the first step of this epoch that is not done, and return how many
        are."""
        done = self.step - (epoch - 1) * self.steps_per_epoch
        if done == 0:
            self.sums = dict.fromkeys(SUMS, 0.0)
        self.set_training()
        self.train_loader.batch_sampler.set_epoch(epoch, first=done)
        return done

    def augmented(self, batch: dict[str, Any], inputs: Inputs) -> Inputs:
        """The inputs of a batch, changed by what was drawn for its clips."""
        changed = dict(inputs)
        for name, drawn in batch.get("drawn", {}).items():
            here = {key: each.to(self.device, non_blocking=True) for key, each in drawn.items()}
            apply = self.train_loader.dataset.augmentations[name].apply
            changed[name] = apply(*inputs[name], here, self.config)
        return changed

    def check_losses(self, everything: bool = False) -> str:
        """Check the steps whose numbers are there, or wait for `everything`, and add them to those
        of the epoch; the last one's loss as text for the progress bar. UsageError for a loss or a
        gradient that is no number."""
        shown = ""
        for (loss, right, norm), (step, batch) in self.readings.due(0 if everything else None):
            skipped = self.check_finite(loss, norm, step, batch)
            clips = len(batch["clip_id"])
            for name, value in zip(SUMS, (loss * clips, right, clips, skipped), strict=True):
                self.sums[name] += value
            shown = f"{loss:.3f}"
        return shown

    def gradient_sync(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Where `backward` of the last micro-batch meets the gradients of the other processes.
        Those of the micro-batches before it add up in this process."""
        if is_last:
            return contextlib.nullcontext()
        return self.dist.unsynced(self.parallel_model)

    def set_training(self) -> None:
        """Training mode; frozen backbones stay in evaluation mode, statistics and all."""
        self.model.train()
        if self.config["freeze_backbone"]:
            for module in self.model.modules():
                if isinstance(module, Backbone):
                    module.eval().requires_grad_(False)

    def batchnorm_momentum(self) -> float:
        return batchnorm_momentum(self.steps_per_epoch * self.config["n_epoch"], self.micro_batches)

    def learning_rate(self, step: int) -> float:
        total = self.steps_per_epoch * self.config["n_epoch"]
        warmup = round(self.steps_per_epoch * self.config["warmup"])
        factor = lr_factor(step, total, warmup, self.config["schedule"])
        return self.config["learning_rate"] * factor

    def autocast(self) -> contextlib.AbstractContextManager:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=self.dtype, enabled=self.config["amp"])

    def targets(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """{head: (B, K)} distributions."""
        classes, smoothing = self.model.n_classes, self.config["label_smoothing"]
        return {
            head: smooth_one_hot(labels.to(self.device, non_blocking=True), classes, smoothing)
            for head, labels in batch["labels"].items()
        }

    def left_out(self, batch: dict[str, Any], partners: Tensor | None) -> dict[str, Tensor]:
        """{modality: (B,) bool}: where the learnt token stands in, by modality dropout, or because
        the clip or the one that is mixed into it (`partners`) lacks it. Empty for a model without
        such tokens."""
        names, clips = tuple(self.model.missing), len(batch["clip_id"])
        if not names:
            return {}
        rng = generator(self.config["seed"], "modality dropout", self.step, self.dist.rank)
        drawn = draw_left_out(names, clips, self.config["modality_dropout"], rng)
        if "absent" in batch:
            absent = torch.stack([batch["absent"][name] for name in names])  # (M, B)
            lacking = absent if partners is None else absent | absent[:, partners]
            left_out = torch.stack([drawn[name] for name in names]) | lacking
            # Nothing would be left of some clips: they keep all that they have themselves.
            left_out = torch.where(left_out.all(dim=0), absent, left_out)
            drawn = dict(zip(names, left_out, strict=True))
        return {name: each.to(self.device, non_blocking=True) for name, each in drawn.items()}

    def split(self, clips: int) -> list[slice]:
        """The micro-batches that --grad_accumulation computes one after the other."""
        count = min(self.micro_batches, max(1, clips // 2))
        bounds = [clips * number // count for number in range(count + 1)]
        return [slice(first, last) for first, last in pairwise(bounds)]

    def interruptible(self, stop: Any) -> contextlib.AbstractContextManager:
        """A stop leaves the computing inside at once, on one CPU process only: several end a step
        together, on a GPU it is shorter than the asking is worth, and compiled it is one piece."""
        if self.dist.world > 1 or self.device != "cpu" or self.compiled:
            return contextlib.nullcontext()
        return interruptible(self.model, stop.requested)

    def check_finite(self, loss: float, norm: float, step: int, batch: dict[str, Any]) -> bool:
        """Whether float16 overflowed, so that this update will be skipped; UsageError where the
        loss or the gradient is no number for another reason."""
        if math.isfinite(loss) and math.isfinite(norm):
            return False
        if math.isfinite(loss) and self.scaler.get_scale() > 1:
            return True
        seen = "; ".join(f"{name} {statistics(t[0])}" for name, t in batch["inputs"].items())
        clips = listed(batch["clip_id"], 8)
        others = ""
        if self.dist.world > 1 and math.isfinite(loss):
            others = " (of all processes: look first where the loss is not finite either)"
        raise UsageError(
            f"the loss is {loss:g} and the gradient's norm {norm:g}{others} at step {step}; "
            f"no checkpoint holds what it did. Clips: {clips}. Inputs: "
            f"{seen}. Look at those, or start a new run with a lower --learning_rate or with "
            "--clip_norm"
        )

    def epoch_row(self, epoch: int) -> dict[str, float]:
        """Loss and accuracy on the augmented, mixed training clips: for the eye, not a result.
        And the updates that were skipped because float16 overflowed."""
        sums, first_step = self.all_sums(), (epoch - 1) * self.steps_per_epoch
        clips = max(1, sums["clips"])
        return {
            "epoch": epoch,
            "lr": self.learning_rate(first_step),
            "train_loss": sums["loss"] / clips,
            "train_accuracy": sums["right"] / clips,
            "skipped": sums["skipped"] / self.dist.world,
        }

    def all_sums(self) -> dict[str, float]:
        """Of the epoch so far and all processes; every step that was done is checked by then."""
        self.check_losses(everything=True)
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64)
        return dict(zip(SUMS, self.dist.sum(values).tolist(), strict=True))

    def is_best(self, epoch: int, metrics: Metrics) -> bool:
        """Whether this epoch's loss is the lowest so far, and remember it; one that is no number
        never is."""
        summary = metrics.summary()
        if not summary["loss"] < (self.best["loss"] if self.best else math.inf):
            return False
        self.best = {"epoch": epoch, "clips": metrics.clips, **summary}
        return True

    def out_of_patience(self) -> bool:
        """True after `patience` validations in a row without a better loss."""
        last = self.best["epoch"] if self.best else 0
        waited = sum("val_loss" in row for row in self.rows if row["epoch"] > last)
        return waited >= (self.config["patience"] or math.inf)

    def checkpoint(self, weights: dict[str, Any], epoch: int) -> Checkpoint:
        return {**self.identity, "weights": weights, "val": self.best, "epoch": epoch}


def statistics(tensor: Tensor) -> str:
    """Range of an input's numbers, and how many are none."""
    finite = tensor[tensor.isfinite()].float()
    low, high = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
    return f"{low:g} to {high:g}, {tensor.numel() - len(finite)} of {tensor.numel()} not finite"


def half_precision(device: str) -> torch.dtype:
    """bfloat16 where the device has it (its range needs no loss scaling), else float16."""
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
