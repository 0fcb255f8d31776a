"""Your own clips -> predictions, pictures, a page.

from inference import Predictor
Predictor(["logs/multimodal/x"])("clip.mp4").label
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`Predictor`, which loads torch, only when it is asked for."""
    if name != "Predictor":
        raise AttributeError(f"module 'inference' has no attribute {name!r}")
    from inference.predictor import Predictor

    return Predictor
