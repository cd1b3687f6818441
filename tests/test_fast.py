"""The fast twin: the same network with the same weights, of operations that take less time."""

import contextlib
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise
from keras import layers
from standin import build_small_unet

import segdrop
import segdrop.surgery.fast as fast_module
from segdrop import InputError, build_unet, fast
from segdrop.surgery.checkpointing import without_folding
from segdrop.training.device import precision_policy
from segdrop.training.replicas import copy_state

tensorflow_only = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="fused under TensorFlow alone")


def images(count=2, side=32, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, side, side, channels)).astype("float32")


def exchanged(twin):
    """How many layers of a twin are of each kind, of those that are not Keras's own."""
    kinds = [type(layer).__name__ for layer in twin._flatten_layers()]
    return kinds.count("_FusedBatchNorm"), kinds.count("_Conv")


def padded_network(*middle, filters=4, side=None, **options):
    """Padding, a convolution, and what `middle` has between and after them."""
    image = keras.Input((side, side, 3))
    x = image
    for layer in middle or (layers.ZeroPadding2D(1), layers.Conv2D(filters, 3, **options)):
        x = layer(x)
    return randomise(keras.Model(image, x))


# What is exchanged, and what is not


@tensorflow_only
@pytest.mark.parametrize(
    ("encoder", "norms", "convolutions"),
    [("resnet18", 28, 13), ("resnet34", 44, 29), ("torchvision_resnet18", 30, 0), ("seresnet18", 28, 13)],
)
def test_all_norms_but_the_images_own_and_all_padding_but_that_of_strides_are_exchanged(encoder, norms, convolutions):
    model = build_unet(encoder, encoder_weights=None)
    twin = fast(model)
    assert exchanged(twin) == (norms, convolutions)
    pads = [layer for layer in model.layers if isinstance(layer, layers.ZeroPadding2D)]
    assert len(pads) - sum(isinstance(layer, layers.ZeroPadding2D) for layer in twin.layers) == convolutions


@pytest.mark.jax
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), ((1, 3), (0, 1), 1), (1, 0, 1)]
)
def test_padding_that_is_the_convolutions_own_goes_into_it_exactly(kernel, padding, dilation):
    model = padded_network(
        layers.ZeroPadding2D(padding), layers.Conv2D(4, kernel, dilation_rate=dilation, activation="relu")
    )
    twin = fast(model)
    assert exchanged(twin) == (0, 1)
    assert twin.output_shape == model.output_shape
    np.testing.assert_array_equal(twin(images()), model(images()))


@pytest.mark.jax
@pytest.mark.parametrize(
    "middle",
    [
        lambda: (layers.ZeroPadding2D(1), layers.Conv2D(4, 3, strides=2)),
        lambda: (layers.ZeroPadding2D(((0, 1), (0, 1))), layers.Conv2D(4, 2)),
        lambda: (layers.ZeroPadding2D(2), layers.Conv2D(4, 3)),
        lambda: (layers.ZeroPadding2D(1), layers.Conv2D(4, 4)),
        lambda: (layers.ZeroPadding2D(1), layers.Conv2D(4, 3, padding="same")),
        lambda: (layers.ZeroPadding2D(1), layers.DepthwiseConv2D(3)),
        lambda: (layers.ZeroPadding2D(1), layers.MaxPooling2D(3, 1)),
        lambda: (layers.ZeroPadding2D(1),),
    ],
    ids=["stride", "one side", "too much", "too little", "twice", "depthwise", "pooling", "the output"],
)
def test_other_padding_stays(middle):
    model = padded_network(*middle())
    twin = fast(model)
    assert exchanged(twin) == (0, 0)
    np.testing.assert_array_equal(twin(images()), model(images()))


