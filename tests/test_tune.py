"""tune.py: a search that chooses on validation clips, goes on after a stop, and is shared."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT, write_features
from extras import need
from inside import run_main

import tune

need("optuna")
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "optim": ["adamw", "sgd"]}
TINY = ["--text_layers", 1, "--text_heads", 2, "--n_epoch", 1, "--num_workers", 0]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), modalities=("text",))


@pytest.fixture
def command(features, tmp_path):
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    places = ["--features_dir", features, "--logs_dir", tmp_path]
    return ["--mode", "text", "--exp_name", "s", "--space", tmp_path / "space.json", *places, *TINY]


def test_a_search_from_a_kill_to_its_recipe(command, tmp_path):
    """What is killed ends with its training: else that would hold the folder, and the trial would
    fail."""
    line = [sys.executable, str(ROOT / "tune.py"), *map(str, command), "--trials", "1"]
    folder = tmp_path / "tune" / "s"
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "text" / "trial-0000").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for trials in (1, 2):
        done = run_main("tune", *command, "--trials", trials)
        assert done.code == 0, done.err
        table = pd.read_csv(folder / "trials.csv")
        assert table["trial"][0] == "trial-0000" and len(table) == trials
    assert "trials done: 1 of 2" in done.out
    assert set(table["optim"]) <= {"adamw", "sgd"}
    assert table["learning_rate"].between(1e-4, 1e-2).all()
    for row in table.itertuples():
        best = json.loads((folder / "text" / row.trial / "best.json").read_text())
        config = json.loads((folder / "text" / row.trial / "config.json").read_text())
        assert best["uar"] == pytest.approx(row.uar)
        assert config["learning_rate"] == pytest.approx(row.learning_rate)
    chosen = json.loads((folder / "best.json").read_text())
    assert chosen["learning_rate"] == pytest.approx(
        table.loc[table["uar"].idxmax(), "learning_rate"]
    )
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    recipe = (folder / "recipe.sh").read_text()
    assert f"--learning_rate={chosen['learning_rate']!r}" in recipe and "luckiest" in recipe
    again = run_main("tune", *command, "--trials", 2)
    assert again.code == 0 and "trials done: 2 of 2" in again.out
    other = run_main("tune", *command, "--trials", 3, "--measure", "loss")
    assert other.code == 2 and "measure uar then, loss now" in other.err


@pytest.mark.slow
def test_two_searches_share_the_work(command, tmp_path):
    line = [sys.executable, str(ROOT / "tune.py"), *map(str, command), "--trials", "3"]
    both = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    table = pd.read_csv(tmp_path / "tune" / "s" / "trials.csv")
    assert 3 <= len(table) <= 4 and table["trial"].is_unique


# A training of half a second. Some fail.
PRETENDED = """
import json, pathlib, sys, time
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
name, folder = flags["--exp_name"], pathlib.Path(flags["--logs_dir"])
if name in FAILS:
    sys.exit("it fails")
