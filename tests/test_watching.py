"""What goes wrong in a training without an error: each is said once, where it is so, and not where it is not."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
from conftest import tiny_training, write_pairs, write_run, write_table

from segdrop import train
from segdrop.data.augment import load_augmentation
from segdrop.data.opening import open_configured
from segdrop.data.splits import split_dataset
from segdrop.folders.run import open_run
from segdrop.reporting.page import report
from segdrop.training.samples import Samples
from segdrop.training.session import Session
from segdrop.training.watching import (
    Watch,
    drifted,
    far_below,
    missing_classes,
    nothing_learnt,
    standing_still,
    window_of,
)

NAMES = ("background", "cell", "nucleus")
STILL = {"epochs": 4, "lr": 1e-12, "batch_size": 4, "crop_size": 64, "augment": "none"}


@pytest.mark.parametrize(
    ("epochs", "steps", "window"),
    [
        (30, 50, 3),  # three epochs at least
        (30, 20, 5),  # 100 steps
        (30, 8, 8),  # a quarter of a training of 240 steps
        (30, 3, 8),
        (2, 100, 3),
        (1000, 1, 100),
    ],
)
def test_how_long_something_must_be_so_depends_on_the_steps_that_there_are(epochs, steps, window):
    assert window_of(epochs, steps) == window


@pytest.mark.parametrize(
    ("unseen", "shares", "titles"),
    [
        ([0, 3, 3], [0.9, 0.08, 0.02], ["All background"]),
        ([0, 4, 2], [0.9, 0.08, 0.02], ["Class 'cell' never predicted"]),
        ([0, 0, 9], [0.9, 0.08, 0.02], ["Class 'nucleus' never predicted"]),
        ([5, 0, 0], [0.9, 0.08, 0.02], ["Class 'background' never predicted"]),
        ([0, 2, 2], [0.9, 0.08, 0.02], []),
        ([0, 3, 0], [0.9, 0.1, 0.0], ["All background"]),  # the other one is not there to be predicted
        ([0, 0, 0], [1.0, 0.0, 0.0], []),
    ],
)
def test_classes_that_are_not_predicted_are_named_after_three_epochs(unseen, shares, titles):
    assert list(missing_classes(unseen, NAMES, shares, 3, 7)) == titles


def test_missing_classes_are_told_with_their_shares():
    (told,) = missing_classes([0, 4, 5], NAMES, [0.9, 0.08, 0.02], 3, 7).values()
    assert told.startswith("in the 4 epochs up to epoch 8 every pixel of the validation images was predicted as back")
    assert "though 10.00% are not; train longer" in told
    (told,) = missing_classes([0, 0, 5], NAMES, [0.9, 0.08, 0.02], 3, 7).values()
    assert "in the 5 epochs up to epoch 8 no pixel" in told and "though 2.00% are of it" in told


def history(**columns):
    """Rows of a history: `history(loss=[1, 0.9], dice=[0.1, 0.2])`."""
    return [
        {"epoch": epoch, **dict(zip(columns, row, strict=True))}
        for epoch, row in enumerate(zip(*columns.values(), strict=True))
    ]


@pytest.mark.parametrize(
    ("loss", "dice", "told"),
    [
        ([1.0, 0.99, 1.01, 0.98], [0.1, 0.1, 0.1, 0.1], True),
        ([1.0, 0.99, 1.01, 0.98], [0.1, 0.15, 0.2, 0.2], False),  # Dice rises
        ([1.0, 0.9, 0.8, 0.8], [0.1, 0.1, 0.1, 0.1], False),  # the loss falls
        ([0.1, 0.1, 0.1, 0.1], [0.95, 0.95, 0.95, 0.95], False),  # there is nothing left to learn
        ([1.0, 1.0, 1.0], [0.1, 0.1, 0.1], False),  # too early to tell
        ([1.0, 0.7, 0.5, 0.5, 0.5, 0.5], [0.1, 0.4, 0.5, 0.5, 0.5, 0.5], False),  # it has learnt what it can
    ],
)
def test_a_loss_stands_still_if_it_has_not_fallen_since_the_first_epoch(loss, dice, told):
    assert bool(standing_still(history(loss=loss, dice=dice), 3, 0.001)) is told


def test_a_loss_that_stands_still_is_told_with_its_numbers():
    rows = history(loss=[1.0, 0.99, 1.01, 0.97], dice=[0.1] * 4)
    assert standing_still(rows, 3, 0.001)["Loss standing still"].startswith(
        "it was 1 in the first epoch and is 0.99 in the 3 up to epoch 4; try a larger or a smaller --lr than 0.001"
    )


@pytest.mark.parametrize(
    ("dice", "validation", "told"),
    [
        ([0.5, 0.8, 0.8, 0.8], [0.5, 0.5, 0.5, 0.5], True),
        ([0.5, 0.8, 0.8, 0.8], [0.5, 0.5, 0.7, 0.5], False),
        ([0.8, 0.8], [0.1, 0.1], False),
        ([0.8, 0.8, 0.8], [math.nan] * 3, False),
        ([0.5, 0.5, 0.5], [0.8, 0.8, 0.8], False),
    ],
)
def test_validation_is_far_below_training_if_it_is_so_in_each_of_three_epochs(dice, validation, told):
    found = far_below(history(dice=dice, val_dice=validation), 3)
    assert bool(found) is told
    if told:
        assert "up to epoch 4 Dice was 0.500 on the validation images and 0.800 on" in found.popitem()[1]


def test_without_validation_nothing_is_below_training():
    assert far_below(history(dice=[0.8] * 4), 3) == {}


@pytest.mark.parametrize(("training", "in_use", "told"), [(0.8, 0.6, True), (0.8, 0.7, False), (0.8, math.nan, False)])
def test_statistics_drift_if_the_same_crops_score_worse_in_use(training, in_use, told):
    assert bool(drifted(training, in_use, 0.9)) is told


def squares(folder, classes=1, inverted=()):
    """Ten pictures of a bright square, 4 : 3 : 3; the first half of it is class 1, the other half the last class."""
    pairs = {}
    for i in range(10):
        mask = np.zeros((64, 64), np.uint8)
        mask[4 + i : 44 + i, 8:32], mask[4 + i : 44 + i, 32:56] = 1, classes
        image = np.where(mask > 0, 220, 40).astype(np.uint8) + np.uint8(i)
        pairs[f"p{i}"] = (image, 1 - mask if i in inverted else mask)
    write_pairs(folder, pairs)
    splits = ["train"] * 4 + ["val"] * 3 + ["test"] * 3
    write_table(folder / "splits.csv", [{"id": i, "split": s} for i, s in zip(pairs, splits, strict=True)])
    return folder


def network(encoder=None, bias=-128.0, slope=1.0, classes=1):
    """A "U-Net" that calls bright pixels the last class, by their value or by what its encoder makes of it."""
    inputs = keras.Input((None, None, 3))
    x = (encoder or keras.layers.Identity())(inputs)
    x = keras.layers.UpSampling2D(1, name="decoder_stage0_upsampling")(x)
    pick = keras.layers.Conv2D(classes, 1, activation="sigmoid" if classes == 1 else "softmax", name="final_conv")
    model = keras.Model(inputs, pick(x))
    kernel, biases = np.zeros((1, 1, 3, classes), "float32"), np.zeros(classes, "float32")
    kernel[0, 0, 0, -1], biases[-1] = slope, bias
    pick.set_weights([kernel, biases])
    return model


def normalising():
    """A network that is right with BatchNorm's statistics of the batch; the running ones begin with mean 0."""
    return network(keras.layers.BatchNormalization(), bias=0.0, slope=10.0)


