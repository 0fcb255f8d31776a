"""preprocess.py --partial: a clip that lacks a sound, a face or words stays with what it has."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, SMALL, flat, make_clip, save_untrained, tone, write_features
from inside import run_main
from trainings import dataset, make_run

from training import data
from training.features import Features, lacks
from training.loop import fit
from training.record import NoRecord
from utils.errors import ClipError

TINY = [f"--{name}={value}" for name, value in SMALL.items()]
TINY += ["--n_epoch=2", "--batch_size=5", "--num_workers=0"]
LACKING = {"hear": "video", "see": "speech", "both": ""}


@pytest.fixture(scope="module")
def clips(tmp_path_factory, face_image) -> Path:
    """One clip with all, one without a face, one without sound, one with neither, one damaged."""
    folder = tmp_path_factory.mktemp("clips")
    face, wall = np.stack([face_image] * 10), np.stack([flat((90, 90, 90))] * 10)
    make_clip(folder / "both.mp4", face, tone(0.9), fps=10)
    make_clip(folder / "hear.mp4", wall, tone(0.9), fps=10)
    make_clip(folder / "see.mp4", face, fps=10)
    make_clip(folder / "none.mp4", wall, fps=10)
    (folder / "broken.mp4").write_bytes(b"no film at all")
    rows = [f"{name}.mp4,train,hap,{name}" for name in ("both", "hear", "see", "none", "broken")]
    (folder / "manifest.csv").write_text("\n".join(["media,split,emotion,speaker", *rows]))
    return folder


def preprocess(clips: Path, out: Path, *flags: str):
    done = run_main(
        *("preprocess", "--corpus", "csv", "--data_dir", clips, "--features_dir", out),
        *("--workers", 1, "--face_size", 32, *flags),
    )
    return done, pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False)


def test_clips_stay_with_what_they_have(clips, tmp_path):
    done, table = preprocess(clips, tmp_path, "--partial")
    assert done.code == 3
    assert dict(zip(table["clip_id"], table["missing"], strict=True)) == LACKING
    assert "3 of 5 clips usable" in done.out
    assert "2 of them have a part only (1 without video, 1 without speech)" in done.out
    assert "--partial" not in done.out, "it is given already"
    failed = pd.read_csv(tmp_path / "failed.csv")
    assert dict(zip(failed["clip_id"], failed["code"], strict=True)) == {
        "broken": "E_OPEN",
        "none": "E_NOAUDIO",
    }
    made = {str(path.relative_to(tmp_path / "train")) for path in tmp_path.glob("train/*/*.npy")}
    assert made == {f"speech/{name}.npy" for name in ("both", "hear")} | {
        f"video/{name}.npy" for name in ("both", "see")
    }
    seen = table.set_index("clip_id")["video_frames"]
    assert seen["hear"] == "" and int(seen["see"]) >= int(seen["both"]) > 0
    records = {path: path.read_bytes() for path in tmp_path.glob("train/records/*.json")}
    _, same = preprocess(clips, tmp_path, "--partial")
    assert same.equals(table) and {path: path.read_bytes() for path in records} == records
    whole, fewer = preprocess(clips, tmp_path)
    assert list(fewer["clip_id"]) == ["both"] and "missing" not in fewer
    assert "without a face or sound can still be used: --partial keeps what they have" in whole.out
    _, table_again = preprocess(clips, tmp_path, "--partial")
    assert table_again.equals(table)


def test_what_a_clip_of_words_alone_lacks_is_looked_for_once(clips, tmp_path, monkeypatch):
    from corpora.manifest import Clip
    from extract import clip as extraction

    looked = []

    def no_face(clip, *_):
        looked.append(clip.clip_id)
        raise ClipError("E_NOFACE", "none")

    video = extraction.STAGES["video"]._replace(make=no_face)
    monkeypatch.setitem(extraction.STAGES, "video", video)
    job = extraction.Job(tmp_path, ("speech", "video"), extraction.SETTINGS, partial=True)
    first, again = (
        extraction.process_clip(Clip("none", "train", clips / "none.mp4"), job) for _ in range(2)
    )
    assert looked == ["none"] and first == again and first["failure"]["code"] == "E_NOAUDIO"


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """28 clips a split; of every seventh one input lacks, of the last two only words are there."""
    folder = write_features(tmp_path_factory.mktemp("partial") / "features", 4)
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    missing = []
    for row in table.itertuples():
        index = int(row.clip_id) % 28
        names = {0: ["speech"], 3: ["video"], 6: ["text"]}.get(index % 7, [])
        names = ["speech", "video"] if index >= 26 else names
        missing.append(" ".join(names))
        for name in names:
            ending = "npz" if name == "text" else "npy"
            (folder / row.split / name / f"{row.clip_id}.{ending}").unlink()
    table.assign(missing=missing).to_csv(folder / "manifest.csv", index=False)
    return folder


def test_a_mode_learns_from_the_clips_that_have_its_input(features, tmp_path, capfd):
    run = make_run(features, tmp_path, "speech")
    said = capfd.readouterr().err
    assert "6 of 28 clips lack speech: left out" in said
    assert len(run.train_loader.dataset) == len(run.val_loader.dataset) == 22
    assert not run.train_loader.dataset.is_partial


def test_a_fusion_without_modality_dropout_needs_all(features, tmp_path, capfd):
    run = make_run(features, tmp_path, "multimodal")
    whole = sum(
        not row["missing"] for row in Features.open(features).rows("train").to_dict("records")
    )
    assert len(run.train_loader.dataset) == whole < 28
    assert "--modality_dropout 0.3 training learns from what they have" in capfd.readouterr().err


def test_heads_learn_from_the_clips_that_have_their_inputs(features):
    clips = dataset(Features.open(features), "multimodal")
    assert clips.is_partial
    for index, row in enumerate(clips.rows):
        item = clips[0, index]
        for name in ("speech", "face"):
            known = item["labels"][name] >= 0
            assert known == (not lacks(row, name)) == (not item["absent"][name])
        assert item["labels"]["integrated"] >= 0
    batch = next(iter(make_loader(clips)))
    assert set(batch["absent"]) == {"speech", "face", "text"}


def make_loader(clips):
    return data.make_loader(clips, 8, 0, "cpu")


def test_no_head_looks_at_what_stands_in(features, tmp_path):
    """The logits of clips without an input do not depend on whose input stands in its place."""
    run = make_run(features, tmp_path, "multimodal", modality_dropout=0.3)
    model = run.model.eval()
    torch.nn.init.normal_(model.missing["speech"])
    batch = next(iter(make_loader(dataset(run.features, "multimodal", "val"))))
    inputs, absent = data.to_device(batch["inputs"], "cpu"), batch["absent"]
    lacking = absent["speech"]
    assert lacking.any() and not lacking.all()
    with torch.no_grad():
        first = model.classify(model.encode(inputs, absent)).logits["integrated"]
        log_mel, *masks = inputs["speech"]
        inputs["speech"] = (1 - log_mel, *masks)
        second = model.classify(model.encode(inputs, absent)).logits["integrated"]
    torch.testing.assert_close(first[lacking], second[lacking], rtol=0, atol=1e-7)
    assert (first[~lacking] - second[~lacking]).abs().max() > 1e-5


def test_something_always_stays(features, tmp_path):
    run = make_run(features, tmp_path, "multimodal", modality_dropout=0.9)
    absent = {
        "speech": torch.tensor([True, False, True]),
        "face": torch.tensor([True, True, False]),
        "text": torch.tensor([False, False, True]),
    }
    batch = {"clip_id": ["a", "b", "c"], "absent": absent}
    for step in range(30):
        run.step = step
        for partners in (None, torch.tensor([1, 2, 0])):
            out = run.left_out(batch, partners)
            assert not torch.stack([*out.values()]).all(dim=0).any(), "a clip with nothing"
            for name, lacking in absent.items():
                assert (out[name] | ~lacking).all(), "an input that is not there"


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_training_with_modality_dropout_uses_every_clip(features, tmp_path, mixup):
    run = make_run(
        features, tmp_path, "multimodal", modality_dropout=0.3, n_epoch=2, mixup_prob=mixup
    )
    best = fit(run, NoRecord(), NoStop())
    assert best["clips"] == 28 and np.isfinite(best["loss"])
    assert all(np.isfinite(row["train_loss"]) for row in run.rows)


class NoStop:
    signum = 0

    def requested(self) -> bool:
        return False


def test_every_tool_says_over_how_many_clips(features, tmp_path):
    """Train, evaluate beside a run of speech alone, submit."""
    logs, report = tmp_path / "logs", tmp_path / "report"
    places = ("--features_dir", features, "--logs_dir", logs)
    done = run_main(
        *("train", "--mode", "multimodal", "--exp_name", "a", *places, *TINY),
        *("--modality_dropout", 0.3),
    )
    assert done.code == 0, done.err
    assert "28 training clips" in done.out and "6 without speech" in done.out
    assert "over 28 validation clips" in done.out
    fused, speech = logs / "multimodal" / "a", tmp_path / "speech.pth"
    save_untrained(speech, features, "speech")
    more = ("--features_dir", features, "--num_workers", 0)
    done = run_main("evaluate", "--checkpoints", fused, *more, "--out", report)
    assert done.code == 0 and done.out.startswith("28 clips of val"), done.out + done.err
    done = run_main(
        *("evaluate", "--checkpoints", fused, speech, *more, "--out", report),
        "--allow_training_clips",
    )
    assert done.code == 0 and done.out.startswith("22 clips of val"), done.out + done.err
    metrics = json.loads((report / "metrics.json").read_text())
    notes = " ".join(note for each in metrics["systems"] for note in each["warnings"])
    assert "6 clips without speech are left out" in notes
    assert "6 clips that another run cannot read are left out" in notes
    submit = ("make_submission", *more, "--out", tmp_path, "--face_frames", 2, "--tta", 1)
    done = run_main(*submit, "--checkpoints", fused, speech)
    assert done.code == 0, done.err
    answers = (tmp_path / "test1_submission.csv").read_text().splitlines()
    assert len(answers) == 29 and {line.split(",")[1] for line in answers[1:]} <= {*CLASSES}
    done = run_main(*submit, "--checkpoints", speech)
    assert done.code == 4 and "6 of 28 clips have no features" in done.err
    done = run_main(*submit, "--checkpoints", speech, "--missing", "neu")
    assert done.code == 0 and "6 of them filled with neu" in done.out


def relabelled(folder: Path, missing: Callable[[pd.DataFrame], np.ndarray]) -> Path:
    """Whole features, of which the manifest says that something is missing."""
    write_features(folder, 2)
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table["missing"] = missing(table)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder


def test_an_input_that_no_clip_of_a_split_has(tmp_path):
    """Models with modality dropout answer from the others, in every tool."""
    folder = relabelled(
        tmp_path / "features", lambda table: np.where(table["split"] == "train", "", "text")
    )
    save_untrained(tmp_path / "m.pth", folder, modality_dropout=0.3)
    place = ("--checkpoints", tmp_path / "m.pth", "--features_dir", folder, "--num_workers", 0)
    out = tmp_path / "report"
    flags = ("--allow_training_clips", "--robustness", "--out", out)
    run = run_main("evaluate", *place, *flags)
    assert run.code == 0, run.err
    (system,) = json.loads((out / "metrics.json").read_text())["systems"]
    clips = {each["level"]: each["clips"] for each in system["conditions"]}
    assert clips["text"] == 0 and clips["all"] == clips["speech+text"] == clips["speech"]
    run = run_main("make_submission", *place, "--tta", 1, "--out", tmp_path)
    assert run.code == 0, run.err


def test_words_alone_are_judged_where_there_are_words(tmp_path):
    """The learnt token gives all clips without words one answer, which says nothing of words."""
    folder = relabelled(
        tmp_path / "features", lambda table: np.where(np.arange(len(table)) % 2, "text", "")
    )
    save_untrained(tmp_path / "m.pth", folder, modality_dropout=0.3)
    place = ("--checkpoints", tmp_path / "m.pth", "--features_dir", folder, "--num_workers", 0)
    run = run_main("evaluate", *place, "--allow_training_clips", "--out", tmp_path / "report")
    assert run.code == 0, run.err
    (system,) = json.loads((tmp_path / "report" / "metrics.json").read_text())["systems"]
    clips = {each["level"]: each["clips"] for each in system["conditions"]}
    assert (clips["all"], clips["text"], clips["speech+text"]) == (14, 7, 14)
    assert "<small>7 clips</small>" in (tmp_path / "report" / "index.html").read_text()


def test_an_exported_model_passes_over_clips_that_lack_an_input(features, monkeypatch):
    """Of 28 clips every seventh lacks an input, and the last two have words alone."""

    class InferenceSession:
        def __init__(self, model):
            self.about = {"classes": CLASSES, "inputs": ["speech", "face"], "standardize": "none"}

        def get_modelmeta(self):
            about = {name: json.dumps(value) for name, value in self.about.items()}
            return SimpleNamespace(custom_metadata_map=about)

        def get_inputs(self):
            return []

        def run(self, names, arrays):
            return [np.full((1, len(CLASSES)), 1 / len(CLASSES))]

    stub = ModuleType("onnxruntime")
    stub.InferenceSession = InferenceSession
    monkeypatch.setitem(sys.modules, "onnxruntime", stub)
    monkeypatch.delitem(sys.modules, "examples.onnx_predict", raising=False)
    monkeypatch.setattr("examples.onnx_predict.feed", lambda *args: {})
    done = run_main("examples.onnx_predict", "m.onnx", features, "val")
    opened = Features.open(features)
    rows = opened.rows("val")
    whole = opened.having(rows, ("speech", "face"), some=False)["clip_id"].tolist()
    assert done.code == 0 and 0 < len(whole) < len(rows), done.err
    assert [line.split()[0] for line in done.out.splitlines()] == whole
    lacking = len(rows) - len(whole)
    assert f"{lacking} of {len(rows)} clips lack an input of the model" in done.err
    del sys.modules["examples.onnx_predict"]  # what it imported is no onnxruntime
