"""TextTransformer, the text encoder: word vectors (B, L, D) and their mask -> (B, D)."""

from __future__ import annotations

from torch import Tensor, nn


class TextTransformer(nn.Module):
    """Transformer encoder over the words of one clip, then the mean over its real words.

    Padding is masked in the attention and in the mean, so neither the other clips of a batch nor
    the length that it is padded to change a clip's result. As in the reference there is no
    position code: order enters nowhere. Layers normalise first (arXiv 2002.04745), which lets
    twelve of them do without a warm-up. A word size that the heads do not divide is mapped to
    the next one that they do.
    """

    def __init__(self, word_dim: int = 200, layers: int = 12, heads: int = 8, dropout: float = 0.1):
        super().__init__()
        width = -(-word_dim // heads) * heads
        self.project = nn.Identity() if width == word_dim else nn.Linear(word_dim, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.out_dim = width

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """`words` (B, L, D), `mask` (B, L) bool: true where there is a word."""
        x = self.encoder(self.project(words), src_key_padding_mask=~mask)  # (B, L, D)
        real = mask.unsqueeze(-1).to(x.dtype)  # (B, L, 1)
        return (x * real).sum(dim=1) / real.sum(dim=1)  # (B, D)
