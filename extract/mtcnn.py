"""MTCNN (Zhang et al., arXiv 1604.02878): frames -> boxes of faces, by three small networks.

The weights are those that facenet-pytorch brings along, and so are the boxes, bit by bit (tested).
Its own code is not imported: with torchvision it loads for longer than a clip takes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 12  # pixels that the first network sees at once; it steps by two
SIDES = {"rnet": 24, "onet": 48}  # pixels that the others see of a candidate
SURE = {"pnet": 0.6, "rnet": 0.7, "onet": 0.7}  # a candidate with less goes
POOLS = {"pnet": (2, 0, 0), "rnet": (3, 3, 0), "onet": (3, 3, 2, 0)}  # behind each convolution
CROPS = 512  # that a network sees at once
FEW = 1000  # candidates that are compared in one piece, as torchvision does
Found = tuple[Tensor, Tensor]  # candidates: box, score and more (N, 5 ...), and their frames (N,)


class Mtcnn:
    """`detect` finds faces, of `min_face` pixels or more; `onet` is the last network alone."""

    def __init__(self, device: str, min_face: int, factor: float = 0.6):
        self.device, self.min_face, self.factor = device, min_face, factor
        self.weights = {name: read_weights(name, device) for name in POOLS}

    @torch.inference_mode()
    def detect(self, frames: np.ndarray) -> tuple[list, list]:
        """(B, H, W, 3) uint8 -> for each frame its boxes (N, 4), largest first, and their scores
        (N,); None for both where there is no face."""
        images = torch.tensor(frames, device=self.device).permute(0, 3, 1, 2).float()
        found = self.refined(images, self.candidates(images))
        boxes, places = (each.cpu().numpy() for each in self.confirmed(images, found))
        answers: tuple[list, list] = ([], [])
        for place in range(len(frames)):
            own = boxes[places == place]
            own = own[np.argsort((own[:, 2] - own[:, 0]) * (own[:, 3] - own[:, 1]))[::-1]]
            answers[0].append(own[:, :4] if len(own) else None)
            answers[1].append(own[:, 4] if len(own) else None)
        return answers

    def candidates(self, images: Tensor) -> Found:
        """What the first network takes for a face, at all sizes: squares (N, 5)."""
        (height, width), scale = images.shape[2:], SMALLEST / self.min_face
        side, boxes, places = min(height, width) * scale, [], []
        while side >= SMALLEST:
            size = int(height * scale + 1), int(width * scale + 1)
            moves, scores = self.pnet(normal(F.interpolate(images, size, mode="area")))
            one, where = cells(moves, scores[:, 1], scale)
            kept = apart(one, where, 0.5)
            boxes.append(one[kept])
            places.append(where[kept])
            scale, side = scale * self.factor, side * self.factor
        one, where = torch.cat(boxes), torch.cat(places)
        kept = apart(one, where, 0.7)
        one, where = one[kept], where[kept]
        sizes = (one[:, 2:4] - one[:, :2]).repeat(1, 2)
        return squares(torch.cat([one[:, :4] + one[:, 5:] * sizes, one[:, 4:5]], dim=1)), where

    def refined(self, images: Tensor, found: Found) -> Found:
        """Those that the second network confirms, moved: squares (N, 5)."""
        boxes, places, (moves, _) = self.judged("rnet", images, found)
        kept = apart(boxes, places, 0.7)
        return squares(moved(boxes[kept], moves[kept])), places[kept]

    def confirmed(self, images: Tensor, found: Found) -> Found:
        """Those that the last network confirms, moved (N, 5)."""
        boxes, places, (moves, *_) = self.judged("onet", images, found)
        boxes = moved(boxes, moves)
        kept = apart_by_the_smaller(boxes, places, 0.7)
        return boxes[kept], places[kept]

    def judged(self, name: str, images: Tensor, found: Found) -> tuple[Tensor, Tensor, tuple]:
        """The candidates that a network is sure of, with its score, and its other answers."""
        crops, inside = cut_out(images, found, SIDES[name])
        network = getattr(self, name)
        parts = [network(normal(each)) for each in crops.split(CROPS)]
        answers = [torch.cat(each) for each in zip(*parts, strict=True)]
        boxes, places = (each[inside] for each in found)
        score = answers[-1][:, 1]
        sure = score > SURE[name]
        boxes = torch.cat([boxes[sure, :4], score[sure].unsqueeze(1)], dim=1)
        return boxes, places[sure], tuple(each[sure] for each in answers)

    def pnet(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Moves (B, 4, H', W') and scores (B, 2, H', W')."""
        weights, x = self.weights["pnet"], self.trunk("pnet", images)
        ends = [F.conv2d(x, *pair(weights, name)) for name in ("conv4_2", "conv4_1")]
        return ends[0], ends[1].softmax(dim=1)

    def rnet(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Moves (B, 4) and scores (B, 2)."""
        moves, scores = self.dense("rnet", images, "4", ("5_2", "5_1"))
        return moves, scores.softmax(dim=1)

    def onet(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves (B, 4), landmarks (B, 10), scores (B, 2)."""
        moves, points, scores = self.dense("onet", images, "5", ("6_2", "6_3", "6_1"))
        return moves, points, scores.softmax(dim=1)

    def trunk(self, name: str, x: Tensor) -> Tensor:
        weights = self.weights[name]
        for number, pool in enumerate(POOLS[name], 1):
            x = F.conv2d(x, *pair(weights, f"conv{number}"))
            x = F.prelu(x, weights[f"prelu{number}.weight"])
            x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
        return x

    def dense(self, name: str, images: Tensor, first: str, ends: tuple[str, ...]) -> list[Tensor]:
        weights, x = self.weights[name], self.trunk(name, images)
        x = x.permute(0, 3, 2, 1).flatten(1)  # the weights are of an order with columns first
        x = F.linear(x, *pair(weights, f"dense{first}"))
        x = F.prelu(x, weights[f"prelu{first}.weight"])
        return [F.linear(x, *pair(weights, f"dense{end}")) for end in ends]


def read_weights(name: str, device: str) -> dict[str, Tensor]:
    """Of one network. FileNotFoundError without facenet-pytorch."""
    package = importlib.util.find_spec("facenet_pytorch")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("the package facenet-pytorch, which has the weights of MTCNN")
    path = Path(package.submodule_search_locations[0], "data", f"{name}.pt")
    weights = torch.load(path, map_location=device, weights_only=True)
    order = torch.channels_last  # pooling is twice as fast that way
    return {
        key: each.to(memory_format=order) if each.ndim == 4 else each.contiguous()
        for key, each in weights.items()
    }


def pair(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def normal(pixels: Tensor) -> Tensor:
    return (pixels - 127.5) * 0.0078125


def cells(moves: Tensor, scores: Tensor, scale: float) -> Found:
    """Where the first network is sure: squares of the frame, score and moves (N, 9)."""
    sure = scores >= SURE["pnet"]  # (B, H', W')
    place, rows, columns = sure.nonzero().T
    corners = 2 * torch.stack([columns, rows], dim=1).float()
    boxes = [((corners + 1) / scale).floor(), ((corners + SMALLEST) / scale).floor()]
    more = [scores[sure].unsqueeze(1), moves.permute(0, 2, 3, 1)[sure]]
    return torch.cat([*boxes, *more], dim=1), place


def cut_out(images: Tensor, found: Found, side: int) -> tuple[Tensor, Tensor]:
    """Crops (N, 3, side, side) of the candidates, and which of them have pixels in the frame."""
    height, width = images.shape[2:]
    corners = found[0][:, :4].trunc().int().cpu().numpy()
    first = corners[:, :2].clip(1) - 1
    last = np.minimum(corners[:, 2:], [width, height])
    inside = (last > first).all(axis=1)
    crops = [
        F.interpolate(images[place, :, y:below, x:right].unsqueeze(0), (side, side), mode="area")
        for place, (x, y), (right, below) in zip(
            found[1].tolist(), first.tolist(), last.tolist(), strict=True
        )
        if right > x and below > y
    ]
    none = images.new_zeros(0, 3, side, side)
    return torch.cat(crops) if crops else none, torch.from_numpy(inside).to(images.device)


def squares(boxes: Tensor) -> Tensor:
    """Around the same centres, with the longer side; what else stands in a row stays."""
    sizes = boxes[:, 2:4] - boxes[:, :2]
    side = sizes.amax(dim=1, keepdim=True)
    corners = boxes[:, :2] + sizes * 0.5 - side * 0.5
    return torch.cat([corners, corners + side, boxes[:, 4:]], dim=1)


def moved(boxes: Tensor, moves: Tensor) -> Tensor:
    sizes = (boxes[:, 2:4] - boxes[:, :2] + 1).repeat(1, 2)
    return torch.cat([boxes[:, :4] + moves * sizes, boxes[:, 4:]], dim=1)


def apart(found: Tensor, places: Tensor, most: float) -> Tensor:
    """Which candidates stay, best first: none overlaps a better one of its frame by more than
    `most` of their union."""
    boxes, scores = found[:, :4], found[:, 4]
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    if len(boxes) <= FEW:  # frames side by side
        return best(boxes + (places * (boxes.max() + 1)).unsqueeze(1), scores, most)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for place in places.unique():
        own = torch.where(places == place)[0]
        kept[own[best(boxes[own], scores[own], most)]] = True
    left = torch.where(kept)[0]
    return left[scores[left].sort(descending=True)[1]]


def best(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """The same of boxes that are all of one frame."""
    order = (-scores.cpu().numpy()).argsort(kind="stable")
    corners = boxes.cpu().numpy()[order]
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    left, kept = np.ones(len(order), bool), []
    for at in range(len(order)):
        if not left[at]:
            continue
        kept.append(order[at])
        rest = at + 1 + np.flatnonzero(left[at + 1 :])
        low = np.maximum(corners[at, :2], corners[rest, :2])
        high = np.minimum(corners[at, 2:], corners[rest, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        union = areas[at] + areas[rest] - shared
        left[rest[shared / union > most]] = False
    return torch.tensor(np.array(kept), dtype=torch.long, device=boxes.device)


def apart_by_the_smaller(found: Tensor, places: Tensor, most: float) -> Tensor:
    """The same with the share of the smaller of two; boxes count their last pixel."""
    if not len(found):
        return torch.zeros(0, dtype=torch.long, device=found.device)
    boxes = (found[:, :4] + (places * (found[:, :4].max() + 1)).unsqueeze(1)).cpu().numpy()
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    areas, order, kept = sides[:, 0] * sides[:, 1], found[:, 4].cpu().numpy().argsort(), []
    while order.size:
        first, order = order[-1], order[:-1]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[order, :2])
        high = np.minimum(boxes[first, 2:], boxes[order, 2:])
        shared = (high - low + 1).clip(0).prod(axis=1)
        order = order[shared / np.minimum(areas[first], areas[order]) <= most]
    return torch.tensor(np.array(kept), dtype=torch.long, device=found.device)
