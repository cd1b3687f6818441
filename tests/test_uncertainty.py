"""Uncertainty: the scores by hand, and Monte Carlo samples that are those of the whole network."""

import keras
import numpy as np
import pytest
from conftest import randomise
from standin import build_small_unet

from segdrop import InputError, build_unet, insert_dropout, monte_carlo
from segdrop.scoring.uncertainty import entropy, from_moments, moments
from segdrop.surgery import sampling
from segdrop.surgery.sampling import MonteCarlo

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (2, 64, 64, 3)).astype("float32")


def binary(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


@pytest.mark.parametrize(
    ("probabilities", "nats"),
    [
        ([0.5], np.log(2)),
        ([0.0], 0),
        ([1.0], 0),
        ([0.2], binary(0.2)),
        ([0.2, 0.8], binary(0.2)),
        ([1 / 3] * 3, np.log(3)),
    ],
)
def test_entropy_is_in_nats_and_one_channel_is_a_coin(probabilities, nats):
    assert entropy(np.array([probabilities]))[0] == pytest.approx(nats, abs=1e-6)


def test_scores_of_two_samples_equal_those_by_hand():
    samples = np.array([[[0.2]], [[0.8]]])
    found = from_moments(np.mean([moments(one) for one in samples], axis=0))
    assert found.mean[0, 0] == pytest.approx(0.5)
    assert found.predictive_entropy[0] == pytest.approx(np.log(2))
    assert found.expected_entropy[0] == pytest.approx(binary(0.2), rel=1e-6)
    assert found.mutual_information[0] == pytest.approx(np.log(2) - binary(0.2), rel=1e-5)
    assert found.std[0, 0] == pytest.approx(0.3, rel=1e-5)
    assert found.score == pytest.approx(np.log(2))


def test_samples_that_agree_have_no_mutual_information():
    p = RNG.dirichlet([1, 1, 1], (5, 5)).astype("float32")
    found = from_moments(np.mean([moments(p)] * 7, axis=0))
    assert found.mutual_information.max() < 1e-6 and found.std.max() < 1e-3
    np.testing.assert_allclose(found.predictive_entropy, found.expected_entropy, atol=1e-6)


def dropped(**options):
    options = {"encoder_weights": None, "encoder_dropout": 0.3, "seed": 0} | options
    model = randomise(build_unet("resnet18", **options))
    head = model.get_layer("final_conv")
    head.set_weights([weights / 10000 for weights in head.get_weights()])  # probabilities that are neither 0 nor 1
    return model


def small(**options):
    return randomise(build_small_unet(encoder_dropout=0.3, seed=0, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "block", "blocks": ["stage2"]},
        {"placement": "skips"},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {},
                {"spatial": True, "classes": 3},
                {"kind": "path", "placement": "branch_end"},
                {"placement": "bottleneck", "adjustable": True},
                {"shared_across_batch": True},
            )
        ),
    ],
    ids=str,
)
def test_cut_in_two_the_network_is_still_the_network(options):
    model = dropped(**options)
    found = from_moments(MonteCarlo(model, 2, rate=1e-9).moments(IMAGES))
    np.testing.assert_allclose(found.mean, model.predict_on_batch(IMAGES), rtol=0, atol=2e-5)


def test_what_dropout_does_not_reach_is_computed_once():
    sampler = MonteCarlo(dropped(), 2)
    before = {layer.name for layer in sampler._before.layers}
    after = {layer.name for layer in sampler._after.layers}
    assert {"conv0", "stage2_unit2_conv2"} <= before and not any("dropout" in name for name in before)
    assert any("dropout" in name for name in after) and "stage4_unit2_conv2" in after
    # The skips of stage 2 and 3 are convolved by their part of the decoder's kernels once.
    assert {"decoder_stage1a_conv_unchanged", "decoder_stage2a_conv_unchanged"} <= before
    assert {"decoder_stage1a_conv_changed", "decoder_stage2a_conv_changed"} <= after
    assert "decoder_stage1a_conv" not in before | after


def test_a_convolution_with_bias_and_activation_is_cut_exactly():
    inputs = keras.Input((None, None, 3))
    a = keras.layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    b = keras.layers.Dropout(0.5, name="drop")(a)
    joined = keras.layers.Concatenate()([a, b, inputs])
    output = keras.layers.Conv2D(2, 3, padding="valid", strides=2, activation="relu", name="mix")(joined)
    model = randomise(keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(output)))
    sampler = MonteCarlo(model, 1, rate=1e-9)
    assert "mix_changed" in {layer.name for layer in sampler._after.layers}
    found = from_moments(sampler.moments(IMAGES)).mean
    np.testing.assert_allclose(found, model.predict_on_batch(IMAGES), rtol=0, atol=1e-5)


