"""Flags and settings: kinds of values, help that shows defaults, JSON files of settings."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable
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


class Flags(argparse.ArgumentParser):
    """Flags of a script: its docstring as help, defaults shown, errors in one line.

    `also_known_as`: {what people type instead: the flag}, for the message.
    """

    def __init__(self, doc: str, also_known_as: dict[str, str] | None = None, **options: Any):
        super().__init__(description=doc, formatter_class=Help, allow_abbrev=False, **options)
        self.also_known_as = also_known_as or {}
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
        for argument in sys.argv[1:] if any(what in message for what in misspelt) else ():
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                message += self._hint(flag)
        self.exit(2, f"{self.prog}: {message} (--help explains every flag)\n")

    def _hint(self, unknown: str) -> str:
        known = list(self._option_string_actions)
        near = difflib.get_close_matches(unknown, known, 1)
        if unknown in self.also_known_as:
            near = [self.also_known_as[unknown]]
        return f"; {unknown}: did you mean {near[0]}?" if near else ""


def device_name(wanted: str) -> str:
    """`cuda` where there is one for `auto`; UsageError for a device that is not there."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(wanted).type not in ("cpu", "cuda"):
            raise RuntimeError("expected auto, cpu, cuda, or cuda:1 and so on")
        torch.empty(0, device=wanted)
        if torch.device(wanted).index is not None:
            torch.cuda.set_device(wanted)  # what helps with copies works there, too
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {wanted} cannot be used here: {in_short(error)}") from error
    return wanted
