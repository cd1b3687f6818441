"""The rules of docs/plan.md."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from conftest import tiny_training, write_pairs
from safetensors.numpy import save_file

import segdrop
from segdrop.config.train import PLANNED, TrainConfig
from segdrop.data.fingerprint import fingerprint
from segdrop.data.opening import open_dataset
from segdrop.errors import InputError
from segdrop.training.device import Machine, this_machine
from segdrop.training.planning import PASSES, WRITING, make_plan

CPU = Machine("CPU", speed=300_000, memory=16e9)
SLOW = dataclasses.replace(CPU, speed=8 * 128**2)  # a step a second


def discs(count, diameter, *, height=256, width=256):
    """A mask with discs in a row from the left."""
    mask = np.zeros((height, width), np.uint8)
    rows, columns = np.ogrid[:height, :width]
    for number in range(count):
        centre = diameter * (1.2 * number + 0.6)
        mask |= ((rows - height / 2) ** 2 + (columns - centre) ** 2 <= (diameter / 2) ** 2).astype(np.uint8)
    return mask


def opened(folder, *masks, **options):
    pairs = {f"image{i}": (np.full((*mask.shape, 3), 90, np.uint8), mask) for i, mask in enumerate(masks)}
    return open_dataset(write_pairs(folder, pairs), **options)


def planned(dataset, machine=CPU, val=(), **fields):
    train = [index for index in range(len(dataset)) if index not in val]
    return make_plan(TrainConfig(**{"encoder_weights": "none", **fields}), dataset, train, val, machine)


def reason(plan, field):
    return next(choice.reason for choice in plan.choices if choice.field == field)


@pytest.mark.parametrize(
    ("diameter", "side", "scale", "crop"),
    [
        (20, 600, 1, 128),  # three times 20 pixels is less than the smallest crop
        (60, 600, 0.71, 128),  # a view of 180 pixels
        (150, 600, 0.43, 192),  # a view of 450 pixels in the largest crop of a CPU
        (150, 300, 0.53, 160),  # no more of an image than there is
        (40, 90, 1, 96),  # images smaller than the smallest crop are padded to a multiple of 32
    ],
)
def test_a_crop_shows_three_times_the_thickness_of_large_objects(tmp_path, diameter, side, scale, crop):
    plan = planned(opened(tmp_path, discs(1, diameter, height=side, width=side)), steps=100)
    assert plan.config.crop_size == crop
    assert plan.config.scale == pytest.approx(scale, abs=0.02)


def test_thin_lines_keep_three_pixels(tmp_path):
    mask = discs(1, 150, height=600, width=600) * 2  # which alone would be seen at 0.43
    mask[50:54] = 1
    plan = planned(opened(tmp_path, mask))
    [line, _] = fingerprint(opened(tmp_path, mask)).objects
    assert line.widths == pytest.approx([4], rel=0.05)
    assert plan.config.scale == pytest.approx(3 / 4, abs=0.02)
    assert "lines of 4 px keep 3" in reason(plan, "scale")


def test_a_gpu_sees_more_pixels_of_the_same_view(tmp_path):
    dataset = opened(tmp_path, discs(1, 150, height=600, width=600))
    plan = planned(dataset, Machine("GPU", 5e6, 1e12), steps=100)
    assert (plan.config.scale, plan.config.crop_size, plan.config.batch_size) == (0.5, 224, 16)


@pytest.mark.parametrize(
    ("megapixels", "scale", "crop"),
    [(2.5, 0.43, 192), (3.7, 0.5, 224), (4.8, 0.57, 256), (50, 0.57, 256)],  # a view of 450 pixels, 256 at most
)
def test_crops_have_more_pixels_where_there_is_time_for_forty_passes(tmp_path, megapixels, scale, crop):
    # Of 600 x 600 pixels at a scale of 224 / 450 forty passes are 40 * 299**2 = 3.6 megapixels, of 256 / 450 4.7.
    dataset = opened(tmp_path, discs(1, 150, height=600, width=600))
    training = 0.9 * 0.9 * 900  # seconds
    machine = dataclasses.replace(CPU, speed=megapixels * 1e6 / training)
    plan = planned(dataset, machine, batch_size=4)
    assert plan.config.crop_size == crop
    assert plan.config.scale == pytest.approx(scale, abs=0.01)
    assert planned(dataset, machine, batch_size=4, epochs=2).config.crop_size == 192


def test_masks_without_objects_leave_the_images_as_they_are(tmp_path):
    plan = planned(opened(tmp_path, np.zeros((300, 300), np.uint8), classes=2))
    assert (plan.config.scale, plan.config.crop_size) == (1, 128)


def test_pretrained_encoders_learn_at_a_lower_rate(tmp_path, monkeypatch):
    dataset = opened(tmp_path, discs(1, 30))
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    assert planned(dataset).config.encoder_lr == 1
    assert planned(dataset, encoder="torchvision_resnet18", encoder_weights=weights).config.encoder_lr == 0.3
    assert planned(dataset, encoder_weights=weights, encoder="resnet18", encoder_lr=2.0).config.encoder_lr == 2

    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    assert planned(dataset, encoder_weights="auto").config.encoder_lr == 1
    given = planned(dataset, encoder_lr=1.0, encoder_weights="auto")
    assert given.weights is None  # no rule has to know
    monkeypatch.setattr(keras.utils, "get_file", lambda *arguments, **options: weights)
    assert planned(dataset, encoder_weights="auto").weights == weights
    assert planned(dataset, encoder_weights="auto").config.encoder_lr == 0.3


def test_a_crop_size_that_is_given_is_in_the_images_own_pixels(tmp_path):
    plan = planned(opened(tmp_path, discs(1, 150, height=600, width=600)), crop_size=64)
    assert (plan.config.scale, plan.config.crop_size) == (1, 64)


def test_many_objects_are_taken_to_lie_in_any_direction(tmp_path):
    assert planned(opened(tmp_path / "few", discs(7, 20))).config.augment == "medical"
    assert planned(opened(tmp_path / "many", discs(8, 20))).config.augment == "microscopy"


def test_the_batch_shrinks_with_large_crops_and_small_memory(tmp_path):
    dataset = opened(tmp_path, discs(1, 30, height=512, width=512))
    assert planned(dataset, crop_size=192).config.batch_size == 8
    assert planned(dataset, crop_size=256).config.batch_size == 4
    assert planned(dataset, crop_size=512).config.batch_size == 2
    small = dataclasses.replace(CPU, memory=2 * 3.5 * 8192 * 128**2)  # half of it holds three crops and a half
    assert planned(dataset, small, crop_size=128).config.batch_size == 3
    with pytest.raises(InputError, match=r"`crop_size` 512 needs about 2.1 GB for one crop"):
        planned(dataset, small, crop_size=512)
    assert planned(dataset, small, crop_size=512, batch_size=1).config.batch_size == 1
    assert planned(dataset, dataclasses.replace(CPU, devices=4), crop_size=192).config.batch_size == 32


def test_an_epoch_has_the_pixels_of_the_training_images(tmp_path):
    # Of 512 x 256 pixels an image is eight crops of 128, small ones are one each: 3 * 8 + 2 = 26 crops, 4 batches.
    large, small = discs(1, 30, height=512), discs(1, 30, height=64, width=64)
    slower = dataclasses.replace(SLOW, speed=SLOW.speed / 3)
    plan = planned(opened(tmp_path, large, large, large, small, small), slower)
    assert (plan.config.crop_size, plan.config.steps_per_epoch, plan.config.epochs) == (128, 4, 40)
    assert reason(plan, "epochs") == f"{PASSES} passes are enough"


def test_the_time_bounds_the_steps(tmp_path):
    dataset = opened(tmp_path, *[discs(1, 30, height=512, width=512)] * 20)  # 16 crops each, 40 steps a pass
    quarter = planned(dataset, SLOW).config
    total = quarter.steps_per_epoch * quarter.epochs
    assert 0.7 * 900 < total < 900
    assert planned(dataset, SLOW).seconds == pytest.approx(total + quarter.epochs * WRITING)
    half = planned(dataset, SLOW, minutes=7.5).config
    assert half.steps_per_epoch * half.epochs == pytest.approx(total / 2, rel=0.05)
    smaller = planned(dataset, SLOW, encoder="resnet18").config  # 0.7 of the work
    assert smaller.steps_per_epoch * smaller.epochs == pytest.approx(total / 0.7, rel=0.05)
    with pytest.raises(InputError, match=r"`minutes` 0.1 is time for 4 steps of 1.0 s"):
        planned(dataset, SLOW, minutes=0.1)


def test_validation_takes_a_fifth_of_the_time_at_most(tmp_path):
    dataset = opened(tmp_path, *[discs(1, 30, height=512, width=512)] * 100)
    plan = planned(dataset, SLOW, val=range(20, 100))
    # 80 images of 16 crops predicted at a third of a training step's price: 53 s after each epoch.
    steps = plan.config.epochs * plan.config.steps_per_epoch
    assert plan.config.epochs == 10
    assert plan.seconds == pytest.approx(steps + 10 * (WRITING + 80 * 16 / 8 / 3), rel=0.001)


def test_writing_takes_a_fifth_of_the_time_at_most(tmp_path):
    dataset = opened(tmp_path, *[discs(1, 30, height=128, width=128)] * 64)  # 320 steps, 8 a pass
    for speed, epochs in ((0.5, 40), (2, 16), (20, 10)):  # steps a second; 320 s, 160 s, 16 s: fewest are ten
        config = planned(dataset, dataclasses.replace(SLOW, speed=speed * SLOW.speed)).config
        assert (config.epochs, config.steps_per_epoch) == (epochs, 320 // epochs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"steps": 120}, (10, 12)),  # at least ten epochs
        ({"steps": 2000}, (40, 50)),
        ({"steps": 120, "epochs": 4}, (4, 30)),
        ({"steps": 120, "steps_per_epoch": 50}, (2, 50)),
        ({"steps": 120, "steps_per_epoch": "images"}, (60, "images")),
        ({"epochs": 4}, (4, 20)),
        ({"epochs": 4, "steps_per_epoch": 7}, (4, 7)),
    ],
)
def test_what_is_given_of_the_length_stands(tmp_path, given, expected):
    dataset = opened(tmp_path, *[discs(1, 30, height=512, width=512)] * 10)  # 20 steps a pass, 2 with each image once
    config = planned(dataset, **given).config
    assert (config.epochs, config.steps_per_epoch) == expected


def test_lengths_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(InputError, match="`steps` is 120, but 4 epochs of 7 steps are 28; leave one of them out"):
        TrainConfig(steps=120, epochs=4, steps_per_epoch=7)
    with pytest.raises(InputError, match="`steps` must be at least epochs=40, got steps=12"):
        planned(opened(tmp_path, discs(1, 30)), steps=12, epochs=40)


def test_patience_is_half_of_the_epochs_and_never_short(tmp_path):
    dataset = opened(tmp_path, discs(1, 30))
    assert [planned(dataset, epochs=epochs).config.patience for epochs in (4, 40, 101)] == [15, 20, 51]


def test_an_encoder_is_told_by_its_weights(tmp_path):
    dataset = opened(tmp_path / "data", discs(1, 30))
    assert planned(dataset).config.encoder == "resnet34"
    names = [f"layer{s}.{u}.conv{c}.weight" for s in range(1, 5) for u in range(2) for c in (1, 2)]
    save_file({name: np.ones(1, "float32") for name in ["conv1.weight", *names]}, tmp_path / "mine.safetensors")
    plan = planned(dataset, encoder_weights=str(tmp_path / "mine.safetensors"))
    assert plan.config.encoder == "torchvision_resnet18"
    assert reason(plan, "encoder") == "that of mine.safetensors"
    save_file({name: np.ones(1, "float32") for name in ["conv1.weight", *names[:5]]}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="odd.safetensors is of none of the encoders"):
        planned(dataset, encoder_weights=str(tmp_path / "odd.safetensors"))


def test_a_plan_leaves_nothing_open_and_is_the_same_again(tmp_path):
    dataset = opened(tmp_path, *[discs(1, 150, height=300, width=400)] * 5)
    plan = planned(dataset, val=[4])
    assert plan.config.planned
    assert {choice.field for choice in plan.choices} == set(PLANNED)
    assert planned(dataset, val=[4]) == plan
    again = make_plan(plan.config, dataset, range(4), [4], CPU)
    assert (again.config, again.choices) == (plan.config, ())
    assert json.loads(json.dumps(plan.to_json()))["choices"]["scale"]["value"] == plan.config.scale


def test_this_machine_is_described():
    exact, mixed = this_machine("off"), this_machine("bfloat16")
    assert exact.memory > 1e9
    assert exact.speed > 0
    assert mixed.speed >= exact.speed


def test_the_scale_of_a_training_is_that_of_its_predictions_and_scores_are_on_the_images_grid(
    cells, tmp_path, small_unet
):
    config = tiny_training(cells, run_dir=str(tmp_path / "run"), scale=0.5)
    result = segdrop.train(config)
    network = segdrop.load(result.run_dir)
    dataset = open_dataset(cells)
    [index] = [dataset.ids.index("cell_6")]
    image, truth = dataset.read(index)
    assert network.preprocess(image).shape == (32, 32, 3)
    mask = network.labels(network.predict(image))
    assert mask.shape == truth.shape == (64, 64)

    overlaps = [
        (2 * np.sum((network.labels(network.predict(image)) == 1) & (truth == 1)), np.sum(truth == 1))
        for image, truth in map(dataset.read, (6, 7))
    ]
    found = [np.sum(network.labels(network.predict(dataset.read(i)[0])) == 1) for i in (6, 7)]
    by_hand = sum(both for both, _ in overlaps) / (sum(found) + sum(true for _, true in overlaps))
    assert result.metrics["test"]["dice"] == pytest.approx(by_hand, abs=1e-6)
    assert segdrop.evaluate(result.run_dir)["dice"] == pytest.approx(by_hand, abs=1e-6)

    done = segdrop.predict(result.run_dir, [cells / "images" / "cell_6.png"], tmp_path / "masks")
    [row] = done.files
    assert (row["height"], row["width"]) == (64, 64)
    assert row["share foreground"] == pytest.approx(np.mean(mask == 1))


def test_a_planned_training_is_resumed_by_the_plan_it_has(cells, tmp_path, small_unet):
    left_open = {"crop_size": "auto", "steps_per_epoch": "auto", "patience": "auto", "scale": "auto"}
    whole = tiny_training(cells, run_dir=str(tmp_path / "whole"), epochs=4, **left_open)
    result = segdrop.train(whole)
    record = json.loads((result.run_dir / "config.json").read_text())
    assert set(record["plan"]["choices"]) == set(left_open)
    assert record["config"]["crop_size"] == record["plan"]["choices"]["crop_size"]["value"] == 64
    assert len(result.history) == 4


def test_arms_of_a_sweep_have_one_plan(cells, tmp_path, small_unet):
    train = tiny_training(cells, crop_size="auto", patience="auto", batch_size="auto")
    config = segdrop.SweepConfig(train, {"encoder_dropout": [0.2]}, folds=2)
    segdrop.sweep(tmp_path / "sweep", config)
    stored = [json.loads(path.read_text())["config"] for path in (tmp_path / "sweep").glob("trainings/*/config.json")]
    assert len(stored) == 4
    assert {(run["crop_size"], run["batch_size"], run["patience"]) for run in stored} == {(64, 8, 15)}
    segdrop.sweep(tmp_path / "sweep", config)  # goes on, with what is left open as it was chosen
    assert "crop_size=64" in (tmp_path / "sweep" / "answer.md").read_text()
    with pytest.raises(InputError, match="`crop_size` is 32, but"):
        segdrop.sweep(tmp_path / "sweep", dataclasses.replace(config, train=dataclasses.replace(train, crop_size=32)))
    with pytest.raises(InputError, match="`grid` has auto for 'crop_size'"):
        segdrop.estimate(segdrop.SweepConfig(train, {"crop_size": ["auto", 32]}, folds=2))
