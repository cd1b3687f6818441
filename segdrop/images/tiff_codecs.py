"""The values of an encoded tile or strip of a TIFF: whole, or an error.

Each compression has a decoder that notices what is missing. Those that hand out zeros instead are not asked: OpenCV
for 8 bits, and libtiff for what it has not been built with.
"""

import io
import lzma
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC

from .faults import Fault

Shape = tuple[int, int, int]  # (height, width, values of a pixel)

_DEFLATE = (COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE)
_LIBTIFF = (COMPRESSION.LZW, COMPRESSION.PACKBITS)  # by OpenCV's where there is no imagecodecs
_ZSTD = (COMPRESSION.ZSTD, COMPRESSION.ZSTD_DEPRECATED)
_JPEG_2000 = (34712, 33003, 33004, 33005)  # and what Aperio calls it, of which 33003 may hold YCbCr
_WEBP = (COMPRESSION.WEBP, COMPRESSION.WEBP_DEPRECATED)
# Whose content tells what it holds. Not among them: JPEG XR, whose decoder makes up what is missing, and PNG, whose
# decoder logs what it finds.
IMAGES = (*_JPEG_2000, *_WEBP, COMPRESSION.JPEGXL, 52546, COMPRESSION.LERC)
_STANDARD = (COMPRESSION.NONE, COMPRESSION.LZMA, COMPRESSION.CCITT_T6, COMPRESSION.JPEG, *_DEFLATE, *_LIBTIFF)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def value_type(page: tifffile.TiffPage) -> np.dtype:
    """The type of a page's decoded values; of up to 8 bits, or of up to 16, the smallest."""
    if page.bitspersample < 16 and page.dtype.kind in "bu":
        return np.dtype(np.uint8 if page.bitspersample <= 8 else np.uint16)
    return np.dtype(page.dtype)


def segment_decoder(page: tifffile.TiffPage) -> Callable[[bytes, Shape], np.ndarray]:
    """A function of an encoded tile or strip and of its shape that gives its values, in the type of `value_type`.

    Raises:
        Fault: no decoder of this compression notices what is missing, or it is not installed.
    """
    compression = page.compression
    called = getattr(compression, "name", f"number {int(compression)}")
    if compression not in (*_STANDARD, *_ZSTD, *IMAGES) or page.predictor not in (1, 2, 3):
        raise Fault(f"is compressed in a way that is not read ({called}); save it compressed by deflate")
    if compression not in _STANDARD and compression not in tifffile.TIFF.DECOMPRESSORS:
        raise Fault(f'is compressed as {called}; `pip install "segdrop[tiff]"`, or save it compressed by deflate')

    tables = page.jpegtables  # while the file is open

    def decode(content: bytes, shape: Shape) -> np.ndarray:
        try:
            if compression == COMPRESSION.JPEG:
                return _jpeg(page, tables, content, shape)
            if compression in IMAGES:
                return _image(page, content, shape)
            content = content.translate(_REVERSED) if page.fillorder == 2 else content
            if compression == COMPRESSION.CCITT_T6:
                return _fax(content, shape)
            line = -(-shape[1] * shape[2] * int(page.bitspersample) // 8)  # each begins with a byte of its own
            return _values(page, _unpacked(compression, content, shape[0] * line), shape)
        except Exception as error:  # the codecs have types of their own
            raise Fault("has a piece that cannot be decoded; save it as a tiled TIFF compressed by deflate") from error

    return decode


def _unpacked(compression: int, content: bytes, count: int) -> bytes:
    """The first `count` bytes, and never more, whatever is there."""
    if compression in _DEFLATE:
        stream = zlib.decompressobj()
        result = stream.decompress(content, count)
        stream.decompress(stream.unconsumed_tail, 1)  # which compares the checksum if this was all
    elif compression == COMPRESSION.LZMA:
        result = lzma.LZMADecompressor().decompress(content, count)
    elif compression == COMPRESSION.NONE:
        result = content
    elif compression in tifffile.TIFF.DECOMPRESSORS:
        result = tifffile.TIFF.DECOMPRESSORS[compression](content, out=count)
    else:
        result = _by_opencv(compression, content, count)
    if len(result) < count:
        raise ValueError(f"{len(result)} of {count} bytes")
    return bytes(result[:count])


def _by_opencv(compression: int, content: bytes, count: int) -> bytes:
    """LZW and PackBits by OpenCV's libtiff, which says what is missing of values of 16 bits and not of 8."""
    result = _decode_line(compression, content, count // 2, 16).tobytes() if count > 1 else b""
    return result + _decode_line(compression, content, count, 8).tobytes()[-1:] if count % 2 else result


def _decode_line(compression: int, content: bytes, width: int, bits: int, height: int = 1) -> np.ndarray:
    """What OpenCV reads of a TIFF of this strip: (height, width) values of 1, 8 (with a sign) or 16 bits."""
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(content), 339: 2 if bits == 8 else 1}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, int(value)) for tag, value in tags.items())
    padding = bytes(len(content) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(content) + len(padding))
    whole = b"".join([head, content, padding, struct.pack("<H", len(tags)), table, bytes(4)])
    array = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.shape[:2] != (height, width):
        raise ValueError("not decoded")
    return array.astype("<u2", copy=False) if bits == 16 else array


