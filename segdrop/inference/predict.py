"""Masks, probabilities and uncertainty of whole image files, written to a folder."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from ..config.checks import check_rate, check_type, check_whole
from ..config.predict import PredictOptions
from ..conventions import OVERLAP, TILE
from ..data.tiles import in_numbered_tiles
from ..data.values import Values, constant_images, faint_images, unlike_training
from ..errors import InputError
from ..files import write_csv
from ..interrupts import check
from ..locks import locked
from ..scoring.uncertainty import Uncertainty, from_moments
from ..show.tables import Table
from .ensemble import Function, combine, load_alike
from .inputs import LOG, PREDICTIONS, Job, describe_source, find_inputs, is_current, prepare_jobs
from .network import Network, resize
from .progress import progress_bar
from .writer import Writer


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
        warnings: what the user has to know of the images of this call, one sentence each.
    """

    out: Path
    files: Table
    failed: int
    images_per_second: float
    tiles_per_second: float
    warnings: tuple[str, ...] = ()


def predict(
    run: str | os.PathLike | Network | keras.Model,
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
    and one `predictions.csv`. No file is there in part, and those of an image appear together or not at all. A file
    that cannot be read is reported in `files` and skipped.

    Memory holds a row of tiles, not the image, for images above 67 million pixels. These are resumed at the row of
    tiles where they were interrupted.

    Args:
        run: a finished sweep's folder (its folds' models), what `segdrop.load` gave, or what it takes: a run's
            folder, an exported ONNX file, a Keras model or its `.keras` file.
        inputs: files, folders (searched with their subfolders) and globs.
        out: the folder to write to, new unless `resume`.
        resume: go on in `out` where an earlier call with the same options was interrupted.
        options: the fields of `PredictOptions`: ensemble, tile, overlap, margin, tta, mc_samples, mc_rate, seed,
            uncertainty, probabilities, overlay, threshold, precision, engine.

    Raises:
        FileNotFoundError, FileExistsError, InputError: a run, the inputs, the folder or an option cannot be used, or
            another process writes to the folder.
        OSError: a result cannot be written.

    Example:
        >>> done = segdrop.predict("runs/first", ["image.png"], "masks", overlay=True)
        >>> done.files[0]["mask"], done.failed
        ('image.png', 0)
        >>> sorted(path.name for path in done.out.iterdir())
        ['image.png', 'image_overlay.png', 'predict.json', 'predictions.csv']
    """
    chosen = PredictOptions(**options)
    check_type(resume, "resume", bool)
    out = Path(out)
    jobs = find_inputs(inputs, out)
    networks = load_alike([run, *chosen.ensemble], chosen.precision, chosen.engine)
    if chosen.threshold is not None and not networks[0].takes_threshold:
        raise InputError(
            f"`threshold` has no effect on {networks[0].path}, which takes the most probable of its classes."
        )
    function = function_of(networks, chosen)
    settings = describe_source(networks, chosen)
    done = prepare_jobs(out, settings, resume)
    with locked(out, "predicting", "is being written", "wait for it or choose another `out`"):
        writer = Writer(out, networks[0], function, chosen, settings)
        return _write_all(jobs, done, writer)


def _write_all(jobs: Sequence[Job], done: Mapping[str, dict], writer: Writer) -> Predictions:
    """Predict all files but those that are `done` and have not changed since."""
    named = {job.name for job in jobs}
    rows = [row for name, row in done.items() if name not in named]  # of other images, which an earlier call predicted
    out, started = writer.out, time.monotonic()
    with progress_bar(len(jobs)) as bar:
        for job in jobs:
            check()
            row = done.get(job.name)
            if row and row["status"] == "ok" and is_current(row, job, out):
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
    told = remarks(writer.network, writer.values, writer.constant)
    return Predictions(out, Table(rows, keys=columns), failed, bar.images / seconds, bar.tiles / seconds, told)


def remarks(network: Network, values: Sequence[Values], constant: Sequence[str]) -> tuple[str, ...]:
    """What is to be said of the values of the images that were predicted, and by name of those of one value."""
    if not values:
        return ()
    if network.values is None:  # an earlier version's
        told = faint_images(Values.of_all(values), f"{len(values)} image(s)", network.intensity.rule)
    else:
        told = unlike_training(values, network.values, network.intensity.rule)
    return (*told, *constant_images(constant))


def predict_uncertainty(
    run: str | os.PathLike | Network | keras.Model | Sequence[str | os.PathLike | Network | keras.Model],
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
        run: a finished sweep's folder (its folds' models), what `segdrop.load` gave, or what it takes (a run's folder,
            a Keras model), or several of them.
        image: an array with its own values, as `Network.preprocess` takes it, or the file of a single image.
        samples: Monte Carlo dropout samples of each network; 0: each predicts once, without dropout, so that what
            differs is the networks (or the views of `tta`).
        seed, rate: of the samples, see `surgery.sampling.MonteCarlo`.
        tta, tile, overlap: as in `predict`.
        spacing: (row, column) mm per pixel of an array, where the network needs it.

    Returns:
        maps of the image's size; see `segdrop.Uncertainty`.

    Example:
        >>> unsure = segdrop.predict_uncertainty("runs/first", "image.png", samples=5, rate=0.2)
        >>> unsure.mean.shape, unsure.mutual_information.shape
        ((128, 128, 1), (128, 128))
        >>> bool((unsure.mutual_information <= unsure.predictive_entropy).all())
        True
    """
    runs = list(run) if isinstance(run, (list, tuple)) else [run]
    if not runs:
        raise InputError("`run` is empty; give a run's folder, or several.")
    check_whole(samples, "samples", minimum=0)
    if rate is not None:
        check_rate(rate)
        if not samples:
            raise InputError("`rate` needs samples.")
    chosen = PredictOptions(
        tile=tile, overlap=overlap, tta=tta, mc_samples=samples, mc_rate=rate, seed=seed, uncertainty=True
    )
    networks = load_alike(runs)
    bounds = None
    if isinstance(image, (str, os.PathLike)):
        picture = networks[0].open(image)
        if picture.slices is not None:
            raise InputError(f"`image` has {picture.slices} slices: {image}; give one of them as an array.")
        bounds, spacing, image = networks[0].intensity.bounds(picture), spacing or picture.spacing, picture.read()
    prepared = networks[0].preprocess(image, bounds=bounds, spacing=spacing)
    means = in_numbered_tiles(function_of(networks, chosen), prepared, tile, overlap)
    return from_moments(resize(means, np.shape(image)[:2]), networks[0].multilabel)


def function_of(networks: Sequence[Network], options: PredictOptions) -> Function:
    """What the networks together say of images, as the options ask for it."""
    return combine(
        networks,
        tta=options.tta,
        moments_wanted=options.keeps_moments,
        mc_samples=options.mc_samples,
        mc_rate=options.mc_rate,
        seed=options.seed,
    )
