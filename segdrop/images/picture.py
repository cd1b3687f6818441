"""An image as its file holds it: size, type, spacing, and its values slice by slice."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .faults import Fault, naming_file

if "OPENCV_LOG_LEVEL" not in os.environ:  # it would write to stderr what is raised here
    (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)  # cv2 may have read its variable before


MAX_PIXELS = 89_478_485  # of one image or slice: Pillow's own limit, past which it suspects a decompression bomb
MAX_VOXELS = 2**30  # of one volume, twice the largest scans there are
MAX_UNPACKED = 2**30  # bytes in memory of a file that is compressed as a whole: 512 x 512 x 2,048 voxels of 16 bits
MAX_SLICES = 2**15  # of one volume; each is worked on by itself, which a long list of tiny ones would make endless


@dataclass(frozen=True, eq=False)
class Picture:
    """An opened image file: one 2-D image, or a volume whose slices are all of one size.

    Attributes:
        path: the file.
        height, width: of a slice, in pixels.
        slices: None for one 2-D image; the number of slices of a volume, of frames or of pages.
        channels: 1 (grey) or 3 (RGB), or as many as the image was opened with.
        dtype: of what `read` gives.
        spacing: (row, column) distance of the pixels of a slice in mm, or None where the file does not tell.
        patient: the patient's id as stored, for grouping only: never to be written or shown.
        value_range: lowest and highest value that the file's integer type can hold, in the values of `read`; None
            for floating point.
        window: lowest and highest value that the file itself asks to show, in the values of `read`, or None.
        context: how many slices of a grey volume before and after each one `read` gives as channels beside it.
    """

    path: Path
    height: int
    width: int
    slices: int | None
    channels: int
    dtype: np.dtype
    spacing: tuple[float, float] | None = None
    patient: str | None = field(default=None, repr=False)
    value_range: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    context: int = 0
    _slice: Callable[[int], np.ndarray] = field(default=None, repr=False)  # type: ignore[assignment]
    _band: Callable[[int, int], np.ndarray] | None = field(default=None, repr=False)
    _nifti: tuple[Any, Any, int] | None = field(default=None, repr=False)  # class, blanked header, slice axis

    @property
    def is_nifti(self) -> bool:
        return self._nifti is not None

    def read(self, index: int = 0) -> np.ndarray:
        """Slice number `index`, values as stored, after the file's own rescaling: (H, W), or (H, W, 3) in RGB.

        Of an image that was opened with `channels` (H, W, channels), with `context` (H, W, 2 * context + 1). uint8,
        uint16, int16 or float32; finite.

        Raises:
            InputError: the slice cannot be decoded.
        """
        return in_context(self.read_alone, index, self.slices or 1, self.context)

    def read_alone(self, index: int = 0) -> np.ndarray:
        """A slice as `read` gives it, without its context."""
        if not 0 <= index < (self.slices or 1):
            raise IndexError(f"{self.path} has no slice {index}.")
        with naming_file(self.path):
            return self._slice(index)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom - 1` of a 2-D image, as `read` gives them.

        Of an image opened with `huge` only what these rows need is decoded, and what the last call decoded of them
        is used again, so bands from top to bottom decode everything once.

        Raises:
            InputError: the rows cannot be decoded.
        """
        with naming_file(self.path):
            return self._slice(0)[top:bottom] if self._band is None else self._band(top, bottom)


def in_context(read: Callable[[int], np.ndarray], index: int, slices: int, context: int) -> np.ndarray:
    """Slice `index` of those that `read` gives; with `context` as many before and after it, too, as channels in their
    order: (H, W, 2 * context + 1). Beyond the volume's ends its first and its last slice are repeated."""
    if not context:
        return read(index)
    if not 0 <= index < slices:
        raise IndexError(f"There is no slice {index} of {slices}.")
    numbers = np.clip(np.arange(index - context, index + context + 1), 0, slices - 1)
    return np.stack([read(int(number)) for number in numbers], axis=-1)


def with_channel_axis(picture: Picture) -> Picture:
    """A grey picture whose values are (H, W, 1)."""
    values, band = picture._slice, picture._band
    return replace(
        picture,
        _slice=lambda index: values(index)[..., None],
        _band=None if band is None else lambda top, bottom: band(top, bottom)[..., None],
    )


def as_plain(array: np.ndarray) -> np.ndarray:
    """As uint8, uint16, int16 or float32 in the machine's byte order."""
    if array.dtype.kind not in "buif":
        raise Fault(f"holds {array.dtype} values; save it as integers or floating point")
    smallest = [kind for kind in ("uint8", "uint16", "int16") if np.can_cast(array.dtype, kind)]
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused below
        array = np.ascontiguousarray(array, smallest[0] if smallest else np.float32)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise Fault("holds values that are not finite; replace them")
    return array


def channels_of(array: np.ndarray) -> int:
    return 1 if array.ndim == 2 else array.shape[2]


def type_range(dtype: np.dtype) -> tuple[float, float] | None:
    return None if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))


def narrow_range(dtype) -> tuple[float, float] | None:
    """Lowest and highest value of an integer type of at most 16 bits; of wider ones nobody uses all, so None."""
    dtype = np.dtype(dtype)
    return type_range(dtype) if dtype.itemsize <= 2 else None


def check_size(height: int, width: int, slices: int = 1, advice: str = "cut it into tiles") -> None:
    if height * width > MAX_PIXELS:
        raise Fault(f"has {width} x {height} pixels; {advice}")
    if height * width * slices > MAX_VOXELS or slices > MAX_SLICES:
        raise Fault(f"has {slices} slices of {width} x {height} pixels; cut it into several files")


def millimetres(pair, factor: float = 1.0) -> tuple[float, float] | None:
    row, column = (float(value) * factor for value in pair)
    return (row, column) if 0 < row < np.inf and 0 < column < np.inf else None
