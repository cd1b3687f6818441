"""Weight averaging: what is averaged, what is validated and kept, and what training goes on with."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_training
from standin import build_small_unet

from segdrop import InputError, train
from segdrop.data.augment import load_augmentation
from segdrop.data.opening import open_dataset
from segdrop.nets.batchnorm import statistics_of
from segdrop.training.device import precision_policy
from segdrop.training.optimizer import OneDeviceAdamW, PartwiseAdamW
from segdrop.training.samples import Samples
from segdrop.training.session import Session

pytestmark = pytest.mark.usefixtures("small_unet")


class Snapshots(keras.callbacks.Callback):
    """All variables of a network after each step, and what it has when an epoch's callbacks have run."""

    def __init__(self, model):
        super().__init__()
        self._network, self.steps, self.between = model, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(values_of(self._network))

    def on_epoch_end(self, epoch, logs=None):
        self.between.append(values_of(self._network))


def values_of(model):
    return {weight.path: np.array(weight) for weight in model.weights}


def followed(data, run_dir, **fields):
    """A session of two epochs, and what its network was after each step."""
    config = tiny_training(data, **{"batch_size": 2, "epochs": 2, "lr": 0.01, "ema": 0.6, **fields})
    dataset, split = open_dataset(data), {"train": np.arange(4), "val": np.arange(4, 6)}
    keras.utils.set_random_seed(0)
    with precision_policy(config.mixed_precision):
        model = build_small_unet()
    run_dir.mkdir()
    session = Session(run_dir, model, Samples(config, dataset, split, load_augmentation("none")), keep_state=True)
    seen = Snapshots(model)
    session.callbacks.append(seen)
    session.fit()
    return session, seen


def averaged(steps, names, momentum):
    """By hand: the first step's values, and from then on a share of each."""
    result = {name: steps[0][name].astype("float64") for name in names}
    for step in steps[1:]:
        result = {name: momentum * result[name] + (1 - momentum) * step[name] for name in names}
    return result


def names_averaged(model):
    return {weight.path for weight in [*model.trainable_weights, *statistics_of(model)]}


@pytest.mark.parametrize("fields", [{}, {"mixed_precision": "bfloat16"}, {"mixed_precision": "float16"}])
def test_between_epochs_the_network_is_the_average_over_the_steps(cells, tmp_path, fields):
    """Of weights and BatchNorm's statistics, in the file that is kept, too; and the next step starts from its own."""
    session, seen = followed(cells, tmp_path / "run", **fields)
    names = names_averaged(session.model)
    assert len(statistics_of(session.model)) > 2
    for epoch in (0, 1):
        expected = averaged(seen.steps[: 2 * (epoch + 1)], names, 0.6)
        for name in names:
            np.testing.assert_allclose(seen.between[epoch][name], expected[name], rtol=1e-5, atol=1e-6)
    moved = max(np.abs(seen.between[1][name] - seen.steps[3][name]).max() for name in names)
    assert moved > 1e-3  # an average is another thing than the last weights
    for name, value in values_of(session.model).items():
        np.testing.assert_array_equal(value, seen.steps[3][name])
    best = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
    kept = int(np.argmax([row["val_dice"] for row in session.history]))
    for ours, theirs in zip(seen.between[kept].values(), best.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_training_goes_on_as_without_averages(cells, tmp_path):
    plain, without = followed(cells, tmp_path / "plain", ema=None)
    averaging, steps = followed(cells, tmp_path / "ema")
    for ours, theirs in zip(steps.steps, without.steps, strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in averaging.history]
    assert [row["val_loss"] for row in plain.history] != [row["val_loss"] for row in averaging.history]


def test_validation_is_of_the_averages(cells, tmp_path):
    session, seen = followed(cells, tmp_path / "run", epochs=1)
    for weight in session.model.weights:
        weight.assign(seen.between[0][weight.path])
    loss, batches = session._loss(), [session.validation.read(batch) for batch in session.validation.plan]
    expected = [float(loss(truth, session.model(images, training=False))) for images, truth in batches]
    assert len(expected) == 2 and session.history[0]["val_loss"] == pytest.approx(np.mean(expected), rel=1e-4)


def average_after_six_steps(optimizer):
    weight, rng = keras.Variable(np.ones(4, "float32")), np.random.default_rng(0)
    optimizer.build([weight])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [weight]))
    for _ in range(6):
        step(tf.constant(rng.normal(size=4), tf.float32))
    optimizer.finalize_variable_values([weight])
    return np.array(weight)


@pytest.mark.parametrize("optimizer", [OneDeviceAdamW, PartwiseAdamW])
def test_the_averages_of_weights_are_those_of_keras_s_adamw(optimizer):
    ours, theirs = (
        average_after_six_steps(made(0.1, use_ema=True, ema_momentum=0.9))
        for made in (optimizer, keras.optimizers.AdamW)
    )
    assert np.abs(ours - 1).min() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"freeze_epochs": 2}, {"accumulate": 2}, {"mixup": 0.4, "copy_paste": 0.5}])
def test_a_resumed_training_is_the_same_to_the_last_bit(cells, tmp_path, monkeypatch, fields):
    """Interrupted after the second of four epochs, on the border of the frozen phase, where there is one."""
    config = tiny_training(cells, run_dir=str(tmp_path / "one"), epochs=4, batch_size=2, lr=0.01, ema=0.6, **fields)
    whole = train(config)
    record = Session.record_epoch

    def killed(self, row):
        record(self, row)
        if row["epoch"] == 1:
            self._background.wait()
            raise KeyboardInterrupt

    again = dataclasses.replace(config, run_dir=str(tmp_path / "two"))
    with monkeypatch.context() as patch:
        patch.setattr(Session, "record_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    resumed = train(dataclasses.replace(again, resume=True))
    assert resumed.history == whole.history
    for ours, theirs in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.jax
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="run by the next test")
def test_averages_are_refused_under_jax(cells, tmp_path):
    with pytest.raises(InputError, match=r"^`ema` needs Keras's backend tensorflow, got jax\.$"):
        train(tiny_training(cells, run_dir=str(tmp_path / "run"), ema=0.9))
    assert not (tmp_path / "run").exists()
