"""Image files: every format gives the values that were stored, or one sentence."""

import contextlib
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from dicom_files import write_dicom
from PIL import Image, TiffImagePlugin
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from segdrop import InputError
from segdrop.images import opening, picture, resampling, tiff, tiff_pieces
from segdrop.images.nifti import write_volume_mask
from segdrop.images.opening import is_image, open_image, stem
from segdrop.images.resampling import resample, resampled_size

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 48), np.uint8)
RGB = RNG.integers(0, 256, (40, 48, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (40, 48), np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (40, 48, 3), np.uint16)
FLOAT = RNG.normal(0, 1000, (40, 48)).astype(np.float32)
VOLUME = RNG.integers(-1000, 1000, (7, 8, 9), np.int16)


def save(path, array, **options):
    """Write by the suffix; RGB order."""
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, **options)
    elif ".nii" in path.name:
        affine = np.diag([0.7, 0.8, 2.5, 1])
        nibabel.Nifti1Image(array, affine, **options).to_filename(path)
    else:
        assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
    return path


def tiff_of(content, tags):
    """A little-endian TIFF of one strip; tags of at most 16 bits."""
    table = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + table + bytes(4)


LAYOUTS = [
    {},
    {"rowsperstrip": 7, "byteorder": ">"},
    {"tile": (16, 32)},
    {"tile": (16, 32), "compression": "zlib", "predictor": True},
    {"rowsperstrip": 7, "compression": "zlib", "bigtiff": True},
]


# PNG, JPEG, BMP and TIFF


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.png", GREY),
        ("a.png", RGB),
        ("a.png", DEEP),
        ("a.png", DEEP_RGB),
        ("a.BMP", RGB),
        ("a.ppm", RGB),
        ("a.pgm", DEEP),
        ("a.ppm", DEEP_RGB),
        ("a.tif", GREY),
        ("a.tif", RGB),
        ("a.tiff", DEEP),
        ("a.tif", DEEP_RGB),
        ("a.tif", FLOAT),
        ("a.tif", FLOAT.astype(np.int16)),
    ],
)
def test_an_ordinary_image_keeps_its_values(tmp_path, name, array):
    picture = open_image(save(tmp_path / name, array))
    assert (picture.height, picture.width, picture.slices) == (40, 48, None)
    assert (picture.dtype, picture.channels) == (array.dtype, 1 if array.ndim == 2 else 3)
    assert picture.spacing is picture.patient is picture.window is None
    np.testing.assert_array_equal(picture.read(), array)
    np.testing.assert_array_equal(picture.rows(10, 25), array[10:25])


@pytest.mark.parametrize(
    ("array", "expected"),
    [(GREY, (0, 255)), (DEEP, (0, 65535)), (FLOAT.astype(np.int16), (-32768, 32767)), (FLOAT, None)],
)
def test_the_value_range_is_that_of_the_integer_type(tmp_path, array, expected):
    assert open_image(save(tmp_path / "a.tif", array)).value_range == expected


def test_double_precision_becomes_single(tmp_path):
    read = open_image(save(tmp_path / "a.tif", FLOAT.astype(np.float64))).read()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, FLOAT)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("array", [RGB, DEEP_RGB])
