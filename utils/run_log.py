"""The record of a run, one row per epoch: metrics.csv, TensorBoard events, curves.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.files import write_csv
from utils.plots import plot_curves
from utils.trackers import Tracker


class RunLog:
    """Rows of numbers by epoch. Files are rewritten whole, so a resumed run leaves no doubles; a
    `tracker` (utils/trackers.py) gets each row once."""

    def __init__(
        self,
        folder: Path,
        rows: list[dict[str, Any]],
        tracker: Tracker | None = None,
        **guesses: Any,
    ):
        """`guesses`: what the curves are held against, as in `plot_curves`."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.tracker, self.guesses = folder, tracker, guesses
        self.rows: list[dict[str, Any]] = []
        for events in filter(Path.is_file, folder.glob("events.out.tfevents.*")):
            events.unlink()  # they may hold a row too few, or one twice, of a run that was killed
        self.writer = SummaryWriter(str(folder))
        for row in rows:
            self._draw(row)
        if rows:
            self._write()

    def add(self, row: dict[str, Any]) -> None:
        self._draw(row)
        self._write()
        if self.tracker:
            numbers = {k: v for k, v in row.items() if k != "epoch" and v is not None}
            self.tracker.log(row["epoch"], numbers)

    def _draw(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self.writer.flush()

    def _write(self) -> None:
        import pandas as pd

        write_csv(self.folder / "metrics.csv", pd.DataFrame(self.rows))
        picture = self.folder / "curves.png"
        plot_curves(picture, self.rows, str(self.folder), **self.guesses)

    def close(self) -> None:
        self.writer.close()
        if self.tracker:
            self.tracker.finish()
