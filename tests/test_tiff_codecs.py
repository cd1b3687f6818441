"""Compressed TIFFs: the values that were written, whichever decoder there is; or one sentence, and never black."""

import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from segdrop import InputError
from segdrop.images import picture, tiff, tiff_pieces
from segdrop.images.opening import open_image

RNG = np.random.default_rng(0)
# Smooth, with some noise; of odd sizes, so that the border cuts pieces, and that some hold odd numbers of bytes.
RAMP = np.add.outer(np.arange(65), 2 * np.arange(71)) + RNG.integers(0, 5, (65, 71))
GREY = RAMP.astype(np.uint8)
DEEP = (RAMP * 300).astype(np.uint16)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
FIVE = np.stack([DEEP, DEEP + 1, DEEP + 2, DEEP + 3, DEEP + 4], axis=-1)
TILES = {"tile": (32, 16)}
LAYOUTS = [TILES, {"rowsperstrip": 7}, {"rowsperstrip": 21, "byteorder": ">"}]
USUAL = [("lzw", 1), ("lzw", 2), ("packbits", 1), ("packbits", 2), ("zlib", 1), ("zlib", 2), ("lzma", 1), ("lzma", 2)]


@pytest.fixture(params=["whole", "in bands"])
def huge(request, monkeypatch):
    """Whether the images are past the limit from which on they are read in bands."""
    if request.param == "in bands":
        for module in (picture, tiff, tiff_pieces):
            monkeypatch.setattr(module, "MAX_PIXELS", 65 * 71 - 1)
    return request.param == "in bands"


@pytest.fixture
def without_imagecodecs(monkeypatch):
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {})


def save(path, array, **options):
    """Grey, RGB or bands side by side."""
    if array.ndim == 3:
        kind = "rgb" if array.shape[2] == 3 else "minisblack"
        options = {"photometric": kind, "planarconfig": "contig", **options}
    tifffile.imwrite(path, array, **options)
    return path


def tiff_of(path, pieces, **tags):
    """A little-endian TIFF of grey strips or tiles of 8 bits, as many as there are `pieces`; by names of tags."""
    codes = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "fillorder": 266}
    codes |= {"samples": 277, "rows": 278, "predictor": 317, "tilewidth": 322, "tileheight": 323, "colours": 320}
    starts = (8 + np.cumsum([0, *map(len, pieces)])).tolist()
    values = {258: [8], 259: [1], 262: [1], 277: [1]} | {codes[name]: np.ravel(given) for name, given in tags.items()}
    values |= {324: starts[:-1], 325: [*map(len, pieces)]} if "tilewidth" in tags else {273: starts[:-1]}
    values |= {} if "tilewidth" in tags else {279: [*map(len, pieces)]}
    table, behind = b"", b""
    outside = starts[-1] + 2 + 12 * len(values) + 4
    for tag, numbers in sorted(values.items()):
        kind, form = (3, "H") if tag == 320 else (4, "I")
        packed = struct.pack(f"<{len(numbers)}{form}", *map(int, numbers))
        place = packed if len(packed) <= 4 else struct.pack("<I", outside + len(behind))
        behind += packed if len(packed) > 4 else b""
        table += struct.pack("<HHI", tag, kind, len(numbers)) + place
    head = b"II*\0" + struct.pack("<I", starts[-1])
    path.write_bytes(b"".join([head, *pieces, struct.pack("<H", len(values)), table, bytes(4), behind]))
    return path


