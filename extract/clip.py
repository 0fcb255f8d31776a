"""One clip -> its features and its record: what was made, from what, with which settings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from corpora.manifest import Clip, relative
from extract import RANGES, audio, detector, encoders, faces, vectors, words
from extract.media import scan_pictures
from extract.revisions import REVISION, is_current
from utils.config import device_name
from utils.errors import ClipError
from utils.files import (
    digest,
    has_sha256,
    in_threads,
    is_file,
    read_known,
    record_path,
    sha256,
    write_atomic,
    write_json,
)
from utils.guard import Limits, guarded, lift_memory_limit

# Raise this where the code makes other features of ordinary clips: all are made anew, days for a
# large corpus. Where only those of odd clips change, raise REVISION of extract/revisions.py.
SCHEMA = 2
# What a clip may do without, with --partial: there is no sound, face or word in it. What is damaged
# is rejected all the same.
LACKING = {
    "speech": ("E_NOAUDIO", "E_SILENT", "E_SHORT"),
    "video": ("E_NOVIDEO", "E_NOFACE"),
    "text": ("E_MISSING", "E_SHORT"),
}
OUTSIDE = ("E_MISSING", "E_PERM", "E_READ")  # these say nothing about the file, and may pass
EMPTY: dict[str, Any] = {"stages": {}, "failure": None}  # the record of a clip without any


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
    verify: bool = False  # are the files still as they were written?
    partial: bool = False  # keep a clip that lacks a sound, a face or words, with what it has
    forgiving: bool = False  # and one of which something cannot be read, for whatever reason
    clip_seconds: float = 0  # deadline of a stage, and as much again per 10 MB; 0: no supervision
    memory_mb: int = 0  # limit of the process that works on a clip


class Stage(NamedTuple):
    """How one modality is made: (clip, job, facts of earlier stages, file to write) -> new facts.

    The facts go into the clip's row of the manifest. `libraries` are what `make` needs.
    """

    make: Callable[[Clip, Job, dict, BinaryIO], dict[str, Any]]
    source: Callable[[Clip], Path | str | None]  # a file, a transcript, or only other stages
    ending: str
    needs: tuple[str, ...] = ()  # stages whose files it reads, where the job has them
    follows: tuple[str, ...] = ()  # stages whose facts it uses, where there are any
    libraries: tuple[str, ...] = ()
    supervised: bool = True  # it reads foreign files: in a process of its own that may die


def make_speech(clip: Clip, job: Job, facts: dict, file: BinaryIO) -> dict:
    speech = audio.extract_speech(clip.media, job.settings["speech"])
    np.save(file, speech.log_mel)
    times = {"speech_start": round(speech.start, 4), "speech_end": round(speech.end, 4)}
    return {
        **times,
        "speech_frames": speech.log_mel.shape[1],
        "clipped_ratio": round(speech.clipped, 6),
        "sound_track": speech.track,
        "sound_channel": speech.channel,
        "sound_gaps": round(speech.gaps, 4),
    }


def make_video(clip: Clip, job: Job, facts: dict, file: BinaryIO) -> dict:
    if "speech_start" in facts:
        start, end = facts["speech_start"], facts["speech_end"]
    else:  # a corpus without sound: the whole clip
        start, end = clip.span or scan_pictures(clip.media)[:2]
    settings, size = job.settings["video"], job.settings["video"]["face_size"]
    count = faces.count_times(start, end, settings["face_fps"])
    if count * size * size * 3 > faces.MOST_BYTES:
        what = (
            f"{clip.media.name} lasts {end - start:.0f} s: {count} crops of {size} x {size} pixels"
        )
        raise ClipError("E_LIMIT", f"{what} are over {faces.MOST_BYTES / 1e9:.0f} GB")
    shape = (count, size, size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    flags = ""
    device = device_name(job.device)
    stream = faces.face_stream(clip.media, start, end, settings, device, job.threads, clip.cropped)
    for crop, box in stream:
        file.write(crop.data)  # one at a time: the memory does not grow with the clip
        flags += "1" if np.isfinite(box).all() else "0"
    return {"video_frames": len(flags), "face_frames": flags.count("1"), "face_valid": flags}


def make_text(clip: Clip, job: Job, facts: dict, file: BinaryIO) -> dict:
    settings = job.settings["text"]
    if "vectors" in settings:
        word_embed = words.embed(clip.transcript, vectors.open_store(job.features_dir), settings)
    else:
        word_embed = words.read_words(clip.words, job.word_dim, settings)
    np.savez(file, word_embed=word_embed)
    return {"words": len(word_embed)}


def make_video_embedding(clip: Clip, job: Job, facts: dict, file: BinaryIO) -> dict:
    path = feature_path(job.features_dir, clip, "video")
    crops = np.load(path, mmap_mode="r", allow_pickle=False)
    valid = np.array([flag == "1" for flag in facts["face_valid"]])
    weights = job.settings["video_embedding"].get("sha256", faces.WEIGHTS_SHA256)
    np.save(file, faces.embed(crops, valid, device_name(job.device), weights))
    return {}


def make_wave(clip: Clip, job: Job, facts: dict, file: BinaryIO) -> dict:
    start, end = facts["speech_start"], facts["speech_end"]
    wave = audio.read_between(clip.media, start, end, job.settings["speech"])
    np.save(file, wave.astype(job.settings["wave"]["dtype"]))
    return {}


def make_encoding(name: str, clip: Clip, job: Job, facts: dict, file: BinaryIO) -> dict:
    """What a pretrained encoder makes of the wave, the crops with a face, or the transcript."""
    settings = job.settings[name]
    if settings["reads"] == "transcript":
        seen: Any = clip.transcript
        if not seen.strip():
            raise ClipError("E_SHORT", "no words: its transcript is empty")
    else:
        path = feature_path(job.features_dir, clip, settings["reads"])
        seen = in_threads(np.load, path, allow_pickle=False)
        if settings["reads"] == "video":
            seen = seen[[flag == "1" for flag in facts["face_valid"]]]
        else:
            seen = seen.astype(np.float32)
    np.save(file, encoders.encode(settings, device_name(job.device), seen))
    return {}


def stage_names(job: Job) -> list[str]:
    """Ours, then those of the encoders whose settings are known: none needs a later one."""
    return [*STAGES, *(name for name in job.settings if name not in STAGES)]


def stage_named(name: str, job: Job) -> Stage:
    """A stage of ours, or the one that an encoder of the job makes."""
    if name in STAGES:
        return STAGES[name]
    reads = job.settings[name]["reads"]
    return Stage(
        partial(make_encoding, name),
        lambda clip: clip.transcript if reads == "transcript" else None,
        ".npy",
        (reads,),
        libraries=("torch",),
        supervised=False,  # it reads our own files, and its weights are loaded once
    )


SOUND = ("librosa.filters", "scipy.signal", "av")
PICTURE = ("torch", "extract.networks", "cv2", "av")
STAGES = {
    "speech": Stage(make_speech, lambda clip: clip.media, ".npy", libraries=SOUND),
    "wave": Stage(make_wave, lambda clip: clip.media, ".npy", ("speech",), libraries=SOUND),
    "video": Stage(make_video, lambda clip: clip.media, ".npy", (), ("speech",), PICTURE),
    "text": Stage(make_text, lambda clip: clip.words or clip.transcript, ".npz"),
    "video_embedding": Stage(
        make_video_embedding, lambda clip: None, ".npy", ("video",), libraries=PICTURE
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "speech": audio.SPEECH_SETTINGS,
    "wave": audio.WAVE_SETTINGS,
    "video": faces.FACE_SETTINGS,
    "text": words.TEXT_SETTINGS,
    "video_embedding": faces.EMBEDDING_SETTINGS,
}


def odd_settings(stage: str, settings: dict[str, Any]) -> list[str]:
    """Those settings of a checkpoint that preprocess.py cannot have had, for a message: they decide
    how much memory a clip takes, and a checkpoint may come from anywhere."""

    def is_odd(value: Any, default: Any, low: float, high: float) -> bool:
        if isinstance(default, str):
            return value != default
        if isinstance(default, bool):
            return not isinstance(value, bool)
        kinds = (int,) if isinstance(default, int) else (int, float)
        return type(value) not in kinds or not low <= value <= high

    odd = []
    for name, default in SETTINGS[stage].items():
        around = (0, 0) if isinstance(default, str) else (default / 10, default * 10)
        if is_odd(settings.get(name), default, *RANGES.get(name, around)):
            odd.append(f"{name} {settings.get(name)!r}")
    return odd


def feature_path(features_dir: Path, clip: Clip, stage: str) -> Path:
    ending = STAGES[stage].ending if stage in STAGES else ".npy"
    return features_dir / clip.split / stage / f"{clip.clip_id}{ending}"


def process_clip(clip: Clip, job: Job) -> dict:
    """Make what is missing or outdated of one clip and return its record.

    The record is written last: files without a record that names them do not count. A clip that
    cannot be used gets a record too, with its failure, and is tried again when its source or the
    settings change, or with `retry_failed`. With `partial` what a clip lacks costs only the stages
    that need it, as long as it has something; with `forgiving` whatever fails does.

    What was made stays in the record while its file is there, whether this run asks for it, fails
    before it, or cannot make it: its key decides when a run with other flags, or with the source
    back in its place, asks for it.
    """
    path = record_path(job.features_dir, clip.split, clip.clip_id)
    before, revision = _of_this_revision(read_record(path), clip, job)
    names = stage_names(job)
    stages = {name: entry for name, entry in before["stages"].items() if _is_there(job, clip, name)}
    failure = None
    missing: dict[str, dict] = {}  # stage -> why the clip does without
    facts: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for name in (name for name in names if name in job.modalities):
        key = _stage_key(name, clip, job, keys)
        lost = [missing[need] for need in stage_named(name, job).needs if need in missing]
        why = lost[0] | {"stage": name} if lost else _failed_before(name, key, before, job)
        if not why and stages.get(name, {}).get("key") != key:
            try:
                stages[name] = _supervised(name, clip, job, _write, name, clip, job, facts, key)
            except ClipError as error:
                reason = {"stage": name, "code": error.code, "reason": error.reason}
                why = {"key": key, **reason, "limits": limits_of(job)}
        if not why:
            keys[name] = key
            facts |= stages[name]["facts"]
        elif lost or can_do_without(name, why["code"], job):
            missing[name] = why
            stages.pop(name, None)
        else:
            failure = why
            break
    if missing and all(name in missing for name in job.modalities):
        failure = next(iter(missing.values()))
    record: dict[str, Any] = {"stages": {name: stages[name] for name in names if name in stages}}
    record |= {"failure": failure, "revision": revision}
    if missing:
        record["missing"] = [*missing.values()]
    if record != read_record(path):
        write_json(path, record | {"digest": digest(record)})
    return record


def can_do_without(stage: str, code: str, job: Job) -> bool:
    """Whether a clip may stay without what failed so; an encoder has too few words (E_SHORT)."""
    return job.forgiving or (job.partial and code in LACKING.get(stage, ("E_SHORT",)))


def _failed_before(name: str, key: str, before: dict, job: Job) -> dict | None:
    """Why an earlier run could not make the same, where trying again would change nothing."""
    for failure in (before["failure"], *before.get("missing", ())):
        if failure and (failure["stage"], failure["key"]) == (name, key):
            return None if _try_again(failure, job) else failure
    return None


def _of_this_revision(record: dict, clip: Clip, job: Job) -> tuple[dict, int | None]:
    """What still counts of a record, and of which revision it is now."""
    since = record.get("revision")
    if since == REVISION:
        return record, since
    again = {**record, "failure": None, "missing": []}  # what failed then may be read now
    if not record["stages"].keys() & {"speech", "video"}:
        return again, REVISION
    try:
        asked = clip, record["stages"], since, job.settings
        same = _supervised("speech", clip, job, is_current, *asked)
    except ClipError as error:
        if error.code in OUTSIDE:
            return again, since  # looked at when the file is back
        same = False  # the stages will say it
    return (again if same else EMPTY), REVISION


def limits_of(job: Job) -> list[float]:
    return [job.clip_seconds, job.memory_mb]


def _try_again(failure: dict, job: Job) -> bool:
    """Whether what stopped a clip before may be gone, though its file is the same."""
    if failure["code"] in ("E_TIMEOUT", "E_KILLED", "E_CODEC"):
        return job.retry_failed or failure["limits"] != limits_of(job)
    return job.retry_failed or failure["code"] in OUTSIDE


def read_record(path: Path) -> dict:
    """The record, or an empty one where there is none or a changed one: the clip is made anew."""
    record = read_known(path)
    return record if record.pop("digest", None) == digest(record) else EMPTY


def remove_changed(clip: Clip, job: Job) -> list[Path]:
    """Remove the files of a clip that are no longer as they were written, or were made from a file
    that is another one now; these, and those that are missing.

    So are those that were made from one of them. `process_clip` makes them anew. It does not look
    itself: reading every file takes its time.
    """
    path = record_path(job.features_dir, clip.split, clip.clip_id)
    record = read_record(path)
    changed = []
    places = [path, *(feature_path(job.features_dir, clip, name) for name in job.modalities)]
    unknown = not (record["stages"] or record["failure"])
    if unknown and any(place.is_file() for place in places):
        changed.append(path)
    gone: set[str] = set()
    for name in (name for name in stage_names(job) if name in record["stages"]):
        # what another run asked for is not read, but is not left behind what it was made from
        same = gone.isdisjoint(stage_named(name, job).needs)
        if same and name in job.modalities:
            same = _is_as_made(name, clip, job, record["stages"][name])
        if not same:
            gone.add(name)
            changed.append(feature_path(job.features_dir, clip, name))
    if changed:
        (job.features_dir / "manifest.csv").unlink(missing_ok=True)  # as in `_withdraw`
    for each in changed:
        each.unlink(missing_ok=True)
    return changed


def _is_as_made(name: str, clip: Clip, job: Job, entry: dict) -> bool:
    """Whether a stage's file, and the file that it was made from, are those of its entry."""
    source = stage_named(name, job).source(clip)
    if not has_sha256(feature_path(job.features_dir, clip, name), entry["sha256"]):
        return False
    if "source_sha256" in entry and isinstance(source, Path) and is_file(source):
        with contextlib.suppress(OSError):  # a file that cannot be read now costs nothing made
            return _digest_of(source, stamp(source)) == entry["source_sha256"]
    return True


