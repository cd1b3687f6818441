"""Which masks belong to which images in a folder as people have it, told by the names of its files alone."""

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

from ..errors import InputError
from ..images.opening import stem
from .naming import (
    Named,
    is_manual,
    is_view,
    may_be_object,
    name_file,
    role_of_folders,
    without_image_word,
    without_mask_word,
)
from .problems import pairs_in_words, told

SAY_WHICH = "say which: --images 'a/*.png' --masks 'b/*_mask.png'"
_MOST_TOLD = 3  # kinds of pairs that are told one by one


@dataclass(frozen=True)
class Pair:
    """An image and its mask; paths relative to the data set's folder, with slashes.

    Attributes:
        masks: one file, or one for each object.
        view: of the field of view, outside of which pixels are ignored.
        split: that its folders name, or None.
    """

    image: str
    masks: tuple[str, ...]
    view: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a folder was understood.

    Attributes:
        pairs: by id, the image's stem where no other has it.
        said: what was understood, in one line.
        problems: what is wrong with it.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    said: str = ""
    problems: list[str] = field(default_factory=list)


def read_layout(files: Sequence[str], annotator: str | None = None) -> Reading:
    """Find images and their masks among a folder's image files.

    Args:
        files: paths relative to the folder, with slashes.
        annotator: whose masks to take where there are several; by default the first one's.

    Raises:
        InputError: there are two ways to read it, or there is no such annotator.

    Example:
        >>> reading = read_layout(["images/21_training.tif", "1st_manual/21_manual1.gif", "mask/21_training_mask.gif"])
        >>> reading.pairs["21_training"].masks
        ('1st_manual/21_manual1.gif',)
        >>> reading.said
        '1 pair: images/*_training.tif with 1st_manual/*_manual1.gif; field of view from mask/'
    """
    named = _name_all(files)
    images, masks, views = ([one for one in named if one.role == role] for role in ("image", "mask", "view"))
    _refuse_channels(images, masks)
    matches, objects = _match(images, masks)
    if not matches:
        return Reading()
    chosen, people = _choose(matches, objects, annotator)
    in_view = {image.path: found[0].path for image, found in _match(images, views)[0].items()}
    pairs = [Pair(image.path, found, in_view.get(image.path), image.split) for image, found in chosen.items()]
    _refuse_copies(pairs)
    left, problems = _leftovers(images, masks, matches, chosen)
    blind = [pair.image for pair in pairs if in_view and pair.view is None]
    joined = sum(len(pair.masks) > 1 for pair in pairs)
    said = [
        describe(pairs),
        f"{joined} image(s) have a mask for each object, taken as one" if joined else "",
        f"annotator {annotator or people[0]} of {', '.join(people)}" if people else "",
        f"{len(left)} image(s) without masks left out, first {left[0]}" if left else "",
    ]
    problems += told(blind, "{n} image(s) have no mask of the field of view")
    return Reading(by_id(pairs), "; ".join(filter(None, said)), problems)


def _leftovers(images, masks, matches: dict[Named, list[Named]], chosen) -> tuple[list[str], list[str]]:
    """Images that are left out, as whole folders without masks are; and what lacks its counterpart beside others that
    have theirs, which is a problem."""
    folders = {image.folder for image in matches}
    used = {mask for found in matches.values() for mask in found}
    mask_folders = {mask.folder for mask in used}
    without_mask = [one.path for one in images if one not in matches and one.folder in folders]
    without_image = [one.path for one in masks if one not in used and one.folder in mask_folders]
    left = [one.path for one in images if one not in chosen and (one in matches or one.folder not in folders)]
    problems = told(without_mask, "{n} image(s) have no mask") + told(without_image, "{n} mask(s) have no image")
    return left, problems


def _name_all(files: Sequence[str]) -> list[Named]:
    """The files with what their names say."""
    common = len(PurePosixPath(os.path.commonpath([PurePosixPath(f).parent for f in files])).parts) if files else 0
    by_folder = defaultdict(list)
    for file in sorted(files):
        by_folder[PurePosixPath(file).parent.parts[common:]].append(file)
    manual = any(is_manual(folder) for folders in by_folder for folder in folders)
    named = []
    for folders, inside in by_folder.items():
        role, said_by = role_of_folders(folders)
        if role == "mask":
            role = "view" if is_view(said_by, manual) else "mask"
            named += [name_file(file, folders, role) for file in inside]
            continue
        marked = {file: bare for file in inside if (bare := without_mask_word(stem(file))) is not None}
        plain = {key for f in inside if f not in marked for key in (stem(f), without_image_word(stem(f)))}
        all_masks = role is None and len(marked) == len(inside)
        for file in inside:
            of_image = file in marked and (all_masks or {marked[file], without_image_word(marked[file])} & plain)
            named.append(name_file(file, folders, "mask" if of_image else "image"))
    return named


