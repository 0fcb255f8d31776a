"""A long recording -> its utterances, cut at pauses without encoding anything again."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from extract.audio import SPEECH_SETTINGS, check_wave, read_mono
from extract.media import FORMATS, Extent, open_media, picture_tracks
from inference.sources import SUBTITLES, Cue, Source, beside, read_cues
from utils.errors import ClipError, UsageError, counted
from utils.files import write_bytes

RATE = SPEECH_SETTINGS["sample_rate"]
MIN_PAUSE, MIN_SPEECH = 0.4, 0.3  # seconds: shorter pauses cut nothing, shorter sounds are none
NEAR = 2.0  # seconds: so early or late may a subtitle come; further away, nobody is heard to say it
UTTERANCE = 6.0  # seconds at most: about what the speech models see at once (400 columns)
LONGEST = 24 * 3600  # seconds; what claims more is damaged or forged
LEVEL, MIN_LEVEL = 0.1, 5e-4  # of a voice, as amplitude: what the detector likes; the quietest
# Seconds behind a seek in an .mpg whose times may be guesses: one is told each 0.7 s (ISO 13818-1)
GUESSED = 1.0
Span = tuple[float, float]
# Containers for parts of a recording, by the kind of the whole: Matroska takes most codecs.
SAME, OTHERS = ("mov", "asf", "ogg", "flv"), {"amr": (".mov", "mov")}
MATROSKA = (".mkv", "matroska")


def cut_long(source: Source, longest: float, folder: Path) -> list[Source]:
    """The source itself, or the utterances of one that lasts over `longest` seconds, in `folder`.

    Their words come from an .srt or .vtt beside it, by time: words without times belong to none of
    them. Where subtitles stand and nobody is heard, parts of their own have the words.
    """
    media = source.clip.media
    if media.suffix.lower() not in FORMATS:
        return [source]
    try:
        start, end = whole(media)
        if not longest < end - start <= LONGEST:
            return [source]
        spans, track = find_utterances(media)
        cues, problem = read_subtitles(source, start)
        spans = sorted([*spans, *told_alone(cues, spans, (start, end))])
        notes = notes_on(cues, spans, (start, end))
        source = source._replace(extent=(start, end), notes=notes)
        untold = "E_MISSING: no subtitle stands in this part" if cues else problem
        parts = zip(spans, share_words(cues, spans), strict=True)
        return [
            _part(source, span, track, said, problem if said else untold, folder)
            for span, said in parts
        ]
    except ClipError:  # damaged: the prediction says how
        return [source]


def whole(path: Path) -> Span:
    """First and last second of the file's packets, whatever its header says; before 0 there is only
    what primes a decoder."""
    extent = Extent()
    with open_media(path) as container:
        for packet in container.demux():
            extent.add(packet)
    return min(max(0.0, extent.start), extent.end), extent.end


def find_utterances(path: Path) -> tuple[list[Span], int | None]:
    """Where somebody speaks, and in which track; equal parts of the whole where nobody is heard."""
    try:
        sound = read_mono(path, SPEECH_SETTINGS | {"max_seconds": LONGEST})
        check_wave(sound.wave, path, SPEECH_SETTINGS)
    except ClipError:
        return evenly(*whole(path)), None
    spoken = [(sound.offset + start, sound.offset + end) for start, end in utterances(sound.wave)]
    return spoken or evenly(*whole(path)), sound.track


def has_voice(path: Path) -> bool:
    """Whether somebody is heard to speak: neither a beep nor music. ClipError without sound."""
    sound = read_mono(path, SPEECH_SETTINGS)
    check_wave(sound.wave, path, SPEECH_SETTINGS)
    return bool(utterances(sound.wave))


def utterances(wave: np.ndarray) -> list[Span]:
    """(N,) samples -> seconds of each stretch of speech between pauses, none over UTTERANCE."""
    import torch

    with one_thread(), torch.inference_mode():
        model = voice_detector()
        from silero_vad import get_speech_timestamps

        spans = get_speech_timestamps(
            torch.from_numpy(level(wave)),
            model,
            sampling_rate=RATE,
            min_silence_duration_ms=round(1000 * MIN_PAUSE),
            min_speech_duration_ms=round(1000 * MIN_SPEECH),
            max_speech_duration_s=UTTERANCE,  # cut at its longest pause, if there is any
            speech_pad_ms=100,  # the first and last sounds of words are weak
        )
    return [(span["start"] / RATE, min(span["end"], len(wave)) / RATE) for span in spans]


def level(wave: np.ndarray) -> np.ndarray:
    """The wave (N,), filled up to whole seconds, with every second about as loud as any voice.

    The detector misses most of a quiet voice. What counts is how loud the 20 seconds around usually
    are: neither a bang nor a pause.
    """
    from scipy.ndimage import percentile_filter

    seconds = np.pad(wave, (0, -len(wave) % RATE)).reshape(-1, RATE)  # (seconds, RATE)
    peaks = np.quantile(np.abs(seconds), 0.98, axis=1)
    usual = percentile_filter(peaks, 70, size=21)
    gain = np.float32(LEVEL / np.maximum(usual, MIN_LEVEL))
    return (seconds * gain[:, None]).clip(-1, 1).reshape(-1)


@contextmanager
def one_thread() -> Iterator[None]:
    """The network is so small that more threads wait for each other, and its package sets one for
    the whole program."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def voice_detector() -> Any:
    """Silero VAD; its weights are in its package."""
    from silero_vad import load_silero_vad

    with warnings.catch_warnings():  # its way to load them is deprecated in torch
        warnings.simplefilter("ignore")
        return load_silero_vad()