def _supervised(name: str, clip: Clip, job: Job, function: Callable, *args: Any) -> Any:
    """`function(*args)`, which does what a stage does; in a process of its own if asked."""
    stage = stage_named(name, job)
    reads_file = isinstance(stage.source(clip), Path)  # words of a table can do no harm
    if not (job.clip_seconds and stage.supervised and (reads_file or stage.needs)):
        return function(*args)
    return guarded(function, *args, limits=limits_for(stage.source(clip), job))


def limits_for(source: Path | str | None, job: Job) -> Limits:
    """What reading a clip's file may use in a process of its own."""
    seconds = deadline_for(source, job.clip_seconds)
    return Limits(seconds, job.memory_mb, libraries_of(job.modalities))


def deadline_for(source: Path | str | None, clip_seconds: float) -> float:
    """`clip_seconds`, and as much again per 10 MB of a file."""
    status = stamp(source) if isinstance(source, Path) else None
    megabytes = status[1] / 1e6 if status else 0
    return clip_seconds * (1 + megabytes / 10)


def libraries_of(modalities: Iterable[str]) -> tuple[str, ...]:
    """What the stages of these names need in a process of its own, each library once."""
    stages = [STAGES[name] for name in modalities if name in STAGES]
    return tuple(dict.fromkeys(library for stage in stages for library in stage.libraries))


