"""features/ -> features/audit.json: who and what is in two splits or folds, what is there twice.

    python -m corpora.audit --features_dir features --data_dir my_clips

Prints each finding; exit code 4 when a speaker, a dialogue or a duplicate is in two splits or in
two folds: then a model is asked what it has seen. Sentences in common are told, no more. Duplicates
are clips of the same bytes (where the clips are still there), of the same features, or of the same
sound: re-encoded, louder, softer or cut at an end. An excerpt of a clip, or another tempo, is not
seen.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corpora.manifest import LABELLED_SPLITS
from utils.config import Flags
from utils.errors import IntegrityError, UsageError, run_script
from utils.files import digest, read_json, read_known, sha256, write_json

VERSION = 2  # raise it when the findings change
SHOWN = 10  # findings of a kind that are printed
LEAKS = ("speaker", "dialogue", "duplicate")
LOUD = 0.5  # the part of a log-mel above it, 40 dB below the maximum, survives low bitrates
CANDIDATE, NEIGHBOURS = 0.88, 5  # least likeness of two outlines; most likely twins of a clip
TWIN = 0.81  # least correlation of the fine structure; copies have 0.83, other takes 0.79
MAYBE = 0.6  # from here on it is worth to look between the columns
SHIFT, LONGEST = 30, 512  # columns of 16 ms: most that two twins are apart; compared at most
BANDS = 96  # of the log-mel that are compared, up to 4 kHz
Link = tuple[int, int, str]  # rows of two clips, and what they share


def audit(features_dir: Path, data_dir: Path | None = None) -> list[dict]:
    """Findings: `kind`, `name`, of a duplicate its `clips` and the `label_conflict`, and `crosses`:
    split, fold and test -> clips on each side, where there are two sides.
    """
    rows, modalities = _open(features_dir)
    if rows.empty:
        return []
    findings = [*shared(rows, "speaker"), *shared(rows, "dialogue"), *shared(rows, "sentence")]
    sounds = [
        features_dir / row.split / "speech" / f"{row.clip_id}.npy" for row in rows.itertuples()
    ]
    links = same_bytes(rows, data_dir) if data_dir and set(modalities) - {"text"} else []
    links += same_features(rows, features_dir)
    links += same_sound(sounds) if "speech" in modalities else []
    return findings + duplicates(rows, links)


def audited(features_dir: Path) -> list[dict]:
    """The findings of `audit`, from audit.json where that is of these features."""
    path = features_dir / "audit.json"
    rows, _ = _open(features_dir)
    tables = [sha256(features_dir / name) for name in ("manifest.csv", "settings.json")]
    places = (features_dir / row.split / "records" / row.clip_id for row in rows.itertuples())
    key = digest([VERSION, *tables, [_stamp(place) for place in places]])
    known = read_known(path)
    if known.get("key") == key:
        return known["findings"]
    findings = audit(features_dir)
    with contextlib.suppress(UsageError):  # features may be read-only: then each time anew
        write_json(path, {"key": key, "findings": findings})
    return findings


def _stamp(place: Path) -> list[int]:
    """Size and time of change of a clip's record: new when its features are."""
    try:
        status = place.with_name(f"{place.name}.json").stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def leaks(findings: list[dict], folds: bool) -> list[dict]:
    """Those that make a score too good: between the training or validation and another split, or
    across the folds of a `--fold` run. What two test splits share does not."""

    def counts(crosses: dict[str, dict[str, int]]) -> bool:
        if folds:
            return "fold" in crosses or "folds" in crosses.get("test", {})
        return not crosses.get("split", {}).keys().isdisjoint(LABELLED_SPLITS)

    return [one for one in findings if one["kind"] in LEAKS and counts(one["crosses"])]


