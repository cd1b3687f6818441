"""export: what onnxruntime and TensorFlow make of the written files, against the network in Keras."""

import gc
import json
import re
import sys
import weakref

import conftest
import cv2
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import tifffile
from conftest import randomise

import segdrop
from segdrop import InputError, TrainConfig, VerificationError, __version__, build_unet
from segdrop.data.opening import open_dataset
from segdrop.files import write_csv, write_json
from segdrop.inference import export as exporting
from segdrop.inference.export import export
from segdrop.inference.onnx import _garbage_collected_soon, open_onnx
from segdrop.inference.predict import predict
from segdrop.nets.stored import load_model
from segdrop.surgery.rebuild import in_float32, rebuild

UNET = {"encoder_weights": None, "encoder_dropout": 0.2, "spatial": True}
RNG = np.random.default_rng(0)


def small_network(classes=1):
    """Two convolutions, normalised and halved in size between them; with dropout."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.BatchNormalization(name="bn_data")(inputs)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = keras.layers.SpatialDropout2D(0.5)(x)
    x = keras.layers.UpSampling2D()(keras.layers.MaxPooling2D()(x))
    x = keras.layers.Conv2D(classes, 1, dtype="float32")(x)
    outputs = keras.layers.Activation("sigmoid" if classes == 1 else "softmax", dtype="float32")(x)
    return settled(keras.Model(inputs, outputs))


def settled(model):
    """Random weights with which probabilities are all over 0..1, and float32's rounding stays small.

    With `randomise` alone the logits of a deep network are huge, or all the same; and deep networks with random weights
    magnify differences, unless most activations are beyond the bend of ReLU.
    """
    randomise(model)
    batch = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        changes = {"gamma": lambda w: 0.3 * w, "beta": lambda w: 1 + w}
        layer.set_weights([changes.get(w.name, lambda w: w)(w.numpy()) for w in layer.weights])
        layer.momentum = 0.0
    model(batch, training=True)
    for layer in norms:
        layer.momentum = 0.99
    last = [layer for layer in model.layers if layer.weights][-1]
    logits = keras.ops.convert_to_numpy(keras.Model(model.input, last.output)(batch))
    mean, spread = logits.mean(axis=(0, 1, 2)), logits.std(axis=(0, 1, 2))
    kernel, bias = last.get_weights()
    last.set_weights([2 * kernel / spread, 2 * (bias - mean) / spread])
    return model


def under(policy, make):
    keras.config.set_dtype_policy(policy)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


def write_run(folder, model, data, class_names=("background", "cell"), **options):
    folder.mkdir()
    model.save(folder / "model.keras")
    dataset = open_dataset(data)
    config = {**TrainConfig.from_json({"data": str(data), "run_dir": str(folder)}).to_json(), **options}
    record = {"config": config, "classes": model.output_shape[-1], "class_names": class_names}
    write_json(folder / "config.json", record)
    write_csv(folder / "split.csv", [{"id": i, "split": s} for i, s in zip(dataset.ids, dataset.splits, strict=True)])
    return folder


def runs(folder, model, **fields):
    """A run whose data set is gone; `values` are the record's, the rest the configuration's."""
    values = fields.pop("values", None)
    run = conftest.write_run(folder, model, data=str(folder / "gone"), **fields)
    write_json(run / "config.json", {**json.loads((run / "config.json").read_text()), "values": values})
    return run


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory, cells):
    """The ONNX file of a dropped-out resnet18 U-Net in bfloat16, and the same network plain, built in float32."""
    home = tmp_path_factory.mktemp("unet")
    model = under("mixed_bfloat16", lambda: settled(build_unet("resnet18", **UNET)))
    write_run(home / "run", model, cells)
    plain = build_unet("resnet18", encoder_weights=None)
    plain.set_weights(model.get_weights())
    return plain, export(home / "run", home / "network.onnx")


@pytest.fixture
def run(tmp_path, cells):
    """The run of a small network in float16."""
    return write_run(tmp_path / "run", under("mixed_float16", small_network), cells)


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory, cells):
    """A small network with three classes, trained in float16, and its ONNX file."""
    home = tmp_path_factory.mktemp("small")
    model = under("mixed_float16", lambda: small_network(3))
    write_run(home / "run", model, cells, ("background", "cell", "debris"))
    return in_float32(model), export(home / "run", home / "network.onnx", opset=18)


def images(count, height, width):
    return RNG.uniform(0, 255, (count, height, width, 3)).astype("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_float32_gives_the_network_that_was_built_in_float32(policy):
    expected, model = small_network(), under(policy, small_network)
    model.set_weights(expected.get_weights())
    result = in_float32(model)
    assert {layer.compute_dtype for layer in result.layers} == {"float32"}
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32", policy}  # it is left as it is
    for ours, theirs in zip(result.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    batch = images(2, 64, 32)
    np.testing.assert_array_equal(result.predict_on_batch(batch), expected.predict_on_batch(batch))


@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 32, 128), (2, 160, 32)])
def test_the_onnx_file_of_a_unet_gives_what_keras_gives_in_float32_without_dropout(unet_run, shape):
    plain, result = unet_run
    batch = images(*shape)
    expected = plain.predict_on_batch(batch)
    found = open_onnx(result.path)[1](batch)
    assert expected.std() > 0.1
    assert found.shape == (*shape, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_result_says_what_was_measured_on_what(unet_run):
    result = unet_run[1]
    assert result.path.is_file()
    assert 0 < result.difference <= 1e-4
    assert result.images == "2 image(s) of the run's validation split"
    assert {path.name for path in result.path.parent.iterdir()} == {"run", "network.onnx"}


def test_the_metadata_tell_how_images_were_prepared(unet_run):
    (entry,) = (entry for entry in onnx.load(unet_run[1].path).metadata_props if entry.key == "segdrop")
    assert json.loads(entry.value) == {
        "format": 2,
        "segdrop": __version__,
        "class_names": ["background", "cell"],
        "multilabel": False,
        "intensity": {"rule": "dtype", "percentiles": [0.5, 99.5], "window": None, "by_channel": False},
        "values": None,
        "spacing": None,
        "scale": 1.0,
        "slice_axis": 2,
        "channels": None,
        "context_slices": 0,
        "tile": 1024,
        "multiple": 1,
        "temperature": 1.0,
        "threshold": 0.5,
    }


def test_the_onnx_file_names_its_inputs_and_free_dimensions(small_onnx):
    graph = onnx.load(small_onnx[1].path).graph
    shapes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.input, *graph.output)
    }
    assert shapes == {
        "image": ["N", "H", "W", 3],
        "low": ["N", 1],
        "high": ["N", 1],
        "probabilities": ["N", "H", "W", 3],
    }


def test_classes_and_opset_are_those_asked_for(small_onnx):
    network, result = small_onnx
    metadata, probabilities = open_onnx(result.path)
    batch = images(2, 32, 64)
    found = probabilities(batch)
    assert metadata.class_names == ("background", "cell", "debris")
    assert onnx.load(result.path).opset_import[0].version == 18
    assert found.std(axis=(0, 1, 2)).min() > 0.1
    np.testing.assert_allclose(found, network.predict_on_batch(batch), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


BOUNDS = {
    "8 bits": (0, 255),
    "16 bits": (0, 65535),
    "a CT's window, which clips": (-160, 240),
    "a probability map": (0, 1),
    "an empty range": (7, 7),
    "bounds in the wrong order": (9, 2),
}


def test_each_image_is_mapped_from_bounds_of_its_own(small_onnx):
    network, result = small_onnx
    low, high = np.float32(list(BOUNDS.values())).T
    middle, span = ((low + high) / 2)[:, None, None, None], np.abs(high - low)[:, None, None, None]
    batch = (middle + span * RNG.uniform(-0.7, 0.7, (len(low), 32, 32, 3))).astype("float32")
    scaled = np.zeros(batch.shape)
    for i in range(4):  # of an empty range nothing is left
        scaled[i] = (np.clip(batch[i].astype(float), low[i], high[i]) - low[i]) / (high[i] - low[i]) * 255
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": batch, "low": low[:, None], "high": high[:, None]})
    np.testing.assert_allclose(found, network.predict_on_batch(np.float32(scaled)), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 50, 70), (2, 33, 64), (1, 1, 7), (2, 17, 200)])
def test_images_of_any_size_are_reflected_to_multiples_of_32_and_cut_back(small_onnx, shape):
    network, result = small_onnx
    batch = images(*shape)
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": batch})  # low and high are 0 and 255 then
    whole = np.stack(
        [cv2.copyMakeBorder(i, 0, -shape[1] % 32, 0, -shape[2] % 32, cv2.BORDER_REFLECT_101) for i in batch]
    )
    np.testing.assert_allclose(found, network.predict_on_batch(whole)[:, : shape[1], : shape[2]], atol=1e-5)


RULES = {
    "8 bits": (np.uint8, 255, {"intensity": "dtype"}),
    "16 bits": (np.uint16, 65535, {"intensity": "dtype"}),
    "percentiles": (np.uint16, 3000, {"intensity": "percentiles"}),
    "window": (np.uint16, 3000, {"intensity": "window", "intensity_window": [500, 2000]}),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_recipe_in_the_metadata_gives_what_the_run_predicts(tmp_path, monkeypatch, rule):
    dtype, top, options = RULES[rule]
    values = {"stored": [0, top], "mapped": [0, 255], "means": [0, 255], "deviations": [0, 255]}
    run = runs(tmp_path / "run", small_network(), values=values, **options)
    export(run, tmp_path / "model.onnx")
    image = RNG.integers(0, top, (50, 70), dtype)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    code = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map["recipe"]
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    network = segdrop.load(run)
    expected = network.predict(image)
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-5)
    np.testing.assert_array_equal(names["labels"], network.labels(expected))
    assert len(code.splitlines()) == (6 if rule == "percentiles" else 5)


def test_the_recipe_for_channels_has_bounds_for_each(tmp_path, monkeypatch):
    network = keras.Sequential(
        [keras.Input((None, None, 2)), keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    run = runs(tmp_path / "run", network, channels=2, intensity="percentiles")
    export(run, tmp_path / "model.onnx")
    image = RNG.integers(0, 3000, (40, 50, 2), np.uint16) * np.uint16([1, 9])
    np.save(tmp_path / "image.npy", image)
    monkeypatch.chdir(tmp_path)
    exec(onnx.load("model.onnx").metadata_props[1].value, names := {})
    np.testing.assert_allclose(names["probabilities"], segdrop.load(run).predict(image), atol=1e-5)


def test_images_of_8_bits_reach_the_network_unchanged(small_onnx):
    network = small_onnx[0]
    batch = np.float32(RNG.integers(0, 256, (1, 32, 32, 3)))
    model, _ = exporting._for_any_image(network, 1)
    found = model.predict_on_batch([batch, np.zeros((1, 1)), np.full((1, 1), 255)])["probabilities"]
    np.testing.assert_array_equal(found, network.predict_on_batch(batch))


def test_a_saved_model_gives_what_keras_gives(run, tmp_path):
    result = export(run, tmp_path / "network", format="saved_model")
    loaded = tf.saved_model.load(result.path).signatures["serving_default"]
    network = in_float32(load_model(run / "model.keras"))
    for shape in ((1, 32, 64), (3, 64, 32)):
        batch = images(*shape)
        bounds = {"low": tf.zeros((len(batch), 1)), "high": tf.fill((len(batch), 1), 255.0)}
        found = loaded(image=tf.constant(batch), **bounds)["probabilities"]
        np.testing.assert_allclose(found, network.predict_on_batch(batch), atol=1e-6)


def test_a_saved_model_has_the_metadata_beside_it(tmp_path, cells):
    options = {"intensity": "window", "intensity_window": [-160, 240], "spacing": 0.5, "slice_axis": 0}
    run = write_run(tmp_path / "run", small_network(), cells)
    record = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**record, "config": {**record["config"], **options}})
    export(run, tmp_path / "network", format="saved_model")
    metadata = json.loads((tmp_path / "network" / "assets.extra" / "segdrop.json").read_text())
    assert metadata["class_names"] == ["background", "cell"]
    rule = {"rule": "window", "percentiles": [0.5, 99.5], "window": [-160, 240], "by_channel": False}
    assert metadata["intensity"] == rule
    assert (metadata["spacing"], metadata["slice_axis"]) == (0.5, 0)


def test_a_run_whose_data_is_gone_is_checked_on_drawn_images(run, tmp_path):
    record = json.loads((run / "config.json").read_text())
    record["config"]["data"] = str(tmp_path / "gone")
    write_json(run / "config.json", record)
    result = export(run, tmp_path / "network", format="saved_model")
    assert result.images == "4 drawn images, for want of validation images of the run's that can be read"


@pytest.mark.parametrize("format", ["onnx", "saved_model"])
def test_an_export_that_gives_something_else_fails_and_leaves_nothing(run, tmp_path, monkeypatch, format):
    with_bounds = exporting._for_any_image
    monkeypatch.setattr(
        exporting, "_for_any_image", lambda network, n: with_bounds(randomise(rebuild(network), seed=1), n)
    )
    with pytest.raises(
        VerificationError, match=r"differs from the run's by 0\.\d+ on 2 image.* more than 0\.0001; .* not"
    ):
        export(run, tmp_path / ("network.onnx" if format == "onnx" else "network"), format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_that_gives_nan_in_one_batch_fails(run, tmp_path, monkeypatch):
    opened = exporting._saved_model_function

    def sometimes_nan(path):
        function = opened(path)
        return lambda batch, *bounds: function(batch, *bounds) * (np.nan if len(batch) == 4 else 1)

    monkeypatch.setattr(exporting, "_saved_model_function", sometimes_nan)
    with pytest.raises(VerificationError, match="by nan"):
        export(run, tmp_path / "network", format="saved_model")
    assert not (tmp_path / "network").exists()


def test_an_export_of_another_shape_fails_though_its_values_are_right(run, tmp_path, monkeypatch):
    """An axis of length 1 in front would be broadcast away by a comparison of values alone."""
    original = exporting._saved_model_function

    def with_an_axis(path):
        function = original(path)
        return lambda *arguments: function(*arguments)[None]

    monkeypatch.setattr(exporting, "_saved_model_function", with_an_axis)
    with pytest.raises(VerificationError, match="by inf"):
        export(run, tmp_path / "network", format="saved_model")
    assert not (tmp_path / "network").exists()


def test_small_images_are_continued_by_reflection_and_large_ones_cut_in_the_middle():
    image = np.arange(6 * 3, dtype="float32").reshape(3, 6, 1).repeat(3, axis=2)
    found = exporting._fitted(image, 5, 4)[..., 0]
    np.testing.assert_array_equal(found[:, 0], [1, 7, 13, 7, 1])
    np.testing.assert_array_equal(found[0], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "`format` must be onnx or saved_model, got format='tflite'"),
        ({"format": "saved_model", "opset": 17}, "`opset` belongs to format='onnx'"),
        ({"opset": 19}, "`opset` must be 15 to 18, got opset=19"),
        ({"opset": 9}, "`opset` must be a whole number of at least 15, got opset=9"),
    ],
)
def test_wrong_arguments_are_errors(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export(run, tmp_path / "network", **options)


def test_an_existing_file_is_never_replaced(run, tmp_path):
    (tmp_path / "network.onnx").write_text("mine")
    with pytest.raises(FileExistsError, match=r"`out` exists: .*network\.onnx; choose another name or delete it"):
        export(run, tmp_path / "network.onnx")
    assert (tmp_path / "network.onnx").read_text() == "mine"


def test_a_folder_that_is_missing_is_an_error(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="in a folder that does not exist: .*exports; make it first"):
        export(run, tmp_path / "exports" / "network.onnx")


def test_a_run_without_a_model_is_an_error(run, tmp_path):
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"run has no model\.keras yet: no epoch has ended"):
        export(run, tmp_path / "network.onnx")


def test_a_file_that_is_no_network_is_an_error(run, tmp_path):
    (run / "model.keras").write_bytes(b"PK not a zip file")
    with pytest.raises(InputError, match=r"model\.keras is not a Keras model that can be loaded: "):
        export(run, tmp_path / "network.onnx")


def test_a_network_with_code_in_it_is_refused_and_the_code_not_run(run, tmp_path):
    inputs = keras.Input((None, None, 3))
    code = keras.layers.Lambda(lambda x: x / 2, name="code")
    keras.Model(inputs, keras.layers.Conv2D(1, 1)(code(inputs))).save(run / "model.keras")
    with pytest.raises(InputError, match=r"model\.keras .*Lambda"):
        export(run, tmp_path / "network.onnx")


def test_a_network_for_one_size_is_an_error(tmp_path, cells):
    inputs = keras.Input((64, 64, 3))
    run = write_run(tmp_path / "run", keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs)), cells)
    with pytest.raises(InputError, match=r"has a network for \(None, 64, 64, 3\), not for RGB images of any size"):
        export(run, tmp_path / "network.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "tf2onnx"])
def test_a_missing_package_is_an_error(run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'ONNX needs {package}: `pip install "segdrop\[onnx\]"`'):
        export(run, tmp_path / "network.onnx")


def test_while_a_file_is_written_garbage_is_collected_and_afterwards_as_before(monkeypatch):
    """Each of tf2onnx's passes leaves a copy of all weights in circles of references."""

    class Copy:
        def __init__(self):
            self.itself, self.nodes = self, [[] for _ in range(3_000)]
            alive.add(self)

    others = [[] for _ in range(1_000_000)]  # the more there are, the more seldom Python looks
    gc.collect()
    alive, most, before = weakref.WeakSet(), 0, gc.get_threshold()
    with _garbage_collected_soon():
        for _ in range(40):
            copy = Copy()
            gc.collect(1)  # it has been looked at and found in use
            del copy
            most = max(most, len(alive))
    assert others and most < 10 and gc.get_threshold() == before and not gc.get_freeze_count()


