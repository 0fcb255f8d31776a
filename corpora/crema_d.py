"""CREMA-D: `1001_DFA_ANG_XX.flv` and its like -> clips, with folds by speaker.

91 American actors say twelve sentences in six emotions: 7,442 clips of 1 to 5 s, as Flash video
with sound (VideoFlash/) and as sound (AudioWAV/, AudioMP3/). The label is the emotion that was
asked for. Open Database License. Cao et al. (2014), IEEE Transactions on Affective Computing 5(4),
377-390. From the download to features (git-lfs must be installed):

    git clone https://github.com/CheyneyComputerScience/CREMA-D.git
    python preprocess.py --corpus crema_d --data_dir CREMA-D

Video is taken where there is any (.mp4 of your own conversion before .flv), else sound (.wav before
.mp3). Everything is split `train`; there are no published folds, so corpora/splits.py makes five.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from corpora.manifest import Clip, Listing, check_listing
from corpora.splits import assign_folds
from utils.errors import UsageError, counted

CLASSES = ("ang", "dis", "fea", "hap", "neu", "sad")
SENTENCES = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
ENDINGS = {".mp4": True, ".flv": True, ".wav": False, ".mp3": False}  # does it show a picture?
NAME = re.compile(r"\d{4}_[A-Z]{3}_[A-Z]{3}_[A-Z]{1,2}\.(mp4|flv|wav|mp3)", re.IGNORECASE)


def list_clips(data_dir: Path) -> Listing:
    """Every clip of the first kind of file that is there."""
    files = sorted(path for path in data_dir.rglob("*") if NAME.fullmatch(path.name))
    kinds = Counter(path.suffix.lower() for path in files)
    chosen = next((ending for ending in ENDINGS if kinds[ending]), None)
    if not chosen:
        raise UsageError(
            f"no CREMA-D clips under {data_dir.resolve()}: expected names such as "
            "AudioWAV/1001_DFA_ANG_XX.wav; give their folder with --data_dir"
        )
    listing = check_listing(
        Listing(
            classes=CLASSES,
            modalities=("speech", "video") if ENDINGS[chosen] else ("speech",),
            clips=[parse_name(path) for path in files if path.suffix.lower() == chosen],
            notes=[
                f"{counted(count, 'file')} {ending}: {chosen} is read instead"
                for ending, count in sorted(kinds.items())
                if ending != chosen
            ],
            noted=[path for path in files if path.suffix.lower() != chosen],
        )
    )
    listing.clips = assign_folds(listing.clips)
    return listing


def parse_name(media: Path) -> Clip:
    """Clip from actor_sentence_emotion_level."""
    actor, sentence, emotion, _ = media.stem.split("_")
    label, words = emotion.lower(), SENTENCES.get(sentence, "")
    return Clip(media.stem, "train", media, label, label, label, speaker=actor, transcript=words)
