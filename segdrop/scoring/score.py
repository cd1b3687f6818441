"""Scores of a network on images."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..conventions import OVERLAP, TILE
from ..data.batches import EvaluationBatches
from ..data.tiles import in_tiles
from ..images.resampling import resample
from .summary import image_row, summarise
from .surfaces import TOLERANCE
from .tally import Tally

Forward = Callable[[np.ndarray], np.ndarray]
"""From images, float32 (N, H, W, 3), 0..255, to maps (N, H, W, K): a Keras model's `predict_on_batch`, for instance."""


def score(forward: Forward, batches: EvaluationBatches, class_names: Sequence[str]) -> dict:
    """The scores alone of `score_images`."""
    return score_images(forward, batches, class_names)[0]


def score_images(
    forward: Forward,
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
    temperature: float = 1.0,
) -> tuple[dict, list[dict]]:
    """Score a network on all images of `batches`.

    Args:
        forward: gives the probabilities of C output channels.
        batches: the images.
        class_names: of class 0, 1, ...
        sampler: gives the moments of samples, to score uncertainty; see `inference.ensemble.combine`.
        seed, tolerance, tile, overlap: see `evaluate`.
        tune: with one output channel, find the threshold with the best micro Dice on these images, of validation.
        threshold: with one output channel, another threshold than 0.5 at which the scores `tuned` are taken.
        temperature: of the probabilities that `forward` gives.

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
        diagram's bins; where there is a temperature, `calibration_before`, the same without it. `error_detection`: how
        well the entropy of the prediction finds its errors.
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
    clock = _Clock(forward if sampler is None else _with_moments(forward, sampler))
    tally = Tally(len(class_names), sampler is not None, tolerance, tune, threshold, temperature, dataset.multilabel)
    with ThreadPoolExecutor(1) as pool:
        added = None
        for batch, truths, maps in predictions(clock, batches, tile, overlap):
            if added:
                added.result()  # while the model runs a batch the one before is scored, and no earlier one is held
            added = pool.submit(tally.add, truths, maps, [spacings[index] if in_mm else None for index in batch])
        if added:
            added.result()
    groups = [dataset.groups[index] for index in members] if dataset.grouped else None
    result = summarise(tally, class_names, groups, "mm" if in_mm else "px", seed)
    rows = [
        {"id": dataset.ids[index], **image_row(image, class_names)}
        for index, image in zip(members, tally.images, strict=True)
    ]
    result["seconds"] = round(time.perf_counter() - started, 3)
    result["seconds_in_model"] = round(clock.seconds, 3)
    return result, rows


def predictions(
    forward: Forward, batches: EvaluationBatches, tile: int = TILE, overlap: int = OVERLAP
) -> Iterator[tuple[list[int], list[np.ndarray], list[np.ndarray]]]:
    """Batch by batch the images' indices, truths (H, W), and what `forward` says of them on the same grid, (H, W, K).

    Images with a side above `tile` pixels are predicted in tiles. The next batch is read meanwhile.
    """
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(batches.read_with_truths, batches.plan[0])
        for batch, following in itertools.zip_longest(batches.plan, batches.plan[1:]):
            images, truths = ahead.result()
            if following:
                ahead = pool.submit(batches.read_with_truths, following)
            parts = [(slice(0, int(height)), slice(0, int(width))) for height, width in batches.dataset.sizes[batch]]
            if max(images.shape[1:3]) <= tile:
                maps = [output[part] for output, part in zip(forward(images), parts, strict=True)]
            else:
                maps = [
                    in_tiles(forward, image[part], tile, overlap) for image, part in zip(images, parts, strict=True)
                ]
            yield batch, truths, [resample(found, truth.shape) for found, truth in zip(maps, truths, strict=True)]


def _with_moments(forward: Forward, sampler: Callable[[np.ndarray, int], np.ndarray]) -> Forward:
    """The C probabilities, then the 2C + 1 moments of samples, whose keys are the numbers of the calls."""
    keys = itertools.count()
    return lambda images: np.concatenate([np.asarray(forward(images)), sampler(images, next(keys))], axis=-1)


class _Clock:
    """A function in float32 that tells how long it has run."""

    def __init__(self, forward: Forward):
        self._forward, self.seconds = forward, 0.0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        maps = np.asarray(self._forward(images), np.float32)
        self.seconds += time.perf_counter() - started
        return maps
