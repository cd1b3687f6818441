"""The well-known snippets for dropout in a pretrained network, and what each really does.

Each claim is made for the Keras versions on which it was seen, and is not tested on later ones.
"""

import keras
import numpy as np
import pytest
from keras import layers
from packaging.version import Version

from segdrop import verify
from segdrop.nets.unet import sm

SEEN = "3.12", "3.15"
pytestmark = pytest.mark.skipif(
    not Version(SEEN[0]) <= Version(keras.__version__) < Version("3.16"),
    reason=f"the claims are made for Keras {SEEN[0]} to {SEEN[1]}, this is {keras.__version__}",
)
IMAGE = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")


@pytest.fixture(scope="module")
def unet():
    return sm.Unet("resnet18", encoder_weights=None, input_shape=(64, 64, 3))


def count(model):
    return sum(isinstance(layer, layers.Dropout) for layer in model.layers)


def test_comparing_an_activation_with_its_name_matches_no_layer(unet):
    """`if layer.activation == "relu": ...`: the attribute is a function, not a string."""
    with_attribute = [layer for layer in unet.layers if hasattr(layer, "activation")]
    assert sum(layer.activation is keras.activations.relu for layer in with_attribute) > 20
    assert [layer.name for layer in with_attribute if layer.activation == "relu"] == []


def test_looking_for_relu_layers_by_class_matches_no_layer(unet):
    """`isinstance(layer, ReLU)`: the network's are `Activation` layers."""
    assert [layer.name for layer in unet.layers if isinstance(layer, layers.ReLU)] == []


def test_inserting_into_the_list_of_layers_inserts_nothing(unet):
    """`model.layers.insert(i, Dropout(0.5))`: the list is made anew each time it is asked for."""
    unet.layers.insert(5, layers.Dropout(0.5))
    assert count(unet) == 0


@pytest.mark.parametrize("target", ["layer", "model"])
def test_neither_a_layer_nor_a_functional_model_has_add(unet, target):
    """`layer.add(Dropout(0.5))` and `model.add(Dropout(0.5))`."""
    with pytest.raises(AttributeError, match="add"):
        (unet.get_layer("stage3_unit1_relu2") if target == "layer" else unet).add(layers.Dropout(0.5))


def test_calling_dropout_on_a_layer_s_output_leaves_the_model_as_it_is(unet):
    """`x = Dropout(0.5)(layer.output)` in a loop, then `Model(model.input, model.output)`: nothing reads x."""
    for layer in unet.layers:
        if "relu" in layer.name:
            layers.Dropout(0.5)(layer.output)
    model = keras.Model(unet.input, unet.output)
    assert count(model) == 0
    assert len(model.layers) == len(unet.layers)


def test_a_layer_s_output_cannot_be_assigned(unet):
    """`layer.output = Dropout(0.5)(layer.output)`."""
    layer = unet.get_layer("stage3_unit1_relu2")
    with pytest.raises(AttributeError, match="output"):
        layer.output = layers.Dropout(0.5)(layer.output)


def test_a_sequential_of_the_layers_and_dropout_breaks_on_the_residual_additions(unet):
    """`Sequential(new_layers)`: an addition then has one input."""
    new_layers = []
    for layer in unet.layers[1:]:
        new_layers.append(layer)
        if "relu" in layer.name:
            new_layers.append(layers.Dropout(0.5))
    model = keras.Sequential([keras.Input((64, 64, 3)), *new_layers])  # without complaint
    with pytest.raises(ValueError, match="should be called on a list"):
        model(IMAGE)


def test_a_chain_of_the_layers_without_the_additions_is_another_network(unet):
    """The same with the layers of several inputs left out, which makes it run: the shortcuts are gone."""
    x = keras.Input((64, 64, 3))
    inputs = x
    for layer in unet.layers[1:]:
        if layer.name == "stage1_unit2_bn1":
            break
        if not isinstance(layer, layers.Add) and not layer.name.endswith("_sc"):
            x = layer(x)
    first_unit = next(layer for layer in unet.layers if isinstance(layer, layers.Add))
    wanted = keras.Model(unet.input, first_unit.output)
    assert not np.allclose(keras.Model(inputs, x)(IMAGE), wanted(IMAGE))


def test_dropout_called_with_training_true_is_off_in_predict():
    """`Dropout(0.5)(x, training=True)` for Monte Carlo samples: `predict` passes its own `training=False` on."""
    inputs = keras.Input((100,))
    model = keras.Model(inputs, layers.Dropout(0.5)(inputs, training=True))
    ones = np.ones((4, 100), "float32")
    np.testing.assert_array_equal(model.predict(ones, verbose=0), ones)
    np.testing.assert_array_equal(model(ones, training=False), ones)


def test_calling_the_model_in_training_mode_for_samples_moves_batchnorm(unet):
    """`model(x, training=True)`: dropout is on, and BatchNorm uses and keeps the batch's statistics."""
    model = keras.models.clone_model(unet)
    before = model.get_layer("stage3_unit1_bn1").get_weights()
    inference = np.array(model(IMAGE))
    assert not np.allclose(model(IMAGE, training=True), inference)  # without any dropout
    assert (model.get_layer("stage3_unit1_bn1").get_weights()[2] != before[2]).any()


def test_assigning_keras_s_rate_does_nothing_once_the_step_is_traced():
    """`layer.rate = 0.9` between epochs."""
    inputs = keras.Input((2000,))
    model = keras.Model(inputs, layers.Dense(1, kernel_initializer="ones")(layers.Dropout(0.0001, name="d")(inputs)))
    model.compile(keras.optimizers.SGD(0.0), lambda truth, pred: keras.ops.mean(keras.ops.abs(pred - 2000)))
    ones = np.ones((8, 2000), "float32")
    model.train_on_batch(ones, ones[:, :1])
    model.get_layer("d").rate = 0.9
    assert model.train_on_batch(ones, ones[:, :1]) < 10  # a rate of 0.9 moves the sum by some hundred


def test_cloning_without_copying_weights_loses_the_pretrained_ones(unet):
    """`clone_model(model, call_function=...)` does insert; the copy's weights are random."""
    copy = keras.models.clone_model(unet)
    kernel = "stage3_unit1_conv1"
    assert not np.array_equal(copy.get_layer(kernel).kernel, unet.get_layer(kernel).kernel)


def test_the_library_s_encoder_freeze_leaves_batchnorm_trainable():
    """`Unet(encoder_freeze=True)` of segmentation_models 1.0.1."""
    model = sm.Unet("resnet34", encoder_weights=None, encoder_freeze=True)
    trainable = [layer.name for layer in model.layers if layer.trainable and layer.weights]
    assert sum(not name.startswith(("decoder_", "final_")) for name in trainable) == 35


def test_what_segdrop_does_instead_passes_the_proof(unet):
    import segdrop

    sites = [
        layer.name for layer in unet.layers if layer.name.startswith(("stage3", "stage4")) and "relu2" in layer.name
    ]
    dropped = segdrop.insert_dropout(unet, sites, 0.5, kind="spatial")
    assert len(verify(unet, dropped, draws=200)) > 10
