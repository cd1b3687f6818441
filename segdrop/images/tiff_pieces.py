"""Tiles and strips of a TIFF: the pieces that a page is put together from, as a whole or some rows of it."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, PLANARCONFIG

from .common import BANDS
from .faults import UNDECODABLE, Fault
from .picture import MAX_PIXELS, MAX_VOXELS, as_plain
from .tiff_codecs import IMAGES, segment_decoder, value_type


class Bands:
    """The rows of a TIFF page, decoded tile by tile or strip by strip; the last row of tiles is kept for the next call.

    A piece that was never written, which has neither a place nor a size, is 0, as in GDAL's sparse files; a page of
    such pieces alone is none.

    Raises:
        Fault: the page is not one that can be put together from its pieces, or lacks some of them.
    """

    def __init__(self, path: Path, page: tifffile.TiffPage, channels: int | None = None):
        _check_kind(page, channels)
        self._path, self._page = path, page
        self._height, self._width, self._bands = page.imagelength, page.imagewidth, page.samplesperpixel
        self.dtype, self.channels = value_type(page), _kept_bands(page, channels)
        self._planes = self._bands if page.planarconfig == PLANARCONFIG.SEPARATE else 1
        self._samples = self._bands // self._planes  # of a pixel that lie side by side
        self._tile_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, self._height)
        self._tile_width = page.tilewidth if page.is_tiled else self._width
        self._across, self._down = -(-self._width // self._tile_width), -(-self._height // self._tile_height)
        plain = page.compression == page.predictor == page.fillorder == 1 and not page.is_tiled
        self._stored = plain and not page.bitspersample % 8  # as they are, to be read without decoding
        self._line = self._width * self._samples * self.dtype.itemsize
        self._check_size()
        self._written = self._check_pieces()
        self._decode = segment_decoder(page)
        self._palette = np.reshape(page.colormap, (3, -1)).T if _photometric(page) == "PALETTE" else None
        self._kept: dict[int, np.ndarray] = {}  # decoded rows of tiles, by their number

    def _check_size(self) -> None:
        height, pixels = self._tile_height, self._height * self._width
        huge = pixels > MAX_PIXELS  # else a piece as large as the image is no larger than it becomes
        if height * self._tile_width * (self._bands if huge else 1) > MAX_PIXELS and not self._stored:
            raise Fault(f"is compressed in pieces of {self._tile_width} x {height} pixels; save it as a tiled TIFF")
        if not huge and pixels * self._bands > MAX_VOXELS:
            raise Fault(f"has {self._bands} bands of {self._width} x {self._height} pixels; cut it into tiles")
        if huge and height * self._line * self._planes > MAX_VOXELS and not self._stored:
            raise Fault(UNDECODABLE)

    def _check_pieces(self) -> np.ndarray:
        """Which of the pieces were written, all of which are there."""
        page, count = self._page, self._across * self._down * self._planes
        offsets, sizes = (np.array(numbers[:count], np.int64) for numbers in (page.dataoffsets, page.databytecounts))
        if min(len(offsets), len(sizes)) < count:
            raise Fault(UNDECODABLE)
        written = (offsets != 0) | (sizes != 0)
        if not written.any():
            raise Fault("has no pixels: none of its pieces was ever written")
        needed = np.ones_like(sizes)
        if self._stored:
            rows = np.minimum(self._tile_height, self._height - np.arange(count) % self._down * self._tile_height)
            needed = rows * self._line
        there = (offsets >= 8) & (sizes >= needed)
        there &= offsets <= self._path.stat().st_size - (needed if self._stored else sizes)
        if not there[written].all():
            raise Fault(UNDECODABLE)
        return written

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom - 1`, those that there are, as `Picture.read` gives them."""
        top, bottom = max(0, top), min(bottom, self._height)
        result = np.empty((max(0, bottom - top), self._width, self._bands), self.dtype)
        numbers = range(top // self._tile_height, -(-bottom // self._tile_height))
        for number in set(self._kept) - set(numbers):
            del self._kept[number]
        with self._path.open("rb") as file:
            for number in numbers:
                start = number * self._tile_height
                first, last = max(top, start), min(bottom, start + self._tile_height)
                if self._stored:
                    rows = self._stored_rows(file, number, first - start, last - start)
                else:
                    rows = self._decoded(file, number)[first - start : last - start]
                result[first - top : last - top] = rows
        result = self._in_colours(_spread(self._page, result))
        return as_plain(result[..., 0] if self.channels == 1 else result[..., : self.channels])

    def _in_colours(self, values: np.ndarray) -> np.ndarray:
        """Values (H, W, bands) as grey, where larger is brighter, or as RGB."""
        photometric = _photometric(self._page)
        if photometric == "MINISWHITE":
            return -values if values.dtype.kind == "f" else ~values
        if self._palette is not None:
            return (self._palette >> 8).astype(np.uint8)[values[..., 0]]
        if photometric == "SEPARATED":
            return np.array(Image.frombytes("CMYK", values.shape[1::-1], values.tobytes()).convert("RGB"))
        return values

    def _stored_rows(self, file, number: int, first: int, last: int) -> np.ndarray:
        """Some rows of a strip that is not encoded."""
        result = np.zeros((last - first, self._width, self._bands), self.dtype)
        for plane in range(self._planes):
            piece = plane * self._down + number
            if self._written[piece]:
                file.seek(self._page.dataoffsets[piece] + first * self._line)
                file_dtype = self.dtype.newbyteorder(self._page.parent.byteorder)
                content = np.frombuffer(file.read((last - first) * self._line), file_dtype)
                part = content.reshape(last - first, self._width, self._samples)
                result[..., plane : plane + self._samples] = part
        return result

    def _decoded(self, file, number: int) -> np.ndarray:
        """A whole row of tiles, or a strip."""
        if number not in self._kept:
            self._kept.clear()
            self._kept[number] = self._tiles(file, number)
        return self._kept[number]

    def _tiles(self, file, number: int) -> np.ndarray:
        rows = min(self._tile_height, self._height - number * self._tile_height)
        shape = self._tile_height if self._page.is_tiled else rows, self._tile_width, self._samples
        result = np.zeros((rows, self._width, self._bands), self.dtype)
        for plane in range(self._planes):
            for column in range(self._across):
                index = (plane * self._down + number) * self._across + column
                if not self._written[index]:
                    continue
                file.seek(self._page.dataoffsets[index])
                piece = self._decode(file.read(self._page.databytecounts[index]), shape)
                left = column * self._tile_width
                part = piece[:rows, : self._width - left]
                result[:, left : left + self._tile_width, plane : plane + self._samples] = part
        return result


def are_channels(page: tifffile.TiffPage) -> bool:
    """Whether the bands of a page are values as they are, whatever they mean, and not an encoding of colours."""
    return page.samplesperpixel > 1 and _photometric(page) in ("MINISBLACK", "MINISWHITE", "RGB")


def _photometric(page: tifffile.TiffPage) -> str:
    return str(getattr(page.photometric, "name", page.photometric))


def _kept_bands(page: tifffile.TiffPage, channels: int | None) -> int:
    """How many of a page's bands are read: colours, or all; alpha only where `channels` counts it."""
    bands = page.samplesperpixel
    if _photometric(page) in ("PALETTE", "SEPARATED"):
        return 3
    if channels is None:
        return 1 if bands < 3 else 3
    alpha = tuple(page.extrasamples) in ((1,), (2,))
    return bands - 1 if alpha and bands != channels else bands


def _check_kind(page: tifffile.TiffPage, channels: int | None) -> None:
    """Refuse what a piece of a TIFF cannot be put together from."""
    bands, bits, dtype = page.samplesperpixel, page.bitspersample, page.dtype
    packed = dtype is not None and dtype.kind in "bu" and bits in range(1, 16)
    if not packed and (dtype is None or dtype.kind not in "uif" or bits != dtype.itemsize * 8):
        raise Fault(f"holds {dtype or 'unknown'} values of {bits} bits; save it with 8 or 16 bits")
    if page.imagedepth != 1:
        raise Fault("is a volume in one page; save each slice as a page")
    if channels is not None and are_channels(page):
        return
    photometric, contiguous = _photometric(page), page.planarconfig == PLANARCONFIG.CONTIG
    greys, colours = ("MINISBLACK", "MINISWHITE"), ("RGB",)
    if contiguous and (page.compression == COMPRESSION.JPEG or page.compression in IMAGES):
        colours = ("RGB", "YCBCR")  # which the decoder makes RGB
    alpha = tuple(page.extrasamples) in ((1,), (2,))
    kinds = {1: greys, 2: greys if alpha else (), 3: colours, 4: ("RGB",)}.get(bands, ())
    if packed and bits <= 8 and contiguous:
        palette = bands == 1 and np.size(page.colormap) == 3 * 2**bits
        kinds += ("PALETTE",) * palette + ("SEPARATED",) * (bands == 4 and bits == 8)
    if photometric not in kinds:
        pixel_format = f"{bands} band{'s' * (bands > 1)} of {dtype}, {photometric}"
        raise Fault(f"cannot be decoded as colours: it has {pixel_format}; {BANDS}")
    if bands > 1 and dtype.kind == "f":
        raise Fault(f"has {bands} bands of {dtype}; save it as grey, with 8 or 16 bits, or train with `channels`")


def _spread(page: tifffile.TiffPage, values: np.ndarray) -> np.ndarray:
    """Values of 1 to 7 bits over all of 8, of 9 to 15 over those of 16; of a palette as they are."""
    bits = page.bitspersample
    if bits > 15 or bits == 8 or _photometric(page) == "PALETTE":
        return values
    return values << (16 - bits) if bits > 8 else (values.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
