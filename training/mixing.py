"""Mixup and cutmix on a whole batch: one permutation for all inputs and all targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.classifier import Inputs
from training.modalities import modality

Targets = dict[str, Tensor]


class Mixer:
    """With probability `mixup_prob` mixes clips, with `cutmix_prob` cuts boxes of one into another.

    When both come up, one of them is drawn. Off is a probability of 0.
    """

    def __init__(
        self, mixup_prob: float, mixup_alpha: float, cutmix_prob: float, cutmix_beta: float
    ):
        self.members = [(mixup_prob, mixup_alpha, mixup), (cutmix_prob, cutmix_beta, cutmix)]

    def __call__(
        self, inputs: Inputs, targets: Targets, rng: np.random.Generator
    ) -> tuple[Inputs, Targets, Tensor | None]:
        """Inputs and targets, and with which clip of the batch each was mixed, (B,) on the CPU."""
        drawn = [member for member in self.members if rng.random() < member[0]]
        if not drawn:
            return inputs, targets, None
        _, alpha, mix = drawn[int(rng.integers(len(drawn)))]
        some = next(iter(targets.values()))
        partners = torch.from_numpy(rng.permutation(len(some)))
        order = partners.to(some.device, non_blocking=True)
        inputs, kept = mix(inputs, float(rng.beta(alpha, alpha)), order, rng)
        kept = kept.unsqueeze(1)  # (B, 1)
        mixed = {head: kept * y + (1 - kept) * y[order] for head, y in targets.items()}
        return inputs, mixed, partners


def mixup(
    inputs: Inputs, ratio: float, order: Tensor, rng: np.random.Generator
) -> tuple[Inputs, Tensor]:
    """ratio x clip + (1 - ratio) x other clip (arXiv 1710.09412), words position by position
    (wordMixup, arXiv 1905.08941); masks are joined. And the share kept of each clip (B,)."""

    def mix(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return tensor | tensor[order]
        return ratio * tensor + (1 - ratio) * tensor[order]

    mixed = {name: tuple(mix(tensor) for tensor in given) for name, given in inputs.items()}
    return mixed, torch.full((len(order),), ratio, device=order.device)


def cutmix(
    inputs: Inputs, ratio: float, order: Tensor, rng: np.random.Generator
) -> tuple[Inputs, Tensor]:
    """Put a box of another clip into each clip (arXiv 1905.04899): frequency x time of sound,
    time x height x width of faces (cutmix3d), a span of words or of a custom feature.

    The box covers about 1 - ratio of what is real in the clip, never its padding, and takes the
    same part of the other clip. The share (B,) is what was really kept, mean over inputs.
    """
    mixed, kept = {}, []
    for name, tensors in inputs.items():
        axes = modality(name).box_axes(tensors[0].dim())
        mixed[name], share = cut(tensors, axes, 1 - ratio, order, rng)
        kept.append(1 - share)
    return mixed, torch.stack(kept).mean(dim=0)


def cut(
    tensors: tuple[Tensor, ...],
    axes: list[int],
    share: float,
    order: Tensor,
    rng: np.random.Generator,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """One modality's batch with a box over `axes` pasted in, the first of them along the time; and
    the share (B,) of each clip that the box covers."""
    first_input, time, clips = tensors[0], axes[0], len(order)
    others = [first_input.shape[axis] for axis in axes[1:]]
    span, box, other_share = draw_box(share, others, rng)
    steps = torch.arange(first_input.shape[time], device=order.device)  # (T,)
    if len(tensors) == 2:  # the second is the mask of what is real
        real = tensors[1]
    else:
        real = torch.ones(clips, len(steps), dtype=torch.bool, device=order.device)
    begin = real.int().argmax(dim=1, keepdim=True)  # (B, 1)
    length = real.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    low, high = ((bound * length).round() + begin for bound in span)
    inside = (steps >= low) & (steps < high)  # (B, T)
    place = (steps - begin) * length[order] // length  # (B, T) in the other clip; in whole numbers
    source = (begin[order] + place).clamp(0, len(steps) - 1)  # (B, T)
    pasted = []
    for tensor in tensors:
        if tensor.dtype == torch.bool:  # each clip keeps its length
            pasted.append(tensor)
            continue
        shape = [1] * tensor.dim()
        shape[0], shape[time] = clips, len(steps)
        at = source.view(shape).expand_as(tensor)
        other = tensor[order].gather(time, at)
        where = inside.view(shape).expand_as(tensor).clone()
        for axis, (start, end) in zip(axes[1:], box, strict=True):
            where.narrow(axis, 0, start).fill_(False)
            where.narrow(axis, end, tensor.shape[axis] - end).fill_(False)
        pasted.append(torch.where(where, other, tensor))
    return tuple(pasted), inside.sum(dim=1) / length.squeeze(1) * other_share


def draw_box(
    share: float, sizes: list[int], rng: np.random.Generator
) -> tuple[tuple[float, float], list[tuple[int, int]], float]:
    """A box of about `share` of the volume with equal relative sides around a random centre,
    clipped at the borders: its span of the time (0 to 1), its (start, end) on axes of these sizes,
    and the share of those axes that it covers."""
    side = share ** (1 / (1 + len(sizes)))
    centre = rng.random()
    span = (max(0.0, centre - side / 2), min(1.0, centre + side / 2))
    box, covered = [], 1.0
    for size in sizes:
        middle, half = rng.integers(size), side * size / 2
        start, end = max(0, round(middle - half)), min(size, round(middle + half))
        box.append((start, end))
        covered *= (end - start) / size
    return span, box, covered


def draw_left_out(
    names: tuple[str, ...], clips: int, probability: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Modality dropout: {name: (clips,) bool}, true with `probability`; one input always stays."""
    left_out = rng.random((len(names), clips)) < probability
    nothing = left_out.all(axis=0)
    left_out[rng.integers(len(names), size=clips)[nothing], np.flatnonzero(nothing)] = False
    return {name: torch.from_numpy(row) for name, row in zip(names, left_out, strict=True)}
