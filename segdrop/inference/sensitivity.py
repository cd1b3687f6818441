"""Where would dropout help? How much a trained network leans on each stage, on training and on validation images."""

import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from ..config.checks import Seed, check_whole, is_finite
from ..data.batches import EvaluationBatches, evaluation_batches
from ..data.dataset import Dataset
from ..data.opening import open_configured
from ..errors import InputError
from ..folders.run import RunRecord, open_run, recorded_split
from ..nets.sites import bypass, placement_sites, stages, unit_rates
from ..scoring.counts import confusion_counts, to_labels
from ..scoring.falls import compare_falls, dice_of_present
from ..scoring.score import Forward, predictions
from ..show.sensitivity import Sensitivities
from ..surgery.dropout import insert_dropout, remove_dropout
from ..surgery.sampling import MonteCarlo
from .network import load
from .progress import progress_bar

PLACEMENT, SPLITS = "between_convs", ("train", "val")


def sensitivity(
    run: str | os.PathLike, *, rate: float = 0.2, samples: int = 5, images: int = 100, seed: int = 0
) -> Sensitivities:
    """How much Dice falls where dropout is on in one stage of a run's encoder alone, stage by stage.

    Where the training images' Dice falls more than the validation images', they lean on what that stage has learnt
    of them: a hint that dropout might help there, whose worth docs/dropout.md tells. Nothing is trained. Dropout of
    the run's own is taken out, and spatial dropout is put where `train --dropout-blocks stageN` puts it.

    Args:
        run: the folder of a finished run, with or without dropout, whose data set is still there.
        rate: of the dropout, in (0, 1).
        samples: of each image, whose Dice is averaged: at least 1.
        images: of the training and of the validation split as many at most, drawn at random: at least 2.
        seed: of the images, the masks and the intervals' resampling.

    Returns:
        A row for each stage in the order of depth: stage; places: how many dropout layers it gets; train_fall: the mean
        over images of the fall in Dice, train_low and train_high: its 95% bootstrap interval over groups, where the
        data set has groups, else over images; val_fall, val_low, val_high; difference of the two falls, with
        difference_low and difference_high; and, alike in all rows, rate, samples, train_images and val_images (those
        with foreground), train_dice and val_dice without dropout. An image's Dice is the mean over the foreground
        classes that its truth has; ignored pixels are left out. `reading` says in words what the rows say.

    Raises:
        FileNotFoundError, InputError: there is no such run or data set, the run has no model yet or fewer than two
            images with foreground in a split, its encoder has no stages, or a number is out of its range.

    Example:
        >>> table = segdrop.sensitivity("runs/first", samples=2, images=4)
        >>> [(row["stage"], row["places"], row["train_images"]) for row in table]
        [('stage3', 1, 4)]

    References:
        Morcos et al. 2018, On the importance of single directions for generalization,
        https://arxiv.org/abs/1803.06959: networks that have memorised suffer more from maps set to zero.
    """
    _check(rate, samples, images, seed)
    run = Path(run)
    if run.is_file():
        raise InputError(f"`run` must be the folder of a run, which knows its images, got the file {run}.")
    record = open_run(run)
    model = load(run).model
    names = stages(model)
    if not names:
        raise InputError(
            f"{run} has the encoder {record.config.encoder}, which has no stages of residual units; compare places for "
            "dropout by `segdrop sweep --placements` instead."
        )
    dataset = open_configured(record.config, record.config.data, outputs=record.classes)
    if dataset.digest != record.data_sha256:
        warnings.warn(f"{dataset.path} has changed since {run} was trained.", stacklevel=2)
    batches = {split: _batches(run, record, dataset, split, images, seed) for split in SPLITS}
    model = remove_dropout(model, all=True)
    total = sum(len(batch) for part in batches.values() for batch in part.plan)
    with progress_bar(total * (1 + len(names))) as bar:

        def dice(split: str, forward: Forward, copies: int = 1) -> np.ndarray:
            return _dice(forward, copies, batches[split], record, bar.finish)

        plain = {split: dice(split, model.predict_on_batch)[:, 0] for split in SPLITS}
        for split, scores in plain.items():
            if np.count_nonzero(~np.isnan(scores)) < 2:
                raise InputError(f"{run} has fewer than two {split} images with foreground among {len(scores)}.")
        told = {"rate": float(rate), "samples": samples}
        told |= {f"{split}_images": int(np.count_nonzero(~np.isnan(plain[split]))) for split in SPLITS}
        told |= {f"{split}_dice": float(np.nanmean(plain[split])) for split in SPLITS}
        rows = []
        for name in names:
            dropped = _with_dropout(model, name, rate)
            sampler = MonteCarlo(dropped, samples, seed, multilabel=record.config.multilabel)
            falls = {
                split: plain[split] - dice(split, _numbered(sampler.each), samples).mean(axis=1) for split in SPLITS
            }
            groups = {split: _groups(part) for split, part in batches.items()}
            places = sum(layer.name not in _names(model) for layer in dropped.layers)
            rows.append({"stage": name, "places": places, **_told(falls, groups, seed), **told})
    return Sensitivities(rows)


