"""One clip -> its features and its record: what was made, from what, with which settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from corpora.manifest import Clip
from extract import audio, faces, vectors, words
from utils.errors import ClipError
from utils.files import digest, read_json, sha256, write_atomic, write_json

SCHEMA = 1  # raise it when a change of the code changes the features


@dataclass(frozen=True)
class Job:
    """What one run of preprocess.py wants from every clip."""

    features_dir: Path
    modalities: tuple[str, ...]
    settings: dict[str, dict]  # stage -> its settings
    word_dim: int | None = None
    device: str = "cpu"
    threads: int = 1
    retry_failed: bool = False


class Product(NamedTuple):
    """A stage's arrays by name, and the facts that it adds to the clip's manifest row."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Stage(NamedTuple):
    """How one modality is made: (clip, job, facts of earlier stages) -> Product."""

    make: Callable[[Clip, Job, dict], Product]
    source: Callable[[Clip], Path | str | None]
    ending: str
    needs: tuple[str, ...] = ()  # stages whose facts or files it reads, where the job has them


def make_speech(clip: Clip, job: Job, facts: dict) -> Product:
    speech = audio.extract_speech(clip.media, job.settings["speech"])
    times = {"speech_start": round(speech.start, 4), "speech_end": round(speech.end, 4)}
    return Product({"speech": speech.log_mel}, {**times, "speech_frames": speech.log_mel.shape[1]})


def make_video(clip: Clip, job: Job, facts: dict) -> Product:
    start, end = facts.get("speech_start"), facts.get("speech_end")
    if start is None:  # a corpus without sound: the whole clip
        start, end = clip.span or faces.time_span(clip.media)
    found = faces.extract_faces(clip.media, start, end, job.settings["video"], job.device)
    flags = "".join("01"[int(flag)] for flag in found.valid)
    counts = {"video_frames": len(flags), "face_frames": int(found.valid.sum())}
    return Product({"video": found.crops}, {**counts, "face_valid": flags})


def make_text(clip: Clip, job: Job, facts: dict) -> Product:
    settings = job.settings["text"]
    if "vectors" in settings:
        stored = vectors.open_store(job.features_dir)
        word_embed = words.embed(clip.transcript, stored, settings)
    else:
        word_embed = words.read_words(clip.words, job.word_dim, settings)
    return Product({"word_embed": word_embed}, {"words": len(word_embed)})


def make_video_embedding(clip: Clip, job: Job, facts: dict) -> Product:
    crops = np.load(feature_path(job.features_dir, clip, "video"), allow_pickle=False)
    valid = np.array([flag == "1" for flag in facts["face_valid"]])
    return Product({"video_embedding": faces.embed(crops, valid, job.device)}, {})


STAGES = {
    "speech": Stage(make_speech, lambda clip: clip.media, ".npy"),
    "video": Stage(make_video, lambda clip: clip.media, ".npy", needs=("speech",)),
    "text": Stage(make_text, lambda clip: clip.words or clip.transcript, ".npz"),
    "video_embedding": Stage(make_video_embedding, lambda clip: None, ".npy", needs=("video",)),
}
SETTINGS = {
    "speech": audio.SETTINGS,
    "video": faces.SETTINGS,
    "text": words.SETTINGS,
    "video_embedding": faces.EMBEDDING_SETTINGS,
}


def feature_path(features_dir: Path, clip: Clip, stage: str) -> Path:
    return features_dir / clip.split / stage / f"{clip.clip_id}{STAGES[stage].ending}"


def record_path(features_dir: Path, clip: Clip) -> Path:
    return features_dir / clip.split / "records" / f"{clip.clip_id}.json"


def process_clip(clip: Clip, job: Job) -> dict:
    """Make what is missing or outdated of one clip and return its record.

    The record is written last: files without a record that names them do not count. A clip that
    cannot be used gets a record too, with its failure, and is tried again when its source or the
    settings change, or with `retry_failed`.
    """
    path = record_path(job.features_dir, clip)
    before = read_json(path) if path.is_file() else {"stages": {}, "failure": None}
    record: dict = {"stages": {}, "failure": None}
    facts: dict = {}
    keys: dict[str, str] = {}
    for name in (name for name in STAGES if name in job.modalities):
        stage, old = STAGES[name], before["stages"].get(name)
        keys[name] = _stage_key(name, clip, job, keys)
        failure = before["failure"]
        if failure and failure["key"] == keys[name] and not job.retry_failed:
            record["failure"] = failure
            break
        if not (old and old["key"] == keys[name] and _is_there(job, clip, name)):
            try:
                old = _make(stage, name, clip, job, facts, keys[name])
            except ClipError as error:
                reason = {"stage": name, "code": error.code, "reason": error.reason}
                record["failure"] = {"key": keys[name], **reason}
                break
        record["stages"][name] = old
        facts |= old["facts"]
    if record != before:
        write_json(path, record)
    return record


def _make(stage: Stage, name: str, clip: Clip, job: Job, facts: dict, key: str) -> dict:
    _limit_threads(job.threads)
    product = stage.make(clip, job, facts)
    path = feature_path(job.features_dir, clip, name)
    if stage.ending == ".npz":
        write_atomic(path, lambda file: np.savez(file, **product.arrays))
    else:
        write_atomic(path, lambda file: np.save(file, product.arrays[name], allow_pickle=False))
    return {"key": key, "sha256": sha256(path), "facts": product.facts}


def _stage_key(name: str, clip: Clip, job: Job, keys: dict[str, str]) -> str:
    """Names everything the stage's result depends on, so that a change of any of it is seen."""
    stage = STAGES[name]
    upstream = [keys[need] for need in stage.needs if need in keys]
    word_dim = job.word_dim if name == "text" else None
    return digest([SCHEMA, job.settings[name], _identity(stage.source(clip)), upstream, word_dim])


def _identity(source: Path | str | None) -> list | str | None:
    """Size and time of change: enough to see a replaced file without reading it. Text is itself."""
    if isinstance(source, str):
        return source
    if source is None or not source.exists():
        return None
    status = source.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_there(job: Job, clip: Clip, stage: str) -> bool:
    return feature_path(job.features_dir, clip, stage).is_file()


def _limit_threads(threads: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


MANIFEST_COLUMNS = (
    *("clip_id", "split", "media", "emotion", "speech_emotion", "face_emotion"),
    *("speaker", "transcript", "fold", "dialogue", "utterance"),
    *("speech_start", "speech_end", "speech_frames"),
    *("video_frames", "face_frames", "face_valid", "words"),
)


def manifest_row(clip: Clip, record: dict, data_dir: Path) -> dict[str, Any]:
    """One row of manifest.csv: the clip as listed, then the facts of its features."""
    row = {**asdict(clip), "words": ""}
    if clip.media.is_relative_to(data_dir):
        row["media"] = clip.media.relative_to(data_dir)
    for stage in record["stages"].values():
        row |= stage["facts"]
    return row