def piece_of(path):
    """The first encoded piece of a TIFF."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return path.read_bytes()[page.dataoffsets[0] :][: page.databytecounts[0]]


def sentence(path, **options):
    with pytest.raises(InputError) as caught:
        open_image(path, **options).read()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def assert_holds(path, array, **options):
    opened = open_image(path, **options)
    assert opened.dtype == array.dtype
    np.testing.assert_array_equal(opened.read(), array)
    np.testing.assert_array_equal(opened.rows(9, 40), array[9:40])


# What is read


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("array", [GREY, DEEP, RGB, DEEP.astype(np.int16), DEEP.astype(np.float32) / 7])
@pytest.mark.parametrize(("compression", "predictor"), [("none", 1), ("zstd", 1), ("zstd", 2), *USUAL])
def test_bytes_become_the_values_that_were_written(tmp_path, array, layout, compression, predictor, huge):
    path = save(tmp_path / "a.tif", array, compression=compression, predictor=predictor > 1, **layout)
    assert_holds(path, array, huge=huge)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("array", [GREY, DEEP, RGB, DEEP.astype(np.float32) / 7])
@pytest.mark.parametrize(("compression", "predictor"), USUAL)
def test_the_usual_compressions_need_no_further_package(
    tmp_path, array, layout, compression, predictor, huge, without_imagecodecs
):
    path = save(tmp_path / "a.tif", array, compression=compression, predictor=predictor > 1, **layout)
    assert_holds(path, array, huge=huge)


@pytest.mark.parametrize("layout", [TILES, {"rowsperstrip": 16}])
@pytest.mark.parametrize(
    ("compression", "options", "arrays"),
    [
        ("jpeg2000", {"reversible": True}, [GREY, DEEP, RGB]),
        (33003, {"reversible": True}, [GREY, RGB]),
        (33005, {"reversible": True}, [GREY, RGB]),
        ("jpegxl", {"lossless": True}, [GREY, DEEP, RGB]),
        ("webp", {"lossless": True}, [RGB]),
        ("lerc", {}, [GREY, DEEP, RGB]),
    ],
)
def test_images_within_become_the_values_that_were_written(tmp_path, compression, options, arrays, layout, huge):
    for array in arrays:
        path = save(tmp_path / "a.tif", array, compression=compression, compressionargs=options, **layout)
        assert_holds(path, array, huge=huge)


def test_a_tiled_jpeg_2000_of_colours_keeps_them(tmp_path):
    ramp = np.mgrid[:256, :256].sum(axis=0) // 2
    array = np.stack([ramp, ramp.T[::-1], 255 - ramp], axis=-1).astype(np.uint8)
    assert_holds(save(tmp_path / "a.tif", array, compression="jpeg2000", tile=(64, 64)), array)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "jpeg2000", "jpegxl"])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_channels_are_read_whatever_compresses_them(tmp_path, compression, planarconfig, huge):
    array = FIVE if planarconfig == "contig" and compression in ("lzw", "zstd") else FIVE[..., :3]
    stored = array if planarconfig == "contig" else np.moveaxis(array, -1, 0)
    options = {"photometric": "minisblack", "planarconfig": planarconfig, "compression": compression, **TILES}
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    assert_holds(tmp_path / "a.tif", array, huge=huge, channels=array.shape[2])


@pytest.mark.parametrize("compression", [33003, 34712])
@pytest.mark.parametrize("transformed", [False, True])
def test_jpeg_2000_in_ycbcr_becomes_rgb(tmp_path, compression, transformed):
    """Where the codestream itself does not make RGB of it; Aperio's 33003 is YCbCr, others say so in a tag."""
    colours = np.repeat(np.repeat(RNG.integers(0, 256, (4, 4, 3), np.uint8), 16, axis=0), 16, axis=1)
    stored = colours if transformed else cv2.cvtColor(colours, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    content = imagecodecs.jpeg2k_encode(stored, reversible=True, mct=transformed, codecformat="j2k")
    photometric = 2 if compression == 33003 else 6
    tags = {"width": 64, "height": 64, "rows": 64, "bits": [8] * 3, "samples": 3, "photometric": photometric}
    path = tiff_of(tmp_path / "a.tif", [content], compression=compression, **tags)
    np.testing.assert_allclose(open_image(path).read().astype(int), colours, atol=0 if transformed else 2)


@pytest.mark.parametrize("stored", ["RGB", "YCBCR"])
@pytest.mark.parametrize("layout", [TILES, {"rowsperstrip": 16}])
def test_jpeg_pieces_have_the_colours_that_the_page_tells(tmp_path, stored, layout, huge, without_imagecodecs):
    smooth = cv2.resize(RNG.integers(0, 256, (3, 3, 3), np.uint8), (71, 65), interpolation=cv2.INTER_LINEAR)
    options = {"compression": "jpeg", "compressionargs": {"level": 98, "outcolorspace": stored}}
    path = save(tmp_path / "a.tif", smooth, **options, **layout)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric.name == stored
    assert np.abs(open_image(path, huge=huge).read().astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 9, 10, 12, 15])
