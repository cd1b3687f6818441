"""Tiles and strips of a TIFF: the pieces of an image too large to decode at once."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile

from .common import BANDS
from .faults import UNDECODABLE, Fault
from .picture import MAX_PIXELS, MAX_VOXELS, as_plain

# TIFF tags that say how pixels are encoded; the orientation (274) is not among them, nor where the pixels lie.
_ENCODING_TAGS = {256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 293, 317, 320, 322, 323, 332, 334, 338, 339, 347}
_ENCODING_TAGS |= {529, 530, 531, 532}
_DEFLATE = (tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)


class Bands:
    """The rows of a TIFF page, decoded tile by tile or strip by strip; the last row of tiles is kept for the next call.

    Raises:
        Fault: the page is not one that can be put together from its pieces, or lacks some of them.
    """

    def __init__(self, path: Path, page: tifffile.TiffPage, channels: int | None = None):
        _check_kind(page, channels)
        self._path, self._page = path, page
        self._height, self._width, self._bands = page.imagelength, page.imagewidth, page.samplesperpixel
        self.channels = _kept_bands(page, channels)
        self._planes = self._bands if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        self._samples = self._bands // self._planes  # of a pixel that lie side by side
        self._tile_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, self._height)
        self._tile_width = page.tilewidth if page.is_tiled else self._width
        self._across, self._down = -(-self._width // self._tile_width), -(-self._height // self._tile_height)
        plain = page.compression == tifffile.COMPRESSION.NONE and not page.is_tiled
        self._stored = plain and page.predictor == page.fillorder == 1  # as they are, to be read without decoding
        self._line = self._width * self._samples * np.dtype(page.dtype).itemsize
        self._file_dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        self._check_pieces()
        self._decode = _segment_decoder(page)
        self._kept: dict[int, np.ndarray] = {}  # decoded rows of tiles, by their number

    def _check_pieces(self) -> None:
        page, height = self._page, self._tile_height
        huge = (
            self._height * self._width > MAX_PIXELS
        )  # else a piece as large as the image is no larger than it becomes
        if height * self._tile_width * (self._bands if huge else 1) > MAX_PIXELS and not self._stored:
            raise Fault(f"is compressed in pieces of {self._tile_width} x {height} pixels; save it as a tiled TIFF")
        offsets, sizes = page.dataoffsets, page.databytecounts
        complete = min(len(offsets), len(sizes)) >= self._across * self._down * self._planes
        if complete:
            strips = [min(height, self._height - n % self._down * height) * self._line for n in range(len(offsets))]
            complete = np.add(offsets, strips if self._stored else sizes).max() <= self._path.stat().st_size
        if not complete or (huge and height * self._line * self._planes > MAX_VOXELS and not self._stored):
            raise Fault(UNDECODABLE)

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom - 1`, those that there are, as `Picture.read` gives them."""
        top, bottom = max(0, top), min(bottom, self._height)
        result = np.empty((max(0, bottom - top), self._width, self._bands), self._page.dtype)
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
        if self._page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            result = -result if result.dtype.kind == "f" else ~result
        return as_plain(result[..., 0] if self.channels == 1 else result[..., : self.channels])

    def _stored_rows(self, file, number: int, first: int, last: int) -> np.ndarray:
        """Some rows of a strip that is not encoded."""
        result = np.empty((last - first, self._width, self._bands), self._page.dtype)
        for plane in range(self._planes):
            file.seek(self._page.dataoffsets[plane * self._down + number] + first * self._line)
            content = np.frombuffer(file.read((last - first) * self._line), self._file_dtype)
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
        offsets, sizes = self._page.dataoffsets, self._page.databytecounts
        rows = min(self._tile_height, self._height - number * self._tile_height)
        shape = self._tile_height if self._page.is_tiled else rows, self._tile_width, self._samples
        result = np.zeros((rows, self._width, self._bands), self._page.dtype)
        for plane in range(self._planes):
            for column in range(self._across):
                index = (plane * self._down + number) * self._across + column
                if not sizes[index]:
                    continue  # a tile that was never written is empty
                file.seek(offsets[index])
                piece = self._decode(file.read(sizes[index]), index, shape)
                left = column * self._tile_width
                part = piece[:rows, : self._width - left]
                result[:, left : left + self._tile_width, plane : plane + self._samples] = part
        return result


