"""Files: written whole or not at all, as JSON and CSV, and told apart by their content."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then put the file into place; leave nothing on failure."""
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix  # writers choose the format by it
    temporary = path.with_name(f".{path.name.removesuffix(ending)}.partial{ending}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what a killed `write_atomically` left."""
    for path in folder.glob(".*.partial*"):
        path.unlink(missing_ok=True)


# What is no text, of file names in another encoding, is written as JSON's escape of it.
def write_json(path: Path, content: Mapping | Sequence) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_csv(path: Path, rows: Sequence[Mapping], columns: Sequence[str] | None = None) -> None:
    """Rows of equal keys, which are the columns unless these are given; floats with all their digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda p: p.write_text(buffer.getvalue(), encoding="utf-8", errors="backslashreplace"))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
