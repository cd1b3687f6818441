"""build_unet: the U-Net of segmentation_models, with dropout in its encoder and nothing else changed."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise, write_weight_file

from segdrop import InputError, build_unet, dropout_table, remove_dropout, verify
from segdrop.nets.sites import encoder_layers, set_encoder_trainable
from segdrop.nets.weights import imagenet_file

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
DEFAULT_UNITS = [f"stage3_unit{n}" for n in range(1, 7)] + ["stage4_unit1", "stage4_unit2"]


def library_unet(encoder, **options):
    from segdrop.nets.unet import sm

    return sm.Unet(encoder, encoder_weights=None, **options)


def dropout_names(model):
    return [layer.name for layer in model.layers if "dropout" in layer.name]


def build(encoder="resnet18", **options):
    return build_unet(encoder, **{"encoder_weights": None, **options})


def config_without_counter(layer):
    """A layer's config; names that Keras numbers by a global counter differ from one build to the next."""
    return {k: v for k, v in layer.get_config().items() if k != "name" or not re.fullmatch(r"(add|zero_\w+?)_\d+", v)}


def test_the_default_has_eight_sites_between_the_convolutions_of_stages_3_and_4():
    model = build("resnet34", encoder_dropout=0.2)
    assert dropout_names(model) == [f"{unit}_relu2_dropout" for unit in DEFAULT_UNITS]
    assert model.count_params() == 24_456_154


def test_the_library_s_unet_is_what_is_built():
    ours, theirs = build("resnet34"), library_unet("resnet34", activation="sigmoid")
    assert [w.path for w in ours.weights if "add" not in w.path] == [w.path for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    np.testing.assert_array_equal(ours(IMAGES), theirs(IMAGES))


@pytest.mark.parametrize("classes", [1, 3])
def test_the_decoder_is_the_plain_one_layer_by_layer(classes):
    plain = randomise(build(classes=classes))
    dropped = build(classes=classes, encoder_dropout=0.5, spatial=True)
    dropped.set_weights(plain.get_weights())
    names = {layer.name for layer in encoder_layers(plain)}
    decoder = [layer for layer in plain.layers if layer.name not in names]
    assert len(decoder) > 30
    for layer in decoder:
        twin = dropped.get_layer(layer.name)
        assert twin.get_config() == layer.get_config()
        for ours, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


slow = pytest.mark.slow
PLACEMENTS = ["between_convs", "branch_end", "block_end", "activations", "bottleneck", "skips"]


@pytest.fixture(scope="module")
def network():
    """A network without dropout; `other` empties it."""
    return build()


@pytest.fixture
def other(network):
    """A network without dropout whose weights are all zero."""
    network.set_weights([np.zeros_like(weight) for weight in network.get_weights()])
    return network


@pytest.mark.parametrize(
    ("placement", "kind", "sites"),
    [
        pytest.param("between_convs", "element", 8, marks=slow),
        ("between_convs", "block", 8),
        ("branch_end", "path", 8),
        pytest.param("branch_end", "spatial", 8, marks=slow),
        pytest.param("block_end", "spatial", 8, marks=slow),
        pytest.param("activations", "spatial", 16, marks=slow),
        pytest.param("bottleneck", "block", 1, marks=slow),
        ("skips", "spatial", 4),
    ],
)
@pytest.mark.filterwarnings("ignore:placement='block_end'")
def test_every_placement_survives_every_way_of_saving(plain, other, placement, kind, sites, tmp_path):
    blocks = "stage*" if sites > 4 else None
    dropped = build(encoder_dropout=0.5, kind=kind, placement=placement, blocks=blocks)
    assert len(dropout_names(dropped)) == sites
    plain.save_weights(tmp_path / "plain.weights.h5")
    dropped.load_weights(tmp_path / "plain.weights.h5")
    wanted = plain(IMAGES)
    np.testing.assert_array_equal(dropped(IMAGES), wanted)
    dropped.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras")(IMAGES), wanted)
    dropped.save_weights(tmp_path / "dropped.weights.h5")
    other.load_weights(tmp_path / "dropped.weights.h5")
    np.testing.assert_array_equal(other(IMAGES), wanted)
    dropped.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(IMAGES), wanted, atol=1e-5)
    assert not np.allclose(dropped(IMAGES, training=True), other(IMAGES, training=True))


