"""evaluate.py: whose clips are scored, what the report says, certificates."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, write_features
from inside import run_main

from evaluate import print_table
from evaluation import report
from evaluation.certificate import compare
from evaluation.corruptions import add_noise, blur, corrupt, drop_words
from evaluation.ensemble import load_members, make_dataset
from evaluation.runs import Options, evaluate_runs, smaller_sets
from models import build_model
from training.checkpoint import load_checkpoint, save_checkpoint
from training.data import make_loader, training_rows
from training.features import Features
from training.fingerprint import fingerprints
from training.inference import Given, encode, infer
from training.tasks import TASKS, model_arch, recipe
from utils.files import write_bytes

SMALL = {"speech_backbone": "small-32", "face_backbone": "small-16"}
SMALL |= {"text_layers": 1, "speech_frames": 48, "face_frames": 2, "fold": None, "val_fold": None}
SHAPES = {"speech": (128, None), "face": (None, 32, 32, 3), "text": (None, 16)}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), 1)


def save_member(path, features, seed: int = 0, mode: str = "text", **config):
    """A checkpoint whose answers differ from clip to clip, without any training."""
    opened, task = Features.open(features), TASKS[mode]
    config = recipe(mode) | SMALL | {"mode": mode, "seed": seed} | config
    torch.manual_seed(seed)
    arch = model_arch(task, config, len(CLASSES), SHAPES)
    model = build_model(**arch)
    with torch.no_grad():
        model.heads[task.main_head].linear.weight *= 30
        for token in model.missing.values():
            token.normal_()
    checkpoint = {"arch": arch, "weights": model.state_dict(), "classes": opened.classes}
    checkpoint |= {"features_config": opened.config_for(task.inputs), "config": config}
    rows = training_rows(opened, config["fold"], config["val_fold"])
    seen = [torch.from_numpy(fingerprints(opened, each.to_dict("records"))) for each in rows]
    checkpoint["clips"] = dict(zip(("training", "validation"), seen, strict=True))
    save_checkpoint(path, checkpoint | {"epoch": 1, "val": {"accuracy": 0.5, "loss": 1.0}})
    return path


@pytest.fixture(scope="module")
def members(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    return [save_member(folder / f"{seed}.pth", features, seed) for seed in (1, 2, 3)]


@pytest.fixture
def evaluate(features, members, tmp_path, monkeypatch):
    def run(*args, checkpoints=members[:1], features=features, pictures=False):
        monkeypatch.setattr(report, "draw", DRAW if pictures else write_dots)
        places = ["--features_dir", features, "--out", tmp_path / "out", "--num_workers", 0]
        given = ["--checkpoints", *checkpoints] if checkpoints else []
        found = run_main("evaluate", *places, *given, *args)
        metrics = tmp_path / "out" / "metrics.json"
        found.report = json.loads(metrics.read_text()) if metrics.is_file() else None
        return found

    return run


DRAW, png = report.draw, report.training_png


def write_dots(folder, main, classes):
    """In place of the pictures, which take most of the time."""
    for name in ("confusion", "classes", "calibration"):
        write_bytes(folder / f"{name}.png", b"dot")


def logits_by_hand(path, features, names=None, head=None) -> tuple[pd.DataFrame, torch.Tensor]:
    """The rows of val and the logits (N, K) of a checkpoint's head, else of the one that decides,
    from the inputs `names` alone."""
    opened = Features.open(features)
    (member,) = load_members([path], opened)
    rows = opened.rows("val")
    loader = make_loader(make_dataset(member, rows, opened), 8, 0, "cpu")

    def read(given: Given) -> torch.Tensor:
        tokens = encode(member.model, given)
        tokens = {name: tokens[name] for name in names or member.task.inputs}
        return member.model.classify(tokens).logits[head or member.task.main_head]

    return rows, torch.cat(
        [each for _, each in infer([member.model], loader, "cpu", read)]
    ).double()


def answers(tmp_path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "out" / "predictions.csv", dtype={"clip_id": str, "fold": str})


def test_one_run_from_the_front_door(evaluate, features, members, tmp_path):
    run = evaluate(pictures=True)
    assert run.code == 0, run.err
    table = answers(tmp_path)
    rows, logits = logits_by_hand(members[0], features)
    assert table["clip_id"].tolist() == rows["clip_id"].tolist()
    given = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(given, logits.softmax(1).numpy(), atol=2e-6)
    assert table["answer"].tolist() == [CLASSES[k] for k in logits.argmax(1)]
    assert table["truth"].tolist() == rows["emotion"].tolist()
    right = (table["truth"] == table["answer"]).mean()
    (scored,) = run.report["systems"]
    assert scored["measures"]["accuracy"] == pytest.approx(right) and f"{right:.4f} [" in run.out
    assert scored["unit"] == "speakers" and scored["groups"] == 4
    assert np.sum(scored["confusion"]) == 7 and np.trace(scored["confusion"]) == 7 * right
    assert scored["with_face"]["clips"] == 7
    assert run.report["checkpoints"][0]["sha256"][:12] and set(run.report["features"]) == {
        "train",
        "val",
    }
    assert "chose its epoch by the loss on these clips" in run.out
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert {"index.html", "metrics.json", "confusion.png", "classes.png"} <= set(first)
    assert evaluate(pictures=True).code == 0
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_a_manifest_without_speakers_is_evaluated_over_clips(evaluate, features, tmp_path):
    copy = shutil.copytree(features, tmp_path / "features")
    table = pd.read_csv(copy / "manifest.csv", dtype=str, keep_default_na=False)
    table.drop(columns="speaker").to_csv(copy / "manifest.csv", index=False)
    run = evaluate(features=copy)
    assert run.code == 0, run.err
    assert run.report["systems"][0]["unit"] == "clips"


def test_the_page_needs_nothing_else(evaluate, tmp_path):
    assert evaluate(pictures=True).code == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!["']?data:)|@import|url\(|<script""", page)
    assert page.count("data:image/png;base64,") == 3 and "undefined" not in page.lower()
    assert "{{" not in page and "{%" not in page and '<html lang="en">' in page


