"""The documentation at its word: the site builds without a warning and loads nothing from the
internet, and the commands take every command line in it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import docs_site
from benchmarks.flags import COMMANDS, markdown, parser_of
from extract.media import FORMATS, PICTURES

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / path for path in docs_site.OUTSIDE)])
# One tells of commands as they were, one of commands with its diffs (tests/test_extending.py).
OTHER_COMMANDS = ("CHANGELOG.md", "extending.md")
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(https?:)?//"
    r"|<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*href=[\"']?(https?:)?//"
    r"|@import\s+[\"'(]*(https?:)?//|url\([\"']?(https?:)?//"
)


def test_the_site_is_whole_and_loads_nothing_from_the_internet(tmp_path):
    """One test, because the site takes half a minute: --strict fails on a link or an anchor that
    leads nowhere, also on those of README.md."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    check_pages(tmp_path)
    check_that_it_loads_nothing(tmp_path)
    check_references(tmp_path)


def check_pages(site: Path) -> None:
    for page in PAGES:
        path = page.relative_to(ROOT).as_posix()
        name = docs_site.OUTSIDE.get(path, page.name)
        assert (site / name).with_suffix(".html").is_file(), path
    assert (site / "source/examples/my_encoder.py.html").is_file()


def check_that_it_loads_nothing(site: Path) -> None:
    for bad in ('<script src="https://x.y/z.js">', "<link rel=stylesheet href=//x.y/z.css>"):
        assert LOADED.search(bad)
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        assert not (found := LOADED.search(path.read_text("utf-8"))), f"{path.name}: {found}"
    assert "iframe-worker" in (site / "index.html").read_text("utf-8")  # the search, from the disk
    assert (site / "search/search_index.js").is_file()


def check_references(site: Path) -> None:
    """Every flag, and the Python interface."""
    flags = (site / "flags.html").read_text("utf-8")
    for module, call in COMMANDS.items():
        for action in parser_of(module)._actions:
            for name in action.option_strings[-1:]:
                assert name == "--help" or re.search(rf"<code[^>]*>{name}[ <]", flags), (call, name)
    assert "logs/&lt;mode&gt;/&lt;exp_name&gt;/" in flags  # placeholders are no HTML
    python = (site / "python.html").read_text("utf-8")
    for name in ("inference.predictor.Predictor", "models.build_model"):
        assert f'id="{name}"' in python


def test_a_default_that_modes_do_not_share_names_each_mode():
    def rows_of(section: str) -> dict[str, str]:
        return {
            row.split("`")[1].split()[0]: row
            for row in section.splitlines()
            if row.startswith("| `")
        }

    sections = markdown().split("\n## ")
    rows = rows_of(next(section for section in sections if section.startswith("train.py")))
    assert "| speech `256`, face `32`, text `128`, multimodal `16` |" in rows["--batch_size"]
    assert "| none, must be given |" in rows["--mode"] and "| `logs` |" in rows["--logs_dir"]
    rows = rows_of(next(section for section in sections if "preprocess.py" in section))
    assert rows["--workers"].split(" | ")[1] == "one per core"  # not those of this machine


