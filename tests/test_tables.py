"""Tables that people open: a name of a clip or of a class is no formula in any of them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import save_untrained, write_features
from inside import run_main

from training.checkpoint import load_checkpoint, save_checkpoint
from utils.files import read_csv


@pytest.fixture
def features(tmp_path):
    """Of words; the first clip to validate is called =00007."""
    folder = write_features(tmp_path / "features", 1, modalities=("text",))
    table = folder / "manifest.csv"
    table.write_text(table.read_text().replace("00007,val", "=00007,val"))
    words = folder / "val" / "text"
    (words / "00007.npz").rename(words / "=00007.npz")
    save_untrained(tmp_path / "a.pth", folder, "text")
    return folder


def test_ids_of_a_report(features, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.report.draw", lambda *_: None)
    places = ("--features_dir", features, "--checkpoints", tmp_path / "a.pth")
    done = run_main("evaluate", *places, "--out", tmp_path / "out", "--allow_training_clips")
    assert done.code == 0, done.err
    ids = list(read_csv(tmp_path / "out" / "predictions.csv")["clip_id"])
    assert ids.count("'=00007") == 1 and "=00007" not in ids, ids


def test_classes_of_predictions(features, tmp_path):
    known = load_checkpoint(tmp_path / "a.pth")
    save_checkpoint(tmp_path / "a.pth", known | {"classes": ["=a", *known["classes"][1:]]})
    np.savez(tmp_path / "v.npz", words=np.array(["good", "day"]), vectors=np.ones((2, 16), "f4"))
    flags = ("--checkpoints", tmp_path / "a.pth", "--word_vectors", tmp_path / "v.npz")
    done = run_main("predict", "--text", "a good day", *flags, "--out", tmp_path, "--no_pictures")
    assert done.code == 0, done.err
    columns = list(read_csv(tmp_path / "predictions.csv"))
    assert any(name.startswith("'=") for name in columns), columns
    assert not any(name.startswith("=") for name in columns)


def test_clips_that_failed(tmp_path):
    table = "media,split,emotion,transcript\n=a.mp4,train,hap,unheard\nb.mp4,val,sad,good\n"
    (tmp_path / "manifest.csv").write_text(table)
    np.savez(tmp_path / "v.npz", words=np.array(["good", "day"]), vectors=np.ones((2, 16), "f4"))
    places = ("--data_dir", tmp_path, "--features_dir", tmp_path / "features", "--workers", 1)
    flags = ("--corpus", "csv", "--modalities", "text", "--word_vectors", tmp_path / "v.npz")
    done = run_main("preprocess", *flags, *places)
    failed = read_csv(tmp_path / "features" / "failed.csv")
    assert done.code == 3 and list(failed["clip_id"]) == ["'=a"], done.err
    assert list(failed["media"]) == ["'=a.mp4"]
