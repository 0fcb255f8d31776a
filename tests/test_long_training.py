"""Trainings that are stopped, killed, damaged, started twice or shared: nothing is lost."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, QUIET, ROOT, run_script, write_features
from inside import run_main
from trainings import (
    MODES,
    TINY,
    BehindAStep,
    dataset,
    leaves,
    make_run,
    one_step,
    remains,
    with_records,
)

import training.loop
import training.record
import training.run
from training.checkpoint import (
    NO_CLIPS,
    keep_best,
    load_checkpoint,
    load_last,
    save_best,
    save_checkpoint,
    save_last,
)
from training.data import EpochBatches, make_loader
from training.features import Features
from training.loop import fit
from training.optim import MeanWeights
from training.prepare import class_weights
from training.stopping import StopSignal
from utils.distributed import Silent, SingleProcess
from utils.errors import IntegrityError, UsageError
from utils.files import SEAL_LENGTH


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
    """The manifest's rows backwards, 2 workers, another locale and another hash of strings. What is
    no terminal gets no bars."""
    backwards = tmp_path / "backwards"
    shutil.copytree(features, backwards)
    table = pd.read_csv(backwards / "manifest.csv", dtype=str, keep_default_na=False)
    table[::-1].to_csv(backwards / "manifest.csv", index=False)
    args = ["--mode", "multimodal", "--inputs", "speech,text", *TINY, "--n_epoch", 1]
    args += ["--logs_dir", tmp_path]
    one = run_main("train", *args, "--features_dir", features, "--exp_name", "a")
    assert one.code == 0 and torch.get_num_threads() == 1, one.err
    env = {"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}
    args += ["--features_dir", backwards, "--exp_name", "b", "--num_workers", 2]
    other = run_script("train.py", *args, env=env)
    assert other.returncode == 0, other.stderr
    assert "\r" not in other.stderr and "step/s" not in other.stderr
    assert "epoch 1/1: training loss" in other.stdout
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
    arch = {"encoders": {}, "heads": {}, "n_classes": 7}
    known = {"arch": arch, "classes": list(CLASSES), "features_config": {}, "epoch": step}
    known |= {"config": {"mode": "text"}, "val": {"loss": 1 / step}}
    known |= dict.fromkeys(("sums", "optimizer", "scaler", "ema", "rows", "best"))
    known |= {"clips": NO_CLIPS, "leaks": ""}
    return {**known, "weights": {"a": torch.arange(100.0)}, "step": step}


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


FLIPS = pytest.mark.parametrize("flips", [150, pytest.param(10_000, marks=pytest.mark.slow)])


@FLIPS
def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path, flips):
    save_checkpoint(tmp_path / "a.pth", small_state(1))
    data = (tmp_path / "a.pth").read_bytes()
    torch.load(io.BytesIO(data), weights_only=True)  # the seal disturbs no other reader
    rng = random.Random(0)
    bits = [*range(8 * (len(data) - SEAL_LENGTH - 30), 8 * len(data), 3)]  # its end and its seal
    for bit in bits + rng.sample(range(8 * len(data)), flips):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.pth").write_bytes(flipped)
        with pytest.raises(IntegrityError, match=r"a\.pth is damaged"):
            load_checkpoint(tmp_path / "a.pth")


@FLIPS
def test_every_flipped_bit_of_a_feature_is_found_when_it_is_first_read(tmp_path, flips):
    folder = with_records(write_features(tmp_path, 1, splits=("train", "val")))
    opened, rng = Features.open(folder), random.Random(1)
    rows = opened.manifest.to_dict("records")
    for _ in range(flips):
        row, name = rng.choice(rows), rng.choice(("speech", "face", "text"))
        path = opened.path(row, name)
        content = path.read_bytes()
        flipped = bytearray(content)
        bit = rng.randrange(8 * len(content))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError, match=rf"{path.name} is not as preprocess.*--verify"):
            opened.load(row, name)
        path.write_bytes(content)
        opened.load(row, name)
        opened.checked.clear()


@pytest.mark.parametrize("damage", [lambda text: text[:50], lambda text: text.replace("st", "ts")])
def test_a_damaged_record_vouches_for_nothing(tmp_path, damage):
    folder = with_records(write_features(tmp_path, 1, splits=("train",), modalities=("text",)))
    record = folder / "train" / "records" / "00003.json"
    record.write_text(damage(record.read_text()))
    opened = Features.open(folder)
    rows = opened.manifest.to_dict("records")
    opened.load(rows[2], "text")
    with pytest.raises(IntegrityError, match=r"00003\.npz is not as preprocess"):
        opened.load(rows[3], "text")


# Death


@pytest.mark.parametrize("step", range(8))
def test_death_after_any_step_of_a_save_leaves_a_checkpoint(tmp_path, step):
    """save_best: synced, renamed, folder synced; save_last: made previous, and the same three;
    keep_best: the older best is gone."""
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
        save_best(tmp_path, small_state(2) | {"epoch": 2})
        save_last(tmp_path, small_state(2), keep=True)
        keep_best(tmp_path, {"epoch": 2, **small_state(2)["val"]})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    place, state = load_last(tmp_path)
    assert state["step"] == (2 if step >= 5 else 1), place
    best = {load_checkpoint(path)["epoch"] for path in tmp_path.glob("*_best_*.pth")}
    assert state["step"] in best and (best == {2}) == (step == 7)


def test_killed_at_random_and_resumed_it_ends_the_same():
    """3 kills; `python tests/kill_training.py --kills 200` is the release's run in every mode."""
    run = run_script("tests/kill_training.py", "--mode", "text", "--kills", 3, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "text: 3 kills" in run.stdout and " 0 ended otherwise" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_killed_at_random_in_a_release(mode):
    run = run_script("tests/kill_training.py", "--mode", mode, "--kills", 200, timeout=7200)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_every_command_killed_at_random_in_a_release():
    run = run_script("tests/kill_commands.py", "--kills", 77, timeout=7200)
    assert run.returncode == 0, run.stdout + run.stderr


@contextlib.contextmanager
def stopping_behind_every_step():
    """Each start of train.py meanwhile does one step, as if a signal came within it."""
    real = training.record.started

    @contextlib.contextmanager
    def started(run):
        with real(run) as (record, _):
            yield record, BehindAStep(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.record, "started", started)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_resume_from_every_step_of_fifty(tmp_path, mode):
    """Through the front door."""
    folder = write_features(tmp_path / "features", 3)
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--batch_size", 2, "--n_epoch", 5]
    command = ["train", "--mode", mode, *TINY, *places]
    assert run_main(*command, "--exp_name", "whole").code == 0
    with stopping_behind_every_step():
        codes = [run_main(*command, "--exp_name", "cut", "--resume").code for _ in range(50)]
    assert set(codes) == {143} and run_main(*command, "--exp_name", "cut", "--resume").code == 0
    assert remains(tmp_path / mode / "whole") == remains(tmp_path / mode / "cut")


# Signals and simultaneous starts


def test_a_signal_while_validating_keeps_the_epoch(start, tmp_path, monkeypatch):
    """The validation is cut short; the run that goes on validates again, and ends the same."""
    assert start("whole").code == 0
    real, stops = training.loop.validate, [1]

    def validate(run, stop):
        if stops.pop() if stops else False:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, stop)

    monkeypatch.setattr(training.loop, "validate", validate)
    cut = start("cut")
    assert cut.code == 143 and "in epoch 1 after step 3; saved in" in cut.err
    table = load_checkpoint(tmp_path / "text" / "cut" / "last.pth")["rows"]
    assert table == [], "an epoch counts when it was validated"
    assert start("cut", "--resume").code == 0
    assert remains(tmp_path / "text" / "whole") == remains(tmp_path / "text" / "cut")


