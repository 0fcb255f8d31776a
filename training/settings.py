"""What a setting of a training is, and those that belong to no single modality."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any, NamedTuple

from utils.config import boolean, ranged


class Setting(NamedTuple):
    """A flag of train.py: its default, what reads it (or the names it may have), its help, and the
    group of flags that it stands in."""

    default: Any
    kind: Any
    help: str
    group: str

    def allows(self, value: Any) -> bool:
        """Whether this can be its value in a run: as a flag gives it, or its default."""
        if value == self.default:
            return True
        if isinstance(self.kind, tuple):
            return value in self.kind
        try:
            read = self.kind(str(value))
            return read == value and isinstance(read, bool) == isinstance(value, bool)
        except (ValueError, ArgumentTypeError):
            return False


def grouped(tables: dict[str, dict[str, tuple]]) -> dict[str, Setting]:
    """{group: {name: (default, kind, help)}} -> {name: Setting}."""
    return {
        name: Setting(default, kind, help, group)
        for group, rows in tables.items()
        for name, (default, kind, help) in rows.items()
    }


GROUPS = ("data", "model", "optimization", "objective", "augmentation", "long runs")
WHOLE, POSITIVE, SHARE = ranged(int, 1), ranged(float, 1e-6), ranged(float, 0, 1)
NOT_NEGATIVE, SEED = ranged(float, 0), ranged(int, 0, 2**32 - 1)

DATA = {
    "inputs": (None, str, "of --mode multimodal: comma list, custom features too"),
    "batch_size": (None, WHOLE, "clips per step, at most"),
    "feature_frames": (
        64,
        ranged(int, 1, 100_000),
        "rows of a custom feature (T, D); 1: one vector",
    ),
    "standardize": ("none", ("none", "speaker"), "vectors: by all clips of the speaker"),
    "seed": (42, SEED, "of weights, order, augmentation and dropout"),
}
MODEL = {
    "fusion": ("concat", str, "concat (recipe), gated, attention, crossattention, late"),
    "pooling": ("attention", str, "of tokens, not of words: attention, relation, mean, stats"),
    "feature_encoder": ("lstm", ("lstm", "linear", "none"), "of custom features"),
    "pretrained": ("none", str, "backbones: none, hub (ImageNet), FILE or FOLDER"),
    "freeze_backbone": (False, boolean, "True: the backbones stay as they are"),
}
OPTIMIZATION = {
    "learning_rate": (None, ranged(float, 1e-9, 100), "at the start; also --lr"),
    "n_epoch": (None, WHOLE, "passes over the training clips"),
    "optim": ("ranger", str, "ranger, sgd (Nesterov), adamw"),
    "schedule": ("cosine", str, "cosine, step (x 0.1 at half), constant"),
    "warmup": (0.0, NOT_NEGATIVE, "epochs of linear warm-up"),
    "weight_decay": (5e-5, ranged(float, 0, 10), "of the optimizer"),
    "clip_norm": (0.0, NOT_NEGATIVE, "longest gradient (norm); 0: any"),
    "grad_accumulation": (1, WHOLE, "parts of a batch; batch norm sees each by itself"),
    "ema": (0.0, ranged(float, 0, 0.99999), "decay of mean weights to validate; 0: off"),
    "amp": (False, boolean, "half precision (on a CPU: False)"),
}
OBJECTIVE = {
    "loss": ("cross_entropy", str, "by name, see training/losses.py"),
    "label_smoothing": (0.1, ranged(float, 0, 0.999), "probability spread over all classes"),
    "class_weights": ("none", ("none", "sqrt", "balanced"), "with balanced all count alike"),
    "lam": (0.0, NOT_NEGATIVE, "weight of the other heads' mean loss"),
}
AUGMENTATION = {
    "augment": (True, boolean, "random crops, masks, flips, light, rotation"),
    "mixup_prob": (0.0, SHARE, "share of the batches with mixup"),
    "mixup_alpha": (1.0, POSITIVE, "mixing ratio ~ Beta(alpha, alpha)"),
    "cutmix_prob": (0.0, SHARE, "share of the batches with cutmix"),
    "cutmix_beta": (1.0, POSITIVE, "share kept ~ Beta(beta, beta)"),
    "modality_dropout": (0.0, ranged(float, 0, 0.99), "share of inputs left out of fusion"),
}
LONG_RUNS = {
    "patience": (0, ranged(int, 0), "validations without a better one, then stop; 0: never"),
    "eval_step": (1, WHOLE, "epochs between validations"),
}
TABLES = (DATA, MODEL, OPTIMIZATION, OBJECTIVE, AUGMENTATION, LONG_RUNS)
SETTINGS = grouped(dict(zip(GROUPS, TABLES, strict=True)))
