"""Calls in a child process with a deadline and a memory limit: what kills it is a ClipError.

Pools that share one queue among workers (pebble, concurrent.futures) were tried and not taken: a
worker that is killed while it holds the lock of that queue stops every later call.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import stopwatch
from utils.errors import NO_MEMORY, ClipError, UsageError, in_short
from utils.files import discard_unfinished
from utils.parallel import short_sockets

START = "forkserver"  # one process loads the libraries, the children are forked from it
LOST = ("E_TIMEOUT", "E_KILLED", "E_CRASH")  # after these the child is replaced
TRY_AGAIN = ("E_KILLED", "E_CRASH", "E_READ")  # the cause may be outside: other processes, networks
CLIP_MB = 2048  # that a process may hold beyond its libraries, which reads one clip after the other
RECORDING_MB = 6000  # one that also hears whole recordings: an hour of sound takes about 1,000
_here = threading.local()  # each supervising thread keeps one child, which keeps what it loaded


@dataclass(frozen=True)
class Limits:
    """What one call may use. `libraries` are loaded once for all children."""

    seconds: float
    memory_mb: int  # of data, beyond what the libraries hold; 0: no limit
    libraries: tuple[str, ...] = ()


def begin_loading(libraries: Iterable[str]) -> None:
    """Have the libraries of the first call loaded from now on, while this process goes on.

    They are loaded once, by the process that all children are forked from; where this thread has a
    child already, that is done.
    """
    short_sockets()
    context: Any = multiprocessing.get_context(START)
    if START == "forkserver" and getattr(_here, "process", None) is None:
        context.set_forkserver_preload(list(dict.fromkeys(libraries)))
        multiprocessing.forkserver.ensure_running()


def guarded(function: Callable, *args: Any, limits: Limits) -> Any:
    """`function(*args)` in a child process. ClipError when the child dies twice or is too slow.

    A second try has the seconds that the first one left. The function's own ClipError and
    UsageError pass through; any other exception becomes E_CRASH, its traceback on stderr.
    """
    _start(limits)
    until = time.monotonic() + limits.seconds
    result = _call(function, args, limits, until)
    if _code(result) in TRY_AGAIN:
        _start(limits)
        result = _call(function, args, limits, until)
    if isinstance(result, Exception):
        raise result
    return result


def _code(result: Any) -> str | None:
    return result.code if isinstance(result, ClipError) else None


def _call(function: Callable, args: tuple, limits: Limits, until: float) -> Any:
    """What the function returns, or the exception that says what went wrong."""
    try:
        _here.pipe.send((function, args, limits.memory_mb))
        if _here.pipe.poll(max(0.0, until - time.monotonic())):
            result, seconds = _here.pipe.recv()
            stopwatch.add(seconds)
        else:
            reason = f"not done after {limits.seconds:.0f} s (--clip_seconds)"
            result = ClipError("E_TIMEOUT", reason)
    except (EOFError, OSError):
        result = _death(limits)
    if _code(result) in LOST:
        _stop()
    return result


def _death(limits: Limits) -> ClipError:
    """Why the child is no more."""
    _here.process.join()
    code = _here.process.exitcode
    if code > 0 and _is_limited():  # so libraries give up, whatever the clip
        _here.process = None
        raise MemoryError("a process that reads clips ended for want of it: see `ulimit -v`")
    # what gets no memory can crash, or end the process by itself
    hint = " (is --memory_mb too small?)" if code and limits.memory_mb else ""
    if code < 0:
        return ClipError("E_KILLED", f"its process died of {signal.Signals(-code).name}{hint}")
    return ClipError("E_KILLED", f"its process died with code {code}{hint}")


def _start(limits: Limits) -> None:
    """A child of this thread, unless it has one."""
    if getattr(_here, "process", None) is not None:
        return
    begin_loading(limits.libraries)
    context: Any = multiprocessing.get_context(START)
    # dask's workers are "daemonic", which to multiprocessing means: without children
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    _here.pipe, its_end = context.Pipe()
    _here.process = context.Process(target=_serve, args=(its_end, limits.libraries), daemon=True)
    try:
        _here.process.start()
    except EOFError as error:  # of the process that all are forked from
        _here.process = None
        raise MemoryError("the process that reads clips could not start") from error
    its_end.close()


def _stop() -> None:
    _here.process.kill()
    _here.process.join()
    _here.pipe.close()
    _here.process = None


def _serve(pipe: Any, libraries: tuple[str, ...]) -> None:
    """The child: answer calls until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: _end())  # so does a parent that ends with an error
    threading.Thread(target=_end_with_parent, daemon=True).start()
    problem = _load(libraries)
    held = _data_bytes()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _limit_memory(0, held)  # a function's libraries are loaded as it arrives
            function, args, memory_mb = pipe.recv()
            _limit_memory(memory_mb, held)
            stopwatch.seconds.clear()
            result = problem or _result(function, args)
            pipe.send((result, dict(stopwatch.seconds)))
            if getattr(_here, "lifted", False):  # what the driver of the GPU holds is no clip's
                held = _data_bytes()


def _load(libraries: tuple[str, ...]) -> Exception | None:
    """What prevents the libraries, which the process that all are forked from has loaded unless it
    could not: no clip is to blame for that."""
    try:
        for name in libraries:
            importlib.import_module(name)
    except Exception as error:
        told = f"what reads clips cannot be loaded: {in_short(f'{type(error).__name__}: {error}')}"
        lacking = _is_limited() or _lacks_memory(error)
        return MemoryError(told) if lacking else UsageError(told)
    return None


def _is_limited() -> bool:
    """Whether `ulimit -v` is in force."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _data_bytes() -> int:
    """What this process has for data, as the system counts it; 0 where nobody can tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmData"):
                return int(line.split()[1]) << 10
    return 0


def _limit_memory(megabytes: int, held: int) -> None:
    """Of written data: a limit of the address space would count what torch only reserves."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + (megabytes << 20) if megabytes else hard
    with contextlib.suppress(ValueError):  # a lower limit is in force already
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def lift_memory_limit() -> None:
    """For a call that computes on a GPU: its driver takes gigabytes of this memory, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    _here.lifted = True


def _result(function: Callable, args: tuple) -> Any:
    try:
        return function(*args)
    except (ClipError, UsageError) as error:
        return error
    except Exception as error:
        if _lacks_memory(error):
            return ClipError("E_KILLED", "needs more memory than --memory_mb allows")
        traceback.print_exc(file=sys.stderr)
        return ClipError("E_CRASH", f"a bug of ours, please report it: {error!r}")


def _lacks_memory(error: Exception) -> bool:
    """MemoryError, or what a library, the allocator or the dynamic loader says instead."""
    said = ("alloc", "map zero-fill", *NO_MEMORY)
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _end_with_parent() -> None:
    parent: Any = multiprocessing.parent_process()
    multiprocessing.connection.wait([parent.sentinel])
    _end()


def _end() -> None:
    discard_unfinished()
    os._exit(1)
