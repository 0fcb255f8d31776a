"""Encoders of custom features: vectors (B, D) and sequences (B, T, D) -> tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.pooling import POOLINGS


class VectorEncoder(nn.Module):
    """One vector per clip through a small perceptron: (B, D) -> one token (B, 1, hidden).

    Batch norm first: features such as openSMILE's differ in scale by orders of magnitude.
    """

    def __init__(self, dim: int, hidden: int = 256, dropout: float = 0.2, pooling: str = "mean"):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.hidden = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, hidden), nn.GELU())
        self.token_dim = hidden
        self.pooling = POOLINGS[pooling](hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(self.norm(x)).unsqueeze(1)  # (B, 1, hidden)
        return x, x.new_ones(x.shape[:2], dtype=torch.bool)


class SequenceEncoder(nn.Module):
    """A sequence through a BiLSTM: (B, T, D) -> tokens (B, T, 2 hidden)."""

    def __init__(self, dim: int, hidden: int = 128, pooling: str = "attention"):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)
        self.token_dim = 2 * hidden
        self.pooling = POOLINGS[pooling](self.token_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        if torch.is_autocast_enabled(x.device.type):  # a CPU's LSTM fails on float32 there
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x, _ = self.lstm(x)  # (B, T, 2 hidden)
        return x, x.new_ones(x.shape[:2], dtype=torch.bool)
