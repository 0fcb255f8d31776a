"""Checkpoints x views of the face -> <sheet>_submission.csv, one answer per clip of the sheet.

    python make_submission.py                     # every run of logs/multimodal, all sheets
    python make_submission.py --checkpoints logs/multimodal/a logs/multimodal/b --sheets test1.csv

Each model sees each clip in 12 views of its face (with and without two flips, three brightnesses).
The softmax of every view is raised to the power --temperature and made to sum to 1 again; these are
averaged over the views, and then over the runs, each with one vote (evaluation/ensemble.py). With
0.1 the means come close to geometric ones: they rank the classes, and the .npz beside the CSV calls
them scores. Its probabilities are the means without that power.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from utils.config import Flags, device_name, ranged
from utils.errors import IntegrityError, UsageError, listed, one_of, run_script
from utils.files import check_place, keep_as_it_is, write_atomic, write_bytes
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
    with keep_as_it_is(args.features_dir):
        submit(args)


def submit(args: argparse.Namespace) -> None:
    from evaluation.ensemble import combine_runs
    from training.features import Features

    device = device_name(args.device)
    features = Features.open(args.features_dir)
    sheets = [Sheet(path) for path in sheet_paths(args)]
    given = {sheet.path.resolve() for sheet in sheets}
    if lost := [path for path in given if submission_path(args, path).resolve() in given]:
        target = submission_path(args, lost[0])
        what = f"{target}, the answer to {lost[0].name}, is a sheet that was given"
        raise UsageError(f"{what}: choose another --out")
    found_rows = [find_rows(sheet, features, args.split) for sheet in sheets]
    check_missing(args, sheets, found_rows, features)
    tell_oddities(sheets, found_rows, features)
    members = members_of(args, features)
    # asked again, for the clips of which no run can read anything
    found_rows = [answerable(each, members, features) for each in found_rows]
    check_missing(args, sheets, found_rows, features)
    # a clip that is in several sheets is predicted once
    rows = {(row["split"], row["clip_id"]): row for each in found_rows for row in each.values()}
    if not rows:
        raise IntegrityError(f"no clip of the sheets has features in {args.features_dir}")
    # With --partial features a run may read only some of the clips; the others vote on the rest.
    clips_of = [readable_places(member, rows, features) for member in members]
    votes = votes_of(members, clips_of, list(rows.values()), features, args, device)
    labels = [row["emotion"] for row in rows.values()]
    for member, clips, (_, scores) in zip(members, clips_of, votes, strict=True):
        own = [labels[index] for index in clips]
        print(f"{member.path}: {accuracy(member, own, scores, features)}")
    probabilities, scores = (
        combine_runs(members, list(zip(clips_of, each, strict=True)))[1]
        for each in zip(*votes, strict=True)
    )
    features.check_unchanged()  # before anything is written: no lock holds on some file systems
    place = {key: index for index, key in enumerate(rows)}
    for sheet, each in zip(sheets, found_rows, strict=True):
        index = [place[row["split"], row["clip_id"]] for row in each.values()]
        arrays = {"probabilities": probabilities[index], "scores": scores[index]}
        write_submission(args, sheet, list(each), arrays, features.classes)
    if len(members) > 1:
        print(f"ensemble of {len(members)}: {accuracy(None, labels, scores, features)}")


def submission_path(args: argparse.Namespace, sheet: Path) -> Path:
    return args.out / f"{sheet.stem}_submission.csv"


def sheet_paths(args: argparse.Namespace) -> list[Path]:
    if args.sheets:
        twice = [name for name, count in Counter(p.stem for p in args.sheets).items() if count > 1]
        if twice:
            raise UsageError(f"two sheets are named {twice[0]}: their answers would be one file")
        return args.sheets
    sheets = [args.features_dir / name for name in SHEETS]
    sheets = [path for path in sheets if path.is_file()]
    if not sheets:
        expected = f"{', '.join(SHEETS)} in {args.features_dir}"
        raise UsageError(f"no sheets: expected some of {expected}, or --sheets FILE")
    return sheets


def find_rows(sheet: Sheet, features: Any, split: str | None) -> dict[str, dict]:
    """{id of the sheet: manifest row} for the ids with features; ids match as text, or in another
    spelling where that is unique (`spellings`)."""
    table = features.rows(split) if split else features.manifest
    # a clip of training or validation is answered only where --split asks for it
    candidates: dict[str, list[dict]] = {}
    for row in table[~table["split"].isin(() if split else NOT_TESTED)].to_dict("records"):
        for name in {row["clip_id"], number(row["clip_id"])}:
            candidates.setdefault(name, []).append(row)
    by_id = {}
    for clip_id in sheet.ids:
        rows = next((candidates[name] for name in spellings(clip_id) if name in candidates), [])
        if len(rows) > 1:
            splits = ", ".join(row["split"] for row in rows)
            raise UsageError(f"{sheet.path}: {clip_id} is in {splits}: choose one with --split")
        if rows:
            by_id[clip_id] = rows[0]
    used = Counter((row["split"], row["clip_id"]) for row in by_id.values())
    if used and used.most_common(1)[0][1] > 1:  # ids such as 7 and 007
        name = used.most_common(1)[0][0][1]
        raise IntegrityError(f"{sheet.path}: several of its ids stand for the one clip {name}")
    return by_id


def spellings(clip_id: str) -> list[str]:
    """What an id of a sheet may stand for, best first: itself, itself without the ending of a file
    (a.mp4) or the fraction that tables give to numbers (7.0), the file of a path (test/a), and each
    as a number (7: 00007)."""
    from extract.media import FORMATS

    stem, _, ending = clip_id.rpartition(".")
    names = [clip_id]
    if f".{ending.lower()}" in FORMATS or (stem.isdigit() and not ending.strip("0")):
        names.append(stem)
    names += [file for name in names if (file := re.split(r"[/\\]", name)[-1]) != name]
    return [*names, *map(number, names)]


def number(clip_id: str) -> str:
    is_number = clip_id.isascii() and clip_id.isdigit()
    return f"number {clip_id.lstrip('0')}" if is_number else clip_id


def check_missing(args: argparse.Namespace, sheets: list, found_rows: list, features: Any) -> None:
    """IntegrityError that lists the clips without features, unless --missing names a label."""
    for sheet, each in zip(sheets, found_rows, strict=True):
        missing = [clip_id for clip_id in sheet.ids if clip_id not in each]
        if missing and args.missing == "error":
            reason = f"{len(missing)} of {len(sheet.ids)} clips have no features: {listed(missing)}"
            if not each and len(features.manifest):
                reason += f"; ids of features are such as {features.manifest['clip_id'].iloc[0]}"
            elsewhere = features.manifest[features.manifest["clip_id"].isin(missing)]
            for row in elsewhere.head(1).itertuples():
                reason += f"; {row.clip_id} is in {row.split}: see --split"
            raise IntegrityError(
                f"{sheet.path}: {reason}; see {args.features_dir / 'failed.csv'}, or answer them "
                "all with --missing LABEL"
            )
    if args.missing != "error":
        one_of("--missing", args.missing, features.classes)


def tell_oddities(sheets: list, found_rows: list, features: Any) -> None:
    """What a person would want to know and no sheet can say: clips left over, ids like formulas."""
    splits = {row["split"] for each in found_rows for row in each.values()}
    known = features.manifest[features.manifest["split"].isin(splits)]
    asked = len({(row["split"], row["clip_id"]) for each in found_rows for row in each.values()})
    if asked < len(known):
        places = ", ".join(sorted(splits))
        print(f"{len(known) - asked} clips of {places} are in no sheet", file=sys.stderr)
    if odd := [name for sheet in sheets for name in sheet.ids if name[:1] in FORMULA]:
        print(f"ids that a spreadsheet takes for formulas: {listed(odd)}", file=sys.stderr)


def members_of(args: argparse.Namespace, features: Any) -> list:
    """The runs of --checkpoints, else every run of logs/multimodal that has a best checkpoint."""
    from evaluation.ensemble import label_note, load_members
    from training.checkpoint import is_trained

    folder = args.logs_dir / "multimodal"
    runs = [run for run in sorted(folder.glob("*")) if run.is_dir()]
    ready = [run for run in runs if is_trained(run)]
    given = args.checkpoints or ready
    if not args.checkpoints:
        for run in sorted({*runs} - {*ready}):
            print(f"left out: {run} has no best checkpoint", file=sys.stderr)
    if not given:
        raise UsageError(f"no runs in {folder}: train one, or give --checkpoints")
    members = load_members(given, features)
    if note := label_note(members):
        print(note, file=sys.stderr)
    return members


def answerable(by_id: dict[str, dict], members: list, features: Any) -> dict[str, dict]:
    """Without the clips that lack what each of these runs reads (preprocess.py --partial)."""
    import pandas as pd

    from evaluation.ensemble import readable

    table = pd.DataFrame([*by_id.values()], index=[*by_id])
    some = {name for member in members for name in readable(member, table, features).index}
    return {name: row for name, row in by_id.items() if name in some}


def readable_places(member: Any, rows: dict, features: Any) -> Any:
    """Which of the clips one model can read, by their numbers."""
    import pandas as pd

    from evaluation.ensemble import readable

    return readable(member, pd.DataFrame(rows.values()), features).index


def votes_of(
    members: list, clips_of: list, rows: list[dict], features: Any, args: Any, device: str
) -> list:
    """For each model (N, K) of the clips that it reads: its probabilities, and its scores with
    --temperature."""
    import pandas as pd

    from evaluation.ensemble import image_views
    from evaluation.votes import SharedInputs, votes

    frames = {"face_frames": args.face_frames}
    return votes(
        members,
        SharedInputs(members, clips_of, pd.DataFrame(rows), features, **frames),
        device,
        image_views(args.tta),
        temperatures=(1.0, args.temperature),  # 1: probabilities as they are
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )


def accuracy(member: Any, labels: list[str], scores: Any, features: Any) -> str:
    """The member's validation score, and the score on these clips where they carry labels."""
    from evaluation.scores import class_numbers, count_right

    right = count_right(class_numbers(labels, features.classes), scores.argmax(axis=1))
    labelled = sum(map(bool, labels))
    here = f"{right} of {labelled} right here" if labelled else "no labels here"
    if member is None:
        return here
    measured = (member.checkpoint["val"] or {}).get("accuracy", float("nan"))
    return f"validation accuracy {measured:.4f} at training, {here}"


def write_submission(
    args: argparse.Namespace,
    sheet: Sheet,
    ids: list[str],
    arrays: dict[str, Any],
    classes: list[str],
) -> None:
    """The CSV in the sheet's own dialect, and beside it `arrays` of the clips `ids` as .npz."""
    import numpy as np

    # the means of powers rank the classes, and can rank them otherwise than the probabilities
    best = arrays["scores"].argmax(axis=1)
    predicted = {clip_id: classes[k] for clip_id, k in zip(ids, best, strict=True)}
    filled = [clip_id for clip_id in sheet.ids if clip_id not in predicted]
    predicted |= dict.fromkeys(filled, args.missing)
    out = submission_path(args, sheet.path)
    about = {"FileID": np.array(ids, str), "classes": classes, "filled": np.array(filled, str)}
    about["temperature"] = args.temperature
    write_atomic(out.with_suffix(".npz"), lambda file: np.savez(file, **about, **arrays))
    write_bytes(out, sheet.filled(predicted))
    note = f", {len(filled)} of them filled with {args.missing}" if filled else ""
    print(f"{out}: {len(predicted)} clips{note}")
    if filled:
        print(f"{out}: {', '.join(filled)} had no features", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
