"""Files are written whole or not at all, and a folder has one writer."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT

from utils import files
from utils.errors import LockedError, UsageError, in_short, run_script
from utils.files import (
    check_place,
    digest,
    keep_as_it_is,
    lock_folder,
    map_array,
    read_csv,
    read_json,
    read_stages,
    sha256,
    write_atomic,
    write_bytes,
    write_csv,
    write_json,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a" / "b.bin"
    for content in (b"old", b"new"):
        write_bytes(path, content)
        assert path.read_bytes() == content and names(path.parent) == ["b.bin"]
        assert sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_while_writing_leaves_the_old_file(tmp_path, error):
    def write(file):
        file.write(b"half")
        raise error

    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(error):
        write_atomic(tmp_path / "a", write)
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_a_usage_error_that_names_the_file(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(28, "No space left on device")

    write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UsageError, match=r"/a: No space left.* more than the [0-9.]+ MB"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_the_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    """A crash cannot be staged, but the order that survives one can be watched."""
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def watched(*args, real=real, name=name):
            status = os.stat(args[0])  # noqa: PTH116 - a path or the number of an open file
            steps.append((name, stat.S_ISDIR(status.st_mode), status.st_size == 3))
            return real(*args)

        monkeypatch.setattr(os, name, watched)
    write_bytes(tmp_path / "a", b"new")
    assert [step[:2] for step in steps] == [("fsync", False), ("replace", False), ("fsync", True)]
    assert steps[0][2] and steps[1][2], "synced or renamed before all was written"


@pytest.mark.parametrize("step", range(5))
def test_death_after_any_step_leaves_the_old_or_the_new_file(tmp_path, step):
    """Steps: nothing, written, synced, renamed, folder synced."""
    write_bytes(tmp_path / "a.npy", b"old")
    child = os.fork()
    if not child:
        done = [0]

        def then_die(call):
            def dies(*args):
                result = call(*args)
                done[0] += 1
                return os._exit(9) if done[0] == step else result

            return dies

        def write(file):
            file.write(b"new")
            file.flush()

        if step == 0:
            os._exit(9)
        os.fsync, os.replace = then_die(os.fsync), then_die(os.replace)
        write_atomic(tmp_path / "a.npy", then_die(write))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    expected = b"new" if step >= 3 else b"old"
    assert (tmp_path / "a.npy").read_bytes() == expected
    left = [name for name in names(tmp_path) if name != "a.npy"]
    assert len(left) == (step in (1, 2))
    assert all(name.startswith(".") and ".npy" not in name for name in left)
    with lock_folder(tmp_path):  # the next run sweeps
        assert names(tmp_path) == [".lock", "a.npy"]


def test_places_that_cannot_be_written_are_usage_errors(tmp_path):
    (tmp_path / "file").touch()
    for attempt in (lambda: write_bytes(tmp_path / "file" / "a", b""), lambda: _lock(tmp_path)):
        with pytest.raises(UsageError, match=r"cannot write .*/file.*: \w+"):
            attempt()


def test_a_place_is_looked_at_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_place(tmp_path / "new" / "folder")
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UsageError, match=r"file is a file"):
            check_place(place)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=rf"no permission in {tmp_path}"):
        check_place(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _lock(folder) -> None:
    with lock_folder(folder / "file"):
        pass


def test_json_survives_and_damage_is_named(tmp_path):
    value = {"b": [1, 2.5, None], "a": "한"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert digest(value) == digest(dict(reversed(value.items()))) != digest({**value, "b": []})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "a.json").write_text("{")
    for path in (tmp_path / "a.json", tmp_path / "none.json"):
        with pytest.raises(UsageError, match=path.name):
            read_json(path)


def test_a_pipe_is_no_json(tmp_path):
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"cannot read .*a\.json: no regular file"):
        read_json(tmp_path / "a.json")


def test_who_may_not_write_keeps_others_from_writing(tmp_path, monkeypatch):
    """Root may open anything: the open that is refused is staged."""

    def refused(path, mode="r"):
        if mode != "r":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    with lock_folder(tmp_path):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(files, "open", refused, raising=False)
        kept = keep_as_it_is(tmp_path)
        kept.__enter__()
    with keep_as_it_is(tmp_path), pytest.raises(LockedError):  # several may read
        lock_folder(tmp_path).__enter__()
    kept.__exit__(None, None, None)
    with lock_folder(tmp_path), monkeypatch.context() as patched, pytest.raises(LockedError):
        patched.setattr(files, "open", refused, raising=False)
        keep_as_it_is(tmp_path).__enter__()


def test_a_pipe_is_no_lock(tmp_path, monkeypatch):
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / ".lock")
    with keep_as_it_is(tmp_path):
        pass


def test_a_folder_is_locked_until_its_process_ends(tmp_path):
    program = "import sys, time; from pathlib import Path; from utils.files import lock_folder\n"
    program += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} ") as caught:
            lock_folder(tmp_path).__enter__()
        assert caught.value.exit_code == 5
        holder.kill()
    with lock_folder(tmp_path):
        pass


def test_a_name_that_stands_twice_in_json_is_told(tmp_path):
    (tmp_path / "a.json").write_text('{"n_epoch": 1, "n_epoch": 2}')
    with pytest.raises(UsageError, match="it has 'n_epoch' twice"):
        read_json(tmp_path / "a.json")


HOLDER = """
import os, signal, sys, time
from pathlib import Path
from utils.files import lock_folder

