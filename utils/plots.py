"""Pictures of a training run and of an evaluation, drawn without a screen."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from utils.files import write_bytes
from utils.fonts import columns, drawable, shortened, wrapped

INK, TRAIN, VAL, GREY = "#222222", "#8aa4c8", "#c8553d", "#777777"
COUNTED = 40  # classes: more are shown without the counts of each cell
DENSE = 12  # classes: more have small cells, names of one line, and no zeros
LABEL, LETTER = 18, 0.085  # columns of a line of an axis label; inches of one
CURVES = {  # a column of metrics.csv: what stands above its panel, and beside its axis
    "train_loss": ("what the training lowers", "training objective"),
    "val_loss": ("validation", "loss (cross-entropy)"),
    "val_accuracy": ("accuracy", "share that is right"),
}
MEASURED = tuple(CURVES)


def plot_curves(
    path: Path,
    rows: list[dict[str, Any]],
    title: str,
    classes: int = 0,
    majority: tuple[str, float] = ("", 0.0),
) -> None:
    """What the training lowers, the validation loss, and both accuracies, by epoch; the best epoch
    is marked. `classes`: how many, for the lines of guessing. `majority`: the commonest class of
    the validation clips, and its share."""
    figure, axes = _figure(1, 3, (12, 3.9))
    epochs = [row["epoch"] for row in rows]
    measured = [row for row in rows if row.get("val_loss") is not None]
    finite = [row for row in measured if math.isfinite(row["val_loss"])]
    dots = dict(marker="o", ms=3) if len(rows) <= 40 else {}  # one epoch alone makes no line
    at = [row["epoch"] for row in measured]
    # smoothed and mixed targets, all heads: not on validation's scale
    axes[0].plot(epochs, [row["train_loss"] for row in rows], color=TRAIN, **dots)
    axes[1].plot(at, [row["val_loss"] for row in measured], color=VAL, **dots)
    axes[2].plot(
        epochs, [row["train_accuracy"] for row in rows], color=TRAIN, label="training", **dots
    )
    axes[2].plot(
        at, [row["val_accuracy"] for row in measured], color=VAL, label="validation", **dots
    )
    if classes:
        guess = dict(color=GREY, lw=1, ls="--")
        axes[1].axhline(math.log(classes), label=f"guessing: ln {classes}", **guess)
        axes[2].axhline(1 / classes, label=f"guessing: {1 / classes:.0%}", **guess)
        if majority[1]:
            always = f"always {shortened(majority[0], 16)}: {majority[1]:.0%}"
            axes[2].axhline(majority[1], color=GREY, lw=1, ls=":", label=always)
    if finite:
        best = min(finite, key=lambda row: row["val_loss"])
        marked = f"kept: epoch {best['epoch']}"
        for axis, name in ((axes[1], "val_loss"), (axes[2], "val_accuracy")):
            axis.plot(best["epoch"], best[name], "o", color=VAL, ms=7, label=marked)
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            place = dict(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
            axis.legend(frameon=False, fontsize=8, **place)
    _by_epoch(dict(zip(CURVES, axes, strict=True)), epochs[0], epochs[-1])
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    _save(figure, path)


def training_png(
    runs: dict[str, list[list[dict[str, Any]]]], chance: float, shown: tuple[str, ...] = MEASURED
) -> bytes:
    """The curves of several runs over each other: {run: the rows of each of its trainings}, which
    are the folds of a run and have its colour. Accuracy is that of the validation clips."""
    lines = math.ceil(len(runs) / (2 * len(shown) - 1))
    figure, axes = _figure(1, len(shown), (4 * len(shown), 3.4 + 0.2 * lines))
    panels = dict(zip(shown, list(getattr(axes, "flat", [axes])), strict=True))
    for number, (name, parts) in enumerate(runs.items()):
        for part, rows in enumerate(parts):
            style = dict(color=f"C{number % 10}", lw=1.5 if len(parts) == 1 else 0.8)
            style |= dict(ls=("-", "--", ":", "-.")[number // 10 % 4], marker="o", ms=2)
            for column, axis in panels.items():
                known = [row for row in rows if row[column] is not None]
                label = name if part == 0 and column == shown[0] else None
                values = [row[column] for row in known]
                axis.plot([row["epoch"] for row in known], values, label=label, **style)
    if "val_accuracy" in panels:
        panels["val_accuracy"].axhline(chance, color=GREY, lw=1, ls="--")
    epochs = [row["epoch"] for parts in runs.values() for rows in parts for row in rows]
    _by_epoch(panels, min(epochs), max(epochs))
    columns = 2 * len(shown) - 1
    figure.legend(frameon=False, loc="outside lower left", ncols=columns, fontsize=8)
    return png(figure)


def _by_epoch(axes: dict[str, Any], first: int, last: int) -> None:
    for column, axis in axes.items():
        name, unit = CURVES[column]
        axis.set_title(name, loc="left", fontsize=10, color=INK)
        axis.set(xlabel="epoch", ylabel=unit, xlim=(first - 0.5, last + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        top = axis.get_ylim()[1]
        axis.set_ylim(0, 1.08 * top if top > 0 else 1)  # from 0: else noise looks like learning
        if column == "val_accuracy":
            axis.set(ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])  # 0 and 1 are seen


def plot_confusion(path: Path, confusion: Any, classes: list[str], title: str) -> None:
    """Confusion matrix: rows are labels and add up to 1, columns predictions; with the counts.
    Long names are wrapped, and those of the columns turned where they would touch."""
    dense = len(classes) > DENSE
    names = [wrapped(drawable(name)[0], LABEL, 1 if dense else 2) for name in classes]
    widest = max(columns(line) for name in names for line in name.split("\n"))
    cell = min(1.2, max(0.3 if dense else 0.4, 4 / len(classes)), 40 / len(classes))  # inches
    turned = widest * LETTER > 0.85 * cell
    side, labels = cell * len(classes), widest * LETTER
    size = (side + labels + 0.9, side + (labels if turned else 0.2) + 0.9)
    figure, axis = _figure(1, 1, (max(size[0], 4.6), size[1]))
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for label, row in enumerate(confusion if len(classes) <= COUNTED else []):
        for prediction, count in enumerate(row):
            if dense and not count:
                continue
            color = "white" if shares[label, prediction] > 0.6 else INK
            small = 7 if count >= 1000 else 8 if dense else 10
            axis.text(
                prediction, label, str(count), ha="center", va="center", color=color, fontsize=small
            )
    axis.set_xticks(range(len(classes)), names, rotation=90 if turned else 0)
    named = [
        name if row.any() else f"{name}\nno clip"
        for name, row in zip(names, confusion, strict=True)
    ]
    axis.set_yticks(range(len(classes)), named)
    axis.tick_params(labelsize=8 if dense else 10)
    axis.set(xlabel="prediction", ylabel="label")
    narrow = int(figure.get_figwidth() / 0.075)  # letters of the title that fit
    colours = "darker: a larger share of the row"
    colours += "; empty: no clip" if dense and len(classes) <= COUNTED else ""
    axis.set_title(f"{wrapped(title, narrow, 3)}\n{colours}", loc="left", color=INK, fontsize=9)
    _save(figure, path)


def plot_bars(path: Path, rows: list[tuple], title: str, chance: float) -> None:
    """Horizontal bars of rows (name, share, (low, high)), their intervals below them."""
    names, values, ranges = zip(*rows, strict=True)
    shown = [wrapped(drawable(name)[0], LABEL) for name in names]
    widest = max(columns(line) for name in shown for line in name.split("\n"))
    places = list(range(len(names)))
    figure, axis = _figure(1, 1, (4.6 + widest * LETTER, 1.4 + 0.42 * len(names)))
    axis.barh(places, values, color=TRAIN, height=0.42)
    below = [place + 0.33 for place in places]
    for place, (low, high) in zip(below, ranges, strict=True):
        axis.plot([low, high], [place, place], "|-", color=INK, lw=1, ms=5)
    axis.axvline(chance, color=VAL, lw=1, ls="--", label=f"guessing: {chance:.0%}")
    axis.set_yticks(places, shown)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set(xlim=(-0.01, 1.01), xticks=[0, 0.25, 0.5, 0.75, 1])
    axis.set_xlabel("share of the clips; line: 95 % interval")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    axis.set_title(wrapped(title, 44), loc="left", color=INK, fontsize=10, pad=22)
    _save(figure, path)


def plot_calibration(path: Path, curves: dict[str, list[dict]], title: str) -> None:
    """How often predictions of each confidence are right, with intervals: {name: points}."""
    figure, axis = _figure(1, 1, (4.8, 4.8))
    axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=1)
    for (name, points), color, shift in zip(curves.items(), (TRAIN, VAL), (-1, 1), strict=False):
        confidence = [row["confidence"] + 0.004 * shift for row in points]
        accuracy = [row["accuracy"] for row in points]
        ranges = zip(*(row["interval"] for row in points), strict=True)
        axis.plot(confidence, accuracy, "o", color=color, label=name, ms=6)
        axis.vlines(confidence, *ranges, color=color, lw=1.5, alpha=0.6)
    axis.set(xlabel="confidence of the prediction", ylabel="share that is right")
    axis.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    _save(figure, path)


def corruption_png(curves: dict[str, list[tuple]], chance: float) -> bytes:
    """Accuracy by how far an input is corrupted: {title: [(level, share, (low, high))]}."""
    figure, axes = _figure(1, len(curves), (3.6 * len(curves) + 0.4, 3.2))
    panels = list(axes.flat) if len(curves) > 1 else [axes]
    for axis, (title, rows) in zip(panels, curves.items(), strict=True):
        levels, values, ranges = zip(*rows, strict=True)
        axis.fill_between(range(len(levels)), *zip(*ranges, strict=True), color=TRAIN, alpha=0.3)
        axis.plot(values, "o-", color=INK, ms=4)
        axis.axhline(chance, color=VAL, lw=1, ls="--")
        axis.set_xticks(range(len(levels)), levels)
        axis.set(ylim=(-0.02, 1.02), xlabel=title, ylabel="accuracy")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return png(figure)


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
    """The figure with its words as they are: in fonts that have their letters; dollars make no
    formula, and what is no UTF-8 in a file's name stands for itself."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    for axes in figure.axes:  # names of ticks are set anew when they are drawn
        for axis in (axes.xaxis, axes.yaxis):
            names = axis.get_major_formatter()
            if isinstance(names, FixedFormatter):
                names.seq = [drawable(name)[0] for name in names.seq]
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        words, fonts = drawable(text.get_text().encode(errors="backslashreplace").decode())
        text.set_text(words)
        if fonts:
            text.set_family([*text.get_family(), *fonts])
    return figure


def png(figure: Any, dpi: int = 150) -> bytes:
    picture = io.BytesIO()
    literal(figure).savefig(picture, format="png", dpi=dpi)
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
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
        axis.plot(places, values, "o", color=TRAIN, markersize=5)
        axis.plot([list(places)[best]], [values[best]], "o", color=VAL, markersize=8)
        if name is not None:
            axis.set(xlabel=name)
    for axis in axes[len(names) + 1 :]:
        axis.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    return png(figure)
