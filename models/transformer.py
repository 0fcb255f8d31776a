"""TextTransformer, the encoder of words: word vectors (B, L, D) and their mask -> tokens."""

from __future__ import annotations

from torch import Tensor, nn

from models.pooling import POOLINGS

MOST_LAYERS, MOST_WIDTH = 256, 8192  # a checkpoint of a few bytes could ask for a billion


class TextTransformer(nn.Module):
    """Transformer encoder over the words of one clip; its vector is the mean of the real words.

    Padding is masked in the attention and in the mean, so neither the other clips of a batch nor
    the length that it is padded to change a clip's result. As in the reference there is no
    position code: order enters nowhere. Layers normalise first (arXiv 2002.04745), which lets
    twelve of them do without a warm-up. A word size that the heads do not divide is mapped to
    the next one that they do, or to `width`: short word vectors need more room to be told apart.
    ValueError for sizes that make no layer.
    """

    def __init__(
        self,
        dim: int = 200,
        layers: int = 12,
        heads: int = 8,
        dropout: float = 0.1,
        pooling: str = "mean",
        width: int = 0,
    ):
        super().__init__()
        if not 1 <= layers <= MOST_LAYERS:
            raise ValueError(f"{layers} layers of a Transformer, expected 1 to {MOST_LAYERS}")
        width = width or -(-dim // heads) * heads
        if width % heads or not 1 <= width <= MOST_WIDTH:
            what = f"expected up to {MOST_WIDTH} that the {heads} heads divide"
            raise ValueError(f"a Transformer of width {width}: {what}")
        self.project = nn.Identity() if width == dim else nn.Linear(dim, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.token_dim = width
        self.pooling = POOLINGS[pooling](width)

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`words` (B, L, D), `mask` (B, L) bool: true where there is a word."""
        x = self.encoder(self.project(words), src_key_padding_mask=~mask)  # (B, L, D)
        return x, mask
