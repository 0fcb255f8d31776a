"""EmotionClassifier: encoders by modality, heads by name. One class for every mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FusionHead(nn.Module):
    """Features of one or more modalities -> logits (B, K): concatenate, dropout, linear."""

    def __init__(self, inputs: list[str], dim: int, n_classes: int, dropout: float = 0.2):
        super().__init__()
        self.inputs = inputs
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, n_classes)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        joined = torch.cat([features[name] for name in self.inputs], dim=-1)  # (B, sum of D)
        return self.linear(self.dropout(joined))  # (B, K)


class EmotionClassifier(nn.Module):
    """`encode` makes one vector per modality, `classify` turns the vectors into logits per head.

    Parameters are named `encoders.<modality>.*` and `heads.<head>.*` whatever the mode, so weights
    move between modes name for name. The two steps are apart because test-time augmentation of
    the face needs the other modalities only once.

    With `learn_absent` a learnt vector per modality stands in, in heads of several modalities, for
    an input that is missing; training teaches it by leaving inputs out (modality dropout).
    """

    def __init__(
        self,
        encoders: dict[str, nn.Module],
        heads: dict[str, list[str]],
        n_classes: int,
        learn_absent: bool = False,
    ):
        super().__init__()
        self.n_classes = n_classes
        self.encoders = nn.ModuleDict(encoders)
        dims = {name: encoder.out_dim for name, encoder in encoders.items()}
        self.heads = nn.ModuleDict(
            {
                head: FusionHead(inputs, sum(dims[name] for name in inputs), n_classes)
                for head, inputs in heads.items()
            }
        )
        absent = dims if learn_absent else {}
        self.absent = nn.ParameterDict({k: torch.zeros(dim) for k, dim in absent.items()})

    def encode(self, inputs: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """{modality: the encoder's arguments} -> {modality: (B, D)}, for the inputs given."""
        return {name: self.encoders[name](*tensors) for name, tensors in inputs.items()}

    def classify(
        self, features: dict[str, Tensor], left_out: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """{modality: (B, D)} -> {head: logits (B, K)} in the order of the heads.

        `left_out` {modality: (B,) bool}: clips whose heads of several modalities see the learnt
        vector instead. A modality that is not in `features` counts as left out of every clip;
        heads that would see nothing, or cannot do without it, are left out of the answer.
        """
        some = next(iter(features.values()))
        fused = {name: vector.expand(some.shape[0], -1) for name, vector in self.absent.items()}
        fused |= features
        for name, clips in (left_out or {}).items():
            fused[name] = torch.where(clips.unsqueeze(1), self.absent[name], features[name])
        return {
            name: head(fused if len(head.inputs) > 1 else features)
            for name, head in self.heads.items()
            if fused.keys() >= set(head.inputs) and not features.keys().isdisjoint(head.inputs)
        }

    def forward(
        self, inputs: dict[str, tuple[Tensor, ...]], left_out: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        return self.classify(self.encode(inputs), left_out)
