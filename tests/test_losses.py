"""Losses: hand-computed values, ignored pixels, and the mean over images."""

import keras
import numpy as np
import pytest

from segdrop.conventions import IGNORED
from segdrop.training.losses import LOSSES, SegmentationLoss

TRUTH = np.array([[[1, 1], [0, 0]]])[..., None]
PROBABILITIES = np.array([[[0.8, 0.6], [0.4, 0.1]]], "float32")[..., None]
# Sums for the above: overlap 1.4, prediction 1.9, truth 2.
DICE = 1 - 2 * 1.4 / (1.9 + 2)
CROSS_ENTROPY = -np.mean(np.log([0.8, 0.6, 0.6, 0.9]))
FOCAL = -np.mean(np.array([0.2, 0.4, 0.4, 0.1]) ** 2 * np.log([0.8, 0.6, 0.6, 0.9]))
TVERSKY = 1 - 1.4 / (1.4 + 0.7 * 0.6 + 0.3 * 0.5)  # 0.6 of the truth missed, 0.5 predicted beside it


def random_batch(classes, seed=0, images=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, 8, 8, classes)).astype("float32")
    probabilities = keras.ops.sigmoid(logits) if classes == 1 else keras.ops.softmax(logits)
    return rng.integers(0, max(2, classes), (images, 8, 8, 1)).astype("uint8"), np.array(probabilities)


