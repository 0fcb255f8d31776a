"""Files that somebody made to deceive: each is refused in one line, or read as what was checked."""

from __future__ import annotations

import copy
import io
import json
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_untrained, write_features
from trainings import add_feature, make_run, one_step

from evaluation.ensemble import load_member
from extract import vectors
from models.backbone import Backbone
from training import checkpoint as checkpoints
from training.checkpoint import load_checkpoint, save_checkpoint
from training.features import Features, read_words
from training.optim import OPTIMIZERS
from training.prepare import fill_backbone
from training.record import Record
from utils.errors import IntegrityError, UsageError

# Of one zip Python's reader and torch's may find other members


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """Of words, with a whole checkpoint of ours, a.pth."""
    folder = tmp_path_factory.mktemp("forged") / "features"
    write_features(folder, 2, modalities=("text",))
    save_untrained(folder / "a.pth", folder, "text")
    return folder


@pytest.fixture(scope="module")
def sound(features) -> bytes:
    """The checkpoint as bytes."""
    return (features / "a.pth").read_bytes()


CALLS = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x10\x00\x85R."


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def with_pickle(members: list[tuple[str, bytes]], pickled: bytes) -> list[tuple[str, bytes]]:
    return [(name, pickled if name.endswith("/data.pkl") else each) for name, each in members]