def _open(features_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        rows = pd.read_csv(features_dir / "manifest.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{features_dir} holds no features ({error}): run preprocess.py"
        ) from error
    if lacking := [name for name in ("clip_id", "split", "media", "emotion") if name not in rows]:
        lacks = f"{features_dir / 'manifest.csv'} lacks {', '.join(lacking)}"
        raise UsageError(f"{lacks}: run preprocess.py again")
    for column in ("speaker", "dialogue", "transcript", "fold"):  # absent from older features
        rows[column] = rows.get(column, "")
    words = rows["transcript"].map(lambda text: " ".join(re.findall(r"\w+", text.lower())))
    held_out = rows["fold"].where(rows["split"].isin(LABELLED_SPLITS), "")
    settings = read_json(features_dir / "settings.json")
    modalities = settings.get("modalities") if isinstance(settings, dict) else None
    if not isinstance(modalities, list):
        raise UsageError(f"{features_dir / 'settings.json'} is damaged: run preprocess.py again")
    return rows.assign(sentence=words, fold=held_out), modalities


def crossing(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Clips per split and per fold of these rows, where there are two or more; `test`: of all folds
    together against each split that has none."""
    sides = {
        column: Counter(value for value in rows[column] if value) for column in ("split", "fold")
    }
    tests = rows["split"][~rows["split"].isin(LABELLED_SPLITS)]
    sides["test"] = Counter(["folds"] * (rows["fold"] != "").sum() + tests.tolist())
    return {column: dict(sorted(side.items())) for column, side in sides.items() if len(side) > 1}


def shared(rows: pd.DataFrame, column: str) -> Iterator[dict]:
    for name, group in rows[rows[column] != ""].groupby(column):
        if crosses := crossing(group):
            yield {"kind": column, "name": name, "crosses": crosses}


def duplicates(rows: pd.DataFrame, links: list[Link]) -> list[dict]:
    """One finding for each group of clips that the links connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array([link[:2] for link in links], int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (first, second)), shape=(len(rows), len(rows)))
    group_of = connected_components(graph, directed=False)[1]
    ways = defaultdict(set)
    for one, _, way in links:
        ways[group_of[one]].add(way)
    findings = []
    for group, how in ways.items():
        same = rows[group_of == group]
        labels = sorted({label for label in same["emotion"] if label})
        finding = {"kind": "duplicate", "name": ", ".join(sorted(how)), "crosses": crossing(same)}
        finding["clips"] = [f"{row.split}/{row.clip_id}" for row in same.itertuples()]
        findings.append({**finding, "label_conflict": labels if len(labels) > 1 else []})
    return findings


def _chains(keys: Iterable[Any], way: str) -> list[Link]:
    """A link from each item to the next one of the same key; None is no key."""
    places = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    places.pop(None, None)
    return [(*pair, way) for group in places.values() for pair in pairwise(group)]


def same_bytes(rows: pd.DataFrame, data_dir: Path) -> list[Link]:
    """Only files of equal size are read."""
    files = [data_dir / media for media in rows["media"]]
    sizes = [file.stat().st_size if file.is_file() else None for file in files]
    often = Counter(sizes)
    keys = (
        sha256(file) if size is not None and often[size] > 1 else None
        for file, size in zip(files, sizes, strict=True)
    )
    return _chains(keys, "same bytes")


def same_features(rows: pd.DataFrame, features_dir: Path) -> list[Link]:
    places = (
        features_dir / row.split / "records" / f"{row.clip_id}.json" for row in rows.itertuples()
    )
    made = [read_known(place).get("stages", {}) for place in places]
    links = []
    for stage in ("speech", "video"):
        keys = (stages[stage]["sha256"] if stage in stages else None for stages in made)
        links += _chains(keys, f"same {stage} features")
    return links


def same_sound(paths: list[Path]) -> list[Link]:
    """Clips whose outlines are near each other and whose fine structure correlates."""
    from tqdm import tqdm

    outlines = np.stack(
        [outline(read_mel(path)) for path in tqdm(paths, desc="reading speech", leave=False)]
    )
    fine = lru_cache(maxsize=4000)(lambda place: fine_structure(read_mel(paths[place])))
    links = []
    for one, other in tqdm(neighbours(outlines), desc="comparing", leave=False):
        if resemblance(fine(one), fine(other)) >= TWIN:
            links.append((one, other, "same sound"))
    return links


def read_mel(path: Path) -> np.ndarray:
    """(128, T), T <= LONGEST."""
    try:
        mel = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} is missing or damaged ({error}): run preprocess.py"
        ) from error
    if mel.ndim != 2 or len(mel) != 128 or not mel.size or mel.dtype.kind != "f":
        raise IntegrityError(f"{path}: {mel.dtype} {mel.shape}, expected float (128, T)")
    return mel[:, :LONGEST]


def outline(mel: np.ndarray) -> np.ndarray:
    """(F, T) -> (1024,), length 1: how 32 bands of the loud parts change, wherever they begin."""
    bands = np.clip(mel - LOUD, 0, None).reshape(32, -1, mel.shape[1]).mean(axis=1)  # (32, T)
    bands -= bands.mean(axis=1, keepdims=True)
    change = np.abs(np.fft.rfft(bands, 512, axis=1))[:, 1:65]  # magnitudes know no shift
    change = change.reshape(32, 32, 2).mean(axis=2).ravel().astype(np.float32)
    return change / max(np.linalg.norm(change), 1e-9)