def test_names_from_outside_stay_text(evaluate, features, members, tmp_path):
    folder = tmp_path / "<script>alert(1)"
    folder.mkdir()
    shutil.copy(members[0], folder / "x.pth")
    assert evaluate(checkpoints=[folder / "x.pth"]).code == 0
    assert "<script>" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("flags", "clips", "row"),
    [("", 0, False), ("0", 0, False), ("1", 7, False), ("mixed", 5, True)],
)
def test_clips_with_a_face(evaluate, features, tmp_path, flags, clips, row):
    valid = ["00", "010", *["1"] * 4, "0"] * 3 if flags == "mixed" else flags
    folder = relabelled(features, tmp_path, face_valid=valid)
    run = evaluate(features=folder)
    assert run.code == 0, run.err
    table, found = answers(tmp_path), run.report["systems"][0]["with_face"]
    assert found["clips"] == clips
    if row:
        seen = table[1:6]
        right = (seen["truth"] == seen["answer"]).mean()
        assert found["measures"]["accuracy"] == pytest.approx(right)
    page = (tmp_path / "out" / "index.html").read_text()
    assert ("clips with a face" in page) == row


def test_several_runs_and_their_ensemble(evaluate, members, tmp_path):
    run = evaluate("--split", "val", checkpoints=members)
    assert run.code == 0, run.err
    names, table = [each["name"] for each in run.report["systems"][:-1]], answers(tmp_path)
    columns = [f"p_{name}" for name in CLASSES]
    each = [table[table["run"] == name][columns].to_numpy() for name in names]
    together = table[table["run"] == "ensemble of 3"][columns].to_numpy()
    np.testing.assert_allclose(together, np.mean(each, axis=0), atol=2e-6)
    accuracies = [each["measures"]["accuracy"] for each in run.report["systems"][:-1]]
    assert run.report["systems"][-1]["parts"]["accuracy"] == pytest.approx(
        {"mean": np.mean(accuracies), "deviation": np.std(accuracies, ddof=1)}
    )
    pairs = run.report["paired"]
    assert len(pairs) == 3 and "mean ± deviation of 3 runs" in run.out
    assert {each[key] for each in pairs for key in ("first", "second")} == set(names)
    assert pairs[0]["accuracy"]["difference"] == pytest.approx(accuracies[1] - accuracies[0])
    page = (tmp_path / "out" / "index.html").read_text()
    for text in (run.out, page):
        assert "oo few speakers for a p: 4, at least 6" in text
    assert {each[key]["p"] for each in pairs for key in ("accuracy", "uar")} == {None}


def test_the_clips_of_one_person_give_no_p(evaluate, features, members, tmp_path):
    folder = relabelled(features, tmp_path, speaker="anna")
    run = evaluate(checkpoints=members, features=folder)
    assert run.code == 0, run.err
    page = (tmp_path / "out" / "index.html").read_text()
    for text in (run.out, page):
        assert "too few speakers for a p: 1, at least 6" in text
        assert "fewer than two speakers are known" in text and "are not known" not in text


def test_without_speakers_the_report_says_so(evaluate, features, members, tmp_path):
    folder = relabelled(features, tmp_path, speaker="")
    run = evaluate(checkpoints=members, features=folder)
    assert run.code == 0, run.err
    (tested, *_), page = run.report["paired"], (tmp_path / "out" / "index.html").read_text()
    assert tested["unit"] == "clips" and tested["accuracy"]["p"] <= tested["accuracy"]["p_holm"]
    assert "over 7 clips: too narrow for new people" in run.out
    assert "fewer than two speakers are known, so for new people they are too narrow" in page
    assert "each clip&#39;s was fitted on other clips (cross-fitting)" in page
    for text in (run.out, page):
        assert "sign-flip test over 7 clips, corrected (Holm) for 3 comparisons" in text
    calibrated = run.report["systems"][-1]["calibration"]["before"]
    assert f"{calibrated['ece']:.4f} ({calibrated['ece_if_calibrated']:.3f})" in run.out
    assert f">below {calibrated['ece_if_calibrated_high']:.3f}<" in page


