"""docs/extending.md at its word: each diff, applied to a copy of the tree, keeps its limits and
works from features to a prediction, and to ONNX where the network is another; and a run from before
it still predicts what it did."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import QUIET, ROOT, blank, make_clip, tone, write_features
from extras import need

from benchmarks import architecture

PAGE = ROOT / "docs" / "extending.md"
PRODUCT = ("corpora", "extract", "models", "training", "evaluation", "inference", "utils")
LIMITS = {  # heading of the page: files and lines that a change may touch beside its new file
    "A modality": (3, 40),
    "A fusion": (1, 10),  # beside its class
    "A loss": (2, 15),
    "A corpus": (1, 1),
    "An augmentation": (1, 20),
    "An optimizer": (1, 10),
}
every_change = pytest.mark.parametrize("change", LIMITS)


def diffs_of_page() -> dict[str, str]:
    """{heading: its diff}."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        if blocks := re.findall(r"^```diff\n(.*?)^```$", text, re.M | re.S):
            found[heading] = "".join(blocks)
    return found


DIFFS = diffs_of_page()


def copy_with(change: str, tree: Path) -> Path:
    """The product as it stands, with this change."""
    for name in PRODUCT:
        shutil.copytree(ROOT / name, tree / name)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy2(path, tree)
    applied = subprocess.run(
        ["git", "apply", "--whitespace=error-all", "-"],
        cwd=tree,
        env=os.environ | {"GIT_DIR": "/dev/null"},  # not the repository that the tests are in
        input=DIFFS[change],
        capture_output=True,
        text=True,
    )
    assert applied.returncode == 0, f"{PAGE.name}, {change}: {applied.stderr}"
    return tree


# The limits


def touched(diff: str) -> dict[str, list[str]]:
    """{file: the lines that are added and removed in it}, without files that the diff makes."""
    files: dict[str, list[str]] = {}
    is_new, lines = False, []
    for line in diff.splitlines():
        if line.startswith("--- "):
            is_new = line == "--- /dev/null"
        elif line.startswith("+++ "):
            lines = [] if is_new else files.setdefault(line.removeprefix("+++ b/"), [])
        elif line.startswith(("+", "-")):
            lines.append(line)
    return files


