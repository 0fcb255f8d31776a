"""Convolutions with the values of nn.Conv2d, in less time: no copies to pad, quick gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class DepthwiseConv2d(nn.Conv2d):
    """5 x 5, stride 1, padding 2, one filter per channel: nn.Conv2d with another way to a gradient.

    oneDNN, which does torch's convolutions on CPUs, has quick code for the weights' gradient of
    depthwise filters that are up to three columns wide; for five it takes 3 to 6 times as long as
    for three and three, 5 % of a training step of EfficientNet-B0.
    """

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        slow = images.is_cpu and images.dtype == torch.float32 == weight.dtype
        if self.training and slow and not torch.is_autocast_enabled("cpu"):
            return _Depthwise.apply(images, weight)
        return super()._conv_forward(images, weight, bias)


class MirroredConv2d(nn.Conv2d):
    """For pictures that are mirrored left to right and top to bottom: its filter is mirrored, too.

    TensorFlow's "same" padding, which EfficientNet was trained with, is a pixel wider at the right
    and bottom where stride 2 meets an even size; nn.Conv2d would need a padded copy of its input.
    Mirrored it is wider at the left and top: what nn.Conv2d does with `padding = kernel // 2`.
    """

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(images, weight.flip(2, 3), bias)


class MirroredDepthwiseConv2d(MirroredConv2d, DepthwiseConv2d):
    """Both."""


QUICK = {nn.Conv2d: DepthwiseConv2d, MirroredConv2d: MirroredDepthwiseConv2d}


def mirror(trunk: nn.Module) -> None:
    """Turn convolutions with "same" padding into ones that make the mirrored result of mirrored
    pictures, `pictures.flip(2, 3)`; all weights stay as they are."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = tuple(side // 2 for side in layer.kernel_size)  # all are odd
            layer.__class__ = nn.Conv2d if layer.kernel_size == (1, 1) else MirroredConv2d


def quicken(trunk: nn.Module) -> None:
    """Turn the layers that it is made for into a DepthwiseConv2d; all values stay."""
    for layer in trunk.modules():
        if type(layer) in QUICK and layer.bias is None and layer.padding_mode == "zeros":
            alone = layer.groups == layer.in_channels == layer.out_channels
            shape = [*layer.kernel_size, *layer.stride, *layer.padding, *layer.dilation]
            if alone and shape == [5, 5, 1, 1, 2, 2, 1, 1]:
                layer.__class__ = QUICK[type(layer)]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        for_images = for_weight = None
        if ctx.needs_input_grad[0]:
            (for_images, _, _) = torch.ops.aten.convolution_backward(
                *(gradient, images, weight, None, [1, 1], [2, 2], [1, 1], False, [0, 0]),
                *(len(weight), [True, False, False]),
            )
        if ctx.needs_input_grad[1]:
            for_weight = weight_gradient(images, gradient)
        return for_images, for_weight


def weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Of a 5 x 5 depthwise convolution: its input and its output's gradient (N, C, H, W) ->
    (C, 1, 5, 5)."""
    count, channels, height, width = images.shape
    shape = (count, height + 4, width + 2, channels)
    size = shape[0] * shape[1] * shape[2] * shape[3]
    # Every row begins with its left border, two zeros; they are also the right border of the row
    # before, for the filter's columns 2 to 4, which see all of it shifted by two pixels.
    padded = images.new_zeros(size + 2 * channels)
    padded[:size].view(shape)[:, 2:-2, 2:] = images.permute(0, 2, 3, 1)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    weight = images.new_empty(channels, 1, 5, 5)
    for first in (0, 2):
        seen = padded[first * channels :][:size].view(shape).permute(0, 3, 1, 2)
        columns = conv2d_weight(seen, (channels, 1, 5, 3), gradient, groups=channels)
        weight[..., first : first + 3] = columns
    return weight
