"""What the steps of a training found, read from the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Readings:
    """A few numbers of each step, on their way to the CPU, and whatever is known of that step.

    They are read `lag` steps later. With 0 every step waits for its own numbers: right for a CPU,
    where they are there. With 1 a GPU has the next step to do while its last one is read.
    """

    def __init__(self, lag: int):
        self.lag = lag
        self.waiting: deque[tuple[Tensor, Any, Any]] = deque()

    def add(self, numbers: Tensor, about: Any) -> None:
        """`numbers` (N,) of the step `about`."""
        event = None
        if numbers.is_cuda:
            there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers, event = there.copy_(numbers, non_blocking=True), torch.cuda.Event()
            event.record()
        self.waiting.append((numbers, event, about))

    def due(self, lag: int | None = None) -> Iterator[tuple[list[float], Any]]:
        """The numbers of each step that is `lag` steps ago, and the step; 0: all that are left."""
        while len(self.waiting) > (self.lag if lag is None else lag):
            numbers, event, about = self.waiting.popleft()
            if event:
                event.synchronize()
            yield numbers.tolist(), about
