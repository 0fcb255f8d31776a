"""python -m corpora.audit: planted leaks are found, honest features are left in peace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import QUIET, ROOT, make_clip, write_features

from corpora.audit import audit, audited, leaks
from corpora.demo import speak
from extract.audio import extract_speech
from utils.errors import IntegrityError, UsageError

PEOPLE = ("anna", "ben", "carl", "dora")


def voice(number: int) -> np.ndarray:
    """(N,) float32: a sentence of one of four speakers."""
    rng = np.random.default_rng((1, number))
    words = ["well", "this", "is", "really", "a", "very", "ordinary", "afternoon"]
    sound, _ = speak("neu", words, np.random.default_rng(number % 4), rng)
    return np.float32(sound)


def run_audit(folder: Path, *flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "corpora.audit", "--features_dir", str(folder)]
    return subprocess.run(
        [*command, *map(str, flags)], cwd=ROOT, env=QUIET, capture_output=True, text=True
    )


class Folder:
    """Speech features of made clips, as preprocess.py leaves them."""

    def __init__(self, folder: Path):
        self.path, self.rows = folder, []
        for number in range(12):
            split = ("train", "val", "test")[number % 3]
            self.add(f"c{number}", split, voice(number), speaker=f"{split}{number % 2}")

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


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_honest_features_are_left_in_peace(folder):
    """Each speaker says the same words three times; that is no duplicate."""
    path = folder.save()
    assert audit(path, path / "raw") == []
    done = run_audit(path, "--data_dir", path / "raw")
    assert done.returncode == 0 and "0 leaks across splits, 0 across folds" in done.stdout
    assert json.loads((path / "audit.json").read_text())["findings"] == []


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
    assert (
        done.returncode == 4
        and "train/c3, val/planted; their labels differ: hap sad" in done.stdout
    )


def test_a_copy_within_a_split_is_told_but_stops_nothing(folder):
    folder.add("planted", "train", voice(3), fold="")
    path = folder.save()
    done = run_audit(path)
    assert done.returncode == 0 and "in one split: train/c3, train/planted" in done.stdout


@pytest.mark.parametrize(
    ("columns", "code", "said"),
    [
        ({"speaker": ["anna", "anna", "", ""]}, 4, "speaker anna: in splits train (1), val (1)"),
        ({"dialogue": ["d1", "d2", "d1", ""]}, 4, "dialogue d1: in splits test (1), train (1)"),
        ({"transcript": ["So what?", "", "so, WHAT", ""]}, 0, "sentence so what: in splits test"),
        ({"speaker": ["a", "b", "c", "a"]}, 0, "0 leaks"),
        ({"speaker": ["a", "b", "c", "a"], "fold": ["0", "0", "", "1"]}, 4, "a: in folds 0 (1), 1"),
        ({"speaker": ["a", "b", "c", ""], "fold": ["0", "1", "0", ""]}, 0, "0 leaks"),
    ],
)
def test_what_people_and_dialogues_share(tmp_path, columns, code, said):
    """Rows 0 and 3 are train, 1 is val, 2 is test; nothing unknown is ever shared."""
    rows = pd.DataFrame({"clip_id": list("abcd"), "split": ["train", "val", "test", "train"]})
    empty = dict.fromkeys(("media", "emotion", "speaker", "transcript", "fold", "dialogue"), "")
    rows.assign(**empty).assign(**columns).to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "settings.json").write_text('{"modalities": ["text"]}')
    done = run_audit(tmp_path)
    assert done.returncode == code and said in done.stdout, done.stdout + done.stderr


def test_a_leak_depends_on_what_is_held_out(tmp_path):
    write_features(tmp_path, modalities=("text",))
    rows = pd.read_csv(tmp_path / "manifest.csv", dtype=str, keep_default_na=False)
    rows["speaker"] = [f"{number % 3}" for number in range(len(rows))]  # everywhere
    rows.to_csv(tmp_path / "manifest.csv", index=False)
    findings = audit(tmp_path)
    assert len(leaks(findings, folds=False)) == len(leaks(findings, folds=True)) == 3
    rows.assign(fold="").to_csv(tmp_path / "manifest.csv", index=False)
    assert len(leaks(audit(tmp_path), folds=False)) == 3 and not leaks(audit(tmp_path), folds=True)


def test_an_audit_is_made_once_for_the_same_features(folder, monkeypatch):
    path = folder.save()
    assert audited(path) == []
    monkeypatch.setattr("corpora.audit.audit", lambda folder: ["made anew"])
    assert audited(path) == []
    folder.rows[0]["speaker"] = "somebody"
    folder.save()
    assert audited(path) == ["made anew"]


def test_unusable_features_are_named(folder):
    with pytest.raises(UsageError, match=r"preprocess\.py"):
        audit(folder.path / "nothing")
    path = folder.save()
    (path / "val/speech/c1.npy").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"c1\.npy is missing or damaged"):
        audit(path)
    (path / "val/speech/c1.npy").unlink()
    done = run_audit(path)
    assert done.returncode == 4 and "c1.npy" in done.stderr and "Traceback" not in done.stderr


def test_folds_leak_into_tests_too_and_a_replaced_clip_is_seen(tmp_path):
    folder = Folder(tmp_path)
    for number, row in enumerate(folder.rows):
        row["fold"] = str(number % 2) if row["split"] != "test" else ""
        row["speaker"] = f"p{number}"
    folder.save()
    assert leaks(audited(tmp_path), folds=True) == []
    folder.add("copy", "test", voice(0), fold="", speaker="p99")  # of c0, in train
    folder.save()
    (found,) = leaks(audited(tmp_path), folds=True)
    assert found["kind"] == "duplicate" and found["clips"] == ["train/c0", "test/copy"]
    # the table stays as it is, the clip behind it does not
    folder.add("copy", "test", voice(99))
    folder.rows.pop()
    assert leaks(audited(tmp_path), folds=True) == []
    (tmp_path / "audit.json").write_text("[]")
    assert leaks(audited(tmp_path), folds=True) == []


def test_what_two_test_splits_share_is_no_leak(tmp_path):
    folder = Folder(tmp_path)
    folder.add("copy", "noisy", voice(7), speaker="p7")
    folder.add("again", "test", voice(7), speaker="p7")
    folder.save()
    assert [one for one in audited(tmp_path) if "noisy" in one["crosses"].get("split", {})]
    assert not [one for one in leaks(audited(tmp_path), folds=False) if "p7" in one["name"]]
    assert leaks(audited(tmp_path), folds=True) == []


def test_features_without_clips_have_no_findings(tmp_path):
    folder = Folder(tmp_path)
    columns = [*folder.rows[0]]
    pd.DataFrame([], columns=columns).to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "settings.json").write_text('{"modalities": ["speech"]}')
    assert audit(tmp_path) == []
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(UsageError, match="is damaged"):
        audit(tmp_path)
