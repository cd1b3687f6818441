"""Encoders other than the ResNets: the library's others, those of keras.applications, and the user's own models."""

import h5py
import keras
import numpy as np
import pytest
from classification_models.models._common_blocks import ChannelSE, GroupConv2D
from conftest import tiny_training
from keras import layers
from segmentation_models.backbones.backbones_factory import Backbones

import segdrop
from segdrop.errors import InputError
from segdrop.layers import is_dropout
from segdrop.nets.encoders import build_source, make_encoder
from segdrop.nets.library import sm
from segdrop.nets.plain import with_plain_layers
from segdrop.nets.skips import find_skips
from segdrop.training.building import find_weights

FAST = ["vgg16", "mobilenet", "mobilenetv2", "seresnet18"]
SLOW = ["seresnet50", "inceptionv3", "inceptionresnetv2", "efficientnetb0"]
slow = pytest.mark.slow
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")


def own_encoder(channels=3, name="own"):
    """Five halvings, a residual branch, and dropout of its own."""
    image = keras.Input((None, None, channels))
    x = layers.Rescaling(1 / 255, name="scale")(image)
    for number, width in enumerate([4, 6, 8, 10], 1):
        x = layers.Conv2D(width, 3, 2, "same", activation="relu", name=f"block{number}_conv")(x)
    branch = layers.Conv2D(10, 3, padding="same", activation="relu", name="block4_branch1")(x)
    branch = layers.Conv2D(10, 3, padding="same", name="block4_branch2")(branch)
    x = layers.ReLU(name="block4_out")(layers.Add(name="block4_add")([x, branch]))
    x = layers.Conv2D(12, 3, 2, "same", activation="relu", name="block5_conv")(x)
    return keras.Model(image, x, name=name)


def dropped_after(model):
    return [row["after"] for row in segdrop.dropout_table(model, image_size=(64, 64))]


@pytest.mark.parametrize("encoder", FAST + [pytest.param(name, marks=slow) for name in SLOW])
def test_the_skips_that_are_found_are_those_that_the_library_names(encoder):
    theirs = sm.inject_global_submodules(Backbones.get_backbone)(
        encoder, input_shape=(None, None, 3), weights=None, include_top=False
    )
    named = Backbones.get_feature_layers(encoder, 4)
    theirs_in_order = [theirs.get_layer(n) if isinstance(n, str) else theirs.get_layer(index=n) for n in named]
    plain = with_plain_layers(theirs)  # names of theirs and of its copy are the same
    assert find_skips(plain) == tuple(layer.name for layer in theirs_in_order)


@pytest.mark.parametrize("encoder", FAST + [pytest.param(name, marks=slow) for name in SLOW])
def test_an_encoder_computes_what_its_library_computes_from_what_the_library_makes_of_the_image(encoder):
    keras.utils.set_random_seed(0)
    model, _ = make_encoder(encoder, (None, None, 3), pretrained=False)
    source = build_source(encoder, pretrained=False)
    preprocess = {
        "vgg": keras.applications.vgg16.preprocess_input,
        "mob": keras.applications.mobilenet.preprocess_input,
        "inc": keras.applications.inception_v3.preprocess_input,
    }.get(encoder[:3], lambda x: x)
    if encoder == "seresnet50":  # the library's, of torchvision's kind
        preprocess = lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]  # noqa: E731
    ours = [layer for layer in model.layers if layer.weights and layer.name != "preprocessing"]
    theirs = [layer for layer in source.layers if layer.weights and not isinstance(layer, layers.Normalization)]
    for layer, twin in zip(ours, theirs, strict=True):
        twin.set_weights(layer.get_weights())
    expected = np.asarray(source(preprocess(IMAGES.copy())))
    np.testing.assert_allclose(np.asarray(model(IMAGES)), expected, atol=1e-3 * np.abs(expected).max())


def test_keras_own_lambda_layers_are_replaced_by_layers_that_compute_the_same_and_load_in_safe_mode(tmp_path):
    tf_keras = {"backend": sm._KERAS_BACKEND, "layers": layers, "models": keras.models, "utils": keras.utils}
    image = keras.Input((8, 8, 6))
    x = GroupConv2D(12, (3, 3), strides=(2, 2), groups=3, use_bias=True, **tf_keras)(image)
    x = ChannelSE(reduction=4, **tf_keras)(x)
    model = keras.Model(image, layers.Dropout(0.5)(x))
    plain = with_plain_layers(model)

    assert not [layer.name for layer in plain.layers if isinstance(layer, layers.Lambda) or is_dropout(layer)]
    assert next(layer.groups for layer in plain.layers if isinstance(layer, layers.Conv2D)) == 3
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 6)).astype("float32")
    np.testing.assert_allclose(np.asarray(plain(images)), np.asarray(model(images)), atol=1e-5)
    plain.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras", safe_mode=True)
    np.testing.assert_array_equal(np.asarray(loaded(images)), np.asarray(plain(images)))


