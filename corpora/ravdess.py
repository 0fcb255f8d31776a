"""RAVDESS speech: `Actor_01/ ... Actor_24/` -> clips, with the folds that the field compares on.

24 North American actors say two sentences in eight emotions: 1,440 clips, as sound (03-01-...wav,
215 MB) or as sound and picture (01-01-...mp4; all of RAVDESS is 24.8 GB). CC BY-NC-SA 4.0.
Livingstone & Russo (2018), PLoS ONE 13(5): e0196391. From the download to features:

    wget https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip
    unzip -d ravdess Audio_Speech_Actors_01-24.zip
    python preprocess.py --corpus ravdess --data_dir ravdess

Audio-video: the same with Video_Speech_Actor_01.zip ... 24.zip. A folder that holds both gives
audio-video: the sound is the same. Songs and the videos without sound (02-) are left out. Seven
classes: `--classes neu,hap,sad,ang,fea,dis,sur`, or `neu+cal,...` to count calm as neutral.
Everything is split `train`; `train.py --fold K` holds the actors of one fold out for validation.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from corpora.manifest import Clip, Listing, check_listing
from utils.errors import UsageError, counted

CLASSES = ("neu", "cal", "hap", "sad", "ang", "fea", "dis", "sur")
EMOTIONS = {f"{number:02d}": name for number, name in enumerate(CLASSES, start=1)}
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
# The subject-wise folds of Luna-Jimenez et al. (2021), Sensors 21(22): 7665: actors held out.
FOLDS = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)
KINDS = {"01-01": "speech with picture", "03-01": "speech", "02-01": "speech without sound"}
NAME = re.compile(r"\d\d(-\d\d){6}\.(mp4|wav|flac)", re.IGNORECASE)


def list_clips(data_dir: Path) -> Listing:
    """Every clip with picture and sound, or else every clip of sound alone."""
    # The folders as published come first: some copies hold all of them a second time, deeper, and
    # of a file and its copy the first is taken.
    files = sorted(data_dir.rglob("*"), key=lambda path: (len(path.parts), path))
    files = [path for path in files if NAME.fullmatch(path.name)]
    kinds = Counter(path.name[:5] for path in files)
    chosen = next((kind for kind in ("01-01", "03-01") if kinds[kind]), None)
    if not chosen:
        raise UsageError(
            f"no RAVDESS speech under {data_dir.resolve()}: expected Actor_01/03-01-...wav or "
            "Actor_01/01-01-...mp4; give the folder of the actors with --data_dir"
        )
    clips = [parse_name(path) for path in files if path.name.startswith(chosen)]
    others = [path for path in files if not path.name.startswith(chosen)]
    pictures = any(clip.media.suffix.lower() == ".mp4" for clip in clips)
    return check_listing(
        Listing(
            classes=CLASSES,
            modalities=("speech", "video") if pictures else ("speech",),
            clips=clips,
            notes=[
                f"{counted(count, 'clip')} of {KINDS.get(kind, 'song')} ({kind}-...)"
                for kind, count in sorted(kinds.items())
                if kind != chosen
            ],
            noted=others,
        )
    )


def parse_name(media: Path) -> Clip:
    """Clip from modality-channel-emotion-intensity-statement-repetition-actor."""
    _, _, emotion, _, statement, _, actor = media.stem.split("-")
    label = EMOTIONS.get(emotion, emotion)
    return Clip(
        clip_id=media.stem,
        split="train",
        media=media,
        emotion=label,
        speech_emotion=label,
        face_emotion=label,
        speaker=f"Actor_{actor}",
        transcript=STATEMENTS.get(statement, ""),
        fold=next((str(fold) for fold, held in enumerate(FOLDS) if int(actor) in held), ""),
    )
