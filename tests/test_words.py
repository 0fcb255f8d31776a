"""Transcripts and a file of word vectors -> word_embed: formats, the rule, damage, reruns."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import digests
from inside import run_main

from extract import vectors, words
from utils.errors import ClipError, UsageError

KNOWN = ("the", "I", "don", "t", "cant", "no", "good-bye", "é", "?", "anger")
VECTORS = {word: np.float32([index, -index, 0.5]) for index, word in enumerate(KNOWN)}


def text(folder: Path, header: bool = True, known: dict = VECTORS) -> Path:
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in known.items()]
    path = folder / "vectors.txt"
    path.write_text("\n".join([f"{len(known)} 3"] * header + lines) + "\n")
    return path


def binary(folder: Path, gap: bytes = b"\n") -> Path:
    """As word2vec writes it, or as others do: without the new line after each vector."""
    rows = (word.encode() + b" " + vector.tobytes() + gap for word, vector in VECTORS.items())
    path = folder / "vectors.bin"
    path.write_bytes(b"%d 3\n" % len(VECTORS) + b"".join(rows))
    return path


def npz(folder: Path, order=np.ascontiguousarray) -> Path:
    path = folder / "vectors.npz"
    np.savez_compressed(path, words=list(VECTORS), vectors=order(np.stack(list(VECTORS.values()))))
    return path


def zipped(folder: Path) -> Path:
    path = folder / "vectors.txt.gz"
    path.write_bytes(gzip.compress(text(folder).read_bytes()))
    return path


FORMATS = {
    "word2vec text": text,
    "GloVe": lambda folder: text(folder, header=False),
    "word2vec binary": binary,
    "binary, no new lines": lambda folder: binary(folder, b""),
    "npz": npz,
    "npz by column": lambda folder: npz(folder, np.asfortranarray),
    "gz": zipped,
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_vectors(tmp_path, form):
    path = FORMATS[form](tmp_path)
    found = vectors.read_vectors(path, {*KNOWN, "unheard"})
    assert found.keys() == VECTORS.keys()
    assert all((found[word] == VECTORS[word]).all() for word in KNOWN)
    assert {vector.dtype for vector in found.values()} == {np.dtype(np.float32)}
    assert vectors.read_vectors(path, {"the"}).keys() == {"the"}


@pytest.mark.parametrize(
    ("transcript", "found"),
    [
        ("the THE The", ["the", "the", "the"]),
        ("I, i", ["I"]),  # the file knows the capital only
        ("Don’t!", ["don", "t"]),
        ("CAN'T?", ["cant", "?"]),
        ("Good-bye, no-the", ["good-bye", "no", "the"]),
        ("Noooo... unheard", ["no"]),
        ("e\u0301", ["é"]),
        ("the" + " unheard" * 3000, ["the"]),
    ],
)
def test_the_rule_for_words(transcript, found):
    expected = np.stack([VECTORS[word] for word in found])
    assert (words.embed(transcript, VECTORS) == expected).all()


SCRIPTS = {  # a sentence -> its words, where all their letters and signs have vectors, too
    "मैं बहुत खुश हूँ": ["मैं", "बहुत", "खुश", "हूँ"],
    "أَنَا سَعِيدٌ": ["أَنَا", "سَعِيدٌ"],
    "אֲנִי שָׂמֵחַ": ["אֲנִי", "שָׂמֵחַ"],
    "நான் மகிழ்ச்சி": ["நான்", "மகிழ்ச்சி"],
    "می\u200cخواهم": ["می\u200cخواهم"],
    "행복해요 정말": ["행복해요", "정말"],
    "我今天很高兴，真的！": ["我", "今天", "很", "高兴", "，", "真的", "！"],
    "今日はとても嬉しい": ["今日", "は", "とても", "嬉しい"],
    "ฉันดีใจมาก": ["ฉัน", "ดีใจ", "มาก"],
}


@pytest.mark.parametrize("sentence", SCRIPTS)
def test_words_of_every_script_stay_whole(tmp_path, sentence):
    expected = SCRIPTS[sentence]
    known = {*sentence} - {" "} | {*expected}
    lines = [f"{word} {number} 1" for number, word in enumerate(sorted(known))]
    (tmp_path / "vectors.txt").write_text("\n".join(lines))
    found = vectors.read_vectors(tmp_path / "vectors.txt", words.candidates(sentence))
    assert (words.embed(sentence, found) == np.stack([found[word] for word in expected])).all()


def test_marks_alone_are_no_words():
    with pytest.raises(ClipError, match="its marks alone have: 'unheard？'"):
        words.embed("unheard？", {"？": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("transcript", "code", "reason"),
    [
        ("", "E_SHORT", "transcript is empty"),
        (" \t", "E_SHORT", "transcript is empty"),
        ("unheard, ...", "E_SHORT", "'unheard, ...'"),
        ("the " * 2001, "E_LIMIT", "2001 words"),
    ],
)
def test_transcripts_that_cannot_be_used_say_why(transcript, code, reason):
    with pytest.raises(ClipError) as caught:
        words.embed(transcript, VECTORS)
    assert caught.value.code == code and reason in caught.value.reason


def test_coverage_counts_what_is_said():
    said = words.coverage(["the no? unheard", "Unheard the"], VECTORS)
    assert "60.0% of 5 words, 66.7% of 3 different ones" in said and "often: unheard 2" in said


DAMAGE = {
    "absent": (None, "No such file"),
    "empty": (b"", "empty"),
    "prose": (b"Once\nupon a time\n", "0 values"),
    "huge header": (b"3 99999999\nthe ", "99999999 values"),
    "cut text": (b"3 2\nthe 1 2\nno 1 2\n", "holds 2 words, its first line promises 3"),
    "ragged": (b"a 1 2\nthe 1\n", "1 values for 'the', not 2"),
    "a word for a number": (b"a 1 2\nthe 1 x\n", "could not convert"),
    "not a number": (b"a 1 2\nthe 1 nan\n", "'the' holds a value that is no number"),
    "none known": (b"a 1 2\nb 1 2\n", "knows none of the words"),
    "cut binary": (b"2 2\nthe \x00\x00\x80\x3f\x00\x00", "cut short: 0 of 2"),
    "not a gz": (b"", "0 values"),
    "not an npz": (b"PK\x05\x06" + bytes(18), "no item named 'words.npy'"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damaged_files_are_told_in_one_line(tmp_path, fault):
    content, reason = DAMAGE[fault]
    path = tmp_path / ("vectors.gz" if "gz" in fault else "vectors.txt")
    if content is not None:
        path.write_bytes(content or b"no" * ("gz" in fault))
    with pytest.raises(UsageError, match="--word_vectors") as caught:
        vectors.gather(path, ["the no"], tmp_path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        dict(words=["the"], vectors=np.eye(3)[:2]),
        dict(words=["the"], vectors=np.zeros((1, 3), int)),
        dict(words=["the"], vectors=np.zeros((0, 3))),
        dict(words=[1.5], vectors=np.eye(1)),
        dict(words=np.array(["the"], object), vectors=np.eye(1)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=r"x\.npz: .*expected"):
        vectors.read_vectors(tmp_path / "x.npz", {"the"})


@pytest.mark.parametrize("form", ["npz", "word2vec binary", "GloVe"])
def test_memory_follows_the_words_not_the_file(tmp_path, form):
    many = {f"w{index}": np.full(3, 0.123, np.float32) for index in range(60_000)} | VECTORS
    path = text(tmp_path, False, many)
    if form == "npz":
        path = tmp_path / "many.npz"
        np.savez(path, words=list(many), vectors=np.stack(list(many.values())))
    elif form == "word2vec binary":
        path = tmp_path / "many.bin"
        rows = b"".join(word.encode() + b" " + each.tobytes() for word, each in many.items())
        path.write_bytes(b"%d 3\n" % len(many) + rows)
    tracemalloc.start()
    found = vectors.read_vectors(path, set(KNOWN))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.keys() == VECTORS.keys() and peak < 1.6e6, peak


# --- through preprocess.py and train.py ---------------------------------------------------------

SAID = ("the anger", "no no I", "don't", "good-bye the", "unheard", "")


@pytest.fixture
def spoken(tmp_path) -> Path:
    rows = [
        f'{split}{number}.mp4,{split},{label},"{said}"'
        for split in ("train", "val")
        for number, said in enumerate(SAID)
        for label in (("hap", "sad")[number % 2],)
    ]
    (tmp_path / "manifest.csv").write_text(
        "\n".join(["media,split,emotion,transcript", *rows]) + "\n"
    )
    return tmp_path


def preprocess(folder: Path, path: Path | None, *flags: object):
    chosen = ("--word_vectors", path) if path else ()
    places = ("--data_dir", folder, "--features_dir", folder / "features", "--workers", 1)
    return run_main("preprocess", "--corpus", "csv", *places, *chosen, *flags)


def test_words_alone_train(spoken, tmp_path):
    """No clip has a media file: transcripts are enough for --mode text, with any width."""
    done = preprocess(spoken, text(tmp_path), "--modalities", "text")
    assert done.code == 3 and "8 of 12 clips usable" in done.out, done.err
    assert "unknown most often: unheard 2" in done.out, done.out
    features = spoken / "features"
    failed = pd.read_csv(features / "failed.csv", keep_default_na=False)
    assert set(failed["code"]) == {"E_SHORT"} and len(set(failed["reason"])) == 2
    manifest = pd.read_csv(features / "manifest.csv").set_index("clip_id")
    assert list(manifest["words"]) == [2, 3, 2, 2] * 2
    assert manifest.loc["train2", "media"] == "train2.mp4"
    with np.load(features / "train/text/train2.npz", allow_pickle=False) as archive:
        assert (archive["word_embed"] == np.stack([VECTORS["don"], VECTORS["t"]])).all()
    made = json.loads((features / "settings.json").read_text())["features"]["text"]
    assert len(made["vectors"]) == 16 and made["rule"] == words.RULE
    small = ("--n_epoch", 1, "--text_layers", 1, "--batch_size", 4, "--num_workers", 0)
    places = ("--features_dir", features, "--logs_dir", tmp_path / "logs", "--exp_name", "x")
    trained = run_main("train", "--mode", "text", *places, *small)
    assert trained.code == 0 and "8 validation clips" not in trained.out, trained.err
    assert "1_best_" in trained.out.splitlines()[-1]


def test_reruns_read_the_file_only_when_it_or_the_words_changed(spoken, tmp_path, monkeypatch):
    path = text(tmp_path)
    preprocess(spoken, path, "--modalities", "text")
    first = digests(spoken / "features")
    read, count = vectors.read_vectors, []
    monkeypatch.setattr(vectors, "read_vectors", lambda *args: count.append(1) or read(*args))
    preprocess(spoken, path, "--modalities", "text")
    assert digests(spoken / "features") == first and not count

    table = spoken / "manifest.csv"
    table.write_text(table.read_text().replace("good-bye the", "good-bye ?"))
    preprocess(spoken, path, "--modalities", "text")
    second = digests(spoken / "features")
    changed = {name for name in first if first[name] != second[name] and "/text/" in name}
    assert changed == {"train/text/train3.npz", "val/text/val3.npz"} and len(count) == 1

    path.write_text(path.read_text().replace("0.5", "0.25"))
    os.utime(path, (0, 0))
    preprocess(spoken, path, "--modalities", "text")
    third = digests(spoken / "features")
    assert all(third[name] != second[name] for name in second if "/text/" in name)
    assert third["settings.json"] != second["settings.json"] and len(count) == 2


def test_text_without_vectors_or_transcripts_is_refused_at_once(spoken, tmp_path):
    done = preprocess(spoken, None, "--modalities", "text")
    assert done.code == 2 and "the text of csv needs --word_vectors FILE" in done.err
    table = spoken / "manifest.csv"
    table.write_text("media,split,emotion\na.mp4,train,hap\n")
    done = preprocess(spoken, text(tmp_path))
    assert done.code == 2 and "no clip of csv has a transcript" in done.err
    assert not (spoken / "features").exists()


def header_of(dtype: str, shape: tuple) -> bytes:
    """An .npy that claims to be that, and 3 MB of zeros."""
    file = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue() + bytes(3_000_000)


def long_header(length: int) -> bytes:
    """The start of an .npy of the second version, whose header may be of 4 GB."""
    return b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b" " * length


def archive_of(path: Path, words: tuple, values: tuple) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("words.npy", header_of(*words))
        archive.writestr("vectors.npy", header_of(*values))


def one_line(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"the 0.5 " * 100_000)


def header_alone(path: Path) -> None:
    """Words whose header, of spaces, is 200 MB long."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("words.npy", long_header(200_000_000))
        archive.writestr("vectors.npy", saved(np.ones((1, 3), "f4")))


