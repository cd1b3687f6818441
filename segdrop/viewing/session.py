"""What is looked at: one image at a time, and what the networks say of it."""

import functools
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..config.predict import PredictOptions
from ..errors import InputError
from ..images.intensity import scale
from ..images.opening import SUFFIXES
from ..inference.ensemble import Function, load_alike
from ..inference.inputs import find_inputs
from ..inference.network import Network
from ..inference.predict import function_of
from ..show.plots import visible
from .predictions import Prediction

LARGEST = 2**24  # pixels of an image or slice: four pictures of it, and its values, in a browser's memory
MOST_SAMPLES = 50
_KEPT = 4  # predictions of the image: going back to an earlier number of samples takes no time
_LONGEST_NAME = 120


class Gone(InputError):
    """What is asked for is not there any more."""


class Looked:
    """The image that is looked at.

    Attributes:
        name: as people are shown it.
        picture: what the package's reader makes of its file.
        predictions: of it, by their numbers.
    """

    def __init__(self, file: Path, name: str, folder: Path, network: Network):
        self.name, self.folder, self._file, self._network = name, folder, file, network
        self.predictions: dict[int, Prediction] = {}
        self._reading = threading.Lock()
        try:
            self.picture = network.open(file, huge=True)
            height, width = self.picture.height, self.picture.width
            if height * width > LARGEST:
                raise InputError(
                    f"{file}: has {width} x {height} pixels, too large for the browser, which shows {LARGEST:,}; "
                    "use segdrop predict."
                )
            self._bounds = network.intensity.bounds(self.picture)
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}." if error.strerror else self.named(error)) from error
        except InputError as error:
            raise InputError(self.named(error)) from error

    def named(self, words: object) -> str:
        """What is said of the file, with the image's name in place of its path."""
        return str(words).replace(str(self._file), self.name)

    def png(self, index: int) -> bytes:
        """A slice as the network is shown it, in 8 bits."""
        try:
            with self._reading:  # a reader decodes one part after the other
                values = self.picture.read(index)
        except InputError as error:
            raise InputError(self.named(error)) from error
        shown = visible(scale(values, *self._bounds), self._network.context_slices)
        shown = np.ascontiguousarray(shown[..., ::-1].round().astype(np.uint8))
        return cv2.imencode(".png", shown, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

    def close(self) -> None:
        for prediction in self.predictions.values():
            prediction.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Session:
    """A run's networks, the files that were named, and the one image that is open.

    Attributes:
        network: the first of the networks, which are alike in all that is shown.
        listed: the files that were named, and how people are shown their names.
        unsampled: why no Monte Carlo samples can be drawn; "" where they can.
    """

    def __init__(self, run: str | os.PathLike, inputs: Sequence[str], folder: Path):
        self._networks, self._folder = load_alike([run]), folder
        self.network = self._networks[0]
        self.listed = [
            (job.file, as_text(Path(job.name).with_name(job.file.name).as_posix()))
            for job in (find_inputs(inputs, folder) if inputs else [])
        ]
        self._numbers, self._changing = itertools.count(1), threading.Lock()
        self._looked: tuple[int, Looked] | None = None
        self._function: Callable[[int], Function] = functools.lru_cache(_KEPT)(
            lambda samples: function_of(self._networks, self._options(samples))
        )
        try:
            self._function(1)
            self.unsampled = ""
        except InputError as error:
            self.unsampled = str(error)

    def open_listed(self, index: int) -> int:
        """Look at one of the files that were named; the number of the look."""
        if not 0 <= index < len(self.listed):
            raise Gone(f"There is no file {index} of {len(self.listed)}.")
        return self._look(lambda folder: self.listed[index])

    def open_upload(self, name: str, write: Callable[[Path], object]) -> int:
        """Look at a file that `write` puts where it is told to; the number of the look."""
        name = plain_name(name)
        suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")

        def receive(folder: Path) -> tuple[Path, str]:
            write(folder / f"upload{suffix}")
            return folder / f"upload{suffix}", name

        return self._look(receive)

    def _look(self, receive: Callable[[Path], tuple[Path, str]]) -> int:
        number = next(self._numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        try:
            looked = Looked(*receive(folder), folder, self.network)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._changing:
            before, self._looked = self._looked, (number, looked)
        if before:
            before[1].close()
        return number

    def looked(self, number: int) -> Looked:
        if self._looked is None or self._looked[0] != number:
            raise Gone("Another image has been opened since; choose this one again.")
        return self._looked[1]

    def predict(self, number: int, samples: int, threshold: float | None) -> int:
        """Begin to predict the image, or find the prediction that is there; its number."""
        if samples and self.unsampled:
            raise InputError(self.unsampled)
        if threshold is not None and not self.network.takes_threshold:
            raise InputError("`threshold` has no effect on a network that takes the most probable of its classes.")
        if threshold == self.network.threshold:
            threshold = None
        looked, options = self.looked(number), self._options(samples, threshold)
        with self._changing:
            for known, prediction in looked.predictions.items():
                if prediction.options == options and not prediction.problem:
                    looked.predictions[known] = looked.predictions.pop(known)  # the last used is kept longest
                    return known
            kept = list(looked.predictions)
            unfinished = [known for known in kept if not looked.predictions[known].finished]
            for known in dict.fromkeys([*unfinished, *kept[: max(0, len(kept) + 1 - _KEPT)]]):
                looked.predictions.pop(known).stop()
            key = next(self._numbers)
            prediction = Prediction(looked.picture, looked.folder / f"prediction {key}", options)
            looked.predictions[key] = prediction
            prediction.start(self._networks, lambda: self._function(samples))
        return key

    def prediction(self, number: int, key: int) -> Prediction:
        try:
            return self.looked(number).predictions[key]
        except KeyError:
            raise Gone("This prediction has been replaced by another; ask for it again.") from None

    def close(self) -> None:
        if self._looked:
            self._looked[1].close()

    def _options(self, samples: int, threshold: float | None = None) -> PredictOptions:
        return PredictOptions(mc_samples=samples, threshold=threshold, uncertainty=True, probabilities="tiff")


def as_text(name: str) -> str:
    """A file's name as people can read it: what is no text, or would move the cursor, as a question mark."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def plain_name(name: str) -> str:
    """The last part of a name that came from elsewhere, as text of a sensible length that keeps its ending."""
    name = as_text(name.replace("\\", "/").rpartition("/")[2])
    return name[-_LONGEST_NAME:] if name.strip(". ") else "image"
