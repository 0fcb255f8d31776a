"""Javanese audio-visual emotions: `01-03-05_01.mp4` and its like -> clips, with folds by person.

10 Indonesians (five women, five men) act four sentences in six emotions before a wall: 240 clips of
2 to 8 s with picture and sound, 25 MB. The name is person-sentence-emotion_take. MIT. From the
download to features:

    git clone https://github.com/2black0/video-emotion-recognition-javanese
    python preprocess.py --corpus javanese --data_dir video-emotion-recognition-javanese

Everything is split `train`; the folds are pairs of people (1 and 2, 3 and 4 ...).
"""

from __future__ import annotations

import re
from pathlib import Path

from corpora.manifest import Clip, Listing, check_listing
from utils.errors import UsageError

CLASSES = ("neu", "sad", "hap", "sur", "fea", "ang")
EMOTIONS = {f"{number:02d}": name for number, name in enumerate(CLASSES, start=1)}
NAME = re.compile(r"\d\d-\d\d-\d\d_\d\d\.mp4", re.IGNORECASE)


def list_clips(data_dir: Path) -> Listing:
    files = sorted(path for path in data_dir.rglob("*") if NAME.fullmatch(path.name))
    if not files:
        raise UsageError(
            f"no clips of the Javanese corpus under {data_dir.resolve()}: expected names such as "
            "01-03-05_01.mp4; give their folder with --data_dir"
        )
    clips = [parse_name(path) for path in files]
    return check_listing(Listing(CLASSES, ("speech", "video"), clips))


def parse_name(media: Path) -> Clip:
    person, _, emotion = media.stem.partition("_")[0].split("-")
    label = EMOTIONS.get(emotion, emotion)
    fold = str((int(person) - 1) // 2)
    return Clip(media.stem, "train", media, label, label, label, speaker=person, fold=fold)
