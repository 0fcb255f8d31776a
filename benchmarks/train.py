"""Clips per second of a training: the original's way, ours, and the model on a ready batch.

    python -m benchmarks.train                    # a GPU: the recipe's sizes; a CPU: small ones
    python -m benchmarks.train --levers           # also: the original's way with one change each

a  the original's way: float32, NCHW, its swish and padding, memory given back to the system,
   views made one clip at a time and turned into floats by the loading processes, 38 words whatever
   the text, loss and accuracy read back at every step
b  ours, as train.py runs it
c  our model and optimizer on one ready batch, nothing checked or read: the ceiling

The ways take turns, so that a busy machine slows all of them; figures are medians of the turns,
with the ratios' range. `--clock process` counts the training process's own CPU seconds: on a CPU
that others use too, what a step costs when the loader keeps up (benchmarks/loader.py says whether
it does).
On a GPU also the share of its peak in dense bfloat16 that b reaches (FLOPs counted by torch).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import Conv2dDynamicSamePadding
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from benchmarks.made import SIZES, machine, make_trainer, settings_of, write_features
from models.backbone import Backbone
from models.convolutions import DepthwiseConv2d, MirroredConv2d, MirroredDepthwiseConv2d
from training.data import make_loader, to_device
from training.losses import multi_task_loss
from training.optim import centralize_gradients
from training.tasks import TASKS
from utils.parallel import GLIBC, KEEP, set_memory, trim_memory

CONVOLUTIONS = ("padding", "depthwise", "channels_last")
LEVERS = ("swish", *CONVOLUTIONS, "memory", "bytes", "words", "no_reading")
GPU_LEVERS = ("amp", "compile")
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, the makers' data sheets


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    flags.add_argument("--modes", default=",".join(TASKS))
    flags.add_argument("--size", choices=SIZES, default="recipe" if cuda else "small")
    flags.add_argument("--device", default="cuda" if cuda else "cpu")
    flags.add_argument("--workers", type=int, default=8 if cuda else 1)
    flags.add_argument("--seconds", type=float, default=3, help="of one turn of one way")
    flags.add_argument("--turns", type=int, default=9)
    flags.add_argument("--clock", choices=CLOCKS, default="wall")
    flags.add_argument("--levers", action="store_true")
    args = flags.parse_args()
    workers = f"{args.workers} loading processes, {args.clock} clock"
    print(f"{machine(args.device)}; {args.size} sizes, {workers}\n", flush=True)
    header = "mode         a clips/s  b clips/s  c clips/s  b/a (turns)          b/c (turns)       "
    print(header + "  of the peak" * (args.device != "cpu"), flush=True)
    for mode in args.modes.split(","):
        measure_mode(mode, args)


def measure_mode(mode: str, args: argparse.Namespace) -> None:
    config = settings_of(mode, args.size, args.device)
    clips = 4 * config["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), mode, clips)
        ways: dict[str, Callable[[], int]] = {
            "a": original(mode, config, features, args, ()),
            "b": ours(mode, config, features, args),
            "c": ready(mode, config, features, args),
        }
        rates = take_turns(ways, args)
        line = f"{mode:<12}" + "".join(f"{statistics.median(rates[way]):>11.1f}" for way in "abc")
        line += "  " + "  ".join(f"{ratios(rates['b'], rates[way]):<19}" for way in "ac")
        if args.device != "cpu":
            b = statistics.median(rates["b"])
            line += f"{share_of_peak(mode, config, features, args, b):>12.1%}"
        print(line, flush=True)
        if args.levers:
            levers = LEVERS + GPU_LEVERS * (args.device != "cpu")
            changed = {each: original(mode, config, features, args, (each,)) for each in levers}
            turns = take_turns({"a": ways["a"], **changed}, args)
            for name in levers:
                print(f"    a with {name:<20}{ratios(turns[name], turns['a'])} of a", flush=True)


def ratios(rates: list[float], others: list[float]) -> str:
    """Median of the turns' ratios, and the least and the greatest."""
    each = [rate / other for rate, other in zip(rates, others, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} - {max(each):.2f})"


