"""Clips -> what extraction costs: the original's way, ours, and decoding alone, in paired rounds.

    python benchmarks/preprocess.py                   # 12 clips of demo_run/ (demo.py makes it)
    python benchmarks/preprocess.py --clips FOLDER    # yours; clips without speech or face are left
    python benchmarks/preprocess.py --clips FOLDER --quality    # what each lever brings, and costs

The original's way is rebuilt from what is known of it: every frame of the speech in full size, 62.5
a second, MTCNN on every fourth with pyramid factor 0.6, crops of 224 pixels, one process. The floor
decodes picture and sound of the whole clip and does nothing else. Ours and the floor work on one
clip per core, the original's process may use all cores. Each round times all three on the same
clips, one after the other, libraries loaded; the table has medians over rounds.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from corpora.manifest import Clip
from extract import audio, faces
from extract.clip import SETTINGS, Job, process_clip
from extract.detector import overlap, square
from extract.media import FORMATS, frames_at, open_media
from utils.errors import ClipError, UsageError, run_script
from utils.parallel import available_cores

LEVERS = {  # each with those above it
    "every sampled frame, full size": {"detect_width": 10_000, "detect_every": 1},
    "detected 320 pixels wide": {"detect_every": 1},
    "every 8th, last network between": {},
}


def original(path: Path, folder: Path) -> int:
    """Bytes of the features of the original's way."""
    speech = audio.extract_speech(path)
    times = faces.sample_times(speech.start, speech.end, 62.5)
    frames = [
        frame for indices, frame in frames_at(path, times, available_cores()) for _ in indices
    ]
    found, _ = mtcnn().detect(np.stack(frames[::4]))
    crops = [
        square(frame, boxes[0].astype(float), 224)
        for frame, boxes in zip(frames, np.repeat(found, 4, axis=0), strict=False)
        if boxes is not None
    ]
    size = 0
    for name, array in (("speech", speech.log_mel), ("video", np.stack(crops))):
        np.save(folder / f"{path.stem}.{name}.npy", array)
        size += array.nbytes
    return size


@lru_cache
def mtcnn():
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, factor=0.6, device="cpu")


def ours(path: Path, folder: Path) -> int:
    """Bytes of our features, made anew."""
    job = Job(folder / f"{time.monotonic_ns()}", ("speech", "video"), SETTINGS)
    failure = process_clip(Clip(path.stem, "test", path), job)["failure"]
    if failure:
        raise ClipError(failure["code"], failure["reason"])
    return sum(file.stat().st_size for file in job.features_dir.rglob("*.npy"))


def floor(path: Path, folder: Path) -> int:
    """Decode every frame of picture and sound on one thread."""
    for kind in ("video", "audio"):
        with open_media(path) as container:
            [stream, *_] = getattr(container.streams, kind)
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass
    return 0


def work(task: tuple) -> tuple[int, float]:
    """(bytes written, peak MB of this process so far)"""
    method, path, folder, threads = task
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    size = method(path, folder)
    return size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def usable(clips: list[Path], folder: Path) -> list[Path]:
    good = []
    for path in clips:
        try:
            ours(path, folder)
            good.append(path)
        except ClipError as error:
            print(f"left out: {error.reason}", file=sys.stderr)
    return good


def compare(clips: list[Path], rounds: int, folder: Path) -> None:
    cores = available_cores()
    workers = {original: 1, ours: cores, floor: cores}
    pools = {
        method: ProcessPoolExecutor(count, mp_context=get_context("spawn"))
        for method, count in workers.items()
    }
    seconds: dict = {method: [] for method in workers}
    size, memory = {}, {}
    for turn in range(rounds + 1):  # the first one loads libraries and caches
        for method, count in workers.items():
            tasks = [(method, path, folder, max(1, cores // count)) for path in clips]
            began = time.perf_counter()
            results = list(pools[method].map(work, tasks))
            if turn:
                seconds[method].append((time.perf_counter() - began) / len(clips))
            size[method] = sum(each[0] for each in results) / len(clips) / 1e6
            memory[method] = max(each[1] for each in results)
    times = {method: statistics.median(values) for method, values in seconds.items()}
    print(f"{len(clips)} clips, {rounds} rounds, {cores} cores, {platform.processor()}")
    print("| way | seconds per clip | clips per minute | MB per clip | peak MB of a process |")
    print("|---|---|---|---|---|")
    for method, value in times.items():
        per_minute = 60 / value
        numbers = f"{value:.3f} | {per_minute:.0f} | {size[method]:.2f} | {memory[method]:.0f}"
        print(f"| {method.__name__} | {numbers} |")
    ratio = {m: statistics.median(np.divide(seconds[m], seconds[ours])) for m in (original, floor)}
    print(
        f"ours is {ratio[original]:.1f} times faster than the original's way, takes "
        f"{1 / ratio[floor]:.2f} times the floor and 1/{size[original] / size[ours]:.1f} "
        "of the bytes"
    )


def quality(clips: list[Path], rounds: int) -> None:
    """Each lever: seconds, overlap with the boxes of the first row, faces that only one has."""
    print("| face detection | seconds per clip | mean IoU | lost faces | invented faces | frames |")
    print("|---|---|---|---|---|---|")
    truth = None
    for name, changes in LEVERS.items():
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            found = [boxes_of(path, SETTINGS["video"] | changes) for path in clips]
            taken.append((time.perf_counter() - began) / len(clips))
        boxes = np.concatenate(found)
        truth = boxes if truth is None else truth
        ours, theirs = (np.isfinite(each[:, 0]) for each in (boxes, truth))
        both = zip(boxes[ours & theirs], truth[ours & theirs], strict=True)
        iou = np.mean([overlap(a, b[None])[0] for a, b in both])
        counts = f"{(theirs & ~ours).sum()} | {(ours & ~theirs).sum()} | {len(boxes)}"
        print(f"| {name} | {statistics.median(taken):.2f} | {iou:.3f} | {counts} |", flush=True)


def boxes_of(path: Path, settings: dict) -> np.ndarray:
    speech = audio.extract_speech(path)
    stream = faces.face_stream(path, speech.start, speech.end, settings)
    return np.stack([box for _, box in stream])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=Path("demo_run/raw/qia2020/val"))
    parser.add_argument("--most", type=int, default=12, help="clips, evenly from the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", action="store_true")
    args = parser.parse_args()
    found = sorted(path for path in args.clips.glob("*") if path.suffix.lower() in FORMATS)
    if not found:
        raise UsageError(f"no clips in {args.clips}; python demo.py makes some, or give --clips")
    with tempfile.TemporaryDirectory() as folder:
        clips = usable(found[:: -(-len(found) // args.most)], Path(folder))
        if args.quality:
            quality(clips, args.rounds)
        else:
            compare(clips, args.rounds, Path(folder))


if __name__ == "__main__":
    run_script(main)
