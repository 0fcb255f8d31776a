"""train.py through the front door, on small fake features."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, QUIET, ROOT, blank, run_script, write_features
from inside import run_main
from trainings import B0, MODES, SIZES, add_feature, remains, with_records
from trainings import TINY as THREE_EPOCHS

import models
import train
import training.features
from corpora.audit import load_audit
from models import build_model
from models.fusion import FUSIONS
from models.pooling import MeanPooling
from training.checkpoint import best_checkpoint, load_checkpoint, restore_model
from training.features import Features
from training.fingerprint import fingerprints, known
from training.modalities import MODALITIES
from training.prepare import create_model, load_starts, shown_settings
from training.tasks import TASKS, recipe, task_of
from utils import plots
from utils.files import lock_folder

TINY = [*THREE_EPOCHS, "--n_epoch", "2"]
HALF = ("text", "face")  # modes that run in half precision, which takes a CPU without it long


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture
def start(features, tmp_path):
    """start("text", "--seed", 3) -> the finished run; its folder is `folder(mode)`."""

    def run(mode, *args, name="run"):
        places = ["--features_dir", features, "--logs_dir", tmp_path]
        return run_main("train", "--mode", mode, "--exp_name", name, *TINY, *places, *args)

    return run


@pytest.fixture(scope="module")
def runs(features, tmp_path_factory):
    """A run of every mode, speech of the recipe's kind of backbone; the multimodal one starts from
    the other three."""
    logs, done = tmp_path_factory.mktemp("logs"), {}
    for mode in MODES:
        args = ["--features_dir", features, "--logs_dir", logs, "--amp", str(mode in HALF)]
        if mode == "multimodal":
            args += [each for m in done for each in (f"--{m}_load_weights", logs / m / "first")]
        sizes = {"speech": B0, "multimodal": SIZES}.get(mode, TINY)
        flags = ["--mode", mode, "--exp_name", "first", *sizes, "--n_epoch", 2]
        with pytest.MonkeyPatch.context() as patch:
            if mode != "text":  # its pictures are drawn
                patch.setattr(plots, "_save", blank)
            done[mode] = run_main("train", *flags, *args)
    return logs, done


def weights(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.pth")["weights"]


def differing(one: dict, two: dict) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


# The command line

COMMON = "--warmup 0 --weight_decay 5e-5 --num_workers 16"
PUBLISHED = {
    "speech": f"--learning_rate 4e-3 --batch_size 256 --n_epoch 100 --optim ranger {COMMON}"
    " --speech_coeff 4 --mixup_prob 1 --mixup_alpha 1 --label_smoothing 0.1 --amp True",
    "face": f"--learning_rate 4e-3 --batch_size 32 --n_epoch 20 --optim ranger {COMMON}"
    " --face_coeff 0 --cutmix_prob 1 --cutmix_beta 1 --label_smoothing 0.1 --amp True",
    "text": f"--learning_rate 3e-4 --batch_size 128 --n_epoch 100 --optim ranger {COMMON}"
    " --label_smoothing 0.1 --amp False",
    "multimodal": f"--learning_rate 3e-4 --batch_size 16 --n_epoch 20 --optim sgd {COMMON}"
    " --speech_load_weights s.pth --text_load_weights t.pth --face_load_weights f.pth"
    " --speech_coeff 4 --face_coeff 0 --mixup_prob 1 --mixup_alpha 1 --label_smoothing 0.1"
    " --lam 2 --amp False",
}


def resolve(monkeypatch, mode: str, flags: str = "") -> dict:
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--mode", mode, "--exp_name", "X", "--dry_run", *flags.split()]
    )
    seen: list[dict] = []
    monkeypatch.setattr(train, "train", lambda args, config, folder: seen.append(config))
    train.main()
    return seen[0]


@pytest.mark.parametrize("mode", MODES)
def test_the_published_command_is_the_default(monkeypatch, mode):
    given, bare = resolve(monkeypatch, mode, PUBLISHED[mode]), resolve(monkeypatch, mode)
    paths = {name: given.pop(name) for name in list(given) if name.endswith("_load_weights")}
    assert all(bare.pop(name) is None for name in paths)
    assert given == bare == {**recipe(mode), "fold": None, "val_fold": None}
    if mode == "multimodal":
        assert sorted(paths.values()) == ["f.pth", "s.pth", "t.pth"]
    schedule = "step" if mode == "multimodal" else "cosine"
    assert (given["schedule"], given["face_frames"], given["seed"]) == (schedule, 16, 42)


def test_what_a_run_writes(runs):
    logs, done = runs
    for mode, run in done.items():
        assert run.code == 0, run.err
        folder, epochs = logs / mode / "first", pd.read_csv(logs / mode / "first" / "metrics.csv")
        assert ("bfloat16" in run.out) == (mode in HALF), "--amp was not obeyed"
        assert run.out.count("\nepoch ") == 2 and "_best_" in run.out.splitlines()[-1]
        assert "epoch 1/2" in run.err and "epoch 1/2" not in run.out.split("epoch 1/2: training")[0]
        best = json.loads((folder / "best.json").read_text())
        file = folder / f"{best['epoch']}_best_{best['loss']:.4f}.pth"
        assert [path.name for path in folder.glob("*_best_*.pth")] == [file.name]
        names = {path.name.split(".tfevents")[0] for path in folder.iterdir()} - {file.name}
        assert names == {".lock", "best.json", "config.json", "confusion.png", "curves.png"} | {
            "events.out",
            "last.pth",
            "metrics.csv",
        }
        assert list(epochs["epoch"]) == [1, 2] and np.isfinite(epochs.to_numpy()).all()
        assert best["loss"] == epochs["val_loss"].min() and best["clips"] == 14
        config = json.loads((folder / "config.json").read_text())
        assert config["mode"] == mode and config["amp"] is (mode in HALF) and config["n_epoch"] == 2
        checkpoint = load_checkpoint(file)
        assert checkpoint["classes"] == list(CLASSES) and checkpoint["config"] == config
        build_model(**checkpoint["arch"]).load_state_dict(checkpoint["weights"])


def test_multimodal_starts_from_the_three_runs(runs):
    logs, done = runs
    assert done["multimodal"].out.count(": weights from ") == 3
    fusion = load_checkpoint(logs / "multimodal" / "first" / "last.pth")
    starts = load_starts(fusion["config"], TASKS["multimodal"])
    assert [checkpoint["leaks"] for _, checkpoint in starts.values()] == ["", "", ""]
    model = create_model(fusion["arch"], fusion["config"], starts, fusion["classes"]).state_dict()
    copied = set()
    for mode in ("speech", "face", "text"):
        source = load_checkpoint(best_checkpoint(logs / mode / "first"))["weights"]
        shared = [name for name in source if name in model]
        assert [name for name in shared if not torch.equal(model[name], source[name])] == []
        copied.update(shared)
    assert {name.split(".")[0] for name in set(model) - copied} == {"heads"}
    assert {name.split(".")[1] for name in set(model) - copied} == {"integrated"}


@pytest.mark.parametrize(
    ("mode", "built", "anew"),
    [
        ("speech", {"pooling": "stats"}, "pooling"),
        ("face", {"grid": 2, "pooling": "mean"}, "lstm, pooling"),
    ],
)
def test_what_is_built_in_another_way_is_learnt_anew(runs, capsys, mode, built, anew):
    source = runs[0] / mode / "first"
    first = load_checkpoint(best_checkpoint(source))
    arch = {**first["arch"], "encoders": {mode: first["arch"]["encoders"][mode] | built}}
    starts = {mode: (source, first)}
    model = create_model(arch, first["config"], starts, first["classes"]).state_dict()
    assert f"all but {anew} and the last layer" in capsys.readouterr().out
    weights, encoder = first["weights"], f"encoders.{mode}."
    new = {name for name in model if not same(model[name], weights.get(name))}
    parts = {name.removeprefix(encoder).split(".")[0] for name in new if name.startswith(encoder)}
    assert parts <= set(anew.split(", ")) and ("lstm" in parts) == ("lstm" in anew)
    kept = {name for name in model if name.startswith(f"{encoder}backbone.")}
    assert kept and kept.isdisjoint(new) and any(name.startswith("heads.") for name in new)


def same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


# What is refused, before any training


def test_weights_that_do_not_fit_are_refused(runs, features, start, tmp_path):
    speech = runs[0] / "speech" / "first"
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "run"]
    flags = [*B0, *places, "--speech_load_weights", speech, "--speech_coeff", 1]
    wrong = run_main("train", "--mode", "speech", *flags)
    assert wrong.code == 4 and "--speech_coeff 1, it was trained with 0" in wrong.err, wrong.err
    other = start("text", "--text_load_weights", speech)
    assert other.code == 4 and "is a run of speech, not of text" in other.err, other.err
    absent = start("text", "--text_load_weights", tmp_path / "nothing.pth")
    assert absent.code == 2 and "nothing.pth" in absent.err
    assert not [*(tmp_path / "text").iterdir()], "a run that cannot start leaves something"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--features_dir nowhere", "run preprocess.py first"),
        ("--learning_rate nan", "--learning_rate: nan"),
        ("--batch_size 0", "--batch_size: 0: expected a number, 1 or more"),
        ("--num_workers -1", "num_workers"),
        ("--optim adam", "adam"),
        ("--exp_name ../up", "use letters"),
        ("--device cuda:77", "cuda:77"),
        ("--text_heads 7 --text_layers 0", "--text_layers: 0"),
        ("--pretrained nowhere", ""),  # text has no backbone: nothing to load, a good dry run
    ],
)
def test_bad_flags_are_usage(start, flags, says):
    run = start("text", "--dry_run", *flags.split())
    assert run.code == (2 if says else 0) and says in run.err, run.err
    lines = run.err.strip().split("\n")  # a bar of a slow machine is within one
    assert not says or "usage:" in run.err or len(lines) <= 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rte": 1}, "did you mean learning_rate"),
        ({"mode": "face"}, "is of mode face"),
        ({"n_epoch": 2.5}, "n_epoch"),
        ({"amp": "perhaps"}, "amp"),
        ({"label_smoothing": 2}, "label_smoothing"),
        ([], "config"),
        (None, "not valid JSON"),
    ],
)
def test_bad_config_files_are_usage(start, tmp_path, settings, says):
    file = tmp_path / "config.json"
    file.write_text("{" if settings is None else json.dumps(settings))
    places = ["--features_dir", "nowhere", "--logs_dir", tmp_path]
    run = run_main("train", "--mode", "speech", "--exp_name", "a", "--config", file, *places)
    assert run.code == 2 and says in run.err and "preprocess" not in run.err


@pytest.mark.parametrize("content", [b"text", b"", b"PK\x03\x04 half"])
def test_damaged_pretrained_weights_are_usage(start, tmp_path, content):
    (tmp_path / "b0.pth").write_bytes(content)
    run = start("speech", "--pretrained", tmp_path / "b0.pth", "--dry_run")
    assert run.code == 2 and "b0.pth" in run.err


def test_faulty_features_stop_before_training(tmp_path):
    def run(folder):
        places = ["--features_dir", folder, "--logs_dir", tmp_path / "logs"]
        return run_main("train", "--mode", "text", "--exp_name", "a", *TINY, *places)

    lone = run(write_features(tmp_path / "lone", 1, splits=("train",)))
    assert lone.code == 2 and "'val'" in lone.err
    folder = write_features(tmp_path / "gap", 1)
    (folder / "val" / "text" / "00009.npz").unlink()
    gap = run(folder)
    assert gap.code == 4 and "00009.npz" in gap.err and "epoch" not in gap.out
    folder = write_features(tmp_path / "label", 1)
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",hap,", ",joy,"))
    label = run(folder)
    assert label.code == 4 and "clip 00000" in label.err
    speechless = run(write_features(tmp_path / "speechless", 1, modalities=("speech",)))
    assert speechless.code == 2 and "text is needed" in speechless.err
    assert not list((tmp_path / "logs").rglob("*.pth"))


@pytest.mark.parametrize(
    ("mode", "array", "says"),
    [
        ("speech", np.full((128, 50), np.nan, "f4"), "holds values that are not numbers"),
        ("speech", np.zeros((64, 50), np.float32), "float32 (64, 50), expected float (128, "),
        ("speech", np.zeros((128, 50), np.uint8), "uint8 (128, 50), expected float (128, "),
        ("speech", np.zeros(128, np.float32), "float32 (128,), expected float (128, "),
        ("speech", np.zeros((128, 0), np.float32), "float32 (128, 0), expected float (128, "),
        ("face", np.zeros((3, 32, 32, 3), np.uint8), "uint8 (3, 32, 32, 3), expected uint8 ("),
        ("face", np.zeros((3, 32, 32, 3), np.float32), "expected uint8 ("),
        ("text", np.full((2, 16), np.nan, "f4"), "holds values that are not numbers"),
        ("text", np.ones((2, 9), "f4"), "float32 (2, 9), expected float (any, 16)"),
        ("multimodal", np.full(12, np.nan), "holds values that are not numbers"),
        ("multimodal", np.zeros((2, 12)), "float64 (2, 12), expected numbers (12)"),
        ("multimodal", np.zeros(7), "float64 (7,), expected numbers (12)"),
        ("multimodal", np.zeros((2, 3, 4)), "float64 (2, 3, 4), expected numbers (12)"),
        ("multimodal", np.array(["a", "b"]), "<U1 (2,), expected numbers (12)"),
    ],
)
def test_a_faulty_feature_is_named_before_it_reaches_a_weight(tmp_path, mode, array, says):
    """Whoever made it. It is found when it is first read, or by --verify_features at the start."""
    made = {"face": "video", "multimodal": "text"}.get(mode, mode)
    folder = write_features(tmp_path, 1, splits=("train", "val"), modalities=(made,))
    place = folder / "train" / {"multimodal": "au"}.get(mode, made) / "00003.npy"
    add_feature(folder, "au", (12,))
    if mode == "text":
        np.savez(place.with_suffix(".npz"), word_embed=array)
    else:
        np.save(place, array)
    args = ["--mode", mode, *TINY, "--features_dir", folder, "--logs_dir", tmp_path / "logs"]
    args += ["--inputs", "au", "--optim", "adamw"] * (mode == "multimodal")
    run = run_main("train", *args, "--exp_name", "a", "--verify_features", "--dry_run")
    assert run.code == 4 and place.stem in run.err and says in run.err, run.err
    assert not (tmp_path / "logs").exists()


def test_what_python_fails_at_in_threads_is_read_again(features, tmp_path, monkeypatch):
    """Python 3.11.7 raises this at times where two threads read headers of arrays at once."""
    load, calls = np.load, itertools.count()

    def now_and_then(*args, **how):
        if next(calls) % 2:
            raise SystemError("AST constructor recursion depth mismatch (before=33, after=31)")
        return load(*args, **how)

    monkeypatch.setattr(np, "load", now_and_then)
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--exp_name", "a"]
    for mode in ("speech", "text"):
        run = run_main("train", "--mode", mode, *TINY, *places, "--verify_features", "--dry_run")
        assert run.code == 0, run.err


def test_small_features_are_read_once(features, tmp_path, monkeypatch):
    read, seen = training.features.read_feature, []
    monkeypatch.setattr(training.features, "read_feature", lambda p: seen.append(p) or read(p))
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--num_workers", 0]
    args = ["--mode", "text", "--text_layers", 1, "--n_epoch", 3, "--batch_size", 5]
    assert run_main("train", *args, *places, "--exp_name", "a").code == 0
    assert seen and len(seen) == len({*seen})


# Weights of another run, and whatever can be built


def test_an_encoder_comes_with_its_own_settings(features, tmp_path):
    """Neither the second run nor its resumption repeats a flag of the runs that it starts from."""
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--num_workers", 0]
    command = ["train", *places, "--batch_size", 5, "--n_epoch", 1]
    small = {"speech": "--speech_backbone small-16 --speech_frames 48", "text": "--text_layers 2"}
    for mode, flags in small.items():
        flags = [*flags.split(), "--pooling", "mean"]
        assert run_main(*command, "--mode", mode, "--exp_name", "a", *flags).code == 0
    fused = [*command, "--mode", "multimodal", "--exp_name", "b", "--inputs", "speech,text"]
    starts = ["--speech_load_weights", tmp_path / "speech" / "a"]
    starts += ["--text_load_weights", tmp_path / "text" / "a"]
    run = run_main(*fused, *starts)
    assert run.code == 0 and run.out.count(": weights from ") == 2, run.err
    config = json.loads((tmp_path / "multimodal" / "b" / "config.json").read_text())
    wanted = {"speech_backbone": "small-16", "speech_frames": 48}
    wanted |= {"text_layers": 2, "pooling": "mean"}
    assert wanted.items() <= config.items()
    again = run_main(*fused, *starts, "--resume")
    assert again.code == 0 and "resumed" in again.out, again.err
    run = run_main(*fused, *starts, "--dry_run", "--overwrite", "--speech_backbone", "small-32")
    said = "--speech_backbone small-32, it was trained with small-16"
    assert run.code == 4 and said in run.err, run.err
    freely = ["--speech_frames", 64, "--time_masks", 0]  # no weight depends on these
    freely += ["--pooling", "relation"]  # and what does is learnt anew
    run = run_main(*fused, *starts, "--dry_run", "--overwrite", *freely)
    assert run.code == 0 and "speech_frames=64" in run.out, run.err
    assert "all but pooling and the last layer" in run.out


def test_word_vectors_of_another_size_are_named(start, tmp_path):
    assert start("text", "--n_epoch", 1).code == 0
    other = write_features(tmp_path / "other", word_dim=24, modalities=("text",))
    places = ["--features_dir", other, "--text_load_weights", tmp_path / "text" / "run"]
    run = start("text", *places, name="b")
    assert run.code == 4 and "this run has dim 24, it has 16" in run.err, run.err


class Widths(torch.nn.Module):
    """An encoder whose description holds what no encoder of ours has: a list, a large number."""

    def __init__(self, widths: list[int], buckets: int, scale: dict[str, float]):
        super().__init__()
        self.layers = torch.nn.Sequential(*map(torch.nn.Linear, widths, widths[1:]))
        self.token_dim, self.buckets, self.scale = widths[-1], buckets, scale["of all"]
        self.pooling = MeanPooling(self.token_dim)

    def forward(self, words, mask):
        return self.layers(words * self.scale) % self.buckets, mask


def test_whatever_can_be_built_is_trained_resumed_and_restored(start, tmp_path, monkeypatch):
    arch = {"type": "Widths", "widths": [16, 8, 4], "buckets": 120_000, "scale": {"of all": 0.5}}
    row = dataclasses.replace(MODALITIES["text"], encoder=lambda config, shape: arch)
    monkeypatch.setitem(MODALITIES, "text", row)
    monkeypatch.setitem(models.ENCODERS, "Widths", Widths)
    assert start("text", "--n_epoch", 1, "--eval_step", 1).code == 0
    again = start("text", "--n_epoch", 1, "--resume")
    assert again.code == 0 and "resumed" in again.out, again.err
    best = best_checkpoint(tmp_path / "text" / "run")
    assert restore_model(load_checkpoint(best), best).encoders["text"].buckets == 120_000


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Words and a custom feature: no backbone."""
    folder = write_features(tmp_path_factory.mktemp("light"), 1, modalities=("text",))
    add_feature(folder, "au", (12,))
    return folder