def evenly(start: float, end: float) -> list[Span]:
    """The fewest equal parts of at most UTTERANCE seconds."""
    edges = np.linspace(start, end, max(1, math.ceil((end - start) / UTTERANCE)) + 1).tolist()
    return list(itertools.pairwise(edges))


def read_subtitles(source: Source, first: float) -> tuple[list[Cue], str]:
    """The words with times that lie beside a recording, or why it has words but none of these.

    They count from its `first` second, as players do; the clock of a .ts begins anywhere.
    """
    try:
        if written := beside(source.clip.media, *SUBTITLES):
            cues = read_cues(written)
            return [Cue(first + cue.start, first + cue.end, cue.words) for cue in cues], ""
    except UsageError as error:  # costs the words alone
        return [], f"E_READ: {error}"
    if source.clip.transcript or source.clip.words:
        return [], "E_MISSING: its words have no times: give an .srt, or raise --longest"
    return [], source.problem


def told_alone(cues: list[Cue], spans: list[Span], extent: Span) -> list[Span]:
    """Parts of the recording where subtitles stand and for NEAR seconds nobody is heard."""
    alone: list[Span] = []
    for cue in sorted(cues, key=lambda cue: cue.start):
        start = max(cue.start, extent[0])
        end = min(max(cue.end, start + MIN_SPEECH), extent[1])
        if distance(cue, spans) <= NEAR or end - start < MIN_SPEECH:
            continue
        if alone and start <= alone[-1][1]:
            start, end = alone[-1][0], max(alone.pop()[1], end)
        alone.append((start, end))
    return [part for span in alone for part in evenly(*span)]


def distance(cue: Cue, spans: list[Span]) -> float:
    """Seconds between a subtitle and the nearest of these spans; below 0 where they overlap."""
    return min(max(start - cue.end, cue.start - end) for start, end in spans)


def notes_on(cues: list[Cue], spans: list[Span], extent: Span) -> tuple[str, ...]:
    """How much of the recording is in no part, where that is over a tenth, and which subtitles."""
    start, end = extent
    covered = sum(last - first for first, last in spans)
    notes = []
    if covered < 0.9 * (end - start):
        of = f"{covered:.1f} of {end - start:.1f} seconds"
        notes.append(f"the answers are about {of}; nobody is heard to speak in the others")
    if outside := sum(distance(cue, spans) > NEAR for cue in cues):
        what = f"{counted(outside, 'subtitle')} outside of its {end - start:.1f} seconds"
        notes.append(f"{what}, counted with the nearest words: of another recording?")
    return tuple(notes)


