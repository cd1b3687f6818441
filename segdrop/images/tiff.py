"""TIFF."""

import contextlib
import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from .common import from_array, from_opencv, from_pillow
from .faults import UNDECODABLE, Fault, no_warnings, shielded, without_log
from .picture import MAX_PIXELS, Picture, as_plain, channels_of, check_size, narrow_range, type_range
from .tiff_pieces import Bands, page_alone

TIFF_SUFFIXES = (".tif", ".tiff")


def open_tiff(path: Path, huge: bool) -> Picture:
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
            return _huge_tiff(path, first, list(sizes.values()).count((height, width)))
        check_size(height, width, len(offsets))
        array, value_range = _tiff_page(path, first)
    if len(offsets) == 1:
        return from_array(path, array, value_range)
    shape, dtype = array.shape, array.dtype

    def read(index: int) -> np.ndarray:
        with shielded("TIFF"):
            with without_log("tifffile"), tifffile.TiffFile(path) as tiff:
                # Walking through all pages before it takes as long as reading them.
                tiff.filehandle.seek(offsets[index])
                page = tifffile.TiffPage(tiff, index)
            array, own_range = _tiff_page(path, page)
        if (array.shape, array.dtype, own_range) != (shape, dtype, value_range):
            raise Fault(f"has pages of different sizes or types; first: page {index + 1}")
        return array

    channels = channels_of(array)
    return Picture(path, height, width, len(offsets), channels, dtype, value_range=value_range, _slice=read)


def _huge_tiff(path: Path, page: tifffile.TiffPage, count: int) -> Picture:
    height, width = page.imagelength, page.imagewidth
    if count > 1:
        raise Fault(f"has {count} pages of {width} x {height} pixels; save each as a file of its own")
    bands = Bands(path, page)
    nothing = as_plain(np.empty((0, 0), page.dtype))
    return Picture(
        path,
        height,
        width,
        None,
        3 if page.samplesperpixel > 1 else 1,
        nothing.dtype,
        value_range=narrow_range(page.dtype),
        _slice=lambda index: bands.read(0, height),
        _band=bands.read,
    )


def _tiff_page(path: Path, page: tifffile.TiffPage) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A page of at most `MAX_PIXELS` pixels, as `Picture.read` gives it, and the range of its type."""
    height, width = page.imagelength, page.imagewidth
    check_size(height, width)
    bits = int(np.max(page.bitspersample))
    if page.sampleformat == tifffile.SAMPLEFORMAT.INT:
        return Bands(path, page).read(0, height), narrow_range(page.dtype)
    if bits <= 8 and page.imagedepth == 1 and all(page.databytecounts):  # Pillow refuses tiles that were never written
        with contextlib.suppress(UnidentifiedImageError):
            return _pillow_tiff(page_alone(path, page)), (0.0, 255.0)
    if 8 < bits < 16 and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
        array = from_opencv(page_alone(path, page))  # the bits moved to the top of 16
        return ~array if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else array, type_range(array.dtype)
    return Bands(path, page).read(0, height), narrow_range(page.dtype)


def _pillow_tiff(content: bytes) -> np.ndarray:
    with no_warnings():
        picture = Image.open(io.BytesIO(content))
        try:
            picture.load()
        except Exception as error:  # the decoders have types of their own
            raise Fault(UNDECODABLE) from error
    bands = picture.tag_v2.get(277, 1)
    if picture.mode in ("1", "L") and bands > 1:
        raise Fault(f"has {bands} bands; save it as grey, RGB or RGBA")
    return from_pillow(picture)