@pytest.mark.jax
def test_padding_stays_where_something_else_reads_it_or_it_is_called_twice():
    image = keras.Input((None, None, 3))
    pad, convolution = layers.ZeroPadding2D(1), layers.Conv2D(3, 3)
    read_twice = keras.Model(image, [convolution(pad(image)), layers.MaxPooling2D(2)(pad.output)])
    also_output = keras.Model(image, [convolution.output, pad.output])
    pad, convolution = layers.ZeroPadding2D(1), layers.Conv2D(3, 3)
    called_twice = keras.Model(image, convolution(pad(convolution(pad(image)))))
    for model in (read_twice, also_output, called_twice):
        twin = fast(randomise(model))
        assert exchanged(twin) == (0, 0)
        for ours, theirs in zip(*(keras.tree.flatten(m(images())) for m in (twin, model)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.jax
def test_two_convolutions_take_the_padding_that_they_share():
    image = keras.Input((None, None, 3))
    padded = layers.ZeroPadding2D(1)(image)
    model = randomise(keras.Model(image, layers.Add()([layers.Conv2D(4, 3)(padded), layers.Conv2D(4, 3)(padded)])))
    twin = fast(model)
    assert exchanged(twin) == (0, 2)
    np.testing.assert_array_equal(twin(images()), model(images()))


@tensorflow_only
@pytest.mark.parametrize(
    "norm",
    [
        lambda: layers.BatchNormalization(axis=1),
        lambda: layers.BatchNormalization(axis=2),
        lambda: layers.BatchNormalization(dtype="float64"),
        lambda: layers.BatchNormalization(synchronized=True),
        lambda: layers.BatchNormalization(activity_regularizer="l2"),
        lambda: layers.LayerNormalization(),
        lambda: type("Own", (layers.BatchNormalization,), {})(),
    ],
    ids=["rows", "columns", "float64", "synchronized", "regularised", "layer", "own class"],
)
def test_a_norm_that_the_operation_does_not_know_stays(norm):
    model = padded_network(layers.Conv2D(8, 1), norm(), side=32)
    twin = fast(model)
    assert exchanged(twin) == (0, 0)
    np.testing.assert_array_equal(twin(images()), model(images()))


def test_norms_of_vectors_stay():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3), layers.BatchNormalization()])
    assert exchanged(fast(model)) == (0, 0)


@tensorflow_only
def test_norms_within_nested_models_are_exchanged():
    inner = keras.Sequential([keras.Input((None, None, 8)), layers.BatchNormalization(), layers.ReLU()], name="inner")
    image = keras.Input((None, None, 8))
    model = randomise(keras.Model(image, inner(inner(image))))
    twin = fast(model)
    assert exchanged(twin) == (1, 0)
    x = images(channels=8)
    np.testing.assert_allclose(twin(x), model(x), rtol=1e-5, atol=1e-5)


# One set of weights


@pytest.mark.jax
def test_the_twin_has_the_variables_of_the_model_in_its_order_and_the_names_of_its_layers():
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, seed=1)
    twin = fast(model)
    for kind in ("variables", "trainable_variables", "non_trainable_variables"):
        ours, theirs = getattr(twin, kind), getattr(model, kind)
        assert len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))
    assert {layer.name for layer in model.layers} - {layer.name for layer in twin.layers} == {
        layer.name for layer in model.layers if isinstance(layer, layers.ZeroPadding2D)
    } - {layer.name for layer in twin.layers}


@tensorflow_only
def test_what_the_twin_has_learnt_is_saved_with_the_model_which_loads_in_safe_mode_and_without_segdrop(tmp_path):
    model = build_small_unet(encoder_dropout=0.2)
    twin = fast(model)
    twin.compile("sgd", "mse")
    before = model.get_weights()
    twin.fit(images(), images(channels=1) > 128, verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(loaded(images()), model(images()))
    assert all(type(layer).__module__.startswith("keras.") for layer in loaded.layers)
    fresh = build_small_unet(encoder_dropout=0.2)
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh(images()), model(images()))


def test_a_model_is_left_as_it_was():
    model = build_small_unet()
    config, weights = model.get_config(), model.get_weights()
    fast(model)
    assert model.get_config() == config
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


# The same numbers


