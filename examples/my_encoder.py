"""An encoder of one's own in one short file: how fast and how evenly somebody speaks.

    python preprocess.py ... --encoder rhythm=speech:file:examples/my_encoder.py,dtype=float32
    python train.py --mode multimodal --inputs speech,rhythm --exp_name first
    python predict.py clip.mp4 --checkpoints RUN --encoder rhythm=examples/my_encoder.py

`load` is called once and returns the function that is called for each clip. Replace its body by
whatever encodes yours: any package, any weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE, WINDOW = 16_000, 400  # Hz, samples (25 ms)


def load(settings: dict[str, str], device: str) -> Callable[[np.ndarray], np.ndarray]:
    """`settings`: what --encoder said; `device`: cpu or cuda.

    The function takes what settings["input"] names of one clip: speech (N,) float32 at 16 kHz, face
    crops (T, S, S, 3) uint8, or its words as a string. It returns (D,), (T, D) or (layers, T, D).
    """

    def rhythm(speech: np.ndarray) -> np.ndarray:
        whole = len(speech) // WINDOW * WINDOW
        level = speech[:whole].reshape(-1, WINDOW).std(axis=1) + 1e-6  # (T,)
        loud = level > 0.3 * level.max()
        bursts = np.flatnonzero(np.diff(loud.astype(int)) == 1)
        gaps = np.diff(bursts) * WINDOW / RATE if len(bursts) > 2 else np.zeros(1)
        per_second = len(bursts) * RATE / max(1, len(speech))
        return np.array([per_second, gaps.mean(), gaps.std(), loud.mean(), np.log(level).std()])

    return rhythm
