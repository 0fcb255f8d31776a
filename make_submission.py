"""Checkpoints x views of the face -> <sheet>_submission.csv, one answer per clip of the sheet.

    python make_submission.py                     # every run of logs/multimodal, all sheets
    python make_submission.py --checkpoints logs/multimodal/a logs/multimodal/b --sheets test1.csv

Each model sees each clip in 12 views of its face (two flips, three brightnesses). The softmax of
every view is raised to the power --temperature and made to sum to 1 again, and all are averaged.
p ** t, renormalised, is softmax(t x logits): with t = 0.1 it flattens, and the mean over the views
comes close to a geometric mean of the probabilities.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from utils.config import Flags, device_name, ranged
from utils.errors import IntegrityError, UsageError, one_of, run_script
from utils.files import check_place, write_atomic, write_bytes
from utils.sheet import Sheet

SHEETS = ("test1.csv", "test2.csv", "test3.csv")
FORMULA = tuple("=+-@")  # such ids are written as they are
NOT_TESTED = ("train", "val")  # a sheet's clips are never looked for in these splits


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("--checkpoints", nargs="+", type=Path, help=".pth files or run folders (their best)")
    add("--sheets", nargs="+", type=Path, help="CSVs with a column FileID (default: test1-3.csv)")
    add("--features_dir", default=Path("features"), type=Path, help="what preprocess.py wrote")
    add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    add("--split", help="the split of the sheets' clips, when an id occurs in several")
    add("--tta", default=12, type=int, choices=(12, 6, 1), help="views of the face per clip")
    add(
        "--temperature",
        default=0.1,
        type=ranged(float, 1e-6),
        help="power on each view's probabilities",
    )
    add("--face_frames", default=32, type=ranged(int, 1), help="face crops per clip, evenly spaced")
    add("--missing", default="error", help="label for clips without features, or error")
    add("--out", default=Path(), type=Path, help="folder of the submissions")
    add("--batch_size", default=8, type=ranged(int, 1), help="clips at once")
    flags.add_machine()
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    check_place(args.out)

    import numpy as np

    from training.data import Features

    device = device_name(args.device)
    features = Features.open(args.features_dir)
    sheets = [Sheet(path) for path in sheet_paths(args)]
    found = [find_rows(sheet, features, args.split) for sheet in sheets]
    check_missing(args, sheets, found, features)
    tell_oddities(sheets, found, features)
    members = members_of(args, features)
    rows = {(row["split"], row["clip_id"]): row for each in found for row in each.values()}
    if not rows:
        raise IntegrityError(f"no clip of the sheets has features in {args.features_dir}")
    scores = [score(member, list(rows.values()), features, args, device) for member in members]
    for member, probabilities in zip(members, scores, strict=True):
        print(f"{member.path}: {accuracy(member, rows, probabilities, features)}")
    mean = np.mean(scores, axis=0)
    place = {key: index for index, key in enumerate(rows)}
    for sheet, each in zip(sheets, found, strict=True):
        index = [place[row["split"], row["clip_id"]] for row in each.values()]
        known = dict(zip(each, mean[index], strict=True))
        write_submission(args, sheet, known, features.classes)
    if len(members) > 1:
        print(f"ensemble of {len(members)}: {accuracy(None, rows, mean, features)}")


def sheet_paths(args: argparse.Namespace) -> list[Path]:
    if args.sheets:
        twice = [name for name, count in Counter(p.stem for p in args.sheets).items() if count > 1]
        if twice:
            raise UsageError(f"two sheets are named {twice[0]}: their answers would be one file")
        return args.sheets
    found = [args.features_dir / name for name in SHEETS]
    found = [path for path in found if path.is_file()]
    if not found:
        expected = f"{', '.join(SHEETS)} in {args.features_dir}"
        raise UsageError(f"no sheets: expected some of {expected}, or --sheets FILE")
    return found


def find_rows(sheet: Sheet, features: Any, split: str | None) -> dict[str, dict]:
    """{id of the sheet: manifest row} for the ids with features; ids match as text, or as numbers
    where that is unique (7 and 00007)."""
    table = features.rows(split) if split else features.manifest
    candidates: dict[str, list[dict]] = {}
    for row in table[~table["split"].isin(() if split else NOT_TESTED)].to_dict("records"):
        for name in {row["clip_id"], number(row["clip_id"])}:
            candidates.setdefault(name, []).append(row)
    found = {}
    for clip_id in sheet.ids:
        rows = candidates.get(clip_id) or candidates.get(number(clip_id), [])
        if len(rows) > 1:
            splits = ", ".join(row["split"] for row in rows)
            raise UsageError(f"{sheet.path}: {clip_id} is in {splits}: choose one with --split")
        if rows:
            found[clip_id] = rows[0]
    used = Counter((row["split"], row["clip_id"]) for row in found.values())
    if used and used.most_common(1)[0][1] > 1:
        name = used.most_common(1)[0][0][1]
        raise IntegrityError(f"{sheet.path}: several of its ids stand for the one clip {name}")
    return found


def number(clip_id: str) -> str:
    is_number = clip_id.isascii() and clip_id.isdigit()
    return f"number {clip_id.lstrip('0')}" if is_number else clip_id


def check_missing(args: argparse.Namespace, sheets: list, found: list, features: Any) -> None:
    """IntegrityError that lists the clips without features, unless --missing names a label."""
    for sheet, each in zip(sheets, found, strict=True):
        missing = [clip_id for clip_id in sheet.ids if clip_id not in each]
        if missing and args.missing == "error":
            listed = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
            rows = features.manifest[features.manifest["clip_id"].isin(missing)].itertuples()
            where = [f"; {row.clip_id} is in {row.split}: see --split" for row in rows][:1]
            raise IntegrityError(
                f"{sheet.path}: {len(missing)} of {len(sheet.ids)} clips have no features: {listed}"
                f"{''.join(where)}"
                f"; see {args.features_dir / 'failed.csv'}, or answer them all with --missing LABEL"
            )
    if args.missing != "error":
        one_of("--missing", args.missing, features.classes)


def tell_oddities(sheets: list, found: list, features: Any) -> None:
    """What a person would want to know and no sheet can say: clips left over, ids like formulas."""
    splits = {row["split"] for each in found for row in each.values()}
    known = features.manifest[features.manifest["split"].isin(splits)]
    asked = len({(row["split"], row["clip_id"]) for each in found for row in each.values()})
    if asked < len(known):
        places = ", ".join(sorted(splits))
        print(f"{len(known) - asked} clips of {places} are in no sheet", file=sys.stderr)
    if odd := [name for sheet in sheets for name in sheet.ids if name[:1] in FORMULA]:
        print(f"ids that a spreadsheet takes for formulas: {', '.join(odd[:5])}", file=sys.stderr)


def members_of(args: argparse.Namespace, features: Any) -> list:
    """The runs of --checkpoints, else every run of logs/multimodal that has a best checkpoint."""
    from evaluation.ensemble import load_members
    from training.checkpoint import best_checkpoint

    folder = args.logs_dir / "multimodal"
    runs = [run for run in sorted(folder.glob("*")) if run.is_dir()]
    ready = [run for run in runs if best_checkpoint(run) or any(run.glob("fold_*"))]
    given = args.checkpoints or ready
    for run in () if args.checkpoints else runs:
        if run not in ready:
            print(f"left out: {run} has no best checkpoint", file=sys.stderr)
    if not given:
        raise UsageError(f"no runs in {folder}: train one, or give --checkpoints")
    return load_members(given, features)


def score(member: Any, rows: list[dict], features: Any, args: Any, device: str) -> Any:
    """(N, K) probabilities of one model: power mean over the views of each clip."""
    import numpy as np

    from evaluation.ensemble import face_views, make_dataset, power_mean, predict

    dataset = make_dataset(member, rows, features, face_frames=args.face_frames)
    views = face_views(args.tta)
    batches = predict(member, dataset, device, views, args.batch_size, args.num_workers)
    answer = member.task.answer
    means = [power_mean([view[answer] for view in each], args.temperature) for each in batches]
    probabilities = np.concatenate([mean.cpu().numpy() for mean in means])
    if not np.isfinite(probabilities).all():
        raise IntegrityError(f"{member.path} gives probabilities that are not numbers")
    return probabilities


def accuracy(member: Any, rows: dict, probabilities: Any, features: Any) -> str:
    """The member's validation score, and the score on these clips where they carry labels."""
    answers = [features.classes[index] for index in probabilities.argmax(axis=1)]
    truths = [row["emotion"] for row in rows.values()]
    right = sum(truth == answer for truth, answer in zip(truths, answers, strict=True))
    labelled = sum(map(bool, truths))
    here = f"{right} of {labelled} right here" if labelled else "no labels here"
    if member is None:
        return here
    measured = (member.checkpoint["val"] or {}).get("accuracy", float("nan"))
    return f"validation accuracy {measured:.4f} at training, {here}"


def write_submission(
    args: argparse.Namespace, sheet: Sheet, known: dict[str, Any], classes: list[str]
) -> None:
    """The CSV in the sheet's own dialect, and beside it the probabilities as .npz."""
    import numpy as np

    answers = {clip_id: classes[int(p.argmax())] for clip_id, p in known.items()}
    filled = [clip_id for clip_id in sheet.ids if clip_id not in answers]
    answers |= dict.fromkeys(filled, args.missing)
    out = args.out / f"{sheet.path.stem}_submission.csv"
    arrays = {"FileID": np.array(list(known), str), "probabilities": list(known.values())}
    write_atomic(
        out.with_suffix(".npz"),
        lambda file: np.savez(file, classes=classes, filled=np.array(filled, str), **arrays),
    )
    write_bytes(out, sheet.filled(answers))
    note = f", {len(filled)} of them filled with {args.missing}" if filled else ""
    print(f"{out}: {len(answers)} clips{note}")
    if filled:
        print(f"{out}: {', '.join(filled)} had no features", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
