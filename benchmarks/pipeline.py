"""demo_run/ -> docs/pipeline.png: what each step of the pipeline makes of one clip.

python demo.py && python -m benchmarks.pipeline
"""

from __future__ import annotations

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
from utils.files import write_bytes
from utils.plots import INK, blank_figure, png

SOFT = "#8aa4c8"
PICTURE = Path(__file__).parent.parent / "docs" / "pipeline.png"


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_run")
    manifest = pd.read_csv(run / "features" / "manifest.csv", dtype=str, keep_default_na=False)
    row = manifest[(manifest["split"] == "val") & (manifest["emotion"] == "sur")].iloc[1]
    media = run / "raw" / row["media"]
    times = sample_times(float(row["speech_start"]), float(row["speech_end"]), 10)[[1, 4, 7]]
    frames = np.concatenate([frame for _, frame in frames_at(media, times)], axis=1)
    folder = run / "features" / "val"
    crops = np.load(folder / "video" / f"{row['clip_id']}.npy")[[1, 3, 4, 5, 7]][:4]
    log_mel = np.load(folder / "speech" / f"{row['clip_id']}.npy")
    words = np.load(folder / "text" / f"{row['clip_id']}.npz")["word_embed"]
    answers = pd.read_csv(run / "raw" / "answers.csv", dtype=str).set_index("FileID")
    sheet = (run / "submission-seed42" / "test1_submission.csv").read_text().splitlines()[:6]

    figure = blank_figure((12, 5.4))

    def panel(box: tuple, title: str, picture: np.ndarray | None = None, **options) -> Any:
        axis = figure.add_axes(box)
        axis.set_title(title, loc="left", fontsize=9, color=INK)
        axis.set_xticks([])
        axis.set_yticks([])
        if picture is not None:
            axis.imshow(picture, **{"aspect": "auto", **options})
        return axis

    panel((0.01, 0.68, 0.27, 0.2), "raw clip: picture", frames, aspect="equal")
    wave = read_mono(media).wave
    panel((0.01, 0.37, 0.27, 0.2), "sound").plot(wave, color=SOFT, linewidth=0.5)
    text = panel((0.01, 0.09, 0.27, 0.17), "words")
    text.text(0.5, 0.5, f"“{answers.loc[row['clip_id'], 'transcript']}”", ha="center", fontsize=11)
    faces = np.concatenate(crops, axis=1)
    panel((0.36, 0.68, 0.3, 0.2), "video/  face crops (T, S, S, 3)", faces, aspect="equal")
    mel = {"origin": "lower", "cmap": "magma"}
    panel((0.36, 0.37, 0.3, 0.2), "speech/  log-mel (128, T)", log_mel, **mel)
    panel((0.36, 0.09, 0.3, 0.17), "text/  word vectors (L, 200)", words, cmap="coolwarm")
    for y, encoder in ((0.8, "CLSTM"), (0.47, "AttnCNN"), (0.175, "Transformer")):
        figure.text(0.74, y, encoder, ha="center", va="center", fontsize=11, color=INK)
        arrow(figure, (0.285, y), (0.35, y))
        arrow(figure, (0.665, y), (0.695, y))
        arrow(figure, (0.79, y), (0.82, 0.47 + 0.12 * (y - 0.47)))
    figure.text(0.845, 0.47, "fusion", ha="center", va="center", fontsize=11, color=INK)
    arrow(figure, (0.873, 0.47), (0.895, 0.47))
    figure.text(0.9, 0.47, "\n".join([*sheet, "…"]), va="center", family="monospace", fontsize=9)
    for x, script in ((0.32, "preprocess.py"), (0.74, "train.py"), (0.915, "make_submission.py")):
        figure.text(x, 0.965, script, ha="center", fontsize=11, weight="bold", color=INK)
    figure.text(0.01, 0.015, "generated demo clip", fontsize=8, color="#777777")
    write_bytes(PICTURE, png(figure))
    print(PICTURE)


def arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": SOFT, "linewidth": 1.5}
    figure.add_artist(FancyArrowPatch(start, end, transform=figure.transFigure, **style))


if __name__ == "__main__":
    main()
