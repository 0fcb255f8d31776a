"""A clip's file -> packets, and the frames on screen at given times; any fault is a ClipError."""

from __future__ import annotations

import contextlib
import errno
import math
import re
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from utils.errors import ClipError, in_short


class Kind(NamedTuple):
    """A kind of file, by the name of FFmpeg's demuxer: its endings, its name for people, and its
    first bytes, in which "." is any byte."""

    endings: str
    name: str
    start: bytes
    picture: bool = True  # whether it can hold one


# The demuxer follows from the file's ending and is never guessed from the content: a text file
# named .mp4 could otherwise make FFmpeg open other files (its ffconcat format).
KINDS = {
    "mov": Kind(
        ".mp4 .mov .m4v .m4a .3gp .3g2", "an MP4/M4A file", rb"....(ftyp|moov|mdat|free|skip|wide)"
    ),
    "matroska": Kind(".mkv .webm .mka", "a Matroska or WebM file", rb"\x1a\x45\xdf\xa3"),
    "avi": Kind(".avi", "an AVI file", rb"RIFF....AVI "),
    "flv": Kind(".flv", "an FLV file", rb"FLV\x01"),
    "asf": Kind(".wmv .wma .asf", "a Windows Media file", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "mpegts": Kind(".ts .mts .m2ts", "an MPEG transport stream", rb"(....)?\x47.{187}(....)?\x47"),
    "mpeg": Kind(".mpg .mpeg", "an MPEG file", rb"\x00\x00\x01\xba"),
    "wav": Kind(".wav", "a WAV file", rb"(RIFF|RIFX|RF64|BW64)....WAVE", False),
    "flac": Kind(".flac", "a FLAC file", rb"fLaC", False),
    "ogg": Kind(".ogg .oga .ogv .opus", "an Ogg or Opus file", rb"OggS"),
    "amr": Kind(".amr", "an AMR file", rb"#!AMR", False),
    "aiff": Kind(".aiff .aif", "an AIFF file", rb"FORM....AIF", False),
    "caf": Kind(".caf", "a CAF file", rb"caff", False),
    # last, for their sounds begin with few fixed bits
    "aac": Kind(".aac", "an AAC file", rb"\xff[\xf0\xf1\xf8\xf9]", False),
    "mp3": Kind(".mp3", "an MP3 file", rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]", False),
}
FORMATS = {ending: name for name, kind in KINDS.items() for ending in kind.endings.split()}
SOUNDS = {".m4a", ".mka", ".wma", ".ogg", ".oga", ".opus"}  # .ogv is the picture's
SOUNDS |= {ending for ending, name in FORMATS.items() if not KINDS[name].picture}
PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
MAX_PIXELS = 36_000_000  # of a frame: 8K
WHOLE = ("matroska", "flv")  # they tell how long they are, but not how long a track is
TRUNCATED_BELOW = 0.9  # share of what the file promises: packets, seconds or bytes
ROUNDING = 0.01  # of the shape of a pixel: closer than this to a square, it is one
# of a .wmv: the object that holds the file's size
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
BOXES = (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"moov", b"mdat", b"moof")  # of an .mp4


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[Any]:
    """Yield PyAV's container of a regular file; ClipError says why it cannot be read."""
    import av

    # Faults are reported by us, once, with the file's name. None also takes PyAV's own callback out
    # of FFmpeg: with it, some damaged clips stop for ever.
    av.logging.set_level(None)
    if path.suffix.lower() in PICTURES:
        raise ClipError("E_NOAUDIO", f"{path.name} is a still picture, without sound")
    check_file(path)
    try:
        container = av.open(str(path), format=FORMATS[path.suffix.lower()])
    except (av.FFmpegError, *BROKEN_FILE) as error:
        raise broken("E_OPEN", path, error) from error
    try:
        yield container
    except (av.FFmpegError, *BROKEN_FILE) as error:
        raise broken("E_CODEC", path, error) from error
    finally:
        container.close()


def forget_places(sound: Any) -> None:
    """Leave a track of sound the number of its channels, before it is decoded: where their places
    stand in an order of the file's own (7.1 in .mov, .caf, .aiff), PyAV frees their list twice, and
    that ends the process."""
    import av

    if channels := sound.codec_context.channels:
        sound.codec_context.layout = av.AudioLayout(f"{channels} channels")


# What PyAV raises on damaged files besides its own FFmpegError, seen over 900 mutated clips.
BROKEN_FILE = (AttributeError, EOFError, IndexError, MemoryError, UnicodeDecodeError, ValueError)


# The machine has no thread or file left for a decoder: that says nothing about the clip.
SHORTAGES = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)


