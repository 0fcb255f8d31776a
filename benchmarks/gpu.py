"""Everything about a GPU in one command of at most six minutes, as a table and as JSON.

    python -m benchmarks.gpu --out gpu.json

Trainings of each mode: the original's way (a), ours (b) and our model on a ready batch (c), as in
benchmarks/train.py; where a step's time goes; what --compile brings. Then the whole scripts: a stop
and a resume, evaluate.py and a submission of 12 views; a group of one process; faces looked for.
It needs torch, timm, efficientnet_pytorch and torch_optimizer. What else is lacking costs the part
that needs it, as does any failure: both stand in the JSON. Features are made of random numbers.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.made import SIZES, machine, make_run, settings_of, write_features
from benchmarks.train import batches, original, ours, ready, share_of_peak, take_turns
from training.accelerate import accelerate
from training.data import to_device
from training.run import Run
from training.tasks import TASKS
from utils.config import Flags, ranged
from utils.distributed import DistributedGroup, leave_group
from utils.errors import in_short, one_of, run_script
from utils.files import write_json
from utils.parallel import use_tensor_cores

Figures = dict[str, Any]
PATIENCE = 100  # seconds for one script
STEP = ("data", "forward", "backward", "update")  # parts of a step on a ready batch


def main() -> None:
    flags = Flags(__doc__)
    cuda = torch.cuda.is_available()
    flags.add("--modes", default=",".join(TASKS), help="which trainings")
    flags.add("--compiled", default="text,face", help="which of them compiled, too; minutes each")
    flags.add("--size", default="recipe" if cuda else "small", choices=list(SIZES), help="of them")
    flags.add("--device", default="cuda" if cuda else "cpu", help="cpu: only to try this script")
    flags.add("--workers", default=8 if cuda else 1, type=ranged(int, 0), help="loading processes")
    flags.add("--seconds", default=2.0, type=ranged(float, 0.1), help="of one turn of one way")
    flags.add("--turns", default=2, type=ranged(int, 1), help="of each way")
    flags.add("--limit", default=330.0, type=ranged(float, 1), help="seconds; then no new part")
    flags.add("--out", type=Path, default=Path("gpu.json"), help="the figures")
    args = flags.parse_args()
    for mode in filter(None, f"{args.modes},{args.compiled}".split(",")):
        one_of("mode", mode, TASKS)
    args.clock = "wall"
    use_tensor_cores(args.device)  # as train.py does
    figures: dict[str, Figures] = {"machine": {"is": machine(args.device)}}
    began = time.perf_counter()
    print(machine(args.device), flush=True)
    parts: dict[str, Callable[[], Figures]] = {}
    for mode in filter(None, args.modes.split(",")):
        parts[f"train {mode}"] = lambda mode=mode: train(mode, args)  # type: ignore[misc]
    parts["scripts"] = lambda: scripts(args)
    parts["faces"] = lambda: faces(args)
    parts["one process of a group"] = lambda: grouped(args)
    for mode in filter(None, args.compiled.split(",")):
        parts[f"compiled {mode}"] = lambda mode=mode: compiled(mode, args)  # type: ignore[misc]
    for name, measure in parts.items():
        if time.perf_counter() - began > args.limit:
            figures[name] = {"left out": f"after {args.limit:.0f} s"}
        else:
            start = time.perf_counter()
            try:
                figures[name] = measure()
            except Exception as error:  # whatever it is, the other parts are worth their minutes
                figures[name] = {"failed": in_short(f"{type(error).__name__} {error}", 300)}
                torch.cuda.empty_cache()
            figures[name]["seconds"] = time.perf_counter() - start
        print(f"{name}: {shown(figures[name])}", flush=True)
        write_json(args.out, figures)


def shown(figures: Figures) -> str:
    parts = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
    return ", ".join(parts)


def train(mode: str, args: Namespace) -> Figures:
    """Clips a second of the three ways, milliseconds of a step's parts, and memory."""
    config = settings_of(mode, args.size, args.device)
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), mode, config["batch_size"])

        def make() -> Run:
            return make_run(config, features, args.device, args.workers, compile="off")

        ways = {"b": ours(make(), args), "c": ready(make(), args)}
        if mode == "text" or find_spec("albumentations"):  # which changes clips the original's way
            ways["a"] = original(make(), args, ())
        reset_memory(args.device)
        rates = take_turns(ways, args)
        middle = {way: statistics.median(each) for way, each in rates.items()}
        found: Figures = {f"{way} clips/s": middle[way] for way in sorted(middle)}
        found |= {f"b/{way}": middle["b"] / middle[way] for way in sorted(middle) if way != "b"}
        found |= {f"{part} ms": value for part, value in parts_of_a_step(make()).items()}
        if args.device != "cpu":
            share = share_of_peak(make(), middle["b"])
            found["of the peak"] = "of this card is not known" if math.isnan(share) else share
            found["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def reset_memory(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def parts_of_a_step(run: Run, times: int = 5) -> dict[str, float]:
    """Milliseconds, each part waited for: what the device takes when nothing overlaps."""
    batch = next(batches(run.train_loader))
    run.train_loader.close()
    marks: list[list[float]] = []
    for _ in range(times + 2):  # two to warm up
        mark = [now(run.device)]
        inputs = run.augmented(batch, to_device(batch["inputs"], run.device))
        targets = run.targets(batch)
        mark.append(now(run.device))
        with run.autocast():
            loss = run.loss(run.parallel_model(inputs, {}), targets, run.class_weights)
        mark.append(now(run.device))
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mark.append(now(run.device))
        torch.nn.utils.clip_grad_norm_(run.trained, 1e9, foreach=True)
        run.optimizer.step()
        mark.append(now(run.device))
        marks.append(mark)
    middles = 1000 * np.median(np.diff(marks[2:], axis=1), axis=0)
    return dict(zip(STEP, middles.tolist(), strict=True))


def now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def compiled(mode: str, args: Namespace) -> Figures:
    """Clips a second on a ready batch, compiled and not, and the seconds until the first step."""
    config = settings_of(mode, args.size, args.device)
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), mode, config["batch_size"])
        plain, quick = (make_run(config, features, args.device, 0, compile="off") for _ in "ab")
        accelerate(quick.model, "on", args.device, 0)
        ways = {"plain": ready(plain, args), "compiled": ready(quick, args)}
        began = now(args.device)
        ways["compiled"](0.0)
        first = now(args.device) - began
        rates = take_turns(ways, args)
    found = {f"{name} clips/s": statistics.median(each) for name, each in rates.items()}
    return found | {"seconds until the first step": first}


