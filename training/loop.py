"""The training loop and the evaluation of one model, the same for every mode."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.backbone import Backbone, set_batchnorm_momentum
from models.fusion import EmotionClassifier
from training.data import to_device
from training.losses import multi_task_loss, smooth_one_hot
from training.metrics import Metrics
from training.mixing import Mixer, draw_left_out
from training.optim import (
    Ema,
    batchnorm_momentum,
    centralize_gradients,
    lr_factor,
    make_optimizer,
)
from training.stopping import StepAbandoned, abandoned
from training.tasks import Task
from utils.distributed import ALONE, Alone
from utils.errors import UsageError

SUMS = ("loss", "right", "clips", "skipped")
MIXER = ("mixup_prob", "mixup_alpha", "cutmix_prob", "cutmix_beta")


class Trainer:
    """Model, optimizer and the position in the run; everything else follows from the settings.

    Every step draws its randomness (mixing, dropout) from the seed and its own number, so a run
    that stops after any step and goes on from `state()` equals one that never stopped.
    """

    def __init__(
        self,
        model: EmotionClassifier,
        task: Task,
        config: dict[str, Any],
        device: str,
        steps_per_epoch: int,
        class_weights: dict[str, Tensor] | None = None,
        dist: Alone = ALONE,
    ):
        self.model, self.task, self.config = model, task, config
        self.device, self.steps_per_epoch = device, steps_per_epoch
        self.class_weights = {k: each.to(device) for k, each in (class_weights or {}).items()}
        self.dist = dist
        set_training(model, config["freeze_backbone"])
        set_batchnorm_momentum(model, self.batchnorm_momentum())
        self.optimizer = make_optimizer(
            config["optim"], model.parameters(), config["learning_rate"], config["weight_decay"]
        )
        self.weights = [w for group in self.optimizer.param_groups for w in group["params"]]
        self.shared = self.dist.wrap(model)  # what is called in training
        self.ema = Ema(model, config["ema"])  # what is validated and kept
        self.mixer = Mixer(*(config[name] for name in MIXER))
        self.dtype = half_precision(device)
        fp16 = config["amp"] and self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=fp16)
        self.asked: Callable[[], bool] = bool  # whether to stop, even within a step
        self.step = 0  # steps done since the start of the run
        self.sums = dict.fromkeys(SUMS, 0.0)  # of this epoch and process

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "sums": self.all_sums(),
            "weights": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.config["ema"] else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.sums = {name: value * (self.dist.rank == 0) for name, value in state["sums"].items()}
        self.model.load_state_dict(state["weights"])
        self.ema.model.load_state_dict(state["ema"] or state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def autocast(self) -> contextlib.AbstractContextManager:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=self.dtype, enabled=self.config["amp"])

    def batchnorm_momentum(self) -> float:
        return batchnorm_momentum(self.steps_per_epoch * self.config["n_epoch"])

    def learning_rate(self, step: int) -> float:
        total = self.steps_per_epoch * self.config["n_epoch"]
        warmup = round(self.steps_per_epoch * self.config["warmup"])
        factor = lr_factor(step, total, warmup, self.config["schedule"])
        return self.config["learning_rate"] * factor

    def train_epoch(self, loader: DataLoader, epoch: int, stop: Callable[[], bool]) -> bool:
        """The rest of an epoch (counted from 1); False when `stop`, called after every step, said
        so before its end, or a step was abandoned."""
        done = self.step - (epoch - 1) * self.steps_per_epoch
        if done == 0:
            self.sums = dict.fromkeys(SUMS, 0.0)
        set_training(self.model, self.config["freeze_backbone"])
        loader.batch_sampler.set_epoch(epoch, first=done)
        title = f"epoch {epoch}/{self.config['n_epoch']}"
        bar = progress(total=self.steps_per_epoch, initial=done, desc=title, unit="step")
        with bar, contextlib.suppress(StepAbandoned):
            for batch in loader:
                loss = self.train_step(batch)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if stop():
                    return False
            return True
        return False

    def train_step(self, batch: dict[str, Any]) -> float:
        seed = [self.config["seed"], self.step, self.dist.rank][: 3 if self.dist.rank else 2]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))  # dropout
        inputs = to_device(batch["inputs"], self.device)
        rng = np.random.default_rng(seed)
        inputs, targets = self.mixer(inputs, self.targets(batch), rng)
        self.optimizer.zero_grad(set_to_none=True)
        with self.stoppable(self.model, self.asked):
            loss, right = self.gradients(inputs, targets, self.left_out(batch, rng))
        self.scaler.unscale_(self.optimizer)
        longest = self.config["clip_norm"] or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.weights, longest, foreach=True)
        # the one moment of a step that waits for the device, before anything changes
        loss, right, norm = torch.stack((loss, right, norm)).tolist()
        skipped = self.update(loss, norm, batch)
        self.step += 1
        self.ema.update(self.model, self.step)
        clips = len(batch["clip_id"])
        for name, value in zip(SUMS, (loss * clips, right, clips, skipped), strict=True):
            self.sums[name] += value
        return loss

    def stoppable(self, model: Any, stop: Callable[[], bool]) -> contextlib.AbstractContextManager:
        """Passes inside end with StepAbandoned when `stop` says so; on one CPU process only:
        several end a step together, and on a GPU it is shorter than the asking is worth."""
        alone = self.dist.world == 1 and self.device == "cpu"
        return abandoned(model, stop) if alone else contextlib.nullcontext()

    def gradients(
        self, inputs: dict, targets: dict[str, Tensor], left_out: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Backward over a batch, in parts for less memory; its mean loss and its right answers."""
        clips = len(targets[self.task.answer])
        parts = min(self.config["grad_accumulation"], max(1, clips // 2))
        bounds = [clips * part // parts for part in range(parts + 1)]
        loss, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for first, last in pairwise(bounds):
            own = slice(first, last)
            synced = contextlib.nullcontext() if last == clips else self.dist.unsynced(self.shared)
            with synced:
                target = {head: each[own] for head, each in targets.items()}
                with self.autocast():
                    given = {name: tuple(t[own] for t in each) for name, each in inputs.items()}
                    logits = self.shared(given, {k: v[own] for k, v in left_out.items()})
                    weighted = {k: v * self.class_weights.get(k, 1.0) for k, v in target.items()}
                    part = multi_task_loss(logits, weighted, self.config["lam"])
                    part = part * ((last - first) / clips)
                self.scaler.scale(part).backward()
            answer = logits[self.task.answer].argmax(dim=1)
            right += (answer == target[self.task.answer].argmax(dim=1)).sum()
            loss += part.detach()
        return loss, right

    def update(self, loss: float, norm: float, batch: dict[str, Any]) -> bool:
        """One step of the optimizer; true when it is skipped because float16 overflowed."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        overflow = math.isfinite(loss) and not finite and self.scaler.get_scale() > 1
        if not finite and not overflow:
            self.stop_not_finite(loss, norm, batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        if self.config["optim"] == "ranger":
            centralize_gradients(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return overflow

    def targets(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """{head: (B, K)} distributions."""
        classes, labels = self.model.n_classes, batch["labels"].items()
        moved = {head: each.to(self.device, non_blocking=True) for head, each in labels}
        return {
            head: smooth_one_hot(labels, classes, self.config["label_smoothing"])
            for head, labels in moved.items()
        }

    def left_out(self, batch: dict[str, Any], rng: np.random.Generator) -> dict[str, Tensor]:
        """{modality: (B,) bool} of modality dropout; nothing where no vectors stand in."""
        names, clips = tuple(self.model.absent), len(batch["clip_id"])
        drawn = draw_left_out(names, clips, self.config["modality_dropout"], rng) if names else {}
        return {name: dropped.to(self.device) for name, dropped in drawn.items()}

    def stop_not_finite(self, loss: float, norm: float, batch: dict[str, Any]) -> NoReturn:
        seen = "; ".join(f"{name} {statistics(t[0])}" for name, t in batch["inputs"].items())
        clips = ", ".join(batch["clip_id"][:8]) + ", ..." * (len(batch["clip_id"]) > 8)
        others = " (that of all processes: look first where the loss is not finite either)"
        shared = self.dist.world > 1 and math.isfinite(loss)
        raise UsageError(
            f"the loss is {loss:g} and the gradient's norm {norm:g}{others * shared} at step "
            f"{self.step}; nothing was updated with it, and no checkpoint holds it. Clips: {clips}"
            f". Inputs: {seen}. Look at those, or start a new run with a lower --learning_rate or "
            "with --clip_norm"
        )

    def epoch_summary(self) -> dict[str, float]:
        """Loss and accuracy on the augmented, mixed training clips: for the eye, not a result.
        And the updates that were skipped because float16 overflowed."""
        sums = self.all_sums()
        clips = max(1, sums["clips"])
        return {
            "train_loss": sums["loss"] / clips,
            "train_accuracy": sums["right"] / clips,
            "skipped": sums["skipped"] / self.dist.world,
        }

    def all_sums(self) -> dict[str, float]:
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64)
        return dict(zip(SUMS, self.dist.sum(values).tolist(), strict=True))

    @torch.inference_mode()
    def evaluate(
        self, loader: DataLoader, stop: Callable[[], bool] = bool
    ) -> dict[str, Metrics] | None:
        """Metrics per head over every clip of all loaders; None when `stop` said so meanwhile."""
        model, stopped = self.ema.model.eval(), False
        self.dist.align(model)
        metrics = {head: Metrics(self.model.n_classes) for head in self.task.heads}
        try:
            for batch in progress(loader, desc="validating", unit="batch"):
                with self.autocast(), self.stoppable(model, stop):
                    logits = model(to_device(batch["inputs"], self.device))
                for head, labels in batch["labels"].items():
                    metrics[head].update(logits[head], labels)
                if stopped := stop():
                    break
        except StepAbandoned:
            stopped = True
        if any(self.dist.most([stopped])):
            return None
        for each in metrics.values():
            sums = torch.tensor([each.loss_sum, *each.confusion.flat], dtype=torch.float64)
            each.loss_sum, *counts = self.dist.sum(sums).tolist()
            each.confusion[:] = np.reshape(counts, each.confusion.shape)
        return metrics


def statistics(tensor: Tensor) -> str:
    """Range of an input's numbers, and how many are none."""
    finite = tensor[tensor.isfinite()].float()
    low, high = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
    return f"{low:g} to {high:g}, {tensor.numel() - len(finite)} of {tensor.numel()} not finite"


def progress(*args: Any, **options: Any) -> tqdm:
    """A progress bar on stderr; short ones vanish when they are done."""
    return tqdm(*args, file=sys.stderr, **{"leave": False, "dynamic_ncols": True, **options})


def half_precision(device: str) -> torch.dtype:
    """bfloat16 where the device has it (its range needs no loss scaling), else float16."""
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def set_training(model: torch.nn.Module, freeze_backbone: bool) -> None:
    """Training mode; frozen trunks stay in evaluation mode, statistics and all."""
    model.train()
    if freeze_backbone:
        for module in model.modules():
            if isinstance(module, Backbone):
                module.eval().requires_grad_(False)
