"""The record of a run, one row per epoch: metrics.csv, TensorBoard events, curves.png."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from utils.files import write_csv
from utils.plots import plot_curves
from utils.trackers import Tracker

PAUSE = 10.0  # seconds between two pictures: one takes as long as many epochs on small features


class RunLog:
    """Rows of numbers by epoch. Files are rewritten whole, so a resumed run leaves no doubles; a
    `tracker` (utils/trackers.py) gets each row once. The curves may lack the last seconds until
    `draw_curves` or `close` is called."""

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
        self.rows = [*rows]
        self.drawn, self.drawn_at = 0, time.monotonic()  # how many rows the picture shows
        for events in filter(Path.is_file, folder.glob("events.out.tfevents.*")):
            events.unlink()  # they may hold a row too few, or one twice, of a run that was killed
        self.writer = SummaryWriter(str(folder))
        for row in rows:
            self._write_events(row)
        if rows:
            self._write_table()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._write_events(row)
        self._write_table()
        if time.monotonic() - self.drawn_at >= PAUSE:
            self.draw_curves()
        if self.tracker:
            numbers = {k: v for k, v in row.items() if k != "epoch" and v is not None}
            self.tracker.log(row["epoch"], numbers)

    def draw_curves(self) -> None:
        if self.drawn == len(self.rows):
            return
        picture = self.folder / "curves.png"
        plot_curves(picture, self.rows, str(self.folder), **self.guesses)
        self.drawn, self.drawn_at = len(self.rows), time.monotonic()

    def _write_events(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self.writer.flush()

    def _write_table(self) -> None:
        import pandas as pd

        write_csv(self.folder / "metrics.csv", pd.DataFrame(self.rows))

    def close(self) -> None:
        self.draw_curves()
        self.writer.close()
        if self.tracker:
            self.tracker.finish()
