"""The tables beside the features: settings.json before the work, manifest.csv, failed.csv after it.

features/README.md describes these files.
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from corpora.manifest import Failure, Listing, relative
from extract.clip import MANIFEST_COLUMNS, SCHEMA, STAGES, Job, facts_of, manifest_row, missing_of
from extract.transcribe import Said
from utils.files import read_known, write_bytes, write_csv, write_json


def write_settings(corpus: str, listing: Listing, job: Job) -> None:
    """What makes these features what they are, for checkpoints to check.

    Where it changes the manifest goes until all clips are done: nobody trains on a mixture.
    """
    libraries = ("numpy", "librosa", "av", "facenet-pytorch", "opencv-python-headless", "scipy")
    settings = {
        "schema": SCHEMA,
        "corpus": corpus,
        "classes": list(listing.classes),
        "modalities": list(job.modalities),
        "features": {name: job.settings[name] for name in job.modalities},
        "versions": {library: version(library) for library in libraries},
    }
    before = read_known(job.features_dir / "settings.json")
    if before != settings:
        (job.features_dir / "manifest.csv").unlink(missing_ok=True)
    for name in ("corpus", "classes", "modalities"):
        if before.get(name, settings[name]) != settings[name]:
            change = f"had {name} {before[name]}, it gets {settings[name]}"
            print(f"{job.features_dir} {change}", file=sys.stderr)
    if lost := ", ".join(name for name in job.settings if name not in {*STAGES, *job.modalities}):
        what = "not made now, so no tool can ask a model of it; repeat --encoder to keep it"
        print(f"{job.features_dir} {lost}: {what}", file=sys.stderr)
    write_json(job.features_dir / "settings.json", settings)


def write_tables(
    listing: Listing,
    records: dict[tuple[str, str], dict],
    said: dict[tuple[str, str], Said],
    job: Job,
    data_dir: Path,
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Write manifest.csv, failed.csv and the sheets; the rows of both tables."""
    import pandas as pd

    failures, rows = [*listing.failures], []
    for clip in listing.clips:
        record = records[clip.split, clip.clip_id]
        if failure := record["failure"]:
            reason = (failure["stage"], failure["code"], failure["reason"])
            failures.append(Failure(clip.clip_id, clip.media, *reason))
            continue
        row = manifest_row(clip, facts_of(record, job.modalities), data_dir)
        if job.partial:
            row["missing"] = missing_of(record, job.modalities)
        if heard := said.get((clip.split, clip.clip_id)):
            row |= {"language": heard.language, "confidence": heard.confidence}
        rows.append(row)
    failures = [replace(each, media=relative(each.media, data_dir)) for each in failures]
    failures.sort(key=lambda failure: (str(failure.media), failure.clip_id))
    columns = [each.name for each in fields(Failure)]
    failed = pd.DataFrame(failures, columns=columns, dtype=object)  # pyarrow takes no odd names
    write_csv(job.features_dir / "failed.csv", failed, for_people=True)
    columns = [*MANIFEST_COLUMNS]
    if job.partial:
        columns.append("missing")
    if said:
        columns += ["language", "confidence"]
    rows = [dict.fromkeys(columns, "") | row for row in rows]  # beside NaN 3 becomes 3.0
    write_csv(job.features_dir / "manifest.csv", pd.DataFrame(rows, columns=columns))
    for sheet in listing.sheets:
        write_bytes(job.features_dir / sheet.name, sheet.read_bytes())
    return rows, failures
