"""Seconds from the command to the prompt: preprocess.py of a folder, predict.py of one clip.

    python -m benchmarks.start_clips --clips FOLDER                   # of this project
    python -m benchmarks.start_clips --clips FOLDER --against OTHER   # in turn with another version

FOLDER holds clips alone; OTHER is a folder with another version of the project. Each command runs
once to fill the system's caches, then `--turns` times. The seconds of CPU are those of all its
processes, also of those that outlive it by a moment. Figures are medians with their range; ratios
are of runs that followed each other, so a busy machine slows both.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from extract.media import FORMATS
from utils.errors import UsageError, run_script

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2): processes whose parent has ended are ours to wait for
Seconds = tuple[float, float]  # until the prompt, and of CPU


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--clips", type=Path, required=True)
    flags.add_argument("--against", type=Path, help="folder of another version")
    flags.add_argument("--turns", type=int, default=5)
    args = flags.parse_args()
    clips = sorted(path for path in args.clips.glob("*") if path.suffix.lower() in FORMATS)
    if not clips:
        raise UsageError(f"no clips in {args.clips}")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    roots = [ROOT]
    if args.against:
        roots.append(args.against.resolve())
    for script in ("preprocess.py", "predict.py"):
        found: dict[Path, list[Seconds]] = {root: [] for root in roots}
        for turn in range(args.turns + 1):
            for root in roots:
                seconds = run(root, script, clips)
                if turn:
                    found[root].append(seconds)
        for root, each in found.items():
            wall, cpu = zip(*each, strict=True)
            print(f"{script} of {root}: {spread(wall)} s to the prompt, {spread(cpu)} s of CPU")
        if args.against:
            ours, others = found.values()
            pairs = [one[0] / other[0] for one, other in zip(ours, others, strict=True)]
            print(f"{script}: {spread(pairs)} times the seconds of the other version", flush=True)


def run(root: Path, script: str, clips: list[Path]) -> Seconds:
    """One start of a version's script, on a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(root / script)]
        if script == "predict.py":
            command += [str(clips[0].resolve()), "--out", str(folder / "out")]
        else:
            for clip in clips:
                (folder / clip.name).symlink_to(clip.resolve())
            rows = [f"{clip.name},test," for clip in clips]
            (folder / "manifest.csv").write_text("\n".join(["media,split,emotion", *rows, ""]))
            command += ["--corpus", "csv", "--data_dir", name, "--follow_links"]
            command += ["--features_dir", str(folder / "features")]
        with open(folder / "log", "wb") as log:  # a pipe would wait for what outlives the command
            began, before = time.perf_counter(), cpu_of_children()
            done = subprocess.run(command, cwd=root, stdout=log, stderr=log, check=False)
            seconds = time.perf_counter() - began
        if done.returncode not in (0, 3):  # 3: some clips cannot be used
            said = (folder / "log").read_text("utf-8", "replace")
            raise UsageError(f"{script} failed: {said[-300:]}")
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        return seconds, cpu_of_children() - before


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spread(values: Iterable[float]) -> str:
    known = sorted(values)
    return f"{statistics.median(known):.2f} ({known[0]:.2f} - {known[-1]:.2f})"


if __name__ == "__main__":
    run_script(main)