def share_words(cues: list[Cue], spans: list[Span]) -> list[str]:
    """What is said in each span: together all words of the subtitles.

    A subtitle that covers most of several spans is shared by time; any other belongs to the span
    that it overlaps most, or is nearest to: no word is lost.
    """
    said: list[list[str]] = [[] for _ in spans]
    starts, ends = np.array(spans).T
    for cue in cues:
        overlaps = np.minimum(ends, cue.end) - np.maximum(starts, cue.start)  # or minus the gap
        shares = np.where(overlaps > (ends - starts) / 2, overlaps, 0)
        if np.count_nonzero(shares) < 2:
            said[overlaps.argmax()] += cue.words.split()
            continue
        words = cue.words.split()
        edges = np.rint(len(words) * shares.cumsum() / shares.sum()).astype(int)
        for spoken, first, last in zip(said, [0, *edges], edges, strict=False):
            spoken += words[first:last]
    return [" ".join(words) for words in said]


def _part(
    source: Source, span: Span, track: int | None, said: str, problem: str, folder: Path
) -> Source:
    start, end = span
    name = f"{source.clip.clip_id}-{start:07.2f}"
    ending, data = copy_packets(source.clip.media, start, end, track)
    media = folder / f"{name}{ending}"
    write_bytes(media, data)
    clip = replace(source.clip, clip_id=name, media=media, transcript=said, words=None, span=span)
    return source._replace(clip=clip, start=start, end=end, problem=problem)


def copy_packets(path: Path, start: float, end: float, track: int | None) -> tuple[str, bytes]:
    """An ending and a file: a track of sound (of None the first) and the picture between two
    moments, times as they were.

    The picture starts at the key frame before: faces are looked for in the span only.
    """
    import av

    buffer = io.BytesIO()
    kind = FORMATS[path.suffix.lower()]
    ending, kind = (path.suffix.lower(), kind) if kind in SAME else OTHERS.get(kind, MATROSKA)
    place, key_frame = entry_before(path, start, track)
    with open_media(path) as container, av.open(buffer, "w", format=kind) as part:
        streams = tracks_of(container, track)
        copies = {stream: part.add_stream_from_template(stream, opaque=True) for stream in streams}
        if place is not None:
            container.seek(place)
        decoded: dict[Any, int] = {}  # when the packet before was, of each track
        for packet in container.demux(streams):
            shown, video = stamp(packet), packet.stream.type == "video"
            if shown is None or (video and shown < key_frame):
                continue
            before = decoded.get(packet.stream, shown if packet.dts is None else packet.dts)
            # an .mkv does not say when its first pictures are to be decoded: at once; and the times
            # that FFmpeg finds in an .mpg may go back
            packet.dts = before if packet.dts is None else max(packet.dts, before)
            decoded[packet.stream] = packet.dts
            time = float(packet.dts * packet.time_base)
            if time > end + 1:
                break
            if video or start <= time < end:
                packet.stream = copies[packet.stream]
                part.mux(packet)
    return ending, buffer.getvalue()


def tracks_of(container: Any, track: int | None) -> list[Any]:
    """What goes into a part: the picture, and this track of sound (of None the first)."""
    sound = container.streams.audio[:1] if track is None else [container.streams[track]]
    return [*picture_tracks(container)[:1], *sound]


def stamp(packet: Any) -> int | None:
    """When a packet is shown; an .avi tells only when it is decoded."""
    return packet.dts if packet.pts is None else packet.pts


def entry_before(path: Path, start: float, track: int | None) -> tuple[int | None, float]:
    """Where to seek, in FFmpeg's units, to find all that is on at `start` (None: nowhere, it is
    read from the beginning), and the time of the last key frame before, in those of the picture.

    FFmpeg seeks to any packet of a .ts, whose pictures began in a key frame before: so the place is
    tried, further and further before `start`.
    """
    back, guesses = 0.0, FORMATS[path.suffix.lower()] == "mpeg"
    while True:
        with open_media(path) as container:
            streams, entries = tracks_of(container, track), dict[str, int]()
            place, sure = round(1e6 * (start - back)), -math.inf
            at_start = place <= (container.start_time or 0)
            if not at_start:
                container.seek(place)
                sure = start - back + GUESSED if guesses else sure
            for packet in container.demux(streams):
                if (found := stamp(packet)) is None:
                    continue
                time = float(found * packet.time_base)
                if time > start + 1:
                    break
                if packet.is_keyframe and sure <= time <= start:
                    entries[packet.stream.type] = found
        if at_start or len(entries) == len(streams):
            return None if at_start else place, entries.get("video", -math.inf)
        back = 2 * back + 1
