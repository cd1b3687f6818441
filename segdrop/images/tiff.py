"""TIFF."""

import math
import struct
from pathlib import Path

import numpy as np
import tifffile

from .common import from_array
from .faults import UNDECODABLE, Fault, shielded, without_log
from .picture import MAX_PIXELS, Picture, as_plain, channels_of, check_size, narrow_range
from .tiff_pieces import Bands

TIFF_SUFFIXES = (".tif", ".tiff")


def open_tiff(path: Path, huge: bool, channels: int | None) -> Picture:
    with shielded("TIFF"):
        with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
            first, sizes = tiff.pages.first, {}
            for page in tiff.pages:
                if page.offset in sizes:
                    break  # a damaged chain of pages may run in a circle
                sizes[page.offset] = page.imagelength, page.imagewidth
            else:
                if _page_after(tiff, page.offset):  # which tifffile has not found
                    raise Fault(UNDECODABLE)
            offsets, stacked = list(sizes), _stacked(tiff, first, len(sizes))
            height, width, count = first.imagelength, first.imagewidth, len(offsets) * stacked
            if huge and height * width > MAX_PIXELS:
                return _huge_tiff(path, first, list(sizes.values()).count((height, width)) * stacked, channels)
            check_size(height, width, count)
            rows = channels is not None and width == channels < count != channels and first.samplesperpixel == 1
            bands = Bands(path, first, channels)
        if rows:
            return _rows_in_pages(path, count, height, channels)
        array, value_range = bands.read(0, height), narrow_range(bands.dtype)
        slices = _slices_of(path, count, first, channels)
    if count == 1:
        return from_array(path, array, value_range)
    shape, dtype = array.shape, array.dtype

    def page(index: int) -> np.ndarray:
        with shielded("TIFF"):
            with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
                # Walking through all pages before it takes as long as reading them.
                tiff.filehandle.seek(offsets[index // stacked])
                page = tifffile.TiffPage(tiff, index)
                page.dataoffsets = tuple(offset + index % stacked * page.nbytes for offset in page.dataoffsets)
                check_size(page.imagelength, page.imagewidth)
                bands = Bands(path, page, channels)
            array = bands.read(0, page.imagelength)
        if (array.shape, array.dtype, narrow_range(bands.dtype)) != (shape, dtype, value_range):
            raise Fault(f"has pages of different sizes or types; first: page {index + 1}")
        return array

    def read(index: int) -> np.ndarray:
        pages = [page(number) for number in slices[index]]
        return pages[0] if len(pages) == 1 else np.stack(pages, axis=-1)

    if len(slices) == 1:
        return from_array(path, read(0), value_range)
    bands = channels_of(array) * len(slices[0])
    return Picture(path, height, width, len(slices), bands, dtype, value_range=value_range, _slice=read)


def _page_after(tiff: tifffile.TiffFile, offset: int) -> int:
    """Where the page after the one at `offset` should be; 0 where that is the last."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(offset)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(offset + form.tagnosize + tags * form.tagsize)
    return struct.unpack(form.offsetformat, file.read(form.offsetsize))[0]


def _stacked(tiff: tifffile.TiffFile, first: tifffile.TiffPage, pages: int) -> int:
    """How many images lie one behind the other in the only page of a file: ImageJ writes a large stack so, MetaMorph
    and tifffile any; 1 where each has a page."""
    if not (first.is_imagej or first.is_shaped or first.is_stk) or not first.is_contiguous:
        return 1
    images = first.tags[33629].count if first.is_stk and 33629 in first.tags else tiff.series[0].size // first.size
    told_only = first.dataoffsets[0] + images * first.nbytes > tiff.filehandle.size  # a copy of one of the images
    if images <= pages or told_only:
        return 1
    if pages > 1:
        raise Fault(f"has {images} slices in a page; save it with one page for each slice")
    return images


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
    nothing = as_plain(np.empty((0, 0), bands.dtype))
    return Picture(
        path,
        height,
        width,
        None,
        bands.channels,
        nothing.dtype,
        value_range=narrow_range(bands.dtype),
        _slice=lambda index: bands.read(0, height),
        _band=bands.read,
    )
