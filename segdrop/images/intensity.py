"""From the values of an image file to the 0..255 that networks take: one rule for training and prediction."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from ..config.train import TrainConfig
from ..errors import InputError
from .picture import Picture

Rule = Literal["auto", "dtype", "percentiles", "window"]
# The values that become 0 and 255: of an image, or of each of its channels.
Bounds = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]
FILLED = 0.25  # share of its type's range that a data set has to use for "auto" to take the type's range
SAMPLES = 4_000_000  # about as many values of an image or volume are looked at for its percentiles
_BAND_PIXELS = 2**24  # of a huge image, decoded at a time


@dataclass(frozen=True)
class Intensity:
    """How the values of an image are mapped to 0..255.

    Attributes:
        rule: "dtype": the whole range of the file's integer type; "percentiles": between two percentiles of the
            image or volume; "window": between two given values, or those of the file's own window; "auto": what
            `settled` chooses for a data set, and until then percentiles, but of 8 bits the whole range.
        percentiles: two numbers in 0..100.
        window: (low, high) in the file's values (Hounsfield units of a CT); None: the file's own.
        by_channel: whether percentiles are taken for each channel by itself; else once for all, so that colours stay.
    """

    rule: Rule = "dtype"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    by_channel: bool = False

    def bounds(self, picture: Picture) -> Bounds:
        """The values of `picture` that become 0 and 255, once for an image or for all slices of a volume.

        Raises:
            InputError: the rule needs what the file does not have.
        """
        if self.rule == "auto" and _has_8_bits(picture.value_range):
            return replace(self, rule="dtype").bounds(picture)
        if self.rule in ("auto", "percentiles"):
            samples = _samples(picture).astype(np.float64)  # which holds the difference of any two of them
            if self.by_channel and picture.channels > 1:
                low, high = np.percentile(samples.reshape(-1, picture.channels), self.percentiles, axis=0)
                return tuple(low.tolist()), tuple(high.tolist())
            low, high = np.percentile(samples, self.percentiles)
            return float(low), float(high)
        if self.rule == "window":
            window = self.window or picture.window
            if window is None:
                raise InputError(
                    f"{picture.path}: has no window of its own; give `intensity_window`, "
                    "or use `intensity` percentiles."
                )
            return window
        if picture.value_range is None:
            kind = "floating-point or 32-bit" if picture.dtype.kind in "fiu" else picture.dtype
            raise InputError(
                f"{picture.path}: holds {kind} values, whose type tells no range; "
                "use `intensity` percentiles or window."
            )
        return picture.value_range

    def settled(self, images: Iterable[tuple[tuple[float, float] | None, Bounds]]) -> "Intensity":
        """This rule, and in place of "auto" one for all images of a data set, lest alike ones be mapped in two ways.

        It is "dtype", unless images of other than 8 bits have no range of their type, or use less than a quarter of
        it, the brightest 0.5% (by the default percentiles) of each image left out: a hot pixel uses all of it.

        Args:
            images: of each its type's range, and what `bounds` says of it.
        """
        if self.rule != "auto":
            return self
        used: dict[tuple[float, float] | None, list] = {}
        for value_range, bounds in images:
            if not _has_8_bits(value_range):
                used.setdefault(value_range, []).append(np.ravel(bounds))
        few = any(
            value_range is None or np.ptp(np.concatenate(values)) < FILLED * np.ptp(value_range)
            for value_range, values in used.items()
        )
        return replace(self, rule="percentiles" if few else "dtype")


def _has_8_bits(value_range: tuple[float, float] | None) -> bool:
    return value_range == (0, 255)


def rule_of(config: TrainConfig) -> Intensity:
    """How values become 0..255 in training with `config` and in prediction with its model."""
    by_channel = config.channels is not None and not config.context_slices
    return Intensity(config.intensity, config.intensity_percentiles, config.intensity_window, by_channel)


def scale(image: np.ndarray, low: float | Sequence[float], high: float | Sequence[float]) -> np.ndarray:
    """Map `low`..`high` to 0..255, clipped; grey without an axis of channels is repeated to three.

    Args:
        image: (H, W) or (H, W, C), of any real type.
        low, high: from `Intensity.bounds`; unless low < high the result is 0 everywhere.

    Returns:
        float32 (H, W, C), 0..255; a uint8 image with the bounds (0, 255) keeps its values exactly.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    span = np.where(high > low, high - low, np.inf)
    fits = ((span > 1e-35) & (span < 1e38)).all()  # in float32, and so does 255 / span
    with np.errstate(over="ignore"):  # what becomes infinite lies far outside of the bounds
        image = image.astype(np.float32 if fits else np.float64)
        image -= low.astype(image.dtype)
        image *= (255 / span).astype(image.dtype)
    image = np.clip(image, 0, 255, out=image).astype(np.float32, copy=False)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def _samples(picture: Picture) -> np.ndarray:
    """Values on a regular grid of pixels over all slices and channels."""
    total = picture.height * picture.width * picture.channels * (picture.slices or 1)
    step = max(1, math.ceil(math.sqrt(total / SAMPLES)))
    if picture.slices is not None:
        return np.concatenate([picture.read_alone(index)[::step, ::step].ravel() for index in range(picture.slices)])
    height = max(1, _BAND_PIXELS // picture.width)
    bands = ((top, picture.rows(top, top + height)) for top in range(0, picture.height, height))
    return np.concatenate([band[-top % step :: step, ::step].ravel() for top, band in bands])
