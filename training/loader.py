"""A loader of batches that fails in one line, and only between two batches."""

from __future__ import annotations

import atexit
import os
import re
import signal
import weakref
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader

from training.stopping import StepInterrupted
from utils.errors import UsageError, in_short, listed
from utils.parallel import short_sockets, trim_memory

TOO_MANY_FILES = (
    "too many open files: raise the limit, `ulimit -n 1024`, or take fewer --num_workers"
)
NO_ROOM = re.compile("unable to (resize|write to|allocate) .*(file|shared memory)")
FILES, FILES_OF_READER = 8, 16  # pipes, and the batches that are handed over


def check_open_files(count: int) -> None:
    """LoaderError unless so many more files can be opened: where torch meets the limit half-way,
    it says ten lines of its own behind ours."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise LoaderError(TOO_MANY_FILES) from error
    finally:
        for each in opened:
            os.close(each)


class LoaderError(UsageError):
    """The next batch cannot be read; all before it were. Exit code 2, or that of the reason."""

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


class Loader(DataLoader):
    """DataLoader of a ClipDataset by EpochBatches; LoaderError says what it could not read.

    Its workers ignore SIGTERM, so a process that ends without `close` would wait for them forever.
    Freeing the loader is not enough: whoever keeps an exception keeps its caller's variables.
    `stop_requested`: asked while a batch does not come, for a worker can hang in a read.
    """

    stop_requested: Callable[[], bool] = staticmethod(lambda: False)
    _iterator: Any  # torch's own: its running workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ahead = iter(list(self.batch_sampler))
        if self.num_workers and self._iterator is None:
            check_open_files(FILES + FILES_OF_READER * self.num_workers)
            atexit.register(_close, weakref.ref(self))
            short_sockets()
            trim_memory()
        try:
            if self._iterator is not None:
                self._iterator._timeout = 0  # torch waits for its workers here, and not patiently
            batches = super().__iter__()
            if self._iterator is not None:
                self._iterator._timeout = self.timeout
            if self.num_workers:
                # torch's handler of a worker's death raises anywhere, also within an update
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for batch in self.patiently(batches):
                next(ahead)
                yield batch
        except StepInterrupted:
            self.kill_workers()  # one of them hangs in a read
            raise
        except Exception as error:
            self.kill_workers()
            if isinstance(error, UsageError):  # of a worker: behind its traceback
                reason = str(error).rpartition(f"{type(error).__name__}: ")[2].splitlines()[0]
                raise LoaderError(reason, error.exit_code) from error
            if str(error).startswith("Too many open files"):
                raise LoaderError(TOO_MANY_FILES) from error
            if NO_ROOM.search(str(error)):
                why = in_short(str(error).splitlines()[-1])
                remedy = "raise `ulimit -f`, make room in /dev/shm, or take --num_workers 0"
                raise LoaderError(f"a batch cannot be handed over: {why}; {remedy}") from error
            # torch saw the death, or its batch was just being handed over
            handing_over = isinstance(error, (ConnectionError, EOFError))
            if handing_over or str(error).startswith(("DataLoader worker", "Pin memory thread")):
                raise LoaderError(self.killed(ahead)) from error
            raise

    def patiently(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches; StepInterrupted when a stop is requested while none comes."""
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                pinning = getattr(self._iterator, "_pin_memory_thread", None)
                if pinning is not None and not pinning.is_alive():  # torch looks for it no more
                    raise RuntimeError("Pin memory thread has ended") from error
                if self.stop_requested():
                    raise StepInterrupted from error
            else:
                if batch is None:
                    return
                yield batch

    def close(self) -> None:
        """End the workers; the next epoch starts new ones."""
        if self._iterator is not None:
            if not self.pin_memory:  # whose thread must not meet half of a batch
                self.kill_workers()  # torch waits ten seconds for each that hangs in a read
            self._iterator._shutdown_workers()
            self.kill_workers()
            self._iterator = None

    def kill_workers(self) -> None:
        for worker in getattr(self._iterator, "_workers", ()):
            worker.kill()
            worker.join()  # until then they hold the lock of the run's folder, too

    def killed(self, ahead: Iterator[list[tuple[int, int]]]) -> str:
        """What to say of a worker's death, with the clips that all of them were reading."""
        flight = chain(*islice(ahead, self.num_workers * self.prefetch_factor))
        clips = [self.dataset.rows[index]["clip_id"] for _, index in flight]
        return (
            "a process that reads clips was killed: by the system, if memory or /dev/shm was full "
            f"(fewer --num_workers need less). {len(clips)} clips were being read: "
            + listed(clips, 8)
        )


def _close(loader: weakref.ref[Loader]) -> None:
    if there := loader():
        there.close()
