"""Runs -> what the report says of them, as plain data."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from evaluation import calibration, scores
from evaluation.runs import ALL, Condition, Evaluated, has_inputs, head_labels, labels_of
from training.views import FACES
from utils.errors import counted


def summary(run: Evaluated, classes: list[str]) -> dict[str, Any]:
    """Everything that is said of one run (or ensemble): `full_scores` of its predictions and more.

    `parts`: the spread of its parts, as of an ensemble's runs; `folds`: that over held-out folds.
    """
    inputs = list(dict.fromkeys(name for each in run.checkpoints for name in each["inputs"]))
    result: dict[str, Any] = {"name": run.name, "inputs": inputs, "warnings": run.warnings}
    result |= scores_of(run, ALL, classes)
    result["calibration"] = calibration_of(run, classes)
    kinds = {(each["label"], *each["inputs"]) for each in run.checkpoints}
    result["alike"] = len(kinds) == 1
    # a deviation is that of one recipe; between different models it means nothing
    parts = run.parts if result["alike"] else ()
    result["parts"] = spread([measures_of(part, classes) for part in parts])
    result["folds"] = spread(fold_measures(run, classes))
    result["conditions"] = [
        described(condition) | scores_of(run, condition, classes) for condition in run.predictions
    ]
    return result | {"with_face": scores_of(run, ALL, classes, has_face(run))}


def has_face(run: Evaluated) -> np.ndarray:
    """(N,) whether a face was found in any frame of the clip; in none where nobody looked."""
    if FACES not in run.clips:
        return np.zeros(len(run.clips), bool)
    return run.clips[FACES].str.contains("1").to_numpy(bool)


def described(condition: Condition) -> dict[str, Any]:
    """As metrics.json has it: `input` "inputs" and at `level` which, or a corrupted input and its
    level."""
    if condition.corrupted is not None:
        return {"input": condition.corrupted, "level": condition.level}
    names = "all" if condition.inputs is None else "+".join(condition.inputs)
    return {"input": "inputs", "level": names}


def scores_of(
    run: Evaluated, condition: Condition, classes: list[str], chosen: np.ndarray | None = None
) -> dict[str, Any]:
    """`full_scores` under a condition, of the clips that have the label and any of the inputs, and
    of these the `chosen` (N,) bool; {"clips": 0} where there are none.

    All conditions are judged by the label of the run, so that they can be compared; a head that
    learnt another one, as that of the voice, has its accuracy by it in `own`.
    """
    prediction = run.predictions[condition]
    if prediction is None:
        return {"clips": 0}
    labels = labels_of(run, classes)
    with_input = has_inputs(run, condition)
    if chosen is not None:
        with_input = with_input & chosen
    known = (labels >= 0) & with_input
    if not known.any():
        return {"clips": 0}
    speakers, predictions = run.clips["speaker"].to_numpy(), prediction.log_p.argmax(1)
    scored = scores.full_scores(labels[known], predictions[known], speakers[known], classes)
    about: dict[str, Any] = {"head": prediction.head, "label": run.label, "own": None}
    if prediction.column != run.label:
        labels_of_head = head_labels(run, condition, classes)
        right = (labels_of_head == predictions)[(labels_of_head >= 0) & with_input]
        if len(right):
            about["own"] = {"label": prediction.column, "accuracy": float(right.mean())}
    return about | scored


def labels_and_log_p(run: Evaluated, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) class indices and (N, K), from all inputs."""
    return labels_of(run, classes), run.under(ALL).log_p


def measures_of(run: Evaluated, classes: list[str]) -> dict[str, float]:
    labels, log_p = labels_and_log_p(run, classes)
    return scores.measure(labels, log_p.argmax(1))


def fold_measures(run: Evaluated, classes: list[str]) -> list[dict[str, float]]:
    """For each fold, of the clips that its model held out; none for runs without folds."""
    folds = sorted({each["config"]["fold"] or "" for each in run.checkpoints} - {""})
    labels, log_p = labels_and_log_p(run, classes)
    of_folds = [(run.clips["fold"] == fold).to_numpy() for fold in folds]
    return [
        scores.measure(labels[held_out], log_p.argmax(1)[held_out])
        for held_out in of_folds
        if held_out.any()
    ]


def spread(parts: list[dict[str, float]]) -> dict[str, Any]:
    """{measure: mean and deviation (of a sample) over the parts}, and how many they are."""
    if len(parts) < 2:
        return {}
    values = {name: [part[name] for part in parts] for name in scores.MEASURES}
    table = {k: {"mean": np.mean(v), "deviation": np.std(v, ddof=1)} for k, v in values.items()}
    return {"count": len(parts), **table}


def calibration_of(run: Evaluated, classes: list[str]) -> dict[str, Any]:
    """Before and after a temperature, which never comes from the clip that it is used on."""
    labels, log_p = labels_and_log_p(run, classes)
    # A temperature that is fitted on the scored clips would make any model look calibrated.
    if run.validation:
        known, apart = labels_and_log_p(run.validation, classes)
        temperatures = [calibration.fit_temperature(apart, known)]
        after = calibration.temper(log_p, temperatures[0])
        others = counted(len(known), "validation clip")
        how = f"fitted on {others}, which are none of these"
    else:
        group, unit = scores.group_by_speaker(run.clips["speaker"].to_numpy())
        after, temperatures = calibration.cross_fitted(log_p, labels, group)
        others = "other clips" if unit == "clips" else "clips of other people"
        how = f"each clip's was fitted on {others} (cross-fitting)"
    return {
        "before": calibration.calibration(log_p, labels),
        "temperatures": temperatures,
        "how": how,
        "after": calibration.calibration(after, labels),
    }


def paired_tests(runs: list[Evaluated], classes: list[str]) -> list[dict[str, Any]]:
    """Every two of the runs, the second minus the first, but none with an ensemble that it is in.

    `p_holm`: p corrected for the number of these comparisons, in each measure.
    """
    speakers, tests = runs[0].clips["speaker"].to_numpy(), []
    for first, second in combinations(runs, 2):
        files = [{each["sha256"] for each in run.checkpoints} for run in (first, second)]
        if files[0].isdisjoint(files[1]):  # an ensemble and its member are not independent
            (labels, one), (_, other) = (labels_and_log_p(r, classes) for r in (first, second))
            test = scores.paired(labels, one.argmax(1), other.argmax(1), len(classes), speakers)
            tests.append({"first": first.name, "second": second.name} | test)
    for name in ("accuracy", "uar"):
        values = [each[name]["p"] for each in tests]
        # None: all comparisons are of the same speakers, which are too few for any
        corrected = values if None in values else scores.holm(values)
        for each, p in zip(tests, corrected, strict=True):
            each[name]["p_holm"] = p
    return tests


def about_tests(paired: list[dict[str, Any]]) -> str:
    """What stands beside the p of these tests, or instead of them."""
    if not paired:
        return ""
    groups, unit = paired[0]["groups"], paired[0]["unit"]
    if groups < scores.MIN_SPEAKERS:
        return f"too few {unit} for a p: {groups}, at least {scores.MIN_SPEAKERS}"
    text = f"p: sign-flip test over {groups} {unit}"
    if len(paired) > 1:
        text += f", corrected (Holm) for {len(paired)} comparisons"
    if unit == "clips":
        text += "; fewer than two speakers are known, so for new people it is too small"
    return text
