"""What ends a training in the middle of something: signals, readers that die, data that changes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUIET, ROOT, run_script, write_features
from inside import run_main
from trainings import (
    TINY,
    BehindAStep,
    add_feature,
    dataset,
    leaves,
    make_run,
    one_step,
    remains,
)

import training.data
import training.losses
import training.modalities
import training.run
from training.checkpoint import best_checkpoint, load_checkpoint
from training.data import make_loader
from training.features import Features
from training.loader import LoaderError
from training.loop import fit, validate
from training.stopping import StepInterrupted
from utils.distributed import Silent
from utils.errors import Interrupted


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture
def start(features, tmp_path):
    def run(name, *args, mode="text", folder=features):
        places = ["--features_dir", folder, "--logs_dir", tmp_path]
        return run_main("train", "--mode", mode, "--exp_name", name, *TINY, *places, *args)

    return run


# Signals within a step


class Asked(BehindAStep):
    """Says no to that many questions whether to stop within a step, then yes."""

    def __init__(self, run, noes: int):
        super().__init__(run)
        self.noes, self.questions = noes, 0

    def requested(self) -> bool:
        self.questions += 1
        return self.questions > self.noes

    @property
    def signum(self) -> int:
        return signal.SIGTERM if self.questions > self.noes else super().signum


@pytest.mark.parametrize("mode", ["text", "multimodal"])
def test_a_step_that_is_left_half_way_has_never_begun(features, tmp_path, mode):
    """Left anywhere on its way forward or back; weights, statistics and all are those before it."""
    extras = {"grad_accumulation": 2, "ema": 0.5, "optim": "ranger", "batch_size": 4}
    run, other = (make_run(features, tmp_path, mode, **extras) for _ in range(2))
    for each in (run, other):
        one_step(each)
    always = Asked(run, 10**9)
    with pytest.raises(Interrupted):
        fit(run, Silent(), always)
    one_step(other)
    assert leaves(run.state()) == leaves(other.state()), "asking changes a step"
    assert always.questions > 2 * len(run.trained)
    before = leaves(run.state())
    for noes in (0, always.questions // 3, always.questions * 2 // 3, always.questions - 1):
        stop = Asked(run, noes)
        with pytest.raises(Interrupted, match="in epoch 1 after step 2; saved in"):
            fit(run, Silent(), stop)
        assert stop.questions == noes + 1, "it went on after the answer"
        assert leaves(run.state()) == before
    for each in (run, other):
        one_step(each)
    assert leaves(run.state()) == leaves(other.state())


def test_a_validation_is_left_within_a_batch(features, tmp_path):
    run = make_run(features, tmp_path, "speech")
    before, (whole, _) = leaves(run.state()), validate(run, Asked(run, 10**9))
    stop = Asked(run, 10**9)
    again, signum = validate(run, stop)
    assert again["speech"].summary() == whole["speech"].summary() and signum == 0
    assert stop.questions > 20 * len(run.val_loader)  # one before each layer
    stop = Asked(run, stop.questions // 3)
    with pytest.raises(StepInterrupted):
        validate(run, stop)
    assert stop.questions == stop.noes + 1 and leaves(run.state()) == before


STOPS = [(signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGHUP, 1)]


@pytest.mark.parametrize(("signum", "times"), STOPS)
def test_a_signal_within_a_step_leaves_it_out(start, tmp_path, monkeypatch, signum, times):
    """It comes between the way forward and the way back of the fifth step; from a launcher it
    comes twice, also to a process that is the only one."""
    assert start("whole").code == 0
    real, calls = training.losses.cross_entropy, []
    if times == 2:
        monkeypatch.setenv("WORLD_SIZE", "1")

    def loss(*args, **settings):
        calls.append(args)
        for _ in range(times if len(calls) == 5 else 0):
            os.kill(os.getpid(), signum)
        return real(*args, **settings)

    monkeypatch.setitem(training.losses.LOSSES, "cross_entropy", loss)
    cut = start("cut")
    assert cut.code == 128 + signum and "in epoch 2 after step 4; saved" in cut.err, cut.err
    assert len(calls) == 5
    assert start("cut", "--resume").code == 0
    assert remains(tmp_path / "text" / "whole") == remains(tmp_path / "text" / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["one of them", "their launcher"])
def test_a_signal_to_one_of_two_processes_stops_both(features, tmp_path, killed):
    """The other one is at the same step: both leave behind it, one has saved. A launcher that is
    killed leaves nobody training: all have closed their stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["train.py", "--mode", "text", "--exp_name", "run", *TINY, "--n_epoch", "5000"]
    command += ["--features_dir", features, "--logs_dir", tmp_path, "--batch_size", "10"]
    options = dict(cwd=ROOT, env={**os.environ, **QUIET}, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([*map(str, command)], **options) as launcher:
        metrics = tmp_path / "text" / "run" / "metrics.csv"
        wait_until(metrics.exists, 120)
        [second] = [each for each in children(launcher.pid) if variable(each, "RANK") == "1"]
        if killed == "one of them":
            os.kill(second, signal.SIGTERM)
        else:
            launcher.kill()
        began, (_, said) = time.monotonic(), launcher.communicate(timeout=60)
    assert time.monotonic() - began < 10 and "; saved" in said, said
    assert load_checkpoint(tmp_path / "text" / "run" / "last.pth")["rows"]


def wait_until(what, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    folders = Path(f"/proc/{parent}/task").iterdir()
    return [int(each) for folder in folders for each in (folder / "children").read_text().split()]


def variable(process: int, name: str) -> str | None:
    entries = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return dict(each.split("=", 1) for each in entries if "=" in each).get(name)


SLURM = {  # what the recipe calls: a job step of its own process group, signals to that, a queue
    "srun": 'while [[ $1 == -* ]]; do shift; done; setsid "$@" & echo $! > "$JOB/step"; wait $!',
    "scancel": 'echo "$@" > "$JOB/asked"; kill -TERM -- "-$(cat "$JOB/step")"',
    "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$@" > "$JOB/requeued"; fi',
}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_recipe_for_slurm_requeues_until_it_is_done(features, tmp_path, processes):
    """SIGUSR1 to the job: the step is asked to stop, has saved, and the next start ends the run."""
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"JOB_ID": os.getpid(), "JOB_NODELIST": "here", "NNODES": 1, "CPUS_PER_TASK": 0}
    job |= {"GPUS_ON_NODE": processes}
    env = {**os.environ, **QUIET, "PATH": path, "JOB": str(tmp_path)} | {
        f"SLURM_{k}": str(v) for k, v in job.items()
    }
    args = ["--mode", "text", "--exp_name", "a", *TINY, "--n_epoch", 25, "--batch_size", 14]
    args += ["--features_dir", features, "--logs_dir", tmp_path, "--device", "cpu"]

    def submit(log: Path) -> subprocess.Popen:
        command = ["bash", "recipes/slurm.sh", *map(str, args)]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=open(log, "w"))

    first = submit(tmp_path / "first.txt")
    while "epoch 2/" not in (tmp_path / "first.txt").read_text():
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(300) == 0
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert (tmp_path / "asked").read_text() == f"--signal=TERM {os.getpid()}.0\n"
    rows = load_checkpoint(tmp_path / "text" / "a" / "last.pth")["rows"]
    assert 2 <= len(rows) < 25, "it was not stopped, or not saved"
    assert submit(tmp_path / "second.txt").wait(300) == 0
    said = (tmp_path / "second.txt").read_text()
    assert "resumed" in said and f"epoch {len(rows) + 1}/25" in said, said
    table = pd.read_csv(tmp_path / "text" / "a" / "metrics.csv")
    assert list(table["epoch"]) == list(range(1, 26))


