"""Pictures of a training run and of an evaluation, drawn without a screen."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from utils.files import write_bytes

INK, TRAIN, VAL = "#222222", "#8aa4c8", "#c8553d"


def plot_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Loss and accuracy by epoch, training and validation, the best epoch marked."""
    figure, axes = _figure(1, 2, (9, 3.6))
    epochs = [row["epoch"] for row in rows]
    measured = [row for row in rows if row.get("val_loss") is not None]
    finite = [row for row in measured if math.isfinite(row["val_loss"])]
    # the training loss has smoothed, mixed targets and all heads: not on validation's scale
    labels = {"loss": "training objective", "accuracy": "training"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        axis.plot(epochs, [row[f"train_{name}"] for row in rows], color=TRAIN, label=label)
        values = [row[f"val_{name}"] for row in measured]
        axis.plot([row["epoch"] for row in measured], values, color=VAL, label="validation")
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
    axes[1].set_ylim(0, 1)
    if finite:
        best = min(finite, key=lambda row: row["val_loss"])
        axes[0].plot(best["epoch"], best["val_loss"], "o", color=VAL)
        axes[1].plot(best["epoch"], best["val_accuracy"], "o", color=VAL)
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    _save(figure, path)


def plot_confusion(path: Path, confusion: Any, classes: list[str], title: str) -> None:
    """Confusion matrix: rows are labels and add up to 1, columns predictions; with the counts."""
    figure, axis = _figure(1, 1, (4.8, 4.6))
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for label, row in enumerate(confusion):
        for prediction, count in enumerate(row):
            color = "white" if shares[label, prediction] > 0.6 else INK
            axis.text(prediction, label, str(count), ha="center", va="center", color=color)
    axis.set_xticks(range(len(classes)), classes)
    named = [
        name if row.any() else f"{name}\nno clip"
        for name, row in zip(classes, confusion, strict=True)
    ]
    axis.set_yticks(range(len(classes)), named)
    axis.set(xlabel="prediction", ylabel="label")
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    _save(figure, path)


def plot_bars(path: Path, rows: list[tuple], title: str, chance: float) -> None:
    """Horizontal bars of rows (name, share, (low, high)) with their intervals."""
    names, values, ranges = zip(*rows, strict=True)
    figure, axis = _figure(1, 1, (5.2, 1.1 + 0.34 * len(names)))
    axis.barh(names, values, color=TRAIN, height=0.7)
    axis.hlines(names, *zip(*ranges, strict=True), color=INK, lw=1)
    axis.axvline(chance, color=VAL, lw=1, ls="--", label="chance")
    axis.invert_yaxis()
    axis.set(xlim=(0, 1))
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    _save(figure, path)


def plot_calibration(path: Path, curves: dict[str, list[dict]], title: str) -> None:
    """How often predictions of each confidence are right, with intervals: {name: points}."""
    figure, axis = _figure(1, 1, (4.8, 4.4))
    axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=1)
    for (name, points), color in zip(curves.items(), (TRAIN, VAL), strict=False):
        confidence = [row["confidence"] for row in points]
        accuracy = [row["accuracy"] for row in points]
        ranges = zip(*(row["interval"] for row in points), strict=True)
        axis.plot(confidence, accuracy, "o-", color=color, label=name, lw=1, ms=5, alpha=0.8)
        axis.vlines(confidence, *ranges, color=color, lw=1, alpha=0.6)
    axis.set(xlabel="confidence of the prediction", ylabel="share that is right", xlim=(0, 1.02))
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    _save(figure, path)


def plot_corruptions(path: Path, curves: dict[str, list[tuple]], chance: float) -> None:
    """Accuracy by how far an input is corrupted: {title: [(level, share, (low, high))]}."""
    figure, axes = _figure(1, len(curves), (3.4 * len(curves) + 0.4, 3.2))
    panels = list(axes.flat) if len(curves) > 1 else [axes]
    for axis, (title, rows) in zip(panels, curves.items(), strict=True):
        levels, values, ranges = zip(*rows, strict=True)
        axis.fill_between(range(len(levels)), *zip(*ranges, strict=True), color=TRAIN, alpha=0.3)
        axis.plot(values, "o-", color=INK, ms=4)
        axis.axhline(chance, color=VAL, lw=1, ls="--")
        axis.set_xticks(range(len(levels)), levels)
        axis.set(ylim=(0, 1), xlabel=title)
    panels[0].set_ylabel("accuracy")
    _save(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figure = blank_figure(size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def blank_figure(size: tuple[float, float], **options: Any) -> Any:
    """A figure of `size` inches without pyplot: no global state, no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, **options)
    FigureCanvasAgg(figure)
    return figure


def literal(figure: Any) -> Any:
    """The figure with its words as they are: dollars make no formula, and what is no UTF-8 in a
    file's name stands for itself."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())
    return figure


def png(figure: Any) -> bytes:
    picture = io.BytesIO()
    literal(figure).savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _save(figure: Any, path: Path) -> None:
    write_bytes(path, png(figure))


def plot_search(trials: Any, measure: str, higher: bool, title: str) -> bytes:
    """A search as .png: what each trial reached, and by the values of each setting. `trials`: a
    table with the columns trial, `measure`, and the settings."""
    names = list(trials.columns[2:])
    columns = min(4, len(names) + 1)
    rows = math.ceil((len(names) + 1) / columns)
    figure, axes = _figure(rows, columns, (3.4 * columns, 2.9 * rows))
    axes = list(getattr(axes, "flat", [axes]))
    values = trials[measure]
    best = values.idxmax() if higher else values.idxmin()
    so_far = values.cummax() if higher else values.cummin()
    axes[0].plot(range(1, len(values) + 1), so_far, color=TRAIN, label="best so far")
    axes[0].legend(frameon=False)
    axes[0].set(xlabel="trial", ylabel=f"validation {measure}")
    for axis, name in zip(axes, [None, *names], strict=False):
        places: Any = range(1, len(values) + 1) if name is None else trials[name]
        if name is not None and trials[name].dtype.kind not in "iuf":
            places = trials[name].astype(str)
        elif name is not None and 0 < 20 * trials[name].min() < trials[name].max():
            axis.set_xscale("log")
        axis.plot(places, values, "o", color=TRAIN, markersize=5)
        axis.plot([list(places)[best]], [values[best]], "o", color=VAL, markersize=8)
        if name is not None:
            axis.set(xlabel=name)
    for axis in axes[len(names) + 1 :]:
        axis.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    return png(figure)
