"""Stops by a signal: asked for at any time, obeyed where nothing is lost, also within a step."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
    """SIGTERM, SIGINT and SIGHUP ask for a stop where nothing is lost; a second one stops at once.

    SIGHUP, of a terminal that closes, stays ignored where it is (nohup).
    `grace`: the same signal can come twice within a second, from a launcher and to its group.
    """

    def __init__(self, grace: bool = False):
        self.signum, self.came, self.grace = 0, 0.0, float(grace)  # signum 0: go on

    def __enter__(self) -> StopSignal:
        stops = [each for each in STOPS if signal.getsignal(each) != signal.SIG_IGN]
        self.before = {each: signal.signal(each, self._ask) for each in stops}
        return self

    def requested(self) -> bool:
        return bool(self.signum)

    def __exit__(self, *_: Any) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def _ask(self, signum: int, frame: Any) -> None:
        if self.signum and time.monotonic() - self.came >= self.grace:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if not self.signum:
            self.signum, self.came = signum, time.monotonic()
            if signum == signal.SIGHUP:
                leave_terminal()
            os.write(2, b"stopping ...\n")  # print could be in the middle of one


def leave_terminal() -> None:
    """What is still printed goes nowhere: writing to a closed terminal is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):  # isatty says no where it has gone
            os.dup2(nowhere, output)
    os.close(nowhere)


class StepInterrupted(Exception):
    """A step was left half-way for a stop; it has changed nothing."""


@contextlib.contextmanager
def interruptible(model: torch.nn.Module, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Passes through `model` inside end with StepInterrupted as soon as one is requested.

    Asked before every module of the way forward and behind every weight's gradient on the way back:
    the longest wait is that of one layer. All that a forward pass changes are the buffers (the
    statistics of batch norm), and they are put back.
    """

    def leave(*_: Any) -> None:
        if stop_requested():
            raise StepInterrupted

    before = [each.clone() for each in model.buffers()]
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(register_module_forward_pre_hook(leave))
        for weight in filter(lambda each: each.requires_grad, model.parameters()):
            hooks.enter_context(weight.register_post_accumulate_grad_hook(leave))
        try:
            yield
        except StepInterrupted:
            for each, old in zip(model.buffers(), before, strict=True):
                each.copy_(old)
            raise