def _refuse_channels(images: Sequence[Named], masks: Sequence[Named]) -> None:
    """Raise InputError where the channels of an image are files of their own, as nnU-Net has them."""
    by_case = {mask.stems[0]: mask for mask in masks}
    channels = defaultdict(list)
    for image in images:
        case, number = image.stems[0][:-5], image.stems[0][-5:]
        if case in by_case and number[0] == "_" and number[1:].isdigit():
            channels[case].append(image.path)
    for case, paths in channels.items():
        if len(paths) > 1:
            raise InputError(
                f"`data` has {len(paths)} files for the channels of {case}, from {paths[0]} on; put them into one file "
                f"for --channels {len(paths)}, or take one of them: --images '{starred(paths[0], case)}' --masks "
                f"'{starred(by_case[case].path, case)}'."
            )


def _match(images: Sequence[Named], masks: Sequence[Named]) -> tuple[dict[Named, list[Named]], bool]:
    """The masks of each image by the way of comparing names that finds the most; and whether each is of one object.

    Names are compared as they are first, then with less and less of what tells images and masks apart.
    """
    best: tuple[dict[Named, list[Named]], bool] = ({}, False)
    count = (0, 0)
    for of_image, of_mask, objects in _ways(images, masks) if masks else ():
        keys = Counter(of_image(image) for image in images)
        home = {of_image(image): image for image in images if keys[of_image(image)] == 1}
        found = defaultdict(list)
        for mask in masks:
            if (image := home.get(of_mask(mask))) is not None:
                found[image].append(mask)
        if objects and (len(found) < 2 or all(len(several) == 1 for several in found.values())):
            objects = False
            if len(found) < 2:  # whatever is alone would pair with whatever else is alone
                continue
        if (reached := (len(found), sum(map(len, found.values())))) > count:
            best, count = ({image: found[image] for image in images if image in found}, objects), reached
        if count == (len(images), len(masks)):  # no way finds more
            break
    return best


_Key = Callable[[Named], object]


def _ways(images: Sequence[Named], masks: Sequence[Named]) -> Iterator[tuple[_Key, _Key, bool]]:
    """What an image and what its mask are known by, the strictest first; and whether masks are of single objects."""
    for level in range(4):
        for home in range(3):
            key = partial(_key, home=home, level=level)
            yield key, key, False
    cores = {**_cores(images), **_cores(masks)}
    for home in range(3):
        key = partial(_core_key, home=home, cores=cores)
        yield key, key, False
    # ID/images/ID.png with ID/masks/*.png; images/ID.png with masks/ID/*.png
    yield (lambda one: one.homes[1]), (lambda one: one.homes[1]), True
    yield (
        (lambda one: (*one.homes[1][1], one.stems[0])),
        (lambda one: one.homes[1][1]),
        True,
    )


def _key(one: Named, home: int, level: int):
    return one.homes[home], one.stems[level]


def _core_key(one: Named, home: int, cores: dict[str, str]):
    return one.homes[home], cores[one.path]


def _cores(files: Sequence[Named]) -> dict[str, str]:
    """The names without what all of their folder start or end with, up to a mark between words."""
    by_folder = defaultdict(list)
    for one in files:
        by_folder[one.folder].append(one)
    cores = {}
    for inside in by_folder.values():
        names = [one.stems[1] for one in inside]
        start, end = _shared_start(names), _shared_start([name[::-1] for name in names])
        cores |= {one.path: name[start : len(name) - end] for one, name in zip(inside, names, strict=True)}
    return cores


