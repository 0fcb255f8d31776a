"""features/ -> logs/<mode>/<exp_name>/: trains one mode, keeps the best checkpoint and the last.

    python train.py --mode speech --exp_name AttnCNN-B4     # the defaults are the mode's recipe

One line per epoch on stdout, progress on stderr. The folder then holds <epoch>_best_<loss>.pth,
last.pth (for --resume), config.json, metrics.csv, curves.png, confusion.png and TensorBoard events.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from training.tasks import MODALITY_FOLDERS, SETTINGS, TASKS, model_arch, recipe
from utils.config import Flags, device_name, ranged
from utils.errors import IntegrityError, Interrupted, UsageError, run_script
from utils.files import lock_folder, read_json, write_json
from utils.parallel import available_cores


def parse_args() -> argparse.Namespace:
    flags = Flags(
        __doc__,
        epilog="In [brackets]: the published recipe, by mode where it differs; see --dry_run.",
        argument_default=argparse.SUPPRESS,
    )
    add = flags.add
    add("--mode", required=True, choices=TASKS, help="what to train")
    add("--exp_name", required=True, type=run_name, help="name of the run and of its folder")
    for name, setting in SETTINGS.items():
        values = dict.fromkeys(str(recipe(mode)[name]) for mode in TASKS)
        kind = "choices" if isinstance(setting.kind, tuple) else "type"
        add(f"--{name}", help=f"{setting.help} [{'/'.join(values)}]", **{kind: setting.kind})
    for name in MODALITY_FOLDERS:
        add(f"--{name}_load_weights", metavar="PATH", help=f"start from a {name} run's checkpoint")
    add("--fold", help="validate on this fold of the manifest, train on the others")
    add("--features_dir", default=Path("features"), type=Path, help="what preprocess.py wrote")
    add("--logs_dir", default=Path("logs"), type=Path, help="where runs are kept")
    add(
        "--num_workers",
        default=min(8, available_cores()),
        type=ranged(int, 0),
        help="loading processes",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--config", type=Path, help="JSON of settings, as config.json of a run; flags go first")
    add("--resume", default=False, action="store_true", help="go on where the run stopped")
    add("--overwrite", default=False, action="store_true", help="throw the run of that name away")
    add("--dry_run", default=False, action="store_true", help="check everything, train nothing")
    args = flags.parse_args()
    if "config" in args:  # its settings go through the same checks, and the flags go first
        args = flags.parse_args([*flags_of_file(args.config, args.mode), *sys.argv[1:]])
    return args


def run_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+=-]{0,100}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use letters, digits and . _ - + =")
    return text


def flags_of_file(path: Path, mode: str) -> list[str]:
    """A JSON file of settings as flags; UsageError for one that is unknown or of another mode."""
    config, known = read_json(path), start_config(mode)
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected settings by name, as config.json of a run has them")
    for name in (name for name in config if name not in known):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{path}: unknown setting {name!r}{hint}")
    if config.get("mode", mode) != mode:
        raise UsageError(f"{path} is of mode {config['mode']}, not {mode}")
    return [f"--{name}={value}" for name, value in config.items() if value is not None]


def start_config(mode: str) -> dict[str, Any]:
    """All settings of a run before any flag: the mode's recipe, no starting weights, no fold."""
    paths = [f"{name}_load_weights" for name in MODALITY_FOLDERS]
    return {"mode": mode, "fold": None, **dict.fromkeys(paths), **recipe(mode)}


def resolve_config(args: argparse.Namespace) -> dict[str, Any]:
    config = start_config(args.mode)
    return config | {name: value for name, value in vars(args).items() if name in config}


