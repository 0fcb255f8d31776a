"""Frames of a clip -> the sure faces of each, and one person followed through them."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

NONE = np.zeros((0, 4), np.float32)
# Where the landmarks are in an aligned crop without a margin, as in ArcFace (arXiv 1801.07698)
PLACES = np.array([[0.342, 0.462], [0.657, 0.460], [0.5, 0.641], [0.371, 0.825], [0.632, 0.823]])
PATCH = 48  # pixels: what MTCNN's last network sees


def find_faces(frames: list[np.ndarray], settings: dict, device: str = "cpu") -> list[np.ndarray]:
    """Boxes (N, 4) float32 in pixels, largest first, of each of the consecutive `frames`.

    MTCNN looks at every `detect_every`-th frame and at the last. Where two such neighbours agree,
    the faces between them are interpolated, and MTCNN's last network moves each into place or
    refuses it. Every frame without such an answer is looked at by all of MTCNN.
    """
    small, scale = shrink(frames, settings)
    if min(small[0].shape[:2]) < settings["min_face"]:  # MTCNN fails below its smallest face
        return [NONE for _ in frames]
    looked_at = sorted({*range(0, len(frames), settings["detect_every"]), len(frames) - 1})
    found = detect_at(looked_at, small, settings, device)
    found |= between(small, found, settings, device)
    rest = [at for at in range(len(frames)) if at not in found]
    found |= detect_at(rest, small, settings, device)
    return [found[at] / scale for at in range(len(frames))]


def detect_at(
    places: list[int], frames: list[np.ndarray], settings: dict, device: str
) -> dict[int, np.ndarray]:
    """The boxes (N, 4) in the frames at these places, by all of MTCNN."""
    if not places:
        return {}
    boxes = detect([frames[at] for at in places], settings, device)
    return dict(zip(places, boxes, strict=True))


def shrink(frames: list[np.ndarray], settings: dict) -> tuple[list[np.ndarray], float]:
    """The frames with `detect_width` as their longer side, and the scale: cost grows with area."""
    import cv2

    height, width = frames[0].shape[:2]
    scale = min(1.0, settings["detect_width"] / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames], scale


def between(small: list, found: dict, settings: dict, device: str) -> dict[int, np.ndarray]:
    """Boxes of the frames between those in `found` for which the last network alone is sure."""
    places, guesses = [], []
    for first, last in pairwise(found):
        partners = agreeing(found[first], found[last], settings["agree_iou"])
        if partners is None:
            continue
        for at in range(first + 1, last):
            share = (at - first) / (last - first)
            places += [at] * len(partners)
            guesses.append(found[first] + share * (partners - found[first]))
    if not places:
        return {}
    frames = [small[at] for at in places]
    boxes, scores = refine(frames, np.concatenate(guesses), settings, device)
    sure: dict[int, np.ndarray] = {}
    for at in set(places):
        here = np.array(places) == at
        if (scores[here] >= settings["min_probability"]).all():
            sure[at] = largest_first(boxes[here])
    return sure


def agreeing(before: np.ndarray, after: np.ndarray, least: float) -> np.ndarray | None:
    """For each box (N, 4) `before` the one `after` in its place; None unless all N have theirs."""
    if len(before) != len(after) or not len(before):
        return None
    overlaps = np.stack([overlap(box, after) for box in before])  # (N, N)
    partners = overlaps.argmax(axis=1)
    sure = len(set(partners)) == len(after) and overlaps.max(axis=1).min() >= least
    return after[partners] if sure else None


def detect(frames: list[np.ndarray], settings: dict, device: str = "cpu") -> list[np.ndarray]:
    """Boxes (N, 4) float32 in pixels, largest first, of the sure faces of each frame (N may be 0).

    All frames have one size.
    """
    network = detector(device, settings["min_face"])
    found, probabilities = network.detect(np.stack(frames))
    return [
        _sure_boxes(boxes, scores, settings["min_probability"])
        for boxes, scores in zip(found, probabilities, strict=True)
    ]


def _sure_boxes(boxes: Any, scores: Any, least: float) -> np.ndarray:
    if boxes is None:
        return NONE
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    sizes = boxes[:, 2:] - boxes[:, :2]
    return largest_first(boxes[(scores >= least) & (sizes > 0).all(axis=1)])


def largest_first(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) -> the boxes that are finite, by area."""
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return boxes[np.argsort(-areas, kind="stable")]


