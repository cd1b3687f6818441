"""Distances between the boundaries of two masks: Hausdorff distance and surface Dice."""

import cv2
import numpy as np
from scipy import ndimage

from ..conventions import IGNORED

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def hausdorff95(truth, pred, spacing: tuple[float, float] | None = None) -> float:
    """The larger of the 95th percentiles of the distances from each boundary to the other.

    Args:
        truth: bool or uint8 (H, W), foreground where not 0; IGNORED (255) pixels are left out of both masks.
        pred: bool or uint8 (H, W), foreground where not 0.
        spacing: height and width of a pixel in mm; None for distances in pixels.

    Returns:
        The distance in mm or pixels; NaN (undefined) where either mask is empty.

    Raises:
        ValueError: the masks differ in shape.

    Example:
        >>> truth, pred = np.zeros((2, 5, 5), np.uint8)
        >>> truth[2, 1] = pred[2, 4] = 1
        >>> hausdorff95(truth, pred), hausdorff95(truth, pred, spacing=(0.5, 0.5))
        (3.0, 1.5)

    References:
        Maier-Hein et al., "Metrics reloaded", Nature Methods 2024.
    """
    return hausdorff95_from_distances(boundary_distances(truth, pred, spacing))


def surface_dice(truth, pred, tolerance: float, spacing: tuple[float, float] | None = None) -> float:
    """Share of both boundaries' pixels that lie within `tolerance` of the other boundary.

    Every boundary pixel counts alike, where the reference weighs the elements of the surface by their size.

    Args:
        truth: as in `hausdorff95`.
        pred: as in `hausdorff95`.
        tolerance: in mm, or in pixels without a `spacing`; a distance equal to it is within.
        spacing: height and width of a pixel in mm.

    Returns:
        0..1; NaN (undefined) where both masks are empty, 0 where one is.

    Raises:
        ValueError: the masks differ in shape.

    Example:
        >>> truth, pred = np.zeros((2, 5, 5), np.uint8)
        >>> truth[2, 1] = pred[2, 4] = 1
        >>> surface_dice(truth, pred, tolerance=2), surface_dice(truth, pred, tolerance=3)
        (0.0, 1.0)

    References:
        Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
        radiotherapy", 2018, arXiv:1809.04430.
    """
    return surface_dice_from_distances(boundary_distances(truth, pred, spacing), tolerance)


def boundary_distances(truth, pred, spacing: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each boundary pixel of a mask the distance to the nearest one of the other mask.

    A boundary pixel is one of the foreground with a 4-neighbour outside the mask; beyond the image is outside.
    Arguments and exceptions as in `hausdorff95`.

    Returns:
        Distances from truth to prediction and from prediction to truth, each float (boundary pixels,), in row-major
        order; infinite where the other mask is empty.

    Example:
        >>> truth, pred = np.zeros((2, 5, 5), np.uint8)
        >>> truth[2, 1] = pred[2, 3] = pred[2, 4] = 1
        >>> there, back = boundary_distances(truth, pred)
        >>> there.tolist(), back.tolist()
        ([2.0], [2.0, 3.0])
    """
    truth, pred = np.asarray(truth), np.asarray(pred)
    if truth.shape != pred.shape:
        raise ValueError(f"`truth` and `pred` must have one shape, got {truth.shape} and {pred.shape}.")
    valid = truth != IGNORED
    masks = [((mask != 0) & valid).view(np.uint8) for mask in (truth, pred)]
    left, top, width, height = cv2.boundingRect(masks[0] | masks[1])
    if not width:
        return np.empty(0), np.empty(0)
    boundaries = [_boundary(mask[top : top + height, left : left + width]) for mask in masks]
    there, back = (_distances(a, b, spacing) for a, b in (boundaries, boundaries[::-1]))
    return there, back


def hausdorff95_from_distances(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """`hausdorff95` of what `boundary_distances` returned.

    Example:
        >>> hausdorff95_from_distances((np.array([1.0]), np.array([3.0])))
        3.0
    """
    if not all(directed.size for directed in distances):
        return float("nan")
    return float(max(np.percentile(directed, 95) for directed in distances))


def surface_dice_from_distances(distances: tuple[np.ndarray, np.ndarray], tolerance: float) -> float:
    """`surface_dice` of what `boundary_distances` returned.

    Example:
        >>> surface_dice_from_distances((np.array([1.0, 3.0]), np.array([2.0, 2.0])), tolerance=2)
        0.75
    """
    count = sum(directed.size for directed in distances)
    # Three pixels of 0.1 mm are 0.3 mm, though not in floating point.
    limit = tolerance * (1 + 1e-6)
    return float(sum(np.count_nonzero(directed <= limit) for directed in distances) / count) if count else float("nan")


def _boundary(mask: np.ndarray) -> np.ndarray:
    return (mask - cv2.erode(mask, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)).view(bool)


def _distances(start: np.ndarray, goal: np.ndarray, spacing: tuple[float, float] | None) -> np.ndarray:
    """Of the pixels of `start` to the nearest one of `goal`, bool (H, W) both."""
    if not goal.any():
        return np.full(np.count_nonzero(start), np.inf)
    row, column = spacing or (1, 1)
    if row != column:
        return ndimage.distance_transform_edt(~goal, sampling=(row, column))[start]
    # Several times as fast as SciPy's, and as exact: squares are whole numbers, so what float32 rounds can be undone.
    rounded = cv2.distanceTransform((~goal).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[start]
    return row * np.sqrt(np.rint(np.square(rounded, dtype=np.float64)))


TOLERANCE = 2.0  # of the surface Dice, in mm or pixels
