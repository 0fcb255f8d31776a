"""Paths and words as a user gives them -> clips to answer."""

from __future__ import annotations

import glob
import html
import re
import sys
from pathlib import Path
from typing import NamedTuple

from corpora.manifest import Clip
from extract.media import FORMATS, PICTURES
from extract.transcribe import Cue
from utils.errors import UsageError, joined, listed
from utils.files import files_below, read_text

SUBTITLES = (".srt", ".vtt")  # words with times
TEXTS = (".txt", *SUBTITLES, ".npz")  # given alone: words without a clip
SCRATCH = "predict-"  # how temporary folders with parts of clips are called
SPLIT = "clips"  # the one split of what is predicted
TIME = r"(?:(\d+):)?(\d\d):(\d\d)[,.](\d+)"
TIMES = re.compile(rf"{TIME}\s*-->\s*{TIME}.*")  # the line of a subtitle that says when
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z\d]+)*", re.IGNORECASE)  # en, pt-BR, zh-Hans
WORD_TIME = re.compile(r"<\d[\d:.]*>")  # within a subtitle, as automatic captions have them


class Source(NamedTuple):
    """One thing to answer. `start` and `end`: its seconds in a longer recording, which has the
    seconds `extent` and of which `notes` tell; else None and nothing."""

    name: str  # as the user gave it
    clip: Clip
    start: float | None = None
    end: float | None = None
    problem: str = ""  # why its words cannot be used
    extent: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def find_sources(paths: list[Path], text: str | None) -> list[Source]:
    """A clip per file, and per video and sound of a folder; UsageError when there is nothing there.

    The still pictures of a folder are left out, and a line says so: they may be covers of its
    clips, or pictures of their answers.
    """
    files: list[Path] = []
    stills: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
        if path.is_dir():
            below = files_below(path)
            files += [file for file in below if file.suffix.lower() in FORMATS]
            stills += [file for file in below if file.suffix.lower() in PICTURES]
        else:
            files.append(path)
    once = {file.resolve(): file for file in reversed(files)}  # a folder, and a clip of it
    if len(once) < len(files):
        print(f"given twice, answered once: {len(files) - len(once)}", file=sys.stderr)
        files = [file for file in files if once[file.resolve()] is file]
    if text is not None and len(files) > 1:
        raise UsageError(f"--text is one clip's words, here are {len(files)}: put .txt beside them")
    by_name = f"still pictures are read where they are named: {listed(stills, 1)}" if stills else ""
    if not files and text is None:
        given = f"no clip in {', '.join(map(str, paths))}" if paths else "nothing given"
        expected = by_name or f"expected files ending in {' '.join(FORMATS)}, or --text"
        raise UsageError(f"{given}: {expected}")
    if stills := [file for file in stills if file.resolve() not in once]:
        print(f"left out: {by_name}", file=sys.stderr)
    if not files:
        return [Source("--text", Clip("text", SPLIT, Path(), transcript=text or ""))]
    names: set[str] = set()
    return [make_source(path, text, names) for path in files]


def left_out(paths: list[Path]) -> list[Path]:
    """What the folders hold that is neither a clip nor the words of one, nor a still picture."""
    files = [file for folder in paths if folder.is_dir() for file in files_below(folder)]
    media = {file for file in files if file.suffix.lower() in FORMATS}
    clips = {file.with_suffix("") for file in media}
    clips |= {clip.parent / clip.name.split("-")[0] for clip in clips}  # MERC2020's words
    clips |= media
    texts = [file for file in files if file.suffix.lower() in TEXTS]
    words = [f for f in texts if {f.with_suffix(""), f.parent / in_language(f)[0]} & clips]
    known = {*words, *media, *(file for file in files if file.suffix.lower() in PICTURES)}
    return [file for file in files if file not in known and file.name[0] != "."]


def make_source(path: Path, text: str | None, names: set[str]) -> Source:
    """The clip with the words that are given, or that lie beside it under its name; named as none
    of `names`, which it joins."""
    name = new_name(path, names)
    names.add(name)
    words, problem = None, ""
    if text is None:
        by_id = path.with_name(path.name.split("-")[0] + ".npz")  # MERC2020's way
        try:
            words = beside(path, ".npz") or (by_id if by_id.is_file() else None)
            written = beside(path, ".txt", *SUBTITLES)
            text = read_words(written) if written else ""
        except UsageError as error:  # costs the words of this clip alone
            text, problem = "", f"E_READ: {error}"
    media = Path() if path.suffix.lower() in TEXTS else path
    clip = Clip(name, SPLIT, media, transcript=text, words=words)
    return Source(str(path), clip, problem=problem)


def new_name(path: Path, names: set[str]) -> str:
    """The file's name without what no clip may be called, with a number where it is taken."""
    name = stem = re.sub(r"[^\w.+=-]+", "_", path.stem).strip(".-")[:60] or "clip"
    number = 1
    while name in names:
        number += 1
        name = f"{stem}-{number}"
    return name


def beside(path: Path, *endings: str) -> Path | None:
    """The first file of the clip's name with one of these endings, in small or capital letters.

    Words may also have the clip's whole name (clip.mp4.srt), or a language in theirs (clip.en.srt),
    as downloaders write it. UsageError where there are several languages.
    """
    files = [file for file in path.parent.glob(f"{glob.escape(path.stem)}.*") if file.is_file()]
    files.sort(key=lambda file: (len(file.name), file.name))
    found = [file for ending in endings for file in files if file.suffix.lower() == ending]
    for name in (path.stem, path.name):
        if named := [file for file in found if file.stem == name]:
            return named[0]
    others = {file.stem for file in files if file.suffix.lower() in FORMATS}  # with their own words
    spoken: dict[str, Path] = {}
    for file in found:
        name, language = in_language(file)
        if language and name == path.stem and file.stem not in others:
            spoken.setdefault(language.partition("-")[0], file)
    if len(spoken) > 1:
        raise UsageError(
            f"the words of {path.name} are there in {joined(sorted(spoken))}: "
            f"rename one to {path.stem}{next(iter(spoken.values())).suffix}, or give --text"
        )
    return next(iter(spoken.values()), None)


def in_language(file: Path) -> tuple[str, str]:
    """clip.en.srt -> clip and en; of a name without a language all but the ending, and nothing."""
    name, _, language = file.stem.rpartition(".")
    known = LANGUAGE.fullmatch(language) and f".{language.lower()}" not in FORMATS
    return (name, language) if name and known else (file.stem, "")


def read_words(path: Path) -> str:
    """The words of a .txt, or of all subtitles of an .srt or .vtt, in one line."""
    if path.suffix.lower() in SUBTITLES:
        return " ".join(word for cue in read_cues(path) for word in cue.words.split())
    return " ".join(read_text(path).split())


def read_cues(path: Path) -> list[Cue]:
    """The subtitles of an .srt or .vtt; UsageError for a file without any."""
    text = read_text(path)
    cues: list[Cue] = []
    before = ""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = block.strip().splitlines()
        for number, line in enumerate(lines):
            if times := TIMES.fullmatch(line.strip()):
                start, end = _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:])
                said = [html.unescape(re.sub(r"<[^>]*>", "", each)) for each in lines[number + 1 :]]
                if WORD_TIME.search(text):  # automatic captions show each line again, to scroll it
                    said = [each for each in said if each.strip() and each.strip() != before]
                    before = said[-1].strip() if said else before
                cues.append(Cue(start, end, " ".join(said)))
                break
    if not cues:
        raise UsageError(f"{path} holds no subtitles (00:00:01,000 --> 00:00:02,500 and words)")
    return cues


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")
