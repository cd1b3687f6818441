"""From tallies to scores."""

from collections.abc import Mapping, Sequence

import numpy as np

from .counts import COUNTED, dice_from_counts, foreground_mean, iou_from_counts
from .reliability import (
    BINS,
    aurc,
    aurc_images,
    auroc,
    auroc_images,
    expected_calibration_error,
    interval,
    risk_coverage,
    spearman_images,
)
from .statistics import resampled_sums
from .tally import THRESHOLDS, Tally, add_up


def summarise(tally: Tally, class_names: Sequence[str], groups: Sequence[str] | None, distance_unit, seed) -> dict:
    """Most of the scores of `score_images`; `groups` of the images in their order."""
    images, sums = tally.images, tally.sums
    counts = np.array([image["counts"] for image in images])
    means = _means_of(images, counts)
    total, resampled, units = _scores_by_class(counts, means, groups, seed)
    image_dice = np.array([foreground_mean(class_dice) for class_dice in means["dice_per_image"]])
    detections = {
        name: _error_detection(sums[f"errors_{name}"], [image["uncertainty"][name] for image in images], image_dice)
        for name in images[0]["uncertainty"]
    }
    result = {
        "images": len(images),
        "groups": None if groups is None else units,
        **{key: _nan_to_none(foreground_mean(total[key])) for key in ("dice", "iou")},
        **{f"{key}_interval": interval(_foreground_means(resampled[key])) for key in ("dice", "iou")},
        "classes": {name: _of_class(index, total, resampled, counts, means) for index, name in enumerate(class_names)},
        "distance_unit": distance_unit,
        "surface_tolerance": float(tally.tolerance),
        "calibration": _calibration(sums["bins"], sums["brier"]),
        "error_detection": {"single_pass_entropy": detections["single_pass_entropy"]},
    }
    if "untempered_bins" in sums:
        result["calibration_before"] = _calibration(sums["untempered_bins"], sums["untempered_brier"])
    if "thresholds" in sums:
        result["tuned"] = _tuned(sums["thresholds"])
        result["tuned_threshold"] = result["tuned"] and result["tuned"]["threshold"]
    elif "tuned" in sums:
        tuned = sums["tuned"][1]
        result["tuned"] = {
            "threshold": tally.threshold,
            "dice": _nan_to_none(dice_from_counts(tuned)),
            "iou": _nan_to_none(iou_from_counts(tuned)),
        }
    if tally.sampled:
        result["uncertainty"] = {
            "dice": _nan_to_none(foreground_mean(dice_from_counts(sums["mc_counts"]))),
            "iou": _nan_to_none(foreground_mean(iou_from_counts(sums["mc_counts"]))),
            "calibration": _calibration(sums["mc_bins"], sums["mc_brier"]),
            "scores": detections,
        }
    return result


def _means_of(images: Sequence[Mapping], counts: np.ndarray) -> dict[str, np.ndarray]:
    """What is averaged over images, float64 (images, classes); NaN where undefined."""
    distances = np.array([image["distances"] for image in images])
    return {
        "dice_per_image": dice_from_counts(counts),
        "iou_per_image": iou_from_counts(counts),
        "hd95": distances[..., 0],
        "surface_dice": distances[..., 1],
    }


