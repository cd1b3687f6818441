"""What one image adds to the scores."""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from ..conventions import IGNORED, has_class
from .counts import confusion_counts, to_labels
from .reliability import brier_sum, error_histograms, reliability
from .surfaces import boundary_distances, hausdorff95_from_distances, surface_dice_from_distances
from .temperature import tempered
from .uncertainty import entropy, from_moments

THRESHOLDS = np.arange(1, 200) / 200  # among which the best on validation is chosen


@dataclasses.dataclass
class Tally:
    """What is to be computed, and what the images so far have given: of each its own, and sums over all."""

    classes: int
    sampled: bool
    tolerance: float
    tune: bool
    threshold: float | None
    temperature: float = 1.0  # of the probabilities
    multilabel: bool = False
    images: list[dict] = dataclasses.field(default_factory=list)
    sums: dict = dataclasses.field(default_factory=dict)

    def add(self, truths: Sequence[np.ndarray], maps: Sequence[np.ndarray], spacings: Sequence) -> None:
        for truth, of_image, spacing in zip(truths, maps, spacings, strict=True):
            image, more = _score_image(np.ascontiguousarray(truth), of_image, spacing, self)
            self.images.append(image)
            for name, value in more.items():
                self.sums[name] = self.sums.get(name, 0) + value


def _score_image(
    truth: np.ndarray, maps: np.ndarray, spacing: tuple[float, float] | None, settings: Tally
) -> tuple[dict, dict]:
    """What an image gives of its own, and what is only summed over images; `maps`: probabilities, then moments."""
    channels = (maps.shape[-1] - 1) // 3 if settings.sampled else maps.shape[-1]
    probabilities = np.ascontiguousarray(maps[..., :channels])
    classes, multilabel = settings.classes, settings.multilabel
    pred = to_labels(probabilities, multilabel=multilabel)
    uncertainty = {"single_pass_entropy": entropy(probabilities, multilabel)}
    image = {
        "counts": confusion_counts(truth, pred, classes, multilabel),
        "distances": _distances(truth, pred, spacing, settings),
    }
    sums = {
        "bins": reliability(probabilities, truth, pred, multilabel),
        "brier": brier_sum(probabilities, truth, multilabel),
    }
    if settings.temperature != 1:
        before = tempered(probabilities, 1 / settings.temperature, multilabel)
        sums["untempered_bins"] = reliability(before, truth, pred, multilabel)
        sums["untempered_brier"] = brier_sum(before, truth, multilabel)
    if settings.tune and channels == 1:
        sums["thresholds"] = _threshold_histograms(probabilities[..., 0], truth)
    if settings.threshold is not None:
        sums["tuned"] = confusion_counts(truth, to_labels(probabilities, settings.threshold))
    if settings.sampled:
        sampled = from_moments(maps[..., channels:], multilabel)
        mean = np.ascontiguousarray(sampled.mean)
        labels = to_labels(mean, multilabel=multilabel)
        sums["mc_counts"] = confusion_counts(truth, labels, classes, multilabel)
        sums["mc_bins"] = reliability(mean, truth, labels, multilabel)
        sums["mc_brier"] = brier_sum(mean, truth, multilabel)
        for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
            uncertainty[name] = getattr(sampled, name)
    valid = (truth != IGNORED).view(np.uint8)
    image["uncertainty"] = {
        name: cv2.mean(values, valid)[0] if valid.any() else math.nan for name, values in uncertainty.items()
    }
    sums |= {f"errors_{name}": error_histograms(values, truth, pred) for name, values in uncertainty.items()}
    return image, sums


def _distances(truth: np.ndarray, pred: np.ndarray, spacing, settings: Tally) -> np.ndarray:
    """Hausdorff distance and surface Dice of each class, float64 (classes, 2); NaN for the background."""
    scores = np.full((settings.classes, 2), np.nan)
    pred = np.where(truth == IGNORED, 0, pred)
    for index in range(1, settings.classes):
        masks = (has_class(labels, index, settings.multilabel) for labels in (truth, pred))
        distances = boundary_distances(*masks, spacing)
        scores[index, 0] = hausdorff95_from_distances(distances)
        scores[index, 1] = surface_dice_from_distances(distances, settings.tolerance)
    return scores


def _threshold_histograms(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many of THRESHOLDS the pixels of background and foreground reach, int64 (2, 200)."""
    valid = truth != IGNORED
    reached = np.searchsorted(THRESHOLDS.astype(np.float32), probability[valid], side="right")
    bins = len(THRESHOLDS) + 1
    return np.bincount(reached + bins * truth[valid], minlength=2 * bins).reshape(2, bins)


def add_up(values: np.ndarray, unit: np.ndarray, units: int) -> np.ndarray:
    sums = np.zeros((units, *values.shape[1:]))
    np.add.at(sums, unit, values)
    return sums
