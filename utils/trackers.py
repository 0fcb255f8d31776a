"""Trackers of experiments by name: each epoch's numbers also go to wandb, mlflow or trackio.

Where to, and as whom, is for their own settings (wandb login, MLFLOW_TRACKING_URI, ...). A run that
is resumed goes on under its id, which its folder keeps.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from utils.errors import UsageError, in_short
from utils.files import read_known, write_json

PROJECT = "multimodal-emotion-recognition"


class Tracker(Protocol):
    """`name` and `folder` of the run, its settings, and the id that it had before, or ""."""

    id: str

    def __init__(self, folder: Path, config: dict[str, Any], id: str) -> None: ...

    def log(self, epoch: int, values: dict[str, float]) -> None: ...

    def finish(self) -> None: ...


class Wandb:
    package = "wandb"

    def __init__(self, folder: Path, config: dict[str, Any], id: str):
        import wandb

        self.run: Any = wandb.init(
            project=PROJECT,
            name=title(folder),
            dir=folder,
            config=config,
            id=id or None,
            resume="allow",
        )
        self.id = self.run.id

    def log(self, epoch: int, values: dict[str, float]) -> None:
        self.run.log(values, step=epoch)

    def finish(self) -> None:
        self.run.finish()


class Trackio(Wandb):
    """Its interface is wandb's, but for what a run is known by: its name."""

    package = "trackio"

    def __init__(self, folder: Path, config: dict[str, Any], id: str):
        import trackio

        self.id = id or title(folder)
        self.run = trackio.init(project=PROJECT, name=self.id, config=config, resume="allow")


class Mlflow:
    package = "mlflow"

    def __init__(self, folder: Path, config: dict[str, Any], id: str):
        import mlflow

        mlflow.set_experiment(PROJECT)
        self.run = mlflow.start_run(run_id=id or None, run_name=None if id else title(folder))
        self.id = self.run.info.run_id
        if not id:
            mlflow.log_params(config)

    def log(self, epoch: int, values: dict[str, float]) -> None:
        import mlflow

        mlflow.log_metrics(values, step=epoch)

    def finish(self) -> None:
        import mlflow

        mlflow.end_run()


TRACKERS: dict[str, Any] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def title(folder: Path) -> str:
    """speech/NAME, or speech/NAME/fold_0."""
    parts = folder.resolve().parts
    return "/".join(parts[-3 if parts[-1].startswith("fold_") else -2 :])


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def check_tracker(name: str) -> None:
    """UsageError before a training starts without the package that it asks for."""
    package = TRACKERS[name].package
    if not is_installed(package):
        raise UsageError(f"--tracker {name} needs the package {package}: pip install {package}")


def start_tracker(name: str, folder: Path, config: dict[str, Any]) -> Tracker:
    """UsageError with the tracker's own words where it cannot be reached."""
    note = folder / "tracker.json"
    before = read_known(note)
    id = before.get("id", "") if before.get("tracker") == name else ""
    try:
        tracker = TRACKERS[name](folder, config, id)
    except Exception as error:  # of any library and network
        raise UsageError(f"--tracker {name} does not start: {in_short(error, 300)}") from error
    write_json(note, {"tracker": name, "id": tracker.id})
    return tracker
