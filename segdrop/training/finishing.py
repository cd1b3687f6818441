"""What is made of a run when its last epoch has ended: scores, pictures, and a folder that says so."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ..files import remove_partial, write_atomically
from ..folders.run import MODEL, RECALIBRATION, TEMPERATURE, store_all_scores
from ..folders.state import remove_states
from ..nets.batchnorm import recalibrate_batchnorm
from ..nets.stored import load_model
from ..scoring.counts import to_labels
from ..scoring.score import predictions, score, score_images
from ..scoring.temperature import PIXELS, Temperature, fit_temperature, sample_pixels, tempered
from ..show import plots
from ..surgery.folding import folded
from .samples import Samples

_TRAINED = ".trained.keras"  # the best model before its BatchNorms were recalibrated


@dataclass(frozen=True)
class Finished:
    """What a finished run has come to.

    Attributes:
        model: the best one.
        predicting: what predicts like it, in less time.
        metrics: its scores by split.
        recalibration: what re-estimating BatchNorm's statistics has changed, or None where it was not asked for.
        temperature: of the probabilities that were scored, or None where it was not asked for or could not be told.
    """

    model: keras.Model
    predicting: keras.Model
    metrics: dict[str, dict]
    recalibration: Mapping | None
    temperature: Temperature | None


def finish(
    run_dir: Path,
    samples: Samples,
    splits: Sequence[str],
    draw: Callable[[keras.Model], object] | None = None,
    *,
    calibrate: bool = False,
) -> Finished:
    """Score the best model on the images of `splits`, those that have any, and declare the run finished.

    Wherever it is killed, it comes to the same when it is called again.

    Args:
        draw: makes the pictures that belong into the folder, given the best model.
        calibrate: fit a temperature to the validation images first, with which probabilities are scored.
    """
    trained = run_dir / _TRAINED
    if samples.config.recalibrate_batchnorm and not trained.is_file():
        write_atomically(trained, lambda path: shutil.copyfile(run_dir / MODEL, path))
    model = load_model(trained if trained.is_file() else run_dir / MODEL)
    recalibration = recalibrate(model, run_dir / MODEL, samples) if samples.config.recalibrate_batchnorm else None
    dataset, metrics, rows = samples.dataset, {}, {}
    multilabel, twin = dataset.multilabel, folded(model)  # as `segdrop evaluate` predicts
    fitted = temperature_of(twin, samples) if calibrate else None
    temperature = fitted.value if fitted else 1.0
    for name in splits:
        if len(samples.split[name]):
            scores, rows[name] = score_images(
                lambda images: tempered(twin.predict_on_batch(images), temperature, multilabel),
                samples.evaluation(name),
                dataset.class_names,
                temperature=temperature,
                tune=name == "val",
                threshold=metrics.get("val", {}).get("tuned_threshold"),
            )
            metrics[name] = {"data": str(dataset.path), "data_sha256": dataset.digest, **scores}
    if draw is not None:
        draw(twin)
    told = dict(metrics)
    if fitted:
        told[TEMPERATURE] = dataclasses.asdict(fitted)
    if recalibration:
        told[RECALIBRATION] = recalibration
    store_all_scores(run_dir, told, rows)
    remove_states(run_dir)
    trained.unlink(missing_ok=True)
    remove_partial(run_dir)
    return Finished(model, twin, metrics, recalibration, fitted)


def temperature_of(model: keras.Model, samples: Samples) -> Temperature | None:
    """The temperature that fits the validation images, where there are any: as many pixels of each, on its own grid."""
    count, rng = len(samples.split["val"]), np.random.default_rng(samples.config.seed)
    if not count:
        return None
    drawn = [
        sample_pixels(probabilities, truth, -(-PIXELS // count), rng)
        for _, truths, maps in predictions(model.predict_on_batch, samples.evaluation("val"))
        for probabilities, truth in zip(maps, truths, strict=True)
    ]
    return fit_temperature(*map(np.concatenate, zip(*drawn, strict=True)), samples.dataset.multilabel)


def recalibrate(model: keras.Model, path: Path, samples: Samples) -> dict:
    """Re-estimate BatchNorm's statistics on an epoch of training crops, unmixed ones, as images in use are; keep them
    unless validation Dice falls.

    Args:
        model: the network, changed in place.
        path: its file, which is written anew where they are kept.
    """

    def dice() -> float | None:
        return score(model.predict_on_batch, samples.evaluation("val"), samples.dataset.class_names)["dice"]

    before, old = dice(), [np.asarray(weight) for weight in model.non_trainable_weights]
    last = samples.config.epochs
    recalibrate_batchnorm(model, (images for images, _ in samples.training(last, last + 1, mixed=False)))
    after = dice()
    kept = before is None or (after is not None and after >= before)
    if kept:
        write_atomically(path, model.save)
    else:
        for weight, value in zip(model.non_trainable_weights, old, strict=True):
            weight.assign(value)
    return {"val_dice_before": before, "val_dice_after": after, "kept": kept}


def example_panels(model: keras.Model, samples: Samples, count: int) -> tuple[list[np.ndarray], list[str]]:
    """Panels of validation images (else of training images), evenly spread over the split, and the images' ids."""
    batches = samples.evaluation("val" if len(samples.split["val"]) else "train")
    members = [batch[0] for batch in batches.plan]
    chosen = [members[i] for i in np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)]
    panels, context, multilabel = [], samples.config.context_slices, samples.dataset.multilabel
    for index in chosen:
        images, truth = batches.read([index])
        predicted = to_labels(model.predict_on_batch(images), multilabel=multilabel)[0]
        panels.append(plots.panel(plots.visible(images[0], context), truth[0, ..., 0], predicted, multilabel))
    return panels, [samples.dataset.ids[index] for index in chosen]
