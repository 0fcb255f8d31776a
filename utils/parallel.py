"""The machine: its cores and its memory; one function over many items, here or on a cluster."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

from utils.errors import UsageError, one_of
from utils.scratch import Scratch, scratch_folder, sweep

BACKENDS = ("loky", "dask", "ray")  # "loky" is this machine
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of mallopt(3)
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}  # freed memory stays with the process
GLIBC = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}  # without our change
PR_SET_PDEATHSIG = 1  # of prctl(2)
LONGEST_PLACE = 60  # bytes, of a folder for pymp-xxxxxxxx/listener-xxxxxxxx
SOCKETS = "pymp-"  # as multiprocessing calls such folders
_sockets: list[Scratch] = []
_sockets_lock = threading.Lock()


def available_cores() -> int:
    """Cores that this process may use (a container or `taskset` can allow fewer than exist)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_memory(options: dict[int, int] = KEEP) -> None:
    """Let the C library keep what is freed: training on a CPU asks for the same sizes at each step.

    glibc gives large blocks back and gets them anew, as zeros that the system has to write: a
    sixth of a step's time, for a tenth more memory. Systems without glibc are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in options.items():
            libc.mallopt(option, value)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Load libraries here: Python looks for no garbage meanwhile. They leave none, and to look
    among the thousands of objects that they make takes a fifth of their time."""
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()


def short_sockets() -> None:
    """Have multiprocessing keep its sockets in a folder of ours, which the next start sweeps after
    a kill; in /tmp where TMPDIR is too long for them: a system allows their path 108 bytes, and
    batch systems name folders by job and user."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_PLACE else "/tmp"
    with _sockets_lock:
        if not config.get("tempdir"):
            sweep(SOCKETS, place)
            _sockets.append(scratch_folder(SOCKETS, place))  # deleted at the end of this process
            config["tempdir"] = str(_sockets[-1].path.parent)


def use_tensor_cores(device: str) -> None:
    """On a GPU, float32 multiplications in TF32."""
    if device.startswith("cuda"):
        import torch

        torch.set_float32_matmul_precision("high")


def signal_at_parents_end(signum: int) -> None:
    """Have the system send this process a signal when its parent dies."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def end_with_parent() -> None:
    """Have the system kill this child when its parent dies; at once, where that has happened."""
    signal_at_parents_end(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    forked = multiprocessing.get_start_method() == "fork"  # else the forkserver is its parent
    if forked and parent and os.getppid() != parent.pid:
        os._exit(1)


def trim_memory() -> None:
    """Give the kept memory back once: before a process is forked, which would keep it too."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def parallel_map(
    function: Callable, items: list, workers: int, backend: str = "loky"
) -> Iterator[Any]:
    """Yield `function(item)` for every item, in any order; on a cluster after `connect`.

    On this machine the workers are threads: each hands its work to a process of its own
    (utils/guard.py), so that a process that dies costs one clip, where a pool would be lost.
    """
    if backend == "loky" and workers == 1:
        yield from map(function, items)
    elif backend == "loky":
        with ThreadPool(workers) as pool:
            yield from pool.imap_unordered(function, items)
    else:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(backend=backend, n_jobs=-1):
            yield from Parallel()(delayed(function)(item) for item in items)


def connect(backend: str, scheduler: str | None) -> None:
    """Find the cluster, or start one on this machine; nothing for loky. UsageError says why not."""
    one_of("backend", backend, BACKENDS)
    try:
        if backend == "dask":
            from dask.distributed import Client

            Client(scheduler)  # joblib uses the newest client; None starts a cluster here
        elif backend == "ray":
            import ray
            from ray.util.joblib import register_ray

            ray.init(address=scheduler, ignore_reinit_error=True)
            register_ray()
    except ImportError as error:
        package = {"dask": "dask[distributed]", "ray": "ray"}[backend]
        need = f"--backend {backend} needs one more package: pip install '{package}'"
        raise UsageError(need) from error
