"""The modes of a training: what goes in, which heads learn what, and the published recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from training.modalities import FUSED_INPUTS, MODALITIES, MODES, Modality, Shape, modality
from training.settings import SETTINGS
from utils.errors import UsageError

FUSED = "integrated"  # the head of several modalities
NAME = re.compile(r"[A-Za-z0-9_]{1,40}")

ALL_SETTINGS = SETTINGS | {k: v for row in MODALITIES.values() for k, v in row.settings.items()}


@dataclass(frozen=True)
class Task:
    """`heads`: head -> (modalities it sees, manifest column it learns). The first one decides."""

    inputs: tuple[str, ...]
    heads: dict[str, tuple[tuple[str, ...], str]]
    recipe: dict[str, Any]  # settings that differ from their default

    @property
    def main_head(self) -> str:
        return next(iter(self.heads))

    @property
    def label_columns(self) -> dict[str, str]:
        return {head: column for head, (_, column) in self.heads.items()}


def alone(name: str, row: Modality) -> Task:
    return Task((name,), {name: ((name,), row.label)}, row.recipe or {})


def fused(inputs: tuple[str, ...]) -> Task:
    """One head over all inputs, and one for each input that keeps its own."""
    heads = {FUSED: (inputs, "emotion")}
    for name in inputs:
        if modality(name).keeps_head and len(inputs) > 1:
            heads[name] = ((name,), modality(name).label)
    return Task(inputs, heads, FUSION_RECIPE)


FUSION_RECIPE = dict(
    learning_rate=3e-4,
    batch_size=16,
    n_epoch=20,
    optim="sgd",
    schedule="step",
    mixup_prob=1.0,
    lam=2.0,
)
TASKS = {name: alone(name, MODALITIES[name]) for name in MODES}
TASKS["multimodal"] = fused(FUSED_INPUTS)


def recipe(mode: str) -> dict[str, Any]:
    """Every training setting of a mode, as published."""
    defaults = {name: setting.default for name, setting in ALL_SETTINGS.items()}
    return {"mode": mode} | defaults | TASKS[mode].recipe


def half_pays(config: dict[str, Any]) -> bool:
    """Whether a GPU trains this mode quicker in half precision: where one of its encoders has it in
    its own recipe. The original's fusion could not, for a reason that is gone (apex)."""
    recipes = (modality(name).recipe or {} for name in task_of(config).inputs)
    return any(each.get("amp", False) for each in recipes)


def task_of(config: dict[str, Any]) -> Task:
    """The task of the mode; `inputs` replaces the inputs of the fused one."""
    task = TASKS[config["mode"]]
    if not config["inputs"]:
        return task
    names = tuple(config["inputs"].split(","))
    legal = len(set(names)) == len(names) and all(map(NAME.fullmatch, names))
    if config["mode"] in MODALITIES or not legal:
        raise UsageError(f"--inputs {config['inputs']}: for multimodal, names such as speech,my_au")
    return fused(names)


def model_arch(
    task: Task, config: dict[str, Any], n_classes: int, shapes: dict[str, Shape]
) -> dict[str, Any]:
    """The arguments of `models.build_model`; `shapes`: one clip's feature of each input."""
    return {
        "encoders": {name: modality(name).encoder(config, shapes[name]) for name in task.inputs},
        "heads": {head: list(inputs) for head, (inputs, _) in task.heads.items()},
        "n_classes": n_classes,
        "fusion": config["fusion"],
        "learn_missing": learns_missing(task, config),
    }


def learns_missing(task: Task, config: dict[str, Any]) -> bool:
    """Whether a token is learnt that stands in for an input which a clip lacks."""
    return config["modality_dropout"] > 0 and len(task.inputs) > 1
