"""The learning rate of a part of the network: a factor for the steps of its variables."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise, tiny_training
from standin import build_small_unet

from segdrop import InputError, TrainConfig, train
from segdrop.data.augment import load_augmentation
from segdrop.data.opening import open_dataset
from segdrop.nets.sites import encoder_layers
from segdrop.training.device import precision_policy
from segdrop.training.optimizer import OneDeviceAdamW, PartwiseAdamW, WarmupCosine
from segdrop.training.samples import Samples
from segdrop.training.session import Session


def trainable_values(model):
    return {weight.path: np.array(weight) for weight in model.trainable_weights}


def step_taken(data, strategy=None, **fields):
    """How far each weight of the encoder and of the decoder is moved by a step of a training.

    It is the second step: the warm-up starts at 0, so that the first one moves nothing, and the second has the same
    gradients whatever its rate.
    """
    config = tiny_training(data, batch_size=4, lr=0.1, epochs=20, **fields)
    dataset, split = open_dataset(data), {"train": np.arange(4), "val": np.empty(0, int)}
    with precision_policy(config.mixed_precision):
        model = randomise(build_small_unet())
    encoder = {weight.path for layer in encoder_layers(model) for weight in layer.weights}
    session = Session(Path(), model, Samples(config, dataset, split, load_augmentation("none")), strategy=strategy)
    session.compile(0, frozen=False)
    batch = session.samples.training(0, 1).take(1)
    before = trainable_values(session.trained)
    for moves in (False, True):
        session.trained.fit(batch, shuffle=False, verbose=0)
        after = trainable_values(session.trained)
        assert moves == any(np.any(before[name] != after[name]) for name in before)
    changes = {name: after[name] - before[name] for name in before}
    return [np.concatenate([c.ravel() for name, c in changes.items() if (name in encoder) == own]) for own in (1, 0)]


@pytest.mark.parametrize("precision", ["off", "float16"])
def test_a_training_moves_the_encoder_by_its_factor_and_the_decoder_as_ever(cells, precision):
    encoder, decoder = step_taken(cells, mixed_precision=precision)
    slower, same = step_taken(cells, mixed_precision=precision, encoder_lr=0.25)
    assert len(encoder) > 500 and np.abs(encoder).max() > 0.05
    # Weights of about 1 in float32, and sums whose order may differ from run to run.
    np.testing.assert_allclose(slower, encoder / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(same, decoder, rtol=1e-4, atol=1e-6)


def variables():
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=5), dtype="float32", name=name) for name in ("kernel", "kernel", "bias")]


def follow(optimizer, moved, steps=5):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    rng = np.random.default_rng(1)
    optimizer.build(moved)
    step = tf.function(lambda gradients: optimizer.apply(gradients, moved))
    for _ in range(steps):
        step([tf.constant(rng.normal(size=5), tf.float32) for _ in moved])
    return [np.array(variable) for variable in moved]


def test_steps_and_decay_are_those_of_parameter_groups_in_pytorch():
    torch = pytest.importorskip("torch", reason="torch is an extra")
    ours = variables()
    optimizer = PartwiseAdamW(0.01, weight_decay=0.5, epsilon=1e-12)
    optimizer.scale_rate([ours[0], ours[2]], 0.1)
    theirs = [torch.nn.Parameter(torch.tensor(np.array(variable))) for variable in ours]
    rates_and_decays = [(1e-3, 0.5), (1e-2, 0.5), (1e-3, 0)]
    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": decay}
        for parameter, (rate, decay) in zip(theirs, rates_and_decays, strict=True)
    ]
    reference, rng = torch.optim.AdamW(groups, eps=1e-12), np.random.default_rng(1)
    for _ in range(5):
        for parameter in theirs:
            parameter.grad = torch.tensor(rng.normal(size=5), dtype=torch.float32)
        reference.step()
    for value, parameter in zip(follow(optimizer, ours), theirs, strict=True):
        np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=1e-5)


def test_without_a_factor_it_is_keras_s_adamw_to_the_last_bit():
    ours, theirs = (
        follow(optimizer(0.01, weight_decay=0.5), variables()) for optimizer in (PartwiseAdamW, keras.optimizers.AdamW)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_the_one_pass_of_a_device_is_keras_s_adamw():
    """Over a hundred steps, with a schedule, decay and clipping; state and all."""
    options = {"weight_decay": 0.5, "global_clipnorm": 2.0}
    ours, theirs = (
        optimizer(WarmupCosine(0.01, 100), **options) for optimizer in (OneDeviceAdamW, keras.optimizers.AdamW)
    )
    values = [follow(optimizer, variables(), steps=100) for optimizer in (ours, theirs)]
    assert np.abs(np.subtract(values[0], [np.array(v) for v in variables()])).min() > 1e-3
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6, atol=1e-6)
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_a_factor_acts_in_the_one_pass_as_in_many():
    results = []
    for optimizer in (OneDeviceAdamW(0.01, weight_decay=0.5), PartwiseAdamW(0.01, weight_decay=0.5)):
        moved = variables()
        optimizer.scale_rate(moved[:1], 0.1)
        results.append(follow(optimizer, moved, steps=20))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_gathered_gradients_move_the_weights_like_their_mean():
    """With the moments' correction for steps taken, weight decay and a factor, each once for three gradients."""

    class Mean(keras.optimizers.AdamW):
        """Takes the mean of three gradients at a time, by hand."""

        def apply(self, gradients, moved=None):
            self.seen = [*getattr(self, "seen", []), gradients]
            if len(self.seen) == 3:
                super().apply([sum(each) / 3 for each in zip(*self.seen, strict=True)], moved)
                self.seen = []

    gathering = OneDeviceAdamW(0.01, weight_decay=0.5, gradient_accumulation_steps=3)
    ours, expected, by_hand = variables(), variables(), Mean(0.01, weight_decay=0.5)
    by_hand.exclude_from_weight_decay(var_names=["bias"])
    by_hand.build(expected)
    rng = np.random.default_rng(1)  # as `follow` draws them
    for _ in range(11):
        by_hand.apply([tf.constant(rng.normal(size=5), tf.float32) for _ in expected], expected)
    follow(gathering, ours, steps=11)
    for value, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-6)


