"""2,000 mutated files of each kind: each works, or is refused in one line with its name."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, write_features
from trainings import add_feature, with_records

from corpora.audit import load_audit
from evaluation.certificate import compare, read_certificate
from evaluation.ensemble import group_checkpoints
from extract import vectors, words
from training.data import ClipDataset, training_rows
from training.features import Features
from training.prepare import check_data, content_of
from training.tasks import recipe, task_of
from utils.distributed import SINGLE_PROCESS
from utils.errors import ClipError, UsageError
from utils.files import keep_as_it_is

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("MUTANTS", 2000))
TIMES, MORE = 8, 16 << 20  # a file of N bytes costs at most 8 N and 16 MB, with all the others
ODD = (None, True, -1, 0, 1e999, 10**30, 1.5, "", "x", "a\0b", "../..", "\ud800", "$\\frac{$")
ODD += ([], {}, [[]], [1], ["x"], {"x": 1}, [None], {"": {}})
BYTES = (b"\0", b"\n", b"\r", b'"', b",", b" ", b"\xff", b"-1", b"9" * 30, b"nan", b"{", b"[", b"=")


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, put in, cut out, doubled or cut off."""
    mutant = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place, kind = int(rng.integers(len(mutant) + 1)), rng.integers(6)
        length = int(rng.integers(1, 40))
        if kind == 0:
            del mutant[place : place + length]
        elif kind == 1:
            mutant[place:place] = mutant[place : place + length]
        elif kind == 2:
            mutant[place:place] = BYTES[rng.integers(len(BYTES))]
        elif kind == 3 and rng.random() < 0.2:
            del mutant[place:]
        elif mutant[place:]:
            mutant[place] = rng.integers(256)
    return bytes(mutant)


def near_the_start(data: bytes, rng: np.random.Generator) -> bytes:
    """Half of the time where a header is."""
    first = 200 if rng.random() < 0.5 else len(data)
    return flipped(data[:first], rng) + data[first:]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a nested value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(pairs):
        yield value, key
        if isinstance(each, (dict, list)):
            yield from places(each)