def main() -> None:
    args = parse_args()
    task = TASKS[args.mode]
    config = resolve_config(args)

    import torch

    from training import checkpoint as ckpt
    from training.data import ClipDataset, Features, make_loader, training_rows
    from training.loop import Trainer
    from utils.plots import plot_confusion
    from utils.run_log import RunLog

    device = device_name(args.device)
    if "amp" not in args and device == "cpu":
        config["amp"] = False  # without hardware for it, half precision takes twice the time
    features = Features.open(args.features_dir)
    features.require(task.inputs)
    train_rows, val_rows = training_rows(features, config["fold"])
    train_set = ClipDataset(features, train_rows, task, config, training=True)
    val_set = ClipDataset(features, val_rows, task, config, training=False)
    check_data(train_set, val_set)

    torch.manual_seed(config["seed"])
    arch = model_arch(task, config, len(features.classes), train_set.word_dim())
    model = create_model(arch, config, features.classes).to(device)
    train_loader = make_loader(train_set, config["batch_size"], args.num_workers, device)
    val_loader = make_loader(val_set, config["batch_size"], args.num_workers, device)
    trainer = Trainer(model, task, config, device, len(train_loader.batch_sampler))
    print(describe(config, trainer, train_set, val_set), flush=True)
    if args.dry_run:
        print("dry run: everything is in place, nothing was trained")
        return

    folder = args.logs_dir / args.mode / args.exp_name
    with lock_folder(folder):
        last = prepare_folder(folder, args.resume, args.overwrite)
        identity = {
            "arch": arch,
            "classes": features.classes,
            "features_config": features.config_for(task.inputs),
            "config": config,
        }
        rows, best = [], None
        if last:
            state = ckpt.load_checkpoint(last)
            check_same(state, identity, last)
            trainer.load_state(state)
            rows, best = state["rows"], state["best"]
            print(f"resumed {last} after step {trainer.step}")
        write_json(folder / "config.json", config)
        log = RunLog(folder, rows)
        stop = StopSignal()

        def save_last() -> None:
            weights = {"weights": model.state_dict(), "val": best, "epoch": len(rows)}
            resume = {"rows": rows, "best": best, **trainer.state()}
            ckpt.save_checkpoint(folder / "last.pth", {**identity, **weights, **resume})

        for epoch in range(len(rows) + 1, config["n_epoch"] + 1):
            if not trainer.train_epoch(train_loader, epoch, stop):
                save_last()
                raise Interrupted(
                    stop.signum,
                    f"stopped in epoch {epoch} after step {trainer.step}; "
                    f"saved in {folder / 'last.pth'}, the same command with --resume goes on",
                )
            row = {"epoch": epoch, "lr": trainer.learning_rate(), **trainer.epoch_summary()}
            if epoch % config["eval_step"] == 0 or epoch == config["n_epoch"]:
                metrics = trainer.evaluate(val_loader)
                answer = metrics[task.answer]
                row |= validation_row(metrics, task.answer)
                if math.isfinite(row["val_loss"]) and (not best or row["val_loss"] < best["loss"]):
                    best = {"epoch": epoch, "clips": answer.clips, **answer.summary()}
                    weights = {"weights": model.state_dict(), "val": best, "epoch": epoch}
                    ckpt.save_best(folder, {**identity, **weights})
                    title = f"{args.exp_name}: epoch {epoch}, {answer.clips} validation clips"
                    picture = folder / "confusion.png"
                    plot_confusion(picture, answer.confusion, features.classes, title)
            rows.append(row)
            save_last()
            log.add(row)
            print(epoch_line(row, config["n_epoch"], best), flush=True)
            if stop.signum and epoch < config["n_epoch"]:
                raise Interrupted(stop.signum, f"stopped after epoch {epoch}; go on with --resume")
        log.close()
    if not best:
        raise UsageError(f"the validation loss was never finite, see {folder / 'metrics.csv'}")
    write_json(folder / "best.json", best)
    print(f"best: epoch {best['epoch']}, {measures(best)} over {best['clips']} validation clips")
    print(f"{ckpt.best_checkpoint(folder)}  (curves.png and confusion.png are beside it)")


def check_data(train_set: Any, val_set: Any) -> None:
    """Everything that would fail in the middle of a run fails here instead."""
    for dataset in (train_set, val_set):
        dataset.check_files()
        for row, labels in zip(dataset.rows, dataset.labels, strict=True):
            if min(labels.values()) < 0:
                known = " ".join(dataset.features.classes)
                raise IntegrityError(f"clip {row['clip_id']}: a label is not one of {known}")
    if len(train_set) < 2:
        raise UsageError(f"{len(train_set)} training clip: at least 2 are needed")