def test_alpha_is_dropped(tmp_path, array, suffix):
    with_alpha = np.dstack([array, np.full((40, 48), 7, array.dtype)])
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), with_alpha[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(open_image(path).read(), array)


def test_palettes_are_expanded(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_image(tmp_path / "a.png").read(), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("left", [0, 5])
def test_a_png_whose_palette_lacks_colours_is_refused(tmp_path, left):
    Image.fromarray(RGB).quantize(16).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    palette = b"PLTE" + content[41 : 41 + 3 * left]
    shorter = struct.pack(">I", 3 * left) + palette + struct.pack(">I", zlib.crc32(palette))
    (tmp_path / "a.png").write_bytes(content[:33] + shorter * (left > 0) + content[33 + 12 + 3 * 16 :])
    expected = f"has pixels of colour 15, but a palette of {left} colours; save it as grey or RGB."
    assert sentence(tmp_path / "a.png") == expected


@pytest.mark.parametrize("comment", [b"", b"#short\n", b"#" + b"x" * 5000 + b"\n", b"#old\r"])
@pytest.mark.parametrize(("magic", "array"), [(b"P5", DEEP), (b"P6", DEEP_RGB)])
def test_comments_leave_the_values_of_a_ppm_as_they_are(tmp_path, comment, magic, array):
    (tmp_path / "a.ppm").write_bytes(magic + b"\n" + comment + b"48 40\n65535\n" + array.astype(">u2").tobytes())
    np.testing.assert_array_equal(open_image(tmp_path / "a.ppm").read(), array)


@pytest.mark.parametrize("suffix", ["ppm", "pnm"])
def test_a_ppm_of_floating_point_is_refused(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"Pf\n48 40\n-1.0\n" + FLOAT.tobytes())
    told = sentence(tmp_path / f"a.{suffix}")  # an earlier Pillow decodes none of them
    assert told.startswith(("holds values that are not of 8 or 16 bits; save it as TIFF.", "cannot be decoded: "))


def test_of_a_gif_the_first_frame_is_read(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(GREY[::-1])])
    picture = open_image(tmp_path / "a.gif")
    assert picture.slices is None
    np.testing.assert_array_equal(
        picture.read(), np.repeat(GREY[..., None], 3, axis=-1)[..., : picture.channels].squeeze()
    )


def test_a_jpeg_is_read_as_rgb(tmp_path):
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    read = open_image(save(tmp_path / "a.jpg", flat)).read()
    np.testing.assert_allclose(read.astype(int), flat, atol=3)


@pytest.mark.parametrize(
    "pages", [np.stack([GREY, GREY[::-1], GREY // 2]), np.stack([DEEP, DEEP // 2]), np.stack([DEEP_RGB, DEEP_RGB // 2])]
)
def test_a_tiff_of_several_pages_is_a_volume(tmp_path, pages):
    options = {"photometric": "rgb"} if pages.ndim == 4 else {"photometric": "minisblack"}
    picture = open_image(save(tmp_path / "a.tif", pages, **options))
    assert picture.slices == len(pages)
    np.testing.assert_array_equal([picture.read(i) for i in range(len(pages))], pages)


def metamorph(path, stack):
    """An STK file, whose only page counts its planes of 16 bits in tag 33629."""
    planes, height, width = stack.shape
    values, end = stack.tobytes(), 8 + stack.nbytes
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, stack[0].nbytes)]
    tags += [(33628, 4, 1, end), (33629, 5, planes, end)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, end + 24 * planes) + values + bytes(24 * planes) + table)


STACK = np.stack([DEEP, DEEP // 2, DEEP // 3, DEEP // 5])
ONE_PAGE = {
    "tifffile": lambda path: save(path, STACK, photometric="minisblack", truncate=True, rowsperstrip=7),
    "imagej": lambda path: save(path, STACK, imagej=True, truncate=True),
    "imagej_colours": lambda path: save(path, np.stack([RGB, RGB // 2]), imagej=True, truncate=True),
    "metamorph": lambda path: metamorph(path, STACK),
}


@pytest.mark.parametrize("program", ONE_PAGE)
def test_a_stack_behind_one_page_is_a_volume(tmp_path, program):
    """As ImageJ writes what is larger than 4 GB."""
    ONE_PAGE[program](tmp_path / "a.tif")
    expected = np.stack([RGB, RGB // 2]) if program == "imagej_colours" else STACK
    picture = open_image(tmp_path / "a.tif")
    assert picture.slices == len(expected)
    np.testing.assert_array_equal([picture.read(i) for i in range(len(expected))], expected)


def test_a_page_that_tells_of_a_stack_but_holds_one_image_is_one(tmp_path):
    """A copy of a slice, whose description was copied, too."""
    save(tmp_path / "a.tif", GREY, description='{"shape": [5, 40, 48]}', metadata=None)
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(), GREY)


def test_pages_of_several_slices_each_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(STACK, photometric="minisblack", truncate=True)
        file.write(STACK, photometric="minisblack", truncate=True)
    assert sentence(tmp_path / "a.tif") == "has 4 slices in a page; save it with one page for each slice."


def test_pages_of_different_sizes_are_an_error(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY)
        file.write(GREY[:20])
    picture = open_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: has pages of different sizes or types; first: page 2"):
        picture.read(1)


def test_many_pages_are_opened_without_walking_through_those_before(tmp_path, monkeypatch):
    """The headers that are parsed for a page do not become more with the number of pages."""
    pages = RNG.integers(0, 256, (30, 8, 9), np.uint8)
    picture = open_image(save(tmp_path / "a.tif", pages, photometric="minisblack"))
    parsed = []
    for owner, name in ((tifffile.TiffPage, "__init__"), (TiffImagePlugin.ImageFileDirectory_v2, "load")):
        original = getattr(owner, name)
        counting = lambda *args, original=original, **kw: (parsed.append(1), original(*args, **kw))[1]  # noqa: E731
        monkeypatch.setattr(owner, name, counting)
    np.testing.assert_array_equal([picture.read(i) for i in range(30)], pages)
    assert 30 <= len(parsed) <= 6 * 30


def test_a_chain_of_pages_that_runs_in_a_circle_ends(tmp_path):
    path = save(tmp_path / "a.tif", np.stack([GREY, GREY // 2]), photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        first, second = (page.offset for page in file.pages)
    content = bytearray(path.read_bytes())
    tags = struct.unpack_from("<H", content, second)[0]
    struct.pack_into("<I", content, second + 2 + 12 * tags, first)
    path.write_bytes(content)
    assert open_image(path).slices == 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("huge", [False, True])
def test_colours_in_planes_apart_are_put_together(tmp_path, monkeypatch, layout, dtype, bands, huge):
    planes = RNG.integers(0, 256, (bands, 60, 70), np.uint8).astype(dtype)
    extra = {"extrasamples": ["unassalpha"]} if bands == 4 else {}
    path = save(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", **layout, **extra)
    limit(monkeypatch, MAX_PIXELS=4000 if huge else 10**6)
    picture = open_image(path, huge=huge)
    expected = np.moveaxis(planes, 0, -1)[..., :3]
    assert (picture.channels, picture.dtype) == (3, dtype)
    np.testing.assert_array_equal(picture.read(), expected)
    np.testing.assert_array_equal(picture.rows(5, 41), expected[5:41])


def test_pages_of_planes_apart_are_a_volume(tmp_path):
    pages = RNG.integers(0, 65536, (4, 3, 40, 48), np.uint16)
    picture = open_image(save(tmp_path / "a.tif", pages, photometric="rgb", planarconfig="separate"))
    np.testing.assert_array_equal([picture.read(i) for i in range(4)], np.moveaxis(pages, 1, -1))


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize(
    ("dtype", "turned"),
    [
        (np.uint8, lambda values: 255 - values),
        (np.uint16, lambda values: 65535 - values),
        (np.int8, lambda values: -1 - values),
        (np.int16, lambda values: -1 - values),
        (np.float32, lambda values: -values),
    ],
)
def test_where_white_is_the_lowest_value_larger_becomes_brighter(tmp_path, monkeypatch, dtype, turned, huge):
    array = GREY.astype(dtype)
    path = save(tmp_path / "a.tif", array, photometric="miniswhite", rowsperstrip=7, compression="zlib")
    limit(monkeypatch, MAX_PIXELS=1500 if huge else 10**6)
    np.testing.assert_array_equal(open_image(path, huge=huge).read(), turned(array.astype(np.float64)))


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize(
    ("dtype", "expected", "value_range"),
    [
        (np.int8, np.int16, (-128, 127)),
        (np.int16, np.int16, (-32768, 32767)),
        (np.int32, np.float32, None),
        (np.uint32, np.float32, None),
        (np.float64, np.float32, None),
    ],
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_types_become_the_smallest_that_holds_them(
    tmp_path, monkeypatch, dtype, expected, value_range, compression, huge
):
    array = GREY.astype(np.int8).astype(dtype) if np.dtype(dtype).kind != "u" else GREY.astype(dtype)
    path = save(tmp_path / "a.tif", array, compression=compression, rowsperstrip=16)
    limit(monkeypatch, MAX_PIXELS=1500 if huge else 10**6)
    picture = open_image(path, huge=huge)
    assert (picture.dtype, picture.value_range) == (expected, value_range)
    np.testing.assert_array_equal(picture.read(), array)


def test_twelve_bits_are_moved_to_the_top_of_sixteen(tmp_path):
    values = RNG.integers(0, 4096, (4, 8), np.uint16)
    bits = (values[..., None] >> np.arange(11, -1, -1) & 1).astype(np.uint8)
    tags = {256: 8, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 48}
    (tmp_path / "a.tif").write_bytes(tiff_of(np.packbits(bits).tobytes(), tags))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(), values << 4)
    (tmp_path / "a.tif").write_bytes(tiff_of(np.packbits(bits).tobytes(), tags | {262: 0}))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(), 65535 - (values << 4))


def test_a_tiff_of_one_bit_is_black_and_white(tmp_path):
    pages = [Image.fromarray(GREY > 99), Image.fromarray(GREY > 200)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="group4")
    picture = open_image(tmp_path / "a.tif")
    assert (picture.slices, picture.value_range) == (2, (0, 255))
    np.testing.assert_array_equal(picture.read(1), np.where(GREY > 200, 255, 0))


@pytest.mark.parametrize("array", [GREY, RGB, DEEP, DEEP_RGB])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_pixels_are_read_as_stored_whatever_the_orientation(tmp_path, monkeypatch, array, orientation):
    """In TIFFs, in huge TIFFs, and in what EXIF says in a PNG."""
    tiff = save(tmp_path / "a.tif", array, rowsperstrip=8, extratags=[(274, "H", 1, orientation, True)])
    png = save(tmp_path / "a.png", array)
    exif = struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, 274, 3, 1, orientation, 0, 0)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    content = png.read_bytes()
    png.write_bytes(content[:33] + chunk + content[33:])
    with Image.open(png) as picture:
        assert picture.getexif()[274] == orientation
    for path in (tiff, png):
        np.testing.assert_array_equal(open_image(path).read(), array)
    limit(monkeypatch, MAX_PIXELS=1500)
    np.testing.assert_array_equal(open_image(tiff, huge=True).read(), array)


def test_a_jpeg_is_read_as_stored_whatever_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(RGB).save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(open_image(tmp_path / "a.jpg").read(), open_image(tmp_path / "b.jpg").read())


@pytest.mark.parametrize(
    ("path", "expected"),
    [("x/a.png", "a"), ("a.b.png", "a.b"), ("a.nii.gz", "a"), ("A.NII.GZ", "A"), ("1.2.840", "1.2.840")],
)
def test_the_stem_is_the_name_without_its_suffix(path, expected):
    assert stem(path) == expected


# Files that cannot be read


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def limit(monkeypatch, **limits):
    """Set the largest sizes lower, so that no large file is needed."""
    for module in (picture, resampling, tiff, tiff_pieces):
        for name in limits.keys() & vars(module):
            monkeypatch.setattr(module, name, limits[name])


def sentence(path, **options):
    """The message of what opening and reading raises; one sentence that names the file."""
    with pytest.raises(InputError) as caught:
        picture = open_image(path, **options)
        for index in range(picture.slices or 1):
            picture.read(index)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("suffix", [s for s in opening.SUFFIXES])
def test_an_empty_file_says_so(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    assert sentence(path) == "the file is empty."


@pytest.mark.parametrize("suffix", [s for s in opening.SUFFIXES])
@pytest.mark.parametrize("content", [b"not an image", b"II*\0" + b"\xff" * 40, b"\x1f\x8b" + b"\0" * 50])
def test_a_file_of_something_else_is_an_error(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert re.match("cannot be decoded: it is corrupt, truncated(, too large)? or not an? ", sentence(path))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.png", GREY),
        ("a.png", DEEP_RGB),
        ("a.jpg", RGB),
        ("a.bmp", RGB),
        ("a.tif", GREY),
        ("a.tif", DEEP_RGB),
        ("a.tif", FLOAT.astype(np.float64)),
        ("a.tif", FLOAT),
        ("a.nii", VOLUME),
        ("a.nii.gz", VOLUME),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_an_error(tmp_path, name, array, share):
    assert "cannot be decoded: it is corrupt, truncated" in sentence(cut(save(tmp_path / name, array), share))


def test_a_truncated_dicom_is_an_error(tmp_path):
    for share in (0.05, 0.5, 0.9):
        message = sentence(cut(write_dicom(tmp_path / "a.dcm", DEEP), share))
        assert re.match("cannot be decoded: it is corrupt, truncated or not a DICOM file|has no pixel data", message)


def test_damaged_files_raise_nothing_else_and_warn_of_nothing(tmp_path, monkeypatch, caplog):
    """Three bytes of each changed at random, forty times; warnings are errors here."""
    paths = [
        save(tmp_path / "a.tif", DEEP_RGB),
        save(tmp_path / "b.tif", GREY, tile=(16, 16), compression="zlib"),
        save(tmp_path / "c.jpg", RGB),
        save(tmp_path / "d.nii", VOLUME),
        write_dicom(tmp_path / "e.dcm", DEEP),
    ]
    rng = np.random.default_rng(0)
    for huge in (False, True):
        limit(monkeypatch, MAX_PIXELS=1500 if huge else 10**6)
        for path in paths:
            content = np.frombuffer(path.read_bytes(), np.uint8)
            damaged = path.with_name(f"damaged{path.suffix}")
            for _ in range(40):
                changed = content.copy()
                changed[rng.integers(0, min(len(changed), 600), 3)] = rng.integers(0, 256, 3)
                damaged.write_bytes(changed.tobytes())
                with contextlib.suppress(InputError):
                    open_image(damaged, huge=huge).read()
    assert not caplog.records


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no image file .*nowhere\.png"):
        open_image(tmp_path / "nowhere.png")


def test_an_image_past_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    limit(monkeypatch, MAX_PIXELS=1000)
    for name in ("a.png", "a.tif", "a.nii"):
        message = sentence(save(tmp_path / name, GREY))
        assert re.fullmatch(r"has (48 x 40|40 x 48) pixels; cut it into tiles\.", message)
    assert "has 48 x 40 pixels" in sentence(write_dicom(tmp_path / "a.dcm", GREY))
    limit(monkeypatch, MAX_VOXELS=5)
    assert "has 9 slices of 8 x 7 pixels" in sentence(save(tmp_path / "a.nii", VOLUME))


def test_a_tiff_bomb_is_unpacked_no_further_than_its_image_is_large(tmp_path):
    bomb = zlib.compress(bytes(10**7))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(iter([bomb]), shape=(8, 8), dtype=np.uint16, compression="zlib", rowsperstrip=8)
    tracemalloc.start()
    try:
        assert not open_image(tmp_path / "a.tif").read().any()
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_png_bomb_is_refused(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    assert sentence(tmp_path / "a.png") == "has 12000 x 12000 pixels; cut it into tiles."


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    array = FLOAT.copy()
    array[3, 4] = value
    for name in ("a.tif", "a.nii"):
        assert sentence(save(tmp_path / name, array)) == "holds values that are not finite; replace them."


def test_floating_point_colours_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((40, 48, 3), np.float32), photometric="rgb")
    assert sentence(path) == "has 3 bands of float32; save it as grey, with 8 or 16 bits, or train with `channels`."


@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("extras", [["unspecified"] * 2, ["unassalpha"] * 2])
def test_bands_that_are_no_colours_are_refused(tmp_path, photometric, extras):
    extras = extras * 2 if photometric == "minisblack" else extras
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": extras}
    path = save(tmp_path / "a.tif", np.zeros((40, 48, 5), np.uint8), **options)
    has = f"it has 5 bands of uint8, {photometric.upper()}"
    advice = "save it as grey, RGB or RGBA, or train with `channels`"
    assert sentence(path) == f"cannot be decoded as colours: {has}; {advice}."


@pytest.mark.parametrize(("variable", "level"), [({}, 0), ({"OPENCV_LOG_LEVEL": "INFO"}, 4)])
def test_opencv_is_quiet_even_where_it_was_imported_before(variable, level):
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"} | variable
    log = "cv2" if hasattr(cv2, "getLogLevel") else "cv2.utils.logging"
    code = f"import cv2, segdrop.images.opening; print({log}.getLogLevel())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == level


# Any number of channels

FIVE = RNG.integers(0, 65536, (40, 48, 5), np.uint16)
PLANES = np.moveaxis(FIVE, -1, 0)
GREYS = {"photometric": "minisblack"}


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (FIVE, {"planarconfig": "contig", **GREYS}),
        (FIVE, {"planarconfig": "contig", **GREYS, "compression": "zlib", "predictor": True}),
        (FIVE, {"planarconfig": "contig", **GREYS, "tile": (32, 16), "compression": "zlib"}),
        (FIVE, {"photometric": "rgb"}),
        (PLANES, {"planarconfig": "separate", **GREYS}),
        (PLANES, {"imagej": True, "metadata": {"axes": "CYX"}}),
        (PLANES, {"imagej": True, "metadata": {"axes": "CYX"}, "truncate": True}),
        (PLANES, {"ome": True, "metadata": {"axes": "CYX"}}),
        (PLANES, GREYS),
        (FIVE, {}),
        (FIVE, {"truncate": True}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_all_channels_of_a_tiff_are_read_wherever_its_axes_have_them(tmp_path, array, options, dtype):
    if dtype == np.float32:
        options = {name: value for name, value in options.items() if name != "predictor"}
    picture = open_image(save(tmp_path / "a.tif", array.astype(dtype), **options), channels=5)
    assert (picture.height, picture.width, picture.slices, picture.channels) == (40, 48, None, 5)
    assert picture.dtype == dtype
    np.testing.assert_array_equal(picture.read(), FIVE.astype(dtype))
    np.testing.assert_array_equal(picture.rows(7, 30), FIVE.astype(dtype)[7:30])


@pytest.mark.parametrize(("axes", "form"), [("ZCYX", "imagej"), ("CZYX", "ome")])
def test_a_stack_may_have_slices_and_channels(tmp_path, axes, form):
    stack = np.stack([PLANES, PLANES + 1, PLANES + 2], axis=axes.index("Z"))
    picture = open_image(save(tmp_path / "a.tif", stack, **{form: True}, metadata={"axes": axes}), channels=5)
    assert (picture.slices, picture.channels) == (3, 5)
    np.testing.assert_array_equal([picture.read(i) for i in range(3)], [FIVE, FIVE + 1, FIVE + 2])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_alpha_is_a_channel_where_it_makes_up_the_number(tmp_path, suffix, channels):
    array = FIVE[..., :4].astype(np.uint8)
    Image.fromarray(array).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(open_image(tmp_path / f"a.{suffix}", channels=channels).read(), array[..., :channels])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz", "a.dcm"])
def test_one_channel_has_an_axis_of_its_own(tmp_path, name):
    write_dicom(tmp_path / name, GREY) if name == "a.dcm" else save(tmp_path / name, GREY)
    picture = open_image(tmp_path / name, channels=1)
    np.testing.assert_array_equal(picture.read(), GREY[..., None])
    np.testing.assert_array_equal(picture.rows(3, 9), GREY[3:9, :, None])


def test_a_huge_tiff_of_channels_is_read_in_bands(tmp_path, small_limit):
    big = np.dstack([BIG, BIG + 1, BIG + 2, BIG + 3, BIG + 4])
    options = {"tile": (32, 48), "planarconfig": "contig", **GREYS}
    picture = open_image(save(tmp_path / "a.tif", big, **options), huge=True, channels=5)
    for top, bottom in ((0, 10), (10, 75), (190, 200)):
        np.testing.assert_array_equal(picture.rows(top, bottom), big[top:bottom])
    grey = open_image(save(tmp_path / "b.tif", BIG, tile=(32, 48)), huge=True, channels=1)
    np.testing.assert_array_equal(grey.rows(10, 75), BIG[10:75, :, None])


def test_the_fourth_axis_of_a_nifti_file_are_channels(tmp_path):
    array = RNG.integers(0, 99, (6, 7, 8, 4)).astype(np.int16)
    picture = open_image(save(tmp_path / "a.nii.gz", array), channels=4)
    assert (picture.height, picture.width, picture.slices, picture.channels) == (6, 7, 8, 4)
    np.testing.assert_array_equal([picture.read(i) for i in range(8)], np.moveaxis(array, 2, 0))
    write_volume_mask(picture, np.ones((8, 6, 7), np.uint8), tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (6, 7, 8)
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize(
    ("name", "array", "channels", "message"),
    [
        ("a.png", RGB, 1, "has 3 channels; `channels` asks for 1."),
        ("a.png", GREY, 3, "is grey; `channels` asks for 3."),
        ("a.tif", PLANES, 4, "is grey; `channels` asks for 4."),
        ("a.nii", VOLUME, 2, "is grey; `channels` asks for 2."),
        ("a.nii", np.stack([VOLUME] * 4, -1), 3, "has 4 channels; `channels` asks for 3."),
    ],
)
def test_another_number_of_channels_is_refused(tmp_path, name, array, channels, message):
    options = GREYS if name == "a.tif" else {}
    assert sentence(save(tmp_path / name, array, **options), channels=channels) == message


# Resampling


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [((1.0, 2.0), 1.0, (40, 100)), ((0.5, 0.5), 1.0, (20, 25)), ((1e-3, 1e-3), 5.0, (1, 1))],
)
def test_the_resampled_size_covers_the_same_millimetres(spacing, target, expected):
    assert resampled_size(40, 50, spacing, target) == expected


@pytest.mark.parametrize("spacing", [(0, 0), (1, -1), (np.nan, 1), (np.inf, 1), (1,), 1.0, (1, 1, 1)])
def test_a_spacing_that_is_no_two_positive_numbers_is_refused(spacing):
    with pytest.raises(InputError, match="`spacing` must be two positive numbers, mm per row and per column, got"):
        resampled_size(40, 50, spacing, 1.0)


@pytest.mark.parametrize("spacing", [(500, 500), (1e300, 1e300)])
def test_a_resampled_size_past_the_limit_is_refused(spacing):
    with pytest.raises(InputError, match="An image of 512 x 512 pixels .* pixels at 0.5 mm per pixel; correct its"):
        resampled_size(512, 512, spacing, 0.5)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 9, 21])
@pytest.mark.parametrize("size", [(15, 16), (60, 70), (20, 60)])
def test_any_number_of_channels_is_resampled_one_as_the_other(channels, size):
    maps = RNG.random((40, 48, channels), np.float32)
    resampled = resample(maps, size)
    assert resampled.shape == (*size, channels)
    for channel in range(channels):
        np.testing.assert_allclose(resampled[..., channel], resample(maps[..., channel], size), atol=1e-6)


# DICOM


@pytest.mark.parametrize("array", [GREY, RGB, DEEP, FLOAT.astype(np.int16)])
def test_dicom_keeps_its_values(tmp_path, array):
    picture = open_image(write_dicom(tmp_path / "a.dcm", array))
    assert (picture.slices, picture.dtype) == (None, array.dtype)
    np.testing.assert_array_equal(picture.read(), array)
    np.testing.assert_array_equal(picture.rows(3, 9), array[3:9])


@pytest.mark.parametrize(
    ("attributes", "dtype", "expected_range"),
    [
        ({"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}, np.int16, (-1024, 3071)),
        ({"BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": 0}, np.uint16, (0, 8190)),
        ({"BitsStored": 16, "RescaleSlope": 1, "RescaleIntercept": -1024}, np.float32, (-1024, 64511)),
        ({"BitsStored": 12, "RescaleSlope": "0.5", "RescaleIntercept": 3}, np.float32, None),
    ],
)
def test_the_modality_s_rescaling_is_applied(tmp_path, attributes, dtype, expected_range):
    array = DEEP >> 4
    picture = open_image(write_dicom(tmp_path / "a.dcm", array, **attributes))
    assert (picture.dtype, picture.value_range) == (dtype, expected_range)
    expected = array * float(attributes["RescaleSlope"]) + attributes["RescaleIntercept"]
    np.testing.assert_array_equal(picture.read(), expected)


def test_a_lookup_table_of_the_modality_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], (np.arange(256, dtype=np.uint16) * 5).tobytes()
    table.ModalityLUTType = "US"
    array = GREY
    path = write_dicom(tmp_path / "a.dcm", array, ModalityLUTSequence=[table])
    picture = open_image(path)
    np.testing.assert_array_equal(picture.read(), array.astype(int) * 5)
    assert (picture.dtype, picture.value_range) == (np.uint16, (0, 65535))


def test_bits_that_are_not_stored_do_not_count(tmp_path):
    """A graphic in the unused high bits, as old files have."""
    array = np.array([[5, 5 | 0x8000]], np.uint16)
    picture = open_image(write_dicom(tmp_path / "a.dcm", array, BitsStored=12))
    assert picture.read().tolist() == [[5, 5]] and picture.value_range == (0, 4095)


def test_bits_that_are_not_the_lowest_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=15)
    assert sentence(path) == "has values of 12 bits whose highest is bit 15; save it with HighBit 11."


@pytest.mark.parametrize("kind", ["HSV", "CMYK", "ARGB", "YBR_PARTIAL_420", "MONOCHROME2"])
def test_dicom_colours_of_another_kind_are_refused(tmp_path, kind):
    path = write_dicom(tmp_path / "a.dcm", RGB, PhotometricInterpretation=kind)
    assert sentence(path) == "has colours that are neither RGB nor YBR; save it as RGB."


def test_monochrome1_is_turned_so_that_larger_is_brighter(tmp_path):
    attributes = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1000}
    attributes |= {"WindowCenter": 101, "WindowWidth": 201}
    array = DEEP >> 4
    straight = open_image(write_dicom(tmp_path / "a.dcm", array, **attributes))
    turned = open_image(write_dicom(tmp_path / "b.dcm", array, PhotometricInterpretation="MONOCHROME1", **attributes))
    assert straight.value_range == turned.value_range == (-1000, 3095)
    np.testing.assert_array_equal(turned.read(), 3095 - 1000 - straight.read())
    assert straight.window == (0.5, 200.5) and turned.window == (2095 - 200.5, 2095 - 0.5)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, (-160, 239)),
        ({"WindowCenter": [40, 600], "WindowWidth": [400, 2000]}, (-160, 239)),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, (-160, 240)),
        ({"WindowCenter": 40, "WindowWidth": 0}, None),
        ({"WindowCenter": 40}, None),
        ({}, None),
    ],
)
def test_the_window_follows_from_center_and_width(tmp_path, attributes, expected):
    assert open_image(write_dicom(tmp_path / "a.dcm", DEEP, **attributes)).window == expected


@pytest.mark.parametrize(("center", "window"), [("512", (62, 961)), ("512\\40", (62, 961)), ("", None)])
def test_a_window_may_be_stored_as_text(tmp_path, center, window):
    path = write_dicom(tmp_path / "a.dcm", DEEP)
    data = pydicom.dcmread(path)
    data["WindowCenter"] = DataElement("WindowCenter", "LO", center)
    data["WindowWidth"] = DataElement("WindowWidth", "LO", "900")
    data.save_as(path)
    assert open_image(path).window == window


def measures(spacing):
    """A functional group with a pixel spacing."""
    pixel, group = Dataset(), Dataset()
    pixel.PixelSpacing = spacing
    group.PixelMeasuresSequence = [pixel]
    return [group]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PixelSpacing": [0.5, 0.7], "ImagerPixelSpacing": [9, 9]}, (0.5, 0.7)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"SharedFunctionalGroupsSequence": measures([3, 4])}, (3, 4)),
        ({"PixelSpacing": [0, 1]}, None),
        ({}, None),
    ],
)
def test_the_spacing_is_rows_before_columns(tmp_path, attributes, expected):
    assert open_image(write_dicom(tmp_path / "a.dcm", GREY, **attributes)).spacing == expected


def test_ybr_becomes_rgb(tmp_path):
    flat = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    ybr = cv2.cvtColor(flat, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    picture = open_image(write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(picture.read().astype(int), flat, atol=2)


def test_a_dicom_palette_is_expanded(tmp_path):
    colours = RNG.integers(0, 256, (3, 256), np.uint8)
    attributes = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), colours, strict=True):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        attributes[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    picture = open_image(write_dicom(tmp_path / "a.dcm", GREY, **attributes))
    np.testing.assert_array_equal(picture.read(), colours.T[GREY])
    assert picture.value_range == (0, 255)


def test_frames_are_slices(tmp_path):
    array = RNG.integers(0, 4096, (5, 8, 9), np.uint16)
    picture = open_image(write_dicom(tmp_path / "a.dcm", array, frames=True))
    assert (picture.slices, picture.height, picture.width) == (5, 8, 9)
    np.testing.assert_array_equal([picture.read(i) for i in range(5)], array)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("counted", [None, "", 0, 1, 3])
def test_more_frames_than_are_counted_are_refused(tmp_path, syntax, counted):
    array = RNG.integers(0, 4096, (5, 8, 9), np.uint16)
    path = write_dicom(tmp_path / "a.dcm", array, frames=True, syntax=syntax)
    data = pydicom.dcmread(path)
    data.NumberOfFrames = counted
    data.save_as(path)
    assert sentence(path) == f"holds 5 frames, but counts {counted or 1}; correct its NumberOfFrames."


@pytest.mark.parametrize("size", [(41, 47), (3, 3), (1, 1), (8, 9)])
def test_frames_of_one_bit_are_read_wherever_they_begin(tmp_path, size):
    array = RNG.integers(0, 2, (5, *size), np.uint8)
    bits = {"BitsAllocated": 1, "BitsStored": 1, "PixelData": pack_bits(array)}
    picture = open_image(write_dicom(tmp_path / "a.dcm", array, frames=True, **bits))
    assert (picture.slices, picture.dtype, picture.value_range) == (5, np.uint8, (0, 1))
    np.testing.assert_array_equal([picture.read(index) for index in range(5)], array)


def test_every_frame_has_its_own_rescaling(tmp_path):
    groups = []
    for intercept in (0, -10):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, intercept
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    array = RNG.integers(0, 256, (2, 4, 5), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", array, frames=True, PerFrameFunctionalGroupsSequence=groups)
    picture = open_image(path)
    assert (picture.dtype, picture.value_range) == (np.int16, (-10, 255))
    np.testing.assert_array_equal(picture.read(1), array[1].astype(int) - 10)


def test_a_compressed_dicom_is_decoded_where_there_is_a_decoder(tmp_path):
    picture = open_image(write_dicom(tmp_path / "a.dcm", DEEP, syntax=RLELossless))
    np.testing.assert_array_equal(picture.read(), DEEP)


def test_a_dicom_without_a_decoder_says_how_it_is_compressed(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", DEEP, syntax=RLELossless)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.save_as(path)
    assert "is compressed as JPEG-LS Lossless Image Compression; decompress it" in sentence(path)
    data.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    data.save_as(path)
    assert "is compressed in a way unknown here" in sentence(path)


def test_a_dicom_needs_no_suffix(tmp_path):
    np.testing.assert_array_equal(open_image(write_dicom(tmp_path / "1.2.840", DEEP)).read(), DEEP)


def test_a_dicom_without_a_suffix_is_found_and_a_directory_of_them_is_no_image(tmp_path):
    found = {"1.2.840": True, "IM0001": True, "DICOMDIR": False}
    for name in found:
        write_dicom(tmp_path / name, DEEP)
    (tmp_path / "notes").write_text("nothing to see")
    assert {path.name: is_image(path) for path in tmp_path.iterdir()} == {**found, "notes": False}


def test_a_dicom_without_pixels_says_so(tmp_path):
    assert sentence(write_dicom(tmp_path / "a.dcm", GREY, PixelData=None)) == "has no pixel data."


@pytest.mark.parametrize("missing", ["Rows", "BitsStored", "PhotometricInterpretation", "SamplesPerPixel"])
def test_a_dicom_without_what_pixels_need_is_an_error(tmp_path, missing):
    path = write_dicom(tmp_path / "a.dcm", GREY)
    data = pydicom.dcmread(path)
    delattr(data, missing)
    data.save_as(path)
    assert "cannot be decoded" in sentence(path)


def test_the_patient_is_known_but_not_shown(tmp_path):
    picture = open_image(write_dicom(tmp_path / "a.dcm", GREY))
    assert picture.patient == "DOE-1970"
    assert "DOE" not in repr(picture) and "Doe" not in repr(picture)


def test_values_that_break_the_standard_are_neither_warned_of_nor_logged(tmp_path, caplog):
    """An id of more than 64 characters, and a window that is no number."""
    path = write_dicom(tmp_path / "a.dcm", GREY, WindowCenter="1234", WindowWidth="56")
    data = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.PatientID = "Jane Doe " * 9
        data.save_as(path)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")
        picture = pool.submit(open_image, path).result()
    assert picture.patient == ("Jane Doe " * 9).strip()
    assert not caught and not caplog.records
    path.write_bytes(path.read_bytes().replace(b"1234", b"Jane"))
    assert "Jane" not in sentence(path).replace(str(path), "")


def test_without_the_medical_libraries_the_error_names_the_extra(tmp_path, monkeypatch):
    dicom, nifti = write_dicom(tmp_path / "a.dcm", GREY), save(tmp_path / "a.nii", VOLUME)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert sentence(dicom) == 'DICOM needs `pip install "segdrop[medical]"`.'
    assert sentence(nifti) == 'NIfTI needs `pip install "segdrop[medical]"`.'


# NIfTI


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_nifti_volume_is_cut_along_the_slice_axis(tmp_path, axis, suffix):
    picture = open_image(save(tmp_path / f"a.{suffix}", VOLUME), slice_axis=axis)
    expected = np.moveaxis(VOLUME, axis, 0)
    assert (picture.slices, picture.height, picture.width) == expected.shape
    assert (picture.dtype, picture.value_range) == (np.int16, (-32768, 32767))
    np.testing.assert_array_equal([picture.read(i) for i in range(picture.slices)], expected)
    zooms = [zoom for i, zoom in enumerate((0.7, 0.8, 2.5)) if i != axis]
    np.testing.assert_allclose(picture.spacing, zooms, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected", "value_range"),
    [
        (np.uint8, np.uint8, (0, 255)),
        (np.int8, np.int16, (-128, 127)),
        (np.uint16, np.uint16, (0, 65535)),
        (np.int32, np.float32, None),
        (np.float64, np.float32, None),
    ],
)
def test_nifti_types_become_the_smallest_that_holds_them(tmp_path, dtype, expected, value_range):
    array = RNG.integers(0, 100, (4, 5, 6)).astype(dtype)
    picture = open_image(save(tmp_path / "a.nii", array, dtype=dtype))
    assert (picture.dtype, picture.value_range) == (expected, value_range)
    np.testing.assert_array_equal(picture.read(3), array[..., 3])


def test_the_header_s_scaling_is_applied(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "a.nii.gz")
    stored = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    picture = open_image(tmp_path / "a.nii.gz")
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture.read(2), stored[..., 2], rtol=1e-6)


def test_a_flat_nifti_is_one_image(tmp_path):
    picture = open_image(save(tmp_path / "a.nii", VOLUME[..., 0]))
    assert (picture.slices, picture.height, picture.width) == (None, 7, 8)
    np.testing.assert_array_equal(picture.read(), VOLUME[..., 0])


def test_a_trailing_axis_of_one_is_no_dimension(tmp_path):
    picture = open_image(save(tmp_path / "a.nii", VOLUME[..., None]))
    assert picture.slices == 9
    np.testing.assert_array_equal(picture.read(8), VOLUME[..., 8])


def test_a_series_of_volumes_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", np.stack([VOLUME] * 3, axis=-1))
    assert (
        sentence(path)
        == "has 4 dimensions (7, 8, 9, 3); save one volume as a file of its own, or train with `channels`."
    )


def test_spacing_in_other_units_becomes_millimetres(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.diag([500, 600, 700, 1]))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(open_image(tmp_path / "a.nii").spacing, (0.5, 0.6), rtol=1e-6)


@pytest.mark.parametrize("units", [7, 255])
def test_a_spacing_in_a_unit_that_nobody_knows_is_taken_as_millimetres(tmp_path, units):
    image = nibabel.Nifti1Image(VOLUME, np.diag([0.7, 0.8, 2.5, 1]))
    image.header["xyzt_units"] = units
    image.to_filename(tmp_path / "a.nii")
    picture = open_image(tmp_path / "a.nii")
    np.testing.assert_allclose(picture.spacing, (0.7, 0.8), rtol=1e-6)
    write_volume_mask(picture, np.ones((9, 7, 8), np.uint8), tmp_path / "m.nii")
    assert nibabel.load(tmp_path / "m.nii").shape == (7, 8, 9)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("form", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("shape", [(7, 8, 9), (7, 8, 9, 1), (7, 8)])
def test_a_written_mask_lies_on_its_image(tmp_path, axis, form, shape):
    affine = np.array([[0, -0.8, 0, 5], [0.7, 0, 0.1, -3], [0, 0, 2.5, 1], [0, 0, 0, 1]])
    source = form(RNG.integers(0, 9, shape).astype(np.int16), affine)
    source.header.set_qform(np.diag([1, 1, 2, 1]), 1)
    source.header["descrip"] = source.header["aux_file"] = source.header["intent_name"] = b"Jane Doe"
    source.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    source.to_filename(tmp_path / "a.nii.gz")
    picture = open_image(tmp_path / "a.nii.gz", slice_axis=axis)
    masks = np.stack([(picture.read(i) > 4).astype(np.uint8) for i in range(picture.slices or 1)])
    write_volume_mask(picture, masks, tmp_path / "m.nii")
    source, mask = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "m.nii")
    assert (type(mask), mask.shape, mask.get_data_dtype()) == (form, shape, np.uint8)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(source.dataobj) > 4)
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert mask.header.get_zooms() == source.header.get_zooms()
    assert b"Jane" not in (tmp_path / "m.nii").read_bytes()
    assert all(mask.header[name].item() == b"" for name in ("descrip", "aux_file", "intent_name"))


def test_a_mask_of_another_shape_or_for_another_format_is_refused(tmp_path):
    picture = open_image(save(tmp_path / "a.nii", VOLUME))
    with pytest.raises(InputError, match=r"`masks` must have the shape \(9, 7, 8\) of .*a\.nii, got \(7, 8, 9\)"):
        write_volume_mask(picture, np.zeros(VOLUME.shape, np.uint8), tmp_path / "m.nii")
    with pytest.raises(InputError, match=r"a\.png is not a NIfTI file"):
        write_volume_mask(open_image(save(tmp_path / "a.png", GREY)), GREY[None], tmp_path / "m.nii")


# TIFFs past the limit


@pytest.fixture
def small_limit(monkeypatch):
    """A limit that an image of 200 x 300 is past, so that no large file is needed."""
    limit(monkeypatch, MAX_PIXELS=20_000)


BIG = RNG.integers(0, 65536, (200, 300), np.uint16)
BIG_RGB = np.stack([BIG >> 8, BIG & 255, BIG >> 4 & 255], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (32, 48)},
        {"tile": (32, 48), "compression": "zlib"},
        {"tile": (64, 64), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
        {"rowsperstrip": 200},
        {"tile": (32, 48), "bigtiff": True},
        {"tile": (32, 48), "byteorder": ">"},
        {"rowsperstrip": 16, "byteorder": ">"},
    ],
)
@pytest.mark.parametrize("array", [BIG, BIG_RGB, BIG.astype(np.float32) / 7, np.dstack([BIG_RGB, BIG_RGB[..., :1]])])
def test_a_huge_tiff_is_read_in_bands(tmp_path, small_limit, array, layout):
    if array.dtype == np.float32:
        layout = {name: value for name, value in layout.items() if name != "predictor"}
    colour = {"photometric": "rgb"} if array.ndim == 3 else {"photometric": "minisblack"}
    extra = {"extrasamples": ["unassalpha"]} if array.shape[2:] == (4,) else {}
    picture = open_image(save(tmp_path / "a.tif", array, **layout, **colour, **extra), huge=True)
    expected = array[..., :3] if array.ndim == 3 else array
    assert (picture.height, picture.width, picture.slices, picture.dtype) == (200, 300, None, array.dtype)
    assert picture.channels == (3 if array.ndim == 3 else 1)
    for top, bottom in ((0, 10), (10, 75), (75, 76), (50, 190), (190, 200), (0, 200), (190, 999)):
        np.testing.assert_array_equal(picture.rows(top, bottom), expected[top:bottom])
    np.testing.assert_array_equal(picture.read(), expected)


@pytest.mark.parametrize("compression", [tifffile.COMPRESSION.LZW, tifffile.COMPRESSION.PACKBITS])
@pytest.mark.parametrize(
    "array", [BIG, BIG_RGB, BIG.astype(np.float32), BIG.astype(np.int16), BIG.astype(np.int8), BIG.astype(np.int32)]
)
def test_strips_that_tifffile_cannot_decode_are_decoded_all_the_same(
    tmp_path, small_limit, monkeypatch, array, compression
):
    path = tmp_path / "a.tif"
    options = [cv2.IMWRITE_TIFF_COMPRESSION, int(compression), 278, 16]  # rows of a strip
    assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1], options)
    picture = open_image(path, huge=True)
    for top in range(0, 200, 30):
        np.testing.assert_array_equal(picture.rows(top, top + 30), array[top : top + 30])
    limit(monkeypatch, MAX_PIXELS=10**6)
    np.testing.assert_array_equal(open_image(path).read(), array)


@pytest.fixture
def small_strips(monkeypatch):
    """JPEG strips of 16 rows."""
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 16 * 3 * 300)


