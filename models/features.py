"""Encoders of custom features and of pretrained encoders' features -> tokens.

Vectors (B, D) and sequences (B, T, D); of several layers of a pretrained encoder (B, L, D) and
(B, L, T, D), of which a learnt mix is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.pooling import POOLINGS


class LayerMix(nn.Module):
    """The layers of a pretrained encoder, each brought to one scale, in learnt shares: s3prl's
    weighted sum (Yang et al. 2021, SUPERB, arXiv 2105.01051). (B, L, ..., D) -> (B, ..., D)."""

    def __init__(self, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    @property
    def shares(self) -> Tensor:
        """(L,), adding up to 1."""
        return self.weight.softmax(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.layer_norm(x, x.shape[-1:])
        return torch.einsum("l,bl...->b...", self.shares.to(x.dtype), x)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that also learns from batches with one value of each feature, such as one clip:
    these move its running statistics, and are normalized by them. (B, D) or (B, D, T), as it is."""

    running_mean: Tensor
    running_var: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.numel() > self.num_features:
            return super().forward(input)
        value, momentum = input.detach().flatten().float(), self.momentum or 0.1
        self.num_batches_tracked += 1
        self.running_var = self.running_var.lerp((value - self.running_mean).square(), momentum)
        self.running_mean = self.running_mean.lerp(value, momentum)
        statistics = self.running_mean, self.running_var
        return nn.functional.batch_norm(input, *statistics, self.weight, self.bias, eps=self.eps)


class AsItIs(nn.Module):
    """Values of unit variance (..., D), all together of variance 1: so each input of a fusion has
    the same weight, however many values it has. None counts as more than four deviations: what
    hardly varied in the training would say all, the first time that it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-4, 4) * x.shape[-1] ** -0.5


class VectorEncoder(nn.Module):
    """One vector per clip through a small perceptron: (B, D) -> one token (B, 1, hidden).

    Batch norm first: features such as openSMILE's differ in scale by orders of magnitude. With
    `layers` (B, L, D) comes in. With `hidden` 0 the token is the vector itself (B, 1, D): a linear
    head on it is a logistic regression.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 256,
        dropout: float = 0.2,
        pooling: str = "mean",
        layers: int = 0,
    ):
        super().__init__()
        self.mix = LayerMix(layers) if layers else nn.Identity()
        self.norm = BatchNorm(dim)
        self.hidden: nn.Module = AsItIs()
        if hidden:
            self.hidden = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, hidden), nn.GELU())
        self.token_dim = hidden or dim
        self.pooling = POOLINGS[pooling](self.token_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(self.norm(self.mix(x))).unsqueeze(1)  # (B, 1, hidden)
        return x, x.new_ones(x.shape[:2], dtype=torch.bool)


class SequenceEncoder(nn.Module):
    """A sequence (B, T, D) -> tokens (B, T, 2 hidden). With `layers` (B, L, T, D) comes in.

    `body`: lstm reads it in both directions; linear takes each row by itself, as fits the rows of
    a pretrained encoder, which know their neighbours already: quicker, and better on few clips;
    with none tokens are the rows themselves (B, T, D).
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        pooling: str = "attention",
        layers: int = 0,
        body: str = "lstm",
        dropout: float = 0.2,
    ):
        super().__init__()
        self.mix = LayerMix(layers) if layers else nn.Identity()
        self.norm = BatchNorm(dim)
        self.lstm = None
        if body == "lstm":
            self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)
        elif body == "linear":
            self.linear = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, 2 * hidden), nn.GELU())
        else:
            self.linear = AsItIs()
        self.token_dim = dim if body == "none" else 2 * hidden
        self.pooling = POOLINGS[pooling](self.token_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.mix(x).transpose(1, 2)).transpose(1, 2)
        if self.lstm is None:
            x = self.linear(x)
            return x, x.new_ones(x.shape[:2], dtype=torch.bool)
        if torch.is_autocast_enabled(x.device.type):  # a CPU's LSTM fails on float32 there
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x, _ = self.lstm(x)  # (B, T, 2 hidden)
        return x, x.new_ones(x.shape[:2], dtype=torch.bool)
