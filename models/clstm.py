"""CLSTM, the encoder of faces: crops (B, T, 3, H, W) in [0, 1] -> tokens (B, T, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from models.backbone import Backbone
from models.pooling import POOLINGS

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class CLSTM(nn.Module):
    """An image backbone on each frame, pooled to a vector, then a BiLSTM over time.

    Without `lstm` each frame counts by itself, as fits still pictures and few clips. The vector is
    the mean over the picture, or tells `grid` x `grid` parts of it apart: mouth, eyes, brows.
    It normalises with the ImageNet statistics itself: no caller can forget or repeat it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "efficientnet-b0",
        pooling: str = "attention",
        lstm: bool = True,
        grid: int = 1,
    ):
        super().__init__()
        if grid < 1:
            raise ValueError(f"a picture in {grid} x {grid} parts")
        self.backbone, self.grid = Backbone(backbone, in_channels=3), grid
        channels = self.backbone.out_channels
        self.lstm, self.token_dim = None, channels * grid**2
        if lstm:
            hidden = channels // 4
            self.lstm = nn.LSTM(self.token_dim, hidden, batch_first=True, bidirectional=True)
            self.token_dim = 2 * hidden
        self.pooling = POOLINGS[pooling](self.token_dim)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        batch, frames = faces.shape[:2]
        x = (faces.flatten(0, 1) - self.mean) / self.std  # (B T, 3, H, W)
        x = self.backbone(x)  # (B T, C, H / 32, W / 32)
        x = adaptive_avg_pool2d(x, self.grid).flatten(1)  # (B T, C grid^2)
        x = x.unflatten(0, (batch, frames))  # (B, T, C)
        if self.lstm is not None:
            x, _ = self.lstm(x)  # (B, T, D)
        return x, x.new_ones(x.shape[:2], dtype=torch.bool)