there, begun = os.pipe()
with lock_folder(Path(sys.argv[1])):
    if os.fork():
        os.read(there, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(begun, b".")
    time.sleep(30)
"""


def test_what_a_holder_forks_does_not_keep_its_lock(tmp_path):
    ended = subprocess.run([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    with lock_folder(tmp_path):
        pass


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@x", "\tx", "\rx", "\nx", "'=x", "'"]


def test_no_text_of_a_table_for_people_is_a_formula(tmp_path):
    """And one apostrophe less is the text itself, whatever it begins with."""
    table = pd.DataFrame({"id": [*map(Path, FORMULAS)], "=a": 1.5, "p": -0.5})
    write_csv(tmp_path / "for people.csv", table, for_people=True)
    found = read_csv(tmp_path / "for people.csv")
    assert list(found.columns) == ["id", "'=a", "p"] and set(found["p"]) == {"-0.5"}
    assert all(text[0] == "'" for text in found["id"])
    expected = [text.replace("\r", "\n") for text in FORMULAS]  # else it would end the row
    assert [text.removeprefix("'") for text in found["id"]] == expected
    write_csv(tmp_path / "for programs.csv", table)
    assert list(read_csv(tmp_path / "for programs.csv")["id"]) == expected
    write_csv(tmp_path / "empty.csv", table[:0], for_people=True)
    assert (tmp_path / "empty.csv").read_text() == "id,'=a,p\n"


@pytest.mark.parametrize("rows", ["1,2,3\n1,2,3\n", "1,2\n1,2,3\n", "1,2,\n", '"1,2\n'])
def test_a_table_whose_rows_are_wider_than_its_header_is_none(tmp_path, rows):
    (tmp_path / "a.csv").write_text("a,b\n" + rows)
    with pytest.raises(ValueError):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("stage", [3, [], {}, {"sha256": 3}, {"sha256": "a", "source_sha256": []}])
def test_of_a_damaged_record_only_the_sound_stages_count(tmp_path, stage):
    sound = {"sha256": "a"}
    write_json(tmp_path / "a.json", {"stages": {"speech": sound, "text": stage}})
    assert read_stages(tmp_path / "a.json") == {"speech": sound}
    write_json(tmp_path / "b.json", {"stages": stage})
    assert read_stages(tmp_path / "b.json") == {}


def test_what_a_library_says_is_one_short_line():
    assert in_short(ValueError("a\nb\x00 c")) == "a b? c"
    assert in_short(EOFError()) == "EOFError"
    assert len(in_short(ValueError("x" * 10_000))) < 210


WITHOUT_MEMORY = {  # as `ulimit -v` of 2.5 to 4.5 GB gives them
    "libtorch_cpu.so: failed to map segment": ImportError,
    "could not create a primitive": RuntimeError,
    "can't start new thread": RuntimeError,
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried": RuntimeError,
    "Caught ImportError in worker\nTraceback:\n x.so: failed to map segment from": ImportError,
    "": MemoryError,
}


@pytest.mark.parametrize("said", WITHOUT_MEMORY)
def test_too_little_memory_is_told_with_its_remedy(capsys, said):
    def main() -> None:
        raise WITHOUT_MEMORY[said](said)

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "ulimit -v" in told and told.count("\n") == 1
    assert "Traceback" not in told


@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
def test_what_is_no_lack_of_memory_stays_a_traceback(kind):
    def main() -> None:
        raise kind("of ours")

    with pytest.raises(kind):
        run_script(main)


@pytest.mark.parametrize(("free", "told"), [(40_000, "the 41 KB"), (40_000_000, "the 40.0 MB")])
def test_a_full_disk_is_told_with_what_is_free(tmp_path, monkeypatch, free, told):
    """What is half written counts, for it is removed."""

    def fill(file):
        file.write(bytes(1000))
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UsageError, match=f"needs more than {told} that are free; make room"):
        files.write_atomic(tmp_path / "a.npy", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_header_without_end_is_not_read(tmp_path):
    """numpy reads all that the header claims before it refuses it."""
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (300_000_000).to_bytes(4, "little"))
    os.truncate(path, 300_000_012)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="header is damaged"):
            map_array(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
