"""The audit of features: planted leaks are found, honest features are left in peace, and what could
not be compared is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import QUIET, ROOT, make_clip, write_features
from inside import run_main

from corpora import same_sound
from corpora.audit import leaks, load_audit
from corpora.demo import speak
from extract.audio import extract_speech
from utils.errors import IntegrityError, UsageError


def voice(number: int) -> np.ndarray:
    """(N,) float32: a sentence of one of four speakers."""
    rng = np.random.default_rng((1, number))
    words = ["well", "this", "is", "really", "a", "very", "ordinary", "afternoon"]
    sound, _ = speak("neu", words, np.random.default_rng(number % 4), rng)
    return np.float32(sound)


def run_audit(folder: Path, *flags: object) -> SimpleNamespace:
    return run_main("corpora.audit", "--features_dir", folder, *flags)


def run_python(*args: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


class Folder:
    """Speech features of made clips, as preprocess.py leaves them."""

    def __init__(self, folder: Path):
        self.path, self.rows = folder, []

    def add(self, clip_id: str, split: str, sound: np.ndarray, ending=".wav", **row: str) -> None:
        media = f"{clip_id}{ending}"
        codec = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".m4a": "aac"}[ending]
        make_clip(self.path / "raw" / media, sound=sound, sound_codec=codec)
        mel = extract_speech(self.path / "raw" / media).log_mel
        place = self.path / split / "speech" / f"{clip_id}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, mel)
        record = {"stages": {"speech": {"sha256": str(hash(mel.tobytes()))}}}
        place = self.path / split / "records" / f"{clip_id}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(record))
        empty = dict.fromkeys(("speaker", "transcript", "fold", "dialogue"), "")
        names = {"clip_id": clip_id, "split": split, "media": media, "emotion": "hap"}
        self.rows.append({**empty, **names, **row})

    def save(self) -> Path:
        pd.DataFrame(self.rows).to_csv(self.path / "manifest.csv", index=False)
        settings = {"modalities": ["speech"], "classes": ["hap", "sad"]}
        (self.path / "settings.json").write_text(json.dumps(settings))
        return self.path


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("twelve"))
    for number in range(12):
        split = ("train", "val", "test")[number % 3]
        folder.add(f"c{number}", split, voice(number), speaker=f"{split}{number % 2}")
    return folder


@pytest.fixture
def folder(twelve, tmp_path) -> Folder:
    """Twelve clips in three splits, no two of them alike."""
    copy = Folder(shutil.copytree(twelve.path, tmp_path / "features"))
    copy.rows = [dict(row) for row in twelve.rows]
    return copy


def text_only(folder: Path, **columns: list[str]) -> Path:
    """Features of four clips: a and d in train, b in val, c in test."""
    rows = pd.DataFrame({"clip_id": list("abcd"), "split": ["train", "val", "test", "train"]})
    empty = dict.fromkeys(("media", "emotion", "speaker", "transcript", "fold", "dialogue"), "")
    rows.assign(**empty).assign(**columns).to_csv(folder / "manifest.csv", index=False)
    (folder / "settings.json").write_text('{"modalities": ["text"]}')
    return folder


def test_honest_features_are_left_in_peace(folder):
    """Each speaker says the same words three times; that is no duplicate."""
    path = folder.save()
    assert load_audit(path).findings == []
    done = run_python("-m", "corpora.audit", "--features_dir", path, "--data_dir", path / "raw")
    assert done.returncode == 0
    assert done.stdout == (
        "0 leaks across 3 splits; compared: speakers, files, sound; "
        "dialogues: unknown for 12 of 12 clips, not compared\n"
    )
    assert json.loads((path / "audit.json").read_text())["findings"] == []


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a\0b", "..", ""])
def test_ids_cannot_leave_the_tree(tmp_path, name):
    for column in ("clip_id", "split"):
        values = {"clip_id": [*"abc", name], "split": ["train"] * 3 + [name]}
        done = run_audit(text_only(tmp_path, **{column: values[column]}))
        told = f"manifest.csv is damaged, or not ours: it has the id {name!r}"
        assert done.code == 4 and told in done.err


COPIES = {
    "another id": (lambda sound: sound, ".wav", "same bytes, same sound, same speech features"),
    "12 dB softer": (lambda sound: sound / 4, ".wav", "same sound"),
    "250 ms less": (lambda sound: sound[4000:], ".wav", "same sound"),
    "mp3": (lambda sound: sound, ".mp3", "same sound"),
    "aac, softer, cut": (lambda sound: sound[4000:] / 4, ".m4a", "same sound"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_whatever_was_done_to_it(folder, copy):
    change, ending, how = COPIES[copy]
    folder.add("planted", "val", change(voice(3)), ending, emotion="sad")
    path = folder.save()
    done = run_audit(path, "--data_dir", path / "raw")
    [finding] = json.loads((path / "audit.json").read_text())["findings"]
    assert finding["clips"] == ["train/c3", "val/planted"] and finding["name"] == how
    assert finding["crosses"] == {"split": {"train": 1, "val": 1}}
    assert finding["label_conflict"] == ["hap", "sad"]
    assert done.code == 4 and "1 leak across 3 splits" in done.out
    assert "train/c3, val/planted; their labels differ: hap sad" in done.out


def test_a_copy_within_a_split_is_told_but_stops_nothing(folder):
    folder.add("planted", "train", voice(3), fold="")
    done = run_audit(folder.save())
    assert done.code == 0 and "in one split: train/c3, train/planted" in done.out


def test_a_recording_is_known_by_what_its_record_says(folder):
    """Clips without sound have no other trace, and the clips themselves may be elsewhere."""
    for name in ("c3", "c6"):
        record = {"stages": {"video": {"sha256": name, "source_sha256": "the same"}}}
        (folder.path / "train/records" / f"{name}.json").write_text(json.dumps(record))
    [finding] = load_audit(folder.save()).findings
    assert finding["clips"] == ["train/c3", "train/c6"] and finding["name"] == "same bytes"


@pytest.mark.parametrize(
    ("columns", "code", "said"),
    [
        ({"speaker": ["anna", "anna", "", ""]}, 4, "speaker anna: in splits train (1), val (1)"),
        ({"dialogue": ["d1", "d2", "d1", ""]}, 4, "dialogue d1: in splits test (1), train (1)"),
        ({"transcript": ["So what?", "", "so, WHAT", ""]}, 0, "sentence so what: in splits test"),
        ({"speaker": ["a", "b", "c", "a"]}, 0, "0 leaks across 3 splits; compared: speakers;"),
        ({"speaker": ["a", "b", "c", "a"], "fold": ["0", "0", "", "1"]}, 4, "a: in folds 0 (1), 1"),
        ({"speaker": ["a", "b", "c", ""], "fold": ["0", "1", "0", ""]}, 0, "0 leaks across 2 fold"),
    ],
)
def test_what_people_and_dialogues_share(tmp_path, columns, code, said):
    """Nothing unknown is ever shared."""
    done = run_audit(text_only(tmp_path, **columns))
    assert done.code == code and said in done.out, done.out + done.err


def test_a_leak_depends_on_what_is_held_out(tmp_path):
    write_features(tmp_path, modalities=("text",))
    rows = pd.read_csv(tmp_path / "manifest.csv", dtype=str, keep_default_na=False)
    rows["speaker"] = [f"{number % 3}" for number in range(len(rows))]  # everywhere
    rows.to_csv(tmp_path / "manifest.csv", index=False)
    findings = load_audit(tmp_path).findings
    assert len(leaks(findings, folds=False)) == len(leaks(findings, folds=True)) == 3
    rows.assign(fold="").to_csv(tmp_path / "manifest.csv", index=False)
    findings = load_audit(tmp_path).findings
    assert len(leaks(findings, folds=False)) == 3 and not leaks(findings, folds=True)


# --- what could not be compared -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "summary"),
    [
        (
            {},
            "nothing could be compared, so leaks are unknown; "
            "speakers: unknown for 4 of 4 clips, not compared; "
            "dialogues: unknown for 4 of 4 clips, not compared; "
            "files: none known for 4 of 4 clips, not compared; "
            "sound: no speech features for 4 of 4 clips, not compared",
        ),
        (
            {"speaker": ["a", "", "c", ""], "dialogue": list("1234")},
            "0 leaks across 3 splits; compared: speakers, dialogues; "
            "speakers: unknown for 2 of 4 clips (all of val), the others compared; "
            "files: none known for 4 of 4 clips, not compared; "
            "sound: no speech features for 4 of 4 clips, not compared",
        ),
        (
            {"speaker": list("abcd"), "dialogue": list("1234"), "fold": ["0", "1", "", "0"]},
            "0 leaks across 3 splits, 0 leaks across 2 folds; compared: speakers, dialogues; "
            "files: none known for 4 of 4 clips, not compared; "
            "sound: no speech features for 4 of 4 clips, not compared",
        ),
        (
            {"split": ["train"] * 4, "speaker": list("aaaa"), "dialogue": list("1111")},
            "one split without folds, so nothing can leak; compared: speakers, dialogues; "
            "files: none known for 4 of 4 clips, not compared; "
            "sound: no speech features for 4 of 4 clips, not compared",
        ),
    ],
)
def test_the_audit_says_what_it_compared_and_what_it_could_not(tmp_path, columns, summary):
    done = run_audit(text_only(tmp_path, **columns))
    assert done.code == 0 and done.out == f"{summary}\n", done.err
    assert load_audit(tmp_path).summary() == summary
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert saved["compared"]["sound"] == {} and sum(saved["clips"].values()) == 4


def test_features_without_clips_are_an_error(folder):
    path = folder.save()
    pd.DataFrame([], columns=[*folder.rows[0]]).to_csv(path / "manifest.csv", index=False)
    done = run_audit(path)
    assert done.code == 2 and "lists no clips" in done.err and not done.out
    assert len(done.err.splitlines()) == 1 and not (path / "audit.json").exists()
    with pytest.raises(UsageError, match="lists no clips"):
        load_audit(path)


def test_a_pipe_is_no_log_mel(tmp_path):
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(IntegrityError, match=r"a\.npy is missing or damaged .no regular file.*--v"):
        same_sound.read_log_mel(str(tmp_path / "a.npy"))


HEADERS = [(b", }  ", b", [  "), (b"'descr'", b"'d\0scr'"), (b"(128", b"(--128"), (b"{'", b"{{'")]


@pytest.mark.parametrize("damage", HEADERS)
def test_a_damaged_header_of_a_log_mel_is_told_in_one_line(tmp_path, damage):
    """numpy reads it as Python, which fails in any way."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((128, 40), np.float32))
    path.write_bytes(path.read_bytes().replace(*damage, 1))
    with pytest.raises(IntegrityError, match=r"a\.npy is missing or damaged.*--verify") as error:
        same_sound.read_log_mel(str(path))
    assert "\n" not in str(error.value)


