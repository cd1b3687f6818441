"""Where the mask of an image comes from: a file, one for each object or class, or outlines; and its field of view."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..conventions import IGNORED
from ..errors import InputError
from ..files import file_digest
from ..images.common import from_array
from ..images.opening import open_image
from ..images.picture import Picture
from .outlines import Drawing


@dataclass(frozen=True)
class Truth:
    """What an image's mask is made of.

    Attributes:
        files: the mask; or a mask of each object, whose union it is.
        by_class: whether the files are the masks of classes that overlap, in their order.
        drawing: the outlines in the file, where it is no image.
        view: of the field of view, which is zero where nothing was annotated; None: everywhere was.
    """

    files: tuple[Path, ...]
    view: Path | None = None
    drawing: Drawing | None = None
    by_class: bool = False

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that it is read from."""
        return self.files if self.view is None else (*self.files, self.view)

    def digest(self) -> str:
        """SHA-256 over what it is read from; of outlines over the mask that they make."""
        if self.drawing is not None:
            return hashlib.sha256(self.drawing.draw().tobytes()).hexdigest()
        digests = [file_digest(path) for path in self.paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def open(self, slice_axis: int) -> Picture:
        """The mask as stored, the field of view aside."""
        if self.drawing is not None:
            return from_array(self.files[0], self.drawing.draw(), None)
        if len(self.files) == 1:
            return open_image(self.files[0], slice_axis=slice_axis)
        return _joined([open_image(file, slice_axis=slice_axis) for file in self.files], self.by_class)

    def within_view(self, labels: np.ndarray, part: int, slices: int | None, slice_axis: int) -> np.ndarray:
        """Labels with IGNORED outside of the field of view; of a mask of 0 and 255 as 0 and 1, since 255 is IGNORED."""
        if self.view is None:
            return labels
        picture = open_image(self.view, slice_axis=slice_axis)
        if picture.slices and picture.slices != (slices or 1):
            raise InputError(f"{self.view}: the field of view has {picture.slices} slices, the mask {slices or 1}.")
        seen = _as_grey(picture.read(part if picture.slices else 0))
        if seen.shape != labels.shape:
            size, wanted = ("{1}x{0}".format(*array.shape) for array in (seen, labels))
            raise InputError(f"{self.view}: the field of view is {size}, the mask {wanted}.")
        if set(np.unique(labels)) <= {0, 255}:
            labels = labels // 255
        return np.where(seen > seen.max() / 2, labels, IGNORED).astype(np.uint8)


def _joined(pictures: Sequence[Picture], by_class: bool) -> Picture:
    """The masks of an image's objects as one, or those of classes as sums of bits."""
    first, one = pictures[0], "one class is of" if by_class else "one object is one image of"
    for picture in pictures:
        if any(getattr(picture, side) != getattr(first, side) for side in ("height", "width", "slices")):
            others = "classes" if by_class else "objects"
            raise InputError(f"{picture.path}: its size differs from that of the image's other {others}.")

    def read(index: int) -> np.ndarray:
        joined = np.zeros((first.height, first.width), np.uint8)
        for number, picture in enumerate(pictures):
            mask = _as_grey(picture.read(index))
            values = np.unique(mask)
            if (picture.slices and not by_class) or len(values) > 2 or (len(values) == 2 and values[0]):
                raise InputError(f"{picture.path}: a mask of {one} 0 and another value.")
            joined = np.maximum(joined, mask) if not by_class else joined | (mask > 0) * np.uint8(1 << number)
        return joined

    return replace(first, channels=1, dtype=np.dtype(np.uint8), value_range=None, _slice=read, _band=None)


def _as_grey(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 2 else values.max(axis=2)