def _write(name: str, clip: Clip, job: Job, facts: dict, key: str) -> dict:
    """Make one stage's file; what the record says of it."""
    stage, path = stage_named(name, job), feature_path(job.features_dir, clip, name)
    if "torch" in stage.libraries and device_name(job.device) != "cpu":
        lift_memory_limit()
    made: dict[str, Any] = {}

    def write(file: BinaryIO) -> None:
        with limited_threads(job.threads, stage.libraries):
            made.update(stage.make(clip, job, facts, file))
        _withdraw(name, clip, job, key)

    write_atomic(path, write)
    entry = {"key": key, "sha256": sha256(path), "facts": made}
    source = stage.source(clip)
    if isinstance(source, Path):
        entry["source_sha256"] = _digest_of(source, stamp(source))
    return entry


def _withdraw(name: str, clip: Clip, job: Job, key: str) -> None:
    """Right before a stage's file is replaced: if this process dies then, no record takes the new
    one for the old one, and no manifest offers a mixture of both."""
    path = record_path(job.features_dir, clip.split, clip.clip_id)
    record = read_record(path)
    if name in record["stages"] or _is_there(job, clip, name):
        (job.features_dir / "manifest.csv").unlink(missing_ok=True)
    if name in record["stages"] and record["stages"][name]["key"] != key:
        stages = {other: entry for other, entry in record["stages"].items() if other != name}
        record = {**record, "stages": stages}
        write_json(path, record | {"digest": digest(record)})


