"""A file of word vectors -> the vectors of the words that are needed, whatever the file's size.

Formats: word2vec text or binary, GloVe text, each also .gz, and .npz with `words` and `vectors`.
The file is read once from front to back and only needed words are kept: the usual libraries load
all of it, which for 3 million words of 300 values are 3.6 GB.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import stat
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from extract.words import Vectors, candidates
from utils.errors import UsageError, in_short
from utils.files import (
    DAMAGED,
    check_packing,
    digest,
    is_file,
    read_array,
    read_header,
    sha256,
    write_atomic,
)

Rows = Iterator[tuple[bytes, np.ndarray]]  # word, (D,)
STORE = "word_vectors.npz"  # below features/: the vectors of the corpus' words, and their origin
BOM = b"\xef\xbb\xbf"
FOREIGN = {  # first bytes of files that are often taken for vectors
    b"\xba\x16\x4f\x2f": "it is a fastText model: give the .vec that is published beside it",
    **dict.fromkeys(
        (b"\x80" + bytes([version]) for version in range(2, 6)),
        "it is a Python pickle: save the vectors with gensim's save_word2vec_format",
    ),
}
MAX_VALUES, MAX_WORD_BYTES = 10_000, 1000  # of one word
MAX_LINE = 1 << 18  # bytes: 10,000 values take less
MAX_WORDS = 50_000_000  # in an .npz; the largest published files have 3 million
BLOCK = 1 << 19  # bytes of an .npz that are read at once
MOST_KEPT = 200_000  # words, in a process
# Of a .gz: written numbers shrink to a third. A file of line ends shrinks a thousand times, and to
# look for words in it takes minutes.
MOST_PACKED, LEAST_READ = 30, 16 << 20  # times its bytes, and bytes that may always be read
Version = tuple[Path, int, int, int]  # a file, which one it is, its size, and its time of change
_kept: dict[Version, dict[str, np.ndarray | None]] = {}  # of one file; None: it lacks the word


class NoneKnown(UsageError):
    """A file of word vectors that has none of the words that are said."""

    def __init__(self, path: Path, wanted: set[str]):
        some = ", ".join(sorted(wanted)[:3])
        super().__init__(f"--word_vectors {path} knows none of the words, in no form ({some}...)")


def gather(path: Path, transcripts: list[str], features_dir: Path, verify: bool = False) -> str:
    """Put the vectors of all words of the transcripts in the store; the file's sha256, 16 digits.

    A file of the same size and time of change is not read again unless there are new words, or to
    `verify` what is there.
    """
    wanted = set().union(*map(candidates, transcripts))
    version = _version(path)
    stamp = [*version[2:], digest(sorted(wanted))]
    origin = _origin(features_dir / STORE)
    if verify or origin.get("stamp") != stamp:
        if verify:
            _kept.clear()
            _sha256.cache_clear()
        vectors = _look_up(version, wanted)
        origin = {"name": path.name, "sha256": _sha256(version), "stamp": stamp}
        arrays = dict(words=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
        arrays["origin"] = np.array(json.dumps(origin))
        write_atomic(features_dir / STORE, lambda file: np.savez(file, **arrays))
    return origin["sha256"][:16]


def origin_of(path: Path) -> str:
    """What `gather` returns, without looking anything up."""
    return _sha256(_version(path))[:16]


def _version(path: Path) -> Version:
    """Tells a file from what it was before; UsageError where it cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"--word_vectors {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise UsageError(f"--word_vectors {path}: no regular file, or it is empty")
    return path, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)  # the page asks for every sentence
def _sha256(version: Version) -> str:
    return sha256(version[0])


def _look_up(version: Version, wanted: set[str]) -> Vectors:
    """As `read_vectors`, but only words that nobody has asked for yet cost a look at the file: of
    gigabytes it takes a minute, and the page asks for every sentence."""
    if version not in _kept or len(_kept[version]) > MOST_KEPT:
        _kept.clear()
        _kept[version] = {}
    known = _kept[version]
    if new := wanted - known.keys():
        try:
            read = read_vectors(version[0], new)
        except NoneKnown:
            read = {}
        known |= {word: read.get(word) for word in new}
    vectors = {word: known[word] for word in sorted(wanted) if known[word] is not None}
    if not vectors:
        raise NoneKnown(version[0], wanted)
    return vectors


