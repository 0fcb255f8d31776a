"""Pretrained encoders by name, from the raw clip to the answer; small random models, offline."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, ROOT, TINY, digests, make_clip, voice, write_features
from encoders import FACES, TEXTS, VOICES, make_models, swin, transformers, vit_mae
from extras import REQUIRED, need
from inside import run_main

import app
from evaluation.ensemble import load_members
from extract import encoders
from inference import frozen, service, wording
from inference.figure import draw_prediction
from inference.predictor import Predictor
from models.features import LayerMix, SequenceEncoder, VectorEncoder
from training import loop
from training.checkpoint import best_checkpoint, load_checkpoint, save_checkpoint
from training.data import ClipDataset, to_device
from training.features import Features
from training.mixing import cutmix
from training.modalities import MODALITIES, Modality, custom_encoder, modality
from training.standardize import scale_of, speaker_scales
from training.tasks import fused, recipe
from training.views import custom_view
from utils.errors import ClipError, UsageError

SAID = ("a good day", "안녕 나쁘지 않아", "नमस्ते", "今日")
OWN_FILE = """
import numpy as np

def load(settings, device):
    return lambda wave: np.array([np.abs(wave).mean(), wave.std(), len(wave) / 16000])
"""
SEEN = {
    "speech": np.random.default_rng(0).normal(0, 0.1, 24_000).astype("f4"),
    "face": np.random.default_rng(0).integers(0, 255, (20, 48, 48, 3)).astype("u1"),
    "text": "안녕 a good day",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def world(tmp_path_factory, models, face_image):
    """A corpus of eight clips, its features of four encoders, and a run that read them."""
    folder = tmp_path_factory.mktemp("world")
    make_corpus(folder / "clips", ["train"] * 5 + ["val"] * 3, face_image)
    (folder / "own.py").write_text(OWN_FILE)
    given = [
        f"wavlm=speech:hf:{models['wavlm']}",
        f"clip=face:hf:{models['clip']},layers=last2,pool=frames",
        f"bert=text:hf:{models['bert']},pool=frames",
        f"own=speech:file:{folder / 'own.py'}",
    ]
    world = {"folder": folder, "clips": folder / "clips", "features": folder / "features"}
    world["flags"] = [part for each in given for part in ("--encoder", each)]
    done = preprocess(world)
    assert done.code == 0, done.err
    done = run_main("train", *train_flags(world, "wavlm,clip,bert,own"), "--exp_name", "first")
    assert done.code == 0, done.err
    return world | {"run": folder / "logs" / "multimodal" / "first"}


def make_corpus(folder, splits, face_image):
    """One clip of somebody who speaks for each of these splits, and their table."""
    rows = ["media,split,emotion,speaker,transcript"]
    for index, split in enumerate(splits):
        name, label = f"{index}.mp4", CLASSES[index % 2]
        sound = np.r_[np.zeros(1600), voice(0.9, index), np.zeros(1600)].astype("f4")
        picture = (face_image * (1 - index / 20)).astype(np.uint8)  # no clip shows the same
        make_clip(folder / name, np.stack([picture] * 8), sound, fps=8)
        rows.append(f"{name},{split},{label},{split}{index % 2},{SAID[index % 4]}")
    (folder / "manifest.csv").write_text("\n".join([*rows, ""]))


def preprocess(world, *args, flags=None):
    place = ("--data_dir", world["clips"], "--features_dir", world["features"], "--workers", 1)
    made = ("--modalities", "speech,video", "--face_size", 48, "--device", "cpu")
    flags = world["flags"] if flags is None else flags
    return run_main("preprocess", "--corpus", "csv", *place, *made, *flags, *args)


def train_flags(world, inputs, *args):
    place = ("--features_dir", world["features"], "--logs_dir", world["folder"] / "logs")
    size = ("--n_epoch", 2, "--batch_size", 5, "--num_workers", 0, "--modality_dropout", 0.3)
    return "--mode", "multimodal", "--inputs", inputs, *place, *size, "--device", "cpu", *args


def feature(world, name, clip="train/0"):
    split, clip_id = clip.split("/")
    return np.load(world["features"] / split / name / f"{clip_id}.npy", allow_pickle=False)


# Encoders themselves


@pytest.mark.parametrize("kind", [*VOICES, *FACES, *TEXTS])
def test_every_kind_gives_its_layers_over_time(models, kind):
    seen = next(
        name
        for name, group in (("speech", VOICES), ("face", FACES), ("text", TEXTS))
        if kind in group
    )

    def made(options):
        _, settings = encoders.parse(f"x={seen}:hf:{models[kind]}{options}")
        return encoders.encode(settings, "cpu", SEEN[seen])

    frames, layers = made(",pool=frames"), 3 if kind == "whisper" else 4
    steps = {"whisper": 75, "videomae": 8, "bert": 4, "xlm_r": 4}
    assert frames.dtype == np.float16
    assert frames.shape == (layers, steps.get(kind, 20 if seen == "face" else 74), 32)
    np.testing.assert_allclose(made("")[:, 0], frames.mean(axis=1), atol=2e-3)
    np.testing.assert_allclose(made(",layers=last,pool=frames"), frames[-1], atol=1e-3)
    two = frames[1:3].mean(axis=0)
    np.testing.assert_allclose(made(",layers=1-2,pool=frames"), two, atol=2e-3)
    stats = np.concatenate([two.mean(axis=0), two.astype("f4").std(axis=0)])
    np.testing.assert_allclose(made(",layers=1-2,pool=stats"), stats, atol=4e-3)


def test_long_sound_is_read_in_pieces(models):
    _, settings = encoders.parse(f"x=speech:hf:{models['wavlm']},layers=last,pool=frames")
    wave = np.random.default_rng(1).normal(0, 0.1, 16_000 * 61).astype("f4")
    whole = encoders.encode(settings, "cpu", wave)
    first = encoders.encode(settings, "cpu", wave[: -(-len(wave) // 3)])
    assert len(whole) == 3 * len(first)
    np.testing.assert_array_equal(whole[: len(first)], first)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("wavlm", "expected NAME=INPUT"),
        ("wavlm=speech:hf", "expected NAME=INPUT"),
        ("a/b=speech:hf:x", "expected NAME=INPUT"),
        ("a=voice:hf:x", "INPUT 'voice' is none of speech, face, text"),
        ("a=speech:s3prl:x", "LIBRARY 's3prl' is none of hf, timm"),
        ("a=speech:timm:resnet18", "timm reads face, not speech"),
        ("a=speech:hf:x,layers=top", "layers=top: expected"),
        ("a=speech:hf:x,pool=max", "pool=max: expected"),
        ("a=speech:hf:x,dtype=int8", "dtype 'int8' is none of float16, float32"),
        ("a=speech:opensmile:eGeMAPSv02,layers=all", "layers=all: expected"),
    ],
)
def test_a_wrong_flag_says_what_is_right(typed, said):
    with pytest.raises(UsageError, match=said):
        encoders.parse(typed)


def test_a_name_that_is_taken_is_refused():
    for texts in (["speech=speech:hf:x"], ["a=speech:hf:x", "a=speech:hf:y"]):
        with pytest.raises(UsageError, match="is taken"):
            encoders.parse_all(texts, {"speech"})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:nobody/nothing", "cannot load the encoder hf:nobody/nothing"),
        ("hf:EMPTY", "cannot load the encoder"),
        ("opensmile:eGeMAPSv99", "opensmile has no set eGeMAPSv99; it has ComParE_2016"),
        ("file:nowhere.py", "no file nowhere.py"),
        ("file:EMPTY/no_load.py", "has no function load"),
    ],
)
def test_what_cannot_be_loaded_is_known_before_any_clip(world, tmp_path, source, said):
    (tmp_path / "no_load.py").write_text("x = 1\n")
    before = stamps(world)
    flag = f"x=speech:{source.replace('EMPTY', str(tmp_path))}"
    done = preprocess(world, flags=["--encoder", flag])
    assert done.code == 2 and said in done.err and "Traceback" not in done.err
    assert len(done.err.splitlines()) == 3  # of the corpus, of its transcripts, and this one
    assert stamps(world) == before


@pytest.mark.parametrize(
    ("kind", "flag", "said"),
    [
        ("wavlm", "speech:hf:FOLDER,layers=40", "layers=40: this encoder has the layers 0 to 3"),
        ("swin", "face:hf:FOLDER", "is no model that can encode face here: ValueError"),
        ("vit_mae", "face:hf:FOLDER", "of the same input it makes other numbers each time"),
        ("bert", "text:hf:FOLDER", "knows no words: put tokenizer.json or its vocabulary beside"),
    ],
)
def test_what_a_model_cannot_do_is_known_before_any_clip(models, tmp_path, kind, flag, said):
    if make := {"swin": swin, "vit_mae": vit_mae}.get(kind):
        make(tmp_path)
    else:
        shutil.copytree(models[kind], tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("token*"):
        path.unlink()
    _, settings = encoders.parse(f"x={flag.replace('FOLDER', str(tmp_path))}")
    with pytest.raises(UsageError, match=said):
        encoders.known(settings, "cpu")


@pytest.mark.parametrize("flag", ["text:hf:nobody/nothing", "face:timm:resnet18"])
def test_a_hub_that_cannot_be_reached_is_one_line(capfd, flag):
    """Its library tells of every try."""
    logging.getLogger("huggingface_hub").setLevel(logging.WARNING)
    with pytest.raises(UsageError, match="cannot load the encoder"):
        encoders.known(encoders.parse(f"x={flag}")[1], "cpu")
    logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 2s [Retry 2/5].")
    assert "Retrying" not in capfd.readouterr().err


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package transformers: pip install -r"):
        encoders.load(json.dumps({"library": "hf", "source": "not/loaded/before"}), "cpu")


def test_values_beyond_half_precision_are_named(tmp_path):
    (tmp_path / "large.py").write_text(
        "import numpy as np\ndef load(settings, device):\n    return lambda wave: np.full(3, 1e6)\n"
    )
    _, settings = encoders.parse(f"x=speech:file:{tmp_path / 'large.py'}")
    with pytest.raises(ClipError, match="over 65504: use dtype=float32"):
        encoders.encode(settings, "cpu", SEEN["speech"])
    assert encoders.encode(settings | {"dtype": "float32"}, "cpu", SEEN["speech"])[0] == 1e6


def test_words_beyond_what_is_read_are_cut_off_and_counted(models):
    _, settings = encoders.parse(f"x=text:hf:{models['bert']},pool=frames,layers=last")
    encoders.load.cache_clear()
    assert encoders.encode(settings, "cpu", "good day " * 33).shape == (66, 32)
    assert encoders.notes(settings, "cpu") == []
    assert encoders.encode(settings, "cpu", "good day " * 1000).shape == (66, 32)
    (line,) = encoders.notes(settings, "cpu")
    assert line == "1 clips have more than the 66 tokens that are read: cut off"


def test_an_encoder_that_fails_costs_the_clip(tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def load(settings, device):\n    return lambda wave: 1 / 0\n")
    _, settings = encoders.parse(f"x=speech:file:{tmp_path / 'bad.py'}")
    with pytest.raises(ClipError, match=r"bad\.py failed: ZeroDivisionError") as caught:
        encoders.encode(settings, "cpu", SEEN["speech"])
    assert caught.value.code == "E_ENCODER"
    assert "line 2" in capsys.readouterr().err  # where in the user's file


# preprocess.py


def test_features_are_as_the_settings_say(world):
    shapes = {name: feature(world, name).shape for name in ("wavlm", "clip", "bert", "own")}
    assert shapes["wavlm"] == (4, 1, 32) and shapes["own"] == (3,)
    assert shapes["clip"][1:] == (32,) and shapes["bert"] == (4, 3, 32)
    settings = json.loads((world["features"] / "settings.json").read_text())
    assert settings["modalities"] == ["speech", "video", "wave", "wavlm", "clip", "bert", "own"]
    assert {len(settings["features"][name]["weights"]) for name in shapes} == {64}


def test_words_of_any_script_are_different_words(world):
    kinds = [feature(world, "bert", clip) for clip in ("train/0", "train/1", "train/2", "train/3")]
    assert len({each.tobytes() for each in kinds}) == 4
    assert kinds[1].shape[1] == 3  # Korean words stay whole


def made(world):
    """Everything in the features folder but who held it last."""
    found = digests(world["features"])
    return {name: digest for name, digest in found.items() if name != ".lock"}


def test_other_settings_make_anew_what_they_affect_alone(world, models, tmp_path):
    shutil.copytree(world["features"], tmp_path / "features")
    copy = world | {"features": tmp_path / "features"}
    before = stamps(copy)
    flags = [
        each.replace("pool=frames", "pool=stats") if "clip=" in each else each
        for each in world["flags"]
    ]
    assert preprocess(copy, flags=flags).code == 0
    assert changed(before, stamps(copy)) == {"clip"}
    # the same weights from another place are the same encoder
    shutil.copytree(models["wavlm"], tmp_path / "moved")
    flags = [each.replace(str(models["wavlm"]), str(tmp_path / "moved")) for each in flags]
    before = stamps(copy)
    assert preprocess(copy, flags=flags).code == 0
    assert changed(before, stamps(copy)) == set()
    # what another run made stays, for the next one that asks for it
    assert preprocess(copy, flags=[]).code == 0
    assert preprocess(copy, flags=flags).code == 0
    assert changed(before, stamps(copy)) == set()


def stamps(world):
    paths = world["features"].glob("*/*/*.npy")
    return {path: path.stat().st_mtime_ns for path in paths}


def changed(before, after):
    return {path.parent.name for path in after if before.get(path) != after[path]}


def test_clips_without_words_are_rejected_or_trained_on_without(world, tmp_path):
    shutil.copytree(world["clips"], tmp_path / "clips")
    table = tmp_path / "clips" / "manifest.csv"
    said = table.read_text().replace(f"train0,{SAID[0]}", "train0, ", 1)
    table.write_text(said.replace(f"train0,{SAID[0]}", "train0,"))
    copy = world | {"folder": tmp_path, "clips": tmp_path / "clips"}
    copy["features"] = shutil.copytree(world["features"], tmp_path / "features")
    done = preprocess(copy)
    assert done.code == 3 and "6 of 8 clips usable" in done.out
    failed = (tmp_path / "features" / "failed.csv").read_text().splitlines()[1:]
    reason = "bert,E_SHORT,no words: its transcript is empty"
    assert failed == [f"{clip},{clip}.mp4,{reason}" for clip in (0, 4)]
    done = preprocess(copy, "--partial")
    assert done.code == 0 and "2 of them have a part only (2 without bert)" in done.out, done.err
    rows = pd.read_csv(tmp_path / "features" / "manifest.csv", keep_default_na=False)
    assert rows["missing"].tolist().count("bert") == 2
    done = run_main("train", *train_flags(copy, "wavlm,bert"), "--exp_name", "partial")
    assert done.code == 0, done.err


def test_words_alone_are_enough_for_an_encoder_of_words(world, models, tmp_path):
    clips = shutil.copytree(world["clips"], tmp_path / "clips")
    make_clip(clips / "0.mp4", np.full((8, 72, 96, 3), 90, np.uint8), fps=8)  # a wall, and silence
    features = shutil.copytree(world["features"], tmp_path / "features")
    copy = world | {"clips": clips, "features": features}
    bert = ["--encoder", f"bert=text:hf:{models['bert']}"]
    done = preprocess(copy, "--partial", flags=bert)
    assert done.code == 0 and "8 of 8 clips usable" in done.out, done.err
    rows = pd.read_csv(tmp_path / "features" / "manifest.csv", keep_default_na=False)
    assert rows["missing"].tolist() == ["speech video", *[""] * 7]
    again = preprocess(copy, "--partial", flags=bert)
    assert again.code == 0 and "8 of 8 clips usable" in again.out, again.err
    copy["features"] = tmp_path / "words"
    done = preprocess(copy, "--modalities", "text", flags=bert)
    assert done.code == 0 and "-> bert in" in done.err, done.err
    alone = train_flags(copy | {"folder": tmp_path}, "bert")
    done = run_main("train", *alone, "--exp_name", "words", "--allow_leaks")
    assert done.code == 0, done.err
    refused = preprocess(copy, "--modalities", "speech,text", flags=copy["flags"][:2])
    assert refused.code == 2 and "needs --word_vectors FILE" in refused.err


def test_without_any_clip_the_reason_is_that_of_the_clips(world, models, tmp_path):
    (tmp_path / "clips").mkdir()
    shutil.copy(world["clips"] / "manifest.csv", tmp_path / "clips")
    for path in world["clips"].glob("*.mp4"):
        (tmp_path / "clips" / path.name).symlink_to(path)
    copy = world | {"clips": tmp_path / "clips", "features": tmp_path / "features"}
    done = preprocess(copy, flags=["--encoder", f"x=text:hf:{models['bert']}"])
    assert done.code == 3 and "8 rejected (8 unusable id or place)" in done.out, done.err
    vectors = ROOT / "starter" / "words.npz"
    done = preprocess(copy, "--modalities", "text", "--word_vectors", vectors, flags=[])
    assert done.code == 3 and "8 rejected (8 unusable id or place)" in done.out, done.err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("x=speech:hf:MODEL", "which needs speech in --modalities video"),
        ("x=text:hf:MODEL", "no clip of csv has a transcript"),
    ],
)
def test_an_encoder_needs_what_it_sees(world, models, tmp_path, flag, said):
    shutil.copytree(world["clips"], tmp_path / "clips")
    table = tmp_path / "clips" / "manifest.csv"
    lines = [line.rpartition(",")[0] for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines))
    done = run_main(
        *("preprocess", "--corpus", "csv", "--data_dir", tmp_path / "clips"),
        *("--features_dir", tmp_path / "features", "--modalities", "video"),
        *("--encoder", flag.replace("MODEL", str(models["bert"]))),
    )
    assert done.code == 2 and said in done.err


@pytest.mark.parametrize(("kind", "seen"), [("whisper", "speech"), ("vit", "face")])
def test_what_a_newer_library_adds_makes_no_other_weights(
    models, monkeypatch, tmp_path, kind, seen
):
    folder = shutil.copytree(models[kind], tmp_path / kind)
    _, settings = encoders.parse(f"x={seen}:hf:{folder}")
    before = encoders.known(settings, "cpu")["weights"]
    base = {
        "speech": transformers.feature_extraction_utils.FeatureExtractionMixin,
        "face": transformers.image_processing_base.ImageProcessingMixin,
    }[seen]
    plain = base.to_dict
    monkeypatch.setattr(base, "to_dict", lambda self: {**plain(self), "new": 1})
    encoders.load.cache_clear()
    assert encoders.known(settings, "cpu")["weights"] == before
    (file,) = folder.glob("*processor*.json")
    about = json.loads(file.read_text())
    other = {"padding_value": 0.5} if seen == "speech" else {"resample": 3}
    file.write_text(json.dumps(about | other))
    encoders.load.cache_clear()
    assert encoders.known(settings, "cpu")["weights"] != before


# Training and the tools


def test_layers_are_mixed_in_learnt_shares():
    torch.manual_seed(0)
    mix = LayerMix(3)
    assert mix.shares.tolist() == pytest.approx([1 / 3] * 3)
    x = torch.randn(2, 3, 5, 8)
    with torch.no_grad():
        mix.weight[1] = 50.0  # all of it
    torch.testing.assert_close(mix(x), torch.nn.functional.layer_norm(x[:, 1], (8,)))
    vector, sequence = VectorEncoder(8, layers=3), SequenceEncoder(8, layers=3)
    assert vector(x[:, :, 0])[0].shape == (2, 1, 256)
    assert sequence(x)[0].shape == (2, 5, 256)
    sequence(x)[0].sum().backward()
    assert sequence.mix.weight.grad.abs().sum() > 0


def stop_behind(function):
    def call(*args):
        signal.raise_signal(signal.SIGTERM)
        return function(*args)

    return call


def every_encoder(models, folder):
    """{name: INPUT:LIBRARY:SOURCE} of every kind that is installed."""
    import timm

    (folder / "own.py").write_text(OWN_FILE)
    timm.models.save_for_hf(timm.create_model("test_efficientnet"), folder / "timm")
    given = {
        "timm": f"face:timm:local-dir:{folder / 'timm'},pool=frames",
        "own": f"speech:file:{folder / 'own.py'}",
        "voice": f"speech:run:{ROOT / 'starter' / 'voice.pth'},pool=stats",
        "looks": f"face:run:{ROOT / 'starter' / 'face.pth'},pool=stats",
    }
    if REQUIRED or importlib.util.find_spec("opensmile"):
        given["egemaps"] = "speech:opensmile:eGeMAPSv02"
    for seen, kinds in (("speech", VOICES), ("face", FACES), ("text", TEXTS)):
        given |= {kind: f"{seen}:hf:{models[kind]}" for kind in kinds}
    return given


def test_every_kind_goes_the_whole_way(models, tmp_path, face_image, monkeypatch):
    """From the clips through a stop, --verify and all tools to the same answer of each."""
    given = every_encoder(models, tmp_path)
    splits = ["train", "train", "val", "val", "test"]
    make_corpus(tmp_path / "clips", splits, face_image)
    world = {"folder": tmp_path, "clips": tmp_path / "clips", "features": tmp_path / "features"}
    world["flags"] = [
        part for name, rest in given.items() for part in ("--encoder", f"{name}={rest}")
    ]
    encode, calls, stop_at = encoders.encode, [], len(splits) + 2

    def counting(settings, device, seen):
        calls.append(settings["source"])
        if len(calls) == stop_at:
            raise UsageError("stopped")
        return encode(settings, device, seen)

    monkeypatch.setattr(encoders, "encode", counting)
    assert preprocess(world, flags=world["flags"][:4]).code == 2
    assert len(calls) == stop_at and not (world["features"] / "manifest.csv").exists()
    done = preprocess(world)
    assert done.code == 0 and len(calls) == len(given) * len(splits) + 1, done.err  # none twice
    expected = {"timm": (9, 256), "egemaps": (88,), "own": (3,), "wavlm": (4, 1, 32)}
    shapes = {name: feature(world, name).shape for name in given}
    assert {name: shapes[name] for name in expected if name in given} == expected

    before, encoded = made(world), len(calls)
    damaged = world["features"] / "train" / "wavlm" / "1.npy"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    (world["features"] / "val" / "bert" / "2.npy").unlink()
    done = preprocess(world, "--verify")
    assert "2 files were missing or changed" in done.out, done.out + done.err
    assert made(world) == before and len(calls) == encoded + 2

    flags = train_flags(world, ",".join(given), "--exp_name", "all", "--n_epoch", 1)
    done = run_main("train", *flags)
    assert done.code == 0, done.err
    run = tmp_path / "logs" / "multimodal" / "all"
    read = ("--checkpoints", run, "--features_dir", world["features"], "--device", "cpu")
    done = run_main("evaluate", *read, "--out", tmp_path / "report", "--num_workers", 0)
    assert done.code == 0, done.err
    (tmp_path / "sheet.csv").write_text("FileID\n4\n")
    done = run_main(
        *("make_submission", *read, "--sheets", tmp_path / "sheet.csv", "--out", tmp_path),
        *("--tta", 1, "--temperature", 1, "--num_workers", 0),
    )
    assert done.code == 0, done.err
    own = {"own": str(tmp_path / "own.py")}
    predictor = Predictor([run], folder=tmp_path / "made", device="cpu", encoders=own)
    prediction = predictor(world["clips"] / "4.mp4", SAID[0])
    assert prediction.rests_on == [*given] and not prediction.missing
    for name in ("wave", *given):
        (path,) = (tmp_path / "made" / "clips" / name).iterdir()
        as_made = (world["features"] / "test" / name / "4.npy").read_bytes()
        assert path.read_bytes() == as_made, name
    with np.load(tmp_path / "sheet_submission.npz", allow_pickle=False) as submission:
        np.testing.assert_allclose(
            submission["probabilities"][0], prediction.probabilities, atol=1e-6
        )


def test_a_run_goes_on_after_a_stop(world, monkeypatch):
    """Stopped after an epoch and gone on with, it ends as the run that was not stopped."""
    flags = train_flags(world, "wavlm,clip,bert,own")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", stop_behind(loop.validate))
        stopped = run_main("train", *flags, "--exp_name", "parts")
    assert stopped.code == 128 + signal.SIGTERM, stopped.err
    done = run_main("train", *flags, "--exp_name", "parts", "--resume")
    assert done.code == 0, done.err
    one, other = (best_checkpoint(world["run"].parent / name) for name in ("first", "parts"))
    a, b = (load_checkpoint(path)["weights"] for path in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_prediction_says_what_it_rests_on(world):
    own = {"own": str(world["folder"] / "own.py")}
    predictor = Predictor([world["run"]], device="cpu", encoders=own)
    prediction = predictor(world["clips"] / "0.mp4", SAID[0])
    assert prediction.rests_on == ["wavlm", "clip", "bert", "own"] and not prediction.missing
    assert prediction.encoders == {"speech": ["wavlm", "own"], "face": ["clip"], "text": ["bert"]}
    shapes = {name: seen.view.shape for name, seen in prediction.encoded.items()}
    assert shapes["speech"][:2] == (1, 128) and shapes["face"][1:] == (3, 48, 48)
    assert draw_prediction(prediction).startswith(b"\x89PNG")


def test_what_a_clip_lacks_costs_only_the_encoders_that_see_it(
    world, tmp_path, face_image, monkeypatch
):
    silent = make_clip(tmp_path / "silent.mp4", np.stack([face_image] * 8), fps=8)
    predictor = Predictor(
        [world["run"]], device="cpu", encoders={"own": str(world["folder"] / "own.py")}
    )
    prediction = predictor(silent)
    assert prediction.rests_on == ["clip"]
    assert prediction.missing["wavlm"].startswith("E_NOAUDIO")
    assert prediction.missing["own"].startswith("E_NOAUDIO")
    assert prediction.missing["bert"].startswith("E_MISSING: no words")
    assert prediction.unseen["speech"].startswith("E_NOAUDIO"), "the picture says why"
    assert "face" not in prediction.unseen
    said = []
    monkeypatch.setattr(wording, "reason", lambda why: said.append(why) or why)
    draw_prediction(prediction)
    assert [why.partition(":")[0] for why in said] == ["E_NOAUDIO", "E_MISSING"]
    heard = predictor(world["clips"] / "1.mp4")
    assert heard.rests_on == ["wavlm", "clip", "own"]


def test_a_file_of_code_runs_only_when_it_is_named(world, tmp_path):
    clip, flags = world["clips"] / "0.mp4", ("--checkpoints", world["run"], "--out", tmp_path)
    done = run_main("predict", clip, *flags)
    assert done.code == 2
    assert f"run only if you say so: --encoder own={world['folder'] / 'own.py'}" in done.err
    named = ("--encoder", f"own={world['folder'] / 'own.py'}")
    done = run_main("predict", clip, *flags, *named, "--device", "cpu")
    assert done.code == 0, done.err


def test_other_weights_are_refused(world, models, tmp_path):
    (tmp_path / "other.py").write_text(OWN_FILE + "\n# another one\n")
    flags = ("--checkpoints", world["run"], "--out", tmp_path / "out")
    done = run_main(
        "predict", world["clips"] / "0.mp4", *flags, "--encoder", f"own={tmp_path / 'other.py'}"
    )
    assert done.code == 4 and "has other weights" in done.err
    own = ("--encoder", f"own={world['folder'] / 'own.py'}")
    done = run_main(
        "predict", world["clips"] / "0.mp4", *flags, *own, "--encoder", f"wavlm={models['hubert']}"
    )
    assert done.code == 4 and "the encoder wavlm from" in done.err
    done = run_main("predict", world["clips"] / "0.mp4", *flags, *own, "--encoder", "x=y")
    assert done.code == 2 and "the encoders of this model are: wavlm, clip, bert, own" in done.err


def test_the_hub_is_asked_for_the_revision_of_the_training(world, models, tmp_path, monkeypatch):
    """Its newest has other weights by now."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--words"
    for kind, revision in (("bert", "a" * 40), ("xlm_r", "b" * 40)):
        shutil.copytree(models[kind], repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    features = shutil.copytree(world["features"], tmp_path / "features")
    world = world | {"features": features, "folder": tmp_path}
    flags = ["--encoder", "words=text:hf:somebody/words"]
    done = preprocess(world, flags=flags)
    assert done.code == 0, done.err
    done = run_main("train", *train_flags(world, "words"), "--exp_name", "first")
    assert done.code == 0, done.err
    (repository / "refs" / "main").write_text("b" * 40)
    flags = ("--checkpoints", tmp_path / "logs" / "multimodal" / "first", "--device", "cpu")
    flags = ("--text", SAID[0], *flags, "--out", tmp_path / "out")
    done = run_main("predict", *flags)
    assert done.code == 0, done.err
    done = run_main("predict", *flags, "--encoder", "words=somebody/words")
    assert done.code == 4 and "where these are now: --encoder words=PLACE" in done.err
    named = ("--encoder", f"words=somebody/words@{'a' * 40}")
    assert run_main("predict", *flags, *named).code == 0


@pytest.fixture(scope="module")
def own_runs(world):
    """A run of the voice and one of the face, trained here."""
    place = ("--features_dir", world["features"], "--logs_dir", world["folder"] / "own_logs")
    size = ("--n_epoch", 1, "--batch_size", 5, "--num_workers", 0, "--device", "cpu")
    for mode, length in (("speech", 48), ("face", 2)):
        flags = (f"--{mode}_backbone", TINY, f"--{mode}_frames", length, "--recipe", "small")
        done = run_main("train", "--mode", mode, "--exp_name", "a", *place, *size, *flags)
        assert done.code == 0, done.err
    return {mode: world["folder"] / "own_logs" / mode / "a" for mode in ("speech", "face")}


def test_a_run_of_ones_own_is_an_encoder(world, own_runs, tmp_path, monkeypatch):
    """Its tokens of the whole clip, however little of it the training read at once; of faces the
    mean with those of their mirror images."""
    flags = [
        *("--encoder", f"voice=speech:run:{own_runs['speech']},pool=frames"),
        *("--encoder", f"looks=face:run:{own_runs['face']},pool=stats"),
    ]
    copy = shutil.copytree(world["features"], tmp_path / "features")
    world = world | {"features": copy, "folder": tmp_path}
    new = encoders.LIBRARIES["run"]._replace(open=encoders.open_run)  # as in a new process
    monkeypatch.setitem(encoders.LIBRARIES, "run", new)
    done = preprocess(world, flags=flags)
    assert done.code == 0 and "wavlm, clip, bert, own: not made now" in done.err, done.err
    for name, mode in (("voice", "speech"), ("looks", "face")):
        (member,) = load_members([own_runs[mode]], Features.open(world["features"]))
        whole = feature(world, {"speech": "speech", "face": "video"}[mode])
        length = whole.shape[1] if mode == "speech" else len(whole)
        row = Features.open(world["features"]).rows("train").to_dict("records")[0]
        config = member.config | {f"{mode}_frames": length}
        view = modality(mode).view(whole, row, config, np.random.default_rng(0), False)
        tensors = [torch.from_numpy(each)[None] for each in view]
        sides = [tensors] if mode == "speech" else [tensors, [tensors[0].flip(-1)]]
        with torch.inference_mode():
            encoded = [member.model.eval().encode(to_device({mode: side}, "cpu")) for side in sides]
        tokens = [x[mask].numpy() for ((x, mask),) in (each.values() for each in encoded)]
        expected, found = np.mean(tokens, axis=0), feature(world, name)
        if mode == "face":
            expected = np.r_[expected.mean(0), expected.std(0)]
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    done = run_main("train", *train_flags(world, "voice,looks"), "--exp_name", "on_own")
    assert done.code == 0, done.err
    run = world["folder"] / "logs" / "multimodal" / "on_own"
    made_here = tmp_path / "made"
    encoders.LIBRARIES["run"] = new
    encoders.load.cache_clear()
    prediction = Predictor([run], folder=made_here, device="cpu")(world["clips"] / "0.mp4")
    assert prediction.rests_on == ["voice", "looks"]
    for name in ("voice", "looks"):
        (made,) = (made_here / "clips" / name).iterdir()
        assert made.read_bytes() == (world["features"] / "train" / name / "0.npy").read_bytes()
    other = tmp_path / "other.pth"
    checkpoint = load_checkpoint(best_checkpoint(own_runs["face"]))
    next(iter(checkpoint["weights"].values())).mul_(2)
    save_checkpoint(other, checkpoint)
    flags = ("--checkpoints", run, "--out", tmp_path / "out", "--device", "cpu")
    done = run_main("predict", world["clips"] / "0.mp4", *flags, "--encoder", f"looks={other}")
    assert done.code == 4 and "the encoder looks from" in done.err


def test_long_sound_and_many_pictures_go_through_a_run_in_pieces(own_runs, monkeypatch):
    frozen.register()
    for mode, seen, size in (
        ("speech", np.tile(SEEN["speech"], 4), 100),
        ("face", SEEN["face"], 8),
    ):
        encoder = encoders.load(
            json.dumps({**encoders.parse(f"x={mode}:run:{own_runs[mode]}")[1]}), "cpu"
        )
        at_once = encoder.encode(seen)
        monkeypatch.setattr(frozen, "COLUMNS", size)
        monkeypatch.setattr(frozen, "CROPS", size)
        pieces = encoder.encode(seen)
        assert pieces.shape[1] == at_once.shape[1] and len(pieces) >= len(at_once) > 1
        assert np.isfinite(pieces).all()
        # a small face network takes each picture by itself; a voice is read in both directions
        assert np.allclose(pieces, at_once, atol=1e-6) == (mode == "face")
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("x=face:run:SPEECH", "reads speech, not the face"),
        ("x=speech:run:NOWHERE", "no checkpoint at"),
        ("x=text:run:SPEECH", "run reads speech or face, not text"),
        ("x=speech:run:FOLDS", "holds 2 checkpoints: name one, such as"),
    ],
)
def test_a_run_that_cannot_be_an_encoder_says_why(own_runs, tmp_path, flag, said):
    for fold in ("fold_0", "fold_1"):
        shutil.copytree(own_runs["speech"], tmp_path / "folds" / fold)
    frozen.register()
    places = {"SPEECH": own_runs["speech"], "NOWHERE": tmp_path / "x", "FOLDS": tmp_path / "folds"}
    for word, place in places.items():
        flag = flag.replace(word, str(place))
    with pytest.raises(UsageError, match=said):
        encoders.load(json.dumps(encoders.parse(flag)[1]), "cpu")


