"""An evaluation as plain data -> a folder of numbers, pictures, and one web page that holds all."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from evaluation.corruptions import CORRUPTIONS
from training.modalities import modality
from utils.files import write_csv, write_json, write_text
from utils.plots import plot_bars, plot_calibration, plot_confusion, plot_corruptions

PICTURES = ("confusion", "classes", "calibration", "inputs", "robustness")


def write_report(folder: Path, report: dict[str, Any], predictions: Any) -> None:
    """metrics.json, predictions.csv, the pictures, and index.html, which needs no other file."""
    import jinja2

    for name in PICTURES:  # of an earlier report that had more of them
        (folder / f"{name}.png").unlink(missing_ok=True)
    write_json(folder / "metrics.json", report)
    write_csv(folder / "predictions.csv", predictions, for_people=True)
    main = report["systems"][-1]
    draw(folder, main, report["classes"])
    files = [folder / f"{name}.png" for name in PICTURES]
    pictures = {p.stem: base64.b64encode(p.read_bytes()).decode() for p in files if p.is_file()}
    page = Path(__file__).with_name("report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    support = {name: each["support"] / main["clips"] for name, each in main["per_class"].items()}
    commonest = max(support.items(), key=lambda item: item[1])
    common = os.path.commonpath([each["name"] for each in report["systems"][:-1]] or ["."])
    shown = {"pictures": pictures, "commonest": commonest, "common": f"{common}/"}
    html = environment.from_string(page).render(report, main=main, **shown)
    write_text(folder / "index.html", html + "\n")


def draw(folder: Path, main: dict[str, Any], classes: list[str]) -> None:
    import numpy as np

    chance, title = 1 / len(classes), f"{main['clips']} clips"
    plot_confusion(folder / "confusion.png", np.array(main["confusion"]), classes, title)
    recalls = [(k, v["recall"], v["recall_interval"]) for k, v in main["per_class"].items()]
    plot_bars(folder / "classes.png", recalls, "recall of each class", chance)
    calibration = main["calibration"]
    curves = {
        f"{label}: ECE {calibration[key]['ece']:.3f}": calibration[key]["curve"]
        for label, key in (("as it is", "before"), ("with temperature", "after"))
    }
    plot_calibration(folder / "calibration.png", curves, title)
    rows: dict[str, list] = {}
    for each in filter(lambda each: each["clips"], main["conditions"]):
        share = each["measures"]["accuracy"], each["intervals"]["accuracy"]
        rows.setdefault(each["input"], []).append((str(each["level"]), *share))
    inputs = rows.pop("inputs")
    if len(main["conditions"]) > 1:
        plot_bars(folder / "inputs.png", inputs, "accuracy from these inputs alone", chance)
    if rows:
        curves = {axis_of(k): [("none", *inputs[0][1:]), *each] for k, each in rows.items()}
        plot_corruptions(folder / "robustness.png", curves, chance)


def axis_of(name: str) -> str:
    row = modality(name)
    return f"{row.title}: {CORRUPTIONS[row.corruption].axis}"