def _fax(content: bytes, shape: Shape) -> np.ndarray:
    """CCITT group 4, whose decoders fill up what is missing: it has to have its end-of-block code."""
    end = int.from_bytes(content.rstrip(b"\0")[-5:], "big")
    if not end or end // (end & -end) & 0xFFFFFF != 0x001001:
        raise ValueError("no end")
    lines = _decode_line(COMPRESSION.CCITT_T6, content, shape[1], 1, shape[0])
    return (lines.reshape(shape[0], shape[1], -1)[..., :1] > 0).astype(np.uint8)


def _values(page: tifffile.TiffPage, content: bytes, shape: Shape) -> np.ndarray:
    """Bytes as values, the predictor undone."""
    bits, integer = int(page.bitspersample), page.dtype.kind in "uib"
    if bits % 8:
        if page.predictor != 1:
            raise ValueError("a predictor for values that are not whole bytes")
        return _unpack_bits(content, shape, bits)
    if page.predictor == 3:
        if integer:
            raise ValueError("a predictor for floating point")
        height, width, samples = shape
        size = page.dtype.itemsize
        rows = np.frombuffer(content, np.uint8).reshape(height, width * size, samples)
        rows = np.cumsum(rows, axis=1, dtype=np.uint8).reshape(height, size, width * samples)  # the highest bytes first
        rows = np.ascontiguousarray(rows.transpose(0, 2, 1)).view(page.dtype.newbyteorder(">"))
        return rows.reshape(shape).astype(page.dtype)
    array = np.frombuffer(content, np.dtype(page.dtype).newbyteorder(page.parent.byteorder)).reshape(shape)
    if page.predictor == 1:
        return array.astype(page.dtype)
    if not integer:
        raise ValueError("a predictor for integers")
    return np.cumsum(array, axis=1, dtype=page.dtype)


def _unpack_bits(content: bytes, shape: Shape, bits: int) -> np.ndarray:
    """Values of 1 to 15 bits, uint8 or uint16."""
    height, width, samples = shape
    packed = np.frombuffer(content, np.uint8).reshape(height, -1)
    result = np.empty((height, width * samples), np.uint8 if bits < 8 else np.uint16)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(result.dtype)
    for row, line in zip(result, packed, strict=True):
        row[:] = np.unpackbits(line, count=row.size * bits).reshape(-1, bits) @ weights
    return result.reshape(shape)


def _jpeg(page: tifffile.TiffPage, tables: bytes | None, content: bytes, shape: Shape) -> np.ndarray:
    """A JPEG whose tables lie elsewhere and whose colours the page tells."""
    if not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("no end")
    tables = (tables or b"")[2:-2]
    if shape[2] == 3:  # Adobe's marker says whether they are RGB or YCbCr
        transform = int(page.photometric == PHOTOMETRIC.YCBCR)
        tables = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + tables
    with Image.open(io.BytesIO(content[:2] + tables + content[2:]), formats=["JPEG"]) as picture:
        if picture.width != shape[1] or picture.height < shape[0] or picture.height > max(shape[0], page.rowsperstrip):
            raise ValueError("another size")
        picture.load()
        return np.array(picture).reshape(picture.height, picture.width, shape[2])[: shape[0]]


def _image(page: tifffile.TiffPage, content: bytes, shape: Shape) -> np.ndarray:
    """JPEG 2000, WebP, JPEG XL or LERC; what holds another size or type is not decoded."""
    result = np.empty(shape if shape[2] > 1 else shape[:2], page.dtype)
    alpha = {"hasalpha": True} if page.compression in _WEBP and shape[2] == 4 else {}
    tifffile.TIFF.DECOMPRESSORS[page.compression](content, out=result, **alpha)
    if page.compression in _JPEG_2000 and _is_ycbcr(page, content):
        result = cv2.cvtColor(result[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB)
    return result.reshape(shape)


def _is_ycbcr(page: tifffile.TiffPage, content: bytes) -> bool:
    """Whether a JPEG 2000 codestream gives YCbCr: it is to, and has no transform of its own that makes RGB of it."""
    if page.samplesperpixel != 3 or not content.startswith(b"\xff\x4f"):
        return False  # in a file of its own what it decodes to is RGB
    if page.compression != COMPRESSION.APERIO_JP2000_YCBC and page.photometric != PHOTOMETRIC.YCBCR:
        return False
    at = 2
    while content[at : at + 2] != b"\xff\x52":  # the coding style's marker
        at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    return content[at + 8] == 0