def test_opening_without_onnxruntime_is_an_error(small_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="ONNX needs onnxruntime"):
        open_onnx(small_onnx[1].path)


def test_opening_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no ONNX file: .*network\.onnx"):
        open_onnx(tmp_path / "network.onnx")


@pytest.mark.parametrize("share", [0, 0.001, 0.6])
def test_an_empty_or_truncated_file_is_an_error(small_onnx, tmp_path, share):
    content = small_onnx[1].path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"cut\.onnx is not an ONNX file that can be read; export it again"):
        open_onnx(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "was not written by segdrop: it has no segdrop metadata"),
        ({"segdrop": "not JSON"}, "was not written by segdrop"),
        ({"segdrop": "[1]"}, "was not written by segdrop"),
        (
            {"segdrop": '{"format": 3, "segdrop": "9.0"}'},
            r"was written by segdrop 9\.0, which this version cannot read",
        ),
    ],
)
def test_another_onnx_file_is_an_error(tmp_path, metadata, message):
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=message):
        open_onnx(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": "2"}, "`scale` should be a valid number, got '2'"),
        ({"scale": 0.0}, "`scale` must be in (0, 4], got scale=0.0"),
        ({"spacing": -1.0}, "`spacing` must be a positive number of millimetres"),
        ({"slice_axis": 3}, "`slice_axis` must be 0, 1 or 2"),
        ({"threshold": None}, "`threshold` should be a valid number, got None"),
        ({"class_names": 5}, "`class_names` should be a valid"),
        ({"values": {"stored": [0, 1]}}, "lacks `values.mapped`"),
        ({"intensity": {"rule": "dtype", "percentiles": [5, 101]}}, "`percentiles` must rise within [0, 100]"),
        ({"intensity": {"rule": "window", "window": [9, 9]}}, "`window` must rise from low to high"),
        ({"intensity": {"rule": "guess"}}, "`intensity.rule` should be "),
        ({"class_names": ["a", "b", "c", "d"]}, "is not a complete export of segdrop"),
    ],
)
def test_metadata_that_do_not_fit_are_named(small_onnx, tmp_path, change, message):
    model = onnx.load(small_onnx[1].path)
    for entry in model.metadata_props:
        if entry.key == "segdrop":
            entry.value = json.dumps(json.loads(entry.value) | change)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=rf"other\.onnx .*{re.escape(message)}.*; export the run again\."):
        segdrop.load(tmp_path / "other.onnx")


