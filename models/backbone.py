"""Image backbones: (B, C, H, W) -> feature map (B, D, H', W'), without the classifier on top."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import VALID_MODELS
from efficientnet_pytorch.utils import url_map
from torch import Tensor, nn

Reader = Callable[[Path], dict[str, Tensor]]
# name -> stride of the first layer, and how many maps it makes
SMALL = {
    "small-16": (1, 16),
    "small-16-wide": (1, 32),
    "small-32": (2, 16),
    "small-32-wide": (2, 32),
}


class Backbone(nn.Module):
    """A backbone by name: `efficientnet-b0` to `-b7`, `timm:NAME` for any model of timm that makes
    maps (B, D, H', W'), or a `SmallBackbone`: `small-16` for faces of about 48 pixels, `small-32`
    for log-mels and larger faces, either with -wide for twice the maps. ValueError for others.

    `trunk`: the network itself; the weights in checkpoints are named after it.
    `stride`: how many pixels of the image one column of the map stands for. Images are in
    channels-last order inside: 1.3 to 3 times as fast on CPUs.
    """

    def __init__(self, name: str, in_channels: int):
        super().__init__()
        self.name = name
        if name.startswith("timm:"):
            self.trunk, self.stride = timm_backbone(name.removeprefix("timm:"), in_channels)
            self.out_channels = self.trunk.num_features
        elif name in SMALL:
            stride, width = SMALL[name]
            self.trunk = SmallBackbone(stride, width)
            self.out_channels, self.stride = self.trunk.num_features, 16 * stride
        elif name not in VALID_MODELS:
            hint = f"did you mean timm:{name}?" if timm_has(name) else "or timm:NAME"
            names = ", ".join(SMALL)
            raise ValueError(f"{name}: expected efficientnet-b0 to -b7, {names}; {hint}")
        else:
            # image_size=None pads for the size that arrives; the default pads for squares only
            self.trunk = EfficientNet.from_name(name, in_channels=in_channels, image_size=None)
            self.trunk.set_swish(memory_efficient=False)  # same values, 1.7x as fast in training
            self.out_channels, self.stride = self.trunk._fc.in_features, 32
            self.trunk._fc = nn.Identity()  # a layer without a gradient would stop DDP
            pad_without_copies(self.trunk)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if isinstance(self.trunk, EfficientNet):
            return self.trunk.extract_features(images)  # (B, D, H', W')
        return self.trunk.forward_features(images)


class SmallBackbone(nn.Module):
    """Residual convolutions for corpora of hundreds to ten thousands of clips, (B, C, H, W) ->
    (B, 8 * width, H / 16 / stride, W / 16 / stride): 0.2 million weights at width 16, 0.8 million
    at 32. A picture of 48 pixels keeps a map of 3 x 3 at stride 1, where networks for photographs
    keep one point. Colours count as grey: so what was learnt from grey pictures holds."""

    def __init__(self, stride: int, width: int):
        super().__init__()
        self.num_features = 8 * width
        self.layers = nn.Sequential(
            *convolution(1, width, stride),
            nn.MaxPool2d(2),
            *convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            *convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            Residual(4 * width),
            *convolution(4 * width, self.num_features),
            nn.MaxPool2d(2),
        )

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layers(images.mean(dim=1, keepdim=True))


class Residual(nn.Module):
    """What two convolutions add to their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(channels, channels), *convolution(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SamePadding(nn.Conv2d):
    """Stride 2 with TensorFlow's "same" padding, which EfficientNet was trained with: where the
    size is even, one pixel less at the left and top than `kernel // 2`."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        half = self.kernel_size[0] // 2
        sides = (half - 1 + width % 2, half, half - 1 + height % 2, half)
        return self._conv_forward(F.pad(images, sides), self.weight, self.bias)


def pad_without_copies(network: nn.Module) -> None:
    """At stride 1 "same" padding is the ordinary one: let the convolution pad, not a copy of its
    input that the library makes. All values stay as they are (tested)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            plain = max(layer.stride) == 1
            layer.__class__ = nn.Conv2d if plain else SamePadding
            if plain:
                layer.padding = tuple(side // 2 for side in layer.kernel_size)  # all are odd


def timm_has(name: str) -> bool:
    import timm

    return timm.is_model(name)


def timm_backbone(name: str, in_channels: int) -> tuple[nn.Module, int]:
    """A model of timm with only the layers that its feature map needs (DDP stops at a layer that
    gets no gradient), and its stride. Names that would be looked up on the internet (hf-hub:...)
    are refused."""
    import timm

    if ":" in name:
        raise ValueError(f"timm:{name} is no model of timm itself")
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), 3))
        hint = f"did you mean {near}?" if near else "timm.list_models() names all"
        raise ValueError(f"timm has no {name}: {hint}")
    network = timm.create_model(name, in_chans=in_channels, num_classes=0, global_pool="").eval()
    used: set[nn.Module] = set()
    modules = tuple(network.modules())
    handles = [each.register_forward_hook(lambda own, *_: used.add(own)) for each in modules]
    with torch.no_grad():
        shape = tuple(network.forward_features(torch.zeros(1, in_channels, 64, 64)).shape)
    for handle in handles:
        handle.remove()
    if len(shape) != 4 or shape[1] != network.num_features:
        maps = f"(B, {network.num_features}, H, W)"
        raise ValueError(f"timm:{name} gives {shape} for an image, not a feature map {maps}")
    for parent in modules:
        for child, module in parent.named_children():
            if used.isdisjoint(module.modules()):
                setattr(parent, child, nn.Identity())
    return network.train(), 64 // shape[3]


