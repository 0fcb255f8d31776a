"""CLSTM, the face encoder: face crops (B, T, 3, H, W) in [0, 1] -> (B, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention import AttnBiLSTM
from models.backbone import Backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class CLSTM(nn.Module):
    """An image trunk on each frame, pooled to a vector, then over time with attention.

    It normalises with the ImageNet statistics itself: no caller can forget or repeat it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str = "efficientnet-b0", relation: bool = False):
        super().__init__()
        self.backbone = Backbone(backbone, in_channels=3)
        channels = self.backbone.out_channels
        self.sequence = AttnBiLSTM(channels, channels // 4, relation)
        self.out_dim = self.sequence.out_dim
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        batch, frames = faces.shape[:2]
        x = (faces.flatten(0, 1) - self.mean) / self.std  # (B T, 3, H, W)
        x = self.backbone(x).mean(dim=(2, 3))  # (B T, C)
        x = x.unflatten(0, (batch, frames))  # (B, T, C)
        return self.sequence(x)  # (B, D)
