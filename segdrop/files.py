"""Files: written whole or not at all, as JSON and CSV, and told apart by their content."""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then put the file into place; leave nothing on failure."""
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files as `write_atomically` does one, and put them into place, in their order, once all are written; leave
    none on failure."""
    placed: list[Path] = []
    try:
        for path, write in writers.items():
            with _naming(path):
                write(_partial(path))
        for path in writers:
            with _naming(path):
                os.replace(_partial(path), path)
            placed.append(path)
    except BaseException:
        _remove(placed)
        raise
    finally:
        _remove(map(_partial, writers))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # in a folder that is gone; it would hide what went wrong before
            path.unlink()


def _partial(path: Path) -> Path:
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix  # writers choose the format by it
    return path.with_name(f".{path.name.removesuffix(ending)}.partial{ending}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error about a temporary file, or about none, names the file that was to be."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(_partial(path)):
            error.filename = str(path)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a killed `write_atomically` left."""
    for path in folder.glob(".*.partial*"):
        path.unlink(missing_ok=True)


def _plain(value):
    """What JSON does not know by itself: NumPy's numbers and paths."""
    return value.item() if isinstance(value, np.generic) else os.fspath(value)


# What is no text, of file names in another encoding, is written as JSON's escape of it.
def write_json(path: Path, content: Mapping | Sequence) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=_plain) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_csv(path: Path, rows: Sequence[Mapping], columns: Sequence[str] | None = None) -> None:
    """Rows of equal keys, which are the columns unless these are given; floats with all their digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda p: p.write_text(buffer.getvalue(), encoding="utf-8", errors="backslashreplace"))
