"""Tensors in, logits out. `build_model(**arch)` makes every model of the project.

`arch` is plain data and travels in every checkpoint:
{"encoders": {"speech": {"type": "AttnCNN", "backbone": "efficientnet-b4"}, ...},
 "heads": {"integrated": ["speech", "face", "text"], "speech": ["speech"], ...},
 "n_classes": 7, "learn_absent": false}
"""

from __future__ import annotations

from models.attn_cnn import AttnCNN
from models.clstm import CLSTM
from models.features import SequenceEncoder, VectorEncoder
from models.fusion import EmotionClassifier
from models.transformer import TextTransformer

ENCODERS = {
    encoder.__name__: encoder
    for encoder in (AttnCNN, CLSTM, TextTransformer, VectorEncoder, SequenceEncoder)
}


def build_model(
    encoders: dict[str, dict],
    heads: dict[str, list[str]],
    n_classes: int,
    learn_absent: bool = False,
) -> EmotionClassifier:
    """The model that `arch` describes, with fresh weights."""
    built = {}
    for modality, options in encoders.items():
        options = dict(options)
        built[modality] = ENCODERS[options.pop("type")](**options)
    return EmotionClassifier(built, heads, n_classes, learn_absent)
