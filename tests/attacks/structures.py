"""Ways to break JSON, CSV, NumPy's archives, Keras's models and SQLite where they are well formed."""

import contextlib
import csv
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .attack import replace_bytes
from .damage import Damage

WRONG = (
    None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), -1e308, "", "text", "\x1b[31m\x00", "../../etc/passwd",
    "x" * 10_000, [], [[]], [None], {}, {"a": 1}, ["0.1", 0.2],
)  # fmt: skip
DEEP = 100_000


def places(content, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a JSON document, its root's too."""
    yield path
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def _dumped(content) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


def changed_json(text: bytes, rng: np.random.Generator, change: Callable) -> bytes:
    """A document after `change(parent, key, rng)` at one of its places below the root."""
    content = json.loads(text)
    below = [path for path in places(content) if path]
    if not below:
        return _dumped(WRONG[rng.integers(len(WRONG))])
    *way, key = below[rng.integers(len(below))]
    parent = content
    for step in way:
        parent = parent[step]
    change(parent, key, rng)
    return _dumped(content)


def _wrong(parent, key, rng) -> None:
    parent[key] = WRONG[rng.integers(len(WRONG))]


def _of_another_type(parent, key, rng) -> None:
    value = parent[key]
    others = [wrong for wrong in WRONG if type(wrong) is not type(value)]
    parent[key] = others[rng.integers(len(others))]


def _missing(parent, key, rng) -> None:
    del parent[key]


def _renamed(parent, key, rng) -> None:
    if isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    else:
        parent.append(parent.pop(key))


def _unknown(parent, key, rng) -> None:
    if isinstance(parent, dict):
        parent["unknown"] = 1
    else:
        parent.append("unknown")


def _in_json(change: Callable) -> Damage:
    return lambda path, rng: replace_bytes(path, changed_json(path.read_bytes(), rng, change))


def _of_text(change: Callable[[bytes, np.random.Generator], bytes]) -> Damage:
    return lambda path, rng: replace_bytes(path, change(path.read_bytes(), rng))


def _twice_the_key(text: bytes, rng) -> bytes:
    keys = list(json.loads(text)) if text.lstrip().startswith(b"{") else []
    return text.replace(b"{", f'{{"{keys[rng.integers(len(keys))]}": 7, '.encode(), 1) if keys else b"[1, 1]"


JSON: dict[str, Damage] = {
    "with a wrong value": _in_json(_wrong),
    "with a value of another type": _in_json(_of_another_type),
    "without a key": _in_json(_missing),
    "with a renamed key": _in_json(_renamed),
    "with an unknown key": _in_json(_unknown),
    "with a key twice": _of_text(_twice_the_key),
    "with a value nested deeply": _in_json(lambda parent, key, rng: parent.__setitem__(key, _nested(900))),
    "of brackets nested deeply": _of_text(lambda text, rng: b"[" * DEEP + b"]" * DEEP),
    "of braces nested deeply": _of_text(lambda text, rng: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "that is a list": _of_text(lambda text, rng: b"[" + text + b"]"),
    "that is null": _of_text(lambda text, rng: b"null"),
    "that is a number of 5000 digits": _of_text(lambda text, rng: b"9" * 5000),
    "that is a word": _of_text(lambda text, rng: b'"text"'),
    "that is an empty mapping": _of_text(lambda text, rng: b"{}"),
    "with a comma too many": _of_text(lambda text, rng: text.rstrip()[:-1] + b",}"),
    "with a lone surrogate": _in_json(lambda parent, key, rng: parent.__setitem__(key, "\udcff")),
}


def _nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


def _table(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode("utf-8-sig"))))


def _in_table(change: Callable[[list[list[str]], np.random.Generator], object]) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        rows = _table(path.read_bytes())
        change(rows, rng)
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        replace_bytes(path, buffer.getvalue().encode())

    return damage


CELLS = (
    "",
    "nan",
    "inf",
    "-1",
    "1e400",
    "text",
    " ",
    "0.5.5",
    "=1+1",
    "\x1b[31m",
    "../x",
    "x" * 200_000,
    "é",
    '"',
    "1,2",
)


