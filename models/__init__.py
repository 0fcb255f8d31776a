"""Tensors in, logits out. `build_model(**arch)` makes every model of the project.

`arch` is plain data and travels in every checkpoint:
{"encoders": {"speech": {"type": "AttnCNN", "backbone": "efficientnet-b4"}, ...},
 "heads": {"integrated": ["speech", "face", "text"], "speech": ["speech"], ...},
 "n_classes": 7, "fusion": "concat", "learn_missing": false}

An encoder is a module with `token_dim` and `pooling` whose `forward` gives tokens (B, T, token_dim)
and their mask (B, T), true where a token is real; a new one gets a line in ENCODERS.
"""

from __future__ import annotations

from typing import Any

from models.attn_cnn import AttnCNN
from models.classifier import EmotionClassifier
from models.clstm import CLSTM
from models.features import SequenceEncoder, VectorEncoder
from models.transformer import TextTransformer

ENCODERS: dict[str, Any] = {
    encoder.__name__: encoder
    for encoder in (AttnCNN, CLSTM, TextTransformer, VectorEncoder, SequenceEncoder)
}


def build_model(
    encoders: dict[str, dict],
    heads: dict[str, list[str]],
    n_classes: int,
    fusion: str = "concat",
    learn_missing: bool = False,
) -> EmotionClassifier:
    """The model that `arch` describes, with fresh weights."""
    built = {}
    for modality, options in encoders.items():
        options = dict(options)
        built[modality] = ENCODERS[options.pop("type")](**options)
    return EmotionClassifier(built, heads, n_classes, fusion, learn_missing)