def changed_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Half of the time still JSON, with other values."""
    if rng.random() < 0.5:
        return flipped(data, rng)
    value = [json.loads(data)]
    for _ in range(rng.integers(1, 4)):
        found = list(places(value))
        if not found:
            break
        into, key = found[rng.integers(len(found))]
        if rng.random() < 0.2:
            del into[key]
        else:
            into[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return json.dumps(value[0] if value else None).encode()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Thousands of lines about what was left out would hide the one that matters."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(
    path: Path, mutate: Callable, read: Callable[[], Any], name: str = "", every: int = 1
) -> None:
    """Read COUNT mutants of a file in its place, and at the end the file itself again.

    The memory of `every` so-manieth is measured, which takes long.
    """
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    read()  # nothing is imported later, which would count as memory
    try:
        for number in range(COUNT):
            path.write_bytes(mutate(whole, rng))
            refused += is_refused(path, read, name or path.name, number % every == 0)
    finally:
        path.write_bytes(whole)
    read()
    assert COUNT / 20 < refused < COUNT, refused  # some of both


def is_refused(path: Path, read: Callable[[], Any], name: str, measured: bool) -> bool:
    text, size, peak = "", path.stat().st_size, 0
    if measured:
        tracemalloc.start()
    try:
        read()
    except UsageError as error:
        text = str(error)
    except ClipError as error:
        text = error.reason
    except Exception as error:
        error.add_note(f"mutant: {path.read_bytes()[:300]!r}")
        raise
    finally:
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert not text or name in text, text
    assert len(text) < 1000 and "\n" not in text, text
    assert peak < TIMES * size + MORE, (peak, size)
    return bool(text)


KNOWN = {f"w{index}": np.float32([index, -index, 0.5, 1e-3]) for index in range(40)}


def text_of(known: dict, first: bytes = b"") -> bytes:
    rows = (f"{word} {' '.join(map(str, row))}\n".encode() for word, row in known.items())
    return first + b"".join(rows)


def arrays_of(known: dict, save: Callable) -> bytes:
    buffer = io.BytesIO()
    save(buffer, words=list(known), vectors=np.stack(list(known.values())))
    return buffer.getvalue()


VECTORS = {
    "glove.txt": text_of(KNOWN),
    "word2vec.txt": text_of(KNOWN, b"40 4\n"),
    "packed.txt.gz": gzip.compress(text_of(KNOWN)),
    "word2vec.bin": b"40 4\n" + b"".join(w.encode() + b" " + v.tobytes() for w, v in KNOWN.items()),
    "plain.npz": arrays_of(KNOWN, np.savez),
    "packed.npz": arrays_of(KNOWN, np.savez_compressed),
}


@pytest.mark.parametrize("name", VECTORS)
def test_word_vectors(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(VECTORS[name])
    check(path, near_the_start, lambda: vectors.read_vectors(path, {"w0", "w7", "w39", "x"}))


@pytest.mark.parametrize("name", ["glove.txt", "plain.npz"])
def test_packed_word_vectors_that_were_mutated_before(tmp_path, name):
    """So that what is behind the checksum of a .gz or .npz is reached."""
    path = tmp_path / f"{name}.gz" if name.endswith("txt") else tmp_path / name
    path.write_bytes(VECTORS["packed.txt.gz"] if path.suffix == ".gz" else VECTORS[name])

    def mutate(data: bytes, rng: np.random.Generator) -> bytes:
        if path.suffix == ".gz":
            return gzip.compress(flipped(gzip.decompress(data), rng))
        return members_changed(data, rng)

    check(path, mutate, lambda: vectors.read_vectors(path, {"w0", "w7", "w39", "x"}))


def members_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A zip whose members are mutated, and whose checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            member = old.read(info)
            changed = near_the_start(member, rng) if rng.random() < 0.7 else member
            new.writestr(info.filename, changed)
    return buffer.getvalue()


CUSTOM = ("text", "mine")


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutated") / "features"
    write_features(folder, 1, modalities=("text",))
    with_records(folder)
    add_feature(folder, "mine", (2, 8))
    return folder


def read_all(folder: Path, fold: str | None = None, audit: bool = True) -> None:
    """What a training reads before its first step, and every clip once."""
    config = recipe("multimodal") | SMALL | {"inputs": ",".join(CUSTOM), "fold": fold}
    config |= {"batch_size": 5, "val_fold": None}
    task = task_of(config)
    opened = Features.open(folder)
    opened.require(task.inputs)
    rows = training_rows(opened, fold)
    train_set, val_set = (
        ClipDataset(opened, each, task, config, training)
        for each, training in zip(rows, (True, False), strict=True)
    )
    check_data(train_set, val_set, SINGLE_PROCESS)
    if audit:
        load_audit(folder)
    train_set.shapes()
    content_of(train_set, val_set)
    opened.config_for(task.inputs)
    for each in (train_set, val_set):
        for index in range(len(each)):
            each[0, index]


@pytest.mark.parametrize(
    "mutate", [near_the_start, members_changed], ids=["file", "what is in the archive"]
)
def test_words_of_a_clip(features, mutate):
    """As preprocess.py finds them, and as a training does where there is no record."""
    path = features / "train" / "text" / "00003.npz"
    check(path, mutate, lambda: words.read_words(path, None))
    opened = Features.open(features)
    (row,) = opened.manifest[opened.manifest["clip_id"] == "00003"].to_dict("records")
    opened.records["train"] = {}

    def read() -> None:
        opened.seen.clear()
        opened.checked.clear()
        opened.load(row, "text")

    check(path, mutate, read)


def test_custom_features(features):
    path = features / "train" / "mine" / "00003.npy"
    check(path, near_the_start, lambda: read_all(features, audit=False), every=50)


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        ("manifest.csv", None),
        ("manifest.csv", "0"),
        ("settings.json", None),
        ("mine.json", "0"),
        ("record", None),
    ],
)
def test_tables(features, name, fold):
    mutate = flipped if name.endswith("csv") else changed_json
    path = features / name
    if name == "record":
        path = features / "train" / "records" / "00003.json"
    if name == "mine.json":
        path.write_text(json.dumps({"learnt_without_fold": fold, "made_by": {"seed": [1, 2]}}))
    told = "00003" if name == "record" else str(features)
    try:
        check(path, mutate, lambda: read_all(features, fold), told, every=50)
    finally:
        (features / "mine.json").unlink(missing_ok=True)


def certificate() -> dict[str, Any]:
    """A small one that is whole."""
    names = ["logs/text/a", "logs/text/b"]
    return {
        "given": names,
        "split": "test",
        "features_dir": "features",
        "classes": ["hap", "sad"],
        "features": {"test": "9e07fde895fbbbe4", "train": "0233b339e61e3497"},
        "checkpoints": {f"{name}/8_best_1.0000.pth": "b136f568c143fa04" for name in names},
        "clips": {"count": 14, "digest": "b8ed0a0e7912cd9c"},
        "recipe": {"mode": "text", "learning_rate": 0.001, "speech_backbone": None},
        "measure": "uar",
        "mean": 0.5,
        "band": 0.1,
    }


def test_certificates(tmp_path):
    path, now = tmp_path / "certificate.json", certificate()
    path.write_text(json.dumps(now, indent=1))

    def read() -> None:
        found = read_certificate(path)
        lines = compare(found, now)
        assert lines[0].startswith(("PASS", "OUTSIDE", "INPUT")), lines

    check(path, changed_json, read)


@pytest.mark.parametrize("name", ["given", "features_dir"])
def test_paths_of_a_certificate(tmp_path, monkeypatch, name):
    """They may say anything; what is not there is refused."""
    monkeypatch.chdir(tmp_path)  # an empty path is the folder that one is in
    values = certificate()
    path, rng = tmp_path / "certificate.json", np.random.default_rng(0)
    for _ in range(200):
        mutant = flipped(b"logs/text/a", rng).decode(errors="surrogateescape")
        path.write_text(json.dumps(values | {name: [mutant] if name == "given" else mutant}))
        with pytest.raises(UsageError):
            found = read_certificate(path)
            with keep_as_it_is(Path(found["features_dir"])):
                group_checkpoints(list(map(Path, found["given"])))
                Features.open(Path(found["features_dir"]))
