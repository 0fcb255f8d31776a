"""Shared by the tests: small clips made with PyAV, fake features, and the scripts run for real."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
CLASSES = ("hap", "ang", "dis", "fea", "sad", "neu", "sur")
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
QUIET = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "OMP_NUM_THREADS": "1",  # equal sums, bit for bit, in this process and in the scripts
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore",
}
os.environ.update(QUIET)  # before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # what two processes compile at once can crash both
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numba-")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup starts ignores this


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than there are cores, for tests that wait leave theirs idle."""
    from utils.parallel import available_cores

    return min(4, available_cores() + 1)


def blank(figure: object, path: Path) -> None:
    """In place of utils/plots.py:_save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG")


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch):
    """Curves and matrices are not drawn, which would take most of the time of a small training:
    tests/test_pictures.py draws them, and so do scripts and what the tests of a file share."""
    if request.module.__name__ != "test_pictures":
        from utils import plots

        monkeypatch.setattr(plots, "_save", blank)


def run_script(name: str, *args: object, env: dict | None = None, timeout: float = 120):
    """Run a script from the repository's root; CompletedProcess with its output as text."""
    command = [sys.executable, name, *map(str, args)]
    environment = {**os.environ, **QUIET, **(env or {})}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def extract_faces(
    clip: Path, start: float, end: float, settings: dict | None = None
) -> SimpleNamespace:
    """All crops (T, S, S, 3) of a clip, their boxes (T, 4), and which are of a face (T,)."""
    from extract import faces

    stream = faces.face_stream(clip, start, end, settings or faces.FACE_SETTINGS)
    crops, boxes = map(np.stack, zip(*stream, strict=True))
    return SimpleNamespace(crops=crops, boxes=boxes, valid=np.isfinite(boxes[:, 0]))


