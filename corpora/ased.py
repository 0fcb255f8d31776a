"""ASED, Amharic speech: `a1-03-01-02-15.wav` and its like -> clips, with folds by speaker.

65 speakers say sentences in five emotions: 2,474 clips of sound, 2 to 5 s. The name is emotion and
number, sentence, repetition, gender, speaker. For research. Retta et al. (2023), ACM Transactions
on Asian and Low-Resource Language Information Processing, doi 10.1145/3529759, arXiv 2201.02710.
From the download to features:

    git clone https://github.com/wgwangang/ASED_V1
    python preprocess.py --corpus ased --data_dir ASED_V1

Everything is split `train`; there are no published folds, so corpora/splits.py makes five.
"""

from __future__ import annotations

import re
from pathlib import Path

from corpora.manifest import Clip, Listing, check_listing
from corpora.splits import assign_folds
from utils.errors import UsageError

EMOTIONS = {"n": "neu", "f": "fea", "h": "hap", "s": "sad", "a": "ang"}
NAME = re.compile(r"[nfhsa]\d+(-\d\d){4}\.(wav|mp3)", re.IGNORECASE)


def list_clips(data_dir: Path) -> Listing:
    files = sorted(path for path in data_dir.rglob("*") if NAME.fullmatch(path.name))
    if not files:
        raise UsageError(
            f"no ASED clips under {data_dir.resolve()}: expected names such as "
            "a1-03-01-02-15.wav; give their folder with --data_dir"
        )
    clips = [parse_name(path) for path in files]
    listing = check_listing(Listing(tuple(EMOTIONS.values()), ("speech",), clips))
    listing.clips = assign_folds(listing.clips)
    return listing


def parse_name(media: Path) -> Clip:
    emotion, *_, speaker = media.stem.split("-")
    label = EMOTIONS[emotion[0].lower()]
    return Clip(media.stem, "train", media, label, label, label, speaker=speaker)
