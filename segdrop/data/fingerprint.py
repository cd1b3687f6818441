"""What a data set's masks hold: sizes, shares of the classes, and their objects, all in pixels."""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from ..conventions import IGNORED, has_class
from . import remembered
from .dataset import Dataset

SMALLEST = 4  # pixels; smaller components are specks of an annotation
_MOST_KEPT = 4_000_000  # objects of a data set, 32 bytes each; of more none are kept for the next start
T = TypeVar("T")
Measured = tuple[np.ndarray, list[np.ndarray]]  # of a mask, by `measure`


@dataclass(frozen=True)
class Objects:
    """The connected components (of 8 neighbours) of a class, those of fewer than SMALLEST pixels left out.

    Attributes:
        images: int (M,), number of each one's image in the data set.
        areas: int (M,), pixels.
        thicknesses: float (M,), twice the largest distance from a pixel's centre to the component's border, in pixels;
            the image's border ends it, too.
        widths: float (M,), four times the mean distance from its pixels to the border: of a line its width, whatever
            its length, of a disc two thirds of the diameter.
        extents: int (M,), the larger side of the bounding box in pixels.
    """

    images: np.ndarray
    areas: np.ndarray
    thicknesses: np.ndarray
    widths: np.ndarray
    extents: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


@dataclass(frozen=True)
class Fingerprint:
    """What the masks of some images hold; pixels are those that `Dataset.read` gives.

    Attributes:
        indices: int (N,), numbers of the images in the data set; the rows below are in this order.
        sizes: int (N, 2), heights and widths.
        shares: float (N, K), of each class in the pixels that are not ignored; 0 where all are. Those of classes that
            overlap add up to more than 1.
        ignored: float (N,), share of the pixels that are ignored.
        objects: of the classes 1 to K - 1.
        spacings: (row, column) in mm of each image; None where it is not known.
    """

    indices: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray
    ignored: np.ndarray
    objects: tuple[Objects, ...]
    spacings: tuple[tuple[float, float] | None, ...]


def fingerprint(dataset: Dataset, indices: Iterable[int] | None = None) -> Fingerprint:
    """Read each image and mask once and measure what is there.

    Args:
        indices: numbers of the images to look at, those of the training, say; by default all.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> found = fingerprint(open_dataset("data/cells"), range(10))
        >>> found.sizes.shape, found.shares.shape, int(np.median(found.objects[0].areas))
        ((10, 2), (10, 2), 474)
    """
    numbers = np.arange(len(dataset)) if indices is None else np.array([*indices], int)
    about, began = ("masks", dataset.masks_digest), time.monotonic()
    known = _recalled(about)
    fresh = [index for index in numbers.tolist() if index not in known]
    measured = read_each(dataset, fresh, lambda image, mask: measure_of(dataset, mask))
    known |= zip(fresh, measured, strict=True)
    # The next start, which does not decode the files to check them, would have to do it here: ten times the work.
    if fresh and time.monotonic() - began > remembered.WORTH / 10:
        _remember(about, known)
    return collect(dataset, numbers, [known[index] for index in numbers.tolist()])


def _remember(about: object, known: Mapping[int, Measured]) -> None:
    """Keep what images' masks were measured to hold, by the images' numbers, unless that is too much."""
    lengths = np.array([[len(found) for found in objects] for _, objects in known.values()])
    if known and lengths.sum() <= _MOST_KEPT:
        found = np.concatenate([np.zeros((0, 4)), *(found for _, objects in known.values() for found in objects)])
        counts = np.array([counts for counts, _ in known.values()])
        remembered.remember(about, {"images": np.array([*known]), "counts": counts, "lengths": lengths, "found": found})


def _recalled(about: object) -> dict[int, Measured]:
    stored = remembered.recall(about)
    if not stored:
        return {}
    lengths = stored["lengths"]
    ends = lengths.cumsum().reshape(lengths.shape)
    return {
        image: (counts, [stored["found"][end - length : end] for end, length in zip(*places, strict=True)])
        for image, counts, places in zip(
            stored["images"].tolist(),
            stored["counts"],
            zip(ends.tolist(), lengths.tolist(), strict=True),
            strict=True,
        )
    }