def test_cutmix_cuts_time_and_no_layers():
    x = torch.arange(8.0).view(2, 1, 4, 1).expand(2, 3, 4, 5).contiguous()
    mixed, kept = cutmix({"wavlm": (x,)}, 0.5, torch.tensor([1, 0]), np.random.default_rng(0))
    (after,) = mixed["wavlm"]
    assert (after == after[:, :1, :, :1]).all()  # all layers and values of a moment together
    changed = (after != x).any(dim=(1, 3)).float().mean(dim=1)
    torch.testing.assert_close(changed, 1 - kept.float())


def test_encoders_are_exported(world, tmp_path):
    need("onnx", "onnxscript", "onnxruntime")
    done = run_main("export", "--checkpoint", world["run"], "--out", tmp_path / "model.onnx")
    assert done.code == 0, done.err


# In units of the speaker


def test_a_speaker_is_the_unit_of_measure(tmp_path):
    """(x - mean) / deviation over all clips of a speaker, whatever split they are of."""
    rng = np.random.default_rng(0)
    for ndim in (1, 2, 3):
        shape = {1: (4,), 2: (7, 4), 3: (2, 7, 4)}[ndim]
        clips = [rng.normal(3, 2, shape) for _ in range(6)]
        scale = scale_of(clips)
        values = np.stack([scale.apply(clip) for clip in clips])
        axes = 0 if ndim == 1 else (0, ndim - 1)
        np.testing.assert_allclose(values.mean(axis=axes), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=axes), 1, atol=1e-4)


