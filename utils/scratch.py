"""Temporary folders that nobody forgets: deleted at the end, or after a kill by the next start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

from utils.errors import UsageError
from utils.files import held_locks

LOCK, FILES = ".scratch.lock", "files"  # the folder holds these two; a user sees `files` alone
TRIES = 20  # to delete a folder into which somebody still writes
_ours: dict[Path, int] = {}  # folders, also while they are made, and the process that they are of


class Scratch:
    """A folder for this process, `path`: gone with `close`, this object or the interpreter.

    A process that is killed leaves it behind, and `sweep` of a later one deletes it.
    """

    def __init__(self, folder: Path, lock: BinaryIO):
        self.path = folder / FILES
        self._end = weakref.finalize(self, _delete, folder, lock, os.getpid())

    def close(self) -> None:
        self._end()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scratch_folder(prefix: str, place: str | None = None) -> Scratch:
    """A new folder in `place`, or where the system keeps temporary files; UsageError where there
    can be none."""
    where = Path(place or tempfile.gettempdir())
    try:
        while True:
            folder = where / f"{prefix}{secrets.token_hex(8)}"
            _ours[folder] = os.getpid()
            folder.mkdir(mode=0o700)
            lock = _lock(folder, os.O_CREAT)
            if lock is not None:  # else a sweep came between the two lines
                (folder / FILES).mkdir(mode=0o700)
                return Scratch(folder, lock)
    except BaseException as error:  # also a signal that ends the program within these lines
        shutil.rmtree(folder, ignore_errors=True)
        _ours.pop(folder, None)
        if not isinstance(error, OSError):
            raise
        what = f"cannot make a temporary folder in {where} (TMPDIR)"
        raise UsageError(f"{what}: {error.strerror}") from error


def sweep(prefix: str, place: str | None = None) -> int:
    """Delete the folders of this prefix whose processes are gone; how many there were.

    A folder of another user, one without our lock, and a link are left alone: not ours to judge.
    """
    swept = 0
    with os.scandir(place or tempfile.gettempdir()) as entries:
        folders = [entry for entry in entries if entry.name.startswith(prefix)]
    for entry in folders:
        with contextlib.suppress(OSError):
            real = entry.is_dir(follow_symlinks=False)
            if real and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                swept += _sweep_one(Path(entry.path))
    return swept


def _sweep_one(folder: Path) -> bool:
    lock = _lock(folder)
    if lock is None:
        return False
    _delete(folder, lock, os.getpid())
    return not folder.exists()


def _lock(folder: Path, create: int = 0) -> BinaryIO | None:
    """The folder's lock, held; None where another process holds it or deletes the folder.

    Not `lock_folder`, which follows links: others may write where temporary files are.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | create
    lock = os.fdopen(os.open(folder / LOCK, flags, 0o600), "rb")
    is_held = False
    try:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # it is another's, or gone
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).lstat())
    finally:
        if not is_held:
            lock.close()
    if not is_held:
        return None
    held_locks[folder] = lock
    return lock


def _delete(folder: Path, lock: BinaryIO, owner: int) -> None:
    """The lock goes last: what a kill leaves of a half deleted folder can still be swept."""
    if os.getpid() != owner:  # forked from the owner, which still uses it
        return
    try:
        _remove(folder)
    finally:
        if folder.exists():  # a signal ends the program, and came within the line above
            _remove(folder)
        _ours.pop(folder, None)
        held_locks.pop(folder, None)
        lock.close()


def delete_all() -> None:
    """Those of this process, which is about to end at once (os._exit)."""
    for folder, owner in [*_ours.items()]:
        if owner == os.getpid():
            _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(TRIES):
        shutil.rmtree(folder / FILES, ignore_errors=True)
        if not (folder / FILES).exists():
            shutil.rmtree(folder, ignore_errors=True)
            return
