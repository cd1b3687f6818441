"""The scores of a report: which there are, under which titles."""

import math
from collections.abc import Mapping, Sequence

from ..show.scores import sampled_in_words
from ..show.titles import TITLES, heading

NATS = ("entropy", "predictive_entropy", "mutual_information")  # columns of per_image.csv
SINGLE = "single_pass_entropy"
UNCERTAINTIES = {
    SINGLE: "entropy of the single prediction",
    "predictive_entropy": "predictive entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
}


def columns_of(result: Mapping) -> dict[str, str]:
    """The scores that some class has, by the titles of their columns."""
    units = {"hd95": f" ({result.get('distance_unit', 'px')})"}
    classes = result.get("classes", {}).values()
    return {
        heading(key) + units.get(key, ""): key
        for key in TITLES
        if any(scores.get(key) is not None for scores in classes)
    }


def undefined(result: Mapping, foreground: Sequence[str]) -> list[str]:
    """In how many images a score of a class has no value."""
    keys = {"Dice": "images_undefined", "HD95": "hd95_undefined", "surface Dice": "surface_dice_undefined"}
    lines = []
    for name in foreground:
        scores = result.get("classes", {}).get(name, {})
        counts = [f"{title} in {scores[key]}" for title, key in keys.items() if scores.get(key)]
        if counts:
            lines.append(
                f"{name}: undefined and left out of the mean are {', '.join(counts)} of {result['images']} images"
            )
    return lines


def calibrations(result: Mapping) -> dict[str, Mapping]:
    by_title = {
        "Single prediction": result.get("calibration"),
        "The same before its temperature": result.get("calibration_before"),
    }
    if result.get("uncertainty"):
        by_title[f"Mean of {sampled_in_words(result['uncertainty'])}"] = result["uncertainty"]["calibration"]
    return {name: calibration for name, calibration in by_title.items() if calibration}


def detections(result: Mapping) -> dict[str, Mapping]:
    return (result.get("uncertainty") or {}).get("scores") or result.get("error_detection") or {}


def best_uncertainty(result: Mapping, samples: int) -> str:
    """The kind of uncertainty that tells wrong pixels from right ones best; without samples there is but one."""
    if not samples:
        return SINGLE
    scores = detections(result)
    kinds = ["mutual_information", *UNCERTAINTIES]  # of equal ones the first
    return max(kinds, key=lambda kind: scores.get(kind, {}).get("auroc_pixels") or 0)


def misleading(result: Mapping) -> list[str]:
    """A sentence for each uncertainty that is lower where the prediction is wrong."""
    wrong = {"auroc_pixels": ("wrong pixels", "errors"), "auroc_images": ("images of low Dice", "bad images")}
    return [
        f"The {UNCERTAINTIES.get(kind, kind)} does not find {what}: its AUROC is {scores[key]:.3f}, below the 0.5 of "
        f"chance; do not take it for a sign of {sign}."
        for kind, scores in detections(result).items()
        for key, (what, sign) in wrong.items()
        if scores.get(key) is not None and scores[key] < 0.5
    ]


def image_table(rows: Sequence[Mapping[str, str]], background: str, foreground: Sequence[str], unit: str) -> dict:
    """Columns with their titles, and rows of values, worst Dice first and undefined last."""
    hidden = {f"{key}_{background}" for key in TITLES} | {"split"}
    if len(foreground) == 1:  # whose mean it is
        hidden |= {f"{key}_{foreground[0]}" for key in ("dice", "iou")}
    keys = [key for key in (rows[0] if rows else ()) if key not in hidden and any(row[key] for row in rows)]
    columns = [
        {"key": key, "title": _title(key, foreground, unit), "numeric": key not in ("id", "group")} for key in keys
    ]
    ordered = sorted(rows, key=lambda row: float(row["dice"]) if row.get("dice") else math.inf)
    return {"columns": columns, "rows": ordered}


def _title(key: str, foreground: Sequence[str], unit: str) -> str:
    titles = {key: heading(key) for key in TITLES} | {
        "hd95": f"HD95 ({unit})",
        "id": "Image",
        "group": "Group",
    }
    for name in foreground:
        part = key.removesuffix(f"_{name}")
        if part != key and part in titles:
            return titles[part] if len(foreground) == 1 else f"{titles[part]}, {name}"
    if key in NATS:
        return f"{key.replace('_', ' ').capitalize()} (nats)"
    return titles.get(key, key)


def number_in_words(value: float | None, digits: int = 3) -> str:
    """A score; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def field_in_words(value: str, key: str) -> str:
    """A field of per_image.csv with the digits that matter."""
    if not value:
        return ""
    return f"{float(value):.3g}" if key in NATS else number_in_words(float(value), 1 if key.startswith("hd95") else 3)