def create_model(arch: dict, config: dict[str, Any], classes: list[str]) -> Any:
    """A model with its starting weights: fresh, ImageNet trunks, or encoders of earlier runs."""
    from models import build_model
    from models.backbone import Backbone, load_pretrained
    from training.checkpoint import transfer_weights

    try:
        model = build_model(**arch)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"no such model: {error}") from error
    for module in model.modules():
        if isinstance(module, Backbone) and config["pretrained"] != "none":
            try:
                place = load_pretrained(module, config["pretrained"])
            except Exception as error:  # no internet, no file, or foreign bytes in it
                reason = f"{type(error).__name__} {error}".splitlines()[0]
                raise UsageError(
                    f"--pretrained {config['pretrained']}: no weights for {module.name}: {reason} "
                    "(hub looks in TORCH_HOME and HF_HOME first; a folder of .pth files works too)"
                ) from error
            print(f"{module.name}: ImageNet weights from {place}")
    for modality in arch["encoders"]:
        if path := config[f"{modality}_load_weights"]:
            transfer_weights(model, Path(path), modality, classes)
            print(f"{modality}: weights from {path}")
    return model


def describe(config: dict[str, Any], trainer: Any, train_set: Any, val_set: Any) -> str:
    """The first lines of a run: recipe, device, precision, sizes."""
    precision = str(trainer.dtype).removeprefix("torch.") if config["amp"] else "float32"
    weights = list(trainer.model.parameters())
    millions = sum(weight.numel() for weight in weights) / 1e6
    trained = sum(weight.numel() for weight in weights if weight.requires_grad) / 1e6
    column = train_set.task.label_columns[train_set.task.answer]
    counts = Counter(row[column] for row in train_set.rows)
    classes = ", ".join(f"{name} {counts[name]}" for name in train_set.features.classes)
    return "\n".join(
        (
            " ".join(f"{name}={value}" for name, value in config.items() if value is not None),
            f"{trainer.device}, {precision}, {millions:.1f} million weights, {trained:.1f} trained",
            f"{len(train_set)} training clips ({classes}), {len(val_set)} validation clips",
            f"{config['n_epoch']} epochs of {trainer.steps_per_epoch} steps; "
            f"batch-norm momentum {trainer.batchnorm_momentum():.3g} for a run of this length",
        )
    )


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from; None for a fresh start in an empty folder."""
    last = folder / "last.pth"
    if overwrite:
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif last.is_file() and not resume:
        raise UsageError(
            f"{folder} holds a run already: --resume goes on with it, --overwrite "
            "throws it away, another --exp_name keeps both"
        )
    return last if last.is_file() else None


def check_same(state: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """IntegrityError that shows what differs between the stopped run and this command."""
    flat = [
        {**part["config"], "classes": part["classes"], "features": part["features_config"]}
        for part in (state, identity)
    ]
    differs = [name for name in flat[1] if flat[0].get(name) != flat[1][name]]
    if differs:
        shown = "; ".join(
            f"{name}: {flat[0].get(name)} then, {flat[1][name]} now" for name in differs
        )
        raise IntegrityError(f"cannot resume {path}, its run differs: {shown}")


def validation_row(metrics: dict[str, Any], answer: str) -> dict[str, float]:
    row = {f"val_{name}": value for name, value in metrics[answer].summary().items()}
    others = (head for head in metrics if head != answer)
    return row | {f"val_{head}_accuracy": metrics[head].summary()["accuracy"] for head in others}


def measures(values: dict[str, float], prefix: str = "") -> str:
    return ", ".join(f"{name} {values[prefix + name]:.4f}" for name in ("loss", "accuracy", "uar"))


def epoch_line(row: dict[str, Any], epochs: int, best: dict[str, Any] | None) -> str:
    line = f"epoch {row['epoch']}/{epochs}: training loss {row['train_loss']:.4f}"
    if "val_loss" in row:
        line += f"; validation {measures(row, 'val_')}"
    return line + " *" * bool(best and best["epoch"] == row["epoch"])


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: Any) -> None:
        self.signum = signum
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        print("stopping after this step ...", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
