"""What a corpus of few clips needs in place of the published recipe, which is for 44,370.

    python train.py --mode speech --exp_name first --recipe small

Small networks, inputs as long as the clips, as many epochs as make a few thousand steps, half of
the batches mixed, mean weights. On features of encoders alone (--inputs voice,looks) it is one
linear layer. Flags go first. docs/experiments.md has the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from training.features import Features
from training.modalities import modality
from training.tasks import task_of

FEW = 5_000  # training clips below which a hint is due
SEEN = 60_000  # clips that a run sees, each as often as there are epochs
ALL = dict(optim="adamw", weight_decay=0.05, warmup=1.0, amp=False, label_smoothing=0.1)
MODES: dict[str, dict[str, Any]] = {
    "speech": dict(
        speech_backbone="small-32",
        speech_norm="clip",
        learning_rate=2e-3,
        batch_size=32,
        mixup_prob=0.5,
        mixup_alpha=0.4,
        ema=0.99,
        speech_speed=0.15,
        speech_pitch=4.0,
        speech_contrast=0.2,
        time_warp=0.1,
        frequency_masks=2,
        frequency_width=16,
        time_masks=2,
        time_width=0.1,
    ),
    "face": dict(
        face_lstm=False,
        face_frames=8,
        learning_rate=1e-3,
        batch_size=32,
        cutmix_prob=0.0,
        mixup_prob=0.5,
        mixup_alpha=0.4,
        ema=0.99,
        face_contrast=0.3,
        face_rotation=12.0,
        face_zoom=0.12,
    ),
    "text": dict(
        text_layers=2, text_heads=4, text_width=128, learning_rate=1e-3, batch_size=64, ema=0.998
    ),
    "multimodal": dict(learning_rate=3e-4, batch_size=16, mixup_prob=0.5, ema=0.99),
}
FROZEN: dict[str, Any] = dict(
    feature_encoder="none",
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.0,
    batch_size=32,
    mixup_prob=1.0,
)
STEPS, LEAST = 280, 20  # that one layer learns in, and epochs where clips are many


def small_recipe(
    mode: str, features: Features, fold: str | None, inputs: str | None = None
) -> dict[str, Any]:
    """The settings for this mode and these clips; `inputs` as --inputs has them."""
    rows = training_part(features, fold)
    if inputs and not any(modality(name).made_by_preprocess for name in inputs.split(",")):
        n_epoch = max(LEAST, round(STEPS / max(1, len(rows) // FROZEN["batch_size"])))
        return ALL | FROZEN | dict(n_epoch=n_epoch, eval_step=n_epoch)
    own = ALL | MODES.get(mode, {})
    own["n_epoch"] = int(np.clip(round(SEEN / max(1, len(rows))), 8, 100))
    own["eval_step"] = own["n_epoch"]  # few clips choose no epoch: only the last is measured
    for name in task_of({"mode": mode, "inputs": inputs}).inputs:
        own |= network(name, features, rows)
    return own


def network(name: str, features: Features, rows: pd.DataFrame) -> dict[str, Any]:
    """An input's own settings: its network, what that reads, how training changes it."""
    own = {key: MODES[name][key] for key in modality(name).settings if key in MODES.get(name, {})}
    if name == "speech" and "speech_frames" in rows:
        own["speech_frames"] = columns_of(rows)
    if name == "face":
        size = features.settings["features"].get("video", {}).get("face_size", 160)
        own["face_backbone"] = "small-16" if size < 96 else "small-32"
    return own


def training_part(features: Features, fold: str | None) -> pd.DataFrame:
    """About the clips that a run trains on."""
    table = features.manifest
    if fold is None:
        return table[table["split"] == "train"]
    rows = table[table["split"].isin(("train", "val")) & (table["fold"] != "")]
    return rows if fold == "all" else rows[rows["fold"] != fold]


def columns_of(rows: pd.DataFrame) -> int:
    """Columns of the log-mel that hold 19 of 20 clips whole, in steps of 32."""
    lengths = pd.to_numeric(rows["speech_frames"], errors="coerce").dropna()
    most = np.quantile(lengths, 0.95) if len(lengths) else 400
    return int(np.clip(32 * np.ceil(most / 32), 64, 400))


def hint(mode: str, clips: int) -> str:
    """What to say at the start of a published recipe on few clips; nothing on many."""
    if clips >= FEW:
        return ""
    return (
        f"{clips} training clips are few for the published recipe of {mode}, which is for 44,370: "
        "--recipe small suits them"
    )


def hint_of_tiles(config: dict[str, Any]) -> str:
    """What to say on a CPU where these networks learn quicker in bfloat16; nothing elsewhere."""
    import torch

    knows: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    own = [each for name in task_of(config).inputs if (each := modality(name)).made_by_preprocess]
    backbones = [config[key] for each in own for key in each.settings if key.endswith("_backbone")]
    small = all((each or "").startswith("small-") for each in backbones)
    if not (own and small and knows.get("amx_bf16")):
        return ""
    return "this CPU multiplies bfloat16 in tiles: --amp True takes half to two thirds of the time"
