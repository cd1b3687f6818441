"""Temperature scaling: probabilities of a run, made true on its validation images."""

import json

import keras
import numpy as np
import pytest
from conftest import brightness_model, randomise, tiny_training, write_pairs, write_run
from scipy import special
from standin import build_small_unet

import segdrop
from segdrop.conventions import IGNORED
from segdrop.data.augment import load_augmentation
from segdrop.data.opening import open_dataset
from segdrop.data.splits import split_dataset
from segdrop.folders.run import write_split
from segdrop.nets.temperature import TemperedProbabilities
from segdrop.scoring.counts import to_labels
from segdrop.scoring.temperature import fit_temperature, sample_pixels, tempered
from segdrop.training.finishing import finish
from segdrop.training.samples import Samples

RNG = np.random.default_rng(0)


def drawn(classes, temperature, pixels=100_000):
    """Logits, and truths that are drawn as if these were divided by a temperature."""
    logits = RNG.normal(0, 3, (pixels, classes))
    true = special.expit(logits / temperature) if classes == 1 else special.softmax(logits / temperature, axis=1)
    if classes == 1:
        return logits, (RNG.random(pixels) < true[:, 0]).astype(np.uint8)
    return logits, (true.cumsum(axis=1) < RNG.random((pixels, 1))).sum(axis=1).astype(np.uint8)


def probabilities_of(logits):
    return (special.expit(logits) if logits.shape[-1] == 1 else special.softmax(logits, axis=-1)).astype(np.float32)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_that_the_truth_was_drawn_at_is_found(classes, temperature):
    logits, truth = drawn(classes, temperature)
    fitted = fit_temperature(probabilities_of(logits), truth)
    assert fitted.value == pytest.approx(temperature, rel=0.03)
    assert fitted.pixels == len(truth)
    if classes > 1:
        after = -special.log_softmax(logits / fitted.value, axis=1)[np.arange(len(truth)), truth].mean()
        assert fitted.nll_after == pytest.approx(after, rel=1e-3)
        assert fitted.nll_after < fitted.nll_before


@pytest.mark.parametrize("classes", [1, 3])
def test_logits_are_divided_and_the_layer_does_the_same(classes):
    logits = RNG.normal(0, 3, (4, 5, classes))
    p = probabilities_of(logits)
    np.testing.assert_allclose(tempered(p, 2.5), probabilities_of(logits / 2.5), atol=1e-5)
    np.testing.assert_allclose(TemperedProbabilities(2.5)(p), tempered(p, 2.5), atol=1e-6)
    np.testing.assert_allclose(tempered(tempered(p, 2.5), 1 / 2.5), p, atol=1e-5)
    assert np.isfinite(TemperedProbabilities(0.1)(np.round(p))).all()
    np.testing.assert_array_equal(tempered(p, 1.0), p)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_masks_stay_what_they_are(classes, temperature):
    p = probabilities_of(RNG.normal(0, 3, (200, 200, classes)))
    p[0, 0] = 0.5 if classes == 1 else [0.25, 0.5, 0.25]
    np.testing.assert_array_equal(to_labels(tempered(p, temperature)), to_labels(p))


def test_where_no_certainty_is_too_much_there_is_no_temperature():
    right = np.array([[0.9], [0.2], [0.8]])
    assert fit_temperature(right, [1, 0, 1]) is None
    assert fit_temperature(1 - right, [1, 0, 1]) is None  # nor where all is wrong
    assert fit_temperature(np.empty((0, 1)), []) is None


def test_pixels_are_drawn_from_those_that_are_not_ignored():
    truth = np.full((10, 10), IGNORED, np.uint8)
    truth[3, :6] = 1
    p = np.arange(100, dtype=np.float32).reshape(10, 10, 1)
    for count, expected in ((4, 4), (50, 6)):
        values, labels = sample_pixels(p, truth, count, np.random.default_rng(0))
        assert len(values) == expected and (labels == 1).all()
        assert set(values[:, 0]) <= set(range(30, 36))


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run", randomise(build_small_unet(encoder_dropout=0.3)))
    (folder / "metrics.json").write_text(
        json.dumps({"temperature": {"value": 2.0, "nll_before": 1.0, "nll_after": 0.5, "pixels": 9}})
    )
    return folder


def test_a_loaded_run_predicts_and_samples_at_its_temperature(run):
    image = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    plain = keras.saving.load_model(run / "model.keras")
    network = segdrop.load(run)
    assert network.temperature == 2
    before = plain.predict_on_batch(image[None].astype(np.float32))[0]
    np.testing.assert_allclose(network.predict(image), tempered(before, 2.0), atol=1e-5)
    samples = [segdrop.predict_uncertainty(run, image, samples=1, seed=seed).mean for seed in range(2)]
    assert np.abs(samples[0] - samples[1]).max() > 1e-4
    (run / "metrics.json").unlink()
    hotter = [segdrop.predict_uncertainty(run, image, samples=1, seed=seed).mean for seed in range(2)]
    np.testing.assert_allclose(samples, tempered(hotter, 2.0), atol=1e-5)


@pytest.mark.parametrize(("format", "ending"), [("onnx", ".onnx"), ("saved_model", "")])
def test_an_exported_network_has_the_temperature_in_it(run, tmp_path, format, ending):
    done = segdrop.export(run, tmp_path / f"exported{ending}", format=format)  # verified against the run, as loaded
    assert done.difference < 1e-4
    if format == "onnx":
        image = RNG.integers(0, 256, (64, 64, 3), np.uint8)
        exported, loaded = segdrop.load(tmp_path / "exported.onnx"), segdrop.load(run)
        assert exported.temperature == 2
        np.testing.assert_allclose(exported.predict(image), loaded.predict(image), atol=1e-4)


def test_a_finished_run_is_fitted_and_evaluation_tells_what_it_changed(tmp_path):
    """A network that says 0.9 or 0.1 by a pixel's brightness, and is right in three of four pixels."""
    mask = np.tile([[0, 1], [0, 1]], (32, 32)).astype(np.uint8)
    wrong = RNG.permutation(mask.size).reshape(mask.shape) < mask.size / 4
    seen = [np.where(np.roll(wrong, n), 1 - mask, mask) for n in range(8)]
    pairs = {f"i{n}": (np.repeat(255 * image[..., None], 3, axis=2), mask) for n, image in enumerate(seen)}
    config = tiny_training(write_pairs(tmp_path / "data", pairs))
    dataset = open_dataset(config.data)
    split = split_dataset(dataset, 0, 0.2)
    model = brightness_model(threshold=127.5, slope=np.log(9) / 127.5)
    run = write_run(tmp_path / "run", model, **config.to_json())
    write_split(run / "split.csv", dataset, split)
    finished = finish(run, Samples(config, dataset, split, load_augmentation("none")), ("val", "test"), calibrate=True)
    assert finished.temperature.value == pytest.approx(np.log(9) / np.log(3), rel=0.01)  # from 9 : 1 to 3 : 1
    assert finished.temperature.nll_after == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), rel=0.001)
    assert segdrop.load(run).temperature == finished.temperature.value
    for told in (finished.metrics["test"], segdrop.evaluate(run, split="test")):
        assert told["calibration"]["ece"] == pytest.approx(0, abs=0.001)
        assert told["calibration_before"]["ece"] == pytest.approx(0.15, abs=0.001)


def test_without_a_temperature_nothing_is_told_of_one(tmp_path):
    network = segdrop.load(write_run(tmp_path / "run", brightness_model()))
    assert network.temperature == 1
    assert [layer.name for layer in network.model.layers if "temperature" in layer.name] == []