def _check(rate: float, samples: int, images: int, seed: Seed) -> None:
    if not is_finite(rate) or not 0 < rate < 1:
        raise InputError(f"`rate` must be a number in (0, 1), got rate={rate!r}.")
    check_whole(samples, "samples")
    check_whole(images, "images", minimum=2)
    check_whole(seed, "seed", minimum=0)


def _batches(run: Path, record: RunRecord, dataset: Dataset, split: str, images: int, seed: int) -> EvaluationBatches:
    """So many images of a split at most, drawn at random, in batches."""
    indices = recorded_split(run, dataset, split)
    if len(indices) < 2:
        raise InputError(
            f"{run} has {len(indices)} image(s) in the split {split!r}; two are needed of train and of val."
        )
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    chosen = np.sort(rng.choice(indices, min(images, len(indices)), replace=False))
    return evaluation_batches(dataset, chosen, record.config.batch_size * record.config.crop_size**2)


def _with_dropout(model: keras.Model, stage: str, rate: float) -> keras.Model:
    """The network with spatial dropout where `build_unet(blocks=[stage], kind="spatial")` has it."""
    sites = placement_sites(model, PLACEMENT)
    units = unit_rates(model, sites, rate, [stage], PLACEMENT)
    rates = {site: unit_rate for unit, unit_rate in units.items() for site in sites[unit]}
    return insert_dropout(model, rates, kind="spatial", bypass=bypass(model, rates, PLACEMENT, None))


def _numbered(function: Callable[[np.ndarray, int], np.ndarray]) -> Forward:
    """A function that samples, with the numbers of its calls as keys."""
    keys = itertools.count()
    return lambda images: function(images, next(keys))


def _dice(
    forward: Forward, copies: int, batches: EvaluationBatches, record: RunRecord, done: Callable[[int], None]
) -> np.ndarray:
    """The Dice of each of `copies` predictions of each image, float64 (images, copies), in the order of the batches."""
    multilabel, classes, rows = record.config.multilabel, len(record.class_names), []
    for batch, truths, maps in predictions(forward, batches):
        for truth, of_image in zip(truths, maps, strict=True):
            labels = [
                to_labels(probabilities, multilabel=multilabel)
                for probabilities in np.split(np.asarray(of_image), copies, axis=-1)
            ]
            rows.append([confusion_counts(truth, pred, classes, multilabel) for pred in labels])
        done(len(batch))
    return dice_of_present(rows)


def _groups(batches: EvaluationBatches) -> list[str] | None:
    groups = batches.dataset.groups
    return [groups[index] for batch in batches.plan for index in batch] if batches.dataset.grouped else None


def _names(model: keras.Model) -> set[str]:
    return {layer.name for layer in model.layers}


def _told(falls: dict[str, np.ndarray], groups: dict[str, list[str] | None], seed: int) -> dict[str, float]:
    """What a row says of the falls."""
    train, val, difference = compare_falls(falls["train"], falls["val"], groups["train"], groups["val"], seed)
    row = {}
    for start, name, fall in (("train", "train_fall", train), ("val", "val_fall", val)):
        row |= {name: fall.mean, f"{start}_low": fall.low, f"{start}_high": fall.high}
    return {
        **row,
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }
