"""Checkpoints: plain data that rebuilds its own model, read without running any code in it.

Whatever `models.build_model` builds is legal. The model is built without memory first, names and
shapes are compared with the file's, and only then is memory taken.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from models import build_model
from models.classifier import EmotionClassifier
from training.card import is_card, is_measured
from training.modalities import modality
from training.tasks import ALL_SETTINGS, TASKS, recipe
from utils.errors import IntegrityError, UsageError, in_short, is_one_line, listed
from utils.files import DAMAGED, read_regular, read_sealed, write_sealed

FORMAT = 2  # raise it when older checkpoints cannot be read any more
KEYS = ("arch", "weights", "classes", "features_config", "config", "epoch", "val")
RESUME = ("step", "sums", "optimizer", "scaler", "ema", "rows", "best", "clips", "leaks")
NO_CLIPS = dict.fromkeys(("training", "validation"), torch.empty(0, dtype=torch.int64))
PLAIN = (str, int, float, bool, type(None))
DEPTH, MOST_VALUES = 8, 100_000  # of settings within settings
# Bytes of a pickle, and the part of its file that it may be: each can become 72 in memory. A text
# model of 100 layers with its optimizer's state needs 0.8 MB, a large model 0.01 of its file.
MOST_PICKLED, SHARE_PICKLED = 1 << 20, 16
# Of these a member of the zip has about 140 in a checkpoint of ours, and costs 1.2 KB in memory.
PICKLED_PER_MEMBER = 64
OLDER_PICKLES = 5  # of torch's files before they were zips: pickles, and then the values
LARGEST = 1 << 64  # number: Python writes none of more than 4,300 digits into a message
CALLED = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_tensor_v2|torch\.[A-Za-z0-9]+Storage"
)
BEST = re.compile(r"(\d+)_best_(\d+\.\d+)\.pth")
LAST, PREVIOUS = "last.pth", "previous.pth"

Checkpoint = dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    data = {"format": FORMAT, **checkpoint}
    write_sealed(path, lambda file: torch.save(data, file))


def save_last(folder: Path, checkpoint: Checkpoint, keep: bool) -> None:
    """Save as last.pth; with `keep` the one before it becomes previous.pth.

    `keep` must be false where the one before it is damaged: previous.pth is the better one then.
    """
    if keep and (folder / LAST).is_file():
        (folder / LAST).replace(folder / PREVIOUS)
    save_checkpoint(folder / LAST, checkpoint)


def load_last(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint to go on from; None in a folder without any.

    A damaged last.pth is announced on stderr and passed over. IntegrityError when none is sound.
    """
    places = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    for place in places:
        try:
            state = load_checkpoint(place)
            if missing := [key for key in RESUME if key not in state]:
                lacks = ", ".join(missing)
                raise IntegrityError(f"{place} cannot be gone on from: it lacks {lacks}")
            return place, state
        except IntegrityError as error:
            if place == places[-1]:
                remedy = "nothing is left to go on from: start anew with --overwrite"
                raise IntegrityError(f"{error}; {remedy}") from error
            print(f"WARNING: {error}\nWARNING: going on from {places[-1]}", file=sys.stderr)
    return None


def save_best(folder: Path, checkpoint: Checkpoint) -> Path:
    """Save as <epoch>_best_<validation loss>.pth."""
    path = folder / best_name(checkpoint["epoch"], checkpoint["val"]["loss"])
    save_checkpoint(path, checkpoint)
    return path


def best_name(epoch: int, loss: float) -> str:
    return f"{epoch}_best_{loss:.4f}.pth"


def keep_best(folder: Path, best: dict[str, Any] | None) -> None:
    """Delete every best checkpoint but this one, if it is there. Only when last.pth knows it: a run
    that goes on from an older one may need the best of then."""
    if best is None or not (folder / best_name(best["epoch"], best["loss"])).is_file():
        return
    for path in best_checkpoints(folder):
        if path.name != best_name(best["epoch"], best["loss"]):
            path.unlink()