def test_few_bits_are_spread_over_all_of_8_or_16(tmp_path, bits):
    values = RNG.integers(0, 2**bits, (5, 7), np.uint16)
    lines = (values[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(5, -1)
    content = np.packbits(lines, axis=1).tobytes()
    tags = {"width": 7, "height": 5, "rows": 5, "bits": bits}
    expected = values * 255 // (2**bits - 1) if bits < 8 else values << (16 - bits)
    highest = 255 if bits < 8 else 65535
    for photometric in (1, 0):
        opened = open_image(tiff_of(tmp_path / "a.tif", [content], photometric=photometric, **tags))
        np.testing.assert_array_equal(opened.read(), expected if photometric else highest - expected)
        assert opened.value_range == (0, highest)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_a_palette_is_expanded_whatever_compresses_it(tmp_path, bits, compression):
    palette = RNG.integers(0, 256, (3, 2**bits)).astype(np.uint16) * 257
    indices = GREY & (2**bits - 1)
    if bits == 8:
        tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=palette, compression=compression)
    else:
        packed = np.packbits(np.unpackbits(indices[..., None], axis=-1)[..., 4:].reshape(65, -1), axis=1)
        tags = {"width": 71, "height": 65, "rows": 65, "bits": 4, "photometric": 3, "colours": palette}
        tiff_of(tmp_path / "a.tif", [packed.tobytes()], **tags)
    expected = np.moveaxis(palette[:, indices] // 257, 0, -1)
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(), expected)


def test_four_inks_become_rgb(tmp_path):
    inks = Image.fromarray(RGB).convert("CMYK")
    inks.save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(), np.array(inks.convert("RGB")))


def test_bytes_with_their_bits_turned_about_are_turned_back(tmp_path):
    turned = np.packbits(np.unpackbits(GREY[..., None], axis=-1)[..., ::-1], axis=-1)
    path = tiff_of(tmp_path / "a.tif", [turned.tobytes()], width=71, height=65, rows=65, fillorder=2)
    assert_holds(path, GREY)


def test_a_fax_is_black_and_white(tmp_path):
    page = Image.fromarray(GREY > 128)
    page.save(tmp_path / "a.tif", compression="group4")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(), np.where(GREY > 128, 255, 0))


# What is not read


@pytest.mark.parametrize(
    ("compression", "array"), [("jpeg2000", RGB), ("jpeg2000", DEEP), ("webp", RGB), ("jpegxl", GREY), ("zstd", GREY)]
)
def test_what_needs_a_further_package_names_it(tmp_path, compression, array, huge, without_imagecodecs):
    path = save(tmp_path / "a.tif", array, compression=compression, **TILES)
    advice = '`pip install "segdrop[tiff]"`, or save it compressed by deflate.'
    assert sentence(path, huge=huge) == f"is compressed as {compression.upper()}; {advice}"


@pytest.mark.parametrize(
    ("number", "called"), [(2, "CCITTRLE"), (34934, "JPEGXR"), (6, "OJPEG"), (12345, "number 12345")]
)
def test_a_compression_that_no_decoder_is_sure_of_is_refused(tmp_path, number, called):
    path = tiff_of(tmp_path / "a.tif", [bytes(65 * 71)], width=71, height=65, rows=65, compression=number)
    message = f"is compressed in a way that is not read ({called}); save it compressed by deflate."
    assert sentence(path) == message


def damaged(path, change):
    """The same image with its last piece changed, as a file that is whole otherwise."""
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
        tag = file.pages[0].tags["TileByteCounts"]
        place, form = (
            tag.valueoffset + (tag.count - 1) * tag.valuebytecount // tag.count,
            f"<{'H' if tag.dtype == 3 else 'I'}",
        )
    content = bytearray(path.read_bytes())
    piece = change(bytes(content[offset : offset + size]))
    content[offset : offset + len(piece)] = piece
    struct.pack_into(form, content, place, len(piece))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda piece: piece[: len(piece) // 2],
        lambda piece: piece[:1],
        lambda piece: bytes(len(piece)),
    ],
    ids=["half of it", "one byte of it", "zeros"],
)
@pytest.mark.parametrize(
    ("compression", "array"),
    [
        *((name, array) for name in ("lzw", "packbits", "zlib", "lzma", "zstd") for array in (GREY, DEEP)),
        *((name, RGB) for name in ("jpeg", "jpeg2000", "webp", "jpegxl")),
    ],
)
def test_a_piece_that_ends_early_is_an_error_and_not_black(tmp_path, compression, array, change, capfd):
    noise = RNG.integers(0, 2 ** (8 * array.itemsize), (64, 64, *array.shape[2:])).astype(array.dtype)
    path = damaged(save(tmp_path / "a.tif", noise, compression=compression, tile=(64, 64)), change)
    assert "has a piece that cannot be decoded" in sentence(path)
    assert capfd.readouterr().err == ""