def test_unusable_features_are_named(folder):
    with pytest.raises(UsageError, match=r"preprocess\.py"):
        load_audit(folder.path / "nothing")
    path = folder.save()
    (path / "val/speech/c1.npy").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"c1\.npy is missing or damaged.*--verify"):
        load_audit(path)
    (path / "val/speech/c1.npy").unlink()
    done = run_audit(path)
    assert done.code == 4 and "c1.npy" in done.err and "Traceback" not in done.err
    (path / "settings.json").write_text("[]")
    with pytest.raises(UsageError, match="is damaged"):
        load_audit(path)


# --- audit.json ---------------------------------------------------------------------------------


def forbid_comparing(monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("compared again")

    monkeypatch.setattr("corpora.audit.compare", fail)


def test_an_audit_is_made_once_for_the_same_features(folder, monkeypatch, tmp_path):
    """By train.py, preprocess.py and the command; a copy of the features keeps it."""
    path = folder.save()
    assert run_audit(path).code == 0
    copy = shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copyfile)  # no times
    forbid_comparing(monkeypatch)
    assert load_audit(path).findings == load_audit(copy).findings == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("manifest.csv", b"hap", b"sad"),
        ("settings.json", b"sad", b"ang"),
        ("val/records/c1.json", b"sha256", b"sha255"),
        ("val/records/c1.json", None, b""),
    ],
)
def test_whatever_changes_makes_the_audit_invalid(folder, monkeypatch, name, old, new):
    path = folder.save()
    load_audit(path)
    forbid_comparing(monkeypatch)
    load_audit(path)
    if old is None:
        (path / name).unlink()
    else:
        content, status = (path / name).read_bytes(), (path / name).stat()
        (path / name).write_bytes(content.replace(old, new, 1))
        os.utime(path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path / name).stat().st_size == status.st_size
    with pytest.raises(AssertionError, match="compared again"):
        load_audit(path)


