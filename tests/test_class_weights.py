"""Class weights: losses by hand, balancing by hand, and what is refused."""

import keras
import numpy as np
import pytest
from conftest import tiny_training

import segdrop
from segdrop import InputError, TrainConfig
from segdrop.conventions import IGNORED
from segdrop.training.losses import LOSSES, SegmentationLoss
from segdrop.training.samples import median_frequency

BINARY = np.array([[[1, 1], [0, 0]]])[..., None]
P = np.array([[[0.8, 0.6], [0.4, 0.1]]], "float32")[..., None]
# Three classes in four pixels of truth 0, 1, 2, 0.
TRUTH = np.array([[[0, 1], [2, 0]]])[..., None]
PRED = np.array([[[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.5, 0.1, 0.4], [0.6, 0.2, 0.2]]]], "float32")
LOGS = -np.log([0.7, 0.8, 0.4, 0.6])
# Overlap, prediction and truth of class 1: 0.8, 1.3, 1; of class 2: 0.4, 0.8, 1.
DICE = np.array([1 - 1.6 / 2.3, 1 - 0.8 / 1.8])
TVERSKY = np.array([1 - 0.8 / (0.8 + 0.7 * 0.2 + 0.3 * 0.5), 1 - 0.4 / (0.4 + 0.7 * 0.6 + 0.3 * 0.4)])
WEIGHTS = (1.0, 3.0, 6.0)
CROSS_ENTROPY = np.average(LOGS, weights=[1, 3, 6, 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dice", np.average(DICE, weights=[3, 6])),
        ("dice_ce", np.average(DICE, weights=[3, 6]) + CROSS_ENTROPY),
        ("focal", np.average(LOGS * np.array([0.3, 0.2, 0.6, 0.4]) ** 2, weights=[1, 3, 6, 1])),
        ("tversky", np.average(TVERSKY, weights=[3, 6])),
    ],
)
def test_weighted_losses_by_hand(name, value):
    assert float(SegmentationLoss(name, class_weights=WEIGHTS)(TRUTH, PRED)) == pytest.approx(value, rel=1e-5)


def test_binary_weights_are_of_background_and_foreground():
    loss = float(SegmentationLoss("dice_ce", class_weights=(1, 4))(BINARY, P))
    entropy = -np.average(np.log([0.8, 0.6, 0.6, 0.9]), weights=[4, 4, 1, 1])
    assert loss == pytest.approx(1 - 2 * 1.4 / 3.9 + entropy, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("truth", "pred", "weights"), [(BINARY, P, (5, 5)), (TRUTH, PRED, (0.2, 0.2, 0.2))])
def test_equal_weights_of_any_size_change_nothing(name, truth, pred, weights):
    plain = float(SegmentationLoss(name)(truth, pred))
    assert float(SegmentationLoss(name, class_weights=weights)(truth, pred)) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_weight(name):
    truth, other = TRUTH.copy(), PRED.copy()
    truth[0, 1], other[0, 1] = IGNORED, [[0.1, 0.1, 0.8], [0.2, 0.2, 0.6]]
    loss = SegmentationLoss(name, class_weights=WEIGHTS)
    assert float(loss(truth, PRED)) == pytest.approx(float(loss(truth, other)), rel=1e-6)
    assert float(loss(np.full_like(truth, IGNORED), PRED)) == 0


def test_a_loss_keeps_its_weights_in_its_configuration():
    loss = SegmentationLoss("focal", class_weights=WEIGHTS)
    assert SegmentationLoss.from_config(loss.get_config()).class_weights == WEIGHTS


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([[75, 25], [75, 25]], (0.667, 2.0)),  # median of 3/4 and 1/4: 1/2
        ([[100, 0], [80, 20]], (0.611, 2.75)),  # of 0.9 and, where it is there, 0.2: 0.55
        ([[100, 0]], (1.0, 1.0)),  # never there
        ([[0, 0]], (1.0, 1.0)),  # all ignored
    ],
)
def test_rare_classes_weigh_more_by_the_median_frequency(counts, weights):
    assert median_frequency(np.array(counts), np.sum(counts, axis=1)) == weights


@pytest.mark.parametrize(
    "weights", [(1, 0), (1, -2), (1, float("nan")), (1, float("inf")), (1,), (), "rare", 3.0, (1, "2"), (1, True)]
)
def test_what_is_no_weight_is_refused(weights):
    words = "`class_weights` must be positive numbers, one for each class, background first, or none, or auto, got"
    with pytest.raises(InputError, match=words):
        TrainConfig(class_weights=weights)


def test_another_number_of_weights_than_of_classes_leaves_no_folder(cells, tmp_path, small_unet):
    config = tiny_training(cells, run_dir=str(tmp_path / "run"), class_weights=(1, 2, 3))
    words = "`class_weights` must be 2 numbers, for background, foreground, got 3: 1 2 3"
    with pytest.raises(InputError, match=words):
        segdrop.train(config)
    assert not (tmp_path / "run").exists()


def test_a_configuration_with_weights_survives_json():
    config = TrainConfig(class_weights=(1, 2.5))
    stored = {**config.to_json(), "class_weights": [1, 2.5]}
    assert TrainConfig.from_json(stored) == config
    assert TrainConfig.from_json({}).class_weights == "none"


def test_a_training_minimises_the_weighted_loss(cells, tmp_path, small_unet, capsys, monkeypatch):
    losses = []
    monkeypatch.setattr(keras.Model, "compile", _noting(keras.Model.compile, losses))
    segdrop.train(tiny_training(cells, run_dir=str(tmp_path / "run"), class_weights="auto"))
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Balance:"))
    background, foreground = losses[0].class_weights
    assert background < 1 < foreground
    assert said == f"Balance: background {background:g}, foreground {foreground:g}, in the loss"


def _noting(compile_model, losses):
    def noting(self, optimizer="rmsprop", loss=None, **options):
        losses.append(loss)
        return compile_model(self, optimizer, loss, **options)

    return noting