def train_as_it_is(monkeypatch, folder, model, **fields):
    """A training of four epochs that moves the network by nothing, and what it says."""
    monkeypatch.setattr("segdrop.training.building.build_unet", lambda *_, **__: model)
    return train(tiny_training(squares(folder / "data"), run_dir=str(folder / "run"), **{**STILL, **fields}))


def watch(folder, model, classes=1, inverted=(), **fields):
    """The history and the warnings of such a training, without all that a run has besides."""
    config = tiny_training(squares(folder / "data", classes, inverted), **{**STILL, **fields})
    dataset = open_configured(config)
    augmentation = load_augmentation("none", colours=True)
    samples = Samples(config, dataset, split_dataset(dataset, 0, 0.2), augmentation)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = config.bn_momentum
    write_run(folder / "run", model)
    told = []
    session = Session(folder / "run", model, samples)
    session.callbacks.append(Watch(session, told.append))
    session.fit()
    assert warnings_of(folder) == told
    return session.history, told


def warnings_of(folder):
    return json.loads((folder / "run" / "config.json").read_text()).get("warnings", [])


def test_a_network_that_does_its_work_is_not_remarked(tmp_path):
    history, told = watch(tmp_path, network())
    assert history[-1]["val_dice"] > 0.99 and told == []


def test_all_background_is_told_once_in_terminal_record_and_report(tmp_path, monkeypatch, capsys):
    train_as_it_is(monkeypatch, tmp_path, network(bias=-1000.0))
    background, still, nothing = warnings_of(tmp_path)
    # A square has 40 x 48 of 64 x 64 pixels.
    assert background.startswith("All background: in the 3 epochs up to epoch 3 ") and "46.88% are not" in background
    assert still.startswith("Loss standing still: ") and "--lr than 1e-12" in still
    assert nothing.startswith(
        "Nothing was learnt: the best validation Dice is 0.000, and one class for all pixels has 0.6"
    )
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert printed.count("All background: ") == printed.count("Loss standing still: ") == 1
    assert printed.count("Nothing was learnt: ") == 1 and "The best epoch is the last" not in printed
    assert printed.index("Epoch 3 of 4") < printed.index("All background") < printed.index("Epoch 4 of 4")
    assert "Warning.</strong> All background: " in report(tmp_path / "run", images=0).read_text(encoding="utf-8")