def digests(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too, with the digest of its content."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def tone(seconds: float, hertz: float = 440, rate: int = 16_000, level: float = 0.3) -> np.ndarray:
    """(N,) float32."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """(N,) float32 at 16 kHz: somebody speaks without a pause."""
    from corpora.demo import speak

    words = ["this", "is", "quite", "ordinary", "today", "again", "and", "it", "was", "normal"]
    sentences: list[np.ndarray] = []
    while sum(map(len, sentences)) < 16_000 * seconds:
        speaker, rest = (np.random.default_rng((seed, len(sentences), at)) for at in (0, 1))
        sound, _ = speak("neu", words, speaker, rest)
        sentences.append(sound[2500:-2500])  # without the silence at both ends
    return np.concatenate(sentences)[: int(16_000 * seconds)]


def moving_picture(count: int = 15, height: int = 90, width: int = 120) -> np.ndarray:
    """(T, H, W, 3) uint8: a white square walks over a blue ramp."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 2] = np.linspace(40, 200, width)
    for step, frame in enumerate(frames):
        frame[20:50, 2 * step % width : 2 * step % width + 30] = 255
    return frames


def flat(color: tuple, height: int = 90, width: int = 120) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def make_clip(
    path: Path,
    frames: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    *,
    fps: float = 15,
    times: list[float] | None = None,
    start: float = 0.0,
    rotation: int = 0,
    rate: int = 16_000,
    sound_start: float = 0.0,
    codec: str = "libx264",
    sound_codec: str = "aac",
    options: dict | None = None,
    codec_options: dict | None = None,
    quality: int = 18,
) -> Path:
    """Write `frames` (T, H, W, 3) and `sound` (N,) or (channels, N); None leaves that track out.

    The picture starts at `start` seconds with `fps`, or shows its frames at `times`; players are
    asked to turn it clockwise by `rotation` degrees.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        picture = None if frames is None else container.add_stream(codec, rate=Fraction(fps))
        track = None if sound is None else container.add_stream(sound_codec, rate=rate)
        if picture:
            picture.height, picture.width = frames[0].shape[:2]
            picture.pix_fmt, picture.time_base = "yuv420p", Fraction(1, 12_000)
            picture.codec_context.time_base = picture.time_base
            picture.options = {"preset": "veryfast", "crf": str(quality)} | (codec_options or {})
            if rotation:
                picture.set_display_rotation(-rotation)
        if track:
            sound = np.atleast_2d(np.asarray(sound, np.float32))
            track.layout = LAYOUTS[len(sound)]
        if picture:
            times = times or [start + index / fps for index in range(len(frames))]
            for when, image in zip(times, frames, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.time_base, frame.pts = Fraction(1, 12_000), round(when * 12_000)
                container.mux(picture.encode(frame))
            container.mux(picture.encode())
        if track:
            planar = track.codec_context.format.is_planar
            for first in range(0, sound.shape[1], 1024):
                block = np.ascontiguousarray(sound[:, first : first + 1024])
                block, kind = (block, "fltp") if planar else (block.T.reshape(1, -1), "flt")
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(block), format=kind, layout=LAYOUTS[len(sound)]
                )
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = first + round(sound_start * rate)
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


@pytest.fixture(scope="session")
def face_image() -> np.ndarray:
    return portrait()


def portrait() -> np.ndarray:
    """(180, 240, 3) uint8: the head of Eileen Collins (NASA, public domain)."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[0:180, 110:350])


def write_features(
    folder: Path,
    clips_per_class: int = 2,
    face_size: int = 32,
    word_dim: int = 16,
    splits: tuple[str, ...] = ("train", "val", "test"),
    seed: int = 0,
    modalities: tuple[str, ...] = ("speech", "video", "text"),
) -> Path:
    """A folder as preprocess.py leaves it, of random arrays from which the class can be learnt.

    The first frame of every second clip shows no face. Test clips carry no labels; the sheet
    test1.csv lists them.
    """
    from extract import audio, faces, words
    from extract.clip import SCHEMA

    rng, folder = np.random.default_rng(seed), Path(folder)
    directions = rng.normal(size=(len(CLASSES), word_dim))
    rows = []
    for split in splits:
        for index in range(clips_per_class * len(CLASSES)):
            kind, clip_id = index % len(CLASSES), f"{len(rows):05d}"
            label = "" if split.startswith("test") else CLASSES[kind]
            row = {"clip_id": clip_id, "split": split, "media": f"{split}/{clip_id}.mp4"}
            row |= dict.fromkeys(("emotion", "speech_emotion", "face_emotion"), label)
            row |= {"speaker": f"{split}-{index % 4}", "transcript": "", "fold": str(index % 2)}
            row |= {"dialogue": "", "utterance": ""}
            if "speech" in modalities:
                log_mel = rng.uniform(0, 0.4, (128, int(rng.integers(40, 80)))).astype("f4")
                log_mel[16 * kind : 16 * kind + 16] += 0.6
                _save(folder / split / "speech" / f"{clip_id}.npy", log_mel)
                length = log_mel.shape[1]
                row |= {"speech_start": 0.0, "speech_end": length / 62.5, "speech_frames": length}
            if "video" in modalities:
                crops = rng.integers(0, 80, (int(rng.integers(5, 12)), face_size, face_size, 3))
                side = face_size // 4
                top, left = kind // 3 * side, kind % 3 * side
                crops[:, top : top + side, left : left + side] += 170
                crops[0] *= index % 2
                _save(folder / split / "video" / f"{clip_id}.npy", crops.astype(np.uint8))
                flags = f"{index % 2}" + "1" * (len(crops) - 1)
                row |= {"video_frames": len(flags), "face_frames": flags.count("1")}
                row |= {"face_valid": flags}
            if "text" in modalities:
                noise = rng.normal(size=(int(rng.integers(2, 9)), word_dim))
                _save(
                    folder / split / "text" / f"{clip_id}.npz",
                    word_embed=(2 * directions[kind] + noise).astype("f4"),
                )
                row |= {"words": len(noise)}
            rows.append(row)
    made = {
        "speech": audio.SPEECH_SETTINGS,
        "video": faces.FACE_SETTINGS,
        "text": words.TEXT_SETTINGS,
    }
    made["video"] = made["video"] | {"face_size": face_size}
    settings = {
        "schema": SCHEMA,
        "corpus": "merc2020",
        "classes": list(CLASSES),
        "modalities": list(modalities),
        "features": {name: made[name] for name in modalities},
        "versions": {"numpy": np.__version__},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "failed.csv").write_text("clip_id,media,stage,code,reason\n")
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    ids = [row["clip_id"] for row in rows if row["split"].startswith("test")]
    (folder / "test1.csv").write_text("\n".join(["FileID", *ids, ""]))
    return folder


def _save(path: Path, *array: np.ndarray, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays) if arrays else np.save(path, *array)


TINY = "timm:test_efficientnet"  # a backbone of 0.1 million weights, for timm's own tests
SMALL = {
    "speech_backbone": "small-32",
    "face_backbone": "small-16",
    "text_layers": 1,
    "text_heads": 2,
}
SMALL |= {"speech_frames": 48, "face_frames": 2}


@pytest.fixture(scope="session")
def place(tmp_path_factory, face_image) -> Path:
    return make_place(tmp_path_factory.mktemp("place"), face_image)


def make_place(folder: Path, face_image: np.ndarray) -> Path:
    """Two clips with word vectors, their features by preprocess.py, and untrained checkpoints."""
    from inside import run_main

    rng = np.random.default_rng(0)
    for name, hertz in (("anna", 300), ("ben", 700)):
        sound = np.r_[np.zeros(1600), tone(0.8, hertz), np.zeros(1600)]
        make_clip(folder / "clips" / f"{name}.mp4", np.stack([face_image] * 11), sound, fps=10)
        vectors = rng.normal(size=(3, 16)).astype("f4")
        np.savez(folder / "clips" / f"{name}.npz", word_embed=vectors)
    rows = ["media,split,emotion", "anna.mp4,clips,hap", "ben.mp4,clips,sad", ""]
    (folder / "clips" / "manifest.csv").write_text("\n".join(rows))
    done = run_main(
        *("preprocess", "--corpus", "csv", "--data_dir", folder / "clips", "--workers", 1),
        *("--features_dir", folder / "features", "--face_size", 32),
    )
    assert done.code == 0, done.err
    save_untrained(folder / "any.pth", folder / "features", modality_dropout=0.3)
    save_untrained(folder / "plain.pth", folder / "features", seed=1)
    for mode in ("speech", "face"):
        save_untrained(folder / f"{mode}.pth", folder / "features", mode)
    return folder


def save_untrained(
    path: Path, features: Path, mode: str = "multimodal", seed=0, **settings
) -> None:
    """A checkpoint without any training, whose answers differ from clip to clip."""
    import torch

    from models import build_model
    from training.checkpoint import save_checkpoint
    from training.features import Features
    from training.tasks import model_arch, recipe, task_of

    opened, config = Features.open(features), recipe(mode) | SMALL | settings
    task = task_of(config | {"mode": mode})
    torch.manual_seed(seed)
    shapes = {"speech": (128, None), "face": (None, None, None, 3), "text": (3, 16), "au": (12,)}
    arch = model_arch(task, config, len(CLASSES), shapes)
    model = build_model(**arch)
    with torch.no_grad():
        for head in model.heads.values():
            if hasattr(head.linear, "weight"):
                head.linear.weight *= 30
    identity = {"arch": arch, "classes": opened.classes, "config": config}
    measured = {"epoch": 1, "val": {"accuracy": 0.5, "loss": 1.0}}
    made = {"weights": model.state_dict(), "features_config": opened.config_for(task.inputs)}
    save_checkpoint(path, identity | measured | made)