@pytest.mark.jax
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_a_norm_gives_the_outputs_gradients_and_statistics_of_keras(scale, center, momentum):
    def trained(make_twin):
        norm = layers.BatchNormalization(scale=scale, center=center, momentum=momentum, epsilon=1e-3)
        image = keras.Input((None, None, 8))
        first = layers.Conv2D(8, 1, name="before")  # whose gradient goes through the norm
        model = randomise(keras.Model(image, norm(first(image))))
        fitted = make_twin(model)
        fitted.compile(keras.optimizers.SGD(0.1), "mse")
        x = images(side=5, channels=8) / 255
        for step in range(3):
            fitted.train_on_batch(x, np.roll(x, step, axis=2))
        return [*model.get_weights(), np.asarray(fitted(x, training=True)), np.asarray(fitted(x, training=False))]

    for ours, theirs in zip(trained(fast), trained(lambda model: model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@tensorflow_only
def test_the_moving_variance_is_of_the_batch_itself():
    """By hand: of 0, 2, 4, 6 the variance is 5, and that of what they are a sample of is 20 / 3."""
    model = keras.Sequential([keras.Input((2, 2, 8)), layers.BatchNormalization(momentum=0.0)])
    twin = fast(model)
    assert exchanged(twin) == (1, 0)
    twin(np.repeat(np.array([0, 2, 4, 6], "float32"), 8).reshape(1, 2, 2, 8), training=True)
    _, _, mean, variance = model.get_weights()
    np.testing.assert_allclose(mean, 3, rtol=1e-6)
    np.testing.assert_allclose(variance, 5, rtol=1e-6)


@tensorflow_only
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_in_half_precision_a_norm_is_as_near_to_float32_as_keras_is(precision):
    def normalised(dtype, make_twin):
        norm = layers.BatchNormalization(dtype=dtype)
        model = randomise(keras.Model(image := keras.Input((None, None, 8)), norm(image)))
        x = images(4, channels=8) / 64
        return np.asarray(keras.ops.cast(make_twin(model)(x, training=True), "float32"))

    exact = normalised("float32", lambda model: model)
    errors = [np.abs(normalised(f"mixed_{precision}", make) - exact).max() for make in (fast, lambda model: model)]
    assert 0 < errors[0] <= 1.01 * errors[1]


@tensorflow_only
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="CPUs alone gain by it")
@pytest.mark.parametrize("padded", [True, False])
def test_the_kernels_of_small_maps_get_the_gradient_of_keras_in_bfloat16(padded, monkeypatch):
    """As near to float32's as Keras's own is; 8 x 6 pixels are few for 256 channels, 24 x 24 are not."""
    used = []
    by_product = fast_module._conv_of_small_maps
    monkeypatch.setattr(fast_module, "_conv_of_small_maps", lambda *given: used.append(1) or by_product(*given))

    def gradients(dtype, make_twin, height, width):
        image = keras.Input((None, None, 256))
        x = layers.ZeroPadding2D(1)(image) if padded else image
        convolution = layers.Conv2D(5, 3, padding="valid" if padded else "same", dtype=dtype)
        twin = make_twin(randomise(keras.Model(image, convolution(x))))
        given = tf.constant(images(2, 24, 256)[:, :height, :width] / 255)
        with tf.GradientTape() as tape:
            tape.watch(given)
            loss = keras.ops.sum(keras.ops.cast(twin(given), "float32") ** 2)
        found = tape.gradient(loss, [given, *(weight.value for weight in twin.trainable_weights)])
        return [np.asarray(tf.cast(gradient, tf.float32)) for gradient in found]

    for height, width, expected in ((8, 6, 1), (24, 24, 0)):
        used.clear()
        ours = gradients("mixed_bfloat16", fast, height, width)
        assert len(used) == expected
        exact = gradients("float32", lambda model: model, height, width)
        theirs = gradients("mixed_bfloat16", lambda model: model, height, width)
        for a, b, c in zip(ours, theirs, exact, strict=True):
            assert a.shape == c.shape and np.abs(c).max() > 0
            assert np.abs(a - c).max() <= 1.5 * np.abs(b - c).max() + 1e-6


@tensorflow_only
def test_a_training_of_the_unet_goes_as_keras_goes():
    def history(make_twin):
        keras.utils.set_random_seed(0)
        model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, spatial=True, seed=3, bn_momentum=0.9)
        fitted = make_twin(model)
        fitted.compile(keras.optimizers.SGD(1e-3), "binary_crossentropy")
        losses = [fitted.train_on_batch(images(4, 64, seed=step), images(4, 64, 1, step) > 128) for step in range(5)]
        return losses, model

    (ours, fitted), (theirs, plain) = history(fast), history(lambda model: model)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for a, b in zip(fitted.weights, plain.weights, strict=True):
        scale = max(float(np.abs(b).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=2e-3, err_msg=a.path)


@tensorflow_only
def test_a_frozen_norm_keeps_its_statistics_and_normalises_by_them():
    model = padded_network(layers.Conv2D(8, 1), norm := layers.BatchNormalization())
    norm.trainable = False
    twin = fast(model)
    twin.compile(keras.optimizers.SGD(1e-5), "mse")
    before = norm.get_weights()
    twin.train_on_batch(images(), images(channels=8))
    assert all(np.array_equal(a, b) for a, b in zip(before, norm.get_weights(), strict=True))
    np.testing.assert_allclose(twin(images(), training=True), model(images(), training=False), rtol=1e-5, atol=1e-4)
    norm.trainable = True
    twin.compile(keras.optimizers.SGD(1e-5), "mse")
    twin.train_on_batch(images(), images(channels=8))
    assert all(np.any(a != b) for a, b in zip(before, norm.get_weights(), strict=True))


@tensorflow_only
def test_a_mask_is_heeded():
    x, mask = images(2, 4, 8), np.arange(32).reshape(2, 4, 4) % 2 == 0

    def outputs(make_twin):
        model = padded_network(layers.Conv2D(8, 1), layers.BatchNormalization())
        return np.asarray(make_twin(model).layers[-1](x, training=True, mask=mask)), model.get_weights()

    (ours, weights), (theirs, expected) = outputs(fast), outputs(lambda model: model)
    np.testing.assert_array_equal(ours, theirs)
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)


