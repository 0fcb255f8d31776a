"""A long recording -> its utterances, cut at pauses without encoding anything again."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from extract.audio import SPEECH_SETTINGS, check_wave, read_mono
from extract.media import FORMATS, open_media
from inference.sources import Source, read_cues
from utils.errors import ClipError, UsageError
from utils.files import write_bytes

PAUSE_DB = 30  # quieter than this below the loudest frame is a pause
JOIN, SHORTEST = 0.4, 0.3  # seconds: shorter pauses belong to an utterance, shorter sounds to none
UTTERANCE = 6.0  # seconds at most: about what the speech models see at once (400 columns)
Span = tuple[float, float]


def cut_long(source: Source, longest: float, folder: Path) -> list[Source]:
    """The source itself, or the utterances of one that lasts over `longest` seconds, in `folder`.

    Their words come from an .srt beside it, by time: words without times belong to none of them.
    """
    media = source.clip.media
    try:
        if media.suffix.lower() not in FORMATS or np.ptp(whole(media)) <= longest:
            return [source]
        spans = find_spans(media)
        srt, cues = media.with_suffix(".srt"), []
        if srt.is_file():
            try:
                cues, source = read_cues(srt), source._replace(problem="")
            except UsageError as error:  # costs the words alone
                source = source._replace(problem=f"E_READ: {error}")
        return [_part(source, span, cues, folder) for span in spans] or [source]
    except ClipError:  # damaged: the answer says how
        return [source]


def whole(path: Path) -> Span:
    """First and last second of the file's packets, whatever its header says."""
    with open_media(path) as container:
        packets = [packet for packet in container.demux() if packet.pts is not None]
        starts = [float(packet.pts * packet.time_base) for packet in packets]
        ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in packets]
    return min(starts, default=0.0), max(ends, default=0.0)


def find_spans(path: Path) -> list[Span]:
    """Utterances by voice activity; equal parts of the whole when there is nothing to hear."""
    rate = SPEECH_SETTINGS["sample_rate"]
    try:
        wave, offset, _ = read_mono(path, SPEECH_SETTINGS | {"max_seconds": math.inf})
        check_wave(wave, path, SPEECH_SETTINGS)
    except ClipError:
        return evenly(*whole(path))
    return [(offset + start, offset + end) for start, end in utterances(wave, rate)]


def utterances(wave: np.ndarray, rate: int) -> list[Span]:
    """(N,) samples -> seconds of each stretch of sound between pauses, none over UTTERANCE."""
    import librosa

    joined: list[Span] = []
    for start, end in (librosa.effects.split(wave, top_db=PAUSE_DB) / rate).tolist():
        if joined and start - joined[-1][1] < JOIN and end - joined[-1][0] <= UTTERANCE:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    kept = [span for span in joined if span[1] - span[0] >= SHORTEST]
    return [part for span in kept for part in evenly(*span)]


def evenly(start: float, end: float) -> list[Span]:
    """The fewest equal parts of at most UTTERANCE seconds."""
    edges = np.linspace(start, end, max(1, math.ceil((end - start) / UTTERANCE)) + 1).tolist()
    return list(itertools.pairwise(edges))


def _part(source: Source, span: Span, cues: list, folder: Path) -> Source:
    start, end = span
    name = f"{source.clip.clip_id}-{start:07.2f}"
    ending, data = copy_packets(source.clip.media, start, end)
    media = folder / f"{name}{ending}"
    write_bytes(media, data)
    said = " ".join(words for first, last, words in cues if start < (first + last) / 2 < end)
    problem = source.problem
    if not cues and (source.clip.transcript or source.clip.words):
        problem = "E_MISSING: its words have no times: give an .srt, or raise --longest"
    clip = replace(source.clip, clip_id=name, media=media, transcript=said, words=None, span=span)
    return Source(source.name, clip, start, end, problem)


def copy_packets(path: Path, start: float, end: float) -> tuple[str, bytes]:
    """An ending and a file: the first sound and picture between two moments, times as they were.

    The picture starts at the key frame before: faces are looked for in the span only.
    """
    import av

    buffer = io.BytesIO()
    is_mov = FORMATS[path.suffix.lower()] == "mov"
    ending, kind = (path.suffix.lower(), "mov") if is_mov else (".mkv", "matroska")
    with open_media(path) as container, av.open(buffer, "w", format=kind) as part:
        streams = [*container.streams.video[:1], *container.streams.audio[:1]]
        copies = {stream: part.add_stream_from_template(stream) for stream in streams}
        container.seek(max(0, int(start * 1e6)))
        for packet in container.demux(streams):
            time = None if packet.dts is None else float(packet.dts * packet.time_base)
            if time is not None and time > end + 1:
                break
            if time is not None and (packet.stream.type == "video" or start <= time < end):
                packet.stream = copies[packet.stream]
                part.mux(packet)
    return ending, buffer.getvalue()
