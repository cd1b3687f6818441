"""The scores agree with independent implementations, to 1e-6: scikit-learn's, and SciPy's distances from scratch.

`benchmarks/agreement.py` compares the same cases with MONAI and torchmetrics, which need an environment of their own.
"""

import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.spatial.distance import cdist
from sklearn.metrics import (
    brier_score_loss,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from segdrop.scoring import counts, reliability
from segdrop.scoring.surfaces import hausdorff95, surface_dice

CLOSE = 1e-6
KINDS = ("blobs", "noise", "no truth", "no prediction", "neither", "pixel", "border", "whole", "ignored", "same")
SPACINGS = (None, (1.0, 1.0), (0.7, 0.7), (0.4, 1.3), (2.5, 0.5))


def blob(rng, shape, least=0.5):
    """A smooth region, bool (H, W)."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(1, 4))
    return field > np.quantile(field, rng.uniform(least, 0.95))


def draw(seed):
    """A case: truth, uint8 (H, W) with ignored pixels; probabilities of the foreground, float32 (H, W), of which
    the prediction is those of at least one half; spacing and tolerance."""
    rng, kind = np.random.default_rng(seed), KINDS[seed % len(KINDS)]
    shape = tuple(rng.integers(8, 33, 2))
    truth, pred = blob(rng, shape), blob(rng, shape)
    if kind == "noise":
        truth, pred = rng.random(shape) < 0.3, rng.random(shape) < 0.3
    if kind in ("no truth", "neither"):
        truth[:] = False
    if kind in ("no prediction", "neither"):
        pred[:] = False
    if kind == "pixel":
        truth[:] = False
        truth[tuple(rng.integers(0, shape))] = True
    if kind == "border":
        truth[:, 0], pred[-1] = True, True
    if kind == "whole":
        truth[:] = True
    if kind == "same":
        pred = truth.copy()
    truth = truth.astype(np.uint8)
    if kind == "ignored" or seed % 3 == 0:
        truth[blob(rng, shape, least=0.8)] = 255
    # Of few different values, so that there are ties; never one half, which each library rounds in its own way.
    certain = rng.integers(1, 32, shape) / 64
    probability = np.where(pred, 0.5 + certain, 0.5 - certain).astype(np.float32)
    spacing = SPACINGS[seed // len(KINDS) % len(SPACINGS)]
    return truth, probability, spacing, float(rng.choice([1, 2, 3.5]) * min(spacing or (1,)))


def seen(truth, probability):
    """Truth and prediction where the truth is not ignored, as vectors, and the probabilities there."""
    valid = truth != 255
    return truth[valid], (probability >= 0.5)[valid].astype(int), probability[valid].astype(np.float64)


def surface(mask):
    """Coordinates of the pixels of a mask with a 4-neighbour outside of it, by SciPy."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0))


def distances(truth, probability, spacing):
    """From each pixel of either surface to the nearest of the other, from all pairs."""
    valid = truth != 255
    ends = [surface((truth == 1) & valid), surface((probability >= 0.5) & valid)]
    if not all(map(len, ends)):
        return None, sum(map(len, ends))
    pairs = cdist(*(points * np.array(spacing or (1, 1)) for points in ends))
    return (pairs.min(axis=1), pairs.min(axis=0)), sum(map(len, ends))


def by_bins(confidence, correct):
    """Expected calibration error of Guo et al., bin by bin, with the lower edge within."""
    bins = np.minimum(np.floor(confidence.astype(np.float32) * np.float32(15)), 14)
    parts = [(confidence[bins == i], correct[bins == i]) for i in range(15)]
    return sum(abs(own.mean() - right.mean()) * len(own) for own, right in parts if len(own)) / len(confidence)


def scores(truth, probability, spacing, tolerance):
    """Of segdrop."""
    pred = counts.to_labels(probability[..., None])
    counted = counts.confusion_counts(truth, pred)
    bins = reliability.reliability(probability[..., None], truth, pred)[0]
    certainty = 0.5 - np.abs(probability - 0.5)
    number = np.count_nonzero(truth != 255)
    return {
        **{name: float(of(counted)[1]) for name, of in counts.COUNTED.items()},
        "hd95": hausdorff95(truth, pred, spacing),
        "surface_dice": surface_dice(truth, pred, tolerance, spacing),
        "ece": reliability.expected_calibration_error(bins),
        "brier": reliability.brier_sum(probability[..., None], truth) / number if number else float("nan"),
        "auroc": reliability.auroc(reliability.error_histograms(certainty, truth, pred)),
    }


def independent(truth, probability, spacing, tolerance):
    """Of scikit-learn and SciPy; NaN where docs/results.md says that a score is undefined."""
    true, pred, p = seen(truth, probability)
    nan = float("nan")
    there, back = bool(true.any()), bool(pred.any())
    either, wrong = there or back, true != pred
    (both, number) = distances(truth, probability, spacing)
    within = [np.count_nonzero(side <= tolerance * (1 + 1e-9)) for side in both] if both else [0]
    return {
        "dice": f1_score(true, pred, zero_division=0) if either else nan,
        "iou": jaccard_score(true, pred, zero_division=0) if either else nan,
        "precision": precision_score(true, pred, zero_division=0) if back else nan,
        "recall": recall_score(true, pred, zero_division=0) if there else nan,
        "hd95": max(np.percentile(side, 95) for side in both) if both else nan,
        "surface_dice": sum(within) / number if number else nan,
        "ece": by_bins(np.maximum(p, 1 - p), ~wrong) if len(true) else nan,
        "brier": brier_score_loss(true, p, labels=[0, 1]) if len(true) else nan,
        "auroc": roc_auc_score(wrong, 0.5 - np.abs(p - 0.5)) if 0 < wrong.sum() < len(wrong) else nan,
    }


def assert_agrees(seeds):
    undefined = dict.fromkeys(scores(*draw(0)), 0)
    for seed in seeds:
        own, others = scores(*draw(seed)), independent(*draw(seed))
        for name, value in own.items():
            assert value == pytest.approx(others[name], rel=0, abs=CLOSE, nan_ok=True), (
                seed,
                KINDS[seed % len(KINDS)],
                name,
            )
            undefined[name] += bool(np.isnan(value))
    return undefined


def test_a_hundred_cases_agree_with_scikit_learn_and_scipy():
    undefined = assert_agrees(range(100))
    assert {name for name, count in undefined.items() if count} == set(undefined) - {"ece", "brier"}


@pytest.mark.slow
def test_a_thousand_cases_agree_with_scikit_learn_and_scipy():
    assert_agrees(range(1000))


def cases_of_classes(seed):
    """Truth with ignored pixels and probabilities of four classes, of which one may be nowhere."""
    rng = np.random.default_rng([seed, 4])
    shape = (24, 20)
    truth = rng.integers(0, 4 - seed % 2, shape).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = 255
    probabilities = rng.dirichlet([0.6] * 4, shape).astype(np.float32)
    return truth, probabilities


@pytest.mark.parametrize("seed", range(20))
def test_several_classes_agree_with_scikit_learn(seed):
    truth, probabilities = cases_of_classes(seed)
    pred, valid = counts.to_labels(probabilities), truth != 255
    counted = counts.confusion_counts(truth, pred, 4)
    for name, of in {
        "dice": f1_score,
        "iou": jaccard_score,
        "precision": precision_score,
        "recall": recall_score,
    }.items():
        others = of(truth[valid], pred[valid], labels=range(4), average=None, zero_division=0)
        # What is defined: recall is not, of a class that is nowhere in the truth, where scikit-learn is told to say 0.
        np.testing.assert_allclose(np.nan_to_num(counts.COUNTED[name](counted)), others, atol=CLOSE)
    one_hot = np.eye(4)[truth[valid]]
    brier = ((probabilities[valid].astype(np.float64) - one_hot) ** 2).sum(axis=1).mean()
    assert reliability.brier_sum(probabilities, truth) / valid.sum() == pytest.approx(brier, abs=CLOSE)
    confidence = probabilities.max(axis=-1)[valid]
    bins = reliability.reliability(probabilities, truth, pred)[0]
    expected = by_bins(confidence.astype(np.float64), (truth == pred)[valid])
    assert reliability.expected_calibration_error(bins) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_images_agree_with_scikit_learn_and_scipy(seed):
    rng = np.random.default_rng([seed, 5])
    uncertainty, dice = np.round(rng.random(30), 1 + seed % 3), np.round(rng.random(30), 1 + seed % 2)
    dice[rng.random(30) < 0.1] = np.nan
    kept = ~np.isnan(dice)
    low = dice[kept] < np.median(dice[kept])
    assert reliability.auroc_images(uncertainty, dice) == pytest.approx(
        roc_auc_score(low, uncertainty[kept]), abs=CLOSE
    )
    rank = stats.spearmanr(uncertainty[kept], 1 - dice[kept]).statistic
    assert reliability.spearman_images(uncertainty, dice) == pytest.approx(rank, abs=CLOSE)
