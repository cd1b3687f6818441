"""From the values of an image file to the 0..255 that networks take: one rule for training and prediction."""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ..config.train import TrainConfig
from ..errors import InputError
from .picture import Picture

Rule = Literal["dtype", "percentiles", "window"]
SAMPLES = 4_000_000  # about as many values of an image or volume are looked at for its percentiles
_BAND_PIXELS = 2**24  # of a huge image, decoded at a time


@dataclass(frozen=True)
class Intensity:
    """How the values of an image are mapped to 0..255.

    Attributes:
        rule: "dtype": the whole range of the file's integer type; "percentiles": between two percentiles of the
            image or volume; "window": between two given values, or those of the file's own window.
        percentiles: two numbers in 0..100.
        window: (low, high) in the file's values (Hounsfield units of a CT); None: the file's own.
    """

    rule: Rule = "dtype"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None

    def bounds(self, picture: Picture) -> tuple[float, float]:
        """The values of `picture` that become 0 and 255, once for an image or for all slices of a volume.

        Raises:
            InputError: the rule needs what the file does not have.
        """
        if self.rule == "percentiles":
            low, high = np.percentile(_samples(picture), self.percentiles)
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


def rule_of(config: TrainConfig) -> Intensity:
    """How values become 0..255 in training with `config` and in prediction with its model."""
    return Intensity(config.intensity, config.intensity_percentiles, config.intensity_window)


def scale(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` to 0..255, clipped; grey is repeated to three channels.

    Args:
        image: (H, W) or (H, W, 3), of any real type.
        low, high: from `Intensity.bounds`; unless low < high the result is 0 everywhere.

    Returns:
        float32 (H, W, 3), 0..255; a uint8 image with the bounds (0, 255) keeps its values exactly.
    """
    image = image.astype(np.float32)
    if high > low:
        image -= np.float32(low)
        image *= np.float32(255 / (high - low))
        np.clip(image, 0, 255, out=image)
    else:
        image[...] = 0
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def _samples(picture: Picture) -> np.ndarray:
    """Values on a regular grid of pixels over all slices and channels."""
    total = picture.height * picture.width * picture.channels * (picture.slices or 1)
    step = max(1, math.ceil(math.sqrt(total / SAMPLES)))
    if picture.slices is not None:
        return np.concatenate([picture.read(index)[::step, ::step].ravel() for index in range(picture.slices)])
    height = max(1, _BAND_PIXELS // picture.width)
    bands = ((top, picture.rows(top, top + height)) for top in range(0, picture.height, height))
    return np.concatenate([band[-top % step :: step, ::step].ravel() for top, band in bands])
