"""Training end to end on eight small pictures: what a run leaves, and what it does at each turn."""

import csv
import dataclasses
import errno
import gc
import json
import math
import os
import shutil
import types
import weakref
from pathlib import Path

import albumentations as A
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise, use_small_networks, write_pairs, write_table, write_weight_file
from dicom_files import write_dicom
from standin import build_small_unet

import segdrop
from segdrop import InputError, SweepConfig, TrainConfig, train
from segdrop.cells import draw_cells
from segdrop.data.augment import Sampler
from segdrop.data.dataset import Dataset
from segdrop.data.opening import open_dataset
from segdrop.data.splits import part_of
from segdrop.files import write_json
from segdrop.folders import run
from segdrop.folders.state import best_epoch
from segdrop.folders.sweep import SweepRecord, write_folds
from segdrop.images.intensity import Intensity, rule_of
from segdrop.nets.sites import encoder_layers
from segdrop.nets.unet import build_unet
from segdrop.scoring.counts import dice, foreground_mean, to_labels
from segdrop.training import losses
from segdrop.training.callbacks import StopWhenNotFinite
from segdrop.training.folds import train_fold
from segdrop.training.optimizer import OneDeviceAdamW, WarmupCosine
from segdrop.training.session import Session
from segdrop.training.train import _report


def tiny(cells, run_dir, **options):
    defaults = {"encoder": "resnet18", "encoder_weights": "none", "epochs": 2, "batch_size": 2, "crop_size": 32}
    defaults |= {"steps_per_epoch": "images", "augment": "medical", "scale": 1.0, "patience": 15, "encoder_lr": 1.0}
    return TrainConfig(**{**defaults, "data": str(cells), "run_dir": str(run_dir), "mixed_precision": "off", **options})


@pytest.fixture(scope="module")
def finished(cells, tmp_path_factory):
    config = tiny(cells, tmp_path_factory.mktemp("runs") / "one", encoder_dropout=0.2, spatial=True)
    return train(config)


