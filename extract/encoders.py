"""Pretrained encoders by name: the voice, the face crops or the words of a clip -> numbers.

    wavlm=speech:hf:microsoft/wavlm-base-plus,layers=all,pool=mean

means: call it wavlm, give it the voice, take it from the hub of transformers under that name (or
from a folder), keep all of its layers, each as its mean over time. docs/encoders.md shows more.
An encoder sees one clip at a time: in a batch the answer for a clip would change with the others.

The settings of an encoder are one dictionary of strings, KEYS, in settings.json and in checkpoints:

    made by     holds                              for
    `parse`     all but revision and weights       what the user asked for
    `known`     all                                what the features were made with
    `given`     all but revision and weights       `load`, as JSON
    `identity`  all but source and revision        whether features are still up to date
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import ClipError, IntegrityError, UsageError, in_short
from utils.files import digest, sha256

INPUTS = {"speech": "wave", "face": "video", "text": "transcript"}  # what it sees -> what it reads
RATE = 16_000  # Hz, of the wave
NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
LAYERS = re.compile(r"all|last|last[1-9]\d?|\d{1,3}(-\d{1,3})?")
POOL = re.compile(r"frames|mean|stats|[1-9]\d{0,3}")
DTYPES = ("float16", "float32")
KEYS = ("input", "reads", "library", "source", "layers", "pool", "dtype", "revision", "weights")
FORM = "NAME=INPUT:LIBRARY:SOURCE[,layers=all|last|last4|9-12][,pool=mean|stats|frames|N]"
Encode = Callable[[Any], np.ndarray]  # what it sees of one clip -> (layers, T, D) or (T, D)


@dataclass(frozen=True)
class Encoder:
    """`encode` and what tells these weights from others: the hub's revision, and their digest.
    `notes`: what happened to how many clips, that their user should know. `learnt`: from labels of
    clips, which training must not see again in its numbers."""

    encode: Encode
    revision: str
    weights: str
    learnt: bool = False
    notes: Counter[str] = field(default_factory=Counter)


class Library(NamedTuple):
    """`open`: settings and device -> Encoder. `sees`: the inputs that its encoders can have.
    `layers`, `dtype`: where the flag names none. `package`: of requirements-encoders.txt."""

    open: Callable[[dict[str, str], str], Encoder]
    sees: tuple[str, ...] = tuple(INPUTS)
    layers: str = "last"
    dtype: str = "float16"
    package: str = ""


def parse(text: str) -> tuple[str, dict[str, str]]:
    """An --encoder as typed -> its name and settings, without revision and weights."""
    name, equals, rest = text.partition("=")
    parts = rest.split(":", 2)
    if not equals or len(parts) < 3 or not parts[2] or not NAME.fullmatch(name):
        raise UsageError(f"--encoder {text}: expected {FORM}")
    seen, library, source = parts
    check_choice(text, "INPUT", seen, INPUTS)
    check_choice(text, "LIBRARY", library, LIBRARIES)
    row = LIBRARIES[library]
    options = {"layers": row.layers, "pool": "mean", "dtype": row.dtype}
    # from the end, one after the other: the path before them may hold commas, too
    while (option := re.search(r",(layers|pool|dtype)=([^,]*)$", source)) is not None:
        options[option[1]] = option[2]
        source = source[: option.start()]
    check_choice(text, "dtype", options["dtype"], DTYPES)
    for what, rule in (("layers", LAYERS), ("pool", POOL)):
        if not rule.fullmatch(options[what]) or (library != "hf" and options["layers"] != "last"):
            raise UsageError(f"--encoder {text}: {what}={options[what]}: expected {FORM}")
    if seen not in row.sees:
        expected = " or ".join(row.sees)
        raise UsageError(f"--encoder {text}: {library} reads {expected}, not {seen}")
    place = {"input": seen, "reads": INPUTS[seen]}
    return name, {**place, "library": library, "source": source, **options}


def check_choice(text: str, what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        expected = ", ".join(choices)
        raise UsageError(f"--encoder {text}: {what} {value!r} is none of {expected}")


def parse_all(texts: list[str], taken: set[str]) -> dict[str, dict[str, str]]:
    """{name: settings} of several; UsageError for a name that is `taken`, or given twice."""
    parsed: dict[str, dict[str, str]] = {}
    for text in texts:
        name, settings = parse(text)
        if name in taken or name in parsed:
            raise UsageError(f"--encoder {text}: the name {name} is taken, choose another one")
        parsed[name] = settings
    return parsed


def is_whole(settings: Any) -> bool:
    """Whether these are an encoder's settings, from a checkpoint of this version."""
    return (
        isinstance(settings, dict)
        and set(settings) == set(KEYS)
        and all(isinstance(value, str) for value in settings.values())
        and settings["library"] in LIBRARIES
        and INPUTS.get(settings["input"]) == settings["reads"]
    )


