"""A submission sheet: read the ids, write the predictions, leave every other byte as it was."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from utils.errors import IntegrityError, UsageError, listed

ID_COLUMN, PREDICTION_COLUMN = "FileID", "Emotion"
BOM = "\ufeff"


class Sheet:
    """Rows keep their order, separator, quotes, line ends and further columns."""

    def __init__(self, path: Path):
        self.path = Path(path)
        text = self._read()
        self.mark = BOM if text.startswith(BOM) else ""
        self.lines = io.StringIO(text.removeprefix(BOM), newline="").readlines() or [""]
        self.separator = max(",;\t", key=self.lines[0].count)
        self.columns = [unquote(field) for field in self._split(self.lines[0])]
        self._check_columns()
        self.ids = [self._id(line, number) for number, line in self._rows()]
        self._check_ids()

    def filled(self, predictions: dict[str, str]) -> bytes:
        """The sheet with each row's prediction in the column Emotion, added when there is none."""
        lines = list(self.lines)
        if PREDICTION_COLUMN in self.columns:
            column = self.columns.index(PREDICTION_COLUMN)
        else:
            column = len(self.columns)
            lines[0] = self._with_field(lines[0], column, PREDICTION_COLUMN)
        for number, line in self._rows():
            prediction = predictions[self._id(line, number)]
            lines[number - 1] = self._with_field(line, column, prediction)
        return (self.mark + "".join(lines)).encode()

    def _read(self) -> str:
        try:
            return self.path.read_bytes().decode()
        except OSError as error:
            raise UsageError(f"no submission sheet {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path} is not UTF-8 text: {error}") from error

    def _check_columns(self) -> None:
        for name in (ID_COLUMN, PREDICTION_COLUMN):
            if self.columns.count(name) > 1:
                raise UsageError(f"{self.path} has the column {name} twice")
        if ID_COLUMN not in self.columns:
            have = ", ".join(self.columns)
            raise UsageError(f"{self.path} has no column {ID_COLUMN}; its header is: {have}")

    def _check_ids(self) -> None:
        twice = [clip_id for clip_id, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise IntegrityError(f"{self.path} lists {listed(twice, 10)} more than once")
        if not self.ids:
            raise IntegrityError(f"{self.path} lists no clips")

    def _rows(self) -> Iterator[tuple[int, str]]:
        """(line number, line) below the header, without lines of nothing but separators."""
        for number, line in enumerate(self.lines[1:], 2):
            if line.replace(self.separator, "").strip():
                yield number, line

    def _id(self, line: str, number: int) -> str:
        fields = self._split(line)
        if len(fields) != len(self.columns):
            raise UsageError(f"{self.path} line {number}: expected {len(self.columns)} fields")
        name = fields[self.columns.index(ID_COLUMN)]
        if name.startswith('"') and not name[1:].endswith('"'):
            raise UsageError(f"{self.path}: the quote of {name} is not closed")
        return unquote(name)

    def _split(self, line: str) -> list[str]:
        """Fields of a line as they are written, quotes included."""
        field = rf'((?:"(?:[^"]|"")*")|[^{self.separator}]*)'
        content = line.rstrip("\r\n") + self.separator
        return re.findall(rf"{field}(?:{self.separator}|$)", content)[:-1]

    def _with_field(self, line: str, column: int, value: str) -> str:
        """The line with `value` in that column, or behind the last one."""
        fields = self._split(line)
        fields[column : column + 1] = [value]
        return self.separator.join(fields) + line[len(line.rstrip("\r\n")) :]


def unquote(field: str) -> str:
    if field.startswith('"'):
        return field[1:-1].replace('""', '"')
    return field