def read_history(run_dir):
    with (run_dir / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_the_stated_files_and_no_state(finished):
    names = {path.name for path in finished.run_dir.iterdir()}
    assert names == {
        "config.json",
        "model.keras",
        "history.csv",
        "metrics.json",
        "split.csv",
        "tensorboard",
        "curves.png",
        "per_image.csv",
        "examples.png",
    }


def test_the_history_has_a_row_per_epoch(finished):
    rows = read_history(finished.run_dir)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    names = ["loss", "dice", "iou", "val_loss", "val_dice", "val_iou"]
    assert list(rows[0]) == ["epoch", "learning_rate", *names]
    assert [{key: float(value) for key, value in row.items()} for row in rows] == finished.history


def test_the_config_records_what_the_run_depends_on(finished, cells):
    record = json.loads((finished.run_dir / "config.json").read_text())
    chosen = {"intensity": "dtype"}  # by auto
    assert TrainConfig(**record["config"]) == tiny(cells, finished.run_dir, encoder_dropout=0.2, spatial=True, **chosen)
    assert record["images"] == {"train": 4, "val": 2, "test": 2}
    assert record["encoder_weights"] == "random"
    assert record["data_sha256"] == open_dataset(cells).digest
    assert record["versions"]["keras"] == keras.__version__


def test_the_best_model_is_a_plain_keras_model_with_its_dropout(finished):
    model = keras.saving.load_model(finished.run_dir / "model.keras", safe_mode=True)
    assert type(model).__module__.startswith("keras.")
    assert not model.compiled
    assert sum(isinstance(layer, keras.layers.SpatialDropout2D) for layer in model.layers) == 3


def test_the_number_of_training_evaluation_and_hand_computation_is_one(finished, cells):
    """Whole-image predictions of the saved model, scored by hand, give what the training printed."""
    dataset = open_dataset(cells)
    truth, pred = [], []
    for index in (4, 5):  # the validation split
        image, mask = dataset.read(index)
        truth.append(mask)
        pred.append(to_labels(finished.model.predict(image[None].astype("float32"), verbose=0))[0])
    by_hand = foreground_mean(dice(np.stack(truth), np.stack(pred)))
    printed = max(row["val_dice"] for row in finished.history)
    assert segdrop.evaluate(finished.run_dir, split="val")["dice"] == pytest.approx(by_hand, rel=1e-12)
    assert finished.metrics["val"]["dice"] == pytest.approx(by_hand, rel=1e-12)
    assert printed == pytest.approx(by_hand, rel=1e-6)  # float32


def test_metrics_json_holds_validation_and_test_scores(finished):
    stored = json.loads((finished.run_dir / "metrics.json").read_text())
    assert stored["test"]["images"] == 2
    assert stored["test"] == json.loads(json.dumps(finished.metrics["test"]))


def test_tensorboard_has_scalars_and_image_panels(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {}
    for folder in ("train", "validation", "images"):
        events = EventAccumulator(str(finished.run_dir / "tensorboard" / folder))
        tags[folder] = {tag for kind in ("tensors", "images", "scalars") for tag in events.Reload().Tags()[kind]}
    assert "epoch_dice" in tags["train"] and "epoch_dice" in tags["validation"]
    assert "epoch_learning_rate" in tags["train"]
    assert "image, truth, prediction/0" in tags["images"]


def test_groups_are_recorded_as_hashes_only(cells, tmp_path):
    run.write_split(
        tmp_path / "split.csv",
        dataclasses.replace(open_dataset(cells), groups=("Jane Doe",) * 4 + ("John Doe",) * 4, grouped=True),
        {"train": np.arange(4), "val": np.arange(4, 6), "test": np.arange(6, 8)},
    )
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    hashes = [row["group"] for row in rows]
    assert len(set(hashes[:4])) == len(set(hashes[4:])) == 1 and hashes[0] != hashes[4]
    assert "Doe" not in (tmp_path / "split.csv").read_text()


def test_the_encoder_stands_still_while_frozen_and_moves_in_the_first_step_after(
    cells, tmp_path, monkeypatch, either_unet
):
    if either_unet == "small":
        source, weights = randomise(build_small_unet()), "none"
        monkeypatch.setattr("segdrop.training.building.build_unet", lambda *_, **__: randomise(build_small_unet()))
    else:
        source = randomise(build_unet("resnet18", encoder_weights=None))
        weights = write_weight_file(tmp_path / "w.h5", source)
    snapshots = []
    original = Session.record_epoch

    def snapshot(session, row):
        snapshots.append([w for layer in encoder_layers(session.model) for w in layer.get_weights()])
        original(session, row)

    monkeypatch.setattr(Session, "record_epoch", snapshot)
    config = tiny(cells, tmp_path / "run", encoder_weights=str(weights), freeze_epochs=2, epochs=3, batch_size=4)
    result = train(config)  # four images in batches of four: one step per epoch
    start = [w for layer in encoder_layers(source) for w in layer.get_weights()]
    for frozen in snapshots[:2]:
        for now, before in zip(frozen, start, strict=True):
            np.testing.assert_array_equal(now, before)
    moved = [not np.array_equal(now, before) for now, before in zip(snapshots[2], start, strict=True)]
    assert np.mean(moved) > 0.95
    schedule = WarmupCosine(config.lr, 3)
    expected = [float(schedule(step)) for step in (1, 2, 3)]
    assert [row["learning_rate"] for row in result.history] == pytest.approx(expected, rel=1e-5)


def test_bfloat16_trains_with_a_float32_head_and_gives_the_policy_back(cells, tmp_path, either_unet):
    result = train(tiny(cells, tmp_path / "run", epochs=1, mixed_precision="bfloat16"))
    dtypes = {layer.name: layer.compute_dtype for layer in result.model.layers}
    assert dtypes["conv0"] == "bfloat16" and dtypes["final_conv"] == dtypes["sigmoid"] == "float32"
    assert keras.config.dtype_policy().name == "float32"
    assert math.isfinite(result.history[0]["loss"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("index", [1, -1], ids=["moving statistics", "weight"])
def test_weights_that_are_not_finite_stop_a_training_whose_loss_is(value, index):
    model = build_small_unet()
    check = StopWhenNotFinite(steps=2)
    check.set_model(model)
    check.on_epoch_end(0)
    model.weights[index].assign(np.full(model.weights[index].shape, value))
    with pytest.raises(InputError, match="The weights are no longer finite numbers after epoch 3; use a smaller --lr"):
        check.on_epoch_end(2)


def test_a_loss_that_is_not_finite_stops_with_step_and_quantity(cells, tmp_path, monkeypatch, small_unet):
    original = losses.SegmentationLoss.call
    monkeypatch.setattr(losses.SegmentationLoss, "call", lambda self, *a: original(self, *a) / 0.0)
    with pytest.raises(InputError, match=r"The loss became inf at step 1 of 2 in epoch 1; use a smaller --lr"):
        train(tiny(cells, tmp_path / "run", loss="focal"))


def test_a_disk_that_fills_up_leaves_no_partial_file(cells, tmp_path, monkeypatch, small_unet):
    def full(file, **arrays):
        file.write(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(tiny(cells, tmp_path / "run", epochs=1))
    assert not [path for path in (tmp_path / "run").iterdir() if "partial" in path.name or path.name == "state.npz"]


def test_a_pipeline_from_python_is_used_and_stored(cells, tmp_path, monkeypatch, small_unet):
    used = []
    monkeypatch.setattr(
        "segdrop.training.samples.Sampler", lambda pipeline, size: used.append(pipeline) or Sampler(pipeline, size)
    )
    own = A.Compose([A.InvertImg(p=1)])
    result = train(tiny(cells, tmp_path / "run", epochs=1), augmentation=own)
    assert used == [own]
    stored = json.loads((result.run_dir / "config.json").read_text())["augmentation"]
    assert stored["transform"]["transforms"][0]["__class_fullname__"] == "InvertImg"


def unchanged(image, **_):
    return image


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.Lambda(image=unchanged), "The augmentation cannot be stored with the run"),
        (A.Resize(16, 16), "The augmentation must keep the crop's size 32x32"),
    ],
)
def test_an_unusable_pipeline_leaves_no_folder(cells, tmp_path, transform, message):
    with pytest.raises(InputError, match=message):
        train(tiny(cells, tmp_path / "run"), augmentation=A.Compose([transform]))
    assert not (tmp_path / "run").exists()


def test_falling_back_to_random_weights_is_said_once_and_in_the_record(
    cells, tmp_path, monkeypatch, capsys, small_unet
):
    def refuse(encoder):
        raise InputError("no network")

    monkeypatch.setattr("segdrop.nets.weights.imagenet_file", refuse)
    result = train(tiny(cells, tmp_path / "run", epochs=1, encoder_weights="auto"))
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("The encoder starts from RANDOM weights") == 1
    record = json.loads((result.run_dir / "config.json").read_text())
    assert record["warnings"] and record["encoder_weights"] == "random"
    with pytest.raises(InputError, match="no network"):
        train(tiny(cells, tmp_path / "strict", encoder_weights="imagenet"))


def history_of(*scores):
    return [{"epoch": epoch, "val_dice": score} for epoch, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.1, 0.3, 0.2), 1), ((0.3, 0.3), 0), ((math.nan, 0.1), 1), ((math.nan, math.nan), 0)],
)
def test_the_best_epoch_is_the_first_of_the_highest_dice(scores, best):
    assert best_epoch(history_of(*scores)) == best


