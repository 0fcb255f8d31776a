"""A clip's words -> (L, D) float32: an .npz with key `word_embed`, or a transcript to look up.

The .npz is read without trust. The rule for transcripts: a word is a run of letters and digits,
with their vowel signs and accents, and with inner apostrophes and hyphens; any other mark is a word
of its own. It is looked up as written, in small letters (the Turkish İ as i, too), without
apostrophes, in its parts (don't: don, t), then with its doubled letters single (noooo: no). Of a
script without spaces the longest known word comes first, then that of what is behind it. What is
still unknown is left out.
"""

from __future__ import annotations

import contextlib
import io
import re
import statistics
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from extract.media import unreadable
from utils.errors import ClipError, in_short, listed
from utils.files import DAMAGED, check_packing, digest, is_file, read_header

Vectors = dict[str, np.ndarray]  # word -> (D,) float32
SAMPLE = 200  # readable .npz files: the width that most of all have shows in them
UNSPACED = re.compile(  # Thai, Lao, Myanmar, Khmer, kana and Chinese characters
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
LONGEST = 12  # characters of a word in a script without spaces
RULE = 3  # raise it when the rule for transcripts changes: words are looked up anew then
TEXT_SETTINGS = {"key": "word_embed", "max_words": 2000, "max_bytes": 16 << 20}


def read_words(
    path: Path | None, word_dim: int | None, settings: dict = TEXT_SETTINGS
) -> np.ndarray:
    """Word vectors (L, D) float32, L >= 1; ClipError that says what the file holds instead."""
    if path is None or not is_file(path):
        expected = path.name if path else "an .npz of the clip's name beside it"
        raise ClipError("E_MISSING", f"no word vectors: expected {expected}")
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


def common_width(paths: Iterable[Path | None]) -> int | None:
    """Values per word in most .npz files, by a sample of them: two widths train nothing."""
    widths: list[int] = []
    for path in sorted(filter(None, paths), key=lambda path: digest(path.name)):  # as good as drawn
        with contextlib.suppress(ClipError):  # the clip's own process says it
            widths.append(read_words(path, None).shape[1])
        if len(widths) == SAMPLE:
            break
    return statistics.mode(widths) if widths else None


def _read_member(path: Path, settings: dict) -> bytes:
    """Bytes of the one array; never more than the limit, whatever sizes the archive claims."""
    wanted = f"{settings['key']}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names.count(wanted) != 1 or any(".." in Path(name).parts for name in names):
                held = listed(names) or "nothing"
                raise ClipError("E_NPZ", f"{path.name}: expected one {wanted}, it holds {held}")
            check_packing([archive.getinfo(wanted)])
            with archive.open(wanted) as member:
                data = member.read(settings["max_bytes"] + 1)
    except DAMAGED as error:
        for cause in (error, error.__context__):  # zipfile takes what it cannot read for no zip
            if isinstance(cause, OSError):
                raise unreadable(path, cause) from error
        raise ClipError(
            "E_NPZ", f"{path.name} is not a readable .npz: {in_short(error)}"
        ) from error
    if len(data) > settings["max_bytes"]:
        raise ClipError("E_LIMIT", f"{path.name} unpacks to over {settings['max_bytes'] >> 20} MiB")
    return data


def _parse_npy(data: bytes, path: Path) -> np.ndarray:
    """The array of an .npy file's bytes; the header's claim is checked before any allocation."""
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = read_header(file)
    except ValueError as error:
        raise ClipError("E_NPZ", f"{path.name} holds {error}") from error
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


def embed(transcript: str, vectors: Vectors, settings: dict = TEXT_SETTINGS) -> np.ndarray:
    """The known words of a transcript, (L, D) float32, L >= 1; ClipError when there are none."""
    tokens = tokenize(transcript)
    if not tokens:
        raise ClipError("E_SHORT", "no words: its transcript is empty")
    by_token = [(token, look_up(token, vectors)) for token in tokens]
    found = [vector for _, vectors in by_token for vector in vectors]
    if not any(is_word(token) and vectors for token, vectors in by_token):
        only = "; its marks alone have" if found else ""
        raise ClipError("E_SHORT", f"none of its words has a vector{only}: {transcript[:80]!r}")
    if len(found) > settings["max_words"]:
        raise ClipError("E_LIMIT", f"{len(found)} words, limit {settings['max_words']}")
    return np.stack(found)  # (L, D)


@cache
def token_pattern() -> re.Pattern:
    """A word or a mark. The signs on, under and beside letters are no letters to Python."""
    signs = "".join(
        character
        for character in map(chr, range(0x300, 0x20000))
        if unicodedata.category(character) in ("Mn", "Mc")
    )
    letter = rf"[\w\u200c\u200d{signs}]"  # with the joiners of Persian and Hindi
    return re.compile(rf"\w{letter}*(?:['-]{letter}+)*|[^\w\s{signs}\u200c\u200d]")


def tokenize(transcript: str) -> list[str]:
    text = unicodedata.normalize("NFC", transcript).replace("\u00ad", "")  # hyphens of line ends
    return token_pattern().findall(re.sub("[‘’`´]", "'", text))


def is_word(token: str) -> bool:
    return token[0].isalnum() or token[0] == "_"


def forms(token: str) -> list[list[str]]:
    """What a token is looked up as, best first: each form is a list of words."""
    small = token.lower()
    plain = small.replace("i\u0307", "i")  # what Python makes of the Turkish İ
    single = re.sub(r"(.)\1+", r"\1", plain)
    parts, single_parts = (re.split("['-]", text) for text in (plain, single))
    return [[token], [small], [plain], [plain.replace("'", "")], parts, single_parts]


def look_up(token: str, vectors: Vectors) -> list[np.ndarray]:
    for form in forms(token):
        if found := [vectors[word] for word in form if word in vectors]:
            return found
    return divided(token, vectors) if UNSPACED.search(token) else []


def divided(token: str, vectors: Vectors) -> list[np.ndarray]:
    """The words of a text without spaces, the longest known one first at each place."""
    found, place = [], 0
    while place < len(token):
        ends = range(min(len(token), place + LONGEST), place, -1)
        end = next((end for end in ends if token[place:end] in vectors), None)
        if end:
            found.append(vectors[token[place:end]])
        place = end or place + 1
    return found


def candidates(transcript: str) -> set[str]:
    """Every word that the vectors of a transcript may come from."""
    tokens = tokenize(transcript)
    parts = {
        token[place:end]
        for token in tokens
        if UNSPACED.search(token)
        for place in range(len(token))
        for end in range(place + 1, min(len(token), place + LONGEST) + 1)
    }
    return parts | {word for token in tokens for form in forms(token) for word in form}


def coverage(transcripts: list[str], vectors: Vectors) -> str:
    """How much of what is said the vectors know (marks such as "?" do not count)."""
    tokens = [token for text in transcripts for token in tokenize(text) if is_word(token)]
    said = Counter(token.lower() for token in tokens)
    unknown = Counter(token.lower() for token in tokens if not look_up(token, vectors))
    spoken, different = unknown.total() / max(1, said.total()), len(unknown) / max(1, len(said))
    often = ", ".join(f"{token} {count}" for token, count in unknown.most_common(10))
    return (
        f"word vectors know {1 - spoken:.1%} of {said.total()} words, {1 - different:.1%} of "
        f"{len(said)} different ones; unknown most often: {often or 'none'}"
    )
