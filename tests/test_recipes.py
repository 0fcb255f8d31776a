"""Every command of every recipe and page: its flags are known, and each training can start.

A recipe runs with a `python` that only writes down how it was called. The trainings among these
calls are then started in their order, on clips made here, as --dry_run; one that a later training
starts from is trained for an epoch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, ROOT, write_features
from inside import run_main
from test_docs import OTHER_COMMANDS, PAGES, arguments_of, commands_of

from benchmarks.flags import COMMANDS, parser_of

FAKE_PYTHON = """#!/bin/sh
printf '%s\\037' "$@" >> "$CALLS"
echo >> "$CALLS"
[ "$1" != preprocess.py ] || exit 3  # some clips are rejected: no reason to stop
"""
# What each is given: as many words as it asks for. merc2020.sh is tested with its stops
# (test_train_script.py), slurm.sh by several processes (test_stops.py).
GIVEN = {
    "cross_corpora": ("a", "b", "c"),
    "cross_voice": ("a", "b", "c"),
    "fer2013": ("a",),
    "goemotions": ("a", "b"),
    "javanese_av": ("a",),
    "javanese_frozen": ("a", "whisper"),
    "javanese_whisper": ("a",),
    "meld_text": ("a", "b"),
    "ravdess_av": ("a",),
    "ravdess_own": ("a", "b"),
    "ravdess_speech": ("a",),
    "ravdess_uploads": ("a",),
    "ravdess_whisper": ("a",),
    "starter": ("a", "b", "c", "d", "e", "f", "g"),
}
TESTED_ELSEWHERE = {"merc2020", "slurm"}
FEATURES = {  # those of encoders and scripts, by the names of recipes and pages: shapes of a clip
    **dict.fromkeys(("whisper", "wavlm"), (3, 7, 8)),
    **dict.fromkeys(
        ("functionals", "egemaps", "au", "voice", "looks", "ngrams", "clip", "e5"), (9,)
    ),
}
SMALL_RUN = ["--speech_backbone", "small-32", "--face_backbone", "small-16", "--text_layers", "1"]
PLACES = ("one", "two")  # a recipe's first folder of features, and its second


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two folders of features with five folds of one person each, and runs to start from."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(PLACES):
        make_features(place / name, seed)
    for mode in ("speech", "face", "text"):
        words = ["--mode", mode, "--exp_name", mode, *SMALL_RUN]
        check_start(words, place / PLACES[1], place, {}, whole=True)
    return place


def make_features(folder: Path, seed: int) -> None:
    features = write_features(folder, clips_per_class=5, face_size=48, seed=seed)
    table = pd.read_csv(features / "manifest.csv", dtype=str, keep_default_na=False)
    table["fold"] = [str(number // len(CLASSES) % 5) for number in range(len(table))]
    table["speaker"] = table["split"] + "-" + table["fold"]
    table["transcript"] = (
        f"of {folder.name}"  # no recording is known: id and words tell clips apart
    )
    table.to_csv(features / "manifest.csv", index=False)
    rng = np.random.default_rng(seed)
    for name, shape in FEATURES.items():
        for clip in table.itertuples():
            path = features / clip.split / name / f"{clip.clip_id}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.normal(size=shape).astype("f4"))


def calls_of(recipe: str, place: Path, **environment: str) -> list[list[str]]:
    """The arguments of every `python` that the recipe calls."""
    fake, calls = place / "bin" / "python", place / "calls"
    fake.parent.mkdir()
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    shutil.copytree(ROOT / "recipes", place / "recipes")
    path = f"{fake.parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", f"recipes/{recipe}.sh", *GIVEN[recipe]],
        cwd=place,
        env={**os.environ, "PATH": path, "CALLS": str(calls), "SEEDS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [line.split("\037")[:-1] for line in calls.read_text().splitlines()]


def parsed(module: str, arguments: list[str], where: str) -> argparse.Namespace | None:
    """The flags of a call, where the module has a parser of its own."""
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{where}: no {module}"
    if module not in COMMANDS:
        return None
    try:
        return argparse.ArgumentParser.parse_args(parser_of(module), arguments)
    except SystemExit:
        pytest.fail(f"{where}: {module} does not know {' '.join(arguments)}")


def check_start(
    arguments: list[str], features: Path, logs: Path, starts: dict[str, Path], whole: bool
) -> None:
    """Start this training: `whole` trains an epoch. What --..._load_weights names is looked up."""
    places = {"--features_dir": str(features), "--logs_dir": str(logs), "--pretrained": "none"}
    changed = list(arguments)
    for index, flag in enumerate(arguments[:-1]):
        value = arguments[index + 1]
        if flag in places:
            changed[index + 1] = places[flag]
        elif flag.endswith("_load_weights"):
            changed[index + 1] = str(starts.get(value, ROOT / value))
    for flag in ("--features_dir", "--logs_dir"):
        if flag not in arguments:
            changed += [flag, places[flag]]
    end = ["--n_epoch", "1", "--eval_step", "1"] if whole else ["--dry_run"]
    run = run_main("train", *changed, "--num_workers", 0, *end)
    assert run.code == 0, f"train.py {' '.join(arguments)}: {run.err}"


@pytest.mark.parametrize("recipe", GIVEN)
def test_every_command_of_a_recipe_can_start(recipe, made, tmp_path):
    logs, starts, seen = tmp_path / "logs", {}, set()
    lines, places = calls_of(recipe, tmp_path, OWN="1"), {}
    modules = [arguments_of(" ".join(["python", *line[:2]]))[0] for line in lines]
    later = " ".join(word for line in lines for word in line)
    for module, line in zip(modules, lines, strict=True):
        if module == "-":
            continue
        arguments = line[2:] if line[0] == "-m" else line[1:]
        args = parsed(module, arguments, recipe)
        if module != "train" or args is None:
            continue
        kind = re.sub(r"\d+", "", " ".join(arguments))  # other seeds of the same training
        if kind in seen:
            continue
        seen.add(kind)
        name = str(Path(getattr(args, "logs_dir", "logs")) / args.mode / args.exp_name)
        starts[name] = logs / args.mode / args.exp_name
        place = places.setdefault(str(args.features_dir), PLACES[min(len(places), 1)])
        is_start = f"_load_weights {name} " in later
        check_start(arguments, made / place, logs, starts, whole=is_start)
    assert modules


def test_every_recipe_is_tested():
    names = {path.stem for path in (ROOT / "recipes").glob("*.sh")}
    assert names == {*GIVEN} | TESTED_ELSEWHERE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_training_of_a_page_can_start(page, made, tmp_path):
    if page.name in OTHER_COMMANDS:
        return
    for command in commands_of(page):
        module, arguments = arguments_of(re.sub(r"\$\w+", "1", command))
        told = " ".join(arguments)
        if module != "train" or {"...", "--help", "--config"} & {*arguments} or "<" in told:
            continue
        starts = {
            arguments[index + 1]: made / (mode := flag[2:].removesuffix("_load_weights")) / mode
            for index, flag in enumerate(arguments)
            if flag.endswith("_load_weights")
        }
        rest = [word for word in arguments if word != "--resume"]
        check_start(rest, made / PLACES[0], tmp_path / "logs", starts, whole=False)
