"""features/ -> logs/<mode>/<exp_name>/: trains one mode, keeps the best checkpoint and the last.

    python train.py --mode speech --exp_name AttnCNN-B4     # the defaults are the mode's recipe

One line per epoch on stdout, progress on stderr. The folder then holds <epoch>_best_<loss>.pth,
last.pth (for --resume), config.json, metrics.csv, curves.png, confusion.png and TensorBoard events.
With --fold all there is one such folder per fold, and folds.json with mean and deviation.
To begin with: --mode, --exp_name, --features_dir, --batch_size, --n_epoch, --recipe small.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from training.modalities import MODES
from training.settings import GROUPS
from training.tasks import ALL_SETTINGS, TASKS, half_pays, recipe
from utils.config import Flags, device_name, ranged, run_name, unknown_setting
from utils.distributed import hold_run_folder, is_main_process, leave_group
from utils.errors import IntegrityError, Interrupted, UsageError, joined, run_script
from utils.files import check_place, keep_as_it_is, read_json, write_json
from utils.parallel import set_memory, use_tensor_cores
from utils.trackers import check_tracker

STARTS = {name: f"{name}_load_weights" for name in MODES}  # modality -> the flag's name
SHORT = {"--lr": "--learning_rate"}  # what everybody calls it


def parse_args() -> argparse.Namespace:
    flags = Flags(
        __doc__,
        usage="%(prog)s --mode MODE --exp_name NAME [FLAGS]",
        epilog="In [brackets]: the published recipe, then the modes with another; see --dry_run.",
        # what is not given is not in `args`, so that a recipe's value is told from a chosen one
        argument_default=argparse.SUPPRESS,
    )
    run = flags.group("run")
    run.add("--mode", required=True, choices=TASKS, help="what to train")
    run.add("--exp_name", required=True, type=run_name, help="name of the run and of its folder")
    run.add("--features_dir", default=Path("features"), type=Path, help="what preprocess.py wrote")
    run.add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    run.add("--config", type=Path, help="JSON of settings, as config.json of a run; flags go first")
    run.add("--resume", default=False, action="store_true", help="go on where the run stopped")
    run.add("--overwrite", default=False, action="store_true", help="throw the old run away")
    run.add("--dry_run", default=False, action="store_true", help="check all, train nothing")
    few = "small: for few clips, training/small.py"
    run.add("--recipe", default="published", choices=("published", "small"), help=few)
    groups = {title: flags.group(title) for title in GROUPS}
    for name, setting in ALL_SETTINGS.items():
        kind = "choices" if isinstance(setting.kind, tuple) else "type"
        described = setting.help + published(name)
        groups[setting.group].add(f"--{name}", help=described, **{kind: setting.kind})
    for name, flag in STARTS.items():
        help_text = f"start {name} from this run, built as it was there"
        groups["model"].add(f"--{flag}", metavar="RUN", help=help_text)
    data, long_runs = groups["data"], groups["long runs"]
    data.add("--fold", help="hold out this fold; all: one run per fold, and a mean")
    data.add("--val_fold", help="validate on this fold (or `next`), leave --fold unseen")
    yes = dict(default=False, action="store_true")
    data.add("--allow_leaks", help="train although splits share people; results are marked", **yes)
    data.add("--verify_features", help="read every feature file before the first step", **yes)
    minutes = "between saves; one follows every epoch and stop anyway"
    long_runs.add("--save_minutes", default=10.0, type=ranged(float, 0), help=minutes)
    names, beside = ("wandb", "mlflow", "trackio"), "wandb, mlflow or trackio, beside TensorBoard"
    run.add("--tracker", default=None, metavar="NAME", choices=names, help=beside)
    how = "networks, which takes minutes; auto: a long run on a GPU"
    long_runs.add("--compile", default="auto", choices=("auto", "on", "off"), help=how)
    flags.add_machine()
    given = [written_out(argument) for argument in sys.argv[1:]]
    args = flags.parse_args(given)
    typed = set(vars(args))
    if "config" in args:  # its settings go through the same checks, and the flags go first
        args = flags.parse_args([*flags_of_file(args.config, args.mode), *given])
    if args.resume and args.overwrite:
        flags.error("--resume goes on with a run and --overwrite throws it away: choose one")
    if "val_fold" in args and "fold" not in args:
        flags.error("--val_fold needs --fold: the fold that stays unseen")
    for name, flag in STARTS.items():
        if flag in args and args.mode in MODES and args.mode != name:
            flags.error(f"--{flag}: --mode {args.mode} has no {name}")
    # `given`, also by --config, goes before any recipe. `typed` is what the user may be told about:
    # a config.json of a run has all settings, and many of them change nothing.
    args.given, args.typed = set(vars(args)), typed
    return args


def published(name: str) -> str:
    """A setting's value in the recipes, for the help: " [256; face 32]", 256 for the others."""
    modes: dict[str, list[str]] = {}
    for mode in TASKS:
        modes.setdefault(str(recipe(mode)[name]), []).append(mode)
    first, *others = modes
    if not others and first == "None":
        return ""
    return f" [{'; '.join([first, *(f'{joined(modes[each])} {each}' for each in others)])}]"


