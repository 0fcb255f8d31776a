"""features/ -> features/audit.json: what two splits or folds share, and which clips are duplicates.

    python -m corpora.audit --features_dir features --data_dir my_clips

Prints the findings, then what was compared and what could not be. Exit code 4 when a speaker, a
dialogue or a duplicate is in two splits or in two folds: then a model is tested on what it has
seen. Sentences in common are told, but are no leak. Duplicates are clips made from equal files,
with equal features, or of the same sound (corpora/same_sound.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from corpora.manifest import LABELLED_SPLITS
from corpora.same_sound import same_sound
from utils.config import Flags
from utils.errors import IntegrityError, UsageError, counted, listed, run_script
from utils.files import (
    digest,
    open_manifest,
    read_json,
    read_known,
    read_stages,
    record_path,
    sha256,
    write_json,
)

VERSION = 3  # raise it when the findings change
LEAKS = ("speaker", "dialogue", "duplicate")  # kinds of findings that make a score too good
COMPARED = {  # what clips are compared by -> why a clip cannot be
    "speakers": "unknown",
    "dialogues": "unknown",
    "files": "none known",
    "sound": "no speech features",
}
Stages = dict[str, dict]  # folder -> what a clip's record says of its file
Link = tuple[int, int, str]  # rows of two clips, and what they share


@dataclass(frozen=True)
class Audit:
    """What was compared and what was found.

    A finding has a `kind` and a `name`, a duplicate also its `clips` and `label_conflict`. Its
    `crosses` counts the clips on each side, where there are two sides or more: of the splits
    (`split`), of the folds (`fold`), and of all folds against a split without folds (`test`).
    """

    clips: dict[str, int]  # of each split
    folds: int
    compared: dict[str, dict[str, int]]  # by what -> clips of each split for which it is known
    findings: list[dict]

    def summary(self) -> str:
        """One line: how many leaks, what was compared, and what could not be."""
        used = [name for name, known in self.compared.items() if known]
        gaps = [gap for gap in map(self._gap, self.compared) if gap]
        if not used:
            return "; ".join(["nothing could be compared, so leaks are unknown", *gaps])
        counts = []
        if len(self.clips) > 1:
            across = len(leaks(self.findings, folds=False))
            counts.append(f"{counted(across, 'leak')} across {len(self.clips)} splits")
        if self.folds > 1:
            across = len(leaks(self.findings, folds=True))
            counts.append(f"{counted(across, 'leak')} across {self.folds} folds")
        if not counts:
            counts = ["one split without folds, so nothing can leak"]
        return "; ".join([", ".join(counts), f"compared: {', '.join(used)}", *gaps])

    def _gap(self, name: str) -> str:
        """For how many clips this is not known; "" where it is known for all."""
        known, total = self.compared[name], sum(self.clips.values())
        lacking = total - sum(known.values())
        text = f"{name}: {COMPARED[name]} for {lacking} of {counted(total, 'clip')}"
        if not lacking:
            return ""
        if lacking == total:
            return f"{text}, not compared"
        if whole := [split for split in self.clips if split not in known]:
            text += f" (all of {', '.join(whole)})"
        return f"{text}, the others compared"

    def lines(self, kinds: tuple[str, ...], most: int) -> Iterator[str]:
        """The first findings of each kind; those of most clips are first."""
        for kind in kinds:
            same = [finding for finding in self.findings if finding["kind"] == kind]
            yield from map(describe, same[:most])
            if len(same) > most:
                yield f"... and {len(same) - most} more of kind {kind}: see audit.json"


def load_audit(
    features_dir: Path,
    data_dir: Path | None = None,
    record: Callable[[dict], Stages | None] | None = None,
) -> Audit:
    """The audit in audit.json where it is of these features, else a new one, which is saved.

    With `data_dir` it is always new, and compares the clips' files as they are now. `record` gives
    the record of a clip of LABELLED_SPLITS to whoever reads these anyway, so that they are read
    once.
    """
    rows, modalities = open_features(features_dir)
    records = [
        record(row)
        if record and row["split"] in LABELLED_SPLITS
        else read_stages(record_path(features_dir, row["split"], row["clip_id"]))
        for row in rows[["split", "clip_id"]].to_dict("records")
    ]
    path, key = features_dir / "audit.json", content_key(features_dir, rows, records)
    saved = read_known(path)
    seal = saved.pop("seal", None)
    if seal == digest([key, saved]) and not data_dir:
        return Audit(**saved)
    audit = compare(features_dir, rows, records, modalities, data_dir)
    content = json.loads(json.dumps(asdict(audit)))  # as it is read again
    with contextlib.suppress(UsageError):  # features may be read-only: then each time anew
        write_json(path, {"seal": digest([key, content]), **content})
    return audit


def leaks(findings: list[dict], folds: bool) -> list[dict]:
    """Those that make a score too good: between the training or validation and another split, or
    across the folds of a `--fold` run. What two test splits share does not."""

    def counts(crosses: dict[str, dict[str, int]]) -> bool:
        if folds:
            return "fold" in crosses or "folds" in crosses.get("test", {})
        return any(split in crosses.get("split", {}) for split in LABELLED_SPLITS)

    return [each for each in findings if each["kind"] in LEAKS and counts(each["crosses"])]


def open_features(features_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """The manifest, with the words of each transcript as `sentence`, and the modalities."""
    rows = open_manifest(features_dir, ("clip_id", "split", "media", "emotion"))
    if rows.empty:
        what = f"{features_dir / 'manifest.csv'} lists no clips, nothing can be compared"
        raise UsageError(f"{what}: see failed.csv")
    settings = read_json(features_dir / "settings.json")
    modalities = settings.get("modalities") if isinstance(settings, dict) else None
    if not isinstance(modalities, list):
        raise UsageError(f"{features_dir / 'settings.json'} is damaged: run preprocess.py again")
    for column in ("speaker", "dialogue", "transcript", "fold"):  # absent from older features
        rows[column] = rows.get(column, "")
    rows["fold"] = rows["fold"].where(rows["split"].isin(LABELLED_SPLITS), "")
    rows["sentence"] = [" ".join(re.findall(r"\w+", text.lower())) for text in rows["transcript"]]
    return rows, modalities


def log_mels_of(features_dir: Path, rows: pd.DataFrame) -> list[str]:
    """The speech file of each clip."""
    names = zip(rows["split"], rows["clip_id"], strict=True)
    return [f"{features_dir}/{split}/speech/{clip_id}.npy" for split, clip_id in names]


def content_key(features_dir: Path, rows: pd.DataFrame, records: list[Stages | None]) -> str:
    """Names the manifest, the settings and all records by what is in them, so that copied features
    keep their audit. Features of other tools have no records: their speech's size and time."""
    tables = [sha256(features_dir / name) for name in ("manifest.csv", "settings.json")]
    contents = hashlib.sha256()
    for stages, speech in zip(records, log_mels_of(features_dir, rows), strict=True):
        if stages is not None:
            contents.update(json.dumps(stages, sort_keys=True).encode())
            continue
        with contextlib.suppress(OSError):
            status = Path(speech).stat()
            contents.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return digest([VERSION, *tables, contents.hexdigest()])


