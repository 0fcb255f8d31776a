"""All six commands in odd surroundings, for tests/attack.py: the same result, or one plain line.

The commands, and what they work on, are those of tests/kill_commands.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attack import Tally, left_in, told_wrongly
from conftest import QUIET, ROOT
from kill_commands import COMMANDS, files, left_by, make_place, opens

DAY = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}")
FULL, READ_ONLY = "a full disc", "a read-only disc"
SMALL = "mkdir -p {at} && mount -t tmpfs -o size={size} tmpfs {at}"
NAME_SPACE = ["unshare", "-rm"]  # in which anybody may mount a disc
SURELY, PERHAPS, NEVER = "surely", "perhaps", "never"  # works there, else exit code 2 and why
ALL = " ".join(COMMANDS)


@dataclass(frozen=True)
class Surrounding:
    """How a command is started, and what is expected of it."""

    kind: str
    name: str
    works: str = SURELY
    before: str = ""  # lines of a shell
    python: str = ""  # flags of Python
    streams: str = ""
    env: tuple[tuple[str, str | None], ...] = ()  # None: it is not there
    cwd: Path = ROOT
    commands: str = ALL
    mounts: bool = False


def locale(name: str, commands: str, **changes: str) -> Surrounding:
    env = tuple(changes.items())
    return Surrounding("locale, time zone, hash seed, -O", name, env=env, commands=commands)


def home(name: str, place: str | None) -> Surrounding:
    env = (("HOME", place), ("MPLCONFIGDIR", None), ("XDG_CACHE_HOME", None))
    return Surrounding("homes", name, env=env, commands="train predict")


def limit(flags: str, commands: str) -> Surrounding:
    name = f"ulimit {flags}"
    return Surrounding("limits", name, works=PERHAPS, before=f"ulimit {flags}", commands=commands)


def disc(kind: str, size: str, then: str = "true", commands: str = ALL) -> Surrounding:
    before = f"{SMALL.format(at='{out}', size=size)} && {then}"
    options = dict(works=NEVER, before=before, mounts=True, commands=commands)
    return Surrounding(kind, f"{size}, {then}", **options)


def stream(name: str, streams: str, works: str, commands: str) -> Surrounding:
    return Surrounding("streams", name, streams=streams, works=works, commands=commands)


ODD = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FILL = "head -c 2000000 /dev/zero >{}/.fill"
SURROUNDINGS = [
    limit("-n 15", "train"),
    limit("-n 18", "train predict"),
    limit("-n 24", "preprocess evaluate"),
    limit("-n 64", "preprocess predict"),
    limit("-f 4", "train evaluate"),
    limit("-v 2500000", "train predict"),
    stream("all three closed", ">&- 2>&- <&-", SURELY, ALL),
    stream("a full stdout", ">/dev/full", PERHAPS, "evaluate predict"),
    stream("a full stderr", "2>/dev/full", PERHAPS, "preprocess train"),
    disc(FULL, "1m", FILL.format("{out}")),
    disc(FULL, "{half}", commands="preprocess train evaluate predict"),
    disc(READ_ONLY, "1m", "mount -o remount,ro {out}"),
    home("no HOME", None),
    home("a HOME that is missing", "/nowhere/at/all"),
    home("a HOME that is a file", "/dev/null"),
    home("a HOME that nobody may write", "/proc"),
    locale("C", "preprocess predict", LC_ALL="C"),
    locale("C without UTF-8", "train evaluate", LC_ALL="C", **ODD),
    locale("Turkish", "preprocess train", LC_ALL="tr_TR.UTF-8", LANG="tr_TR"),
    locale("14 hours ahead", "evaluate", TZ="Pacific/Kiritimati"),
    locale("no zone", "make_submission", TZ="x" * 300),
    locale("a hash seed", "preprocess train evaluate", PYTHONHASHSEED="1"),
    replace(locale("-O", "train"), python="-O"),
    replace(locale("another folder", "train make_submission predict"), cwd=Path("/")),
]
TEMPORARY = f"{SMALL.format(at='{tmp}', size='1m')} && {FILL.format('{tmp}')}"
SURROUNDINGS.append(
    Surrounding(FULL, "TMPDIR", PERHAPS, TEMPORARY, commands="preprocess predict", mounts=True)
)
PLACES = {
    "with a space": "preprocess train evaluate make_submission predict",
    "\u00e4\u00f6\u00fc \ud55c\uae00": "train predict",
    "%s $HOME {x} 'y' \"z\"": "train predict",
    "-rf;[*]?#&": "preprocess predict",
}
NAMES = [b"bad\xff.wav", b"$\\frac{$ =cmd.wav", b"a\nb.wav", b"-x.wav"]  # of a clip


def attack(folder: Path, tally: Tally) -> None:
    place = folder / "place"
    place.mkdir()
    make_place(place)
    whole = {name: reference(name, place, folder) for name in COMMANDS}
    for each in SURROUNDINGS:
        for name in each.commands.split():
            if each.mounts and not can_mount():
                tally.skip(each.kind, "no `unshare -rm` here")
                continue
            faults = attempt(each, name, place, folder, whole[name])
            tally.count(each.kind, f"{name}, {each.name}", faults)
    for odd, names in PLACES.items():
        shutil.copytree(place, folder / odd)
        for name in names.split():
            faults = attempt(Surrounding("odd paths", odd), name, folder / odd, folder / odd)
            tally.count("odd paths", f"{name}, {odd}", faults)
    for odd in NAMES:
        shutil.copytree(place, folder / "named")
        clips = folder / "named" / "clips"
        (clips / "0.wav").rename(clips / os.fsdecode(odd))
        table = (clips / "manifest.csv").read_bytes().replace(b"0.wav", b'"' + odd + b'"')
        (clips / "manifest.csv").write_bytes(table)
        for name in ("preprocess", "predict"):
            faults = odd_name(name, folder / "named")
            tally.count("odd names of clips", f"{name}, {os.fsdecode(odd)}", faults)
        shutil.rmtree(folder / "named")


def can_mount() -> bool:
    try:
        run = [*NAME_SPACE, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        return subprocess.run(run, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def reference(name: str, place: Path, folder: Path) -> tuple[object, int]:
    """What a command leaves that nobody disturbs, and how many bytes that is."""
    out = folder / f"{name}-out"
    done = start(Surrounding("", ""), name, place, out, folder)
    assert done.returncode == 0, done
    left = remains(name, out), sum(path.stat().st_size for path in files(out))
    shutil.rmtree(out)
    return left


def remains(name: str, out: Path) -> object:
    """All that runs must agree in; the report says which day it is."""
    left: Any = left_by(name, out)
    if (out / "index.html").is_file():
        left["index.html"] = DAY.sub("", (out / "index.html").read_text())
    return left


def start(
    each: Surrounding, name: str, place: Path, out: Path, folder: Path, half: int = 0
) -> subprocess.CompletedProcess:
    """Run a command; what it leaves on a disc of its own is copied to a folder beside `out`."""
    temporary = folder / "t"
    temporary.mkdir(exist_ok=True)
    env = {**os.environ, **QUIET, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    env = {k: v for k, v in (env | dict(each.env)).items() if v is not None}
    flags = [flag.format(place=place, out=out) for flag in COMMANDS[name].split()]
    command = [sys.executable, *each.python.split(), str(ROOT / f"{name}.py"), *flags]
    places = {"out": shlex.quote(str(out)), "tmp": shlex.quote(str(temporary)), "half": half}
    before = each.before.format(**places) or "true"
    line = f"{before}; {shlex.join(command)} {each.streams}; code=$?"
    if each.mounts:  # it ends with its name space
        kept = shlex.quote(f"{out}-kept")
        fills = f"{places['out']}/.fill {places['tmp']}/.fill"
        line += f"; {{ rm -f {fills}; cp -a {places['out']} {kept}; }} 2>/dev/null"
    space = NAME_SPACE if each.mounts else []
    return subprocess.run(
        [*space, "sh", "-c", f"{line}; exit $code"],
        env=env,
        cwd=each.cwd,
        capture_output=True,
        timeout=300,
        check=False,
    )


def attempt(
    each: Surrounding, name: str, place: Path, folder: Path, whole: tuple[object, int] | None = None
) -> list[str]:
    """Faults of one command in one surrounding."""
    out = folder / f"{name}-out"
    try:
        done = start(each, name, place, out, folder, whole[1] // 2 if whole else 0)
    except subprocess.TimeoutExpired:
        return ["it hangs"]
    found = folder / f"{name}-out-kept" if each.mounts else out
    said, left = done.stderr.decode(errors="replace"), files(found) if found.exists() else []
    faults = told_wrongly(said) + left_in(folder / "t")
    faults += [f"partial: {path.name}" for path in left if not opens(path)]
    faults += [f"unfinished: {path.name}" for path in left if path.suffix == ".part"]
    if done.returncode == 0 and each.works != NEVER:
        same = whole is None or remains(name, found) == whole[0]
        faults += [] if same else ["another result"]
    elif done.returncode != 2 or each.works == SURELY:
        faults.append(f"exit code {done.returncode}: {said[-300:]}")
    elif len(lines_of_error(name, said)) not in (1, 2) and "2>" not in each.streams:
        faults.append(f"no one line: {said[-300:]}")
    for path in (out, found):
        shutil.rmtree(path, ignore_errors=True)
    return faults


def lines_of_error(name: str, said: str) -> list[str]:
    """The last line of a command, and what stands behind it."""
    found = said.splitlines()
    starts = [number for number, line in enumerate(found) if line.startswith(f"{name}.py: ")]
    return found[starts[-1] :] if starts else []


def odd_name(name: str, place: Path) -> list[str]:
    """Faults where one of six clips has an odd name: it costs at most itself."""
    out = place / "out"
    done = start(Surrounding("", ""), name, place, out, place)
    said = done.stderr.decode(errors="replace")
    faults = told_wrongly(said) + left_in(place / "t")
    if done.returncode not in (0, 2, 3):
        faults.append(f"exit code {done.returncode}: {said[-300:]}")
    if name == "predict" and len([*out.glob("*.png")]) != 6:
        faults.append(f"{len([*out.glob('*.png')])} of 6 clips have a picture")
    return faults
