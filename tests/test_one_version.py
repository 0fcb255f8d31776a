"""A run knows one version of its features, and its folder is its own: who changes them is kept out,
or ends the run by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import QUIET, ROOT, save_untrained, write_features
from inside import run_main
from trainings import TINY, add_feature, with_records

import make_submission
import training.run
from evaluation import runs
from training.checkpoint import load_checkpoint
from training.features import Features
from utils.errors import IntegrityError, LockedError, UsageError
from utils.files import keep_as_it_is, lock_folder

FOLDS = ("--fold", "all")
HOLDER = """
import sys, time
from utils import files
with getattr(files, sys.argv[1])(files.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def features(tmp_path):
    return with_records(write_features(tmp_path / "features", 2, modalities=("text",)))


@pytest.fixture
def train(features, tmp_path):
    def run(*args, name="a"):
        places = ["--features_dir", features, "--logs_dir", tmp_path / "logs", "--exp_name", name]
        return run_main("train", "--mode", "text", *TINY, *places, *args)

    return run


@pytest.fixture
def held(features):
    """Another process that reads (keep_as_it_is) or writes (lock_folder) in the features."""
    children = []

    def hold(how: str) -> None:
        command = [sys.executable, "-c", HOLDER, how, features]
        child = subprocess.Popen(command, cwd=ROOT, env=os.environ | QUIET, stdout=-1, text=True)
        children.append(child)
        assert child.stdout.readline() == "held\n"

    yield hold
    for child in children:
        child.kill()
        child.wait()


def test_who_reads_is_not_written_under(held, features, tmp_path):
    held("keep_as_it_is")
    held("keep_as_it_is")  # several may read
    with keep_as_it_is(features):
        pass
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "manifest.csv").write_text("media,split,emotion\na.wav,train,hap\n")
    before = (features / "manifest.csv").read_bytes()
    places = ("--data_dir", tmp_path / "clips", "--features_dir", features)
    done = run_main("preprocess", "--corpus", "csv", *places)
    assert done.code == 5 and "reads it" in done.err and len(done.err.splitlines()) < 5, done.err
    assert (features / "manifest.csv").read_bytes() == before


