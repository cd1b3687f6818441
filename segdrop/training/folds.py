"""A training of a sweep: one arm on one fold."""

import time
import warnings
from pathlib import Path

import numpy as np

from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.splits import part_of
from ..folders.run import create_run, lock_training, start_run
from ..folders.state import best_epoch
from ..scoring.counts import constant_dice
from ..scoring.score import score
from .building import build_model, rebase, record_of, start_from
from .device import choose_device
from .finishing import finish
from .samples import Samples, augmentation_of
from .session import Session

_TIMED_STEPS = 5


def train_fold(
    config: TrainConfig, run_dir: Path, dataset: Dataset, split: dict[str, np.ndarray], precision: str, weights: str
) -> dict:
    """Train one of many: a run's folder without pictures, TensorBoard events and state, and nothing on the terminal.

    Args:
        config: the configuration; what it says of data, split, precision and weights is overruled by the arguments.
        run_dir: the run's folder, a new one.
        dataset: the data set.
        split: indices of the "train", "val" and "test" images; the test images are not touched.
        precision: off, float16 or bfloat16.
        weights: path of the encoder's weight file, or "random".

    Returns:
        dice, iou, ece, ece_foreground and brier of the best model on the validation images, None where undefined;
        train_dice, its Dice on as many training images, evenly spread, dropout off; constant_dice, the Dice of one
        class for all pixels of the validation images; best_epoch, counted from 0; epochs; train_images and val_images,
        how many there were; train_groups, the number of groups of the former, None where there are none; device, in
        words.

    Raises:
        Diverged: the loss or the weights are no longer finite.
    """
    device, _ = choose_device(precision, config.deterministic)
    samples = _samples(config, dataset, split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, when the sweep was started
        model = build_model(config, dataset.class_names, weights, precision)
    start = start_from(model, config)
    rebase(model, samples)
    record = record_of(samples, model, run_dir, device=device, precision=precision, weights=weights, start=start)
    # The best model, twice while one replaces the other.
    create_run(run_dir, needed_bytes=2 * 4 * model.count_params())
    session = Session(run_dir, model, samples)
    with lock_training(run_dir):
        start_run(run_dir, record, dataset, samples.split)
        session.fit()
        # The test images of a sweep are for its chosen arm, once, and when they are asked for.
        finished = finish(run_dir, samples, ("val",))
    scores = finished.metrics["val"]
    images = {name: len(samples.split[name]) for name in ("train", "val")}
    spread = np.linspace(0, images["train"] - 1, min(images.values())).round().astype(int)
    counts = session.validation_counts()
    seen = score(finished.predicting.predict_on_batch, samples.evaluation("train", spread), dataset.class_names)
    return {
        **{key: scores[key] for key in ("dice", "iou")},
        **{key: scores["calibration"][key] for key in ("ece", "ece_foreground", "brier")},
        "train_dice": seen["dice"],
        "constant_dice": None if counts is None else constant_dice(counts),
        "best_epoch": best_epoch(session.history),
        "epochs": len(session.history),
        "train_images": images["train"],
        "val_images": images["val"],
        "train_groups": len({dataset.groups[i] for i in samples.split["train"]}) if dataset.grouped else None,
        "device": device,
    }


def _samples(config: TrainConfig, dataset: Dataset, split: dict[str, np.ndarray]) -> Samples:
    part = part_of(dataset, split["train"], config.train_fraction, config.seed)
    return Samples(config, dataset.scaled(config.scale), {**split, "train": part}, augmentation_of(config))


def time_training(config: TrainConfig, dataset: Dataset, split: dict[str, np.ndarray], precision: str) -> float:
    """Estimate the seconds that `train_fold` takes from a few timed steps; patience may end it earlier."""

    def timed(call, *arguments) -> float:
        started = time.monotonic()
        call(*arguments)
        return time.monotonic() - started

    started = time.monotonic()
    samples = _samples(config, dataset, split)
    model = build_model(config, dataset.class_names, None, precision)
    session = Session(Path(), model, samples)
    session.compile(0, frozen=False)
    batches = list(samples.training(0, 1).repeat().take(_TIMED_STEPS + 1))
    validation = [session.validation.read(batch)[0] for batch in session.validation.plan[:_TIMED_STEPS]]
    building = time.monotonic() - started
    # The first call of each function includes tracing it.
    tracing, *steps = [timed(session.trained.train_on_batch, *batch) for batch in batches]
    tracing += timed(session.predicting.predict_on_batch, validation[0])
    image = float(
        np.median([timed(session.predicting.predict_on_batch, images) / len(images) for images in validation])
    )
    epoch = session.steps * float(np.median(steps)) + len(split["val"]) * image
    # The best model is loaded, traced again and scored on two sets of images.
    return 2 * building + 2 * tracing + session.epochs * epoch + 2 * len(split["val"]) * image
