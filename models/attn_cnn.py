"""AttnCNN, the speech encoder: log-mel (B, 1, F, T) -> (B, D)."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention import AttnBiLSTM
from models.backbone import Backbone


class AttnCNN(nn.Module):
    """The log-mel as a grey picture through an image trunk, then over time with attention."""

    def __init__(
        self, backbone: str = "efficientnet-b4", hidden: int = 512, relation: bool = False
    ):
        super().__init__()
        self.backbone = Backbone(backbone, in_channels=1)
        self.sequence = AttnBiLSTM(self.backbone.out_channels, hidden, relation)
        self.out_dim = self.sequence.out_dim

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.backbone(log_mel)  # (B, C, F / 32, T / 32)
        x = x.mean(dim=2).transpose(1, 2)  # (B, T / 32, C)
        return self.sequence(x)  # (B, D)