@pytest.mark.parametrize(
    ("encoder", "units", "last"),
    [("resnet18", 3, 2), pytest.param("resnet34", 8, 2, marks=slow), pytest.param("resnet50", 8, 3, marks=slow)],
)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.filterwarnings("ignore:placement='block_end'")
def test_every_placement_leaves_order_paths_and_values_of_weights(encoder, units, last, placement):
    """A changed order would be warned of, and warnings are errors here; `verify` looks at paths and values."""
    dropped = build(encoder, encoder_dropout=0.5, placement=placement, spatial=True)
    verify(remove_dropout(dropped), dropped, draws=100)
    assert [row["place"] for row in dropout_table(dropped)] == {
        "activations": ["between_convs" if i % last == last - 1 else "activations" for i in range(units * last)],
        "bottleneck": ["bottleneck"],
        "skips": ["skips"] * 4,
    }.get(placement, [placement] * units)


def test_the_whole_unet_differs_from_the_library_s_by_its_dropout_alone():
    theirs = library_unet("resnet18", activation="sigmoid")
    ours = build(encoder_dropout=0.2, kind="block")
    ours.set_weights(theirs.get_weights())
    assert len(verify(theirs, ours, draws=200)) > 10


@pytest.mark.parametrize(
    ("encoder", "units", "last_relu"),
    [
        *(("resnet18", 3, 2), ("resnet34", 8, 2), ("resnet50", 8, 3)),
        *(pytest.param("resnet101", 25, 3, marks=slow), pytest.param("resnet152", 38, 3, marks=slow)),
    ],
)
def test_every_encoder_gets_its_default_sites_before_the_last_convolution(encoder, units, last_relu):
    names = dropout_names(build(encoder, encoder_dropout=0.1))
    assert len(names) == units
    assert all(name.endswith(f"_relu{last_relu}_dropout") for name in names)


def test_between_convs_feeds_the_last_convolution_only():
    model = build(encoder_dropout=0.2, blocks="stage3_unit2")
    dropped = model.get_layer("stage3_unit2_relu2_dropout").output
    consumers = [layer.name for layer in model.layers if any(t is dropped for t in _inputs(layer))]
    # The convolution pads by a layer of its own.
    assert len(consumers) == 1 and consumers[0].startswith("zero_padding2d")
    padded = model.get_layer(consumers[0]).output
    assert [layer.name for layer in model.layers if any(t is padded for t in _inputs(layer))] == ["stage3_unit2_conv2"]


@pytest.mark.parametrize(("encoder", "last"), [("resnet34", "conv2"), ("resnet50", "conv3")])
def test_block_end_drops_the_sum_of_the_unit_and_warns(encoder, last):
    with pytest.warns(
        UserWarning, match="shifts BatchNorm's variance most: up to 2-fold at rate 0.2 and 23-fold at 0.5"
    ):
        model = build(encoder, encoder_dropout=0.2, placement="block_end", blocks="stage3_unit2")
    (name,) = dropout_names(model)
    addition = model.get_layer(name.removesuffix("_dropout"))
    assert isinstance(addition, keras.layers.Add)
    assert any(t is model.get_layer(f"stage3_unit2_{last}").output for t in addition.input)
    assert any(t is model.get_layer(name).output for t in _inputs(model.get_layer("stage3_unit3_bn1")))


def _inputs(layer):
    return [] if isinstance(layer, keras.layers.InputLayer) else keras.tree.flatten(layer.input)


def decoder_inputs(model, name):
    """Names of what the decoder's join of that stage receives."""
    return [tensor._keras_history.operation.name for tensor in model.get_layer(name).input]