def _cell(rows, rng) -> None:
    row = rows[rng.integers(1, len(rows))]
    row[rng.integers(len(row))] = CELLS[rng.integers(len(CELLS))]


def _without_column(rows, rng) -> None:
    column = rng.integers(len(rows[0]))
    for row in rows:
        del row[column]


def _with_column_twice(rows, rng) -> None:
    column = rng.integers(len(rows[0]))
    for row in rows:
        row.append(row[column])


CSV: dict[str, Damage] = {
    "with a wrong cell": _in_table(_cell),
    "with a row cut short": _in_table(lambda rows, rng: rows.append(rows[-1][: rng.integers(1, len(rows[-1]) + 1)])),
    "with a row of commas": _in_table(lambda rows, rng: rows.insert(1, [""] * len(rows[0]))),
    "without a column": _in_table(_without_column),
    "with a renamed column": _in_table(lambda rows, rng: rows[0].__setitem__(rng.integers(len(rows[0])), "other")),
    "with a column twice": _in_table(_with_column_twice),
    "without its header": _in_table(lambda rows, rng: rows.pop(0)),
    "of its header alone": _in_table(lambda rows, rng: rows.__delitem__(slice(1, None))),
    "with its header twice": _in_table(lambda rows, rng: rows.insert(1, list(rows[0]))),
    "with a row twice": _in_table(lambda rows, rng: rows.append(list(rows[rng.integers(1, len(rows))]))),
    "with all rows twice": _in_table(lambda rows, rng: rows.extend(map(list, rows[1:]))),
    "without a row": _in_table(lambda rows, rng: rows.pop(rng.integers(1, len(rows)))),
    "with a short row": _in_table(lambda rows, rng: rows[rng.integers(1, len(rows))].pop()),
    "with a long row": _in_table(lambda rows, rng: rows[rng.integers(1, len(rows))].extend("more")),
    "with an empty row": _in_table(lambda rows, rng: rows.insert(1, [])),
    "with a row of empty cells": _in_table(lambda rows, rng: rows.insert(1, [""] * len(rows[0]))),
    "with semicolons": _of_text(lambda text, rng: text.replace(b",", b";")),
    "with tabs": _of_text(lambda text, rng: text.replace(b",", b"\t")),
    "with a quote that never ends": _of_text(lambda text, rng: text.replace(b",", b',"', 1)),
    "with a field of 200,000 letters": _of_text(lambda text, rng: text + b"x" * 200_000),
    "with blanks about its cells": _of_text(lambda text, rng: text.replace(b",", b" , ")),
    "with a wrong name in its rows": _in_table(lambda rows, rng: rows[rng.integers(1, len(rows))].__setitem__(0, "?")),
}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def _in_arrays(change: Callable[[dict[str, np.ndarray], np.random.Generator], object]) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        arrays = _arrays(path)
        change(arrays, rng)
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return damage


def _one_of(arrays, rng) -> str:
    return sorted(arrays)[rng.integers(len(arrays))]


def _set(arrays, rng, change) -> None:
    name = _one_of(arrays, rng)
    arrays[name] = change(arrays[name])


def _history(arrays, rng) -> None:
    text = str(arrays["history"]).encode()
    change = (_wrong, _of_another_type, _missing, _renamed)[rng.integers(4)]
    arrays["history"] = np.array(changed_json(text, rng, change).decode())


