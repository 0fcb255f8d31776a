"""Optimizers and schedules by name, mean weights, and what batch norm remembers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from utils.errors import UsageError

Parameters = list[nn.Parameter]


def spare_the_compiler() -> None:
    """torch wraps some methods of every optimizer so that its compiler leaves them alone, and loads
    the compiler for that at the first call: over a second of each start. No run compiles its
    optimizer, so the wrapper is told that it has nothing to do; one that does not ask goes on as
    before."""
    for method in vars(torch.optim.Optimizer).values():
        if wrapped := getattr(method, "__wrapped__", None):
            wrapped.__dict__.setdefault("__dynamo_disable", wrapped)


def spared(kind: type[torch.optim.Optimizer]) -> Any:
    """An optimizer of torch whose steps load no compiler either: the same step, without gradients,
    out of its wrapper."""
    spare_the_compiler()
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def ranger(parameters: Parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    from training.ranger import Ranger

    return Ranger(parameters, lr=lr, weight_decay=weight_decay)


def sgd(parameters: Parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    kind = spared(torch.optim.SGD)
    return kind(
        parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True, fused=True
    )


def adamw(parameters: Parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    kind = spared(torch.optim.AdamW)
    return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)


OPTIMIZERS: dict[str, Callable] = {"ranger": ranger, "sgd": sgd, "adamw": adamw}


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are not frozen; UsageError when all are."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise UsageError("every parameter is frozen: there is nothing to train")
    return OPTIMIZERS[name](trained, lr, weight_decay)


SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the run that is done -> factor
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
    "step": lambda done: 1.0 if done < 0.5 else 0.1,
    "constant": lambda done: 1.0,
}


def lr_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rate at `step` of `total`: linear warm-up, then the schedule."""
    if step < warmup:
        return (step + 1) / warmup
    start = warmup if schedule == "cosine" else 0  # half of the run is half of the run
    return SCHEDULES[schedule]((step - start) / max(1, total - start))


class MeanWeights:
    """Exponential moving average of a model's weights and statistics; decay 0: the model itself.

    The first steps count more, min(decay, (1 + step) / (10 + step)): else a short run would
    measure its starting weights. torch's AveragedModel counts its updates on the device, so a decay
    that depends on them would wait for it at each step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.model = decay, copy.deepcopy(model) if decay else model
        for layer in self.model.modules():
            if isinstance(layer, nn.RNNBase):
                layer.flatten_parameters()  # a copy is in pieces, which cuDNN packs at every call

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        means, values = ([*each.parameters(), *each.buffers()] for each in (self.model, model))
        pairs = [*zip(means, values, strict=True)]
        real = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*real, strict=True)), share)
        if counts:
            torch._foreach_copy_(*map(list, zip(*counts, strict=True)))


def batchnorm_momentum(total_steps: int, micro_batches: int) -> float:
    """Weight of the newest part of a batch in the running statistics, by the run's length.

    EfficientNet's own 0.01 needs hundreds of steps before the statistics mean anything: a short
    training evaluates at chance with it. So the statistics span a fortieth of the run, and a step
    moves them by 0.01 to 0.3. A batch in `micro_batches` moves them as often, each time by less.
    """
    per_step = min(0.3, max(0.01, 40 / max(1, total_steps)))
    return 1 - (1 - per_step) ** (1 / micro_batches)