KINDS = (layers.Conv2D, layers.BatchNormalization)


@tensorflow_only
@pytest.mark.parametrize("regularised", KINDS)
def test_a_layer_that_adds_a_loss_of_its_output_stays(regularised):
    of_conv, of_norm = ({"activity_regularizer": "l2"} if regularised is kind else {} for kind in KINDS)
    model = padded_network(
        layers.ZeroPadding2D(1), layers.Conv2D(8, 3, **of_conv), layers.BatchNormalization(**of_norm)
    )
    kinds = {type(layer) for layer in fast(model).layers}
    assert kinds & set(KINDS) == {regularised}


@tensorflow_only
def test_losses_of_weights_are_counted_once():
    regularised = {"kernel_regularizer": "l2", "bias_regularizer": "l2"}
    model = padded_network(
        layers.ZeroPadding2D(1), layers.Conv2D(8, 3, **regularised), layers.BatchNormalization(gamma_regularizer="l2")
    )
    twin = fast(model)
    assert exchanged(twin) == (1, 1) and len(model.losses) == 3
    np.testing.assert_allclose([float(loss) for loss in twin.losses], [float(loss) for loss in model.losses])


def test_a_model_of_another_kind_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="functional or built Sequential"):
        fast(Own())


@pytest.mark.jax
def test_under_mixed_precision_the_twin_computes_in_the_layers_precision():
    with precision_policy("bfloat16"):
        model = build_small_unet()
        twin = fast(model)
    kept = {layer.name: layer.compute_dtype for layer in twin.layers}
    assert kept == {layer.name: layer.compute_dtype for layer in model.layers if layer.name in kept}
    assert "bfloat16" in kept.values() and twin.output.dtype == "float32"


def test_it_is_public():
    assert segdrop.fast is fast


