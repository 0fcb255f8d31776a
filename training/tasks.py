"""The settings of a training, and the modes as rows of a table: inputs, heads, published recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.config import boolean

MODALITY_FOLDERS = {"speech": "speech", "face": "video", "text": "text"}  # below features/<split>/


class Setting(NamedTuple):
    """A flag of train.py: its default, what it takes (a type with a range, or names), its help."""

    default: Any
    kind: Any
    least: float | None
    most: float | None
    help: str

    @property
    def choices(self) -> tuple[str, ...] | None:
        return self.kind if isinstance(self.kind, tuple) else None

    @property
    def allowed(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        names = {int: "a whole number", float: "a number", boolean: "True or False", str: "a name"}
        limits = "" if self.least is None else f" from {self.least:g} to {self.most:g}"
        return names[self.kind] + limits

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        types = {int: int, float: int | float, boolean: bool, str: str}[self.kind]
        if not isinstance(value, types) or (isinstance(value, bool) and self.kind is not boolean):
            return value is None and self.default is None and self.least is None
        return self.least is None or self.least <= value <= self.most


def number(default: float | None, kind: type, least: float, most: float, help: str) -> Setting:
    return Setting(default, kind, least, most, help)


def other(default: Any, kind: Any, help: str) -> Setting:
    return Setting(default, kind, None, None, help)


SETTINGS = {
    "learning_rate": number(None, float, 1e-9, 100, "at the start of the schedule"),
    "batch_size": number(None, int, 1, 1 << 20, "clips per step"),
    "n_epoch": number(None, int, 1, 1 << 20, "passes over the training clips"),
    "optim": other(
        "ranger", ("ranger", "sgd", "adamw"), "ranger centralizes gradients; sgd: Nesterov 0.9"
    ),
    "schedule": other(
        "cosine", ("cosine", "step", "constant"), "to 0 per step; x 0.1 at half; as it is"
    ),
    "warmup": number(0.0, float, 0, 1 << 20, "epochs of linear warm-up"),
    "weight_decay": number(5e-5, float, 0, 10, "of the optimizer"),
    "speech_coeff": number(4, int, 0, 7, "EfficientNet-B0 to B7 for the log-mel"),
    "face_coeff": number(0, int, 0, 7, "EfficientNet-B0 to B7 for the face crops"),
    "speech_backbone": other(None, str, "another trunk for the log-mel, timm:NAME"),
    "face_backbone": other(None, str, "another trunk for the face crops, timm:NAME"),
    "speech_frames": number(400, int, 32, 1 << 16, "columns of the log-mel, 62.5 a second"),
    "face_frames": number(16, int, 1, 1 << 12, "face crops per clip"),
    "max_words": number(38, int, 1, 1 << 14, "words per clip; further ones are not read"),
    "text_layers": number(12, int, 1, 100, "layers of the Transformer"),
    "text_heads": number(8, int, 1, 100, "attention heads of the Transformer"),
    "pretrained": other("none", str, "weights of the trunks: none, hub (ImageNet), FILE or FOLDER"),
    "freeze_backbone": other(False, boolean, "True: the image trunks stay as they are"),
    "augment": other(True, boolean, "random crops, masks, flips, light and rotation"),
    "mixup_prob": number(0.0, float, 0, 1, "share of the batches with mixup"),
    "mixup_alpha": number(1.0, float, 1e-6, 1e6, "mixing ratio ~ Beta(alpha, alpha)"),
    "cutmix_prob": number(0.0, float, 0, 1, "share of the batches with cutmix"),
    "cutmix_beta": number(1.0, float, 1e-6, 1e6, "share kept ~ Beta(beta, beta)"),
    "label_smoothing": number(0.1, float, 0, 0.999, "probability spread over all classes"),
    "lam": number(0.0, float, 0, 1e6, "weight of the other heads' mean loss"),
    "amp": other(False, boolean, "half precision; unless given, never on a CPU"),
    "eval_step": number(1, int, 1, 1 << 20, "epochs between validations"),
    "seed": number(42, int, 0, 2**32 - 1, "of weights, order, augmentation and dropout"),
}


@dataclass(frozen=True)
class Task:
    """`heads`: head -> (modalities it sees, manifest column it learns). The first is the answer."""

    inputs: tuple[str, ...]
    heads: dict[str, tuple[tuple[str, ...], str]]
    recipe: dict[str, Any]  # settings that differ from their default

    @property
    def answer(self) -> str:
        return next(iter(self.heads))

    @property
    def label_columns(self) -> dict[str, str]:
        return {head: column for head, (_, column) in self.heads.items()}


SPEECH, FACE, TEXT = (("speech",), "speech_emotion"), (("face",), "face_emotion"), ("text",)
ALL = ("speech", "face", "text")
TASKS = {
    "speech": Task(
        inputs=("speech",),
        heads={"speech": SPEECH},
        recipe=dict(learning_rate=4e-3, batch_size=256, n_epoch=100, mixup_prob=1.0, amp=True),
    ),
    "face": Task(
        inputs=("face",),
        heads={"face": FACE},
        recipe=dict(learning_rate=4e-3, batch_size=32, n_epoch=20, cutmix_prob=1.0, amp=True),
    ),
    "text": Task(
        inputs=("text",),
        heads={"text": (TEXT, "emotion")},
        recipe=dict(learning_rate=3e-4, batch_size=128, n_epoch=100),
    ),
    "multimodal": Task(
        inputs=ALL,
        heads={"integrated": (ALL, "emotion"), "speech": SPEECH, "face": FACE},
        recipe=dict(
            learning_rate=3e-4,
            batch_size=16,
            n_epoch=20,
            optim="sgd",
            schedule="step",
            mixup_prob=1.0,
            lam=2.0,
        ),
    ),
}


def recipe(mode: str) -> dict[str, Any]:
    """Every training setting of a mode, as published."""
    return {name: setting.default for name, setting in SETTINGS.items()} | TASKS[mode].recipe


def model_arch(task: Task, config: dict, n_classes: int, word_dim: int | None) -> dict:
    """The arguments of `models.build_model` for a task under a configuration."""
    speech = config["speech_backbone"] or f"efficientnet-b{config['speech_coeff']}"
    face = config["face_backbone"] or f"efficientnet-b{config['face_coeff']}"
    text = {"layers": config["text_layers"], "heads": config["text_heads"]}
    encoders = {
        "speech": {"type": "AttnCNN", "backbone": speech},
        "face": {"type": "CLSTM", "backbone": face},
        "text": {"type": "TextTransformer", "word_dim": word_dim, **text},
    }
    return {
        "encoders": {name: encoders[name] for name in task.inputs},
        "heads": {head: list(inputs) for head, (inputs, _) in task.heads.items()},
        "n_classes": n_classes,
    }
