"""NIfTI, read and written."""

import gzip
import math
import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from .faults import Fault, no_warnings, shielded, without_log
from .picture import MAX_UNPACKED, Picture, as_plain, check_size, millimetres, type_range

NIFTI_SUFFIXES = (".nii.gz", ".nii")
MAPPED = 2**26  # bytes of a file from which on its slices are read from disk when they are asked for
_BEHIND = 2**20  # bytes that may stand behind the voxels
DEFLATED = 1032  # bytes that deflate makes of one at most


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


def open_nifti(path: Path, slice_axis: int, channels: int | None) -> Picture:
    with shielded("NIfTI"):
        import nibabel

        with without_log("nibabel.global"), no_warnings():
            image = nibabel.load(path, mmap=path.stat().st_size > MAPPED)
        if not isinstance(image, nibabel.Nifti1Image):
            raise Fault("is not a NIfTI file")
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        shape, bands = (shape[:3], shape[3:]) if channels is not None and len(shape) == 4 else (shape, ())
        if len(shape) not in (2, 3):
            advice = ", or train with `channels`" if len(shape) == 4 else ""
            raise Fault(f"has {len(shape)} dimensions {shape}; save one volume as a file of its own{advice}")
        axes = [axis for axis in range(len(shape)) if len(shape) == 2 or axis != slice_axis]
        height, width = (int(shape[axis]) for axis in axes)
        slices = int(shape[slice_axis]) if len(shape) == 3 else None
        if min(*shape, *bands) < 1:
            raise Fault("has no pixels")
        check_size(height, width, slices or 1)
        _check_bytes(path, image)
        if path.name.lower().endswith(".gz"):
            _check_sum(path, image)
        volume = image.dataobj.get_unscaled().reshape(*shape, *bands)
        volume = volume if slices is None else np.moveaxis(volume, slice_axis, 0)
        unit = {1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1.0)  # metres, microns; of others mm
        spacing = millimetres([image.header.get_zooms()[axis] for axis in axes], unit)
        header = _blank(image.header)
        if bands:
            header.set_data_shape(shape)
        form = nibabel.Nifti2Image if isinstance(image, nibabel.Nifti2Image) else nibabel.Nifti1Image
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        scaled = (slope, intercept) != (1, 0)

        def read(index: int) -> np.ndarray:
            stored = volume if slices is None else volume[index]
            return as_plain(nibabel.volumeutils.apply_read_scaling(stored, slope, intercept) if scaled else stored)

        dtype = np.dtype(np.float32) if scaled else as_plain(volume[:0]).dtype
    stored = volume.dtype
    return Picture(
        path,
        height,
        width,
        slices,
        math.prod(bands),
        dtype,
        spacing=spacing,
        value_range=type_range(stored) if not scaled and stored.kind in "iu" and stored.itemsize <= 2 else None,
        _slice=read,
        _nifti=(form, header, slice_axis),
    )


def _check_bytes(path: Path, image) -> None:
    """Refuse a file that is too short for what its header tells of, before room is made for that, and a long one whose
    compression lets no slice be read without all."""
    begin, end = image.dataobj.offset, image.header.single_vox_offset
    if begin < end:
        raise Fault(f"has its voxels at byte {begin}, within its header of {end} bytes; save it anew as one .nii file")
    stored = math.prod(image.shape) * image.get_data_dtype().itemsize
    compressed = path.name.lower().endswith(".gz")
    if stored + image.dataobj.offset > path.stat().st_size * (DEFLATED if compressed else 1):
        raise Fault("cannot be decoded: it is corrupt, truncated or not a NIfTI file")
    if compressed and stored > MAX_UNPACKED:
        raise Fault(f"unpacks to {stored / 2**30:.1f} GiB; save it uncompressed, as .nii, which is read slice by slice")


def _check_sum(path: Path, image) -> None:
    """Refuse a compressed file that is not as it was written: nibabel stops before gzip's checksum."""
    told = math.prod(image.shape) * image.get_data_dtype().itemsize + image.dataobj.offset
    left = told + _BEHIND
    with gzip.open(path) as file:
        while block := file.read(2**20):
            left -= len(block)
            if left < 0:
                raise Fault("cannot be decoded: it holds more than its header tells of")


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
