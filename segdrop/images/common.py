"""PNG, JPEG, BMP, PPM and GIF."""

import io
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .faults import UNDECODABLE, Fault, no_warnings
from .picture import Picture, as_plain, channels_of, check_size, type_range

_PNG = b"\x89PNG\r\n\x1a\n"
BANDS = "save it as grey, RGB or RGBA, or train with `channels`"


def open_common(path: Path, advice: str, channels: int | None) -> Picture:
    with path.open("rb") as file, no_warnings():
        try:
            source = io.BytesIO(_plain_png(path.read_bytes())) if file.read(8) == _PNG else file
            picture = Image.open(source)
            if picture.format not in ("PNG", "JPEG", "MPO", "BMP", "PPM", "GIF"):
                raise Fault(f"is a {picture.format} file; save it as PNG or TIFF")
            check_size(picture.height, picture.width, advice=advice)
            # Of a GIF the first frame. Unlike OpenCV, Pillow refuses a truncated file and prints nothing.
            picture.load()
        except Fault:
            raise
        except Exception as error:  # the decoders have types of their own
            raise Fault(UNDECODABLE) from error
        source.seek(0)
        content = source.read()
    if _has_16_bits(picture.format, content):  # of colours Pillow keeps 8
        grey_alpha = picture.format == "PNG" and content[25] == 4  # of which OpenCV makes four bands
        array = from_opencv(content, 4 if grey_alpha else channels)
        array = array[..., [0, 3] if channels == 2 else 0] if grey_alpha else array
    else:
        if picture.format == "PNG" and picture.mode == "P":
            _check_palette(content, np.array(picture).max())
        array = from_pillow(picture, channels)
    return from_array(path, array, type_range(array.dtype))


def from_array(path: Path, array: np.ndarray, value_range: tuple[float, float] | None) -> Picture:
    """A picture of values at hand, (H, W) or (H, W, C)."""
    height, width = array.shape[:2]
    channels, read = channels_of(array), lambda index: array
    return Picture(path, height, width, None, channels, array.dtype, value_range=value_range, _slice=read)


def _has_16_bits(form: str | None, content: bytes) -> bool:
    if form == "PNG":
        return content[24] == 16
    numbers = re.match(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})){3}", content)  # the last is the highest value
    return form == "PPM" and numbers is not None and int(numbers[1]) > 255


def _plain_png(content: bytes) -> bytes:
    """The chunks of a PNG that its pixels need, none of them damaged: of others libpng writes to stderr, and Pillow
    refuses long texts."""
    kept, kind, start = [content[:8]], b"", 8
    needed = (b"IHDR", b"IDAT", b"IEND") + (b"PLTE",) * (content[25:26] == b"\3")
    while kind != b"IEND":
        length = int.from_bytes(content[start : start + 4], "big")
        chunk = content[start : start + 12 + length]
        kind, start = chunk[4:8], start + len(chunk)
        if len(chunk) < 12 + length:
            raise Fault(UNDECODABLE)
        if kind in needed:
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise Fault(UNDECODABLE)
            kept.append(chunk)
    return b"".join(kept)


def _check_palette(content: bytes, last: int) -> None:
    """Refuse a plain PNG that lacks some of its colours, the one numbered `last` for one: they would be black."""
    colours = int.from_bytes(content[33:37], "big") // 3 if content[37:41] == b"PLTE" else 0
    if last >= colours:
        raise Fault(f"has pixels of colour {last}, but a palette of {colours} colours; save it as grey or RGB")


def from_pillow(picture: Image.Image, channels: int | None) -> np.ndarray:
    """The values of a decoded image, (H, W) or (H, W, C); alpha is dropped unless `channels` counts it."""
    if picture.mode[0] in "IF":  # of 32 bits, which Pillow would clip
        raise Fault("holds values that are not of 8 or 16 bits; save it as TIFF")
    picture.info.pop("transparency", None)  # which Pillow warns of
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    if picture.mode == {2: "LA", 4: "RGBA"}.get(channels or 0):
        mode = picture.mode
    return np.array(picture if picture.mode == mode else picture.convert(mode))


def from_opencv(content: bytes, channels: int | None) -> np.ndarray:
    """The values of an encoded image of 8 or 16 bits, as `from_pillow` gives them."""
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        array = None
    if array is None:
        raise Fault(UNDECODABLE)
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise Fault(f"has {array.shape[2]} bands; {BANDS}")
    order = [2, 1, 0, 3][: 4 if channels == channels_of(array) == 4 else 3]
    return as_plain(array if array.ndim == 2 else array[..., order])