def refine(
    frames: list[np.ndarray], boxes: np.ndarray, settings: dict, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """One box (4,) of each frame moved into place, (N, 4) float32, and its probability (N,)."""
    corners, sides, (moves, _, scores) = last_network(frames, boxes, settings, device)
    return np.concatenate([corners, corners + sides], axis=1) + sides * moves, scores[:, 1]


def landmarks(frame: np.ndarray, box: np.ndarray, settings: dict, device: str) -> np.ndarray:
    """(5, 2) x y in pixels: the eyes, the nose, the corners of the mouth; left is the picture's."""
    corners, sides, (_, points, _) = last_network([frame], box[None], settings, device)
    return corners + sides * points.reshape(2, 5).T


def last_network(frames: list, boxes: np.ndarray, settings: dict, device: str) -> tuple:
    """MTCNN's last network on the square around one box of each frame.

    The squares' corners (N, 2) and sides (N, 1), then its answers in units of those: moves of the
    box (N, 4), landmarks (N, 10) and scores (N, 2).
    """
    import torch

    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)[:, None]
    corners = (boxes[:, :2] + boxes[:, 2:]) / 2 - sides / 2
    patches = [square(frame, box, PATCH) for frame, box in zip(frames, boxes, strict=True)]
    images = torch.from_numpy(np.stack(patches)).to(device).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        answers = detector(device, settings["min_face"]).onet((images - 127.5) / 128)
    return corners, sides, tuple(answer.cpu().numpy() for answer in answers)


@lru_cache(maxsize=1)  # a worker loads the detector once
def detector(device: str, min_face: int) -> Any:
    """MTCNN (arXiv 1604.02878); its weights are part of the facenet-pytorch package."""
    import torch

    from extract.networks import MTCNN

    network = MTCNN(keep_all=True, min_face_size=min_face, factor=0.6, device=device)
    return network.to(memory_format=torch.channels_last)  # its pooling is twice as fast that way


class Track:
    """Follows one person through a clip, some frames at a time.

    It starts with the face that covers most of the picture in these frames, and takes the one that
    overlaps the last box most, until there is none for `lost_after` frames.
    """

    def __init__(self, follow_iou: float, lost_after: int):
        self.follow_iou, self.lost_after = follow_iou, lost_after
        self.last: np.ndarray | None = None
        self.misses = 0

    def follow(self, found: list[np.ndarray]) -> list[np.ndarray | None]:
        """The box (4,) of the followed person among the boxes (N, 4) of each frame, or None."""
        chosen: list = []
        while len(chosen) < len(found):
            left = found[len(chosen) :]
            if self.last is None:
                self.last = max(left[0], key=lambda box: self._covered(box, left), default=None)
            chosen += self._walk(left) if self.last is not None else [None]
        return chosen

    def _walk(self, found: list[np.ndarray]) -> list[np.ndarray | None]:
        """Boxes until the person is lost: `last` is None then."""
        chosen: list = []
        for boxes in found:
            overlaps = overlap(self.last, boxes)
            seen = len(boxes) > 0 and overlaps.max() >= self.follow_iou
            chosen.append(boxes[overlaps.argmax()] if seen else None)
            self.last, self.misses = (chosen[-1], 0) if seen else (self.last, self.misses + 1)
            if self.misses >= self.lost_after:
                self.last, self.misses = None, 0
                break
        return chosen

    def _covered(self, box: np.ndarray, found: list[np.ndarray]) -> float:
        """Pixels in all frames of the person that `box` begins with."""
        trial = Track(self.follow_iou, self.lost_after)
        trial.last = box
        seen = [box for box in trial._walk(found) if box is not None]
        return float(sum((box[2:] - box[:2]).prod() for box in seen))


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of `box` (4,) with each of `boxes` (N, 4) -> (N,)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / (areas + (box[2:] - box[:2]).prod() - shared)


def square(frame: np.ndarray, box: np.ndarray, size: int, margin: float = 0.0) -> np.ndarray:
    """Square crop (size, size, 3) around `box`; outside the picture its edge repeats."""
    import cv2

    centre = (box[:2] + box[2:]) / 2
    side = max(2, round(float((box[2:] - box[:2]).max()) * (1 + 2 * margin)))
    x, y = np.round(centre - side / 2).astype(int)
    rows = np.arange(y, y + side).clip(0, frame.shape[0] - 1)
    columns = np.arange(x, x + side).clip(0, frame.shape[1] - 1)
    crop = frame[rows[:, None], columns]  # (side, side, 3)
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR  # areas: no noise from detail
    return cv2.resize(crop, (size, size), interpolation=method)


def aligned(frame: np.ndarray, points: np.ndarray, size: int, margin: float) -> np.ndarray:
    """Crop (size, size, 3) turned and scaled so that the landmarks (5, 2) come to their places."""
    import cv2
    from skimage.transform import SimilarityTransform

    places = size * (0.5 + (PLACES - 0.5) / (1 + 2 * margin))
    similarity = SimilarityTransform.from_estimate(np.float64(points), places)
    # a large face is turned in its own size and then made smaller by areas: no noise from detail
    times = max(1, round(1 / similarity.scale))
    matrix = times * similarity.params[:2] + [[0, 0, (times - 1) / 2]]  # between pixel centres
    large = (times * size, times * size)
    crop = cv2.warpAffine(frame, matrix, large, borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