def best_checkpoints(folder: Path) -> list[Path]:
    """Those in a run folder that a training named so, lowest validation loss first."""
    matches = [(BEST.fullmatch(path.name), path) for path in Path(folder).glob("*_best_*.pth")]
    return [path for _, path in sorted((float(match[2]), path) for match, path in matches if match)]


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint of a run folder; None without one."""
    return next(iter(best_checkpoints(folder)), None)


def is_trained(run: Path) -> bool:
    """Whether a run has a best checkpoint, in each of its folds where it has some."""
    return all(best_checkpoint(place) for place in [*run.glob("fold_*")] or [run])


def find_checkpoints(paths: list[Path]) -> list[Path]:
    """Each .pth file as it is, each run folder as its best checkpoint; --fold all has several."""
    checkpoints: list[Path] = []
    for path in map(Path, paths):
        folds = sorted(path.glob("fold_*")) if path.is_dir() else []
        places = folds or [path]
        best = [best_checkpoint(place) if place.is_dir() else place for place in places]
        sound = [each for each in best if each and each.is_file()]
        if len(sound) < len(places):
            beside = best_checkpoint(path.parent)
            hint = f"; the best of that run is {beside.name}" if beside else ""
            runs = sorted(run.name for run in path.glob("*") if best_checkpoint(run))
            hint = f"; below it are the runs {', '.join(runs)}" if runs else hint
            reason = f"no checkpoint at {path}{hint}"
            raise UsageError(f"{reason}: give a .pth file, the folder of a run, or starter")
        checkpoints += sound
    return checkpoints


def find_checkpoint(path: Path) -> Path:
    """The one checkpoint that a .pth file or a run folder stands for; UsageError for several."""
    checkpoint, *others = find_checkpoints([path])
    if others:
        raise UsageError(
            f"{path} holds {len(others) + 1} checkpoints: name one, such as {checkpoint}"
        )
    return checkpoint


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint of ours to the CPU; UsageError or IntegrityError says what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no checkpoint {path}")
    archive = _read_archive(read_sealed(path), path)
    size = archive.getbuffer().nbytes
    try:
        checkpoint = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the reader fail in any way; none runs code
        reason = re.split(r"This file can|\n", f"{type(error).__name__} {error}")[0][:200]
        raise IntegrityError(
            f"{path} is damaged, or holds more than plain data, and was not loaded: {reason}"
        ) from error
    _check_content(checkpoint, path)
    sizes = (each.numel() * each.element_size() for each in checkpoint["weights"].values())
    if sum(sizes) > size:
        raise IntegrityError(f"{path} describes more weights than its {size} bytes hold")
    return checkpoint


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights that another tool saved, looked at as a checkpoint of ours before torch loads them.
    IntegrityError or one of DAMAGED for what holds anything else."""
    data = read_regular(path)
    if data.startswith(b"PK"):
        file = _read_archive(data, path)
    else:  # of an older torch, as the published weights of EfficientNet are
        file, pickles = io.BytesIO(data), io.BytesIO(data[: _most_pickled(data)])
        _check_names(set().union(*(names_in(pickles) for _ in range(OLDER_PICKLES))), path)
    del data  # else a zip would be here twice beside what is made of it
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if not is_tensors(weights):
        raise IntegrityError(f"{path} holds other things than weights")
    return weights