def test_clips_of_the_training_are_refused_or_stamped(evaluate, members, tmp_path):
    run = evaluate("--split", "train")
    assert run.code == 4 and "trained on 7 of these 7 clips" in run.err and not run.report
    run = evaluate("--split", "train", "--allow_training_clips")
    assert run.code == 0 and "note: TRAINED ON 7" in run.out
    assert "TRAINED ON 7" in (tmp_path / "out" / "index.html").read_text()
    assert run.report["systems"][0]["warnings"][0].startswith("TRAINED ON 7")


def test_each_fold_answers_the_clips_that_it_held_out(evaluate, features, tmp_path):
    folds = [
        save_member(tmp_path / "x" / f"fold_{k}" / "1_best_1.0000.pth", features, k, fold=str(k))
        for k in (0, 1)
    ]
    run = evaluate(checkpoints=[tmp_path / "x"])
    assert run.code == 0, run.err
    pooled = answers(tmp_path)
    assert run.report["systems"][0]["name"] == str(tmp_path / "x")
    assert len(pooled) == 14 and set(pooled["split"]) == {"train", "val"}
    accuracies = []
    for k, path in enumerate(folds):
        alone = evaluate(checkpoints=[path.parent])
        assert alone.code == 0 and f"held-out folds {k} (of 2)" in alone.out
        assert alone.report["systems"][0]["name"] == str(path.parent)
        accuracies.append(alone.report["systems"][0]["measures"]["accuracy"])
        mine, columns = answers(tmp_path), ["clip_id", "p_hap", "answer"]
        assert set(mine["fold"]) == {str(k)}
        same = pooled[pooled["fold"] == str(k)][columns].to_numpy().tolist()
        assert mine[columns].to_numpy().tolist() == same
    parts = run.report["systems"][0]["parts"]
    assert parts["count"] == 2 and parts["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert "mean ± deviation of 2 folds" in run.out
    for k in (0, 1):
        save_member(
            tmp_path / "z" / f"fold_{k}" / "1_best_1.0000.pth", features, 5 + k, fold=str(k)
        )
    run = evaluate(checkpoints=[tmp_path / "x", tmp_path / "z"])  # the ensemble has a line, too
    lines = [
        line for line in run.out.splitlines() if re.search("± deviation of 2 (folds|runs)", line)
    ]
    spread = [line for line in lines if "of 2 runs" in line]
    means = [each["parts"]["accuracy"]["mean"] for each in run.report["systems"]]
    assert [float(line.split()[6]) for line in lines[:3]] == pytest.approx(means, abs=1e-4)
    assert spread == [lines[2]]
    together = answers(tmp_path)  # beside the spread over its runs, that over its folds
    together = together[together["run"] == "ensemble of 2"]
    by_fold = (together["truth"] == together["answer"]).groupby(together["fold"]).mean()
    found = run.report["systems"][-1]["folds"]["accuracy"]
    assert found == pytest.approx({"mean": by_fold.mean(), "deviation": by_fold.std()})
    assert "of 2 folds" in lines[3] and len(lines) == 4
    assert "mean ± deviation over its 2 folds" in (tmp_path / "out" / "index.html").read_text()
    assert evaluate("--split", "val", checkpoints=folds).code == 4, "the other fold's clips"
    run = evaluate(checkpoints=[folds[0], save_member(tmp_path / "y.pth", features, 9)])
    assert run.code == 4 and "different clips" in run.err


def relabelled(features, tmp_path, **columns):
    """A copy of the features whose manifest has other values: {column: function of the rows}."""
    folder = shutil.copytree(features, tmp_path / "features")
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table = table.assign(**columns)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder


def test_test_clips_are_tempered_by_validation_clips(evaluate, features, members, tmp_path):
    run = evaluate("--split", "test")
    assert run.code == 2 and "none of 7" in run.err
    kinds = [*CLASSES] * 3
    kinds[-1] = ""
    labelled = relabelled(features, tmp_path, emotion=kinds)
    run = evaluate("--split", "test", features=labelled)
    assert run.code == 0, run.err
    (scored,) = run.report["systems"]
    assert "fitted on 7 validation clips" in scored["calibration"]["how"]
    assert scored["clips"] == 6 and "1 clip without emotion is left out" in run.out
    assert "chose its epoch" not in run.out


def test_speech_and_fused_runs_are_compared_where_their_labels_agree(evaluate, features, tmp_path):
    speech = save_member(tmp_path / "speech.pth", features, mode="speech")
    text = save_member(tmp_path / "text.pth", features)
    run = evaluate(checkpoints=[speech, text])
    assert run.code == 0 and len(run.report["paired"]) == 1
    voices = [CLASSES[0], *CLASSES[1:]] * 2 + [""] * 7
    voices[7] = CLASSES[3]
    other = relabelled(features, tmp_path, speech_emotion=voices)
    run = evaluate(checkpoints=[speech, text], features=other)
    assert run.code == 4 and "speech_emotion and emotion, which differ in 1" in run.err
    run = evaluate("--label", "emotion", checkpoints=[speech, text], features=other)
    assert run.code == 0 and len(run.report["paired"]) == 1, run.err
    table = answers(tmp_path)
    truth = Features.open(other).rows("val").set_index("clip_id")["emotion"]
    assert (table["truth"] == table["clip_id"].map(truth)).all() and len(table) == 3 * 7
    voice, *_ = run.report["systems"]
    right = (table["truth"] == table["answer"])[table["run"] == voice["name"]].mean()
    assert voice["label"] == "emotion" and voice["measures"]["accuracy"] == pytest.approx(right)
    assert voice["conditions"][0]["own"]["label"] == "speech_emotion"
    said = f"{voice['name']} learnt speech_emotion and is judged by emotion here"
    assert said in run.out
    run = evaluate("--label", "emotional", checkpoints=[text], features=other)
    assert run.code == 2 and "no column 'emotional'" in run.err
    run = evaluate("--label", "emotion", "--certificate", tmp_path / "c.json", checkpoints=[text])
    assert run.code == 2 and "leave out --label" in run.err


def test_a_run_may_read_more_of_each_clip_than_in_its_training(evaluate, features, tmp_path):
    found = []
    for trained, *flags in ((1,), (1, "--setting", "max_words=9"), (9,)):
        path = save_member(tmp_path / f"{trained}" / "a.pth", features, max_words=trained)
        run = evaluate(*flags, checkpoints=[path])
        assert run.code == 0, run.err
        found.append(answers(tmp_path).filter(regex="^p_").to_numpy())
    as_trained, more, own = found
    np.testing.assert_allclose(more, own, atol=2e-6)
    assert np.abs(more - as_trained).max() > 0.01
    for given, says in {
        "words=3": "unknown --setting 'words': expected one of speech_frames",
        "max_words": "--setting max_words: invalid literal",
        "max_words=0": "0: expected a number, 1 to 10000",
    }.items():
        run = evaluate("--setting", given, checkpoints=[path])
        assert run.code == 2 and says in run.err, run.err
    run = evaluate("--setting", "max_words=9", "--certificate", tmp_path / "c.json")
    assert run.code == 2 and "leave out --setting" in run.err


def test_the_curves_of_all_runs_are_on_the_page(evaluate, features, tmp_path, monkeypatch):
    lines = "epoch,train_loss,train_accuracy,val_loss,val_accuracy\n1,2,0.1,,\n2,1,0.4,1,0.5\n"
    paths = [tmp_path / "logs" / "text" / name for name in ("a", "b/fold_0", "b/fold_1")]
    for seed, path in enumerate(paths):
        path.mkdir(parents=True)
        save_member(path / "2_best_1.0.pth", features, seed)
        (path / "metrics.csv").write_text(lines)
    checkpoints = [{"path": path / "2_best_1.0.pth"} for path in paths]
    found = report.trainings([*checkpoints, {"path": tmp_path / "alone.pth"}])
    assert {name: len(parts) for name, parts in found.items()} == {"text/a": 1, "text/b": 2}
    first, second = found["text/a"][0]
    assert first["val_loss"] is None and second["val_accuracy"] == 0.5 and second["epoch"] == 2
    drawn = []
    monkeypatch.setattr(report, "training_png", lambda *args: drawn.append(args) or png(*args))
    run = evaluate(checkpoints=[paths[0], *paths[1:]])
    assert run.code == 0, run.err
    assert [set(runs) for runs, *_ in drawn] == 4 * [{"text/a", "text/b"}]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('alt="loss or accuracy by epoch"') == 3 and "How they were trained" in page
    assert (tmp_path / "out" / "trainings.png").read_bytes().startswith(b"\x89PNG")
    assert evaluate().code == 0, "a file alone, which no run is known of"
    assert not (tmp_path / "out" / "trainings.png").exists()
    assert "trained</h2>" not in (tmp_path / "out" / "index.html").read_text()


def test_what_refuses_runs_is_asked_before_anything_is_computed(
    evaluate, features, members, tmp_path, monkeypatch
):
    """And each checkpoint is read once."""
    import evaluation.ensemble
    import evaluation.runs

    read, computed = [], []
    monkeypatch.setattr(
        evaluation.ensemble,
        "load_checkpoint",
        lambda path: read.append(path) or load_checkpoint(path),
    )
    monkeypatch.setattr(evaluation.runs, "infer", lambda *args, **kwargs: computed.append(args))
    voices = [CLASSES[0], *CLASSES[1:]] * 2 + [""] * 7
    voices[7] = CLASSES[3]
    other = relabelled(features, tmp_path, speech_emotion=voices)
    speech = save_member(tmp_path / "speech.pth", features, mode="speech")
    run = evaluate(checkpoints=[members[0], speech], features=other)
    assert run.code == 4 and "differ in 1" in run.err
    fold = save_member(tmp_path / "fold.pth", features, 5, fold="0")
    run = evaluate(checkpoints=[members[0], fold])
    assert run.code == 4 and "different clips" in run.err
    run = evaluate("--split", "train", checkpoints=[fold, members[0]])
    assert run.code == 4 and "trained on 7" in run.err
    assert read == [members[0], speech, members[0], fold, fold, members[0]] and not computed


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_subsets_and_harms_of_a_fused_run(evaluate, features, tmp_path, dropout):
    path = save_member(tmp_path / "m.pth", features, mode="multimodal", modality_dropout=dropout)
    run = evaluate(*["--robustness"][: dropout > 0], checkpoints=[path], pictures=True)
    assert run.code == 0, run.err
    found = {(e["input"], e["level"]): e for e in run.report["systems"][0]["conditions"]}
    heads = {key: each.get("head") for (kind, key), each in found.items() if kind == "inputs"}
    if not dropout:
        absent = dict.fromkeys(["text", "speech+face", "speech+text", "face+text"])
        own = {"all": "integrated", "speech": "speech", "face": "face"}
        assert heads == absent | own and len(found) == 7
        page = (tmp_path / "out" / "index.html").read_text()
        assert page.count(">no prediction<") == 4
        assert 'without <span class="whole">--modality_dropout</span>' in page  # on one line
        assert not (tmp_path / "out" / "robustness.png").exists()
        return
    assert len(heads) == 7 and set(heads.values()) == {"integrated"}
    rows, alone = logits_by_hand(path, features, ["text"])
    expected = np.mean(rows["emotion"].to_numpy() == np.array(CLASSES)[alone.argmax(1)])
    assert found["inputs", "text"]["measures"]["accuracy"] == pytest.approx(expected)
    assert {kind for kind, _ in found} == {"inputs", "speech", "face", "text"} and len(found) == 23
    assert (tmp_path / "out" / "robustness.png").is_file()
    assert evaluate().code == 0
    assert not (tmp_path / "out" / "robustness.png").exists(), "a picture of another run"


def test_noise_is_what_noise_in_the_sound_would_have_been():
    from extract import audio

    rng, time = np.random.default_rng(0), np.arange(32_000) / 16_000
    pitch = 2 * np.pi * np.cumsum(150 + 30 * np.sin(6 * time)) / 16_000
    wave = sum(np.sin(k * pitch) / k for k in range(1, 30)) * (0.2 + np.sin(9 * time) ** 2)
    clean = audio.log_mel_spectrogram(wave.astype("f4"))
    for snr in (20, 0):
        level = np.sqrt(np.mean(wave**2) / 10 ** (snr / 10))
        real, again = (
            audio.log_mel_spectrogram((wave + level * rng.normal(size=len(wave))).astype("f4"))
            for _ in range(2)
        )
        ours = add_noise(clean, snr, rng, audio.SPEECH_SETTINGS)
        apart = 80 * np.abs(real - again).mean()  # dB between two draws of real noise
        assert abs(80 * (ours - real).mean()) < 0.5, "dB, mean over all cells"
        assert 80 * np.abs(ours - real).mean() < 1.15 * apart < 80 * np.abs(clean - real).mean()
        assert ours.shape == clean.shape and ours.max() == 1 and ours.min() >= 0


def test_blur_and_lost_words(features):
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    soft, softer = (blur(crops, sigma, rng, {}) for sigma in (2, 8))
    assert soft.shape == crops.shape and soft.dtype == np.uint8
    assert crops.std() > soft.std() > softer.std() and abs(softer.mean() - crops.mean()) < 2
    words = np.arange(4000, dtype="f4").reshape(1000, 4)
    kept = drop_words(words, 25, rng, {})
    assert 700 < len(kept) < 800 and (np.diff(kept[:, 0]) > 0).all()
    assert all(len(drop_words(words[:2], 100, rng, {})) == 1 for _ in range(20))
    opened = Features.open(features)
    worse = corrupt(opened, "text", 50)
    row = opened.rows("val").to_dict("records")[0]
    assert np.array_equal(worse.load(row, "text"), worse.load(row, "text"))
    assert len(worse.load(row, "text")) < len(opened.load(row, "text"))
    assert np.array_equal(worse.load(row, "speech"), opened.load(row, "speech"))


@pytest.fixture(scope="module")
def seeds(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return [save_member(folder / f"{seed}.pth", features, seed) for seed in range(1, 6)]


@pytest.fixture
def published(evaluate, seeds, tmp_path):
    path = tmp_path / "results" / "x.json"
    run = evaluate("--certificate", path, checkpoints=seeds)
    assert run.code == 0, run.err
    return path


def test_certificates_that_hold(evaluate, published, seeds, tmp_path):
    run = evaluate("--certify", published, checkpoints=None)
    assert run.code == 0 and f"{published}: PASS, the same to 1e-6" in run.out, run.out
    assert "PASS" in (tmp_path / "out" / "index.html").read_text()
    assert run.report["certified"][0].startswith("PASS")
    known, recalls = json.loads(published.read_text()), []
    assert known["measure"] == "uar" and known["runs"] == 5 and known["seeds"] == [1, 2, 3, 4, 5]
    for seed in seeds:
        run = evaluate("--certify", published, checkpoints=[seed])
        assert "checkpoints: other ones than the published" in run.out
        recalls.append(run.report["systems"][0]["measures"]["uar"])
        inside = abs(recalls[-1] - known["mean"]) <= known["band"]
        assert ("PASS\n" in run.out) == inside and run.code == (0 if inside else 4)
    assert known["mean"] == pytest.approx(np.mean(recalls))
    assert known["deviation"] == pytest.approx(np.std(recalls, ddof=1))


def test_a_certificate_is_about_the_declared_measure(evaluate, seeds, tmp_path):
    path = tmp_path / "x.json"
    run = evaluate("--certificate", path, "--certificate_measure", "accuracy", checkpoints=seeds)
    assert run.code == 0, run.err
    known = json.loads(path.read_text())
    mean = np.mean([each["accuracy"] for name, each in known["systems"].items() if "/" in name])
    assert known["measure"] == "accuracy" and known["mean"] == pytest.approx(mean)
    run = evaluate("--certify", path, checkpoints=seeds)
    assert run.code == 0 and f"accuracy: {mean:.4f} ± {known['band']:.4f} published" in run.out


def test_certificates_ask_for_five_seeds_of_one_recipe(evaluate, features, seeds, tmp_path):
    path = tmp_path / "x.json"
    run = evaluate("--certificate", path, checkpoints=seeds[:4])
    assert run.code == 2 and "at least 5 seeds, here are 4" in run.err and not path.exists()
    faster = save_member(tmp_path / "fast.pth", features, 6, learning_rate=0.5)
    run = evaluate("--certificate", path, checkpoints=[*seeds, faster])
    assert run.code == 2 and "learning_rate is 0.0003 and 0.5 here" in run.err
    speech = save_member(tmp_path / "b.pth", features, 7, mode="speech")
    run = evaluate("--certificate", path, checkpoints=[*seeds, speech])
    assert run.code == 2 and "one recipe" in run.err and not path.exists()


def test_certificates_that_do_not_hold(evaluate, published, features, seeds, tmp_path):
    known = json.loads(published.read_text())
    off = tmp_path / "off.json"
    off.write_text(json.dumps(known | {"mean": known["mean"] + 0.1, "band": 0.05}))
    run = evaluate("--certify", off, checkpoints=seeds)
    assert run.code == 4 and "OUTSIDE THE SEED SPREAD" in run.out
    other = shutil.copytree(features, tmp_path / "other")
    word_file = next((other / "val" / "text").glob("*.npz"))
    with np.load(word_file) as archive:
        words = archive["word_embed"]
    np.savez(word_file, word_embed=words + np.float32(1e-7))
    run = evaluate("--certify", published, checkpoints=seeds, features=other)
    assert run.code == 4 and "INPUT DIFFERS" in run.out and "features of split val" in run.out
    slower = save_member(tmp_path / "slow.pth", features, 1, learning_rate=0.5)
    run = evaluate("--certify", published, checkpoints=[slower])
    assert run.code == 4 and "learning_rate: 0.0003 published, 0.5 here" in run.out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("band", value) for value in (np.nan, np.inf, "x", None, 0, -0.1, True)),
        *(("mean", value) for value in (None, np.nan, 75.3)),
        *(("measure", value) for value in ("macro_f1", ["uar"])),
        *(("given", value) for value in ([], [1], "logs")),
        ("split", 5),
        ("split", "a\0b"),
        ("features_dir", "a\0b"),
        ("features_dir", "\ud800"),
        ("features", {"val": None}),
        ("checkpoints", {"x.pth": None}),
        ("clips", []),
    ],
)
def test_damaged_certificates_are_refused_by_name(evaluate, tmp_path, name, value):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(CERTIFICATE | {name: value}))
    run = evaluate("--certify", path)
    assert run.code == 4 and f"{path} is damaged: {name} is" in run.err, run.err