def are_channels(page: tifffile.TiffPage) -> bool:
    """Whether the bands of a page are values as they are, whatever they mean, and not an encoding of colours."""
    photometric = getattr(page.photometric, "name", page.photometric)
    return page.samplesperpixel > 1 and photometric in ("MINISBLACK", "MINISWHITE", "RGB")


def _kept_bands(page: tifffile.TiffPage, channels: int | None) -> int:
    """How many of a page's bands are read: colours, or all; alpha only where `channels` counts it."""
    bands = page.samplesperpixel
    if channels is None:
        return 1 if bands < 3 else 3
    alpha = tuple(page.extrasamples) in ((1,), (2,))
    return bands - 1 if alpha and bands != channels else bands


def _check_kind(page: tifffile.TiffPage, channels: int | None) -> None:
    """Refuse what a piece of a TIFF cannot be put together from."""
    bands, bits = page.samplesperpixel, page.bitspersample
    photometric = getattr(page.photometric, "name", page.photometric)
    if page.dtype is None or page.dtype.kind not in "uif" or bits != page.dtype.itemsize * 8:
        raise Fault(f"holds {page.dtype or 'unknown'} values of {bits} bits; save it with 8 or 16 bits")
    if page.imagedepth != 1:
        raise Fault("is a volume in one page; save each slice as a page")
    if channels is not None and are_channels(page):
        return
    greys, colours = ("MINISBLACK", "MINISWHITE"), ("RGB",)
    if page.compression == tifffile.COMPRESSION.JPEG and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
        colours = ("RGB", "YCBCR")  # which the decoder makes RGB
    alpha = tuple(page.extrasamples) in ((1,), (2,))
    kinds = {1: greys, 2: greys if alpha else (), 3: colours, 4: ("RGB",)}.get(bands, ())
    if photometric not in kinds:
        pixel_format = f"{bands} band{'s' * (bands > 1)} of {page.dtype}, {photometric}"
        raise Fault(f"cannot be decoded as colours: it has {pixel_format}; {BANDS}")
    if bands > 1 and page.dtype.kind == "f":
        raise Fault(f"has {bands} bands of {page.dtype}; save it as grey, with 8 or 16 bits, or train with `channels`")


def _segment_decoder(page: tifffile.TiffPage) -> Callable[[bytes, int, tuple[int, int, int]], np.ndarray]:
    """A function that decodes a tile or strip of the given shape; with OpenCV's libtiff where tifffile has no codec."""
    own, tables = page.decode, page.jpegtables
    file_dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    integer = page.dtype.kind in "ui"
    deflated = page.compression in _DEFLATE and page.fillorder == 1 and page.predictor <= 1 + integer
    try:
        supported = page.predictor == 1 or bool(tifffile.TIFF.UNPREDICTORS[page.predictor])
        supported = supported and (page.compression == 1 or bool(tifffile.TIFF.DECOMPRESSORS[page.compression]))
    except KeyError:
        supported = False

    def inflate(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        count = int(np.prod(shape))
        content = zlib.decompressobj().decompress(content, count * file_dtype.itemsize)  # never more, whatever is there
        return undifferenced(np.frombuffer(content, file_dtype, count).reshape(shape))

    def undifferenced(array: np.ndarray) -> np.ndarray:
        if page.predictor > 1 + integer:
            raise ValueError("a predictor for floating point")
        return array.astype(page.dtype) if page.predictor == 1 else np.cumsum(array, axis=1, dtype=page.dtype)

    def decode(content: bytes, index: int, shape: tuple[int, int, int]) -> np.ndarray:
        try:
            if deflated:
                return inflate(content, shape)
            if supported:
                piece, _, decoded_shape = own(content, index, jpegtables=tables)
                return piece.reshape(-1, *decoded_shape[2:])[: shape[0]]
            if shape[2] > 1 and (shape[2] > 4 or page.photometric <= tifffile.PHOTOMETRIC.MINISBLACK):
                # OpenCV decodes no bands but colours: as one grey line, value by value.
                alone = _segment_alone(page, content, (shape[0], shape[1] * shape[2], 1), 1)
                return undifferenced(_decode_tiff(alone).reshape(shape))
            array = _decode_tiff(_segment_alone(page, content, shape, page.predictor))
            array = array if shape[2] < 3 else array[..., [2, 1, 0, 3][: shape[2]]]
            return array.reshape(shape).astype(page.dtype)
        except Exception as error:  # the codecs have types of their own
            raise Fault("has a piece that cannot be decoded; save it as a tiled TIFF compressed by deflate") from error

    return decode


def _decode_tiff(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def _segment_alone(page: tifffile.TiffPage, content: bytes, shape: tuple[int, int, int], predictor: int) -> bytes:
    """A TIFF file of one strip: an encoded tile or strip of `page`."""
    height, width, bands = shape
    ycbcr = page.photometric == tifffile.PHOTOMETRIC.YCBCR
    sample_format = 3 if page.dtype.kind == "f" else 2 if page.dtype.itemsize == 4 else 1  # what OpenCV can read
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [page.bitspersample] * bands),
        259: ("H", [page.compression]),
        262: ("H", [page.photometric if bands > 2 else tifffile.PHOTOMETRIC.MINISBLACK]),
        266: ("H", [page.fillorder]),
        277: ("H", [bands]),
        278: ("I", [height]),
        284: ("H", [1]),
        317: ("H", [predictor] if predictor > 1 else []),  # libtiff warns of it where no codec has one
        338: ("H", [1] * (bands == 4)),
        339: ("H", [sample_format] * bands),
        347: ("B", list(page.jpegtables or b"")),
        530: ("H", list(page.subsampling or ()) if ycbcr else []),
    }
    order = page.parent.byteorder
    packed = {
        tag: ({"B": 7, "H": 3, "I": 4}[form], len(values), struct.pack(f"{order}{len(values)}{form}", *values))
        for tag, (form, values) in tags.items()
        if values
    }
    return _tiff_file(order, [content], packed, (273, 279))


