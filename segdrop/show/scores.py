"""Scores as a table for the terminal."""

import itertools
import math
from collections.abc import Mapping

from ..scoring.counts import COUNTED
from .tables import Table
from .titles import TITLES


def scores_table(result: Mapping) -> list[Table]:
    """A result of `evaluate` as tables for a terminal of 100 columns, with 95% intervals in brackets."""
    tables = [_pixels(result), _means(result), _boundaries(result), _calibration(result)]
    if result.get("uncertainty"):
        tables.append(_detection(result["uncertainty"]))
    return tables


def _pixels(result: Mapping) -> Table:
    rows = [
        {"class": name, **{TITLES[key]: _with_interval(scores, key) for key in COUNTED}}
        for name, scores in result["classes"].items()
    ]
    blank = {TITLES[key]: "" for key in COUNTED if key not in ("dice", "iou")}
    mean = {TITLES[key]: _with_interval(result, key) for key in ("dice", "iou")}
    rows.append({"class": "foreground mean", **mean, **blank})
    if result.get("tuned"):
        tuned = {TITLES[key]: _in_words(result["tuned"][key]) for key in ("dice", "iou")}
        rows.append({"class": f"tuned, threshold {result['tuned']['threshold']:g}", **tuned, **blank})
    over = "images" if result["groups"] is None else f"images of {result['groups']} groups"
    return Table(rows, f"All pixels of {result['images']} {over} [95% interval]")


def _means(result: Mapping) -> Table:
    rows = [
        {
            "class": name,
            "Dice per image": _with_interval(scores, "dice_per_image"),
            "images without it": scores["images_undefined"],
            **({} if result["groups"] is None else {"Dice per group": _with_interval(scores, "dice_per_case")}),
        }
        for name, scores in result["classes"].items()
    ]
    return Table(rows, "Means over images where defined [95% interval]")


def _boundaries(result: Mapping) -> Table:
    unit = result["distance_unit"]
    rows = [
        {
            "class": name,
            f"HD95, {unit}": _with_interval(scores, "hd95", digits=1),
            "undefined": scores["hd95_undefined"],
            f"surface Dice, {result['surface_tolerance']:g} {unit}": _with_interval(scores, "surface_dice"),
            "undefined ": scores["surface_dice_undefined"],
        }
        for name, scores in itertools.islice(result["classes"].items(), 1, None)  # not the background
    ]
    return Table(rows, "Boundaries, means over images where defined [95% interval]")


def _calibration(result: Mapping) -> Table:
    predictions = {"single pass": result["calibration"]}
    if "calibration_before" in result:
        predictions["before its temperature"] = result["calibration_before"]
    sampled = result.get("uncertainty")
    if sampled:
        predictions[f"mean of {sampled_in_words(sampled)}"] = sampled["calibration"]
    rows = [
        {
            "prediction": name,
            "ECE": _in_words(calibration["ece"]),
            "ECE near foreground": _in_words(calibration["ece_foreground"]),
            "Brier": _in_words(calibration["brier"], digits=4),
        }
        for name, calibration in predictions.items()
    ]
    return Table(rows, "Calibration")


def _detection(sampled: Mapping) -> Table:
    rows = [
        {
            "uncertainty": name.replace("_", " "),
            **{title: _in_words(scores[key], digits=4) for key, title in _DETECTION.items()},
        }
        for name, scores in sampled["scores"].items()
    ]
    return Table(rows, "How well uncertainty finds the prediction's errors")


def sampled_in_words(uncertainty: Mapping) -> str:
    """What the uncertainty of a result was computed from."""
    samples, networks = uncertainty["samples"], uncertainty.get("networks", 1)
    parts = [f"{samples} Monte Carlo samples"] if samples else []
    return " of each of ".join([*parts, f"{networks} networks"] if networks > 1 else parts)


_DETECTION = {
    "auroc_pixels": "AUROC",
    "aurc_pixels": "AURC",
    "auroc_images": "AUROC of images",
    "aurc_images": "AURC of images",
    "spearman_images": "Spearman of images",
}


def _in_words(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _with_interval(scores: Mapping, key: str, digits: int = 3) -> str:
    bounds = scores[f"{key}_interval"]
    inner = max(1, digits - 1)
    return _in_words(scores[key], digits) + (f" [{bounds[0]:.{inner}f}, {bounds[1]:.{inner}f}]" if bounds else "")


def difference_in_words(value: float, low: float, high: float) -> str:
    """A difference with its interval, which may be NaN; a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")
