"""Checkpoints of earlier versions: they load and give the same logits, or are refused by name."""

from __future__ import annotations

import json
import tomllib

import golden
import numpy as np
import pytest
import torch
from conftest import ROOT, write_features
from inside import run_main

from training.checkpoint import load_checkpoint, restore_model, save_checkpoint
from utils.files import write_sealed


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_earlier_version_is_understood(tmp_path, path):
    known, place = json.loads(path.read_text()), tmp_path / "old.pth"
    save_checkpoint(place, golden.checkpoint_of(known))
    model = restore_model(load_checkpoint(place), place)
    for head, logits in golden.logits_of(model).items():
        np.testing.assert_allclose(logits, known["logits"][head], rtol=1e-6, atol=1e-6)
    features = write_features(tmp_path / "features", 1)
    settings = json.loads((features / "settings.json").read_text())
    settings["features"] = known["features_config"]
    (features / "settings.json").write_text(json.dumps(settings))
    places = ["--features_dir", features, "--checkpoints", place, "--out", tmp_path]
    run = run_main("make_submission", *places, "--tta", 1)
    assert run.code == 0 and (tmp_path / "test1_submission.csv").is_file(), run.err


def test_there_is_a_golden_model_of_this_version_and_it_is_small():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    paths = list(golden.FOLDER.glob("*.json"))
    assert version in [path.stem for path in paths]
    assert all(path.stat().st_size < 100_000 for path in paths)


def test_a_checkpoint_of_another_format_is_refused_with_the_remedy(tmp_path):
    """As version 0.1.0 wrote it: no number of a format, other names in arch, config and weights."""
    folder = tmp_path / "logs" / "text" / "old"
    encoder = {"type": "TextTransformer", "word_dim": 16, "layers": 1, "heads": 2}
    checkpoint = {
        "arch": {"encoders": {"text": encoder}, "heads": {"text": ["text"]}, "n_classes": 2},
        "weights": {"heads.text.linear.weight": torch.zeros(2, 16)},
        "classes": ["hap", "sad"],
        "features_config": {"text": {}},
        "config": {"mode": "text", "seed": 42},
        "epoch": 1,
        "val": {"loss": 1.0},
    }
    folder.mkdir(parents=True)
    for name in ("1_best_1.0000.pth", "last.pth"):
        write_sealed(folder / name, lambda file: torch.save(checkpoint, file))
    features = ["--features_dir", write_features(tmp_path / "features", 1, modalities=("text",))]
    run = ["--mode", "text", "--exp_name", "old", "--logs_dir", tmp_path / "logs"]
    commands = (
        ["evaluate", "--checkpoints", folder, "--out", tmp_path / "report"],
        ["make_submission", "--checkpoints", folder, "--out", tmp_path],
        ["train", *run, "--resume"],
        ["train", *run[:3], "new", *run[4:], "--text_load_weights", folder],
    )
    for command in commands:
        said = run_main(*command, *features)
        assert said.code == 4 and "(format 1, this one reads 2): train it anew" in said.err, (
            said.err
        )
    assert run_main("train", *run, "--overwrite", "--dry_run", *features).code == 0