def scripts(args: Namespace) -> Figures:
    """train.py stopped and resumed, evaluate.py and make_submission.py on its run."""
    size = 16 if args.device != "cpu" else 2
    small = f"--face_coeff 0 --speech_coeff 0 --text_layers 2 --n_epoch 3 --batch_size {size}"
    with tempfile.TemporaryDirectory() as folder:
        features, logs = Path(folder) / "features", Path(folder) / "logs"
        clips = 4 * size
        for split in ("train", "test"):
            write_features(features / split, "multimodal", size, batches=4, split=split)
        common = f"--device {args.device} --num_workers {args.workers} --features_dir"
        run = f"train.py --mode multimodal --exp_name a {small} --logs_dir {logs} {common}"
        run = f"{run} {features / 'train'}"
        found = {
            "first epoch s": stopped_behind_an_epoch(run),
            "resumed s": seconds(f"{run} --resume"),
        }
        model = f"--checkpoints {logs}/multimodal/a --batch_size 32 {common} {features / 'test'}"
        report = f"evaluate.py {model} --split test --out {folder}/report"
        found["evaluate clips/s"] = clips / seconds(report)
        sheet = Path(folder) / "test1.csv"
        ids = "".join(f"{number:05d},\n" for number in range(clips))
        sheet.write_text(f"FileID,emotion\n{ids}")
        submit = f"make_submission.py {model} --sheets {sheet} --split test --out {folder}"
        found["submission of 12 views clips/s"] = clips / seconds(submit)
    return found


def stopped_behind_an_epoch(command: str) -> float:
    """Seconds until train.py told of its first epoch; then it is stopped, and has to save."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command.split()], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    end = Timer(PATIENCE, process.kill)
    end.start()
    for line in process.stdout:
        if line.startswith("epoch 1"):
            took = time.perf_counter() - began
            process.send_signal(signal.SIGTERM)
    end.cancel()
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError(f"{command}: ended with {process.returncode}, not stopped")
    return took


def seconds(command: str) -> float:
    began = time.perf_counter()
    words = [sys.executable, *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def grouped(args: Namespace) -> Figures:
    """Steps of speech in a group of one process (nccl on a GPU), against those without a group; all
    that a training asks of its group is asked once."""
    config = settings_of("speech", args.size, args.device)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29533", "RANK": "0", "WORLD_SIZE": "1"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, place):
        features = write_features(Path(folder), "speech", config["batch_size"])
        alone, run = (make_run(config, features, args.device, 0, compile="off") for _ in "ab")
        group = DistributedGroup(args.device)
        try:
            run.parallel_model = group.wrap(run.model)
            rates = take_turns({"alone": ready(alone, args), "group": ready(run, args)}, args)
            group.broadcast_buffers(run.model)
            with group.unsynced(run.parallel_model):
                agreed = group.all_reduce_max([3, -3]), group.sum(torch.ones(2)).tolist()
        finally:
            leave_group()
    if agreed != ([3, -3], [1.0, 1.0]):
        raise RuntimeError(f"one process agrees with itself on {agreed}")
    return {f"{name} clips/s": statistics.median(each) for name, each in rates.items()}


def faces(args: Namespace, count: int = 256) -> Figures:
    """Frames of 720p a second that faces are looked for in, in blocks as preprocess.py has them."""
    import cv2
    from skimage import data

    from extract.detector import find_faces
    from extract.faces import BLOCK, FACE_SETTINGS

    photo = cv2.resize(data.astronaut(), (720, 720))
    frames = [np.pad(photo, ((0, 0), (at % 80, 560 - at % 80), (0, 0))) for at in range(count)]
    find_faces(frames[:BLOCK], FACE_SETTINGS, args.device)
    began = time.perf_counter()
    found = 0
    for first in range(0, count, BLOCK):
        boxes = find_faces(frames[first : first + BLOCK], FACE_SETTINGS, args.device)
        found += sum(len(each) > 0 for each in boxes)
    rate = count / (time.perf_counter() - began)
    return {"frames/s": rate, "with a face": found / count}


if __name__ == "__main__":
    run_script(main)
