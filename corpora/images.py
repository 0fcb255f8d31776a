"""Still pictures of faces: folders named after the emotion -> clips of one frame.

    DIR/angry/1.jpg  DIR/happy/2.png ...                 all `train`, folds by the file's content
    DIR/train/angry/1.jpg  DIR/val/happy/2.jpg ...       the splits are folders, too

So FER2013, AffectNet or RAF-DB teach the face. Labels are plain English (angry, happiness, fearful
...) or our codes; the classes are the seven of the challenge. From the folder to features:

    python preprocess.py --corpus images --data_dir fer2013 --face_cropped --face_size 48 \\
        --face_margin 0

--face_cropped: each picture is a face already, as in FER2013; else the largest face is looked for.
There --face_margin only says how close the pictures are: clips that the model is asked about are
cropped with it, and should look alike. FER2013's faces fill their pictures.
A picture of `train` that stands in `val` or `test`, too (FER2013 has such), is left out. Who is
shown is not known: people may stand in several folds. Pictures listed in a table, with people:
--corpus csv takes pictures as `media`. FER2013: Goodfellow et al. (2013), arXiv 1307.0414.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from corpora.manifest import SPLITS, Clip, Listing, check_listing
from corpora.merc2020 import CLASSES
from utils.errors import UsageError
from utils.files import sha256

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FOLDS = 5


def list_clips(data_dir: Path) -> Listing:
    """One clip for each picture whose folder names its emotion."""
    files = sorted(path for path in data_dir.rglob("*") if path.suffix.lower() in ENDINGS)
    clips = [clip for path in files if (clip := clip_of(path, data_dir))]
    if not clips:
        raise UsageError(
            f"no pictures in folders of emotions under {data_dir.resolve()}: expected "
            "angry/1.jpg or train/angry/1.jpg and the like; give their folder with --data_dir"
        )
    contents = {clip.media: sha256(clip.media) for clip in clips}
    held_out = {contents[clip.media] for clip in clips if clip.split != "train"}
    twice = {p for p in contents if contents[p] in held_out}
    kept = [clip for clip in clips if clip.split != "train" or clip.media not in twice]
    folded = [
        replace(clip, fold=str(int(contents[clip.media][:8], 16) % FOLDS))
        if clip.split == "train"
        else clip
        for clip in kept
    ]
    listing = check_listing(Listing(CLASSES, ("video",), folded))
    if len(clips) > len(kept):
        copies = len(clips) - len(kept)
        listing.notes.append(f"{copies} pictures of train that stand in val or test, too")
    if len(files) > len(clips):
        listing.notes.append(f"{len(files) - len(clips)} pictures that lie in no folder of a label")
    return listing


def clip_of(path: Path, data_dir: Path) -> Clip | None:
    """The clip of a picture; None for one that lies beside the folders. A label that nobody knows
    stays as it is: it is listed among the failures."""
    folders = path.relative_to(data_dir).parts[:-1]
    if not folders:
        return None
    split = next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), "train")
    named = [name for name in folders if name.lower() not in SPLITS]
    if not named:
        return None
    label = named[-1]
    return Clip(f"{label}-{path.stem}", split, path, label, label, label)
