"""The one way to write a file (whole or not at all), digests, and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import socket
import stat
import struct
import sys
import time
import tokenize
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from utils.errors import IntegrityError, LockedError, UsageError, in_short

SEAL, SEAL_LENGTH = b"sha256:", 7 + 64  # and 64 hex digits end a sealed file
# what numpy and zipfile raise for a damaged file: headers are read as Python, so it is nearly all
DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError),
    *(SyntaxError, SystemError, AttributeError, tokenize.TokenError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)
FORMULA = tuple("=+-@\t\r\n'")  # a cell that begins so is more than text to a spreadsheet
MAX_ID_BYTES = 200  # of a clip's id: file systems allow 255, and we add an ending
MOST_HEADER = 10_000  # bytes of an .npy's header; numpy allows as many, but reads it whole first
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of numpy's archives
PART = ".part"  # unfinished files are named .<random>.part, so no glob for *.npy ever meets one
_unfinished: set[Path] = set()  # of this process
held_locks: dict[Path, Any] = {}  # folders that this process holds, and their open lock files


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path`, sync it, then rename it to `path`.

    A reader, or a run after a crash, sees the old file or the new one, never a part of one.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}{PART}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _unfinished.add(temporary)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or f"{error}; is the disc full?"
        if error.errno in (None, errno.ENOSPC, errno.EDQUOT):
            written = temporary.stat().st_size if temporary.exists() else 0
            free = (written + shutil.disk_usage(existing(path.parent)).free) / 1e3
            size = f"{free / 1e3:.1f} MB" if free > 100 else f"{free:.0f} KB"
            reason += f": it needs more than the {size} that are free; make room and go on"
        raise UsageError(f"cannot write {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # nothing is left to remove, or there is no folder
            temporary.unlink()
        _unfinished.discard(temporary)


def discard_unfinished() -> None:
    """Remove what this process is writing: it ends before it is done."""
    for path in tuple(_unfinished):
        path.unlink(missing_ok=True)


def write_sealed(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Like write_atomic; the file ends with the digest of all before it. Zip readers ignore it."""
    buffer = io.BytesIO()
    write(buffer)
    buffer.write(SEAL + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
    write_bytes(path, buffer.getbuffer())


def read_sealed(path: Path) -> bytes:
    """The file's bytes; IntegrityError unless they are as they were written.

    A zip file without any seal passes: torch.save wrote it, not we. One flipped bit or a cut in a
    sealed file never makes such a file of it.
    """
    data = Path(path).read_bytes()
    body, seal = memoryview(data)[:-SEAL_LENGTH], data[-SEAL_LENGTH:]
    bare_zip = data[-22:-18] == b"PK\x05\x06"
    if not bare_zip and seal != SEAL + hashlib.sha256(body).hexdigest().encode():
        reason = f"{len(data)} bytes, and the digest at their end is not theirs"
        raise IntegrityError(f"{path} is damaged, or no checkpoint of ours: {reason}")
    return data


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Nothing is written where the file holds exactly this already."""
    with contextlib.suppress(OSError):
        # asked first: reading a pipe would wait for ever
        if Path(path).is_file() and Path(path).read_bytes() == data:
            return
    write_atomic(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """UTF-8; a file name that is not, as Python holds it, is written with \\udcff escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, frame: Any, for_people: bool = False) -> None:
    """Write a pandas frame; one dialect for all our tables: UTF-8, comma, LF.

    In tables `for_people` no text is a formula to a spreadsheet: an apostrophe stands before it,
    and before one that is there, so that taking one away gives the text itself.
    """

    def cell(value: Any) -> Any:
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str):
            return value
        if for_people and value.startswith(FORMULA):
            value = f"'{value}"
        # as write_text has it; the writer quotes no bare CR, which ends a row to a reader
        return value.encode(errors="backslashreplace").decode().replace("\r", "\n")

    table = frame.map(cell).rename(columns=cell)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_csv(path: Path) -> Any:
    """A table of ours as a pandas frame of text; ValueError or OSError where it is none."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", pd.errors.ParserWarning
        )  # rows that are wider than the header
        try:
            return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        except pd.errors.ParserWarning as error:
            raise ValueError(in_short(error)) from error


def open_manifest(features_dir: Path, columns: Iterable[str]) -> Any:
    """manifest.csv as `read_csv` has it; UsageError unless it has these columns and names a clip
    once, IntegrityError for a name that leads elsewhere."""
    path = features_dir / "manifest.csv"
    if not path.is_file():
        raise UsageError(f"no {path}: run preprocess.py first, or give --features_dir")
    try:
        rows = read_csv(path)
    except (ValueError, OSError) as error:
        what = f"cannot read {path}: {in_short(error)}; run preprocess.py again"
        raise UsageError(what) from error
    lacking = [name for name in columns if name not in rows]
    if lacking or rows.duplicated(["split", "clip_id"]).any():
        reason = f"lacks {', '.join(lacking)}" if lacking else "lists a clip twice"
        raise UsageError(f"{path} {reason}: run preprocess.py again")
    check_ids(path, {*rows["split"], *rows["clip_id"]})
    return rows


def check_ids(table: Path, ids: Iterable[str]) -> None:
    """IntegrityError for an id of a table that is no name of a file, or leads to another folder."""
    for name in ids:
        leads_away = Path(name).name != name or name in ("", "..") or "\0" in name
        if leads_away or len(name.encode(errors="surrogatepass")) > MAX_ID_BYTES:
            shown = in_short(repr(name))
            raise IntegrityError(f"{table} is damaged, or not ours: it has the id {shown}")


def read_regular(path: Path) -> bytes:
    """All bytes of a file; UsageError names it when it is missing or no file with an end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever
            raise UsageError(f"cannot read {path}: no regular file")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path, errors: str = "strict", mark: bool = False) -> str:
    """A UTF-8 text; UsageError names a file that is none. `mark` keeps the one at its start."""
    try:
        return read_regular(path).decode("utf-8" if mark else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error}): save it as (CSV) UTF-8") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file; UsageError names the file when it is missing, damaged or a pipe."""
    try:
        return json.loads(read_regular(path), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {in_short(error)}") from error


def read_known(path: Path) -> dict[str, Any]:
    """The JSON object of a file that can be made anew: {} where it is absent or damaged."""
    with contextlib.suppress(UsageError):
        known = read_json(path)
        return known if isinstance(known, dict) else {}
    return {}


def record_path(features_dir: Path, split: str, clip_id: str) -> Path:
    """Where preprocess.py writes down how it made a clip's files."""
    return features_dir / f"{split}/records/{clip_id}.json"  # tens of thousands are asked for


def read_stages(record: Path) -> dict[str, dict[str, Any]] | None:
    """What a clip's record says of its files, {folder: facts}, without what is damaged; None where
    there is no record, as of features that another tool made."""
    stages = read_known(record).get("stages")
    if stages is None and not is_file(record):
        return None

    def is_sound(stage: Any) -> bool:
        if not isinstance(stage, dict):
            return False
        texts = stage.get("sha256"), stage.get("source_sha256", "")
        return all(isinstance(text, str) for text in texts)

    return {k: v for k, v in stages.items() if is_sound(v)} if isinstance(stages, dict) else {}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a name that stands in it twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has {name!r} twice")
    return value


def check_packing(members: Iterable[zipfile.ZipInfo], known: tuple[int, ...] = PACKINGS) -> None:
    """ValueError for members of an .npz that numpy packs in no such way: of other packings zipfile
    unpacks all that there is, whatever size it is asked for."""
    if any(member.compress_type not in known for member in members):
        raise ValueError("it is packed in a way that numpy does not use")


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether it lies by columns, and type that an .npy claims; ValueError for damage."""
    from numpy.lib import format as npy

    try:
        version, _ = npy.read_magic(file)
        length = file.read(2 if version == 1 else 4)
        claimed = int.from_bytes(length, "little")
        if claimed > MOST_HEADER:  # numpy would read all of it before it looks at its length
            raise ValueError(f"a header of {claimed} bytes")
        header = io.BytesIO(length + file.read(claimed))
        return getattr(npy, f"read_array_header_{version}_0")(header)
    except Exception as error:  # numpy parses the header as Python: damage raises anything
        raise ValueError("an array whose header is damaged or of a newer numpy") from error


def map_array(path: Path) -> Any:
    """The array of an .npy, mapped: read where it is looked at. ValueError for damage."""
    import numpy as np

    with open(path, "rb") as file:
        read_header(file)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_array(archive: zipfile.ZipFile, name: str) -> Any:
    """An array of an .npz; ValueError for damage, and for one that claims another size than it
    has, before memory is taken."""
    import numpy as np

    with archive.open(f"{name}.npy") as file:
        shape, by_column, dtype = read_header(file)
        held = archive.getinfo(f"{name}.npy").file_size - file.tell()
        size = dtype.itemsize * math.prod(shape)
        if size != held or not dtype.itemsize or min(shape, default=0) < 0:
            what = f"its {name} claims {dtype} of shape {shape}, {size} bytes"
            raise ValueError(f"{what}; it holds {held}")
        data = bytearray()
        while part := file.read(1 << 19):  # all at once it would be in memory twice
            data += part
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")


def in_threads(read: Callable, *args: Any, **how: Any) -> Any:
    """`read(*args, **how)`, which reads arrays in a thread beside others that do so.

    numpy reads headers as Python. Before Python 3.11.8 and 3.12.2 two threads that do so at once
    get a SystemError at times, for files without a fault ("AST constructor recursion depth
    mismatch", issue 106905 of CPython). They are read again.
    """
    for _ in range(20):
        with contextlib.suppress(SystemError):
            return read(*args, **how)
    return read(*args, **how)


def is_file(path: Path) -> bool:
    """False, too, where nobody can know: the name is too long, or the folder may not be read."""
    try:
        return path.is_file()
    except OSError:
        return False


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder and its folders, sorted, without what macOS leaves there: a
    `._clip.mp4` beside each clip, in archives in a folder `__MACOSX`."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not (path.name.startswith("._") or "__MACOSX" in path.relative_to(folder).parts)
        and not path.is_dir()
    )


def check_place(folder: Path) -> None:
    """UsageError unless files can be written in `folder`, or it can be made; makes nothing."""
    there = existing(folder)
    if not there.is_dir():
        raise UsageError(f"cannot write in {folder}: {there} is a file, give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write in {folder}: no permission in {there}")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path: Path, expected: str) -> bool:
    """Whether the file can be read and is as it was when it had this sha256."""
    with contextlib.suppress(OSError):
        return sha256(path) == expected
    return False


def digest(value: Any) -> str:
    """16 hex digits that name a JSON-able value, for settings that must match."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone, to write in it; LockedError names the holder.

    The kernel frees the locks of dead processes.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "a+")
    except OSError as error:
        raise UsageError(f"cannot write in {folder}: {error.strerror}") from error
    with file, _not_inherited(folder, file):
        try:
            _lock(folder, file, fcntl.LOCK_EX)
        except OSError as error:
            raise UsageError(f"{folder} cannot be locked there: {error.strerror}") from error
        _sign(file, "")
        _sweep(folder)  # what a run that was killed has left
        yield
        _sweep(folder)  # and what a worker that was killed has left


@contextlib.contextmanager
def keep_as_it_is(folder: Path) -> Iterator[None]:
    """Keep others from writing in `folder` while this process reads it, as others may, too.

    LockedError names who writes in it. Where no lock can be made or opened nobody is kept out.
    """
    try:
        file = _open_lock(Path(folder) / ".lock")
    except OSError:  # read-only, or no such folder: whoever reads in it says so
        yield
        return
    with file, _not_inherited(folder, file):
        with contextlib.suppress(OSError):
            _lock(folder, file, fcntl.LOCK_SH)
            _sign(file, f", {Path(sys.argv[0]).name} reads it; perhaps others do, too")
        yield


def _open_lock(path: Path) -> Any:
    """Who may not write in a folder can still hold the lock of those who may."""
    try:
        return open(path, "a+")
    except OSError:
        if not is_file(path):  # a pipe would wait for ever
            raise
        return open(path)


def _lock(folder: Path, file: Any, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        time.sleep(0.1)  # who has just taken it still writes its name
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise LockedError(f"{folder} is in use by {holder}: wait for it or stop it") from error


def _sign(file: Any, what: str) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{what}")
    file.flush()


def check_held(folder: Path) -> None:
    """IntegrityError where a folder that this process holds, or one above it, was removed or is
    another one now."""
    for held in (Path(folder), *Path(folder).parents):
        if held not in held_locks:
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(held_locks[held].fileno()), (held / ".lock").stat()):
                return
        raise IntegrityError(f"{held} was removed or replaced meanwhile: nothing is written there")


@contextlib.contextmanager
def _not_inherited(folder: Path, file: Any) -> Iterator[None]:
    """Processes that are forked meanwhile let go of the lock: they can outlive its holder."""
    held_locks[Path(folder)] = file
    try:
        yield
    finally:
        held_locks.pop(Path(folder), None)


def _let_go() -> None:
    while held_locks:
        held_locks.popitem()[1].close()


os.register_at_fork(after_in_child=_let_go)


def _sweep(folder: Path) -> None:
    for leftover in Path(folder).rglob(f".*{PART}"):
        leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
