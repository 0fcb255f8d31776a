"""demo_run/ -> docs/pipeline.png: what each step of the pipeline makes of one clip, and the three
commands that use the trained models.

python demo.py && python -m benchmarks.pipeline
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from extract.audio import read_mono
from extract.faces import sample_times
from extract.media import frames_at
from inference.predictor import Predictor
from inference.wording import class_names, percent
from utils.files import write_bytes
from utils.plots import INK, blank_figure, png

SOFT = "#8aa4c8"
PICTURE = Path(__file__).parent.parent / "docs" / "pipeline.png"
MODELS = {"speech": "voice", "face": "face", "text": "words", "multimodal": "all"}
SHOWN = 4  # classes of an answer, lines of a sheet


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_run")
    manifest = pd.read_csv(run / "features" / "manifest.csv", dtype=str, keep_default_na=False)
    row = manifest[(manifest["split"] == "val") & (manifest["emotion"] == "sur")].iloc[1]
    answers = pd.read_csv(run / "raw" / "answers.csv", dtype=str).set_index("FileID")
    words = answers.loc[row["clip_id"], "transcript"]
    figure = blank_figure((12, 5.4))
    draw_clip(figure, run, row, words)
    draw_features(figure, run / "features" / "val", row["clip_id"])
    draw_model(figure)
    draw_scores(figure, run / "report-seed42")
    draw_answer(figure, run, run / "raw" / row["media"], words)
    draw_sheet(figure, run / "submission-seed42" / "test1_submission.csv")
    for x, script in ((0.265, "preprocess.py"), (0.645, "train.py")):
        figure.text(x, 0.965, script, ha="center", fontsize=11, weight="bold", color=INK)
    figure.text(0.01, 0.015, "generated demo clip", fontsize=8, color="#777777")
    write_bytes(PICTURE, png(figure))
    print(PICTURE)


def draw_clip(figure: Figure, run: Path, row: pd.Series, words: str) -> None:
    media = run / "raw" / row["media"]
    times = sample_times(float(row["speech_start"]), float(row["speech_end"]), 10)[[1, 4, 7]]
    frames = np.concatenate([frame for _, frame in frames_at(media, times)], axis=1)
    panel(figure, (0.01, 0.68, 0.23, 0.2), "raw clip: picture", frames, aspect="equal")
    wave = read_mono(media).wave
    panel(figure, (0.01, 0.37, 0.23, 0.2), "sound").plot(wave, color=SOFT, linewidth=0.5)
    text = panel(figure, (0.01, 0.09, 0.23, 0.17), "words")
    text.text(0.5, 0.5, f"“{words}”", ha="center", va="center", fontsize=10)


def draw_features(figure: Figure, folder: Path, clip: str) -> None:
    crops = np.load(folder / "video" / f"{clip}.npy")[[1, 3, 4, 5]]
    log_mel = np.load(folder / "speech" / f"{clip}.npy")
    vectors = np.load(folder / "text" / f"{clip}.npz")["word_embed"]
    faces, mel = np.concatenate(crops, axis=1), {"origin": "lower", "cmap": "magma"}
    title = "video/  face crops (T, S, S, 3)"
    panel(figure, (0.295, 0.68, 0.26, 0.2), title, faces, aspect="equal")
    panel(figure, (0.295, 0.37, 0.26, 0.2), "speech/  log-mel (128, T)", log_mel, **mel)
    title = "text/  word vectors (L, 200)"
    panel(figure, (0.295, 0.09, 0.26, 0.17), title, vectors, cmap="coolwarm")


def draw_model(figure: Figure) -> None:
    for y, encoder in ((0.78, "CLSTM"), (0.47, "AttnCNN"), (0.175, "Transformer")):
        figure.text(0.625, y, encoder, ha="center", va="center", fontsize=10.5, color=INK)
        arrow(figure, (0.243, y), (0.29, y))
        arrow(figure, (0.558, y), (0.585, y))
        arrow(figure, (0.668, y), (0.692, 0.47 + 0.12 * (y - 0.47)))
        arrow(figure, (0.745, 0.47 + 0.12 * (y - 0.47)), (0.775, y))
    figure.text(0.716, 0.47, "fusion", ha="center", va="center", fontsize=10.5, color=INK)


def draw_scores(figure: Figure, report: Path) -> None:
    """The accuracy of each model on the validation clips, with its interval: no figures, which
    differ a little from machine to machine."""
    systems = json.loads((report / "metrics.json").read_text("utf-8"))["systems"]
    shares, ends = [], []
    for mode in MODELS:
        (found,) = (each for each in systems if mode in Path(each["name"]).parts)
        shares.append(found["measures"]["accuracy"])
        ends.append(found["intervals"]["accuracy"])
    title = "accuracy of each model [95 %]"
    axis = bars(figure, (0.84, 0.68, 0.1, 0.2), "evaluate.py", title, MODELS.values(), shares)
    axis.set_xticks((0, 1), ("0", "100 %"), fontsize=8, color=INK)
    low, high = np.array(ends).T
    errors = np.clip([shares - low, high - shares], 0, None)
    axis.errorbar(shares, range(len(shares)), xerr=errors, fmt="none", ecolor=INK, elinewidth=1)


def draw_answer(figure: Figure, run: Path, media: Path, words: str) -> None:
    """What the fused model says of the clip."""
    known = run / "raw" / "word_vectors.npz"
    predictor = Predictor([run / "logs" / "multimodal" / "demo-seed42"], word_vectors=known)
    answer = predictor(media, text=words)
    best = np.argsort(-answer.probabilities, kind="stable")[:SHOWN]
    names = [class_names(answer.classes)[place] for place in best]
    shares, box = answer.probabilities[best], (0.84, 0.37, 0.1, 0.2)
    axis = bars(figure, box, "predict.py", "the answer for this clip", names, shares)
    for place, share in enumerate(shares):
        axis.text(1.05, place, percent(share), va="center", fontsize=9, color=INK)


def draw_sheet(figure: Figure, sheet: Path) -> None:
    lines = [*sheet.read_text("utf-8").splitlines()[: SHOWN + 1], "…"]
    figure.text(0.785, 0.285, "make_submission.py", fontsize=11, weight="bold", color=INK)
    figure.text(0.785, 0.25, "a sheet for the challenge", fontsize=9, color=INK)
    figure.text(0.785, 0.235, "\n".join(lines), va="top", family="monospace", fontsize=8.5)


def panel(
    figure: Figure, box: tuple, title: str, picture: np.ndarray | None = None, **options: Any
) -> Any:
    axis = figure.add_axes(box)
    axis.set_title(title, loc="left", fontsize=9, color=INK)
    axis.set_xticks([])
    axis.set_yticks([])
    if picture is not None:
        axis.imshow(picture, **{"aspect": "auto", **options})
    return axis


def bars(figure: Figure, box: tuple, script: str, title: str, names: Any, shares: Any) -> Any:
    """Shares of 1 as bars, below the script that makes them."""
    _, bottom, _, height = box
    figure.text(0.785, bottom + height + 0.045, script, fontsize=11, weight="bold", color=INK)
    figure.text(0.785, bottom + height + 0.01, title, fontsize=9, color=INK)
    axis = figure.add_axes(box)
    axis.barh(range(len(shares)), shares, color=SOFT, height=0.6)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.set_yticks(range(len(shares)), names, fontsize=9, color=INK)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return axis


def arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": SOFT, "linewidth": 1.5}
    figure.add_artist(FancyArrowPatch(start, end, transform=figure.transFigure, **style))


if __name__ == "__main__":
    main()
