"""What makes a long training on a GPU quicker and a short one slower: it is for long ones."""

from __future__ import annotations

import torch
from torch import nn

from models.backbone import Backbone
from utils.errors import UsageError

# Compiling takes one to three minutes and saves 10 to 50 ms a step (docs/speed.md); the search for
# the quickest convolution takes 20 s for each size of a batch.
LONG_RUN = 5000  # steps
COMPILED = (Backbone, nn.TransformerEncoder)  # hundreds of small kernels in a row


def is_compiled(how: str, device: str, steps: int) -> bool:
    """Whether a run of so many steps compiles its networks."""
    return how == "on" or (how == "auto" and device.startswith("cuda") and steps >= LONG_RUN)


def accelerate(model: nn.Module, how: str, device: str, steps: int) -> None:
    """Compile the parts of a model in place (its weights keep their names), and let the device look
    for quick convolutions, where a run of so many steps earns it back. UsageError without the
    compiler that this needs."""
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = steps >= LONG_RUN
    if not is_compiled(how, device, steps):
        return
    if how == "on":
        check_compiler(device)
    for module in model.modules():
        if isinstance(module, COMPILED):
            module.compile()


def check_compiler(device: str) -> None:
    """Compile something small, before the clips are read."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--compile on: torch cannot compile here ({reason})") from error
