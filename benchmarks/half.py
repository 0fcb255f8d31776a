"""One training step in bfloat16 against float32, network by network, on this machine's CPU or GPU.

    python -m benchmarks.half

CPUs differ: those that multiply bfloat16 in tiles (AMX) gain where a network is dense convolutions,
others lose. The two take turns; figures are medians of the pairs' ratios with their range. On such
a CPU `train.py --amp True` trains in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.made import machine
from models import build_model
from training.run import half_precision
from training.tasks import TASKS, model_arch, recipe
from utils.parallel import set_memory, use_tensor_cores

SPEECH = (torch.rand(32, 1, 128, 160), torch.ones(32, 160, dtype=torch.bool))
FACE = (torch.rand(8, 8, 3, 96, 96),)
TEXT = (torch.rand(64, 24, 300), torch.ones(64, 24, dtype=torch.bool))
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple]] = {
    "speech, small-32": ("speech", {"speech_backbone": "small-32"}, SPEECH),
    "speech, small-32-wide": ("speech", {"speech_backbone": "small-32-wide"}, SPEECH),
    "speech, EfficientNet-B0": ("speech", {"speech_coeff": 0}, SPEECH),
    "face, small-32": ("face", {"face_backbone": "small-32", "face_lstm": False}, FACE),
    "text, two layers": ("text", {"text_layers": 2}, TEXT),
}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--turns", type=int, default=9, help="pairs of each network")
    flags.add_argument("--steps", type=int, default=3, help="of one turn")
    args = flags.parse_args()
    set_memory()
    use_tensor_cores(args.device)
    print(f"{machine(args.device)}\nbfloat16's time as a share of float32's, of one step")
    for name, network in NETWORKS.items():
        step = step_of(*network, args.device)
        seconds = [[timed(step, half, args) for half in (False, True)] for _ in range(args.turns)]
        shares = [half / full for full, half in seconds]
        full = statistics.median(full for full, _ in seconds)
        spread = f"{min(shares):.2f} - {max(shares):.2f}"
        print(f"{name:<26}{statistics.median(shares):.2f} ({spread}); float32 {1000 * full:.0f} ms")


def step_of(mode: str, changes: dict[str, Any], arrays: tuple, device: str) -> Callable:
    """step(half) -> None: forward, backward and the update of one made batch."""
    task, config = TASKS[mode], recipe(mode) | changes
    shapes = {mode: tuple(arrays[0].shape[1:])}
    model = build_model(**model_arch(task, config, 7, shapes)).to(device).train()
    given = {mode: tuple(each.to(device) for each in arrays)}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    kind, dtype = torch.device(device).type, half_precision(device)

    def step(half: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, dtype=dtype, enabled=half):
            loss = model(given).logits[task.main_head].float().square().mean()
        loss.backward()
        optimizer.step()

    for half in (False, True):
        step(half)  # kernels are chosen, memory is taken
    return step


def timed(step: Callable, half: bool, args: argparse.Namespace) -> float:
    """Seconds of a step."""
    wait = torch.cuda.synchronize if args.device != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(args.steps):
        step(half)
    wait()
    return (time.perf_counter() - start) / args.steps


if __name__ == "__main__":
    main()
