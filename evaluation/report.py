"""An evaluation as plain data -> a folder of numbers, pictures, and one web page that holds all."""

from __future__ import annotations

import base64
import re
from datetime import date
from pathlib import Path
from typing import Any

from evaluation.corruptions import CORRUPTIONS
from training.metrics import commonest
from training.modalities import MODALITIES, modality, titles
from utils.errors import counted, joined
from utils.files import write_bytes, write_csv, write_json, write_text
from utils.plots import (
    DENSE,
    MEASURED,
    corruption_png,
    plot_bars,
    plot_calibration,
    plot_confusion,
    training_png,
)

PICTURES = ("confusion", "classes", "calibration", "inputs", "robustness", "trainings")


def write_report(folder: Path, report: dict[str, Any], predictions: Any) -> None:
    """metrics.json, predictions.csv, the pictures, and index.html, which needs no other file."""
    import jinja2

    for name in PICTURES:  # of an earlier report that had more of them
        (folder / f"{name}.png").unlink(missing_ok=True)
    write_json(folder / "metrics.json", report)
    write_csv(folder / "predictions.csv", predictions, for_people=True)
    main = report["systems"][-1]
    draw(folder, main, report["classes"])
    chance, curves = 1 / len(report["classes"]), []
    if runs := trainings(report["checkpoints"]):
        write_bytes(folder / "trainings.png", training_png(runs, chance))
        curves = [embedded(training_png(runs, chance, (column,))) for column in MEASURED]
    files = [folder / f"{name}.png" for name in PICTURES]
    pictures: dict[str, Any] = {p.stem: embedded(p.read_bytes()) for p in files if p.is_file()}
    panels = [corruption_picture(title, rows, main) for title, rows in corrupted(main).items()]
    page = Path(__file__).with_name("report.html").read_text("utf-8")
    # autoescape: names of folders, classes and clips can hold HTML
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"titles": titles, "short": short, "together": together}
    environment.filters["whole"] = whole_flags
    number, usual = commonest(row["support"] for row in main["per_class"].values())
    shown: dict[str, Any] = {"pictures": pictures, "panels": panels, "curves": curves}
    shown["dense"] = DENSE
    shown["commonest"] = [*main["per_class"]][number], usual
    today = date.today()
    shown |= {"title": title_of(report), "date": f"{today.day} {today:%B %Y}"}
    html = environment.from_string(page).render(report, main=main, **shown)
    write_text(folder / "index.html", html + "\n")


def title_of(report: dict[str, Any]) -> str:
    """What the report is about, in words."""
    *runs, main = report["systems"]
    if main["alike"]:
        together = f" by {len(runs)} runs together" if runs else ""
        seen = [f"the {modality(n).title}" if n in MODALITIES else n for n in main["inputs"]]
        return f"How well emotions are recognised from {joined(seen)}{together}"
    names = [short(each["name"]) for each in runs]
    if len(names) > 4:
        return f"Which of {len(names)} models recognises emotions best?"
    return f"Which recognises emotions best: {', '.join(names[:-1])} or {names[-1]}?"


def short(name: str) -> str:
    """The last two folders of a run: multimodal/first."""
    return "/".join(Path(name).parts[-2:])


def whole_flags(text: str) -> Any:
    """HTML in which no line ends within a flag, as behind the hyphens of --flag."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"--\w+", r'<span class="whole">\g<0></span>', str(escape(text))))


def embedded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def draw(folder: Path, main: dict[str, Any], classes: list[str]) -> None:
    import numpy as np

    name = short(main["name"]) if main["alike"] else "all together"
    chance, title = 1 / len(classes), f"{name}: {main['clips']} clips"
    plot_confusion(folder / "confusion.png", np.array(main["confusion"]), classes, title)
    recalls = [(k, v["recall"], v["recall_interval"]) for k, v in main["per_class"].items()]
    plot_bars(folder / "classes.png", recalls, "recall of each class", chance)
    calibration = main["calibration"]
    curves = {
        f"{label}: ECE {calibration[key]['ece']:.3f}": calibration[key]["curve"]
        for label, key in (("as it is", "before"), ("with temperature", "after"))
    }
    plot_calibration(folder / "calibration.png", curves, title)
    if main["alike"] and len(conditions(main)["inputs"]) > 1:
        title = f"accuracy from these inputs alone, by the label {main['label']}"
        plot_bars(folder / "inputs.png", conditions(main)["inputs"], title, chance)
    if curves := corrupted(main):
        write_bytes(folder / "robustness.png", corruption_png(curves, chance))


def trainings(checkpoints: list[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """{run: the rows of each metrics.csv in its folder, or in those of its folds}; none of a
    checkpoint that lies somewhere without one."""
    import pandas as pd

    rows_of: dict[str, list] = {}
    for checkpoint in checkpoints:
        folder = Path(checkpoint["path"]).parent
        if (folder / "metrics.csv").is_file():
            table = pd.read_csv(folder / "metrics.csv").astype(object)
            run = folder.parent if folder.name.startswith("fold_") else folder
            # an epoch without validation has empty cells: None, which a curve leaves out
            rows = table.where(table.notna(), None).to_dict("records")
            rows_of.setdefault(short(str(run)), []).append(rows)
    return rows_of


def conditions(main: dict[str, Any]) -> dict[str, list[tuple]]:
    """{inputs, or the modality that is corrupted: [(level, accuracy, its interval)]}."""
    rows: dict[str, list] = {}
    for each in filter(lambda each: each["clips"], main["conditions"]):
        share = each["measures"]["accuracy"], each["intervals"]["accuracy"]
        level = str(each["level"])
        if each["input"] == "inputs":
            level = together(level)
            if each["clips"] < main["clips"]:  # the others have none of these inputs
                level += f" ({counted(each['clips'], 'clip')})"
        rows.setdefault(each["input"], []).append((level, *share))
    return rows


def corrupted(main: dict[str, Any]) -> dict[str, list[tuple]]:
    """{title of an axis: rows of `conditions`, the clean one first}."""
    rows = conditions(main)
    clean = ("none", *rows.pop("inputs")[0][1:])  # the first condition is that of all inputs
    return {axis_of(name): [clean, *each] for name, each in rows.items()}


def corruption_picture(title: str, rows: list[tuple], main: dict[str, Any]) -> str:
    """One corruption alone: side by side they could not be read on a phone."""
    return embedded(corruption_png({title: rows}, 1 / len(main["confusion"])))


def together(level: str) -> str:
    """speech+face -> voice + face."""
    return (
        " + ".join(modality(name).title for name in level.split("+")) if level != "all" else level
    )


def axis_of(name: str) -> str:
    row = modality(name)
    return f"{row.title}: {CORRUPTIONS[row.corruption].axis}"
