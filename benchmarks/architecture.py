"""The imports of the product -> docs/architecture.png: its rooms, and which stands on which.

    python benchmarks/architecture.py

Prints each room with what it imports. An import that leads upward ends it with exit code 1. The
picture carries the imports that it shows, so a test can tell when it is out of date.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.png"
INK, GREY, BLUE = "#222222", "#5f6b7a", "#4a78b5"
WALL, GROUND, SCRIPT = "#eef3f9", "#e6e6e6", "#fbf3e6"

LEFT, RIGHT, BOTH = (1.0, 3.9), (6.1, 3.9), (1.0, 9.0)  # left edge and width
ROOMS = {  # room: its floor from the ground up, and the wing it stands in
    "utils": (0, BOTH),
    "corpora": (1, LEFT),
    "models": (1, RIGHT),
    "extract": (2, LEFT),
    "training": (2, RIGHT),
    "evaluation": (3, RIGHT),
    "inference": (4, BOTH),
}
MODULE = re.compile(rf"({'|'.join(ROOMS)})\.[a-z_.]*")
LOADERS = ("import_module", "__import__")
STEP, HEIGHT = 1.5, 1.0  # from floor to floor, and of a room


def imports_of_product() -> dict[str, list[str]]:
    """{room or script: the rooms that it imports}, wherever in a file the import stands."""
    found = {room: imports(sorted((ROOT / room).rglob("*.py"))) - {room} for room in ROOMS}
    found |= {path.name: imports([path]) for path in sorted(ROOT.glob("*.py"))}
    return {name: sorted(rooms) for name, rooms in found.items()}


def imports(files: list[Path]) -> set[str]:
    names = set().union(*(imported(ast.parse(file.read_text())) for file in files))
    return {name.partition(".")[0] for name in names} & set(ROOMS)


def imported(tree: ast.AST) -> set[str]:
    """The modules and names that a file imports. A string such as "extract.hub", or "corpora." at
    the start of an f-string, counts as an import of ours: importlib can be given it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and MODULE.fullmatch(str(node.value)):
            names.add(str(node.value))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(LOADERS) and node.args:
            names.add(ast.unparse(node.args[0]).strip("'"))  # a room alone: "training"
    return names


def upward(found: dict[str, list[str]]) -> list[str]:
    """The imports that do not lead to a lower floor; scripts stand above all rooms."""
    return [
        f"{room} imports {used}"
        for room in ROOMS
        for used in found[room]
        if ROOMS[used][0] >= ROOMS[room][0]
    ]


def draw(found: dict[str, list[str]]) -> Figure:
    figure = Figure((11, 9.6))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 11), ylim=(0, 9.6))
    axis.axis("off")
    for room in ROOMS:
        draw_room(axis, room, found)
        for used in found[room]:
            if used != "utils":
                draw_import(axis, room, used)
    draw_scripts(axis, found)
    draw_border(axis)
    return figure


def draw_border(axis: Any) -> None:
    """Between the wings: one makes what the other reads."""
    low, high = bottom("corpora"), bottom("evaluation") + HEIGHT
    axis.plot([5.35, 5.35], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 4)))
    style = {"rotation": 90, "ha": "center", "va": "center", "color": GREY, "fontsize": 9}
    axis.text(5.22, (low + high) / 2, "makes features/", **style)
    axis.text(5.49, (low + high) / 2, "reads features/", **style)


def bottom(room: str) -> float:
    return 0.35 + STEP * ROOMS[room][0]


def draw_room(axis: Any, room: str, found: dict[str, list[str]]) -> None:
    left, width = ROOMS[room][1]
    color = GROUND if room == "utils" else WALL
    draw_box(axis, left, bottom(room), width, HEIGHT, color)
    text = purpose(room)
    if room == "utils":
        without = [name for name in ROOMS if name != room and room not in found[name]]
        text += f" Imported by all but {', '.join(without)}."
    lines = textwrap.fill(text, 50 if width < 5 else 115)
    top = bottom(room) + HEIGHT
    axis.text(left + 0.15, top - 0.13, f"{room}/", weight="bold", fontsize=12, color=INK, va="top")
    axis.text(left + 0.15, top - 0.43, lines, fontsize=9, color=INK, va="top", linespacing=1.25)


def purpose(room: str) -> str:
    """The first sentence of the room's docstring."""
    doc = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
    return doc.partition("\n")[0].replace("`", "")


def draw_box(axis: Any, x: float, y: float, width: float, height: float, color: str) -> None:
    style = "round,pad=0,rounding_size=0.08"
    box = FancyBboxPatch((x, y), width, height, style, facecolor=color, edgecolor=GREY, zorder=2)
    axis.add_patch(box)


def draw_import(axis: Any, room: str, used: str) -> None:
    """Straight down where nothing stands between, else around it: outside of the wing where the
    room spans both, else inside."""
    (upper, _), (lower, (left, width)) = ROOMS[room], ROOMS[used]
    between = [
        name
        for name, (floor, wing) in ROOMS.items()
        if lower < floor < upper and wing == ROOMS[used][1]
    ]
    middle = left + width / 2
    start, end, bend = (middle, bottom(room)), (middle, bottom(used) + HEIGHT), 0.0
    if between:
        outside = ROOMS[room][1] == BOTH
        at_left = (ROOMS[used][1] == LEFT) == outside
        side, bend = (left, 0.22) if at_left else (left + width, -0.22)
        start = (side, bottom(room) + HEIGHT * (0.3 + 0.2 * len(between)))
        end = (side, bottom(used) + HEIGHT / 2)
    arrow = FancyArrowPatch(
        start,
        end,
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=14,
        color=BLUE,
        linewidth=1.4,
        shrinkA=0,
        shrinkB=1,
        zorder=1,
    )
    axis.add_patch(arrow)


def draw_scripts(axis: Any, found: dict[str, list[str]]) -> None:
    """Each script with the rooms that it imports, in two rows."""
    names = [name for name in found if name not in ROOMS]
    columns = -(-len(names) // 2)
    width = 9.12 / columns
    title = "The commands, and which rooms each imports beside utils/"
    axis.text(1.0, 9.42, title, fontsize=9, color=GREY, va="center")
    for index, name in enumerate(names):
        x, y = 1.0 + width * (index % columns), 8.55 - 0.85 * (index // columns)
        draw_box(axis, x, y, width - 0.12, 0.72, SCRIPT)
        used = [room for room in found[name] if room != "utils"]
        axis.text(x + 0.1, y + 0.62, name, fontsize=9, weight="bold", color=INK, va="top")
        axis.text(x + 0.1, y + 0.33, ", ".join(used), fontsize=7, color=INK, va="top")


def main() -> int:
    found = imports_of_product()
    for name, rooms in found.items():
        print(f"{name:<20}{', '.join(rooms) or 'nothing of ours'}")
    if wrong := upward(found):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    draw(found).savefig(PICTURE, dpi=100, metadata={"Description": json.dumps(found)})
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
