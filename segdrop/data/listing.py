"""Which files a data set consists of: a folder of images and masks, or a CSV."""

import csv
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..conventions import IGNORED
from ..errors import InputError
from ..images.opening import is_image, stem
from .problems import told


@dataclass
class Listing:
    """The files of a data set, and what its tables say.

    Attributes:
        pairs: image and mask by id.
        table: what is said of an id, by column.
        elsewhere: for each of splits.csv and groups.csv the ids that are no image file's: of slices, or of nothing.
        problems: what is wrong with it.
    """

    pairs: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    table: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    elsewhere: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_OWNED = {"split": "splits.csv", "group": "groups.csv"}  # columns that other files may have, too, and not decide


def list_folder(path: Path) -> Listing:
    """The pairs of `images/` and `masks/` with the same stem, and what the CSV files beside them say."""
    listing = Listing()
    images, masks = (_files_in(path, part, listing) for part in ("images", "masks"))
    without_mask = [images[i].name for i in sorted(set(images) - set(masks))]
    without_image = [masks[i].name for i in sorted(set(masks) - set(images))]
    listing.problems += told(without_mask, "{n} image(s) have no mask in masks/")
    listing.problems += told(without_image, "{n} mask(s) have no image in images/")
    listing.pairs = {i: (images[i], masks[i]) for i in set(images) & set(masks)}
    for file in sorted(path.glob("*.csv")):
        _add_table(file, set(images), listing)
    return listing


def _files_in(path: Path, part: str, listing: Listing) -> dict[str, Path]:
    """The image files of a folder by their stems."""
    folder = path / part
    if not folder.is_dir():
        raise FileNotFoundError(f"`data` has no folder {part}/: {path}; it needs images/ and masks/, same stems.")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if is_image(file) and not file.name.startswith("."):
            name = stem(file)
            if name in files:
                listing.problems.append(f"two files for one id in {part}/: {files[name].name}, {file.name}")
            files[name] = file
    return files


def _add_table(file: Path, images: set[str], listing: Listing) -> None:
    rows, special = _read_csv(file), file.name in _OWNED.values()
    needed = {"id", *(column for column, owner in _OWNED.items() if owner == file.name)}
    if not rows or not needed <= set(rows[0]):
        if special:
            columns = " and ".join(sorted(needed, key=len))
            listing.problems.append(f"{file.name} needs a header with the columns {columns}")
        return
    if special:
        listing.elsewhere[file.name] = [row["id"] for row in rows if row["id"] not in images]
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    listing.problems += told(repeated, f"{{n}} id(s) stand twice in {file.name}")
    for row in rows:
        listing.table[row["id"]].update({k: v for k, v in row.items() if _OWNED.get(k, file.name) == file.name})


def list_csv(path: Path) -> Listing:
    """The pairs that a CSV file with the columns image and mask names, paths relative to it."""
    rows = _read_csv(path)
    if not rows or not {"image", "mask"} <= set(rows[0]):
        raise InputError(f"{path} needs a header with the columns image and mask.")
    listing = Listing()
    incomplete, repeated, missing = [], [], []
    for number, row in enumerate(rows, start=2):
        if not row["image"] or not row["mask"]:
            incomplete.append(f"line {number}")
            continue
        name = (Path(row["image"]).parent / stem(row["image"])).as_posix()
        if name in listing.pairs:
            repeated.append(row["image"])
        files = path.parent / row["image"], path.parent / row["mask"]
        absent = [str(file) for file in files if not file.is_file()]
        missing += absent
        if not absent:
            listing.pairs[name], listing.table[name] = files, row
    listing.problems += told(incomplete, "{n} row(s) without image or mask")
    listing.problems += told(repeated, "{n} image(s) listed twice")
    listing.problems += told(missing, "{n} file(s) do not exist")
    return listing


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a UTF-8 CSV file: {error}.") from error
    longer = [number for number, row in enumerate(rows, start=2) if None in row]
    if longer:
        raise InputError(f"{path} has more fields than columns in line {longer[0]}; quote those that hold commas.")
    return rows


def read_classes(folder: Path) -> tuple[dict[int, str], dict | None]:
    """Class names by index, and the class index by RGB colour where colours are given."""
    path = folder / "classes.json"
    if not path.is_file():
        return {}, None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        entries = dict(enumerate(stored)) if isinstance(stored, list) else {int(k): v for k, v in stored.items()}
        if sorted(entries) != list(range(len(entries))) or not 1 < len(entries) < IGNORED:
            raise ValueError(
                f"{len(entries)} class(es)" if isinstance(stored, list) else "the keys must be 0, 1, 2, ..."
            )
        names = {k: v if isinstance(v, str) else v["name"] for k, v in entries.items()}
        colours = {tuple(v["color"]): k for k, v in entries.items() if not isinstance(v, str)}
        return names, colours or None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} must look like {{"0": "background", "1": "cell"}}, ["background", "cell"] or, for coloured masks, '
            f'{{"0": {{"name": "background", "color": [0, 0, 0]}}, ...}}: {error}.'
        ) from error
