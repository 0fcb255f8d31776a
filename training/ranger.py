"""Ranger, with few calls of the library: the same arithmetic and state as torch_optimizer's."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch_optimizer import Ranger as LoopOverParameters

from training.optim import spare_the_compiler

STATE = ("exp_avg", "exp_avg_sq", "slow_buffer")


class Ranger(LoopOverParameters):
    """RAdam + Lookahead (arXiv 1908.03265, 1907.08610) with centralized gradients (2004.01461).

    torch_optimizer's class updates one parameter after the other, in ten calls each: a quarter of
    a step on a GPU, where every call is a launch. Here each call is for all parameters at once.
    States and their names are that class's, so either goes on from a checkpoint of the other.
    """

    def __init__(self, params: Any, **settings: Any):
        spare_the_compiler()
        super().__init__(params, **settings)
        self.centralizers: list[Centralizer] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of all parameters that have a gradient; gradients are left as they are."""
        if not self.centralizers:
            self.centralizers = [Centralizer(group["params"]) for group in self.param_groups]
        for group, centralizer in zip(self.param_groups, self.centralizers, strict=True):
            alike: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter, gradient in centralizer(group["params"]):
                alike[self.count(parameter)].append((parameter, gradient))
            for step, pairs in alike.items():  # one for a model that uses all its layers
                self.update(group, step, *map(list, zip(*pairs, strict=True)))

    def count(self, parameter: Tensor) -> int:
        """Number of this step for a parameter, whose state is made at its first one."""
        state = self.state[parameter]
        if not state:
            values = torch.zeros_like(parameter), torch.zeros_like(parameter), parameter.clone()
            state |= {"step": 0, **dict(zip(STATE, values, strict=True))}
        state["step"] += 1
        return state["step"]

    def update(self, group: dict, step: int, weights: list[Tensor], grads: list[Tensor]) -> None:
        """RAdam, and at every k-th step Lookahead, in place."""
        mean, square, slow = ([self.state[each][name] for each in weights] for name in STATE)
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        torch._foreach_mul_(mean, beta1)
        torch._foreach_add_(mean, grads, alpha=1 - beta1)
        if group["weight_decay"]:
            torch._foreach_add_(weights, weights, alpha=-group["weight_decay"] * group["lr"])
        size, adapted = rectified(step, beta1, beta2, self.N_sma_threshhold)
        if adapted:
            root = torch._foreach_sqrt(square)
            torch._foreach_add_(root, group["eps"])
            torch._foreach_addcdiv_(weights, mean, root, -size * group["lr"])
        else:
            torch._foreach_add_(weights, mean, alpha=-size * group["lr"])
        if step % group["k"] == 0:
            torch._foreach_lerp_(slow, weights, self.alpha)
            torch._foreach_copy_(weights, slow)


def rectified(step: int, beta1: float, beta2: float, threshold: float) -> tuple[float, bool]:
    """Factor on the learning rate, and whether the second moment is known well enough to divide by
    (arXiv 1908.03265, algorithm 2)."""
    longest = 2 / (1 - beta2) - 1
    power = beta2**step
    length = longest - 2 * step * power / (1 - power)
    if length <= threshold:
        return 1 / (1 - beta1**step), False
    ratio = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
    return math.sqrt((1 - power) * ratio) / (1 - beta1**step), True


class Centralizer:
    """Gradients less their mean per output, for the weights among some parameters.

    All are copied into one buffer, in which the weights whose outputs have equally many inputs lie
    side by side as one matrix: one mean for each such number, whatever the count of weights.
    """

    def __init__(self, parameters: list[Tensor]):
        by_length: dict[int, list[Tensor]] = defaultdict(list)
        for each in parameters:
            if each.dim() > 1:
                by_length[each[0].numel()].append(each)
        total = sum(each.numel() for group in by_length.values() for each in group)
        self.copies: dict[Tensor, Tensor] = {}  # weight -> its place in the buffer
        self.matrices: list[Tensor] = []  # (outputs of all weights of one length, length)
        if not total:
            return
        buffer = torch.zeros(total, dtype=parameters[0].dtype, device=parameters[0].device)
        start = 0
        for length, group in by_length.items():
            first = start
            for each in group:
                # an output's inputs lie in one piece, in the order that the weight has them
                order = each if each.stride(0) == length else each.contiguous()
                self.copies[each] = buffer.as_strided(each.shape, order.stride(), start)
                start += each.numel()
            self.matrices.append(buffer[first:start].view(-1, length))

    def __call__(self, parameters: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each parameter that has a gradient, and that gradient, centralized if it is a weight's;
        valid until the next call."""
        given = [each for each in parameters if each.grad is not None]
        weights = [each for each in given if each in self.copies]
        if weights:
            torch._foreach_copy_(
                [self.copies[each] for each in weights], [each.grad for each in weights]
            )
            means = [matrix.mean(dim=1, keepdim=True) for matrix in self.matrices]
            torch._foreach_sub_(self.matrices, means)
        return [(each, self.copies.get(each, each.grad)) for each in given]
