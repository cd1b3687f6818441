"""One prediction of the image that is looked at: on its way in a thread of its own, then its maps."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from rich.progress import Progress

from ..config.predict import PredictOptions
from ..errors import InputError
from ..images.opening import open_image, stem
from ..images.picture import Picture
from ..inference.ensemble import Function
from ..inference.inputs import Job, describe_source
from ..inference.network import Network
from ..inference.predict import remarks
from ..inference.progress import Bar
from ..inference.writer import Writer

RESULT = "result"  # name of the files that a prediction writes
_turn = threading.Lock()  # of the one prediction that is being computed


class Stopped(Exception):
    """The prediction is not wanted any more."""


class Course(Bar):
    """How far a prediction has come, and where it is told to stop."""

    def __init__(self, images: int):
        super().__init__(Progress(disable=True), 1)
        self._count, self._begun, self._total, self._before = images, 0, 1, 0
        self.stopped = threading.Event()

    @property
    def share(self) -> float:
        """Of the work, 0..1."""
        return max(0, self._begun - 1 + (self.tiles - self._before) / self._total) / self._count

    def begin(self, total: int) -> None:
        super().begin(total)
        self._begun, self._total, self._before = self._begun + 1, total, self.tiles
        self.stop_if_told()

    def advance(self, tiles: int) -> None:
        super().advance(tiles)
        self.stop_if_told()

    def stop_if_told(self) -> None:
        if self.stopped.is_set():
            raise Stopped


class Prediction:
    """What `segdrop predict` writes of one file, in a folder of its own, read again map by map.

    Attributes:
        options: what it was asked to do.
        problem: why there is none, in one sentence; "" where there is or will be one.
        warnings: what `segdrop predict` would say of the image.
        row: of its predictions.csv; empty until it is there.
    """

    def __init__(self, picture: Picture, folder: Path, options: PredictOptions):
        self._picture, self._folder, self.options = picture, folder, options
        self.course = Course(picture.slices or 1)
        self.problem, self.warnings, self.row = "", (), {}
        self._mask: Picture | None = None
        self._thread = threading.Thread(target=lambda: None)

    def start(self, networks: Sequence[Network], function: Callable[[], Function]) -> None:
        self._thread = threading.Thread(target=self._run, args=(networks, function), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it where it has got to, and remove what it has written."""
        self.course.stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def finished(self) -> bool:
        return bool(self._mask or self.problem)

    def _run(self, networks: Sequence[Network], function: Callable[[], Function]) -> None:
        try:
            with _turn:
                self._predict(networks, function)
        except Stopped:
            self.problem = "The prediction was stopped."
        except (InputError, OSError) as error:
            self.problem = str(error)
        except Exception as error:  # of TensorFlow's memory, for one: the page must not wait for ever
            self.problem = f"The prediction failed: {type(error).__name__}: {error}"

    def _predict(self, networks: Sequence[Network], function: Callable[[], Function]) -> None:
        self.course.stop_if_told()
        self._folder.mkdir()
        writer = Writer(self._folder, networks[0], function(), self.options, describe_source(networks, self.options))
        row = writer.process(Job(self._picture.path, RESULT), self.course)
        if row["status"] != "ok":
            raise InputError(row["status"])
        constant = [stem(self._picture.path)] * len(writer.constant)
        self.row, self.warnings = row, remarks(networks[0], writer.values, constant)
        self._mask = open_image(self.mask_file, slice_axis=networks[0].slice_axis)

    @property
    def mask_file(self) -> Path:
        return self._folder / self.row["mask"]

    def mask(self, index: int) -> np.ndarray:
        """Class indices of a slice, uint8 (H, W)."""
        assert self._mask is not None
        return self._mask.read(index).astype(np.uint8)

    def probability(self, plane: int, index: int) -> np.ndarray:
        """Of the network's output channel number `plane`, float32 (H, W)."""
        return self._page("probabilities", plane, index)

    def uncertainty(self, plane: int, index: int) -> np.ndarray:
        """A map of a slice, float32 (H, W): the `UNCERTAINTY_MEASURES` in nats, then the std of each channel."""
        return self._page("uncertainty", plane, index)

    def _page(self, kind: str, plane: int, index: int) -> np.ndarray:
        with tifffile.TiffFile(self._folder / f"{RESULT}_{kind}.tif") as file:
            planes = len(file.pages) // (self._picture.slices or 1)
            if not 0 <= plane < planes:
                raise IndexError(f"There is no map {plane} of {planes}.")
            return file.pages[index * planes + plane].asarray().astype(np.float32)
