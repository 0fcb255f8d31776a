"""A clip's word vectors: an .npz with key `word_embed` -> (L, D) float32, read without trust."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from utils.errors import ClipError

SETTINGS = {"key": "word_embed", "max_words": 2000, "max_bytes": 16 << 20}


def read_words(path: Path | None, word_dim: int | None, settings: dict = SETTINGS) -> np.ndarray:
    """Word vectors (L, D) float32, L >= 1; ClipError that says what the file holds instead."""
    if path is None or not path.is_file():
        raise ClipError(
            "E_MISSING", f"no word vectors: {path.name if path else 'no .npz'} is absent"
        )
    array = _parse_npy(_read_member(path, settings), path)
    if array.ndim != 2 or (word_dim and array.shape[1] != word_dim):
        expected = f"(words, {word_dim or 'values'})"
        raise ClipError("E_SHAPE", f"{path.name}: shape {array.shape}, expected {expected}")
    if not array.size:
        raise ClipError("E_SHORT", f"{path.name} holds no words")
    if len(array) > settings["max_words"]:
        raise ClipError(
            "E_LIMIT", f"{path.name}: {len(array)} words, limit {settings['max_words']}"
        )
    words = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(words).all():
        row, column = np.argwhere(~np.isfinite(words))[0]
        raise ClipError("E_NONFINITE", f"{path.name}: value {column} of word {row} is not a number")
    return words


def _read_member(path: Path, settings: dict) -> bytes:
    """Bytes of the one array; never more than the limit, whatever sizes the archive claims."""
    wanted = f"{settings['key']}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names.count(wanted) != 1 or any(".." in Path(name).parts for name in names):
                held = ", ".join(names) or "nothing"
                raise ClipError("E_NPZ", f"{path.name}: expected one {wanted}, it holds {held}")
            with archive.open(wanted) as member:
                data = member.read(settings["max_bytes"] + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ClipError("E_NPZ", f"{path.name} is not a readable .npz: {error}") from error
    if len(data) > settings["max_bytes"]:
        raise ClipError("E_LIMIT", f"{path.name} unpacks to over {settings['max_bytes'] >> 20} MiB")
    return data


def _parse_npy(data: bytes, path: Path) -> np.ndarray:
    """The array of an .npy file's bytes; the header's claim is checked before any allocation."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = f"read_array_header_{version[0]}_0"
        shape, fortran, dtype = getattr(np.lib.format, header)(file)
    except Exception as error:  # numpy parses the header as Python: damage raises anything
        raise ClipError("E_NPZ", f"{path.name} holds a damaged array: {error}") from error
    if dtype.kind not in "fiu":
        raise ClipError("E_DTYPE", f"{path.name} holds values of type {dtype}, expected numbers")
    if any(type(axis) is not int or axis < 0 for axis in shape):
        raise ClipError("E_NPZ", f"{path.name} claims the shape {shape}")
    body = data[file.tell() :]
    size = dtype.itemsize
    for axis in shape:  # Python's integers: a forged shape cannot overflow
        size *= axis
    if size != len(body):
        reason = f"{path.name}: its header claims {size} bytes of values, it holds {len(body)}"
        raise ClipError("E_LIMIT" if size > len(body) else "E_NPZ", reason)
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