def test_other_files_are_no_certificates(evaluate, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({k: v for k, v in CERTIFICATE.items() if k != "band"}))
    run = evaluate("--certify", path)
    assert run.code == 2 and "no certificate of evaluate.py: it lacks band" in run.err
    path.write_text(json.dumps(CERTIFICATE | {"measures": {"uar": {"mean": 0.5, "band": 0.1}}}))
    run = evaluate("--certify", path)
    assert run.code == 2 and "earlier version" in run.err and "--certificate with 5" in run.err


def test_a_certificate_over_folds_is_repeated_from_its_own_paths(evaluate, features, tmp_path):
    runs = [tmp_path / f"run{number}" for number in range(5)]
    for number, run in enumerate(runs):
        for k in (0, 1):
            path = run / f"fold_{k}" / "1_best_1.0000.pth"
            save_member(path, features, 10 * number + k, fold=str(k))
    certificate = tmp_path / "x.json"
    run = evaluate("--certificate", certificate, checkpoints=runs)
    assert run.code == 0, run.err
    assert json.loads(certificate.read_text())["clips"]["count"] == 14
    run = evaluate("--certify", certificate, checkpoints=None)
    assert run.code == 0 and "PASS, the same" in run.out, run.err


CERTIFICATE = {
    "given": ["logs/x"],
    "split": "val",
    "features_dir": "features",
    "checkpoints": {"a": "1"},
    "classes": ["x", "y"],
    "clips": {"count": 2, "digest": "d"},
    "features": {"val": "f"},
    "recipe": {"optim": "sgd"},
    "measure": "uar",
    "mean": 0.5,
    "band": 0.1,
}