def written_out(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{SHORT.get(name, name)}{equals}{value}"


def flags_of_file(path: Path, mode: str) -> list[str]:
    """A JSON file of settings as flags; UsageError for one that is unknown or of another mode."""
    config, known = read_json(path), start_config(mode)
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected settings by name, as config.json of a run has them")
    if unknown := [name for name in config if name not in known]:
        raise unknown_setting(path, unknown[0], known)
    if config.get("mode", mode) != mode:
        raise UsageError(f"{path} is of mode {config['mode']}, not {mode}")
    return [f"--{name}={value}" for name, value in config.items() if value is not None]


def start_config(mode: str) -> dict[str, Any]:
    """All settings of a run before any flag: the mode's recipe, no starting weights, no fold."""
    return recipe(mode) | dict.fromkeys(["fold", "val_fold", *STARTS.values()])


def main() -> None:
    args = parse_args()
    folder = args.logs_dir / args.mode / args.exp_name
    check_place(folder)
    config = start_config(args.mode)
    config |= {name: value for name, value in vars(args).items() if name in config}
    run_folder = contextlib.nullcontext() if args.dry_run else hold_run_folder(folder)
    # Two trainings never write into one folder, and preprocess.py changes nothing under a training.
    # A dry run writes nothing and may be asked of a folder in which another run trains.
    with run_folder, keep_as_it_is(args.features_dir):
        try:
            train(args, config, folder)
        except Interrupted:  # behind the same step in all processes
            leave_group()
            raise
    leave_group()


def train(args: argparse.Namespace, config: dict[str, Any], folder: Path) -> None:
    """One run, or one for each fold."""
    from training.features import Features

    if args.tracker:
        check_tracker(args.tracker)
    device = device_name(args.device)
    set_memory()
    use_tensor_cores(device)
    if "amp" not in args.given:  # on a CPU EfficientNet takes 1.5 times as long in it, or more
        config["amp"] = device != "cpu" and half_pays(config)
    features = Features.open(args.features_dir)
    config |= recipe_for(args, features, config, device)
    # Once for all folds, and before anything is built: a leak makes every score worthless.
    args.leaks = leak_stamp(args, config, features)
    if config["fold"] != "all":
        train_run(args, config, features, folder, device)
        return
    if (folder / "last.pth").is_file():
        raise UsageError(f"{folder} holds a run without folds: take another --exp_name")
    if config["val_fold"] not in (None, "next"):
        raise UsageError("--fold all holds out each fold once: --val_fold can only be next")
    results, folds = {}, features.folds()
    if not folds:
        what = "names no folds: preprocess.py makes them where each clip has a speaker"
        raise UsageError(f"--fold all: {args.features_dir / 'manifest.csv'} {what}")
    check_starts_of_folds(config, folder, folds)
    for fold in folds:
        print(f"fold {fold}", flush=True)
        fold_config = config_of_fold(config, fold)
        results[fold] = train_run(args, fold_config, features, folder / fold_folder(fold), device)
    # Each process of a group knows all results; one writes.
    if not args.dry_run and is_main_process():
        write_json(folder / "folds.json", results)
        print(fold_line(results))


def recipe_for(
    args: argparse.Namespace, features: Any, config: dict, device: str
) -> dict[str, Any]:
    """The settings that --recipe small changes; a hint where it would be the better one."""
    from training.small import hint, hint_of_tiles, small_recipe, training_part

    fold = config["fold"]
    if args.recipe == "small":
        small = small_recipe(args.mode, features, fold, config["inputs"])
        small = {name: value for name, value in small.items() if name not in args.given}
        print("small recipe:", *(f"{name}={value}" for name, value in small.items()))
        if device == "cpu" and "amp" not in args.given and (line := hint_of_tiles(config | small)):
            print(line, file=sys.stderr)
        return small
    line = hint(args.mode, len(training_part(features, fold)))
    # Who has chosen any of its settings knows what they do.
    if line and not args.given & set(small_recipe(args.mode, features, fold)):
        print(line, file=sys.stderr)
    return {}


def train_run(
    args: argparse.Namespace, config: dict[str, Any], features: Any, folder: Path, device: str
) -> dict[str, Any]:
    """What the best epoch of this run reached; nothing after a dry run."""
    from training.loop import fit
    from training.prepare import describe, unread_settings
    from training.record import started
    from training.run import Run

    run = Run(config, features, folder, device, args)
    if idle := sorted(unread_settings(config, run.task) & args.typed):
        print(f"without effect here: {', '.join(f'--{name}' for name in idle)}", file=sys.stderr)
    print(describe(run), flush=True)
    if args.dry_run:
        print("dry run: everything is in place, nothing was trained")
        return {}
    with started(run) as (record, stop):
        return fit(run, record, stop)


def check_starts_of_folds(config: dict[str, Any], folder: Path, folds: list[str]) -> None:
    """What any fold lacks to start from is known before the first one trains."""
    from training.checkpoint import LAST, PREVIOUS, find_checkpoints

    for fold in folds:
        place = folder / fold_folder(fold)
        # a fold that goes on has its weights already
        if not any((place / name).is_file() for name in (LAST, PREVIOUS)):
            starts = config_of_fold(config, fold)
            find_checkpoints([Path(starts[flag]) for flag in STARTS.values() if starts[flag]])


def leak_stamp(args: argparse.Namespace, config: dict[str, Any], features: Any) -> str:
    """What the audit finds in two splits, or in two folds; IntegrityError unless it is allowed."""
    from corpora.audit import describe, leaks, load_audit

    if not is_main_process():  # of several processes one asks, and ends all of them
        return ""
    audit = load_audit(args.features_dir, record=features.record)
    print(f"audit: {audit.summary()}")
    leaking = leaks(audit.findings, folds=config["fold"] is not None)
    if not leaking:
        return ""
    across = "splits" if config["fold"] is None else "folds"
    kinds = Counter(one["kind"] for one in leaking)
    stamp = ", ".join(f"{kind}s in two {across}: {count}" for kind, count in kinds.items())
    if not args.allow_leaks:
        how = f"`python -m corpora.audit --features_dir {args.features_dir}` lists all"
        raise IntegrityError(
            f"{args.features_dir} leaks, {stamp}; first {describe(leaking[0])}. {how}; "
            "--allow_leaks trains, and marks the checkpoint and reports"
        )
    print(f"LEAKS allowed: {stamp}")
    return stamp


def config_of_fold(config: dict[str, Any], fold: str) -> dict[str, Any]:
    """The settings of one fold; weights to start from are those of the same fold's run, where that
    run has folds: one on another corpus has none of these."""
    from training.checkpoint import best_checkpoint

    starts = {}
    for flag in STARTS.values():
        if start := config[flag]:
            whole = Path(start).is_file() or best_checkpoint(Path(start))
            starts[flag] = start if whole else str(Path(start) / fold_folder(fold))
    return config | {"fold": fold} | starts


def fold_folder(fold: str) -> str:
    # the manifest may come from anywhere, and this becomes the name of a folder
    if not re.fullmatch(r"\w{1,40}", fold):
        raise UsageError(f"fold {fold!r} of the manifest: expected letters, digits and _")
    return f"fold_{fold}"


def fold_line(results: dict[str, dict[str, Any]]) -> str:
    """Mean and deviation over the folds of each measure."""
    parts = []
    for name in ("accuracy", "uar", "loss"):
        values = [result[name] for result in results.values()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        parts.append(f"{name} {statistics.mean(values):.4f} ± {spread:.4f}")
    return f"{len(results)} folds: {', '.join(parts)}"


if __name__ == "__main__":
    run_script(main)
