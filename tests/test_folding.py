"""The network that predicts: BatchNorm within convolutions, and the same probabilities."""

import keras
import numpy as np
import pytest
from conftest import randomise
from keras import layers
from standin import build_small_unet

import segdrop
from segdrop.surgery.folding import folded
from segdrop.training.device import precision_policy

CONVOLUTION = {"kernel_size": 3, "padding": "same"}


def images(channels=3):
    return np.random.default_rng(0).normal(size=(2, 32, 32, channels)).astype("float32")


def chain(*middle, shape=(None, None, 3)):
    image = x = keras.Input(shape)
    for layer in middle:
        x = layer(x)
    return randomise(keras.Model(image, x))


def with_statistics(model):
    """Give the norms values of their own; what a convolution was initialised with lets maps through to the end."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "_bn" in weight.path or "/bn" in weight.path or weight.path.startswith("bn"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def norms(model):
    """Names of the BatchNorms that are left, Keras's own or fused."""
    return [layer.name for layer in model.layers if "BatchNorm" in type(layer).__name__]


def assert_same(ours, theirs, given=None, tolerance=1e-5):
    given = images() if given is None else given
    expected = np.asarray(theirs.predict_on_batch(given), np.float32)
    found = np.asarray(ours.predict_on_batch(given), np.float32)
    assert found.dtype == expected.dtype and expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# What goes into a convolution


@pytest.mark.jax
@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        ({}, {}),
        ({"use_bias": False}, {}),
        ({"strides": 2}, {"scale": False}),
        ({"kernel_size": 1}, {"center": False}),
        ({"dilation_rate": 2}, {"axis": 3}),
        ({"groups": 2}, {"epsilon": 0.1}),
        ({"padding": "valid"}, {"scale": False, "center": False}),
    ],
)
def test_a_norm_goes_into_the_convolution_before_it(convolution, norm):
    model = chain(
        layers.Conv2D(8, **{**CONVOLUTION, **convolution}), layers.BatchNormalization(**norm), shape=(32, 32, 4)
    )
    twin = folded(model)
    assert not norms(twin)
    assert_same(twin, model, images(4))


@pytest.mark.jax
def test_the_kernel_by_hand():
    model = chain(layers.Conv2D(1, 1), layers.BatchNormalization(epsilon=0), shape=(1, 1, 1))
    convolution, norm = model.layers[1:]
    convolution.set_weights([np.full((1, 1, 1, 1), 3.0), np.array([1.0])])
    norm.set_weights([np.array([value]) for value in (2.0, 7.0, 5.0, 4.0)])  # gamma, beta, mean, variance
    kernel, bias = folded(model).layers[1].get_weights()  # 2 (3 x + 1 - 5) / 2 + 7
    assert (kernel.item(), bias.item()) == (3, 3)


@pytest.mark.jax
@pytest.mark.parametrize(
    "middle",
    [
        lambda: (layers.Conv2D(8, activation="relu", **CONVOLUTION), layers.BatchNormalization()),
        lambda: (layers.Conv2D(8, **CONVOLUTION), layers.ReLU(), layers.BatchNormalization()),
        lambda: (layers.Conv2D(8, **CONVOLUTION), layers.Dropout(0.5), layers.BatchNormalization()),
        lambda: (layers.DepthwiseConv2D(3), layers.BatchNormalization()),
        lambda: (layers.Conv2D(8, **CONVOLUTION), layers.BatchNormalization(axis=1)),
        lambda: (layers.Conv2D(8, **CONVOLUTION), layers.LayerNormalization()),
        pytest.param(
            lambda: (layers.Conv2D(8, dtype="float64", **CONVOLUTION), layers.BatchNormalization(dtype="float64")),
            marks=pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 by default"),
        ),
    ],
    ids=["activation", "relu between", "dropout between", "depthwise", "other axis", "layer norm", "float64"],
)
def test_what_stays(middle):
    model = chain(*middle(), shape=(32, 32, 3))
    twin = folded(model)
    assert [layer.name for layer in twin.layers] == [layer.name for layer in model.layers]
    assert_same(twin, model)


def test_a_norm_stays_where_the_convolution_is_read_elsewhere_or_used_twice_or_it_goes_by_the_batch():
    image = keras.Input((None, None, 3))
    convolution, norm = layers.Conv2D(3, **CONVOLUTION), layers.BatchNormalization()
    read_twice = keras.Model(image, layers.Add()([norm(convolution(image)), convolution.output]))
    convolution, norm = layers.Conv2D(3, **CONVOLUTION), layers.BatchNormalization()
    called_twice = keras.Model(image, norm(convolution(norm(convolution(image)))))
    convolution, norm = layers.Conv2D(3, **CONVOLUTION), layers.BatchNormalization()
    by_batch = keras.Model(image, norm(convolution(image), training=True))
    for model in (read_twice, called_twice, by_batch):
        twin = folded(randomise(model))
        assert len(norms(twin)) == 1
        assert_same(twin, model)


def test_an_output_of_the_model_is_not_taken_away():
    image = keras.Input((None, None, 3))
    before = layers.Conv2D(3, **CONVOLUTION)(image)
    model = randomise(keras.Model(image, [before, layers.BatchNormalization()(before)]))
    for ours, theirs in zip(folded(model)(images()), model(images()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_factor_that_float16_cannot_hold_is_not_put_into_a_kernel():
    with precision_policy("float16"):
        model = chain(layers.Conv2D(8, **CONVOLUTION), layers.BatchNormalization(epsilon=1e-12), shape=(32, 32, 3))
    norm = model.layers[-1]
    assert not norms(folded(model))
    norm.moving_variance.assign(np.full(8, 1e-12))
    norm.gamma.assign(np.full(8, 1.0))
    model.layers[1].kernel.assign(np.ones(model.layers[1].kernel.shape))
    assert norms(folded(model)) == [norm.name]


# The whole network


@pytest.mark.parametrize("encoder", ["resnet18", "torchvision_resnet18", "seresnet18"])
def test_a_unet_predicts_the_same(encoder):
    """Its logits, relative to the largest: a sigmoid would hide most of them."""
    model = segdrop.build_unet(encoder, encoder_weights=None, encoder_dropout=0.5, spatial=True)
    model = with_statistics(keras.Model(model.input, model.get_layer("final_conv").output))
    twin = folded(model)
    assert len(norms(twin)) < len(norms(model)) / 2
    assert_same(twin, model)


def test_in_half_precision_convolutions_hold_what_they_compute_with():
    with precision_policy("bfloat16"):
        model = with_statistics(build_small_unet(encoder_dropout=0.5))
    twin = folded(model)
    kept = {layer.compute_dtype: layer.kernel.dtype for layer in twin._flatten_layers() if hasattr(layer, "kernel")}
    assert kept["bfloat16"] == "bfloat16"
    exact = segdrop.surgery.rebuild.in_float32(model).predict_on_batch(images())
    ours, theirs = (np.abs(np.asarray(m.predict_on_batch(images()), np.float32) - exact).mean() for m in (twin, model))
    assert ours < 1.5 * theirs < 0.05  # as near to float32 as Keras's own bfloat16


def test_the_model_keeps_its_weights():
    model = randomise(build_small_unet())
    before = model.get_weights()
    folded(model)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