def test_verdicts_of_inputs():
    then = CERTIFICATE
    assert compare(then, then)[0] == "PASS, the same to 1e-6"
    other = {"mean": 0.59, "checkpoints": {"b": "2"}}
    assert compare(then, then | other)[0] == "PASS"
    assert compare(then, then | other | {"features": {"val": "g"}})[0] == "PASS"
    assert compare(then, then | {"features": {"val": "g"}})[0] == "INPUT DIFFERS"
    for change in ({"classes": ["y", "x"]}, {"clips": {"count": 3}}, {"recipe": {"optim": "adam"}}):
        assert compare(then, then | other | change)[0] == "INPUT DIFFERS", change
    assert compare(then, then | other | {"mean": 0.38})[0] == "OUTSIDE THE SEED SPREAD"


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ("--split nowhere", 2, "'nowhere'"),
        ("--batch_size 0", 2, "--batch_size"),
        ("--certify {tmp}/absent.json", 2, "absent.json"),
        ("--certify {features}/settings.json", 2, "no certificate"),
        ("--certify {features}/failed.csv", 2, "not valid JSON"),
        ("--checkpoints {tmp}/absent", 2, "no checkpoint at"),
        (f"--checkpoints {'x' * 300}", 2, "File name too long: "),
        ("--checkpoints {one} {one}", 4, "same checkpoint"),
        ("--out {one}", 2, "is a file"),
        ("--out {one}/deep/report --checkpoints {tmp}/absent", 2, "is a file"),
        ("--certificate {one}/a.json --checkpoints {tmp}/absent", 2, "is a file"),
        ("--features_dir {tmp}", 2, "preprocess.py"),
    ],
)
def test_bad_flags(evaluate, members, features, tmp_path, flags, code, says):
    names = {"tmp": tmp_path, "features": features, "one": members[0]}
    run = evaluate(*flags.format(**names).split())
    assert run.code == code and says in run.err, run.err


