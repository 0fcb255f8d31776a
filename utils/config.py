"""Flags and settings: kinds of values, help that shows defaults, JSON files of settings."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UsageError, in_short
from utils.parallel import available_cores


def boolean(text: str) -> bool:
    """`True`/`False` as the commands of the challenge spell it (also yes/no, 1/0)."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r}: expected True or False")
    return known[text.lower()]


def ranged(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """A reader of numbers from `least` to `most` for a flag; nan is never in the range."""

    def read(text: str) -> float:
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            upper = "or more" if most == math.inf else f"to {most:.10g}"
            raise argparse.ArgumentTypeError(f"{text}: expected a number, {least:g} {upper}")
        return value

    read.__name__ = kind.__name__  # argparse says "invalid int value" with it
    return read


def run_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+=-]*", text) or len(text.encode()) > 200:
        what = "use letters, digits and . _ - + =, at most 200 bytes of them"
        raise argparse.ArgumentTypeError(f"{text!r}: {what}")
    return text


METAVARS = {"int": "N", "float": "X", "Path": "PATH", "boolean": "BOOL"}  # by type; else NAME


class Help(argparse.RawDescriptionHelpFormatter):
    """One line for each flag where there is room."""

    WIDEST = 32  # of a flag and its values

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=self.WIDEST + 4, width=100)


class Group:
    """Flags that stand together in the help."""

    def __init__(self, parser: Any):
        self.parser = parser

    def add(self, *names: str, help: str, **options: Any) -> None:
        """Add a flag; its default is shown behind the help."""
        default = options.get("default")
        if not any(default is nothing for nothing in (None, False, argparse.SUPPRESS)):
            help += f" ({default})"
        choices = ",".join(map(str, options.get("choices", ())))
        if len(f"{names[0]} {{{choices}}}") > Help.WIDEST:
            options["metavar"] = "NAME"
            help = f"{choices.replace(',', ', ')}: {help}"
        takes_value = "action" not in options and "choices" not in options
        if takes_value and names[0].startswith("-"):
            kind = getattr(options.get("type"), "__name__", "")
            options.setdefault("metavar", METAVARS.get(kind, "NAME"))
        self.parser.add_argument(*names, help=help, **options)


SYNONYMS = {  # what people type -> our flags for it, of which the first that a command has is meant
    **dict.fromkeys(("--epochs", "--n_epochs", "--num_epochs", "--max_epochs"), ("--n_epoch",)),
    **dict.fromkeys(("--out", "--output", "--out_dir"), ("--out", "--features_dir", "--logs_dir")),
    **dict.fromkeys(("--data", "--input", "--dataset", "--videos"), ("--data_dir",)),
    **dict.fromkeys(("--csv", "--manifest"), ("--data_dir", "--sheets")),
    **dict.fromkeys(("--gpu", "--cpu", "--cuda"), ("--device",)),
    **dict.fromkeys(("--workers", "--threads", "--jobs"), ("--num_workers", "--workers")),
    **dict.fromkeys(("--model", "--checkpoint"), ("--checkpoints", "--checkpoint")),
    "--weights": ("--checkpoints", "--checkpoint", "--speech_load_weights"),
    **dict.fromkeys(("--bs", "--batch"), ("--batch_size",)),
    "--optimizer": ("--optim",),
    "--lr": ("--learning_rate",),
    "--wd": ("--weight_decay",),
    "--name": ("--exp_name",),
    "--early_stopping": ("--patience",),
    "--load_weights": ("--speech_load_weights",),
    "--force": ("--overwrite", "--verify"),
    "--share": ("--host",),
}


def suggestion(unknown: str, known: Iterable[str]) -> str:
    """The flag of `known` that was probably meant; "" where none is near, in meaning or letters."""
    flags, written = {*known} - {"--help", "-h"}, unknown.replace("-", "_").replace("__", "--", 1)
    meant = [flag for flag in (written, *SYNONYMS.get(written, ())) if flag in flags]
    return next(iter([*meant, *difflib.get_close_matches(written, sorted(flags), 1, 0.75)]), "")


def unknown_setting(path: Path, name: str, known: Iterable[str]) -> UsageError:
    """What to raise for a name in a file of settings that is none of those known."""
    near = suggestion(f"--{name}", [f"--{each}" for each in known]).removeprefix("--")
    hint = f"; did you mean {near}?" if near else ""
    return UsageError(f"{path}: unknown setting {name!r}{hint}")


class Flags(argparse.ArgumentParser):
    """Flags of a script: its docstring as help, defaults shown, errors in one line."""

    def __init__(self, doc: str, **options: Any):
        super().__init__(description=doc, formatter_class=Help, allow_abbrev=False, **options)
        self.add = Group(self).add

    def group(self, title: str) -> Group:
        return Group(self.add_argument_group(title))

    def add_machine(self) -> None:
        """The flags of every script that loads features: who loads, and what computes."""
        workers, read = min(8, available_cores()), ranged(int, 0)
        group = self.group("machine")
        group.add("--num_workers", default=workers, type=read, help="loading processes")
        group.add("--device", default="auto", help="auto, cpu, cuda, cuda:1")

    def error(self, message: str) -> NoReturn:
        misspelt = ("unrecognized arguments", "arguments are required")
        for argument in sys.argv[1:] if any(what in message for what in misspelt) else []:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                near = suggestion(flag, self._option_string_actions)
                message += f"; {flag}: did you mean {near}?" if near else ""
        if found := re.match(r"unrecognized arguments: ([^-]\S*)", message):
            paths = ("--checkpoints", "--data_dir", "--features_dir")
            near = next((flag for flag in paths if flag in self._option_string_actions), "")
            message += f"; did you mean {near} {found[1]}?" if near else ""
        self.exit(2, f"{self.prog}: {message} (--help explains every flag)\n")


def device_name(wanted: str) -> str:
    """`cuda` where there is one for `auto`; UsageError for a device that is not there."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
            raise RuntimeError("expected auto, cpu, cuda, or cuda:1 and so on")
        torch.empty(0, device=wanted)
        if torch.device(wanted).index is not None:
            torch.cuda.set_device(wanted)  # what helps with copies works there, too
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {wanted} cannot be used here: {in_short(error)}") from error
    return wanted
