"""Which files a data set consists of: a folder of images and masks, or a CSV."""

import csv
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from ..conventions import IGNORED
from ..errors import InputError
from ..images.opening import is_image, stem
from ..typed import without_repeats
from .layouts import Reading, by_id, read_layout
from .outlines import Drawing, Outlines, read_outlines
from .overlapping import read_by_class
from .patterns import read_patterns
from .problems import pairs_in_words, told
from .truth import Truth


@dataclass
class Listing:
    """The files of a data set, and what its tables say.

    Attributes:
        pairs: image and where its mask comes from, by id.
        images: ids of all image files, with a mask or without.
        names: of the classes, where annotations tell them.
        said: how images and masks were paired, in one line.
        table: what is said of an id, by column.
        contested: by column the ids of which two tables say different things.
        elsewhere: for each of splits.csv and groups.csv the ids that are no image file's: of slices, or of nothing.
        problems: what is wrong with it.
    """

    pairs: dict[str, tuple[Path, Truth]] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    said: str = ""
    table: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    contested: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    elsewhere: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_OWNED = {"split": "splits.csv", "group": "groups.csv"}  # columns that other files may have, too, and not decide


def list_folder(
    path: Path,
    images: str | None = None,
    masks: str | None = None,
    annotator: str | None = None,
    multilabel: bool = False,
) -> Listing:
    """The pairs of a folder, and what the CSV files in it say: by two patterns; else, for `multilabel`, by a folder of
    masks for each class; else those of `images/` and `masks/` with the same stem; else as the names of its folders and
    files tell."""
    _refuse_odd_names(path)
    listing = _list_by_class(path, annotator) if multilabel and images is None else Listing()
    if not listing.pairs and images is None and annotator is None:
        listing = _list_plain(path)
    if not listing.pairs:
        files = _image_files(path)
        if images is not None:
            reading, outlines = read_patterns(files, images, str(masks)), Outlines()
        else:
            reading = read_layout(files, annotator)
            outlines = read_outlines(path, files, _tables(path), read_classes(path)[0], multilabel)
        if reading.pairs and outlines.pairs:
            mask, table = (next(iter(pairs)).masks[0] for pairs in (reading.pairs.values(), outlines.pairs))
            raise InputError(
                f"`data` can be read in two ways: {reading.said}, or with the outlines in {table}; choose the masks by "
                f"--images and --masks, or move {PurePosixPath(mask).parent} elsewhere."
            )
        if outlines.pairs:
            listing = _listing_of(path, Reading(by_id(outlines.pairs), outlines.said), outlines.drawings)
            listing.names = outlines.names
        elif reading.pairs or images is not None:
            listing = _listing_of(path, reading)
        elif not all((path / part).is_dir() for part in ("images", "masks")):
            part = "masks" if (path / "images").is_dir() else "images"
            known = [f"its {len(files)} image file(s) pair in no other way known: {path}", *outlines.damaged]
            raise FileNotFoundError(
                f"`data` has no folder {part}/, and {'; '.join(known)}; "
                f"it needs images/ and masks/, same stems, or --images and --masks (data/README.md shows all layouts)."
            )
    for file in sorted(path.glob("*.csv")):
        _add_table(file, listing)
    return listing


def _refuse_odd_names(path: Path) -> None:
    """Raise InputError where a name is not UTF-8: it could stand in no table."""
    for folder, _, files in os.walk(path):
        for file in (Path(folder, name) for name in files):
            if str(file) != str(file).encode("utf-8", "replace").decode() and is_image(file):
                raise InputError(f"the name of {file} is not UTF-8; rename it.")


def _list_by_class(path: Path, annotator: str | None) -> Listing:
    """The pairs of images with the masks of each class; none where no folders tell classes."""
    reading, names = read_by_class(_image_files(path), read_classes(path)[0], annotator)
    listing = _listing_of(path, reading, by_class=True)
    listing.names = names
    return listing


def _list_plain(path: Path) -> Listing:
    """The pairs of `images/` and `masks/` with the same stem."""
    listing = Listing()
    images, masks = (_files_in(path, part, listing) for part in ("images", "masks"))
    without_mask = [images[i].name for i in sorted(set(images) - set(masks))]
    without_image = [masks[i].name for i in sorted(set(masks) - set(images))]
    listing.problems += told(without_mask, "{n} image(s) have no mask in masks/")
    listing.problems += told(without_image, "{n} mask(s) have no image in images/")
    listing.images = set(images)
    listing.pairs = {i: (images[i], Truth((masks[i],))) for i in set(images) & set(masks)}
    listing.said = f"{pairs_in_words(len(listing.pairs))}: images/ with masks/, same names"
    if deeper := [file for file in _image_files(path / "images") if "/" in file]:
        listing.said += f"; {len(deeper)} image(s) in subfolders left out, first images/{deeper[0]}"
    return listing


