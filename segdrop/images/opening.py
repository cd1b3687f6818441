"""Opening an image of any format."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from .common import open_common
from .dicom import DICOM_SUFFIXES, open_dicom
from .faults import Fault, OtherChannels, naming_file
from .nifti import NIFTI_SUFFIXES, open_nifti
from .picture import Picture, with_channel_axis
from .tiff import TIFF_SUFFIXES, open_tiff

_COMMON_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = (*_COMMON_SUFFIXES, *TIFF_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES)


def stem(path: str | os.PathLike) -> str:
    """The file's name without its suffix; "a.nii.gz" gives "a", and "1.2.840", which ends in none of them, itself.

    Example:
        >>> stem("scans/a.nii.gz"), stem("1.2.840")
        ('a', '1.2.840')
    """
    name = os.path.basename(path)
    lower = name.lower()
    suffix = max(filter(lower.endswith, SUFFIXES), key=len) if lower.endswith(SUFFIXES) else ""
    return name[: len(name) - len(suffix)]


def is_image(path: Path) -> bool:
    """Whether the file's name has one of `SUFFIXES`, or it is DICOM, which often has none.

    Example:
        >>> from pathlib import Path
        >>> is_image(Path("scans/a.NII.GZ")), is_image(Path("scans/notes.txt"))
        (True, False)
    """
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.name == "DICOMDIR" or not path.is_file():  # a directory of DICOM files is one without pixels
        return False
    with path.open("rb") as file:
        return _is_dicom(file.read(132))


def _is_dicom(beginning: bytes) -> bool:
    return beginning[128:132] == b"DICM"


def open_image(
    path: str | os.PathLike,
    *,
    slice_axis: int = 2,
    huge: bool = False,
    channels: int | None = None,
    context: int = 0,
) -> Picture:
    """Open an image file; an ordinary image is decoded here, frames, pages and huge images when they are read.

    Rows and columns are those stored: an orientation that a header asks for (EXIF, TIFF) is ignored in all formats, so
    that masks lie on their images whichever program wrote them.

    - PNG, JPEG, BMP, PPM, GIF (its first frame), TIFF: 8 or 16 bits, grey, RGB, RGBA (alpha is dropped) and palette,
      JPEG and TIFF also CMYK; TIFF also with a sign, of 32 or 64 bits, of one floating point channel, and of fewer bits
      than 8 or 16, which are spread over these. TIFFs where white is the lowest value are turned about the middle of
      the value range, so that larger is brighter. A TIFF of several pages is a volume, and so is one with a page
      for a whole stack (ImageJ, MetaMorph); of a huge pyramid the first, full-sized page is the image.
    - DICOM: the modality's rescaling is applied, integers stay integers where it is whole. MONOCHROME1 is turned
      about the middle of the value range (x becomes low + high - x), so that larger is brighter. Palettes and YBR
      become RGB. Several frames are a volume.
    - NIfTI: slices along `slice_axis` of the stored array, rows and columns in the order of the two other axes; the
      header's scaling is applied. Slices of large files are read from the disk when they are asked for.

    With `channels` an image has exactly so many, and they are read as they are: the bands of a TIFF of any type; the
    pages of one, where its axes say so (C) or where there are just as many; the fourth axis of a NIfTI file. Alpha is
    a channel where it makes up the number.

    Args:
        slice_axis: 0, 1 or 2, of NIfTI volumes.
        huge: also open TIFFs of more than `MAX_PIXELS` pixels, for `Picture.rows`.
        channels: number of channels; None: grey or RGB.
        context: slices before and after each slice of a grey volume that `Picture.read` gives as channels; 0: none.

    Raises:
        FileNotFoundError: there is no such file.
        OtherChannels: it has another number of channels, or is no grey volume where there is a context.
        InputError: it cannot be read as an image; one sentence.

    Example:
        >>> picture = open_image("image.png")
        >>> picture.height, picture.width, picture.channels, picture.slices
        (128, 128, 1, None)
        >>> picture.read().dtype
        dtype('uint8')
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}.")
    if slice_axis not in (0, 1, 2):
        raise InputError(f"`slice_axis` must be 0, 1 or 2, got slice_axis={slice_axis!r}.")
    picture = _open(path, slice_axis, huge, 1 if context else channels)
    has = "is grey" if picture.channels == 1 else f"has {picture.channels} channels"
    if context:
        if picture.channels > 1 or picture.slices is None:
            fault = has if picture.channels > 1 else "is a single image"
            raise OtherChannels(f"{path}: {fault}; `context_slices` needs grey volumes of several slices.")
        return replace(picture, context=context)
    if channels is None:
        return picture
    if picture.channels != channels:
        raise OtherChannels(f"{path}: {has}; `channels` asks for {channels}.")
    return with_channel_axis(picture) if channels == 1 else picture


def _open(path: Path, slice_axis: int, huge: bool, channels: int | None) -> Picture:
    name = path.name.lower()
    with naming_file(path):
        if not path.stat().st_size:
            raise Fault("the file is empty")
        with path.open("rb") as file:
            beginning = file.read(132)
        if name.endswith(DICOM_SUFFIXES) or _is_dicom(beginning):
            return open_dicom(path)
        if name.endswith(NIFTI_SUFFIXES):
            return open_nifti(path, slice_axis, channels)
        if beginning[:2] in (b"II", b"MM"):
            return open_tiff(path, huge, channels)
        return open_common(path, "save it as a tiled TIFF" if huge else "cut it into tiles", channels)


def same_place(one: Picture, other: Picture) -> bool:
    """Whether two NIfTI files lie on the same grid in space; True for all other formats, which do not tell.

    Example:
        >>> same_place(open_image("image.png"), open_image("data/cells/masks/test_000.png"))
        True
    """
    if one._nifti is None or other._nifti is None:
        return True
    return np.allclose(one._nifti[1].get_best_affine(), other._nifti[1].get_best_affine(), atol=1e-2)
