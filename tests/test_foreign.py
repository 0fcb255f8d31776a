"""Checkpoints from strangers: nothing in them runs, fills the memory or ends in a traceback."""

from __future__ import annotations

import copy
import io
import math
import os
import re
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_untrained, write_features
from test_mutated import MORE, TIMES, check

from corpora.manifest import Clip
from extract import clip as stages
from extract.clip import Job, make_video
from extract.faces import FACE_SETTINGS
from models.backbone import Backbone
from training.checkpoint import (
    find_checkpoint,
    find_checkpoints,
    load_checkpoint,
    load_last,
    restore_model,
    save_checkpoint,
)
from training.views import custom_view, face_view, speech_view
from utils.distributed import DistributedGroup
from utils.errors import ClipError, IntegrityError, UsageError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A whole checkpoint of ours, as plain data."""
    folder = tmp_path_factory.mktemp("sound")
    save_untrained(folder / "a.pth", write_features(folder / "features", 1))
    return load_checkpoint(folder / "a.pth")


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


def laughs(depth: int) -> list:
    """A few bytes, 100 ** depth values."""
    value = [1] * 100
    for _ in range(depth - 1):
        value = [value] * 100
    return value


CARD = {"accuracy": 0.5, "interval": [0.4, 0.6], "interval_over": "clips"}
CARD |= {"tested_clips": 10, "chance": 0.1429}
FORGED = {  # path within the checkpoint, value
    "fewer outputs than classes": ("arch.n_classes", 3),
    "outputs without end": ("arch.n_classes", 10**8),
    "text instead of a number": ("arch.n_classes", "7"),
    "layers without end": ("arch.encoders.text.layers", 10**6),
    "no heads": ("arch.encoders.text.heads", 0),
    "a negative width": ("arch.encoders.text.dim", -1),
    "too much dropout": ("arch.encoders.text.dropout", 5),
    "an unknown backbone": ("arch.encoders.speech.backbone", "efficientnet-b9"),
    "a backbone of the internet": ("arch.encoders.speech.backbone", "timm:hf-hub:a/b"),
    "a backbone of this disc": ("arch.encoders.speech.backbone", "timm:local-dir:/etc"),
    "a backbone without maps": ("arch.encoders.speech.backbone", "timm:vit_tiny_patch16_224"),
    "a face in fewer than no parts": ("arch.encoders.face.grid", -1),
    "an unknown encoder": ("arch.encoders.speech.type", "Evil"),
    "an argument that no encoder has": ("arch.encoders.text.evil", 1),
    "a width without end": ("arch.encoders.text.dim", 10**9),
    "an unknown fusion": ("arch.fusion", "evil"),
    "an argument that no model has": ("arch.evil", 1),
    "more than plain values": ("arch.encoders.text.dim", torch.zeros(2)),
    "no arch": ("arch", None),
    "a head of nothing known": ("arch.heads.integrated", ["smell"]),
    "one class twice": ("classes", ["hap"] * 7),
    "classes of classes": ("classes", nested(28)),
    "no classes": ("classes", None),
    "settings of settings": ("features_config", {"speech": {"n_fft": nested(28)}}),
    "no settings": ("config", None),
    "an unknown mode": ("config.mode", "smell"),
    "words for a number of words": ("config.max_words", "x"),
    "fewer than no words": ("config.max_words", -1),
    "a list for a seed": ("config.seed", [1]),
    "lists of lists of lists": ("config.seed", laughs(7)),
    "words for numbers": ("val", {"loss": "low"}),
    "words for a share": ("card", {"accuracy": "high"}),
    "an accuracy alone": ("card", {"accuracy": 0.5}),
    "an interval of three": ("card", CARD | {"interval": [0, 0.5, 1]}),
    "more than all": ("card", CARD | {"accuracy": 1.5}),
    "an accuracy that is no number": ("card", CARD | {"accuracy": math.nan}),
    "a number for other corpora": ("card", CARD | {"elsewhere": 5}),
    "a corpus without a name": ("card", CARD | {"elsewhere": [CARD]}),
    "inputs on a card": ("card", {"inputs": 5}),
    "a number for a corpus": ("card", {"corpus": 5}),
    "clips that are no number": ("val", {"clips": math.nan, "accuracy": 0.5}),
    "clips without end": ("val", {"clips": math.inf, "accuracy": 0.5}),
    "clips without accuracy": ("val", {"clips": 5}),
    "an epoch that cannot be written": ("epoch", 10**5000),
    "a list for extraction settings": ("features_config", {"speech": ["n_fft"]}),
    "columns without end": ("config.speech_frames", 10**9),
    "weights of another type": ("weights.heads.speech.linear.bias", torch.zeros(7).double()),
    "complex weights": ("weights.heads.speech.linear.bias", torch.zeros(7, dtype=torch.cfloat)),
    "weights that are none": ("weights.heads.speech.linear.bias", torch.full((7,), torch.nan)),
    "one value for many": ("weights.heads.speech.linear.bias", torch.zeros(1).expand(7)),
    "weights that are nowhere": ("weights.heads.speech.linear.bias", torch.zeros(7, device="meta")),
    "sparse weights": ("weights.heads.speech.linear.bias", torch.zeros(7).to_sparse()),
    "a name of many letters": ("weights." + "x" * 100_000, torch.zeros(7)),
    "a name that takes the screen": ("weights.\x1b[2J\x1b]0;pwn\x07\nFORGED", torch.zeros(7)),
    "a class on two lines": ("classes", ["hap\nFORGED", *"123456"]),
    "a class that takes the screen": ("classes", ["\x1b[2J", *"123456"]),
    "a list for a weight": ("weights.heads.speech.linear.bias", [0.0] * 7),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_parts_are_refused_in_one_short_line(sound, tmp_path, what):
    place, value = FORGED[what]
    forged = {key: each if key == "weights" else copy.deepcopy(each) for key, each in sound.items()}
    forged["weights"] = dict(sound["weights"])
    into, keys = forged, [place.partition(".")[0], *place.split(".")[1:]]
    if keys[0] == "weights" and len(keys) > 1:
        keys = ["weights", place.partition(".")[2]]
    for key in keys[:-1]:
        into = into[key]
    into[keys[-1]] = value
    save_checkpoint(tmp_path / "forged.pth", forged)
    start = time.monotonic()
    with pytest.raises(IntegrityError, match=r"forged\.pth") as refusal:
        restore_model(load_checkpoint(tmp_path / "forged.pth"), tmp_path / "forged.pth")
    said = str(refusal.value)
    assert len(said) < 600 and said.isprintable()
    assert time.monotonic() - start < 20  # on a busy machine; unchecked, some take minutes


@pytest.mark.parametrize("member", ["data/0", "version", "byteorder"])
def test_packed_archives_are_not_unpacked(sound, tmp_path, member):
    buffer = io.BytesIO()
    torch.save(sound, buffer)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(bomb, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(member):
                new.writestr(info.filename, old.read(info))
        with new.open(zipfile.ZipInfo(f"archive/{member}"), "w", force_zip64=True) as file:
            file._compressor, file._zinfo.compress_type = zipfile.zlib.compressobj(), 8
            for _ in range(200):  # MB
                file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(IntegrityError, match="unpack to more"):
        load_checkpoint(bomb)
    assert time.monotonic() - start < 5
    most = 3 * bomb.stat().st_size / 1024 + (50 << 10)  # its own bytes, and 50 MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < most


PICKLES = {  # a name in the message -> a pickle that calls it, in the place of the checkpoint's
    "builtins.bytearray": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x2f\x68\x59\x85R.",
    "os.system": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "torch.hub.load": b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R.",
    "a name made while it is read": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_what_a_pickle_would_call_is_known_before(sound, tmp_path, name):
    """torch allows `bytearray`, which takes as much memory as it is told."""
    buffer, path = io.BytesIO(), tmp_path / "forged.pth"
    torch.save(sound, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            is_pickle = info.filename.endswith("/data.pkl")
            new.writestr(info.filename, PICKLES[name] if is_pickle else old.read(info))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match=f"calls {re.escape(name)}"):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def script(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def loop(path):
    path.symlink_to(path)


FILES = {  # what stands in the place of a checkpoint
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "a program of TorchScript": script,
    "a pipe": os.mkfifo,
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": loop,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a member that leads out": lambda path: zipfile.ZipFile(path, "w").writestr("../a", "b"),
    "a whole that is cut": lambda path: path.write_bytes(
        path.with_name("a.pth").read_bytes()[:-99]
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_other_files_are_refused_before_anything_waits(sound, tmp_path, what):
    save_checkpoint(tmp_path / "a.pth", sound)
    path = tmp_path / "other.pth"
    FILES[what](path)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"other\.pth") as refusal:
        for found in find_checkpoints([path]):
            load_checkpoint(found)
    assert "\n" not in str(refusal.value) and time.monotonic() - start < 5


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, what it has, or VmHWM, the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.mark.slow
def test_mutated_checkpoints_load_or_are_refused(sound, tmp_path):
    """Without the digest at the end that would find every one. What torch takes counts, too."""
    buffer, path = io.BytesIO(), tmp_path / "mutated.pth"
    torch.save(sound, buffer)
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(buffer) as archive:
        (pickled,) = (each for each in archive.infolist() if each.filename.endswith("data.pkl"))

    def mutate(whole: bytes, rng: np.random.Generator) -> bytes:
        data = bytearray(whole)
        # half of them within what describes the tensors
        low, high = (0, len(data)) if rng.random() < 0.5 else (pickled.header_offset, None)
        high = high or pickled.header_offset + pickled.compress_size
        for place in rng.integers(low, high, rng.integers(1, 6)):
            data[place] = rng.integers(256)
        return bytes(data)

    def read() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the most is counted from here
        before = memory("VmRSS")
        try:
            restore_model(load_checkpoint(path), path)
        finally:
            assert memory("VmHWM") - before < TIMES * path.stat().st_size + MORE

    check(path, mutate, read, every=20)


def test_older_settings_get_their_default_and_other_files_are_named(sound, tmp_path):
    older = {**sound, "config": {"mode": "multimodal", "seed": 3}}
    save_checkpoint(tmp_path / "older.pth", older)
    config = load_checkpoint(tmp_path / "older.pth")["config"]
    assert config["seed"] == 3 and config["max_words"] == 38 and config["fold"] is None
    torch.save(sound, tmp_path / "pickle.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(IntegrityError, match="no checkpoint of ours"):
        load_checkpoint(tmp_path / "pickle.pth")


def test_several_checkpoints_are_not_one(sound, tmp_path):
    for fold in (0, 1):
        save_checkpoint(tmp_path / "run" / f"fold_{fold}" / "1_best_0.5000.pth", sound)
    with pytest.raises(UsageError, match=r"holds 2 checkpoints: name one, such as .*fold_0"):
        find_checkpoint(tmp_path / "run")
    assert find_checkpoint(tmp_path / "run" / "fold_1").parent.name == "fold_1"


def test_a_best_checkpoint_is_nothing_to_go_on_from(sound, tmp_path):
    save_checkpoint(tmp_path / "last.pth", sound)
    with pytest.raises(IntegrityError, match="cannot be gone on from: it lacks step"):
        load_last(tmp_path)


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "convnext_atto", "resnet10t", "tf_efficientnet_b0"]
)
def test_every_layer_of_a_backbone_gets_a_gradient(name):
    """DDP stops at one that does not."""
    backbone = Backbone(f"timm:{name}", 1)
    backbone(torch.randn(2, 1, 64, 48)).sum().backward()
    assert [key for key, weight in backbone.named_parameters() if weight.grad is None] == []


def test_batch_norm_of_all_gpus_keeps_the_activations(monkeypatch):
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda model: model)
    group = object.__new__(DistributedGroup)
    group.cuda = True
    backbone = Backbone("timm:mobilenetv3_small_050", 1).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        before = backbone(image)
        shared = group.wrap(backbone)
        torch.testing.assert_close(shared(image), before)
    assert any(isinstance(each, torch.nn.SyncBatchNorm) for each in shared.modules())


TOO_MUCH = {  # of a clip of two frames, each within what its flag allows
    "speech_frames": (speech_view, (1280, 2), 60_000),
    "face_frames": (face_view, (2, 160, 160, 3), 900),
    "feature_frames": (custom_view, (2, 1000), 70_000),
    "feature_frames of layers": (custom_view, (13, 2, 1024), 6000),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_setting_makes_no_short_clip_long(what):
    view, shape, frames = TOO_MUCH[what]
    name, row = what.split()[0], {"face_valid": "11"}
    config = {name: frames, "speech_norm": "none"}
    with pytest.raises(UsageError, match=f"{name} {frames}: .*the limit is"):
        view(np.zeros(shape, "f4"), row, config, np.random.default_rng(0), False)


def test_a_clip_that_claims_days_fills_no_disc(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "scan_pictures", lambda path: (0.0, 2e6, False))
    monkeypatch.setattr(stages.faces, "face_stream", lambda *args: iter(()))
    clip = Clip("a", "clips", tmp_path / "a.mp4")
    job = Job(tmp_path, ("video",), {"video": FACE_SETTINGS})
    with pytest.raises(ClipError, match=r"a\.mp4 lasts 2000000 s.* over 8 GB"):
        make_video(clip, job, {}, io.BytesIO())