@pytest.mark.parametrize("adapted", [False, True])
def test_a_normalization_becomes_a_rescaling_that_computes_the_same(adapted):
    given = {} if adapted else {"mean": [100.0, 120.0, 90.0], "variance": [900.0, 1600.0, 2500.0]}
    normalization = layers.Normalization(**given)
    if adapted:
        normalization.adapt(IMAGES)
    model = keras.Sequential([keras.Input((None, None, 3)), normalization, layers.Conv2D(2, 1)])
    plain = with_plain_layers(model)
    assert [type(layer).__name__ for layer in plain.layers] == ["InputLayer", "Rescaling", "Conv2D"]
    np.testing.assert_allclose(np.asarray(plain(IMAGES)), np.asarray(model(IMAGES)), atol=1e-4)


def test_names_that_keras_gives_are_the_same_whenever_an_encoder_is_built():
    first, second = (make_encoder("seresnet18", (64, 64, 3), pretrained=False)[0] for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]


@pytest.mark.parametrize("encoder", ["vgg16", "mobilenet"])  # BGR, and RGB
def test_six_channels_that_repeat_the_colours_give_what_the_colours_give(encoder, monkeypatch):
    source = build_source(encoder, pretrained=False)
    monkeypatch.setattr("segdrop.nets.encoders.build_source", lambda *_: source)
    three, six = (make_encoder(encoder, (None, None, n), pretrained=False)[0] for n in (3, 6))
    expected = np.asarray(three(IMAGES))
    found = np.asarray(six(np.concatenate([IMAGES, IMAGES], axis=-1)))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_grey_image_of_one_channel_gives_what_three_equal_ones_give(monkeypatch):
    source = build_source("mobilenet", pretrained=False)
    monkeypatch.setattr("segdrop.nets.encoders.build_source", lambda *_: source)
    three, one = (make_encoder("mobilenet", (None, None, n), pretrained=False)[0] for n in (3, 1))
    grey = IMAGES[..., :1]
    expected = np.asarray(three(np.repeat(grey, 3, axis=-1)))
    np.testing.assert_allclose(np.asarray(one(grey)), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("encoder", "placement", "first", "count"),
    [
        ("vgg16", "activations", "block5_conv1", 2),
        ("vgg16", "bottleneck", "block5_pool", 1),
        ("vgg16", "skips", "block5_conv3", 4),
        ("mobilenetv2", "activations", "block_6_depthwise_relu", 21),
        ("mobilenetv2", "branch_end", "block_7_project_BN", 6),
        ("mobilenetv2", "block_end", "block_7_add", 6),
        ("seresnet18", "between_convs", "stage3_unit1_relu2", 3),
        ("seresnet18", "branch_end", "multiply_4", 3),
        ("seresnet18", "activations", "stage3_unit1_relu1", 6),
    ],
)
@pytest.mark.filterwarnings("ignore:placement='block_end'")
def test_dropout_goes_where_the_placement_says_and_leaves_inference_alone(encoder, placement, first, count):
    dropped = segdrop.build_unet(encoder, encoder_weights=None, encoder_dropout=0.5, placement=placement)
    table = segdrop.dropout_table(dropped, image_size=(64, 64))
    rows = [row for row in table if row["place"] == placement or encoder == "seresnet18"]
    assert len(table) == len(rows) == count
    assert table[0]["after"] == first
    assert {row["part"] for row in table} == {"encoder"} or placement == "skips"

    plain = segdrop.remove_dropout(dropped)
    np.testing.assert_array_equal(np.asarray(dropped(IMAGES)), np.asarray(plain(IMAGES)))
    assert not np.allclose(np.asarray(dropped(IMAGES, training=True)), np.asarray(plain(IMAGES, training=True)))


def test_layers_of_an_encoder_are_chosen_whole_by_glob_or_up_to_an_underscore():
    def sites(placement, blocks):
        return dropped_after(segdrop.build_unet(own_encoder(), encoder_dropout=0.2, placement=placement, blocks=blocks))

    assert sites("layers", ["block2_conv", "scale"]) == ["scale", "block2_conv"]
    assert sites("layers", "block4") == ["block4_conv", "block4_branch1", "block4_branch2", "block4_add", "block4_out"]
    assert sites("activations", "block[23]_*") == ["block2_conv", "block3_conv"]
    assert sites("activations", None) == ["block4_conv", "block4_branch1", "block4_out"]
    assert sites("branch_end", "block4") == ["block4_branch2"]


