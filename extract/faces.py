"""A clip's picture -> one face crop per sampled time, (T, S, S, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extract.media import check_complete, open_media
from utils.errors import ClipError, UsageError

SETTINGS = {
    "face_fps": 10.0,  # crops per second of speech
    "face_size": 224,  # pixels of a crop's side
    "detect_width": 320,  # frames are detected at this width: 6x faster than 720p, same faces
    "min_face": 30,  # pixels at that width: a tenth of the frame
    "min_probability": 0.9,  # of MTCNN's last stage
    "margin": 0.1,  # of the box's longer side, added on each side
    "follow_iou": 0.2,  # overlap with the last box that makes a face the same person
    "lost_after": 5,  # sampled frames without that person until the largest face is taken again
}
EMBEDDING_SETTINGS = {"network": "InceptionResnetV1", "weights": "vggface2", "size": 160}
BATCH = 32  # frames detected at once; bounds the memory, whatever the clip's length


class Faces(NamedTuple):
    """`crops` (T, S, S, 3) uint8 RGB; `valid` (T,) bool; `boxes` (T, 4) x1 y1 x2 y2 in pixels.

    Where no face was found the crop is black, the box is NaN and `valid` is False.
    """

    crops: np.ndarray
    valid: np.ndarray
    boxes: np.ndarray


def extract_faces(
    path: Path, start: float, end: float, settings: dict = SETTINGS, device: str = "cpu"
) -> Faces:
    """Faces at face_fps between `start` and `end` (seconds on the clip's clock), always T of them.

    The largest face first, then the same person as long as they stay. ClipError without any face.
    """
    times = sample_times(start, end, settings["face_fps"])
    size = settings["face_size"]
    crops = np.zeros((len(times), size, size, 3), np.uint8)
    boxes = np.full((len(times), 4), np.nan, np.float32)
    track = Track(settings["follow_iou"], settings["lost_after"])
    for batch in _batches(frames_at(path, times)):
        found = detect([frame for _, frame in batch], settings, device)
        for (indices, frame), candidates in zip(batch, found, strict=True):
            box = track.choose(candidates)
            if box is not None:
                boxes[indices] = box
                crops[indices] = crop_face(frame, box, size, settings["margin"])
    valid = np.isfinite(boxes[:, 0])
    if not valid.any():
        when = f"from {start:.1f} to {end:.1f} s"
        raise ClipError("E_NOFACE", f"no face in {path.name} {when} (0 of {len(times)} frames)")
    return Faces(crops, valid, boxes)


def time_span(path: Path) -> tuple[float, float]:
    """First and last moment of the picture in seconds, from the timestamps of its packets."""
    with open_media(path) as container:
        if not container.streams.video:
            raise ClipError("E_NOVIDEO", f"{path.name} has no video track")
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        if not packets:
            raise ClipError("E_NOVIDEO", f"{path.name} has a video track without any frame")
        ends = [packet.pts + (packet.duration or 0) for packet in packets]
        first = min(packet.pts for packet in packets)
        return float(first * stream.time_base), float(max(ends) * stream.time_base)


def sample_times(start: float, end: float, fps: float) -> np.ndarray:
    """(T,) seconds: the middles of T equal parts, T = duration x fps, at least one."""
    count = max(1, round((end - start) * fps))
    return start + (np.arange(count) + 0.5) * (end - start) / count


def frames_at(path: Path, times: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices into `times`, RGB frame (H, W, 3)) for what is on screen at those times.

    By timestamps, so variable frame rates and late starts are right. Times before the first frame
    or after the last one has left the screen get no frame.
    """
    with open_media(path) as container:
        if not container.streams.video:
            raise ClipError("E_NOVIDEO", f"{path.name} has no video track")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shown, packets = None, 0
        pending = list(range(len(times)))
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                if frame.time is None:
                    continue
                taken = _take(pending, times, shown.time, frame.time) if shown else []
                if taken:
                    yield taken, upright(shown)
                shown = frame
        check_complete(stream, packets, path)
        if shown is None:
            raise ClipError("E_NOVIDEO", f"{path.name} has a video track without any frame")
        taken = _take(pending, times, shown.time, shown.time + frame_seconds(stream, shown))
        if taken:
            yield taken, upright(shown)


def _take(pending: list[int], times: np.ndarray, since: float, until: float) -> list[int]:
    """Remove and return the pending indices whose time lies in [since, until)."""
    taken = [index for index in pending if since <= times[index] < until]
    for index in taken:
        pending.remove(index)
    return taken


def frame_seconds(stream: Any, frame: Any) -> float:
    """How long the last frame stays: its own duration, else one frame of the average rate."""
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return 1 / float(stream.average_rate or 25)


def upright(frame: Any) -> np.ndarray:
    """RGB (H, W, 3) as a player shows it: the rotation that the file asks for is applied."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)


def _batches(frames: Iterator) -> Iterator[list]:
    batch: list = []
    for item in frames:
        if batch and (len(batch) == BATCH or batch[0][1].shape != item[1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def detect(frames: list[np.ndarray], settings: dict, device: str = "cpu") -> list[np.ndarray]:
    """Boxes (N, 4) float32 in pixels, largest first, of the sure faces of each frame (N may be 0).

    All frames have one size. They are made smaller first: MTCNN's cost grows with the area.
    """
    import cv2

    height, width = frames[0].shape[:2]
    scale = min(1.0, settings["detect_width"] / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    if min(small) < settings["min_face"]:  # MTCNN fails on pictures smaller than its smallest face
        return [np.zeros((0, 4), np.float32) for _ in frames]
    images = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in frames]
    found, probabilities = detector(device, settings["min_face"]).detect(np.stack(images))
    return [
        _sure_boxes(boxes, scores, settings["min_probability"]) / scale
        for boxes, scores in zip(found, probabilities, strict=True)
    ]


def _sure_boxes(boxes: Any, scores: Any, least: float) -> np.ndarray:
    if boxes is None:
        return np.zeros((0, 4), np.float32)
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    sure = (scores >= least) & (width > 0) & (height > 0) & np.isfinite(boxes).all(axis=1)
    return boxes[sure][np.argsort(-(width * height)[sure], kind="stable")]


@lru_cache(maxsize=1)  # a worker loads the detector once
def detector(device: str, min_face: int) -> Any:
    """MTCNN (arXiv 1604.02878); its weights are part of the facenet-pytorch package."""
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=min_face, factor=0.6, device=device)


class Track:
    """Follows one person: the largest face first, then the one that overlaps the last box most."""

    def __init__(self, follow_iou: float, lost_after: int):
        self.follow_iou, self.lost_after = follow_iou, lost_after
        self.last: np.ndarray | None = None
        self.misses = 0

    def choose(self, boxes: np.ndarray) -> np.ndarray | None:
        """The box (4,) of the followed person among `boxes` (N, 4) sorted by size, or None."""
        if self.last is None or self.misses >= self.lost_after:
            chosen = boxes[0] if len(boxes) else None
        else:
            overlaps = overlap(self.last, boxes)
            best = int(overlaps.argmax()) if len(boxes) else 0
            chosen = boxes[best] if len(boxes) and overlaps[best] >= self.follow_iou else None
        self.misses = 0 if chosen is not None else self.misses + 1
        self.last = self.last if chosen is None else chosen
        return chosen


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of `box` (4,) with each of `boxes` (N, 4) -> (N,)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / (areas + (box[2:] - box[:2]).prod() - shared)


def crop_face(frame: np.ndarray, box: np.ndarray, size: int, margin: float) -> np.ndarray:
    """Square crop (size, size, 3) around `box`; outside the picture its edge repeats."""
    import cv2

    centre = (box[:2] + box[2:]) / 2
    side = max(2, round(float((box[2:] - box[:2]).max()) * (1 + 2 * margin)))
    x, y = np.round(centre - side / 2).astype(int)
    rows = np.arange(y, y + side).clip(0, frame.shape[0] - 1)
    columns = np.arange(x, x + side).clip(0, frame.shape[1] - 1)
    square = frame[rows[:, None], columns]  # (side, side, 3)
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR  # areas: no noise from detail
    return cv2.resize(square, (size, size), interpolation=method)


def embed(crops: np.ndarray, valid: np.ndarray, device: str = "cpu") -> np.ndarray:
    """FaceNet vectors, (T, S, S, 3) uint8 -> (T, 512) float32; zeros where not valid."""
    import torch

    size = EMBEDDING_SETTINGS["size"]
    vectors = np.zeros((len(crops), 512), np.float32)
    if valid.any():
        images = torch.from_numpy(crops[valid]).permute(0, 3, 1, 2).float()  # (T, 3, S, S)
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
        images = (images - 127.5) / 128  # how the published weights were trained
        with torch.inference_mode():
            vectors[valid] = embedder(device)(images.to(device)).cpu().numpy()
    return vectors


@lru_cache(maxsize=1)
def embedder(device: str) -> Any:
    """InceptionResnetV1 with vggface2 weights, from the cache of torch or from the internet."""
    from facenet_pytorch import InceptionResnetV1
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    weights = EMBEDDING_SETTINGS["weights"]
    try:
        return InceptionResnetV1(pretrained=weights, device=device).eval()
    except Exception as error:  # no internet, or foreign bytes in the cache
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"--video_embedding needs the {weights} weights of facenet-pytorch; they are neither "
            f"readable in {get_torch_home()}/checkpoints nor could they be downloaded: {reason}"
        ) from error
