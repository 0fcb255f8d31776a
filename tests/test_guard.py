"""A clip's process that dies, hangs or eats the memory costs that clip, and says so."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_clip, run_script, tone

from utils import guard
from utils.errors import ClipError, UsageError
from utils.guard import Limits, guarded, lift_memory_limit

FEW = Limits(seconds=20, memory_mb=0)


def refuse(kind: type, *args) -> None:
    raise kind(*args)


def suicide(signum: int) -> None:
    os.kill(os.getpid(), signum)


def die_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def read_twice(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        raise ClipError("E_READ", "stale")
    return "done"


def hold(megabytes: int) -> None:
    lift_memory_limit()
    sys.held = np.ones(megabytes << 17)


def test_calls_have_one_process_of_their_own():
    first, second = (guarded(os.getpid, limits=FEW) for _ in range(2))
    assert first == second != os.getpid()


FAULTS = {
    "a segmentation fault": (suicide, (signal.SIGSEGV,), "E_KILLED", "SIGSEGV"),
    "an exit": (os._exit, (7,), "E_KILLED", "code 7"),
    "an endless loop": (time.sleep, (1e6,), "E_TIMEOUT", "2 s"),
    "too much memory": (np.ones, (1 << 30,), "E_KILLED", "--memory_mb"),
    "a bug": (refuse, (KeyError, "x"), "E_CRASH", "KeyError('x')"),
    "a bad clip": (refuse, (ClipError, "E_OPEN", "bytes"), "E_OPEN", "bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_have_a_code_and_the_next_call_works(fault):
    function, args, code, why = FAULTS[fault]
    limits = Limits(seconds=2 if code == "E_TIMEOUT" else 20, memory_mb=1000)
    began = time.perf_counter()
    with pytest.raises(ClipError) as caught:
        guarded(function, *args, limits=limits)
    assert caught.value.code == code and why in caught.value.reason
    assert time.perf_counter() - began < 60
    assert guarded(abs, -1, limits=FEW) == 1


def test_what_the_driver_of_a_gpu_holds_is_not_counted():
    limits = Limits(seconds=20, memory_mb=300)
    guarded(hold, 500, limits=limits)
    before = guarded(os.getpid, limits=limits)
    assert len(guarded(bytes, 1 << 26, limits=limits)) == 1 << 26
    assert guarded(os.getpid, limits=limits) == before  # no other process, which loads all anew
    with pytest.raises(ClipError, match="--memory_mb"):
        guarded(bytes, 400 << 20, limits=limits)


def test_a_process_killed_by_another_is_tried_once_more(tmp_path, monkeypatch):
    """In the seconds that are left."""
    call, left = guard._call, []

    def timed(*args):
        left.append(args[-1] - time.monotonic())
        return call(*args)

    monkeypatch.setattr(guard, "_call", timed)
    assert guarded(die_once, str(tmp_path / "marker"), limits=FEW) == "done"
    first, second = left
    assert second < first <= FEW.seconds


def test_a_network_that_comes_back_is_read(tmp_path):
    assert guarded(read_twice, str(tmp_path / "marker"), limits=FEW) == "done"


def test_what_stops_the_run_passes_through():
    with pytest.raises(UsageError, match="no space"):
        guarded(refuse, UsageError, "no space left", limits=FEW)


def test_a_process_that_cannot_start_lacks_memory(monkeypatch):
    """Where address space is short, the process that the others are forked from dies."""

    def start(process):
        raise EOFError("unexpected EOF")

    with monkeypatch.context() as patch:
        patch.setattr(guard, "_here", threading.local())
        patch.setattr(multiprocessing.context.ForkServerProcess, "start", start)
        with pytest.raises(MemoryError, match="could not start"):
            guarded(os.getpid, limits=FEW)
    assert guarded(abs, -1, limits=FEW) == 1


ORPHAN = """
import os, signal, threading, time
from utils.guard import Limits, guarded
print(guarded(os.getpid, limits=Limits(60, 0)), flush=True)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
guarded(time.sleep, 1e6, limits=Limits(99, 0))
"""


def test_no_process_outlives_its_parent():
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    child, began = int(done.stdout), time.perf_counter()
    while Path(f"/proc/{child}").exists():
        assert time.perf_counter() - began < 10
        time.sleep(0.02)


def test_a_long_name_of_the_temporary_folder_is_no_matter(tmp_path):
    """As batch systems give one: a socket's path may have 108 bytes."""
    raw, place = tmp_path / "raw", tmp_path / ("job-of-a-cluster-with-a-long-name-" * 3)
    place.mkdir()
    make_clip(raw / "a.wav", sound=tone(1.0), sound_codec="pcm_s16le")
    (raw / "manifest.csv").write_text("media,split,emotion\na.wav,train,hap\n")
    flags = ["--corpus", "csv", "--modalities", "speech", "--data_dir", raw]
    flags += ["--features_dir", tmp_path / "features", "--workers", 1]
    done = run_script("preprocess.py", *flags, env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    assert not [*place.glob("pymp-*")]


def test_libraries_that_cannot_be_loaded_are_no_fault_of_a_clip(monkeypatch):
    """One line about the machine, and no table of clips that are called damaged."""
    limits = Limits(seconds=20, memory_mb=0, libraries=("no_library_of_this_name",))
    told = []

    def ask() -> None:  # a thread of its own has a child of its own
        with pytest.raises(UsageError, match=r"what reads clips cannot be loaded: .*no_library"):
            guarded(abs, -1, limits=limits)
        told.append(True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert told
    monkeypatch.setattr(guard, "_is_limited", lambda: True)  # ulimit -v
    assert isinstance(guard._load(limits.libraries), MemoryError)
    assert guard._load(("json",)) is None
    with pytest.raises(MemoryError, match="ulimit -v"):  # as OpenBLAS ends a process
        guarded(os._exit, 1, limits=FEW)
    assert guarded(abs, -1, limits=FEW) == 1
