"""Image files that were cut or changed: one sentence that names the file, or arrays of the size that it tells, and not
a word besides."""

import gzip
import io
import os
import struct
import tracemalloc
import warnings
import zlib

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from dicom_files import write_dicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from segdrop import InputError
from segdrop.images import nifti
from segdrop.images.opening import open_image

RNG = np.random.default_rng(0)
DEEP = (np.add.outer(np.arange(40), np.arange(48)) * 300 + RNG.integers(0, 300, (40, 48))).astype(np.uint16)
GREY = (DEEP >> 7).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
VOLUME = np.stack([DEEP, DEEP // 2, DEEP // 3], axis=-1).astype(np.int16)


def opencv(array):
    return lambda path: cv2.imwrite(str(path), array)


def pillow(image, **options):
    return lambda path: image.save(path, **options)


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def nifti_of(array):
    return lambda path: nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)


def dicom(array, **options):
    return lambda path: write_dicom(path, array, **options)


def encapsulated(form, syntax, kind):
    """DICOM around a file of another format."""

    def write(path):
        content = io.BytesIO()
        Image.fromarray(RGB).save(content, form)
        write_dicom(path, RGB, PhotometricInterpretation=kind)
        data = pydicom.dcmread(path)
        data.PixelData = encapsulate([content.getvalue()])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path)

    return write


COLOURS = Image.fromarray(RGB)
FILES = {
    "grey.png": opencv(GREY),
    "colours.png": opencv(RGB),
    "deep.png": opencv(DEEP),
    "deep_colours.png": opencv(np.dstack([DEEP, DEEP, DEEP])),
    "palette.png": pillow(COLOURS.quantize(32)),
    "plain.jpg": pillow(COLOURS),
    "progressive.jpg": pillow(COLOURS, progressive=True),
    "inks.jpg": pillow(COLOURS.convert("CMYK")),
    "plain.bmp": pillow(COLOURS),
    "plain.gif": pillow(Image.fromarray(GREY)),
    "plain.ppm": pillow(COLOURS),
    "deep.pgm": opencv(DEEP),
    "strips.tif": tiff(RGB, rowsperstrip=16),
    "planes.tif": tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate", compression="lzw"),
    "pages.tif": tiff(np.stack([GREY, GREY]), photometric="minisblack", compression="zlib"),
    "stack.tif": tiff(np.stack([DEEP, DEEP]), photometric="minisblack", truncate=True),
    "imagej.tif": tiff(np.stack([DEEP, DEEP]), imagej=True, truncate=True),
    "deep.tif": tiff(DEEP, compression="zlib", predictor=True, bigtiff=True),
    "float.tif": tiff(DEEP.astype(np.float32), compression="zlib", predictor=True),
    "fax.tif": pillow(Image.fromarray(GREY > 99), compression="group4"),
    "palette.tif": pillow(COLOURS.quantize(32)),
    **{
        f"{name}.tif": tiff(RGB, tile=(16, 32), compression=name)
        for name in ("zlib", "lzw", "packbits", "lzma", "zstd", "jpeg", "jpeg2000", "webp", "jpegxl")
    },
    "native.dcm": dicom(DEEP),
    "frames.dcm": dicom(np.stack([DEEP, DEEP]), frames=True),
    "rle.dcm": dicom(DEEP, syntax=RLELossless),
    "jpeg.dcm": encapsulated("JPEG", JPEGBaseline8Bit, "YBR_FULL"),
    "jpeg2000.dcm": encapsulated("JPEG2000", JPEG2000Lossless, "RGB"),
    "volume.nii": nifti_of(VOLUME),
    "volume.nii.gz": nifti_of(VOLUME),
    "float.nii": nifti_of(VOLUME.astype(np.float32)),
}


def changed(content, number, rng):
    """Cut where `number` is odd; else with a few other bytes, anywhere or in its first 600, where headers are."""
    if number % 2:
        return content[: rng.integers(1, len(content))]
    values = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(values) if number % 4 else min(len(values), 600), rng.integers(1, 5))
    values[places] = rng.integers(0, 256, len(places))
    return values.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_sentence_or_arrays_of_its_size(tmp_path, name, capfd, caplog):
    FILES[name](tmp_path / name)
    content, damaged = (tmp_path / name).read_bytes(), tmp_path / f"damaged_{name}"
    rng = np.random.default_rng(sum(name.encode()))
    for number in range(24):
        damaged.write_bytes(changed(content, number, rng))
        try:
            opened = open_image(damaged)
            slices = [opened.read(index) for index in range(opened.slices or 1)]
        except InputError as error:
            told = str(error)
            assert told.startswith(f"{damaged}: ") and told.endswith(".") and "\n" not in told and "Doe" not in told
        else:
            colours = () if opened.channels == 1 else (opened.channels,)
            assert {array.shape for array in slices} == {(opened.height, opened.width, *colours)}
    written = capfd.readouterr()
    assert (written.out, written.err, caplog.records) == ("", "", [])


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_the_sweep_is_whole_before_it_is_damaged(tmp_path, name):
    FILES[name](tmp_path / name)
    opened = open_image(tmp_path / name)
    assert sorted((opened.height, opened.width)) == [40, 48] and opened.read().any()


@pytest.mark.parametrize("lost", [1, 5, 12, 13, 20, 500])
def test_of_a_deep_png_that_was_cut_libpng_says_nothing(tmp_path, lost, capfd):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), DEEP)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(InputError, match=r"a\.png: cannot be decoded: it is corrupt, truncated"):
        open_image(path)
    assert capfd.readouterr().err == ""