def test_nothing_to_evaluate(evaluate):
    run = evaluate(checkpoints=None)
    assert run.code == 2 and "--checkpoints" in run.err


def test_a_fold_of_one_clip_is_scored_with_the_others(features, tmp_path, evaluate):
    folder = shutil.copytree(features, tmp_path / "odd")
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    labelled = table["fold"].ne("") & table["emotion"].ne("")
    table.loc[labelled, "fold"] = ["1"] + ["0"] * (labelled.sum() - 1)
    table.to_csv(folder / "manifest.csv", index=False)
    for fold in ("0", "1"):
        place = tmp_path / "run" / f"fold_{fold}" / "1_best_1.0000.pth"
        save_member(place, folder, int(fold), fold=fold)
    run = evaluate("--features_dir", folder, checkpoints=[tmp_path / "run"])
    assert run.code == 0 and run.report["systems"][0]["clips"] == labelled.sum(), run.err


def test_validation_clips_that_are_judged_too_temper_nothing(features, tmp_path):
    for fold, other in (("0", "1"), ("1", "0")):
        place = tmp_path / "run" / f"fold_{fold}"
        place.mkdir(parents=True)
        changes = {"fold": fold, "val_fold": other, "eval_step": 1}
        table = Features.open(features)
        path = save_member(place / "1_best_1.0000.pth", features, int(fold))
        checkpoint = load_checkpoint(path)
        checkpoint["config"] |= changes
        rows = table.manifest[table.manifest["split"].isin(("train", "val"))]
        seen = rows[rows["fold"] == other].to_dict("records")
        none = torch.empty(0, dtype=torch.int64)
        ids = torch.from_numpy(fingerprints(table, seen))
        checkpoint["clips"] = {"training": none, "validation": ids}
        save_checkpoint(path, checkpoint)
    (run,) = evaluate_runs([tmp_path / "run"], Features.open(features), Options())
    assert len(run.parts) == 2 and all(part.validation for part in run.parts)
    assert run.validation is None


