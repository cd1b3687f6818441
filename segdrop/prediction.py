"""Masks, probabilities and uncertainty of whole image files, written to a folder."""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import __version__
from .config import OVERLAP, TILE, PredictOptions
from .dataset import file_digest
from .ensemble import Function, combine, load_alike
from .errors import InputError
from .images import NIFTI_SUFFIXES, Picture, is_image, open_image, stem, write_volume_mask
from .intensity import scale
from .loading import Network, resize
from .metrics import to_labels
from .plots import heat, overlay
from .results import HUGE_PIXELS, Work, clear, file_version, write_png, write_tiff
from .run import MODEL, read_csv, write_atomically, write_csv, write_json
from .tables import Table
from .tiles import tile_offsets, tile_rows
from .uncertainty import Uncertainty, from_moments

SETTINGS, PREDICTIONS, LOG = "predict.json", "predictions.csv", ".predictions.partial.jsonl"
_LONGEST_PNG = 65_535  # pixels of a side; PNG allows more, its readers often do not
_PREVIEW = 2048  # longest side of an overlay, in pixels
ENDINGS = ("_overlay", "_uncertainty", "_probabilities")  # of the names of further results


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a prediction leaves.

    Attributes:
        out: the folder.
        files: a row per input file, as in its predictions.csv: file, status ("ok", or what is wrong), version (of the
            file: size and time), mask, height, width, slices, the share of each class's pixels, and where samples were
            drawn the mean predictive entropy, expected entropy and mutual information over its pixels in nats.
        failed: number of files that could not be read.
        images_per_second, tiles_per_second: of the files of this call; slices count as images.
    """

    out: Path
    files: Table
    failed: int
    images_per_second: float
    tiles_per_second: float


def predict(
    run: str | os.PathLike | Network,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    resume: bool = False,
    **options,
) -> Predictions:
    """Predict image files of any size and write the results to a folder.

    For `NAME.png`, `.jpg`, `.tif` ... and single DICOM frames the mask is `NAME.png`, class indices in 8 bits; for
    images of more than 67 million pixels, and for several pages or frames, it is a tiled `NAME.tif`; for NIfTI
    `NAME.nii.gz` with the image's affine and shape. Beside it, as asked for, `NAME_probabilities.tif` or `.npz`
    (float16, classes first), `NAME_uncertainty.tif` (float16 maps, named in its description: predictive_entropy,
    expected_entropy and mutual_information in nats, std of each class), `NAME_overlay.png` and `NAME_uncertainty.png`;
    and one `predictions.csv`. No file is there in part. A file that cannot be read is reported in `files` and skipped.

    Memory holds a row of tiles, not the image, for images above 67 million pixels. These are resumed at the row of
    tiles where they were interrupted.

    Args:
        run: a run's folder, a finished sweep's (its folds' models), an exported ONNX file, or what `segdrop.load`
            gave.
        inputs: files, folders (searched with their subfolders) and globs.
        out: the folder to write to, new unless `resume`.
        resume: go on in `out` where an earlier call with the same options was interrupted.
        options: the fields of `PredictOptions`: ensemble, tile, overlap, margin, tta, mc_samples, mc_rate, seed,
            uncertainty, probabilities, overlay, threshold, precision.

    Raises:
        FileNotFoundError, FileExistsError, InputError: a run, the inputs, the folder or an option cannot be used.
        OSError: a result cannot be written.
    """
    chosen = PredictOptions(**options)
    out = Path(out)
    jobs = _find(inputs, out)
    networks = load_alike([run, *chosen.ensemble], chosen.precision)
    if chosen.threshold is not None and networks[0].channels > 1:
        raise InputError(
            f"`threshold` has no effect on {networks[0].path}, which takes the most probable of its classes."
        )
    function = _function(networks, chosen)
    settings = _describe(networks, chosen)
    done = _prepare(out, settings, resume)
    writer = _Writer(out, networks[0], function, chosen, settings)
    started, rows = time.monotonic(), []
    with _progress(len(jobs)) as bar:
        for job in jobs:
            row = done.get(job.name)
            if row and row["status"] == "ok" and _is_current(row, job, out):
                bar.finish(0)
            else:
                row = writer.process(job, bar)
                with (out / LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                bar.finish(row.get("slices", 0))
            rows.append(row)
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    rows = [{key: row.get(key, "") for key in columns} for row in rows]
    write_csv(out / PREDICTIONS, rows, columns)
    (out / LOG).unlink(missing_ok=True)
    seconds = max(time.monotonic() - started, 1e-9)
    failed = sum(row["status"] != "ok" for row in rows)
    return Predictions(out, Table(rows, keys=columns), failed, bar.images / seconds, bar.tiles / seconds)


def predict_uncertainty(
    run: str | os.PathLike | Network | Sequence[str | os.PathLike | Network],
    image: np.ndarray | str | os.PathLike,
    *,
    samples: int = 20,
    seed: int = 0,
    rate: float | None = None,
    tta: str = "none",
    tile: int = TILE,
    overlap: int = OVERLAP,
    spacing: tuple[float, float] | None = None,
) -> Uncertainty:
    """How sure a network, or an ensemble of several, is of an image.

    Args:
        run: a run's folder, a finished sweep's (its folds' models) or what `segdrop.load` gave, or several of them.
        image: (H, W) or (H, W, 3) in RGB with its own values, or the file of a single image.
        samples: Monte Carlo dropout samples of each network; 0: each predicts once, without dropout, so that what
            differs is the networks (or the views of `tta`).
        seed, rate: of the samples, see `segdrop.uncertainty.MonteCarlo`.
        tta, tile, overlap: as in `predict`.
        spacing: (row, column) mm per pixel of an array, where the network needs it.

    Returns:
        maps of the image's size; see `segdrop.uncertainty.Uncertainty`.
    """
    runs = list(run) if isinstance(run, (list, tuple)) else [run]
    if not runs:
        raise InputError("`run` is empty; give a run's folder, or several.")
    chosen = PredictOptions(
        tile=tile, overlap=overlap, tta=tta, mc_samples=samples, mc_rate=rate, seed=seed, uncertainty=True
    )
    networks = load_alike(runs)
    bounds = None
    if isinstance(image, (str, os.PathLike)):
        picture = open_image(image, slice_axis=networks[0].slice_axis)
        if picture.slices is not None:
            raise InputError(f"`image` has {picture.slices} slices: {image}; give one of them as an array.")
        bounds, spacing, image = networks[0].intensity.bounds(picture), spacing or picture.spacing, picture.read()
    prepared = networks[0].preprocess(image, bounds=bounds, spacing=spacing)
    function = _function(networks, chosen)
    height, width = prepared.shape[:2]
    rows = tile_rows(function, lambda a, b: prepared[a:b], height, width, tile, overlap)
    return from_moments(resize(np.concatenate([merged for _, merged in rows]), np.shape(image)[:2]))


def _function(networks: Sequence[Network], options: PredictOptions) -> Function:
    return combine(
        networks,
        tta=options.tta,
        moments_wanted=options.keeps_moments,
        mc_samples=options.mc_samples,
        mc_rate=options.mc_rate,
        seed=options.seed,
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    file: Path
    name: str  # of the results, relative to the folder of the output, without suffix


def _find(inputs, out: Path) -> list[_Job]:
    """The files to predict, each with the name of its results."""
    jobs: dict[str, _Job] = {}
    for given in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        for home, path in _matches(given, out):
            inside = path.parent.relative_to(home) if path.parent.is_relative_to(home) else Path()
            # A name that is no text (of another encoding) could not be written into the table.
            name = (inside / stem(path)).as_posix().encode("utf-8", "backslashreplace").decode()
            if not stem(path):
                raise InputError(f"`inputs` {path} has no name before its suffix; rename it.")
            other = jobs.setdefault(name, _Job(path, name)).file
            if other.resolve() != path.resolve():
                raise InputError(f"`inputs` {other} and {path} would both be written as {name}; predict them apart.")
    if not jobs:
        raise InputError("`inputs` is empty; give files, folders or globs.")
    for job in jobs.values():
        taken = [f"{job.name}{ending}" for ending in ENDINGS if f"{job.name}{ending}" in jobs]
        if taken:
            raise InputError(f"`inputs` {job.file}: its results could replace those of {taken[0]}; predict them apart.")
        if job.file.resolve().parent == (out / job.name).resolve().parent:
            raise InputError(f"`out` is the folder of {job.file}, whose results could replace it; choose another.")
    return list(jobs.values())


def _matches(given, out: Path) -> list[tuple[Path, Path]]:
    """The image files that one of the inputs names, each after the folder that its place is told from."""
    if not str(given):
        raise InputError("`inputs` has an empty name; give files, folders or globs.")
    matches = [given] if Path(given).exists() else sorted(glob.glob(str(given), recursive=True))
    if not matches:
        raise FileNotFoundError(f"`inputs` names no file: {given}.")
    found = []
    for match in map(Path, matches):
        if not match.is_dir():
            found.append((match.parent, match))
            continue
        inside = [p for p in sorted(match.rglob("*")) if p.is_file() and is_image(p) and not p.name.startswith(".")]
        if not inside:
            raise InputError(f"`inputs` folder holds no image: {match}.")
        if any(_is_within(path, out) for path in inside) and not (out / SETTINGS).is_file():
            raise InputError(f"`out` is the folder of the images, or holds it: {out}; choose another.")
        found += [(match, path) for path in inside if not _is_within(path, out)]
    return found


def _is_current(row: dict, job: _Job, out: Path) -> bool:
    """Whether a finished file's mask is there and is that of the file as it is now."""
    return (out / row["mask"]).is_file() and job.file.exists() and row.get("version") == file_version(job.file)


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _describe(networks: Sequence[Network], options: PredictOptions) -> dict:
    """What the results depend on: an interrupted call is continued with the same only."""
    runs = []
    for network in networks:
        file = network.path / MODEL if network.path.is_dir() else network.path
        runs.append({"path": str(network.path), "sha256": file_digest(file)})
    chosen = {key: value for key, value in dataclasses.asdict(options).items() if key != "ensemble"}
    chosen["threshold"] = options.threshold or networks[0].threshold
    return {"segdrop": __version__, "runs": runs, "class_names": list(networks[0].class_names), **chosen}


def _prepare(out: Path, settings: dict, resume: bool) -> dict[str, dict]:
    """Make the folder, or check the one that is there; the rows of the files that are finished, by name."""
    if not (out / SETTINGS).is_file():
        if resume and out.exists():
            raise InputError(f"`out` holds no prediction to resume: {out} has no {SETTINGS}.")
        if out.is_dir() and any(out.iterdir()):
            raise FileExistsError(f"`out` is not empty: {out}; choose a new folder.")
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"`out` is a file: {out}; choose a new folder.")
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / SETTINGS, settings)
        except PermissionError as error:
            raise PermissionError(f"`out` cannot be written: no permission in {out}; choose another place.") from error
        return {}
    if not resume:
        raise FileExistsError(f"`out` holds predictions: {out}; continue them with --resume or choose a new folder.")
    try:
        stored = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"`out` cannot be resumed: {out / SETTINGS} is damaged; choose a new folder.") from error
    for key, value in json.loads(json.dumps(settings)).items():
        if key != "segdrop" and stored.get(key) != value:
            raise InputError(f"`{key}` is {value!r}, but {out} was started with {stored.get(key)!r}; resume with that.")
    rows = {row["file"]: row for row in read_csv(out / PREDICTIONS)} if (out / PREDICTIONS).is_file() else {}
    if (out / LOG).is_file():
        for line in (out / LOG).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last one may have been cut off
                row = json.loads(line)
                rows[row["file"]] = row
    return rows