def _origin(store: Path) -> dict[str, Any]:
    """What the store was made from; nothing where there is none, or a damaged one."""
    if not is_file(store):  # reading a pipe would wait for ever
        return {}
    try:
        origin = json.loads(_arrays(store)[2].item())
        return origin if isinstance(origin["sha256"], str) else {}
    except DAMAGED:
        return {}


def _arrays(store: Path) -> tuple[np.ndarray, ...]:
    """Words (V,), vectors (V, D) and origin of a store; any of DAMAGED for none of ours."""
    with zipfile.ZipFile(store) as archive:
        check_packing(archive.infolist(), (zipfile.ZIP_STORED,))  # as `gather` writes it
        names = ("words", "vectors", "origin")
        words, vectors, origin = (read_array(archive, name) for name in names)
    if words.ndim != 1 or words.dtype.kind != "U" or vectors.dtype != np.float32:
        raise ValueError(f"its words are {words.dtype}, its vectors {vectors.dtype}")
    if vectors.ndim != 2 or len(words) != len(vectors):
        raise ValueError(f"it holds {len(words)} words, and vectors {vectors.shape}")
    return words, vectors, origin


def open_store(features_dir: Path) -> Vectors:
    """The vectors that `gather` stored; read once per process and version."""
    store = features_dir / STORE
    return _read_store(store, store.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_store(store: Path, version: int) -> Vectors:
    words, vectors, _ = _arrays(store)
    return dict(zip(words.tolist(), vectors, strict=True))


def read_vectors(path: Path, wanted: set[str]) -> Vectors:
    """The vectors, (D,) float32, of those `wanted` words that the file has; UsageError for none.

    Of a word that stands in the file twice the first vector counts.
    """
    vectors: Vectors = {}
    try:
        for word, vector in _rows(path, {word.encode() for word in wanted}):
            if not np.isfinite(vector).all():
                raise ValueError(f"the vector of {word.decode()!r} holds a value that is no number")
            vectors.setdefault(word.decode(), vector)
    except DAMAGED as error:
        known = "word2vec (text or binary), GloVe text, or .npz of words (V,) and vectors (V, D)"
        raise UsageError(f"--word_vectors {path}: {in_short(error)}; expected {known}") from error
    if not vectors:
        raise NoneKnown(path, wanted)
    return vectors


def _rows(path: Path, wanted: set[bytes]) -> Rows:
    if zipfile.is_zipfile(path):
        yield from _npz_rows(path, wanted)
        return
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with io.BufferedReader(Unpacked(path), BLOCK) if packed else open(path, "rb") as file:
        count, size, start = _read_first_line(file)
        file.seek(start)
        # without the first line that word2vec writes it is GloVe's text
        is_text = count is None or len(file.readline(MAX_LINE).split()) == size + 1
        file.seek(start)
        if count is None or is_text:
            yield from _text_rows(file, wanted, count, size)
        else:
            yield from _binary_rows(file, wanted, count, size)


class Unpacked(io.RawIOBase):
    """What is packed in a .gz; ValueError where that is far more than vectors can be."""

    def __init__(self, path: Path):
        self.packed = gzip.open(path)
        self.most = max(LEAST_READ, MOST_PACKED * path.stat().st_size)

    def readinto(self, buffer: Any) -> int:
        if self.packed.tell() > self.most:
            raise ValueError(f"it is packed more than {MOST_PACKED} times, as no vectors can be")
        return self.packed.readinto1(buffer)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self.packed.seek(place, whence)

    def tell(self) -> int:
        return self.packed.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.packed.close()
        super().close()


def _read_first_line(file: Any) -> tuple[int | None, int, int]:
    """How many words there are, if it is told; values per word; where the first word stands."""
    begin = len(BOM) if file.read(len(BOM)) == BOM else 0
    file.seek(begin)
    line = file.readline(MAX_LINE)
    for signature, what in FOREIGN.items():
        if line.startswith(signature):
            raise ValueError(what)
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        count, size, start = int(fields[0]), int(fields[1]), file.tell()
    else:
        count, size, start = None, len(fields) - 1, begin
    if not (2 if count is None else 1) <= size <= MAX_VALUES:
        raise ValueError(f"its first line promises {size} values a word")
    if count is None:
        try:
            fields[0].decode()
            [float(field) for field in fields[-2:]]
        except ValueError as error:
            raise ValueError("its first line is no word with its values") from error
    return count, size, start


def _text_rows(file: Any, wanted: set[bytes], count: int | None, size: int) -> Rows:
    lines = 0
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"its line {lines + 1} is longer than {MAX_LINE} bytes")
        lines += 1
        first = line.split(None, 1)[:1]
        if first and first[0] in wanted:
            word, *values = line.rsplit(None, size)  # a word of GloVe may hold spaces
            if len(values) < size:
                raise ValueError(f"{len(values)} values for {word.decode()!r}, not {size}")
            if word in wanted:
                yield word, np.array([float(value) for value in values], np.float32)
    if count is not None and count != lines:
        raise ValueError(f"it holds {lines} words, its first line promises {count}")


