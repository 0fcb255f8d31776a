"""Runs -> what the report says of them, as plain data."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from evaluation import scores
from evaluation.runs import ALL, Evaluated, labels_of
from evaluation.scores import Bootstrap


def summary(run: Evaluated, classes: list[str]) -> dict[str, Any]:
    """Everything that is said of one run (or ensemble): `full_scores` of its answers and more."""
    result = {"name": run.name, "warnings": run.warnings} | scores_of(run, ALL, classes)
    result["calibration"] = calibration(run, classes)
    kinds = {(each["label"], *each["inputs"]) for each in run.checkpoints}
    alike = run.parts if len(kinds) == 1 else ()  # of different models no deviation means anything
    result["parts"] = spread([measures_of(part, classes) for part in alike])
    result["conditions"] = [
        {"input": key[0], "level": key[1]} | scores_of(run, key, classes) for key in run.predictions
    ]
    faces: Any = False  # where nothing looked for faces
    if "face_valid" in run.clips:
        faces = run.clips["face_valid"].str.contains("1").to_numpy()
    return result | {"with_face": scores_of(run, ALL, classes, faces)}


def scores_of(
    run: Evaluated, key: tuple[str, Any], classes: list[str], among: Any = True
) -> dict[str, Any]:
    """`full_scores` under a condition, of the clips that have its label; none: {"clips": 0}."""
    answer = run.predictions[key]
    truth = labels_of(run, key, classes) if answer else np.full(len(run.clips), -1)
    known = (truth >= 0) & among
    if not known.any():
        return {"clips": 0}
    said, speakers = answer.log_p.argmax(1)[known], run.clips["speaker"].to_numpy()[known]
    found = scores.full_scores(truth[known], said, speakers, classes)
    return {"head": answer.head, "label": answer.column} | found


def measures_of(run: Evaluated, classes: list[str]) -> dict[str, float]:
    return scores.measure(labels_of(run, ALL, classes), run.predictions[ALL].log_p.argmax(1))


def spread(parts: list[dict[str, float]]) -> dict[str, Any]:
    """{measure: mean and deviation (of a sample) over the parts}, and how many they are."""
    if len(parts) < 2:
        return {}
    values = {name: [part[name] for part in parts] for name in scores.MEASURES}
    table = {k: {"mean": np.mean(v), "deviation": np.std(v, ddof=1)} for k, v in values.items()}
    return {"count": len(parts), **table}


def calibration(run: Evaluated, classes: list[str]) -> dict[str, Any]:
    """Before and after a temperature, which never comes from the clip that it is used on."""
    truth, log_p = labels_of(run, ALL, classes), run.predictions[ALL].log_p
    if run.validation:
        known = labels_of(run.validation, ALL, classes)
        temperatures = [scores.fit_temperature(run.validation.predictions[ALL].log_p, known)]
        after = scores.temper(log_p, temperatures[0])
        how = f"fitted on {len(known)} validation clips, which are none of these"
    else:
        bootstrap = Bootstrap(run.clips["speaker"].to_numpy())
        after, temperatures = scores.cross_fitted(log_p, truth, bootstrap.group)
        how = f"each clip's fitted on other {bootstrap.unit} of the same clips (cross-fitting)"
    result = {"before": scores.reliability(log_p, truth), "temperatures": temperatures, "how": how}
    return result | {"after": scores.reliability(after, truth)}


def paired_tests(runs: list[Evaluated], classes: list[str]) -> list[dict[str, Any]]:
    """Every two of the runs, the second minus the first."""
    truth = labels_of(runs[0], ALL, classes)
    bootstrap = Bootstrap(runs[0].clips["speaker"].to_numpy())
    return [
        {"first": a.name, "second": b.name}
        | scores.paired(
            truth, *(r.predictions[ALL].log_p.argmax(1) for r in (a, b)), len(classes), bootstrap
        )
        for a, b in combinations(runs, 2)
    ]
