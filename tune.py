"""A search for settings -> logs/tune/<exp_name>/: trials, a picture, and the best as a recipe.

    python tune.py --mode speech --exp_name first --space space.json --trials 30
    python tune.py --mode speech --exp_name first --space space.json --fold 0 --val_fold next

The space is JSON, settings of train.py by name: a list of values, or a range, as in
{"learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}, "optim": ["adamw", "sgd"]}. Flags that
are not in --help are train.py's, the same for all trials. Each trial is one training; Optuna's TPE
sampler chooses its settings by the validation clips of those before. The same command goes on
after any stop, and adds trials when it is given more; several at once share the work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from training.tasks import ALL_SETTINGS, TASKS
from utils.config import Flags, ranged, run_name, unknown_setting
from utils.errors import IntegrityError, UsageError, in_short, run_script
from utils.files import check_place, read_json, write_bytes, write_csv, write_json, write_text
from utils.parallel import signal_at_parents_end

MEASURES = {"uar": "maximize", "accuracy": "maximize", "loss": "minimize"}
STOPPED = (-2, -15, 130, 143)  # exit codes of a training that was interrupted
STUDY = "study.log"  # Optuna's journal: several processes append to it
SEARCHED = "search.json"
SEARCH = {"mode": str, "space": dict, "measure": str, "flags": list}  # what it tells
MOST_BYTES = 1 << 20  # of it
RANGE = {"low", "high", "log", "step"}


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__, usage="%(prog)s --mode MODE --exp_name NAME --space FILE [FLAGS]")
    add = flags.add
    add("--mode", required=True, choices=TASKS, help="what to train")
    add("--exp_name", required=True, type=run_name, help="name of the search and of its folder")
    add("--space", required=True, type=Path, help="JSON: what to search")
    add("--trials", default=20, type=ranged(int, 1), help="finished trainings in all")
    add("--jobs", default=1, type=ranged(int, 1), help="trainings at once")
    add("--measure", default="uar", choices=MEASURES, help="of the validation clips")
    add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    add("--seed", default=42, type=int, help="of the search; each training has it too")
    args, others = flags.parse_known_args()
    args.train_flags = others
    given = {flag.partition("=")[0] for flag in args.train_flags}
    for flag in ("--resume", "--overwrite", "--config"):
        if flag in given:
            flags.error(f"{flag} is no flag of a search")
    if "--fold all" in " ".join(args.train_flags).replace("=", " "):
        flags.error("--fold all is five trainings: a search takes one fold, and --val_fold next")
    if "--fold" in given and "--val_fold" not in given:
        flags.error("--fold holds out test people: choose on others with --val_fold next")
    return args


def main() -> None:
    args = parse_args()
    try:
        import optuna
    except ImportError as error:
        need = "pip install -r requirements-tune.txt"
        raise UsageError(f"tune.py needs one more package, {error.name}: {need}") from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    folder = args.logs_dir / "tune" / args.exp_name
    check_place(folder)
    space = read_space(args.space)
    check_flags(args, space)
    if not (folder / SEARCHED).exists():  # else its trials began with them
        check_training(args, folder)
    check_same_search(args, space, folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(folder / STUDY)
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal))),
            sampler=optuna.samplers.TPESampler(seed=args.seed + os.getpid(), multivariate=True),
            study_name=args.exp_name,
            direction=MEASURES[args.measure],
            load_if_exists=True,
        )
    except (AssertionError, LookupError, TypeError, ValueError) as error:  # of reading the journal
        remedy = f"take another --exp_name, or delete {folder}"
        raise IntegrityError(f"{journal} is damaged: {in_short(error)}; {remedy}") from error
    take_up_stopped(study)
    done = MaxTrialsCallback(args.trials, states=(TrialState.COMPLETE,))
    print(f"trials done: {finished(study)} of {args.trials}, in {folder}", flush=True)
    while (left := args.trials - finished(study)) > 0:  # again, for those that failed
        study.optimize(
            lambda trial: train(trial, args, space, folder),
            n_trials=left,
            n_jobs=args.jobs,
            callbacks=[done, stop_where_nothing_works],
            catch=(TrialFailed,),
        )
    report(study, args, folder)


def finished(study: Any) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


class TrialFailed(Exception):
    """A training that ended with an error: the search goes on without it."""


def read_space(path: Path) -> dict[str, Any]:
    """UsageError for what is no space of settings."""
    space = read_json(path)
    if not isinstance(space, dict) or not space:
        raise UsageError(f"{path}: expected settings by name, each a list or a range")
    for name, values in space.items():
        if name not in ALL_SETTINGS:
            raise unknown_setting(path, name, ALL_SETTINGS)
        if isinstance(values, dict):
            ends = [values.get("low"), values.get("high")]
            numbers: list[Any] = [each for each in ends if type(each) in (int, float)]
            good = values.keys() <= RANGE and len(numbers) == 2 and numbers[0] < numbers[1]
        else:
            ends, good = values, isinstance(values, list) and len(values) > 0
        if not good:
            example = '["adamw", "sgd"], or {"low": 1, "high": 4}, with "log": true by magnitudes'
            raise UsageError(f"{path}: {name}: {values} is no list and no range: {example}")
        for value in ends:
            if value is None or not ALL_SETTINGS[name].allows(value):
                raise UsageError(f"{path}: {name}: {value!r} is not allowed, see train.py --help")
    return space


def check_flags(args: argparse.Namespace, space: dict[str, Any]) -> None:
    """UsageError for a setting that is both searched and given."""
    for name in space:
        if any(flag.partition("=")[0] == f"--{name}" for flag in args.train_flags):
            raise UsageError(f"--{name} is in {args.space} too: leave one of them out")


def check_training(args: argparse.Namespace, folder: Path) -> None:
    """UsageError with train.py's own words where no trial could start."""
    command = [*training(args), "--exp_name", "check", "--logs_dir", str(folder), "--dry_run"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(last_line(done.stderr) or f"train.py ended with {done.returncode}")


def training(args: argparse.Namespace) -> list[str]:
    script = str(Path(__file__).with_name("train.py"))
    chosen = ["--mode", args.mode, "--seed", str(args.seed)]
    return [sys.executable, script, *chosen, *args.train_flags]


def check_same_search(args: argparse.Namespace, space: dict[str, Any], folder: Path) -> None:
    """UsageError where the folder holds a search for something else; IntegrityError where nobody
    can tell what for."""
    asked = {"mode": args.mode, "space": space, "measure": args.measure}
    asked["flags"] = args.train_flags
    path = folder / SEARCHED
    before = read_search(path) if path.exists() else asked
    if differs := [name for name in asked if before[name] != asked[name]]:
        name = differs[0]
        what = f"{name} {in_short(before[name])} then, {in_short(asked[name])} now"
        raise UsageError(f"{folder} holds another search: {what}; take another --exp_name")
    write_json(path, asked)


def read_search(path: Path) -> dict[str, Any]:
    """What a search is for, as it was begun."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} has over {MOST_BYTES} bytes")
        search = read_json(path)
        if not isinstance(search, dict) or any(
            not isinstance(search.get(name), kind) for name, kind in SEARCH.items()
        ):
            raise UsageError(f"{path} is none of tune.py: expected {', '.join(SEARCH)}")
    except UsageError as error:
        remedy = f"take another --exp_name, or delete {path.parent}"
        raise IntegrityError(f"{error}; what was searched is not known: {remedy}") from error
    return search


def take_up_stopped(study: Any) -> None:
    """Trials that a killed search left are to go on, in their folders."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        host, process = trial.user_attrs.get("process", [socket.gethostname(), 0])
        if host == socket.gethostname() and not is_alive(process):
            study.tell(trial.number, state=TrialState.FAIL)
            place = trial.user_attrs.get("place", trial_name(trial.number))
            study.enqueue_trial(trial.params, user_attrs={"place": place})


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process > 0


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def suggest(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    whole = all(type(values[end]) is int for end in ("low", "high"))
    draw = trial.suggest_int if whole else trial.suggest_float
    more = {key: values[key] for key in ("log", "step") if key in values}
    return draw(name, values["low"], values["high"], **more)


def train(trial: Any, args: argparse.Namespace, space: dict[str, Any], folder: Path) -> float:
    """One training in a process of its own; what it reached on its validation clips."""
    settings = {name: suggest(trial, name, values) for name, values in space.items()}
    place = trial.user_attrs.get("place", trial_name(trial.number))
    trial.set_user_attr("place", place)
    trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [*training(args), "--exp_name", place, "--logs_dir", str(folder), "--resume", *flags]
    ends = partial(signal_at_parents_end, signal.SIGKILL)  # else it holds the folder on and on
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=ends)
    said = [shlex.join(command), done.stdout, done.stderr.replace("\r", "\n")]
    write_text(folder / f"{place}.txt", "\n".join(said))
    if done.returncode in STOPPED:
        raise KeyboardInterrupt
    shown = ", ".join(f"{name} {short(value)}" for name, value in settings.items())
    if done.returncode:
        print(f"{place}: {shown}: failed: {last_line(done.stderr)}", flush=True)
        raise TrialFailed(last_line(done.stderr))
    value = read_json(folder / args.mode / place / "best.json")[args.measure]
    print(f"{place}: {shown}: {args.measure} {value:.4f}", flush=True)
    return value


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def stop_where_nothing_works(study: Any, trial: Any) -> None:
    """UsageError after three failures and no success: the fault is not the settings' alone."""
    from optuna.trial import TrialState

    states = [each.state for each in study.get_trials(deepcopy=False)]
    if TrialState.COMPLETE not in states and states.count(TrialState.FAIL) >= 3:
        raise UsageError("the first three trials failed, see the .txt files of the search")


def report(study: Any, args: argparse.Namespace, folder: Path) -> None:
    """trials.csv, tune.png, best.json, recipe.sh, and a few lines."""
    import pandas as pd
    from optuna.trial import TrialState

    from utils.plots import plot_search

    trials = study.get_trials(states=(TrialState.COMPLETE,))
    rows = [{"trial": t.user_attrs["place"], args.measure: t.value, **t.params} for t in trials]
    table = pd.DataFrame(rows)
    write_csv(folder / "trials.csv", table)
    higher = MEASURES[args.measure] == "maximize"
    title = f"{args.exp_name}: {len(rows)} trainings, {args.measure} of the validation clips"
    write_bytes(folder / "tune.png", plot_search(table, args.measure, higher, title))
    best = study.best_trial
    write_json(folder / "best.json", best.params)
    words = [f"--{name}={short_flag(value)}" for name, value in best.params.items()]
    command = ["python", "train.py", "--mode", args.mode, *args.train_flags, *words]
    lines = [
        f"# The best of {len(rows)} trials, {args.measure} {best.value:.4f} on its validation, is",
        "# the luckiest of many. Other seeds, and other people, tell what it is worth.",
        "set -e",
        "for seed in 1 2 3 4 5; do",
        f"  {shlex.join(command)} --exp_name {args.exp_name}-$seed --seed $seed --resume",
        "done",
        "",
    ]
    write_text(folder / "recipe.sh", "\n".join(lines))
    order = table.sort_values(args.measure, ascending=not higher).head(5)
    print(order.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"picture: {folder / 'tune.png'}\nfive seeds of the best: bash {folder / 'recipe.sh'}")


def short_flag(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_script(main)
