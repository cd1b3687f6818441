"""Calibration, error detection and intervals: against scikit-learn, SciPy, brute force, and tables by hand."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from segdrop.conventions import IGNORED
from segdrop.scoring.counts import dice_from_counts
from segdrop.scoring.reliability import (
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
from segdrop.scoring.statistics import resampled_sums


def maps(channels, seed=0, shape=(40, 50)):
    """Probabilities that are sure far from the edges, and a truth that mostly agrees, partly ignored."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(size=(*shape, max(2, channels))).astype("float32"), (0, 0), 4) * 40
    truth = (field + rng.normal(0, 2, field.shape)).argmax(axis=-1).astype(np.uint8)
    truth[:5, :10] = IGNORED
    probabilities = np.exp(field) / np.exp(field).sum(axis=-1, keepdims=True)
    return probabilities[..., 1:] if channels == 1 else probabilities, truth


def by_pixel(probabilities, truth):
    """Confidence and correctness of every scored pixel, one after the other."""
    confidences, correct = [], []
    for p, t in zip(probabilities.reshape(-1, probabilities.shape[-1]), truth.ravel(), strict=True):
        if t != IGNORED:
            p = np.array([1 - p[0], p[0]]) if len(p) == 1 else p
            confidences.append(p.max())
            correct.append(p.argmax() == t)
    return np.array(confidences), np.array(correct)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_bins_hold_what_the_pixels_have(channels):
    probabilities, truth = maps(channels)
    confidence, correct = by_pixel(probabilities, truth)
    count, confidence_sum, correct_sum = reliability(probabilities, truth)[0]
    edges = np.linspace(0, 1, 16)
    assert count.sum() == len(confidence) == truth.size - 50
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence >= low) & ((confidence < high) | (i == 14))
        assert count[i] == inside.sum()
        assert confidence_sum[i] == pytest.approx(confidence[inside].sum(), rel=1e-6)
        assert correct_sum[i] == correct[inside].sum()


def test_calibration_error_by_hand():
    # Four pixels of confidence 0.9, three of them right; one of 0.6, right: |3.6 - 3| + |0.6 - 1| = 1 over 5.
    probabilities = np.array([0.9, 0.9, 0.1, 0.1, 0.6, 0.5], "float32").reshape(1, 6, 1)
    truth = np.array([[1, 0, 0, 0, 1, IGNORED]], np.uint8)
    bins = reliability(probabilities, truth)[0]
    assert expected_calibration_error(bins) == pytest.approx(1 / 5, rel=1e-6)
    assert bins[0].tolist() == [0] * 9 + [1, 0, 0, 0, 4, 0]
    assert np.isnan(expected_calibration_error(np.zeros((3, 15))))


def test_a_calibrated_network_has_no_error_and_an_overconfident_one_its_excess():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(400, 500, 1)).astype("float32")
    truth = (rng.uniform(size=(400, 500)) < p[..., 0]).astype(np.uint8)
    assert expected_calibration_error(reliability(p, truth)[0]) < 0.005
    certain = np.where(p >= 0.5, 1, 0).astype("float32")
    assert expected_calibration_error(reliability(certain, truth)[0]) == pytest.approx(0.25, abs=0.005)


def test_full_confidence_is_in_the_last_bin():
    bins = reliability(np.array([[[1.0], [0.0]]], "float32"), np.array([[1, 0]], np.uint8))[0]
    assert bins[:, 14].tolist() == [2, 2, 2]
    assert bins[0].sum() == 2


def test_the_foreground_region_reaches_ten_pixels_from_truth_and_prediction():
    truth = np.zeros((50, 80), np.uint8)
    truth[25, 20] = 1
    probabilities = np.full((50, 80, 1), 0.1, "float32")
    probabilities[20, 60] = 0.9
    rows, columns = np.mgrid[:50, :80]
    near = (np.hypot(rows - 25, columns - 20) <= 10) | (np.hypot(rows - 20, columns - 60) <= 10)
    assert reliability(probabilities, truth)[1, 0].sum() == near.sum()
    truth[20, 60] = IGNORED
    assert reliability(probabilities, truth)[1, 0].sum() == (np.hypot(rows - 25, columns - 20) <= 10).sum()


def test_bins_of_images_add_up_to_those_of_the_set():
    parts = [maps(3, seed) for seed in range(3)]
    together = np.concatenate([p for p, _ in parts]), np.concatenate([t for _, t in parts])
    summed = sum(reliability(*part) for part in parts)
    np.testing.assert_allclose(summed[0], reliability(*together)[0], rtol=1e-6)


