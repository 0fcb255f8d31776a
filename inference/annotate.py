"""A video and its answers -> the video with each answer drawn in while it holds."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from extract.audio import SPEECH_SETTINGS, read_mono, samples_of, sound_tracks
from extract.media import (
    FORMATS,
    PICTURES,
    forget_places,
    open_media,
    pixel_aspect,
    scaler,
    upright,
    video_stream,
    without,
)
from inference.prediction import ClipPrediction
from inference.timeline import overlay
from inference.windows import LONGEST
from utils.errors import ClipError

RATE = 48_000  # Hz, of the sound that is written


def annotate(path: Path, predictions: list[ClipPrediction]) -> bytes:
    """An .mp4 (H.264, AAC): upright, with square pixels, and each picture at its own time.

    ClipError for a file without pictures, or one that cannot be read to its end.
    """
    import av

    if path.suffix.lower() in PICTURES:
        raise ClipError("E_NOVIDEO", "a still picture is no video; its .png shows the answer")
    if path.suffix.lower() not in FORMATS:
        raise ClipError("E_NOVIDEO", "words have no picture to draw the answer in")

    buffer, draw, (height, width) = io.BytesIO(), drawer(predictions), size_of(path)
    with open_media(path) as container, av.open(buffer, "w", format="mp4") as made:
        video = video_stream(container, path)
        streams, aspect, last = [video], pixel_aspect(video), -1
        pictures = made.add_stream("libx264", rate=video.average_rate or 25)
        pictures.height, pictures.width = height, width
        pictures.codec_context.time_base = video.time_base
        try:
            tracks = sound_tracks(path)
        except ClipError:  # without sound, or in a format that nothing here decodes
            sounds = None
        else:
            sound = container.streams[heard(path) if len(tracks) > 1 else tracks[0]]
            streams.append(sound)
            forget_places(sound)
            layout = "stereo" if sound.channels == 2 else "mono"
            sounds = made.add_stream("aac", rate=RATE, layout=layout)
            packed = av.AudioResampler(format="flt", rate=RATE)
        turn, fit = scaler(threads=0), scaler(threads=0)
        for packet in container.demux(streams):
            for frame in packet.decode():
                if sounds and packet.stream is not video:
                    for part in packed.resample(frame):
                        made.mux(sounds.encode(as_heard(part)))
                elif frame.pts is not None and frame.pts > last:  # damaged files go back in time
                    picture = draw(upright(frame, aspect, turn), float(frame.time))
                    drawn = av.VideoFrame.from_ndarray(picture, "rgb24")
                    drawn = fit(drawn, width, height)  # a file may change its size
                    drawn.pts, drawn.time_base, last = frame.pts, frame.time_base, frame.pts
                    made.mux(pictures.encode(drawn))
        for stream in (pictures, sounds):
            if stream:
                made.mux(stream.encode())
    return buffer.getvalue()


def heard(path: Path) -> int:
    """Which of several tracks of sound the answers are about: players' default may be silent."""
    return read_mono(path, SPEECH_SETTINGS | {"max_seconds": LONGEST}).track


def as_heard(sound: Any) -> Any:
    """A frame of packed samples with its two channels, or with the mean of another number."""
    import av

    samples = samples_of(sound)
    if samples.shape[1] != 2:
        samples = samples.mean(axis=1, keepdims=True)
    layout = "stereo" if samples.shape[1] == 2 else "mono"
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), sound.format.name, layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = sound.sample_rate, sound.pts, sound.time_base
    return frame


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of the first picture as it is shown, both even: H.264 wants them so."""
    with open_media(path) as container:
        video = video_stream(container, path)
        for frame in container.decode(video):
            height, width = upright(frame, pixel_aspect(video), scaler(0)).shape[:2]
            return height // 2 * 2, width // 2 * 2
    raise without("E_NOVIDEO", path, "a video track without any frame")


def drawer(predictions: list[ClipPrediction]) -> Any:
    """(picture (H, W, 3) uint8, its second) -> the picture, of even height and width, with the
    plate of the answer that holds then at the bottom left."""

    @cache
    def plate(index: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = overlay(predictions[index], width).astype(np.float32)  # (h, w, 4)
        return drawn[..., :3], drawn[..., 3:] / 255

    def draw(picture: np.ndarray, time: float) -> np.ndarray:
        height, width = (size // 2 * 2 for size in picture.shape[:2])
        picture = picture[:height, :width].copy()
        for index, prediction in enumerate(predictions):
            start, end = prediction.source.start or 0.0, prediction.source.end or np.inf
            if prediction.parts and start <= time < end:
                color, share = (each[-height:, :width] for each in plate(index, width))
                place = picture[-len(color) :, : color.shape[1]]
                place[:] = np.rint(share * color + (1 - share) * place)
        return picture

    return draw
