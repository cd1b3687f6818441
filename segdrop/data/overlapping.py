"""Masks of classes that overlap: a folder of them for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from ..errors import InputError
from .layouts import Reading, read_layout
from .naming import ROLES, role_of_folders, split_of, words_of
from .problems import told


def read_by_class(
    files: Sequence[str], names: Mapping[int, str], annotator: str | None = None
) -> tuple[Reading, dict[int, str]]:
    """Find images and a mask of each class for each of them; and the names of the classes, the background first.

    A class is a folder of masks: `masks/disc/` or `disc_masks/`. Images and the masks of a class are paired as
    `read_layout` does. Both are empty where masks are not told apart by folders.

    Args:
        files: image files, paths relative to the data set's folder, with slashes.
        names: of the classes, where they are given; else they are the folders', in the order of the alphabet.

    Raises:
        InputError: the folders are not the classes'.

    Example:
        >>> reading, names = read_by_class(["images/7.png", "masks/cup/7.png", "masks/disc/7.png"], {})
        >>> reading.pairs["7"].masks, names
        (('masks/cup/7.png', 'masks/disc/7.png'), {0: 'background', 1: 'cup', 2: 'disc'})
    """
    classes = {file: _class_of(PurePosixPath(file).parent.parts) for file in files}
    found = sorted(set(classes.values()) - {None})
    if len(found) < 2:
        return Reading(), {}
    wanted = [name for index, name in sorted(names.items()) if index] or found
    if sorted(wanted) != found:
        raise InputError(
            f"`multilabel` needs a folder of masks for each class of classes.json, {', '.join(wanted)}; there are: "
            f"{', '.join(found)}."
        )
    readings = [read_layout([file for file in files if classes[file] in (None, name)], annotator) for name in wanted]
    problems = [
        problem
        for name, reading in zip(wanted, readings, strict=True)
        for problem in (*reading.problems, *told(_missing(readings, reading), f"{{n}} image(s) have no mask of {name}"))
    ]
    whole = set.intersection(*(set(reading.pairs) for reading in readings))
    pairs = {
        key: replace(pair, masks=tuple(mask for reading in readings for mask in reading.pairs[key].masks))
        for key, pair in readings[0].pairs.items()
        if key in whole
    }
    several = [key for key, pair in pairs.items() if len(pair.masks) != len(wanted)]
    problems += told(several, "{n} image(s) have more than one mask of a class")
    said = f"{readings[0].said}, and a mask of {' and of '.join(wanted[1:])} beside each"
    return Reading(pairs, said, problems), dict(enumerate([names.get(0, "background"), *wanted]))


def _missing(readings: Sequence[Reading], reading: Reading) -> list[str]:
    """The images that another class has a mask of."""
    return sorted(set().union(*(one.pairs for one in readings)) - set(reading.pairs))


def _class_of(folders: tuple[str, ...]) -> str | None:
    """The class that the folders of a mask name; None of an image, and of a mask whose folders name none."""
    role, said_by = role_of_folders(folders)
    if role != "mask":
        return None
    for folder in reversed(folders[folders.index(said_by) :]):
        words = [word for word in words_of(folder) if word not in ROLES and split_of((word,)) is None]
        rest = [word for word in words if not word.isdigit() and word not in ("st", "nd", "rd", "th")]  # 1st_manual
        if rest:
            return folder if folder != said_by else " ".join(rest)
    return None