def neighbours(outlines: np.ndarray, block: int = 1000) -> list[tuple[int, int]]:
    """Pairs of rows with likeness over CANDIDATE, at most NEIGHBOURS of each; sorted."""
    pairs = set()
    for first in range(0, len(outlines), block):
        likeness = outlines[first : first + block] @ outlines.T
        likeness[np.arange(len(likeness)), first + np.arange(len(likeness))] = -1  # with itself
        most = min(NEIGHBOURS, len(outlines) - 1)
        nearest = np.argpartition(-likeness, most - 1, axis=1)[:, :most] if most else []
        for row, others in enumerate(nearest):
            near = others[likeness[row, others] > CANDIDATE]
            pairs |= {(min(first + row, other), max(first + row, other)) for other in near.tolist()}
    return sorted(pairs)


def fine_structure(mel: np.ndarray) -> np.ndarray:
    """(F, T) -> (T, BANDS): harmonics and onsets of the loud parts, without the voice's shape."""
    from scipy.ndimage import uniform_filter1d

    mel = mel[:BANDS].T
    detail = mel - uniform_filter1d(mel, 9, axis=1)
    detail = (detail - uniform_filter1d(detail, 31, axis=0)) * np.clip(mel - LOUD, 0, None)
    return np.ascontiguousarray(detail, np.float16)  # half the memory


def resemblance(one: np.ndarray, other: np.ndarray) -> float:
    """Their correlation; a cut may have moved one of them by half a column against the other."""
    best = correlation(one, other)
    if best < MAYBE:
        return best
    between = [(each[1:].astype(np.float32) + each[:-1]) / 2 for each in (one, other)]
    return max(best, correlation(between[0], other), correlation(one, between[1]))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The best over shifts of up to SHIFT columns that leave 60 % of the shorter clip."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    energy = [np.r_[0, np.cumsum(np.square(each).sum(axis=1))] for each in (one, other)]
    best, least = 0.0, 0.6 * min(len(one), len(other))
    for shift in range(-SHIFT, SHIFT + 1):
        starts = max(0, shift), max(0, -shift)
        length = min(len(one) - starts[0], len(other) - starts[1])
        if length >= least:
            a, b = one[starts[0] :][:length], other[starts[1] :][:length]
            power = [sums[at + length] - sums[at] for sums, at in zip(energy, starts, strict=True)]
            best = max(best, float(np.vdot(a, b)) / max(1e-6, power[0] * power[1]) ** 0.5)
    return best


def size(finding: dict) -> int:
    """How many clips it is about: the largest are printed."""
    sides = (side for column, side in finding["crosses"].items() if column != "test")
    return sum(count for side in sides for count in side.values())


def describe(finding: dict) -> str:
    sides = [
        f"{column}s " + ", ".join(f"{name} ({count})" for name, count in side.items())
        for column, side in finding["crosses"].items()
        if column != "test"  # as the splits say
    ]
    text = f"{finding['kind']} {finding['name']}: in {'; '.join(sides) or 'one split'}"
    if finding["kind"] == "duplicate":
        text += ": " + ", ".join(finding["clips"][:4]) + "..." * (len(finding["clips"]) > 4)
    if finding.get("label_conflict"):
        text += f"; their labels differ: {' '.join(finding['label_conflict'])}"
    return text


def main() -> int:
    flags = Flags(__doc__, prog="python -m corpora.audit")
    flags.add("--features_dir", default=Path("features"), type=Path, help="what preprocess.py made")
    flags.add("--data_dir", type=Path, help="the clips themselves, to compare their bytes too")
    args = flags.parse_args()
    findings = audit(args.features_dir, args.data_dir)
    write_json(args.features_dir / "audit.json", {"key": "", "findings": findings})
    for kind in (*LEAKS, "sentence"):
        same = [finding for finding in findings if finding["kind"] == kind]
        same.sort(key=size, reverse=True)
        for finding in same[:SHOWN]:
            print(describe(finding))
        if len(same) > SHOWN:
            print(f"... and {len(same) - SHOWN} more of kind {kind}")
    split, fold = len(leaks(findings, folds=False)), len(leaks(findings, folds=True))
    print(f"{split} leaks across splits, {fold} across folds: {args.features_dir / 'audit.json'}")
    return IntegrityError.exit_code if split or fold else 0


if __name__ == "__main__":
    run_script(main)