@pytest.mark.parametrize("fusion", ["gated", "attention", "crossattention", "late"])
def test_every_fusion_is_trained_resumed_and_restored(light, start, tmp_path, fusion):
    flags = ["--inputs", "au,text", "--n_epoch", 1, "--fusion", fusion]
    flags += ["--modality_dropout", 0.3, "--features_dir", light]
    assert start("multimodal", *flags).code == 0
    again = start("multimodal", *flags, "--resume")
    assert again.code == 0 and "resumed" in again.out, again.err
    best = best_checkpoint(tmp_path / "multimodal" / "run")
    assert load_checkpoint(best)["arch"]["fusion"] == fusion
    model = restore_model(load_checkpoint(best), best)
    assert type(model.heads["integrated"]) is FUSIONS[fusion]
    changed = start("multimodal", *flags, "--resume", "--fusion", "concat")
    assert changed.code == 4 and f"fusion: {fusion} then, concat now" in changed.err


@pytest.mark.slow
def test_a_custom_feature_of_120_000_values(tmp_path):
    folder = write_features(tmp_path / "features", 1, modalities=("text",))
    add_feature(folder, "wide", (120_000,))
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--exp_name", "a", *TINY]
    flags = ["--mode", "multimodal", "--inputs", "wide", "--n_epoch", 1]
    assert run_main("train", *flags, *places).code == 0
    again = run_main("train", *flags, *places, "--resume")
    assert again.code == 0 and "resumed" in again.out, again.err
    best = best_checkpoint(tmp_path / "multimodal" / "a")
    assert restore_model(load_checkpoint(best), best).encoders["wide"].norm.num_features == 120_000