def speakers(folder, names, values):
    """Features of one custom vector for each clip, of these speakers."""
    write_features(folder, clips_per_class=1, modalities=("speech",), splits=("train", "val"))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table["speaker"] = names
    table.to_csv(folder / "manifest.csv", index=False)
    for row, value in zip(table.itertuples(), values, strict=True):
        (folder / row.split / "own").mkdir(exist_ok=True)
        np.save(folder / row.split / "own" / f"{row.clip_id}.npy", np.float32(value))
    return Features.open(folder)


def test_a_modality_of_vectors_need_not_be_of_the_face(tmp_path, monkeypatch):
    row = Modality("own", ".npy", "pulse", custom_view, custom_encoder, source="media")
    monkeypatch.setitem(MODALITIES, "own", row)
    features = speakers(tmp_path, ["a"] * 14, np.arange(14.0)[:, None])
    scales = speaker_scales(features, features.rows("train"), ["own"])
    np.testing.assert_allclose(scales["own"]["a"].mean, [6.5])


def test_a_run_reads_what_differs_from_the_speaker(tmp_path):
    values = np.random.default_rng(1).normal(size=(14, 3)) + np.repeat([[0.0], [9.0]], 7, axis=0)
    features = speakers(tmp_path, ["a"] * 7 + ["b"] * 7, values)
    task, config = fused(("own",)), recipe("multimodal") | {"standardize": "speaker"}
    dataset = ClipDataset(features, features.rows("val"), task, config, training=False)
    seen = np.stack([dataset[0, index]["inputs"]["own"][0] for index in range(7)])
    own = values[7:]
    np.testing.assert_allclose(seen, (own - own.mean(0)) / own.std(0), atol=1e-4)


