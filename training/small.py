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
from training.modalities import MODALITIES, modality
from training.tasks import task_of

FEW = 5_000  # training clips below which a hint is due
SEEN = 60_000  # clips that a run sees, each as often as there are epochs
ALL = dict(optim="adamw", weight_decay=0.05, warmup=1.0, amp=False, label_smoothing=0.1)
FUSED: dict[str, Any] = dict(learning_rate=3e-4, batch_size=16, mixup_prob=0.5, ema=0.99)
FROZEN: dict[str, Any] = dict(learning_rate=3e-3, schedule="cosine", warmup=0.0, batch_size=32)
FROZEN |= dict(feature_encoder="none", mixup_prob=1.0)
STEPS, LEAST = 280, 20  # that one layer learns in, and epochs where clips are many


def small_recipe(
    mode: str, features: Features, fold: str | None, inputs: str | None = None
) -> dict[str, Any]:
    """The settings for this mode and these clips; `inputs` as --inputs has them."""
    clips = training_part(features, fold)
    if inputs and not any(modality(name).made_by_preprocess for name in inputs.split(",")):
        n_epoch = max(LEAST, round(STEPS / max(1, len(clips) // FROZEN["batch_size"])))
        return ALL | FROZEN | dict(n_epoch=n_epoch, eval_step=n_epoch)
    settings = ALL | ({} if mode in MODALITIES else FUSED)
    for name in task_of({"mode": mode, "inputs": inputs}).inputs:
        row = modality(name)
        if row.small:
            extraction = features.settings["features"].get(row.folder) or {}
            chosen = row.small(extraction, clips)
            settings |= {k: v for k, v in chosen.items() if name == mode or k in row.settings}
    n_epoch = int(np.clip(round(SEEN / max(1, len(clips))), 8, 100))
    # few clips choose no epoch: only the last is measured
    return settings | dict(n_epoch=n_epoch, eval_step=n_epoch)


def training_part(features: Features, fold: str | None) -> pd.DataFrame:
    """About the clips that a run trains on."""
    table = features.manifest
    if fold is None:
        return table[table["split"] == "train"]
    rows = table[table["split"].isin(("train", "val")) & (table["fold"] != "")]
    return rows if fold == "all" else rows[rows["fold"] != fold]


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
    rows = [row for name in task_of(config).inputs if (row := modality(name)).made_by_preprocess]
    backbones = [config[key] for row in rows for key in row.settings if key.endswith("_backbone")]
    small = all((row or "").startswith("small-") for row in backbones)
    if not (rows and small and knows.get("amx_bf16")):
        return ""
    return "this CPU multiplies bfloat16 in tiles: --amp True takes half to two thirds of the time"
