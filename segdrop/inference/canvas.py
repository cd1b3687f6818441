"""Results of an image while they are made, in memory or on disk, and as files."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tifffile
from typing_extensions import TypedDict

from ..errors import InputError
from ..files import write_json
from ..images.picture import Picture
from ..typed import read_json
from ..version import __version__

HUGE_PIXELS = 2**26  # larger images are kept on disk while they are worked on, and written as tiled TIFF
_FILE_TILE = 512  # side of the tiles within TIFF files


class Canvas:
    """The values of one kind of result of all slices: `planes` maps of each; in memory, or on disk where huge."""

    def __init__(self, slices: int, planes: int, height: int, width: int, dtype, path: Path | None):
        self.slices, self.planes, self._shape = slices, planes, (slices * planes, height, width)
        self.dtype, self._path = np.dtype(dtype), path
        if path is None:
            self._array = np.zeros(self._shape, dtype)
        else:
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self._file.truncate(math.prod(self._shape) * self.dtype.itemsize)

    def write(self, index: int, top: int, rows: np.ndarray) -> None:
        """Rows (planes, h, W) of a slice, from row `top` on."""
        for plane, values in enumerate(rows, index * self.planes):
            if self._path is None:
                self._array[plane, top : top + len(values)] = values
            else:
                self._file.seek(self._offset(plane, top))
                _write_all(self._file, np.ascontiguousarray(values, self.dtype))

    def read(self, plane: int, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom - 1` of a plane, counted over all slices."""
        if self._path is None:
            return self._array[plane, top:bottom]
        self._file.seek(self._offset(plane, top))
        count = (min(bottom, self._shape[1]) - top) * self._shape[2]
        return np.fromfile(self._file, self.dtype, count).reshape(-1, self._shape[2])

    def array(self) -> np.ndarray:
        """Everything, (slices * planes, H, W); mapped from disk where it is there."""
        return self._array if self._path is None else np.memmap(self._path, self.dtype, "r", shape=self._shape)

    def tiles(self) -> Iterator[np.ndarray]:
        """Square tiles of all planes, row by row, filled up with zeros."""
        planes, height, width = self._shape
        for plane in range(planes):
            for top in range(0, height, _FILE_TILE):
                band = self.read(plane, top, top + _FILE_TILE)
                band = np.pad(band, ((0, _FILE_TILE - len(band)), (0, -width % _FILE_TILE)))
                for left in range(0, width, _FILE_TILE):
                    yield np.ascontiguousarray(band[:, left : left + _FILE_TILE])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def close(self) -> None:
        if self._path is not None:
            self._file.close()

    def _offset(self, plane: int, top: int) -> int:
        return (plane * self._shape[1] + top) * self._shape[2] * self.dtype.itemsize


def _write_all(file, values: np.ndarray) -> None:
    """A raw file writes a part and says how much when the disk is nearly full; the next call raises."""
    data = memoryview(values).cast("B")
    while data:
        data = data[file.write(data) :]


class _Progress(TypedDict):
    """How far an image has come whose rows are kept on disk."""

    digest: str
    slice: int
    row: int
    sums: dict[str, float]
    layout: dict[Literal["mask", "probabilities", "uncertainty"], tuple[int, Literal["uint8", "float16"]]]


class Work:
    """What is being made of one file, and how far it has come: kept on disk for what is too large to do again."""

    def __init__(self, home: Path, picture: Picture, digest: str):
        self._home, self._picture, self._digest = home, picture, digest
        self._slices = picture.slices or 1
        self.canvases: dict[str, Canvas] = {}
        self.slice, self.row, self.sums = 0, 0, {}
        self._huge = picture.height * picture.width * self._slices > HUGE_PIXELS
        self._layout: dict[str, tuple[int, str]] = {}
        if self._huge:
            self._restore()

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, kind, error, trace) -> None:
        for canvas in self.canvases.values():
            canvas.close()
        if kind is None or not self._huge:
            clear(self._home)

    def canvas(self, name: str, planes: int, dtype) -> Canvas:
        if name not in self.canvases:
            path = _hidden(self._home, f"{name}.partial") if self._huge else None
            size = (self._picture.height, self._picture.width)
            self.canvases[name] = Canvas(self._slices, planes, *size, dtype, path)
            self._layout[name] = (planes, np.dtype(dtype).name)
        return self.canvases[name]

    def add(self, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0) + value

    def finish_row(self, index: int, row: int) -> None:
        self.slice, self.row = index, row
        if self._huge:
            state = {"digest": self._digest, "slice": index, "row": row, "sums": self.sums, "layout": self._layout}
            write_json(_hidden(self._home, "progress.json"), state)

    def _restore(self) -> None:
        try:
            state = read_json(_hidden(self._home, "progress.json"), _Progress, "it is begun anew")
        except (OSError, InputError):
            clear(self._home)
            return
        paths = [_hidden(self._home, f"{name}.partial") for name in state["layout"]]
        if state["digest"] != self._digest or not all(path.is_file() for path in paths):
            clear(self._home)
            return
        self.slice, self.row, self.sums = state["slice"], state["row"], state["sums"]
        for name, (planes, dtype) in state["layout"].items():
            self.canvas(name, planes, dtype)


KINDS = ("mask", "probabilities", "uncertainty")


def clear(home: Path) -> None:
    """Remove what an interrupted `Work` left of the results called `home`."""
    for ending in ("progress.json", "progress.partial.json", *(f"{kind}.partial" for kind in KINDS)):
        if os.path.lexists(path := _hidden(home, ending)):  # which no file is whose name would be too long
            path.unlink(missing_ok=True)


def _hidden(home: Path, ending: str) -> Path:
    return home.with_name(f".{home.name}.{ending}")


def file_version(path: Path) -> str:
    """What changes when a file does: its size in bytes and the time of its last change in nanoseconds."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def write_png(path: Path, picture: np.ndarray) -> None:
    picture = picture[..., ::-1] if picture.ndim == 3 else picture
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())  # cv2.imwrite does not tell a full disk


def write_tiff(path: Path, canvas: Canvas, names: Sequence[str]) -> None:
    """A tiled TIFF with a page for each plane; `names` says what the pages of a slice are."""
    planes, height, width = canvas.shape
    with tifffile.TiffWriter(path, bigtiff=planes * height * width * canvas.dtype.itemsize > 2**31) as writer:
        writer.write(
            canvas.tiles(),
            shape=canvas.shape if planes > 1 else canvas.shape[1:],
            dtype=canvas.dtype,
            tile=(_FILE_TILE, _FILE_TILE),
            compression="zlib",
            compressionargs={"level": 1},
            photometric="minisblack",
            description=json.dumps({"pages": list(names)}) if names else None,
            metadata=None,
            software=f"segdrop {__version__}",
        )
