"""The engines that run a network for a prediction: the same masks by each of them."""

import json
import sys

import cv2
import keras
import numpy as np
import onnx
import pytest
from conftest import randomise, write_run
from standin import build_small_unet

import segdrop
from segdrop import InputError, VerificationError
from segdrop.files import write_json
from segdrop.inference import engines

OTHERS = ["onnxruntime", "openvino"]
RNG = np.random.default_rng(0)


def lively(**options):
    """A small network whose probabilities are of all sizes."""
    model = randomise(build_small_unet(encoder_dropout=0.5, **options))
    norm = model.get_layer("bn_data")
    norm.moving_mean.assign(norm.moving_mean * 0 + 128)
    norm.moving_variance.assign(norm.moving_variance * 0 + 60**2)
    for weight in model.weights:
        if "kernel" in weight.path:
            weight.assign(RNG.normal(0, 0.3, weight.shape))
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("engines") / "run", lively(), data="gone")


@pytest.fixture(scope="module")
def exported(run):
    return segdrop.export(run, run.parent / "network.onnx").path


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 96, 32)])
def test_an_engine_gives_what_keras_gives_for_any_number_and_size(run, engine, shape):
    images = RNG.uniform(0, 255, (*shape, 3)).astype("float32")
    expected = segdrop.load(run).probabilities(images)
    assert expected.std() > 0.05
    found = segdrop.load(run, engine=engine).probabilities(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("engine", OTHERS)
def test_the_masks_are_the_same(run, engine, tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), RNG.integers(0, 256, (150, 70, 3), np.uint8))
    for name in ("keras", engine):
        segdrop.predict(run, tmp_path / "image.png", tmp_path / name, engine=name, tile=64, overlap=32, tta="flips")
    masks = [cv2.imread(str(tmp_path / name / "image.png"), -1) for name in ("keras", engine)]
    assert 0.05 < (masks[0] > 0).mean() < 0.95
    assert (masks[0] != masks[1]).mean() < 1e-3
    assert json.loads((tmp_path / engine / "predict.json").read_text())["engine"] == engine


@pytest.mark.parametrize("window", [None, [100, 900]])
def test_an_exported_file_runs_by_openvino_whatever_its_own_bounds_are(run, tmp_path, window):
    """The file's own bounds are those of its images' values; what the network is given has been mapped to 0..255."""
    copy = write_run(tmp_path / "run", segdrop.load(run).model, data="gone")
    record = json.loads((copy / "config.json").read_text())
    intensity = {"intensity": "window", "intensity_window": window} if window else {}
    write_json(copy / "config.json", {**record, "config": {**record["config"], **intensity}})
    file = segdrop.export(copy, tmp_path / "network.onnx").path
    image = RNG.integers(0, 1000, (50, 70, 3), np.uint16)
    expected = segdrop.load(copy).predict(image)
    for engine in OTHERS:
        np.testing.assert_allclose(segdrop.load(file, engine=engine).predict(image), expected, atol=1e-5)


@pytest.mark.parametrize("engine", OTHERS)
def test_images_of_other_channels_and_several_classes(tmp_path, engine):
    names = ("background", "a", "b")
    model = lively(input_shape=(None, None, 2), classes=3)
    run = write_run(tmp_path / "run", model, class_names=names, data="gone", channels=2)
    image = RNG.integers(0, 256, (40, 50, 2), np.uint8)
    expected = segdrop.load(run).predict(image)
    np.testing.assert_allclose(segdrop.load(run, engine=engine).predict(image), expected, atol=1e-5)


