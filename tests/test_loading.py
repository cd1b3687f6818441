"""load: one call gives what is needed to use a trained network elsewhere."""

import json
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import brightness_model, randomise, write_run
from standin import build_small_unet

import segdrop
from segdrop import InputError
from segdrop.layers import AdjustableDropout, DropBlock2D
from segdrop.nets.stored import load_model

RNG = np.random.default_rng(0)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", brightness_model(), class_names=("background", "nerve"))


def test_a_network_comes_with_its_classes_threshold_and_preprocessing(run):
    network = segdrop.load(run)
    assert network.class_names == ("background", "nerve")
    assert (network.threshold, network.spacing, network.intensity.rule) == (0.5, None, "dtype")
    assert isinstance(network.model, keras.Model)


@pytest.mark.parametrize("size", [(5, 7), (64, 96), (130, 70)])
def test_images_of_any_size_are_predicted_in_their_size(run, size):
    network = segdrop.load(run)
    image = RNG.integers(0, 256, size, np.uint8)
    probabilities = network.predict(image, tile=64, overlap=32)
    assert probabilities.shape == (*size, 1) and probabilities.dtype == np.float32
    np.testing.assert_array_equal(network.labels(probabilities), image > 128)


def test_preprocessing_follows_the_run_s_intensity_rule(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(), intensity="window", intensity_window=(-100, 300))
    prepared = segdrop.load(run).preprocess(np.array([[-200, -100, 100, 300, 400]], np.int16))
    assert prepared.shape == (1, 5, 3) and prepared.dtype == np.float32
    np.testing.assert_allclose(prepared[0, :, 0], [0, 0, 127.5, 255, 255])


def test_sixteen_bits_are_scaled_by_their_range(run):
    prepared = segdrop.load(run).preprocess(np.array([[0, 65535, 32768]], np.uint16))
    np.testing.assert_allclose(prepared[0, :, 0], [0, 255, 127.502], atol=1e-3)


def test_float32_computes_exactly_what_mixed_precision_rounds(tmp_path, float32_after):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = randomise(build_small_unet(encoder_dropout=0.2))
    keras.config.set_dtype_policy("float32")
    run = write_run(tmp_path / "run", model)
    exact = randomise(build_small_unet(encoder_dropout=0.2))
    images = RNG.uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    truth = exact.predict_on_batch(images)
    np.testing.assert_allclose(segdrop.load(run, precision="float32").probabilities(images), truth, atol=1e-5)
    assert np.abs(segdrop.load(run).probabilities(images) - truth).max() > 1e-4


def test_layers_of_segdrop_are_known_in_a_program_that_imports_nothing_else(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = AdjustableDropout(0.2, name="drop")(inputs)
    outputs = keras.layers.Conv2D(1, 1, activation="sigmoid")(DropBlock2D(0.1, 3, name="block")(x))
    run = write_run(tmp_path / "run", keras.Model(inputs, outputs))
    code = f"import segdrop; print([layer.name for layer in segdrop.load({str(run)!r}).model.layers])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'drop', 'block'" in done.stdout


def test_an_image_of_the_wrong_shape_is_an_error(run):
    with pytest.raises(InputError, match=r"`image` must have the shape \(H, W\) or \(H, W, 3\), got \(4, 4, 2\)"):
        segdrop.load(run).predict(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(InputError, match="`precision` must be stored or float32"):
        segdrop.load(run, precision="half")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 4), np.uint8), r"must have the shape \(H, W\) or \(H, W, 3\), got \(0, 4\)"),
        (np.zeros((4, 4), bool), "must hold whole or floating-point numbers, got bool"),
        (np.full((4, 4), np.nan), "holds values that are not finite"),
        (np.zeros((4, 4), np.int64), "whose type tells no range"),
    ],
)
def test_values_that_are_no_image_are_an_error(run, image, message):
    with pytest.raises(InputError, match=message):
        segdrop.load(run).predict(image)


@pytest.mark.parametrize("bounds", [(50, 100), [50.0, 100.0], np.array([50, 100])])
def test_bounds_become_0_and_255(run, bounds):
    prepared = segdrop.load(run).preprocess(np.array([[0, 50, 75, 100]], np.uint8), bounds=bounds)
    np.testing.assert_allclose(prepared[0, :, 0], [0, 0, 127.5, 255])


@pytest.mark.parametrize("bounds", [(255, 0), (np.nan, np.nan), (0, np.inf), "ab", 5, (1, 2, 3), [[0], [1, 2]]])
def test_bounds_that_are_not_two_values_are_an_error(run, bounds):
    with pytest.raises(InputError, match=r"`bounds` must be the two values that become 0 and 255, .*, got bounds="):
        segdrop.load(run).predict(np.zeros((5, 7), np.uint8), bounds=bounds)


@pytest.mark.parametrize("probabilities", [None, 0.5, np.zeros((5, 7)), np.zeros((5, 7, 3)), "a"])
def test_probabilities_of_another_shape_have_no_labels(run, probabilities):
    with pytest.raises(InputError, match=r"`probabilities` must be numbers of the shape \(..., H, W, 1\), got"):
        segdrop.load(run).labels(probabilities)