# Readers that die, files that change


def test_a_killed_reader_costs_nothing(start, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    assert start("whole", "--seed", 7).code == 0
    real, others = training.run.MeanWeights.update, set(multiprocessing.active_children())

    def behind_the_update(means, model, step):
        if step == 2:
            (set(multiprocessing.active_children()) - others).pop().kill()
        return real(means, model, step)

    monkeypatch.setattr(training.run.MeanWeights, "update", behind_the_update)
    run = start("cut", "--seed", 7, "--num_workers", 2)
    assert run.code == 2 and "clips was killed" in run.err and "--num_workers" in run.err, run.err
    said = run.err.split("clips were being read: ")[1].split("; saved in ")[0]
    said, _, others = said.partition(" and ")
    ids = {f"{number:05d}" for number in range(14)}
    # one batch of 4, or more of them if the reader had not handed the last one over
    named = said.split(", ")
    assert set(named) <= ids and len(named) in (4, 8) and re.fullmatch(r"(\d more)?", others), said
    monkeypatch.undo()
    assert start("cut", "--seed", 7, "--resume").code == 0
    assert remains(tmp_path / "text" / "whole") == remains(tmp_path / "text" / "cut")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_reader_that_dies_while_it_hands_a_batch_over(features, tmp_path, monkeypatch, error):
    loader = make_run(features, tmp_path).train_loader
    loader.num_workers, loader.prefetch_factor = 2, 2

    def breaks(self):
        yield {}
        raise error

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", breaks)
    with pytest.raises(LoaderError, match=r"that reads clips was killed.* clips were being read"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_damaged_while_training(start, tmp_path, monkeypatch, workers):
    """One line names it, no reader stays behind; with the file back the run ends as ever."""
    folder = write_features(tmp_path / "features", modalities=("text",))
    every_clip = ("--batch_size", 7)  # of each epoch
    assert start("whole", *every_clip, folder=folder).code == 0
    path = folder / "train" / "text" / "00003.npz"
    content, real = path.read_bytes(), training.run.Run.targets

    def third_step(run, batch):
        if run.step == 2:
            path.write_bytes(content[:100])
        return real(run, batch)

    monkeypatch.setattr(training.run.Run, "targets", third_step)
    run = start("cut", *every_clip, "--num_workers", workers, folder=folder)
    assert run.code == 4 and f"{path} was changed meanwhile" in run.err, run.err
    assert "Traceback" not in run.err and "saved in" in run.err.splitlines()[-1]
    path.write_bytes(content)
    monkeypatch.undo()
    assert start("cut", *every_clip, "--resume", folder=folder).code == 0
    assert remains(tmp_path / "text" / "whole") == remains(tmp_path / "text" / "cut")


def run_code(code: str, features: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-c", code, str(features)],
        env={**os.environ, **QUIET, "PYTHONPATH": paths},
        timeout=60,
        capture_output=True,
        text=True,
    )


KEEPS_ITS_CALLER = """
import gc, sys
from pathlib import Path
from trainings import dataset
from training.data import make_loader
from training.features import Features

def read():
    loader = make_loader(dataset(Features.open(Path(sys.argv[1])), "text"), 5, 2, "cpu")
    next(iter(loader))
    try:
        raise ValueError
    except ValueError as error:
        kept.append(error)

gc.disable()
kept = []
read()
"""


def test_readers_are_gone_when_a_run_is(start):
    """Although something, as matplotlib does, keeps an exception and thereby the run's loaders."""
    others = set(multiprocessing.active_children())
    gc.disable()
    try:
        assert start("a", "--num_workers", 2).code == 0
        assert set(multiprocessing.active_children()) == others
    finally:
        gc.enable()


def test_a_process_ends_with_its_readers(features):
    assert run_code(KEEPS_ITS_CALLER, features).returncode == 0


KEEPS_ITS_MEMORY = """
import sys
from pathlib import Path
import torch
from trainings import dataset
from training.data import make_loader
from training.features import Features
from utils.parallel import set_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

loader = make_loader(dataset(Features.open(Path(sys.argv[1])), "text"), 5, 1, "cpu")
set_memory()
torch.ones(300, 2**18)
full = resident()
next(iter(loader))
print(full - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_readers_hold_no_memory_that_is_free(features):
    """300 MiB that a step used would be doubled by each new reader: forked, it holds them too."""
    given = run_code(KEEPS_ITS_MEMORY, features)
    assert float(given.stdout) > 250, given


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_names_the_clip(start, monkeypatch, workers):
    broken = replace(training.modalities.MODALITIES["text"], view=lambda *_: 1 // 0)
    monkeypatch.setitem(training.modalities.MODALITIES, "text", broken)
    with pytest.raises(ZeroDivisionError) as bug:
        start("a", "--num_workers", workers)
    told = str(bug.value) + str(getattr(bug.value, "__notes__", ""))
    assert "in clip train/000" in told, told


@pytest.mark.parametrize("flags", ["00000000", ""])
def test_a_clip_without_any_face_is_named_before_training(start, tmp_path, flags):
    folder = write_features(tmp_path / "features", 1, modalities=("video",))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table.loc[table["clip_id"] == "00009", "face_valid"] = flags
    table.to_csv(folder / "manifest.csv", index=False)
    run = start("a", "--dry_run", mode="face", folder=folder)
    assert run.code == 4 and f"face_valid {flags!r} of clip val/00009" in run.err, run.err


def test_own_features_that_changed_are_not_resumed(start, tmp_path):
    folder = write_features(tmp_path / "features", modalities=("text",))
    add_feature(folder, "au", (12,))
    inputs = ["--inputs", "au,text", "--n_epoch", 1]
    assert start("a", *inputs, mode="multimodal", folder=folder).code == 0
    again = start("a", *inputs, "--resume", mode="multimodal", folder=folder)
    assert again.code == 0, again.err
    path = folder / "val" / "au" / "00014.npy"
    np.save(path, np.load(path) + 1)
    run = start("a", *inputs, "--resume", mode="multimodal", folder=folder)
    assert run.code == 4 and "its run differs: content of au: " in run.err and " now" in run.err, (
        run.err
    )


def test_built_in_features_that_changed_are_not_resumed(start, tmp_path):
    folder = write_features(tmp_path / "features", splits=("train", "val"))
    assert start("a", folder=folder).code == 0
    path = next((folder / "train" / "text").glob("*.npz"))
    np.savez(path, word_embed=np.ones((3, 16), np.float32))
    run = start("a", "--resume", folder=folder)
    assert run.code == 4 and "its run differs: content of text: " in run.err, run.err
    dry = start("a", "--resume", "--dry_run", "--learning_rate", "0.5", folder=folder)
    assert dry.code == 4 and "learning_rate" in dry.err


def test_readers_that_hang_do_not_keep_a_run_from_stopping(start, tmp_path, monkeypatch):
    """They stop for ever in their fourth clip, as a network can; the signal comes meanwhile."""
    view, main = training.data.ClipDataset.view, os.getpid()

    def hang(self, row, *args):
        if os.getpid() != main and self.training and row["clip_id"] == "00003":
            os.kill(main, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGSTOP)
        return view(self, row, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training.data.ClipDataset, "view", hang)
        began = time.monotonic()
        cut = start("a", "--num_workers", "2")
    assert cut.code == 143 and "saved in" in cut.err, cut.err
    assert time.monotonic() - began < 15
    assert start("a", "--resume").code == 0
    assert start("whole").code == 0
    assert remains(tmp_path / "text" / "a") == remains(tmp_path / "text" / "whole")


def test_a_best_checkpoint_is_neither_lost_nor_trusted_blindly(start, tmp_path):
    folder = tmp_path / "text" / "a"
    assert start("a", "--n_epoch", "4", "--eval_step", "2").code == 0
    (best,) = folder.glob("*_best_*.pth")
    whole = best.read_bytes()
    best.write_bytes(whole[:100])
    run = start("a", "--n_epoch", "4", "--eval_step", "2", "--resume")
    assert run.code == 4 and best.name in run.err and "delete it" in run.err
    best.unlink()
    run = start("a", "--n_epoch", "4", "--eval_step", "2", "--resume")
    assert run.code == 4 and "is gone: only a better epoch" in run.err and "--overwrite" in run.err
    (folder / "4_best_1.0000.pth").write_bytes(whole)
    for name in ("last.pth", "previous.pth", "best.json"):
        (folder / name).unlink(missing_ok=True)
    run = start("a", "--n_epoch", "4", "--eval_step", "2", "--resume")
    assert run.code == 2 and "nothing to go on from" in run.err
    assert (folder / "4_best_1.0000.pth").is_file()


def test_a_run_goes_on_without_the_weights_it_started_from(start, tmp_path):
    assert start("first").code == 0
    flags = ["--text_load_weights", tmp_path / "text" / "first"]
    assert start("second", *flags).code == 0
    seen = load_checkpoint(tmp_path / "text" / "second" / "last.pth")["clips"]
    (tmp_path / "text" / "first").rename(tmp_path / "elsewhere")
    for name in ("best.json", "metrics.csv"):
        (tmp_path / "text" / "second" / name).unlink()
    run = start("second", *flags, "--resume")
    assert run.code == 0 and (tmp_path / "text" / "second" / "best.json").is_file(), run.err
    again = load_checkpoint(tmp_path / "text" / "second" / "last.pth")["clips"]
    assert all(torch.equal(seen[name], again[name]) for name in seen)


def test_a_terminal_that_closes_costs_nothing(features, tmp_path):
    """The run's terminal is gone in the middle of its training."""
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "a", *TINY]
    flags = [*places, "--n_epoch", "400", "--num_workers", "2"]
    command = [sys.executable, "train.py", "--mode", "text", *flags]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, list(map(str, command)))
    seen = b""
    while b"epoch 3/400" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert len(load_checkpoint(tmp_path / "text" / "a" / "last.pth")["rows"]) >= 3


