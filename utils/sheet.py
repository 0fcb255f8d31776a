"""A submission sheet: read the ids, write the predictions, leave every other byte as it was."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from utils.errors import IntegrityError, UsageError, listed
from utils.files import read_text

ID_COLUMN, PREDICTION_COLUMN = "FileID", "Emotion"
BOM = "\ufeff"
SEPARATOR_LINE = re.compile(r"\ufeff?sep=([,;\t])\r?\n", re.IGNORECASE)  # Excel's, above the header


class Sheet:
    """Rows keep their order, separator, quotes, line ends and further columns."""

    def __init__(self, path: Path):
        self.path = Path(path)
        text = read_text(self.path, mark=True)
        said = SEPARATOR_LINE.match(text)
        self.mark = said.group() if said else BOM if text.startswith(BOM) else ""
        text = text.removeprefix(self.mark)
        self.separator = said[1] if said else max(",;\t", key=text.partition("\n")[0].count)
        quoted = rf'[ ]*"(?:[^"]|"")*"[ ]*(?=[{self.separator}\r\n]|\Z)'
        self.field = rf"{quoted}|[^{self.separator}\r\n]*"
        self.lines = self._records(text)
        self.columns = [unquote(field) for field in self._split(self.lines[0])]
        self._check_columns()
        names = [name.casefold() for name in self.columns]
        self.id_column = names.index(ID_COLUMN.casefold())
        prediction = PREDICTION_COLUMN.casefold()
        self.prediction_column = names.index(prediction) if prediction in names else len(names)
        self.ids = [self._id(line, number) for number, line in self._rows()]
        self._check_ids()

    def filled(self, predictions: dict[str, str]) -> bytes:
        """The sheet with each row's prediction in the column Emotion, added when there is none."""
        lines = list(self.lines)
        if self.prediction_column == len(self.columns):
            lines[0] = self._with_field(lines[0], PREDICTION_COLUMN)
        for number, line in self._rows():
            prediction = predictions[self._id(line, number)]
            lines[number - 1] = self._with_field(line, prediction)
        return (self.mark + "".join(lines)).encode()

    def _check_columns(self) -> None:
        names = [name.casefold() for name in self.columns]
        for name in (ID_COLUMN, PREDICTION_COLUMN):
            if names.count(name.casefold()) > 1:
                raise UsageError(f"{self.path} has the column {name} twice")
        if ID_COLUMN.casefold() not in names:
            have = ", ".join(self.columns)
            raise UsageError(f"{self.path} has no column {ID_COLUMN}; its header is: {have}")

    def _check_ids(self) -> None:
        twice = [clip_id for clip_id, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise IntegrityError(f"{self.path} lists {listed(twice, 10)} more than once")
        if not self.ids:
            raise IntegrityError(f"{self.path} lists no clips")

    def _records(self, text: str) -> list[str]:
        """The rows as they are written, with their line ends; a field in quotes may hold some."""
        record = rf"(?:{self.field})(?:{self.separator}(?:{self.field}))*(?:\r\n|\r|\n|\Z)"
        return [found.group() for found in re.finditer(record, text) if found.group()] or [""]

    def _rows(self) -> Iterator[tuple[int, str]]:
        """(number, row) below the header, without rows of nothing but separators."""
        for number, line in enumerate(self.lines[1:], 2):
            if line.replace(self.separator, "").strip():
                yield number, line

    def _id(self, line: str, number: int) -> str:
        fields = self._split(line)
        if len(fields) != len(self.columns):
            lines = (self.mark + "".join(self.lines[: number - 1])).splitlines()
            place = f"{self.path} line {len(lines) + 1}"
            raise UsageError(f"{place}: expected {len(self.columns)} fields")
        name = fields[self.id_column].strip()
        if name.startswith('"') and not name[1:].endswith('"'):
            raise UsageError(f"{self.path}: the quote of {name} is not closed")
        return unquote(name)

    def _split(self, line: str) -> list[str]:
        """Fields of a row as they are written, quotes included."""
        content = line.rstrip("\r\n") + self.separator
        return re.findall(rf"({self.field}){self.separator}", content)

    def _with_field(self, line: str, value: str) -> str:
        """The row with `value` in the column of the answers, or behind the last one."""
        fields = self._split(line)
        fields[self.prediction_column : self.prediction_column + 1] = [value]
        return self.separator.join(fields) + line[len(line.rstrip("\r\n")) :]


def unquote(field: str) -> str:
    field = field.strip()
    if field.startswith('"'):
        return field[1:-1].replace('""', '"')
    return field
