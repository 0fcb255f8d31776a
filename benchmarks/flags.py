"""The commands' own parsers -> the reference of flags, as Markdown.

    python -m benchmarks.flags

Run from the root of the project. docs/flags.md shows what this prints (benchmarks/docs_site.py), so
the reference cannot differ from `--help`.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from unittest import mock

COMMANDS = {  # module -> how it is called
    "preprocess": "python preprocess.py",
    "train": "python train.py",
    "evaluate": "python evaluate.py",
    "make_submission": "python make_submission.py",
    "predict": "python predict.py",
    "app": "python app.py",
    "export": "python export.py",
    "tune": "python tune.py",
    "demo": "python demo.py",
    "corpora.audit": "python -m corpora.audit",
    "corpora.pool": "python -m corpora.pool",
    "evaluation.pack": "python -m evaluation.pack",
    "evaluation.cards": "python -m evaluation.cards",
}
BY_MACHINE = {"--workers": "one per core", "--num_workers": "one per core, at most 8"}
DEFAULT = re.compile(r" [(\[]([^()\[\]]*)[)\]]$")  # as utils/config.py and train.py write it


class _Caught(BaseException):
    """Ends a command where it reads its flags; no handler of the command takes it."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that this module's `main` makes. Nothing of the command runs after that."""

    def stop(parser: argparse.ArgumentParser, *args: object, **options: object) -> None:
        raise _Caught(parser)

    main = importlib.import_module(module).main
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop),
    ):
        try:
            main()
        except _Caught as caught:
            return caught.parser
    raise RuntimeError(f"{module}.main reads no flags")


def recipes() -> Callable[[str], str]:
    """Flag of train.py -> its default, by mode where the modes differ; "" for other flags."""
    from training.tasks import ALL_SETTINGS, TASKS, recipe

    def default(flag: str) -> str:
        name = flag.removeprefix("--")
        if name not in ALL_SETTINGS:
            return ""
        values = {mode: recipe(mode)[name] for mode in TASKS}
        if len({*map(str, values.values())}) == 1:
            only = next(iter(values.values()))
            return "" if only is None else f"`{only}`"
        return ", ".join(f"{mode} `{value}`" for mode, value in values.items())

    return default


def tables(parser: argparse.ArgumentParser, recipe: Callable[[str], str]) -> str:
    """A table of flags for each group, under its title."""
    lines: list[str] = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            lines += [f"### {parser.prog.split()[-1]}: {group.title}", ""]
        lines += ["| flag | default | meaning |", "|---|---|---|"]
        lines += [row(action, recipe) for action in actions]
        lines.append("")
    return "\n".join(lines)


def row(action: argparse.Action, recipe: Callable[[str], str]) -> str:
    flag = action.option_strings[-1] if action.option_strings else ""
    meaning, default = (action.help or "").removesuffix(" ([])"), ""
    if found := DEFAULT.search(meaning):
        stated = found[1]
        if action.default not in (None, argparse.SUPPRESS) or recipe(flag) or stated == "None":
            meaning = meaning[: found.start()]
            default = recipe(flag) or ("" if stated in ("None", "") else f"`{stated}`")
    default = BY_MACHINE.get(flag, default)
    if action.required and action.nargs != "*":
        default = "none, must be given"
    name = flag or action.metavar or action.dest
    if flag and action.metavar and action.nargs != 0:
        name = f"{flag} {action.metavar}"
    if action.choices:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in action.choices)
    cells = [cell.replace("|", "\\|") for cell in (f"`{name}`", default, as_text(meaning))]
    return f"| {' | '.join(cells)} |"


def as_text(text: str) -> str:
    """What stands in <> is a placeholder in a help text, and would be HTML in Markdown."""
    return text.replace("<", "&lt;")


def markdown() -> str:
    """The whole reference: a heading for each command, its purpose, its flags."""
    parts = []
    for module, call in COMMANDS.items():
        parser = parser_of(module)
        parser.prog = call
        purpose = as_text((parser.description or "").strip().splitlines()[0])
        recipe = recipes() if module == "train" else lambda flag: ""
        name = module if "." in module else f"{module}.py"
        parts.append(f"## {name}\n\n{purpose}\n\n{tables(parser, recipe)}")
    return '<div class="flags" markdown>\n\n' + "\n".join(parts) + "\n</div>\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
