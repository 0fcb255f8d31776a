"""Still pictures of faces: folders named after the emotion -> clips of one frame.

    DIR/angry/1.jpg  DIR/happy/2.png ...                 all `train`, folds by the file's content
    DIR/train/angry/1.jpg  DIR/val/happy/2.jpg ...       the splits are folders, too
    DIR/Training/angry/1.png  DIR/PublicTest ...  DIR/PrivateTest ...    FER2013's: train, val, test

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

import contextlib
from dataclasses import replace
from pathlib import Path

from corpora.manifest import SPLITS, Clip, Listing, check_listing
from corpora.merc2020 import CLASSES
from utils.errors import UsageError, counted, listed
from utils.files import files_below, is_file, sha256

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PLACES = SPLITS | {"publictest": "val", "privatetest": "test"}  # folders, in small letters
FOLDS = 5


def list_clips(data_dir: Path) -> Listing:
    """One clip for each picture whose folder names its emotion."""
    files = [path for path in files_below(data_dir) if path.suffix.lower() in ENDINGS]
    clips = [clip for path in files if (clip := clip_of(path, data_dir))]
    if not clips:
        raise UsageError(
            f"no pictures in folders of emotions under {data_dir.resolve()}: expected "
            "angry/1.jpg or train/angry/1.jpg and the like; give their folder with --data_dir"
        )
    contents = {clip.media: content_of(clip.media) for clip in clips}
    held_out = {contents[clip.media] for clip in clips if clip.split != "train"} - {""}
    twice = {p for p in contents if contents[p] in held_out}
    kept = [clip for clip in clips if clip.split != "train" or clip.media not in twice]
    folded = [
        replace(clip, fold=str(int(contents[clip.media][:8] or "0", 16) % FOLDS))
        if clip.split == "train"
        else clip
        for clip in kept
    ]
    # each picture is a clip, or a note tells why it is none
    listing = check_listing(Listing(CLASSES, ("video",), folded, noted=files))
    if copies := len(clips) - len(kept):
        stands = "stands" if copies == 1 else "stand"
        what = f"of train that {stands} in val or test, too"
        listing.notes.append(f"{counted(copies, 'picture')} {what}")
    if beside := len(files) - len(clips):
        lies = "lies" if beside == 1 else "lie"
        listing.notes.append(f"{counted(beside, 'picture')} that {lies} in no folder of a label")
    if others := sorted({name for clip in clips for name in unknown_places(clip.media, data_dir)}):
        what = "name no split: what lies there counts as train"
        listing.warnings.append(f"folders above the labels that {what}: {listed(others)}")
    return listing


def content_of(path: Path) -> str:
    """Tells a picture from another one; "" for one that cannot be read: the stages say why."""
    with contextlib.suppress(OSError):
        if is_file(path):  # reading a pipe would wait for ever
            return sha256(path)
    return ""


def unknown_places(path: Path, data_dir: Path) -> list[str]:
    """Folders above the label of a picture that lies in no folder of a split."""
    folders = path.relative_to(data_dir).parts[:-1]
    return [] if any(name.lower() in PLACES for name in folders) else list(folders[:-1])


def clip_of(path: Path, data_dir: Path) -> Clip | None:
    """The clip of a picture; None for one that lies beside the folders. A label that nobody knows
    stays as it is: it is listed among the failures."""
    folders = path.relative_to(data_dir).parts[:-1]
    split = next((PLACES[name.lower()] for name in folders if name.lower() in PLACES), "train")
    named = [name for name in folders if name.lower() not in PLACES]
    if not named:
        return None
    label = named[-1]
    return Clip(f"{label}-{path.stem}", split, path, label, label, label)
