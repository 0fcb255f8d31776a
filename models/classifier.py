"""EmotionClassifier: encoders by modality, heads by name. One class for every mode."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.fusion import FUSIONS, Concat, Tokens

Inputs = dict[str, tuple[Tensor, ...]]  # modality -> its encoder's arguments


class Prediction(NamedTuple):
    """`logits` {head: (B, K)} in the order of the heads; `vectors` {modality: (B, D)}."""

    logits: dict[str, Tensor]
    vectors: dict[str, Tensor]


class EmotionClassifier(nn.Module):
    """`encode` makes tokens of each modality, `classify` pools and fuses them into logits.

    Parameters are named `encoders.<modality>.*` and `heads.<head>.*` whatever the mode, so weights
    move between modes name for name. The two steps are apart because test-time augmentation of
    one modality needs the others only once.

    With `learn_missing` a learnt token per modality stands in, in heads of several modalities, for
    an input that is missing; training teaches it by leaving inputs out (modality dropout).
    """

    def __init__(
        self,
        encoders: dict[str, nn.Module],
        heads: dict[str, list[str]],
        n_classes: int,
        fusion: str = "concat",
        learn_missing: bool = False,
    ):
        super().__init__()
        self.n_classes = n_classes
        self.head_inputs = heads
        self.encoders = nn.ModuleDict(encoders)
        token_dims = {name: encoder.token_dim for name, encoder in encoders.items()}
        vector_dims = {name: encoder.pooling.out_dim for name, encoder in encoders.items()}
        self.heads = nn.ModuleDict()
        for head, inputs in heads.items():
            make = FUSIONS[fusion] if len(inputs) > 1 else Concat
            self.heads[head] = make(
                {name: token_dims[name] for name in inputs},
                {name: vector_dims[name] for name in inputs},
                n_classes,
            )
        missing = token_dims if learn_missing else {}
        self.missing = nn.ParameterDict({k: torch.zeros(dim) for k, dim in missing.items()})

    def forward(self, inputs: Inputs, left_out: dict[str, Tensor] | None = None) -> Prediction:
        return self.classify(self.encode(inputs), left_out)

    def encode(self, inputs: Inputs, absent: dict[str, Tensor] | None = None) -> dict[str, Tokens]:
        """Tokens of each modality that is given; of clips that lack it (`absent` {modality: (B,)
        bool}) the learnt token."""
        tokens = {name: Tokens(*self.encoders[name](*given)) for name, given in inputs.items()}
        if tokens and absent and self.missing:
            filled = self.stand_in(tokens, absent)
            tokens = {name: filled[name] for name in tokens}
        return tokens

    def classify(
        self, tokens: dict[str, Tokens], left_out: dict[str, Tensor] | None = None
    ) -> Prediction:
        """Logits of every head that sees something of what is given.

        `left_out` {modality: (B,) bool}: clips whose heads of several modalities see the learnt
        token instead. A modality that is not in `tokens` counts as left out of every clip; heads
        that would see nothing, or cannot do without it, are left out of the prediction.
        """
        vectors = self.pool(tokens)
        fused, fused_vectors = tokens, vectors
        if self.missing:
            fused = self.stand_in(tokens, left_out or {})
            fused_vectors = self.pool(fused)
        logits = {}
        for head, inputs in self.head_inputs.items():
            seen, pooled = (tokens, vectors) if len(inputs) == 1 else (fused, fused_vectors)
            if any(name in tokens for name in inputs) and all(name in seen for name in inputs):
                own = [{name: each[name] for name in inputs} for each in (seen, pooled)]
                logits[head] = self.heads[head](*own)
        return Prediction(logits, vectors)

    def pool(self, tokens: dict[str, Tokens]) -> dict[str, Tensor]:
        return {name: self.encoders[name].pooling(*each) for name, each in tokens.items()}

    def stand_in(self, tokens: dict[str, Tokens], left_out: dict[str, Tensor]) -> dict[str, Tokens]:
        """All modalities of the model: where one is missing, its learnt token and nothing else."""
        batch = next(iter(tokens.values())).x.shape[0]
        filled = {}
        for name, token in self.missing.items():
            if name not in tokens:
                x = token.expand(batch, 1, -1)
                filled[name] = Tokens(x, x.new_ones(batch, 1, dtype=torch.bool))
            elif name in left_out:
                x, mask = tokens[name]
                out = left_out[name].unsqueeze(1)  # (B, 1)
                first = torch.arange(x.shape[1], device=x.device) == 0  # (T,)
                x = torch.where(out.unsqueeze(2), token.to(x.dtype), x)
                filled[name] = Tokens(x, (out & first) | (~out & mask))  # where, as ONNX has it
            else:
                filled[name] = tokens[name]
        return filled
