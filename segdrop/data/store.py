"""The decoded pairs of a data set, kept in memory as far as it reaches."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..conventions import IGNORED
from ..errors import InputError
from ..images.opening import open_image
from ..images.picture import Picture, in_context
from .truth import Truth


class UnnamedColours(InputError):
    """A mask in colours that classes.json does not name; `counts`: the pixels of each of them, by (r, g, b)."""

    def __init__(self, counts: dict[tuple[int, int, int], int]):
        self.counts = counts
        super().__init__("is in colours that classes.json does not name")


class Store:
    """The files' decoded slices, as many as fit into `budget` bytes, and the volumes opened last."""

    OPEN = 2  # volumes: one for each of the workers that read a data set from start to end

    def __init__(
        self,
        files: Sequence[tuple[Path, Truth]],
        colours: dict | None,
        slice_axis: int,
        channels: int | None,
        context: int,
        budget: int,
    ):
        self.files, self.colours, self.slice_axis = files, colours, slice_axis
        self.channels, self.context, self.budget = channels, context, budget
        self.slices: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._volumes: OrderedDict[int, tuple[Picture, Picture]] = OrderedDict()
        self._counts: dict[int, int] = {}  # slices of the files that are volumes
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def open(self, file: int) -> tuple[Picture, Picture]:
        return self.open_image(file), self.open_mask(file)

    def open_image(self, file: int) -> Picture:
        path = self.files[file][0]
        return open_image(path, slice_axis=self.slice_axis, channels=self.channels, context=self.context)

    def open_mask(self, file: int) -> Picture:
        return self.files[file][1].open(self.slice_axis)

    def read(self, file: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Image as stored, in its context, and mask as class indices or stored values, uint8 (H, W)."""
        image = in_context(lambda number: self._image(file, number), part, self._counts.get(file, 1), self.context)
        mask = self._mask(file, part)
        if file not in self._counts:  # of volumes scanning has kept what it could; single images it may have skipped
            self.offer(file, part, image, mask, None)
        return image, mask

    def _image(self, file: int, part: int) -> np.ndarray:
        if (file, part) in self.slices:
            return self.slices[file, part][0]
        picture = self._open_volume(file)[0] if file in self._counts else self.open_image(file)
        return picture.read_alone(part)

    def _mask(self, file: int, part: int) -> np.ndarray:
        if (file, part) in self.slices:
            return self.slices[file, part][1]
        picture = self._open_volume(file)[1] if file in self._counts else self.open_mask(file)
        return self.labels(file, picture, part)

    def labels(self, file: int, mask: Picture, part: int) -> np.ndarray:
        """A slice of a file's opened mask as class indices or stored values, IGNORED outside of its field of view."""
        labels = read_mask(mask, part, self.colours)
        return self.files[file][1].within_view(labels, part, mask.slices, self.slice_axis)

    def _open_volume(self, file: int) -> tuple[Picture, Picture]:
        with self._opening:
            if file not in self._volumes:
                while len(self._volumes) >= self.OPEN:
                    self._volumes.popitem(last=False)
                self._volumes[file] = self.open(file)
            self._volumes.move_to_end(file)
            return self._volumes[file]

    def is_volume(self, file: int) -> bool:
        """Whether a file that was scanned has slices."""
        return file in self._counts

    def offer(self, file: int, part: int, image: np.ndarray, mask: np.ndarray, slices: int | None) -> None:
        """Keep a pair if there is room; `slices`: how many its volume has, or None."""
        size = image.nbytes + mask.nbytes
        with self._lock:
            if slices is not None:
                self._counts[file] = slices
            if size <= self.budget and (file, part) not in self.slices:
                self.budget -= size
                # A view of a slice would keep the whole volume.
                self.slices[file, part] = (image, mask) if slices is None else (image.copy(), mask.copy())


def read_mask(picture: Picture, part: int, colours: dict | None) -> np.ndarray:
    """A slice of a mask as uint8 (H, W), values as stored; coloured ones become class indices."""
    mask = picture.read(part)
    if mask.ndim == 3:
        if colours:
            return _colours_to_classes(mask, colours)
        if not (mask == mask[..., :1]).all():
            raise UnnamedColours(_count_colours(mask.reshape(-1, 3)))
        mask = np.ascontiguousarray(mask[..., 0])
    if mask.dtype != np.uint8:
        wrong = mask[(mask < 0) | (mask > 255) | (mask != np.round(mask))]
        if wrong.size:
            raise InputError(f"holds the value {wrong.max():g}; masks hold class indices of at most 254.")
        mask = mask.astype(np.uint8)
    return mask


def _colours_to_classes(mask: np.ndarray, colours: dict) -> np.ndarray:
    eight_bits = np.where((mask < 0) | (mask > 255), np.int16(256), mask)  # 256 is in no colour of classes.json
    code = (eight_bits.astype(np.int32) << np.array([18, 9, 0], np.int32)).sum(axis=2)
    classes = np.full(code.shape, IGNORED, np.uint8)
    known = np.zeros(code.shape, bool)
    for (r, g, b), index in colours.items():
        hit = code == (r << 18 | g << 9 | b)
        classes[hit] = index
        known |= hit
    if not known.all():
        raise UnnamedColours(_count_colours(mask[~known]))
    return classes


def _count_colours(pixels: np.ndarray) -> dict[tuple[int, int, int], int]:
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour): count for colour, count in zip(colours.tolist(), counts.tolist(), strict=True)}