time.sleep(0.5)
place = folder / "text" / name
place.mkdir(parents=True, exist_ok=True)
(place / "best.json").write_text(json.dumps({"uar": len(name) / 20}))
"""


def pretend(tmp_path, fails=()) -> list[str]:
    """The code of a program like tune.py whose trainings are pretended."""
    script = PRETENDED.replace("FAILS", repr(fails))
    (tmp_path / "pretended.py").write_text(script)
    lines = ["import sys, tune", "tune.check_training = lambda *args: None"]
    lines.append(
        f"tune.training = lambda args: [sys.executable, {str(tmp_path / 'pretended.py')!r}]"
    )
    return [sys.executable, "-c", "\n".join([*lines, "tune.run_script(tune.main)"])]


def begin(program: list[str], command: list, *flags: object) -> subprocess.Popen:
    line = [*program, *map(str, command), *map(str, flags)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def trials_of(place) -> list[str]:
    return sorted(pd.read_csv(place / "tune" / "s" / "trials.csv")["trial"])


def test_so_many_trials_are_finished_as_were_asked_for(command, tmp_path):
    """Also with several at once, of which one fails, and behind an earlier search."""
    program = pretend(tmp_path, fails=("trial-0002",))
    for trials, jobs in ((1, 1), (4, 2), (7, 3)):
        done = begin(program, command, "--trials", trials, "--jobs", jobs)
        assert done.wait(120) == 0, done.stderr.read()
        assert len(trials_of(tmp_path)) == trials
    names = [f"trial-{number:04d}" for number in range(8)]
    assert trials_of(tmp_path) == [name for name in names if name != "trial-0002"]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"learning_rte": [1]}, "did you mean learning_rate?"),
        ({"learning_rate": {"low": 1}}, "no list and no range"),
        ({"learning_rate": {"low": 1, "high": 0.1}}, "no list and no range"),
        ({"learning_rate": []}, "no list and no range"),
        ({"learning_rate": [-1]}, "-1 is not allowed"),
        ({"class_weights": ["none", "some"]}, "'some' is not allowed"),
        ({}, "expected settings by name"),
        ([], "expected settings by name"),
    ],
)
def test_spaces_that_cannot_be_searched(command, tmp_path, space, says):
    (tmp_path / "space.json").write_text(json.dumps(space))
    done = run_main("tune", *command)
    assert done.code == 2 and says in done.err and "Traceback" not in done.err


DAMAGED = {
    "cut short": b'{"mode": "te',
    "no object": b"[]",
    "other types": b'{"mode": 3, "space": [], "measure": null, "flags": "x"}',
    "nothing": b"",
    "no UTF-8": b'{"mode": "\xff"}',
    "without end": b"[" * 100_000,
    "huge": b" " * (2 << 20) + b"{}",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_record_of_a_search_is_named(command, tmp_path, monkeypatch, what):
    import tune

    monkeypatch.setattr(tune, "check_training", lambda *args: None)
    path = tmp_path / "tune" / "s" / "search.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED[what])
    done = run_main("tune", *command)
    assert done.code == 4 and done.err.count("\n") == 1 and len(done.err) < 600, done.err
    assert str(path) in done.err and "take another --exp_name" in done.err
    assert path.read_bytes() == DAMAGED[what]


@pytest.mark.parametrize("journal", [b"garbage\n", b"[]\n", b'{"op_code": 99}\n', b"\xff\n"])
def test_a_damaged_journal_of_a_search_is_named(command, tmp_path, monkeypatch, journal):
    import tune

    monkeypatch.setattr(tune, "check_training", lambda *args: None)
    path = tmp_path / "tune" / "s" / "study.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(journal)
    done = run_main("tune", *command)
    assert done.code == 4 and f"{path} is damaged" in done.err, done.err


def test_what_train_py_refuses_is_told_before_any_trial(command, tmp_path):
    done = run_main("tune", *command, "--n_epochs", 3)
    assert done.code == 2 and "did you mean --n_epoch?" in done.err
    done = run_main("tune", *command, "--optim", "sgd")
    assert done.code == 2 and "--optim is in" in done.err
    done = run_main("tune", *command, "--fold", 0)
    assert done.code == 2 and "--val_fold next" in done.err
    assert not list(tmp_path.glob("tune/s/text/*"))


def test_a_search_in_which_nothing_works_ends(command, monkeypatch):
    import tune

    monkeypatch.setattr(tune, "check_training", lambda *args: None)
    done = run_main("tune", *command, "--trials", 5, "--n_epochs", 3)
    assert "trial-0002" in done.out and "trial-0003" not in done.out
    assert "failed: train.py: unrecognized arguments" in done.out
    assert done.code == 2 and "the first three trials failed" in done.err, done.err


@pytest.mark.parametrize(
    ("flags", "is_right"),
    [
        (["--fold", "0"], False),
        (["--fold=0"], False),
        (["--fold", "0", "--val_fold=next"], True),
        (["--fold=all", "--val_fold", "next"], False),
        (["--config=x.json"], False),
        (["--resume"], False),
    ],
)
def test_a_search_never_chooses_on_test_people(monkeypatch, flags, is_right):
    own = ["--mode", "text", "--exp_name", "s", "--space", "s.json"]
    monkeypatch.setattr(sys, "argv", ["tune.py", *own, *flags])
    if is_right:
        assert tune.parse_args().train_flags == flags
    else:
        with pytest.raises(SystemExit):
            tune.parse_args()
