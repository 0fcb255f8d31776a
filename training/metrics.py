"""Loss and accuracy over all clips: sums and a confusion matrix, divided once at the end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from utils.distributed import SingleProcess


def commonest(counts: Iterable[int]) -> tuple[int, float]:
    """The class that occurs most often, of several the first, and its share: who always gives it
    is right so often without looking at a clip."""
    numbers = np.asarray([*counts])
    return int(numbers.argmax()), float(numbers.max() / max(1, numbers.sum()))


class Metrics:
    """Adds batches up. Clips without a label (-1) do not count."""

    def __init__(self, n_classes: int):
        self.loss_sum = 0.0
        self.confusion = np.zeros((n_classes, n_classes), np.int64)  # [label, prediction]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """`logits` (B, K), `labels` (B,)."""
        known = labels >= 0
        logits, labels = logits.cpu()[known].float(), labels[known]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        self.loss_sum += float(loss)
        np.add.at(self.confusion, (labels.numpy(), logits.argmax(dim=1).numpy()), 1)

    def add_up(self, dist: SingleProcess) -> None:
        """Become the metrics of the clips of all processes."""
        sums = torch.tensor([self.loss_sum, *self.confusion.flat], dtype=torch.float64)
        self.loss_sum, *counts = dist.sum(sums).tolist()
        self.confusion[:] = np.reshape(counts, self.confusion.shape)

    @property
    def clips(self) -> int:
        return int(self.confusion.sum())

    def summary(self) -> dict[str, float]:
        """loss (mean cross-entropy), accuracy, and uar: mean recall over the classes that occur."""
        per_class = self.confusion.sum(axis=1)
        right = self.confusion.diagonal()
        occurs = per_class > 0
        total = max(1, self.clips)
        recall = (right[occurs] / per_class[occurs]).mean() if occurs.any() else 0.0
        return {
            "loss": self.loss_sum / total,
            "accuracy": float(right.sum() / total),
            "uar": float(recall),
        }