def _shared_start(names: Sequence[str]) -> int:
    """How many letters all of several names start with, up to a mark between words."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in same)
    return max(map(shared.rfind, "_-. ")) + 1 if len(names) > 1 else 0


def _choose(
    matches: dict[Named, list[Named]], objects: bool, annotator: str | None
) -> tuple[dict[Named, tuple[str, ...]], list[str]]:
    """The mask or masks of each image, and the annotators that there are several of."""
    if objects:
        return {image: tuple(mask.path for mask in found) for image, found in matches.items()}, []
    by_person = {image: _by_annotator(found) for image, found in matches.items()}
    several = {name for people in by_person.values() if len(people) > 1 and "" not in people for name in people}
    people = sorted(several, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    if annotator is not None and annotator not in people:
        there = f"are {', '.join(people)}" if people else "is one alone"
        raise InputError(
            f"`annotator` must be one of the data set's, of whom there {there}, got annotator={annotator!r}."
        )
    wanted = annotator or (people[0] if people else None)
    chosen = {}
    for image, of_person in by_person.items():
        if len(of_person) > 1 and "" not in of_person:
            of_person = {name: masks for name, masks in of_person.items() if name == wanted}
        elif annotator is not None and annotator not in of_person:
            of_person = {}
        masks = [mask for masks in of_person.values() for mask in masks]
        if len(masks) > 1 and not _are_objects(masks):
            overlapping = (
                ", or --multilabel where the folders are classes" if masks[0].folder != masks[1].folder else ""
            )
            raise InputError(
                f"`data` can be read in two ways: {image.path} with {masks[0].path} or with {masks[1].path}; "
                f"{SAY_WHICH}{overlapping}."
            )
        if masks:
            chosen[image] = tuple(mask.path for mask in masks)
    return chosen, people


def _are_objects(masks: Sequence[Named]) -> bool:
    """Whether several masks of one image are x_mask.png, x_mask_1.png and so on."""
    return len({mask.folder for mask in masks}) == 1 and all(may_be_object(mask.stems[0]) for mask in masks)


def _by_annotator(masks: Sequence[Named]) -> dict[str, list[Named]]:
    by_annotator = defaultdict(list)
    for mask in masks:
        by_annotator[mask.annotator or ""].append(mask)
    return by_annotator


def _refuse_copies(pairs: Sequence[Pair]) -> None:
    """Raise InputError where a set is there twice, in two formats."""
    seen: dict[tuple, Pair] = {}
    for pair in pairs:
        other = seen.setdefault((pair.split, stem(pair.image)), pair)
        if PurePosixPath(other.image).suffix != PurePosixPath(pair.image).suffix:
            raise InputError(
                f"`data` can be read in two ways: {other.image} with {other.masks[0]}, or {pair.image} with "
                f"{pair.masks[0]}; {SAY_WHICH}."
            )


def by_id(pairs: Sequence[Pair]) -> dict[str, Pair]:
    """Pairs by the image's stem, or by its path where others have that stem; with splits where there are several."""
    if len({pair.split for pair in pairs}) < 2:
        pairs = [replace(pair, split=None) for pair in pairs]
    times = Counter(stem(pair.image) for pair in pairs)
    with_folder = {pair.image: (PurePosixPath(pair.image).parent / stem(pair.image)).as_posix() for pair in pairs}
    found: dict[str, Pair] = {}
    for pair in pairs:
        name = stem(pair.image) if times[stem(pair.image)] == 1 else with_folder[pair.image]
        if (other := found.setdefault(name, pair)) is not pair:
            raise InputError(f"`data` has two images of the id {name}: {other.image} and {pair.image}; rename one.")
    return found


def describe(pairs: Sequence[Pair]) -> str:
    """How many pairs there are and how they are named, in one line."""
    kinds = Counter(map(_kind, pairs)).most_common()
    told_ways = [f"{kind} ({count})" if len(kinds) > 1 else kind for kind, count in kinds[:_MOST_TOLD]]
    rest = [f"and {len(kinds) - _MOST_TOLD} more kinds"] if len(kinds) > _MOST_TOLD else []
    views = sorted({PurePosixPath(pair.view).parent.as_posix() for pair in pairs if pair.view})
    said = f"{pairs_in_words(len(pairs))}: {', '.join(told_ways + rest)}"
    splits = Counter(pair.split for pair in pairs if pair.split)
    if len(splits) > 1:
        said += f"; {', '.join(f'{splits[name]} {name}' for name in ('train', 'val', 'test') if splits[name])}"
    return said + (f"; field of view from {', '.join(f'{view}/' for view in views)}" if views else "")


def _kind(pair: Pair) -> str:
    """A pair with a star for what differs from pair to pair."""
    name, mask = stem(pair.image), pair.masks[0]
    keys = [key for key in (name, without_image_word(name)) if key in stem(mask)]
    if keys and (len(pair.masks) == 1 or may_be_object(stem(mask))):
        return f"{starred(pair.image, keys[0])} with {starred(mask, keys[0])}"
    if len(pair.masks) == 1:
        return f"{pair.image} with {mask}"
    return f"{starred(pair.image, name)} with all of {starred(PurePosixPath(mask).parent.as_posix(), name)}/"


def starred(path: str, key: str) -> str:
    """A path with a star for `key` in its name, and for folders that are called so."""
    *folders, name = PurePosixPath(path).parts
    return "/".join([*("*" if folder == key else folder for folder in folders), name.replace(key, "*", 1)])