HOLDS_READERS = """
import multiprocessing, os, signal, sys
from pathlib import Path
from trainings import dataset
from training.data import make_loader
from training.features import Features

loader = make_loader(dataset(Features.open(Path(sys.argv[1])), "text"), 5, 2, "cpu")
next(iter(loader))
print(*(each.pid for each in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch looks every five seconds")
def test_readers_end_with_a_run_that_is_killed(features):
    done = run_code(HOLDS_READERS, features)
    readers = [Path("/proc") / pid for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(readers) == 2
    until = time.monotonic() + 3
    while any(map(alive, readers)):
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(process: Path) -> bool:
    """A dead one that nobody has waited for yet counts as dead."""
    try:
        return "Z" not in (process / "stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


# Odd surroundings


TRAIN = "train.py --mode text --exp_name a"


ONE_OF_THEM = [pytest.param(each, marks=pytest.mark.slow) for each in ("2>&-", ">&-")]


@pytest.mark.parametrize("closed", [*ONE_OF_THEM, ">&- 2>&- <&-"])
def test_closed_streams_end_nothing(features, tmp_path, closed):
    flags = f"{' '.join(TINY)} --features_dir {features} --logs_dir {tmp_path}"
    command = f"exec {sys.executable} {TRAIN} {flags} {closed}"
    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, env=os.environ | QUIET, check=False)
    assert ended.returncode == 0 and best_checkpoint(tmp_path / "text" / "a")


SAYS = """
import os, sys
sys.addaudithook(lambda event, _: event == "os.rename" and os.write(2, b" said by a library"))
"""


def test_what_is_said_on_closed_streams_gets_into_no_file(tmp_path):
    """A descriptor that is closed would be that of the next file: here of the lock."""
    (tmp_path / "sitecustomize.py").write_text(SAYS)
    table = "media,split,emotion,transcript\na.mp4,train,hap,the day\nb.mp4,val,sad,the\n"
    (tmp_path / "manifest.csv").write_text(table)
    np.savez(tmp_path / "v.npz", words=np.array(["the", "day"]), vectors=np.eye(2, dtype="f4"))
    flags = "--corpus csv --modalities text --word_vectors v.npz --data_dir . --features_dir f"
    command = f"exec {sys.executable} {ROOT / 'preprocess.py'} {flags} >&- 2>&- <&-"
    env = os.environ | QUIET | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env).returncode == 0
    assert len([*(tmp_path / "f").glob("*/text/*.npz")]) == 2
    assert re.fullmatch(r"process \d+ on \S+", (tmp_path / "f" / ".lock").read_text())


def test_a_terminal_without_unicode_gets_escapes():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from utils.errors import run_script; run_script(lambda: print('0.5 \\xb1 0.1'))"
    run = run_script("-c", code, env=plain)
    assert run.returncode == 0 and run.stdout == "0.5 \\xb1 0.1\n", run


@pytest.mark.parametrize("limit", [18, pytest.param(24, marks=pytest.mark.slow)])
def test_too_few_open_files_is_one_line(features, tmp_path, limit):
    flags = f"{' '.join(TINY)} --num_workers 2 --features_dir {features} --logs_dir {tmp_path}"
    command = f"ulimit -n {limit}; exec {sys.executable} {TRAIN} {flags}"
    ended = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True
    )
    assert ended.returncode == 2 and "ulimit -n" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("mode", "told"),
    [("text", "a process that reads clips was killed"), ("face", "cannot be handed over: .*shm")],
)
def test_a_batch_that_cannot_be_handed_over_ends_the_loader(features, mode, told):
    """`ulimit -f` counts for /dev/shm too, and too few open files are met there as well: the worker
    would drop the batch, and the loader wait for ever."""
    loader = make_loader(dataset(Features.open(features), mode), 7, 1, "cpu")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(LoaderError, match=told):
            next(iter(loader))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        loader.close()
