"""Seconds by what they were spent on, of this process and of those that read clips for it
(utils/guard.py); `predict.py --times` shows them."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

seconds: defaultdict[str, float] = defaultdict(float)


def add(others: dict[str, float]) -> None:
    for name, value in others.items():
        seconds[name] += value


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """For `with`, or before a function."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - start


def timed_items(name: str, items: Iterable[T]) -> Iterator[T]:
    """The items; the time that each takes to come counts, not what is then done with it."""
    iterator = iter(items)
    while True:
        with timed(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
