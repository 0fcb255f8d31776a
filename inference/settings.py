"""Checkpoints -> how the features that they read are made, and where their encoders are now."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from extract import encoders, transcribe
from extract.clip import SETTINGS, odd_settings
from extract.vectors import origin_of
from training.checkpoint import load_checkpoint
from training.modalities import MODALITIES
from utils.errors import IntegrityError, UsageError, listed


def settings_of(paths: list[Path]) -> dict[str, Any]:
    """Classes and extraction settings of checkpoints, as preprocess.py writes them.

    UsageError for inputs that no clip can give; IntegrityError for settings of another version.
    """
    features: dict[str, dict] = {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        made = checkpoint["features_config"]
        custom = set(checkpoint["arch"]["encoders"]) - set(MODALITIES)
        if custom := {name for name in custom if "library" not in (made.get(name) or {})}:
            what = (
                f"{path} reads custom features, {', '.join(custom)}, which nothing makes of a clip"
            )
            raise UsageError(f"{what}: train on an encoder of your own instead (docs/encoders.md)")
        features = made | features
        for stage, settings in made.items():
            if encoders.is_whole(settings):
                continue
            if stage not in SETTINGS or not settings or not isinstance(settings, dict):
                raise IntegrityError(f"{path} reads {stage}, of which no settings are known")
            unknown = set(SETTINGS[stage]) - set(settings)
            if unknown:
                what = f"{stage} without {', '.join(sorted(unknown))}"
                raise IntegrityError(f"{path} was trained on features of another version: {what}")
            if odd := odd_settings(stage, settings):
                what = f"{stage} with {listed(odd, 3)}"
                raise IntegrityError(
                    f"{path} reads features that preprocess.py makes none of: {what}"
                )
    return {"classes": checkpoint["classes"], "modalities": list(features), "features": features}


def check_words(models: dict[str, tuple[Path, ...]], vectors: Path) -> None:
    """A line for each model that was trained with other word vectors: no sentence is read by it."""
    origin = origin_of(vectors)
    for name, files in models.items():
        made = settings_of([*files])["features"].values()
        if {each["vectors"] for each in made if "vectors" in each} - {origin}:
            what = f"was trained with other word vectors than {vectors}"
            print(f"{name} {what}: it answers without the sentences", file=sys.stderr)


def check_recogniser(given: str, device: str) -> None:
    """UsageError where it cannot be loaded; the process that answers loads it for itself."""
    transcribe.load(transcribe.parse(given), device)
    transcribe.load.cache_clear()


def encoder_places(given: list[str]) -> dict[str, str]:
    """NAME=PLACE of each --encoder -> {name: place}."""
    pairs = [text.partition("=") for text in given]
    for text, (name, _, place) in zip(given, pairs, strict=True):
        if not (name and place):
            raise UsageError(f"--encoder {text}: expected NAME=PLACE, a folder, file or hub name")
    return {name: place for name, _, place in pairs}


def check_files_named(features: dict[str, dict], places: dict[str, str]) -> dict[str, dict]:
    """The settings of the encoders; UsageError for a Python file that `places` does not name."""
    by_name = {name: settings for name, settings in features.items() if "library" in settings}
    for name, settings in by_name.items():
        if settings["library"] == "file" and name not in places:
            file = settings["source"]
            what = f"{name} is made by the Python file {file}, which is run only if you say so"
            raise UsageError(f"{what}: --encoder {name}={file}")
    return by_name


def found_again(features: dict[str, dict], places: dict[str, str], device: str) -> dict[str, dict]:
    """The settings of the encoders among these, loaded, each from where it is now.

    A Python file is run only where `places` names it: a checkpoint alone runs no code.
    UsageError for one that cannot be loaded; IntegrityError for other weights than the training's.
    """
    by_name = check_files_named(features, places)
    if any(settings["library"] == "run" for settings in by_name.values()):
        from inference import frozen

        frozen.register()
    if unknown := set(places) - set(by_name):
        have = ", ".join(by_name) or "none"
        raise UsageError(f"--encoder {sorted(unknown)[0]}: the encoders of this model are: {have}")
    for name, settings in by_name.items():
        settings = settings | {"source": places.get(name) or encoders.pinned(settings)}
        if encoders.load(encoders.given(settings), device).weights != settings["weights"]:
            what = f"the encoder {name} from {settings['source']} has other weights than"
            elsewhere = f"where these are now: --encoder {name}=PLACE"
            raise IntegrityError(
                f"{what} the one that the checkpoint was trained with; {elsewhere}"
            )
        by_name[name] = features[name] = settings
    return by_name
