"""Trackers, more epochs, and the line of a run that has learnt nothing."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import write_features
from inside import run_main
from trainings import TINY

from training.record import guesses, no_better_than_guessing
from utils import trackers


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), modalities=("text",))


@pytest.fixture
def start(features, tmp_path):
    def run(*args, name="a"):
        places = ["--features_dir", features, "--logs_dir", tmp_path]
        return run_main("train", "--mode", "text", "--exp_name", name, *TINY, *places, *args)

    return run


class Recorded:
    """Stands in for a tracker's package: remembers what it is told."""

    def __init__(self, monkeypatch):
        self.started, self.rows, self.ended = [], [], 0
        monkeypatch.setattr(trackers, "is_installed", lambda name: True)

    def init(self, **options):
        self.started.append(options)
        return SimpleNamespace(id=options.get("id") or "new-id", log=self.log, finish=self.finish)

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.ended += 1

    # mlflow's
    def set_experiment(self, name):
        self.experiment = name

    def start_run(self, run_id, run_name):
        self.started.append({"id": run_id, "name": run_name})
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new-id"))

    def log_params(self, config):
        self.config = config

    def log_metrics(self, values, step):
        self.log(values, step)

    end_run = finish


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_each_epoch_goes_to_the_tracker_once(start, tmp_path, monkeypatch, name):
    """Also of a run that is resumed, which goes on under its id."""
    package = Recorded(monkeypatch)
    monkeypatch.setitem(sys.modules, name, package)
    assert start("--tracker", name, "--n_epoch", 2).code == 0
    table = pd.read_csv(tmp_path / "text" / "a" / "metrics.csv")
    assert [step for step, _ in package.rows] == [1, 2] and package.ended == 1
    for row, (_, values) in zip(table.to_dict("records"), package.rows, strict=True):
        assert values == pytest.approx({key: row[key] for key in values})
        assert {"train_loss", "val_accuracy"} <= values.keys()
    done = start("--tracker", name, "--n_epoch", 3, "--resume")
    assert done.code == 0, done.err
    assert [step for step, _ in package.rows] == [1, 2, 3]
    first, second = package.started
    assert first["name"] == "text/a" and not first.get("id")
    note = json.loads((tmp_path / "text" / "a" / "tracker.json").read_text())
    assert note["tracker"] == name and note["id"] in (second.get("id"), second.get("name"))


def test_a_tracker_that_is_not_installed_is_told_first(start, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda name: False)
    done = start("--tracker", "wandb")
    assert done.code == 2 and "pip install wandb" in done.err and "Traceback" not in done.err
    assert not list((tmp_path / "text").glob("a/*.pth"))


def test_a_tracker_that_cannot_be_reached_says_so(start, monkeypatch):
    def init(**options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(trackers, "is_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    done = start("--tracker", "wandb")
    assert done.code == 2 and "--tracker wandb does not start: no route to host" in done.err


def test_of_classes_that_are_equally_common_the_first_is_named():
    labels = [{"text": number} for number in (5, 5, 0, 0, -1, -1, -1)]
    classes = SimpleNamespace(classes=["hap", "ang", "dis", "fea", "sad", "neu", "sur"])
    task = SimpleNamespace(main_head="text")
    clips = SimpleNamespace(labels=labels, task=task, features=classes)
    line = no_better_than_guessing({"accuracy": 0.5, "uar": 0.5}, clips)
    assert "always answering hap gives 0.50" in line
    run = SimpleNamespace(val_loader=SimpleNamespace(dataset=clips), task=task, features=classes)
    assert guesses(run) == {"classes": 7, "majority": ("hap", 0.5)}


def test_a_finished_run_goes_on_for_more_epochs(start, tmp_path):
    folder = tmp_path / "text" / "a"
    assert start("--n_epoch", 2).code == 0
    assert not (folder / "previous.pth").exists(), "twice the same"
    done = start("--n_epoch", 4, "--resume")
    assert done.code == 0 and "2 epochs then, 4 now" in done.err, done.err
    assert list(pd.read_csv(folder / "metrics.csv")["epoch"]) == [1, 2, 3, 4]
    done = start("--n_epoch", 3, "--resume")
    assert done.code == 4 and "n_epoch: 4 then, 3 now" in done.err


@pytest.mark.parametrize(
    ("accuracy", "uar", "said"),
    [(0.3, 0.14, True), (0.3, 0.5, False), (0.9, 0.9, False), (0.41, 0.2, True), (0.1, 0.1, True)],
)
def test_a_run_that_learnt_nothing_says_so(accuracy, uar, said):
    labels = [{"text": number % 7} for number in range(49)] + [{"text": 4}] * 21 + [{"text": -1}]
    task = SimpleNamespace(main_head="text")
    classes = SimpleNamespace(classes=["hap", "ang", "dis", "fea", "sad", "neu", "sur"])
    clips = SimpleNamespace(labels=labels, task=task, features=classes)
    line = no_better_than_guessing({"accuracy": accuracy, "uar": uar}, clips)
    assert bool(line) == said
    if said:
        assert f"accuracy {accuracy:.2f} over 70 clips" in line
        assert "always answering sad gives 0.40" in line and "docs/questions.md" in line