@pytest.mark.parametrize(
    ("scores", "freeze_epochs", "stops"),
    [
        ((0.5, 0.4, 0.4), 0, True),
        ((0.5, 0.4, 0.6), 0, False),
        ((0.5, 0.4), 0, False),
        ((0.5, 0.4, 0.4), 2, False),  # patience counts from the last frozen epoch on
        ((0.5, 0.4, 0.4, 0.4), 2, True),
        ((), 0, False),
    ],
)
def test_training_stops_when_patience_runs_out(scores, freeze_epochs, stops):
    session = object.__new__(Session)
    session.validation = types.SimpleNamespace(plan=[[0]])
    session.config = TrainConfig(patience=2, freeze_epochs=freeze_epochs)
    session.history = history_of(*scores)
    assert session._out_of_patience() is stops


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 0.5), (10, 1.0), (105, 0.5), (200, 0.0)])
def test_the_learning_rate_warms_up_and_decays_by_a_cosine(step, rate):
    assert float(WarmupCosine(1.0, 200)(step)) == pytest.approx(rate, abs=1e-6)


def test_a_later_phase_goes_on_where_the_schedule_was():
    assert float(WarmupCosine(1.0, 200, offset=100)(5)) == pytest.approx(0.5, abs=1e-6)


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="`run_dir` exists"):
        train(tiny("nowhere", tmp_path))


def test_a_file_that_vanishes_during_training_is_told_in_its_own_words(cells, tmp_path, monkeypatch, small_unet):
    def vanish(dataset, index, original=Dataset.read):
        if index == 2 and (tmp_path / "run").exists():
            raise FileNotFoundError("images/cell_2.png is gone")
        return original(dataset, index)

    monkeypatch.setattr(Dataset, "read", vanish)
    with pytest.raises(FileNotFoundError, match="cell_2.png is gone"):
        train(tiny(cells, tmp_path / "run", epochs=1))


@pytest.mark.parametrize(("scores", "said"), [((0.1, 0.3), True), ((0.3, 0.1), False)])
def test_a_best_epoch_that_is_the_last_is_said(capsys, tmp_path, scores, said):
    _report({}, tmp_path, history_of(*scores), 60.0)
    assert ("The best epoch is the last: it was still improving" in capsys.readouterr().out) is said


def test_an_undefined_score_is_reported_as_such(finished, capsys):
    scores = {"dice": None, "iou": None, "images": 2}
    _report({"test": scores}, finished.run_dir, finished.history, 60.0)
    assert "test  Dice undefined  IoU undefined  (2 images)" in capsys.readouterr().out


