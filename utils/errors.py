"""Errors that a user can act on, and the exit code that each one gives."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn


class UsageError(Exception):
    """Bad usage or environment: wrong path, flag, setting, no space left. Exit code 2."""

    exit_code = 2


class IntegrityError(UsageError):
    """Things that must match do not: labels, digests, settings, weights. Exit code 4."""

    exit_code = 4


class LockedError(UsageError):
    """Another process works in the folder. Exit code 5."""

    exit_code = 5


class Interrupted(UsageError):
    """Stopped by a signal after everything finished was saved. Exit code 128 + signal."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


CLIP_CODES = {  # how the closing summary of preprocess.py names them
    "E_ID": "unusable id or place",
    "E_DUP": "the same id twice",
    "E_LABELS": "unknown label",
    "E_MISSING": "missing file",
    "E_PERM": "no permission",
    "E_READ": "disc or network failed",
    "E_OPEN": "does not open",
    "E_TRUNC": "truncated",
    "E_CODEC": "does not decode",
    "E_NOAUDIO": "no sound track",
    "E_SILENT": "silent",
    "E_NOVOICE": "without a voice",
    "E_SHORT": "too short or without known words",
    "E_NONFINITE": "not numbers",
    "E_NOVIDEO": "no picture",
    "E_NOFACE": "no face",
    "E_NPZ": "damaged word vectors",
    "E_SHAPE": "wrong shape",
    "E_DTYPE": "wrong type",
    "E_LIMIT": "too large",
    "E_TIMEOUT": "too slow",
    "E_KILLED": "killed their process",
    "E_ENCODER": "failed in a pretrained encoder",
    "E_CRASH": "met a fault of ours",
}


# what the dynamic loader, torch's allocator, oneDNN and Python say where memory is limited
NO_MEMORY = ("map segment", "can't allocate memory", "a primitive", "can't start new thread")


class ClipError(Exception):
    """One clip cannot be used: `code` from CLIP_CODES (docs/questions.md), `reason` for people."""

    def __init__(self, code: str, reason: str):
        super().__init__(code, reason)
        self.code, self.reason = code, reason


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main; one line and an exit code for what a user can mend, a traceback else."""
    make_streams_usable()
    script = Path(sys.argv[0]).name
    # Waiting threads of torch spin only briefly before they sleep: a training takes an eighth less
    # time than with sleep alone; beside other work a step takes two thirds of what long spins cost.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if not sys.stderr.isatty():  # a progress bar in a file is hundreds of lines
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        sys.exit(main() or 0)
    except UsageError as error:
        print(without_controls(f"{script}: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except (ImportError, MemoryError, RuntimeError) as error:
        lines = str(error).splitlines()  # of a worker's error torch hands on the traceback, too
        said = [line for line in lines if any(each in line for each in NO_MEMORY)]
        if not (said or isinstance(error, MemoryError)):
            raise
        _end_without_memory(script, said[0] if said else error)
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding().lower() in ("utf-8", "utf8"):
            raise
        what = f"this locale has no {error.object[error.start : error.end]!a} in file names"
        print(f"{script}: {what}: set PYTHONUTF8=1, or a UTF-8 locale", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        if not error.filename:
            raise
        print(f"{script}: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    except BrokenPipeError:  # `... | head` closed our output: not worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)  # as the shell has it: what is not done is no success
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            print(f"{script}: {error.strerror}: raise the limit, `ulimit -n 1024`", file=sys.stderr)
            sys.exit(UsageError.exit_code)
        if error.errno == errno.ENOMEM:
            _end_without_memory(script, error.strerror)
        if error.errno == errno.ENAMETOOLONG:
            print(f"{script}: {error.strerror}: {in_short(error.filename)}", file=sys.stderr)
            sys.exit(UsageError.exit_code)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        with contextlib.suppress(OSError):
            print(f"{script}: cannot write its output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UsageError.exit_code)


def _end_without_memory(script: str, said: object) -> NoReturn:
    remedy = "raise the limits (`ulimit -v unlimited`, `ulimit -u`), or ask for less at once"
    print(f"{script}: too little memory: {in_short(said)}; {remedy}", file=sys.stderr)
    sys.exit(UsageError.exit_code)


def make_streams_usable() -> None:
    """Output may be closed (`2>&-`), or unable to write a name or a sign: neither ends a run.

    A descriptor that is closed would be that of the next file, which would get what a library says.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # what is opened now gets the lowest free number, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            unread = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(unread, "w", errors="backslashreplace"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def one_of(kind: str, value: str, known: dict | tuple | list) -> None:
    """Raise UsageError that lists the known names, unless `value` is one of them."""
    if value not in known:
        raise UsageError(f"unknown {kind} {value!r}: expected one of {', '.join(map(str, known))}")


CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def in_short(error: object, most: int = 200) -> str:
    """What a library says of a foreign file, or what stands in one, for a message of one line: it
    may be all of the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = without_controls(text).replace("\n", "?")
    return text if len(text) <= most else f"{text[:most]}..."


def without_controls(text: str) -> str:
    """A text from elsewhere, for a terminal: it could move the cursor, take the screen, turn the
    direction of what follows, or be no UTF-8. Line ends stay."""
    return CONTROLS.sub("?", text)


def is_one_line(text: str) -> bool:
    """Whether a name from elsewhere can stand in a line of a terminal as it is."""
    return "\n" not in text and not CONTROLS.search(text)


def counted(number: int, name: str) -> str:
    """1 clip, 2 clips."""
    return f"1 {name}" if number == 1 else f"{number} {name}s"


def joined(names: Sequence[str]) -> str:
    """a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first names for a message, and how many more there are."""
    shown: list[str] = []
    more = 0
    for name in names:
        if len(shown) < most:
            shown.append(str(name))
        else:
            more += 1
    return ", ".join(shown) + (f" and {more} more" if more else "")
