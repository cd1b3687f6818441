"""Broken images of every format, as what is predicted and as what is trained on; the values are known."""

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from .attack import Case, Plan, replace_bytes
from .bench import TINY as _TINY
from .bench import Bench, words
from .damage import BYTES, CUTS, FLIPS, MORE, Damage

SIZE = 40, 48
_RNG = np.random.default_rng(7)
GREY = _RNG.integers(0, 256, SIZE, np.uint8)
RGB = _RNG.integers(0, 256, (*SIZE, 3), np.uint8)
DEEP = _RNG.integers(0, 65536, SIZE, np.uint16)
FLOAT = _RNG.normal(100, 30, SIZE).astype(np.float32)
VOLUME = _RNG.integers(0, 4000, (*SIZE, 3), np.int16)


def _opencv(path: Path, array: np.ndarray) -> None:
    import cv2

    cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])


def _pillow(path: Path, array: np.ndarray, **options) -> None:
    from PIL import Image

    Image.fromarray(array).save(path, **options)


def _palette(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(array).quantize(16).save(path)


def _tiff(path: Path, array: np.ndarray, **options) -> None:
    import tifffile

    tifffile.imwrite(path, array, **options)


def _dicom(path: Path, array: np.ndarray, **attributes) -> None:
    from dicom_files import write_dicom

    usual = {"PixelSpacing": [0.5, 0.5], "RescaleSlope": 1, "RescaleIntercept": 0}
    write_dicom(path, array, **{**usual, **attributes})


def _nifti(path: Path, array: np.ndarray) -> None:
    import nibabel

    nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 2.0, 1.0])).to_filename(path)


# Of each format the writer, the values, and whether a checksum covers all of them.
FORMATS: dict[str, tuple[Callable, np.ndarray, bool]] = {
    "grey.png": (_opencv, GREY, True),
    "colours.png": (_opencv, RGB, True),
    "deep.png": (_opencv, DEEP, True),
    "palette.png": (_palette, RGB, True),
    "photo.jpg": (_opencv, RGB, False),
    "progressive.jpg": (partial(_pillow, progressive=True), RGB, False),
    "plain.bmp": (_opencv, RGB, False),
    "still.gif": (_pillow, GREY, False),
    "plain.ppm": (_opencv, RGB, False),
    "deep.pgm": (_opencv, DEEP, False),
    "plain.tif": (_tiff, GREY, False),
    "deflated.tif": (partial(_tiff, compression="zlib"), DEEP, False),
    "lzw.tif": (partial(_pillow, compression="tiff_lzw"), GREY, False),
    "tiled.tif": (partial(_tiff, tile=(16, 16)), RGB, False),
    "float.tif": (_tiff, FLOAT, False),
    "pages.tif": (partial(_tiff, photometric="minisblack"), VOLUME.transpose(2, 0, 1).copy(), False),
    "slice.dcm": (_dicom, DEEP, False),
    "volume.nii": (_nifti, VOLUME, False),
    "volume.nii.gz": (_nifti, VOLUME, True),
}


