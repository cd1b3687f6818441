"""A data set: images, masks, splits and groups, read one by one."""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..images.intensity import Bounds, Intensity, scale
from ..images.resampling import resample, scaled_size
from .store import Store


@dataclass(frozen=True)
class Dataset:
    """A checked data set; `read(i)` gives image and mask number i. A slice of a volume is an image of its own.

    Attributes:
        path: the folder or CSV file it was opened from.
        understood: how images and masks were paired, in one line.
        ids: one name per pair, sorted by file and slice; slice 12 of the volume a is "a#012".
        class_names: names of class 0, 1, ...; at least two.
        groups: what must stay together in a split: the given group; else the patient of a DICOM file; else the digest
            of the image's file, so that its slices and its copies are never on both sides. May hold patients' names
            and ids: never to be written or shown as it is.
        grouped: whether groups were given, or there are patients or volumes.
        splits: the given split ("train", "val", "test") of each pair, or None.
        strata: the value of the column to stratify by of each pair, or None.
        sizes: (N, 2) heights and widths in pixels, of what `read` gives.
        truth_sizes: (N, 2) those of the masks that predictions are scored against: before `scaled`.
        digest: SHA-256 over classes, ids and file contents.
        channels: of the images that `read` gives.
        intensity: the rule that maps their files' values to 0..255, never "auto".
        multilabel: whether classes overlap, so that a mask's values are sums of the classes' bits (`conventions`).
        value_types: that their files' values are stored in, "uint8" for instance.
    """

    path: Path
    understood: str
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...] = field(repr=False)
    grouped: bool
    splits: tuple[str, ...] | None
    strata: tuple[str, ...] | None
    sizes: np.ndarray
    truth_sizes: np.ndarray
    digest: str
    channels: int
    intensity: Intensity
    multilabel: bool
    value_types: tuple[str, ...]
    _taken_as_bytes: bool = field(repr=False)  # before `scaled`
    _places: tuple[tuple[int, int], ...] = field(repr=False)  # file and slice of each pair
    _bounds: tuple[Bounds, ...] = field(repr=False)  # of each file
    _extremes: tuple[tuple[float, float], ...] = field(repr=False)  # of each file
    _spacings: tuple[tuple[float, float] | None, ...] = field(repr=False)
    _lut: np.ndarray = field(repr=False)
    _store: "Store" = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def scaled(self, factor: float) -> "Dataset":
        """The data set with images and masks enlarged by `factor`, at least to one pixel; scores stay on its own grid.

        Example:
            >>> from segdrop.data.opening import open_dataset
            >>> half = open_dataset("data/cells").scaled(0.5)
            >>> [mask.shape for mask in (half.read(0)[1], half.read_with_truth(0)[1])]
            [(64, 64), (128, 128)]
        """
        return dataclasses.replace(self, sizes=scaled_size(self.truth_sizes, factor))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask number `index`.

        Returns:
            image: (H, W, channels), by default RGB, 0..255 by the intensity rule; uint8 where 8-bit images are taken as
                they are (the rule "dtype", not resampled), else float32. mask: uint8 (H, W), class index, or sum of
                bits where classes overlap; or IGNORED.
        """
        return self._read(index, self.sizes[index])

    def read_with_truth(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, but with the mask before `scaled`, which predictions are scored against."""
        return self._read(index, self.truth_sizes[index])

    def _read(self, index: int, mask_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        file, part = self._places[index]
        image, mask = self._store.read(file, part)
        size = tuple(self.sizes[index].tolist())
        bounds = self._bounds[file]
        exact = self.intensity.rule == "dtype" and image.dtype == np.uint8
        if not exact or bounds != (0, 255) or size != mask.shape:
            image = resample(scale(image, *bounds), size)
        elif image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        return image, resample(cv2.LUT(mask, self._lut), tuple(mask_size.tolist()), nearest=True)

    @property
    def as_bytes(self) -> bool:
        """Whether `read` gives every image as uint8."""
        return self._taken_as_bytes and np.array_equal(self.sizes, self.truth_sizes)

    def spacing_of(self, index: int) -> tuple[float, float] | None:
        """(row, column) distance in mm of the truth's pixels; None where it is not known."""
        return self._spacings[index]

    def constant(self, indices: Iterable[int]) -> list[str]:
        """Ids of those among some images in whose files all pixels have one value."""
        files = {file for file, (low, high) in enumerate(self._extremes) if low == high}
        return [self.ids[index] for index in indices if self._places[index][0] in files]

    def extremes_of(self, indices: Iterable[int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest value of some images' files, as stored; and in 0..255 by the intensity rule."""
        stored, scaled = [], []
        for file in {self._places[index][0] for index in indices}:
            stored += self._extremes[file]
            low, high = self._bounds[file]
            # Percentiles of each channel fill the range by themselves.
            scaled += (
                (0.0, 255.0) if isinstance(low, tuple) else scale(np.array([self._extremes[file]]), low, high).flat
            )
        return (min(stored), max(stored)), (float(min(scaled)), float(max(scaled)))

    @property
    def masks_digest(self) -> str:
        """SHA-256 over all that the masks which `read` gives depend on."""
        said = (self.digest, len(self.class_names), self.multilabel, self._store.slice_axis)
        arrays = [np.asarray(array, np.int64).tobytes() for array in (self._lut, self.sizes, self._places)]
        return hashlib.sha256(b"".join([repr(said).encode(), *arrays])).hexdigest()

    @property
    def cached(self) -> int:
        """How many decoded pairs are held in memory."""
        return len(self._store.slices)