def _scores_by_class(
    counts: np.ndarray, means: Mapping[str, np.ndarray], groups: Sequence[str] | None, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Each score by class, (classes,), that of resampled groups or images, (resamples, classes), and their number."""
    names, unit = np.unique(groups, return_inverse=True) if groups else (None, np.arange(len(counts)))
    units = len(counts) if names is None else len(names)
    # What a group, or an image, adds to the sums that the scores are made of.
    added = {"counts": add_up(counts, unit, units)}
    added |= {key: add_up(_sum_and_number(scores), unit, units) for key, scores in means.items()}
    if names is not None:
        added["dice_per_case"] = _sum_and_number(dice_from_counts(added["counts"]))
    ends = np.cumsum([part.shape[-1] for part in added.values()])[:-1]
    columns = np.concatenate(list(added.values()), axis=-1)

    def scores(sums: np.ndarray) -> dict[str, np.ndarray]:
        parts = dict(zip(added, np.split(sums, ends, axis=-1), strict=True))
        counted = parts.pop("counts")
        return {key: function(counted) for key, function in COUNTED.items()} | {
            key: _mean(part) for key, part in parts.items()
        }

    return scores(columns.sum(axis=0)), scores(resampled_sums(columns, seed)), units


def _of_class(index: int, total: Mapping, resampled: Mapping, counts: np.ndarray, means: Mapping) -> dict:
    """The scores of a class, with their intervals and the number of images that have none."""
    scores: dict = dict.fromkeys(["dice_per_case", "dice_per_case_interval"])
    for key in total:
        scores[key] = _nan_to_none(total[key][index])
        scores[f"{key}_interval"] = interval(resampled[key][:, index])
    scores["images_undefined"] = int(np.isnan(means["dice_per_image"][:, index]).sum())
    for key in ("hd95", "surface_dice"):
        scores[f"{key}_undefined"] = int(np.isnan(means[key][:, index]).sum()) if index else None
    for place, key in enumerate(("true_positives", "false_positives", "false_negatives")):
        scores[key] = int(counts[:, index, place].sum())
    return scores


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
        "dice": _nan_to_none(dice[chosen]),
        "iou": _nan_to_none(iou_from_counts(counts[chosen])),
    }


def _sum_and_number(scores: np.ndarray) -> np.ndarray:
    """What each score gives to the mean over the defined ones, float64 (..., 2): itself and 1, or nothing."""
    return np.stack([np.nan_to_num(scores), ~np.isnan(scores)], axis=-1)


def _mean(sums_and_numbers: np.ndarray) -> np.ndarray:
    """The means, (...), of `_sum_and_number` added up, (..., 2); NaN where nothing is defined."""
    total, number = np.moveaxis(sums_and_numbers, -1, 0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _foreground_means(scores: np.ndarray) -> np.ndarray:
    """`foreground_mean` of every row of (N, classes)."""
    return _mean(_sum_and_number(scores[:, 1:]).sum(axis=1))


def _calibration(bins: np.ndarray, brier: float) -> dict:
    pixels = bins[0, 0].sum()
    return {
        "ece": _nan_to_none(expected_calibration_error(bins[0])),
        "ece_foreground": _nan_to_none(expected_calibration_error(bins[1])),
        "brier": _nan_to_none(brier / pixels) if pixels else None,
        "reliability": {
            region: [
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "count": int(count),
                    "confidence": _nan_to_none(confidence / count) if count else None,
                    "accuracy": float(correct / count) if count else None,
                }
                for i, (count, confidence, correct) in enumerate(table.T)
            ]
            for region, table in zip(("all", "foreground"), bins, strict=True)
        },
    }


def _error_detection(histograms: np.ndarray, uncertainty: Sequence[float], dice: np.ndarray) -> dict:
    return {
        "auroc_pixels": _nan_to_none(auroc(histograms)),
        "aurc_pixels": _nan_to_none(aurc(histograms)),
        "risk_coverage": risk_coverage(histograms).round(6).tolist(),
        "auroc_images": _nan_to_none(auroc_images(uncertainty, dice)),
        "aurc_images": _nan_to_none(aurc_images(uncertainty, dice)),
        "spearman_images": _nan_to_none(spearman_images(uncertainty, dice)),
    }


def image_row(image: Mapping, class_names: Sequence[str]) -> dict:
    """An image's row in per_image.csv, without its split, id and group."""
    scores = {key: function(image["counts"]) for key, function in COUNTED.items()}
    scores |= {"hd95": image["distances"][:, 0], "surface_dice": image["distances"][:, 1]}
    row = {key: _nan_to_none(foreground_mean(scores[key])) for key in ("dice", "iou")}
    for index, name in enumerate(class_names):
        row |= {f"{key}_{name}": _nan_to_none(values[index]) for key, values in scores.items()}
    uncertainty = image["uncertainty"]
    row["entropy"] = _nan_to_none(uncertainty["single_pass_entropy"])
    sampled = [name for name in ("predictive_entropy", "mutual_information") if name in uncertainty]
    return row | {name: _nan_to_none(uncertainty[name]) for name in sampled}


def _nan_to_none(score: float) -> float | None:
    """JSON has no NaN: an undefined score is null."""
    return None if np.isnan(score) else float(score)