def read_file(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def load_pretrained(backbone: Backbone, source: str, read: Reader = read_file) -> str:
    """Fill the backbone with ImageNet weights; return where they came from.

    `source`: `hub` (the published weights, from torch's cache or the internet), a .pth file, or a
    folder with a file `<name>*.pth`. The classifier is left out; for one-channel inputs the
    first layer's weights are summed over the colours, so that a grey picture gives the same output.
    `read` reads a file: torch alone runs no code of it, but takes the memory that it asks for.
    Raises FileNotFoundError, URLError (an OSError) or ValueError when the weights do not fit.
    """
    place, weights = _read_weights(backbone, source, read)
    expected = backbone.trunk.state_dict()
    stem = next(iter(expected))  # both libraries list the first convolution first
    weights = {key: value for key, value in weights.items() if key in expected}
    if stem in weights and expected[stem].shape[1] == 1:
        weights[stem] = weights[stem].sum(dim=1, keepdim=True)
    misfits = [
        key
        for key, value in expected.items()
        if key not in weights or weights[key].shape != value.shape
    ]
    if misfits:
        raise ValueError(
            f"{place} does not hold the weights of {backbone.name}: "
            f"{len(misfits)} of {len(expected)} tensors are missing or have another shape, "
            f"the first is {misfits[0]}"
        )
    backbone.trunk.load_state_dict(weights)
    return place


def _read_weights(backbone: Backbone, source: str, read: Reader) -> tuple[str, dict[str, Tensor]]:
    if source != "hub":
        path = Path(source)
        if path.is_dir():
            name = backbone.name.removeprefix("timm:")
            path = next(iter(sorted(path.glob(f"{name}*.pth"))), path / f"{name}.pth")
        return str(path), read(path)
    if backbone.name.startswith("timm:"):
        import timm

        name = backbone.name.removeprefix("timm:")
        return f"timm hub {name}", timm.create_model(name, pretrained=True).state_dict()
    url = url_map[backbone.name]
    # the name ends with the first digits of the file's sha256
    return url, torch.hub.load_state_dict_from_url(
        url, map_location="cpu", weights_only=True, check_hash=True
    )


def set_batchnorm_momentum(model: nn.Module, momentum: float) -> None:
    """Weight of the newest batch in the running statistics of every batch-norm layer."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