@pytest.mark.parametrize(
    ("skips", "received"),
    [(None, "stage4_unit1_relu1"), ("clean", "stage4_unit1_relu1"), ("dropped", "stage4_unit1_relu1_dropout")],
)
def test_the_decoder_receives_a_site_that_is_a_skip_clean_or_dropped(skips, received):
    model = build(encoder_dropout=0.2, placement="activations", blocks="stage4_unit1", skips=skips)
    assert dropout_names(model) == ["stage4_unit1_relu1_dropout", "stage4_unit1_relu2_dropout"]
    assert received in decoder_inputs(model, "decoder_stage0_concat")
    dropped = model.get_layer("stage4_unit1_relu1_dropout").output
    consumers = {layer.name for layer in model.layers if any(t is dropped for t in _inputs(layer))}
    assert "stage4_unit1_sc" in consumers
    assert ("decoder_stage0_concat" in consumers) == (skips == "dropped")


def test_skips_drops_on_the_decoder_s_side_alone():
    model = build(encoder_dropout=0.2, placement="skips")
    assert dropout_names(model) == [
        "stage4_unit1_relu1_dropout",
        "stage3_unit1_relu1_dropout",
        "stage2_unit1_relu1_dropout",
        "relu0_dropout",
    ]
    for name in dropout_names(model):
        (consumer,) = [
            layer.name for layer in model.layers if any(t is model.get_layer(name).output for t in _inputs(layer))
        ]
        assert consumer.startswith("decoder_stage")


def test_blocks_choose_among_the_skips():
    assert dropout_names(build(encoder_dropout=0.2, placement="skips", blocks=["stage3", "relu0"])) == [
        "stage3_unit1_relu1_dropout",
        "relu0_dropout",
    ]


def test_bottleneck_is_after_the_encoder_s_last_activation():
    assert dropout_names(build(encoder_dropout=0.2, placement="bottleneck")) == ["relu1_dropout"]


@pytest.mark.parametrize(("encoder", "last"), [("resnet34", "conv2"), ("resnet50", "conv3")])
def test_branch_end_is_before_the_addition(encoder, last):
    model = build(encoder, encoder_dropout=0.2, placement="branch_end", blocks="stage3_unit2")
    assert dropout_names(model) == [f"stage3_unit2_{last}_dropout"]
    dropped = model.get_layer(dropout_names(model)[0]).output
    (consumer,) = [layer for layer in model.layers if any(t is dropped for t in _inputs(layer))]
    assert isinstance(consumer, keras.layers.Add)


@pytest.mark.parametrize("ramp", [(0.0, 0.35), np.array([0.0, 0.35])])
def test_a_ramp_rises_over_the_depth_of_the_chosen_units(ramp):
    model = build("resnet34", encoder_dropout=ramp)
    rates = [model.get_layer(name).rate for name in dropout_names(model)]
    np.testing.assert_allclose(rates, np.linspace(0.05, 0.35, 7), atol=1e-6)  # the first, at rate 0, is left out
    assert dropout_names(model)[0] == "stage3_unit2_relu2_dropout"


@pytest.mark.parametrize(
    ("blocks", "units"),
    [
        ("stage2", ["stage2_unit1", "stage2_unit2"]),
        (["stage1_unit2", "stage4"], ["stage1_unit2", "stage4_unit1", "stage4_unit2"]),
        ("stage[23]_unit1", ["stage2_unit1", "stage3_unit1"]),
        ("*_unit2", ["stage1_unit2", "stage2_unit2", "stage3_unit2", "stage4_unit2"]),
    ],
)
def test_blocks_are_stages_units_or_globs(blocks, units):
    assert dropout_names(build(encoder_dropout=0.2, blocks=blocks)) == [f"{unit}_relu2_dropout" for unit in units]


def test_a_mapping_gives_each_block_whole_its_rate():
    model = build(encoder_dropout={"stage3": 0.1, "stage4": 0.2, "stage2_unit1": 0.3, "stage1": 0})
    assert {name: model.get_layer(name).rate for name in dropout_names(model)} == {
        "stage2_unit1_relu2_dropout": 0.3,
        "stage3_unit1_relu2_dropout": 0.1,
        "stage3_unit2_relu2_dropout": 0.1,
        "stage4_unit1_relu2_dropout": 0.2,
        "stage4_unit2_relu2_dropout": 0.2,
    }


