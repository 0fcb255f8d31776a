"""--standardize speaker: features in units of their person, in every tool that reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import save_untrained, write_features
from extras import need
from inside import run_main
from trainings import add_feature

from evaluation.ensemble import image_views, load_members
from evaluation.runs import ALL, Options, evaluate_runs
from evaluation.votes import SharedInputs, votes
from training.data import ClipDataset
from training.features import Features
from training.standardize import speaker_scales
from training.tasks import fused, recipe
from utils.errors import UsageError

OPTIONS = Options(split="val", allow_training_clips=True)


@pytest.fixture
def features(tmp_path) -> Path:
    """28 clips a split of two people each, with twelve numbers of each clip."""
    folder = write_features(tmp_path / "features", 4, splits=("train", "val"))
    add_feature(folder, "au", (12,))
    change(folder, speaker=lambda row, number: f"{row['split']}-{number % 2}")
    return folder


def change(folder: Path, **columns) -> None:
    """Columns of the manifest, from a row and its number in the split."""
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    for name, value in columns.items():
        rows = table.to_dict("records")
        table[name] = [value(row, index % 28) for index, row in enumerate(rows)]
    table.to_csv(folder / "manifest.csv", index=False)


def test_every_tool_standardizes_beside_an_input_of_ours(features, tmp_path):
    """evaluate.py --robustness and make_submission.py read one input after the other."""
    path, opened = tmp_path / "m.pth", Features.open(features)
    save_untrained(path, features, inputs="speech,au", standardize="speaker")
    expected = np.exp(evaluate_runs([path], opened, OPTIONS)[0].under(ALL).log_p)
    harmed = evaluate_runs([path], opened, replace(OPTIONS, robustness=True))
    np.testing.assert_allclose(np.exp(harmed[0].under(ALL).log_p), expected, atol=1e-6)
    members, rows = load_members([path], opened), opened.rows("val")
    parts = SharedInputs(members, [list(range(len(rows)))], rows, opened)
    ((found,),) = votes(members, parts, "cpu", image_views(1), (1.0,))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_speaker_without_the_feature_has_no_scale(features):
    """--partial: all clips of train-1 lack it, others stand in for them."""
    lacks = {"train-1": "au"}
    change(features, missing=lambda row, number: lacks.get(row["speaker"], ""))
    opened = Features.open(features)
    assert list(speaker_scales(opened, opened.rows("train"), ("speech", "au"))["au"]) == ["train-0"]
    task, config = fused(("speech", "au")), recipe("multimodal") | {"standardize": "speaker"}
    made = ClipDataset(opened, opened.rows("train"), task, config, training=False)
    assert made[0, 1]["absent"] == {"speech": False, "au": True} and made[0, 1]["inputs"]["au"]
    assert speaker_scales(opened, opened.rows("train"), ("speech",)) == {}
    change(features, missing=lambda row, number: "au" if number > 5 else "")
    opened = Features.open(features)
    with pytest.raises(UsageError, match="speaker train-0 has 3 clips with au, at least 5"):
        speaker_scales(opened, opened.rows("train"), ("au",))


def test_vectors_of_faces_count_where_there_is_a_face(features):
    """--video_embedding: the row of a frame without a face says nothing of the person."""
    table = pd.read_csv(features / "manifest.csv", dtype=str, keep_default_na=False)
    rng = np.random.default_rng(0)
    for split, clip_id, valid in table[["split", "clip_id", "face_valid"]].to_numpy():
        vectors = rng.normal(size=(len(valid), 512)).astype("f4")
        vectors[[flag == "0" for flag in valid]] = 1e3
        path = features / split / "video_embedding" / f"{clip_id}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, vectors)
    opened = Features.open(features)
    assert "0" in "".join(table["face_valid"])
    scales = speaker_scales(opened, opened.rows("train"), ("speech", "video_embedding"))
    assert list(scales) == ["video_embedding"]
    assert all(np.abs(each.mean).max() < 2 for each in scales["video_embedding"].values())


def test_it_is_refused_where_nothing_can_be_standardized(features, tmp_path):
    flags = ("--mode", "multimodal", "--inputs", "speech,face", "--standardize", "speaker")
    places = ("--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "a", "--dry_run")
    run = run_main("train", *flags, *places, "--num_workers", 0, "--allow_leaks")
    assert run.code == 2 and "custom features and encoders, here are none" in run.err


def test_an_exported_model_is_fed_the_same(features, tmp_path):
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    from examples.onnx_predict import feed
    from inference.portable import to_onnx

    path, opened = tmp_path / "m.pth", Features.open(features)
    save_untrained(path, features, inputs="au", standardize="speaker")
    expected = np.exp(evaluate_runs([path], opened, OPTIONS)[0].under(ALL).log_p)
    session = onnxruntime.InferenceSession(to_onnx(load_members([path], opened)[0]))
    about = session.get_modelmeta().custom_metadata_map
    about = {name: json.loads(value) for name, value in about.items()}
    assert about["standardize"] == "speaker"
    rows = opened.rows("val")
    scales = speaker_scales(opened, rows, about["inputs"])
    found = [
        session.run(None, feed(row, opened, about, set(), scales))[0][0]
        for row in rows.to_dict("records")
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
