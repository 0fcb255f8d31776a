"""Which installed fonts can write a text, and what stands in a picture where none can."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

# Tried first, for their looks; then any other font that is installed.
PREFERRED = (
    "Noto Sans CJK KR",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "PingFang SC",
    "Noto Sans",
)
NO_LETTERS = ("Last Resort", "LastResort", "Color Emoji")  # boxes for everything, or bitmaps
EAST_ASIAN = ("Hangul", "Cjk", "Hiragana", "Katakana", "Bopomofo")
SPELLED = 12  # characters that no font has and that are written as code points; more are counted

_told: set[str] = set()  # the scripts that were said to lack a font


def drawable(text: str) -> tuple[str, list[str]]:
    """The text as this machine can draw it, and the fonts that it needs besides the standard one.

    What no installed font has becomes code points (U+AE30), and one line on stderr for each script
    says so and how to get a font.
    """
    needed = set(filter(is_visible, text)) - glyphs_of_standard()
    if not needed:
        return text, []
    fonts, lacking = fonts_for("".join(sorted(needed)))
    if lacking:
        tell(text, lacking)
        text = spelled(text, set(lacking))
    return text, list(fonts)


def is_visible(letter: str) -> bool:
    return not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")


@lru_cache(maxsize=1000)
def fonts_for(letters: str) -> tuple[tuple[str, ...], str]:
    """(names of fonts that together have the letters, the letters that none has)."""
    wanted, found = set(letters), []
    for name, path, index in candidates():
        if have := within(wanted, path, index):
            found.append(name)
            wanted -= have
        if not wanted:
            break
    return tuple(found), "".join(sorted(wanted))


def within(letters: set[str], path: str, index: int = 0) -> set[str]:
    """Those of the letters that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path, face_index=index) if index else FT2Font(path)
        return {letter for letter in letters if font.get_char_index(ord(letter))}
    except (RuntimeError, OSError, TypeError):
        return set()


def candidates() -> Iterable[tuple[str, str, int]]:
    """(name, file, face) of upright fonts, preferred ones first. Last those that were installed
    after matplotlib made its list, which it does once."""
    from matplotlib import font_manager

    known = font_manager.fontManager

    def listed(entries: Iterable[Any]) -> list[tuple[str, str, int]]:
        upright = [
            entry
            for entry in entries
            if entry.style == "normal" and not any(name in entry.name for name in NO_LETTERS)
        ]
        ranks = {name: place for place, name in enumerate(PREFERRED)}
        upright.sort(key=lambda e: (ranks.get(e.name, len(ranks)), e.weight != 400, e.name))
        return [(e.name, e.fname, getattr(e, "index", 0)) for e in upright]

    yield from listed(known.ttflist)
    files, old = {entry.fname for entry in known.ttflist}, len(known.ttflist)
    for path in font_manager.findSystemFonts():
        if path not in files:
            try:
                known.addfont(path)
            except Exception:  # a damaged font, of whatever kind
                continue
    yield from listed(known.ttflist[old:])


@lru_cache(maxsize=1)
def glyphs_of_standard() -> frozenset[str]:
    """The characters of matplotlib's own font, which is always there."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(findfont(FontProperties(family="DejaVu Sans"))))
    return frozenset(map(chr, font.get_charmap()))


def script_of(letter: str) -> str:
    """Hangul, Cjk, Arabic, Devanagari ..., by the letter's name in Unicode."""
    return unicodedata.name(letter, "unnamed").split()[0].split("-")[0].capitalize()


def tell(text: str, lacking: str) -> None:
    """One line for each script, once."""
    for script in sorted({script_of(letter) for letter in lacking} - _told):
        _told.add(script)
        letters = "".join(x for x in lacking if script_of(x) == script)[:8]
        package = "fonts-noto-cjk" if script in EAST_ASIAN else "fonts-noto-core"
        name = "Chinese characters" if script == "Cjk" else script
        print(
            f"pictures: no installed font has {name} ({letters}): code points stand instead; "
            f"install a font (Debian: apt install {package}) or put a .ttf into "
            "~/.local/share/fonts",
            file=sys.stderr,
        )


def spelled(text: str, lacking: set[str]) -> str:
    """Code points for these letters; of a long text only how many they are."""
    count = sum(letter in lacking for letter in text)
    if count > SPELLED:
        scripts = "/".join(sorted({script_of(letter) for letter in lacking}))
        return f"({count} letters of {scripts}: no font here)"
    parts = [f" U+{ord(letter):04X} " if letter in lacking else letter for letter in text]
    return "\n".join(" ".join(line.split()) for line in "".join(parts).split("\n"))


def columns(text: str) -> int:
    """How wide a text is, in letters of Latin: a Chinese one counts two, an accent none."""
    wide = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
    return wide - sum(unicodedata.category(letter) in ("Mn", "Cf") for letter in text)


def padded(text: str, width: int, left: bool = False) -> str:
    """The text with spaces up to so many columns, on its right side with `left`."""
    space = " " * max(0, width - columns(text))
    return text + space if left else space + text


def shortened(text: str, width: int) -> str:
    """At most so many columns: the middle of a longer text becomes …"""
    if columns(text) <= width:
        return text
    start, end, half = "", "", (width - 1) / 2
    for letter in text:
        if columns(start + letter) > half:
            break
        start += letter
    for letter in reversed(text):
        if columns(letter + end) > half:
            break
        end = letter + end
    return f"{start}…{end}"


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """The text in lines of so many columns, cut within a word where it must be; at most `lines`."""
    rows, cut = [""], [False]  # and whether a row goes on with the word of the one before
    for word in shortened(text, width * lines - lines + 1).split(" "):
        if rows[-1] and columns(f"{rows[-1]} {word}") <= width:
            rows[-1] += f" {word}"
            continue
        if rows[-1]:
            rows.append("")
            cut.append(False)
        for letter in word:
            if columns(rows[-1] + letter) > width:
                rows.append("")
                cut.append(True)
            rows[-1] += letter
    if len(rows) > lines:  # words that fill their lines badly
        more = zip(rows[lines:], cut[lines:], strict=True)
        joined = rows[lines - 1] + "".join(row if goes_on else f" {row}" for row, goes_on in more)
        rows = [*rows[: lines - 1], shortened(joined, width)]
    return "\n".join(rows)