def test_different_models_have_no_deviation(features, tmp_path, evaluate):
    given = [save_member(tmp_path / "a.pth", features, 1)]
    given.append(save_member(tmp_path / "b.pth", features, 2, mode="speech", speech_coeff=0))
    run = evaluate(checkpoints=given)
    assert run.code == 0 and "ensemble of 2" in run.out, run.err
    assert "mean ± deviation" not in run.out and run.report["systems"][-1]["parts"] == {}


def page_of(tmp_path):
    return (tmp_path / "out" / "index.html").read_text()


def test_the_title_says_what_the_report_is_about_and_when_it_was_made(evaluate, members, tmp_path):
    from datetime import date

    assert evaluate(checkpoints=[members[0]]).code == 0
    page = page_of(tmp_path)
    assert "<h1>How well emotions are recognised from the words</h1>" in page
    assert f"{date.today():%B %Y}" in page
    assert evaluate("--split", "val", checkpoints=members).code == 0
    assert "from the words by 3 runs together</h1>" in page_of(tmp_path)


def test_different_models_are_compared_and_not_headlined_as_one(evaluate, features, tmp_path):
    speech = save_member(tmp_path / "voices.pth", features, mode="speech")
    text = save_member(tmp_path / "texts.pth", features)
    assert evaluate(checkpoints=[speech, text]).code == 0
    page = page_of(tmp_path)
    (title,) = re.findall("<h1>(.*)</h1>", page)
    assert title.startswith("Which recognises emotions best: ") and "ensemble" not in title
    tiles = page.split('class="tiles"')[1].split("</div>\n</div>")[0]
    assert tiles.count('class="tile"') == 3 and "all together: voice and words" in tiles
    assert "All that follows is about these models together" in page