def test_a_class_that_is_never_predicted_is_named(tmp_path):
    model = network(classes=3)
    kernel, bias = model.get_layer("final_conv").get_weights()
    kernel[..., 1], bias[1] = kernel[..., 2], bias[2]
    bias[2] -= 1
    model.get_layer("final_conv").set_weights([kernel, bias])
    _, (told, *others) = watch(tmp_path, model, classes=2)
    assert told.startswith("Class 'class 2' never predicted: in the 3 epochs up to epoch 3 ") and "23.44%" in told
    assert [one.partition(":")[0] for one in others] == ["Loss standing still"]


def test_validation_far_below_training_is_told(tmp_path):
    _, (told, *_) = watch(tmp_path, network(), inverted=(4, 5, 6))
    assert told.startswith("Validation far below training: in the 3 epochs up to epoch 3 Dice was 0.000 on")


def test_validation_far_below_training_is_told_in_the_second_half_of_a_training_alone(tmp_path):
    _, (told, *_) = watch(tmp_path, network(), inverted=(4, 5, 6), epochs=10)
    assert told.startswith("Validation far below training: in the 3 epochs up to epoch 6 ")


def test_running_statistics_far_from_the_batch_s_are_told_instead_of_what_comes_of_them(tmp_path):
    history, (told,) = watch(tmp_path, normalising(), bn_momentum=0.9999)
    assert history[0]["dice"] > 0.99 and history[0]["val_dice"] < 0.7
    assert told.startswith("BatchNorm's statistics drift: the same training crops have a Dice of 1.000 with ")
    assert "and of 0.638 with the running ones" in told and "a --bn-momentum below 0.9999" in told


def test_running_statistics_that_keep_up_are_not_remarked(tmp_path):
    assert watch(tmp_path, normalising(), bn_momentum=0.0)[1] == []


@pytest.mark.parametrize(
    ("dice", "counts", "told"),
    [
        (0.155, [[91, 0, 0], [0, 0, 9]], True),  # 9 of 100 pixels: 18 / 109 = 0.165
        (0.206, [[0, 0, 91], [9, 0, 0]], True),  # whatever was predicted; 0.165 + 0.835 / 20 = 0.207
        (0.208, [[91, 0, 0], [0, 0, 9]], False),
        (0.2, [[60, 0, 0], [30, 0, 0], [10, 0, 0]], True),  # class 1 for all: 60 / 130, of two classes 0.231
        (0.3, [[60, 0, 0], [30, 0, 0], [10, 0, 0]], False),
        (None, [[91, 0, 0], [0, 0, 9]], False),
        (0.1, [[100, 0, 0], [0, 0, 0]], False),  # there was nothing to learn
        (0.1, None, False),
    ],
)
def test_nothing_is_learnt_if_one_class_for_all_pixels_does_as_well(dice, counts, told):
    found = nothing_learnt(dice, None if counts is None else np.array(counts))
    assert (found is not None) is told
    if told and dice == 0.155:
        assert "the best validation Dice is 0.155, and one class for all pixels has 0.165; train longer" in found


def test_what_an_interrupted_session_has_said_stays_and_is_not_said_again(tmp_path, monkeypatch):
    original = Session.record_epoch

    def stop_in_the_fourth(session, row):
        original(session, row)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "record_epoch", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train_as_it_is(monkeypatch, tmp_path, network(bias=-1000.0), epochs=7)
    (before,) = warnings_of(tmp_path)
    monkeypatch.setattr(Session, "record_epoch", original)
    train(dataclasses.replace(open_run(tmp_path / "run").config, resume=True))
    told = warnings_of(tmp_path)
    assert told[0] == before and before.startswith("All background: ")
    assert [one.startswith("All background: ") for one in told].count(True) == 1
