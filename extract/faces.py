"""A clip's picture -> one face crop per sampled time, (T, S, S, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from extract.detector import Track, aligned, find_faces, landmarks, square
from extract.media import frames_at
from utils.errors import ClipError, IntegrityError, UsageError, in_short
from utils.files import sha256
from utils.stopwatch import timed, timed_items

FACE_SETTINGS = {
    "face_fps": 10.0,  # crops per second of speech
    "face_size": 160,  # pixels of a crop's side: what FaceNet sees; half the bytes of 224
    "face_align": False,  # eyes and mouth at the same place in every crop
    "detect_width": 320,  # frames are detected at this width: 6x faster than 720p, same faces
    "detect_every": 8,  # sampled frames; those between are interpolated where they agree
    "agree_iou": 0.5,  # overlap of a face with itself `detect_every` frames later
    "min_face": 30,  # pixels at that width: a tenth of the frame
    "min_probability": 0.9,  # of MTCNN's last stage
    "margin": 0.1,  # of the box's longer side, added on each side
    "follow_iou": 0.2,  # overlap with the last box that makes a face the same person
    "lost_after": 5,  # sampled frames without that person until the largest face is taken again
}
EMBEDDING_SETTINGS = {"network": "InceptionResnetV1", "weights": "vggface2", "size": 160}
WEIGHTS = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
WEIGHTS += "20180402-114759-vggface2.pt"  # from where, and as which file, facenet-pytorch takes it
# of its 111,898,327 bytes; its authors publish none, many projects that use it state this one
WEIGHTS_SHA256 = "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"
MOST_BYTES = 8 * 10**9  # of the crops of a clip: a file may claim days, or be asked for too much
BLOCK = 32  # frames held at once, and
BLOCK_BYTES = 128 << 20  # at most this much of them: the memory does not grow with the clip


def face_stream(
    path: Path,
    start: float,
    end: float,
    settings: dict = FACE_SETTINGS,
    device: str = "cpu",
    threads: int = 1,
    cropped: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """T crops (S, S, 3) with their boxes (4,), face_fps from `start` to `end` on the clip's clock.

    One person, followed as long as they stay (detector.Track). ClipError without any face.
    `cropped`: each picture as a whole is the face.
    """
    if cropped:
        ((_, picture),) = frames_at(path, sample_times(start, end, settings["face_fps"]), threads)
        box = np.array([0, 0, picture.shape[1], picture.shape[0]], np.float32)
        yield square(picture, box, settings["face_size"]), box
        return
    times, size = sample_times(start, end, settings["face_fps"]), settings["face_size"]
    no_face = np.zeros((size, size, 3), np.uint8), np.full(4, np.nan, np.float32)
    track = Track(settings["follow_iou"], settings["lost_after"])
    done = found = 0
    for block in _blocks(timed_items("decode", frames_at(path, times, threads))):
        with timed("detect"):
            boxes = track.follow(find_faces([frame for _, frame in block], settings, device))
        for (indices, frame), box in zip(block, boxes, strict=True):
            face = no_face
            if box is not None:
                face = cut(frame, box, settings, device), box
                found += 1
            yield from repeat(no_face, indices[0] - done)  # times without a picture
            yield from repeat(face, len(indices))
            done = indices[-1] + 1
    yield from repeat(no_face, len(times) - done)
    if not found:
        when = f"from {start:.1f} to {end:.1f} s"
        raise ClipError("E_NOFACE", f"no face in {path.name} {when} (0 of {len(times)} frames)")


def cut(frame: np.ndarray, box: np.ndarray, settings: dict, device: str = "cpu") -> np.ndarray:
    """The crop (S, S, 3) of one face, upright by its landmarks with `face_align`."""
    size, margin = settings["face_size"], settings["margin"]
    if not settings["face_align"]:
        return square(frame, box, size, margin)
    return aligned(
        np.ascontiguousarray(frame), landmarks(frame, box, settings, device), size, margin
    )


def count_times(start: float, end: float, fps: float) -> int:
    return max(1, round((end - start) * fps))


def sample_times(start: float, end: float, fps: float) -> np.ndarray:
    """(T,) seconds: the middles of T equal parts, T = duration x fps, at least one."""
    count = count_times(start, end, fps)
    return start + (np.arange(count) + 0.5) * (end - start) / count


def _blocks(frames: Iterator) -> Iterator[list]:
    """Frames of one size, some at a time."""
    block: list = []
    for item in frames:
        full = len(block) == BLOCK or len(block) * item[1].nbytes > BLOCK_BYTES
        if block and (full or block[0][1].shape != item[1].shape):
            yield block
            block = []
        block.append(item)
    if block:
        yield block


def embed(
    crops: np.ndarray, valid: np.ndarray, device: str = "cpu", weights_sha256: str = WEIGHTS_SHA256
) -> np.ndarray:
    """FaceNet vectors, (T, S, S, 3) uint8 -> (T, 512) float32; zeros where not valid."""
    import torch

    size = EMBEDDING_SETTINGS["size"]
    vectors = np.zeros((len(crops), 512), np.float32)
    shown = np.flatnonzero(valid)
    for some in (shown[first : first + BLOCK] for first in range(0, len(shown), BLOCK)):
        images = torch.from_numpy(crops[some]).permute(0, 3, 1, 2).float()  # (block, 3, S, S)
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
        images = (images - 127.5) / 128  # how the published weights were trained
        with torch.inference_mode():
            vectors[some] = embedder(device, weights_sha256)(images.to(device)).cpu().numpy()
    return vectors


@lru_cache(maxsize=1)
def embedder(device: str, weights_sha256: str = WEIGHTS_SHA256) -> Any:
    """InceptionResnetV1 with vggface2 weights, from the cache of torch or from the internet.

    IntegrityError for other weights than those of that sha256.
    """
    import torch

    from extract.networks import InceptionResnetV1, get_torch_home

    weights, place = EMBEDDING_SETTINGS["weights"], Path(get_torch_home(), "checkpoints")
    file = place / WEIGHTS.rpartition("/")[2]
    try:
        if not file.exists():
            place.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(WEIGHTS, str(file), WEIGHTS_SHA256)
        found = sha256(file)
    except Exception as error:  # no internet, another file there, no right to write
        raise UsageError(
            f"--video_embedding needs the {weights} weights of facenet-pytorch; they are neither "
            f"readable in {place} nor could they be downloaded: {in_short(error)}"
        ) from error
    if found != weights_sha256:
        origin = "published" if weights_sha256 == WEIGHTS_SHA256 else "that the features know"
        raise IntegrityError(
            f"the weights in {file} are not those {origin} (sha256 {weights_sha256[:12]}...): "
            "put these there; without a file there the published ones are downloaded"
        )
    return InceptionResnetV1(pretrained=weights, device=device).eval()