@lru_cache(maxsize=1)  # the stages of a clip come one after the other
def _digest_of(source: Path, stamp: tuple | None) -> str:
    return sha256(source)


def _stage_key(name: str, clip: Clip, job: Job, keys: dict[str, str]) -> str:
    """Names everything the stage's result depends on, so that a change of any of it is seen."""
    stage = stage_named(name, job)
    upstream = [keys[name] for name in (*stage.needs, *stage.follows) if name in keys]
    word_dim = job.word_dim if name == "text" else None
    source: Any = stage.source(clip)
    if isinstance(source, Path):
        source = stamp(source)
    settings = job.settings[name]
    if name not in STAGES:
        settings = encoders.identity(settings)
    how = ["cropped"] if name == "video" and clip.cropped else []
    return digest([SCHEMA, settings, source, upstream, word_dim, *how])


def stamp(path: Path) -> tuple[str, int, int] | None:
    """Name, size and time of change: enough to see most replaced files without reading them (all,
    with --verify)."""
    try:
        status = path.stat()
    except OSError:  # the stage will say why it cannot be read
        return None
    return path.name, status.st_size, status.st_mtime_ns


def _is_there(job: Job, clip: Clip, stage: str) -> bool:
    return feature_path(job.features_dir, clip, stage).is_file()


