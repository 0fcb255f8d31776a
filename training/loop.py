"""The training loop and the evaluation of one model, the same for every mode."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

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
    batchnorm_momentum,
    centralize_gradients,
    lr_factor,
    make_optimizer,
)
from training.tasks import Task
from utils.errors import UsageError

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
    ):
        self.model, self.task, self.config = model, task, config
        self.device, self.steps_per_epoch = device, steps_per_epoch
        set_training(model, config["freeze_backbone"])
        set_batchnorm_momentum(model, self.batchnorm_momentum())
        self.optimizer = make_optimizer(
            config["optim"], model.parameters(), config["learning_rate"], config["weight_decay"]
        )
        self.mixer = Mixer(*(config[name] for name in MIXER))
        self.dtype = half_precision(device)
        fp16 = config["amp"] and self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=fp16)
        self.step = 0  # steps done since the start of the run
        self.sums = {"loss": 0.0, "right": 0, "clips": 0}  # of the current epoch

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "sums": dict(self.sums),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.sums = state["step"], dict(state["sums"])
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def autocast(self) -> contextlib.AbstractContextManager:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=self.dtype, enabled=self.config["amp"])

    def batchnorm_momentum(self) -> float:
        return batchnorm_momentum(self.steps_per_epoch * self.config["n_epoch"])

    def learning_rate(self) -> float:
        total = self.steps_per_epoch * self.config["n_epoch"]
        warmup = round(self.steps_per_epoch * self.config["warmup"])
        factor = lr_factor(self.step, total, warmup, self.config["schedule"])
        return self.config["learning_rate"] * factor

    def train_epoch(self, loader: DataLoader, epoch: int, stop: Any) -> bool:
        """The rest of an epoch (counted from 1); False when `stop` asked for an end before it."""
        done = self.step - (epoch - 1) * self.steps_per_epoch
        if done == 0:
            self.sums = {"loss": 0.0, "right": 0, "clips": 0}
        set_training(self.model, self.config["freeze_backbone"])
        loader.batch_sampler.set_epoch(epoch, first=done)
        title = f"epoch {epoch}/{self.config['n_epoch']}"
        with progress(total=self.steps_per_epoch, initial=done, desc=title, unit="step") as bar:
            for batch in loader:
                loss = self.train_step(batch)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if stop.signum:
                    break
        return self.step == epoch * self.steps_per_epoch

    def train_step(self, batch: dict[str, Any]) -> float:
        seed = [self.config["seed"], self.step]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))  # dropout
        inputs = to_device(batch["inputs"], self.device)
        rng = np.random.default_rng(seed)
        inputs, targets = self.mixer(inputs, self.targets(batch), rng)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with self.autocast():
            logits = self.model(inputs, self.left_out(batch, rng))
            loss = multi_task_loss(logits, targets, self.config["lam"])
        self.check_finite(loss, batch["clip_id"])
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config["optim"] == "ranger":
            centralize_gradients(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return self.count(loss, logits, targets)

    def targets(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """{head: (B, K)} distributions."""
        classes = self.model.n_classes
        return {
            head: smooth_one_hot(labels.to(self.device), classes, self.config["label_smoothing"])
            for head, labels in batch["labels"].items()
        }

    def left_out(self, batch: dict[str, Any], rng: np.random.Generator) -> dict[str, Tensor]:
        """{modality: (B,) bool} of modality dropout; nothing where no vectors stand in."""
        names, clips = tuple(self.model.absent), len(batch["clip_id"])
        drawn = draw_left_out(names, clips, self.config["modality_dropout"], rng) if names else {}
        return {name: dropped.to(self.device) for name, dropped in drawn.items()}

    def check_finite(self, loss: Tensor, clip_ids: list[str]) -> None:
        if not torch.isfinite(loss):
            raise UsageError(
                f"the loss is {loss.item()} at step {self.step} (clips {', '.join(clip_ids[:8])}); "
                "nothing was updated with it: lower --learning_rate, then --resume or start again"
            )

    def count(self, loss: Tensor, logits: dict[str, Tensor], targets: dict[str, Tensor]) -> float:
        answer, target = logits[self.task.answer], targets[self.task.answer]
        value = float(loss.detach())
        self.sums["loss"] += value * len(target)
        self.sums["right"] += int((answer.argmax(dim=1) == target.argmax(dim=1)).sum())
        self.sums["clips"] += len(target)
        return value

    def epoch_summary(self) -> dict[str, float]:
        """Loss and accuracy on the augmented, mixed training clips: for the eye, not a result."""
        clips = max(1, self.sums["clips"])
        return {
            "train_loss": self.sums["loss"] / clips,
            "train_accuracy": self.sums["right"] / clips,
        }

    @torch.inference_mode()
    def evaluate(self, loader: DataLoader) -> dict[str, Metrics]:
        """Metrics per head over every clip of the loader."""
        self.model.eval()
        metrics = {head: Metrics(self.model.n_classes) for head in self.task.heads}
        for batch in progress(loader, desc="validating", unit="batch", leave=False):
            with self.autocast():
                logits = self.model(to_device(batch["inputs"], self.device))
            for head, labels in batch["labels"].items():
                metrics[head].update(logits[head], labels)
        return metrics


def progress(*args: Any, **options: Any) -> tqdm:
    """A progress bar on stderr; short ones vanish when they are done."""
    return tqdm(*args, file=sys.stderr, **{"leave": False, "dynamic_ncols": True, **options})


def half_precision(device: str) -> torch.dtype:
    """bfloat16 where the device has it (its range needs no loss scaling), else float16."""
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def set_training(model: torch.nn.Module, freeze_backbone: bool) -> None:
    """Training mode; frozen trunks stay in evaluation mode, statistics and all."""
    model.train()
    if freeze_backbone:
        for module in model.modules():
            if isinstance(module, Backbone):
                module.eval().requires_grad_(False)
