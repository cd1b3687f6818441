"""What looks wrong with a data set that can be read: remarks, each with the images to look at.

The thresholds were measured on real sets (data/README.md): few false alarms matter more than finding everything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .appearance import Appearance
from .dataset import Dataset
from .fingerprint import Fingerprint, collect, measure_of, read_each

ALIKE = 0.85  # product of two signatures: of different scenes at most 0.74 in five real sets
POOR_FIT, FAR_BELOW = 3.0, 4.0  # a fit that is poor where others are far better; how far, in robust deviations
NO_FIT = 1.0  # median of a set whose masks lie anywhere; that of real sets was 2.3 and more
FEWEST = 5  # masks to tell what is usual; images of a split to tell it from another
FLAT = 2.0  # of 255
RIM = 0.95  # of the outermost pixels
FILLED = 0.999  # of all pixels
RARE = 0.2  # of the images; what more of them have is how the set is
CHANCE, APART = 0.001, 0.9  # p-value of a rank test; share of pairs of images in which one split's has more
_BLOCK = 2048  # signatures compared at once


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        check: which check found it: one of CHECKS.
        message: what was found, without a full stop at the end.
        cases: numbers in the data set of the images to look at, one or several that belong together; the worst first.
    """

    check: str
    message: str
    cases: tuple[tuple[int, ...], ...] = ()


def examine(dataset: Dataset) -> tuple[Fingerprint, list[Finding]]:
    """Read every image once; measure it and tell what looks wrong.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> found, findings = examine(open_dataset("data/cells"))
        >>> len(found.sizes), findings
        (96, [])
    """
    from .appearance import look_at

    indices = np.arange(len(dataset))
    both = read_each(dataset, indices, lambda image, mask: (measure_of(dataset, mask), look_at(image, mask)))
    found = collect(dataset, indices, [measured for measured, _ in both])
    looks = [look for _, look in both]
    return found, [finding for check in CHECKS for finding in _CHECKS[check](dataset, found, looks)]


def _foreground(found: Fingerprint) -> np.ndarray:
    """Share of each image's scored pixels that are of any class but the background; 0 where none is scored."""
    return np.where(found.ignored < 1, 1 - found.shares[:, 0], 0)


