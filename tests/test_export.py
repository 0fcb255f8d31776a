"""export.py and its example: the probabilities of torch, without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, save_untrained
from extras import need
from inside import run_main

from evaluation.ensemble import load_members, make_dataset
from training.data import make_loader
from training.features import Features
from training.inference import encode, infer

EXAMPLE = "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
EXAMPLE += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def exported(place, tmp_path_factory):
    """A fused model with learnt vectors as ONNX, and what export.py said."""
    need("onnx", "onnxscript", "onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    save_untrained(folder / "model.pth", place / "features", modality_dropout=0.3)
    done = run_main("export", "--checkpoint", folder / "model.pth", "--out", folder / "m.onnx")
    assert done.code == 0, done.err
    return folder


def test_real_features_give_the_probabilities_of_torch(place, exported):
    script = [ROOT / "examples" / "onnx_predict.py", exported / "m.onnx"]
    command = [sys.executable, "-c", EXAMPLE, *script, place / "features", "clips"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    features = Features.open(place / "features")
    (member,) = load_members([exported / "model.pth"], features)
    rows = features.rows("clips")
    loader = make_loader(make_dataset(member, rows, features), 8, 0, "cpu")
    model = member.model
    batches = infer([model], loader, "cpu", lambda given: model.classify(encode(model, given)))
    logits = torch.cat([prediction.logits["integrated"] for _, prediction in batches])
    expected = logits.softmax(dim=1).numpy()
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [line[0] for line in lines] == rows["clip_id"].tolist()
    found = np.array([line[2:] for line in lines], float)
    assert np.abs(found - expected).max() < 1e-4
    assert [line[1] for line in lines] == [CLASSES[index] for index in expected.argmax(axis=1)]


def test_an_input_that_is_left_out_does_not_matter(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "m.onnx")
    rng = np.random.default_rng(0)
    feed = {
        "speech": rng.random((2, 1, 128, 77), np.float32),
        "speech_mask": np.ones((2, 77), bool),
        "face": rng.random((2, 3, 3, 32, 32), np.float32),
        "text": rng.random((2, 5, 16), np.float32),
        "text_mask": np.ones((2, 5), bool),
        "left_out": np.array([[False, True, False]] * 2),
    }
    answers = [session.run(None, feed)[0]]
    answers += [session.run(None, feed | {"face": 1 - feed["face"]})[0]]
    feed["left_out"][:] = False
    answers += [session.run(None, feed)[0]]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)
    assert np.abs(answers[0] - answers[2]).max() > 1e-4


def test_without_the_packages_it_says_which(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run_main("export", "--checkpoint", place / "any.pth")
    assert done.code == 2 and "pip install -r requirements-export.txt" in done.err
