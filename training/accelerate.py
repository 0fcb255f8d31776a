"""What makes a long training on a GPU quicker and a short one slower: it is for long ones."""

from __future__ import annotations

import sys

import torch
from torch import nn

from models.backbone import Backbone
from utils.errors import UsageError, in_short

# Compiling takes one to three minutes and saves 10 to 50 ms a step (docs/speed.md); the search for
# the quickest convolution takes 20 s for each size of a batch.
LONG_RUN = 5000  # steps
COMPILED = (Backbone, nn.TransformerEncoder)  # hundreds of small kernels in a row


def is_wanted(how: str, device: str, steps: int) -> bool:
    """Whether a run of so many steps is to compile its networks."""
    return how == "on" or (how == "auto" and device.startswith("cuda") and steps >= LONG_RUN)


def accelerate(model: nn.Module, how: str, device: str, steps: int, world: int = 1) -> bool:
    """Compile parts of a model in place (its weights keep their names), and let the device look for
    quick convolutions, where a run of so many steps earns it back. Whether it is compiled: a
    machine that cannot is told so, and asked for it by `on` it is a UsageError."""
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = steps >= LONG_RUN
    if not is_wanted(how, device, steps):
        return False
    if reason := why_not(device):
        if how == "on":
            raise UsageError(f"--compile on: torch cannot compile here ({reason})")
        print(f"not compiled, which costs time in so long a run: {reason}", file=sys.stderr)
        return False
    # batch norm over several processes breaks a compiled network into pieces
    kinds = COMPILED if world == 1 else nn.TransformerEncoder
    chosen = [module for module in model.modules() if isinstance(module, kinds)]
    for module in chosen:
        module.compile()
    return bool(chosen)


def why_not(device: str) -> str:
    """Why torch cannot compile something small on this device; nothing where it can."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:  # of the compiler, the driver, a library that is missing
        return in_short(error)
    return ""