def page_alone(path: Path, page: tifffile.TiffPage) -> bytes:
    """A TIFF file of this page, its pixels encoded as they are, without what says nothing of their encoding."""
    order, tags, pieces = page.parent.byteorder, {}, []
    needed = page.nbytes if page.compression == 1 and page.bitspersample == 8 and not page.is_subsampled else 0
    if not needed <= sum(page.databytecounts) <= MAX_VOXELS:
        raise Fault(UNDECODABLE)
    with path.open("rb") as file:
        for tag in page.tags:
            if tag.code in _ENCODING_TAGS:
                file.seek(tag.valueoffset)
                kind, packed = int(tag.dtype), file.read(tag.valuebytecount)
                if kind == tifffile.DATATYPE.LONG8:  # of BigTIFF alone
                    kind, packed = 4, np.frombuffer(packed, f"{order}u8").astype(f"{order}u4").tobytes()
                tags.setdefault(tag.code, (kind, tag.count, packed))
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            pieces.append(file.read(size))
            if len(pieces[-1]) < size:
                raise Fault(UNDECODABLE)
    return _tiff_file(order, pieces, tags, (324, 325) if page.is_tiled else (273, 279))


def _tiff_file(
    order: str, pieces: list[bytes], tags: dict[int, tuple[int, int, bytes]], places: tuple[int, int]
) -> bytes:
    """A TIFF file of one page.

    Args:
        order: byte order, "<" or ">".
        pieces: its encoded strips or tiles.
        tags: type, number of values and packed values of each tag.
        places: the tags for offsets and sizes of the pieces.
    """
    sizes = [len(piece) for piece in pieces]
    starts = (8 + np.cumsum([0, *sizes[:-1]])).tolist()
    for tag, values in zip(places, (starts, sizes), strict=True):
        tags[tag] = (4, len(values), struct.pack(f"{order}{len(values)}I", *values))
    padding = bytes(sum(sizes) % 2)
    start = 8 + sum(sizes) + len(padding)
    outside = start + 2 + 12 * len(tags) + 4
    table, behind = struct.pack(f"{order}H", len(tags)), b""
    for tag, (kind, count, packed) in sorted(tags.items()):
        if len(packed) > 4:
            field_value = struct.pack(f"{order}I", outside + len(behind))
            behind += packed + bytes(len(packed) % 2)
        else:
            field_value = packed.ljust(4, b"\0")
        table += struct.pack(f"{order}HHI", tag, kind, count) + field_value
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return b"".join([magic, *pieces, padding, table, bytes(4), behind])