def test_inputs_are_compared_by_one_label(evaluate, features, tmp_path):
    """The voice's own label may differ from the clip's: by it, its bar could not be compared."""
    voices = [CLASSES[1], *CLASSES[1:]] * 2 + [""] * 7  # another voice in the first clip
    other = relabelled(features, tmp_path, speech_emotion=voices)
    path = save_member(tmp_path / "m.pth", features, mode="multimodal")
    run = evaluate(checkpoints=[path], features=other, pictures=True)
    assert run.code == 0, run.err
    found = {each["level"]: each for each in run.report["systems"][0]["conditions"]}
    rows, logits = logits_by_hand(path, features, ["speech"], head="speech")
    assert found["speech"]["label"] == found["all"]["label"] == "emotion"
    assert found["all"]["own"] is None and found["speech"]["own"]["label"] == "speech_emotion"
    said = np.array(CLASSES)[logits.argmax(1)]
    assert found["speech"]["measures"]["accuracy"] == pytest.approx(
        np.mean(rows["emotion"].to_numpy() == said)
    )
    assert "by the label emotion, so that they can be compared" in page_of(tmp_path)


def test_a_model_that_is_no_better_than_one_answer_is_called_that(evaluate, members, tmp_path):
    assert evaluate(checkpoints=[members[0]]).code == 0
    assert "not shown to be better than always answering" in page_of(tmp_path)


def test_every_cell_has_its_name_where_tables_become_lists(evaluate, members, tmp_path):
    assert evaluate("--split", "val", checkpoints=members).code == 0
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page_of(tmp_path), re.DOTALL)
    assert len(rows) > 10
    for row in rows:
        for named, content in re.findall(r"<td([^>]*)>(.*?)</td>", row, re.DOTALL)[1:]:
            assert "data-label" in named or not content, row


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("room", "left_out"), [(80, "weighted F1 and ECE (if"), (120, "")])
def test_in_a_narrow_terminal_numbers_stand_under_their_names(
    evaluate, members, monkeypatch, room, left_out
):
    run = evaluate("--split", "val", checkpoints=members)
    wide = [line for line in run.out.splitlines() if "0." in line and "[" in line]
    assert len(wide) == 4 and all(len(line) > 120 for line in wide), "a file has all in one line"
    monkeypatch.setenv("COLUMNS", str(room))
    with contextlib.redirect_stdout(Terminal()) as shown:
        print_table(run.report)
    head, *lines = shown.getvalue().splitlines()[2:]
    assert [line for line in lines if line in map(str, members)] == [*map(str, members)]
    rows = [line for line in lines if line.startswith("  0.")]
    assert len(rows) == 4 and {*map(len, (head, *rows))} == {len(head)} and len(head) <= room
    assert (f"a wider terminal shows {left_out}" in shown.getvalue()) == bool(left_out)


def test_many_classes_have_a_matrix_as_wide_as_the_page(evaluate, members, tmp_path, monkeypatch):
    assert evaluate().code == 0
    assert '<figure class="wide"' not in page_of(tmp_path)
    monkeypatch.setattr(report, "DENSE", 6)
    assert evaluate().code == 0
    page = page_of(tmp_path)
    assert '<figure class="wide"><img alt="confusion matrix"' in page
    assert page.count("<div") == page.count("</div>")


def test_many_inputs_are_looked_at_one_by_one():
    """The smaller sets of twelve encoders would be 4,094."""
    assert len(smaller_sets(tuple("abcde"))) == 30
    assert smaller_sets(tuple("abc")) == [("a",), ("b",), ("c",), *zip("aab", "bcc", strict=True)]
    many = smaller_sets(tuple("abcdefghijkl"))
    assert [len(names) for names in many] == [1] * 12 + [11] * 12