def test_the_brier_score_agrees_with_scikit_learn():
    probabilities, truth = maps(1)
    scored = truth != IGNORED
    expected = brier_score_loss(truth[scored], probabilities[scored][:, 0].astype(float))
    assert brier_sum(probabilities, truth) / scored.sum() == pytest.approx(expected, rel=1e-5)
    probabilities, truth = maps(3)
    expected = ((probabilities[scored] - np.eye(3)[truth[scored]]) ** 2).sum(axis=1).mean()
    assert brier_sum(probabilities, truth) / scored.sum() == pytest.approx(expected, rel=1e-5)


def test_two_channels_have_twice_the_brier_score_of_one():
    probabilities, truth = maps(2)
    assert brier_sum(probabilities, truth) == pytest.approx(2 * brier_sum(probabilities[..., 1:], truth), rel=1e-5)


def test_an_image_that_is_ignored_adds_nothing():
    ignored = np.full((4, 4), IGNORED, np.uint8)
    probabilities = np.full((4, 4, 1), 0.7, "float32")
    assert not reliability(probabilities, ignored).any()
    assert brier_sum(probabilities, ignored) == 0
    assert not error_histograms(probabilities[..., 0], ignored, np.zeros_like(ignored)).any()


def uncertain_errors(seed=0, shape=(60, 70), levels=None):
    """An uncertainty map and a prediction that errs more where it is larger; `levels` makes ties."""
    rng = np.random.default_rng(seed)
    uncertainty = rng.uniform(size=shape) ** 2 * 0.69
    if levels:
        uncertainty = np.round(uncertainty * levels) / levels
    wrong = rng.uniform(size=shape) < 0.05 + uncertainty / 2
    truth = rng.integers(0, 3, shape).astype(np.uint8)
    pred = np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8)
    return uncertainty.astype("float32"), truth, pred


@pytest.mark.parametrize("levels", [None, 8])
def test_auroc_agrees_with_scikit_learn(levels):
    images = [uncertain_errors(seed, levels=levels) for seed in range(3)]
    images[0][1][:10] = IGNORED
    values = np.concatenate([u[t != IGNORED] for u, t, _ in images])
    wrong = np.concatenate([(t != p)[t != IGNORED] for _, t, p in images])
    found = auroc(sum(error_histograms(*image) for image in images))
    assert 0.6 < found < 0.9
    assert found == pytest.approx(roc_auc_score(wrong, values), abs=2e-5)
    assert found == pytest.approx(roc_auc_score(wrong, values.astype(np.float16)), rel=1e-9)


def test_auroc_needs_both_kinds_of_pixels():
    uncertainty, truth, _ = uncertain_errors()
    assert np.isnan(auroc(error_histograms(uncertainty, truth, truth)))
    assert np.isnan(auroc(error_histograms(uncertainty, truth, 9 - truth)))


def test_zero_with_either_sign_is_the_least_uncertainty():
    counts = error_histograms(np.array([[0.0, -0.0, -1e-9, 1e-3]]), np.zeros((1, 4)), np.zeros((1, 4)))
    assert counts[0, 0] == 3
    assert counts.sum() == 4


def mean_over_orders(uncertainty, risk):
    """AURC by its definition, as the mean over every order that ties allow."""
    blocks = [[r for u, r in zip(uncertainty, risk, strict=True) if u == level] for level in sorted(set(uncertainty))]
    areas = []
    for order in itertools.product(*(itertools.permutations(block) for block in blocks)):
        risks = np.concatenate(order)
        areas.append((np.cumsum(risks) / np.arange(1, len(risks) + 1)).mean())
    return np.mean(areas)


@pytest.mark.parametrize(
    ("uncertainty", "wrong"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]),  # (0 + 0 + 1/3 + 2/4) / 4
        ([0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [1, 0, 0, 1, 0]),  # all alike: the error rate
        ([0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.7], [0, 1, 0, 1, 1, 0, 0]),
    ],
)
def test_aurc_by_definition(uncertainty, wrong):
    truth = np.zeros((1, len(wrong)), np.uint8)
    found = aurc(error_histograms(np.array([uncertainty]), truth, np.array([wrong], np.uint8)))
    assert found == pytest.approx(mean_over_orders(uncertainty, wrong), rel=1e-9)
    assert aurc_images(uncertainty, 1 - np.array(wrong)) == pytest.approx(found, rel=1e-9)