def _tables(path: Path) -> list[str]:
    """The JSON files in a folder and its subfolders that may hold annotations, relative to it."""
    inside = [file.relative_to(path) for file in sorted(path.rglob("*.json")) if file.is_file()]
    return [file.as_posix() for file in inside if not any(part.startswith(".") for part in file.parts)]


def _listing_of(
    path: Path,
    reading: Reading,
    drawings: Mapping[str, Drawing] = MappingProxyType({}),
    by_class: bool = False,
) -> Listing:
    """The files that a reading of a folder's names has paired, and what is drawn on some of them."""
    pairs = {
        name: (
            path / pair.image,
            Truth(
                tuple(path / mask for mask in pair.masks),
                path / pair.view if pair.view else None,
                drawings.get(pair.image),
                by_class,
            ),
        )
        for name, pair in reading.pairs.items()
    }
    listing = Listing(pairs, images=set(pairs), said=reading.said, problems=list(reading.problems))
    if not (path / _OWNED["split"]).is_file():  # which is the last word
        for name, pair in reading.pairs.items():
            if pair.split:
                listing.table[name]["split"] = pair.split
    return listing


def _image_files(path: Path) -> list[str]:
    """The image files in a folder and its subfolders, relative to it, without what systems hide or leave there."""
    inside = (file.relative_to(path) for file in sorted(path.rglob("*")) if is_image(file) and file.is_file())
    return [file.as_posix() for file in inside if not any(p.startswith(".") or p == "__MACOSX" for p in file.parts)]


def _files_in(path: Path, part: str, listing: Listing) -> dict[str, Path]:
    """The image files of a folder by their stems."""
    files: dict[str, Path] = {}
    folder = path / part
    for inside in sorted(os.listdir(folder)) if folder.is_dir() else ():
        file = folder / inside
        if not inside.startswith(".") and is_image(file):
            name = stem(inside)
            if name in files:
                listing.problems.append(f"two files for one id in {part}/: {files[name].name}, {file.name}")
            files[name] = file
    return files


def _add_table(file: Path, listing: Listing) -> None:
    special = file.name in _OWNED.values()
    needed = {"id", *(column for column, owner in _OWNED.items() if owner == file.name)}
    by_line = _read_csv(file, needed)
    if not by_line:
        if special:
            columns = " and ".join(sorted(needed, key=len))
            listing.problems.append(f"{file.name} needs a header with the columns {columns}")
        return
    nameless = [f"line {number}" for number, row in by_line.items() if not row["id"]]
    listing.problems += told(nameless, f"{{n}} row(s) without id in {file.name}")
    rows = [row for row in by_line.values() if row["id"]]
    ids = [row["id"] for row in rows]
    if special:
        listing.elsewhere[file.name] = [name for name in ids if name not in listing.images]
    elif any(row.get("spacing") for row in rows) and not any(
        {name, name.rpartition("#")[0]} & listing.images for name in ids
    ):
        warnings.warn(
            f"{file} gives a spacing of {len(ids)} id(s), of which none is an image's; first: {ids[0]}, where an image "
            f"is {min(listing.images, default='none')}.",
            stacklevel=6,
        )
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    listing.problems += told(repeated, f"{{n}} id(s) stand twice in {file.name}")
    for row in rows:
        known = listing.table[row["id"]]
        for column in (column for column in row if _OWNED.get(column, file.name) == file.name):
            value, earlier = row[column], known.get(column)
            if value and earlier and value != earlier:
                listing.contested[column].append(row["id"])
            known[column] = value or earlier or ""


