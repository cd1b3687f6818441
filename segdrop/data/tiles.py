"""Images larger than a network's memory: overlapping tiles, merged row by row."""

from collections.abc import Callable, Iterator

import numpy as np

from ..config.checks import check_tile
from ..conventions import MULTIPLE, OVERLAP, TILE
from ..images.resampling import extend

_SIGMA = 1 / 8  # of the Gaussian weights, in tiles, as in nnU-Net


def in_tiles(
    function: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    tile: int = TILE,
    overlap: int = OVERLAP,
    margin: int = 0,
) -> np.ndarray:
    """Apply `function` to overlapping tiles of an image and average what it gives with Gaussian weights.

    Args:
        function: maps float32 (N, h, w, C) to (N, h, w, K), sides multiples of 32.
        image: float32 (H, W, C); reflected at the bottom and right to multiples of 32.
        tile, overlap, margin: see `tile_rows`.

    Returns:
        float32 (H, W, K).

    Example:
        >>> image = np.full((70, 100, 3), 3, np.float32)
        >>> doubled = in_tiles(lambda tiles: 2 * tiles, image, tile=64, overlap=32)
        >>> doubled.shape, np.allclose(doubled, 6)
        ((70, 100, 3), True)
    """
    return in_numbered_tiles(lambda images, key: function(images), image, tile, overlap, margin)


def in_numbered_tiles(
    function: Callable[[np.ndarray, int], np.ndarray],
    image: np.ndarray,
    tile: int = TILE,
    overlap: int = OVERLAP,
    margin: int = 0,
) -> np.ndarray:
    """As `in_tiles`, of a function that is told the number of the row's first tile, too, as in `tile_rows`.

    Example:
        >>> image = np.zeros((64, 96, 3), np.float32)
        >>> in_numbered_tiles(lambda tiles, key: tiles + key, image, tile=64, overlap=32).shape
        (64, 96, 3)
    """
    height, width = image.shape[:2]
    rows = tile_rows(function, lambda a, b: image[a:b], height, width, tile, overlap, margin=margin)
    return np.concatenate([merged for _, merged in rows])


def tile_rows(
    function: Callable[[np.ndarray, int], np.ndarray],
    read: Callable[[int, int], np.ndarray],
    height: int,
    width: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
    *,
    margin: int = 0,
    start: int = 0,
    on_tiles: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Merge overlapping tiles from the top of an image to its bottom, holding one row of tiles in memory.

    All offsets are multiples of 32, so that the network's strides fall on the same pixels as in the whole image. Tiles
    whose results are cut back by half of the network's receptive field (`margin`) give what the whole image does.

    Args:
        function: maps float32 (N, h, w, C), sides multiples of 32, to (N, h, w, K); its second argument is the number
            of the first of these tiles, which is the same in every run.
        read: gives rows `top` to `bottom` of the image, float32 (bottom - top, width, C); called from the top down.
        tile: side of a tile in pixels, a multiple of 32.
        overlap: of neighbouring tiles in pixels, a multiple of 32, at most half of `tile`.
        margin: pixels at the inner borders of tiles that are not used, at most half of `overlap`.
        start: row of tiles to begin with: an earlier call has given what is above it. Of the rows before it, those that
            reach below its top are computed again.
        on_tiles: called with the number of tiles done after each batch.

    Yields:
        the first row, and float32 (rows, width, K), of the part of the image that each row of tiles completes.

    Example:
        >>> image = np.zeros((70, 40, 3), np.float32)
        >>> read, keep = (lambda top, bottom: image[top:bottom]), (lambda tiles, first: tiles)
        >>> [(top, rows.shape) for top, rows in tile_rows(keep, read, height=70, width=40, tile=64, overlap=32)]
        [(0, (32, 40, 3)), (32, (38, 40, 3))]
    """
    check_tile(tile, overlap, margin)
    tops, lefts = tile_offsets(height, tile, overlap), tile_offsets(width, tile, overlap)
    tall, wide = min(tile, padded(height)), min(tile, padded(width))
    row_weights = [_weights(tall, top, padded(height), margin) for top in tops]
    column_weights = [_weights(wide, left, padded(width), margin) for left in lefts]
    across = _sum_weights(column_weights, lefts, padded(width))
    down = _sum_weights(row_weights, tops, padded(height))
    batch = max(1, TILE**2 // (tall * wide))
    if start >= len(tops):
        return
    first = next((i for i in range(start) if tops[i] + tall > tops[start]), start)
    band, total = _Band(read, height, width, tops[first]), None
    for i in range(first, len(tops)):
        image = band.rows(tops[i], tops[i] + tall)
        for j in range(0, len(lefts), batch):
            columns = range(j, min(j + batch, len(lefts)))
            results = function(np.stack([image[:, lefts[c] : lefts[c] + wide] for c in columns]), i * len(lefts) + j)
            if total is None:
                total = np.zeros((tall, padded(width), results.shape[-1]), np.float32)
            for c, result in zip(columns, results, strict=True):
                weight = row_weights[i][:, None, None] * column_weights[c][:, None]
                total[:, lefts[c] : lefts[c] + wide] += weight * result
            on_tiles(len(columns))
        bottom = tops[i + 1] if i + 1 < len(tops) else height
        done = bottom - tops[i]
        if i >= start:
            merged = total[: min(done, height - tops[i]), :width] / across[:width, None]
            merged /= down[tops[i] : tops[i] + len(merged), None, None]
            yield tops[i], merged
        total[: tall - done] = total[done:]
        total[tall - done :] = 0


def tile_offsets(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along an axis of `length` pixels begin: all multiples of 32.

    Example:
        >>> tile_offsets(300, tile=128, overlap=32)
        [0, 96, 192]
    """
    last = max(0, padded(length) - tile)
    return [*range(0, last, tile - overlap), last]


class _Band:
    """The rows of the image that the current tiles need, padded by reflection."""

    def __init__(self, read, height: int, width: int, top: int):
        self._read, self._height, self._width = read, height, width
        self._top, self._rows = top, np.zeros((0, padded(width)), np.float32)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        kept = self._rows[top - self._top :]
        begin, end = top + len(kept), min(bottom, self._height)
        if begin < end:
            fresh = np.asarray(self._read(begin, end), np.float32)
            right = padded(self._width) - self._width
            fresh = extend(fresh, 0, right) if right else fresh
            kept = np.concatenate([kept, fresh]) if len(kept) else fresh
        self._top, self._rows = top, kept
        missing = bottom - top - len(kept)
        return extend(kept, missing, 0) if missing else kept


def padded(length: int) -> int:
    """The next multiple of 32.

    Example:
        >>> padded(64), padded(65)
        (64, 96)
    """
    return -(-length // MULTIPLE) * MULTIPLE


def _weights(tile: int, offset: int, length: int, margin: int) -> np.ndarray:
    """Gaussian weights along an axis of a tile; 0 in the margin, unless that is the image's border."""
    distance = (np.arange(tile) - (tile - 1) / 2) / (tile * _SIGMA)
    weights = np.exp(-0.5 * distance**2).astype(np.float32)
    if margin and offset > 0:
        weights[:margin] = 0
    if margin and offset + tile < length:
        weights[-margin:] = 0
    return weights


def _sum_weights(weights: list[np.ndarray], offsets: list[int], length: int) -> np.ndarray:
    total = np.zeros(length, np.float32)
    for tile_weights, offset in zip(weights, offsets, strict=True):
        total[offset : offset + len(tile_weights)] += tile_weights
    return total
