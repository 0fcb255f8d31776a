"""Clips per second of a training: the original's way, ours, and the model on a ready batch.

    python -m benchmarks.train                    # a GPU: the recipe's sizes; a CPU: small ones
    python -m benchmarks.train --levers           # also: the original's way with one change each

a  the original's way: float32, NCHW, its swish and padding, memory given back to the system,
   clips augmented one at a time and turned into floats by the loading processes, 38 words whatever
   the text, weights updated one after the other, loss and accuracy read back at every step
b  ours, as train.py runs it: the loop of training/loop.py, its loader and all
c  our model and optimizer on one ready batch, nothing checked or read: the ceiling

The ways take turns, so that a busy machine slows all of them; figures are medians of the turns,
with the ratios' range. `--clock process` counts the training process's own CPU seconds: on a CPU
that others use too, what a step costs when the loader keeps up (benchmarks/loader.py says whether
it does).
On a GPU also the share of its peak in dense bfloat16 that b reaches (FLOPs counted by torch).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_optimizer
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import Conv2dDynamicSamePadding
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from benchmarks.made import SIZES, machine, make_run, settings_of, write_features
from benchmarks.original import OneByOne
from models.backbone import Backbone
from training.data import make_loader, to_device
from training.loop import fit
from training.run import Run
from training.tasks import TASKS
from utils.distributed import Silent
from utils.errors import Interrupted
from utils.parallel import GLIBC, KEEP, set_memory, trim_memory, use_tensor_cores

Way = Callable[[float], float]  # seconds of a turn -> clips per second
LEVERS = (
    *("swish", "padding", "channels_last", "memory", "bytes", "words", "no_reading"),
    *("augmentation", "optimizer"),
)
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
    use_tensor_cores(args.device)  # as train.py does
    workers = f"{args.workers} loading processes, {args.clock} clock"
    print(f"{machine(args.device)}; {args.size} sizes, {workers}\n", flush=True)
    header = "mode         a clips/s  b clips/s  c clips/s  b/a (turns)          b/c (turns)       "
    if args.device != "cpu":
        header += "  of the peak"
    print(header, flush=True)
    for mode in args.modes.split(","):
        measure_mode(mode, args)


def measure_mode(mode: str, args: argparse.Namespace) -> None:
    config = settings_of(mode, args.size, args.device)
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), mode, config["batch_size"])

        def make() -> Run:
            return make_run(config, features, args.device, args.workers)

        ways = {"a": original(make(), args, ()), "b": ours(make(), args), "c": ready(make(), args)}
        rates = take_turns(ways, args)
        line = f"{mode:<12}" + "".join(f"{statistics.median(rates[way]):>11.1f}" for way in "abc")
        line += "  " + "  ".join(f"{ratios(rates['b'], rates[way]):<19}" for way in "ac")
        if args.device != "cpu":
            line += f"{share_of_peak(make(), statistics.median(rates['b'])):>12.1%}"
        print(line, flush=True)
        if args.levers:
            levers = LEVERS if args.device == "cpu" else LEVERS + GPU_LEVERS
            changed = {each: original(make(), args, (each,)) for each in levers}
            turns = take_turns({"a": ways["a"], **changed}, args)
            for name in levers:
                print(f"    a with {name:<20}{ratios(turns[name], turns['a'])} of a", flush=True)


def ratios(rates: list[float], others: list[float]) -> str:
    """Median of the turns' ratios, and the least and the greatest."""
    each = [rate / other for rate, other in zip(rates, others, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} - {max(each):.2f})"


def take_turns(ways: dict[str, Way], args: argparse.Namespace) -> dict[str, list[float]]:
    """Clips per second of each way in each turn."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.turns + 1):
        for name, way in ways.items():
            trim_memory()  # what another way kept is not this one's to use
            rate = way(args.seconds if turn else 0.0)
            if turn:  # the first is to warm up
                rates[name].append(rate)
    return rates


class Turn(Silent):
    """The clock of one turn, asked behind each step; the first one is not counted. It stands in
    for the record and the stop of training/loop.py."""

    def __init__(self, seconds: float, device: str, clock: Callable[[], float]):
        self.seconds, self.device, self.clock = seconds, device, clock
        self.signum, self.steps, self.began, self.took = 0, -1, 0.0, 0.0

    def requested(self) -> bool:
        return False

    def is_due(self) -> bool:
        """Count a step, and end the turn when its time is over."""
        if self.signum:
            return False
        self.steps += 1
        if self.steps == 0:
            self.wait()
            self.began = self.clock()
        elif self.clock() - self.began >= self.seconds:
            self.wait()
            self.took, self.signum = self.clock() - self.began, signal.SIGTERM
        return False

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def repeated(step: Callable[[], int], args: argparse.Namespace) -> Way:
    """A way that repeats a function which does one step and says of how many clips."""

    def way(seconds: float) -> float:
        turn = Turn(seconds, args.device, CLOCKS[args.clock])
        clips = 0
        while not turn.signum:
            clips = step()
            turn.is_due()
        return turn.steps * clips / turn.took

    return way


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def ours(run: Run, args: argparse.Namespace) -> Way:
    def way(seconds: float) -> float:
        set_memory()
        turn = Turn(seconds, args.device, CLOCKS[args.clock])
        with contextlib.suppress(Interrupted), quiet():
            fit(run, turn, turn)  # type: ignore[arg-type]
        return turn.steps * run.config["batch_size"] / turn.took

    return way


def batches(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Epoch after epoch without end."""
    epoch = 0
    while True:
        epoch += 1
        loader.batch_sampler.set_epoch(epoch)
        yield from loader