def compare(
    features_dir: Path,
    rows: pd.DataFrame,
    records: list[Stages | None],
    modalities: list[str],
    data_dir: Path | None,
) -> Audit:
    """Compare all clips with all."""
    digests = digests_of(records)
    if data_dir:
        digests["same bytes"] = files_now(rows, data_dir)
    links: list[Link] = []
    for what in digests:
        groups = digests.groupby(what).indices.values()
        links += [(*pair, what) for group in groups for pair in pairwise(group.tolist())]
    heard = rows[:0]
    if "speech" in modalities:
        heard = rows
        if "missing" in rows:  # preprocess.py --partial
            heard = rows[~rows["missing"].str.split().map(lambda names: "speech" in names)]
        place = heard.index.to_numpy()
        paths = log_mels_of(features_dir, heard)
        links += [(place[one], place[other], "same sound") for one, other in same_sound(paths)]
    compared = {
        "speakers": rows[rows["speaker"] != ""],
        "dialogues": rows[rows["dialogue"] != ""],
        "files": rows[digests.notna().any(axis=1)],
        "sound": heard,
    }
    common = [each for kind in ("speaker", "dialogue", "sentence") for each in shared(rows, kind)]
    return Audit(
        clips=counts_of(rows["split"]),
        folds=len({*rows["fold"]} - {""}),
        compared={name: counts_of(known["split"]) for name, known in compared.items()},
        findings=common + duplicates(rows, links),
    )