def known(settings: dict[str, str], device: str) -> dict[str, str]:
    """The settings with the revision and the digest of the weights, which are loaded for that.

    UsageError for a model of the hub that cannot encode what it is to see, and for a file whose
    numbers know the labels of clips: of those clips others must be made, which only it can do.
    """
    encoder = load(given(settings), device)
    if encoder.learnt:
        what = f"{settings['source']} has learnt the labels of clips and would tell them"
        raise UsageError(f"--encoder: {what}: run that file itself, it makes the features (--help)")
    if settings["library"] == "hf":
        try_out(encoder, settings)
    return settings | {"revision": encoder.revision, "weights": encoder.weights}


def try_out(encoder: Encoder, settings: dict[str, str]) -> None:
    """Encode a second of noise, a crop of noise or a letter, twice: not every architecture has
    layers of one size, some hide parts of what they see at random (ViT-MAE), and it is better known
    now than by every clip."""
    seen, rng = settings["input"], np.random.default_rng(0)
    shown = {
        "speech": rng.normal(0, 0.1, RATE).astype(np.float32),
        "face": rng.integers(0, 256, (1, 48, 48, 3), np.uint8),
        "text": "a",
    }
    what = f"hf:{settings['source']} is no model that can encode {seen} here"
    others = "docs/encoders.md names some that can"
    try:
        first, second = (np.asarray(encoder.encode(shown[seen])) for _ in range(2))
    except UsageError:
        raise
    except Exception as error:
        said = in_short(f"{type(error).__name__} {error}")
        raise UsageError(f"{what}: {said}; {others}") from error
    if np.abs(first - second).max() > 1e-3 * np.abs(first).max():  # a GPU differs by less
        raise UsageError(f"{what}: of the same input it makes other numbers each time; {others}")


def given(settings: dict[str, str]) -> str:
    """What `parse` made of the flag, as `load` takes it."""
    return json.dumps({k: v for k, v in settings.items() if k not in ("revision", "weights")})


def pinned(settings: dict[str, str]) -> str:
    """The source as of the revision that the features were made with, NAME@REVISION; the hub's
    newest may have other weights."""
    source, revision = settings["source"], settings["revision"]
    of_hub = settings["library"] == "hf" and revision and not Path(source).is_dir()
    return f"{source.partition('@')[0]}@{revision}" if of_hub else source


def notes(settings: dict[str, str], device: str) -> list[str]:
    """Lines about what happened to clips since the encoder was loaded."""
    if not load.cache_info().currsize:  # nothing was to be done
        return []
    counts = load(given(settings), device).notes
    return [f"{count} clips {what}" for what, count in counts.items()]


def identity(settings: dict[str, str]) -> dict[str, str]:
    """What features depend on. The same weights in another place give the same ones."""
    return {key: value for key, value in settings.items() if key not in ("source", "revision")}


def encode(settings: dict[str, str], device: str, seen: Any) -> np.ndarray:
    """What one clip becomes: (layers, T, D), (T, D) or, of one layer in one piece, (D,).

    `seen`: the wave (N,) float32 at RATE, face crops (T, S, S, 3) uint8, or the words as a string.
    ClipError E_NONFINITE for values that are not numbers, or too large for dtype=float16; E_ENCODER
    where the encoder fails.
    """
    encoder = load(given(settings), device)
    try:
        values = np.asarray(encoder.encode(seen), np.float32)
    except UsageError:
        raise
    except Exception as error:  # memory of a GPU, a bug in a file of the user's
        if settings["library"] == "file":
            traceback.print_exc(file=sys.stderr)
        said = in_short(f"{type(error).__name__} {error}")
        raise ClipError("E_ENCODER", f"the encoder {settings['source']} failed: {said}") from error
    pooled = pool(values, settings["pool"])
    with np.errstate(over="ignore"):
        small = pooled.astype(settings["dtype"])
    if not np.isfinite(small).all():
        large = np.isfinite(pooled).all()
        reason = f"{settings['source']} gives {'values over 65504' if large else 'no numbers'}"
        raise ClipError("E_NONFINITE", reason + (": use dtype=float32" if large else ""))
    return small


def pool(values: np.ndarray, how: str) -> np.ndarray:
    """(..., T, D) -> over time: its mean; mean and deviation (2 D); the mean of each N rows."""
    if values.ndim == 1:  # numbers of the clip as a whole
        return values
    if how == "frames":
        return as_sequence(values)
    if how == "mean":
        pooled = values.mean(axis=-2, keepdims=True)
    elif how == "stats":
        both = values.mean(axis=-2, keepdims=True), values.std(axis=-2, keepdims=True)
        pooled = np.concatenate(both, axis=-1)
    else:
        places = range(int(how), values.shape[-2], int(how))
        parts = np.split(values, places, axis=-2)
        return as_sequence(np.stack([part.mean(axis=-2) for part in parts], axis=-2))
    return pooled if pooled.ndim == 3 else pooled[0]


def as_sequence(values: np.ndarray) -> np.ndarray:
    """A single row becomes two equal ones. Training tells by the shape what it reads: one row of
    each layer is the mean of a clip, two or more are a sequence, as of all other clips here."""
    return values.repeat(2, axis=1) if values.ndim == 3 and values.shape[1] == 1 else values


