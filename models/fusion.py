"""How a head joins what it sees of a clip: tokens and vectors of its modalities -> logits (B, K).

A fusion is a class in FUSIONS, made as `cls(token_dims, vector_dims, n_classes)` and called with
the same modalities' tokens {name: Tokens} and vectors {name: (B, D)}, always in the order of
`vector_dims`. `--fusion NAME` chooses it; nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

WIDTH, HEADS = 128, 4  # of the fusions that need one size for all modalities
DROPOUT = 0.2


class Tokens(NamedTuple):
    """One modality of a batch: `x` (B, T, D) and `mask` (B, T), true where a token is real."""

    x: Tensor
    mask: Tensor


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class Concat(nn.Module):
    """The recipe's: vectors side by side, dropout, linear."""

    def __init__(self, token_dims: dict[str, int], vector_dims: dict[str, int], n_classes: int):
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(sum(vector_dims.values()), n_classes)

    def forward(self, tokens: dict[str, Tokens], vectors: dict[str, Tensor]) -> Tensor:
        return self.linear(self.dropout(torch.cat(list(vectors.values()), dim=1)))  # (B, K)


class Gated(nn.Module):
    """Gated multimodal unit, arXiv 1702.01992: all vectors together decide, for each value of the
    joint vector, how much each modality gives to it."""

    def __init__(self, token_dims: dict[str, int], vector_dims: dict[str, int], n_classes: int):
        super().__init__()
        total = sum(vector_dims.values())
        self.hidden = nn.ModuleDict({k: nn.Linear(dim, WIDTH) for k, dim in vector_dims.items()})
        self.gates = perceptron(total, WIDTH, len(vector_dims) * WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(WIDTH, n_classes)

    def forward(self, tokens: dict[str, Tokens], vectors: dict[str, Tensor]) -> Tensor:
        hidden = torch.stack([self.hidden[k](v).tanh() for k, v in vectors.items()], 1)  # (B, M, W)
        gates = self.gates(torch.cat(list(vectors.values()), dim=1))  # (B, M W)
        # over the modalities: what one gives more, the others give less
        gates = gates.unflatten(1, (len(vectors), WIDTH)).softmax(dim=1)  # (B, M, W)
        return self.linear(self.dropout((gates * hidden).sum(dim=1)))


class Attention(nn.Module):
    """Self-attention over the modalities: one Transformer layer (arXiv 1706.03762) whose tokens
    are the vectors, each with a learnt code of its modality; then their mean."""

    def __init__(self, token_dims: dict[str, int], vector_dims: dict[str, int], n_classes: int):
        super().__init__()
        self.project = nn.ModuleDict({k: nn.Linear(dim, WIDTH) for k, dim in vector_dims.items()})
        # small at first, so that the clips and not the codes decide
        self.codes = nn.Parameter(0.02 * torch.randn(len(vector_dims), WIDTH))
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, DROPOUT, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, n_classes)

    def forward(self, tokens: dict[str, Tokens], vectors: dict[str, Tensor]) -> Tensor:
        x = torch.stack([self.project[k](v) for k, v in vectors.items()], dim=1)  # (B, M, W)
        # The layer normalizes before its parts (norm_first), so its sum is normalized here.
        return self.linear(self.norm(self.layer(x + self.codes)).mean(dim=1))


class CrossAttention(nn.Module):
    """Each modality's tokens look at the tokens of all others, before any pooling (after MulT,
    arXiv 1906.00295, with one block); the mean of each beside its own vector, linear."""

    def __init__(self, token_dims: dict[str, int], vector_dims: dict[str, int], n_classes: int):
        super().__init__()
        self.project = nn.ModuleDict({k: nn.Linear(dim, WIDTH) for k, dim in token_dims.items()})
        self.codes = nn.ParameterDict({k: 0.02 * torch.randn(WIDTH) for k in token_dims})
        self.attention = nn.ModuleDict(
            {k: nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True) for k in token_dims}
        )
        self.norm = nn.ModuleDict({k: nn.LayerNorm(WIDTH) for k in token_dims})
        self.mix = nn.ModuleDict({k: perceptron(WIDTH, 2 * WIDTH, WIDTH) for k in token_dims})
        self.dropout = nn.Dropout(DROPOUT)
        # The vectors too: a pooling that nothing looks at gets no gradient, and DDP waits for it.
        total = len(token_dims) * WIDTH + sum(vector_dims.values())
        self.linear = nn.Linear(total, n_classes)

    def forward(self, tokens: dict[str, Tokens], vectors: dict[str, Tensor]) -> Tensor:
        projected = {k: self.project[k](x) + self.codes[k] for k, (x, _) in tokens.items()}
        means = []
        for name, (_, mask) in tokens.items():
            # Not its own: what a modality says by itself is in its vector below.
            others = [other for other in tokens if other != name]
            keys = torch.cat([projected[other] for other in others], dim=1)  # (B, sum of T, W)
            # Something is always real: a modality that is missing is one learnt token.
            padding = ~torch.cat([tokens[other].mask for other in others], dim=1)
            seen, _ = self.attention[name](
                projected[name], keys, keys, key_padding_mask=padding, need_weights=False
            )
            x = self.norm[name](projected[name] + seen)  # (B, T, W)
            x = x + self.mix[name](x)
            real = mask.unsqueeze(2).to(x.dtype)  # (B, T, 1)
            means.append((x * real).sum(dim=1) / real.sum(dim=1))  # (B, W)
        return self.linear(self.dropout(torch.cat([*means, *vectors.values()], dim=1)))


class Late(nn.Module):
    """Each modality answers by itself; a weighted sum of their log-probabilities (a logarithmic
    opinion pool). The weights are learnt, free in size and sign; as with any logits the softmax of
    the loss makes probabilities of the sum."""

    def __init__(self, token_dims: dict[str, int], vector_dims: dict[str, int], n_classes: int):
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.ModuleDict(
            {k: nn.Linear(dim, n_classes) for k, dim in vector_dims.items()}
        )
        # ones: the plain sum, which suits inputs whose errors have nothing to do with each other
        self.weights = nn.Parameter(torch.ones(len(vector_dims)))

    def forward(self, tokens: dict[str, Tokens], vectors: dict[str, Tensor]) -> Tensor:
        each = [self.linear[k](self.dropout(v)).log_softmax(dim=1) for k, v in vectors.items()]
        return (torch.stack(each, dim=2) * self.weights).sum(dim=2)  # (B, K)


FUSIONS: dict[str, Callable[..., nn.Module]] = {
    "concat": Concat,
    "gated": Gated,
    "attention": Attention,
    "crossattention": CrossAttention,
    "late": Late,
}
