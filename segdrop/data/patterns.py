"""Pairs of images and masks by two patterns that the user gives."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from ..errors import InputError
from .layouts import Pair, Reading, by_id
from .naming import split_of
from .problems import pairs_in_words, told

_WILDCARD = re.compile(r"\*\*/|\*|\?|\[[^\]]+\]")
_MEANING = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}


def read_patterns(files: Sequence[str], images: str, masks: str) -> Reading:
    """Pair the files that two patterns match: those for which the patterns' wildcards stand for the same.

    Args:
        files: paths relative to the data set's folder, with slashes.
        images, masks: of such paths; `*` and `?` stand for letters of one name, `**/` for folders, `[ab]` for a or b.

    Raises:
        InputError: a pattern matches nothing, the patterns have not as many wildcards, or an image has two masks.

    Example:
        >>> files = ["a/1.tif", "a/2.tif", "b/1_manual1.gif", "b/2_manual1.gif"]
        >>> reading = read_patterns(files, "a/*.tif", "b/*_manual1.gif")
        >>> reading.pairs["2"].masks, reading.said
        (('b/2_manual1.gif',), '2 pairs: a/*.tif with b/*_manual1.gif')
    """
    found_images, found_masks = _matching(files, images, "images"), _matching(files, masks, "masks")
    groups = [len(next(iter(found))) for found in (found_images, found_masks)]
    if groups[0] != groups[1]:
        raise InputError(
            f"`images` and `masks` must have the same wildcards, what they stand for being what pairs them, got "
            f"{images!r} with {groups[0]} and {masks!r} with {groups[1]}."
        )
    for found, name in ((found_images, "images"), (found_masks, "masks")):
        for paths in found.values():
            if len(paths) > 1:
                raise InputError(
                    f"`{name}` matches two files for one pair: {paths[0]} and {paths[1]}; make it narrower."
                )
    pairs = [
        Pair(image, tuple(found_masks[key]), split=split_of(PurePosixPath(image).parent.parts))
        for key, (image,) in found_images.items()
        if key in found_masks
    ]
    return Reading(
        by_id(pairs),
        f"{pairs_in_words(len(pairs))}: {images} with {masks}",
        told([found_images[k][0] for k in found_images if k not in found_masks], "{n} image(s) have no mask")
        + told([found_masks[k][0] for k in found_masks if k not in found_images], "{n} mask(s) have no image"),
    )


def _matching(files: Sequence[str], pattern: str, name: str) -> dict[tuple[str, ...], list[str]]:
    """The files that a pattern matches, by what its wildcards stand for."""
    parts = zip([*_WILDCARD.findall(pattern), ""], _WILDCARD.split(pattern), strict=True)
    expression = re.compile("".join(re.escape(plain) + _MEANING.get(card, card) for card, plain in parts))
    found = defaultdict(list)
    for file in sorted(files):
        if match := expression.fullmatch(file):
            found[match.groups()].append(file)
    if not found:
        example = f", such as {sorted(files)[0]}" if files else ""
        raise InputError(
            f"`{name}` matches none of the {len(files)} image file(s) in `data`{example}, got {name}={pattern!r}."
        )
    return found
