"""Clips per second that the loader alone delivers, by mode and number of loading processes.

    python -m benchmarks.loader

Beside each: the clips whose bytes are compared with their digest in a second, as each loading
process does where it reads a clip for the first time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.made import SIZES, machine, settings_of, write_features
from benchmarks.train import batches, repeated
from training.data import ClipDataset, make_loader
from training.tasks import TASKS
from utils.files import sha256


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    flags.add_argument("--modes", default=",".join(TASKS))
    flags.add_argument("--size", choices=SIZES, default="recipe" if cuda else "small")
    flags.add_argument("--workers", default="0,1,2,4,8,16" if cuda else "0,1,2")
    flags.add_argument("--seconds", type=float, default=5)
    args = flags.parse_args()
    args.device, args.clock = "cpu", "wall"
    counts = [int(each) for each in args.workers.split(",")]
    print(f"{machine('cpu')}; {args.size} sizes, clips/s by number of loading processes\n")
    print("mode        " + "".join(f"{count:>9}" for count in counts) + "  digests clips/s")
    for mode in args.modes.split(","):
        print(f"{mode:<12}" + line(mode, counts, args), flush=True)


def line(mode: str, counts: list[int], args: argparse.Namespace) -> str:
    config = settings_of(mode, args.size, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), mode, config["batch_size"])
        clips = ClipDataset(features, features.rows("train"), TASKS[mode], config, training=True)
        rates = []
        for count in counts:
            loader = make_loader(clips, config["batch_size"], count, "cpu")
            stream = batches(loader)
            way = repeated(lambda s=stream: len(next(s)["clip_id"]), args)  # type: ignore[misc]
            rates.append(way(args.seconds))
            loader.close()
        start = time.perf_counter()
        for row in clips.rows:
            for name in clips.task.inputs:
                sha256(features.path(row, name))
        hashed = len(clips) / (time.perf_counter() - start)
    return "".join(f"{rate:>9.0f}" for rate in rates) + f"{hashed:>17.0f}"


if __name__ == "__main__":
    main()