def _read_archive(data: bytes, path: Path) -> io.BytesIO:
    """The zip of torch.save, written anew from what was looked at here: in a forged one torch's
    reader finds other members than Python's. IntegrityError for what is no such zip, unpacks to
    more than its own bytes, or calls what no checkpoint of ours does."""
    buffer, most = io.BytesIO(), _most_pickled(data)
    # Asked before zipfile lists them. By chance these bytes are in weights once in 4 GB.
    if (count := data.count(b"PK\x01\x02")) > most // PICKLED_PER_MEMBER:
        what = f"has {count} members; the limit is {most // PICKLED_PER_MEMBER}"
        raise IntegrityError(f"{path} {what}")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > len(data):
            what = "would unpack to more than it holds; torch.save packs nothing"
            raise IntegrityError(f"{path} {what}")
        names = [member.filename.casefold() for member in members]  # torch takes DATA.PKL, too
        if len({*names}) < len(names):
            raise ValueError("two of its members have one name, apart from capitals")
        (place,) = (place for place, name in enumerate(names) if name.endswith("/data.pkl"))
        pickled = members[place]
        if pickled.file_size > most:
            what = f"describes its parts in {pickled.file_size} bytes; the limit is {most}"
            raise IntegrityError(f"{path} {what}")
        _check_names(names_in(archive.read(pickled)), path)
        with zipfile.ZipFile(buffer, "w") as anew:
            for member in members:
                anew.writestr(zipfile.ZipInfo(member.filename), archive.read(member))
    except DAMAGED as error:
        reason = in_short(error)
        raise IntegrityError(f"{path} is no zip file as torch.save writes it: {reason}") from error
    buffer.seek(0)
    return buffer


