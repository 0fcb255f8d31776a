"""One row per modality: nobody else writes their names; and the loop of a training is in sight."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from conftest import ROOT

from training.modalities import MODALITIES

ROOMS = ("models", "training", "evaluation", "inference", "utils")
FILES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(FILES)}
NAMES = {"speech", "face", "text", *(row.folder for row in MODALITIES.values())}
EXCEPTIONS = {  # file -> why names stand there
    "training/modalities.py": "the rows themselves",
    "preprocess.py": "makes their files, as extract/ does",
    "demo.py": "shows a training of each mode",
    "inference/sources.py": "the id of a clip that is only words, in published tables",
    "inference/page.py": "the name of a field of the web form",
    "inference/windows.py": "PyAV's name for the kind of a stream",
}
# Settings, flags and columns of one modality, such as face_frames, but no labels
OWN = re.compile(r"(--)?(speech|face|text|video)_(?!emotion)[a-z_]+")
OWN_EXCEPTIONS = {  # file -> why they stand there
    "training/modalities.py": "the rows themselves",
    "training/augment.py": "the strengths that the rows point to",
    "training/views.py": "the views that the rows point to, and the column of shown faces",
    "inference/figure.py": "the seconds of a spectrogram, by columns of the manifest",
    "inference/frozen.py": "crops in the size that a run knows, by extract/'s name for it",
    "utils/config.py": "what people type for flags of train.py",
    "make_submission.py": "a published flag of the command",
    "preprocess.py": "makes their files, as extract/ does",
}


def written(tree: ast.AST) -> Iterator[str]:
    """Every string constant, but not the parts of f-strings and docstrings, which are prose."""
    prose = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


@pytest.mark.parametrize("file", TREES)
def test_modalities_are_named_in_one_place(file):
    found = NAMES.intersection(written(TREES[file]))
    assert not found or file in EXCEPTIONS, f"{file} names {found}: their rows know what is needed"


def test_every_exception_is_needed():
    assert [file for file in EXCEPTIONS if NAMES.isdisjoint(written(TREES[file]))] == []
    assert [file for file in OWN_EXCEPTIONS if not own_names(TREES[file])] == []


def own_names(tree: ast.AST) -> list[str]:
    return [text for text in written(tree) if OWN.fullmatch(text)]


@pytest.mark.parametrize("file", TREES)
def test_what_belongs_to_one_modality_is_named_in_one_place(file):
    found = own_names(TREES[file])
    assert not found or file in OWN_EXCEPTIONS, f"{file} names {found}: their row knows them"


# The loop


def functions(*files: str) -> dict[str, ast.FunctionDef]:
    nodes = (node for file in files for node in ast.walk(TREES[file]))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def calls(function: ast.AST) -> set[str]:
    """The last names of all that it calls: `loss.backward()` is backward."""
    found = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {
        each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in found
    }


def test_the_step_is_at_most_three_calls_below_main():
    known = functions("train.py", "training/loop.py")
    level, depth = {"main"}, 0
    while not any("backward" in calls(known[name]) for name in level):
        level = {called for name in level for called in calls(known[name]) if called in known}
        depth += 1
        assert level and depth <= 3, "loss.backward() is deeper below main, or nowhere"


def test_one_function_of_a_hundred_lines_is_the_training():
    fit = functions("training/loop.py")["fit"]
    assert fit.end_lineno - fit.lineno < 100
    shown = {"parallel_model", "loss", "backward", "step", "validate", "save_best", "save_last"}
    assert shown <= calls(fit)
