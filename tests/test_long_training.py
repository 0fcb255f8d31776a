"""Trainings that are stopped, killed, damaged, started twice or shared: nothing is lost."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import run_script, write_features
from inside import run_main
from kill_training import leaves
from test_training import TINY as SMALL
from test_training import dataset

import training.run
from training.checkpoint import load_checkpoint, load_last, save_best, save_checkpoint, save_last
from training.data import ClipDataset, Features, make_loader
from training.tasks import TASKS, recipe
from utils.errors import IntegrityError
from utils.files import SEAL_LENGTH

MODES = list(TASKS)
TINY = "--speech_coeff 0 --face_coeff 0 --speech_frames 48 --face_frames 2 --text_layers 1"
TINY = f"{TINY} --n_epoch 3 --batch_size 5 --num_workers 0".split()
RESUMABLE = ("metrics.csv", "best.json", "config.json")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture
def start(features, tmp_path):
    """start("a", "--seed", 3) -> the finished text run in tmp_path/text/a."""

    def run(name, *args, mode="text"):
        places = ["--features_dir", features, "--logs_dir", tmp_path]
        return run_main("train", "--mode", mode, "--exp_name", name, *TINY, *places, *args)

    return run


def remains(run: Path) -> list:
    """Everything by which two runs can differ."""
    state = load_checkpoint(run / "last.pth")
    best = sorted(path.name for path in run.glob("*_best_*.pth"))
    tables = [(run / name).read_bytes() for name in RESUMABLE]
    return [best, tables, leaves(state), leaves(load_checkpoint(run / best[0]))]


# What does not change a run


def test_saving_and_validating_more_often_change_nothing(start, tmp_path):
    assert start("rare", "--eval_step", 3).code == start("often", "--save_minutes", 0).code == 0
    rare, often = (
        load_checkpoint(tmp_path / "text" / name / "last.pth") for name in ("rare", "often")
    )
    for part in ("weights", "optimizer", "scaler", "sums", "step"):
        assert leaves(rare[part]) == leaves(often[part]), part
    tables = [pd.read_csv(tmp_path / "text" / name / "metrics.csv") for name in ("rare", "often")]
    learnt = [table[["epoch", "lr", "train_loss", "train_accuracy"]] for table in tables]
    pd.testing.assert_frame_equal(*learnt, check_exact=True)
    assert tables[0]["val_loss"].notna().tolist() == [False, False, True]


def test_workers_listing_order_locale_and_hashes_change_nothing(features, tmp_path):
    """The manifest's rows backwards, 4 workers, another locale and another hash of strings."""
    backwards = tmp_path / "backwards"
    shutil.copytree(features, backwards)
    table = pd.read_csv(backwards / "manifest.csv", dtype=str, keep_default_na=False)
    table[::-1].to_csv(backwards / "manifest.csv", index=False)
    args = ["--mode", "multimodal", "--inputs", "speech,text", *TINY, "--n_epoch", 1]
    args += ["--logs_dir", tmp_path]
    one = run_main("train", *args, "--features_dir", features, "--exp_name", "a")
    assert one.code == 0, one.err
    env = {"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}
    args += ["--features_dir", backwards, "--exp_name", "b", "--num_workers", 4]
    other = run_script("train.py", *args, env=env)
    assert other.returncode == 0, other.stderr
    a, b = (remains(tmp_path / "multimodal" / name) for name in "ab")
    assert a == b


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_mode(features, workers):
    """What the loader of every input hands to the training, byte for byte."""
    opened = Features.open(features)
    views = []
    for count in (0, workers):
        loader = make_loader(dataset(opened), 5, count, "cpu")
        loader.batch_sampler.set_epoch(2)
        views.append([leaves({k: b[k] for k in ("inputs", "clip_id")}) for b in loader])
    assert views[0] == views[1]


# Damage


def last_folder(tmp_path, steps: int = 2) -> Path:
    """A folder as `steps` saves of a small state leave it."""
    for step in range(1, steps + 1):
        save_last(tmp_path, small_state(step), keep=True)
    return tmp_path


def small_state(step: int) -> dict:
    known = dict.fromkeys(("arch", "classes", "features_config", "config", "epoch"))
    return {**known, "weights": {"a": torch.arange(100.0)}, "val": {"loss": 1 / step}, "step": step}


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "seal cut off by one byte": lambda data: data[:-1],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "flipped": lambda data: data[:700] + bytes([data[700] ^ 4]) + data[701:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    folder = last_folder(tmp_path)
    last = folder / "last.pth"
    last.write_bytes(damage(last.read_bytes()))
    place, state = load_last(folder)
    said = capsys.readouterr().err
    assert state["step"] == 1 and place.name == "previous.pth"
    assert "WARNING" in said and str(last) in said and "going on from" in said
    save_last(folder, small_state(2), keep=place.name == "last.pth")
    assert load_checkpoint(folder / "previous.pth")["step"] == 1, "damage took a sound one's place"
    assert load_last(folder)[1]["step"] == 2
    for path in (last, folder / "previous.pth"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match=r"previous\.pth"):
        load_last(folder)


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    save_checkpoint(tmp_path / "a.pth", small_state(1))
    data = (tmp_path / "a.pth").read_bytes()
    torch.load(io.BytesIO(data), weights_only=True)  # the seal disturbs no other reader
    rng = random.Random(0)
    bits = [*range(8 * (len(data) - SEAL_LENGTH - 30), 8 * len(data), 3)]  # its end and its seal
    for bit in bits + rng.sample(range(8 * len(data)), 500):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.pth").write_bytes(flipped)
        with pytest.raises(IntegrityError, match="a.pth is damaged"):
            load_checkpoint(tmp_path / "a.pth")


def with_records(folder: Path) -> Path:
    """Records as preprocess.py writes them beside the features."""
    from utils.files import sha256

    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    for split, clip_id in zip(table["split"], table["clip_id"], strict=True):
        places = {"speech": "speech", "video": "video", "text": "text"}
        stages = {
            name: {"sha256": sha256(path)}
            for name in places
            for path in (folder / split / name).glob(f"{clip_id}.*")
        }
        record = folder / split / "records" / f"{clip_id}.json"
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps({"stages": stages, "failure": None}))
    return folder


def test_a_flipped_bit_of_a_feature_stops_before_the_first_step(tmp_path):
    folder = with_records(write_features(tmp_path / "features", 1, splits=("train", "val")))
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--dry_run"]
    command = ["train", "--mode", "multimodal", "--exp_name", "a", *TINY, *places]
    assert run_main(*command).code == 0
    opened = Features.open(folder)
    data = {split: dataset_of(opened, split) for split in ("train", "val")}
    rng, files = random.Random(1), sorted(folder.glob("*/[stv]*/*.np?"))
    assert len(files) == 42
    for number in range(150):
        path = rng.choice(files)
        content = path.read_bytes()
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError, match=rf"1 feature files .*{path.name}"):
            data[path.parts[-3]].check_files()
        if number == 0:
            run = run_main(*command)
            assert run.code == 4 and path.name in run.err and "preprocess.py" in run.err
        path.write_bytes(content)
    record = folder / "val" / "records" / "00009.json"
    for damage in (lambda text: text[:50], lambda text: text.replace("stages", "stbges")):
        content = record.read_text()
        record.write_text(damage(content))
        with pytest.raises(IntegrityError, match=r"00009\.json"):
            data["val"].check_files()
        record.write_text(content)


