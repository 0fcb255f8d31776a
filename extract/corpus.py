"""All clips of a corpus -> their features: words recognised, stages made, encoders run."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from corpora.manifest import Clip
from extract import encoders, transcribe
from extract.clip import SOUND, STAGES, Job, deadline_for, process_clip, remove_changed, stamp
from utils.config import device_name
from utils.errors import ClipError
from utils.files import read_known
from utils.guard import Limits, guarded
from utils.parallel import available_cores, parallel_map

Key = tuple[str, str]  # split and id of a clip
Records = dict[Key, dict]


def recognise_words(
    clips: list[Clip], job: Job, model: str
) -> tuple[dict[Key, transcribe.Said], Counter[str]]:
    """What is said in each clip without a transcript, and how often which error left one unheard.

    The subtitles stay in features/<split>/transcripts/: a rerun recognises only new clips.
    """
    device = device_name(job.device)
    weights = transcribe.load(model, device).weights
    said, unheard = {}, Counter[str]()
    for clip in tqdm(clips, "transcribing", unit="clip", smoothing=0.05):
        if clip.transcript:
            continue
        place = job.features_dir / clip.split / transcribe.FOLDER / f"{clip.clip_id}.srt"
        key = [weights, stamp(clip.media)]
        found = transcribe.kept(place, key, clip.media if job.verify else None)
        if found is None:
            limits = Limits(deadline_for(clip.media, job.clip_seconds), job.memory_mb, SOUND)
            try:
                wave, start = guarded(transcribe.hear, clip.media, limits=limits)
                found = transcribe.recognise(wave, start, model, device)
                transcribe.keep(place, key, found, clip.media)
            except ClipError as error:  # nothing is kept: the next run tries again
                unheard[error.code] += 1
        if found is not None:
            said[clip.split, clip.clip_id] = found
    transcribe.load.cache_clear()
    return said, unheard


def make_features(
    clips: list[Clip], job: Job, workers: int, backend: str
) -> tuple[Records, list[Path]]:
    """The clips' records, and the files that --verify found changed.

    Our own stages first, several clips at once; then one encoder after the other.
    """
    ours = tuple(name for name in job.modalities if name in STAGES)
    work = [(clip, replace(job, modalities=ours), job) for clip in clips]
    results = parallel_map(work_on, work, max(1, min(workers, len(work))), backend)
    progress = tqdm(results, "loading libraries", len(work), unit="clip", smoothing=0.05)
    records, changed = {}, []
    for key, record, files in progress:
        progress.set_description("extracting", refresh=False)
        records[key] = record
        changed += files
    for count in range(len(ours) + 1, len(job.modalities) + 1):
        encode_clips(clips, replace(job, modalities=job.modalities[:count]), records)
    return records, changed


def work_on(item: tuple[Clip, Job, Job]) -> tuple[Key, dict, list[Path]]:
    """One clip by the stages of the first job; what --verify compares are those of the second."""
    clip, job, whole = item
    changed = remove_changed(clip, whole) if job.verify else []
    return (clip.split, clip.clip_id), process_clip(clip, job), changed


def encode_clips(clips: list[Clip], job: Job, records: Records) -> None:
    """Make the features of the job's last encoder, of all usable clips, in this process, which
    loads it once, and on all cores. Renews `records`."""
    name = job.modalities[-1]
    job = replace(job, threads=available_cores())  # as predict.py does: its numbers are the same
    # with --partial a clip without a sound and a face may have words all the same
    reads_words = job.partial and job.settings[name]["input"] == "text"
    usable = [
        clip
        for clip in clips
        if not records[clip.split, clip.clip_id]["failure"] or (reads_words and clip.transcript)
    ]
    for clip in tqdm(usable, f"encoding {name}", unit="clip", smoothing=0.05):
        records[clip.split, clip.clip_id] = process_clip(clip, job)
    for line in encoders.notes(job.settings[name], device_name(job.device)):
        print(f"warning: {name}: {line}", file=sys.stderr)
    encoders.load.cache_clear()


def earlier_encoders(features_dir: Path) -> dict[str, dict]:
    """Settings of encoders that an earlier run had: what they made is kept for a later one."""
    features = read_known(features_dir / "settings.json").get("features")
    items = features.items() if isinstance(features, dict) else ()
    return {
        name: settings
        for name, settings in items
        if name not in STAGES and isinstance(settings, dict) and "library" in settings
    }