def _huge_header(path: Path, rng: np.random.Generator) -> None:
    """An array of 8 TB, by its header."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("history.npy", "v0.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


NPZ: dict[str, Damage] = {
    "without an array": _in_arrays(lambda arrays, rng: arrays.pop(_one_of(arrays, rng))),
    "without its history": _in_arrays(lambda arrays, rng: arrays.pop("history")),
    "with a wrong history": _in_arrays(_history),
    "with a history that is no JSON": _in_arrays(lambda arrays, rng: arrays.update(history=np.array("{"))),
    "with an empty history": _in_arrays(lambda arrays, rng: arrays.update(history=np.array("[]"))),
    "with a history nested deeply": _in_arrays(lambda arrays, rng: arrays.update(history=np.array("[" * DEEP))),
    "with an array of another shape": _in_arrays(lambda a, rng: _set(a, rng, lambda v: np.zeros((3, 5, 7)))),
    "with an array of text": _in_arrays(lambda a, rng: _set(a, rng, lambda v: np.array(["a", "b"]))),
    "with an array of NaN": _in_arrays(lambda a, rng: _set(a, rng, lambda v: np.full(np.shape(v), np.nan))),
    "with a pickled array": _in_arrays(lambda a, rng: _set(a, rng, lambda v: np.array([{"a": 1}, None], object))),
    "with an array of 8 TB": _huge_header,
    "with no arrays": lambda path, rng: zipfile.ZipFile(path, "w").close(),
}


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _in_archive(change: Callable[[dict[str, bytes], np.random.Generator], object]) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        members = _members(path)
        change(members, rng)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return damage


def _config_of(change: Callable) -> Damage:
    def in_members(members, rng) -> None:
        members["config.json"] = changed_json(members["config.json"], rng, change)

    return _in_archive(in_members)


def _weights_of(change: Callable[[bytes], bytes]) -> Damage:
    return _in_archive(lambda m, rng: m.update({"model.weights.h5": change(m["model.weights.h5"])}))


KERAS: dict[str, Damage] = {
    "with a wrong value in its config": _config_of(_wrong),
    "with a value of another type in its config": _config_of(_of_another_type),
    "without a key in its config": _config_of(_missing),
    "with a renamed key in its config": _config_of(_renamed),
    "with an unknown layer": _in_archive(
        lambda m, rng: m.update({"config.json": m["config.json"].replace(b'"Conv2D"', b'"Unknown"', 1)})
    ),
    "with a config that is no JSON": _in_archive(lambda m, rng: m.update({"config.json": b"{"})),
    "with a config nested deeply": _in_archive(lambda m, rng: m.update({"config.json": b"[" * DEEP})),
    "without its config": _in_archive(lambda m, rng: m.pop("config.json")),
    "without its weights": _in_archive(lambda m, rng: m.pop("model.weights.h5")),
    "with empty weights": _weights_of(lambda content: b""),
    "with weights cut in half": _weights_of(lambda content: content[: len(content) // 2]),
    "with weights of rubbish": _weights_of(lambda content: b"\x89HDF\r\n\x1a\n" + b"\xff" * 2000),
    "without its metadata": _in_archive(lambda m, rng: m.pop("metadata.json")),
    "that is an empty archive": lambda path, rng: zipfile.ZipFile(path, "w").close(),
}


def _in_database(change: Callable[[sqlite3.Connection, np.random.Generator], object]) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            change(database, rng)

    return damage


def _any_table(database: sqlite3.Connection, rng) -> str:
    names = sorted(row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'"))
    return names[rng.integers(len(names))]


def _any_cell(database: sqlite3.Connection, rng, value) -> None:
    full = ("trials", "trial_user_attributes", "trial_system_attributes", "trial_values", "studies", "version_info")
    table = full[rng.integers(len(full))]
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[5] == 0]  # no primary key
    column = columns[rng.integers(len(columns))]
    with contextlib.suppress(sqlite3.IntegrityError):
        database.execute(f"UPDATE {table} SET {column} = ?", (value,))


SQLITE: dict[str, Damage] = {
    "without a table": _in_database(lambda db, rng: db.execute(f"DROP TABLE {_any_table(db, rng)}")),
    "with an empty table": _in_database(lambda db, rng: db.execute(f"DELETE FROM {_any_table(db, rng)}")),
    "with a text in a column": _in_database(lambda db, rng: _any_cell(db, rng, "text")),
    "with nothing in a column": _in_database(lambda db, rng: _any_cell(db, rng, None)),
    "with bytes in a column": _in_database(lambda db, rng: _any_cell(db, rng, b"\xff\x00")),
    "with a number in a column": _in_database(lambda db, rng: _any_cell(db, rng, -1)),
    "with JSON of another type in a column": _in_database(lambda db, rng: _any_cell(db, rng, "[]")),
    "of another program": _in_database(
        lambda db, rng: [db.execute(f"DROP TABLE {name}") for (name,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type='table'").fetchall()] + [db.execute("CREATE TABLE mine (a)")]
    ),
}  # fmt: skip