def commands_of(page: Path) -> list[str]:
    """The command lines in the blocks of a page, behind "the command" in tables and within text."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(
        r"^(?: {4,}\S.*\n)+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    )
    blocks += re.findall(r"`(python [^`\n]+)`", text)
    within = re.findall(r"`(train\.py --mode [a-z]+ --[^`]+)`", text)
    blocks += [f"python {' '.join(told.split())}" for told in within]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.search(r"(?<![\w/.])(?:python3?|torchrun) (.*)", line) for line in lines)
    return [match[0].split(";")[0] for match in found if match]


def arguments_of(command: str) -> tuple[str, list[str]]:
    """The module that a command line runs, and its arguments."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun":
        words = [word for word in words if not word.startswith("--nproc")]
    words = words[1:]
    if words[0] == "-m":
        return words[1], words[2:]
    return words[0].removesuffix(".py").replace("/", "."), words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_parses(page, capsys):
    if page.name in OTHER_COMMANDS:
        return
    for command in commands_of(page):
        module, arguments = arguments_of(re.sub(r"\$\w+", "1", command))
        if module in ("pytest", "venv", "-", "pip") or {"...", "--help"} & {*arguments}:
            continue
        place = ROOT / f"{module.replace('.', '/')}.py"
        assert place.is_file(), f"{page.name}: {command}: no {place}"
        if module not in COMMANDS:
            continue
        try:
            args = argparse.ArgumentParser.parse_args(parser_of(module), arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: {command}: {capsys.readouterr().err}")
        for name in ("speech", "face", "text"):  # weights only for what the mode reads
            given = f"{name}_load_weights" in args
            assert not given or args.mode in (name, "multimodal"), f"{page.name}: {command}"


def test_the_readme_shows_every_step():
    shown = [arguments_of(command) for command in commands_of(ROOT / "README.md")]
    modes = [words[words.index("--mode") + 1] for module, words in shown if module == "train"]
    assert modes == ["speech", "face", "text", "multimodal", "multimodal"], "the last: few clips"
    assert {"preprocess", "train", "evaluate", "predict"} <= {module for module, _ in shown}


def test_the_reference_has_every_command():
    assert {path.stem for path in ROOT.glob("*.py")} <= {*COMMANDS}, "see benchmarks/flags.py"


MADE = (
    "demo_run/raw/a.mp4",
    "features/manifest.csv",
    "logs/speech/first/last.pth",
    "report/index.html",
)
MADE += (
    "predictions/a.png",
    "test1.csv",
    "test3.csv",
    "val.csv",
    "test1_submission.csv",
    "model.onnx",
)
MADE += (
    "qia2020/train/a.mp4",
    "2020-3/test3/a.mp4",
    "my_clips/manifest.csv",
    "build/site/index.html",
)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git repository")
def test_what_users_make_is_not_taken_for_a_change():
    command = ["git", "check-ignore", *MADE]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.split() == [*MADE]
    run = subprocess.run(
        ["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, check=False, capture_output=True
    )
    assert run.stdout == b""  # and nothing that belongs to the project is


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180


def test_the_table_of_files_has_every_ending():
    table = (ROOT / "docs/files.md").read_text("utf-8").partition("## Words")[0]
    named = set(re.findall(r"`(\.\w+)`", table))
    assert named == {*FORMATS, *PICTURES}, "docs/files.md: other endings"


def test_no_page_has_a_gap_or_names_a_registry():
    for page in PAGES:
        text = page.read_text("utf-8")
        assert "@@" not in re.sub(r"^```diff.*?^```", "", text, flags=re.M | re.S), page.name
        assert not re.search(r"download\.pytorch\.org|pypi\.org|anaconda\.org", text), page.name


def python_blocks() -> list[tuple[str, str]]:
    """(page, block) of Python in the documentation."""
    pages = [page for page in PAGES if page.name != "extending.md"]
    found = [
        (page.name, re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
        for page in pages
    ]
    return [(name, block) for name, blocks in found for block in blocks]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_the_python_of_a_page_runs(place, tmp_path, monkeypatch, page, block):
    run = tmp_path / "logs" / "multimodal" / "first"
    run.mkdir(parents=True)
    shutil.copy(place / "any.pth", run / "12_best_0.8123.pth")
    for name in ("clip.mp4", "long.mp4"):
        shutil.copy(place / "clips" / "anna.mp4", tmp_path / name)
    numbers = " ".join(["0.5"] * 16)  # values of a word, as many as the model reads
    words = [f"{word} {numbers}" for word in ("what", "is", "said")]
    (tmp_path / "vectors.vec").write_text("\n".join(["3 16", *words, ""]))
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {"__name__": page})


def test_there_is_python_on_the_pages():
    assert {"python.md", "clips.md"} <= {page for page, _ in python_blocks()}