def test_wrong_data_leave_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data` does not exist"):
        train(tiny(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_block_leaves_no_folder(cells, tmp_path):
    with pytest.raises(InputError, match="names no unit of this encoder: 'stage7'"):
        train(tiny(cells, tmp_path / "run", encoder_dropout=0.1, dropout_blocks=("stage7",)))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_resumed(finished, cells):
    config = tiny(cells, finished.run_dir, encoder_dropout=0.2, spatial=True, resume=True)
    with pytest.raises(InputError, match="is a finished run; there is nothing to resume"):
        train(config)


def test_resuming_with_another_option_names_it(finished, cells):
    with pytest.raises(InputError, match="`lr` is 0.5, but .* was started with 0.001"):
        train(tiny(cells, finished.run_dir, encoder_dropout=0.2, spatial=True, resume=True, lr=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, or auto, got epochs=0"),
        ({"batch_size": 1.5}, "`batch_size` must be a whole number"),
        ({"crop_size": 100}, "`crop_size` must be a multiple of 32"),
        ({"lr": -1.0}, "`lr` must be a positive number"),
        ({"lr": math.nan}, "`lr` must be a positive number"),
        ({"encoder_dropout": 1.3}, r"`encoder_dropout` must be a number in \[0, 1\), got encoder_dropout=1.3"),
        ({"encoder_dropout": {"stage3": -1}}, r"`encoder_dropout` must be a number in \[0, 1\)"),
        ({"encoder": "vgg17"}, "`encoder` must be one of resnet18"),
        ({"dropout_kind": "gauss"}, "`dropout_kind` must be one of element, spatial, block, path"),
        ({"dropout_block_size": 3}, "`dropout_block_size` needs dropout_kind='block', got None"),
        ({"dropout_kind": "block", "dropout_block_size": 0}, "`dropout_block_size` must be a whole number"),
        ({"encoder_dropout": [0.1, 0.2, 0.3]}, "`encoder_dropout` as a ramp has two rates"),
        (
            {"encoder_dropout": (0.1, "0.2")},
            r"`encoder_dropout` must be a number in \[0, 1\), got encoder_dropout='0.2'",
        ),
        ({"dropout_schedule": "ramp"}, "`dropout_schedule` ramp needs an encoder_dropout above 0"),
        ({"encoder_dropout": 0.2, "dropout_schedule_epochs": 3}, "needs a dropout_schedule other than constant"),
        ({"dropout_kind": "element", "spatial": True}, "`spatial` contradicts dropout_kind='element'"),
        ({"classes": 0}, "`classes` must be a whole number of at least 1"),
        ({"ignore_value": 300}, "`ignore_value` must be in 0..255"),
        ({"freeze_epochs": 9, "epochs": 3}, "`freeze_epochs` must be at most epochs=3"),
        ({"epochs": 10**30}, r"`epochs` must be below 2\^32"),
        ({"batch_size": 10**6}, "`batch_size` must be at most 16,384"),
        ({"batch_size": 8, "steps_per_epoch": 10**9}, "`steps_per_epoch` must be at most 1250000 with batch_size=8"),
        ({"val_fraction": 0.4}, r"`val_fraction` must be in \(0, 1/3\], got val_fraction=0.4"),
        ({"seed": 2**32}, r"`seed` must be below 2\^32"),
        ({"resume": True}, "`resume` needs run_dir"),
        (
            {"from_sweep": "x", "recalibrate_batchnorm": True},
            "`recalibrate_batchnorm` needs validation images, of which",
        ),
        ({"intensity_percentiles": (1, 99)}, "`intensity_percentiles` needs intensity='percentiles', got 'auto'"),
        ({"accumulate": 2, "gpus": "all"}, "`accumulate` needs gpus='one', got accumulate=2 with gpus='all'"),
        ({"checkpointing": True, "gpus": "all"}, "`checkpointing` needs gpus='one', got checkpointing=True with gpus="),
        ({"intensity": "range"}, "`intensity` must be one of auto, dtype, percentiles, window"),
        ({"intensity_percentiles": (1,)}, "`intensity_percentiles` must be two numbers"),
        ({"intensity_percentiles": (99, 1)}, "`intensity_percentiles` must rise from low to high"),
        ({"intensity_percentiles": (-1, 99)}, r"`intensity_percentiles` must be in \[0, 100\]"),
        ({"intensity": "window", "intensity_window": (5, math.nan)}, "`intensity_window` must be two numbers"),
        ({"intensity": "window", "intensity_window": (5, 5)}, "`intensity_window` must rise from low to high"),
        ({"intensity_window": (0, 80)}, "`intensity_window` needs intensity='window', got 'auto'"),
        ({"spacing": 0}, "`spacing` must be a positive number of millimetres, got spacing=0"),
        ({"slice_axis": 3}, "`slice_axis` must be 0, 1 or 2, got slice_axis=3"),
        ({"spatial": "no"}, "`spatial` must be True or False, got spatial='no'"),
        ({"multilabel": 1}, "`multilabel` must be True or False, got multilabel=1"),
        ({"data": None}, "`data` must be text, got data=None"),
        ({"stratify": 5}, "`stratify` must be text, got stratify=5"),
        ({"encoder": 5}, "`encoder` must be one of resnet18"),
        ({"dropout_blocks": 5}, "`dropout_blocks` must be a list of names, got dropout_blocks=5"),
        ({"dropout_blocks": [5]}, "`dropout_blocks` must be a list of names, got"),
        ({"dropout_layer": 5}, '`dropout_layer` must be a class, a function or "module:Class"'),
    ],
)
def test_a_wrong_configuration_is_named(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": None}, "`config` must be a TrainConfig, got config=None."),
        ({"config": TrainConfig(), "augmentation": 5}, "`augmentation` must be a pipeline of Albumentations, got"),
    ],
)
def test_what_is_no_configuration_and_no_pipeline_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        train(**arguments)


def test_paths_may_be_path_objects(tmp_path):
    assert TrainConfig(data=tmp_path) == TrainConfig(data=str(tmp_path))


def test_a_configuration_survives_json():
    config = TrainConfig(encoder_dropout={"stage3": 0.1}, dropout_blocks=None, classes=3)
    assert TrainConfig(**json.loads(json.dumps(config.to_json()))) == config
    blocks = TrainConfig(dropout_blocks=("stage3", "stage4_unit1"))
    assert TrainConfig(**json.loads(json.dumps(blocks.to_json()))) == blocks
    window = TrainConfig(intensity="window", intensity_window=(-160, 240), spacing=0.5)
    assert TrainConfig(**json.loads(json.dumps(window.to_json()))) == window


def test_percentiles_that_took_no_part_in_an_earlier_version_s_run_are_left_out():
    stored = {**TrainConfig(intensity="dtype").to_json(), "intensity_percentiles": [1, 99]}
    assert TrainConfig.from_json(stored) == TrainConfig(intensity="dtype")


def test_weights_that_would_never_move_and_options_that_do_nothing_are_told(cells, tmp_path, small_unet):
    config = tiny(cells, run_dir=str(tmp_path / "run"), steps_per_epoch=2, epochs=1)
    with pytest.raises(
        InputError, match="`accumulate` must be at most the 2 steps of the training, for the weights to"
    ):
        train(dataclasses.replace(config, accumulate=3))
    with (
        pytest.warns(UserWarning, match="Without an encoder_dropout above 0 nothing comes of spatial, dropout_blocks"),
        pytest.raises(InputError, match="accumulate"),
    ):
        train(dataclasses.replace(config, accumulate=3, spatial=True, dropout_blocks=("stage4",)))
    with pytest.raises(InputError, match="`augmentation` is not for a run that goes on"):
        train(dataclasses.replace(config, resume=True), augmentation=A.Compose([]))


@pytest.mark.parametrize(
    ("options", "pythons"),
    [
        ({"lr": np.float32(0.5)}, {"lr": 0.5}),
        ({"epochs": np.int64(1), "seed": np.uint8(3)}, {"epochs": 1, "seed": 3}),
        ({"encoder_dropout": np.float32(0.25)}, {"encoder_dropout": 0.25}),
        ({"encoder_dropout": {"stage3": np.float32(0.25)}}, {"encoder_dropout": {"stage3": 0.25}}),
        ({"encoder_dropout": np.array([0.25, 0.5])}, {"encoder_dropout": (0.25, 0.5)}),
        ({"class_weights": np.array([1.0, 2.0])}, {"class_weights": (1.0, 2.0)}),
        ({"spatial": np.True_}, {"spatial": True}),
    ],
)
def test_numpys_numbers_become_pythons(options, pythons):
    stored = TrainConfig(**options).to_json()
    assert json.loads(json.dumps(stored)) == json.loads(json.dumps(TrainConfig(**pythons).to_json()))


def test_a_configuration_gives_its_intensity_rule():
    config = TrainConfig(intensity="window", intensity_window=[-160, 240])
    assert rule_of(config) == Intensity("window", window=(-160, 240))


def test_a_schedule_acts_and_is_in_history_tensorboard_and_the_saved_model(cells, tmp_path, small_unet):
    config = tiny(
        cells,
        tmp_path / "run",
        epochs=4,
        encoder_dropout=0.4,
        dropout_kind="block",
        dropout_block_size=2,
        dropout_schedule="ramp",
        dropout_schedule_epochs=2,
    )
    result = train(config)
    assert [row["dropout_rate"] for row in result.history] == [0, 0.2, 0.4, 0.4]
    assert [float(row["dropout_rate"]) for row in read_history(tmp_path / "run")] == [0, 0.2, 0.4, 0.4]
    best = result.history[best_epoch(result.history)]
    assert {row["rate"] for row in segdrop.dropout_table(result.model)} == {best["dropout_rate"]}
    assert {layer.target for layer in result.model.layers if "dropout" in layer.name} == {0.4}
    assert "epoch_dropout_rate" in tensorboard_tags(tmp_path / "run" / "tensorboard" / "train")


def tensorboard_tags(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags()["tensors"]


def test_half_of_the_epochs_are_a_schedule_s_default_length(cells, tmp_path, small_unet):
    config = tiny(cells, tmp_path / "run", epochs=3, encoder_dropout=0.2, dropout_schedule="anneal")
    assert [row["dropout_rate"] for row in train(config).history] == [0.2, 0.1, 0]


@pytest.mark.parametrize("better", [True, False])
def test_recalibrated_batchnorm_is_kept_only_where_validation_dice_does_not_fall(
    cells, tmp_path, monkeypatch, small_unet, better
):
    scores = iter([0.5, 0.6 if better else 0.4])
    seen = []

    def one_score(forward, *rest):
        model = forward.__self__
        seen.append([np.array(w) for w in model.weights if "moving_variance" in w.path])
        return {"dice": next(scores, 0.1), "iou": 0.1, "images": 2, "classes": {}}

    monkeypatch.setattr("segdrop.training.finishing.score", one_score)
    result = train(tiny(cells, tmp_path / "run", epochs=1, encoder_dropout=0.5, recalibrate_batchnorm=True))
    before, after = seen[:2]
    assert not np.allclose(before[-1], after[-1])
    wanted = after if better else before
    stored = keras.saving.load_model(tmp_path / "run" / "model.keras")
    for model in (result.model, stored):
        kept = [np.array(w) for w in model.weights if "moving_variance" in w.path]
        np.testing.assert_array_equal(kept[-1], wanted[-1])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["batchnorm_recalibration"] == {
        "val_dice_before": 0.5,
        "val_dice_after": 0.6 if better else 0.4,
        "kept": better,
    }


def nifti_folder(folder):
    """One volume of eight slices, floating point, split by slice."""
    nibabel = pytest.importorskip("nibabel")
    pictures = [draw_cells(np.random.default_rng(i), 64) for i in range(8)]
    for part, number in (("images", 0), ("masks", 1)):
        (folder / part).mkdir(parents=True)
        array = np.stack([pair[number] for pair in pictures], axis=1)
        array = array.astype(np.float32) * 0.37 - 20 if part == "images" else array
        nibabel.Nifti1Image(array, np.diag([0.5, 2, 0.5, 1])).to_filename(folder / part / "scan.nii.gz")
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    write_table(folder / "splits.csv", [{"id": f"scan#{i:03d}", "split": s} for i, s in enumerate(splits)])
    write_table(folder / "groups.csv", [{"id": f"scan#{i:03d}", "group": f"g{i}"} for i in range(8)])


def dicom_folder(folder):
    """Eight images of four patients, no split given."""
    pairs = {f"p{i}": draw_cells(np.random.default_rng(i), 64) for i in range(8)}
    write_pairs(folder, {name: (None, mask) for name, (_, mask) in pairs.items()})
    for i, (name, (image, _)) in enumerate(pairs.items()):
        attributes = {"PatientID": f"DOE-{i // 2}", "PatientName": "Doe^Jane", "PixelSpacing": [0.5, 0.5]}
        write_dicom(
            folder / "images" / f"{name}.dcm",
            image.astype(np.uint16) * 8,
            BitsStored=12,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            **attributes,
        )


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (nifti_folder, {"intensity": "percentiles", "slice_axis": 1}),
        (dicom_folder, {"intensity": "window", "intensity_window": (-1024, 1016), "spacing": 0.4, "val_fraction": 0.3}),
    ],
)
def test_medical_images_train_end_to_end_and_their_patients_stay_unnamed(tmp_path, capsys, small_unet, write, options):
    write(tmp_path / "data")
    result = train(tiny(tmp_path / "data", tmp_path / "run", epochs=1, **options))
    assert set(result.metrics) == {"val", "test"} and math.isfinite(result.history[0]["loss"])
    with (tmp_path / "run" / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and all(len(row["group"]) == 16 for row in rows)
    assert len({row["group"] for row in rows}) == (8 if write is nifti_folder else 4)
    assert len({(row["group"], row["split"]) for row in rows}) == len({row["group"] for row in rows})
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    printed = "".join(capsys.readouterr())
    for identifier in ("DOE", "Doe", "Jane"):
        assert identifier.encode() not in written and identifier not in printed


class Stopped(Exception):
    """Instead of a fit."""


def start_of(cells, folder, **arm):
    """What an arm's fit is given: the network's weights, and the batches."""
    seen = []

    def fit(model, batches, **options):
        weights = {w.path: np.array(w) for w in model.weights if "dropout" not in w.path}
        seen.append((weights, [[np.array(part) for part in batch] for batch in batches]))
        raise Stopped

    split = {"train": np.array([0, 1, 2, 5, 7]), "val": np.array([3, 4]), "test": np.array([6])}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(keras.Model, "fit", fit)
        train_fold(tiny(cells, None, seed=3, **arm), folder, open_dataset(cells), split, "off", "random")
    return seen[0]


@pytest.fixture(scope="module")
def plain_start(cells, tmp_path_factory):
    return start_of(cells, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(
    "arm",
    [
        {"encoder_dropout": 0.2, "dropout_kind": "spatial"},
        {"encoder_dropout": 0.5, "dropout_kind": "element", "dropout_placement": "block_end"},
        {"encoder_dropout": 0.3, "dropout_kind": "block", "dropout_blocks": ("stage2",), "dropout_schedule": "ramp"},
        {"encoder_dropout": 0.1, "dropout_kind": "path", "dropout_placement": "branch_end", "lr": 0.1},
    ],
)
def test_every_arm_starts_from_the_same_weights_and_sees_the_same_batches(cells, tmp_path, plain_start, arm):
    (plain, order), (dropped, same_order) = plain_start, start_of(cells, tmp_path / "run", **arm)
    assert [value.std() > 0 for name, value in plain.items() if "kernel" in name].count(False) == 0
    for ours, theirs in zip(plain.values(), dropped.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(order) == 2 * 3  # epochs, and batches of 2 of 5 images
    np.testing.assert_equal(order, same_order)


@pytest.fixture(scope="module")
def fold(cells, tmp_path_factory):
    """A training of a sweep: half of the images, two epochs of a course over four."""
    options = {"epochs": 4, "stop_after": 2, "train_fraction": 0.5, "encoder_dropout": 0.2, "seed": 5}
    split = {"train": np.array([0, 1, 2, 5, 7]), "val": np.array([3, 4]), "test": np.array([6])}
    folder = tmp_path_factory.mktemp("folds") / "00000"
    with pytest.MonkeyPatch.context() as patch:
        use_small_networks(patch)
        return folder, train_fold(tiny(cells, None, **options), folder, open_dataset(cells), split, "off", "random")


def test_one_training_of_many_leaves_its_model_history_and_scores_alone(fold):
    names = {path.name for path in fold[0].iterdir()}
    assert names == {"config.json", "model.keras", "history.csv", "metrics.json", "per_image.csv", "split.csv"}
    assert set(json.loads((fold[0] / "metrics.json").read_text())) == {"val"}


def test_the_scores_of_a_fold_are_those_of_its_best_model(fold, cells):
    folder, scores = fold
    stored, dataset = segdrop.evaluate(folder, split="val"), open_dataset(cells)
    assert scores["dice"] == stored["dice"] and scores["iou"] == stored["iou"]
    assert scores["brier"] == stored["calibration"]["brier"]
    rows = read_history(folder)
    assert scores["epochs"] == len(rows) == 2
    best = max(rows, key=lambda row: float(row["val_dice"]))
    assert scores["best_epoch"] == int(best["epoch"])
    assert scores["dice"] == pytest.approx(float(best["val_dice"]), rel=1e-5)
    model, truth, pred = keras.saving.load_model(folder / "model.keras"), [], []
    trained = [row["id"] for row in read_split(folder) if row["split"] == "train"]
    for name in (trained[0], trained[2]):  # as many as there are validation images, from the first to the last of three
        image, mask = dataset.read(dataset.ids.index(name))
        truth.append(mask)
        pred.append(to_labels(model.predict(image[None].astype("float32"), verbose=0))[0])
    foreground = np.mean([dataset.read(i)[1] == 1 for i in (3, 4)])
    assert scores["constant_dice"] == pytest.approx(2 * foreground / (1 + foreground), rel=1e-12)
    assert scores["train_images"] == 3 and scores["val_images"] == 2
    by_hand = foreground_mean(dice(np.stack(truth), np.stack(pred)))
    assert scores["train_dice"] == pytest.approx(by_hand, rel=1e-12)


def read_split(folder):
    with (folder / "split.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_part_of_the_training_images_is_what_the_split_file_says(fold, cells):
    rows = {row["id"]: row["split"] for row in read_split(fold[0])}
    part = part_of(open_dataset(cells), np.array([0, 1, 2, 5, 7]), 0.5, 5)
    assert len(part) == 3
    expected = {f"cell_{i}": "train" for i in part} | {"cell_3": "val", "cell_4": "val", "cell_6": "test"}
    assert rows == expected


def test_stopping_early_keeps_the_course_of_the_learning_rate(fold):
    """Two steps an epoch, for 3 images in batches of 2: the rates after steps 2 and 4 of 8."""
    course = WarmupCosine(1e-3, 8)
    rates = [float(row["learning_rate"]) for row in read_history(fold[0])]
    assert rates == pytest.approx([float(course(2)), float(course(4))], rel=1e-5)


def test_with_checkpointing_a_training_is_the_same_also_when_it_is_resumed(cells, tmp_path, small_unet, monkeypatch):
    options = {"epochs": 3, "encoder_dropout": 0.3}
    expected = train(tiny(cells, tmp_path / "plain", **options))
    config = tiny(cells, tmp_path / "ours", checkpointing=True, **options)
    original = Session.record_epoch

    def record_epoch(session, row):
        original(session, row)
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "record_epoch", record_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    found = train(dataclasses.replace(config, resume=True))
    rows, ours = read_history(expected.run_dir), read_history(found.run_dir)
    assert len(ours) == 3
    for name in ("loss", "val_loss"):
        assert [float(row[name]) for row in ours] == pytest.approx([float(row[name]) for row in rows], rel=1e-4)


@pytest.fixture(scope="module")
def without_validation(cells, tmp_path_factory):
    """A training on a sweep's folds, interrupted after its first epoch and resumed; its weights after each epoch."""
    home = tmp_path_factory.mktemp("sweeps")
    dataset = open_dataset(cells)
    write_folds(home, dataset, [[np.array([0, 2, 3]), np.array([1, 4, 5])]])
    record = SweepRecord(
        segdrop="0.4.0",
        config=SweepConfig(TrainConfig(encoder_dropout=0.1), folds=2),
        study="sweeps",
        storage="a file in the sweep's folder",
        data_sha256=dataset.digest,
        grouping_sha256="",
        images=6,
        groups=None,
        class_names=dataset.class_names,
        mixed_precision="off",
        random_weights=True,
    )
    write_json(home / "sweep.json", record.to_json())
    config = tiny(cells, home / "run", from_sweep=str(home), epochs=5, stop_after=2, patience=1)
    original, weights = Session.record_epoch, []

    def record_epoch(session, row):
        weights.append(session.model.get_weights())
        original(session, row)
        if row["epoch"] == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        use_small_networks(patch)
        patch.setattr(Session, "record_epoch", record_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config)
        return train(dataclasses.replace(config, resume=True)), weights


def test_training_on_all_folds_has_no_validation_and_scores_nothing(without_validation):
    result, _ = without_validation
    rows = read_history(result.run_dir)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert set(rows[0]) == {"epoch", "learning_rate", "loss", "dice", "iou"}
    splits = {row["id"]: row["split"] for row in read_split(result.run_dir)}
    assert splits == {f"cell_{i}": "train" for i in range(6)} | {"cell_6": "test", "cell_7": "test"}
    assert result.metrics == {} and json.loads((result.run_dir / "metrics.json").read_text()) == {}
    assert (result.run_dir / "examples.png").is_file() and (result.run_dir / "curves.png").is_file()


def test_all_folds_are_those_of_the_sweep_s_own_data(without_validation, tmp_path):
    result, _ = without_validation
    record = json.loads((result.run_dir / "config.json").read_text())
    sweep = Path(record["config"]["from_sweep"])
    stored = json.loads((sweep / "sweep.json").read_text())
    for file in ("folds.csv", "sweep.json"):
        shutil.copy(sweep / file, tmp_path)
    write_json(tmp_path / "sweep.json", {**stored, "data_sha256": "another"})
    with pytest.raises(InputError, match="has other images or masks than .* was started with"):
        train(TrainConfig(data=record["config"]["data"], run_dir=tmp_path / "run", from_sweep=tmp_path))


def test_without_validation_the_last_epoch_s_model_is_kept(without_validation):
    result, (first, last) = without_validation
    stored = keras.saving.load_model(result.run_dir / "model.keras").get_weights()
    for ours, theirs in zip(stored, last, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(not np.array_equal(ours, theirs) for ours, theirs in zip(first, last, strict=True))


def test_test_images_of_a_sweep_are_scored_when_they_are_asked_for(without_validation):
    result, _ = without_validation
    scores = segdrop.evaluate(result.run_dir, split="test")
    assert scores["images"] == 2 and 0 <= scores["dice"] <= 1
    with pytest.raises(InputError, match="has no image in the split 'val'"):
        segdrop.evaluate(result.run_dir, split="val")


def step_taken_with(optimizer):
    """A weak reference to the graph of a step that an optimizer has taken and nobody needs any more."""
    variable = keras.Variable(np.zeros(4, "float32"))
    update = optimizer(0.1, name="adamw")
    update.build([variable])
    step = tf.function(lambda: update.apply([tf.ones(4)], [variable]))
    step()
    assert np.all(np.asarray(variable) < 0)
    return weakref.ref(step.get_concrete_function().graph)


@pytest.mark.parametrize("optimizer, is_kept", [(keras.optimizers.AdamW, True), (OneDeviceAdamW, False)])
def test_a_training_s_step_is_freed_with_it(optimizer, is_kept):
    """Keras's own optimizer keeps the traced step, and all it captures, for as long as the process lives."""
    graph = step_taken_with(optimizer)
    gc.collect()
    assert (graph() is not None) == is_kept
