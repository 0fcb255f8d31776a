"""Mixup and cutmix on a whole batch: one permutation for all inputs and all targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CUT_AXES = {"speech": (2, 3), "face": (1, 3, 4)}  # (F, T), (T, H, W)
OTHER_AXES = (1,)  # words (L), own features (T) or (D)

Inputs = dict[str, tuple[Tensor, ...]]
Targets = dict[str, Tensor]


class Mixer:
    """With probability `mixup_prob` mixes clips, with `cutmix_prob` cuts boxes of one into another.

    When both come up, one of them is drawn. Off is a probability of 0.
    """

    def __init__(
        self, mixup_prob: float, mixup_alpha: float, cutmix_prob: float, cutmix_beta: float
    ):
        self.members = [
            (mixup_prob, mixup_alpha, mixup),
            (cutmix_prob, cutmix_beta, cutmix),
        ]

    def __call__(
        self, inputs: Inputs, targets: Targets, rng: np.random.Generator
    ) -> tuple[Inputs, Targets]:
        drawn = [member for member in self.members if rng.random() < member[0]]
        if not drawn:
            return inputs, targets
        _, alpha, mix = drawn[int(rng.integers(len(drawn)))]
        some = next(iter(targets.values()))
        order = torch.from_numpy(rng.permutation(len(some))).to(some.device)
        inputs, ratio = mix(inputs, float(rng.beta(alpha, alpha)), order, rng)
        mixed = {head: ratio * y + (1 - ratio) * y[order] for head, y in targets.items()}
        return inputs, mixed


def mixup(
    inputs: Inputs, ratio: float, order: Tensor, rng: np.random.Generator
) -> tuple[Inputs, float]:
    """ratio x clip + (1 - ratio) x other clip (arXiv 1710.09412), words position by position
    (wordMixup, arXiv 1905.08941); masks are joined."""

    def mix(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return tensor | tensor[order]
        return ratio * tensor + (1 - ratio) * tensor[order]

    return {name: tuple(map(mix, tensors)) for name, tensors in inputs.items()}, ratio


def cutmix(
    inputs: Inputs, ratio: float, order: Tensor, rng: np.random.Generator
) -> tuple[Inputs, float]:
    """Put a box of another clip into each clip (arXiv 1905.04899): frequency x time of speech,
    time x height x width of faces (cutmix3d), a span of words or of an own feature.

    The box covers about 1 - ratio; the returned ratio is what was really kept, mean over inputs.
    """
    mixed, kept = {}, []
    for name, tensors in inputs.items():
        axes = CUT_AXES.get(name, OTHER_AXES)
        box, share = draw_box([tensors[0].shape[axis] for axis in axes], 1 - ratio, rng)
        slices = [slice(None)] * tensors[0].dim()
        for axis, part in zip(axes, box, strict=True):
            slices[axis] = part
        mixed[name] = tuple(_paste(tensor, order, slices) for tensor in tensors)
        kept.append(1 - share)
    return mixed, float(np.mean(kept))


def _paste(tensor: Tensor, order: Tensor, slices: list[slice]) -> Tensor:
    where = tuple(slices[: tensor.dim()])  # a mask (B, L) has fewer axes than its words (B, L, D)
    pasted = tensor.clone()
    pasted[where] = tensor[order][where]
    return pasted


def draw_box(sizes: list[int], share: float, rng: np.random.Generator) -> tuple[list[slice], float]:
    """A box of about `share` of the volume with equal relative sides around a random centre,
    clipped at the borders; and the share that it really has."""
    side = share ** (1 / len(sizes))
    box, volume = [], 1.0
    for size in sizes:
        centre, half = rng.integers(size), side * size / 2
        first, last = max(0, round(centre - half)), min(size, round(centre + half))
        box.append(slice(first, last))
        volume *= (last - first) / size
    return box, volume


def draw_left_out(
    names: tuple[str, ...], clips: int, probability: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Modality dropout: {name: (clips,) bool}, true with `probability`; one input always stays."""
    left_out = rng.random((len(names), clips)) < probability
    nothing = left_out.all(axis=0)
    left_out[rng.integers(len(names), size=clips)[nothing], np.flatnonzero(nothing)] = False
    return {name: torch.from_numpy(row) for name, row in zip(names, left_out, strict=True)}
