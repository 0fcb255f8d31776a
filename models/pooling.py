"""Tokens (B, T, D) and their mask (B, T) -> one vector per clip (B, D')."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class FrameAttention(nn.Module):
    """Weighted mean over the real tokens; Frame Attention Networks, arXiv 1907.00193.

    weight_t = sigmoid(w . x_t) + 0.001, divided by their sum over t (the paper's self-attention
    part). With `relation=True` its second part follows: each token is joined with that mean, gets
    a second weight, and the result is (B, 2 D).
    """

    def __init__(self, dim: int, relation: bool = False):
        super().__init__()
        self.score = nn.Linear(dim, 1)
        self.relation_score = nn.Linear(2 * dim, 1) if relation else None
        self.out_dim = 2 * dim if relation else dim

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return weighted_mean(*self.weigh(tokens, mask))

    def weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T), adding up to 1 over T: how much each token counts in the result."""
        weight = self.weigh(tokens, mask)[1].squeeze(2)
        return weight / weight.sum(dim=1, keepdim=True)

    def weigh(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What is averaged (B, T, D'), and a weight of each (B, T, 1), 0 for padding."""
        real = mask.unsqueeze(2)  # (B, T, 1)
        weight = (self.score(tokens).sigmoid() + 1e-3) * real  # (B, T, 1)
        if self.relation_score is None:
            return tokens, weight
        mean = weighted_mean(tokens, weight)  # (B, D)
        pairs = torch.cat([tokens, mean.unsqueeze(1).expand_as(tokens)], dim=2)  # (B, T, 2 D)
        return pairs, weight * self.relation_score(pairs).sigmoid()


class MeanPooling(nn.Module):
    """Mean over the real tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.out_dim = dim

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return weighted_mean(tokens, mask.unsqueeze(2).to(tokens.dtype))


class Statistics(nn.Module):
    """Weighted mean and deviation over the real tokens, (B, 2 D): attentive statistics pooling,
    arXiv 1803.10963, with the weights of FrameAttention."""

    def __init__(self, dim: int):
        super().__init__()
        self.attention = FrameAttention(dim)
        self.out_dim = 2 * dim

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        _, weight = self.attention.weigh(tokens, mask)
        mean = weighted_mean(tokens, weight)
        variance = weighted_mean((tokens - mean.unsqueeze(1)) ** 2, weight)
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)

    def weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.attention.weights(tokens, mask)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """(B, T, D), (B, T, 1) -> (B, D)"""
    return (x * weight).sum(dim=1) / weight.sum(dim=1)


POOLINGS: dict[str, Callable[[int], Any]] = {
    "attention": FrameAttention,
    "relation": partial(FrameAttention, relation=True),
    "mean": MeanPooling,
    "stats": Statistics,
}
