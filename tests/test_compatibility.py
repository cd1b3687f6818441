"""What segdrop 0.4.0 made loads and goes on; `made_by_0_4/make.py` says how it was made."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import needs_the_keras_that_made_it, read_csv

import segdrop
import segdrop.layers  # registers them
from segdrop import SweepConfig
from segdrop.sweeps.state import open_or_start

MADE = Path(__file__).parent / "made_by_0_4"
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of everything, beside the sample set, which the configurations name by its relative path."""
    data = Path("data", "cells").resolve()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MADE, tmp_path / "tests" / "made_by_0_4")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cells").symlink_to(data)
    return tmp_path / "tests" / "made_by_0_4"


def predicted(name):
    with np.load(MADE / "predictions.npz") as stored:
        return stored[name]


@pytest.mark.parametrize(
    "name, file", [pytest.param("run", "run", marks=needs_the_keras_that_made_it), ("onnx", "model.onnx")]
)
def test_a_run_and_its_export_predict_what_they_did(name, file):
    np.testing.assert_allclose(segdrop.load(MADE / file).predict(IMAGE), predicted(name), atol=1e-5)


@needs_the_keras_that_made_it
def test_a_model_with_every_layer_of_segdrop_predicts_what_it_did():
    model = keras.saving.load_model(MADE / "inside.keras")
    np.testing.assert_allclose(model(IMAGE[None].astype("float32"))[0], predicted("inside"), atol=1e-5)
    assert {type(layer).__name__ for layer in model.layers} >= {"AdjustableDropout", "DropBlock2D", "SpatialDropout2D"}


@needs_the_keras_that_made_it
def test_a_monte_carlo_twin_still_samples():
    twin = keras.saving.load_model(MADE / "layers.keras")
    images = np.repeat(IMAGE[None].astype("float32"), 8, axis=0)
    assert np.ptp(np.asarray(twin(images)), axis=0).max() > 0


@needs_the_keras_that_made_it
def test_a_run_is_scored_as_it_was(copied):
    before = json.loads((copied / "run" / "metrics.json").read_text())["test"]
    after = segdrop.evaluate(copied / "run")
    assert after["dice"] == pytest.approx(before["dice"], abs=1e-3)
    assert after.keys() == before.keys()


@needs_the_keras_that_made_it
def test_a_killed_run_ends_as_it_would_have(copied, small_unet):
    config = segdrop.TrainConfig(
        **{**json.loads((copied / "killed" / "config.json").read_text())["config"], "resume": True}
    )
    result = segdrop.train(config)
    with (copied / "killed.history.csv").open() as file:
        wanted = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    for row, expected in zip(result.history, wanted, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


@needs_the_keras_that_made_it
def test_a_finished_sweep_predicts_and_is_trained_on(copied):
    network = segdrop.predict_uncertainty(copied / "sweep", IMAGE, samples=0)
    np.testing.assert_allclose(network.mean, predicted("sweep"), atol=1e-5)
    config = segdrop.chosen_config(copied / "sweep")
    assert (config.from_sweep, config.stop_after, config.encoder) == (str(copied / "sweep"), 1, "resnet18")


def _number(text):
    try:
        return pytest.approx(float(text), rel=1e-9)
    except ValueError:
        return text


def test_a_finished_sweep_is_answered_by_all_arms_together_and_keeps_the_answer_that_it_gave(copied):
    before = read_csv(copied / "sweep" / "answer.csv")
    chosen = json.loads((copied / "sweep" / "chosen.json").read_text())
    answer = segdrop.sweep_report(copied / "sweep")
    after = read_csv(copied / "sweep" / "answer.csv")
    tested = ("low", "high", "std", "standard_error", "statistic", "degrees", "p")
    moved = {**{name: f"own_{name}" for name in tested}, "adjusted_p": "holm_p"}
    for old, new in zip(before, after, strict=True):
        for name in set(old) - {"verdict", "repeats_needed", "patients_factor"}:
            told = new[moved.get(name, name)]
            assert told == old[name] or float(told) == _number(old[name]), name
    assert answer.expected == 4  # its reference has no further seeds
    assert "started by segdrop 0.4.0, which compared each arm by itself" in " ".join(answer.about_the_sweep)
    assert json.loads((copied / "sweep" / "chosen.json").read_text()) == chosen


def test_a_sweep_with_one_training_left_ends_like_the_whole_one(copied, small_unet, quiet_optuna):
    answer = segdrop.sweep(copied / "started_sweep")
    whole = segdrop.sweep_report(copied / "sweep")
    for one, other in zip(answer.arms, whole.arms, strict=True):
        np.testing.assert_allclose(one.dice, other.dice, atol=1e-3)


def test_a_sweep_is_known_again_by_a_command_with_fields_that_it_was_started_without(copied):
    folder = copied / "started_sweep"
    stored = json.loads((folder / "sweep.json").read_text())["config"]
    config = SweepConfig.from_json(stored)
    assert set(config.to_json()["train"]) > set(stored["train"])
    assert open_or_start(folder, config, None).config == config


def test_a_sweep_goes_on_by_the_command_that_has_started_it_though_the_default_is_another(copied):
    folder = copied / "started_sweep"
    stored = SweepConfig.from_json(json.loads((folder / "sweep.json").read_text())["config"])
    asked = dataclasses.replace(stored, train=dataclasses.replace(stored.train, intensity="auto"))
    assert open_or_start(folder, asked, None).config.train.intensity == "dtype"
