"""The settings of a training, and the modes as rows of a table: inputs, heads, published recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.config import boolean, ranged
from utils.errors import UsageError

FOLDERS = {"speech": "speech", "face": "video", "text": "text"}  # others: their own name

NAME = re.compile(r"[A-Za-z0-9_]{1,40}")


class Setting(NamedTuple):
    """A flag of train.py: its default, what reads it (or the names it may have), its help."""

    default: Any
    kind: Any
    help: str


SETTINGS = {
    "inputs": Setting(None, str, "comma list for multimodal; own features by their folder's name"),
    "learning_rate": Setting(None, ranged(float, 1e-9, 100), "at the start of the schedule"),
    "batch_size": Setting(None, ranged(int, 1), "clips per step"),
    "n_epoch": Setting(None, ranged(int, 1), "passes over the training clips"),
    "optim": Setting(
        "ranger", ("ranger", "sgd", "adamw"), "ranger centralizes gradients; sgd: Nesterov 0.9"
    ),
    "schedule": Setting(
        "cosine", ("cosine", "step", "constant"), "to 0 per step; x 0.1 at half; as it is"
    ),
    "warmup": Setting(0.0, ranged(float, 0), "epochs of linear warm-up"),
    "weight_decay": Setting(5e-5, ranged(float, 0, 10), "of the optimizer"),
    "speech_coeff": Setting(4, ranged(int, 0, 7), "EfficientNet-B0 to B7 for the log-mel"),
    "face_coeff": Setting(0, ranged(int, 0, 7), "EfficientNet-B0 to B7 for the face crops"),
    "speech_backbone": Setting(None, str, "another trunk for the log-mel, timm:NAME"),
    "face_backbone": Setting(None, str, "another trunk for the face crops, timm:NAME"),
    "speech_frames": Setting(400, ranged(int, 32), "columns of the log-mel, 62.5 a second"),
    "face_frames": Setting(16, ranged(int, 1), "face crops per clip"),
    "max_words": Setting(38, ranged(int, 1), "words per clip; further ones are not read"),
    "feature_frames": Setting(64, ranged(int, 1), "rows of an own feature (T, D); 1: any one"),
    "text_layers": Setting(12, ranged(int, 1, 100), "layers of the Transformer"),
    "text_heads": Setting(8, ranged(int, 1, 100), "attention heads of the Transformer"),
    "pretrained": Setting("none", str, "trunk weights: none, hub (ImageNet), FILE or FOLDER"),
    "freeze_backbone": Setting(False, boolean, "True: the image trunks stay as they are"),
    "augment": Setting(True, boolean, "random crops, masks, flips, light and rotation"),
    "mixup_prob": Setting(0.0, ranged(float, 0, 1), "share of the batches with mixup"),
    "mixup_alpha": Setting(1.0, ranged(float, 1e-6), "mixing ratio ~ Beta(alpha, alpha)"),
    "cutmix_prob": Setting(0.0, ranged(float, 0, 1), "share of the batches with cutmix"),
    "cutmix_beta": Setting(1.0, ranged(float, 1e-6), "share kept ~ Beta(beta, beta)"),
    "modality_dropout": Setting(
        0.0, ranged(float, 0, 0.99), "share of the inputs left out of fusion, per clip"
    ),
    "class_weights": Setting(
        "none", ("none", "sqrt", "balanced"), "balanced: classes count alike; sqrt: half way there"
    ),
    "label_smoothing": Setting(0.1, ranged(float, 0, 0.999), "probability spread over all classes"),
    "lam": Setting(0.0, ranged(float, 0), "weight of the other heads' mean loss"),
    "clip_norm": Setting(0.0, ranged(float, 0), "longest gradient (its norm); 0: any"),
    "grad_accumulation": Setting(1, ranged(int, 1), "parts of a batch, one after the other"),
    "ema": Setting(0.0, ranged(float, 0, 0.99999), "decay of the mean weights to validate; 0: off"),
    "patience": Setting(0, ranged(int, 0), "validations without a better one, then stop; 0: never"),
    "amp": Setting(False, boolean, "half precision; unless given, never on a CPU"),
    "eval_step": Setting(1, ranged(int, 1), "epochs between validations"),
    "seed": Setting(42, ranged(int, 0, 2**32 - 1), "of weights, order, augmentation and dropout"),
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
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    return {"mode": mode} | defaults | TASKS[mode].recipe


def task_of(config: dict[str, Any]) -> Task:
    """The row of the mode; `inputs` replaces its inputs, and heads without theirs go."""
    task = TASKS[config["mode"]]
    if not config.get("inputs"):  # a run of before this setting has none
        return task
    names = tuple(config["inputs"].split(","))
    if len(task.inputs) == 1 or len(set(names)) < len(names) or not all(map(NAME.fullmatch, names)):
        raise UsageError(f"--inputs {config['inputs']}: for multimodal, names such as speech,my_au")
    others = {k: v for k, v in task.heads.items() if k != task.answer and {*v[0]} <= {*names}}
    return Task(names, {task.answer: (names, "emotion")} | others, task.recipe)


def model_arch(
    task: Task, config: dict, n_classes: int, shapes: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The arguments of `models.build_model` for a task under a configuration.

    `shapes`: one clip's (L, D) of text, and (D,) or (T, D) of each own feature.
    """
    speech = config["speech_backbone"] or f"efficientnet-b{config['speech_coeff']}"
    face = config["face_backbone"] or f"efficientnet-b{config['face_coeff']}"
    text = {"layers": config["text_layers"], "heads": config["text_heads"]}
    encoders = {
        "speech": {"type": "AttnCNN", "backbone": speech},
        "face": {"type": "CLSTM", "backbone": face},
    }
    for name, shape in shapes.items():
        vector = len(shape) == 1 or config["feature_frames"] == 1
        own = {"type": "VectorEncoder" if vector else "SequenceEncoder", "dim": shape[-1]}
        encoders[name] = own
    if "text" in shapes:
        encoders["text"] = {"type": "TextTransformer", "word_dim": shapes["text"][-1], **text}
    return {
        "encoders": {name: encoders[name] for name in task.inputs},
        "heads": {head: list(inputs) for head, (inputs, _) in task.heads.items()},
        "n_classes": n_classes,
        "learn_absent": config["modality_dropout"] > 0 and len(task.inputs) > 1,
    }
