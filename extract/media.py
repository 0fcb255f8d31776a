"""Open a clip safely and walk its frames: any fault of the file becomes a ClipError."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import ClipError

# The demuxer follows from the file's ending and is never guessed from the content: a text file
# named .mp4 could otherwise make FFmpeg open other files (its ffconcat format).
FORMATS = {
    ".mp4": "mov",
    ".mov": "mov",
    ".m4v": "mov",
    ".m4a": "mov",
    ".flv": "flv",
    ".avi": "avi",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".wav": "wav",
    ".flac": "flac",
    ".mp3": "mp3",
}
TRUNCATED_BELOW = 0.9  # share of the frames that the file's index lists


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[Any]:
    """Yield PyAV's container of a regular file; ClipError says why it cannot be read."""
    import av

    # Faults are reported by us, once, with the file's name. None also takes PyAV's own callback out
    # of FFmpeg: with it, some damaged clips stop for ever.
    av.logging.set_level(None)
    check_file(path)
    try:
        container = av.open(str(path), format=FORMATS[path.suffix.lower()])
    except (av.FFmpegError, *BROKEN_FILE) as error:
        raise ClipError("E_OPEN", f"cannot open {path.name}: {describe(path, error)}") from error
    try:
        yield container
    except (av.FFmpegError, *BROKEN_FILE) as error:
        raise ClipError("E_CODEC", f"{path.name} does not decode: {error}") from error
    finally:
        container.close()


# What PyAV raises on damaged files besides its own FFmpegError, seen over 900 mutated clips.
BROKEN_FILE = (AttributeError, EOFError, IndexError, MemoryError, UnicodeDecodeError, ValueError)


def check_file(path: Path) -> None:
    """ClipError unless `path` is a regular, non-empty file of a known ending."""
    try:
        status = path.stat()
    except PermissionError as error:
        raise ClipError("E_PERM", f"no permission to read {path}") from error
    except OSError as error:
        raise ClipError("E_MISSING", f"no file {path}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("E_OPEN", f"{path.name} is not a regular file")
    if path.suffix.lower() not in FORMATS:
        raise ClipError("E_OPEN", f"{path.name}: known endings are {' '.join(FORMATS)}")
    if not status.st_size:
        raise ClipError("E_OPEN", f"{path.name} is empty (0 bytes)")


def describe(path: Path, error: Exception) -> str:
    """What a person would see in a file that does not open."""
    with open(path, "rb") as file:
        start = file.read(64)
        is_mp4 = start[4:8] == b"ftyp"
    if is_mp4:
        return "its index (moov) is missing or damaged; the copy was cut short?"
    if start.isascii() and start.strip():
        return f"it starts with the text {start[:16]!r}"
    return f"not a {FORMATS[path.suffix.lower()]} file ({error})"


def check_complete(stream: Any, packets: int, path: Path) -> None:
    """ClipError when the file holds clearly fewer packets than its own index lists.

    Only .mp4 and .mov have such an index, and for uncompressed sound it counts samples.
    """
    indexed = FORMATS[path.suffix.lower()] == "mov" and not stream.codec.name.startswith("pcm")
    if indexed and packets < TRUNCATED_BELOW * stream.frames:
        kind = stream.type
        reason = f"{path.name} is cut short: {packets} of {stream.frames} {kind} packets are there"
        raise ClipError("E_TRUNC", reason)
