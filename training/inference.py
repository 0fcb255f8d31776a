"""The one loop that asks a model about clips: validation, evaluation, prediction.

A submission asks several models at once: evaluation/votes.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.classifier import EmotionClassifier, Inputs
from models.fusion import Tokens
from training.data import to_device

Views = dict[str, list[Callable]]  # modality -> what test-time augmentation makes of its batch
ONE_VIEW: Views = {}


@torch.inference_mode()
def infer(
    model: EmotionClassifier,
    loader: Any,
    device: str,
    read: Callable[[list[dict[str, Tokens]]], Any],
    views: Views = ONE_VIEW,
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    title: str = "predicting",
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each batch, and what `read` makes of its tokens {modality: Tokens}, one such for each view.

    `around` gives the context of each batch's computing, such as half precision.
    """
    model.eval()
    few = len(loader) < 2 or None  # None: off a terminal
    for batch in progress(loader, desc=title, unit="batch", disable=few):
        with around():
            inputs, absent = inputs_of(batch, device)
            result = read(encode_views(model, inputs, views, absent))
        yield batch, result


def inputs_of(batch: dict[str, Any], device: str) -> tuple[Inputs, dict[str, Tensor]]:
    """What a model sees of a batch, and which clips lack it, {modality: (B,) bool}."""
    absent = {name: each.to(device) for name, each in batch.get("absent", {}).items()}
    return to_device(batch["inputs"], device), absent


def encode_views(
    model: EmotionClassifier,
    inputs: Inputs,
    views: Views = ONE_VIEW,
    absent: dict[str, Tensor] | None = None,
) -> list[dict[str, Tokens]]:
    """The tokens under each view of one modality; the others are encoded once. `absent`
    {modality: (B,) bool}: clips that lack it."""
    encode = partial(model.encode, absent=absent) if absent else model.encode
    changed = [name for name in views if name in inputs]
    if not changed:
        return [encode(inputs)]
    (name,) = changed
    others = {other: given for other, given in inputs.items() if other != name}
    encoded = encode(others)
    first, *rest = inputs[name]
    return [encoded | encode({name: (view(first), *rest)}) for view in views[name]]


def progress(*args: Any, **options: Any) -> tqdm:
    """A progress bar on stderr; short ones vanish when they are done."""
    return tqdm(*args, file=sys.stderr, **{"leave": False, "dynamic_ncols": True, **options})
