"""Checkpoints x features -> report/: scores with intervals, calibration, pictures, a web page.

    python evaluate.py --checkpoints logs/speech/AttnCNN-B4
    python evaluate.py --checkpoints logs/speech/seed-1 logs/speech/seed-2 --split test

Each run, and the ensemble of several (mean of probabilities), is scored on clips that it was not
trained on; the folders of --fold all count as one run whose folds answer the clips they held out.
The table goes to stdout; report/index.html shows everything.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from utils.config import Flags, device_name, ranged
from utils.errors import UsageError, joined, listed, run_script
from utils.files import check_place, keep_as_it_is, write_json
from utils.fonts import columns, padded

PACKAGES = ("torch", "numpy", "scikit-learn", "timm", "efficientnet-pytorch")
COLUMNS = dict(
    accuracy="accuracy", uar="mean recall", macro_f1="macro F1", weighted_f1="weighted F1"
)


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("--checkpoints", nargs="+", type=Path, help=".pth files or run folders (their best)")
    add("--features_dir", type=Path, help="what preprocess.py wrote (default: features)")
    add("--split", help="clips to score (default: val; of a run with --fold: the fold held out)")
    add("--label", metavar="COLUMN", help="the truth, of the manifest (what each run learnt)")
    setting = "how much of a clip is read, such as face_frames=32 (as trained)"
    add("--setting", action="append", default=[], metavar="NAME=VALUE", help=setting)
    add("--out", default=Path("report"), type=Path, help="folder of the report")
    add("--robustness", action="store_true", help="also with noise, blur and lost words")
    add("--certificate", type=Path, metavar="JSON", help="write the result for others to repeat")
    choices = ("uar", "accuracy")
    add("--certificate_measure", default="uar", choices=choices, help="what it is about")
    add("--certify", type=Path, metavar="JSON", help="compare with such a file: PASS, or why not")
    add("--allow_training_clips", action="store_true", help="score them too, with a warning")
    add("--batch_size", default=8, type=ranged(int, 1), help="clips at once")
    flags.add_machine()
    return flags.parse_args()


def main() -> int:
    args = parse_args()
    # what can refuse comes first, for the predictions take long
    check_place(args.out)
    if args.certificate:
        check_place(args.certificate.parent)
        if args.certify and args.certify.resolve() == args.certificate.resolve():
            what = f"--certificate {args.certificate} is the one of --certify"
            raise UsageError(f"{what}: choose another")
    for name in ("label", "setting"):
        if getattr(args, name) and (args.certificate or args.certify):
            raise UsageError(f"a certificate is about the runs as they are: leave out --{name}")
    if not (args.checkpoints or args.certify):
        raise UsageError("give --checkpoints, or --certify with a certificate that names some")

    from evaluation.certificate import check_seeds, read_certificate
    from evaluation.ensemble import group_checkpoints

    args.device = device_name(args.device)
    published = read_certificate(args.certify) if args.certify else {}
    args.checkpoints = args.checkpoints or list(map(Path, published["given"]))
    if others := without_run(args.checkpoints):
        print(f"passed over, for no run is there: {listed(others)}", file=sys.stderr)
        args.checkpoints = [path for path in args.checkpoints if path not in others]
    if args.certificate:  # once more in `certificate`, where the seeds are known
        check_seeds(group_checkpoints(args.checkpoints))
    # a flag goes before what the certificate says: the features may lie elsewhere now
    args.split = args.split or published.get("split")
    args.features_dir = args.features_dir or Path(published.get("features_dir", "features"))
    with keep_as_it_is(args.features_dir):
        return evaluate(args, published)


def without_run(paths: list[Path]) -> list[Path]:
    """The folders without any checkpoint among several, as logs/*/* has them; not all of them."""
    others = [
        path
        for path in paths
        if path.is_dir() and not any(path.glob("*.pth")) and not any(path.glob("fold_*"))
    ]
    return others if len(others) < len(paths) else []


def evaluate(args: argparse.Namespace, published: dict[str, Any]) -> int:
    """Write the report and print the table; the exit code. `published`: a certificate, or {}."""
    from evaluation.certificate import certificate, compare, describe
    from evaluation.report import write_report
    from evaluation.runs import Options, evaluate_runs, merge_parts
    from training.features import Features

    features = Features.open(args.features_dir)
    options = Options(
        split=args.split,
        label=args.label,
        setting=args.setting,
        robustness=args.robustness,
        allow_training_clips=args.allow_training_clips,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
    )
    runs = evaluate_runs(args.checkpoints, features, options)
    features.check_unchanged()  # where no lock could hold others off
    # The last system is the headline of report and table: the ensemble, where there are several.
    systems = list(runs)
    if len(runs) > 1:
        systems.append(merge_parts(f"ensemble of {len(runs)}", runs))
    report = report_of(args, features, runs, systems)
    report["certified"] = None
    if published:
        report["certified"] = compare(published, describe(runs, report, published["measure"]))
    if args.certificate:
        write_json(args.certificate, certificate(runs, report, args.certificate_measure))
    write_report(args.out, report, predictions(systems, features.classes))
    print_table(report)
    print(args.out / "index.html")
    if not published:
        return 0
    verdict, *lines = report["certified"]
    print(f"{args.certify}: {verdict}", *lines, sep="\n  ")
    return 0 if verdict.startswith("PASS") else 4  # the code of an IntegrityError


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a folder on the path tells none
        return "unknown"


def report_of(args: argparse.Namespace, features: Any, runs: list, systems: list) -> dict[str, Any]:
    """Everything that metrics.json holds and the page shows; the last system is the headline."""
    from evaluation.certificate import features_digest
    from evaluation.summary import about_tests, paired_tests, summary

    folds = sorted({each["config"]["fold"] or "" for each in runs[0].checkpoints} - {""})
    held_out = f"held-out folds {', '.join(folds)} (of {len(features.folds())})"
    paired = paired_tests(systems, features.classes)
    return {
        "command": shlex.join(["python", "evaluate.py", *sys.argv[1:]]),
        "split": args.split,
        "clips_of": args.split or (held_out if folds else "val"),
        "features_dir": str(features.folder),
        "features": features_digest(features, runs),
        "classes": features.classes,
        "systems": [summary(run, features.classes) for run in systems],
        "paired": paired,
        "paired_note": about_tests(paired),
        "given": [str(path) for path in args.checkpoints],
        "checkpoints": systems[-1].checkpoints,
        "versions": {"python": sys.version.split()[0], **{p: version_of(p) for p in PACKAGES}},
    }


def predictions(systems: list, classes: list[str]) -> Any:
    """One row per run and clip: truth, answer, and the probability of every class."""
    import numpy as np
    import pandas as pd

    from evaluation.runs import ALL

    tables = []
    # the names of the columns are published: truth is the label, answer the prediction
    for run in systems:
        log_p = run.under(ALL).log_p
        table = run.clips[["clip_id", "split", "speaker", "fold"]].assign(
            truth=run.clips[run.label]
        )
        table["answer"] = [classes[k] for k in log_p.argmax(axis=1)]
        table[[f"p_{name}" for name in classes]] = np.exp(log_p).round(6)
        table.insert(0, "run", run.name)
        tables.append(table)
    return pd.concat(tables)


def print_table(report: dict[str, Any]) -> None:
    rows, first = [], report["systems"][0]
    for each in report["systems"]:
        before = each["calibration"]["before"]
        ece = f"{before['ece']:.4f} ({before['ece_if_calibrated']:.3f})"
        rows.append([each["name"], *(cell(each, name, first["unit"]) for name in COLUMNS), ece])
        together = len(report["systems"]) > 1 and each is report["systems"][-1]
        # A deviation over runs says how far seeds differ, one over folds how far people do.
        spreads = {"runs" if together else "folds": each["parts"]}
        if each["folds"] != each["parts"]:  # else one row tells both
            spreads["folds"] = each["folds"]
        for title, parts in spreads.items():
            if parts:
                cells = (f"{parts[n]['mean']:.4f} ± {parts[n]['deviation']:.4f}" for n in COLUMNS)
                rows.append([f"  mean ± deviation of {parts['count']} {title}", *cells, ""])
    print(f"{first['clips']} clips of {report['clips_of']} in {report['features_dir']}")
    # a file has room for any table; a terminal would wrap its lines
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    text = table(["", *COLUMNS.values(), "ECE (if calibrated)"], rows, room)
    print(f"95 % intervals over {about_intervals(first, '*' in text)}\n{text}")
    if report["paired_note"]:
        print(f"comparisons of these runs: in index.html; {report['paired_note']}")
    for text in report["systems"][-1]["warnings"]:
        print(f"note: {text}")


def table(head: list[str], rows: list[list[str]], room: float) -> str:
    """Columns under their names. Where the terminal has no room for them (columns), each row's
    name stands above its numbers, and the last columns are left out."""
    first, *widths = (max(map(columns, column)) for column in zip(head, *rows, strict=True))
    above = first + sum(width + 2 for width in widths) > room
    while above and len(widths) > 1 and sum(width + 2 for width in widths) > room:
        widths.pop()
    lines = []
    for name, *cells in [head, *rows]:
        numbers = (padded(text, width + 2) for text, width in zip(cells, widths, strict=False))
        if above and name:
            lines.append(name)
        lines.append(("" if above else padded(name, first, left=True)) + "".join(numbers))
    if left_out := head[len(widths) + 1 :]:
        lines.append(f"a wider terminal shows {joined(left_out)}, too; so does index.html")
    return "\n".join(lines)


def cell(each: dict[str, Any], name: str, unit: str) -> str:
    low, high = each["intervals"][name]
    text = f"{each['measures'][name]:.4f} [{low:.3f}, {high:.3f}]"
    if unit != "clips" and each["intervals_over"][name] == "clips":
        text += "*"
    return text


def about_intervals(first: dict[str, Any], marked: bool) -> str:
    """What they are over, and what that means for new people."""
    text = f"{first['groups']} {first['unit']}"
    if first["unit"] == "clips":
        return f"{text}: too narrow for new people, fewer than two speakers are known"
    if first["groups"] < 10:
        text += ", so few that they are wide"
    if marked:
        text += " (*: over clips, where that is wider)"
    return text


if __name__ == "__main__":
    run_script(main)
