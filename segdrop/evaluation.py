"""Scores of a trained run on a split of a data set."""

import dataclasses
import itertools
import json
import math
import numbers
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import keras
import numpy as np

from .config import OVERLAP, TILE, TrainConfig, check_tile, check_whole
from .dataset import IGNORED, Dataset, open_dataset
from .errors import InputError
from .intensity import rule_of
from .metrics import (
    confusion_counts,
    dice_from_counts,
    foreground_mean,
    iou_from_counts,
    precision_from_counts,
    recall_from_counts,
    to_labels,
)
from .pipeline import EvaluationBatches, evaluation_batches
from .reliability import (
    BINS,
    aurc,
    aurc_images,
    auroc,
    auroc_images,
    brier_sum,
    error_histograms,
    expected_calibration_error,
    interval,
    reliability,
    risk_coverage,
    spearman_images,
)
from .run import METRICS, PER_IMAGE, SPLIT, open_run, read_csv, stored_config, write_csv, write_json
from .statistics import resampled_sums
from .surfaces import boundary_distances, hausdorff95_from_distances, surface_dice_from_distances
from .tables import Table
from .tiles import in_tiles
from .uncertainty import entropy, from_moments

TOLERANCE = 2.0  # of the surface Dice, in mm or pixels
OWN_SPLITS = ("train", "val", "test", "all")
THRESHOLDS = np.arange(1, 200) / 200  # among which the best on validation is chosen
_COUNTED = {
    "dice": dice_from_counts,
    "iou": iou_from_counts,
    "precision": precision_from_counts,
    "recall": recall_from_counts,
}