def test_an_exported_file_predicts_images_like_its_run(small_onnx, tmp_path):
    _, result = small_onnx
    run, folder = result.path.parent / "run", tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), images(1, 90, 70)[0].astype(np.uint8))
    for name, trained in (("keras", run), ("onnx", result.path)):
        predict(trained, folder, tmp_path / name, precision="float32", tile=64, overlap=32, probabilities="tiff")
    found, expected = (tifffile.imread(tmp_path / name / "a_probabilities.tif") for name in ("onnx", "keras"))
    assert found.shape == (3, 90, 70)
    np.testing.assert_allclose(found.astype(float), expected, rtol=0, atol=2e-3)  # float16
    with pytest.raises(InputError, match="has no dropout any more; draw `mc_samples` from the run itself"):
        predict(result.path, folder, tmp_path / "sampled", mc_samples=2)


def test_export_is_a_function_after_its_module_is_imported():
    assert callable(segdrop.export) and callable(segdrop.export) and callable(segdrop.report)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "saved_model"])
def test_an_encoder_of_torchvision_s_is_exported_with_its_normalisation(tmp_path, cells, format):
    model = settled(build_unet("torchvision_resnet18", encoder_weights=None, encoder_dropout=0.2))
    run = write_run(tmp_path / "run", model, cells)
    assert export(run, tmp_path / ("network.onnx" if format == "onnx" else "network"), format=format).difference < 1e-4
