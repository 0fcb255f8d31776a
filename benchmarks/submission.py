"""Clips per second of a submission: a pass for each model, and one pass for all.

    python -m benchmarks.submission                          # four small models, 12 views
    python -m benchmarks.submission --backbone efficientnet-b0 --face_frames 32      # the recipe's

a  a pass over the clips for each model, everything encoded in each view
b  a pass for each model, only the face encoded in each view
c  as make_submission.py does it: one pass, what models share is read and made once

The ways take turns, so that a busy machine slows all of them; figures are medians of the turns,
with the ratios' range. The models are untrained: what they answer does not change what it costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.made import CLASSES, machine, settings_of, write_features
from evaluation.ensemble import Member, image_views, mean_over_views
from evaluation.votes import SharedInputs, votes
from models import build_model
from training.data import ClipDataset, make_loader
from training.features import Features
from training.inference import Given, Views, encode_views, given_of
from training.tasks import TASKS, model_arch
from utils.errors import run_script

SHAPES = {"speech": (128, None), "face": (None, 224, 224, 3), "text": (None, 200)}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--mode", default="multimodal", choices=list(TASKS))
    flags.add_argument("--backbone", default="small-16", help="of sound and face")
    flags.add_argument("--face_frames", type=int, default=8, help="crops per clip")
    flags.add_argument("--models", type=int, default=4)
    flags.add_argument("--views", type=int, default=12, choices=(12, 6, 1))
    flags.add_argument("--clips", type=int, default=16, help="in a turn")
    flags.add_argument("--batch_size", type=int, default=8)
    flags.add_argument("--workers", type=int, default=0, help="loading processes")
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), args.mode, args.clips, batches=1)
        rows = features.rows("train")
        members = list(made_members(args, features))
        ways = {
            "a": lambda: each_alone(members, rows, features, args, all_in_views),
            "b": lambda: each_alone(members, rows, features, args, encode_views),
            "c": lambda: together(members, rows, features, args),
        }
        compare(ways, args)


def made_members(args: argparse.Namespace, features: Features) -> Iterator[Member]:
    config = settings_of(args.mode, "recipe", args.device) | {"mode": args.mode}
    config |= {"face_frames": args.face_frames}
    config |= {f"{name}_backbone": args.backbone for name in ("speech", "face")}
    for number in range(args.models):
        torch.manual_seed(number)
        model = build_model(**model_arch(TASKS[args.mode], config, len(CLASSES), SHAPES))
        place = features.folder / str(number)
        yield Member(place, {"config": config}, model.to(args.device).eval(), place)


def all_in_views(model: Any, given: Given, views: Views) -> list:
    """The tokens under each view, all of them encoded in each."""
    inputs, _ = given
    seen = [name for name in views if name in inputs]
    shown = [
        inputs | {name: (view(inputs[name][0]), *inputs[name][1:])}
        for name in seen
        for view in views[name]
    ]
    return [model.encode(each) for each in shown or [inputs]]


def each_alone(
    members: list[Member],
    rows: pd.DataFrame,
    features: Features,
    args: argparse.Namespace,
    encode: Callable,
) -> list[np.ndarray]:
    """Ways a and b, which differ in what is encoded."""
    found, views = [], image_views(args.views)
    for member in members:
        head = member.task.main_head

        clips = ClipDataset(features, rows, member.task, member.config, training=False)
        loader = make_loader(clips, args.batch_size, args.workers, args.device)
        scores = []
        with torch.inference_mode():
            for batch in loader:
                tokens = encode(member.model, given_of(batch, args.device), views)
                logits = [member.model.classify(each).logits[head] for each in tokens]
                scores.append(mean_over_views(logits).cpu().numpy())
        found.append(np.concatenate(scores))
        loader.close()
    return found


def together(
    members: list[Member], rows: pd.DataFrame, features: Features, args: argparse.Namespace
) -> list[np.ndarray]:
    parts = SharedInputs(members, [range(len(rows))] * len(members), rows, features)
    views, size = image_views(args.views), args.batch_size
    return [one for (one,) in votes(members, parts, args.device, views, [1.0], size, args.workers)]


def compare(ways: dict[str, Callable], args: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    for turn in range(args.turns + 1):  # the first one loads libraries and caches
        for name, way in ways.items():
            began = time.perf_counter()
            answers[name] = way()
            if turn:
                rates[name].append(args.clips / (time.perf_counter() - began))
    off = max(np.abs(np.subtract(answers[name], answers["c"])).max() for name in "ab")
    print(f"{args.models} models of {args.mode}, {args.backbone}, {args.views} views of", end=" ")
    print(f"{args.face_frames} crops, batches of {args.batch_size}, {machine(args.device)}")
    print(f"the ways differ by {off:.0e} at most")
    print(" | ".join(f"{name} {statistics.median(each):.2f}" for name, each in rates.items()))
    for one, other in ("ca", "cb"):
        pairs = np.divide(rates[one], rates[other])
        print(f"{one}/{other} {np.median(pairs):.2f} ({pairs.min():.2f} - {pairs.max():.2f})")


if __name__ == "__main__":
    run_script(main)