def take_turns(
    ways: dict[str, Callable[[], int]], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Clips per second of each way in each turn."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.turns + 1):
        for name, step in ways.items():
            rate = rate_of(step, args.seconds if turn else 0.0, args.device, CLOCKS[args.clock])
            if turn:  # the first is to warm up
                rates[name].append(rate)
    return rates


def rate_of(
    step: Callable[[], int],
    seconds: float,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Clips per second of a function that does one step and says of how many clips."""
    trim_memory()  # what another way kept is not this one's to use
    clips = step() * 0
    wait(device)
    start = clock()
    while True:
        clips += step()
        if clock() - start >= seconds:
            wait(device)
            return clips / (clock() - start)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def batches(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Epoch after epoch without end."""
    epoch = 0
    while True:
        epoch += 1
        loader.batch_sampler.set_epoch(epoch)
        yield from loader


class Floats(torch.utils.data.Dataset):
    """Clips whose pictures are floats when they leave the loading process."""

    def __init__(self, clips: Any):
        self.clips, self.config, self.training = clips, clips.config, clips.training

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        item = self.clips[key]
        item["inputs"] = to_device(item["inputs"], "cpu")
        return item


def original(
    mode: str, config: dict[str, Any], features: Any, args: Any, levers: tuple[str, ...]
) -> Callable[[], int]:
    """One step of the original's way, with some of its parts changed for ours."""
    amp = config["amp"] and "amp" in levers
    trainer, clips = make_trainer(mode, config | {"amp": amp}, features, args.device)
    for module in trainer.model.modules():
        if isinstance(module, Backbone):
            module.trunk.set_swish(memory_efficient="swish" not in levers)
            if "depthwise" not in levers:
                slow_down(module.trunk)
            if "padding" not in levers:
                pad_before_convolutions(module.trunk)
            order = torch.channels_last if "channels_last" in levers else torch.contiguous_format
            module.to(memory_format=order)
            module.forward = forward_of(module.trunk, order, mirrored="padding" in levers)
    optimizer = trainer.optimizer
    model = torch.compile(trainer.model) if "compile" in levers else trainer.model
    data = clips if "bytes" in levers else Floats(clips)
    stream = batches(make_loader(data, config["batch_size"], args.workers, args.device))

    def step() -> int:
        set_memory(KEEP if "memory" in levers else GLIBC)
        batch = next(stream)
        inputs = batch["inputs"] if "words" in levers else padded(batch["inputs"], config)
        rng = np.random.default_rng(0)
        inputs, targets = trainer.mixer(to_device(inputs, args.device), trainer.targets(batch), rng)
        loss, logits = descend(trainer, model, optimizer, inputs, targets)
        if "no_reading" not in levers:
            right = logits.argmax(dim=1) == targets[trainer.task.answer].argmax(dim=1)
            loss.item(), right.float().mean().item()
        return len(batch["clip_id"])

    return step


def padded(inputs: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """To `max_words` whatever the text, as the original's loading processes do."""
    if "text" not in inputs:
        return inputs
    words, mask = inputs["text"]
    more = config["max_words"] - words.shape[1]
    return inputs | {"text": [pad(words, (0, 0, 0, more)), pad(mask, (0, more))]}


def slow_down(trunk: torch.nn.Module) -> None:
    """The gradient of wide depthwise filters as torch computes it."""
    for layer in trunk.modules():
        if type(layer) is MirroredDepthwiseConv2d:
            layer.__class__ = MirroredConv2d


def pad_before_convolutions(trunk: torch.nn.Module) -> None:
    """As the library has it, on pictures that are not mirrored."""
    for layer in trunk.modules():
        if type(layer) is MirroredDepthwiseConv2d:
            layer.__class__ = DepthwiseConv2d
        elif isinstance(layer, torch.nn.Conv2d):
            layer.__class__, layer.padding = Conv2dDynamicSamePadding, (0, 0)


def forward_of(
    trunk: EfficientNet, order: torch.memory_format, mirrored: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(images: torch.Tensor) -> torch.Tensor:
        images = images.flip(2, 3) if mirrored else images
        features = trunk.extract_features(images.contiguous(memory_format=order))
        return features.flip(2, 3) if mirrored else features

    return forward


def descend(trainer: Any, model: Any, optimizer: Any, inputs: Any, targets: Any) -> Any:
    """Forward, backward, update: what no way of training can leave out."""
    with trainer.autocast():
        logits = model(inputs)
        loss = multi_task_loss(logits, targets, trainer.config["lam"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if trainer.config["optim"] == "ranger":
        centralize_gradients(optimizer)
    optimizer.step()
    return loss, logits[trainer.task.answer]


def ours(mode: str, config: dict[str, Any], features: Any, args: Any) -> Callable[[], int]:
    trainer, clips = make_trainer(mode, config, features, args.device)
    stream = batches(make_loader(clips, config["batch_size"], args.workers, args.device))

    def step() -> int:
        set_memory()
        batch = next(stream)
        trainer.train_step(batch)
        return len(batch["clip_id"])

    return step


def ready(mode: str, config: dict[str, Any], features: Any, args: Any) -> Callable[[], int]:
    trainer, clips = make_trainer(mode, config, features, args.device)
    batch = next(batches(make_loader(clips, config["batch_size"], 0, args.device)))
    inputs = to_device(batch["inputs"], args.device)
    targets = trainer.targets(batch)

    def step() -> int:
        set_memory()
        descend(trainer, trainer.model, trainer.optimizer, inputs, targets)
        return len(batch["clip_id"])

    return step


def share_of_peak(mode: str, config: dict, features: Any, args: Any, rate: float) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    step = ready(mode, config, features, args)
    with FlopCounterMode(display=False) as counter:
        clips = step()
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAKS.items() if key in name), float("nan"))
    return counter.get_total_flops() / clips * rate / peak


if __name__ == "__main__":
    sys.exit(main())
