"""AttnCNN, the encoder of sound: log-mel (B, 1, F, T) -> tokens (B, T / 32, D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Backbone
from models.pooling import POOLINGS


class AttnCNN(nn.Module):
    """The log-mel as a grey picture through an image backbone, then a BiLSTM over time.

    `forward` gives the tokens; `pooling` (frame attention in the recipe) makes a vector of them.
    """

    def __init__(
        self, backbone: str = "efficientnet-b4", hidden: int = 512, pooling: str = "attention"
    ):
        super().__init__()
        self.backbone = Backbone(backbone, in_channels=1)
        self.lstm = nn.LSTM(
            self.backbone.out_channels, hidden, batch_first=True, bidirectional=True
        )
        self.token_dim = 2 * hidden
        self.pooling = POOLINGS[pooling](self.token_dim)

    def forward(self, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`mask` (B, T): true for the columns of the clip, false for the padding around it."""
        x = self.backbone(log_mel)  # (B, C, F / 32, T / 32)
        x = x.mean(dim=2).transpose(1, 2)  # (B, T / 32, C)
        mask = self.token_mask(mask, x.shape[1])
        x, _ = self.lstm(x * mask.unsqueeze(2))  # (B, T / 32, D)
        return x, mask

    def token_mask(self, mask: Tensor, tokens: int) -> Tensor:
        """(B, T) -> (B, tokens): a token is real when any of its columns is."""
        before = F.pad(mask.long().cumsum(dim=1), (1, 0))  # (B, T + 1) real columns so far
        start = torch.arange(tokens, device=mask.device) * self.backbone.stride
        first, last = (at.clamp(max=mask.shape[1]) for at in (start, start + self.backbone.stride))
        return before[:, last] > before[:, first]