# What a start reads, and when damage is found


STARTS = """
import sys
from collections import Counter
from pathlib import Path
import training.loop
from inside import run_main

folder, logs, *flags = sys.argv[1:]
opened = Counter()
sys.addaudithook(lambda event, args: opened.update([str(args[0])] if event == "open" else []))
result = {"accuracy": 1.0, "uar": 1.0, "loss": 1.0}
training.loop.fit = lambda *args: result  # no step is done
for fold in ([], ["--fold", "all"]):
    opened.clear()
    run = run_main("train", *flags, "--exp_name", "".join(["a", *fold]), *fold)
    paths = {Path(path): count for path, count in opened.items() if path.startswith(folder)}
    records = [count for path, count in paths.items() if path.parent.name == "records"]
    features = [count for path, count in paths.items() if path.suffix in (".npy", ".npz")]
    print(run.code, len(records), max(records), features, file=sys.__stdout__)
    sys.__stderr__.write(run.err)
"""


def test_a_start_reads_each_record_and_no_feature(tmp_path):
    """But the first clip's, whose width the model needs. All folds share one look."""
    folder = with_records(write_features(tmp_path / "features", 1, modalities=("text", "speech")))
    load_audit(folder)  # preprocess.py leaves it behind
    flags = ["--mode", "text", *TINY, "--features_dir", folder, "--logs_dir", tmp_path / "logs"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = run_script("-c", STARTS, folder, tmp_path, *flags, env={"PYTHONPATH": paths})
    # each of 21 records, for the audit and the run; of one feature its digest and its numbers
    assert run.stdout.splitlines() == 2 * ["0 21 1 [2]"], run.stdout + run.stderr


def test_a_start_reads_only_the_ends_of_a_custom_feature(tmp_path):
    """Of 20 GB that nobody has a digest of."""
    opened = Features.open(write_features(tmp_path, 1, modalities=("text",)))
    row = opened.manifest.to_dict("records")[0]
    path = opened.path(row, "au")
    path.parent.mkdir()
    seen = set()
    for size, last in ((20 << 30, b"a"), (20 << 30, b"b"), (21 << 30, b"b")):
        with open(path, "wb") as file:
            file.seek(size)
            file.write(last)
        opened.seen.clear()  # each time a start of its own
        began = time.monotonic()
        seen.add(opened.digest_of(row, "au"))
        assert time.monotonic() - began < 2
    assert len(seen) == 3


def test_the_clock_of_a_start_stops_behind_the_first_step():
    run = run_script("-m", "benchmarks.start", "--clips", "40", timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("loading processes and the step") == 2


@pytest.mark.slow
def test_twenty_thousand_clips_start_within_twenty_seconds():
    """On two idle cores; benchmarks/start.py says where the seconds go."""
    run = run_script("-m", "benchmarks.start", timeout=600)
    assert run.returncode == 0, run.stderr
    seconds = re.search(r"second start: ([\d.]+) s", run.stdout)
    assert seconds and float(seconds[1]) < 20, run.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_found_before_a_weight_or_a_checkpoint_saw_it(tmp_path, workers):
    """In the first epoch, or at the start with --verify_features; with the file mended the run goes
    on as if nothing had been."""
    folder = with_records(write_features(tmp_path / "features", modalities=("text",)))
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--num_workers", workers]
    command = ["train", "--mode", "text", *TINY, *places]
    assert run_main(*command, "--exp_name", "whole").code == 0
    for split, clip_id in (("train", "00007"), ("val", "00021")):
        path, log = folder / split / "text" / f"{clip_id}.npz", tmp_path / "text" / split
        sound = path.read_bytes()
        path.write_bytes(sound[:200] + bytes([sound[200] ^ 1]) + sound[201:])
        looked = run_main(*command, "--exp_name", split, "--verify_features")
        assert looked.code == 4 and f"{path} is not as preprocess.py wrote it" in looked.err
        assert not log.exists()
        run = run_main(*command, "--exp_name", split)
        assert run.code == 4 and f"{path} is not as preprocess.py wrote it" in run.err, run.err
        assert "saved in" in run.err and "\nepoch 1" not in run.out
        assert not list(log.glob("*_best_*.pth"))
        path.write_bytes(sound)
        assert run_main(*command, "--exp_name", split, "--resume").code == 0
        assert remains(log) == remains(tmp_path / "text" / "whole")


# Runs that exist already


def test_an_existing_run_is_kept_unless_asked(start, tmp_path):
    assert start("text").code == 0
    before = weights(tmp_path / "text" / "run")
    again = start("text", "--seed", 5)
    assert again.code == 2 and "--resume" in again.err and "--overwrite" in again.err
    changed = start("text", "--resume", "--batch_size", 7)
    assert changed.code == 4 and "batch_size: 5 then, 7 now" in changed.err
    assert differing(before, weights(tmp_path / "text" / "run")) == []
    with lock_folder(tmp_path / "text" / "run"):
        locked = start("text", "--overwrite")
    assert locked.code == 5 and f"process {os.getpid()}" in locked.err
    assert start("text", "--overwrite", "--seed", 5).code == 0
    assert differing(before, weights(tmp_path / "text" / "run"))


def test_the_record_is_whole_after_a_kill_behind_the_last_checkpoint(start, tmp_path):
    assert start("text").code == 0
    metrics = tmp_path / "text" / "run" / "metrics.csv"
    rows = metrics.read_bytes()
    metrics.unlink()  # last.pth was saved, this not yet
    assert start("text", "--resume").code == 0 and metrics.read_bytes() == rows


def test_a_stopped_run_goes_on_as_if_it_never_stopped(features, start, tmp_path):
    long = ["--n_epoch", 4, "--batch_size", 2, "--mixup_prob", 0.5]
    assert start("text", *long, name="whole").code == 0
    places = ["--features_dir", features, "--logs_dir", tmp_path]
    command = ["train.py", "--mode", "text", "--exp_name", "cut", *TINY, *places, *long]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **QUIET, "TQDM_DISABLE": ""},  # its bar says where it is
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    seen = b""
    while b"epoch 1/4" not in seen:
        seen += (more := process.stderr.read(1))
        assert more, seen
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(60) == 143 and b"--resume" in rest
    state = load_checkpoint(tmp_path / "text" / "cut" / "last.pth")
    assert 0 <= state["step"] < 28  # 0 when the signal met the first step
    resumed = start("text", *long, "--resume", name="cut")
    assert resumed.code == 0 and f"after step {state['step']}" in resumed.out
    whole, cut = (tmp_path / "text" / name for name in ("whole", "cut"))
    assert differing(weights(whole), weights(cut)) == []
    for name in ("metrics.csv", "best.json", "config.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    assert best_checkpoint(whole).name == best_checkpoint(cut).name


def test_only_the_seed_changes_a_run(start, tmp_path):
    cases = {"a": [], "b": [], "workers": ["--num_workers", 2], "other": ["--seed", 43]}
    for name, args in cases.items():
        assert start("text", "--mixup_prob", 0.5, *args, name=name).code == 0
    made = {name: weights(tmp_path / "text" / name) for name in cases}
    assert differing(made["a"], made["b"]) == []
    assert differing(made["a"], made["workers"]) == []
    assert differing(made["a"], made["other"])
    assert json.loads((tmp_path / "text" / "a" / "config.json").read_text())["amp"] is False


def test_frozen_backbones_stay_as_they_are(start, tmp_path):
    run = start("face", "--freeze_backbone", True, "--n_epoch", 1)
    weighs, trains = re.search(r"([\d,]+) weights, ([\d,]+) trained", run.out).groups()
    assert run.code == 0 and int(trains.replace(",", "")) < int(weighs.replace(",", ""))
    state = load_checkpoint(tmp_path / "face" / "run" / "last.pth")
    torch.manual_seed(42)
    moved = differing(build_model(**state["arch"]).state_dict(), state["weights"])
    assert moved and [name for name in moved if ".backbone." in name] == []
    assert any(name.startswith("encoders.face.lstm.") for name in moved)


def test_folds_leave_the_test_clips_alone(start):
    run = start("text", "--fold", 1, "--dry_run")
    assert run.code == 0, run.err
    assert "14 training clips" in run.out and "14 validation clips" in run.out
    assert start("text", "--fold", 5, "--dry_run").code == 2


def test_all_folds_one_after_the_other(start, tmp_path):
    first = start("text", "--fold", "all")
    assert first.code == 0, first.err
    assert "2 folds: accuracy 0." in first.out.splitlines()[-1] and "±" in first.out
    table = json.loads((tmp_path / "text" / "run" / "folds.json").read_text())
    assert list(table) == ["0", "1"] and all(fold["clips"] == 14 for fold in table.values())
    shutil.rmtree(tmp_path / "text" / "run" / "fold_1")
    again = start("text", "--fold", "all", "--resume")
    assert again.out.count("epoch 2/2") == 1, "finished folds are not trained again"
    assert again.out.splitlines()[-1] == first.out.splitlines()[-1]
    assert start("text", "--fold", "all").code == 2


def test_weights_of_another_fold_have_seen_the_clips(start, tmp_path):
    assert start("text", "--fold", "all", name="words").code == 0
    source = tmp_path / "text" / "words"
    arguments = ("--inputs", "text", "--text_load_weights")
    leak = start("multimodal", *arguments, source / "fold_0", "--fold", 1, "--dry_run")
    assert leak.code == 4 and "trained with --fold 0, this run has 1" in leak.err
    every = start("multimodal", *arguments, source, "--fold", "all", "--dry_run")
    assert every.code == 0 and every.out.count("text: weights from") == 2


def test_custom_features_are_modalities(tmp_path):
    folder = write_features(tmp_path / "features", modalities=("text",), clips_per_class=4)
    add_feature(folder, "au", (12,))
    add_feature(folder, "wav2vec2", (5, 9))
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--exp_name", "own", *TINY]
    inputs = ["--inputs", "au,text,wav2vec2", "--n_epoch", 12, "--modality_dropout", 0.3]
    run = run_main("train", "--mode", "multimodal", *places, *inputs, "--optim", "adamw")
    assert run.code == 0, run.err
    checkpoint = load_checkpoint(best_checkpoint(tmp_path / "multimodal" / "own"))
    assert checkpoint["arch"]["heads"] == {"integrated": ["au", "text", "wav2vec2"]}
    assert checkpoint["val"]["accuracy"] > 0.5, run.out
    answers = run_main("make_submission", *places[:2], "--logs_dir", tmp_path, "--out", tmp_path)
    assert answers.code == 0, answers.err


def test_the_small_recipe_of_encoders_is_one_linear_layer(tmp_path):
    folder = write_features(tmp_path / "features", modalities=("text",), clips_per_class=4)
    add_feature(folder, "voice", (12,))
    add_feature(folder, "looks", (9,))
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--num_workers", 0]
    command = ["train", "--mode", "multimodal", "--recipe", "small", *places]
    run = run_main(*command, "--exp_name", "a", "--inputs", "voice,looks", "--n_epoch", 100)
    assert run.code == 0 and "eval_step=280" in run.out, run.err
    checkpoint = load_checkpoint(tmp_path / "multimodal" / "a" / "last.pth")
    encoders = checkpoint["arch"]["encoders"]
    assert [encoders[name]["hidden"] for name in ("voice", "looks")] == [0, 0]
    config = checkpoint["config"]
    assert (config["schedule"], config["n_epoch"]) == ("cosine", 100), "flags go first"
    assert checkpoint["val"]["accuracy"] > 0.5, run.out
    words = run_main(*command, "--exp_name", "b", "--inputs", "voice,text", "--dry_run")
    assert words.code == 0 and "feature_encoder=lstm" in words.out, words.err


@pytest.mark.parametrize("inputs", ["speech,speech", "../speech", "speech,,text", "au"])
def test_inputs_that_cannot_be(start, inputs):
    assert start("multimodal", "--inputs", inputs).code == 2
    assert start("speech", "--inputs", "speech").code == 2


def test_a_leak_stops_the_training_unless_it_is_allowed(tmp_path):
    folder = write_features(tmp_path / "features", 1, modalities=("text",))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table.assign(speaker="anna").to_csv(folder / "manifest.csv", index=False)
    places = ["--features_dir", folder, "--logs_dir", tmp_path, "--exp_name", "a", *TINY]
    run = run_main("train", "--mode", "text", *places)
    assert run.code == 4 and "speaker anna" in run.err and "--allow_leaks" in run.err
    allowed = run_main("train", "--mode", "text", *places, "--allow_leaks")
    assert allowed.code == 0 and "LEAKS allowed: speakers in two splits: 1" in allowed.out
    assert load_checkpoint(tmp_path / "text" / "a" / "last.pth")["leaks"]
    options = ["--checkpoints", tmp_path / "text" / "a", "--features_dir", folder]
    report = run_main("evaluate", *options, "--out", tmp_path / "report")
    assert report.code == 0 and "TRAINED WITH LEAKS" in report.out
    assert "1 of 1 speakers are in the training clips too" in report.out


def test_dry_run_trains_nothing(features, tmp_path):
    places = ["--features_dir", features, "--logs_dir", tmp_path]
    run = run_script("train.py", "--mode", "face", "--exp_name", "a", "--dry_run", *places)
    assert run.returncode == 0, run.stderr
    assert "batch_size=32" in run.stdout and " weights, " in run.stdout
    assert list(tmp_path.iterdir()) == []


AUDIT = """
import runpy, sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as stop:
    print("code", stop.code)
folder = sys.argv[-1]
for split in ("train", "val", "test"):
    inside = [path for path in opened if path.startswith(f"{folder}/{split}/")]
    print(split, sum("/records/" not in path for path in inside))
"""


def test_training_never_opens_the_test_clips(features, tmp_path):
    load_audit(features)  # the audit compares all clips; preprocess.py makes it
    places = ["--logs_dir", tmp_path, "--features_dir", features]
    command = ["--mode", "text", "--exp_name", "a", *TINY, *places]
    run = run_script("-c", AUDIT, *command)
    assert run.stdout.splitlines()[-4:] == ["code 0", "train 14", "val 14", "test 0"], run.stderr


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$(wc -l < "$CALLS")" = "$STOP_AT" ] && exit 130
[ "$1" = preprocess.py ] && exit 3  # some clips were rejected
echo an epoch
"""


def test_only_what_acts_is_shown():
    text = recipe("text") | {"mode": "text"}
    speech = recipe("speech") | {"mode": "speech"}
    assert {"mixup_prob", "speech_contrast"} <= {*shown_settings(speech, task_of(speech))}
    without = speech | {"augment": False, "mixup_prob": 0.0}
    shown = {*shown_settings(without, task_of(without))}
    assert "augment" in shown and not shown & {"mixup_alpha", "speech_contrast", "time_masks"}
    assert "mixup_alpha" in shown_settings(speech, task_of(speech))
    assert "cutmix_beta" not in shown_settings(text, task_of(text))


def test_the_recipe_of_the_challenge_goes_on_after_a_stop(tmp_path, monkeypatch):
    """Whatever it is stopped in, the second start gives every command again, with --resume."""
    fake, recipe, calls = tmp_path / "bin/python", tmp_path / "recipes/merc2020.sh", tmp_path / "c"
    for folder in (fake.parent, recipe.parent, tmp_path / "logs"):
        folder.mkdir()
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    shutil.copy(ROOT / "recipes/merc2020.sh", recipe)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "CALLS": str(calls)}

    def start(stop_at: int) -> subprocess.CompletedProcess:
        calls.unlink(missing_ok=True)
        return subprocess.run(
            ["bash", recipe, "--device", "cpu"],
            env={**environment, "STOP_AT": str(stop_at)},
            capture_output=True,
            text=True,
            check=False,
        )

    for stop_at in (1, 6):
        assert start(stop_at).returncode == 130
        assert len(calls.read_text().splitlines()) == stop_at
    whole = start(0)
    assert whole.returncode == 0, whole.stderr
    lines = [shlex.split(line) for line in calls.read_text().splitlines()]
    runs = [line[1:] for line in lines if line[0] == "train.py"]
    assert whole.stdout.count("an epoch") == 16 + 2
    assert (tmp_path / "logs/logs.txt").read_text().count("an epoch") == 4 + 16
    seen: dict[str, argparse.Namespace] = {}
    for arguments in runs:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        args = train.parse_args()
        assert args.resume and args.device == "cpu"
        seen[args.exp_name] = args
        for mode in ("speech", "face", "text"):  # what it starts from was trained before it
            path = getattr(args, f"{mode}_load_weights", None)
            assert path is None or seen[Path(path).name].mode == mode
    assert len(runs) == 16 and {args.seed for args in seen.values()} == {42, 4242, 424242, 1234}
    others = [line for line in lines if line[0] != "train.py"]
    assert [line[0] for line in others] == ["preprocess.py", *["make_submission.py"] * 2]
    for path in (path for line in others for path in line if path.startswith("logs/")):
        assert seen[Path(path).name].mode == "multimodal"


def test_a_run_that_would_be_lost_or_mixed_is_kept(start, tmp_path):
    assert start("text", "--n_epoch", 1).code == 0
    (best,) = (tmp_path / "text" / "run").glob("*_best_*.pth")
    for name in ("last.pth", "previous.pth"):
        (tmp_path / "text" / "run" / name).unlink(missing_ok=True)
    for flags in ([], ["--resume"]):
        run = start("text", "--n_epoch", 1, *flags)
        assert run.code == 2 and best.is_file(), run.err
    assert start("text", "--fold", "all", name="folds").code == 0
    run = start("text", name="folds")
    assert run.code == 2 and "holds a run already" in run.err
    assert start("text", name="plain").code == 0
    run = start("text", "--fold", "all", name="plain")
    assert run.code == 2 and "without folds" in run.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--resume", "--overwrite"], "choose one"),
        (["--val_fold", "0"], "needs --fold"),
        (["--speech_load_weights", "x.pth"], "has no speech"),
        (["--n_epochs", "3"], "--n_epochs: did you mean --n_epoch?"),
        (["--exp_nam", "a"], "--exp_nam: did you mean --exp_name?"),
        (["--batch-size", "3"], "did you mean --batch_size?"),
    ],
)
def test_flags_that_would_do_nothing_are_usage(start, flags, says):
    run = start("text", *flags)
    assert run.code == 2 and says in run.err, run.err


def test_weights_of_a_modality_that_is_no_input_are_usage(start):
    run = start("multimodal", "--inputs", "text", "--speech_load_weights", "x.pth")
    assert run.code == 2 and "--speech_load_weights: --inputs text has no speech" in run.err


def test_weights_that_have_seen_the_validation_clips_are_refused(features, start, tmp_path):
    assert start("text", name="first").code == 0
    swapped = shutil.copytree(features, tmp_path / "swapped")
    for one, other in (("train", "x"), ("val", "train"), ("x", "val")):
        (swapped / one).rename(swapped / other)
    table = pd.read_csv(swapped / "manifest.csv", dtype=str, keep_default_na=False)
    table["split"] = table["split"].replace({"train": "val", "val": "train"})
    table.to_csv(swapped / "manifest.csv", index=False)
    flags = ["--text_load_weights", tmp_path / "text" / "first", "--features_dir", swapped]
    run = start("text", *flags, name="second")
    assert run.code == 4 and "was trained on 14 of the 14 clips" in run.err, run.err
    members = ["--checkpoints", tmp_path / "text" / "first", "--features_dir", swapped]
    run = run_main("evaluate", *members, "--out", tmp_path / "out", "--num_workers", 0)
    assert run.code == 4 and "was trained on 14 of these 14 clips" in run.err, run.err


def test_what_the_weights_of_an_earlier_run_have_seen_is_seen(features, start, tmp_path):
    """Two of its training clips are test clips of the run that starts from it."""
    assert start("text", name="first").code == 0
    moved = shutil.copytree(features, tmp_path / "moved")
    table = pd.read_csv(moved / "manifest.csv", dtype=str, keep_default_na=False)
    for row in table[table["split"] == "train"].index[:2]:
        table.loc[row, ["split", "speaker"]] = "kept"
        for path in (moved / "train").glob(f"*/{table.loc[row, 'clip_id']}.*"):
            place = moved / "kept" / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            path.rename(place / path.name)
    table.to_csv(moved / "manifest.csv", index=False)
    flags = ["--text_load_weights", tmp_path / "text" / "first", "--features_dir", moved]
    assert start("text", *flags, name="second").code == 0
    members = ["--checkpoints", tmp_path / "text" / "second", "--features_dir", moved]
    places = ["--split", "kept", "--out", tmp_path / "out", "--num_workers", 0]
    run = run_main("evaluate", *members, *places)
    assert run.code == 4 and "was trained on 2 of these 2 clips" in run.err, run.err


def test_clips_are_known_by_recording_or_by_name_and_words():
    def numbers(clip_id, transcript="", **shas):
        stages = {name: {"source_sha256": sha} for name, sha in shas.items()}
        features = SimpleNamespace(record=lambda row: stages)
        return fingerprints(features, [{"clip_id": clip_id, "transcript": transcript}])

    seen = numbers("a", "hello", speech="1", text="2").ravel()
    for same in (
        numbers("b", video="1"),  # renamed
        numbers("a", "hello"),  # its words alone
        numbers("a", text="2"),
        numbers("a", "hello", speech="9"),  # encoded anew
    ):
        assert known(same, seen).tolist() == [True]
    for other in (numbers("a", "bye"), numbers("b", "hello"), numbers("b", text="2"), numbers("a")):
        assert known(other, seen).tolist() == [False]
    assert known(numbers("a"), numbers("a")).all()  # where nothing else is known


def test_the_rate_of_an_epoch_is_the_one_it_began_with(start, tmp_path):
    assert start("text", "--learning_rate", 1e-3).code == 0
    rates = pd.read_csv(tmp_path / "text" / "run" / "metrics.csv")["lr"]
    np.testing.assert_allclose(rates, [1e-3, 5e-4])


def test_a_custom_feature_beside_all_three_is_fused():
    config = recipe("multimodal") | {"inputs": "speech,face,text,my_au"}
    assert task_of(config).heads["integrated"] == (("speech", "face", "text", "my_au"), "emotion")
    assert set(task_of(config).heads) == {"integrated", "speech", "face"}


def test_folds_are_checked_before_the_first_and_can_be_started_anew(features, start, tmp_path):
    assert start("text", "--fold", "all", "--overwrite", "--n_epoch", 1).code == 0
    assert start("text", "--fold", "all", "--overwrite", "--n_epoch", 1).code == 0
    run = start("text", "--fold", "all", "--val_fold", "1", name="b")
    assert run.code == 2 and "can only be next" in run.err
    odd = shutil.copytree(features, tmp_path / "odd")
    table = pd.read_csv(odd / "manifest.csv", dtype=str, keep_default_na=False)
    table["fold"] = table["fold"].replace({"1": "b c"})
    table.to_csv(odd / "manifest.csv", index=False)
    run = start("text", "--fold", "all", "--features_dir", odd, name="c")
    assert run.code == 2 and "fold 'b c'" in run.err and "epoch" not in run.out


@pytest.mark.parametrize("flag", ["--lam", "--clip_norm", "--warmup", "--mixup_alpha"])
def test_endless_numbers_are_refused(start, flag):
    assert start("multimodal" if flag == "--lam" else "text", flag, "inf").code == 2


def test_the_words_of_a_fused_run_have_no_last_layer(features, tmp_path):
    """They have none of their own there: the network starts from it, its last layer anew."""
    places = ["--features_dir", features, "--logs_dir", tmp_path, *TINY, "--n_epoch", 1]
    fused = ["--mode", "multimodal", "--inputs", "text", "--exp_name", "a", *places]
    assert run_main("train", *fused).code == 0
    start = ["--text_load_weights", tmp_path / "multimodal" / "a"]
    run = run_main("train", "--mode", "text", "--exp_name", "b", *places, *start)
    assert run.code == 0, run.err
    assert "all but the last layer: it has none for this input alone" in run.out


def test_a_hint_is_about_what_failed(start):
    run = start("text", "--lr", 1e-3, "--resume", "--overwrite")
    assert run.code == 2 and "did you mean" not in run.err, run.err


@pytest.mark.parametrize("flag", [("--lr", "0.01"), ("--lr=0.01",)])
def test_the_short_name_of_the_learning_rate_sets_it(monkeypatch, flag):
    assert resolve(monkeypatch, "text", " ".join(flag))["learning_rate"] == 0.01


def test_batches_of_one_clip_teach_custom_features(tmp_path):
    """One vector of it, too: (D,), and (T, D) of which one frame is seen."""
    features = write_features(tmp_path / "features", 1, modalities=("text",))
    add_feature(features, "whole", (8,))
    add_feature(features, "moving", (2, 8))
    shape = ["--inputs", "whole,moving", "--feature_frames", 1, "--n_epoch", 1, "--batch_size", 1]
    places = ["--features_dir", features, "--logs_dir", tmp_path, "--num_workers", 0]
    run = run_main("train", "--mode", "multimodal", "--exp_name", "a", *places, *shape)
    assert run.code == 0, run.err
    learnt = weights(tmp_path / "multimodal" / "a")
    assert all(torch.isfinite(each).all() for each in learnt.values())


def test_one_training_clip_teaches_nothing(features, start, tmp_path):
    folder = shutil.copytree(features, tmp_path / "one")
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table[table["split"].ne("train") | table["clip_id"].eq("00000")].to_csv(
        folder / "manifest.csv", index=False
    )
    run = start("text", "--features_dir", folder)
    assert run.code == 2 and f"{folder}: 1 training clip: at least 2 are needed" in run.err
