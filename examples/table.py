"""Numbers of a CSV, one row per clip, as a custom feature (D,) for train.py.

    python examples/table.py openface.csv --columns 'AU*' --name au  # -> features/<split>/au/
    python train.py --mode multimodal --inputs speech,au --exp_name first

Most tools write such tables: openSMILE, OpenFace, py-feat, statistics of one's own. The column
--id holds the names of the clips; with --skip N the first N characters of both names are ignored
(RAVDESS: --skip 2, the picture 01-01-... belongs to the sound 03-01-...). Every number is
standardized over all clips of its speaker, labels unseen; --raw leaves them as they are.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from training.features import Features
from training.modalities import MODALITIES
from training.tasks import NAME
from utils.config import Flags
from utils.errors import UsageError, counted, listed, run_script
from utils.files import lock_folder, write_atomic


def main() -> None:
    flags = Flags(__doc__)
    flags.add("csv", type=Path, help="the table")
    flags.add("--name", required=True, help="of the feature: letters, digits and _")
    flags.add("--id", default="clip", help="column with the clips' names")
    flags.add("--columns", default="*", help="pattern of the columns to take")
    flags.add("--skip", default=0, type=int, help="characters of the names to ignore")
    flags.add("--raw", action="store_true", help="do not standardize per speaker")
    flags.add("--features_dir", default=Path("features"), type=Path, help="of preprocess.py")
    args = flags.parse_args()
    features = Features.open(args.features_dir)
    clips, made = features.manifest, features.settings["features"]
    taken = {"records", "wave", "transcripts", *made}  # folders of preprocess.py
    taken |= {*MODALITIES, *(each.folder for each in MODALITIES.values())}
    if not NAME.fullmatch(args.name) or args.name in taken:
        raise UsageError(f"--name {args.name}: expected a new name of letters, digits and _")
    if clips.empty:
        raise UsageError(f"{args.features_dir} has no usable clips: see failed.csv")
    values = values_of(clips, args)
    if not args.raw:
        values = by_speaker(values, clips)
    with lock_folder(args.features_dir):
        for clip, value in zip(clips.itertuples(), values.astype(np.float32), strict=True):
            path = args.features_dir / clip.split / args.name / f"{clip.clip_id}.npy"
            write_atomic(path, partial(np.save, arr=value))
    print(f"{counted(len(values), 'clip')}: {counted(values.shape[1], 'number')} each")


def values_of(clips: pd.DataFrame, args: argparse.Namespace) -> np.ndarray:
    """(N, D) in the order of the manifest; UsageError when a clip has no row, or no number."""
    try:
        table = pd.read_csv(args.csv, dtype={args.id: str}, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {args.csv} as a CSV: {error}") from error
    table = table.rename(columns=str.strip)
    if args.id not in table:
        has = listed(table.columns, 10)
        raise UsageError(f"{args.csv} has no column {args.id!r} for --id; it has {has}")
    table = table.set_index(table.pop(args.id).str[args.skip :])
    chosen = [name for name in table if fnmatchcase(name, args.columns)]
    if not chosen:
        has = listed(table.columns, 10) or "no column but that"
        raise UsageError(f"{args.csv}: no column is named like {args.columns!r}; it has {has}")
    wanted = clips["clip_id"].str[args.skip :]
    missing = [name for name in wanted if name not in table.index]
    if missing or not table.index.is_unique:
        twice = table.index[table.index.duplicated()].tolist()
        counts = [f"no row for {len(missing)} of {counted(len(clips), 'clip')}", *missing[:1]]
        counts += [f"{counted(len(twice), 'row')} of the name of another", *twice[:1]]
        raise UsageError(f"{args.csv}: {', '.join(counts)}; see --id and --skip")
    try:
        values = table.loc[wanted, chosen].to_numpy(dtype=float)
    except ValueError as error:
        raise UsageError(f"{args.csv}: {error}; choose columns of numbers by --columns") from error
    if not np.isfinite(values).all():
        wrong = np.array(chosen)[~np.isfinite(values).all(axis=0)]
        raise UsageError(f"{args.csv}: not all finite numbers: {listed(wrong, 10)}")
    return values


def by_speaker(values: np.ndarray, clips: pd.DataFrame) -> np.ndarray:
    """(N, D) -> deviations from the mean of the clip's speaker, at most 4 (outliers)."""
    if "speaker" not in clips or (clips["speaker"] == "").any():
        raise UsageError("some clips have no speaker in the manifest: give --raw")
    if few := (clips["speaker"].value_counts() < 5).sum():
        who = f"{counted(few, 'speaker')} with under 5 clips"
        print(f"warning: {who}, too few to know their mean: see --raw")
    values = values.copy()
    for rows in clips.groupby("speaker").indices.values():
        own = values[rows]
        values[rows] = (own - own.mean(axis=0)) / (own.std(axis=0) + 1e-6)
    return values.clip(-4, 4)


if __name__ == "__main__":
    run_script(main)
