"""verify: it passes what is right and names the first thing that is not."""

import keras
import numpy as np
import pytest
from keras import layers

from segdrop import InputError, VerificationError, insert_dropout, insert_layers, verify


@pytest.fixture
def plain():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU(name="act")(layers.BatchNormalization(name="bn")(x))
    return keras.Model(inputs, layers.Conv2D(1, 1, name="final_conv")(x))


@pytest.mark.parametrize("kind", ["element", "spatial", "block"])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_a_sound_model_passes_and_nothing_is_moved(plain, kind, rate):
    dropped = insert_dropout(plain, "act", rate, kind=kind, seed=0)
    before = [np.array(v) for model in (plain, dropped) for v in model.variables]
    table = verify(plain, dropped)
    assert [row["check"].split(" (")[0] for row in table] == [
        "outputs have the same shapes",
        "inference is the same",
        "layers are the same",
        "weights are the same",
        "BatchNorm rests at inference",
        "dropout was added",
        "kept values are rescaled",
        "share kept",
        "mean output equals the input",
        "training mode differs",
        "BatchNorm is moved by training",
    ]
    for old, variable in zip(before, [v for model in (plain, dropped) for v in model.variables], strict=True):
        np.testing.assert_array_equal(old, variable)


class Unscaled(layers.Dropout):
    def call(self, inputs, training=False):
        return super().call(inputs, training=training) * (1 - self.rate if training else 1)


class Biased(layers.Dropout):
    """Drops with half its rate and scales accordingly wrongly."""

    def call(self, inputs, training=False):
        if not training:
            return inputs
        kept = keras.random.uniform(keras.ops.shape(inputs), seed=self.seed_generator) >= self.rate / 2
        return keras.ops.where(kept, inputs / (1 - self.rate), 0.0)


class Asleep(layers.Dropout):
    def call(self, inputs, training=False):
        return inputs


class AlwaysOn(layers.Dropout):
    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unscaled, r"kept values are rescaled \(element\): act_dropout"),
        (Biased, r"share kept \(element\): act_dropout: found 0.7"),
        (Asleep, r"kept values are rescaled \(element\): act_dropout"),
        (AlwaysOn, "inference is the same: outputs"),
    ],
)
def test_a_dropout_layer_that_does_not_do_its_work_is_named(plain, broken, message):
    dropped = insert_layers(plain, "act", lambda site, tensor: broken(0.5, seed=0, name="act_dropout"))
    with pytest.raises(VerificationError, match=message):
        verify(plain, dropped)


def changed_weight(dropped):
    kernel = dropped.get_layer("conv").get_weights()
    dropped.get_layer("conv").set_weights([kernel[0] + 1e-6, kernel[1]])


def changed_unused_statistic(dropped):
    """One that inference does not show at this tolerance, because its channel's weight is 0."""
    dropped.get_layer("bn").moving_mean.assign(dropped.get_layer("bn").moving_mean + 0.5)


@pytest.mark.parametrize("change", [changed_weight, changed_unused_statistic])
def test_another_weight_is_noticed(plain, change):
    dropped = insert_dropout(plain, "act", 0.5)
    change(dropped)
    with pytest.raises(VerificationError, match="inference is the same"):
        verify(plain, dropped)


def test_a_weight_that_inference_does_not_show_is_named(plain):
    for model in (plain,):
        model.get_layer("final_conv").set_weights([np.zeros((1, 1, 4, 1)), np.zeros(1)])
    dropped = insert_dropout(plain, "act", 0.5)
    changed_weight(dropped)
    with pytest.raises(VerificationError, match="weights have the same values: conv/kernel"):
        verify(plain, dropped)


def test_another_layer_configuration_is_named(plain):
    dropped = insert_dropout(plain, "act", 0.5)
    dropped.get_layer("bn").momentum = 0.5
    with pytest.raises(VerificationError, match="layers are the same: bn: found .*0.5"):
        verify(plain, dropped)


def test_a_missing_dropout_is_noticed(plain):
    with pytest.raises(VerificationError, match="dropout was added: dropout layers: found 0"):
        verify(plain, keras.models.clone_model(plain, clone_function=lambda layer: layer))


def test_other_output_shapes_are_noticed(plain):
    other = keras.Model(plain.input, plain.get_layer("act").output)
    with pytest.raises(VerificationError, match="outputs have the same shapes"):
        verify(plain, other)


def test_a_model_with_dropout_of_its_own_and_a_rate_of_zero_passes():
    inputs = keras.Input((8,))
    x = layers.Dropout(0.5, name="own")(layers.Dense(8, name="hidden")(inputs))
    plain = keras.Model(inputs, layers.Dense(1, name="last")(x))
    dropped = insert_dropout(plain, "own", 0.3, adjustable=True)
    dropped.get_layer("own_dropout").rate = 0.0
    assert "training mode differs" not in [row["check"] for row in verify(plain, dropped)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 2}, "`draws` must be a whole number of at least 100, got draws=2"),
        ({"images": np.zeros((1, 8, 8, 5), "float32")}, "`images` do not fit the model"),
    ],
)
def test_wrong_arguments_are_errors(plain, options, message):
    with pytest.raises(InputError, match=message):
        verify(plain, insert_dropout(plain, "act", 0.5), **options)


def test_inputs_of_whole_numbers_must_be_given():
    inputs = keras.Input((3,), dtype="int32")
    model = keras.Model(inputs, layers.Embedding(10, 4, name="embedding")(inputs))
    dropped = insert_dropout(model, "embedding", 0.5)
    with pytest.raises(InputError, match="`images` must be given: the model's input is int32"):
        verify(model, dropped)
    assert verify(model, dropped, np.array([[1, 2, 3]]))
