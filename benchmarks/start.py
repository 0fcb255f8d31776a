"""Seconds from the command to the first step of a training of many small clips, and where they go.

    python -m benchmarks.start                     # 20,000 clips, text; about two minutes

Makes features with records and audits them, as preprocess.py does at its end. Then starts train.py
twice, and stops it behind its first step: the second start finds its files in the cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from utils.config import Flags, ranged

CLASSES = ["hap", "ang", "dis", "fea", "sad", "neu", "sur"]
KINDS = {  # of features: settings of their extraction, ending, shape
    "speech": ({"n_mels": 128}, ".npy", (128, 12)),
    "text": ({"key": "word_embed"}, ".npz", (4, 16)),
}
FLAGS = "--speech_coeff 0 --speech_frames 32 --text_layers 2 --batch_size 32 --num_workers 2"
Marks = list[tuple[str, float]]


def main() -> None:
    flags = Flags(__doc__)
    flags.add("--clips", default=20_000, type=ranged(int, 20), help="made clips")
    flags.add("--mode", default="text", choices=list(KINDS), help="what is trained")
    flags.add("--optim", default="ranger", help="its optimizer")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) / "features"
        began = time.perf_counter()
        write_features(features, args.mode, args.clips)
        print(f"{args.clips} clips of {args.mode} made in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "corpora.audit", "--features_dir", features])
        print(f"audited in {time.perf_counter() - began:.1f} s")
        for what in ("first start", "second start"):
            marks, cpu = start(features, Path(folder) / what, args.mode, args.optim)
            ends = [0.0, *(seconds for _, seconds in marks)]
            parts = [
                f"{name} {end - begin:.1f}"
                for (name, end), begin in zip(marks, ends[:-1], strict=True)
            ]
            print(f"{what}: {ends[-1]:.1f} s to the first step, {cpu:.1f} s of them on the CPU")
            print(f"    {', '.join(parts)}", flush=True)


def write_features(folder: Path, mode: str, clips: int) -> None:
    """A folder as preprocess.py leaves it, of random numbers; a tenth validates."""
    import numpy as np
    import pandas as pd

    settings, ending, shape = KINDS[mode]
    rng, rows = np.random.default_rng(0), []
    for split in ("train", "val"):
        for name in (mode, "records"):
            (folder / split / name).mkdir(parents=True)
    for number in range(clips):
        split, clip_id = "val" if number % 10 == 0 else "train", f"{number:05d}"
        buffer = io.BytesIO()
        feature = rng.random(shape, np.float32)
        if ending == ".npz":
            np.savez(buffer, word_embed=feature)
        else:
            np.save(buffer, feature)
        content = buffer.getvalue()
        (folder / split / mode / f"{clip_id}{ending}").write_bytes(content)
        stage = {"sha256": hashlib.sha256(content).hexdigest()}
        stage["source_sha256"] = hashlib.sha256(clip_id.encode()).hexdigest()
        record = json.dumps({"stages": {mode: stage}, "failure": None})
        (folder / split / "records" / f"{clip_id}.json").write_text(record)
        label = dict.fromkeys(("emotion", "speech_emotion", "face_emotion"), CLASSES[number % 7])
        media = f"{split}/{clip_id}.mp4"
        rows.append({"clip_id": clip_id, "split": split, "media": media, **label, "fold": ""})
        rows[-1]["speaker"] = f"{split}{number % 97}"
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    known = {"classes": CLASSES, "modalities": [mode], "features": {mode: settings}}
    (folder / "settings.json").write_text(json.dumps(known))


def start(features: Path, logs: Path, mode: str, optim: str) -> tuple[Marks, float]:
    """What a start of train.py had done at which second, and its seconds of CPU."""
    command = [sys.executable, "-c", "from benchmarks.start import until_first_step as run; run()"]
    command += ["--mode", mode, "--optim", optim, "--exp_name", "a", *FLAGS.split()]
    command += ["--features_dir", str(features), "--logs_dir", str(logs)]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stamps, cpu = json.loads(done.stdout.splitlines()[-1])
    return [(name, stamp - began) for name, stamp in stamps], cpu


def until_first_step() -> None:
    """train.py with a clock: prints what was done when, and ends behind the first step."""
    import train
    from utils.errors import run_script

    marks: Marks = []

    def mark(name: str) -> None:
        marks.append((name, time.time()))

    def marked(owner: Any, function: str, name: str, before: bool = False) -> None:
        """Have a function set a mark when it is done, or `before` it begins."""
        real: Callable = getattr(owner, function)

        @wraps(real)
        def wrapper(*args: Any, **options: Any) -> Any:
            if before:
                mark(name)
            result = real(*args, **options)
            if not before:
                mark(name)
            return result

        setattr(owner, function, wrapper)

    def first_step(*args: Any, **values: Any) -> None:
        mark("loading processes and the step")
        print(json.dumps([marks, time.process_time()]), flush=True)
        os._exit(0)

    def train_run(*args: Any) -> Any:
        import training.loop
        import training.run

        mark("imports of models")
        marked(training.run, "check_data", "files and labels")
        marked(training.run, "fingerprints", "records")
        marked(training.run, "create_model", "model")
        marked(training.run, "content_of", "contents by the records")
        marked(training.loop, "progress", "optimizer, TensorBoard", before=True)
        assert callable(training.run.Run.check_losses), "it is called behind each step"
        setattr(training.run.Run, "check_losses", first_step)  # noqa: B010
        return real_run(*args)

    real_run = train.train_run
    setattr(train, "train_run", train_run)  # noqa: B010
    marked(train, "train", "Python and flags", before=True)
    marked(train, "leak_stamp", "torch, pandas and the manifest", before=True)
    marked(train, "leak_stamp", "audit.json")
    run_script(train.main)


if __name__ == "__main__":
    main()