BOMBS = {  # a name -> what writes a small file that claims, or unpacks to, gigabytes
    "long.npz": lambda path: archive_of(path, ("<U500000000", (1,)), ("<f4", (1, 2))),
    "many.npz": lambda path: archive_of(path, ("<U3", (10**9,)), ("<f4", (10**9, 2))),
    "wide.npz": lambda path: archive_of(path, ("<U3", (1,)), ("<f4", (1, 5 * 10**8))),
    "line.txt.gz": one_line,
    "header.npz": header_alone,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_ask_for_gigabytes(tmp_path, name):
    BOMBS[name](tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=f"--word_vectors .*{name}"):
            vectors.read_vectors(tmp_path / name, {"the"})
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_what_is_packed_too_well_is_no_vectors(tmp_path):
    """Line ends shrink a thousand times, and words would be looked for in each of them."""
    many = b"the 1 2\n" + b"\n" * 20_000_000
    (tmp_path / "x.gz").write_bytes(gzip.compress(many, 1))
    with pytest.raises(UsageError, match=r"x\.gz: it is packed more than 30 times"):
        vectors.read_vectors(tmp_path / "x.gz", {"the"})
    zeros = b"".join(b"w%d" % number + b" 0" * 50 + b"\n" for number in range(9000))
    (tmp_path / "x.gz").write_bytes(gzip.compress(zeros + b"the" + b" 1" * 50))
    assert vectors.read_vectors(tmp_path / "x.gz", {"the"})["the"].tolist() == [1] * 50


@pytest.mark.parametrize("by_column", [False, True])
def test_long_rows_and_columns_are_read_in_pieces(tmp_path, by_column):
    """Of 20 MB, and of words that are the same fifty thousand times."""
    values = np.zeros((50_000, 100), "<f4", order="F" if by_column else "C")
    values[0], values[-1] = 7, 9
    names = np.array(["the"] * 49_999 + ["I"])
    np.savez_compressed(tmp_path / "x.npz", words=names, vectors=values)
    tracemalloc.start()
    found = vectors.read_vectors(tmp_path / "x.npz", {"the", "I"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6, peak
    assert (found["the"] == 7).all() and (found["I"] == 9).all() and len(found["I"]) == 100


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_packed_as_nobody_packs_it_is_refused(tmp_path, packing):
    """zipfile unpacks all of such a member, whatever size it is asked for."""
    path = tmp_path / "x.npz"
    members = {"words": saved(np.array(["the"])), "vectors": saved(np.ones((1, 3)))}
    archive(path, packing, **members, origin=saved(np.array("{}")))
    with pytest.raises(UsageError, match=r"--word_vectors .*x\.npz: it is packed in a way"):
        vectors.read_vectors(path, {"the"})
    archive(path, packing, word_embed=members["vectors"])
    with pytest.raises(ClipError, match=r"x\.npz .*packed in a way"):
        words.read_words(path, None)


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_packed_store_is_none_of_ours(tmp_path, packing):
    """A few bytes of it could be gigabytes."""
    members = {"words": saved(np.array(["the"])), "vectors": saved(np.ones((1, 3), "f4"))}
    members["origin"] = saved(np.array('{"sha256": "1"}'))
    archive(tmp_path / vectors.STORE, packing, **members)
    assert vectors._origin(tmp_path / vectors.STORE) == {}
    with pytest.raises(ValueError, match="packed in a way"):
        vectors.open_store(tmp_path)
    archive(tmp_path / vectors.STORE, **members)
    assert vectors._origin(tmp_path / vectors.STORE) == {"sha256": "1"}


@pytest.mark.parametrize("origin", ['{"stamp": 1}', "3", "[]", '{"sha256": 1}', "{"])
def test_a_store_that_tells_no_origin_is_made_anew(tmp_path, origin):
    members = {"words": saved(np.array(["the"])), "vectors": saved(np.ones((1, 3), "f4"))}
    archive(tmp_path / vectors.STORE, **members, origin=saved(np.array(origin)))
    assert vectors._origin(tmp_path / vectors.STORE) == {}


def archive(path: Path, packing: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


SOUND = saved(np.array(["the"]))
DAMAGED_WORDS = {
    "a bracket that is not closed": SOUND.replace(b"(1,), }", b"(1,   "),
    "a version that numpy lacks": SOUND.replace(b"NUMPY\x01", b"NUMPY\x77"),
    "letters beyond Unicode": SOUND[:-1] + b"\xff",
    "no array": b"words",
}


@pytest.mark.parametrize("fault", DAMAGED_WORDS)
def test_damaged_archives_are_told_in_one_line(tmp_path, fault):
    path = tmp_path / "x.npz"
    archive(path, words=DAMAGED_WORDS[fault], vectors=saved(np.ones((1, 2))))
    with pytest.raises(UsageError, match=r"--word_vectors .*x\.npz") as caught:
        vectors.read_vectors(path, {"the"})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("place", [6, 8, 40], ids=["encrypted", "packed by nobody", "renamed"])
def test_archives_that_zipfile_cannot_open_are_told_in_one_line(tmp_path, place):
    path = tmp_path / "x.npz"
    archive(path, words=SOUND, vectors=saved(np.ones((1, 2))))
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + place + 2 if place < 30 else 30
    data[start] ^= 0x41
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"--word_vectors .*x\.npz"):
        vectors.read_vectors(path, {"the"})


def test_a_process_asks_the_file_once_for_a_word(tmp_path, monkeypatch):
    """The page asks for every sentence, and the file may have gigabytes."""
    path, asked, hashed = text(tmp_path), [], []
    read, sha256 = vectors.read_vectors, vectors.sha256
    monkeypatch.setattr(vectors, "read_vectors", lambda p, new: asked.append(new) or read(p, new))
    monkeypatch.setattr(vectors, "sha256", lambda path: hashed.append(path) or sha256(path))
    for number, said in enumerate(["the no", "no the", "the unheard", "unheard the", "anger"]):
        vectors.gather(path, [said], tmp_path / str(number))
        known = vectors.open_store(tmp_path / str(number))
        assert known.keys() == {*said.split()} - {"unheard"}
        assert all((known[word] == VECTORS[word]).all() for word in known)
    assert len(asked) == 3 and "the" not in asked[1] and "unheard" in asked[1]
    assert hashed == [path]
    with pytest.raises(vectors.NoneKnown):
        vectors.gather(path, ["unheard"], tmp_path / "none")
    path.write_text(path.read_text().replace("0.5", "0.25"))
    vectors.gather(path, ["the"], tmp_path / "new")
    assert vectors.open_store(tmp_path / "new")["the"][2] == 0.25 and len(asked) == 4
    assert hashed == [path] * 2


def test_real_vectors_read_alike():
    if "WORD_VECTORS_DIR" not in os.environ:
        pytest.skip("WORD_VECTORS_DIR does not say where the GloVe samples are")
    folder = Path(os.environ["WORD_VECTORS_DIR"])
    heard = {"the", "happy", "terrible"}
    [first, second] = (
        vectors.read_vectors(folder / f"glove_twitter_25d.{ending}", heard)
        for ending in ("txt", "npz")
    )
    assert first.keys() == second.keys() == heard
    for word in heard:
        assert first[word].shape == (25,) and np.allclose(first[word], second[word], atol=1e-5)


def test_a_damaged_store_is_read_anew(spoken, tmp_path):
    path = text(tmp_path)
    preprocess(spoken, path, "--modalities", "text")
    features = spoken / "features"
    first, store = digests(features), features / vectors.STORE
    whole = store.read_bytes()
    for place in range(40, len(whole), len(whole) // 9):
        store.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        shutil.rmtree(features / "train")
        done = preprocess(spoken, path, "--modalities", "text")
        assert done.code == 3, done.err
        found = digests(features)
        assert {name: found[name] for name in first if name != vectors.STORE} == {
            name: first[name] for name in first if name != vectors.STORE
        }