def evaluate(
    run: str | os.PathLike,
    data: str | os.PathLike | None = None,
    split: str = "test",
    *,
    mc_samples: int = 0,
    ensemble: Sequence[str | os.PathLike] = (),
    seed: int = 0,
    tolerance: float = TOLERANCE,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> dict:
    """Score a run's best model on whole images; store the scores in its metrics.json and per_image.csv.

    Args:
        run: the run's folder.
        data: a data set; by default the run's own, with the split that the run made.
        split: `"train"`, `"val"`, `"test"`, or `"all"`. Another data set than the run's own must give this split
            in its splits.csv, or be scored as a whole with `"all"`.
        mc_samples: samples of Monte Carlo dropout, for uncertainty; 0 for none.
        ensemble: further runs: uncertainty is then that of them and `run` together, of one prediction each, or of
            `mc_samples` each. The headline stays that of `run` alone.
        seed: of the samples, and of the intervals' resampling.
        tolerance: of the surface Dice, in mm where every image of the split has a spacing, else in pixels.
        tile: images with a longer side, in pixels, are predicted in tiles of this side, a multiple of 32.
        overlap: of the tiles in pixels, a multiple of 32.

    Returns:
        What metrics.json now has of it; see `score_images`. With one output channel, `tuned` are the scores at the
        threshold that is best on the run's validation split, which is scored first where it has not been; it is None
        where the run's own data set is no longer there.

    Raises:
        FileNotFoundError, InputError: the run or the data cannot be used, the split is empty, or the model has no
            dropout to sample from.
    """
    from .ensemble import combine, load_alike

    run = Path(run)
    check_whole(mc_samples, "mc_samples", minimum=0)
    check_whole(seed, "seed", minimum=0)
    check_tile(tile, overlap)
    if not isinstance(tolerance, numbers.Real) or not 0 <= tolerance < math.inf:
        raise InputError(f"`tolerance` must be a number of at least 0, got tolerance={tolerance!r}.")
    record, config = open_run(run), stored_config(run)
    networks = load_alike([run, *ensemble])
    network = networks[0]
    sampler = None
    if mc_samples or ensemble:
        sampler = combine(networks, moments_wanted=True, mc_samples=mc_samples, seed=seed)
    own = data is None or Path(data).resolve() == Path(config.data).resolve()
    binary = record["classes"] == 1
    options = {"seed": seed, "tolerance": tolerance, "tile": tile, "overlap": overlap}

    def scored(dataset: Dataset, indices: np.ndarray, key: str, own: bool, **more) -> dict:
        batches = evaluation_batches(dataset, indices, config.batch_size * config.crop_size**2)
        result, rows = score_images(network.model, batches, dataset.class_names, **options, **more)
        result = {"data": str(dataset.path), "data_sha256": dataset.digest, **result}
        if "uncertainty" in result:
            described = {"samples": mc_samples, "networks": len(networks), "seed": seed}
            result["uncertainty"] = {**described, **result["uncertainty"]}
        if binary:
            result.setdefault("tuned", None)
        if own and dataset.digest != record["data_sha256"]:
            result["warning"] = "the data set has changed since the training"
        store_scores(run, key, result, rows)
        return result

    dataset = open_data(config.data if data is None else data, record, config)
    indices = recorded_split(run, dataset, split) if own else _given_split(dataset, split)
    if not len(indices):
        raise InputError(f"{dataset.path} has no image in the split {split!r}.")
    tune, threshold = own and split == "val", None
    if binary and not tune:
        validated = _stored_scores(run).get("val", {})
        if "tuned_threshold" in validated:
            threshold = validated["tuned_threshold"]
        else:
            try:
                training_set = dataset if own else open_data(config.data, record, config)
                validation = recorded_split(run, training_set, "val")
            except (FileNotFoundError, InputError):
                if own:
                    raise
                validation = np.empty(0, int)  # a model may be scored where the data it was trained on is not
            if len(validation):
                threshold = scored(training_set, validation, "val", True, tune=True)["tuned_threshold"]
    key = split if own else f"{dataset.path}/{split}"
    return scored(dataset, indices, key, own, sampler=sampler, tune=tune, threshold=threshold)


def score(model: keras.Model, batches: EvaluationBatches, class_names: Sequence[str]) -> dict:
    """The scores alone of `score_images`."""
    return score_images(model, batches, class_names)[0]


def score_images(
    model: keras.Model,
    batches: EvaluationBatches,
    class_names: Sequence[str],
    *,
    sampler: Callable[[np.ndarray, int], np.ndarray] | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    tile: int = TILE,
    overlap: int = OVERLAP,
    tune: bool = False,
    threshold: float | None = None,
) -> tuple[dict, list[dict]]:
    """Score `model` on all images of `batches`.

    Args:
        model: with one output of probabilities.
        batches: the images.
        class_names: of class 0, 1, ...
        sampler: gives the moments of samples, to score uncertainty; see `segdrop.ensemble.combine`.
        seed, tolerance, tile, overlap: see `evaluate`.
        tune: with one output channel, find the threshold with the best micro Dice on these images, of validation.
        threshold: with one output channel, another threshold than 0.5 at which the scores `tuned` are taken.

    Returns:
        The scores, None where undefined, and for each image a row of per_image.csv; both for `store_scores`.
        `dice` and `iou`, the headline: means over the foreground classes of the scores over all pixels (micro), at
        threshold 0.5 or argmax. 95% bootstrap intervals (`..._interval`: [low, high]) are over groups where the data
        set has groups, else over images; there is none where fewer than two of them have the score.
        `classes`: for each class the micro scores `dice`, `iou`, `precision` and `recall`; means over the images where
        they are defined, `dice_per_image`, `iou_per_image`, `hd95`, `surface_dice`, with the number of those where
        they are not (`images_undefined`, `hd95_undefined`, `surface_dice_undefined`); and `dice_per_case`, the mean
        over groups, the counts of a group's images summed first. Distances are in `distance_unit`, mm or px, and are
        not taken for the background.
        `calibration`: `ece` and `ece_foreground` (pixels within 10 px of the foreground), `brier`, and the reliability
        diagram's bins. `error_detection`: how well the entropy of the prediction finds its errors.
        `uncertainty`, with a sampler: Dice, IoU and calibration of the samples' mean, and how well each kind of
        uncertainty finds the errors of the headline's prediction.
        `tuned` and, if it was found here, `tuned_threshold`.
        `seconds`, and `seconds_in_model`.
    """
    started = time.perf_counter()
    dataset = batches.dataset
    members = [index for batch in batches.plan for index in batch]
    spacings = {index: dataset.spacing_of(index) for index in members}
    in_mm = all(spacings.values())
    clock = _Clock()
    predicted = _predictions(model, sampler, batches, dataset.sizes, tile, overlap, clock)
    tally = _Tally(len(class_names), sampler is not None, tolerance, tune, threshold)
    with ThreadPoolExecutor(1) as pool:
        added = None
        for batch, truths, maps in predicted:
            if added:
                added.result()  # while the model runs a batch the one before is scored, and no earlier one is held
            added = pool.submit(tally.add, truths, maps, [spacings[index] if in_mm else None for index in batch])
        if added:
            added.result()
    groups = [dataset.groups[index] for index in members] if dataset.grouped else None
    result = _summary(tally, class_names, groups, "mm" if in_mm else "px", seed)
    rows = [
        {"id": dataset.ids[index], **_row(image, class_names)}
        for index, image in zip(members, tally.images, strict=True)
    ]
    result["seconds"] = round(time.perf_counter() - started, 3)
    result["seconds_in_model"] = round(clock.seconds, 3)
    return result, rows


def store_scores(run: Path, key: str, result: Mapping, rows: Sequence[Mapping] = ()) -> None:
    """Put a result into the run's metrics.json, and its images' rows into per_image.csv, beside the other splits'."""
    if rows:
        _store_rows(run, key, rows)
    write_json(run / METRICS, {**_stored_scores(run), key: result})


def recorded_split(run: Path, dataset: Dataset, split: str) -> np.ndarray:
    """Indices of the images that the run's split.csv has in `split` ("all": in any)."""
    rows = read_csv(run / SPLIT)
    wanted = [row["id"] for row in rows if split in (row["split"], "all")]
    position = {name: i for i, name in enumerate(dataset.ids)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise InputError(f"{dataset.path} lacks {len(missing)} image(s) of the run's split; first: {missing[0]}.")
    return np.array([position[name] for name in wanted], int)


def scores_table(result: Mapping) -> list[Table]:
    """A result of `evaluate` as tables for a terminal of 100 columns, with 95% intervals in brackets."""
    classes = result["classes"]
    unit = result["distance_unit"]
    over = "images" if result["groups"] is None else f"images of {result['groups']} groups"
    pixels = [
        {"class": name, **{_TITLES[key]: _with_interval(scores, key) for key in _COUNTED}}
        for name, scores in classes.items()
    ]
    blank = dict.fromkeys(list(pixels[0])[3:], "")
    mean = {_TITLES[key]: _with_interval(result, key) for key in ("dice", "iou")}
    pixels.append({"class": "foreground mean", **mean, **blank})
    if result.get("tuned"):
        tuned = {_TITLES[key]: _shown(result["tuned"][key]) for key in ("dice", "iou")}
        pixels.append({"class": f"tuned, threshold {result['tuned']['threshold']:g}", **tuned, **blank})
    tables = [Table(pixels, f"All pixels of {result['images']} {over} [95% interval]")]

    means = [
        {
            "class": name,
            "Dice per image": _with_interval(scores, "dice_per_image"),
            "images without it": scores["images_undefined"],
            **({} if result["groups"] is None else {"Dice per group": _with_interval(scores, "dice_per_case")}),
        }
        for name, scores in classes.items()
    ]
    tables.append(Table(means, "Means over images where defined [95% interval]"))

    boundaries = [
        {
            "class": name,
            f"HD95, {unit}": _with_interval(scores, "hd95", digits=1),
            "undefined": scores["hd95_undefined"],
            f"surface Dice, {result['surface_tolerance']:g} {unit}": _with_interval(scores, "surface_dice"),
            "undefined ": scores["surface_dice_undefined"],
        }
        for name, scores in itertools.islice(classes.items(), 1, None)
    ]
    tables.append(Table(boundaries, "Boundaries, means over images where defined [95% interval]"))

    calibrated = {"single pass": result["calibration"]}
    sampled = result.get("uncertainty")
    if sampled:
        calibrated[f"mean of {sampled_in_words(sampled)}"] = sampled["calibration"]
    rows = [
        {
            "prediction": name,
            "ECE": _shown(calibration["ece"]),
            "ECE near foreground": _shown(calibration["ece_foreground"]),
            "Brier": _shown(calibration["brier"], digits=4),
        }
        for name, calibration in calibrated.items()
    ]
    tables.append(Table(rows, "Calibration"))
    if sampled:
        rows = [
            {
                "uncertainty": name.replace("_", " "),
                **{title: _shown(found[key], digits=4) for key, title in _FOUND.items()},
            }
            for name, found in sampled["scores"].items()
        ]
        tables.append(Table(rows, "How well uncertainty finds the prediction's errors"))
    return tables


def sampled_in_words(uncertainty: Mapping) -> str:
    """What the uncertainty of a result was computed from."""
    samples, networks = uncertainty["samples"], uncertainty.get("networks", 1)
    parts = [f"{samples} Monte Carlo samples"] if samples else []
    return " of each of ".join([*parts, f"{networks} networks"] if networks > 1 else parts)


_FOUND = {
    "auroc_pixels": "AUROC",
    "aurc_pixels": "AURC",
    "auroc_images": "AUROC of images",
    "aurc_images": "AURC of images",
    "spearman_images": "Spearman of images",
}
_TITLES = {"dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall"}


def _shown(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _with_interval(scores: Mapping, key: str, digits: int = 3) -> str:
    bounds = scores[f"{key}_interval"]
    inner = max(1, digits - 1)
    return _shown(scores[key], digits) + (f" [{bounds[0]:.{inner}f}, {bounds[1]:.{inner}f}]" if bounds else "")


@dataclasses.dataclass
class _Tally:
    """What is to be computed, and what the images so far have given: of each its own, and sums over all."""

    classes: int
    sampled: bool
    tolerance: float
    tune: bool
    threshold: float | None
    images: list[dict] = dataclasses.field(default_factory=list)
    sums: dict = dataclasses.field(default_factory=dict)

    def add(self, truths: Sequence[np.ndarray], maps: Sequence[np.ndarray], spacings: Sequence) -> None:
        for truth, of_image, spacing in zip(truths, maps, spacings, strict=True):
            image, more = _score_image(np.ascontiguousarray(truth), of_image, spacing, self)
            self.images.append(image)
            for name, value in more.items():
                self.sums[name] = self.sums.get(name, 0) + value


@dataclasses.dataclass
class _Clock:
    seconds: float = 0.0


def open_data(data: str | os.PathLike, record: Mapping, config: TrainConfig, *, cache_mb: int | None = None) -> Dataset:
    """A data set as the run reads them; `cache_mb` is the run's unless given."""
    return open_dataset(
        data,
        classes=record["classes"],
        ignore_value=config.ignore_value,
        cache_mb=config.cache_mb if cache_mb is None else cache_mb,
        intensity=rule_of(config),
        spacing=config.spacing,
        slice_axis=config.slice_axis,
    )


def _given_split(dataset: Dataset, split: str) -> np.ndarray:
    if split == "all":
        return np.arange(len(dataset))
    if dataset.splits is None:
        raise InputError(f"{dataset.path} gives no split; score all of it with split='all' (--split all).")
    return np.flatnonzero(np.array(dataset.splits) == split)


def _predictions(
    model: keras.Model,
    sampler: Callable[[np.ndarray, int], np.ndarray] | None,
    batches: EvaluationBatches,
    sizes: np.ndarray,
    tile: int,
    overlap: int,
    clock: _Clock,
) -> Iterator[tuple[list[int], list[np.ndarray], list[np.ndarray]]]:
    """Batch by batch the images' indices, truths (H, W) and maps (H, W, K), without the padding.

    The maps are float32: the C probabilities, then, with a sampler, the 2C + 1 moments.
    """
    keys = itertools.count()

    def forward(images: np.ndarray) -> np.ndarray:
        maps = np.asarray(model.predict_on_batch(images), np.float32)
        return np.concatenate([maps, sampler(images, next(keys))], axis=-1) if sampler else maps

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(batches.read, batches.plan[0])
        for batch, following in itertools.zip_longest(batches.plan, batches.plan[1:]):
            images, truths = ahead.result()
            if following:
                ahead = pool.submit(batches.read, following)
            started = time.perf_counter()
            parts = [(slice(0, int(height)), slice(0, int(width))) for height, width in sizes[batch]]
            if max(images.shape[1:3]) <= tile:
                maps = [one[part] for one, part in zip(forward(images), parts, strict=True)]
            else:
                maps = [in_tiles(forward, one[part], tile, overlap) for one, part in zip(images, parts, strict=True)]
            clock.seconds += time.perf_counter() - started
            yield batch, [one[part][..., 0] for one, part in zip(truths, parts, strict=True)], maps


def _score_image(
    truth: np.ndarray, maps: np.ndarray, spacing: tuple[float, float] | None, settings: _Tally
) -> tuple[dict, dict]:
    """What an image gives of its own, and what is only summed over images; `maps` as in `_predictions`."""
    channels = (maps.shape[-1] - 1) // 3 if settings.sampled else maps.shape[-1]
    probabilities = np.ascontiguousarray(maps[..., :channels])
    pred = to_labels(probabilities)
    uncertainty = {"single_pass_entropy": entropy(probabilities)}
    image = {
        "counts": confusion_counts(truth, pred, settings.classes),
        "distances": _distances(truth, pred, spacing, settings),
    }
    sums = {"bins": reliability(probabilities, truth, pred), "brier": brier_sum(probabilities, truth)}
    if settings.tune and channels == 1:
        sums["thresholds"] = _threshold_histograms(probabilities[..., 0], truth)
    if settings.threshold is not None:
        sums["tuned"] = confusion_counts(truth, to_labels(probabilities, settings.threshold))
    if settings.sampled:
        sampled = from_moments(maps[..., channels:])
        mean = np.ascontiguousarray(sampled.mean)
        labels = to_labels(mean)
        sums["mc_counts"] = confusion_counts(truth, labels, settings.classes)
        sums["mc_bins"], sums["mc_brier"] = reliability(mean, truth, labels), brier_sum(mean, truth)
        for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
            uncertainty[name] = getattr(sampled, name)
    valid = (truth != IGNORED).view(np.uint8)
    image["uncertainty"] = {
        name: cv2.mean(one, valid)[0] if valid.any() else math.nan for name, one in uncertainty.items()
    }
    sums |= {f"errors_{name}": error_histograms(one, truth, pred) for name, one in uncertainty.items()}
    return image, sums


def _distances(truth: np.ndarray, pred: np.ndarray, spacing, settings: _Tally) -> np.ndarray:
    """Hausdorff distance and surface Dice of each class, float64 (classes, 2); NaN for the background."""
    scores = np.full((settings.classes, 2), np.nan)
    pred = np.where(truth == IGNORED, 0, pred)
    for index in range(1, settings.classes):
        distances = boundary_distances(truth == index, pred == index, spacing)
        scores[index, 0] = hausdorff95_from_distances(distances)
        scores[index, 1] = surface_dice_from_distances(distances, settings.tolerance)
    return scores


def _threshold_histograms(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many of THRESHOLDS the pixels of background and foreground reach, int64 (2, 200)."""
    valid = truth != IGNORED
    reached = np.searchsorted(THRESHOLDS.astype(np.float32), probability[valid], side="right")
    bins = len(THRESHOLDS) + 1
    return np.bincount(reached + bins * truth[valid], minlength=2 * bins).reshape(2, bins)


def _tuned(histograms: np.ndarray) -> dict | None:
    """The threshold with the best Dice, of equal ones the nearest to 0.5, and its scores; None where undefined."""
    reached = histograms[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # pixels at or above each threshold
    fp, tp = reached
    counts = np.stack([tp, fp, histograms[1].sum() - tp], axis=1)
    dice = dice_from_counts(counts)
    if np.isnan(dice).all():
        return None
    best = np.flatnonzero(dice == np.nanmax(dice))
    chosen = best[np.abs(THRESHOLDS[best] - 0.5).argmin()]
    return {
        "threshold": float(THRESHOLDS[chosen]),
        "dice": _number(dice[chosen]),
        "iou": _number(iou_from_counts(counts[chosen])),
    }


def _summary(tally: _Tally, class_names: Sequence[str], groups: Sequence[str] | None, distance_unit, seed) -> dict:
    """Most of the scores of `score_images`; `groups` of the images in their order."""
    images, sums = tally.images, tally.sums
    counts = np.array([image["counts"] for image in images])
    distances = np.array([image["distances"] for image in images])
    names, unit = np.unique(groups, return_inverse=True) if groups else (None, np.arange(len(images)))
    units = len(images) if names is None else len(names)

    # Per image and class, whose means over images are scores, and per group and class.
    means = {
        "dice_per_image": dice_from_counts(counts),
        "iou_per_image": iou_from_counts(counts),
        "hd95": distances[..., 0],
        "surface_dice": distances[..., 1],
    }
    columns = [_add_up(counts, unit, units), *(_add_up(_sum_and_number(one), unit, units) for one in means.values())]
    if names is not None:
        columns.append(_sum_and_number(dice_from_counts(columns[0])))
        means["dice_per_case"] = dice_from_counts(columns[0])
    columns = np.concatenate(columns, axis=-1)
    total, resampled = _class_scores(columns.sum(axis=0), means), _class_scores(resampled_sums(columns, seed), means)

    classes = {}
    for index, name in enumerate(class_names):
        scores: dict = dict.fromkeys(["dice_per_case", "dice_per_case_interval"])
        for key in total:
            scores[key] = _number(total[key][index])
            scores[f"{key}_interval"] = interval(resampled[key][:, index])
        scores["images_undefined"] = int(np.isnan(means["dice_per_image"][:, index]).sum())
        for key in ("hd95", "surface_dice"):
            scores[f"{key}_undefined"] = int(np.isnan(means[key][:, index]).sum()) if index else None
        for place, key in enumerate(("true_positives", "false_positives", "false_negatives")):
            scores[key] = int(counts[:, index, place].sum())
        classes[name] = scores
    uncertainty = {name: [image["uncertainty"][name] for image in images] for name in images[0]["uncertainty"]}
    image_dice = np.array([foreground_mean(one) for one in means["dice_per_image"]])
    found = {name: _error_detection(sums[f"errors_{name}"], of, image_dice) for name, of in uncertainty.items()}
    result = {
        "images": len(images),
        "groups": None if names is None else units,
        **{key: _number(foreground_mean(total[key])) for key in ("dice", "iou")},
        **{f"{key}_interval": interval(_foreground_means(resampled[key])) for key in ("dice", "iou")},
        "classes": classes,
        "distance_unit": distance_unit,
        "surface_tolerance": float(tally.tolerance),
        "calibration": _calibration(sums["bins"], sums["brier"]),
        "error_detection": {"single_pass_entropy": found["single_pass_entropy"]},
    }
    if "thresholds" in sums:
        result["tuned"] = _tuned(sums["thresholds"])
        result["tuned_threshold"] = result["tuned"] and result["tuned"]["threshold"]
    elif "tuned" in sums:
        tuned = sums["tuned"][1]
        result["tuned"] = {
            "threshold": tally.threshold,
            "dice": _number(dice_from_counts(tuned)),
            "iou": _number(iou_from_counts(tuned)),
        }
    if tally.sampled:
        result["uncertainty"] = {
            "dice": _number(foreground_mean(dice_from_counts(sums["mc_counts"]))),
            "iou": _number(foreground_mean(iou_from_counts(sums["mc_counts"]))),
            "calibration": _calibration(sums["mc_bins"], sums["mc_brier"]),
            "scores": found,
        }
    return result


def _sum_and_number(scores: np.ndarray) -> np.ndarray:
    """What each score gives to the mean over the defined ones, float64 (..., 2): itself and 1, or nothing."""
    return np.stack([np.nan_to_num(scores), ~np.isnan(scores)], axis=-1)


def _add_up(values: np.ndarray, unit: np.ndarray, units: int) -> np.ndarray:
    sums = np.zeros((units, *values.shape[1:]))
    np.add.at(sums, unit, values)
    return sums


def _class_scores(sums: np.ndarray, means: Mapping) -> dict[str, np.ndarray]:
    """Scores (..., classes) of sums (..., classes, K): three counts, then sum and number for each of `means`."""
    scores: dict[str, np.ndarray] = {key: function(sums[..., :3]) for key, function in _COUNTED.items()}
    for place, key in enumerate(means):
        total, number = sums[..., 3 + 2 * place], sums[..., 4 + 2 * place]
        scores[key] = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return scores


def _foreground_means(scores: np.ndarray) -> np.ndarray:
    """`foreground_mean` of every row of (N, classes)."""
    total, number = np.nan_to_num(scores[:, 1:]).sum(axis=1), (~np.isnan(scores[:, 1:])).sum(axis=1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _calibration(bins: np.ndarray, brier: float) -> dict:
    pixels = bins[0, 0].sum()
    return {
        "ece": _number(expected_calibration_error(bins[0])),
        "ece_foreground": _number(expected_calibration_error(bins[1])),
        "brier": _number(brier / pixels) if pixels else None,
        "reliability": {
            region: [
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "count": int(count),
                    "confidence": _number(confidence / count) if count else None,
                    "accuracy": float(correct / count) if count else None,
                }
                for i, (count, confidence, correct) in enumerate(table.T)
            ]
            for region, table in zip(("all", "foreground"), bins, strict=True)
        },
    }


def _error_detection(histograms: np.ndarray, uncertainty: Sequence[float], dice: np.ndarray) -> dict:
    return {
        "auroc_pixels": _number(auroc(histograms)),
        "aurc_pixels": _number(aurc(histograms)),
        "risk_coverage": risk_coverage(histograms).round(6).tolist(),
        "auroc_images": _number(auroc_images(uncertainty, dice)),
        "aurc_images": _number(aurc_images(uncertainty, dice)),
        "spearman_images": _number(spearman_images(uncertainty, dice)),
    }


def _row(image: Mapping, class_names: Sequence[str]) -> dict:
    """An image's row in per_image.csv, without its split, id and group."""
    scores = {key: function(image["counts"]) for key, function in _COUNTED.items()}
    scores |= {"hd95": image["distances"][:, 0], "surface_dice": image["distances"][:, 1]}
    row = {key: _number(foreground_mean(scores[key])) for key in ("dice", "iou")}
    for index, name in enumerate(class_names):
        row |= {f"{key}_{name}": _number(values[index]) for key, values in scores.items()}
    uncertainty = image["uncertainty"]
    row["entropy"] = _number(uncertainty["single_pass_entropy"])
    sampled = [name for name in ("predictive_entropy", "mutual_information") if name in uncertainty]
    return row | {name: _number(uncertainty[name]) for name in sampled}


def _store_rows(run: Path, key: str, rows: Sequence[Mapping]) -> None:
    """Replace the rows of a split in per_image.csv; those of an own split get the group of the run's split.csv."""
    path = run / PER_IMAGE
    recorded = read_csv(run / SPLIT) if key in OWN_SPLITS and (run / SPLIT).is_file() else []
    groups = {row["id"]: row["group"] for row in recorded if "group" in row}
    fresh = [
        {"split": key, "id": row["id"], **({"group": groups.get(row["id"])} if groups else {}), **row} for row in rows
    ]
    kept = [row for row in (read_csv(path) if path.is_file() else []) if row["split"] != key]
    columns = list(dict.fromkeys(itertools.chain.from_iterable([*fresh, *kept])))
    write_csv(path, [*kept, *fresh], columns)


def _stored_scores(run: Path) -> dict:
    path = run / METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _number(score: float) -> float | None:
    """JSON has no NaN: an undefined score is null."""
    return None if np.isnan(score) else float(score)