def original(run: Run, args: argparse.Namespace, levers: tuple[str, ...]) -> Way:
    """The original's way, with some of its parts changed for ours."""
    run.config["amp"] = run.config["amp"] and "amp" in levers
    if "optimizer" not in levers and run.config["optim"] == "ranger":
        run.optimizer = one_by_one(run.trained, run.config)
    for module in run.model.modules():
        if isinstance(module, Backbone) and isinstance(module.trunk, EfficientNet):
            module.trunk.set_swish(memory_efficient="swish" not in levers)
            if "padding" not in levers:
                pad_before_convolutions(module.trunk)
            order = torch.channels_last if "channels_last" in levers else torch.contiguous_format
            module.to(memory_format=order)
            module.forward = forward_of(module.trunk, order)  # type: ignore[assignment, method-assign]
    model = torch.compile(run.model) if "compile" in levers else run.model
    own = run.train_loader.dataset
    clips = OneByOne(own, "augmentation" not in levers, "bytes" in levers)
    stream = batches(make_loader(clips, run.config["batch_size"], args.workers, args.device))

    def step() -> int:
        set_memory(KEEP if "memory" in levers else GLIBC)
        batch = next(stream)
        inputs = batch["inputs"] if "words" in levers else padded(batch["inputs"], run.config)
        rng = np.random.default_rng(0)
        inputs = run.augmented(batch, to_device(inputs, args.device))
        inputs, targets, _ = run.mixer(inputs, run.targets(batch), rng)
        loss, logits = descend(run, model, inputs, targets)
        if "no_reading" not in levers:
            right = logits.argmax(dim=1) == targets[run.task.main_head].argmax(dim=1)
            loss.item(), right.float().mean().item()
        return len(batch["clip_id"])

    return repeated(step, args)


def one_by_one(parameters: list, config: dict[str, Any]) -> torch.optim.Optimizer:
    """torch_optimizer's Ranger, which updates one weight after the other."""
    warnings.filterwarnings("ignore", message="This overload of add")  # of the library's own
    rates = {"lr": config["learning_rate"], "weight_decay": config["weight_decay"]}
    optimizer = torch_optimizer.Ranger(parameters, **rates)

    def centralize(*_: Any) -> None:
        for each in parameters:
            if each.dim() > 1:
                each.grad -= each.grad.mean(dim=tuple(range(1, each.dim())), keepdim=True)

    optimizer.register_step_pre_hook(centralize)
    return optimizer


def padded(inputs: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """To `max_words` whatever the text, as the original's loading processes do."""
    if "text" not in inputs:
        return inputs
    words, mask = inputs["text"]
    more = config["max_words"] - words.shape[1]
    return inputs | {"text": [pad(words, (0, 0, 0, more)), pad(mask, (0, more))]}


def pad_before_convolutions(backbone: torch.nn.Module) -> None:
    """As the library has it."""
    for layer in backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.__class__, layer.padding = Conv2dDynamicSamePadding, (0, 0)


def forward_of(backbone: EfficientNet, order: torch.memory_format) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        return backbone.extract_features(images.contiguous(memory_format=order))

    return forward


def descend(run: Run, model: Any, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Forward, backward, update: what no way of training can leave out."""
    with run.autocast():
        prediction = model(inputs)
        loss = run.loss(prediction, targets, {})
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return loss, prediction.logits[run.task.main_head]


def one_ready_batch(run: Run) -> Callable[[], int]:
    """A step on a batch that is on the device already."""
    batch = next(batches(run.train_loader))
    run.train_loader.close()
    inputs, targets = to_device(batch["inputs"], run.device), run.targets(batch)

    def step() -> int:
        set_memory()
        descend(run, run.parallel_model, inputs, targets)
        return len(batch["clip_id"])

    return step


def ready(run: Run, args: argparse.Namespace) -> Way:
    return repeated(one_ready_batch(run), args)


def share_of_peak(run: Run, rate: float) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    step = one_ready_batch(run)
    with FlopCounterMode(display=False) as counter:
        clips = step()
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAKS.items() if key in name), float("nan"))
    return counter.get_total_flops() / clips * rate / peak


if __name__ == "__main__":
    main()