def _most_pickled(data: bytes) -> int:
    return max(MOST_PICKLED, len(data) // SHARE_PICKLED)


def _check_names(called: set[str], path: Path) -> None:
    """IntegrityError for a pickle that calls what no checkpoint of ours does."""
    if foreign := [name for name in called if not CALLED.fullmatch(name)]:
        what = f"calls {listed(sorted(foreign))}, which no checkpoint of ours does"
        raise IntegrityError(f"{path} {what}; it was not loaded")


def names_in(pickled: bytes | BinaryIO) -> set[str]:
    """What a pickle would call, read without calling any of it. torch allows more than a checkpoint
    needs: `bytearray(3_000_000_000)` takes that much memory. ValueError for what is no pickle."""
    names = set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":  # of later protocols than torch.save writes
            names.add("a name made while it is read")
    return names


def _check_content(checkpoint: Any, path: Path) -> None:
    """IntegrityError unless every part is of the kind that train.py writes; settings that an older
    version did not have get their default."""
    content = checkpoint if isinstance(checkpoint, dict) else {}
    if missing := [key for key in KEYS if key not in content]:
        raise IntegrityError(f"{path} is no checkpoint of train.py: it lacks {', '.join(missing)}")
    number = content.get("format", 1)
    if type(number) is not int or number != FORMAT:
        raise IntegrityError(
            f"{path} was written by another version of this project (format {in_short(number)}, "
            f"this one reads {FORMAT}): train it anew, or use it with the version that wrote it"
        )
    classes, config = content["classes"], content["config"]
    clips, data = content.get("clips", NO_CLIPS), content.get("data", {})
    fits = {
        "arch": is_plain(content["arch"]) and _is_arch(content["arch"]),
        "weights": is_tensors(content["weights"]),
        "classes": is_plain(classes)
        and isinstance(classes, list)
        and len({*map(str, classes)}) == len(classes) > 1
        and all(isinstance(name, str) and is_one_line(name) for name in classes),
        "features_config": is_plain(content["features_config"])
        and isinstance(content["features_config"], dict)
        and all(isinstance(each, dict | None) for each in content["features_config"].values()),
        "config": isinstance(config, dict) and is_plain(config) and config.get("mode") in TASKS,
        "epoch": isinstance(content["epoch"], int) and is_plain(content["epoch"]),
        "leaks": isinstance(content.get("leaks", ""), str),
        "val": is_numbers(content["val"]) and is_measured(content["val"] or {}),
        "card": is_plain(content.get("card", {})) and is_card(content.get("card", {})),
        "clips": is_tensors(clips)
        and clips.keys() == NO_CLIPS.keys()
        and all(each.dtype == torch.int64 for each in clips.values()),
        "data": is_plain(data) and isinstance(data, dict),
    }
    for key, good in fits.items():
        if not good:
            raise IntegrityError(f"{path} is no checkpoint of train.py: its {key} is none of ours")
    for name, setting in ALL_SETTINGS.items():
        if name in config and not setting.allows(config[name]):
            raise IntegrityError(f"{path} is no checkpoint of train.py: {name} {config[name]!r}")
    for kind in map(modality, content["arch"]["encoders"]):
        # what it does not name nobody would compare; a custom feature has no settings
        if kind.made_by_preprocess and not content["features_config"].get(kind.folder):
            raise IntegrityError(f"{path} does not say how the {kind.folder} it reads was made")
    outputs = content["arch"].get("n_classes")
    if outputs != len(classes):
        raise IntegrityError(f"{path}: {outputs} outputs for the {len(classes)} classes {classes}")
    checkpoint["config"] = recipe(config["mode"]) | {"fold": None, "val_fold": None} | config


def _is_arch(value: Any) -> bool:
    """A description of a model with encoders; what they are `build_model` knows."""
    encoders = value.get("encoders") if isinstance(value, dict) else None
    return isinstance(encoders, dict) and all(isinstance(each, dict) for each in encoders.values())


def is_plain(value: Any) -> bool:
    """Scalars, and lists and dictionaries of them: few, for lists can hold one another."""
    level = [value]
    for _ in range(DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict) and all(isinstance(key, str) for key in each):
                below += each.values()
            elif isinstance(each, list | tuple):
                below += each
            elif not isinstance(each, PLAIN) or (isinstance(each, int) and abs(each) > LARGEST):
                return False
            if len(below) > MOST_VALUES:
                return False
        level = below
    return not level


def is_tensors(value: Any) -> bool:
    """Ordinary tensors by name: in memory, not sparse, each value with a place of its own."""
    return isinstance(value, dict) and all(
        isinstance(key, str)
        and isinstance(each, Tensor)
        and each.layout == torch.strided
        and each.device.type == "cpu"
        and not (each.is_quantized or each.requires_grad)
        and each.numel() * each.element_size() <= each.untyped_storage().nbytes()
        for key, each in value.items()
    )


def is_numbers(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(isinstance(k, str) and isinstance(v, int | float) for k, v in value.items())
    )


def restore_model(checkpoint: Checkpoint, path: Path) -> EmotionClassifier:
    """The model of a checkpoint with its weights, all of them finite and of its own types, or in
    half precision."""
    weights = checkpoint["weights"]
    try:
        with torch.device("meta"):
            wanted = build_model(**checkpoint["arch"]).state_dict()
    except Exception as error:  # a description from elsewhere makes any layer fail
        reason = in_short(f"{type(error).__name__} {error}")
        raise IntegrityError(f"{path} describes no model of ours: {reason}") from error
    for key in sorted({*wanted, *weights}):
        kinds = [_kind(each.get(key)) for each in (weights, wanted)]
        if kinds[0] != kinds[1] and kinds[0].replace("float16", "float32") != kinds[1]:
            what = f"{in_short(key, 80)} is {kinds[0]}, the model has {kinds[1]}"
            raise IntegrityError(f"{path}: weights and model do not match: {what}")
        if weights[key].is_floating_point() and not weights[key].isfinite().all():
            raise IntegrityError(f"{path}: the weights {in_short(key, 80)} are not finite")
    model = build_model(**checkpoint["arch"])
    model.load_state_dict(weights)
    return model


def _kind(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def weights_digest(checkpoint: Checkpoint) -> str:
    """Names a checkpoint by what it has learnt, whatever else stands in its file."""
    state = hashlib.sha256()
    for key, value in sorted(checkpoint["weights"].items()):
        state.update(f"{key} {_kind(value)}".encode())
        state.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