def test_jpeg_strips_become_rgb(tmp_path, small_limit, small_strips):
    smooth = cv2.resize(BIG_RGB[:4, :4], (300, 200), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    picture = open_image(tmp_path / "a.tif", huge=True)
    difference = np.abs(picture.rows(30, 120).astype(int) - smooth[30:120])
    assert difference.mean() < 4


def test_jpeg_strips_are_decoded_without_a_word_on_stderr(tmp_path, small_limit, small_strips, capfd):
    Image.fromarray(BIG_RGB).save(tmp_path / "a.tif", compression="jpeg")
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    before = log.setLogLevel(4)  # information
    try:
        open_image(tmp_path / "a.tif", huge=True).read()
    finally:
        log.setLogLevel(before)
    assert "tag 317" not in capfd.readouterr().err


def test_bands_from_top_to_bottom_decode_every_tile_once(tmp_path, small_limit, monkeypatch):
    path = save(tmp_path / "a.tif", BIG, tile=(32, 48), compression="zlib")
    decoded = []
    make = tiff_pieces.segment_decoder

    def counting(page):
        decode = make(page)
        return lambda content, shape: (decoded.append(content), decode(content, shape))[1]

    monkeypatch.setattr("segdrop.images.tiff_pieces.segment_decoder", counting)
    picture = open_image(path, huge=True)
    for top in range(0, 200, 11):
        picture.rows(top, top + 11)
    assert len(decoded) == len(set(decoded)) == 7 * 7


def test_a_tile_that_was_never_written_is_empty(tmp_path, small_limit):
    array = np.where(np.arange(300) < 100, BIG, 0).astype(np.uint16)

    def tiles():
        for top in range(0, 200, 32):
            for left in range(0, 300, 48):
                tile = np.zeros((32, 48), np.uint16)
                part = array[top : top + 32, left : left + 48]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile if tile.any() else None

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(tiles(), shape=(200, 300), dtype=np.uint16, tile=(32, 48), compression="zlib")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif", huge=True).read(), array)


def test_of_a_pyramid_the_full_size_is_read(tmp_path, small_limit):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(BIG, tile=(32, 48))
        file.write(BIG[::2, ::2], tile=(32, 48), subfiletype=1)
        file.write(BIG[::4, ::4], tile=(32, 48))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif", huge=True).rows(40, 90), BIG[40:90])


def test_a_huge_tiff_is_refused_unless_asked_for(tmp_path, small_limit):
    assert "has 300 x 200 pixels" in sentence(save(tmp_path / "a.tif", BIG))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (
            BIG,
            {"compression": "zlib", "rowsperstrip": 200},
            "is compressed in pieces of 300 x 200 pixels; save it as a",
        ),
        (
            np.dstack([BIG, BIG, BIG, BIG, BIG]),
            {"planarconfig": "contig", "photometric": "minisblack"},
            "cannot be decoded as colours: it has 5 bands of uint16, MINISBLACK; save it as grey, RGB or RGBA, or "
            "train with `channels`.",
        ),
        (BIG.astype(np.complex64), {}, "holds complex64 values of 64 bits"),
        (np.stack([BIG, BIG]), {"photometric": "minisblack", "tile": (32, 48)}, "has 2 pages of 300 x 200 pixels"),
        (np.stack([BIG, BIG]), {"photometric": "minisblack", "truncate": True}, "has 2 pages of 300 x 200 pixels"),
    ],
)
def test_what_cannot_be_read_in_bands_is_refused(tmp_path, small_limit, array, options, message):
    assert message in sentence(save(tmp_path / "a.tif", array, **options), huge=True)


def test_a_huge_image_of_another_format_is_to_be_saved_as_tiles(tmp_path, small_limit):
    assert sentence(save(tmp_path / "a.png", BIG), huge=True) == "has 300 x 200 pixels; save it as a tiled TIFF."


def test_a_broken_tile_is_an_error(tmp_path, small_limit):
    path = save(tmp_path / "a.tif", BIG, tile=(32, 48), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[offset : offset + 50] = b"x" * 50
    path.write_bytes(content)
    assert "has a piece that cannot be decoded" in sentence(path, huge=True)


@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 48)}])
def test_a_truncated_huge_tiff_is_an_error(tmp_path, small_limit, layout):
    path = save(tmp_path / "a.tif", BIG, **layout)
    assert "cannot be decoded" in sentence(cut(path, 0.9), huge=True)


@pytest.mark.parametrize("array", [GREY, DEEP_RGB, FLOAT])
def test_with_huge_an_ordinary_image_is_read_as_ever(tmp_path, array):
    np.testing.assert_array_equal(open_image(save(tmp_path / "a.tif", array), huge=True).read(), array)