def check_file(path: Path) -> None:
    """ClipError unless `path` is a regular, non-empty file of a known ending."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("E_OPEN", f"{path.name} is not a regular file")
    if not status.st_size:
        raise ClipError("E_OPEN", f"{path.name} is empty (0 bytes)")
    if path.suffix.lower() not in {*FORMATS, *PICTURES}:
        with open(path, "rb") as file:
            if kind := kind_of(file.read(512)):
                raise misnamed(path, kind, "but has no ending that says so")
        known = " ".join([*FORMATS, *PICTURES])
        raise ClipError("E_OPEN", f"{path.name}: known endings are {known}")


def broken(code: str, path: Path, error: Exception) -> ClipError:
    """What a person would see in a file that does not open (E_OPEN) or decode (E_CODEC)."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
            while file.read(1 << 20):  # FFmpeg takes what cannot be read for damaged data
                pass
            kind, there = FORMATS[path.suffix.lower()], file.tell()
            promised = promised_bytes(file, kind)
    except OSError as fault:
        return unreadable(path, fault)
    if other := other_kind(path, start):
        return other
    if promised > there:
        reason = f"{path.name} is cut short: {there} of {promised} bytes are there"
        return ClipError("E_TRUNC", reason)
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return unreadable(path, error)
    why = getattr(error, "strerror", None) or "its data is damaged"  # no names from inside
    if code == "E_CODEC":
        if isinstance(error, MemoryError):
            why += " (it is damaged, or needs more than --memory_mb)"
        return ClipError(code, f"{path.name} does not decode: {why}")
    if promised and kind == "mov":
        why = "its index (moov) is missing or damaged"
    elif start.isascii() and start.strip():
        why = f"it starts with the text {start[:16].decode()!r}"
    else:
        why = f"not a {kind} file ({why})"
    return ClipError(code, f"cannot open {path.name}: {why}")


def other_kind(path: Path, start: bytes) -> ClipError | None:
    """What a file that begins with these bytes is, where that is not what its ending says."""
    kind = kind_of(start)
    if kind in ("", FORMATS[path.suffix.lower()]):
        return None
    return misnamed(path, kind, "whatever its name says")


def misnamed(path: Path, kind: str, but: str) -> ClipError:
    what = f"{path.name} is {KINDS[kind].name}, {but}"
    endings = KINDS[kind].endings.replace(" ", " or ")
    return ClipError("E_OPEN", f"{what}: rename it, with the ending {endings}")


def without(code: str, path: Path, what: str) -> ClipError:
    """A track that turns out to hold nothing; some readers find such tracks in files that are not
    theirs."""
    with open(path, "rb") as file:
        other = other_kind(path, file.read(512))
    return other or ClipError(code, f"{path.name} has {what}")


def kind_of(start: bytes) -> str:
    """What a file is by its first bytes: a key of KINDS, or "" where they are none of these."""
    fitting = (name for name, kind in KINDS.items() if re.match(kind.start, start, re.DOTALL))
    return next(fitting, "")


