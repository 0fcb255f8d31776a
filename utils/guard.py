"""Calls in a child process with a deadline and a memory limit: what kills it is a ClipError."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ClipError, UsageError
from utils.files import discard_unfinished

START = "forkserver"  # one process loads the libraries, children fork from it
LOST = ("E_TIMEOUT", "E_KILLED", "E_CRASH")  # after these the child is replaced
TRY_AGAIN = ("E_KILLED", "E_CRASH", "E_READ")  # causes can lie outside: another's memory, a network
NO_MEMORY = ("alloc", "map zero-fill", "map segment")  # a library, the dynamic loader
_here = threading.local()  # each supervising thread keeps one child, which loads its libraries once


@dataclass(frozen=True)
class Limits:
    """What one call may use. `libraries` are loaded once for all children."""

    seconds: float
    memory_mb: int  # of data, beyond what the libraries hold; 0: no limit
    libraries: tuple[str, ...] = ()


def guarded(function: Callable, *args: Any, limits: Limits) -> Any:
    """`function(*args)` in a child process. ClipError when the child dies twice or is too slow.

    The function's own ClipError and UsageError pass through; any other exception becomes E_CRASH,
    its traceback on stderr.
    """
    for tries_left in (1, 0):
        answer = _call(function, args, limits)
        if not isinstance(answer, Exception):
            return answer
        code = getattr(answer, "code", None)
        if code in LOST:
            _stop()
        if not tries_left or code not in TRY_AGAIN:
            raise answer


def _call(function: Callable, args: tuple, limits: Limits) -> Any:
    if getattr(_here, "process", None) is None:
        _start(limits)
    try:
        _here.pipe.send((function, args, limits.memory_mb))
        if _here.pipe.poll(limits.seconds):
            return _here.pipe.recv()
        return ClipError("E_TIMEOUT", f"not done after {limits.seconds:.0f} s (--clip_seconds)")
    except (EOFError, OSError):
        _here.process.join()
        died = f"its process died {_cause(_here.process.exitcode)}"
        tight = " (is --memory_mb too small?)" * (_here.process.exitcode > 0 < limits.memory_mb)
        return ClipError("E_KILLED", died + tight)


def _start(limits: Limits) -> None:
    context = multiprocessing.get_context(START)
    context.set_forkserver_preload(list(limits.libraries))
    # dask's workers are "daemonic", which to multiprocessing means: without children
    multiprocessing.current_process()._config["daemon"] = False
    _here.pipe, its_end = context.Pipe()
    _here.process = context.Process(target=_serve, args=(its_end,), daemon=True)
    _here.process.start()
    its_end.close()


def _stop() -> None:
    _here.process.kill()
    _here.process.join()
    _here.pipe.close()
    _here.process = None


def _serve(pipe: Any) -> None:
    """The child: answer calls until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: _end())  # so does a parent that ends with an error
    threading.Thread(target=_end_with_parent, daemon=True).start()
    held = _data()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, args, memory_mb = pipe.recv()
            _limit_memory(memory_mb, held)
            pipe.send(_answer(function, args))


def _data() -> int:
    """Bytes that this process has for data, as the system counts them; 0 where nobody can tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmData"))) << 10
    return 0


def _limit_memory(megabytes: int, held: int) -> None:
    """Of written data: a limit of the address space would count what torch only reserves."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + (megabytes << 20) if megabytes else most
    with contextlib.suppress(ValueError):  # a lower limit is in force already
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))


def lift_memory_limit() -> None:
    """For a call that computes on a GPU: its driver takes gigabytes of this memory, too."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _answer(function: Callable, args: tuple) -> Any:
    try:
        return function(*args)
    except (ClipError, UsageError) as error:
        return error
    except Exception as error:  # torch and OpenCV have their own words for MemoryError
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            return ClipError("E_KILLED", "needs more memory than --memory_mb allows")
        traceback.print_exc(file=sys.stderr)
        return ClipError("E_CRASH", f"a bug of ours, please report it: {error!r}")


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    _end()


def _end() -> None:
    discard_unfinished()
    os._exit(1)


def _cause(exitcode: int) -> str:
    return f"of {signal.Signals(-exitcode).name}" if exitcode < 0 else f"with code {exitcode}"
