"""Encoders of features that were made elsewhere: vectors (B, D) and sequences (B, T, D)."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention import AttnBiLSTM


class VectorEncoder(nn.Module):
    """One vector per clip through a small perceptron: (B, D) -> (B, hidden).

    Batch norm first: features such as openSMILE's differ in scale by orders of magnitude.
    """

    def __init__(self, dim: int, hidden: int = 256, dropout: float = 0.2):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.hidden = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, hidden), nn.GELU())
        self.out_dim = hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.norm(x))


class SequenceEncoder(nn.Module):
    """A sequence through a BiLSTM with frame attention: (B, T, D) -> (B, 2 hidden)."""

    def __init__(self, dim: int, hidden: int = 128):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.sequence = AttnBiLSTM(dim, hidden)
        self.out_dim = self.sequence.out_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(self.norm(x.transpose(1, 2)).transpose(1, 2))
