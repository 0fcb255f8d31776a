"""Flags and settings: kinds of values, help that shows defaults, JSON files of settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from utils.errors import UsageError


def boolean(text: str) -> bool:
    """`True`/`False` as the commands of the challenge spell it (also yes/no, 1/0)."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r}: expected True or False")
    return known[text.lower()]


def flag_help(parser: argparse.ArgumentParser) -> Callable[..., Any]:
    """`parser.add_argument` that appends the default to the help text where there is one."""

    def add(*names: str, help: str, **options: Any) -> Any:
        default = options.get("default")
        shown = "" if default in (None, argparse.SUPPRESS) else f" (default: {default})"
        return parser.add_argument(*names, help=help + shown, **options)

    return add


def device_name(wanted: str) -> str:
    """`cuda` where there is one for `auto`; UsageError for a device that is not there."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {wanted} cannot be used here: {reason}") from error
    return wanted