def _one_by_one(numbers: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple((int(number),) for number in numbers)


def _duplicates(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Images on both sides of the given split, or of a random one, that are the same or nearly."""
    sides = np.unique(dataset.splits or dataset.groups, return_inverse=True)[1]
    signatures = np.stack([look.signature for look in looks])
    numbers = np.flatnonzero(signatures.any(axis=1))
    sides, signatures = sides[numbers], signatures[numbers]
    # What all images of a set share, such as a round field of view, is no likeness; of a few it is not known.
    signatures = signatures - signatures.sum(axis=0) / (len(signatures) + 3)
    signatures /= np.linalg.norm(signatures, axis=1, keepdims=True)
    pairs = []
    for first in range(0, len(signatures), _BLOCK):
        block = slice(first, first + _BLOCK)
        for begin in range(first, len(signatures), _BLOCK):
            others = slice(begin, begin + _BLOCK)
            alike = signatures[block] @ signatures[others].T
            near = (alike >= ALIKE) & (sides[block, None] != sides[None, others])
            found_here = [(-alike[i, j], numbers[first + i], numbers[begin + j]) for i, j in np.argwhere(near)]
            pairs += [pair for pair in found_here if pair[1] < pair[2]]
    cases = tuple((int(i), int(j)) for _, i, j in sorted(pairs))
    if cases and dataset.splits:
        yield Finding("duplicates", f"{len(cases)} pair(s) of nearly the same image in different splits", cases)
    elif cases:
        advice = "which a random split may part; groups.csv keeps them together"
        yield Finding("duplicates", f"{len(cases)} pair(s) of nearly the same image, {advice}", cases)


def _misfits(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Masks whose outlines do not follow the edges of their image."""
    fits = np.array([look.fit for look in looks])
    known = fits[np.isfinite(fits)]
    if len(known) < FEWEST:
        return
    median = np.median(known)
    worst = [number for number in np.argsort(fits) if np.isfinite(fits[number])]
    if median < NO_FIT:
        message = "the masks follow their images no better than if they were moved: are they paired rightly?"
        yield Finding("misfits", message, _one_by_one(np.array(worst[:12])))
        return
    spread = 1.4826 * np.median(np.abs(known - median))
    least = np.clip(median - FAR_BELOW * spread, 0, POOR_FIT)
    poor = np.array([number for number in worst if fits[number] < least], int)
    if len(poor):
        message = f"{len(poor)} mask(s) do not follow the edges of their image: is it another image's?"
        yield Finding("misfits", message, _one_by_one(poor))


def _empty(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Masks without foreground among many that have some, and masks without anything else."""
    foreground, scored = _foreground(found), found.ignored < 1
    empty = np.flatnonzero(scored & (foreground == 0))
    if 0 < len(empty) <= RARE * len(foreground):
        yield Finding("empty", f"{len(empty)} mask(s) without any foreground", _one_by_one(empty))
    full = np.flatnonzero(foreground >= FILLED)
    if len(full):
        yield Finding("empty", f"{len(full)} mask(s) of nothing but foreground", _one_by_one(full))
    if not scored.all():
        ignored = np.flatnonzero(~scored)
        yield Finding("empty", f"{len(ignored)} mask(s) that are ignored as a whole", _one_by_one(ignored))


def _inverted(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Masks whose foreground is most of the image and all around its border."""
    foreground, rims = _foreground(found), np.array([look.rim for look in looks])
    turned = np.flatnonzero((foreground > 0.5) & (foreground < FILLED) & (rims >= RIM))
    if len(turned):
        message = f"{len(turned)} mask(s) with foreground all around the border: are they inverted?"
        yield Finding("inverted", message, _one_by_one(turned))


def _absent(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Classes that no image has, or none of a split."""
    present = found.shares > 0
    splits = np.array(dataset.splits or [""] * len(dataset))
    for number, name in enumerate(dataset.class_names):
        if not present[:, number].any():
            yield Finding("absent", f"no image has the class {name!r}")
            continue
        missing = [split for split in dict.fromkeys(splits.tolist()) if not present[splits == split, number].any()]
        if missing:
            yield Finding("absent", f"no image of {' and '.join(missing)} has the class {name!r}")


def _dark(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Images whose values were scaled to 0..1 already, and so become black; and images of one colour."""
    numbers = np.arange(len(dataset))
    extremes = [dataset.extremes_of([number]) for number in numbers]
    scaled = np.array([0 < stored[1] <= 1 and mapped[1] <= 1 for stored, mapped in extremes])
    if scaled.any():
        message = f"{scaled.sum()} image(s) of values in 0..1, which are nearly black in 0..255; see --intensity"
        yield Finding("dark", message, _one_by_one(numbers[scaled]))
    flat = ~scaled & np.array([look.contrast <= FLAT for look in looks])
    if flat.any():
        yield Finding("dark", f"{flat.sum()} image(s) of one colour", _one_by_one(numbers[flat]))


def _shifted(dataset: Dataset, found: Fingerprint, looks: Sequence[Appearance]) -> Iterator[Finding]:
    """Splits whose images are brighter, of another tint or of another contrast than those to train on."""
    from scipy.stats import mannwhitneyu

    if not dataset.splits:
        return
    values = np.stack([np.concatenate([look.means, look.deviations]) for look in looks])
    splits, groups = np.array(dataset.splits), np.array(dataset.groups)

    def of(split: str) -> np.ndarray:
        """A row of each group, as its images are not independent."""
        members = np.flatnonzero(splits == split)
        return np.stack([values[members[groups[members] == group]].mean(axis=0) for group in set(groups[members])])

    there = [split for split in ("train", "val", "test") if (splits == split).any()]
    rows = {split: of(split) for split in there}
    names = _names_of_channels(dataset.channels)
    for split in there[1:]:
        if min(len(rows[split]), len(rows[there[0]])) < FEWEST:
            continue
        statistic, chance = mannwhitneyu(rows[split], rows[there[0]])
        more = statistic / (len(rows[split]) * len(rows[there[0]]))
        differ = (chance * values.shape[1] < CHANCE) & (np.maximum(more, 1 - more) >= APART)
        if differ.any():
            most = int(np.argmax(np.where(differ, np.maximum(more, 1 - more), 0)))
            means = (np.mean(rows[part][:, most]) for part in (split, there[0]))
            told = "{:.0f} against {:.0f}".format(*means)
            message = f"{split} images look unlike {there[0]} images: {names[most]} is {told} of 255"
            typical = np.argsort(np.abs(values[:, most] - np.median(rows[split][:, most])))
            shown = [number for number in typical if splits[number] == split][:3]
            yield Finding("shifted", message, _one_by_one(np.array(shown)))


def _names_of_channels(channels: int) -> list[str]:
    tints = ["red", "green", "blue"] if channels == 3 else [f"channel {n + 1}" for n in range(channels)]
    return [f"{kind} of {tint}" for kind in ("mean", "deviation") for tint in tints]


_CHECKS = {
    "duplicates": _duplicates,
    "misfits": _misfits,
    "empty": _empty,
    "inverted": _inverted,
    "absent": _absent,
    "dark": _dark,
    "shifted": _shifted,
}
CHECKS = tuple(_CHECKS)
