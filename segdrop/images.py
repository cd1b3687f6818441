"""Image files: PNG, JPEG, BMP, TIFF, DICOM and NIfTI, read into arrays of one form.

No text of a file's header gets into an error: those of DICOM and NIfTI may hold names of patients.
"""

import contextlib
import io
import logging
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from .errors import InputError

if "OPENCV_LOG_LEVEL" not in os.environ:  # it would write to stderr what is raised here
    (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)  # cv2 may have read its variable before

TIFF_SUFFIXES = (".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES)
MAX_PIXELS = 89_478_485  # of one image or slice: Pillow's own limit, past which it suspects a decompression bomb
MAX_VOXELS = 2**30  # of one volume, twice the largest scans there are
UNDECODABLE = "cannot be decoded: it is corrupt, truncated, too large or not an image"
# TIFF tags that say how pixels are encoded; the orientation (274) is not among them, nor where the pixels lie.
_ENCODING_TAGS = {256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 293, 317, 320, 322, 323, 332, 334, 338, 339, 347}
_ENCODING_TAGS |= {529, 530, 531, 532}
_DEFLATE = (tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """An opened image file: one 2-D image, or a volume whose slices are all of one size.

    Attributes:
        path: the file.
        height, width: of a slice, in pixels.
        slices: None for one 2-D image; the number of slices of a volume, of frames or of pages.
        channels: 1 (grey) or 3 (RGB).
        dtype: of what `read` gives.
        spacing: (row, column) distance of the pixels of a slice in mm, or None where the file does not tell.
        patient: the patient's id as stored, for grouping only: never to be written or shown.
        value_range: lowest and highest value that the file's integer type can hold, in the values of `read`; None
            for floating point.
        window: lowest and highest value that the file itself asks to show, in the values of `read`, or None.
    """

    path: Path
    height: int
    width: int
    slices: int | None
    channels: int
    dtype: np.dtype
    spacing: tuple[float, float] | None = None
    patient: str | None = field(default=None, repr=False)
    value_range: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    _slice: Callable[[int], np.ndarray] = field(default=None, repr=False)  # type: ignore[assignment]
    _band: Callable[[int, int], np.ndarray] | None = field(default=None, repr=False)
    _nifti: tuple[Any, Any, int] | None = field(default=None, repr=False)  # class, blanked header, slice axis

    def read(self, index: int = 0) -> np.ndarray:
        """Slice number `index`, values as stored, after the file's own rescaling: (H, W), or (H, W, 3) in RGB.

        uint8, uint16, int16 or float32; finite.

        Raises:
            InputError: the slice cannot be decoded.
        """
        if not 0 <= index < (self.slices or 1):
            raise IndexError(f"{self.path} has no slice {index}.")
        with _naming(self.path):
            return self._slice(index)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom - 1` of a 2-D image, as `read` gives them.

        Of an image opened with `huge` only what these rows need is decoded, and what the last call decoded of them
        is used again, so bands from top to bottom decode everything once.

        Raises:
            InputError: the rows cannot be decoded.
        """
        with _naming(self.path):
            return self._slice(0)[top:bottom] if self._band is None else self._band(top, bottom)


def stem(path: str | os.PathLike) -> str:
    """The file's name without its suffix; "a.nii.gz" gives "a", and "1.2.840", which ends in none of them, itself."""
    name = Path(path).name
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)]


def is_image(path: Path) -> bool:
    """Whether the file's name has one of `SUFFIXES`."""
    return path.name.lower().endswith(SUFFIXES)


def open_image(path: str | os.PathLike, *, slice_axis: int = 2, huge: bool = False) -> Picture:
    """Open an image file; an ordinary image is decoded here, frames, pages and huge images when they are read.

    Rows and columns are those stored: an orientation that a header asks for (EXIF, TIFF) is ignored in all formats, so
    that masks lie on their images whichever program wrote them.

    - PNG, JPEG, BMP, TIFF: 8 or 16 bits, grey, RGB, RGBA (alpha is dropped) and palette; TIFF also with a sign, of 32
      or 64 bits, and of one floating point channel. TIFFs where white is the lowest value are turned about the middle
      of the value range, so that larger is brighter. A TIFF of several pages is a volume; of a huge pyramid the first,
      full-sized page is the image.
    - DICOM: the modality's rescaling is applied, integers stay integers where it is whole. MONOCHROME1 is turned
      about the middle of the value range (x becomes low + high - x), so that larger is brighter. Palettes and YBR
      become RGB. Several frames are a volume.
    - NIfTI: slices along `slice_axis` of the stored array, rows and columns in the order of the two other axes; the
      header's scaling is applied.

    Args:
        slice_axis: 0, 1 or 2, of NIfTI volumes.
        huge: also open TIFFs of more than `MAX_PIXELS` pixels, for `Picture.rows`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read as an image; one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}.")
    if slice_axis not in (0, 1, 2):
        raise InputError(f"`slice_axis` must be 0, 1 or 2, got slice_axis={slice_axis!r}.")
    name = path.name.lower()
    with _naming(path):
        if not path.stat().st_size:
            raise _Fault("the file is empty")
        with path.open("rb") as file:
            beginning = file.read(132)
        if name.endswith(DICOM_SUFFIXES) or beginning.endswith(b"DICM"):  # they often have no suffix
            return _open_dicom(path)
        if name.endswith(NIFTI_SUFFIXES):
            return _open_nifti(path, slice_axis)
        if beginning[:2] in (b"II", b"MM"):
            return _open_tiff(path, huge)
        return _open_common(path, "save it as a tiled TIFF" if huge else "cut it into tiles")


def same_place(one: Picture, other: Picture) -> bool:
    """Whether two NIfTI files lie on the same grid in space; True for all other formats, which do not tell."""
    if one._nifti is None or other._nifti is None:
        return True
    return np.allclose(one._nifti[1].get_best_affine(), other._nifti[1].get_best_affine(), atol=1e-2)


def write_volume_mask(picture: Picture, masks: np.ndarray, path: str | os.PathLike) -> None:
    """Write the mask of a NIfTI image as NIfTI with the same affine, shape, axis order and voxel size.

    No free text of the source's header is copied.

    Args:
        picture: the image, opened with the `slice_axis` that the masks follow.
        masks: uint8 (slices, H, W), one for each slice.
        path: the file to write, ending in .nii or .nii.gz.
    """
    if picture._nifti is None:
        raise InputError(f"{picture.path} is not a NIfTI file; its mask cannot be written as one.")
    wanted = (picture.slices or 1, picture.height, picture.width)
    if masks.shape != wanted:
        raise InputError(f"`masks` must have the shape {wanted} of {picture.path}, got {masks.shape}.")
    form, header, axis = picture._nifti
    volume = masks[0] if picture.slices is None else np.moveaxis(masks, 0, axis)
    form(volume.reshape(header.get_data_shape()).astype(np.uint8), None, header).to_filename(path)


class _Fault(Exception):
    """What is wrong with a file, as half a sentence without its name."""


def resampled_size(height: int, width: int, spacing: tuple[float, float], target: float) -> tuple[int, int]:
    """Height and width after resampling from the (row, column) `spacing` to `target`, both in mm; at least 1.

    Raises:
        InputError: `spacing` is not two positive finite numbers, or the result has more than `MAX_PIXELS` pixels.
    """
    steps = np.asarray(spacing, np.float64)
    if steps.shape != (2,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise InputError(f"`spacing` must be two positive numbers, mm per row and per column, got spacing={spacing!r}.")
    rows, columns = (max(1.0, n * float(step) / target) for n, step in zip((height, width), steps, strict=True))
    if not rows * columns <= MAX_PIXELS:
        raise InputError(
            f"An image of {height} x {width} pixels of {steps[0]:g} x {steps[1]:g} mm would have {rows:.0f} x "
            f"{columns:.0f} pixels at {target:g} mm per pixel; correct its spacing, or choose a larger `spacing`."
        )
    return round(rows), round(columns)


def resample(image: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """An image (H, W) or (H, W, C) resampled to the (height, width) `size`, of the same dtype.

    Averages over areas where it shrinks, is bilinear where it grows; `nearest` takes the nearest pixel, for masks.
    """
    size = int(size[0]), int(size[1])
    if image.ndim == 3 and image.shape[2] > 4:  # OpenCV averages over areas of at most 4 channels
        fours = (np.ascontiguousarray(image[..., first : first + 4]) for first in range(0, image.shape[2], 4))
        return np.concatenate([resample(four, size, nearest=nearest).reshape(*size, -1) for four in fours], axis=-1)
    if nearest:
        steps = [(size, cv2.INTER_NEAREST_EXACT)]
    else:
        smaller = min(size[0], image.shape[0]), min(size[1], image.shape[1])
        steps = [(smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)]
    for (height, width), method in steps:
        if (height, width) != image.shape[:2]:
            image = cv2.resize(image, (width, height), interpolation=method)
    return image


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except _Fault as fault:
        raise InputError(f"{path}: {fault}.") from None  # the cause may quote the header


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No warnings, as far as this thread may decide that.

    The filters belong to the whole process: were they changed by a thread while another changes them, they could
    stay so for good. Whoever opens files in threads sets them before (see `open_dataset`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _plain(array: np.ndarray) -> np.ndarray:
    """As uint8, uint16, int16 or float32 in the machine's byte order."""
    if array.dtype.kind not in "buif":
        raise _Fault(f"holds {array.dtype} values; save it as integers or floating point")
    smallest = [kind for kind in ("uint8", "uint16", "int16") if np.can_cast(array.dtype, kind)]
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused below
        array = np.ascontiguousarray(array, smallest[0] if smallest else np.float32)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise _Fault("holds values that are not finite; replace them")
    return array


def _channels(array: np.ndarray) -> int:
    return 1 if array.ndim == 2 else array.shape[2]


def _range(dtype: np.dtype) -> tuple[float, float] | None:
    return None if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))


def narrow_range(dtype) -> tuple[float, float] | None:
    """Lowest and highest value of an integer type of at most 16 bits; of wider ones nobody uses all, so None."""
    dtype = np.dtype(dtype)
    return _range(dtype) if dtype.itemsize <= 2 else None


def _check_size(height: int, width: int, slices: int = 1, advice: str = "cut it into tiles") -> None:
    if height * width > MAX_PIXELS:
        raise _Fault(f"has {width} x {height} pixels; {advice}")
    if height * width * slices > MAX_VOXELS:
        raise _Fault(f"has {slices} slices of {width} x {height} pixels; cut it into several files")


# PNG, JPEG and BMP


def _open_common(path: Path, advice: str) -> Picture:
    with path.open("rb") as file, _quietly():
        try:
            picture = Image.open(file)
            if picture.format not in ("PNG", "JPEG", "MPO", "BMP"):
                raise _Fault(f"is a {picture.format} file; save it as PNG or TIFF")
            _check_size(picture.height, picture.width, advice=advice)
            picture.load()  # unlike OpenCV, Pillow refuses a truncated file and prints nothing
        except _Fault:
            raise
        except Exception as error:  # the decoders have types of their own
            raise _Fault(UNDECODABLE) from error
        deep = picture.mode.startswith("I") or (picture.format == "PNG" and _png_depth(file) == 16)
    array = _from_opencv(path.read_bytes()) if deep else _from_pillow(picture)  # Pillow would cut colours to 8 bits
    return from_array(path, array, _range(array.dtype))


def from_array(path: Path, array: np.ndarray, value_range: tuple[float, float] | None) -> Picture:
    """A picture of values at hand, (H, W) or (H, W, 3)."""
    height, width = array.shape[:2]
    channels, read = _channels(array), lambda index: array
    return Picture(path, height, width, None, channels, array.dtype, value_range=value_range, _slice=read)


def _png_depth(file) -> int:
    file.seek(24)  # the bit depth in the file's first chunk, which Pillow's mode does not tell for colour
    return file.read(1)[0]


def _from_pillow(picture: Image.Image) -> np.ndarray:
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    return np.array(picture if picture.mode == mode else picture.convert(mode))


def _from_opencv(content: bytes) -> np.ndarray:
    """The values of an encoded image of 8 or 16 bits, (H, W) or (H, W, 3) in RGB."""
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        array = None
    if array is None:
        raise _Fault(UNDECODABLE)
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise _Fault(f"has {array.shape[2]} bands; save it as grey, RGB or RGBA")
    return _plain(array if array.ndim == 2 else array[..., [2, 1, 0]])


# TIFF


def _open_tiff(path: Path, huge: bool) -> Picture:
    with _shielded("TIFF"):
        with _without_log("tifffile"), tifffile.TiffFile(path) as tiff:
            first, sizes = tiff.pages.first, {}
            for page in tiff.pages:
                if page.offset in sizes:
                    break  # a damaged chain of pages may run in a circle
                sizes[page.offset] = page.imagelength, page.imagewidth
        offsets = list(sizes)
        height, width = first.imagelength, first.imagewidth
        if huge and height * width > MAX_PIXELS:
            return _huge_tiff(path, first, list(sizes.values()).count((height, width)))
        _check_size(height, width, len(offsets))
        array, value_range = _tiff_page(path, first)
    if len(offsets) == 1:
        return from_array(path, array, value_range)
    shape, dtype = array.shape, array.dtype

    def read(index: int) -> np.ndarray:
        with _shielded("TIFF"):
            with _without_log("tifffile"), tifffile.TiffFile(path) as tiff:
                # Walking through all pages before it takes as long as reading them.
                tiff.filehandle.seek(offsets[index])
                page = tifffile.TiffPage(tiff, index)
            array, own_range = _tiff_page(path, page)
        if (array.shape, array.dtype, own_range) != (shape, dtype, value_range):
            raise _Fault(f"has pages of different sizes or types; first: page {index + 1}")
        return array

    channels = _channels(array)
    return Picture(path, height, width, len(offsets), channels, dtype, value_range=value_range, _slice=read)


def _huge_tiff(path: Path, page: tifffile.TiffPage, count: int) -> Picture:
    height, width = page.imagelength, page.imagewidth
    if count > 1:
        raise _Fault(f"has {count} pages of {width} x {height} pixels; save each as a file of its own")
    band = _band_reader(path, page)
    nothing = _plain(np.empty((0, 0), page.dtype))
    return Picture(
        path,
        height,
        width,
        None,
        3 if page.samplesperpixel > 1 else 1,
        nothing.dtype,
        value_range=narrow_range(page.dtype),
        _slice=lambda index: band(0, height),
        _band=band,
    )


def _tiff_page(path: Path, page: tifffile.TiffPage) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A page of at most `MAX_PIXELS` pixels, as `Picture.read` gives it, and the range of its type."""
    height, width = page.imagelength, page.imagewidth
    _check_size(height, width)
    bits = int(np.max(page.bitspersample))
    if page.sampleformat == tifffile.SAMPLEFORMAT.INT:
        return _band_reader(path, page)(0, height), narrow_range(page.dtype)
    if bits <= 8 and page.imagedepth == 1 and all(page.databytecounts):  # Pillow refuses tiles that were never written
        with contextlib.suppress(UnidentifiedImageError):
            return _pillow_tiff(_page_alone(path, page)), (0.0, 255.0)
    if 8 < bits < 16 and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
        array = _from_opencv(_page_alone(path, page))  # the bits moved to the top of 16
        return ~array if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else array, _range(array.dtype)
    return _band_reader(path, page)(0, height), narrow_range(page.dtype)


def _pillow_tiff(content: bytes) -> np.ndarray:
    with _quietly():
        picture = Image.open(io.BytesIO(content))
        try:
            picture.load()
        except Exception as error:  # the decoders have types of their own
            raise _Fault(UNDECODABLE) from error
    bands = picture.tag_v2.get(277, 1)
    if picture.mode in ("1", "L") and bands > 1:
        raise _Fault(f"has {bands} bands; save it as grey, RGB or RGBA")
    return _from_pillow(picture)


@contextlib.contextmanager
def _without_log(name: str) -> Iterator[None]:
    """No messages of a library about odd headers; its logger belongs to the whole process."""
    logger = logging.getLogger(name)
    with _one_at_a_time:
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


def _band_reader(path: Path, page: tifffile.TiffPage) -> Callable[[int, int], np.ndarray]:
    """A function that gives the rows from `top` to `bottom`, decoding the tiles or strips of these rows alone."""
    height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
    planes = bands if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    samples = bands // planes  # of a pixel that lie side by side
    _check_kind(page)
    tile_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    tile_width = page.tilewidth if page.is_tiled else width
    across, down = -(-width // tile_width), -(-height // tile_height)
    stored = page.compression == tifffile.COMPRESSION.NONE and not page.is_tiled
    stored = stored and page.predictor == page.fillorder == 1
    huge = height * width > MAX_PIXELS  # else a piece as large as the image is no larger than what it becomes
    if tile_height * tile_width * (bands if huge else 1) > MAX_PIXELS and not stored:
        raise _Fault(f"is compressed in pieces of {tile_width} x {tile_height} pixels; save it as a tiled TIFF")
    offsets, sizes = page.dataoffsets, page.databytecounts
    line = width * samples * np.dtype(page.dtype).itemsize
    complete = min(len(offsets), len(sizes)) >= across * down * planes
    if complete:
        strips = [min(tile_height, height - n % down * tile_height) * line for n in range(len(offsets))]
        complete = np.add(offsets, strips if stored else sizes).max() <= path.stat().st_size
    if not complete or (huge and tile_height * line * planes > MAX_VOXELS and not stored):
        raise _Fault(UNDECODABLE)
    file_dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    decode = _segment_decoder(page)
    kept: dict[int, np.ndarray] = {}  # decoded rows of tiles, by their number

    def tiles(file, number: int) -> np.ndarray:
        rows = min(tile_height, height - number * tile_height)
        shape = tile_height if page.is_tiled else rows, tile_width, samples
        result = np.zeros((rows, width, bands), page.dtype)
        for plane in range(planes):
            for column in range(across):
                index = (plane * down + number) * across + column
                if not sizes[index]:
                    continue  # a tile that was never written is empty
                file.seek(offsets[index])
                piece = decode(file.read(sizes[index]), index, shape)
                left = column * tile_width
                result[:, left : left + tile_width, plane : plane + samples] = piece[:rows, : width - left]
        return result

    def stored_rows(file, number: int, first: int, last: int) -> np.ndarray:
        result = np.empty((last - first, width, bands), page.dtype)
        for plane in range(planes):
            file.seek(offsets[plane * down + number] + first * line)
            content = np.frombuffer(file.read((last - first) * line), file_dtype)
            result[..., plane : plane + samples] = content.reshape(last - first, width, samples)
        return result

    def band(top: int, bottom: int) -> np.ndarray:
        top, bottom = max(0, top), min(bottom, height)
        result = np.empty((max(0, bottom - top), width, bands), page.dtype)
        numbers = range(top // tile_height, -(-bottom // tile_height))
        for number in set(kept) - set(numbers):
            del kept[number]
        with path.open("rb") as file:
            for number in numbers:
                start = number * tile_height
                first, last = max(top, start), min(bottom, start + tile_height)
                if stored:
                    rows = stored_rows(file, number, first - start, last - start)
                else:
                    if number not in kept:
                        kept.clear()
                        kept[number] = tiles(file, number)
                    rows = kept[number][first - start : last - start]
                result[first - top : last - top] = rows
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            result = -result if result.dtype.kind == "f" else ~result
        return _plain(result[..., 0] if bands < 3 else result[..., :3])

    return band


def _check_kind(page: tifffile.TiffPage) -> None:
    """Refuse what a piece of a TIFF cannot be put together from."""
    bands, bits = page.samplesperpixel, page.bitspersample
    photometric = getattr(page.photometric, "name", page.photometric)
    if page.dtype is None or page.dtype.kind not in "uif" or bits != page.dtype.itemsize * 8:
        raise _Fault(f"holds {page.dtype or 'unknown'} values of {bits} bits; save it with 8 or 16 bits")
    if page.imagedepth != 1:
        raise _Fault("is a volume in one page; save each slice as a page")
    greys, colours = ("MINISBLACK", "MINISWHITE"), ("RGB",)
    if page.compression == tifffile.COMPRESSION.JPEG and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
        colours = ("RGB", "YCBCR")  # which the decoder makes RGB
    alpha = tuple(page.extrasamples) in ((1,), (2,))
    kinds = {1: greys, 2: greys if alpha else (), 3: colours, 4: ("RGB",)}.get(bands, ())
    if photometric not in kinds:
        found = f"{bands} band{'s' * (bands > 1)} of {page.dtype}, {photometric}"
        raise _Fault(f"cannot be decoded as colours: it has {found}; save it as grey, RGB or RGBA")
    if bands > 1 and page.dtype.kind == "f":
        raise _Fault(f"has {bands} bands of {page.dtype}; save it as grey, or with 8 or 16 bits")


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
        array = np.frombuffer(content, file_dtype, count).reshape(shape)
        return array if page.predictor == 1 else np.cumsum(array, axis=1, dtype=page.dtype)

    def decode(content: bytes, index: int, shape: tuple[int, int, int]) -> np.ndarray:
        try:
            if deflated:
                return inflate(content, shape)
            if supported:
                piece, _, found = own(content, index, jpegtables=tables)
                return piece.reshape(-1, *found[2:])[: shape[0]]
            array = cv2.imdecode(np.frombuffer(_segment_alone(page, content, shape), np.uint8), cv2.IMREAD_UNCHANGED)
            array = array if shape[2] < 3 else array[..., [2, 1, 0, 3][: shape[2]]]
            return array.reshape(shape).astype(page.dtype)
        except Exception as error:  # the codecs have types of their own
            raise _Fault("has a piece that cannot be decoded; save it as a tiled TIFF compressed by deflate") from error

    return decode


def _segment_alone(page: tifffile.TiffPage, content: bytes, shape: tuple[int, int, int]) -> bytes:
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
        317: ("H", [page.predictor] if page.predictor > 1 else []),  # libtiff warns of it where no codec has one
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


def _page_alone(path: Path, page: tifffile.TiffPage) -> bytes:
    """A TIFF file of this page, its pixels encoded as they are, without what says nothing of their encoding."""
    order, tags, pieces = page.parent.byteorder, {}, []
    needed = page.nbytes if page.compression == 1 and page.bitspersample == 8 and not page.is_subsampled else 0
    if not needed <= sum(page.databytecounts) <= MAX_VOXELS:
        raise _Fault(UNDECODABLE)
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
                raise _Fault(UNDECODABLE)
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


# DICOM


def _open_dicom(path: Path) -> Picture:
    with _shielded("DICOM"):
        import pydicom

        with _lenient():
            return _dicom_picture(path, pydicom.dcmread(path))


@contextlib.contextmanager
def _shielded(form: str) -> Iterator[None]:
    """Whatever a reader raises becomes a fault without a word of the header in it."""
    try:
        yield
    except ImportError:
        raise _Fault(f'{form} needs `pip install "segdrop[medical]"`') from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise _Fault(f"cannot be decoded: it is corrupt, truncated or not a {form} file") from None
    except _Fault:
        raise
    except Exception:  # the parsers have types of their own
        raise _Fault(f"cannot be decoded: it is corrupt, truncated or not a {form} file") from None


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """pydicom neither warns of nor logs what breaks the standard: it may quote it."""
    from pydicom import config

    with _without_log("pydicom"), _quietly():
        before = config.settings.reading_validation_mode
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = before


def _dicom_picture(path: Path, data) -> Picture:
    from pydicom.pixels import pixel_array

    _check_dicom_pixels(data)
    height, width, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
    _check_size(height, width, frames)
    finish, value_range, mirror = _dicom_values(data, frames)

    def frame(index: int) -> np.ndarray:
        with _shielded("DICOM"), _lenient():
            return finish(pixel_array(data, index=index), index)

    def first(index: int) -> np.ndarray:
        return array

    array = finish(pixel_array(data, index=0), 0)
    if frames == 1:
        for name in {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(data.dir()):
            del data[name]  # decoded already
    window = _dicom_window(data) if array.ndim == 2 else None
    if window and mirror is not None:
        window = mirror - window[1], mirror - window[0]
    patient = str(data.get("PatientID") or "").strip()
    return Picture(
        path,
        height,
        width,
        frames if frames > 1 else None,
        _channels(array),
        array.dtype,
        spacing=_dicom_spacing(data),
        patient=patient or None,
        value_range=value_range,
        window=window,
        _slice=frame if frames > 1 else first,
    )


def _check_dicom_pixels(data) -> None:
    from pydicom.pixels import get_decoder

    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise _Fault("has no pixel data")
    syntax = data.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        name = "in a way unknown here" if syntax.name == str(syntax) else f"as {syntax.name}"
        raise _Fault(f'is compressed {name}; decompress it, or `pip install "pylibjpeg[all]"`')


def _dicom_values(data, frames: int):
    """What turns a decoded frame into the values to read, their range, and the sum that MONOCHROME1 is turned about."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    kind, samples = data.PhotometricInterpretation, int(data.SamplesPerPixel)
    stored = _stored_range(data)
    if kind == "PALETTE COLOR":
        top = 2 ** int(data.RedPaletteColorLookupTableDescriptor[2]) - 1
        return lambda array, index: _plain(apply_color_lut(array, data)[..., :3]), (0.0, float(top)), None
    if samples == 3:
        return lambda array, index: _plain(array), stored, None
    if samples != 1:
        raise _Fault(f"has {samples} samples per pixel; save it as grey or RGB")

    if "ModalityLUTSequence" in data:
        top = 2 ** int(data.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
        low, high, whole = 0.0, float(top), True
        rescaled = lambda array, index: apply_modality_lut(array, data)  # noqa: E731
    else:
        steps = [_dicom_rescale(data, index) for index in range(frames)]
        ends = [slope * end + intercept for slope, intercept in steps for end in stored or (0.0, 0.0)]
        low, high = min(ends), max(ends)
        whole = stored is not None and all(number.is_integer() for step in steps for number in step)

        def rescaled(array, index):
            slope, intercept = steps[index]
            return array if steps[index] == (1.0, 0.0) else array * slope + intercept  # exact in float64

    integers = [np.iinfo(integer) for integer in (np.uint8, np.uint16, np.int16)]
    fitting = [integer.dtype for integer in integers if integer.min <= low and high <= integer.max]
    dtype = fitting[0] if whole and fitting else np.dtype(np.float32)
    mirror = None if kind != "MONOCHROME1" else low + high if stored else 0.0

    def finish(array: np.ndarray, index: int) -> np.ndarray:
        array = rescaled(array, index)
        if mirror is not None:
            array = mirror - array.astype(np.float64)
        return _plain(array.astype(dtype))

    return finish, (low, high) if whole else None, mirror


def _stored_range(data) -> tuple[float, float] | None:
    if "PixelData" not in data:
        return None
    bits = int(data.BitsStored)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if data.PixelRepresentation else (0.0, 2.0**bits - 1)


def _functional(data, group: str, frame: int = 0):
    """The item of a functional group that holds for a frame, of multi-frame files that have them."""
    shared = data.get("SharedFunctionalGroupsSequence") or []
    own = (data.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    found = [item[group][0] for item in (*own, *shared) if group in item and item[group].value]
    return found[0] if found else {}


def _dicom_rescale(data, frame: int) -> tuple[float, float]:
    source = data if "RescaleSlope" in data else _functional(data, "PixelValueTransformationSequence", frame)
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _dicom_window(data) -> tuple[float, float] | None:
    source = data if "WindowCenter" in data else _functional(data, "FrameVOILUTSequence")
    center, width = (_first(source.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not width >= 1:
        return None
    if source.get("VOILUTFunction") == "LINEAR_EXACT":
        return center - width / 2, center + width / 2
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2  # PS3.3 C.11.2.1.2.1


def _first(value) -> float | None:
    values = value if isinstance(value, (list, tuple)) or hasattr(value, "__getitem__") else [value]
    return None if value is None or not len(values) or values[0] is None else float(values[0])


def _dicom_spacing(data) -> tuple[float, float] | None:
    measures = _functional(data, "PixelMeasuresSequence")
    for value in (data.get("PixelSpacing"), data.get("ImagerPixelSpacing"), measures.get("PixelSpacing")):
        if value:
            return _millimetres(value)
    return None


def _millimetres(pair, factor: float = 1.0) -> tuple[float, float] | None:
    row, column = (float(value) * factor for value in pair)
    return (row, column) if 0 < row < np.inf and 0 < column < np.inf else None


# NIfTI


def _open_nifti(path: Path, slice_axis: int) -> Picture:
    with _shielded("NIfTI"):
        import nibabel

        with _without_log("nibabel.global"), _quietly():
            image = nibabel.load(path, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):
            raise _Fault("is not a NIfTI file")
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3):
            raise _Fault(f"has {len(shape)} dimensions {shape}; save one volume as a file of its own")
        axes = [axis for axis in range(len(shape)) if len(shape) == 2 or axis != slice_axis]
        height, width = (int(shape[axis]) for axis in axes)
        slices = int(shape[slice_axis]) if len(shape) == 3 else None
        if not height * width * (1 if slices is None else slices):
            raise _Fault("has no pixels")
        _check_size(height, width, slices or 1)
        stored = image.get_data_dtype()
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        array = np.asarray(image.dataobj) if scaled else image.dataobj.get_unscaled()
        array = array.reshape(shape)
        volume = _plain(array if slices is None else np.moveaxis(array, slice_axis, 0))
        unit = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
        spacing = _millimetres([image.header.get_zooms()[axis] for axis in axes], unit)
        header = _blank(image.header)
        form = nibabel.Nifti2Image if isinstance(image, nibabel.Nifti2Image) else nibabel.Nifti1Image
    exact = not scaled and stored.kind in "iu" and stored.itemsize <= 2
    return Picture(
        path,
        height,
        width,
        slices,
        1,
        volume.dtype,
        spacing=spacing,
        value_range=_range(stored) if exact else None,
        _slice=(lambda index: volume) if slices is None else (lambda index: volume[index]),
        _nifti=(form, header, slice_axis),
    )


def _blank(header):
    """A copy of a NIfTI header for a mask: geometry alone, no text."""
    header = header.copy()
    header.extensions.clear()
    for name in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        if name in header:
            header[name] = b""
    for name in ("cal_min", "cal_max", "intent_code"):
        header[name] = 0
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    return header