def read_each(dataset: Dataset, indices: Iterable[int], function: Callable[[np.ndarray, np.ndarray], T]) -> list[T]:
    """What `function` gives for each image and mask, several at once.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> read_each(open_dataset("data/cells"), [0, 5], lambda image, mask: mask.shape)
        [(128, 128), (128, 128)]
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda index: function(*dataset.read(int(index))), indices))


def measure_of(dataset: Dataset, mask: np.ndarray) -> Measured:
    """`measure` of a mask of a data set.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> dataset = open_dataset("data/cells")
        >>> measure_of(dataset, dataset.read(0)[1])[0].tolist()
        [13616, 2768, 0, 16384]
    """
    return measure(mask, len(dataset.class_names), dataset.multilabel)


def measure(mask: np.ndarray, classes: int, multilabel: bool = False) -> Measured:
    """Pixels of each class, of what is ignored and of all, int (K + 2,); and of the classes from 1 on the `components`.

    Example:
        >>> counts, [cells] = measure(np.pad(np.ones((3, 9), np.uint8), 1), classes=2)
        >>> counts.tolist(), cells.tolist()
        ([28, 27, 0, 55], [[27.0, 3.0, 3.037037037037037, 9.0]])
    """
    counts = class_pixels(mask, classes, multilabel)
    objects = [
        components(has_class(mask, index, multilabel)) if counts[index] else np.zeros((0, 4))
        for index in range(1, classes)
    ]
    return np.append(counts, [np.count_nonzero(mask == IGNORED), mask.size]), objects


def class_pixels(mask: np.ndarray, classes: int, multilabel: bool = False) -> np.ndarray:
    """Pixels of each class, int (classes,).

    Example:
        >>> class_pixels(np.array([0, 3, 2, 255], np.uint8), 3, multilabel=True).tolist()
        [1, 1, 2]
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)
    return np.array([counts[has_class(np.arange(IGNORED + 1), i, multilabel)].sum() for i in range(classes)])


def components(region: np.ndarray) -> np.ndarray:
    """Area, thickness, width and extent, float (M, 4), of each connected component of bool (H, W); see `Objects`.

    Example:
        >>> components(np.eye(5, 7) > 0).tolist()
        [[5.0, 1.0, 2.0, 5.0]]
    """
    padded = np.pad(region.astype(np.uint8), 1)  # the image's border is one of the component, too
    count, labels, stats, _ = cv2.connectedComponentsWithStats(padded, connectivity=8)
    distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    deepest, inside = np.zeros(count, np.float32), labels > 0
    np.maximum.at(deepest, labels[inside], distances[inside])
    areas, sides = stats[:, cv2.CC_STAT_AREA], stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    # The transform measures to the centre of the next pixel outside, half a pixel beyond the border.
    widths = 4 * (np.bincount(labels.ravel(), distances.ravel(), count) / np.maximum(areas, 1) - 0.5)
    found = np.stack([areas, 2 * deepest - 1, widths, sides.max(axis=1)], axis=1)[1:]
    return found[found[:, 0] >= SMALLEST]


def collect(dataset: Dataset, indices: np.ndarray, measured: list[Measured]) -> Fingerprint:
    """A fingerprint of what `measure` gave for each of the images.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> masks = [np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)]
        >>> found = collect(open_dataset("data/cells"), np.array([0, 5]), [measure(mask, 2) for mask in masks])
        >>> found.shares.tolist(), found.objects[0].images.tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [5])
    """
    classes = len(dataset.class_names)
    counts = np.array([row for row, _ in measured]).reshape(-1, classes + 2)
    ignored, pixels = counts[:, classes:].T
    objects = []
    for number in range(classes - 1):
        parts = [found[number] for _, found in measured]
        areas, thicknesses, widths, extents = np.concatenate([np.zeros((0, 4)), *parts]).T
        images = np.repeat(indices, [len(part) for part in parts])
        objects.append(Objects(images, areas.astype(int), thicknesses, widths, extents.astype(int)))
    return Fingerprint(
        indices=indices,
        sizes=dataset.sizes[indices],
        shares=counts[:, :classes] / np.maximum(pixels - ignored, 1)[:, None],
        ignored=ignored / pixels,
        objects=tuple(objects),
        spacings=tuple(dataset.spacing_of(int(index)) for index in indices),
    )