class _Writer:
    """Predicts one file after the other and writes its results."""

    def __init__(self, out: Path, network: Network, function: Function, options: PredictOptions, settings: dict):
        self.out, self.network, self.function, self.options = out, network, function, options
        self.threshold = settings["threshold"]
        self.digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def process(self, job: _Job, bar: "_Bar") -> dict:
        """Predict one file and write its results; the row of one that cannot be read says what is wrong with it."""
        home = self.out / job.name
        try:
            picture = open_image(job.file, slice_axis=self.network.slice_axis, huge=True)
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
                self._predict(picture, bounds, work, bar)
                return {"file": job.name, "status": "ok", "version": version, **self._write(job, picture, bounds, work)}
        except InputError as error:
            clear(home)
            return _failure(job, error)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                raise
            return _failure(job, f"{job.file}: its results cannot be written as {home}: {error.strerror}; rename it.")

    def _predict(self, picture: Picture, bounds, work: Work, bar: "_Bar") -> None:
        for index in range(work.slice, picture.slices or 1):
            for following, top, means in self._rows(picture, index, bounds, work.row, bar):
                self._keep(means, index, top, work)
                work.finish_row(*following)

    def _rows(self, picture: Picture, index: int, bounds, start: int, bar) -> Iterator[tuple]:
        """What the network says of each row of tiles, after the row's top, after the slice and row that follow it."""
        options, size = self.options, (picture.height, picture.width)
        whole = None if picture.slices is None else picture.read(index)
        read = picture.rows if whole is None else lambda top, bottom: whole[top:bottom]
        if self.network.spacing is None:
            prepared, inner = lambda top, bottom: scale(read(top, bottom), *bounds), size
        else:
            if picture.height * picture.width > HUGE_PIXELS:
                raise InputError(f"{picture.path}: is too large to be resampled to the network's spacing.")
            image = self.network.resample(scale(read(0, picture.height), *bounds), picture.spacing)
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

    def _keep(self, means: np.ndarray, index: int, top: int, work: Work) -> None:
        """Turn what the network says of some rows into the results' values."""
        classes = means.shape[-1] // 2 if self.options.keeps_moments else means.shape[-1]
        mean = means[..., :classes]
        labels = to_labels(mean, self.threshold)
        work.canvas("mask", 1, np.uint8).write(index, top, labels[None])
        counts = np.bincount(labels.ravel(), minlength=len(self.network.class_names))
        work.add({f"pixels {name}": int(n) for name, n in zip(self.network.class_names, counts, strict=True)})
        if self.options.probabilities != "none":
            work.canvas("probabilities", classes, np.float16).write(index, top, np.moveaxis(mean, -1, 0))
        if self.options.keeps_moments:
            found = from_moments(means)
            work.add({key: float(getattr(found, key).sum(dtype=np.float64)) for key in SCORES})
            if self.options.uncertainty:
                maps = [found.predictive_entropy, found.expected_entropy, found.mutual_information]
                maps = np.stack([*maps, *np.moveaxis(found.std, -1, 0)])
                work.canvas("uncertainty", len(maps), np.float16).write(index, top, maps)

    def _write(self, job: _Job, picture: Picture, bounds, work: Work) -> dict:
        """Put the finished results into place, the mask last: where it is, the others are."""
        names = self.network.class_names
        if self.options.overlay:
            self._write_pictures(job, picture, bounds, work)
        if self.options.probabilities != "none":
            canvas = work.canvases["probabilities"]
            classes = list(names) if canvas.planes == len(names) else [names[-1]]
            if self.options.probabilities == "tiff":
                write_tiff(self._path(job, "_probabilities.tif"), canvas, classes)
            else:
                array = canvas.array().reshape(picture.slices or 1, canvas.planes, picture.height, picture.width)
                array = array[0] if picture.slices is None else array
                write_atomically(
                    self._path(job, "_probabilities.npz"),
                    lambda path: np.savez_compressed(path, probabilities=array, classes=np.array(classes)),
                )
        if self.options.uncertainty:
            canvas = work.canvases["uncertainty"]
            spreads = names if canvas.planes == 3 + len(names) else names[-1:]
            write_tiff(self._path(job, "_uncertainty.tif"), canvas, [*SCORES, *(f"std {name}" for name in spreads)])
        mask = work.canvases["mask"]
        if job.file.name.lower().endswith(NIFTI_SUFFIXES):
            path = self._path(job, ".nii.gz")
            write_atomically(path, lambda p: write_volume_mask(picture, mask.array(), p))
        elif mask.slices == 1 and picture.height * picture.width <= HUGE_PIXELS and max(mask.shape) <= _LONGEST_PNG:
            path = self._path(job, ".png")
            write_png(path, mask.array()[0])
        else:
            path = self._path(job, ".tif")
            write_tiff(path, mask, [])
        pixels = picture.height * picture.width * mask.slices
        row = {"mask": path.relative_to(self.out).as_posix(), "height": picture.height, "width": picture.width}
        row |= {"slices": mask.slices} | {f"share {n}": work.sums[f"pixels {n}"] / pixels for n in names}
        return row | {key: work.sums[key] / pixels for key in SCORES if key in work.sums}

    def _write_pictures(self, job: _Job, picture: Picture, bounds, work: Work) -> None:
        """The image under its mask, and its uncertainty; of a volume the slice with the largest foreground."""
        mask, step = work.canvases["mask"], math.ceil(max(picture.height, picture.width) / _PREVIEW)
        rows = range(0, picture.height, step)
        labels = [np.stack([mask.read(i, y, y + 1)[0, ::step] for y in rows]) for i in range(mask.slices)]
        index = int(np.argmax([np.count_nonzero(one) for one in labels]))
        if picture.slices is None:
            seen = np.concatenate([picture.rows(y, y + 1)[:, ::step] for y in rows])
        else:
            seen = picture.read(index)[::step, ::step]
        write_png(self._path(job, "_overlay.png"), overlay(scale(seen, *bounds), labels[index]))
        if self.options.uncertainty:
            canvas = work.canvases["uncertainty"]
            plane = index * canvas.planes  # of the predictive entropy
            values = np.stack([canvas.read(plane, y, y + 1)[0, ::step] for y in rows])
            write_png(
                self._path(job, "_uncertainty.png"), heat(values, math.log(max(2, len(self.network.class_names))))
            )

    def _path(self, job: _Job, ending: str) -> Path:
        path = self.out / job.name
        return path.with_name(path.name + ending)