def test_a_model_of_the_users_is_copied_with_its_weights_and_left_as_it_is():
    own = own_encoder()
    own.get_layer("block1_conv").trainable = False
    before = [weight.copy() for weight in own.get_weights()]
    model = segdrop.build_unet(own, encoder_dropout=0.2, placement="activations", classes=3)

    assert model.input_shape == (None, None, None, 3) and model.output_shape[-1] == 3
    for layer in own.layers[1:]:
        for theirs, ours in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(theirs, ours)
    assert not model.get_layer("block1_conv").trainable and model.get_layer("block2_conv").trainable
    model.get_layer("block2_conv").set_weights([w + 1 for w in model.get_layer("block2_conv").get_weights()])
    for theirs, saved in zip(own.get_weights(), before, strict=True):
        np.testing.assert_array_equal(theirs, saved)


def test_a_users_model_takes_images_of_another_size_and_number_of_channels():
    own = own_encoder(channels=2)
    model = segdrop.build_unet(own, input_shape=(64, 96, 6))
    assert model.input_shape == (None, 64, 96, 6)
    np.testing.assert_allclose(
        model.get_layer("block1_conv").get_weights()[0],
        np.tile(own.get_layer("block1_conv").get_weights()[0], (1, 1, 3, 1)) / 3,
        rtol=1e-6,
    )


def test_skips_of_the_users_own_reach_the_decoder():
    chosen = ["block4_conv", "block3_conv", "block2_conv", "block1_conv"]
    model = segdrop.build_unet(own_encoder(), skips_from=chosen)
    joined = [layer.input[1]._keras_history.operation.name for layer in model.layers if "concat" in layer.name]
    assert joined == chosen
    found = segdrop.build_unet(own_encoder())
    assert found.get_layer("decoder_stage0_concat").input[1]._keras_history.operation.name == "block4_out"


def test_of_each_scale_the_last_maps_are_taken_that_all_later_ones_depend_on_as_they_were_activated():
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, "same", activation="relu", name="stem")(image)
    branch = layers.Conv2D(4, 1, activation="relu", name="in_a_branch")(x)  # at 1/2, but the shortcut goes past it
    branch = layers.Conv2D(6, 3, 2, "same", name="branch")(branch)
    x = layers.Add(name="sum")([branch, layers.Conv2D(6, 1, 2, "same", name="shortcut")(x)])
    x = layers.ReLU(name="activated")(x)
    x = layers.Conv2D(5, 1, name="transition")(x)  # at 1/4, and linear
    x = layers.AveragePooling2D(2, name="pool")(x)
    for number in (16, 32):
        x = layers.Conv2D(6, 3, 2, "same", activation="relu", name=f"conv{number}")(x)
    assert find_skips(keras.Model(image, x)) == ("conv16", "pool", "activated", "stem")


def test_a_users_model_is_proved_sampled_and_saved_like_the_others(tmp_path):
    model = segdrop.build_unet(own_encoder(), encoder_dropout=0.3, placement="activations", spatial=True)
    segdrop.verify(segdrop.remove_dropout(model), model)
    noisy = segdrop.monte_carlo(model, seed=0)
    assert not np.array_equal(np.asarray(noisy(IMAGES)), np.asarray(noisy(IMAGES)))
    model.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    np.testing.assert_array_equal(np.asarray(loaded(IMAGES)), np.asarray(model(IMAGES)))


def without_half():
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 4, 4, "same", name="patches")(image)
    for number in range(3):
        x = layers.Conv2D(4, 3, 2, "same", name=f"down{number}")(x)
    return keras.Model(image, x, name="patchy")


def short():
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(4, 3, 2, "same", name="conv")(image), name="short")


class Vague(layers.Layer):
    def call(self, x):
        return x

    def compute_output_shape(self, shape):
        return (None, None, None, shape[-1])


def of_unknown_shape():
    image = keras.Input((None, None, 3))
    return keras.Model(image, Vague(name="vague")(layers.Conv2D(4, 3, 32, "same")(image)), name="unknown")