def test_by_default_a_run_is_run_by_keras_and_an_exported_file_by_onnxruntime(run, exported, monkeypatch):
    def fails(*_):
        raise AssertionError("another engine")

    monkeypatch.setattr(engines, "function_of_model", fails)
    monkeypatch.setattr(engines, "function_of_file", fails)
    image = np.zeros((32, 32, 3), np.uint8)
    expected = segdrop.load(run).predict(image)
    for source, engine in ((run, "keras"), (exported, "auto"), (exported, "onnxruntime")):
        np.testing.assert_allclose(segdrop.load(source, engine=engine).predict(image), expected, atol=1e-5)


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_builds_no_network_of_keras_s_beside_its_own(run, engine, monkeypatch):
    def fails(*_):
        raise AssertionError("Keras's network")

    expected = segdrop.load(run).probabilities(np.zeros((1, 32, 32, 3), np.float32))
    for name in ("folded", "fast"):
        monkeypatch.setattr(f"segdrop.inference.network.{name}", fails)
    found = segdrop.load(run, engine=engine).probabilities(np.zeros((1, 32, 32, 3), np.float32))
    np.testing.assert_allclose(found, expected, atol=engines.TOLERANCE)
    segdrop.load(keras.saving.load_model(run / "model.keras"), engine=engine)


def test_what_an_engine_runs_says_its_shape_at_the_end(monkeypatch):
    """Without it, tf2onnx leaves an axis too many in a few files of a hundred, of networks with one channel."""
    read, files = engines.function_of_file, []

    def kept(path, engine):
        files.append(onnx.load(path))
        return read(path, engine)

    monkeypatch.setattr(engines, "function_of_file", kept)
    engines.function_of_model(lively(), "onnxruntime")
    (output,) = files[0].graph.output
    (last,) = (node for node in files[0].graph.node if output.name in node.output)
    assert last.op_type == "Reshape" and len(output.type.tensor_type.shape.dim) == 4


def test_openvino_opens_an_exported_file_without_onnxruntime(exported, monkeypatch):
    def fails(*_):
        raise AssertionError("onnxruntime")

    for module in ("onnx", "engines"):
        monkeypatch.setattr(f"segdrop.inference.{module}.onnx_session", fails)
    assert segdrop.load(exported, engine="openvino").channels == 1


@pytest.mark.parametrize("engine", OTHERS)
def test_a_file_that_is_none_is_refused_by_either_engine(exported, tmp_path, engine):
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cut\.onnx is not an ONNX file that can be read; export it again"):
        segdrop.load(tmp_path / "cut.onnx", engine=engine)


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("text", ["image", "class_names", "segdrop", "Conv"])
def test_a_file_whose_text_is_not_utf_8_is_refused_by_either_engine(exported, tmp_path, engine, text):
    content = exported.read_bytes()
    assert text.encode() in content
    (tmp_path / "broken.onnx").write_bytes(content.replace(text.encode(), b"\xcb" * len(text)))
    with pytest.raises(InputError, match=r"broken\.onnx "):
        segdrop.load(tmp_path / "broken.onnx", engine=engine)


def test_an_engine_that_gives_something_else_is_not_used(run, monkeypatch):
    """Nor one that gives the right values in another shape, which a comparison would broadcast away."""
    right = segdrop.load(run).probabilities
    zeros, with_an_axis = lambda images: 0 * right(images), lambda images: right(images)[None]
    for wrong, said in ((zeros, "by 1 from"), (with_an_axis, "by inf from")):
        monkeypatch.setattr(engines, "function_of_file", lambda *_, wrong=wrong: wrong)
        with pytest.raises(VerificationError, match=f"^onnxruntime gives .* that differ {said}"):
            segdrop.load(run, engine="onnxruntime")


def test_what_cannot_be_done_is_refused_in_one_line(run, exported, tmp_path, monkeypatch):
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="^`engine` must be one of auto, keras, onnxruntime, openvino, got engine='x'"):
        segdrop.load(run, engine="x")
    with pytest.raises(InputError, match="^`engine` keras runs a run's network; .* is an ONNX file"):
        segdrop.load(exported, engine="keras")
    with pytest.raises(InputError, match="^`engine` openvino must be given to segdrop.load for a network"):
        segdrop.predict(segdrop.load(run), image, tmp_path / "out", engine="openvino")
    with pytest.raises(InputError, match="^`mc_samples` needs engine='keras', .* got 'openvino'"):
        segdrop.predict(run, image, tmp_path / "out", engine="openvino", mc_samples=3)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"^`engine` openvino needs openvino: `pip install \"segdrop\[openvino\]\"`"):
        segdrop.load(run, engine="openvino")
