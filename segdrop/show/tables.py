"""A table that prints in a terminal and is written as CSV or JSON."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import write_csv, write_json
from ..printing import printable


class Table(list):
    """Rows, which are dicts of equal keys.

    `print(table)` shows it in a terminal, `table[0]["rate"]` is a value as it is, and `keys` are those of every row, of
    which there may be none.

    Example:
        >>> table = Table([{"layer": "relu0", "rate": 0.1}, {"layer": "relu1", "rate": 0.25}])
        >>> table.to_csv("dropout.csv")
        >>> print(table)
         layer rate
         ──────────
         relu0  0.1
         relu1 0.25
    """

    def __init__(self, rows: Sequence[Mapping], title: str = "", keys: Sequence[str] | None = None):
        super().__init__(rows)
        self.keys = list(keys or (rows[0] if rows else ()))
        self.title = title

    def rich(self):
        """The table for a console of rich's."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(printable(self.title)), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
        )
        for i, key in enumerate(self.keys):
            numeric = all(isinstance(row[key], (int, float)) for row in self)
            justify = "right" if numeric else "left"
            table.add_column(Text(printable(key.replace("_", " "))), justify=justify, overflow="fold", no_wrap=i == 0)
        for row in self:
            table.add_row(*(Text(printable(_format_cell(row[key]))) for key in self.keys))
        return table

    def __str__(self) -> str:
        from .console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=140).print(self.rich() if self else self.title)
        return buffer.getvalue().rstrip("\n")

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write all columns; lists as their members separated by blanks. Without rows, the titles of the columns."""
        rows = [
            {k: " ".join(map(str, v)) if isinstance(v, (list, tuple)) else v for k, v in row.items()} for row in self
        ]
        write_csv(Path(path), rows, self.keys)

    def to_json(self, path: str | os.PathLike) -> None:
        """Write a list of objects."""
        write_json(Path(path), list(self))


def _format_cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
