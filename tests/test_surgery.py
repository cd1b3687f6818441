"""insert_layers and the selectors: any functional Keras model, and nothing of it lost."""

import keras
import numpy as np
import pytest
from keras import layers

import segdrop
from segdrop import InputError, activations, insert_dropout, insert_layers, verify
from segdrop.surgery.graph import functional_view, layers_by_path, trace

X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")


def names(model):
    return [layer.name for layer in model.layers]


def inserted(model):
    return [name.removesuffix("_dropout") for name in names(model) if name.endswith("_dropout")]


@pytest.fixture(scope="module")
def mixed():
    """Activations in every form that Keras has."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv_fused")(inputs)
    x = layers.Conv2D(4, 3, name="conv_plain")(x)
    x = layers.Activation("relu", name="activation")(x)
    x = layers.ReLU(name="re_lu")(x)
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.PReLU(name="prelu")(x)
    x = layers.Activation("linear", name="linear")(x)
    x = keras.ops.relu(x)
    x = layers.Activation("sigmoid", name="gate")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(5, activation="gelu", name="dense_fused")(x)
    x = layers.Dense(5, name="dense_plain")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="probabilities")(x))


def test_activations_are_found_wherever_they_live(mixed):
    found = [path for path, part in layers_by_path(functional_view(mixed)).items() if activations(part.layer)]
    operation = [path for path in found if path.startswith("relu")]
    assert len(operation) == 1
    assert [path for path in found if path not in operation] == [
        "conv_fused",
        "activation",
        "re_lu",
        "leaky",
        "prelu",
        "dense_fused",
    ]
    dropped = insert_dropout(mixed, activations, 0.5)
    assert len(inserted(dropped)) == 7
    np.testing.assert_array_equal(dropped(X), mixed(X))


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ("re_lu", ["re_lu"]),
        ("conv_*", ["conv_fused", "conv_plain"]),
        (layers.Dense, ["dense_fused", "dense_plain", "probabilities"]),
        ([layers.LeakyReLU, "prelu"], ["leaky", "prelu"]),
        (lambda layer: layer.name.startswith("dense"), ["dense_fused", "dense_plain"]),
        ({layers.PReLU: 0.1, "flat": 0.2}, ["prelu", "flat"]),
    ],
)
def test_sites_are_names_globs_classes_or_predicates(mixed, sites, found):
    rate = None if isinstance(sites, dict) else 0.3
    assert inserted(insert_dropout(mixed, sites, rate)) == found


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("convolution", "`sites` matches no layer of this model: 'convolution'. Nearest: conv_plain"),
        (layers.LSTM, "`sites` matches no layer of this model: LSTM. Nearest: "),
        (["re_lu", layers.ReLU], "`sites` names a layer twice: 're_lu'"),
        ([], "`sites` is empty"),
    ],
)
def test_a_selector_that_matches_nothing_or_twice_is_an_error(mixed, sites, message):
    with pytest.raises(InputError, match=message):
        insert_dropout(mixed, sites, 0.5)


def test_a_selector_of_another_type_is_a_type_error(mixed):
    with pytest.raises(TypeError, match="takes names, globs, layer classes and predicates, got 3"):
        insert_dropout(mixed, [3], 0.5)


def test_a_site_that_gives_whole_numbers_is_an_error_with_the_nearest_that_fit():
    inputs = keras.Input((4,))
    counts = layers.Discretization(bin_boundaries=[0.0, 1.0], name="count")(inputs)
    model = keras.Model(inputs, layers.Embedding(5, 2, name="counted")(counts))
    with pytest.raises(InputError, match="'count' is not one float tensor; nearest that is: counted"):
        insert_dropout(model, "count", 0.5)


@pytest.fixture(scope="module")
def nested():
    """backbone(conv -> relu) called on two inputs, then a Sequential head; as in a siamese network."""
    inner_input = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inner_input)
    x = layers.BatchNormalization(name="bn")(x)
    backbone = keras.Model(inner_input, layers.ReLU(name="relu")(x), name="backbone")
    head = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="hidden"), layers.Dense(1, name="last")], name="head"
    )
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="two")
    pool = layers.GlobalAveragePooling2D(name="pool")
    difference = layers.Subtract(name="difference")([pool(backbone(one)), pool(backbone(two))])
    return keras.Model({"one": one, "two": two}, {"score": head(difference), "difference": difference})


PAIR = {"one": X, "two": X[::-1].copy()}


def test_a_nested_model_is_not_entered_unless_asked_for(nested):
    with pytest.raises(InputError, match="enter it with nested=True and name 'backbone/relu'"):
        insert_dropout(nested, "relu", 0.5)
    with pytest.raises(InputError, match="enter it with nested=True and name 'backbone/relu'"):
        insert_dropout(nested, layers.ReLU, 0.5)


def test_nested_shared_models_several_inputs_and_outputs(nested):
    dropped = insert_dropout(nested, ["backbone/relu", "head/hidden"], 0.5, nested=True)
    assert inserted(dropped.get_layer("backbone")) == ["relu"]
    assert inserted(dropped.get_layer("head")) == ["hidden"]
    for name, value in nested(PAIR).items():
        np.testing.assert_array_equal(dropped(PAIR)[name], value)
    assert [w.path for w in dropped.weights] == [w.path for w in nested.weights]
    assert len([call for call in trace(dropped) if call.path == "backbone/relu_dropout"]) == 2
    trained = dropped(PAIR, training=True)
    assert not np.allclose(trained["difference"], nested(PAIR, training=True)["difference"])


def test_dropout_in_a_model_that_is_called_twice_draws_twice():
    inner = keras.Input((100,))
    shared = keras.Model(inner, layers.Activation("linear", name="same")(inner), name="shared")
    one, two = keras.Input((100,)), keras.Input((100,))
    dropped = insert_dropout(keras.Model([one, two], [shared(one), shared(two)]), "shared/same", 0.5, nested=True)
    first, second = dropped([np.ones((1, 100)), np.ones((1, 100))], training=True)
    assert (np.array(first) != np.array(second)).any()


def test_two_models_within_a_model_may_have_layers_of_the_same_name():
    def tower(name):
        inner = keras.Input((4,))
        return keras.Model(inner, layers.Dense(4, name="dense")(inner), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, tower("second")(tower("first")(inputs)))
    dropped = insert_dropout(model, "*/dense", 0.5, nested=True)
    assert [call.path for call in trace(dropped)] == [
        "first/dense",
        "first/dense_dropout",
        "second/dense",
        "second/dense_dropout",
    ]


def test_a_shared_layer_is_followed_by_dropout_at_each_call():
    shared, inputs = layers.Dense(40, name="shared"), keras.Input((40,))
    model = keras.Model(inputs, shared(shared(inputs)))
    dropped = insert_dropout(model, "shared", 0.5)
    assert [call.path for call in trace(dropped)] == ["shared", "shared_dropout"] * 2
    assert len(dropped.weights) == 2


def test_weight_files_of_a_nested_model_load_both_ways(nested, tmp_path):
    dropped = insert_dropout(nested, ["backbone/relu", "head/hidden"], 0.5, nested=True)
    nested.save_weights(tmp_path / "w.weights.h5")
    dropped.set_weights([np.zeros_like(w) for w in dropped.get_weights()])
    dropped.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(dropped(PAIR)["score"], nested(PAIR)["score"])


def test_weight_files_of_a_sequential_model_load_both_ways(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="hidden"), layers.Dense(1, name="last")])
    dropped = insert_dropout(model, "hidden", 0.5)
    x = np.ones((2, 4), "float32")
    model.save_weights(tmp_path / "plain.weights.h5")
    dropped.set_weights([w + 1 for w in dropped.get_weights()])
    dropped.save_weights(tmp_path / "dropped.weights.h5")
    wanted = np.array(model(x)), np.array(dropped(x))
    dropped.load_weights(tmp_path / "plain.weights.h5")
    model.load_weights(tmp_path / "dropped.weights.h5")
    np.testing.assert_array_equal(dropped(x), wanted[0])
    np.testing.assert_array_equal(model(x), wanted[1])


def test_flags_within_a_nested_model_survive(nested):
    source = insert_dropout(nested, "pool", 0.5)
    source.get_layer("backbone").get_layer("conv").trainable = False
    source.get_layer("head").trainable = False
    copy = insert_dropout(source, "difference", 0.5)
    assert (
        [w.path for w in copy.trainable_weights]
        == [w.path for w in source.trainable_weights]
        == [
            "bn/gamma",
            "bn/beta",
        ]
    )


def test_a_twin_enters_nested_models(nested):
    twin = segdrop.monte_carlo(insert_dropout(nested, "backbone/relu", 0.5, nested=True))
    first, second = (twin.predict(PAIR, verbose=0)["difference"] for _ in range(2))
    assert (first != second).any()


def test_removal_enters_nested_models(nested):
    dropped = insert_dropout(nested, "backbone/relu", 0.5, nested=True)
    assert inserted(segdrop.remove_dropout(dropped).get_layer("backbone")) == []


def test_insert_layers_puts_any_layer_behind_a_site(mixed):
    noisy = insert_layers(
        mixed, layers.Dense, lambda site, tensor: layers.GaussianNoise(1.0, name=f"{site.name}_noise")
    )
    assert [name for name in names(noisy) if name.endswith("_noise")] == [
        "dense_fused_noise",
        "dense_plain_noise",
        "probabilities_noise",
    ]
    np.testing.assert_array_equal(noisy(X), mixed(X))
    assert not np.allclose(noisy(X, training=True), mixed(X, training=True))


def test_the_factory_sees_the_tensor_and_may_make_layers_with_weights(mixed):
    scaled = insert_layers(mixed, "dense_plain", lambda site, tensor: layers.Dense(tensor.shape[-1], name="adapter"))
    assert scaled.get_layer("adapter").kernel.shape == (5, 5)
    np.testing.assert_array_equal(scaled.get_layer("dense_plain").kernel, mixed.get_layer("dense_plain").kernel)


def test_a_lambda_layer_is_copied():
    inputs = keras.Input((4,))
    doubled = layers.Lambda(lambda x, by: x * by, output_shape=(4,), arguments={"by": 2}, name="doubled")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="last")(doubled))
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(insert_dropout(model, "doubled", 0.5)(x), model(x))


def test_normalization_keeps_what_it_has_adapted_to():
    inputs = keras.Input((3,))
    normalization = layers.Normalization(name="norm")
    normalization.adapt(np.array([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))
    model = keras.Model(inputs, layers.Dense(1, name="last")(normalization(inputs)))
    x = np.array([[5.0, 6.0, 7.0]], "float32")
    np.testing.assert_array_equal(insert_dropout(model, "norm", 0.5)(x), model(x))


def test_initializers_survive_though_the_copy_draws_no_values(mixed):
    copy = insert_dropout(mixed, "re_lu", 0.5)
    assert copy.get_layer("conv_plain").get_config() == mixed.get_layer("conv_plain").get_config()


class Block(layers.Layer):
    """A layer made of layers, one of which may be frozen by itself."""

    def __init__(self, units=5, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense, self.bn = layers.Dense(units, name="dense"), layers.BatchNormalization(name="bn")

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((None, self.units))

    def call(self, x, training=None):
        return self.bn(self.dense(x), training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_frozen_part_of_a_layer_stays_frozen():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.ReLU(name="last")(Block(name="block")(inputs)))
    model.get_layer("block").bn.trainable = False
    copy = insert_dropout(model, "last", 0.0)
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    np.testing.assert_array_equal(copy(x, training=True), model(x, training=True))
    assert [w.path for w in copy.trainable_weights] == [w.path for w in model.trainable_weights]


def test_a_layer_that_is_in_two_models_stays_one():
    shared, inner = layers.Dense(5, name="shared"), keras.Input((5,))
    nested_model = keras.Model(inner, shared(inner), name="nested")
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(2, name="last")(shared(nested_model(inputs))))
    copy = insert_dropout(model, "last", 0.1)
    assert len(copy.weights) == len(model.weights) == 4
    assert copy.get_layer("nested").get_layer("shared") is copy.get_layer("shared")


def test_a_layer_that_is_also_within_a_wrapper_is_an_error():
    dense, inputs = layers.Dense(4, name="dense"), keras.Input((3, 4))
    model = keras.Model(inputs, layers.TimeDistributed(dense, name="steps")(dense(inputs)))
    with pytest.raises(InputError, match="'dense' and 'steps' have the weight .* in common"):
        insert_dropout(model, "dense", 0.5)


class Doubling(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training) * 2


def test_a_functional_model_with_a_call_of_its_own_is_refused_and_within_a_model_copied_whole():
    inputs = keras.Input((4,))
    own = Doubling(inputs, layers.Dense(3, name="dense")(inputs))
    with pytest.raises(TypeError, match="must be a functional or built Sequential Keras 3 model, got .*Doubling"):
        insert_dropout(own, "dense", 0.5)


def test_bins_that_were_adapted_are_kept():
    bins = layers.Discretization(num_bins=4, name="bins")
    bins.adapt(np.linspace(0, 100, 50))
    inputs = keras.Input((3,))
    x = layers.Flatten()(layers.Embedding(10, 3, name="embedding")(bins(inputs)))
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    values = np.array([[1.0, 40.0, 99.0]])
    np.testing.assert_array_equal(insert_dropout(model, "last", 0.5)(values), model(values))


def test_a_layer_may_be_given_itself(mixed):
    assert inserted(insert_dropout(mixed, mixed.get_layer("re_lu"), 0.5)) == ["re_lu"]


def test_a_layer_that_cannot_be_copied_is_named():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, activation=lambda x: x * 2, name="dense")(inputs))
    with (
        pytest.warns(UserWarning, match="lambda"),
        pytest.raises(InputError, match="Layer 'dense' cannot be copied from its configuration"),
    ):
        insert_dropout(model, "dense", 0.5)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (lambda site, tensor: None, TypeError, "`factory` must give a Keras layer, got None for site 're_lu'"),
        (lambda site, tensor: layers.Dense(9), InputError, "must keep the shape .*, 4.*, it gives .*, 9"),
        (
            lambda site, tensor: layers.ReLU(name="flat"),
            InputError,
            "needs a name that the model does not have: 'flat'",
        ),
    ],
)
def test_a_factory_s_wrong_results_are_told(mixed, factory, error, message):
    with pytest.raises(error, match=message):
        insert_layers(mixed, "re_lu", factory)


@pytest.mark.parametrize(("argument", "value"), [("sites", None), ("sites", 3), ("bypass", 5)])
def test_what_is_no_selector_is_a_type_error(mixed, argument, value):
    options = {"sites": "re_lu", "rate": 0.5, argument: value}
    with pytest.raises(TypeError, match=f"`{argument}` takes names, globs, layer classes and predicates, got {value}"):
        insert_dropout(mixed, **options)


def largest_float_site(model):
    """A layer in the middle of the graph that gives feature maps."""
    calls = [call for call in trace(model) if len(call.shapes[0]) == 4 and hasattr(call.layer, "get_config")]
    return calls[len(calls) // 2].path


def also_slowly(soon, slowly):
    return [*soon, *(pytest.param(*values, marks=pytest.mark.slow) for values in slowly)]


@pytest.mark.filterwarnings("ignore:Keras orders the layers of the new model differently")
@pytest.mark.parametrize(
    "family",
    also_slowly(
        ["MobileNetV3Small"],
        [
            ["ResNet50"],
            ["ResNet50V2"],
            ["InceptionV3"],
            ["VGG16"],
            ["DenseNet121"],
            ["MobileNetV2"],
            ["MobileNetV3Large"],
            ["EfficientNetB0"],
            ["EfficientNetV2B0"],
            ["ConvNeXtTiny"],
            ["Xception"],
            ["NASNetMobile"],
            ["InceptionResNetV2"],
        ],
    ),
)
def test_the_families_of_keras_applications(family):
    plain = getattr(keras.applications, family)(weights=None, input_shape=(96, 96, 3), classes=10)
    sites = [largest_float_site(plain)]
    found = [path for path, part in layers_by_path(functional_view(plain)).items() if activations(part.layer)]
    assert found
    sites += [path for path in found if path not in sites]
    dropped = insert_dropout(plain, sites, 0.3)
    verify(plain, dropped, np.random.default_rng(0).uniform(0, 255, (2, 96, 96, 3)).astype("float32"), draws=100)
    removed = segdrop.remove_dropout(dropped)
    assert names(removed) == names(plain)


# DenseNet does not build on Keras 3 (layer names with slashes). The families with grouped convolutions take minutes to
# build: one stands for them here.
@pytest.mark.filterwarnings("ignore:Keras orders the layers of the new model differently")
@pytest.mark.parametrize(
    ("backbone", "architecture"),
    also_slowly(
        [("resnet18", "Linknet"), ("mobilenet", "Unet")],
        [
            ("seresnext50", "Unet"),
            *(("resnet18", name) for name in ("Unet", "FPN", "PSPNet")),
            *(("mobilenetv2", name) for name in ("Unet", "FPN", "Linknet", "PSPNet")),
            *(
                (backbone, "Unet")
                for backbone in ("vgg16", "seresnet18", "inceptionv3", "inceptionresnetv2", "efficientnetb0")
            ),
        ],
    ),
)
def test_the_families_and_architectures_of_segmentation_models(backbone, architecture):
    from segdrop.nets.unet import sm

    side = 96 if architecture == "PSPNet" or backbone == "inceptionv3" else 64
    plain = getattr(sm, architecture)(backbone, encoder_weights=None, input_shape=(side, side, 3))
    dropped = insert_dropout(plain, activations, 0.3)
    assert inserted(dropped)
    image = np.random.default_rng(0).uniform(0, 255, (1, side, side, 3)).astype("float32")
    np.testing.assert_array_equal(dropped(image), plain(image))
    assert {w.path for w in dropped.weights} == {w.path for w in plain.weights}


def branches():
    """Two parallel branches of equal length with weights of equal shapes: their order decides what loads where."""
    inputs = keras.Input((4,))
    one = layers.Dense(4, name="one_b")(layers.Dense(4, name="one_a")(inputs))
    two = layers.Dense(4, name="two_b")(layers.Dense(4, name="two_a")(inputs))
    return keras.Model(inputs, layers.Add(name="sum")([one, two]))


def test_a_changed_order_of_layers_is_told_and_files_are_exchanged_by_way_of_the_plain_model(tmp_path):
    plain, x = branches(), np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    with pytest.warns(UserWarning, match="weight files do not load between it and the original"):
        dropped = insert_dropout(plain, "two_b", 0.5)
    np.testing.assert_array_equal(dropped(x), plain(x))
    table = verify(plain, dropped)
    assert any("another order: weight files do not load" in row["found"] for row in table)
    segdrop.remove_dropout(dropped).save_weights(tmp_path / "w.weights.h5")
    other = branches()
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(other(x), plain(x))