def dataset_of(opened: Features, split: str, **changes) -> ClipDataset:
    config = recipe("multimodal") | SMALL | changes
    return ClipDataset(opened, opened.rows(split), TASKS["multimodal"], config, split == "train")


# Death


@pytest.mark.parametrize("step", range(8))
def test_death_after_any_step_of_a_save_leaves_a_checkpoint(tmp_path, step):
    """save_last: made previous, synced, renamed, folder synced; save_best: the latter three, and
    the older best is gone."""
    save_best(last_folder(tmp_path, 1), small_state(1) | {"epoch": 1})
    child = os.fork()
    if not child:
        counted = [0]

        def then_die(call):
            def dies(*args, **options):
                result = call(*args, **options)
                counted[0] += 1
                return os._exit(9) if counted[0] == step + 1 else result

            return dies

        os.replace, os.fsync, Path.unlink = map(then_die, (os.replace, os.fsync, Path.unlink))
        save_last(tmp_path, small_state(2), keep=True)
        save_best(tmp_path, small_state(2) | {"epoch": 2})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    place, state = load_last(tmp_path)
    assert state["step"] == (2 if step >= 2 else 1), place
    assert all(load_checkpoint(path) for path in tmp_path.glob("*_best_*.pth"))
    assert list(tmp_path.glob("*_best_*.pth"))


def test_killed_at_random_and_resumed_it_ends_the_same():
    """20 kills; `python tests/kill_training.py --kills 200` is the release's run in every mode."""
    run = run_script("tests/kill_training.py", "--mode", "text", "--kills", 20, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "text: 20 kills" in run.stdout and " 0 ended otherwise" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_killed_at_random_in_a_release(mode):
    run = run_script("tests/kill_training.py", "--mode", mode, "--kills", 200, timeout=7200)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_resume_from_every_step_of_fifty(tmp_path, mode):
    """Through the front door: stopped after each of 50 steps, by a fresh StopSignal each time."""
    folder = write_features(tmp_path / "features", 3)
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--batch_size", 2, "--n_epoch", 5]
    command = ["train", "--mode", mode, *TINY, *places]
    assert run_main(*command, "--exp_name", "whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.run.Run, "asked", lambda run: [signal.SIGTERM, 0])
        codes = [run_main(*command, "--exp_name", "cut", "--resume").code for _ in range(49)]
    assert set(codes) == {143} and run_main(*command, "--exp_name", "cut", "--resume").code == 0
    assert remains(tmp_path / mode / "whole") == remains(tmp_path / mode / "cut")
