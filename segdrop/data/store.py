"""The decoded pairs of a data set, kept in memory as far as it reaches."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..conventions import IGNORED
from ..errors import InputError
from ..images.opening import open_image
from ..images.picture import Picture


class Store:
    """The files' decoded slices, as many as fit into `budget` bytes, and the volumes opened last."""

    OPEN = 2  # volumes: one for each of the workers that read a data set from start to end

    def __init__(
        self,
        files: Sequence[tuple[Path, Path]],
        colours: dict | None,
        slice_axis: int,
        channels: int | None,
        budget: int,
    ):
        self.files, self.colours, self.slice_axis, self.channels = files, colours, slice_axis, channels
        self.budget = budget
        self.slices: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._volumes: OrderedDict[int, tuple[Picture, Picture]] = OrderedDict()
        self._volume_files: set[int] = set()
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def open(self, file: int) -> tuple[Picture, Picture]:
        return self.open_image(file), self.open_mask(file)

    def open_image(self, file: int) -> Picture:
        return open_image(self.files[file][0], slice_axis=self.slice_axis, channels=self.channels)

    def open_mask(self, file: int) -> Picture:
        return open_image(self.files[file][1], slice_axis=self.slice_axis)

    def read(self, file: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Image as stored and mask as class indices or stored values, uint8 (H, W)."""
        pair = self.slices.get((file, part))
        if pair is not None:
            return pair
        image, mask = self._open_volume(file) if file in self._volume_files else self.open(file)
        return image.read(part), read_mask(mask, part, self.colours)

    def _open_volume(self, file: int) -> tuple[Picture, Picture]:
        with self._opening:
            if file not in self._volumes:
                while len(self._volumes) >= self.OPEN:
                    self._volumes.popitem(last=False)
                self._volumes[file] = self.open(file)
            self._volumes.move_to_end(file)
            return self._volumes[file]

    def offer(self, file: int, part: int, image: np.ndarray, mask: np.ndarray, is_volume: bool) -> None:
        size = image.nbytes + mask.nbytes
        with self._lock:
            if is_volume:
                self._volume_files.add(file)
            if size <= self.budget:
                self.budget -= size
                # A view of a slice would keep the whole volume.
                self.slices[file, part] = (image.copy(), mask.copy()) if is_volume else (image, mask)


def read_mask(picture: Picture, part: int, colours: dict | None) -> np.ndarray:
    """A slice of a mask as uint8 (H, W), values as stored; coloured ones become class indices."""
    mask = picture.read(part)
    if mask.ndim == 3:
        if colours:
            return _colours_to_classes(mask, colours)
        if not (mask == mask[..., :1]).all():
            raise InputError('is a colour or palette mask; give each class of classes.json its "color": [r, g, b].')
        mask = np.ascontiguousarray(mask[..., 0])
    if mask.dtype != np.uint8:
        wrong = mask[(mask < 0) | (mask > 255) | (mask != np.round(mask))]
        if wrong.size:
            raise InputError(f"holds the value {wrong.max():g}; masks hold class indices of at most 254.")
        mask = mask.astype(np.uint8)
    return mask


def _colours_to_classes(mask: np.ndarray, colours: dict) -> np.ndarray:
    code = (mask.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=2)
    classes = np.full(code.shape, IGNORED, np.uint8)
    known = np.zeros(code.shape, bool)
    for (r, g, b), index in colours.items():
        hit = code == (r << 16 | g << 8 | b)
        classes[hit] = index
        known |= hit
    if not known.all():
        stray = mask[~known][0].tolist()
        raise InputError(f"holds the colour {stray}, which classes.json does not name")
    return classes