# Gradient checkpointing


def step_of(model, checkpointing):
    """A compiled step, losses and gradients of two of them, and the variables afterwards."""
    twin = fast(model, checkpointing=checkpointing)
    x, y = images(4, 64), np.random.default_rng(1).integers(0, 2, (4, 64, 64, 1)).astype("float32")

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((twin(x, training=True) - y) ** 2)
        return loss, *tape.gradient(loss, [variable.value for variable in twin.trainable_variables])

    with without_folding() if checkpointing else contextlib.nullcontext():
        told = [[value.numpy() for value in step()] for _ in range(2)]
    return step, told, [np.asarray(variable) for variable in twin.variables]


NETWORKS = {
    "resnet18": {"encoder_dropout": 0.3, "spatial": True},
    "vgg16": {},
    "densenet121": {},
    "mobilenetv2": {"encoder_dropout": 0.3, "placement": "bottleneck"},
}


@tensorflow_only
@pytest.mark.parametrize("encoder", NETWORKS)
def test_checkpointing_changes_neither_gradients_nor_statistics_nor_masks_of_dropout(encoder):
    """In two steps, between which statistics and the states of dropout move on."""
    models = [build_unet(encoder, encoder_weights=None, seed=0, **NETWORKS[encoder]) for _ in range(2)]
    copy_state(*models)
    before = [np.asarray(variable) for variable in models[0].variables]
    (_, expected, variables), (_, found, ours) = step_of(models[0], False), step_of(models[1], True)
    for step, our_step in zip(expected, found, strict=True):
        for theirs, mine in zip(step, our_step, strict=True):
            assert np.linalg.norm(mine - theirs) <= 1e-3 * np.linalg.norm(theirs) + 1e-7
    for theirs, mine in zip(variables, ours, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert any((value != now).any() for value, now in zip(before, ours, strict=True))


def held(step):
    """The operations whose maps the backward pass takes from the forward one."""
    operations = step.get_concrete_function().graph.get_operations()
    loss = step.get_concrete_function().graph.outputs[0].op
    forward, stack = set(), [loss]
    while stack:
        operation = stack.pop()
        if operation not in forward:
            forward.add(operation)
            stack += [tensor.op for tensor in operation.inputs]
    taken = (t for o in operations if o not in forward and not o.type.startswith("Shape") for t in o.inputs)
    return {tensor.op.type for tensor in taken if tensor.op in forward and tensor.shape.rank == 4}


@tensorflow_only
def test_checkpointing_holds_no_map_of_activations_pooling_upsampling_concatenation_or_norms():
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.3)
    cheap = {"Relu", "MaxPool", "ConcatV2", "Pad", "FusedBatchNormV3"}
    assert held(step_of(model, False)[0]) >= {"Relu", "MaxPool", "ConcatV2"}
    kept = held(step_of(model, True)[0])
    assert not kept & cheap and kept >= {"Conv2D", "AddV2"}, kept


@tensorflow_only
def test_folding_is_as_before_after_what_is_run_without_it():
    before = tf.config.optimizer.get_experimental_options()
    with without_folding():
        assert tf.config.optimizer.get_experimental_options()["constant_folding"] is False
    assert tf.config.optimizer.get_experimental_options() == {"constant_folding": True, **before}


def test_checkpointing_is_refused_under_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="^`checkpointing` needs Keras's TensorFlow backend, not jax"):
        fast(build_small_unet(), checkpointing=True)


def test_a_traced_step_is_let_go_with_its_weights():
    """What is kept of each of the trainings of a sweep, a quarter of a GB for a ResNet18, adds up."""

    def step(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            result = fast_module._conv_of_small_maps(images, kernel)
        return tape.gradient(result, kernel)

    shapes = tf.TensorSpec((2, 4, 4, 8)), tf.TensorSpec((3, 3, 8, 8))
    traced = tf.function(step).get_concrete_function(*shapes)
    graph = weakref.ref(traced.graph)
    del traced
    gc.collect()
    assert graph() is None
