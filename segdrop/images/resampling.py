"""Resampling to a pixel spacing, and continuing an image past its border."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..errors import InputError
from .picture import MAX_PIXELS


def resampled_size(height: int, width: int, spacing: tuple[float, float], target: float) -> tuple[int, int]:
    """Height and width after resampling from the (row, column) `spacing` to `target`, both in mm; at least 1.

    Raises:
        InputError: `spacing` is not two positive finite numbers, or the result has more than `MAX_PIXELS` pixels.
    """
    steps = np.asarray(spacing, np.float64)
    if steps.shape != (2,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise InputError(f"`spacing` must be two positive numbers, mm per row and per column, got spacing={spacing!r}.")
    rows, columns = (max(1.0, n * float(step) / target) for n, step in zip((height, width), steps, strict=True))
    if not rows * columns <= MAX_PIXELS:
        raise InputError(
            f"An image of {height} x {width} pixels of {steps[0]:g} x {steps[1]:g} mm would have {rows:.0f} x "
            f"{columns:.0f} pixels at {target:g} mm per pixel; correct its spacing, or choose a larger `spacing`."
        )
    return round(rows), round(columns)


def scaled_size(size: Sequence[int] | np.ndarray, factor: float) -> np.ndarray:
    """Heights and widths, int (..., 2), of images that are enlarged by `factor`; at least 1.

    Example:
        >>> scaled_size((101, 200), 0.5).tolist()
        [50, 100]
    """
    return np.maximum(np.round(np.asarray(size) * factor), 1).astype(int)


def resample(image: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """An image (H, W) or (H, W, C) resampled to the (height, width) `size`, of the same dtype.

    Averages over areas where it shrinks, is bilinear where it grows; `nearest` takes the nearest pixel, for masks.
    """
    size = int(size[0]), int(size[1])
    if image.ndim == 3 and image.shape[2] > 4:  # OpenCV averages over areas of at most 4 channels
        fours = (np.ascontiguousarray(image[..., first : first + 4]) for first in range(0, image.shape[2], 4))
        return np.concatenate([resample(four, size, nearest=nearest).reshape(*size, -1) for four in fours], axis=-1)
    if nearest:
        steps = [(size, cv2.INTER_NEAREST_EXACT)]
    else:
        smaller = min(size[0], image.shape[0]), min(size[1], image.shape[1])
        steps = [(smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)]
    for (height, width), method in steps:
        if (height, width) != image.shape[:2]:
            # OpenCV drops an axis of one channel.
            image = cv2.resize(image, (width, height), interpolation=method).reshape(height, width, *image.shape[2:])
    return image


def extend(image: np.ndarray, bottom: int, right: int) -> np.ndarray:
    """An image (H, W) or (H, W, C) continued by reflection at the bottom and right, in pixels."""
    height, width, *channels = image.shape
    reflected = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    return reflected.reshape(height + bottom, width + right, *channels)
