"""TIFF."""

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from .common import BANDS, from_array, from_opencv, from_pillow
from .faults import UNDECODABLE, Fault, no_warnings, shielded, without_log
from .picture import MAX_PIXELS, Picture, as_plain, channels_of, check_size, narrow_range, type_range
from .tiff_pieces import Bands, are_channels, page_alone

TIFF_SUFFIXES = (".tif", ".tiff")


def open_tiff(path: Path, huge: bool, channels: int | None) -> Picture:
    with shielded("TIFF"):
        with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
            first, sizes = tiff.pages.first, {}
            for page in tiff.pages:
                if page.offset in sizes:
                    break  # a damaged chain of pages may run in a circle
                sizes[page.offset] = page.imagelength, page.imagewidth
        offsets = list(sizes)
        height, width = first.imagelength, first.imagewidth
        if huge and height * width > MAX_PIXELS:
            return _huge_tiff(path, first, list(sizes.values()).count((height, width)), channels)
        check_size(height, width, len(offsets))
        if channels is not None and width == channels < len(offsets) != channels and first.samplesperpixel == 1:
            return _rows_in_pages(path, len(offsets), height, channels)
        array, value_range = _tiff_page(path, first, channels)
        slices = _slices_of(path, len(offsets), first, channels)
    if len(offsets) == 1:
        return from_array(path, array, value_range)
    shape, dtype = array.shape, array.dtype

    def page(index: int) -> np.ndarray:
        with shielded("TIFF"):
            with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
                # Walking through all pages before it takes as long as reading them.
                tiff.filehandle.seek(offsets[index])
                page = tifffile.TiffPage(tiff, index)
            array, own_range = _tiff_page(path, page, channels)
        if (array.shape, array.dtype, own_range) != (shape, dtype, value_range):
            raise Fault(f"has pages of different sizes or types; first: page {index + 1}")
        return array

    def read(index: int) -> np.ndarray:
        pages = [page(number) for number in slices[index]]
        return pages[0] if len(pages) == 1 else np.stack(pages, axis=-1)

    if len(slices) == 1:
        return from_array(path, read(0), value_range)
    bands = channels_of(array) * len(slices[0])
    return Picture(path, height, width, len(slices), bands, dtype, value_range=value_range, _slice=read)


def _slices_of(path: Path, count: int, first: tifffile.TiffPage, channels: int | None) -> list[list[int]]:
    """The pages of each slice: one, or the grey ones that are its channels."""
    pages = np.arange(count)
    if channels in (None, 1) or first.samplesperpixel > 1:
        return pages[:, None].tolist()
    with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
        axes, shape = tiff.series[0].axes[:-2], tiff.series[0].shape[:-2]
    if "C" in axes and math.prod(shape) == count:
        at = axes.index("C")
        return np.moveaxis(pages.reshape(shape), at, -1).reshape(-1, shape[at]).tolist()
    return [pages.tolist()] if count == channels else pages[:, None].tolist()


def _rows_in_pages(path: Path, height: int, width: int, channels: int) -> Picture:
    """An array (H, W, C) that was saved without saying what its axes are: each row is a page then, C pixels wide."""
    check_size(height, width)
    with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
        array = tiff.asarray()
    if array.shape != (height, width, channels):
        raise Fault("has pages of different sizes")
    return from_array(path, as_plain(array), narrow_range(array.dtype))


def _huge_tiff(path: Path, page: tifffile.TiffPage, count: int, channels: int | None) -> Picture:
    height, width = page.imagelength, page.imagewidth
    if count > 1:
        raise Fault(f"has {count} pages of {width} x {height} pixels; save each as a file of its own")
    bands = Bands(path, page, channels)
    nothing = as_plain(np.empty((0, 0), page.dtype))
    return Picture(
        path,
        height,
        width,
        None,
        bands.channels,
        nothing.dtype,
        value_range=narrow_range(page.dtype),
        _slice=lambda index: bands.read(0, height),
        _band=bands.read,
    )


def _tiff_page(
    path: Path, page: tifffile.TiffPage, channels: int | None
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A page of at most `MAX_PIXELS` pixels, as `Picture.read` gives it, and the range of its type."""
    height, width = page.imagelength, page.imagewidth
    check_size(height, width)
    bits = int(np.max(page.bitspersample))
    if page.sampleformat == tifffile.SAMPLEFORMAT.INT or (channels is not None and are_channels(page) and not bits % 8):
        return Bands(path, page, channels).read(0, height), narrow_range(page.dtype)
    if bits <= 8 and page.imagedepth == 1 and all(page.databytecounts):  # Pillow refuses tiles that were never written
        with contextlib.suppress(UnidentifiedImageError):
            return _pillow_tiff(page_alone(path, page), channels), (0.0, 255.0)
    if 8 < bits < 16 and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
        array = from_opencv(page_alone(path, page), channels)  # the bits moved to the top of 16
        return ~array if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else array, type_range(array.dtype)
    return Bands(path, page, channels).read(0, height), narrow_range(page.dtype)


def _pillow_tiff(content: bytes, channels: int | None) -> np.ndarray:
    with no_warnings():
        picture = Image.open(io.BytesIO(content))
        try:
            picture.load()
        except Exception as error:  # the decoders have types of their own
            raise Fault(UNDECODABLE) from error
    bands = picture.tag_v2.get(277, 1)
    if picture.mode in ("1", "L") and bands > 1:
        raise Fault(f"has {bands} bands; {BANDS}")
    return from_pillow(picture, channels)
