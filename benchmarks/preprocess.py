"""Clips -> what extraction costs: the original's way, ours, and decoding alone, in paired rounds.

    python benchmarks/preprocess.py                          # clips of demo_run/raw (demo.py makes it)
    python benchmarks/preprocess.py --clips FOLDER           # your own; those without speech are left out
    python benchmarks/preprocess.py --clips FOLDER --levers  # what each lever of the speed brings

The original's way is rebuilt from what is known of it: frames of the speech in full size, 62.5 a
second, MTCNN on every fourth with pyramid factor 0.6, crops of 224 pixels, one process. The floor
decodes picture and sound and does nothing else. Ours and the floor run on all cores, one thread each.
Every round times all of them one after the other on the same clips; the table has medians.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from corpora.manifest import Clip  # noqa: E402
from extract import audio, faces  # noqa: E402
from extract.clip import SETTINGS, Job, process_clip  # noqa: E402
from extract.media import frames_at, open_media  # noqa: E402


def original(path: Path, folder: Path) -> int:
    """Bytes of the features that the original's way gives; its time is what matters."""
    speech = audio.extract_speech(path)
    times = faces.sample_times(speech.start, speech.end, 62.5)
    frames = [frame for indices, frame in frames_at(path, times, 2) for _ in indices]
    boxes, _ = mtcnn().detect(np.stack(frames[::4]))
    crops = []
    for index, frame in enumerate(frames):
        found = boxes[index // 4]
        crops.append(faces.square(frame, found[0], 224) if found is not None else crops[-1:])
    crops = [crop for crop in crops if len(crop)]
    return sum(_saved(folder / name, np.asarray(array)) for name, array in
               (("speech", speech.log_mel), ("video", crops)))


def _saved(path: Path, array: np.ndarray) -> int:
    np.save(path, array)
    return path.with_suffix(".npy").stat().st_size


def mtcnn(cache: list = []) -> object:  # noqa: B006
    if not cache:
        from facenet_pytorch import MTCNN

        cache.append(MTCNN(keep_all=True, factor=0.6, device="cpu"))
    return cache[0]


def ours(path: Path, folder: Path, settings: dict = SETTINGS) -> int:
    job = Job(folder, ("speech", "video"), settings)
    record = process_clip(Clip(path.stem, "test", path), job)
    assert not record["failure"], record["failure"]
    return sum(file.stat().st_size for file in (folder / "test").rglob(f"{path.stem}.*"))


def floor(path: Path, folder: Path) -> int:
    """Decode every frame of picture and sound, on one thread."""
    for kind in ("video", "audio"):
        with open_media(path) as container:
            stream = getattr(container.streams, kind)[0]
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass
    return 0
