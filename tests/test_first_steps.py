"""What people type and have who use this for the first time: near words, doubled clips."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import QUIET, ROOT, make_clip, run_script, save_untrained, voice, write_features
from inside import run_main

import demo
import make_submission
import preprocess
from corpora import list_corpus
from corpora.manifest import Clip
from extract.media import check_file
from extract.unlisted import not_listed
from inference import wording
from inference.prediction import ClipPrediction
from inference.service import Service
from inference.sources import find_sources, left_out
from models.backbone import Backbone
from training.features import Features
from training.prepare import by_group, shown_settings
from training.tasks import fused, recipe, task_of
from utils.config import suggestion
from utils.errors import ClipError, counted

TINY = ("--text_layers", 1, "--text_heads", 2, "--n_epoch", 1, "--num_workers", 0)


@pytest.mark.parametrize(
    ("typed", "has", "meant"),
    [
        ("--out", ["--features_dir", "--corpus"], "--features_dir"),
        ("--force", ["--workers", "--verify"], "--verify"),
        ("--model", ["--encoder", "--checkpoints"], "--checkpoints"),
        ("--gpu", ["--inputs", "--out", "--device"], "--device"),
        ("--bs", ["--seed", "--batch_size"], "--batch_size"),
        ("--early_stopping", ["--eval_step", "--patience"], "--patience"),
        ("--learning-rate", ["--learning_rate"], "--learning_rate"),
        ("--exp_nam", ["--exp_name"], "--exp_name"),
        ("--folder", ["--encoder", "--help"], ""),
        ("--helo", ["--help"], ""),
    ],
)
def test_suggestions_are_near_in_meaning(typed, has, meant):
    assert suggestion(typed, has) == meant


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("evaluate", "logs/x"), "did you mean --checkpoints logs/x?"),
        (("preprocess", "my_clips"), "did you mean --data_dir my_clips?"),
        (("preprocess", "--data_dir", __file__), "is a file: give the folder it lies in"),
        (("predict", "--text", "hi", "--word_vectors", "a.vec"), "bring their own word vectors"),
        (("train", "--mode", "text", "--exp_name", "a", "--device", "gpu"), "expected auto, cpu"),
    ],
)
def test_calls_that_nearly_fit(command, says):
    done = run_main(*command)
    assert done.code == 2 and says in done.err, done.err


def test_the_demo_starts_from_any_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert demo.run("preprocess.py --help") > 0
    said = capfd.readouterr().out
    assert said.startswith("\n$ python preprocess.py --help\n") and "--data_dir" in said


def test_one_and_many():
    assert [counted(number, "clip") for number in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]


def test_a_backbone_of_timm_is_named_with_its_library():
    with pytest.raises(ValueError, match="did you mean timm:resnet18"):
        Backbone("resnet18", 1)
    with pytest.raises(ValueError, match="expected efficientnet-b0 to -b7, small-16"):
        Backbone("renset", 1)


# Corpora


def corpus(folder: Path, *rows: str, files: tuple[str, ...] = ("a.wav", "b.wav")):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "manifest.csv").write_text("\n".join(["media,split,emotion,speaker", *rows]))
    return list_corpus("csv", folder)


def test_equal_rows_count_once(tmp_path):
    listing = corpus(tmp_path, "a.wav,train,hap,x", "a.wav,train,hap,x", "b.wav,val,sad,y")
    assert [clip.clip_id for clip in listing.clips] == ["a", "b"] and not listing.failures
    assert "rows that stand there twice: 1" in listing.notes


def test_what_the_table_does_not_list_is_told(tmp_path):
    files = ("a.wav", "c.wav", "more/b.wav", "more/f.divx", "notes.txt")
    listing = corpus(tmp_path, "a.wav,train,hap,x", "c.wav,train,none,x", files=files)
    (note,) = not_listed("csv", tmp_path, listing)
    more = tmp_path / "more"
    assert note == f"in no row of manifest.csv: {more / 'b.wav'}, {more / 'f.divx'}"


def test_a_row_without_a_split_says_so(tmp_path):
    (failure,) = corpus(tmp_path, "a.wav,,hap,x").failures
    assert failure.reason == "no split: write train, val or test (manifest.csv line 2)"


def test_people_of_nearly_one_name_are_named():
    names = ("Anna", "anna", "Ben", "")
    clips = [Clip(name, "train", Path(), speaker=name) for name in names]
    (line,) = preprocess.similar_speakers(clips)
    assert "'Anna' and 'anna' count as different people" in line


def test_modalities_by_their_other_names(tmp_path):
    make_clip(tmp_path / "clips" / "a.wav", sound=voice(1.0), sound_codec="pcm_s16le")
    (tmp_path / "clips" / "manifest.csv").write_text("media,split,emotion\na.wav,train,Joy\n")
    places = ("--data_dir", tmp_path / "clips", "--features_dir", tmp_path / "features")
    for flags in (("--modalities", "Voice"), ()):  # and a folder of sounds needs no flag
        done = run_main("preprocess", "--corpus", "csv", *places, *flags)
        assert done.code == 0 and "csv: 1 clip (train 1) -> speech in" in done.err, done.err
    mine = tmp_path / "features" / "word_vectors.npz"
    mine.touch()
    done = run_main("preprocess", "--corpus", "csv", *places, "--word_vectors", mine)
    assert done.code == 2 and "put the file elsewhere" in done.err and mine.stat().st_size == 0


def test_a_clip_without_an_ending_is_told_what_it_is(tmp_path):
    make_clip(tmp_path / "a.wav", sound=voice(0.5), sound_codec="pcm_s16le").rename(tmp_path / "a")
    with pytest.raises(ClipError, match=r"rename it, with the ending \.wav"):
        check_file(tmp_path / "a")


# Trainings


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("first") / "features", 2)


def start(features: Path, logs: Path, *flags, mode: str = "text"):
    places = ("--features_dir", features, "--logs_dir", logs, "--exp_name", "a", *TINY)
    return run_main("train", "--mode", mode, *places, *flags)


def test_a_refused_start_leaves_no_folder(features, tmp_path):
    done = start(features, tmp_path, "--speech_backbone", "timm:foo", mode="speech")
    assert done.code == 2 and "timm has no foo" in done.err
    assert not (tmp_path / "speech" / "a").exists()


def test_flags_without_effect_are_told(features, tmp_path):
    done = start(features, tmp_path, "--speech_coeff", 0, "--lam", 1, "--dry_run")
    assert done.code == 0 and "without effect here: --lam, --speech_coeff" in done.err, done.err
    lines = done.out.splitlines()
    assert any(line.startswith("optimization: learning_rate=") for line in lines)
    assert "speech_coeff" not in done.out and "fusion=" not in done.out
    (tmp_path / "config.json").write_text(json.dumps({"speech_coeff": 1, "lam": 3}))
    done = start(features, tmp_path, "--config", tmp_path / "config.json", "--dry_run")
    assert done.code == 0 and "without effect" not in done.err, done.err


@pytest.mark.parametrize(
    ("task", "is_shown"),
    [
        (task_of(recipe("text")), {"lam": False, "fusion": False, "pretrained": False}),
        (task_of(recipe("face")), {"lam": False, "pretrained": True, "feature_frames": False}),
        (fused(("speech", "mine")), {"lam": True, "fusion": True, "feature_frames": True}),
    ],
)
def test_settings_that_change_nothing_are_not_shown(task, is_shown):
    shown = shown_settings(recipe("multimodal"), task)
    assert {name: name in shown for name in is_shown} == is_shown
    assert sum(line.count("=") for line in by_group(shown)) == len(shown)


def test_folders_without_a_run_are_passed_over(features, tmp_path):
    save_untrained(tmp_path / "logs" / "a" / "1_best_1.0000.pth", features, "text")
    (tmp_path / "logs" / "tune" / "first").mkdir(parents=True)
    runs = (tmp_path / "logs" / "a", tmp_path / "logs" / "tune")
    places = ("--features_dir", features, "--out", tmp_path / "report", "--num_workers", 0)
    done = run_main("evaluate", "--checkpoints", *runs, *places, "--allow_training_clips")
    assert done.code == 0 and f"passed over, for no run is there: {runs[1]}" in done.err, done.err
    done = run_main("evaluate", "--checkpoints", runs[1], *places)
    assert done.code == 2 and "no checkpoint at" in done.err and "or starter" in done.err


def test_a_certificate_is_not_written_over(tmp_path):
    same = ("--certify", tmp_path / "c.json", "--certificate", tmp_path / "c.json")
    done = run_main("evaluate", *same, "--checkpoints", tmp_path)
    assert done.code == 2 and "is the one of --certify" in done.err


# Submissions


def test_ids_of_a_sheet_may_be_paths(features):
    opened = Features.open(features)
    names = opened.rows("test")["clip_id"].tolist()
    ids = [f"test/{names[0]}.mp4", f"C:\\clips\\{names[1]}.mp4"]
    sheet = SimpleNamespace(path=Path("a.csv"), ids=ids)
    found = make_submission.find_rows(sheet, opened, None)
    assert [found[name]["clip_id"] for name in ids] == names[:2]
    nothing = SimpleNamespace(path=Path("a.csv"), ids=["zoe"])
    args = SimpleNamespace(missing="error", features_dir=features)
    with pytest.raises(Exception, match=f"ids of features are such as {names[0][:2]}"):
        make_submission.check_missing(args, [nothing], [{}], opened)


def test_no_answer_is_written_over_a_sheet(features, tmp_path):
    save_untrained(tmp_path / "m.pth", features, "text")
    names = Features.open(features).rows("test")["clip_id"]
    sheets = [tmp_path / "a.csv", tmp_path / "a_submission.csv"]
    for sheet in sheets:
        sheet.write_text("\n".join(["FileID", *names]))
    before = sheets[1].read_bytes()
    places = ("--features_dir", features, "--out", tmp_path, "--checkpoints", tmp_path / "m.pth")
    done = run_main("make_submission", "--sheets", *sheets, *places, "--num_workers", 0)
    assert done.code == 2 and "is a sheet that was given" in done.err
    assert sheets[1].read_bytes() == before


# Answers


def test_a_clip_is_answered_once(tmp_path, capsys):
    for name in ("a.wav", "b.wav", "a.txt", "lonely.srt", "notes.md"):
        (tmp_path / name).touch()
    found = find_sources([tmp_path, tmp_path / "a.wav", tmp_path / "." / "b.wav"], None)
    assert [Path(each.name).name for each in found] == ["a.wav", "b.wav"]
    assert "given twice, answered once: 2" in capsys.readouterr().err
    assert [path.name for path in left_out([tmp_path])] == ["lonely.srt", "notes.md"]


def test_names_may_begin_with_dashes_and_dots(tmp_path):
    for name in ("-x.wav", "-x.txt", "..en.vtt", "notes.md"):
        (tmp_path / name).touch()
    assert [path.name for path in left_out([tmp_path])] == ["notes.md"]


def test_what_is_true_of_all_parts_is_said_once(place, tmp_path):
    make_clip(tmp_path / "long.wav", sound=voice(12.0), sound_codec="pcm_s16le")
    flags = ("--longest", 4, "--out", tmp_path / "out", "--checkpoints", place / "any.pth")
    done = run_main("predict", tmp_path / "long.wav", *flags, "--device", "cpu", "--no_pictures")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["start"].nunique() > 1 and (table["start"] == table["start"].round(2)).all()
    assert table["remarks"].str.contains("no face: long.wav").all(), "not the name of a part"
    assert done.out.count("no face: long.wav") == 1 == done.out.count("rests on voice")


def test_a_name_from_right_to_left_keeps_the_sentence_in_order():
    prediction = ClipPrediction(None, ["غضب", "hap"], {}, {}, parts={"text": np.array([0.9, 0.1])})
    assert wording.headline(prediction) == "\u200e\u2068غضب\u2069, 90 %"
    assert wording.isolated("행복") == "행복"


def test_words_that_are_no_utf8_are_words(tmp_path):
    words = b"so \xff happy".decode("utf-8", "surrogateescape")
    places = ("--out", tmp_path, "--no_pictures", "--device", "cpu")
    done = run_main("predict", "--text", words, *places)
    assert done.code == 0, done.err


def test_a_locale_without_the_letters_is_named(tmp_path):
    (tmp_path / "clips").mkdir()
    table = "media,split,emotion\näöü.wav,train,hap\n"
    (tmp_path / "clips" / "manifest.csv").write_text(table, "utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    places = ("--data_dir", tmp_path / "clips", "--features_dir", tmp_path / "features")
    done = run_script("preprocess.py", "--corpus", "csv", *places, env=plain)
    assert done.returncode == 2 and "set PYTHONUTF8=1" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGHUP]
)
def test_a_stop_leaves_nothing_of_the_clips(place, tmp_path, stop):
    shutil.copytree(place / "clips", tmp_path / "clips")
    (tmp_path / "temporary").mkdir()
    flags = ["--checkpoints", place / "any.pth", "--out", tmp_path / "out", "--device", "cpu"]
    command = [sys.executable, "predict.py", tmp_path / "clips", *flags]
    environment = os.environ | QUIET | {"TMPDIR": str(tmp_path / "temporary")}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any((tmp_path / "temporary").glob("predict-*")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.send_signal(stop)
    assert child.wait(60) == 128 + stop
    assert not any((tmp_path / "temporary").glob("predict-*"))


def test_messages_of_the_page_name_no_folder():
    service = Service.__new__(Service)
    service.models, service.examples, service.word_vectors = {}, {}, None
    said = {
        "no encoder hf:/srv/models/enc: no": "no encoder hf:enc: no",
        "see https://a.org/b/c.html": "see https://a.org/b/c.html",
        "no /srv/a/b.mp4 here": "no b.mp4 here",
    }
    assert {text: service.without_folders(text) for text in said} == said


BAR = """
from utils.errors import run_script
def main():
    from tqdm import tqdm
    print(len([*tqdm(range(3), desc="at work")]))
run_script(main)
"""


def test_a_progress_bar_is_for_a_terminal_alone():
    """In a file it would be hundreds of lines."""
    assert run_script("-c", BAR).stderr == ""
    shown, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    environment = {name: value for name, value in os.environ.items() if name[:4] != "TQDM"}
    child = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "timeout": 60}
    subprocess.run([sys.executable, "-c", BAR], stderr=terminal, check=True, **child)
    os.close(terminal)  # else a read of nothing would wait for ever
    with open(shown, "rb", buffering=0) as file:
        assert b"at work: 100%" in file.read(10_000)
