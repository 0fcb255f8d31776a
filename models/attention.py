"""Sequences -> one vector: frame attention, and a bidirectional LSTM with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameAttention(nn.Module):
    """Weighted mean over time, (B, T, D) -> (B, D); Frame Attention Networks, arXiv 1907.00193.

    weight_t = sigmoid(w . x_t) + 0.001, divided by their sum over t (the paper's self-attention
    part). With `relation=True` its second part follows: each frame is joined with that mean, gets
    a second weight, and the result is (B, 2 D).
    """

    def __init__(self, dim: int, relation: bool = False):
        super().__init__()
        self.score = nn.Linear(dim, 1)
        self.relation_score = nn.Linear(2 * dim, 1) if relation else None
        self.out_dim = 2 * dim if relation else dim

    def forward(self, x: Tensor) -> Tensor:
        return weighted_mean(*self.weigh(x))

    def weights(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T), adding up to 1 over T: how much each frame counts in the result."""
        weight = self.weigh(x)[1].squeeze(2)
        return weight / weight.sum(dim=1, keepdim=True)

    def weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> the frames that are averaged (B, T, D'), and a weight of each (B, T, 1)."""
        weight = self.score(x).sigmoid() + 1e-3  # (B, T, 1)
        if self.relation_score is None:
            return x, weight
        mean = weighted_mean(x, weight)  # (B, D)
        pairs = torch.cat([x, mean.unsqueeze(1).expand_as(x)], dim=-1)  # (B, T, 2 D)
        return pairs, weight * self.relation_score(pairs).sigmoid()


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """(B, T, D), (B, T, 1) -> (B, D)"""
    return (x * weight).sum(dim=1) / weight.sum(dim=1)


class AttnBiLSTM(nn.Module):
    """One bidirectional LSTM layer, then frame attention: (B, T, D) -> (B, D')."""

    def __init__(self, dim: int, hidden: int, relation: bool = False):
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)
        self.attention = FrameAttention(2 * hidden, relation)
        self.out_dim = self.attention.out_dim

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)  # (B, T, 2 hidden)
        return self.attention(x)