def unreadable(path: Path, error: OSError) -> ClipError:
    """The system's own answer: no permission, no such file, or a disc or network that fails."""
    if isinstance(error, PermissionError):
        return ClipError("E_PERM", f"no permission to read {path}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return ClipError("E_MISSING", f"no file {path}")
    reason = f"{path.name} cannot be read: {error.strerror} (errno {error.errno})"
    return ClipError("E_READ", reason)


def promised_bytes(file: BinaryIO, kind: str) -> int:
    """How long a file is by what stands in it; 0 where it does not say so."""
    if kind == "mov":
        return end_of_boxes(file)
    if kind == "asf":
        file.seek(0)
        _, found, header = file.read(1 << 16).partition(ASF_PROPERTIES)
        return int.from_bytes(header[24:32], "little") if found else 0
    return riff_bytes(file) if kind in ("wav", "avi", "aiff") else 0


def end_of_boxes(file: BinaryIO) -> int:
    """Where the last box of an .mp4 or .mov ends, or would if it were whole; 0 without boxes."""
    end, there = 0, file.seek(0, 2)
    while end < there:
        file.seek(end)
        head = file.read(16).ljust(16, b"\0")
        size, kind, wide = struct.unpack(">I4sQ", head)
        length = wide if size == 1 else size  # 0: to the end of the file
        if kind not in BOXES or not length:
            break
        end += length
    return end


def packets_of(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """The packets of a track; at their end ClipError when there were clearly fewer than promised.

    An .mp4 or .mov lists its packets (of uncompressed sound, and in fragments, not), a .wav, .avi,
    .aiff or .wmv its bytes, an .mkv or .flv its seconds; some tell nothing, and then nothing is
    known to lack.
    """
    kind, count, shown = FORMATS[path.suffix.lower()], 0, Extent()
    # what .mkv and .flv tell is the length of the longest track
    for packet in container.demux() if kind in WHOLE else container.demux(stream):
        shown.add(packet)
        if packet.stream.index == stream.index:
            count += packet.size > 0
            yield packet
    if kind == "mov" and stream.frames and not stream.codec.name.startswith("pcm"):
        # an edit list hides packets (phones, `ffmpeg -c copy`): then what it shows must be there
        if count < TRUNCATED_BELOW * stream.frames:
            promised = float((stream.duration or 0) * stream.time_base)
            check_complete(path, max(0.0, shown.end - shown.start), promised)
    elif kind in ("mov", "wav", "avi", "aiff", "asf"):
        with open(path, "rb") as file:
            promised = promised_bytes(file, kind)
            check_complete(path, file.seek(0, 2), promised, "bytes")
    elif kind == "matroska" or (kind == "flv" and ends_in_a_tag(path)):
        check_complete(path, shown.end, (container.duration or 0) / 1e6)


class Extent:
    """First and last second of the packets that are shown: those that an edit list hides, which
    are only there to decode others, do not count."""

    def __init__(self) -> None:
        self.start, self.end = math.inf, 0.0
        self.hides = False  # whether there are others
        self.count = 0

    @property
    def span(self) -> tuple[float, float]:
        return self.start, self.end

    def add(self, packet: Any) -> None:
        self.hides |= packet.is_discard
        if packet.pts is not None and not packet.is_discard:
            self.count += packet.size > 0
            self.start = min(self.start, float(packet.pts * packet.time_base))
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            self.end = max(self.end, float(end))


def check_complete(path: Path, there: float, promised: float, unit: str = "seconds") -> None:
    if there < TRUNCATED_BELOW * promised:
        counts = f"{there:.4g} of {promised:.4g}" if unit == "seconds" else f"{there} of {promised}"
        raise ClipError("E_TRUNC", f"{path.name} is cut short: {counts} {unit} are there")


def mp3_seconds(stream: Any, path: Path) -> float:
    """How long an .mp3 is by the frame that its encoder writes first; 0 where there is none, and
    FFmpeg's number is a guess from the size."""
    with open(path, "rb") as file:
        tag = file.read(10)
        size = sum((byte & 127) << 7 * place for place, byte in enumerate(tag[:5:-1]))
        file.seek(10 + size if tag[:3] == b"ID3" else 0)
        first = file.read(256)
    sure = (b"Xing" in first or b"Info" in first) and stream.duration
    return float(stream.duration * stream.time_base) if sure else 0.0


def riff_bytes(file: BinaryIO) -> int:
    """Bytes that the header of a .wav, .avi or .aiff promises; 0 where it was written as a stream
    (with a size of none, of 2 or of 4 GiB)."""
    file.seek(0)
    head = file.read(8)
    size = int.from_bytes(head[4:8], "big" if head[:4] == b"FORM" else "little") + 8
    return size if head[:4] in (b"RIFF", b"FORM") and size < 0x7FFF_0000 else 0


def ends_in_a_tag(path: Path) -> bool:
    """Whether an .flv ends within one of its tags. The seconds that it tells may be those of a
    longer recording, and alone prove nothing."""
    with open(path, "rb") as file:
        there, end = file.seek(0, 2), 9 + 4
        while end < there:
            file.seek(end)
            head = file.read(4).ljust(4, b"\0")
            if head[0] & 31 not in (8, 9, 18):  # sound, picture, text
                return False
            end += 11 + int.from_bytes(head[1:], "big") + 4
    return end - 4 > there


class Pictures(NamedTuple):
    """What the packets of a video track tell without decoding; seconds on the clip's clock."""

    start: float
    end: float
    hides: bool  # whether there is more than the file wants to be shown
    shown: int  # how many of its packets are
    aspect: float  # width of a pixel by its height
    keyframes: list[tuple[float, int]]  # time, and where to seek for it in units of the stream


def scan_pictures(path: Path) -> Pictures:
    """First and last moment of the picture and its entry points; a still picture is one moment.
    ClipError when it is cut short."""
    if path.suffix.lower() in PICTURES:
        return Pictures(0.0, 0.0, False, 1, 1.0, [])
    extent, keyframes = Extent(), []
    with open_media(path) as container:
        stream = video_stream(container, path)
        aspect = pixel_aspect(stream)
        for packet in packets_of(container, stream, path):
            if packet.size and packet.pts is not None:
                extent.add(packet)
                if packet.is_keyframe:
                    keyframes.append((float(packet.pts * stream.time_base), packet.pts))
    if extent.start == math.inf:
        raise without("E_NOVIDEO", path, "a video track without any frame")
    return Pictures(*extent.span, extent.hides, extent.count, aspect, keyframes)


def check_decoder(stream: Any, path: Path) -> None:
    """ClipError for a track in a format that this FFmpeg has no decoder for."""
    if stream.codec_context is None:
        tracks = {"audio": "sound", "video": "picture"}
        what = f"nothing here decodes the format of its {tracks[stream.type]}"
        raise ClipError("E_CODEC", f"{path.name}: {what}; convert it, for example to H.264 and AAC")


def picture_tracks(container: Any) -> list[Any]:
    """The video tracks; a cover picture, which songs carry as one, is none."""
    from av.stream import Disposition

    cover = Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def video_stream(container: Any, path: Path) -> Any:
    tracks = picture_tracks(container)
    if not tracks:
        cover = ", only a cover picture" if container.streams.video else ""
        raise ClipError("E_NOVIDEO", f"{path.name} has no video track{cover}")
    stream = tracks[0]
    check_decoder(stream, path)
    width, height = shown_size(stream.width, stream.height, pixel_aspect(stream))
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} pixels"
        raise ClipError("E_LIMIT", f"{path.name} has {size}, the limit is {MAX_PIXELS}")
    return stream


def frames_at(
    path: Path, times: np.ndarray, threads: int = 1
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices into the ascending `times`, RGB frame (H, W, 3)) of what is on screen then.

    By timestamps, so variable frame rates and late starts are right. Times before the first frame
    or after the last one has left the screen get no frame; but of a still picture with sound the
    one frame stays, and a picture file is always on screen. Only the part of the file that is
    needed is decoded: from the last entry point before the first time to the last time.
    """
    if path.suffix.lower() in PICTURES:
        yield list(range(len(times))), read_picture(path)
        return
    pictures = scan_pictures(path)
    entry = entry_before(path, pictures, times[0])
    leads = leads_to(path, entry, times[0])
    with open_media(path) as container:
        stream = video_stream(container, path)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        if entry is not None and leads:
            container.seek(entry, stream=stream)
        shown, scale = None, scaler(threads)
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            if shown is not None:
                yield from _on_screen(times, shown, frame.time, pictures.aspect, scale)
            shown = frame
            if frame.time > times[-1]:
                return
        if shown is None:
            raise without("E_NOVIDEO", path, "a video track without any frame")
        end = math.inf if pictures.shown == 1 else shown.time + frame_seconds(stream, shown)
        yield from _on_screen(times, shown, end, pictures.aspect, scale)


def entry_before(path: Path, pictures: Pictures, time: float) -> int | None:
    """Where to seek for what is on screen at `time`; None: nowhere, it is near the beginning, or
    the file has no sure index."""
    entries = [place for seconds, place in pictures.keyframes if seconds <= time]
    sure = len(entries) > 1 and FORMATS[path.suffix.lower()] == "mov"
    return entries[-1] if sure else None


def leads_to(path: Path, entry: int | None, time: float) -> bool:
    """Whether decoding from an entry point on gives what is on screen at `time`; from the beginning
    (None) it does. The index counts in the order of decoding: where that is another one, as a few
    frames apart, and nothing in the file makes up for it (fragments, no edit list) the frames begin
    behind it."""
    if entry is None:
        return True
    with open_media(path) as container:
        stream = video_stream(container, path)
        container.seek(entry, stream=stream)
        shown = (frame.time for frame in container.decode(stream) if frame.time is not None)
        return next(shown, math.inf) <= time


def read_picture(path: Path) -> np.ndarray:
    """RGB (H, W, 3) of a still picture, turned as its camera says. The format follows from the
    file's ending, and its size is known before it is unpacked."""
    from PIL import Image, ImageOps

    check_file(path)
    try:
        with Image.open(path, formats=[PICTURES[path.suffix.lower()]]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width} x {picture.height} pixels"
                raise ClipError("E_LIMIT", f"{path.name} has {size}, the limit is {MAX_PIXELS}")
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16 bits of grey, of which `convert` keeps the lowest
                grey = np.array(picture).clip(0, 65_535) / 257
                return np.repeat(grey.round().astype(np.uint8)[..., np.newaxis], 3, axis=2)
            return np.array(picture.convert("RGB"))
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = PICTURES[path.suffix.lower()]
        reason = f"{path.name} does not open as {kind}: {in_short(error)}"
        raise ClipError("E_OPEN", reason) from error


def is_deep_grey(path: Path) -> bool:
    """Whether a file is a .png of 16 bits of grey, by its header."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError as error:
        raise unreadable(path, error) from error
    return head[1:4] == b"PNG" and head[24:] == b"\x10\0"


def _on_screen(
    times: np.ndarray, frame: Any, until: float, aspect: float, scale: Callable[..., Any]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """The frame with the indices of the times in [frame.time, until), if there are any."""
    indices = np.flatnonzero((times >= frame.time) & (times < until))
    if len(indices):
        yield indices.tolist(), upright(frame, aspect, scale)


def frame_seconds(stream: Any, frame: Any) -> float:
    """How long the last frame stays: its own duration, else one frame of the average rate."""
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return 1 / float(stream.average_rate or 25)


def is_plain(path: Path) -> bool:
    """Whether a file's pictures are as any program reads them: square pixels, not mirrored, not
    one alone."""
    if path.suffix.lower() in PICTURES:
        return True
    pictures = scan_pictures(path)
    if pictures.aspect != 1 or pictures.shown == 1:
        return False
    with open_media(path) as container:
        frame = next(iter(container.decode(video_stream(container, path))), None)
    return frame is None or not is_mirrored(frame)


def pixel_aspect(stream: Any) -> float:
    """Width of a pixel by its height, as the file says; 1 where it says nothing.

    Programs that scale a picture to even sizes leave ratios like 491:492 behind: nobody sees them,
    and to resample each frame for them only blurs it.
    """
    ratio = float(stream.sample_aspect_ratio or 1)
    return 1.0 if abs(ratio - 1) < ROUNDING else ratio


def shown_size(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Pixels of a frame whose pixels are made square: the shorter side of a pixel is drawn out."""
    return round(width * max(1.0, aspect)), round(height * max(1.0, 1 / aspect))


def scaler(threads: int) -> Callable[..., Any]:
    """frame, width, height, format -> frame, for many frames: one that each frame makes for itself
    leaves its threads behind until Python collects its garbage, hundreds of them."""
    from av.video.reformatter import VideoReformatter

    return partial(VideoReformatter().reformat, threads=threads)


def upright(frame: Any, aspect: float, scale: Callable[..., Any]) -> np.ndarray:
    """RGB (H, W, 3) as a player shows it: square pixels, turned and mirrored as the file asks."""
    width, height = shown_size(frame.width, frame.height, aspect)
    picture = scale(frame, width, height, format="rgb24").to_ndarray()
    across, down, transposed = orientation(frame)
    if transposed:
        picture = picture.swapaxes(0, 1)
    return np.ascontiguousarray(picture[::down, ::across])


def orientation(frame: Any) -> tuple[int, int, bool]:
    """Direction (1 or -1) across and down, and whether rows become columns before that.

    From the display matrix of ISO 14496-12, to the nearest quarter turn: a pixel at (x, y) is shown
    at (a x + c y, b x + d y).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 1, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if transposed else (a, d)
    return -1 if across < 0 else 1, -1 if down < 0 else 1, transposed


def is_mirrored(frame: Any) -> bool:
    across, down, transposed = orientation(frame)
    return across * down * (-1 if transposed else 1) < 0
