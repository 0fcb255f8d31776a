"""Temporary folders: gone at every end, swept after a kill, and nothing else is touched."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from utils import files
from utils.errors import UsageError
from utils.scratch import LOCK, scratch_folder, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def start(code: str, folder: Path) -> subprocess.Popen:
    code = f"import os, sys, signal\nfrom utils.scratch import scratch_folder\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def leave(temporary: Path, name: str) -> Path:
    """A folder as a killed process leaves it, made by hand."""
    (temporary / name / "files").mkdir(parents=True)
    (temporary / name / LOCK).touch()
    (temporary / name / "files" / "face.mp4").write_text("a face")
    return temporary / name


def test_it_is_gone_at_its_end(temporary):
    with scratch_folder("upload-") as one:
        assert one.path.is_dir() and one.path.stat().st_mode & 0o777 == 0o700
        assert list(one.path.iterdir()) == []
        (one.path / "deep").mkdir()
        (one.path / "deep" / "face.mp4").write_text("a face")
    two, three = scratch_folder("upload-"), scratch_folder("upload-")
    two.close()
    two.close()  # once more is harmless
    assert len(list(temporary.iterdir())) == 1
    del three
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("at", ["_lock", "Path.mkdir", "Scratch"])
def test_a_stop_while_it_is_made_leaves_none(temporary, monkeypatch, at):
    def stopped(*args, **options):
        raise SystemExit(143)

    monkeypatch.setattr(f"utils.scratch.{at}", stopped)
    with pytest.raises(SystemExit):
        scratch_folder("upload-")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0"])
def test_it_is_gone_with_the_interpreter(temporary, end):
    process = start(f"one = scratch_folder('predict-')\nassert one.path.is_dir()\n{end}", temporary)
    process.communicate(timeout=60)
    assert list(temporary.iterdir()) == []


def test_what_a_kill_leaves_is_swept_and_what_lives_is_not(temporary):
    code = "one = scratch_folder('upload-')\nprint(one.path, flush=True)\ninput()"
    dead, alive = start(code, temporary), start(code, temporary)
    left, used = (Path(each.stdout.readline().strip()) for each in (dead, alive))
    assert sweep("upload-") == 0
    dead.kill()
    dead.wait()
    assert left.is_dir() and sweep("other-") == 0
    assert sweep("upload-") == 1 and not left.parent.exists() and used.is_dir()
    alive.communicate("", timeout=60)


def test_a_sweep_goes_on_where_the_last_was_killed(temporary):
    left = leave(temporary, "upload-1")
    (left / "files" / "face.mp4").unlink()
    (left / "files").rmdir()
    assert sweep("upload-") == 1 and list(temporary.iterdir()) == []


def test_links_lead_nowhere(temporary):
    outside = leave(temporary, "outside")
    (temporary / "upload-link").symlink_to(outside)
    left = leave(temporary, "upload-1")
    (left / "files" / "link").symlink_to(outside)
    strange = leave(temporary, "upload-2")
    (strange / LOCK).unlink()
    (strange / LOCK).symlink_to(outside / LOCK)
    assert sweep("upload-") == 1 and not left.exists()
    assert (outside / "files" / "face.mp4").is_file() and (outside / LOCK).is_file()
    assert (temporary / "upload-link").is_symlink() and strange.is_dir()


def test_what_is_not_ours_stays(temporary, monkeypatch):
    (temporary / "upload-of-another-program").mkdir()  # it holds no lock of ours
    (temporary / "upload-file").touch()
    leave(temporary, "upload-1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert sweep("upload-") == 0
    assert sweep("upload-") == 1
    assert len(list(temporary.iterdir())) == 2


FORKS = """
one = scratch_folder("upload-")
if os.fork() == 0:
    sys.stdin.read()  # outlives its parent, and then ends as any process
    sys.exit()
print(one.path, flush=True)
{end}
"""


def test_a_forked_process_neither_deletes_nor_holds(temporary):
    process = start(FORKS.format(end="os.wait()\nprint(one.path.is_dir(), flush=True)"), temporary)
    out, _ = process.communicate("", timeout=60)
    assert out.splitlines()[1] == "True" and list(temporary.iterdir()) == []
    process = start(FORKS.format(end="os.kill(os.getpid(), signal.SIGKILL)"), temporary)
    process.wait(60)
    assert process.returncode == -signal.SIGKILL
    waits = 200
    while not (swept := sweep("upload-")) and waits:  # the fork may still have its first line to do
        waits -= 1
        time.sleep(0.05)
    assert swept == 1
    process.communicate("", timeout=60)


def test_sweeps_never_meet_a_folder_in_the_making(temporary):
    done, held = threading.Event(), {*files.held_locks}

    def keep_sweeping():
        while not done.is_set():
            sweep("upload-")

    thread = threading.Thread(target=keep_sweeping)
    thread.start()
    try:
        for _ in range(300):
            with scratch_folder("upload-") as one:
                (one.path / "a").write_text("a")
                assert (one.path / "a").read_text() == "a"
    finally:
        done.set()
        thread.join()
    sweep("upload-")
    assert list(temporary.iterdir()) == [] and {*files.held_locks} == held


SOCKETS = """
from utils.guard import Limits, guarded
print(guarded(os.getpid, limits=Limits(60, 0)), flush=True)
{end}
"""


def test_folders_of_sockets_are_swept_after_a_kill():
    """In a folder with a short name: in others the paths of sockets would be too long."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as name:
        (Path(name) / "pymp-other").mkdir()  # of another program
        dead = start(SOCKETS.format(end="input()"), Path(name))
        dead.stdout.readline()
        dead.kill()
        dead.wait()
        assert len([*Path(name).iterdir()]) == 2
        last = start(SOCKETS.format(end=""), Path(name))
        last.communicate(timeout=60)
        assert last.returncode == 0
        assert [each.name for each in Path(name).iterdir()] == ["pymp-other"]


def test_no_place_is_one_line(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "absent"))
    with pytest.raises(UsageError, match="TMPDIR"):
        scratch_folder("upload-")
