"""The one loop that asks models about clips: validation, evaluation, prediction, submission."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.classifier import EmotionClassifier, Inputs
from models.fusion import Tokens
from training.data import to_device

Views = dict[str, list[Callable]]  # modality -> what test-time augmentation makes of its batch
Given = tuple[Inputs, dict[str, Tensor]]  # of a batch: its inputs, and which clips lack them


@torch.inference_mode()
def infer(
    models: Sequence[EmotionClassifier],
    loader: Any,
    device: str,
    read: Callable[[Any], Any],
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    title: str = "predicting",
) -> Iterator[tuple[Any, Any]]:
    """Each batch, and what `read` makes of what the models are given of it (`given_of`).

    `around` gives the context of each batch's computing, such as half precision.
    """
    for model in models:
        model.to(device).eval()
    few = len(loader) < 2 or None  # None: off a terminal
    for batch in progress(loader, desc=title, unit="batch", disable=few):
        with around():
            result = read(given_of(batch, device))
        yield batch, result


def given_of(batch: Any, device: str) -> Any:
    """What models are given of a batch: its inputs on the device, and which clips lack them,
    {modality: (B,) bool}. Of a batch in parts (evaluation/votes.py) that of each part, and None of
    one without clips."""
    if isinstance(batch, list):
        return [part and given_of(part, device) for part in batch]
    absent = {name: each.to(device) for name, each in batch.get("absent", {}).items()}
    return to_device(batch["inputs"], device), absent


def encode(model: EmotionClassifier, given: Given) -> dict[str, Tokens]:
    """The tokens of each modality."""
    inputs, absent = given
    return model.encode(inputs, absent)


def encode_views(model: EmotionClassifier, given: Given, views: Views) -> list[dict[str, Tokens]]:
    """The tokens under each view of one modality; the others are encoded once."""
    inputs, absent = given
    changed = [name for name in views if name in inputs]
    if not changed:
        return [encode(model, given)]
    (name,) = changed
    others = {other: each for other, each in inputs.items() if other != name}
    encoded = encode(model, (others, absent))
    first, *rest = inputs[name]
    return [encoded | encode(model, ({name: (view(first), *rest)}, absent)) for view in views[name]]


def progress(*args: Any, **options: Any) -> tqdm:
    """A progress bar on stderr; short ones vanish when they are done."""
    return tqdm(*args, file=sys.stderr, **{"leave": False, "dynamic_ncols": True, **options})