def test_rate_zero_is_the_plain_network():
    assert dropout_names(build(encoder_dropout=0.0)) == []


@pytest.mark.parametrize(
    ("policy", "classes"),
    [
        *(("mixed_float16", 1), ("mixed_bfloat16", 3)),
        *(pytest.param("mixed_float16", 3, marks=slow), pytest.param("mixed_bfloat16", 1, marks=slow)),
        *(pytest.param("float32", classes, marks=slow) for classes in (1, 3)),
    ],
)
def test_the_head_is_float32_and_compute_dtypes_survive_saving(policy, classes, tmp_path, float32_after):
    keras.config.set_dtype_policy(policy)
    model = build(classes=classes, encoder_dropout=0.2, spatial=True)
    model.save(tmp_path / "m.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    wanted = policy.removeprefix("mixed_")
    for net in (model, loaded):
        dtypes = {layer.name: layer.compute_dtype for layer in net.layers[1:]}
        head = {"final_conv", "sigmoid" if classes == 1 else "softmax"}
        assert {dtypes.pop(name) for name in head} == {"float32"}
        assert set(dtypes.values()) == {wanted}
        assert net(IMAGES).dtype == "float32"


@pytest.mark.parametrize(("classes", "name"), [(1, "sigmoid"), (3, "softmax")])
def test_the_output_is_probabilities(classes, name):
    model = build(classes=classes)
    probabilities = np.array(model(IMAGES))
    assert probabilities.shape == (2, 64, 64, classes)
    assert model.layers[-1].name == name
    assert 0 <= probabilities.min() and probabilities.max() <= 1


def test_linear_activation_gives_logits():
    probabilities, logits = build(), build(activation="linear")
    logits.set_weights(probabilities.get_weights())
    np.testing.assert_allclose(keras.ops.sigmoid(logits(IMAGES)), probabilities(IMAGES), atol=1e-6)


def test_seeded_dropout_repeats():
    first, second = (build(encoder_dropout=0.5, seed=7) for _ in range(2))
    second.set_weights(first.get_weights())
    np.testing.assert_array_equal(first(IMAGES, training=True), second(IMAGES, training=True))


def test_a_frozen_encoder_has_no_trainable_weight_and_its_batchnorm_stands_still():
    model = build(encoder_dropout=0.2, encoder_freeze=True)
    encoder = encoder_layers(model)
    assert [w.path for layer in encoder for w in layer.trainable_weights] == []
    assert all(w.path.split("/")[0].startswith(("decoder_", "final_conv")) for w in model.trainable_weights)
    before = [w for layer in encoder for w in layer.get_weights()]
    model(IMAGES, training=True)
    for old, now in zip(before, [w for layer in encoder for w in layer.get_weights()], strict=True):
        np.testing.assert_array_equal(old, now)


def test_unfreezing_gives_the_weights_back():
    model = build(encoder_freeze=True)
    set_encoder_trainable(model, True)
    assert len(model.trainable_weights) == len(build().trainable_weights)


def test_a_keras_2_weight_file_loads_by_name(plain, tmp_path):
    path = write_weight_file(tmp_path / "resnet18.h5", plain)
    model = build(encoder_weights=path, encoder_dropout=0.2)
    for layer in [layer for layer in encoder_layers(plain) if layer.weights]:
        for ours, theirs in zip(model.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_keras_model_file_serves_as_encoder_weights(plain, tmp_path):
    plain.save(tmp_path / "m.keras")
    model = build(encoder_weights=tmp_path / "m.keras", classes=3)
    np.testing.assert_array_equal(model.get_layer("conv0").get_weights()[0], plain.get_layer("conv0").get_weights()[0])


@pytest.mark.parametrize("encoder", ["resnet18", "torchvision_resnet18"])
def test_weights_that_keras_3_saved_load_by_name(encoder, tmp_path):
    # Dropout at the end of branches changes the order of layers, by which such a file numbers them.
    source = randomise(build(encoder, encoder_dropout=0.2, placement="branch_end"), seed=3)
    source.save_weights(tmp_path / "m.weights.h5")
    model = build(encoder, encoder_weights=tmp_path / "m.weights.h5", classes=3)
    layers = [layer for layer in encoder_layers(source) if layer.weights]
    assert len(layers) > 30
    for layer in layers:
        for ours, theirs in zip(model.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_that_keras_3_saved_of_another_encoder_are_refused(plain, tmp_path):
    plain.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match="has no weights for layer 'stage1_unit3_bn1'"):
        build("resnet34", encoder_weights=tmp_path / "m.weights.h5")


def test_the_momentum_of_all_batchnorms_can_be_given():
    def momenta(**options):
        layers = build(encoder_dropout=0.2, **options).layers
        return {layer.momentum for layer in layers if isinstance(layer, keras.layers.BatchNormalization)}

    assert momenta() == {0.99}
    assert momenta(bn_momentum=0.8) == {0.8}


def first_features(model, images):
    return np.array(keras.Model(model.input, model.get_layer("conv0").output)(images))


def test_six_channels_see_two_copies_of_an_rgb_image_as_the_image(plain, tmp_path):
    path = write_weight_file(tmp_path / "w.h5", plain)
    six = build(encoder_weights=path, input_shape=(None, None, 6))
    doubled = np.concatenate([IMAGES, IMAGES], axis=-1)
    np.testing.assert_allclose(first_features(six, doubled), first_features(plain, IMAGES), rtol=1e-4, atol=1e-3)


def test_four_channels_take_the_pretrained_ones_in_turn_scaled_by_three_quarters(plain, tmp_path):
    path = write_weight_file(tmp_path / "w.h5", plain)
    four = build(encoder_weights=path, input_shape=(None, None, 4))
    kernel, source = (m.get_layer("conv0").get_weights()[0] for m in (four, plain))
    np.testing.assert_allclose(kernel, source[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)
    for ours, theirs in zip(
        four.get_layer("bn_data").get_weights(), plain.get_layer("bn_data").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs[[0, 1, 2, 0]])


def test_one_channel_sees_a_grey_image_as_three_equal_channels(tmp_path):
    source = randomise(build(), seed=1)
    statistics = source.get_layer("bn_data")
    statistics.set_weights([np.full(3, w.mean()) for w in statistics.get_weights()])
    one = build(encoder_weights=write_weight_file(tmp_path / "w.h5", source), input_shape=(None, None, 1))
    grey = IMAGES[..., :1]
    wanted = first_features(source, np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(first_features(one, grey), wanted, rtol=1e-4, atol=1e-3)


def test_a_file_of_another_encoder_is_refused(plain, tmp_path):
    path = write_weight_file(tmp_path / "w.h5", plain)
    with pytest.raises(InputError, match="has no weights for layer 'stage1_unit3_bn1'"):
        build("resnet34", encoder_weights=path)


def test_a_file_that_is_no_weight_file_is_refused(tmp_path):
    path = tmp_path / "w.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match=r"w\.h5 is neither a \.keras model, its weights .* nor a Keras 2 HDF5 weight"):
        build(encoder_weights=path)


def test_a_corrupt_keras_file_is_refused(tmp_path):
    path = tmp_path / "w.keras"
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match=r"w\.keras is not a Keras model that can be loaded: it is damaged"):
        build(encoder_weights=path)


def test_a_missing_weight_file_is_named():
    with pytest.raises(FileNotFoundError, match="`encoder_weights` names no file: nowhere.h5"):
        build(encoder_weights="nowhere.h5")


def test_imagenet_weights_come_from_the_cache(plain, tmp_path, monkeypatch):
    """The real look-up, on a file of the published layout; only its published checksum is replaced."""
    import hashlib

    from segdrop.nets import weights

    cached = write_weight_file(tmp_path / "resnet18_imagenet_1000_no_top.h5", plain)
    entry = next(e for e in weights.WEIGHTS_COLLECTION if e["name"] == cached.name)
    monkeypatch.setitem(entry, "md5", hashlib.md5(cached.read_bytes()).hexdigest())
    monkeypatch.setitem(entry, "url", cached.as_uri())
    original = keras.utils.get_file
    monkeypatch.setattr(keras.utils, "get_file", lambda *a, **k: original(*a, cache_dir=tmp_path, **k))
    model = build(encoder_weights="imagenet")
    np.testing.assert_array_equal(model.get_layer("conv0").get_weights()[0], plain.get_layer("conv0").get_weights()[0])


def test_imagenet_weights_that_cannot_be_had_are_a_full_explanation(monkeypatch):
    def fail(*arguments, **options):
        raise Exception("URL fetch failure on https://github.com/...: None -- no route")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(InputError, match=r"_imagenet_1000_no_top\.h5 into .*models, or use encoder_weights=None"):
        imagenet_file("resnet18")


def test_legacy_keras_is_refused():
    code = "import segdrop; segdrop.build_unet"
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "segdrop needs Keras 3; unset TF_USE_LEGACY_KERAS" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_dropout": 1.0}, r"`encoder_dropout` must be a number in \[0, 1\), got encoder_dropout=1.0"),
        ({"bn_momentum": 1}, r"`bn_momentum` must be a number in \[0, 1\), got bn_momentum=1"),
        ({"encoder_dropout": -0.1}, r"`encoder_dropout` must be a number in \[0, 1\)"),
        ({"encoder_dropout": {"stage3": "a"}}, r"`encoder_dropout` must be a number in \[0, 1\)"),
        ({"encoder_dropout": 0.1, "blocks": "stage5"}, r"names no unit of this encoder: 'stage5'. It has stage1 \(2 u"),
        ({"encoder_dropout": {"stage9": 0.1}}, "names no unit of this encoder: 'stage9'"),
        ({"encoder_dropout": {"stage4": 0.1, "stage4_unit1": 0.2}}, "gives 'stage4_unit1' two rates: 0.1 and 0.2"),
        ({"encoder_dropout": {"stage4": 0.1}, "blocks": "stage4"}, "`blocks` must be left out"),
        ({"kind": "gauss"}, "`kind` must be one of element, spatial, block, path, got kind='gauss'"),
        ({"kind": "path"}, "needs placement='branch_end', got placement='between_convs'"),
        ({"block_size": 3}, "`block_size` belongs to kind='block'"),
        (
            {"kind": "block", "block_size": 9, "input_shape": (128, 128, 3), "encoder_dropout": 0.2},
            "at most the side of the feature map",
        ),
        ({"placement": "skips", "skips": "clean"}, "placement='skips' drops on the skips, which skips='clean' forbids"),
        ({"placement": "bottleneck", "blocks": "stage4"}, "placement='bottleneck' is one place"),
        (
            {"placement": "skips", "blocks": "stage1"},
            "names no unit of this encoder: 'stage1'. It has relu0, stage2, stage3, stage4",
        ),
        ({"encoder_dropout": (0.1, 0.2, 0.3)}, "`encoder_dropout` must be one number or two"),
        ({"encoder_dropout": 0.2, "blocks": []}, "`blocks` is empty: name a stage or unit"),
        ({"encoder_dropout": {}}, "`blocks` is empty: name a stage or unit"),
        ({"classes": True}, "`classes` must be a whole number"),
        ({"kind": "element", "spatial": True}, "contradicts kind='element'"),
        ({"placement": "everywhere"}, "`placement` must be one of between_convs, branch_end, block_end"),
        ({"skips": "dirty"}, "`skips` must be one of clean, dropped"),
        ({"encoder": "vgg17"}, "`encoder` must be one of resnet18, resnet34"),
        ({"classes": 0}, "`classes` must be a whole number of at least 1, got classes=0"),
        ({"input_shape": (100, 64, 3)}, "multiples of 32 or None"),
        ({"input_shape": (64, 64)}, r"`input_shape` must be \(height, width, channels\)"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)