@contextlib.contextmanager
def limited_threads(threads: int, libraries: tuple[str, ...]) -> Iterator[None]:
    """Without it every worker's BLAS and OpenMP wait in busy loops for all cores.

    BLAS gets one thread: its matrices are small here, a second one makes a clip slower. Sound alone
    does not load what pictures need. Afterwards the process has its own numbers again: it may be
    one that uses `Predictor` beside other work.
    """
    if not libraries:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"), contextlib.ExitStack() as undo:
        if "torch" in {*libraries, *sys.modules}:
            import torch

            undo.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        if "cv2" in {*libraries, *sys.modules}:
            import cv2

            undo.callback(cv2.setNumThreads, cv2.getNumThreads())
            cv2.setNumThreads(threads)
        yield


def warm_up(job: Job) -> None:
    """Load what the first clip would load, so that its times are those of any clip."""
    noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    audio.log_mel_spectrogram(audio.denoise(noise))
    if "video" in job.settings:
        detector.detector(job.device, job.settings["video"]["min_face"])


MANIFEST_COLUMNS = (
    *("clip_id", "split", "media", "emotion", "speech_emotion", "face_emotion"),
    *("speaker", "transcript", "fold", "dialogue", "utterance"),
    *("speech_start", "speech_end", "speech_frames"),
    *("video_frames", "face_frames", "face_valid", "words"),
)


def manifest_row(clip: Clip, facts: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """One row of manifest.csv: the clip as listed, then the facts of its features."""
    row = {**asdict(clip), "words": ""} | facts
    return row | {"media": relative(clip.media, data_dir)}


def missing_of(record: dict, modalities: tuple[str, ...]) -> str:
    """The column `missing` of --partial: which of these stages the clip does without."""
    names = [each["stage"] for each in record.get("missing", ())]
    return " ".join(name for name in names if name in modalities)


def facts_of(record: dict, modalities: tuple[str, ...]) -> dict[str, Any]:
    """Those of these stages that stand in manifest.csv."""
    stages = [stage for name, stage in record["stages"].items() if name in modalities]
    facts = {k: v for stage in stages for k, v in stage["facts"].items()}
    return {name: value for name, value in facts.items() if name in MANIFEST_COLUMNS}
