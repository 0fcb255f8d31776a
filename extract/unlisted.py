"""Media files of a corpus folder that are no clip of it, so that nobody misses them unknowingly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from corpora.manifest import Listing, relative
from extract.media import FORMATS, PICTURES
from utils.errors import counted, listed, without_controls

# Endings of films, sounds and pictures that we do not read: a folder can hold such clips, too.
UNREAD = ".divx .xvid .vob .m1v .m2v .mpe .mpv .mxf .rm .rmvb .f4v .dv .ogm .qt .m2p .wtv .swf "
UNREAD += ".au .snd .ac3 .eac3 .dts .ra .ape .wv .tta .mp2 .mpa .mpc .spx .gsm .voc .w64 .sph "
UNREAD += ".aifc .m4b .3ga .awb .weba .shn .pcm"
UNREAD_PICTURES = ".gif .tif .tiff .heic .heif .avif .jp2 .jfif .pgm .ppm .tga"


def not_listed(corpus: str, data_dir: Path, listing: Listing) -> list[str]:
    """A line about the films and sounds of the folder that are no clip, no failure and in no note;
    where clips of it are pictures, about pictures, too."""
    endings = {*FORMATS, *UNREAD.split()}
    if any(clip.media.suffix.lower() in PICTURES for clip in listing.clips):
        endings |= {*PICTURES, *UNREAD_PICTURES.split()}
    clips = [clip.media for clip in listing.clips]
    failed = [failure.media for failure in listing.failures]
    named = {path.absolute() for path in [*clips, *failed, *listing.noted]}
    folders = listing.folders or [data_dir]
    below = (file for folder in folders for file in shown_below(folder, tuple(endings)))
    others = sorted(file for file in below if file.absolute() not in named)
    if not others:
        return []
    what = "in no row of manifest.csv"
    if corpus != "csv":
        what = f"{counted(len(others), 'file')} of other names or kinds"
        others = [relative(file, data_dir) for file in others]
    return [without_controls(f"{what}: {listed(others, 2)}").replace("\n", "?")]


def shown_below(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """The files with these endings, without those that are hidden or in a hidden folder; of many
    thousands in a second."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        for name in files:
            if name[0] != "." and name.lower().endswith(endings):
                yield Path(place, name)
