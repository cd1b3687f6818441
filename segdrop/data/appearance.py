"""How an image looks, and how well its mask follows it: what the checks of a data set compare."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2

from ..conventions import IGNORED
from ..images.resampling import resample

SIDE = 256  # pixels, the longer side that outlines are compared at
REACH = 0.25  # of the sides, how far a mask is moved
LEAST = 50  # foreground pixels at that size that a mask needs for an outline
_BLUR = 1.5  # pixels, sigma of the Gaussian before gradients
_THUMBNAIL, _LOWEST, _HIGHEST = 32, 4, 16  # pixels; frequencies of the cosine transform that a signature is made of


@dataclass(frozen=True)
class Appearance:
    """How an image looks.

    Attributes:
        means, deviations: float (C,), of each channel's values, 0..255.
        contrast: largest difference of two values of the same channel.
        signature: float32 (M,), see `signature`.
        fit: see `outline_fit`.
        rim: share of foreground in the image's outermost pixels, those that are not ignored.
    """

    means: np.ndarray
    deviations: np.ndarray
    contrast: float
    signature: np.ndarray
    fit: float
    rim: float


def look_at(image: np.ndarray, mask: np.ndarray) -> Appearance:
    """Measure an image, (H, W, C), 0..255, and its mask, uint8 (H, W).

    Example:
        >>> image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        >>> image[8:32, 8:40, 0], mask[8:32, 8:40] = 200, 1
        >>> found = look_at(image, mask)
        >>> found.means.tolist(), found.contrast, found.rim, found.fit > 2
        ([37.5, 0.0, 0.0], 200.0, 0.0, True)
    """
    rim = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    rim = rim[rim != IGNORED]
    means, deviations = cv2.meanStdDev(image)
    channels = np.ascontiguousarray(image.transpose(2, 0, 1))
    contrasts = channels.max(axis=(1, 2)).astype(float) - channels.min(axis=(1, 2))
    return Appearance(
        means=means[:, 0],
        deviations=deviations[:, 0],
        contrast=float(contrasts.max()),
        signature=signature(image),
        fit=outline_fit(image, mask),
        rim=float((rim > 0).mean()) if rim.size else 0.0,
    )


def signature(image: np.ndarray) -> np.ndarray:
    """An image's coarse structure, float32 (M,) of length 1: a perceptual hash whose numbers are kept, and not their
    signs alone. A cosine transform of 32 x 32 grey pixels without its lowest frequencies. All 0 without structure.

    Compression, scaling, noise and brightness leave it nearly as it is.

    Example:
        >>> image = np.random.default_rng(0).integers(0, 200, (90, 120, 3)).astype(np.float32)
        >>> alike, other = signature(image) @ signature(0.8 * image + 20), signature(image) @ signature(image[::-1])
        >>> bool(alike > 0.99), bool(other < 0.5)
        (True, True)
    """
    thumbnail = resample(image.astype(np.float32), (_THUMBNAIL, _THUMBNAIL))
    y, x = np.mgrid[:_HIGHEST, :_HIGHEST]
    kept = cv2.dct(thumbnail.mean(axis=2))[:_HIGHEST, :_HIGHEST][y + x >= _LOWEST]
    length = np.linalg.norm(kept)
    return kept / length if length > 0.1 else np.zeros_like(kept)


def outline_fit(image: np.ndarray, mask: np.ndarray) -> float:
    """How much better the edges of an image run along the outlines of its mask than along the mask moved elsewhere.

    Edges are the image's structure tensor, divided by its size so that a faint edge counts almost as a strong one; the
    score sums, over the outlines, what of it points across them. All moves by up to a quarter of the sides are scored
    at once by a Fourier transform.

    Returns:
        Standard deviations, over the moves, of the score in place above their mean; NaN without an outline.

    Example:
        >>> image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        >>> image[8:32, 8:40], mask[8:32, 8:40] = 200, 1
        >>> outline_fit(image, mask) > 2, outline_fit(image, mask.T[::-1]) < 1
        (True, True)
    """
    factor = min(1, SIDE / max(mask.shape))
    size = tuple(max(8, round(side * factor)) for side in mask.shape)
    labels = [label for label in np.unique(mask) if 0 < label < IGNORED]
    regions = [resample((mask == label).astype(np.float32), size) for label in labels]
    if sum(region.sum() for region in regions) < LEAST:
        return np.nan
    ignored = resample((mask == IGNORED).astype(np.float32), size)
    outlines = np.sum([_structure(region[..., None]) for region in regions], axis=0)
    outlines[2] *= 2  # the tensors' products off the diagonal are there twice
    outlines *= cv2.GaussianBlur(ignored, (0, 0), 2 * _BLUR) < 0.01
    if outlines[:2].max() < 0.01:  # a line of a fifth of a pixel gives 0.02, a sharp border 3.7
        return np.nan
    edges = _structure(resample(image.astype(np.float32), size))
    strength = edges[0] + edges[1]
    edges /= strength + np.median(strength) + 1e-3
    padded = tuple(next_fast_len(side, real=True) for side in size)
    spectrum = rfft2(edges, padded) * np.conj(rfft2(outlines, padded))
    scores = irfft2(spectrum.sum(axis=0), padded)
    moves = (np.arange(-reach, reach + 1) for reach in (max(2, int(side * REACH)) for side in size))
    near = scores[np.ix_(*moves)]
    spread = near.std()
    return float((scores[0, 0] - near.mean()) / spread) if spread > 1e-6 else np.nan


def _structure(image: np.ndarray) -> np.ndarray:
    """The structure tensor's three entries, float32 (3, H, W), summed over the channels of (H, W, C)."""
    smooth = cv2.GaussianBlur(image, (0, 0), _BLUR).reshape(image.shape)
    across, down = (
        cv2.Sobel(smooth, cv2.CV_32F, dx, dy, borderType=cv2.BORDER_REPLICATE).reshape(image.shape)
        for dx, dy in ((1, 0), (0, 1))
    )
    pairs = ((across, across), (down, down), (across, down))
    return np.stack([np.einsum("ijk,ijk->ij", *pair) for pair in pairs])  # much faster than a sum over a short axis
