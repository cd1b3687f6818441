"""Predictions on their way into files."""

import errno
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..config.predict import PredictOptions
from ..conventions import most_entropy
from ..data.fingerprint import class_pixels
from ..data.tiles import tile_offsets, tile_rows
from ..data.values import Reading, Values
from ..errors import InputError
from ..files import write_together
from ..images.intensity import scale
from ..images.nifti import write_volume_mask
from ..images.picture import Picture
from ..scoring.counts import to_labels
from ..scoring.uncertainty import from_moments
from ..show.plots import heat, overlay, visible
from .canvas import HUGE_PIXELS, Work, clear, file_version, write_png, write_tiff
from .ensemble import Function
from .inputs import Job
from .network import Network, resize
from .progress import Bar

Results = dict[Path, Callable[[Path], object]]  # what writes each file
_LONGEST_PNG = 65_535  # pixels of a side; PNG allows more, its readers often do not
_PREVIEW = 2048  # longest side of an overlay, in pixels


class Writer:
    """Predicts one file after the other and writes its results."""

    def __init__(self, out: Path, network: Network, function: Function, options: PredictOptions, settings: dict):
        self.out, self.network, self.function, self.options = out, network, function, options
        self.threshold = settings["threshold"]
        self.values: list[Values] = []  # of each image and slice
        self.constant: list[str] = []  # names of the images of one value
        self.digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def process(self, job: Job, bar: "Bar") -> dict:
        """Predict one file and write its results; the row of one that cannot be read says what is wrong with it."""
        home = self.out / job.name
        try:
            picture = self.network.open(job.file, huge=True)
            bounds = self.network.intensity.bounds(picture)
            version = file_version(job.file)
        except PermissionError as error:
            return _failure(job, f"{job.file}: {error.strerror}.")
        except (InputError, FileNotFoundError) as error:
            clear(home)
            return _failure(job, error)
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with Work(home, picture, f"{self.digest} {version}") as work:
                before = len(self.values)
                self._predict(picture, bounds, work, bar)
                if self.values[before:] and np.ptp(Values.of_all(self.values[before:]).stored) == 0:
                    self.constant.append(job.name)
                return {"file": job.name, "status": "ok", "version": version, **self._write(job, picture, bounds, work)}
        except (InputError, MemoryError) as error:
            clear(home)
            return _failure(job, error if isinstance(error, InputError) else f"{job.file}: does not fit into memory.")
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                raise
            return _failure(job, f"{job.file}: its results cannot be written as {home}: {error.strerror}; rename it.")

    def _predict(self, picture: Picture, bounds, work: Work, bar: "Bar") -> None:
        for index in range(work.slice, picture.slices or 1):
            for following, top, means in self._rows(picture, index, bounds, work.row, bar):
                self._keep(means, index, top, work)
                work.finish_row(*following)

    def _rows(self, picture: Picture, index: int, bounds, start: int, bar) -> Iterator[tuple]:
        """What the network says of each row of tiles, after the row's top, after the slice and row that follow it."""
        options, size = self.options, (picture.height, picture.width)
        whole = None if picture.slices is None else picture.read(index)
        reading = Reading()

        def read(top: int, bottom: int) -> np.ndarray:
            rows = picture.rows(top, bottom) if whole is None else whole[top:bottom]
            mapped = scale(rows, *bounds)
            reading.add(rows, mapped)
            return mapped

        if not self.network.resamples:
            prepared, inner = read, size
        else:
            if picture.height * picture.width > HUGE_PIXELS:
                raise InputError(f"{picture.path}: is too large to be resampled to the network's spacing or scale.")
            image = self.network.resample(read(0, picture.height), picture.spacing)
            prepared, inner = lambda top, bottom: image[top:bottom], image.shape[:2]
        count = len(tile_offsets(inner[0], options.tile, options.overlap))
        bar.begin((count - start) * len(tile_offsets(inner[1], options.tile, options.overlap)))
        rows = tile_rows(
            self.function,
            prepared,
            *inner,
            options.tile,
            options.overlap,
            margin=options.margin,
            start=start,
            on_tiles=bar.advance,
        )
        if inner == size:
            for number, (top, means) in enumerate(rows, start + 1):
                yield (index, number) if number < count else (index + 1, 0), top, means
        else:
            yield (index + 1, 0), 0, resize(np.concatenate([means for _, means in rows]), size)
        self.values.append(reading.values)

    def _keep(self, means: np.ndarray, index: int, top: int, work: Work) -> None:
        """Turn what the network says of some rows into the results' values."""
        classes = means.shape[-1] // 2 if self.options.keeps_moments else means.shape[-1]
        mean = means[..., :classes]
        labels = to_labels(mean, self.threshold, self.network.multilabel)
        work.canvas("mask", 1, np.uint8).write(index, top, labels[None])
        counts = class_pixels(labels, len(self.network.class_names), self.network.multilabel)
        work.add({f"pixels {name}": int(n) for name, n in zip(self.network.class_names, counts, strict=True)})
        if self.options.probabilities != "none":
            work.canvas("probabilities", classes, np.float16).write(index, top, np.moveaxis(mean, -1, 0))
        if self.options.keeps_moments:
            uncertainty = from_moments(means, self.network.multilabel)
            work.add({key: float(getattr(uncertainty, key).sum(dtype=np.float64)) for key in UNCERTAINTY_MEASURES})
            if self.options.uncertainty:
                maps = [uncertainty.predictive_entropy, uncertainty.expected_entropy, uncertainty.mutual_information]
                maps = np.stack([*maps, *np.moveaxis(uncertainty.std, -1, 0)])
                work.canvas("uncertainty", len(maps), np.float16).write(index, top, maps)

    def _write(self, job: Job, picture: Picture, bounds, work: Work) -> dict:
        """Put the finished results into place, all or none."""
        names, results = self.network.class_names, {}
        if self.options.overlay:
            results |= self._pictures(job, picture, bounds, work)
        if self.options.probabilities != "none":
            results |= self._probabilities(job, picture, work)
        if self.options.uncertainty:
            canvas = work.canvases["uncertainty"]
            spreads = names if canvas.planes == 3 + len(names) else names[1:]
            pages = [*UNCERTAINTY_MEASURES, *(f"std {name}" for name in spreads)]
            results[self._path(job, "_uncertainty.tif")] = partial(write_tiff, canvas=canvas, names=pages)
        mask = work.canvases["mask"]
        if picture.is_nifti:
            path = self._path(job, ".nii.gz")
            results[path] = lambda path: write_volume_mask(picture, mask.array(), path)
        elif mask.slices == 1 and picture.height * picture.width <= HUGE_PIXELS and max(mask.shape) <= _LONGEST_PNG:
            path = self._path(job, ".png")
            results[path] = lambda path: write_png(path, mask.array()[0])
        else:
            path = self._path(job, ".tif")
            results[path] = partial(write_tiff, canvas=mask, names=[])
        write_together(results)
        pixels = picture.height * picture.width * mask.slices
        row = {"mask": path.relative_to(self.out).as_posix(), "height": picture.height, "width": picture.width}
        row |= {"slices": mask.slices} | {f"share {n}": work.sums[f"pixels {n}"] / pixels for n in names}
        return row | {key: work.sums[key] / pixels for key in UNCERTAINTY_MEASURES if key in work.sums}

    def _probabilities(self, job: Job, picture: Picture, work: Work) -> Results:
        names, canvas = self.network.class_names, work.canvases["probabilities"]
        classes = list(names) if canvas.planes == len(names) else list(names[1:])
        if self.options.probabilities == "tiff":
            return {self._path(job, "_probabilities.tif"): partial(write_tiff, canvas=canvas, names=classes)}
        array = canvas.array().reshape(picture.slices or 1, canvas.planes, picture.height, picture.width)
        array = array[0] if picture.slices is None else array
        write = partial(np.savez_compressed, probabilities=array, classes=np.array(classes))
        return {self._path(job, "_probabilities.npz"): write}

    def _pictures(self, job: Job, picture: Picture, bounds, work: Work) -> Results:
        """The image under its mask, and its uncertainty; of a volume the slice with the largest foreground."""
        mask, step = work.canvases["mask"], math.ceil(max(picture.height, picture.width) / _PREVIEW)
        rows = range(0, picture.height, step)
        labels = [np.stack([mask.read(i, y, y + 1)[0, ::step] for y in rows]) for i in range(mask.slices)]
        index = int(np.argmax([np.count_nonzero(slice_labels) for slice_labels in labels]))
        if picture.slices is None:
            seen = np.concatenate([picture.rows(y, y + 1)[:, ::step] for y in rows])
        else:
            seen = picture.read(index)[::step, ::step]
        shown = visible(scale(seen, *bounds), picture.context)
        drawn = overlay(shown, labels[index], multilabel=self.network.multilabel)
        results = {self._path(job, "_overlay.png"): partial(write_png, picture=drawn)}
        if self.options.uncertainty:
            canvas = work.canvases["uncertainty"]
            plane = index * canvas.planes  # of the predictive entropy
            values = np.stack([canvas.read(plane, y, y + 1)[0, ::step] for y in rows])
            highest = most_entropy(len(self.network.class_names), self.network.multilabel)
            results[self._path(job, "_uncertainty.png")] = partial(write_png, picture=heat(values, highest))
        return results

    def _path(self, job: Job, ending: str) -> Path:
        path = self.out / job.name
        return path.with_name(path.name + ending)


# Maps, and their means over an image.
UNCERTAINTY_MEASURES = ("predictive_entropy", "expected_entropy", "mutual_information")


def _failure(job: Job, reason) -> dict:
    words = " ".join(str(reason).split()).encode("utf-8", "backslashreplace").decode()
    return {"file": job.name, "status": words}