@pytest.mark.parametrize(
    ("names", "inputs", "said"),
    [
        (["a"] * 13 + [""], ("own",), "1 of 7 clips have no speaker"),
        (["a"] * 10 + ["b"] * 4, ("own",), "speaker b has 4 clips with own, at least 5"),
    ],
)
def test_a_person_nobody_knows_is_refused(tmp_path, names, inputs, said):
    features = speakers(tmp_path, names, np.ones((14, 3)))
    config = recipe("multimodal") | {"standardize": "speaker"}
    with pytest.raises(UsageError, match=said):
        ClipDataset(features, features.rows("val"), fused(inputs), config, training=False)


def test_one_clip_of_a_person_has_no_answer_and_several_do(world, tmp_path):
    flags = train_flags(world, "wavlm,own", "--standardize", "speaker", "--fold", 0)
    table = world["features"] / "manifest.csv"
    with kept(table):
        clips = pd.read_csv(table, dtype=str, keep_default_na=False)
        clips["speaker"], clips["fold"] = "somebody", [str(n % 2) for n in range(len(clips))]
        clips["split"] = "train"
        for name in ("wavlm", "own", "speech", "records"):
            for path in (world["features"] / "val" / name).iterdir():
                shutil.copy(path, world["features"] / "train" / name)
        clips.to_csv(table, index=False)
        done = run_main("train", *flags, "--exp_name", "compared", "--allow_leaks")
    assert done.code == 0, done.err
    run = world["run"].parent / "compared"
    own = ("--encoder", f"own={world['folder'] / 'own.py'}", "--out", tmp_path, "--no_pictures")
    one = run_main("predict", world["clips"] / "0.mp4", "--checkpoints", run, *own)
    assert one.code == 3 and "give 5 or more of one person" in one.out
    five = [world["clips"] / f"{number}.mp4" for number in range(5)]
    done = run_main("predict", *five, "--checkpoints", run, *own, "--classes", "sur,hap")
    assert done.code == 0 and "as those of one person" in done.err, done.err
    rows = pd.read_csv(tmp_path / "predictions.csv")
    assert set(rows["answer"]) <= {"sur", "hap"} and rows["clip"].nunique() == 5
    np.testing.assert_allclose(rows["sur"] + rows["hap"], 1, atol=1e-5)


