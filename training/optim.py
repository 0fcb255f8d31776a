"""Optimizers by name, the learning rate as a pure function of the step, gradient centralization."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable

import torch
from torch import nn

from utils.errors import UsageError


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are not frozen; UsageError when all are."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise UsageError("every parameter is frozen: there is nothing to train")
    options = {"lr": lr, "weight_decay": weight_decay}
    if name == "sgd":
        return torch.optim.SGD(trained, momentum=0.9, nesterov=True, fused=True, **options)
    if name == "adamw":
        return torch.optim.AdamW(trained, fused=True, **options)
    from torch_optimizer import Ranger  # RAdam + Lookahead (arXiv 1908.03265, 1907.08610)

    # it calls torch with its arguments in an old order, which torch says at the first step
    warnings.filterwarnings("ignore", message="This overload of add")
    return Ranger(trained, **options)


class Ema:
    """Exponential moving average of a model's weights and statistics; decay 0: the model itself.

    The first steps count more, min(decay, (1 + step) / (10 + step)): else a short run would
    measure its starting weights.
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
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        for own, new in pairs:
            own.lerp_(new, share) if own.is_floating_point() else own.copy_(new)


def lr_factor(step: int, total: int, warmup: int, shape: str) -> float:
    """Factor on the learning rate at `step` of `total`: linear warm-up, then the shape.

    cosine: down to 0 along half a cosine. step: 1, then 0.1 from the middle on. constant: 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if shape == "step":
        return 1.0 if step < total / 2 else 0.1
    return 1.0


def centralize_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Subtract from each weight's gradient its mean per output (arXiv 2004.01461), in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.dim() > 1:
                axes = tuple(range(1, parameter.dim()))
                parameter.grad -= parameter.grad.mean(dim=axes, keepdim=True)


def batchnorm_momentum(total_steps: int) -> float:
    """Weight of the newest batch in the running statistics, by the length of the training.

    EfficientNet's own 0.01 needs hundreds of steps before the statistics mean anything: a short
    training evaluates at chance with it. So: the statistics span a fortieth of the run, and the
    momentum is between 0.01 and 0.3.
    """
    return min(0.3, max(0.01, 40 / max(1, total_steps)))