def list_csv(path: Path, multilabel: bool = False) -> Listing:
    """The pairs that a CSV file with the columns image and mask names, paths relative to it; or, for `multilabel`, with
    a column for each class, mask_disc for the class disc, instead of mask."""
    rows = _read_csv(path)
    columns = list(next(iter(rows.values()), ()))
    of_classes = [column for column in columns if column.startswith("mask_")] if multilabel else []
    masks = of_classes if len(of_classes) > 1 else ["mask"]
    if not {"image", *masks} <= set(columns):
        more = ", or image and one mask_NAME for each class NAME" if multilabel else ""
        raise InputError(f"{path} needs a header with the columns image and mask{more}.")
    listing = Listing()
    if len(of_classes) > 1:
        listing.names = dict(enumerate(["background", *(column.removeprefix("mask_") for column in masks)]))
    incomplete, repeated, missing, outside = [], [], [], []
    for number, row in rows.items():
        if not row["image"] or not all(row[column] for column in masks):
            incomplete.append(f"line {number}")
            continue
        name = (Path(row["image"]).parent / stem(row["image"])).as_posix()
        if name in listing.pairs:
            repeated.append(row["image"])
        files = [path.parent / row[column] for column in ("image", *masks)]
        outside += [row[column] for column in ("image", *masks) if not _is_below(row[column])]
        absent = [str(file) for file in files if not file.is_file()]
        missing += absent
        if not absent:
            truth = Truth(tuple(files[1:]), by_class=len(masks) > 1)
            listing.pairs[name], listing.table[name] = (files[0], truth), row
    listing.problems += told(incomplete, "{n} row(s) without image or mask")
    listing.problems += told(repeated, "{n} image(s) listed twice")
    listing.problems += told(missing, "{n} file(s) do not exist")
    listing.said = f"{pairs_in_words(len(listing.pairs))} of {path.name}"
    if outside:
        warnings.warn(f"{path} names {len(outside)} file(s) outside of its folder; first: {outside[0]}.", stacklevel=5)
    return listing


def _is_below(file: str) -> bool:
    """Whether a path, relative or not, stays below the folder that it is told from."""
    inside = os.path.normpath(file)
    return not os.path.isabs(inside) and inside.split(os.sep)[0] != os.pardir


def _read_csv(path: Path, needed: Set[str] = frozenset()) -> dict[int, dict[str, str]]:
    """The rows of a CSV file that are not empty, by their line; none where its header lacks a column that is needed."""
    if not path.is_file():  # a device may have no end
        raise InputError(f"{path} is no file; give a CSV file, or a folder.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not needed <= set(reader.fieldnames or ()):  # a table of something else may be of any size
                return {}
            named = Counter(filter(None, reader.fieldnames or ()))  # of columns without a name there may be several
            if twice := [column for column, count in named.items() if count > 1]:
                raise InputError(f"{path} has the column {twice[0]!r} twice; rename or remove one.")
            rows = dict((reader.reader.line_num, row) for row in reader if any(row.values()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a UTF-8 CSV file: {error}.") from error
    longer = [number for number, row in rows.items() if None in row]
    if longer:
        raise InputError(f"{path} has more fields than columns in line {longer[0]}; quote those that hold commas.")
    return rows


def read_classes(folder: Path) -> tuple[dict[int, str], dict | None, set[int]]:
    """Class names by index, the class index by RGB colour where colours are given, and the values to ignore."""
    path = folder / "classes.json"
    if not path.is_file():
        return *_nnunet_classes(folder / "dataset.json"), set()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
        entries = dict(enumerate(stored)) if isinstance(stored, list) else {int(k): v for k, v in stored.items()}
        colours = {_colour(v["color"]): k for k, v in entries.items() if not isinstance(v, str)}
        if len(entries) < len(stored) or len(colours) < sum(not isinstance(v, str) for v in entries.values()):
            raise ValueError("two classes have one number, or one colour")
        ignored = {IGNORED} & set(entries)
        entries.pop(IGNORED, None)
        if sorted(entries) != list(range(len(entries))) or not 1 < len(entries) < IGNORED:
            raise ValueError(
                f"{len(entries)} class(es)" if isinstance(stored, list) else "the keys must be 0, 1, 2, ..."
            )
        names = {k: v if isinstance(v, str) else v["name"] for k, v in entries.items()}
        if not _are_names(list(names.values())):
            raise ValueError("the names must be text, and each another")
        return names, colours or None, ignored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f'{path} must look like {{"0": "background", "1": "cell"}}, ["background", "cell"] or, for coloured masks, '
            f'{{"0": {{"name": "background", "color": [0, 0, 0]}}, ...}}: {error}.'
        ) from error


def _are_names(names: Collection) -> bool:
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _colour(stored) -> tuple[int, int, int]:
    """A colour of `classes.json`."""
    if len(stored) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in stored):
        raise ValueError(f"{stored} is no colour of three whole numbers from 0 to 255")
    return tuple(stored)


def _nnunet_classes(path: Path) -> tuple[dict[int, str], None]:
    """The class names that nnU-Net's dataset.json tells; none where it is no such file, or has regions or an ignore
    label, which are more than names."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        by_number = (
            {int(key): name for key, name in labels.items()} if "0" in labels else {v: k for k, v in labels.items()}
        )
        whole = sorted(by_number) == list(range(len(by_number))) and len(by_number) > 1 and "ignore" not in labels
        return (by_number if whole and _are_names(by_number.values()) else {}), None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, None