def _png(width: int, height: int, content: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def _nifti_with(field: int, value: bytes) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        content = bytearray(path.read_bytes())
        content[field : field + len(value)] = value
        replace_bytes(path, bytes(content))

    return damage


def _tiff_with(tag: int, value: int) -> Damage:
    """A TIFF whose first directory has another value of a tag."""

    def damage(path: Path, rng: np.random.Generator) -> None:
        content = bytearray(path.read_bytes())
        (start,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack_from("<H", content, entry)[0] == tag:
                struct.pack_into("<HII", content, entry + 2, 4, 1, value)
        replace_bytes(path, bytes(content))

    return damage


def _written(content: Callable[[], bytes]) -> Damage:
    return lambda path, rng: replace_bytes(path, content())


def _circular(path: Path, rng: np.random.Generator) -> None:
    """The next directory of a TIFF is the same again."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    struct.pack_into("<I", content, start + 2 + 12 * count, start)
    replace_bytes(path, bytes(content))


def _dicom_with(**attributes) -> Damage:
    return lambda path, rng: (path.unlink(), _dicom(path, DEEP, **attributes))[0]


def _odd(values) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        array = FLOAT.copy()
        array[5:9, 5:9] = values
        _tiff(path, array) if path.suffix == ".tif" else _nifti(path, array)

    return damage


# What only one format can have.
OWN: dict[str, dict[str, Damage]] = {
    "grey.png": {
        "of 2^31 pixels a side": _written(lambda: _png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0" * 100))),
        "of 30000 pixels a side and no content": _written(lambda: _png(30000, 30000, zlib.compress(b"\0" * 100))),
        "that is a bomb": _written(lambda: _png(16000, 16000, zlib.compress(bytes(16001 * 16000), 9))),
        "of 0 pixels": _written(lambda: _png(0, 0, zlib.compress(b""))),
        "of too few rows": _written(lambda: _png(48, 40, zlib.compress(bytes(49 * 20)))),
        "of 1 pixel": _written(lambda: _png(1, 1, zlib.compress(bytes(2)))),
    },
    "plain.ppm": {
        "of 10^9 pixels a side": _written(lambda: b"P6 1000000000 1000000000 255\n" + bytes(100)),
        "with a negative width": _written(lambda: b"P6 -5 5 255\n" + bytes(100)),
        "with a largest value of 0": _written(lambda: b"P6 5 5 0\n" + bytes(75)),
    },
    "plain.bmp": {"of a width of 2^31": _nifti_with(18, b"\xff\xff\xff\x7f"), "upside down": _nifti_with(22,
    b"\xd8\xff\xff\xff")},
    "plain.tif": {
        "of a width of 2^31": _tiff_with(256, 2**31),
        "of a height of 2^31": _tiff_with(257, 2**31),
        "of a height of 0": _tiff_with(257, 0),
        "with strips outside of the file": _tiff_with(273, 2**30),
        "with strips of 4 GB": _tiff_with(279, 2**32 - 1),
        "of an unknown compression": _tiff_with(259, 50001),
        "of 3 bits": _tiff_with(258, 3),
        "of an unknown kind of number": _tiff_with(339, 9),
        "of 1000 samples": _tiff_with(277, 1000),
        "with directories in a circle": _circular,
    },
    "float.tif": {"with NaN": _odd(np.nan), "with infinity": _odd(np.inf), "with huge values": _odd(1e38)},
    "deflated.tif": {"of a height of 2^31": _tiff_with(257, 2**31), "of one strip of 2^31 rows": _tiff_with(278,
    2**31)},
    "slice.dcm": {
        "without Rows": _dicom_with(Rows=None),
        "without pixels": _dicom_with(PixelData=None),
        "of 65535 rows": _dicom_with(Rows=65535),
        "of 0 rows": _dicom_with(Rows=0),
        "of 10^9 frames": _dicom_with(NumberOfFrames=10**9),
        "of -1 frames": _dicom_with(NumberOfFrames=-1),
        "of 8 bits by its header": _dicom_with(BitsAllocated=8),
        "of 77 samples": _dicom_with(SamplesPerPixel=77),
        "of an unknown photometry": _dicom_with(PhotometricInterpretation="OTHER"),
        "with a slope of 0": _dicom_with(RescaleSlope=0),
        "with a slope of 1e30": _dicom_with(RescaleSlope=1e30),
        "with no spacing": _dicom_with(PixelSpacing=[0, 0]),
        "with a negative spacing": _dicom_with(PixelSpacing=[-1, -1]),
    },
    "volume.nii": {
        "of a negative side": _nifti_with(42, b"\xff\xff"),
        "of sides of 32767": _nifti_with(42, b"\xff\x7f\xff\x7f\xff\x7f"),
        "of 77 dimensions": _nifti_with(40, b"\x4d\x00"),
        "of no dimension": _nifti_with(40, b"\x00\x00"),
        "of an unknown type": _nifti_with(70, b"\x99\x00"),
        "of complex numbers": _nifti_with(70, b"\x20\x00\x40\x00"),
        "with its values outside of the file": _nifti_with(108, struct.pack("<f", 1e9)),
        "with its values before the file": _nifti_with(108, struct.pack("<f", -1e9)),
        "with a slope of NaN": _nifti_with(112, struct.pack("<f", np.nan)),
        "with a slope of 1e38": _nifti_with(112, struct.pack("<f", 1e38)),
        "with a spacing of 0": _nifti_with(80, struct.pack("<fff", 0, 0, 0)),
        "with a spacing of NaN": _nifti_with(80, struct.pack("<fff", np.nan, np.nan, np.nan)),
        "of floats with NaN": _odd(np.nan),
    },
    "volume.nii.gz": {
        "that is a bomb": _written(lambda: gzip.compress(bytes(300_000_000), 9)),
        "compressed twice": lambda path, rng: replace_bytes(path, gzip.compress(path.read_bytes())),
    },
}  # fmt: skip
WRONG_NAMES = ("x.png", "x.jpg", "x.gif", "x.bmp", "x.tif", "x.dcm", "x.nii", "x.nii.gz", "x")


def _original(name: str, folder: Path) -> bytes:
    write, array, _ = FORMATS[name]
    path = folder / name
    write(path, array)
    return path.read_bytes()


def values_of(path: Path) -> list[np.ndarray]:
    """All slices of an image as segdrop reads it."""
    from segdrop.images.opening import open_image

    picture = open_image(path)
    return [picture.read()] if picture.slices is None else [picture.read(i) for i in range(picture.slices)]


def _same(path: Path, known: list[np.ndarray]) -> str:
    """What is wrong with the values that are read, "" where they are the known ones."""
    read = values_of(path)
    if len(read) != len(known):
        return f"{path.name}: {len(read)} slices instead of {len(known)}"
    for one, other in zip(read, known, strict=True):
        if one.shape != other.shape or not np.array_equal(one, other):
            return f"{path.name}: values of another image, {one.shape} for {other.shape}"
    return ""


def _as_input(name: str, damage: Damage, keeps: bool, bench: Bench, rng: np.random.Generator) -> Plan:
    """Predict a broken image; `keeps`: it must be refused or hold the values that it had."""
    folder = bench.take("bright")
    _original(name, folder)
    known = values_of(folder / name) if keeps else None
    damage(folder / name, rng)
    truth = partial(_same, Path(name), known) if keeps else None
    return Plan(("predict", "bright", name, "--out", "out"), (name,), ("out/predictions.csv",), truth)


def _as_data(name: str, part: str, damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    """Open a data set with a broken image or mask in it."""
    folder = bench.take("cells")
    for table in ("splits.csv", "groups.csv", "meta.csv"):
        (folder / "cells" / table).unlink()
    stem = name.split(".")[0]
    if part == "masks":
        _opencv(folder / "cells" / "images" / f"{stem}.png", GREY)
    else:
        _opencv(folder / "cells" / "masks" / f"{stem}.png", (GREY > 128).astype(np.uint8))
    path = folder / "cells" / part / name
    _original(name, path.parent)
    damage(path, rng)
    command = (
        ("data", "cells") if rng.random() < 0.7 else ("train", "--data", "cells", "--run-dir", "out", *words(_TINY))
    )
    return Plan(command, (name, stem))


def _misnamed(name: str, other: str, bench: Bench, rng: np.random.Generator) -> Plan:
    folder = bench.take("bright")
    (folder / other).write_bytes(_original(name, folder))
    if other != name:
        (folder / name).unlink(missing_ok=True)
    return Plan(("predict", "bright", other, "--out", "out"), (other,), ("out/predictions.csv",))


def cases() -> Iterator[Case]:
    for name, (_, _, sure) in FORMATS.items():
        for what, damage in {**BYTES, **OWN.get(name, {})}.items():
            keeps = what in CUTS or what in MORE or (sure and what in FLIPS)
            yield f"{name} predicted,", what, partial(_as_input, name, damage, keeps)
            yield f"{name} as an image,", what, partial(_as_data, name, "images", damage)
        for other in WRONG_NAMES:
            yield name, f"called {other}", partial(_misnamed, name, other)
    for name in (
        "grey.png",
        "palette.png",
        "still.gif",
        "plain.tif",
        "float.tif",
        "volume.nii",
        "slice.dcm",
        "photo.jpg",
    ):
        for what, damage in {**BYTES, **OWN.get(name, {})}.items():
            yield f"{name} as a mask,", what, partial(_as_data, name, "masks", damage)


def encoded(name: str) -> bytes:
    """An unbroken image of a format."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return _original(name, Path(folder))