@cache
def load(settings: str, device: str) -> Encoder:
    """The encoder of these settings, loaded once. They come as JSON, of `given`: a dictionary is no
    key of the cache. UsageError where a package or the weights lack."""
    options = json.loads(settings)
    library, source = options["library"], options["source"]
    package = LIBRARIES[library].package
    if package and not importlib.util.find_spec(package):
        need = "pip install -r requirements-encoders.txt"
        raise UsageError(f"the encoder {library}:{source} needs the package {package}: {need}")
    try:
        return LIBRARIES[library].open(options, device)
    except (UsageError, IntegrityError):
        raise
    except Exception as error:  # no internet, no such name, no weights, foreign bytes, no memory
        reason = in_short(error, 300)
        raise UsageError(f"cannot load the encoder {library}:{source}: {reason}{HELP}") from error


HELP = (
    " (it is looked for in a folder of that name, in HF_HOME, then on the hub; of a checkpoint: "
    "--encoder NAME=PLACE takes it from elsewhere)"
)


def quiet() -> None:
    """One message says that the hub cannot be reached, not a dozen of its library, which sets its
    own level when it is imported."""
    import huggingface_hub  # noqa: F401

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def open_timm(settings: dict[str, str], device: str) -> Encoder:
    """Any model of timm by its name, or timm's own local-dir:FOLDER, on each face crop."""
    import timm
    import torch

    quiet()
    model = timm.create_model(settings["source"], pretrained=True, num_classes=0)
    model = model.eval().to(device)
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[name]).view(3, 1, 1) for name in ("mean", "std"))

    def encode(crops: np.ndarray) -> np.ndarray:
        found = []
        for images in in_blocks(crops):  # (B, S, S, 3)
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            size = data["input_size"][1:]
            x = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True)
            with torch.inference_mode():
                found.append(model(((x - mean) / std).to(device)).float().cpu().numpy())
        return np.concatenate(found)  # (T, D)

    seen = {name: data[name] for name in ("mean", "std", "input_size")}
    return Encoder(encode, "", weights_of(model, seen))


def open_smile(settings: dict[str, str], device: str) -> Encoder:
    """openSMILE's functionals of the whole wave: eGeMAPSv02, ComParE_2016 and the others."""
    import opensmile

    source = settings["source"]
    if source not in opensmile.FeatureSet.__members__:
        names = ", ".join(opensmile.FeatureSet.__members__)
        raise UsageError(f"opensmile has no set {source}; it has {names}")
    smile = opensmile.Smile(opensmile.FeatureSet[source], opensmile.FeatureLevel.Functionals)

    def encode(wave: np.ndarray) -> np.ndarray:
        return smile.process_signal(wave, RATE).to_numpy()[0]  # (D,)

    version = getattr(opensmile, "__version__", "")
    return Encoder(encode, version, digest([source, version, smile.feature_names]))


def open_file(settings: dict[str, str], device: str) -> Encoder:
    """A Python file of the user's, with `load(settings, device)`: it returns the function that
    makes (D,), (T, D) or (layers, T, D) of what one clip shows.

    `CODE@WEIGHTS` names a second file, of what the code has learnt: both decide what it is.
    """
    path, weights = code_and_weights(settings["source"])
    spec = importlib.util.spec_from_file_location(f"encoder_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "load", None)):
        raise UsageError(f"{path} has no function load(settings, device)")
    files = {"source": str(path), "weights": str(weights or "")}
    made = module.load(settings | files, device)
    if not callable(made):
        raise UsageError(f"load of {path} returned no function of one clip")
    own = sha256(path)
    about = digest([own, sha256(weights)]) if weights else own
    return Encoder(made, "", about, bool(getattr(module, "LEARNT_FROM_LABELS", False)))


def code_and_weights(source: str) -> tuple[Path, Path | None]:
    code, _, weights = source.rpartition("@")
    paths = [Path(source)] if Path(source).is_file() or not code else [Path(code), Path(weights)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"no file {path} for --encoder")
    return paths[0], paths[1] if len(paths) > 1 else None


def open_hub(settings: dict[str, str], device: str) -> Encoder:
    """Any model of transformers: extract/hub.py."""
    from extract import hub

    return hub.open_model(settings, device)


def open_run(settings: dict[str, str], device: str) -> Encoder:
    """A run of train.py. What reads one stands above this package and registers itself here."""
    raise RuntimeError("call inference.frozen.register() first")


LIBRARIES = {
    "hf": Library(open_hub, layers="all", package="transformers"),
    "timm": Library(open_timm, ("face",)),
    # Hz, dB and shares side by side are too much for half precision
    "opensmile": Library(open_smile, ("speech",), dtype="float32", package="opensmile"),
    "file": Library(open_file),
    "run": Library(open_run, ("speech", "face"), dtype="float32"),
}
BLOCK = 16  # pictures at once


def in_blocks(crops: np.ndarray) -> list[np.ndarray]:
    return [crops[first : first + BLOCK] for first in range(0, len(crops), BLOCK)]


def weights_of(model: Any, about: Any) -> str:
    """sha256 of a model's weights by name, and of what else decides what it sees."""
    import torch

    hasher = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        hasher.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return hasher.hexdigest()
