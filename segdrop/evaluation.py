"""Scores of a trained run on a split of a data set."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from . import layers as layers  # registers them for models that hold them
from .dataset import Dataset, open_dataset
from .errors import InputError
from .metrics import confusion_counts, dice_from_counts, foreground_mean, iou_from_counts, to_labels
from .pipeline import EvaluationBatches, evaluation_batches
from .run import METRICS, MODEL, SPLIT, open_run, read_csv, stored_config, write_json


def evaluate(run: str | os.PathLike, data: str | os.PathLike | None = None, split: str = "test") -> dict:
    """Score a run's best model on whole images and store the result in its metrics.json.

    Args:
        run: the run's folder.
        data: a data set; by default the run's own, with the split that the run made.
        split: `"train"`, `"val"`, `"test"`, or `"all"`. Another data set than the run's own must give this split
            in its splits.csv, or be scored as a whole with `"all"`.

    Returns:
        The headline `dice` and `iou`: means over the foreground classes of the scores over all pixels of the split
        (micro), at threshold 0.5 or argmax; and under `classes`, for each class, the micro scores, the mean over the
        images where they are defined (`dice_per_image`), and the number of images where they are not. A score that is
        undefined everywhere is None.

    Raises:
        FileNotFoundError, InputError: the run or the data cannot be used, or the split is empty.
    """
    run = Path(run)
    record = open_run(run)
    if not (run / MODEL).is_file():
        raise InputError(f"{run} has no {MODEL} yet: no epoch has ended.")
    config = stored_config(run)
    own = data is None or Path(data).resolve() == Path(config.data).resolve()
    dataset = open_dataset(
        config.data if data is None else data,
        classes=record["classes"],
        ignore_value=config.ignore_value,
        cache_mb=config.cache_mb,
    )
    indices = recorded_split(run, dataset, split) if own else _given_split(dataset, split)
    if not len(indices):
        raise InputError(f"{dataset.path} has no image in the split {split!r}.")
    model = keras.saving.load_model(run / MODEL, compile=False)
    batches = evaluation_batches(dataset, indices, config.batch_size * config.crop_size**2)
    result = score(model, batches, dataset.class_names)
    result = {"data": str(dataset.path), "data_sha256": dataset.digest, **result}
    if own and dataset.digest != record["data_sha256"]:
        result["warning"] = "the data set has changed since the training"
    store_scores(run, split if own else f"{dataset.path}/{split}", result)
    return result


def score(model: keras.Model, batches: EvaluationBatches, class_names: Sequence[str]) -> dict:
    """Scores of `model` on all images of `batches`; see `evaluate` for what they are."""
    count = len(class_names)
    per_image = []
    for batch in batches.plan:
        images, truth = batches.read(batch)
        labels = to_labels(model.predict_on_batch(images))
        per_image += [confusion_counts(t[..., 0], p, count) for t, p in zip(truth, labels, strict=True)]
    per_image = np.array(per_image)
    micro = per_image.sum(axis=0)
    table = {"dice": dice_from_counts(micro), "iou": iou_from_counts(micro)}
    image_dice, image_iou = dice_from_counts(per_image), iou_from_counts(per_image)
    classes = {
        name: {
            "dice": _number(table["dice"][i]),
            "iou": _number(table["iou"][i]),
            "dice_per_image": _mean_defined(image_dice[:, i]),
            "iou_per_image": _mean_defined(image_iou[:, i]),
            "images_undefined": int(np.isnan(image_dice[:, i]).sum()),
            "true_positives": int(micro[i, 0]),
            "false_positives": int(micro[i, 1]),
            "false_negatives": int(micro[i, 2]),
        }
        for i, name in enumerate(class_names)
    }
    return {
        "images": len(per_image),
        "dice": _number(foreground_mean(table["dice"])),
        "iou": _number(foreground_mean(table["iou"])),
        "classes": classes,
    }


def store_scores(run: Path, key: str, result: dict) -> None:
    """Put a result into the run's metrics.json beside those already there."""
    path = run / METRICS
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**stored, key: result})


def recorded_split(run: Path, dataset: Dataset, split: str) -> np.ndarray:
    """Indices of the images that the run's split.csv has in `split` ("all": in any)."""
    rows = read_csv(run / SPLIT)
    wanted = [row["id"] for row in rows if split in (row["split"], "all")]
    position = {name: i for i, name in enumerate(dataset.ids)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise InputError(f"{dataset.path} lacks {len(missing)} image(s) of the run's split; first: {missing[0]}.")
    return np.array([position[name] for name in wanted], int)


def _given_split(dataset: Dataset, split: str) -> np.ndarray:
    if split == "all":
        return np.arange(len(dataset))
    if dataset.splits is None:
        raise InputError(f"{dataset.path} gives no split; score all of it with split='all' (--split all).")
    return np.flatnonzero(np.array(dataset.splits) == split)


def _mean_defined(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _number(score: float) -> float | None:
    """JSON has no NaN: an undefined score is null."""
    return None if np.isnan(score) else float(score)