def test_nobody_writes_under_a_training(features, train, tmp_path, monkeypatch):
    """preprocess.py is started within a step of it."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "manifest.csv").write_text("media,split,emotion\na.wav,train,hap\n")
    flags = ("--corpus", "csv", "--data_dir", tmp_path / "clips", "--features_dir", features)
    before, tried = (features / "manifest.csv").read_bytes(), []
    behind_step(monkeypatch, 4, lambda: tried.append(run_main("preprocess", *flags)))
    assert train().code == 0
    (refused,) = tried
    assert refused.code == 5 and "train.py reads it" in refused.err, refused.err
    assert (features / "manifest.csv").read_bytes() == before


def test_what_stays_in_memory_is_bounded_and_is_that_file(features, monkeypatch):
    opened = Features.open(features)
    rows = opened.manifest.to_dict("records")
    first, second = rows[:2]
    feature = opened.load(first, "text")
    assert opened.load(first, "text") is feature and not feature.flags.writeable
    monkeypatch.setattr("training.features.MEMORY", opened.kept.held)
    opened.load(second, "text")
    assert [*opened.kept] == [opened.path(first, "text")]
    monkeypatch.setattr("training.features.MEMORY", 1 << 30)
    for row in rows:
        opened.load(row, "text")
    assert opened.kept.held == sum(array.nbytes for _, array in opened.kept.values())
    monkeypatch.setattr("training.features.SMALL", feature.nbytes - 1)
    alone = Features.open(features)
    alone.load(first, "text")
    assert not alone.kept
    opened.path(first, "text").write_bytes(b"another file")
    with pytest.raises(IntegrityError, match="is not as preprocess"):
        opened.load(first, "text")


@pytest.mark.parametrize(
    ("script", "table", "flags"),
    [
        ("evaluate", "settings.json", ("--allow_training_clips",)),
        ("make_submission", "manifest.csv", ("--sheets", "test1.csv")),
    ],
)
def test_nothing_is_told_of_features_that_changed_meanwhile(
    features, tmp_path, monkeypatch, script, table, flags
):
    """As where no lock holds; behind the last clip that is read."""
    save_untrained(tmp_path / "a.pth", features, "text")
    monkeypatch.chdir(features)
    module, name = (
        (runs, "evaluate_runs") if script == "evaluate" else (make_submission, "votes_of")
    )
    real = getattr(module, name)

    def reads(*args):
        found = real(*args)
        (features / table).write_text((features / table).read_text() + "\n")
        return found

    monkeypatch.setattr(module, name, reads)
    places = ("--features_dir", features, "--checkpoints", tmp_path / "a.pth")
    done = run_main(script, *places, "--out", tmp_path / "out", *flags)
    assert done.code == 4 and f"{features / table} was changed or removed meanwhile" in done.err
    assert not [each for each in (tmp_path / "out").rglob("*") if not each.name.startswith(".")]


def test_nobody_reads_what_is_being_written(held, features, train, tmp_path):
    assert train().code == 0
    held("lock_folder")
    run = tmp_path / "logs" / "text" / "a"
    places = ("--features_dir", features, "--checkpoints", run, "--out", tmp_path / "out")
    (tmp_path / "sheet.csv").write_text("FileID\n00000\n")
    for done in (
        train(name="b"),
        run_main("evaluate", *places),
        run_main("make_submission", *places, "--sheets", tmp_path / "sheet.csv"),
        run_main("evaluation.pack", run, *places[:2], "--out", tmp_path / "a.pth"),
    ):
        assert done.code == 5 and f"{features} is in use by process" in done.err, done.err


def test_a_folder_that_nobody_may_write_in_can_be_read(features):
    (features / ".lock").mkdir()  # root may write anywhere: this is what no one can open
    with keep_as_it_is(features), pytest.raises(UsageError, match="cannot write"):
        lock_folder(features).__enter__()


def behind_step(monkeypatch, number: int, act) -> None:
    """Call `act` within that step of the run, as somebody else would."""
    real = training.run.Run.targets

    def targets(run, batch):
        if run.step == number:
            act()
        return real(run, batch)

    monkeypatch.setattr(training.run.Run, "targets", targets)


@pytest.mark.parametrize("what", ["settings.json", "manifest.csv", "gone"])
def test_features_that_change_all_the_same_end_the_run(
    train, features, tmp_path, monkeypatch, what
):
    """In the second of three epochs: what was saved before it stays, nothing is saved after."""

    def change():
        if what == "gone":
            features.rename(tmp_path / "elsewhere")
        else:
            path = features / what
            path.write_text(path.read_text() + "\n")

    behind_step(monkeypatch, 4, change)  # an epoch has three steps
    run = train()
    assert run.code == 4 and str(features) in run.err and "Traceback" not in run.err, run.err
    assert load_checkpoint(tmp_path / "logs" / "text" / "a" / "last.pth")["epoch"] == 1


def test_a_feature_that_changes_ends_the_run(features, tmp_path, monkeypatch):
    """One that has no record: nobody but the run itself knows what it was."""
    add_feature(features, "mine", (8,))
    path = features / "train" / "mine" / "00003.npy"
    behind_step(monkeypatch, 4, lambda: np.save(path, np.zeros(8)))
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "a"]
    flags = ["--mode", "multimodal", "--inputs", "mine", *TINY, "--batch_size", 7, *places]
    run = run_main("train", *flags)
    assert run.code == 4 and f"{path} was changed meanwhile" in run.err, run.err


def changed(path) -> None:
    np.save(path, np.zeros(8))


def row_of(opened, clip_id: str) -> dict:
    (row,) = opened.manifest[opened.manifest["clip_id"] == clip_id].to_dict("records")
    return row


def test_processes_that_read_know_the_version_that_was_there_at_their_start(features):
    """A custom feature that has no record: nobody but the process that starts them saw it."""
    add_feature(features, "mine", (8,))
    opened = Features.open(features)
    row, other = row_of(opened, "00003"), row_of(opened, "00004")
    opened.check_files([row, other], ("mine",))
    path = opened.path(row, "mine")
    changed(path)
    opened.load(other, "mine")
    with pytest.raises(IntegrityError, match=rf"{path} was changed meanwhile"):
        opened.load(row, "mine")


def test_processes_that_read_know_the_records_that_were_there_at_their_start(features):
    opened = Features.open(features)
    row, other = row_of(opened, "00003"), row_of(opened, "00004")
    opened.check_files([row], ("text",))
    paths = [
        features / "train" / folder / f"{{}}.{ending}"
        for folder, ending in (("text", "npz"), ("records", "json"))
    ]
    for path in map(str, paths):
        shutil.copy(path.format(other["clip_id"]), path.format(row["clip_id"]))
    with pytest.raises(IntegrityError, match=r"00003\.npz is not as preprocess\.py wrote it"):
        opened.load(row, "text")


@pytest.mark.parametrize(("flags", "place"), [((), ""), (FOLDS, ""), (FOLDS, "fold_0")])
def test_a_run_folder_that_is_removed_is_not_made_anew(train, tmp_path, monkeypatch, flags, place):
    folder = tmp_path / "logs" / "text" / "a" / place
    behind_step(monkeypatch, 4, lambda: shutil.rmtree(folder))
    run = train(*flags)
    assert run.code == 4 and f"{folder} was removed" in run.err, run.err
    assert not folder.exists()


# Guards fail closed


@pytest.mark.parametrize("text", ["[]", "3", "{}", "[" * 100_000, '{"learnt_without_fold": nu'])
def test_a_damaged_note_about_labels_is_no_free_pass(features, tmp_path, text):
    add_feature(features, "mine", (8,))
    (features / "mine.json").write_text(text)
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "a"]
    run = run_main("train", "--mode", "multimodal", "--inputs", "mine", *TINY, *places)
    assert run.code in (2, 4) and "mine.json" in run.err, run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_note_about_labels_that_is_no_file_is_no_free_pass(features, tmp_path, make):
    add_feature(features, "mine", (8,))
    make(features / "mine.json")
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "a"]
    run = run_main("train", "--mode", "multimodal", "--inputs", "mine", *TINY, *places)
    assert run.code == 2 and "mine.json" in run.err and "Traceback" not in run.err, run.err


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *(("00003", other) for other in ("../../outside", "/tmp/outside", "a/b", "a\0b", "..")),
        *(("train", other) for other in ("..", ".", "a/b", "/tmp", "x" * 300)),
        ("00003", "x" * 300),
    ],
)
def test_ids_cannot_leave_the_tree(features, train, name, other):
    path = features / "manifest.csv"
    path.write_text(path.read_text().replace(name, other))
    run = train()
    assert run.code in (2, 4) and "manifest.csv" in run.err and "Traceback" not in run.err, run.err
    assert len(run.err) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [1, 2, 3]},
        {"classes": ["hap"] * 7},
        {"classes": ["hap"]},
        {"classes": ["\ud800", "sad"]},
        {"classes": ["hap\nFORGED", "sad"]},
        {"features": {}},
        {"features": {"text": [1]}},
        {"modalities": [["text"]]},
        {"modalities": "text"},
    ],
)
def test_settings_that_say_too_little_are_refused(features, train, change):
    path = features / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    run = train()
    assert run.code in (2, 4) and "settings.json" in run.err and "Traceback" not in run.err, run.err


def test_a_pipe_is_no_feature(features, train):
    path = features / "train" / "text" / "00003.npz"
    path.unlink()
    os.mkfifo(path)
    run = train()
    assert run.code == 4 and f"{path} is no regular file" in run.err, run.err


def test_an_archive_that_would_unpack_to_gigabytes_is_refused(features, train):
    """Of a clip without a record, so that no digest stands before it."""
    shutil.rmtree(features / "train" / "records")
    path = features / "train" / "text" / "00003.npz"
    np.savez_compressed(path, word_embed=np.zeros((5_000_000, 4), np.float32))
    assert path.stat().st_size < 1e6
    run = train()
    assert run.code == 4 and f"{path} is missing or damaged" in run.err, run.err


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"\x93NUMPY", b"\x93-1MPY"),  # read as bytes, no array
        lambda data: data.replace(b"'shape': (", b"'shape': [("),
        lambda data: data[: len(data) // 2],
    ],
)
def test_words_that_are_no_array_are_refused(features, train, damage):
    shutil.rmtree(features / "train" / "records")
    path = features / "train" / "text" / "00003.npz"
    with zipfile.ZipFile(path) as archive:
        data = archive.read("word_embed.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word_embed.npy", damage(data))
    run = train()
    assert run.code == 4 and f"{path} is missing or damaged" in run.err, run.err


@pytest.mark.parametrize("stage", [3, [], {"sha256": 3}])
def test_a_record_that_says_nothing_of_a_file_vouches_for_none(features, train, stage):
    (features / "train" / "records" / "00003.json").write_text(
        json.dumps({"stages": {"text": stage}})
    )
    run = train()
    assert run.code == 4 and "00003.npz is not as preprocess.py wrote it" in run.err, run.err


def test_a_manifest_that_lost_a_column_name_is_refused(features, train):
    path = features / "manifest.csv"
    path.write_text(path.read_text().replace("speaker,transcript", "speakertranscript", 1))
    run = train()
    assert run.code == 2 and str(path) in run.err, run.err


def test_a_lock_error_names_who_holds(features):
    with keep_as_it_is(features), pytest.raises(LockedError, match=r"process \d+ on .*reads it"):
        lock_folder(features).__enter__()