def _binary_rows(file: Any, wanted: set[bytes], count: int, size: int) -> Rows:
    for number in range(count):
        word = b""
        while not word.endswith(b" ") and len(word) < MAX_WORD_BYTES and (byte := file.read(1)):
            word += byte
        values = file.read(4 * size)
        if len(values) < 4 * size:
            raise ValueError(f"it is cut short: {number} of {count} words are there")
        if word.strip() in wanted:
            yield word.strip(), np.frombuffer(values, "<f4").astype(np.float32)


def _npz_rows(path: Path, wanted: set[bytes]) -> Rows:
    with zipfile.ZipFile(path) as archive:
        check_packing(archive.infolist())
        places: dict[bytes, int] = {}
        with archive.open("words.npy") as file:
            shape, dtype, _ = _read_header(file, "words", 1, "US")
            for number, name in enumerate(chain.from_iterable(_blocks(file, shape, dtype))):
                word = str(name).encode() if dtype.kind == "U" else bytes(name)
                if word in wanted:
                    places.setdefault(word, number)
        count, rows = shape[0], np.array([*places.values()], int)
        with archive.open("vectors.npy") as file:
            shape, dtype, by_column = _read_header(file, "vectors", 2, "f")
            if shape[0] != count:
                raise ValueError(f"it holds {count} words and {shape[0]} vectors")
            if by_column:
                columns = [_picked(file, shape[:1], dtype, rows) for _ in range(shape[1])]
                matrix = np.stack(columns, axis=1)
            else:
                matrix = _picked(file, shape, dtype, rows)
    yield from zip(places, matrix.astype(np.float32), strict=True)  # (V, D)


def _picked(file: Any, shape: tuple, dtype: np.dtype, rows: np.ndarray) -> np.ndarray:
    """These rows, in ascending order, of an .npy of this shape."""
    picked, first = [], 0
    for block in _blocks(file, shape, dtype):
        here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(block))]
        picked.append(block[here - first])
        first += len(block)
    return np.concatenate(picked)


def _read_header(file: Any, name: str, axes: int, kinds: str) -> tuple[tuple, np.dtype, bool]:
    shape, by_column, dtype = read_header(file)
    fits = len(shape) == axes and 0 not in shape and shape[0] <= MAX_WORDS
    if axes == 2:
        fits = fits and shape[1] <= MAX_VALUES
    if not fits or dtype.kind not in kinds or dtype.itemsize > 4 * MAX_WORD_BYTES:
        raise ValueError(f"its {name} are {dtype} of shape {shape}")
    return shape, dtype, by_column and axes > 1


def _blocks(file: Any, shape: tuple, dtype: np.dtype) -> Iterator[np.ndarray]:
    """An .npy of this shape, as many rows at a time as a BLOCK holds."""
    width = dtype.itemsize * math.prod(shape[1:])
    size = max(1, BLOCK // width)
    for first in range(0, shape[0], size):
        rows = min(size, shape[0] - first)
        yield np.frombuffer(file.read(rows * width), dtype).reshape(rows, *shape[1:])