@pytest.mark.parametrize(("signum", "grace"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (15, 1)])
def test_a_second_signal_leaves_at_once(signum, grace):
    """With `grace` only when it does not come right behind the first."""
    child = os.fork()
    if not child:
        try:
            with StopSignal(grace=bool(grace)):
                os.kill(os.getpid(), signum)
                if grace:
                    os.kill(os.getpid(), signum)
                    time.sleep(1.05)
                os.kill(os.getpid(), signum)
                time.sleep(1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signum


def test_of_twenty_starts_one_runs(features, tmp_path):
    """The others end within 2 s, each with the name of the one: before torch is imported."""
    command = [sys.executable, "train.py", "--mode", "text", "--exp_name", "a", *TINY]
    command += ["--features_dir", features, "--logs_dir", tmp_path, "--n_epoch", "500"]
    options = dict(cwd=ROOT, env={**os.environ, **QUIET}, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    starts = [
        subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, **options)
        for _ in range(20)
    ]
    refused = {}
    while len(refused) < 19 and time.monotonic() - began < 60:
        for each in starts:
            if each.poll() is not None and each not in refused:
                refused[each] = time.monotonic() - began
        time.sleep(0.01)
    (winner,) = [each for each in starts if each not in refused]
    winner.kill()
    for each in refused:
        said = each.stderr.read()
        assert each.returncode == 5 and f"in use by process {winner.pid} on" in said, said
    winner.communicate()
    print(f"last of nineteen after {max(refused.values()):.1f} s")
    assert max(refused.values()) < 40  # 2 s on an idle machine with 2 cores; CI's may be busy


# Numbers that are none


def test_a_gradient_that_is_no_number_stops_before_the_update(features, tmp_path):
    run = make_run(features, tmp_path)
    before, seen = leaves(run.state()), []
    weight = next(run.model.heads.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    real = run.targets
    run.targets = lambda batch: [seen.append(batch["clip_id"]), real(batch)][1]
    with pytest.raises(UsageError, match=r"norm \w+ at step 0.*text -?\d") as error:
        one_step(run)
    assert ", ".join(seen[0]) in str(error.value) and leaves(run.state()) == before


def test_float16_overflows_are_skipped_and_counted(features, tmp_path):
    """Scaled beyond float32's range the gradient overflows until the scale is small enough."""
    run = make_run(features, tmp_path, n_epoch=500, eval_step=500)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    weight = next(run.model.heads.parameters())
    hook = weight.register_hook(lambda gradient: gradient * 2.0**9)
    before, skips = leaves(run.model.state_dict()), 0
    for _ in range(30):
        one_step(run)
        skips += leaves(run.model.state_dict()) == before
    counted = sum(row["skipped"] for row in run.rows) + run.sums["skipped"]
    assert 0 < skips < 30 and counted == skips
    hook.remove()
    weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UsageError, match="norm nan"):  # no scale helps: it is the gradient itself
        fit(run, Silent(), SimpleNamespace(signum=0, requested=bool))


# Settings that are off by default


EXTRAS = {"grad_accumulation": 2, "ema": 0.9, "clip_norm": 0.1, "class_weights": "balanced"}
EXTRAS |= {"patience": 5}


def test_every_extra_setting_resumes_exactly(start, tmp_path):
    flags = [each for name, value in EXTRAS.items() for each in (f"--{name}", value)]
    plain = start("plain")
    whole = start("whole", *flags)
    assert plain.code == whole.code == 0 and "effective batch 4 = 1 x 2 x 2 clips" in whole.out
    with stopping_behind_every_step():
        codes = [start("cut", *flags, "--resume").code for _ in range(9)]
    assert set(codes) == {143}
    assert start("cut", *flags, "--resume").code == 0
    assert remains(tmp_path / "text" / "whole") == remains(tmp_path / "text" / "cut")
    assert remains(tmp_path / "text" / "whole") != remains(tmp_path / "text" / "plain")
    state = load_checkpoint(tmp_path / "text" / "whole" / "last.pth")
    (best,) = (tmp_path / "text" / "whole").glob("3_best_*.pth")
    assert leaves(load_checkpoint(best)["weights"]) == leaves(state["ema"])
    assert leaves(state["weights"]) != leaves(state["ema"])


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def test_a_batch_in_parts_has_the_gradient_of_the_whole(features, tmp_path):
    """Of text, whose encoder has no batch norm."""
    losses, weights = [], []
    for parts in (1, 2, 3, 7):  # 7 clips: at least two in each part
        run = make_run(features, tmp_path, grad_accumulation=parts, optim="sgd")
        without_dropout(run.model)
        losses.append([])
        for _ in range(2):
            one_step(run)
            losses[-1].append(run.sums["loss"])
        weights.append(torch.cat([weight.detach().flatten() for weight in run.trained]))
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        np.testing.assert_allclose(loss, losses[0], rtol=1e-5)
        torch.testing.assert_close(weight, weights[0], rtol=1e-4, atol=1e-6)


def test_a_clipped_gradient_has_that_norm(features, tmp_path):
    norms = []
    for longest in (0.0, 0.01):
        run = make_run(features, tmp_path, clip_norm=longest, optim="sgd")
        one_step(run)
        norms.append(float(torch.nn.utils.get_total_norm([w.grad for w in run.trained])))
    assert norms[0] > 0.1 and abs(norms[1] - 0.01) < 1e-4


def test_balanced_weights_count_every_class_alike(features):
    opened = Features.open(features)
    some = dataset(opened, class_weights="balanced")
    some.labels = some.labels[:10]  # hap, ang and dis twice, the others once
    some.rows = some.rows[:10]
    weights = class_weights(some)
    expected = torch.tensor([10 / (7 * count) for count in (2, 2, 2, 1, 1, 1, 1)])
    assert weights.keys() == {"integrated", "speech", "face"}
    torch.testing.assert_close(weights["integrated"], expected)
    some.config = some.config | {"class_weights": "sqrt"}
    root = expected.sqrt() / (expected.sqrt() / expected).sum() * 7
    torch.testing.assert_close(class_weights(some)["integrated"], root)
    assert class_weights(dataset(opened)) == {}
    some.labels = some.labels[:3]
    assert class_weights(some)["face"].isfinite().all()


def test_the_mean_of_the_weights_follows_them():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema, off = MeanWeights(model, 0.75), MeanWeights(model, 0.0)
    assert off.model is model and ema.model is not model
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for value in model.state_dict().values():
            value += 4
    ema.update(model, 1)  # the first steps count more: 1 - 2 / 11
    torch.testing.assert_close(ema.model[0].weight, start["0.weight"] + 4 * 9 / 11)
    ema.update(model, 10**6)
    torch.testing.assert_close(ema.model[0].weight, start["0.weight"] + 4 * (1 - 2 / 11 * 0.75))
    assert ema.model[1].num_batches_tracked == 4


def test_patience_ends_a_run_that_gets_no_better(start, tmp_path, monkeypatch):
    real, seen = training.loop.validate, []

    def worse(run, stop):
        seen.append(1)
        metrics, signum = real(run, stop)
        metrics["text"].loss_sum = 14.0 * len(seen)
        return metrics, signum

    monkeypatch.setattr(training.loop, "validate", worse)
    run = start("a", "--n_epoch", 9, "--patience", 2)
    assert run.code == 0 and run.out.count("\nepoch ") == 3 and "1_best_" in run.out
    again = start("a", "--n_epoch", 9, "--patience", 2, "--resume")
    assert again.code == 0 and "\nepoch " not in again.out and len(seen) == 3


@pytest.mark.parametrize("change", ["--batch_size 7", "--ema 0.5", "--lam 1", "classes", "clips"])
def test_another_run_is_not_resumed(start, features, tmp_path, change):
    """Refused, with what it was then and what it is now."""
    assert start("a", "--n_epoch", 1).code == 0
    before = remains(tmp_path / "text" / "a")
    if change.startswith("--"):
        run = start("a", "--n_epoch", 1, "--resume", *change.split())
    else:
        other = shutil.copytree(features, tmp_path / "other")
        if change == "classes":
            settings = json.loads((other / "settings.json").read_text())
            settings["classes"].reverse()
            (other / "settings.json").write_text(json.dumps(settings))
        else:
            manifest = (other / "manifest.csv").read_text().splitlines()
            (other / "manifest.csv").write_text("\n".join(manifest[:1] + manifest[2:]))
        run = start("a", "--n_epoch", 1, "--resume", "--features_dir", other)
    assert run.code == 4 and " then, " in run.err and " now" in run.err, run.err
    assert remains(tmp_path / "text" / "a") == before


def test_table_events_and_curves_agree(start, features, tmp_path, monkeypatch):
    """Also after an end between the checkpoint and the table, as a kill makes one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drawn, guesses = [], []

    def draw(path, rows, title, **guess):
        drawn.append(rows[:])
        guesses.append(guess)

    monkeypatch.setattr("utils.run_log.plot_curves", draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.record.Record, "add", lambda record, row: os.kill(os.getpid(), 15))
        assert start("a", "--eval_step", 2).code == 143
    assert start("a", "--eval_step", 2, "--resume").code == 0
    table = pd.read_csv(tmp_path / "text" / "a" / "metrics.csv")
    events = EventAccumulator(str(tmp_path / "text" / "a"))
    events.Reload()
    assert len(table) == 3 and len(list((tmp_path / "text" / "a").glob("events*"))) == 1
    for name in table.columns.drop("epoch"):
        scalars = events.Scalars(name.replace("_", "/", 1))
        known = table[table[name].notna()]
        assert [each.step for each in scalars] == list(known["epoch"])
        np.testing.assert_allclose([each.value for each in scalars], known[name], rtol=1e-6)
        assert [row[name] for row in drawn[-1] if name in row] == pytest.approx(list(known[name]))
    assert load_checkpoint(tmp_path / "text" / "a" / "last.pth")["card"]["corpus"] == "merc2020"
    (config,) = {(each["classes"], each["majority"]) for each in guesses}
    labels = Features.open(features).rows("val")["emotion"].value_counts()
    assert config == (len(CLASSES), (config[1][0], labels.max() / labels.sum()))
    assert labels[config[1][0]] == labels.max()


@pytest.mark.parametrize("pause", [0, 1000])
def test_curves_do_not_take_the_time_of_the_training(start, tmp_path, monkeypatch, pause):
    """Drawn again only after a pause, and whole at the end and at a stop."""
    drawn = []

    def draw(path, rows, *_, **__):
        drawn.append(len(rows))

    monkeypatch.setattr("utils.run_log.plot_curves", draw)
    monkeypatch.setattr("utils.run_log.PAUSE", pause)
    assert start("a").code == 0
    assert drawn == ([1, 2, 3] if pause == 0 else [3])
    drawn.clear()
    with pytest.MonkeyPatch.context() as patch:
        add = training.record.Record.add

        def add_and_stop(record, row):
            add(record, row)
            if row["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(training.record.Record, "add", add_and_stop)
        assert start("b").code == 143
    assert drawn == ([1, 2] if pause == 0 else [2])
    drawn.clear()
    with pytest.MonkeyPatch.context() as patch:
        row = training.run.Run.epoch_row

        def broken(run, epoch):
            if epoch == 2:
                raise UsageError("the loss is no number")
            return row(run, epoch)

        patch.setattr(training.run.Run, "epoch_row", broken)
        assert start("c").code == 2
    assert drawn == [1], "an error says how far it came, too"


# Several processes


SHARED = [(42, 8, 2), (41, 8, 2), (19, 6, 3), (8, 4, 2)]


@pytest.mark.parametrize(("size", "batch", "world"), SHARED)
def test_processes_share_batches_equally_and_evaluate_every_clip_once(size, batch, world):
    def samplers(seed):
        for rank in range(world):
            place = SingleProcess()
            place.rank, place.world = rank, world
            yield EpochBatches(size, batch, seed, place)

    shares = [list(sampler) for sampler in samplers(3)]
    whole = list(EpochBatches(size, batch, 3))
    assert len({len(each) for each in shares}) == 1
    for number, parts in enumerate(zip(*shares, strict=True)):
        assert len({len(part) for part in parts}) == 1 and len(parts[0]) >= 2
        together = {key for part in parts for key in part}
        assert together <= set(whole[number])
        assert len(together) == len(whole[number]) // world * world
    evaluated = [index for each in samplers(None) for part in each for _, index in part]
    assert sorted(evaluated) == list(range(size))
    assert [len(each) for each in samplers(None)] == [len(list(each)) for each in samplers(None)]


WITHOUT_DROPOUT = """
import sys, torch
real = torch.nn.Module.__setattr__
for name in ("Dropout", "MultiheadAttention"):
    kind = getattr(torch.nn, name)
    def without(self, *args, kind=kind, start=kind.__init__, **options):
        start(self, *args, **options)
        setattr(self, "p" if kind is torch.nn.Dropout else "dropout", 0.0)
    kind.__init__ = without
import atexit, gc, os, pathlib
gc.disable()  # as where it has not come by: circles of objects stay
def count():  # last of all: what still runs here can abort the process
    threads = [each.read_text() for each in pathlib.Path("/proc/self/task").glob("*/comm")]
    left = sum("gloo" in name for name in threads)
    os.write(2, f"threads of gloo left: {left}\\n".encode())  # whole, beside the other process
atexit.register(count)
import runpy
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def torchrun(folder: Path, *args: object) -> subprocess.CompletedProcess:
    """train.py without dropout in two processes that talk through gloo."""
    (folder / "plain.py").write_text(WITHOUT_DROPOUT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [folder / "plain.py", *args]
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}
    options = dict(cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return subprocess.run([*map(str, command)], **options)


def test_two_processes_train_like_one(features, tmp_path):
    """Text, which has no batch norm, without dropout: the same losses up to rounding."""
    args = ["--mode", "text", *TINY, "--features_dir", features, "--logs_dir", tmp_path]
    args += ["--batch_size", 6, "--n_epoch", 2, "--device", "cpu", "--class_weights", "balanced"]
    two = torchrun(tmp_path, *args, "--exp_name", "two")
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("threads of gloo left: 0") == 2, two.stderr
    with pytest.MonkeyPatch.context() as patch:
        real = training.run.create_model
        patch.setattr(training.run, "create_model", lambda *a: without_dropout(real(*a)))
        assert run_main("train", *args, "--exp_name", "one").code == 0
    one, other = (pd.read_csv(tmp_path / "text" / name / "metrics.csv") for name in ("one", "two"))
    np.testing.assert_allclose(other, one, rtol=2e-5, atol=1e-7)
    assert (one["val_accuracy"] == other["val_accuracy"]).all()
    assert "effective batch 6 = 2 x 1 x 3 clips" in two.stdout
    assert two.stdout.count("\nepoch ") == 2
    assert json.loads((tmp_path / "text" / "two" / "best.json").read_text())["clips"] == 14
    alone = run_main("train", *args, "--exp_name", "two", "--resume")  # another number goes on
    assert alone.code == 0 and "resumed" in alone.out