def test_lines_of_bits_that_are_too_few_are_an_error(tmp_path):
    tags = {"width": 64, "height": 8, "rows": 8, "bits": 1, "compression": 8}
    whole = tiff_of(tmp_path / "a.tif", [zlib.compress(b"\xff" * 64)], **tags)
    assert open_image(whole).read().min() == 255
    assert "has a piece" in sentence(tiff_of(tmp_path / "a.tif", [zlib.compress(b"\xff" * 32)], **tags))


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_jpeg_piece_that_goes_on_with_zeros_is_an_error(tmp_path, share):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / "a.tif", noise, compression="jpeg", tile=(64, 64))
    kept = lambda piece: int(share * len(piece))  # noqa: E731
    path = damaged(path, lambda piece: piece[: kept(piece)] + bytes(len(piece) - kept(piece)))
    assert "has a piece that cannot be decoded" in sentence(path)


@pytest.mark.parametrize("compression", ["lzw", "packbits"])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_opencv_notices_what_is_missing(tmp_path, compression, share, without_imagecodecs):
    noise = RNG.integers(0, 256, (64, 64), np.uint8)
    path = save(tmp_path / "a.tif", noise, compression=compression, tile=(64, 64))
    assert "has a piece that cannot be decoded" in sentence(
        damaged(path, lambda piece: piece[: int(share * len(piece))])
    )


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_fax_that_ends_early_is_an_error(tmp_path, share):
    Image.fromarray(GREY > 128).save(tmp_path / "a.tif", compression="group4")
    content = piece_of(tmp_path / "a.tif")
    tags = {"width": 71, "height": 65, "rows": 65, "bits": 1, "compression": 4}
    whole = open_image(tiff_of(tmp_path / "b.tif", [content], **tags)).read()
    np.testing.assert_array_equal(whole, np.where(GREY > 128, 255, 0))
    path = tiff_of(tmp_path / "c.tif", [content[: int(share * len(content))]], **tags)
    assert "has a piece that cannot be decoded" in sentence(path)


# Pieces that are not there


@pytest.mark.parametrize("layout", [{"rows": 65}, {"rows": 16}, {"tilewidth": 16, "tileheight": 32}])
@pytest.mark.parametrize("compression", [1, 5, 8])
def test_a_page_that_was_never_written_is_an_error(tmp_path, layout, compression):
    count = 15 if "tilewidth" in layout else -(-65 // layout["rows"])
    path = tiff_of(tmp_path / "a.tif", [b""] * count, width=71, height=65, compression=compression, **layout)
    assert "cannot be decoded" in sentence(path)
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags["TileOffsets" if "tilewidth" in layout else "StripOffsets"]]
    content = bytearray(path.read_bytes())
    for tag in tags:
        content[tag.valueoffset : tag.valueoffset + tag.valuebytecount] = bytes(tag.valuebytecount)
    path.write_bytes(content)
    assert sentence(path) == "has no pixels: none of its pieces was ever written."


@pytest.mark.parametrize("side", ["tilewidth", "tileheight"])
def test_tiles_without_a_side_are_an_error(tmp_path, side):
    sides = {"tilewidth": 64, "tileheight": 64} | {side: 0}
    path = tiff_of(tmp_path / "a.tif", [bytes(64)], width=64, height=64, **sides)
    assert "cannot be decoded" in sentence(path)


@pytest.mark.parametrize("size", [{"width": 0, "height": 4}, {"width": 4, "height": 0}])
def test_a_tiff_without_pixels_is_an_error(tmp_path, size):
    assert "cannot be decoded" in sentence(tiff_of(tmp_path / "a.tif", [bytes(64)], rows=4, **size))


def test_a_jpeg_2000_bomb_is_not_decoded(tmp_path):
    content = imagecodecs.jpeg2k_encode(np.zeros((4000, 4000), np.uint8))
    path = tiff_of(tmp_path / "a.tif", [content], width=64, height=64, rows=64, compression=34712)
    assert "has a piece that cannot be decoded" in sentence(path)
