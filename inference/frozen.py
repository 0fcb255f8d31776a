"""A run of train.py as a pretrained encoder: what its network makes of a clip, before it decides.

    python preprocess.py ... --encoder voice=speech:run:logs/speech/mine,pool=stats
    python train.py --mode multimodal --inputs voice --standardize speaker --exp_name small

Few clips of one's own teach a small model on top of these numbers as much as they teach the network
itself, in a fraction of the time (docs/experiments.md). extract/encoders.py knows nothing of models
and trainings: who loads an encoder of a run calls `register` before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from extract.audio import denoise, log_mel_spectrogram
from extract.encoders import LIBRARIES, Encoder, weights_of
from training.checkpoint import find_checkpoint, load_checkpoint, restore_model
from training.data import to_device
from training.modalities import modality
from training.views import row_with_faces
from utils.errors import UsageError

COLUMNS, CROPS = 1875, 64  # of a log-mel (30 s), of pictures: so many the network sees at once


def register() -> None:
    """Have extract/encoders.py open runs with `open_run`."""
    LIBRARIES["run"] = LIBRARIES["run"]._replace(open=open_run)


def open_run(settings: dict[str, str], device: str) -> Encoder:
    """Its function: wave (N,) or crops (T, S, S, 3) of one clip -> tokens (T', D) float32, of crops
    the mean with those of their mirror image.

    `settings["source"]`: a run folder or a .pth file. UsageError for several checkpoints, and for a
    run that does not read `settings["input"]`.
    """
    source, name = Path(settings["source"]), settings["input"]
    path = find_checkpoint(source)
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint, path).eval().to(device)
    if name not in model.encoders:
        raise UsageError(f"{path} reads {', '.join(model.encoders)}, not the {name}")
    row = modality(name)
    made = checkpoint["features_config"][row.folder]
    config = {
        key: checkpoint["config"].get(key, each.default) for key, each in row.settings.items()
    }

    pictures = row.picture == "frames"

    @torch.inference_mode()
    def tokens_of(feature: np.ndarray, steps: int) -> np.ndarray:
        whole = dict.fromkeys(row.lengths, max(steps, row.shortest))
        known = row_with_faces(steps)  # encoders see crops with a face alone
        view = row.view(feature, known, config | whole, np.random.default_rng(0), False)
        inputs = to_device({name: [torch.from_numpy(each)[None] for each in view]}, device)
        ((x, mask),) = model.encode(inputs).values()
        return x[mask].float().cpu().numpy()

    def in_pieces(feature: np.ndarray) -> np.ndarray:
        axis, most = (0, CROPS) if pictures else (1, COLUMNS)
        pieces = np.array_split(feature, -(-feature.shape[axis] // most), axis)
        return np.concatenate([tokens_of(piece, piece.shape[axis]) for piece in pieces])

    def encode(seen: np.ndarray) -> np.ndarray:
        feature = feature_of(seen, made)
        tokens = in_pieces(feature)
        return (tokens + in_pieces(feature[:, :, ::-1])) / 2 if pictures else tokens

    fixed = {key: value for key, value in config.items() if key not in row.lengths}
    about = {"made": made, "settings": fixed}
    if pictures:
        about["mirrored"] = True
    return Encoder(encode, "", weights_of(model.encoders[name], about))


def feature_of(seen: np.ndarray, made: dict[str, Any]) -> np.ndarray:
    """The log-mel of a wave, or the crops in the size that the run knows."""
    if seen.ndim == 1:
        return log_mel_spectrogram(denoise(seen), made)
    size = (made["face_size"],) * 2
    return np.stack([cv2.resize(crop, size, interpolation=cv2.INTER_AREA) for crop in seen])
