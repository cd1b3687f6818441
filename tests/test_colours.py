"""PNG and JPEG of every kind: grey or RGB of the depth that is stored, whatever encodes it."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segdrop.images.opening import open_image

RNG = np.random.default_rng(0)
PALETTE = RNG.integers(0, 256, (16, 3), np.uint8)
GREY, COLOURS, INDEXED, GREY_ALPHA, COLOURS_ALPHA = 0, 2, 3, 4, 6  # as PNG numbers them
BANDS = {GREY: 1, COLOURS: 3, INDEXED: 1, GREY_ALPHA: 2, COLOURS_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), COLOURS: (8, 16), INDEXED: (1, 2, 4), GREY_ALPHA: (8, 16), COLOURS_ALPHA: (8, 16)}
# First row and column, and steps, of the passes of an interlaced file (Adam7).
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def write_png(path, values, bits, kind, interlaced):
    """Write integers (H, W, bands) of so many bits."""
    lines = b""
    for row, column, down, across in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        for line in values[row::down, column::across]:
            packed = np.packbits((line.reshape(-1, 1) >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8))
            lines += b"\0" * bool(line.size) + packed.tobytes()
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    if kind == INDEXED:
        chunks[1:1] = [(b"PLTE", PALETTE[: 2**bits].tobytes()), (b"tRNS", bytes([0, 9]))]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(kind, bits) for kind, depths in DEPTHS.items() for bits in depths])
def test_a_png_of_any_kind_keeps_its_values_and_drops_its_alpha(tmp_path, kind, bits, interlaced):
    values = RNG.integers(0, 2**bits, (13, 21, BANDS[kind]))
    expected = {GREY_ALPHA: values[..., 0], COLOURS: values, COLOURS_ALPHA: values[..., :3]}.get(kind)
    if kind == GREY:
        expected = values[..., 0] * (255 // (2**bits - 1) if bits < 8 else 1)
    elif kind == INDEXED:
        expected = PALETTE[values[..., 0]]
    opened = open_image(write_png(tmp_path / "a.png", values, bits, kind, interlaced))
    assert opened.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(opened.read(), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "channels"), [(GREY, 1), (GREY_ALPHA, 2), (COLOURS, 3), (COLOURS_ALPHA, 4)])
def test_all_channels_of_a_png_are_read_where_they_are_asked_for(tmp_path, bits, kind, channels):
    values = RNG.integers(0, 2**bits, (13, 21, channels))
    path = write_png(tmp_path / "a.png", values, bits, kind, False)
    np.testing.assert_array_equal(open_image(path, channels=channels).read(), values)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_any_kind_is_grey_or_rgb(tmp_path, mode, options):
    ramp = np.mgrid[:48, :64].sum(axis=0) * 2
    colours = Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1).astype(np.uint8))
    colours.convert(mode).save(tmp_path / "a.jpg", quality=98, **options)
    expected = np.array(colours.convert("L") if mode == "L" else colours).astype(int)
    read = open_image(tmp_path / "a.jpg").read()
    assert read.shape == expected.shape and np.abs(read - expected).mean() < 3