def test_features_of_other_tools_are_known_by_size_and_time(folder, monkeypatch):
    path = folder.save()
    shutil.rmtree(path / "val/records")
    load_audit(path)
    forbid_comparing(monkeypatch)
    load_audit(path)
    (path / "val/speech/c1.npy").touch()
    with pytest.raises(AssertionError, match="compared again"):
        load_audit(path)


def test_features_that_cannot_be_written_are_audited_all_the_same(folder, monkeypatch):
    def refuse(*_):
        raise UsageError("read-only")

    path = folder.save()
    monkeypatch.setattr("corpora.audit.write_json", refuse)
    assert load_audit(path).findings == [] and not (path / "audit.json").exists()


def test_folds_leak_into_tests_too_and_a_replaced_clip_is_seen(folder):
    for number, row in enumerate(folder.rows):
        row["fold"] = str(number % 2) if row["split"] != "test" else ""
        row["speaker"] = f"p{number}"
    path = folder.save()
    assert leaks(load_audit(path).findings, folds=True) == []
    folder.add("copy", "test", voice(0), fold="", speaker="p99")  # of c0, in train
    folder.save()
    (found,) = leaks(load_audit(path).findings, folds=True)
    assert found["kind"] == "duplicate" and found["clips"] == ["test/copy", "train/c0"][::-1]
    # the table stays as it is, the clip behind it does not
    folder.add("copy", "test", voice(99))
    folder.rows.pop()
    assert leaks(load_audit(path).findings, folds=True) == []
    (path / "audit.json").write_text("[]")
    assert leaks(load_audit(path).findings, folds=True) == []