def test_of_a_sound_png_with_an_odd_chunk_libpng_says_nothing(tmp_path, capfd):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), DEEP)
    content = path.read_bytes()
    profile = b"ICC\0\0" + zlib.compress(bytes(200))
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    path.write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(open_image(path).read(), DEEP)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("array", [GREY, DEEP, RGB])
def test_of_a_png_with_a_text_longer_than_pillow_allows_the_pixels_are_read(tmp_path, array):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), array)
    content, text = path.read_bytes(), b"zTXtsegments\0\0" + zlib.compress(b"x" * 2**21)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    path.write_bytes(content[:33] + chunk + content[33:])
    read = open_image(path).read()
    np.testing.assert_array_equal(read if array.ndim == 2 else read[..., ::-1], array)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    palette = COLOURS.quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = open_image(tmp_path / "a.png").read()
    np.testing.assert_array_equal(read, np.array(palette.convert("RGB")))


def test_a_deflated_dicom_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((400, 400), np.uint16))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert path.stat().st_size < 2000 and open_image(path).read().shape == (400, 400)
    monkeypatch.setattr("segdrop.images.dicom.MAX_UNPACKED", 2**18)
    with pytest.raises(InputError, match=r"a\.dcm: unpacks to more than 0\.000244141 GiB; save it uncompressed"):
        open_image(path)


# NIfTI headers that tell of more than there is, or of more than memory should hold


def nifti_header(shape, dtype=np.int16):
    """The bytes before the values of a NIfTI file."""
    small = max(shape) < 2**15
    header = nibabel.Nifti1Header() if small else nibabel.Nifti2Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_data_offset(352 if small else 544)
    header.set_slope_inter(1, 0)
    if small:
        header["magic"] = b"n+1"
    return header.binaryblock + bytes(4)


def sparse(path, header, size):
    """A file of `size` zeros after the header, which take no room on the disk."""
    path.write_bytes(header)
    os.truncate(path, len(header) + size)
    return path


def gzipped(path, content):
    packer = zlib.compressobj(1, wbits=31)
    path.write_bytes(packer.compress(content) + packer.flush())
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_nifti_header_that_tells_of_more_than_there_is_is_refused_at_once(tmp_path, name, monkeypatch):
    content = nifti_header((1000, 1000, 900)) + bytes(1000)
    path = gzipped(tmp_path / name, content) if name.endswith(".gz") else tmp_path / name
    if not path.exists():
        path.write_bytes(content)
    monkeypatch.setattr(nibabel.arrayproxy.ArrayProxy, "get_unscaled", None)  # nothing is read
    with pytest.raises(InputError, match="cannot be decoded: it is corrupt, truncated or not a NIfTI file"):
        open_image(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("magic", "offset"), [(b"n+1", 0), (b"ni1", 0), (b"ni1", 348)])
def test_voxels_within_the_header_are_refused(tmp_path, name, magic, offset):
    """An offset that was never set, or that of a header in a file of its own."""
    content = bytearray(nifti_header((40, 40, 4)) + RNG.bytes(2 * 6400))
    struct.pack_into("<f", content, 108, offset)
    struct.pack_into("4s", content, 344, magic)
    gzipped(tmp_path / name, content) if name.endswith(".gz") else (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"has its voxels at byte {offset}, within its header of 352 bytes; save it"):
        open_image(tmp_path / name)


def test_a_large_nifti_volume_is_read_slice_by_slice(tmp_path):
    """900 million voxels; what is asked for is read from the disk."""
    header = nifti_header((1000, 1000, 900))
    path = sparse(tmp_path / "a.nii", header, 2 * 900_000_000)
    with path.open("r+b") as file:
        file.seek(len(header) + 2 * 1_000_000 * 450)
        file.write(np.full(1_000_000, 7, np.int16).tobytes())
    tracemalloc.start()
    try:
        opened = open_image(path)
        assert (opened.slices, opened.height, opened.width) == (900, 1000, 1000)
        assert [opened.read(index).max() for index in (449, 450, 451)] == [0, 7, 0]
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_compressed_nifti_volume_past_the_limit_is_to_be_saved_uncompressed(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "MAX_UNPACKED", 10_000)
    path = gzipped(tmp_path / "a.nii.gz", nifti_header((40, 40, 4)) + RNG.bytes(2 * 6400))
    with pytest.raises(InputError, match=r"a\.nii\.gz: unpacks to 0\.0 GiB; save it uncompressed, as \.nii, which is"):
        open_image(path)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, 10)])
def test_a_mapped_volume_holds_the_same_values(tmp_path, monkeypatch, mapped, axis, scaling):
    monkeypatch.setattr(nifti, "MAPPED", 0 if mapped else 2**40)
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(*scaling)
    image.to_filename(tmp_path / "a.nii")
    expected = np.moveaxis(np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj), axis, 0)
    opened = open_image(tmp_path / "a.nii", slice_axis=axis)
    read = [opened.read(index) for index in range(opened.slices)]
    assert {array.dtype for array in read} == {opened.dtype}
    np.testing.assert_array_equal(read, expected.astype(opened.dtype))


def test_a_gzip_whose_checksum_is_wrong_is_refused_though_it_unpacks(tmp_path):
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(nifti_header((40, 40, 4)) + RNG.bytes(2 * 6400), compresslevel=0))
    content[2000] ^= 1  # among voxels that are stored as they are
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be decoded: it is corrupt"):
        open_image(path)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tiff_cut_between_its_pages_is_refused(tmp_path, bigtiff):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for number in range(3):
            writer.write(np.full((20, 30), number, np.uint8), contiguous=False, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        end = tiff.pages[1].offset
    assert open_image(path).slices == 3
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(InputError, match=r"a\.tif: cannot be decoded"):
        open_image(path)
