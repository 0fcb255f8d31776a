"""Checkpoints of earlier versions: they load, and answer as they did."""

from __future__ import annotations

import json

import golden
import numpy as np
import pytest
from conftest import write_features
from inside import run_main

from training.checkpoint import load_checkpoint, restore_model, save_checkpoint


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_earlier_version_is_understood(tmp_path, path):
    known, place = json.loads(path.read_text()), tmp_path / "old.pth"
    save_checkpoint(place, golden.checkpoint_of(known))
    model = restore_model(load_checkpoint(place), place)
    for head, logits in golden.answers(model).items():
        np.testing.assert_allclose(logits, known["answers"][head], rtol=1e-6, atol=1e-6)
    features = write_features(tmp_path / "features", 1)
    settings = json.loads((features / "settings.json").read_text())
    settings["features"] = known["features_config"]
    (features / "settings.json").write_text(json.dumps(settings))
    places = ["--features_dir", features, "--checkpoints", place, "--out", tmp_path]
    run = run_main("make_submission", *places, "--tta", 1)
    assert run.code == 0 and (tmp_path / "test1_submission.csv").is_file(), run.err


def test_there_is_a_golden_model_and_it_is_small():
    paths = list(golden.FOLDER.glob("*.json"))
    assert paths and all(path.stat().st_size < 100_000 for path in paths)