def test_a_run_whose_record_does_not_fit_its_network_is_an_error(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(), class_names=("a", "b", "c"))
    with pytest.raises(InputError, match="has a network with 1 output channels and 3 class names"):
        segdrop.load(run)
    fixed = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Conv2D(1, 1)])
    with pytest.raises(InputError, match="not for RGB images of any size"):
        segdrop.load(write_run(tmp_path / "fixed", fixed))


def test_what_is_no_run_is_an_error(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="The run does not exist"):
        segdrop.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a run of segdrop"):
        segdrop.load(tmp_path)
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"must be a run's folder, or an \.onnx or \.keras file"):
        segdrop.load(tmp_path / "model.h5")
    (run / "model.keras").write_bytes(b"PK not a model")
    with pytest.raises(InputError, match=r"model\.keras is not a Keras model that can be loaded"):
        segdrop.load(run)
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"has no model\.keras yet"):
        segdrop.load(run)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("99.1.0", f"was written by Keras 99.1.0, and cannot be read by this older one, {keras.__version__}; install"),
        ("3.0.0", "is not a Keras model that can be loaded"),
        (7, "is not a Keras model that can be loaded"),
    ],
)
def test_a_model_of_a_newer_keras_that_this_one_cannot_read_says_so(written, told, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": written}))
        file.writestr(
            "config.json", json.dumps({"module": "keras.layers", "class_name": "ReLU", "config": {"not_yet": 1}})
        )
    with pytest.raises(InputError, match=re.escape(told)):
        load_model(tmp_path / "model.keras")


def test_a_model_file_whose_directory_is_damaged_is_one_line(run):
    content = bytearray((run / "model.keras").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 207  # the version of ZIP that it needs
    (run / "model.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.keras is not a Keras model that can be loaded: .*20\.7"):
        load_model(run / "model.keras")


def test_code_in_a_model_file_is_refused_and_not_run(run, tmp_path):
    inputs = keras.Input((None, None, 3))
    witness = str(tmp_path / "witness")
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: (open(witness, "w").close(), x)[1])(inputs))
    (tmp_path / "witness").unlink(missing_ok=True)
    model.save(run / "model.keras")
    with pytest.raises(InputError, match=r"model\.keras holds code \(a Lambda layer\), which is never run"):
        load_model(run / "model.keras")
    assert not (tmp_path / "witness").exists()


def own_model(channels=1, *, inputs=3, activation=None, input_shape=None):
    model = build_small_unet(classes=channels, encoder_dropout=0.3, input_shape=input_shape or (None, None, inputs))
    return randomise(model)


@pytest.mark.parametrize(
    ("channels", "names"),
    [(1, ("background", "foreground")), (3, ("background", "class 1", "class 2"))],
)
def test_a_model_of_ones_own_needs_no_run(channels, names, tmp_path):
    model = own_model(channels)
    model.save(tmp_path / "own.keras")
    image = RNG.integers(0, 256, (64, 96, 3), np.uint8)
    wanted = model.predict_on_batch(image[None].astype("float32"))[0]
    for network in (segdrop.load(model), segdrop.load(tmp_path / "own.keras")):
        assert (network.class_names, network.channels) == (names, channels)
        np.testing.assert_allclose(network.predict(image), wanted, atol=1e-6)


def test_uncertainty_and_files_are_predicted_with_a_model_of_ones_own(tmp_path):
    model = own_model()
    image = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    unsure = segdrop.predict_uncertainty(model, image, samples=4)
    sampled = segdrop.monte_carlo(model)
    assert unsure.mutual_information.max() > 0
    assert np.std([sampled.predict_on_batch(image[None].astype("float32")) for _ in range(4)], axis=0).max() > 0
    keras.utils.save_img(tmp_path / "image.png", image, scale=False)
    done = segdrop.predict(model, tmp_path / "image.png", tmp_path / "out", probabilities="npz")
    np.testing.assert_array_equal(
        np.load(done.out / "image_probabilities.npz")["probabilities"][0],
        segdrop.load(model).predict(image)[..., 0].astype(np.float16),
    )
    again = segdrop.predict(model, tmp_path / "image.png", tmp_path / "out", probabilities="npz", resume=True)
    assert again.failed == 0
    other = randomise(own_model(), seed=5)
    with pytest.raises(InputError, match="`runs` is"):
        segdrop.predict(other, tmp_path / "image.png", tmp_path / "out", probabilities="npz", resume=True)


def test_a_model_that_cannot_take_any_image_is_an_error():
    with pytest.raises(
        InputError, match=r"is for \(None, 64, 64, 3\) alone; build it with input_shape=\(None, None, 3\)"
    ):
        segdrop.load(own_model(input_shape=(64, 64, 3)))
    model = own_model()
    with pytest.raises(InputError, match="ends in 'final_conv', whose values are not probabilities"):
        segdrop.load(keras.Model(model.input, model.get_layer("final_conv").output))
    with pytest.raises(InputError, match="must map one image to one map"):
        segdrop.load(keras.Model(model.input, [model.output, model.output]))