def test_what_two_test_splits_share_is_no_leak(folder):
    folder.add("copy", "noisy", voice(7), speaker="p7")
    folder.add("again", "test", voice(7), speaker="p7")
    path = folder.save()
    findings = load_audit(path).findings
    assert [each for each in findings if "noisy" in each["crosses"].get("split", {})]
    assert not [each for each in leaks(findings, folds=False) if "p7" in each["name"]]
    assert leaks(findings, folds=True) == []


@pytest.mark.slow
def test_twenty_thousand_clips_are_known_in_two_seconds(tmp_path):
    record = json.dumps({"stages": {"speech": {"sha256": "x" * 64}}, "padding": "x" * 800})
    (tmp_path / "train/records").mkdir(parents=True)
    for number in range(20_000):
        (tmp_path / f"train/records/{number}.json").write_text(record)
    names = list(map(str, range(20_000)))
    rows = pd.DataFrame({"clip_id": names, "media": names, "split": "train", "emotion": "hap"})
    rows.to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "settings.json").write_text('{"modalities": ["text"]}')
    load_audit(tmp_path)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        load_audit(tmp_path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2


# --- the search for the same sound --------------------------------------------------------------


def test_neighbours_are_those_of_all_pairs_in_little_memory(monkeypatch):
    rng = np.random.default_rng(0)
    outlines = rng.random((3000, 256), np.float32)
    outlines[2000:2040] = outlines[:40] + 0.1 * rng.random((40, 256), np.float32)
    outlines /= np.linalg.norm(outlines, axis=1, keepdims=True)
    monkeypatch.setattr(same_sound, "SIMILARITIES", 300_000)
    tracemalloc.start()
    found = same_sound.neighbours(outlines)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    alike = np.triu(outlines @ outlines.T, 1)  # 36 MB
    assert found == list(map(tuple, np.argwhere(alike > same_sound.CANDIDATE).tolist()))
    assert {(place, 2000 + place) for place in range(40)} <= {*found}
    assert peak < 8e6


def test_one_sound_many_times_has_few_candidates():
    outlines = np.tile(np.eye(1, 64, dtype=np.float32), (300, 1))
    found = same_sound.neighbours(outlines)
    assert 150 <= len(found) <= 300 * same_sound.NEIGHBOURS
    assert same_sound.neighbours(outlines[:1]) == []


def test_the_benchmark_of_the_audit_runs(folder):
    path = folder.save()
    command = ["benchmarks/audit.py", "--clips", 50]
    done = run_python(*command, "--features_dir", path, "--data_dir", path / "raw")
    assert done.returncode == 0, done.stderr
    assert "50 clips: " in done.stdout and "mp3 24, softer, cut" in done.stdout
    assert "file cut " in done.stdout and done.stdout.count("1/1") >= 5, done.stdout


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["findings"][0].update(kind="speakes"),
        lambda saved: saved.update(findings=[]),
        lambda saved: saved.update(clips=3),
        lambda saved: saved.pop("compared"),
    ],
)
def test_an_audit_that_was_changed_is_made_anew(folder, change):
    folder.rows = [{**row, "speaker": "anna"} for row in folder.rows]
    path = folder.save()
    expected = leaks(load_audit(path).findings, folds=False)
    saved = json.loads((path / "audit.json").read_text())
    change(saved)
    (path / "audit.json").write_text(json.dumps(saved))
    assert leaks(load_audit(path).findings, folds=False) == expected != []
