"""Stored files, read wholly and checked against the type of what they hold: the one way to read what segdrop wrote.

A record is a dataclass or a TypedDict; pydantic compares the file with its hints. Whatever does not fit is one line:
which file, where in it, and what to do.
"""

import contextlib
import csv
import functools
import io
import typing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError, first_line

SCHEMA = 1  # of all files in a folder of segdrop's; config.json and sweep.json name it
LARGEST = 2**28  # bytes of a stored text: a hundred times what the largest sets need
_TOLD = 60  # characters of a value that is wrong
_MEMBERS = ("bool", "int", "float", "str")  # of unions

T = TypeVar("T")
Upgrade = typing.Callable[[dict], dict]


def open_ended(kind: T) -> T:
    """Let a TypedDict have more than it names, as a later version may write it; what it does not name is kept."""
    kind.__pydantic_config__ = {"extra": "allow"}  # pyright: ignore[reportAttributeAccessIssue]
    return kind


def is_number(text: str) -> str:
    """`text`, which is a number, or empty where there is none.

    Raises:
        ValueError: it is neither.
    """
    if text:
        try:
            float(text)
        except ValueError:
            raise ValueError("should be a number, or empty") from None
    return text


def read_text(path: Path, advice: str) -> str:
    """The file's text.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is none of ours, being too large, a folder, or no UTF-8.
    """
    if not path.is_file() and path.exists():
        raise InputError(f"{path} is a folder, or no file of any kind; {advice}.")
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path} is damaged: it has {path.stat().st_size / 1e6:.0f} MB; {advice}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: byte {error.start} is no UTF-8; {advice}.") from error


def read_json(path: Path, kind: type[T], advice: str, upgrade: Upgrade | None = None) -> T:
    """The record that `write_json` wrote.

    Args:
        kind: the dataclass or TypedDict of the record.
        advice: what the user can do about a file that does not fit, as the end of a sentence.
        upgrade: brings what earlier versions wrote up to date.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it does not fit, or is of a later version.
    """
    from pydantic_core import from_json

    text = read_text(path, advice)
    try:
        content = from_json(text)
    except ValueError as error:  # not JSON, or nested beyond all measure
        raise InputError(f"{path} is damaged: {first_line(error)}; {advice}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no record, but {shortened(content)}; {advice}.")
    schema = content.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise InputError(
            f"{path} was made by another version of segdrop: its `schema` is {shortened(schema)}, and this one reads "
            f"{SCHEMA}; install that version."
        )
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):  # another form, which is told below
        content = content if upgrade is None else upgrade(content)
    return fit(kind, content, str(path), advice)


def fit(kind: Any, content: Any, where: str, advice: str = "") -> Any:
    """What JSON gave, as a `kind`; numbers are numbers, and text is text.

    Raises:
        InputError: it does not fit.
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return _adapter(kind).validate_json(to_json(content), strict=True)
    except (ValidationError, PydanticSerializationError) as error:
        raise InputError(_told(error, where, advice)) from error


def read_table(
    path: Path, columns: Mapping[str, Any], advice: str, others: Any = str, unique: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a CSV file that `write_csv` wrote.

    Args:
        columns: the type of each column that there must be.
        others: the type of all other columns but `group`, which is text.
        unique: a column in which no value is there twice.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it does not fit.
    """
    from pydantic import ValidationError

    reader = csv.reader(io.StringIO(read_text(path, advice), newline=""), strict=True)
    lines, rows = [], []
    try:
        header = next(reader, [])
        for row in reader:
            lines.append(reader.line_num)
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} is damaged: line {reader.line_num}: {error}; {advice}.") from error
    for column in columns:
        if column not in header:
            raise InputError(f"{path} is damaged: it has no column `{column}`; {advice}.")
    if len(set(header)) < len(header):
        raise InputError(f"{path} is damaged: a column is there twice; {advice}.")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise InputError(f"{path} is damaged: line {line} has {len(row)} of {len(header)} fields; {advice}.")
    table = {}
    for place, column in enumerate(header):
        kind = columns.get(column, str if column == "group" else others)
        try:
            table[column] = _adapter(list[kind]).validate_python([row[place] for row in rows])
        except ValidationError as error:
            row = error.errors()[0]["loc"][0]
            raise InputError(_told(error, f"{path}, line {lines[row]}, `{column}`", advice, named=True)) from error
    if unique is not None and len(set(table[unique])) < len(rows):
        twice = next(value for i, value in enumerate(table[unique]) if value in table[unique][:i])
        raise InputError(f"{path} is damaged: `{unique}` {shortened(twice)} is there twice; {advice}.")
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


@functools.cache
def _adapter(kind: Any):
    from pydantic import TypeAdapter  # takes a tenth of a second, and most commands read nothing

    return TypeAdapter(kind)


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`, which by itself keeps the last of several values of a key.

    Raises:
        ValueError: a key is there twice.

    Example:
        >>> without_repeats([("lr", [0.1]), ("lr", [0.2])])
        Traceback (most recent call last):
            ...
        ValueError: the key 'lr' is there twice
    """
    for key in (key for key, count in Counter(key for key, _ in pairs).items() if count > 1):
        raise ValueError(f"the key {key!r} is there twice")
    return dict(pairs)


def shortened(value: Any) -> str:
    """A value as Python writes it, in at most a line."""
    text = repr(value)
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}..."


def _told(error: Exception, where: str, advice: str, named: bool = False) -> str:
    """What pydantic found first, in one line; `named`: whether `where` says all of the place."""
    ending = f"; {advice}" if advice else ""
    if not hasattr(error, "errors"):  # what JSON cannot hold
        return f"{where} is damaged: {first_line(error)}{ending}."
    first = error.errors()[0]  # pyright: ignore[reportAttributeAccessIssue]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # of a configuration, which tells all
        return f"{where} does not fit: {str(cause).rstrip('.')}{ending}."
    # Of a union pydantic adds which of its members was tried.
    names = [str(name) for name in first["loc"] if name not in _MEMBERS and "[" not in str(name)]
    place = "" if named or not names else f" `{'.'.join(names)}`"
    if first["type"] in ("missing", "missing_argument"):
        return f"{where} lacks{place}{ending}."
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where} has{place}, which this version of segdrop does not know{ending}."
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("Tuple ")
    return f"{where} does not fit:{place} {rule}, got {shortened(first['input'])}{ending}."