def class_lengths(path: Path) -> dict[str, int]:
    """{class: its lines}."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return {node.name: node.end_lineno - node.lineno + 1 for node in nodes}


def test_the_page_shows_all_six():
    assert list(DIFFS) == list(LIMITS)


@every_change
def test_it_keeps_its_limits_and_the_style(change, tmp_path):
    tree, files = copy_with(change, tmp_path / "tree"), touched(DIFFS[change])
    count = sum(map(len, files.values()))
    if change == "A fusion":
        (path,) = files
        before, after = class_lengths(ROOT / path), class_lengths(tree / path)
        count -= sum(length for name, length in after.items() if name not in before)
    most_files, most_lines = LIMITS[change]
    assert len(files) <= most_files and count <= most_lines, (files.keys(), count)
    paths = re.findall(r"^\+\+\+ b/(.*)$", DIFFS[change], re.M)
    for check in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, *paths]
        done = subprocess.run(ruff, cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# The whole way

QUICK = "--device cpu --num_workers 0 --batch_size 7 --n_epoch 2"
SPEECH = "--speech_backbone small-32 --speech_frames 48"
TEXT = "--text_layers 1 --text_heads 2"
JOINED = f"--mode multimodal {SPEECH} {TEXT} --modality_dropout 0.3"
TRAINING = {
    "A modality": "--mode pulse",
    "A fusion": f"{JOINED} --inputs speech,text --fusion lowrank",
    "A loss": f"--mode text {TEXT} --loss contrastive --mixup_prob 1",
    "A corpus": f"--mode speech {SPEECH} --fold 0",
    "An augmentation": f"--mode speech {SPEECH} --speech_noise 0.2",
    "An optimizer": f"--mode text {TEXT} --optim lamb",
}
SWITCHED_OFF = {  # flags of a run without the change; those that switch it off with it
    "A loss": (f"--mode text {TEXT} --mixup_prob 1", "--loss contrastive --contrastive 0"),
    "An augmentation": (f"--mode speech {SPEECH}", "--speech_noise 0"),
}
EXPORTED = ("A modality", "A fusion")  # the others leave the network as it is
RAW = {  # the features of these are made with the change, by preprocess.py
    "A modality": "--corpus csv --data_dir {place}/clips --modalities speech,pulse",
    "A corpus": "--corpus emodb --data_dir {place}/emodb",
}


def fill(place: Path) -> None:
    """Features and clips."""
    write_features(place / "features", 1, splits=("train", "val"))
    rows = ["media,split,emotion"]
    for index in range(6):
        sound = tone(0.8, 200 + 90 * index) * np.linspace(0.1, 1, 12_800) ** (index / 3)
        spoken = {"sound": sound, "sound_codec": "pcm_s16le"}
        make_clip(place / "clips" / f"{index}.wav", **spoken)
        rows.append(f"{index}.wav,{'train' if index < 4 else 'val'},{('hap', 'sad')[index % 2]}")
        make_clip(place / "emodb" / "wav" / f"0{index // 2}a01{'FT'[index % 2]}a.wav", **spoken)
    (place / "clips" / "manifest.csv").write_text("\n".join([*rows, ""]))
    words = np.random.default_rng(0).normal(size=(3, 16)).astype("f4")
    np.savez(place / "clips" / "0.npz", word_embed=words)


def train(flags: str, features: Path, logs: Path) -> list[object]:
    places = ("--features_dir", features, "--logs_dir", logs)
    return ["train", *flags.split(), *QUICK.split(), *places]


def predict(place: Path, run: Path, name: str) -> list[object]:
    clip, out = place / "clips" / "0.wav", place / "says" / name
    return ["predict", clip, "--checkpoints", run, "--out", out, "--device", "cpu"]


def evaluate(run: Path, features: Path, out: Path) -> list[object]:
    places = ("--checkpoints", run, "--features_dir", features, "--out", out)
    return ["evaluate", *places, "--num_workers", "0", "--device", "cpu"]


def old_commands(place: Path) -> list[list[object]]:
    """Without any change: a run and what it predicts; and what a change must not change."""
    features, logs = place / "features", place / "logs"
    steps = [train(f"{JOINED} --inputs speech,text --exp_name old", features, logs)]
    steps.append(predict(place, logs / "multimodal" / "old", "old"))
    for flags, _ in SWITCHED_OFF.values():
        steps.append(train(f"{flags} --exp_name before", features, logs))
    return steps


def commands(change: str, place: Path) -> list[list[object]]:
    """What one does with a change: features, training, a stop, going on, evaluation, a clip."""
    work, features, steps = place / change, place / "features", []
    if change in RAW:
        features = work / "features"
        raw = RAW[change].format(place=place).split()
        steps.append(["preprocess", *raw, "--features_dir", features, "--workers", "1"])
    flags, logs = TRAINING[change], work / "logs"
    whole = logs / flags.split()[1] / "whole"
    steps += [
        train(f"{flags} --exp_name whole", features, logs),
        train(f"{flags} --exp_name stopped", features, logs),
        train(f"{flags} --exp_name stopped --resume", features, logs),
        evaluate(whole, features, work / "report"),
        predict(place, whole, f"{change}, new"),
        [*predict(place, place / "logs/multimodal/old", f"{change}, old"), "--no_pictures"],
    ]
    if change in SWITCHED_OFF:
        flags = " ".join(SWITCHED_OFF[change])
        steps.append(train(f"{flags} --exp_name off", features, place / "logs"))
    if change == "A modality":  # fused with others; and the recipe goes on without it
        fused = f"{JOINED} --inputs speech,pulse --fusion crossattention --exp_name fused"
        steps += [
            [*train(fused, features, logs), "--pulse_load_weights", whole],
            predict(place, logs / "multimodal" / "fused", "fused"),
            train(f"{JOINED} --exp_name recipe --dry_run", place / "features", logs),
        ]
    if change in EXPORTED and importlib.util.find_spec("onnxscript"):
        steps.append(["export", "--checkpoint", whole, "--out", work / "model.onnx"])
    return steps


def run_changes(place: Path) -> dict[str, list[dict]]:
    """{change: what each of its commands said}."""
    jobs = {"old": (ROOT, old_commands(place))}
    for change in LIMITS:
        jobs[change] = (copy_with(change, place / change / "tree"), commands(change, place))
    done = subprocess.run(
        [sys.executable, "-c", "import test_extending; test_extending.run_all()"],
        env=os.environ | QUIET | {"PYTHONPATH": str(ROOT / "tests")},
        input=json.dumps(jobs, default=str),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# In a process of its own, so that the libraries are loaded once and the product is not

OURS = (*PRODUCT, "inside")
LIBRARIES = (
    *("torch", "timm", "torch_optimizer", "efficientnet_pytorch", "torch.utils.tensorboard"),
    *("librosa.filters", "scipy.signal", "albumentations", "av", "pandas"),
    *("sklearn.metrics", "matplotlib.pyplot", "jinja2", "onnxscript", "onnxruntime"),
)


def run_all() -> None:
    """The jobs on stdin, each in a fork: the one without a change first, then two at a time."""
    for library in LIBRARIES:
        with contextlib.suppress(ModuleNotFoundError):  # the last two are extras
            importlib.import_module(library)
    first, *others = json.load(sys.stdin).items()
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        results = pool.map(run_job, [first], 1) + pool.map(run_job, others, 1)
    print(json.dumps(dict(results)))


def run_job(job: tuple[str, tuple[str, list[list[str]]]]) -> tuple[str, list[dict]]:
    """Its commands with the product of its tree, up to the first one that fails."""
    name, (tree, steps) = job
    for module in [each for each in sys.modules if each.partition(".")[0] in OURS]:
        del sys.modules[module]
    sys.path.insert(0, tree)
    from utils import guard, plots

    guard.START = "fork"  # not the libraries once more
    plots._save = blank
    results = []
    for step in steps:
        results.append(run_step(*step))
        if not results[-1]["good"]:
            break
    places = {sys.modules[name].__file__ for name in PRODUCT if name in sys.modules}
    assert all(Path(each).is_relative_to(tree) for each in places), "another tree was tested"
    return name, results


def run_step(script: str, *arguments: str) -> dict:
    from inside import run_main

    stops = "stopped" in arguments and "--resume" not in arguments
    if stops:
        stop_behind_the_first_epoch()
    try:
        done = run_main(script, *arguments)
        good, said = done.code == (143 if stops else 0), done.out + done.err
    except Exception:
        good, said = False, traceback.format_exc()
    return {"step": f"{script} {' '.join(arguments)}", "good": good, "said": said}


def stop_behind_the_first_epoch() -> None:
    from training.record import Record

    add = Record.add

    def add_and_stop(self, row: dict) -> None:
        Record.add = add  # once
        add(self, row)
        os.kill(os.getpid(), signal.SIGTERM)

    Record.add = add_and_stop


# What is asked of it


def test_all_six_work(tmp_path):
    """One test: shared among processes it would run everything once in each of them."""
    fill(tmp_path)
    results = run_changes(tmp_path)
    for change in LIMITS:
        check(change, tmp_path, results)
    need("onnx", "onnxscript", "onnxruntime")
    for change in EXPORTED:
        assert results[change][-1]["step"].startswith("export"), change


def check(change: str, place: Path, results: dict[str, list[dict]]) -> None:
    for each in results["old"] + results[change]:
        assert each["good"], f"{each['step']}\n{each['said']}"
    logs = place / change / "logs" / TRAINING[change].split()[1]
    whole = weights_of(logs / "whole")
    assert same(weights_of(logs / "stopped"), whole), f"{change}: a resumed run is another one"
    if change in SWITCHED_OFF:
        off, before = (weights_of(place / "logs" / logs.name / run) for run in ("off", "before"))
        assert same(off, before), f"{change}: switched off it should change nothing"
        assert not same(whole, before), f"{change}: switched on it changes nothing"
    new, old, before = (
        pd.read_csv(place / "says" / name / "predictions.csv")
        for name in (f"{change}, new", f"{change}, old", "old")
    )
    assert new["clip"].nunique() == 1 and new["answer"].notna().all(), change
    pd.testing.assert_frame_equal(old, before)


def weights_of(run: Path) -> dict:
    import torch

    return torch.load(run / "last.pth", weights_only=True)["weights"]


def same(some: dict, others: dict) -> bool:
    return all(value.equal(others[name]) for name, value in some.items())


# The page of the house


def test_the_picture_shows_the_imports():
    """Else: python benchmarks/architecture.py"""
    from PIL import Image

    found = architecture.imports_of_product()
    with Image.open(architecture.PICTURE) as picture:
        assert json.loads(picture.text["Description"]) == found
    assert architecture.upward(found) == []
    wrong = found | {"models": ["utils", "training"]}
    assert architecture.upward(wrong) == ["models imports training"]


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extending.md", "CONTRIBUTING.md"])
def test_the_pages_name_what_there_is(page):
    text = re.sub(r"^```diff\n.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    named = re.findall(r"`((?:\w+/)+\w+\.\w+)(?::(\w+))?`", text)
    assert named
    for path, name in named:
        assert (ROOT / path).is_file(), f"{page}: no {path}"
        if name:
            nodes = ast.walk(ast.parse((ROOT / path).read_text()))
            names = {getattr(node, "name", getattr(node, "id", "")) for node in nodes}
            assert name in names, f"{page}: {path} has no {name}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: no {link}"
