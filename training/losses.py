"""Targets are distributions: smoothing and mixing are sums of them, and there is one loss."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_one_hot(labels: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """(B,) class indices -> (B, K): 1 - smoothing on the class, smoothing spread over all K."""
    one_hot = torch.nn.functional.one_hot(labels, n_classes).float()
    return one_hot * (1 - smoothing) + smoothing / n_classes


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of -sum_k target_k log softmax(logits)_k, in float32; both (B, K)."""
    return -(target * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def multi_task_loss(logits: dict[str, Tensor], targets: dict[str, Tensor], lam: float) -> Tensor:
    """CE(first head) + lam x mean of CE(other heads); alone, a head is just its CE."""
    first, *others = [soft_cross_entropy(logits[head], target) for head, target in targets.items()]
    return first + lam * torch.stack(others).mean() if others else first
