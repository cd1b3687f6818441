"""BatchNorm under dropout: its shift measured, and put right."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise, tiny_training
from keras import layers
from standin import build_small_unet

from segdrop import (
    InputError,
    VerificationError,
    batchnorm_shift,
    build_unet,
    insert_dropout,
    rebase_batchnorm,
    recalibrate_batchnorm,
    train,
    verify,
)
from segdrop.training.session import Session

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(2, 3, (16, 8, 8, 5)).astype("float32") for _ in range(6)]


def normalised(rate=None, momentum=0.5):
    """in -> [dropout] -> BatchNorm: the variance that BatchNorm meets is known."""
    inputs = keras.Input((8, 8, 5))
    x = layers.Activation("linear", name="site")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization(momentum=momentum, name="bn")(x))
    return model if rate is None else insert_dropout(model, "site", rate, seed=0)


def test_the_shift_is_moving_over_test_variance():
    model = normalised()
    model.get_layer("bn").moving_variance.assign([9.0, 18.0, 18.0, 18.0, 90.0])
    (row,) = batchnorm_shift(model, BATCHES)
    variance = np.concatenate(BATCHES).var(axis=(0, 1, 2))
    assert row["test"] == pytest.approx(variance.mean(), rel=1e-4)
    assert row["moving"] == pytest.approx(153 / 5)
    assert row["ratio"] == pytest.approx(np.median([9, 18, 18, 18, 90] / variance), rel=1e-3)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_training_with_dropout_shifts_as_theory_says_and_recalibration_undoes_it(rate):
    # Var(mask x) = (Var(x) + E(x)^2) / (1 - rate) - E(x)^2, by Li et al. 2019.
    model = normalised(rate)
    for batch in BATCHES * 4:
        model(batch, training=True)
    assert batchnorm_shift(model, BATCHES)[0]["ratio"] == pytest.approx((13 / (1 - rate) - 4) / 9, rel=0.05)
    recalibrate_batchnorm(model, BATCHES)
    assert batchnorm_shift(model, BATCHES)[0]["ratio"] == pytest.approx(1, rel=0.01)


def test_recalibrated_statistics_are_the_means_of_the_batches_statistics():
    model = normalised(0.5)
    recalibrate_batchnorm(model, BATCHES)
    bn = model.get_layer("bn")
    np.testing.assert_allclose(bn.moving_mean, np.mean([b.mean(axis=(0, 1, 2)) for b in BATCHES], axis=0), rtol=1e-4)
    np.testing.assert_allclose(bn.moving_variance, np.mean([b.var(axis=(0, 1, 2)) for b in BATCHES], axis=0), rtol=1e-4)


def test_recalibration_leaves_weights_flags_momentum_and_random_state():
    model = normalised(0.5)
    model.get_layer("bn").trainable = False
    seeds = [np.array(v) for v in model.variables if "seed" in v.path]
    recalibrate_batchnorm(model, BATCHES)
    bn = model.get_layer("bn")
    assert (bn.trainable, bn.momentum) == (False, 0.5)
    np.testing.assert_array_equal(bn.gamma, np.ones(5))
    np.testing.assert_array_equal(bn.beta, np.zeros(5))
    for old, variable in zip(seeds, [v for v in model.variables if "seed" in v.path], strict=True):
        np.testing.assert_array_equal(old, variable)
    assert not np.allclose(bn.moving_mean, 0)


def test_a_failure_in_the_middle_changes_nothing():
    model = normalised(0.5)

    def broken():
        yield BATCHES[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        recalibrate_batchnorm(model, broken())
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, np.zeros(5))
    assert model.get_layer("bn").momentum == 0.5


def test_tf_data_sets_of_images_and_masks_are_taken():
    pairs = tf.data.Dataset.from_tensor_slices((np.concatenate(BATCHES), np.zeros(96))).batch(16)
    model = normalised(0.5)
    recalibrate_batchnorm(model, pairs)
    assert batchnorm_shift(model, pairs)[0]["ratio"] == pytest.approx(1, rel=0.01)


def test_a_unet_s_shift_is_that_of_its_encoder_and_recalibration_covers_both():
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.5, blocks="stage*", seed=0)
    images = [RNG.uniform(0, 255, (4, 64, 64, 3)).astype("float32") for _ in range(2)]
    recalibrate_batchnorm(model, images)
    table = batchnorm_shift(model, images)
    encoder = [layer.name for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    encoder = [name for name in encoder if not name.startswith("decoder_")]
    assert [row["layer"] for row in table] == encoder
    assert all(0.8 < row["ratio"] < 1.25 for row in table)
    decoder = model.get_layer("decoder_stage4b_bn")
    assert not np.allclose(decoder.moving_variance, 1)


@pytest.mark.parametrize("measure", [batchnorm_shift, recalibrate_batchnorm])
@pytest.mark.parametrize("batches", [[], None])
def test_no_batch_and_no_batchnorm_are_errors(measure, batches):
    inputs = keras.Input((8, 8, 5))
    model = normalised() if batches == [] else keras.Model(inputs, layers.ReLU()(inputs))
    with pytest.raises(InputError, match="has no batch|has no BatchNorm"):
        measure(model, BATCHES if batches is None else batches)


@pytest.mark.parametrize("measure", [batchnorm_shift, recalibrate_batchnorm])
def test_an_array_of_images_is_no_list_of_batches(measure):
    with pytest.raises(InputError, match=r"batches of 4 dimensions, got one of the shape .*; a single batch is given"):
        measure(normalised(), BATCHES[0])


def test_values_that_are_not_finite_are_refused_and_change_nothing():
    model = normalised(0.5)
    with pytest.raises(InputError, match="statistics of batch 2 are not finite; nothing was changed"):
        recalibrate_batchnorm(model, [BATCHES[0], BATCHES[1] * np.nan])
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, np.zeros(5))


def test_a_batchnorm_inside_another_layer_is_named():
    inputs = keras.Input((3, 5))
    inner = layers.TimeDistributed(layers.BatchNormalization(name="hidden"))
    model = keras.Model(inputs, layers.BatchNormalization(name="open")(inner(inputs)))
    with pytest.raises(InputError, match="BatchNorm 'hidden' is part of another layer"):
        recalibrate_batchnorm(model, [np.ones((2, 3, 5), "float32")])


@pytest.mark.parametrize("encoder", ["resnet18", "torchvision_resnet18"])
def test_rebasing_changes_the_statistics_and_not_the_function(encoder):
    model = randomise(build_unet(encoder, encoder_weights=None, activation="linear"))
    images = [RNG.uniform(0, 60, (2, 64, 64, 3)).astype("float32") for _ in range(2)]
    decoder = model.get_layer("decoder_stage0a_bn").get_weights()
    before = np.asarray(model(images[0]))
    changed = rebase_batchnorm(model, images)
    after = np.asarray(model(images[0]))
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    ratios = {row["layer"]: row["ratio"] for row in batchnorm_shift(model, images)}
    unscaled = {"bn_data"} & set(ratios)  # the library's first BatchNorm has no scale to take up a difference
    assert changed == len(ratios) - len(unscaled)
    assert [name for name, ratio in ratios.items() if abs(ratio - 1) > 1e-2 and name not in unscaled] == []
    for ours, theirs in zip(model.get_layer("decoder_stage0a_bn").get_weights(), decoder, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_a_rebased_network_is_proved_to_compute_what_it_did(rate):
    plain = randomise(build_small_unet())
    model = build_small_unet(encoder_dropout=rate, seed=0)
    model.set_weights(plain.get_weights())
    rebase_batchnorm(model, [RNG.uniform(0, 60, (2, 64, 64, 3)).astype("float32")])
    checks = verify(plain, model, draws=200, rebased=True)
    told = {row["check"]: row for row in checks}
    assert told["inference is the same"]["expected"].startswith("at most ")
    assert "but for the values of" in told["weights are the same"]["found"]
    with pytest.raises(VerificationError, match="inference is the same"):
        verify(plain, model, draws=200)  # to the last bit it is not
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    norm.moving_mean.assign(norm.moving_mean + 1)
    with pytest.raises(VerificationError, match="inference is the same"):
        verify(plain, model, draws=200, rebased=True)


def test_statistics_that_are_not_finite_leave_the_model_as_it_is():
    model = normalised()
    before = model.get_weights()
    with pytest.raises(InputError, match="statistics of 'bn' are not finite; nothing was changed"):
        rebase_batchnorm(model, [BATCHES[0], BATCHES[1] * np.nan])
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_training_starts_from_the_statistics_of_its_own_crops(cells, tmp_path, monkeypatch, small_unet):
    seen = []

    def fit(session):
        seen.append(batchnorm_shift(session.model, session.samples.training(0, 1).take(2)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "fit", fit)
    for rebased in (False, True):
        config = tiny_training(cells, run_dir=str(tmp_path / f"{rebased}"), rebase_batchnorm=rebased, augment="none")
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (plain, rebased) = ({row["layer"]: row["ratio"] for row in table} for table in seen)
    assert not 0.5 < plain["bn1"] < 2 and 0.5 < rebased["bn1"] < 2
