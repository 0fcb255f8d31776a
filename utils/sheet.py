"""A submission sheet: read the ids, write the answers, leave every other byte as it was."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from utils.errors import IntegrityError, UsageError

ID_COLUMN, ANSWER_COLUMN = "FileID", "Emotion"
BOM = "\ufeff"


class Sheet:
    """Rows keep their order, separator, quotes, line ends and further columns."""

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.text = self.path.read_bytes().decode()
        except OSError as error:
            raise UsageError(f"no submission sheet {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: {error}") from error
        lines = self.text.removeprefix(BOM).splitlines()
        header = lines[0] if lines else ""
        self.separator = max(",;\t", key=header.count)
        self.columns = [unquote(field) for field in self.split(header)]
        for name in (ID_COLUMN, ANSWER_COLUMN):
            if self.columns.count(name) > 1:
                raise UsageError(f"{path} has the column {name} twice")
        if ID_COLUMN not in self.columns:
            have = ", ".join(self.columns)
            raise UsageError(f"{path} has no column {ID_COLUMN}; its header is: {have}")
        rows = [self.split(line) for line in lines[1:] if self.holds(line)]
        ragged = [number for number, row in enumerate(rows, 2) if len(row) != len(self.columns)]
        if ragged:
            raise UsageError(f"{path} line {ragged[0]}: expected {len(self.columns)} fields")
        at = self.columns.index(ID_COLUMN)
        for name in (row[at] for row in rows):
            if name.startswith('"') and not name[1:].endswith('"'):
                raise UsageError(f"{path}: the quote of {name} is not closed")
        self.ids = [unquote(row[self.columns.index(ID_COLUMN)]) for row in rows]
        twice = [clip_id for clip_id, count in Counter(self.ids).items() if count > 1]
        if twice or not rows:
            what = f"lists {', '.join(twice[:10])} more than once" if twice else "lists no clips"
            raise IntegrityError(f"{path} {what}")

    def split(self, line: str) -> list[str]:
        """Fields of a line as they are written, quotes included."""
        field = rf'((?:"(?:[^"]|"")*")|[^{self.separator}]*)'
        return re.findall(rf"{field}(?:{self.separator}|$)", line + self.separator)[:-1]

    def holds(self, line: str) -> bool:
        """Whether there is anything in a line but separators."""
        return bool(line.replace(self.separator, "").strip())

    def filled(self, answers: dict[str, str]) -> bytes:
        """The sheet with each row's answer in the column Emotion, added when there is none."""
        new = ANSWER_COLUMN not in self.columns
        at = len(self.columns) if new else self.columns.index(ANSWER_COLUMN)
        lines = self.text.removeprefix(BOM).splitlines(keepends=True)
        done = [self._with(lines[0], at, ANSWER_COLUMN)] if new else [lines[0]]
        for line in lines[1:]:
            fields = self.split(line.rstrip("\r\n"))
            clip_id = unquote(fields[self.columns.index(ID_COLUMN)]) if self.holds(line) else ""
            done.append(self._with(line, at, answers[clip_id]) if self.holds(line) else line)
        return (BOM * self.text.startswith(BOM) + "".join(done)).encode()

    def _with(self, line: str, at: int, value: str) -> str:
        content = line.rstrip("\r\n")
        fields = self.split(content)
        fields[at : at + 1] = [value]
        return self.separator.join(fields) + line[len(content) :]


def unquote(field: str) -> str:
    return field[1:-1].replace('""', '"') if field[:1] == '"' else field
