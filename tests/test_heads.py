"""add_head: an image-level output on a pretrained network."""

import keras
import numpy as np
import pytest
from conftest import randomise
from keras import layers
from standin import build_small_unet

from segdrop import InputError, add_head

IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 64, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, strides=4, name="conv")(inputs))
    return keras.Model(inputs, layers.ReLU(name="features")(x))


def test_a_classifier_s_head_has_pooling_dropout_and_dense_layers(base):
    model = add_head(base, 3, units=[16, 8], dropout=0.3)
    assert [layer.name for layer in model.layers[4:]] == [
        "label_GlobalAveragePooling2D",
        "label_dropout0",
        "label_dense0",
        "label_dropout1",
        "label_dense1",
        "label_dropout2",
        "label",
    ]
    probabilities = np.array(model(IMAGES))
    np.testing.assert_allclose(probabilities.sum(axis=1), np.ones(4), rtol=1e-5)
    assert not np.allclose(model(IMAGES, training=True), probabilities)


@pytest.mark.parametrize(
    ("pooling", "by_hand"),
    [
        ("avg", lambda maps: maps.mean(axis=(1, 2))),
        ("max", lambda maps: maps.max(axis=(1, 2))),
        ("avgmax", lambda maps: np.concatenate([maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))], axis=1)),
        ("flatten", lambda maps: maps.reshape(len(maps), -1)),
    ],
)
def test_what_the_head_computes(base, pooling, by_hand):
    model = add_head(base, 2, pooling=pooling, activation="linear")
    kernel, bias = model.get_layer("label").get_weights()
    wanted = by_hand(np.array(base(IMAGES))) @ kernel + bias
    np.testing.assert_allclose(model(IMAGES), wanted, rtol=1e-4, atol=1e-3)


def test_a_projection_is_a_matrix_and_a_relu_at_every_place(base):
    model = add_head(base, 2, projection=3, activation="linear")
    kernel, bias = model.get_layer("label_projection").get_weights()
    projected = np.maximum(np.array(base(IMAGES)) @ kernel[0, 0] + bias, 0)
    assert projected.shape[-1] == 3 and (projected == 0).any()
    kernel, bias = model.get_layer("label").get_weights()
    np.testing.assert_allclose(model(IMAGES), projected.mean(axis=(1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-3)


def test_each_dense_layer_can_have_a_rate_of_its_own(base):
    model = add_head(base, 3, units=[16, 8], dropout=(0.1, 0, 0.4))
    rates = {layer.name: layer.rate for layer in model.layers if isinstance(layer, layers.Dropout)}
    assert rates == {"label_dropout0": 0.1, "label_dropout2": 0.4}
    receivers = {layer.name: layer.input._keras_history.operation.name for layer in model.layers[4:]}
    assert receivers["label_dense0"] == "label_dropout0" and receivers["label_dense1"] == "label_dense0"
    assert receivers["label"] == "label_dropout2"


def test_the_base_is_copied_with_its_weights_and_left_alone(base):
    model = add_head(base, 1, freeze_base=True)
    np.testing.assert_array_equal(model.get_layer("conv").kernel, base.get_layer("conv").kernel)
    assert [w.path for w in model.trainable_weights] == ["label/kernel", "label/bias"]
    assert base.get_layer("conv").trainable and len(base.layers) == 4
    before = model.get_layer("bn").get_weights()
    model.compile("sgd", "binary_crossentropy")
    model.fit(IMAGES, np.array([[0], [1], [0], [1]]), verbose=0)
    for old, now in zip(before, model.get_layer("bn").get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


@pytest.fixture(params=["small", pytest.param("resnet18", marks=pytest.mark.slow)])
def unet(request):
    return randomise(build_small_unet()) if request.param == "small" else request.getfixturevalue("plain")


def test_a_label_beside_the_mask_of_a_unet(unet, tmp_path):
    model = add_head(unet, 3, beside=True, units=[8])
    outputs = {name: np.array(value) for name, value in model(IMAGES).items()}
    assert {name: value.shape for name, value in outputs.items()} == {"sigmoid": (4, 64, 64, 1), "label": (4, 3)}
    np.testing.assert_array_equal(outputs["sigmoid"], unet(IMAGES))
    model.compile("sgd", {"sigmoid": "binary_crossentropy", "label": "sparse_categorical_crossentropy"})
    targets = {"sigmoid": np.zeros((4, 64, 64, 1)), "label": np.array([0, 1, 2, 0])}
    model.fit(IMAGES, targets, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(IMAGES)["label"], model(IMAGES)["label"])


def test_a_head_on_the_features_of_a_classifier_with_its_own_top(base):
    x = layers.GlobalAveragePooling2D(name="pool")(base.output)
    classifier = keras.Model(base.input, layers.Dense(10, activation="softmax", name="imagenet")(x))
    model = add_head(classifier, 2, at="pool")
    assert model.output_shape == (None, 2)
    assert "imagenet" not in [layer.name for layer in model.layers]


def test_the_last_layer_is_float32_under_mixed_precision(base, float32_after):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert add_head(base, 2).get_layer("label").compute_dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "`classes` must be a whole number of at least 1, got classes=0"),
        ({"pooling": "median"}, "`pooling` must be one of avg, max, avgmax, flatten, got pooling='median'"),
        ({"units": [0]}, "`units` must be whole numbers of at least 1"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\), got dropout=1.0"),
        ({"dropout": [0.1, 0.2], "units": [4, 4]}, r"`dropout` must be one rate or 3, .* got dropout=\[0.1, 0.2\]"),
        ({"dropout": (0.1, 1.0), "units": [4]}, r"`dropout` must be a number in \[0, 1\), got dropout=1.0"),
        ({"projection": 0}, "`projection` must be a whole number of at least 1, got projection=0"),
        ({"at": "feature"}, "`at` names no layer of this model: 'feature'. Nearest: features"),
        ({"beside": True}, "`at` must name the layer to put the head on"),
        ({"name": "conv"}, "`name` must be new to the model, which has 'conv'"),
    ],
)
def test_wrong_arguments_are_errors(base, options, message):
    with pytest.raises(InputError, match=message):
        add_head(base, **{"classes": 2, **options})


def test_maps_of_no_known_size_are_not_flattened():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 1, name="conv")])
    with pytest.raises(InputError, match=r"needs maps of a known size; 'conv' gives \(None, None, None, 4\): build"):
        add_head(model, 2, pooling="flatten")


def test_features_that_are_no_maps_are_not_projected(base):
    model = keras.Model(base.input, layers.GlobalMaxPooling2D(name="pool")(base.output))
    with pytest.raises(InputError, match=r"`projection` needs features \(N, H, W, C\); 'pool' gives \(None, 6\)"):
        add_head(model, 2, projection=4)


def test_a_dict_of_outputs_keeps_its_names(base):
    model = keras.Model(base.input, {"maps": base.output, "pooled": layers.GlobalMaxPooling2D()(base.output)})
    assert set(add_head(model, 2, at="features", beside=True).output) == {"maps", "pooled", "label"}


def test_a_head_on_probabilities_is_an_error(base):
    x = layers.GlobalAveragePooling2D()(base.output)
    classifier = keras.Model(base.input, layers.Dense(10, activation="softmax", name="imagenet")(x))
    with pytest.raises(InputError, match="The output of 'imagenet' is probabilities; name the layer with the features"):
        add_head(classifier, 2)