SCORES = ("predictive_entropy", "expected_entropy", "mutual_information")  # maps, and their means over an image


def _failure(job: _Job, reason) -> dict:
    words = " ".join(str(reason).split()).encode("utf-8", "backslashreplace").decode()
    return {"file": job.name, "status": words}


class _Bar:
    """Progress in the terminal, and the counts behind it."""

    def __init__(self, progress: Progress, files: int):
        self._progress, self._started = progress, time.monotonic()
        self.images = self.tiles = 0
        self._files = progress.add_task("files", total=files, speed="")
        self._tiles = progress.add_task("tiles", total=None, speed="", visible=False)

    def begin(self, total: int) -> None:
        """A new image of so many tiles."""
        self._progress.reset(self._tiles, total=total, visible=total > 1)

    def advance(self, tiles: int) -> None:
        self.tiles += tiles
        self._progress.update(self._tiles, advance=tiles, speed=self._speed(self.tiles, "tiles"))

    def finish(self, slices: int) -> None:
        """A file is done, whose images are so many."""
        self.images += slices
        self._progress.update(self._files, advance=1, speed=self._speed(self.images, "images"))

    def _speed(self, count: int, what: str) -> str:
        return f"{count / max(time.monotonic() - self._started, 1e-9):.2f} {what}/s"


@contextlib.contextmanager
def _progress(files: int) -> Iterator[_Bar]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield _Bar(progress, files)