@pytest.mark.parametrize(
    ("name", "value"), [("dice", DICE), ("dice_ce", DICE + CROSS_ENTROPY), ("focal", FOCAL), ("tversky", TVERSKY)]
)
def test_binary_losses_by_hand(name, value):
    assert float(SegmentationLoss(name)(TRUTH, PROBABILITIES)) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_pixels_change_nothing(name, classes):
    truth, pred = random_batch(classes)
    truth[:, :3] = IGNORED
    other = pred.copy()
    other[:, :3] = np.roll(other[:, :3], 1, axis=-2)
    loss = SegmentationLoss(name)
    assert float(loss(truth, pred)) == pytest.approx(float(loss(truth, other)), rel=1e-6)
    assert float(loss(truth, pred)) == pytest.approx(float(loss(truth[:, 3:], pred[:, 3:])), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_batch_costs_the_mean_of_its_images(name, classes):
    truth, pred = random_batch(classes)
    loss = SegmentationLoss(name)
    single = [float(loss(truth[i : i + 1], pred[i : i + 1])) for i in range(len(truth))]
    assert float(loss(truth, pred)) == pytest.approx(np.mean(single), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
def test_the_truth_itself_costs_nothing(name, classes):
    truth, _ = random_batch(classes)
    exact = truth.astype("float32") if classes == 1 else np.eye(classes, dtype="float32")[truth[..., 0]]
    assert float(SegmentationLoss(name)(truth, exact)) == pytest.approx(0, abs=1e-5)


def test_softmax_dice_is_the_mean_over_the_foreground_classes_present():
    truth = np.array([[[0, 1], [1, 0]]])[..., None]  # class 2 is absent
    pred = np.array([[[[0.7, 0.2, 0.1], [0.1, 0.9, 0.0]], [[0.3, 0.4, 0.3], [0.8, 0.2, 0.0]]]], "float32")
    assert float(SegmentationLoss("dice")(truth, pred)) == pytest.approx(1 - 2 * 1.3 / (1.7 + 2), rel=1e-5)


def test_an_image_without_foreground_costs_cross_entropy_alone():
    empty = np.zeros((1, 2, 2, 1), "uint8")
    assert float(SegmentationLoss("dice")(empty, PROBABILITIES)) == 0
    expected = -np.mean(np.log(1 - PROBABILITIES))
    assert float(SegmentationLoss("dice_ce")(empty, PROBABILITIES)) == pytest.approx(expected, rel=1e-5)


def test_an_image_ignored_as_a_whole_costs_nothing():
    nothing = np.full((1, 2, 2, 1), IGNORED, "uint8")
    for name in LOSSES:
        assert float(SegmentationLoss(name)(nothing, PROBABILITIES)) == 0, name


def test_tversky_punishes_missed_truth_more_than_excess():
    truth = np.array([[[1, 1], [0, 0]]])[..., None]
    missed = np.array([[[1, 0], [0, 0]]], "float32")[..., None]
    excess = np.array([[[1, 1], [1, 0]]], "float32")[..., None]
    loss = SegmentationLoss("tversky")
    assert float(loss(truth, missed)) == pytest.approx(1 - 1 / 1.7, rel=1e-5)
    assert float(loss(truth, excess)) == pytest.approx(1 - 2 / 2.3, rel=1e-5)


def smoothed_by_hand(probabilities, labels):
    """Cross-entropy of labels that are shares of the classes."""
    return -np.mean(np.sum(labels * np.log(probabilities), axis=-1))


@pytest.mark.jax
def test_label_smoothing_by_hand_where_there_are_two_classes():
    both = np.concatenate([1 - PROBABILITIES, PROBABILITIES], axis=-1)
    labels = np.where(TRUTH == [0, 1], 0.9, 0.1)  # of 0.2, half to each
    expected = DICE + smoothed_by_hand(both, labels)
    assert float(SegmentationLoss("dice_ce", label_smoothing=0.2)(TRUTH, PROBABILITIES)) == pytest.approx(expected)
    softmax = SegmentationLoss("dice_ce", label_smoothing=0.2)(TRUTH, both.astype("float32"))
    assert float(softmax) == pytest.approx(expected, rel=1e-5)


@pytest.mark.jax
def test_label_smoothing_by_hand_where_there_are_three():
    truth, pred = random_batch(3)
    labels = np.where(truth == np.arange(3), 0.8, 0.1)  # of 0.3, a third to each
    smooth, plain = (float(SegmentationLoss(name, label_smoothing=0.3)(truth, pred)) for name in ("dice_ce", "dice"))
    assert smooth - plain == pytest.approx(smoothed_by_hand(pred, labels), rel=1e-5)
    focal = -np.mean(np.sum(labels * (1 - pred) ** 2 * np.log(pred), axis=-1))
    assert float(SegmentationLoss("focal", label_smoothing=0.3)(truth, pred)) == pytest.approx(focal, rel=1e-5)


@pytest.mark.jax
def test_label_smoothing_by_hand_where_classes_overlap():
    truth = np.array([[[0, 1], [2, 3]]], "uint8")[..., None]  # neither, the first, the second, both
    pred = np.random.default_rng(0).uniform(0.1, 0.9, (1, 2, 2, 2)).astype("float32")
    shown = np.array([[[[0, 0], [1, 0]], [[0, 1], [1, 1]]]])
    labels = np.stack([np.where(shown, 0.05, 0.95), np.where(shown, 0.95, 0.05)], axis=-1)
    expected = smoothed_by_hand(np.stack([1 - pred, pred], axis=-1), labels)
    smooth, plain = (
        SegmentationLoss(n, multilabel=True, label_smoothing=0.1)(truth, pred) for n in ("dice_ce", "dice")
    )
    assert float(smooth) - float(plain) == pytest.approx(expected, rel=1e-5)


@pytest.mark.jax
@pytest.mark.parametrize("classes", [1, 3])
def test_label_smoothing_leaves_overlap_and_ignored_pixels_alone(classes):
    truth, pred = random_batch(classes)
    for name in ("dice", "tversky"):
        plain, smooth = (float(SegmentationLoss(name, label_smoothing=s)(truth, pred)) for s in (0.0, 0.3))
        assert smooth == plain
    truth[:, :3] = IGNORED
    for name in ("dice_ce", "focal"):
        loss = SegmentationLoss(name, label_smoothing=0.3)
        assert float(loss(truth, pred)) == pytest.approx(float(loss(truth[:, 3:], pred[:, 3:])), rel=1e-5)
        assert abs(float(loss(truth, pred)) - float(SegmentationLoss(name)(truth, pred))) > 0.01


@pytest.mark.jax
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_blend_costs_what_its_images_cost_by_their_shares(name, classes):
    (truth, pred), (other, _) = random_batch(classes), random_batch(classes, seed=1)
    truth[0, :3], other[0, 5:] = IGNORED, IGNORED  # each by itself
    shares = np.array([51, 0, 102])
    planes = np.broadcast_to(shares[:, None, None, None], truth.shape).astype("uint8")
    loss = SegmentationLoss(name)
    first, second = ([float(loss(t[i : i + 1], pred[i : i + 1])) for i in range(3)] for t in (truth, other))
    expected = np.mean([0.8 * first[0] + 0.2 * second[0], first[1], 0.6 * first[2] + 0.4 * second[2]])
    blend = np.concatenate([truth, other, planes], axis=-1)
    assert float(loss(blend, pred)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.jax
def test_cross_entropy_of_a_blend_is_that_of_blended_labels():
    (truth, pred), (other, _) = random_batch(3), random_batch(3, seed=1)
    labels = 0.8 * np.eye(3)[truth[..., 0]] + 0.2 * np.eye(3)[other[..., 0]]
    blend = np.concatenate([truth, other, np.full_like(truth, 51)], axis=-1)
    overlap, both = (float(SegmentationLoss(name)(blend, pred)) for name in ("dice", "dice_ce"))
    assert both - overlap == pytest.approx(smoothed_by_hand(pred, labels), rel=1e-4)


def test_a_loss_is_made_again_from_its_configuration():
    loss = SegmentationLoss("focal", class_weights=(1, 2), label_smoothing=0.1)
    assert SegmentationLoss.from_config(loss.get_config()).get_config() == loss.get_config()


def test_an_unknown_loss_is_an_error():
    with pytest.raises(ValueError, match="`loss` must be one of dice_ce, dice, focal, tversky, got 'hinge'"):
        SegmentationLoss("hinge")