def test_aurc_of_many_pixels_agrees_with_brute_force():
    uncertainty, truth, pred = uncertain_errors(shape=(200, 200))
    order = np.argsort(uncertainty.astype(np.float16).ravel(), kind="stable")
    wrong = (truth != pred).ravel()[order]
    expected = (np.cumsum(wrong) / np.arange(1, wrong.size + 1)).mean()
    assert aurc(error_histograms(uncertainty, truth, pred)) == pytest.approx(expected, rel=1e-3)


def test_risk_falls_with_coverage_to_the_error_rate_of_all():
    uncertainty, truth, pred = uncertain_errors()
    curve = risk_coverage(error_histograms(uncertainty, truth, pred))
    order = np.argsort(uncertainty.astype(np.float16).ravel(), kind="stable")
    wrong = (truth != pred).ravel()[order]
    assert len(curve) == 100
    assert curve[-1].tolist() == [1, wrong.mean()]
    np.testing.assert_allclose(curve[49], [0.5, wrong[: wrong.size // 2].mean()], rtol=0.02)


def test_few_pixels_give_as_many_points():
    truth, pred = np.zeros((1, 3), np.uint8), np.array([[0, 1, 0]], np.uint8)
    curve = risk_coverage(error_histograms(np.array([[0.1, 0.2, 0.2]]), truth, pred))
    np.testing.assert_allclose(curve, [[1 / 3, 0], [2 / 3, 1 / 4], [1, 1 / 3]])  # the tie: half an error each
    assert risk_coverage(np.zeros((2, 8))).shape == (0, 2)
    assert np.isnan(aurc(np.zeros((2, 8))))


def test_images_below_the_median_dice_are_found_by_their_uncertainty():
    dice = np.array([0.9, 0.8, np.nan, 0.7, 0.4, 0.95])  # median of the defined ones: 0.8
    uncertainty = np.array([0.1, 0.3, 9.0, 0.2, 0.5, 0.05])
    keep = ~np.isnan(dice)
    assert auroc_images(uncertainty, dice) == pytest.approx(roc_auc_score(dice[keep] < 0.8, uncertainty[keep]))
    assert auroc_images(uncertainty, dice) == pytest.approx(5 / 6)
    expected = stats.spearmanr(uncertainty[keep], 1 - dice[keep]).statistic
    assert spearman_images(uncertainty, dice) == pytest.approx(expected)
    assert aurc_images(uncertainty, dice) == pytest.approx(mean_over_orders(uncertainty[keep], 1 - dice[keep]))


@pytest.mark.parametrize("dice", [[], [0.5], [0.5, 0.5, 0.5], [np.nan, np.nan]])
def test_scores_over_images_that_do_not_differ_are_undefined(dice):
    uncertainty = np.arange(len(dice))
    assert np.isnan(auroc_images(uncertainty, dice))
    assert np.isnan(spearman_images(uncertainty, dice))


def test_constant_uncertainty_finds_nothing():
    assert auroc_images([1, 1, 1], [0.1, 0.5, 0.9]) == 0.5
    assert np.isnan(spearman_images([1, 1, 1], [0.1, 0.5, 0.9]))
    assert np.isnan(aurc_images([], []))


def test_intervals_agree_with_scipy():
    counts = np.random.default_rng(0).integers(1, 100, (40, 3))

    def dice(tp, fp, fn, axis):
        return 2 * tp.sum(axis) / (2 * tp.sum(axis) + fp.sum(axis) + fn.sum(axis))

    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 20_000}
    expected = stats.bootstrap(tuple(counts.T), dice, random_state=0, **options).confidence_interval
    low, high = interval(dice_from_counts(resampled_sums(counts, resamples=20_000)))
    width = expected.high - expected.low
    assert width > 0.05
    assert abs(low - expected.low) < width / 30
    assert abs(high - expected.high) < width / 30


def test_the_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(1).normal(5, 2, 400)
    sums = resampled_sums(np.stack([values, np.ones(400)], axis=1))
    low, high = interval(sums[:, 0] / sums[:, 1])
    error = values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.15 * error)


@pytest.mark.parametrize(
    ("counts", "defined"),
    [
        ([[5, 1, 1]], False),  # one unit
        ([[5, 1, 1], [0, 0, 0]], False),  # one unit of two has the class
        ([[5, 1, 1]] + [[0, 0, 0]] * 99, False),  # one of a hundred
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], False),
        ([[5, 1, 1], [3, 0, 4]], True),
        ([[5, 1, 1], [3, 0, 4]] + [[0, 0, 0]] * 98, True),
    ],
)
def test_an_interval_needs_two_units_with_a_score(counts, defined):
    assert (interval(dice_from_counts(resampled_sums(counts))) is not None) == defined