def zip_of(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def other_case(data: bytes) -> bytes:
    """torch takes the first data.pkl, in whatever capitals."""
    members = members_of(data)
    (name,) = (name for name, _ in members if name.endswith("/data.pkl"))
    return zip_of([(name[:-8] + "DATA.PKL", CALLS), *members])


def deeper(data: bytes) -> bytes:
    """And knows no other folder than the first one."""
    members = members_of(data)
    (name,) = (name for name, _ in members if name.endswith("/data.pkl"))
    moved = [(f"{name[:-8]}y/data.pkl" if each == name else each, data) for each, data in members]
    return zip_of([(name[:-8] + "DATA.PKL", CALLS), *moved])


@pytest.mark.parametrize("forge", [other_case, deeper])
def test_a_second_pickle_in_capitals_is_refused(sound, tmp_path, forge):
    path = tmp_path / "forged.pth"
    path.write_bytes(forge(sound))
    assert isinstance(torch.load(path, weights_only=True), bytearray)
    with pytest.raises(IntegrityError, match=r"forged\.pth is no zip file as torch\.save") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def two_directories(shown: bytes, hidden: bytes) -> bytes:
    """A zip with two directories: Python reads the one at the end, torch the one that the end
    points to."""
    parts = []
    for data in (hidden, shown):
        size, start = struct.unpack("<2L", data[-10:-2])
        parts.append((data[:start], bytearray(data[start : start + size])))
    (first, directory), (second, last) = parts
    assert len(directory) == len(last)
    apart, place = len(directory) + len(second), 0
    while place < len(last):  # where its members are, as Python corrects it by what it finds
        lengths = struct.unpack_from("<3H", last, place + 28)
        (offset,) = struct.unpack_from("<L", last, place + 42)
        struct.pack_into("<L", last, place + 42, len(first) + len(directory) + offset - apart)
        place += 46 + sum(lengths)
    end = shown[-22:-6] + struct.pack("<LH", len(first), 0)
    return first + directory + second + last + end


def test_torch_loads_the_members_that_were_looked_at(sound, tmp_path):
    members, path = members_of(sound), tmp_path / "forged.pth"
    hidden = [*with_pickle(members, CALLS), ("archive/room", bytes(len(zip_of(members))))]
    shown = [*members, ("archive/room", b"")]  # so that no offset is negative
    path.write_bytes(two_directories(zip_of(shown), zip_of(hidden)))
    assert isinstance(torch.load(path, weights_only=True), bytearray)
    assert load_checkpoint(path)["config"]["mode"] == "text"


def test_a_pickle_of_many_small_values_is_refused(sound, tmp_path):
    """Each byte may be a dictionary of 64."""
    pickled = b"\x80\x02" + b"}" * 4_000_000 + b"."
    (tmp_path / "forged.pth").write_bytes(zip_of(with_pickle(members_of(sound), pickled)))
    with pytest.raises(IntegrityError, match="in 4000003 bytes; the limit is 1048576"):
        load_checkpoint(tmp_path / "forged.pth")


def test_a_large_model_may_have_a_large_pickle(tmp_path, monkeypatch):
    """The limit follows the file: of a hundred layers and an optimizer's state."""
    monkeypatch.setattr(checkpoints, "MOST_PICKLED", 4000)
    weights = {f"weights of layer {number}": torch.zeros(5000) for number in range(50)}
    torch.save(weights, tmp_path / "large.pth")
    with pytest.raises(IntegrityError, match="it lacks arch"):
        load_checkpoint(tmp_path / "large.pth")
    torch.save({name: each[:9].clone() for name, each in weights.items()}, tmp_path / "small.pth")
    with pytest.raises(IntegrityError, match="describes its parts"):
        load_checkpoint(tmp_path / "small.pth")


def test_members_are_counted_before_they_are_listed(sound, tmp_path, monkeypatch):
    """Each would cost ten times its bytes."""
    monkeypatch.setattr(checkpoints, "MOST_PICKLED", 64_000)
    names = [(f"archive/more/{number}", b"") for number in range(2000)]
    (tmp_path / "forged.pth").write_bytes(zip_of(members_of(sound) + names))
    tracemalloc.start()
    with pytest.raises(IntegrityError, match=r"forged\.pth has 20\d\d members; the limit is 1000"):
        load_checkpoint(tmp_path / "forged.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * (tmp_path / "forged.pth").stat().st_size


def test_names_that_share_one_place_hold_no_more_than_it(features, tmp_path):
    """A model would give each of them a place of its own."""
    known, shared = load_checkpoint(features / "a.pth"), torch.zeros(500_000)
    known["weights"] = known["weights"] | {f"w{number}": shared[:] for number in range(9)}
    save_checkpoint(tmp_path / "a.pth", known)
    with pytest.raises(IntegrityError, match=r"a\.pth describes more weights than its \d+ bytes"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_others_are_looked_at_before_torch_loads_them(tmp_path, zipped):
    """As published today, and as torch wrote them before 2020."""
    path, backbone = tmp_path / "w.pth", Backbone("small-16", 3)
    torch.save(backbone.trunk.state_dict(), path, _use_new_zipfile_serialization=zipped)
    filled = Backbone("small-16", 3)
    fill_backbone(filled, str(path))
    assert all(map(torch.equal, filled.state_dict().values(), backbone.state_dict().values()))
    data = path.read_bytes()
    calls = zip_of(with_pickle(members_of(data), CALLS)) if zipped else CALLS + data
    path.write_bytes(calls)
    with pytest.raises(UsageError, match=r"--pretrained .*w\.pth calls builtins\.bytearray"):
        fill_backbone(filled, str(path))
    for other in ([1, 2], {"layer": torch.zeros(1).expand(10**9)}):
        torch.save(other, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match="holds other things than weights"):
            fill_backbone(filled, str(path))
    path.write_bytes(b"\x80\x02" + b"}" * 2_000_000 + b".")
    with pytest.raises(UsageError, match="ValueError"):
        fill_backbone(filled, str(path))


def test_a_checkpoint_is_in_memory_twice_at_most(features, tmp_path):
    """Python's own memory: the file, and what is written anew of it."""
    known = load_checkpoint(features / "a.pth")
    known["weights"] = known["weights"] | {f"w{n}": torch.rand(500_000) for n in range(20)}
    save_checkpoint(tmp_path / "a.pth", known)
    size = (tmp_path / "a.pth").stat().st_size
    tracemalloc.start()
    load_checkpoint(tmp_path / "a.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 40e6 and peak < 2.4 * size, (size, peak)


# Parts that are of the wrong kind

NONE = torch.zeros(0, dtype=torch.int64)
PARTS = {
    "fingerprints in bfloat16": ("clips", {"training": NONE.bfloat16(), "validation": NONE}),
    "fingerprints that learn": (
        "clips",
        {"training": torch.zeros(1, requires_grad=True), "validation": NONE},
    ),
    "half a character in a class": ("classes", ["\ud800", *"abcdef"]),
    "no settings of its words": ("features_config", {}),
    "settings that are none": ("features_config", {"text": None}),
    "no encoders": ("arch", {"encoders": 5, "n_classes": 7}),
    "an encoder without a name": ("arch", {"encoders": {"text": 5}, "n_classes": 7}),
    "a number for its data": ("data", 5),
    "tensors for its format": ("format", torch.zeros(2, 99)),
}


@pytest.mark.parametrize("what", PARTS)
def test_parts_of_another_kind_are_refused(features, sound, tmp_path, what):
    name, value = PARTS[what]
    save_checkpoint(tmp_path / "a.pth", load_checkpoint(features / "a.pth") | {name: value})
    with pytest.raises(
        IntegrityError, match=r"a\.pth .*(none of ours|how the text|another version)"
    ) as error:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_weights_that_learn_are_refused(features, sound, tmp_path):
    """Nothing that names or copies them expects it."""
    known = load_checkpoint(features / "a.pth")
    known["weights"] = {name: each.requires_grad_() for name, each in known["weights"].items()}
    save_checkpoint(tmp_path / "a.pth", known)
    with pytest.raises(IntegrityError, match="its weights is none of ours"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_custom_feature_needs_no_settings(features, sound, tmp_path):
    known = load_checkpoint(features / "a.pth")
    known["arch"] = known["arch"] | {"encoders": {"mine": {"type": "VectorEncoder", "dim": 8}}}
    save_checkpoint(tmp_path / "a.pth", known | {"features_config": {"mine": None}})
    load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("named", [True, False])
def test_what_a_checkpoint_does_not_name_is_compared_too(tmp_path, named):
    """Of a feature that an encoder makes; of one that another tool made nobody knows anything."""
    features, path = tmp_path / "features", tmp_path / "a.pth"
    write_features(features, 1, modalities=("text",))
    add_feature(features, "au", (12,))
    save_untrained(path, features, inputs="text,au")
    known = load_checkpoint(path)
    if not named:
        del known["features_config"]["au"]
        save_checkpoint(path, known)
    load_member(path, path, Features.open(features))
    encoder = {"library": "file", "input": "text", "reads": "text"}
    about = {"learnt_without_fold": None, "encoder": encoder}
    (features / "au.json").write_text(json.dumps(about))
    with pytest.raises(IntegrityError, match=r"a\.pth was trained on other .*au: None then"):
        load_member(path, path, Features.open(features))


# What a run goes on from


@pytest.fixture(scope="module")
def stopped(features, tmp_path_factory) -> dict:
    """The last checkpoint of a run after the first of its epochs, with the mean of its weights."""
    folder = tmp_path_factory.mktemp("stopped")
    run = make_run(features, folder, optim="adamw", ema=0.9, n_epoch=2)
    record = Record(run)
    for _ in range(3):  # an epoch has two steps
        one_step(run, record)
    return load_checkpoint(folder / "last.pth")


def go_on(features: Path, folder: Path, state: dict):
    save_checkpoint(folder / "last.pth", state)
    return make_run(features, folder, resume=True, optim="adamw", ema=0.9, n_epoch=2)


def test_a_stopped_run_goes_on(features, stopped, tmp_path):
    run = go_on(features, tmp_path, stopped)
    assert run.step == 3 and len(run.rows) == 1
    one_step(run)


ROW = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5}
STATES = {  # a part -> what stands there
    "step": ["x", -5, 10**9, True, None, 2.0],
    "sums": [5, None, {}, {"loss": 1.0}, {"loss": "x", "right": 0, "clips": 0, "skipped": 0}],
    "rows": [5, [5], None, [], [{}], [ROW | {"epoch": 2}], [ROW | {"val_loss": 1.0}], [ROW] * 2],
    "best": [5, {"epoch": "x"}, {"epoch": 1}, [1]],
    "ema": [5, None, {"x": torch.zeros(1)}, {"x": 5}],
    "optimizer": [5, {}, {"state": {}}, {"state": 5, "param_groups": 5}, None],
    "scaler": [5, {"scale": "x"}],
    "weights": [{}, {"x": torch.zeros(1)}],
}


@pytest.mark.parametrize("part", STATES)
def test_what_a_run_cannot_go_on_from_is_told(features, stopped, tmp_path, part):
    for value in STATES[part]:
        with pytest.raises(IntegrityError, match=r"last\.pth cannot be gone on from: ") as error:
            go_on(features, tmp_path, stopped | {part: value})
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


HELD = {  # what an optimizer keeps of a weight (N, M)
    "of another shape": {"exp_avg": torch.zeros(3)},
    "a number": {"exp_avg": 5.0},
    "one value for many": {"exp_avg": torch.zeros(1).expand(10)},
    "a word for its steps": {"step": "x"},
    "fewer than no steps": {"step": torch.tensor(-5.0)},
    "more steps than the run's": {"step": torch.tensor(99.0)},
    "steps that are no number": {"step": torch.tensor(torch.nan)},
}


@pytest.mark.parametrize("what", HELD)
def test_what_an_optimizer_keeps_fits_its_weights(features, stopped, tmp_path, what):
    state = copy.deepcopy(stopped["optimizer"])
    state["state"][0] |= HELD[what]
    with pytest.raises(IntegrityError, match=r"last\.pth cannot be gone on from: "):
        go_on(features, tmp_path, stopped | {"optimizer": state})


def halves(held: dict) -> None:
    """Torch would make a float32 tensor of each."""
    place = torch.zeros(max(each["exp_avg"].numel() for each in held.values()), dtype=torch.half)
    for each in held.values():
        shape = each["exp_avg"].shape
        each["exp_avg"] = place[: shape.numel()].view(shape)


def one_place(held: dict) -> None:
    shared = torch.zeros_like(held[0]["exp_avg"])
    held[0] |= {"exp_avg": shared, "exp_avg_sq": shared}


def overlapping(held: dict) -> None:
    held[0]["exp_avg"] = torch.zeros(48 * 16).as_strided((48, 16), (1, 1))


OPTIMIZER = {  # what is in the state of one, and what torch would make of it
    "values of another type": halves,
    "one place for two": one_place,
    "rows in one place": overlapping,
    "one more part": lambda held: held[0].update(more=torch.zeros(9)),
    "tensors in a list": lambda held: held[0].update(exp_avg=[torch.zeros(9, dtype=torch.half)]),
    "a parameter that is none": lambda held: held.update({99: held[0]}),
}


@pytest.mark.parametrize("what", OPTIMIZER)
def test_an_optimizer_is_looked_at_before_torch_casts_it(
    features, stopped, tmp_path, monkeypatch, what
):
    state = copy.deepcopy(stopped["optimizer"])
    OPTIMIZER[what](state["state"])
    monkeypatch.delattr(torch.optim.Optimizer, "load_state_dict")
    with pytest.raises(IntegrityError, match="its optimizer is none of ours"):
        go_on(features, tmp_path, stopped | {"optimizer": state})


def test_an_optimizer_of_other_parameters_is_told(features, stopped, tmp_path):
    state = copy.deepcopy(stopped["optimizer"])
    state["param_groups"][0]["params"].reverse()
    with pytest.raises(IntegrityError, match="its optimizer is none of ours"):
        go_on(features, tmp_path, stopped | {"optimizer": state})


def test_an_optimizer_without_a_part_is_told(features, stopped, tmp_path):
    state = copy.deepcopy(stopped["optimizer"])
    del state["state"][0]["exp_avg_sq"]
    with pytest.raises(IntegrityError, match="its optimizer is none of ours"):
        go_on(features, tmp_path, stopped | {"optimizer": state})


def test_settings_of_an_optimizer_are_those_of_the_command(features, stopped, tmp_path):
    state = copy.deepcopy(stopped["optimizer"])
    (group,) = state["param_groups"]
    group |= {"betas": "x", "eps": None, "weight_decay": "x"}
    run = go_on(features, tmp_path, stopped | {"optimizer": state})
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    one_step(run)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_goes_on_with_all_of_its_state(features, tmp_path, name):
    run = make_run(features, tmp_path, optim=name)
    one_step(run, Record(run))
    assert make_run(features, tmp_path, resume=True, optim=name).step == 1
    whole = load_checkpoint(tmp_path / "last.pth")
    held = whole["optimizer"]["state"]
    for left in ({0: held[0]}, {**held, 1: {}}, {}):
        forged = whole | {"optimizer": whole["optimizer"] | {"state": left}}
        save_checkpoint(tmp_path / "last.pth", forged)
        with pytest.raises(IntegrityError, match="its optimizer is none of ours"):
            make_run(features, tmp_path, resume=True, optim=name)


# Words of a clip


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_words_that_are_packed_as_nobody_packs_them_are_refused(tmp_path, packing):
    """zipfile unpacks all of such a member, whatever size it is asked for."""
    buffer, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(buffer, np.zeros((3, 4), np.float32))
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("word_embed.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="packed in a way"):
        read_words(path)


def test_words_are_read_from_the_member_whose_size_was_asked(features, tmp_path):
    buffer, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(buffer, np.ones((3, 4), np.float32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word_embed", bytes(100 << 20))
        archive.writestr("word_embed.npy", buffer.getvalue())
    assert read_words(path).shape == (3, 4)


def test_words_are_in_memory_once(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", word_embed=np.zeros((1 << 18, 16), np.float32))
    tracemalloc.start()
    words = read_words(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * words.nbytes, peak


SHAPES = {"terabytes": (10**12, 4), "negative": (-3, -4), "too few": (2, 4), "a void": (10**12, 0)}


@pytest.mark.parametrize("what", SHAPES)
def test_what_an_array_claims_is_compared_before_memory_is_taken(features, tmp_path, what):
    """In the words of a clip, which is named, and in the vectors that a features folder keeps."""
    header, sound = io.BytesIO(), io.BytesIO()
    claimed = {"descr": "<f4", "fortran_order": False, "shape": SHAPES[what]}
    np.lib.format.write_array_header_1_0(header, claimed)
    np.save(sound, np.array(["a", "b", "c"]))
    forged = header.getvalue() + bytes(48)
    members = {"word_embed": forged, "vectors": forged, "words": sound.getvalue()}
    shutil.copytree(features, tmp_path / "features")
    (tmp_path / "features" / "train" / "text" / "00003.npz").write_bytes(
        zip_of([(f"{name}.npy", data) for name, data in members.items()])
    )
    opened = Features.open(tmp_path / "features")
    (row,) = opened.manifest[opened.manifest["clip_id"] == "00003"].to_dict("records")
    tracemalloc.start()
    with pytest.raises(
        IntegrityError, match=r"00003\.npz is missing or damaged \(its word_embed cl"
    ):
        opened.load(row, "text")
    shutil.copy(opened.path(row, "text"), tmp_path / vectors.STORE)
    with pytest.raises(ValueError, match="its vectors claims"):
        vectors.open_store(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# Tables of a features folder


@pytest.mark.parametrize(
    "made", [{"text": {}, "x": {"library": "hf"}}, {"text": {"library": "hf", "input": 5}}]
)
def test_an_encoder_that_was_shown_nothing_is_none(features, tmp_path, made):
    shutil.copytree(features, tmp_path / "features")
    table = tmp_path / "features" / "settings.json"
    table.write_text(json.dumps(json.loads(table.read_text()) | {"features": made}))
    with pytest.raises(UsageError, match=r"settings\.json has no settings for (x|text)"):
        Features.open(tmp_path / "features")
    table.write_bytes((features / "settings.json").read_bytes())
    note = {"learnt_without_fold": None, "encoder": {"library": "hf"}}
    (tmp_path / "features" / "mine.json").write_text(json.dumps(note))
    with pytest.raises(IntegrityError, match=r"mine\.json does not say"):
        Features.open(tmp_path / "features").config_for(("mine",))


def test_settings_that_do_not_tell_a_shape_are_named(tmp_path):
    write_features(tmp_path, 1, modalities=("speech",))
    opened = Features.open(tmp_path)
    del opened.settings["features"]["speech"]["n_mels"]
    with pytest.raises(IntegrityError, match=r"settings\.json tells no 'n_mels' of speech"):
        opened.load(opened.rows("train").iloc[0].to_dict(), "speech")