def test_the_rate_goes_on_while_gradients_are_gathered():
    """Steps are those of the data: the course of the rate is as long with gathering as without."""
    moved, optimizer = variables(), OneDeviceAdamW(WarmupCosine(0.01, 40), gradient_accumulation_steps=4)
    follow(optimizer, moved, steps=10)
    assert float(optimizer.learning_rate) == pytest.approx(float(WarmupCosine(0.01, 40)(10)))


@pytest.mark.parametrize("precision", ["off", "float16"])
def test_a_training_that_gathers_moves_the_weights_at_every_other_step(cells, precision):
    config = tiny_training(cells, batch_size=2, accumulate=2, lr=0.1, epochs=20, mixed_precision=precision)
    with precision_policy(precision):
        model = randomise(build_small_unet())
    split = {"train": np.arange(4), "val": np.empty(0, int)}
    session = Session(Path(), model, Samples(config, open_dataset(cells), split, load_augmentation("none")))
    session.compile(0, frozen=False)
    moves = []
    for _ in range(4):
        before = trainable_values(model)
        session.trained.fit(session.samples.training(0, 1).take(1), shuffle=False, verbose=0)
        moves.append(any(np.any(before[name] != value) for name, value in trainable_values(model).items()))
    assert moves == [False, True, False, True]


def test_gradients_are_gathered_on_one_device_alone():
    with pytest.raises(InputError, match=r"^`accumulate` needs gpus='one', got accumulate=2 with gpus='all'\.$"):
        TrainConfig(accumulate=2, gpus="all")


def test_its_state_is_laid_out_like_that_of_keras_s_adamw():
    ours, theirs = PartwiseAdamW(0.01), keras.optimizers.AdamW(0.01)
    moved = variables()
    ours.scale_rate(moved[:1], 0.1)
    for optimizer in (ours, theirs):
        optimizer.build(moved)
    assert [(v.name, v.shape) for v in ours.variables] == [(v.name, v.shape) for v in theirs.variables]


def test_a_training_with_a_factor_is_recorded(cells, tmp_path, small_unet):
    result = train(tiny_training(cells, run_dir=str(tmp_path / "run"), encoder_lr=0.1, epochs=2))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["encoder_lr"] == 0.1
    # The history has the rate of the decoder.
    plain = train(tiny_training(cells, run_dir=str(tmp_path / "plain"), epochs=2))
    assert [row["learning_rate"] for row in result.history] == [row["learning_rate"] for row in plain.history]


@pytest.mark.parametrize("factor", [0, -0.1, float("inf")])
def test_a_factor_that_is_not_positive_is_refused(factor):
    with pytest.raises(
        InputError, match=r"^`encoder_lr` must be a positive number \(freeze_epochs .*\), or auto, got encoder_lr"
    ):
        TrainConfig(encoder_lr=factor)
