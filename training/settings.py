"""What a setting of a training is, and those that belong to no single modality."""

from __future__ import annotations

from typing import Any, NamedTuple

from utils.config import boolean, ranged


class Setting(NamedTuple):
    """A flag of train.py: its default, what reads it (or the names it may have), its help, and the
    group of flags that it stands in."""

    default: Any
    kind: Any
    help: str
    group: str


GROUPS = ("data", "model", "optimization", "objective", "augmentation", "long runs")
SHARE = ranged(float, 0, 1)

SETTINGS = {
    "inputs": Setting(None, str, "of --mode multimodal: comma list, custom features too", "data"),
    "batch_size": Setting(None, ranged(int, 1), "clips per step", "data"),
    "feature_frames": Setting(
        64, ranged(int, 1), "rows of a custom feature (T, D); 1: one vector", "data"
    ),
    "seed": Setting(
        42, ranged(int, 0, 2**32 - 1), "of weights, order, augmentation and dropout", "data"
    ),
    "fusion": Setting(
        "concat", str, "concat (recipe), gated, attention, crossattention, late", "model"
    ),
    "pooling": Setting(
        "attention", str, "of sequences: attention (recipe), relation, mean", "model"
    ),
    "pretrained": Setting("none", str, "backbones: none, hub (ImageNet), FILE or FOLDER", "model"),
    "freeze_backbone": Setting(False, boolean, "True: the backbones stay as they are", "model"),
    "learning_rate": Setting(
        None, ranged(float, 1e-9, 100), "at the start of the schedule", "optimization"
    ),
    "n_epoch": Setting(None, ranged(int, 1), "passes over the training clips", "optimization"),
    "optim": Setting(
        "ranger", str, "ranger (gradients centralized), sgd (Nesterov), adamw", "optimization"
    ),
    "schedule": Setting("cosine", str, "cosine, step (x 0.1 at half), constant", "optimization"),
    "warmup": Setting(0.0, ranged(float, 0), "epochs of linear warm-up", "optimization"),
    "weight_decay": Setting(5e-5, ranged(float, 0, 10), "of the optimizer", "optimization"),
    "clip_norm": Setting(0.0, ranged(float, 0), "longest gradient (norm); 0: any", "optimization"),
    "grad_accumulation": Setting(
        1, ranged(int, 1), "parts of a batch, one after the other", "optimization"
    ),
    "ema": Setting(
        0.0, ranged(float, 0, 0.99999), "decay of mean weights to validate; 0: off", "optimization"
    ),
    "amp": Setting(False, boolean, "half precision; never on a CPU unless given", "optimization"),
    "loss": Setting("cross_entropy", str, "by name, see training/losses.py", "objective"),
    "label_smoothing": Setting(
        0.1, ranged(float, 0, 0.999), "probability spread over all classes", "objective"
    ),
    "class_weights": Setting(
        "none", ("none", "sqrt", "balanced"), "balanced: classes count alike", "objective"
    ),
    "lam": Setting(0.0, ranged(float, 0), "weight of the other heads' mean loss", "objective"),
    "augment": Setting(
        True, boolean, "random crops, masks, flips, light, rotation", "augmentation"
    ),
    "mixup_prob": Setting(0.0, SHARE, "share of the batches with mixup", "augmentation"),
    "mixup_alpha": Setting(
        1.0, ranged(float, 1e-6), "mixing ratio ~ Beta(alpha, alpha)", "augmentation"
    ),
    "cutmix_prob": Setting(0.0, SHARE, "share of the batches with cutmix", "augmentation"),
    "cutmix_beta": Setting(
        1.0, ranged(float, 1e-6), "share kept ~ Beta(beta, beta)", "augmentation"
    ),
    "modality_dropout": Setting(
        0.0, ranged(float, 0, 0.99), "share of inputs left out of fusion, per clip", "augmentation"
    ),
    "patience": Setting(
        0, ranged(int, 0), "validations without a better one, then stop; 0: never", "long runs"
    ),
    "eval_step": Setting(1, ranged(int, 1), "epochs between validations", "long runs"),
}