def clashing():
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(4, 3, 32, "same", name="final_conv")(image), name="clash")


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        (without_half, {}, "'patchy' has no maps at 1/2 of the image"),
        (
            short,
            {},
            "'short' must halve the image exactly five times, to 1/32; of 256x256 pixels it makes 128x128x4, 1/2",
        ),
        (of_unknown_shape, {}, "Keras cannot tell the shape of what 'vague' makes; give the layer"),
        (clashing, {}, "`encoder` has a layer called 'final_conv'"),
        (own_encoder, {"encoder_weights": "x.h5"}, "`encoder_weights` must be left out where `encoder` is a model"),
        (
            own_encoder,
            {"skips_from": ["block1_conv", "block2_conv", "block3_conv", "block4_conv"]},
            r"in this order, got block1_conv \(1/2\), block2_conv \(1/4\)",
        ),
        (own_encoder, {"skips_from": ["block4_conv"]}, r"must name four layers .* got block4_conv \(1/16\)"),
        (own_encoder, {"skips_from": ["block4_cnv"]}, "names no layer of 'own' .* nearest: block4_conv"),
        (own_encoder, {"skips_from": "block4_conv"}, "`skips_from` must be several names"),
        ("resnet18", {"skips_from": ["relu0"]}, "`skips_from` is for encoders other than the ResNets"),
        ("keras:MobilNet", {}, "names no network of keras.applications: 'MobilNet'; nearest: MobileNet"),
        ("keras:Xception", {}, "'xception' must halve|'xception' has no maps at"),
        (
            own_encoder,
            {"encoder_dropout": 0.1},
            "placement='between_convs' means nothing in this encoder.* activations, branch_end, block_end, bottleneck",
        ),
        (own_encoder, {"encoder_dropout": 0.1, "placement": "layers"}, "placement='layers' needs `blocks`"),
        (
            own_encoder,
            {"encoder_dropout": 0.1, "placement": "activations", "blocks": "block9"},
            "`blocks` names no unit of this encoder: 'block9'",
        ),
        (7, {}, "or a keras.Model, got encoder=7"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(encoder, options, message):
    encoder = encoder() if callable(encoder) else encoder
    with pytest.raises(InputError, match=message) as caught:
        segdrop.build_unet(encoder, **{"encoder_weights": "imagenet" if callable(encoder) else None, **options})
    assert "\n" not in str(caught.value)


def write_keras_2_file(model, path):
    """The layout in which keras.applications publishes weights."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        file.attrs["keras_version"], file.attrs["backend"] = b"2.0", b"tensorflow"
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.get_weights(), strict=True):
                group.create_dataset(name, data=weight)


def test_published_weights_of_keras_applications_are_loaded_by_name(monkeypatch, tmp_path):
    source = build_source("keras:MobileNetV2", pretrained=False)
    file = tmp_path / "published.h5"
    write_keras_2_file(source, file)
    asked = []

    def get_file(name, *args, **kwargs):
        asked.append(name)
        return str(file)

    module = __import__("sys").modules[keras.applications.MobileNetV2.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", get_file)
    model = segdrop.build_unet("keras:MobileNetV2", encoder_weights="imagenet")
    assert asked and all("mobilenet_v2_weights" in name and name.endswith("_no_top.h5") for name in asked)
    for name in ("Conv1", "block_13_expand", "out_relu"):
        for expected, found in zip(
            source.get_layer(name).get_weights(), model.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_published_weights_that_cannot_be_had_are_said_in_one_line(monkeypatch):
    def get_file(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org: None -- no network\nmore")

    module = __import__("sys").modules[keras.applications.MobileNetV2.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", get_file)
    with pytest.raises(InputError, match="The ImageNet weights of mobilenetv2 cannot be had: URL fetch .* none"):
        segdrop.build_unet("mobilenetv2", encoder_weights="imagenet")


def test_weights_of_a_saved_network_are_loaded_by_the_names_of_layers(tmp_path):
    saved = segdrop.build_unet("mobilenet", encoder_weights=None)
    saved.save(tmp_path / "saved.keras")
    model = segdrop.build_unet("mobilenet", encoder_weights=tmp_path / "saved.keras", input_shape=(64, 64, 6))
    expected = saved.get_layer("conv1").get_weights()[0]
    np.testing.assert_allclose(model.get_layer("conv1").get_weights()[0], np.tile(expected, (1, 1, 2, 1)) / 2)


def test_such_an_encoder_trains_and_is_loaded_again(cells, tmp_path):
    encoder = "keras:MobileNetV2"
    config = tiny_training(
        cells, run_dir=tmp_path / "run", encoder=encoder, encoder_dropout=0.2, dropout_placement="branch_end"
    )
    result = segdrop.train(config)
    network = segdrop.load(result.run_dir)
    assert len(dropped_after(network.model)) == {"keras:MobileNetV2": 6, "seresnet18": 3}[encoder]


def test_a_training_starts_at_random_with_a_warning_where_no_published_weights_can_be_had(monkeypatch):
    def check(encoder):
        raise InputError("no network")

    monkeypatch.setattr("segdrop.nets.weights.check_published", check)
    assert find_weights(segdrop.TrainConfig(encoder="keras:MobileNetV2")) == "random"
    with pytest.raises(InputError, match="no network"):
        find_weights(segdrop.TrainConfig(encoder="keras:MobileNetV2", encoder_weights="imagenet"))