def test_samples_have_the_mean_and_spread_that_dropout_has_in_theory():
    inputs = keras.Input((None, None, 3))
    output = keras.layers.Conv2D(1, 1, activation="linear", name="sum")(keras.layers.Dropout(0.2)(inputs))
    model = keras.Model(inputs, output)
    model.get_layer("sum").set_weights(
        [np.array([0.2, 0.3, 0.4], "float32").reshape(1, 1, 3, 1), np.zeros(1, "float32")]
    )
    ones = np.ones((1, 32, 32, 3), "float32")
    found = from_moments(MonteCarlo(model, 1000, seed=1).moments(ones))
    # A value of 1 becomes 0 or 1 / 0.8: mean 1, variance 0.25.
    spread = np.sqrt(0.25 * (0.2**2 + 0.3**2 + 0.4**2))
    assert found.mean.mean() == pytest.approx(0.9, abs=4 * spread / 1000)
    assert np.square(found.std).mean() == pytest.approx(spread**2, rel=0.01)


def test_samples_have_the_statistics_of_independent_passes():
    model = small(spatial=True)
    twin = monte_carlo(model, seed=3)
    passes = np.stack([twin.predict_on_batch(IMAGES[:1]) for _ in range(150)])
    found = from_moments(MonteCarlo(model, 150, seed=4).moments(IMAGES[:1]))
    error = passes.std(axis=0) / np.sqrt(150)
    assert np.abs(found.mean - passes.mean(axis=0)).mean() < 3 * error.mean()
    assert found.std.mean() == pytest.approx(passes.std(axis=0).mean(), rel=0.1)
    expected = np.mean([entropy(one) for one in passes])
    assert found.expected_entropy.mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.jax
def test_seed_and_key_choose_the_samples():
    model = small()
    first = MonteCarlo(model, 3, seed=1).moments(IMAGES)
    np.testing.assert_array_equal(first, MonteCarlo(model, 3, seed=1).moments(IMAGES))
    assert (first != MonteCarlo(model, 3, seed=2).moments(IMAGES)).any()
    assert (first != MonteCarlo(model, 3, seed=1).moments(IMAGES, key=1)).any()


@pytest.mark.parametrize("shared", [False, True])
def test_samples_in_one_batch_differ(shared, monkeypatch):
    model = small(shared_across_batch=shared)
    together = from_moments(MonteCarlo(model, 8).moments(IMAGES)).std.mean()
    monkeypatch.setattr(sampling, "BATCH_PIXELS", 1)
    apart = from_moments(MonteCarlo(model, 8).moments(IMAGES)).std.mean()
    assert together > 0
    assert together == pytest.approx(apart, rel=0.5)


@pytest.mark.jax
@pytest.mark.parametrize("kind", ["element", "block"])
def test_samples_of_images_of_any_size_are_drawn_without_a_warning(kind):
    assert from_moments(MonteCarlo(small(kind=kind), 3).moments(IMAGES)).std.mean() > 0


def test_dropout_inside_a_nested_model_is_sampled():
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(inner_input, keras.layers.Dropout(0.5)(keras.layers.Conv2D(3, 3, padding="same")(inner_input)))
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(inner(inputs)))
    assert from_moments(MonteCarlo(model, 5).moments(IMAGES / 255)).std.mean() > 0


def test_a_network_without_dropout_is_an_error(plain):
    with pytest.raises(InputError, match="has no dropout layer"):
        MonteCarlo(plain, 5)


def test_dropout_that_the_output_does_not_see_is_an_error():
    inputs = keras.Input((8, 8, 3))
    conv = keras.layers.Conv2D(1, 1, name="conv")(inputs)
    model = keras.Model(inputs, {"seen": conv, "other": keras.layers.Dropout(0.5)(conv)})
    with pytest.raises(InputError, match="must have one output, and dropout that it depends on"):
        MonteCarlo(model, 5)


def test_dropout_put_in_by_insert_dropout_is_sampled(plain):
    model = insert_dropout(plain, "stage4_unit1_relu2", 0.5)
    assert from_moments(MonteCarlo(model, 4).moments(IMAGES)).std.max() > 0