@contextlib.contextmanager
def kept(path):
    """The file as it was, afterwards."""
    before = path.read_bytes()
    yield
    path.write_bytes(before)


def test_an_answer_among_some_classes_is_the_share_of_all(world):
    place = {"own": str(world["folder"] / "own.py")}
    some = Predictor([world["run"]], device="cpu", encoders=place, classes=["sad", "hap"])
    every = Predictor([world["run"]], device="cpu", encoders=place)
    clip = world["clips"] / "0.mp4"
    chosen = every(clip).probabilities[[CLASSES.index("sad"), CLASSES.index("hap")]]
    np.testing.assert_allclose(some(clip).probabilities, chosen / chosen.sum(), rtol=1e-5)
    for wrong in (["sad"], ["sad", "calm"]):
        with pytest.raises(UsageError, match="expected two or more of hap,ang"):
            Predictor([world["run"]], device="cpu", encoders=place, classes=wrong)


def test_the_page_offers_what_it_can_answer_and_answers(world, tmp_path, capsys):
    args = SimpleNamespace(checkpoints=[world["run"]], encoder=[])
    with pytest.raises(UsageError, match="no model can answer for a clip alone"):
        app.find_models(args)
    assert (
        "not offered: multimodal/first: own is made by the Python file" in capsys.readouterr().err
    )
    own = str(world["folder"] / "own.py")
    (path,) = app.find_models(SimpleNamespace(checkpoints=[world["run"]], encoder=[f"own={own}"]))
    answer = service.answer_one(
        *(best_checkpoint(world["run"]), world["clips"] / "0.mp4", SAID[0], tmp_path, None),
        *("cpu", 20, (("own", own),), None),
    )
    assert path == "multimodal/first" and "%" in answer["head"] and not answer["remarks"]


def test_the_benchmark_makes_encoders_that_can_be_read(tmp_path):
    import transformers

    from benchmarks.encoders import SENTENCE, save

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**size, intermediate_size=32, vocab_size=40)
    save(transformers.AutoModel.from_config(config), "text", tmp_path)
    _, settings = encoders.parse(f"x=text:hf:{tmp_path}")
    assert encoders.encode(settings, "cpu", SENTENCE).shape[-1] == 32
    encoders.load.cache_clear()
