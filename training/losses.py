"""Losses by name: a function of the prediction and the targets; class weights are its argument.

Targets are distributions, so smoothing and mixing are sums of them. A loss gets the whole
Prediction (logits by head, vectors by modality), the targets {head: (B, K)} with the deciding head
first, class weights {head: (K,)} and the run's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.classifier import Prediction

Loss = Callable[..., Tensor]  # (prediction, targets, class_weights, config)


def smooth_one_hot(labels: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """(B,) class indices -> (B, K): 1 - smoothing on the class, smoothing spread over all K; zeros
    where the class is unknown (-1), which cost and teach nothing."""
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), n_classes).float()
    smooth = one_hot * (1 - smoothing) + smoothing / n_classes
    return smooth * (labels >= 0).unsqueeze(1)


def soft_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the batch of -sum_k w_k target_k log softmax(logits)_k, in float32; both (B, K)."""
    return torch.nn.functional.cross_entropy(logits.float(), target, weight=weights)


def cross_entropy(
    prediction: Prediction,
    targets: dict[str, Tensor],
    class_weights: dict[str, Tensor],
    config: dict[str, Any],
) -> Tensor:
    """The deciding head's cross-entropy + lam x the mean of the other heads'."""
    first, *others = [
        soft_cross_entropy(prediction.logits[head], target, class_weights.get(head))
        for head, target in targets.items()
    ]
    return first + config["lam"] * torch.stack(others).mean() if others else first


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