def counts_of(names: pd.Series) -> dict[str, int]:
    return names.value_counts().sort_index().to_dict()


def digests_of(records: list[Stages | None]) -> pd.DataFrame:
    """Columns of sha256, as far as the clips' records have them: what clips share where equal."""
    known = [stages or {} for stages in records]
    speech, video = ([stages.get(name, {}) for stages in known] for name in ("speech", "video"))
    sources = (one or other for one, other in zip(speech, video, strict=True))
    return pd.DataFrame(
        {
            "same bytes": [source.get("source_sha256") for source in sources],
            "same speech features": [stage.get("sha256") for stage in speech],
            "same video features": [stage.get("sha256") for stage in video],
        },
        dtype=object,
    )


def files_now(rows: pd.DataFrame, data_dir: Path) -> pd.Series:
    """What tells the clips' files apart: their sizes and, where these are equal, the sha256."""
    files = rows["media"].map(data_dir.joinpath)
    sizes = files.map(lambda file: file.stat().st_size if file.is_file() else None)
    again = sizes.duplicated(keep=False) & sizes.notna()
    return sizes.astype(object).mask(again, files[again].map(sha256))


def shared(rows: pd.DataFrame, column: str) -> Iterator[dict]:
    """A finding for each name in this column that is on two sides."""
    several = rows[(rows[column] != "") & rows.duplicated(column, keep=False)]
    for name, group in sorted(several.groupby(column), key=lambda each: -len(each[1])):
        if crosses := crossing(group):
            yield {"kind": column, "name": name, "crosses": crosses}


def crossing(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Clips on each side, as `Audit` has it."""
    in_fold, labelled = rows["fold"] != "", rows["split"].isin(LABELLED_SPLITS)
    sides = {
        "split": rows["split"],
        "fold": rows["fold"][in_fold],
        "test": rows["split"].mask(in_fold, "folds")[in_fold | ~labelled],
    }
    counts = {kind: counts_of(names) for kind, names in sides.items()}
    return {kind: count for kind, count in counts.items() if len(count) > 1}


def duplicates(rows: pd.DataFrame, links: list[Link]) -> list[dict]:
    """One finding for each group of clips that the links connect."""
    if not links:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array([link[:2] for link in links], int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (first, second)), shape=(len(rows), len(rows)))
    group_of = connected_components(graph, directed=False)[1]
    shares = defaultdict(set)
    for one, _, what in links:
        shares[group_of[one]].add(what)
    findings = []
    for group, common in shares.items():
        same = rows[group_of == group]
        labels = sorted({*same["emotion"]} - {""})
        findings.append(
            {
                "kind": "duplicate",
                "name": ", ".join(sorted(common)),
                "crosses": crossing(same),
                "clips": (same["split"] + "/" + same["clip_id"]).tolist(),
                "label_conflict": labels if len(labels) > 1 else [],
            }
        )
    return sorted(findings, key=lambda each: -len(each["clips"]))


def describe(finding: dict) -> str:
    """One line for people."""
    sides = [
        f"{column}s " + ", ".join(f"{name} ({count})" for name, count in side.items())
        for column, side in finding["crosses"].items()
        if column != "test"  # as the splits say
    ]
    text = f"{finding['kind']} {finding['name']}: in {'; '.join(sides) or 'one split'}"
    if clips := finding.get("clips"):
        text += f": {listed(clips, 4)}"
    if finding.get("label_conflict"):
        text += f"; their labels differ: {' '.join(finding['label_conflict'])}"
    return text


def main() -> int:
    flags = Flags(__doc__, prog="python -m corpora.audit")
    flags.add("--features_dir", default=Path("features"), type=Path, help="what preprocess.py made")
    flags.add("--data_dir", type=Path, help="the clips themselves: compare their files as they are")
    args = flags.parse_args()
    audit = load_audit(args.features_dir, args.data_dir)
    for line in audit.lines((*LEAKS, "sentence"), 10):
        print(line)
    print(audit.summary())
    leaking = leaks(audit.findings, folds=False) or leaks(audit.findings, folds=True)
    return IntegrityError.exit_code if leaking else 0


if __name__ == "__main__":
    run_script(main)
