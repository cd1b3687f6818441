"""IoU and Dice: hand-computed tables, and agreement with scikit-learn and between both forms."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from segdrop.conventions import IGNORED
from segdrop.scoring.counts import (
    confusion_counts,
    dice,
    foreground_mean,
    iou,
    precision_from_counts,
    recall_from_counts,
    to_labels,
)
from segdrop.training.metrics import Dice, IoU

UNDEFINED = np.nan


@pytest.mark.parametrize(
    ("truth", "pred", "dice_per_class", "iou_per_class"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], [2 / 3, 4 / 5], [1 / 2, 2 / 3]),
        ([1, 1, 1, 1], [1, 1, 1, 1], [UNDEFINED, 1], [UNDEFINED, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0], [1, UNDEFINED], [1, UNDEFINED]),  # both without the class
        ([0, 0, 0, 0], [0, 0, 0, 1], [6 / 7, 0], [3 / 4, 0]),  # only the prediction has it
        ([0, 0, 0, 1], [0, 0, 0, 0], [6 / 7, 0], [3 / 4, 0]),  # only the truth has it
        ([0, 1, IGNORED, IGNORED], [0, 1, 1, 0], [1, 1], [1, 1]),
    ],
)
def test_scores_by_hand(truth, pred, dice_per_class, iou_per_class):
    np.testing.assert_allclose(dice(truth, pred), dice_per_class)
    np.testing.assert_allclose(iou(truth, pred), iou_per_class)


@pytest.mark.parametrize(
    ("counts", "precision", "recall"),
    [
        ([3, 1, 2], 3 / 4, 3 / 5),
        ([0, 0, 2], UNDEFINED, 0),  # nothing predicted
        ([0, 2, 0], 0, UNDEFINED),  # nothing there
        ([0, 0, 0], UNDEFINED, UNDEFINED),
    ],
)
def test_precision_and_recall_by_hand(counts, precision, recall):
    np.testing.assert_allclose(precision_from_counts(counts), precision)
    np.testing.assert_allclose(recall_from_counts(counts), recall)


def test_counts_hold_with_the_largest_number_of_classes():
    truth, pred = np.array([254, 254, 0, IGNORED], np.uint8), np.array([254, 3, 254, 7], np.uint8)
    counts = confusion_counts(truth, pred, 255)
    assert counts[254].tolist() == [1, 1, 1]
    assert counts.sum() == 5


def random_pair(classes=4, shape=(3, 16, 16), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, shape), rng.integers(0, classes, shape)


def test_scores_agree_with_scikit_learn():
    truth, pred = random_pair()
    np.testing.assert_allclose(dice(truth, pred, 4), f1_score(truth.ravel(), pred.ravel(), average=None))
    np.testing.assert_allclose(iou(truth, pred, 4), jaccard_score(truth.ravel(), pred.ravel(), average=None))
    counts = confusion_counts(truth, pred, 4)
    np.testing.assert_allclose(
        precision_from_counts(counts), precision_score(truth.ravel(), pred.ravel(), average=None)
    )
    np.testing.assert_allclose(recall_from_counts(counts), recall_score(truth.ravel(), pred.ravel(), average=None))


def test_counts_of_images_add_up_to_the_counts_of_the_set():
    truth, pred = random_pair()
    parts = [confusion_counts(t, p, 4) for t, p in zip(truth, pred, strict=True)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), confusion_counts(truth, pred, 4))


def test_the_headline_is_the_mean_over_defined_foreground_classes():
    assert foreground_mean([0.9, 0.5, UNDEFINED, 0.7]) == pytest.approx(0.6)
    assert np.isnan(foreground_mean([0.9, UNDEFINED]))


def test_labels_are_taken_at_one_half_or_by_argmax():
    assert to_labels(np.array([[[0.5], [0.49]]])).tolist() == [[1, 0]]
    assert to_labels(np.array([[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]])).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("truth", "pred", "message"),
    [
        ([0, 1], [0, 1, 1], r"must have one shape, got \(2,\) and \(3,\)"),
        ([0, 2], [0, 1], r"`truth` must hold classes 0..1, got 0..2"),
        ([0, 1], [0, 3], r"`pred` must hold classes 0..1, got 0..3"),
    ],
)
def test_wrong_arrays_are_an_error(truth, pred, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(truth, pred)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_keras_metrics_give_the_numbers_of_the_plain_functions(channels):
    classes = max(2, channels)
    truth, _ = random_pair(classes, (6, 16, 16))
    truth[0, :4] = IGNORED
    probabilities = np.random.default_rng(1).uniform(size=(6, 16, 16, channels)).astype("float32")
    metrics = {"dice": Dice(classes), "iou": IoU(classes)}
    for part in (slice(0, 4), slice(4, 6)):  # unequal batches: micro, not a mean of batch scores
        for metric in metrics.values():
            metric.update_state(truth[part, ..., None], probabilities[part])
    pred = to_labels(probabilities)
    assert float(metrics["dice"].result()) == pytest.approx(foreground_mean(dice(truth, pred, classes)), rel=1e-6)
    assert float(metrics["iou"].result()) == pytest.approx(foreground_mean(iou(truth, pred, classes)), rel=1e-6)


def test_a_class_that_nobody_has_is_left_out_of_the_keras_metric():
    metric = Dice(3)
    truth = np.array([[[0, 1]]])[..., None]
    metric.update_state(truth, np.array([[[[0.9, 0.1, 0], [0.1, 0.9, 0]]]], "float32"))
    assert float(metric.result()) == 1


def test_the_keras_metric_counts_past_float32_s_whole_numbers():
    metric = Dice(2)
    metric.counts.assign([[0, 2**24], [0, 1], [0, 0]])
    metric.update_state(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1), "float32"))
    assert int(metric.counts[0][1]) == 2**24 + 1


def test_resetting_forgets():
    metric = Dice(2)
    metric.update_state(np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1), "float32"))
    assert float(metric.result()) == 0
    metric.reset_state()
    metric.update_state(np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1), "float32"))
    assert float(metric.result()) == 1
