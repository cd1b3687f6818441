"""Which values images hold: the rule that suits them, and what is said of those that a network hardly sees."""

import dataclasses
import json
import re

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import brightness_model, tiny_training, write_run

from segdrop import SweepConfig, TrainConfig, predict, train
from segdrop.cli.main import main
from segdrop.data.opening import open_configured, open_dataset
from segdrop.data.values import Reading, Values, constant_images, faint_images, unlike_training, values_of
from segdrop.files import write_json
from segdrop.images.intensity import Intensity
from segdrop.inference.network import load
from segdrop.sweeps.state import check as sweep_check

AUTO = Intensity("auto")


def grey_tiffs(folder, arrays):
    """A data set of `arrays`; each a little different, lest copies be taken for one image."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, array in enumerate(arrays):
        tifffile.imwrite(folder / "images" / f"p{i}.tif", np.roll(array, i))
        tifffile.imwrite(folder / "masks" / f"p{i}.tif", np.eye(*array.shape, dtype=np.uint8))
    return folder


def spread(low, high, dtype):
    return np.linspace(low, high, 32 * 32).reshape(32, 32).astype(dtype)


def told_of(folder, **fields):
    config = TrainConfig(**{"data": str(folder), "intensity": "dtype", **fields})
    dataset = open_configured(config)
    return faint_images(values_of(dataset, np.arange(3)), "3 training images", dataset.intensity.rule)


@pytest.mark.parametrize(
    ("image", "fields", "message"),
    [
        (spread(0, 4095, "uint16"), {}, "values from 0 to 4095, of which --intensity dtype makes 0 to 15.93 of 0..255"),
        (
            spread(-1024, 3071, "int16"),
            {},
            "values from -1024 to 3071, of which --intensity dtype makes 123.5 to 139.5",
        ),
        (
            spread(-1, 1, "float32"),
            {"intensity": "window", "intensity_window": (0, 255)},
            "from -1 to 1, of which --intensity window makes 0 to 1 of 0..255, which is little to see; "
            "train with --intensity percentiles, or another --intensity-window.",
        ),
        (
            spread(900, 999, "uint16"),
            {"intensity": "window", "intensity_window": (0, 255)},
            "values from 900 to 999, of which --intensity window makes 255 to 255 of 0..255",
        ),
    ],
)
def test_images_of_which_the_intensity_rule_leaves_little_are_told(tmp_path, image, fields, message):
    folder = grey_tiffs(tmp_path / "data", [image, image, image, image, spread(0, 255, "uint8")])
    (told,) = told_of(folder, **fields)
    assert told.startswith("The 3 training images hold ") and message in told


@pytest.mark.parametrize(
    ("image", "fields"),
    [
        (spread(0, 255, "uint8"), {}),
        (np.where(np.arange(1024).reshape(32, 32) == 500, 80, 12).astype("uint8"), {}),  # dark, with a bright pixel
        (spread(0, 4095, "uint16"), {"intensity": "percentiles"}),
        (spread(0, 1, "float32"), {"intensity": "percentiles", "channels": 1}),
        (spread(0, 1, "float32"), {"intensity": "window", "intensity_window": (0, 1)}),
        (spread(0, 20000, "uint16"), {}),
    ],
)
def test_ordinary_and_dark_images_are_not_remarked(tmp_path, image, fields):
    dark = (image * 0).astype(image.dtype)
    assert told_of(grey_tiffs(tmp_path / "data", [dark, image, dark, dark, dark]), **fields) == ()


def test_channels_with_percentiles_of_their_own_are_not_remarked(tmp_path):
    folder = grey_tiffs(tmp_path / "data", [spread(0, 9, "uint16")] * 5)
    for path in (folder / "images").iterdir():
        tifffile.imwrite(path, np.dstack([spread(0, 9, "uint16")] * 5), planarconfig="contig", photometric="minisblack")
    assert told_of(folder, channels=5, intensity="percentiles") == ()
    assert len(told_of(folder, channels=5)) == 1


def test_the_values_of_all_slices_of_the_training_images_count(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name, first in (("a", 60000), ("b", 100), ("c", 100)):
        pages = np.stack([spread(0, first, "uint16"), spread(0, 100, "uint16")])
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", pages, photometric="minisblack")
        tifffile.imwrite(tmp_path / "masks" / f"{name}.tif", (pages > 50).astype("uint8"), photometric="minisblack")
    dataset = open_dataset(tmp_path)
    assert dataset.extremes_of([0]) == ((0, 60000), (0, pytest.approx(60000 / 257)))
    assert dataset.extremes_of([2, 5]) == ((0, 100), (0, pytest.approx(100 / 257)))


def test_faint_images_are_told_before_training_and_in_the_record(tmp_path, capsys, small_unet):
    folder = grey_tiffs(tmp_path / "data", [spread(0, 4095, "uint16")] * 5)
    config = tiny_training(folder, run_dir=str(tmp_path / "run"), val_fraction=0.2, intensity="dtype")
    result = train(config)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert printed.index("train with --intensity percentiles") < printed.index("Best epoch")
    told, *_ = json.loads((result.run_dir / "config.json").read_text())["warnings"]
    assert "0 to 15.93 of 0..255" in told
    with pytest.warns(UserWarning, match="0 to 15.93 of 0..255"):
        config = TrainConfig(data=str(folder), encoder_weights="none", intensity="dtype")
        sweep_check(SweepConfig(train=config, folds=2, grid={"encoder_dropout": [0.1]}))


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        ([spread(0, 40, "uint8")] * 3, "dtype"),
        ([spread(0, 20000, "uint16")] * 3, "dtype"),
        ([spread(300, 3336, "uint16")] * 3, "percentiles"),
        ([spread(1, 253, "int16")] * 3, "percentiles"),
        ([spread(0, 1, "float32")] * 3, "percentiles"),
        # A few that are dark do not make a set of 16 bits one of few values.
        ([spread(0, 900, "uint16"), spread(0, 900, "uint16"), spread(0, 60000, "uint16")], "dtype"),
        ([spread(0, 255, "uint8"), spread(0, 60000, "uint16")], "dtype"),
        ([spread(0, 255, "uint8"), spread(0, 4095, "uint16")], "percentiles"),
    ],
)
def test_auto_takes_percentiles_where_other_than_8_bits_use_little_of_their_type(tmp_path, images, rule):
    folder = grey_tiffs(tmp_path / "data", images)
    dataset, given = open_dataset(folder, intensity=AUTO), open_dataset(folder, intensity=Intensity(rule))
    assert dataset.intensity == Intensity(rule)
    for index in range(len(images)):
        one, other = dataset.read(index)[0], given.read(index)[0]
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_hot_pixel_does_not_fill_the_range_of_a_type(tmp_path):
    images = [spread(300, 3336, "uint16") for _ in range(3)]
    for image in images:
        image[5, 5] = 65535
    assert open_dataset(grey_tiffs(tmp_path / "data", images), intensity=AUTO).intensity.rule == "percentiles"


def test_auto_looks_at_each_channel_and_each_slice(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(3):
        volume = np.stack([spread(0, 100 + i, "int16"), spread(0, 30000, "int16")], axis=-1)
        nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "images" / f"v{i}.nii")
        nibabel.Nifti1Image((volume > 50).astype("uint8"), np.eye(4)).to_filename(tmp_path / "masks" / f"v{i}.nii")
    assert open_dataset(tmp_path, intensity=AUTO).intensity.rule == "dtype"
    for path in (tmp_path / "masks").iterdir():
        nibabel.Nifti1Image((volume[..., 0] > 50).astype("uint8"), np.eye(4)).to_filename(path)
    by_channel = dataclasses.replace(AUTO, by_channel=True)
    for i, path in enumerate(sorted((tmp_path / "images").iterdir())):
        channels = np.stack([spread(0, 100 + i, "int16"), spread(-7, 900, "int16")], axis=-1)[:, :, None]
        nibabel.Nifti1Image(channels, np.eye(4)).to_filename(path)
    for path in (tmp_path / "masks").iterdir():
        nibabel.Nifti1Image((channels[..., 0] > 50).astype("uint8"), np.eye(4)).to_filename(path)
    assert open_dataset(tmp_path, intensity=by_channel, channels=2).intensity.rule == "percentiles"


def narrow(folder):
    """Ten images of 16 bits that use 300 to 3336 of them."""
    return grey_tiffs(folder, [spread(300, 3336, "uint16")] * 10)


def test_what_auto_chose_is_said_stored_and_done_in_prediction(tmp_path, capsys, small_unet):
    folder, run = narrow(tmp_path / "data"), tmp_path / "run"
    train(tiny_training(folder, run_dir=str(run)))
    assert (
        "Values:  300 to 3336, mapped to 0..255 by percentiles (chosen by --intensity auto)" in capsys.readouterr().out
    )
    assert json.loads((run / "config.json").read_text())["config"]["intensity"] == "percentiles"
    network = load(run)
    assert network.intensity == Intensity("percentiles")
    # Of one image alone auto might choose otherwise.
    wide = spread(0, 65535, "uint16")
    np.testing.assert_allclose(
        network.preprocess(wide)[..., 0],
        np.clip((wide - np.percentile(wide, 0.5)) / np.diff(np.percentile(wide, [0.5, 99.5])) * 255, 0, 255),
        atol=0.01,
    )


def test_a_run_goes_on_with_what_auto_has_chosen(tmp_path, small_unet):
    folder, run = narrow(tmp_path / "data"), tmp_path / "run"
    config = tiny_training(folder, run_dir=str(run), epochs=2, stop_after=1)
    stored = json.loads((train(config).run_dir / "config.json").read_text())["config"]
    assert TrainConfig().continuing(TrainConfig.from_json(stored)).intensity == "percentiles"
    assert TrainConfig(intensity="dtype").continuing(TrainConfig.from_json(stored)).intensity == "dtype"


def test_values_are_those_of_the_images(tmp_path):
    images = [spread(0, 100, "uint8"), spread(50, 60, "uint8"), spread(20, 250, "uint8")]
    values = values_of(open_dataset(grey_tiffs(tmp_path / "data", images)), np.array([0, 2]))
    assert values.stored == values.mapped == (0, 250)
    np.testing.assert_allclose(values.means, (images[0].mean(), images[2].mean()))
    np.testing.assert_allclose(values.deviations, (images[0].std(), images[2].std()))
    assert Values.from_json(json.loads(json.dumps(dataclasses.asdict(values)))) == values


def test_an_image_read_in_bands_has_the_values_of_the_whole():
    image = np.random.default_rng(0).uniform(0, 255, (50, 40)).astype("float32")
    stored, reading = image * 257, Reading()
    for top in (0, 20, 40):
        reading.add(stored[top : top + 20], image[top : top + 20])
    assert reading.values.stored == (stored.min(), stored.max())
    np.testing.assert_allclose(reading.values.means, image.mean(), rtol=1e-5)
    np.testing.assert_allclose(reading.values.deviations, image.std(), rtol=1e-4)


def image_of(mean, deviation):
    return Values((0, 255), (0, 255), (mean, mean), (deviation, deviation))


@pytest.mark.parametrize(
    ("mean", "deviation", "like"),
    [
        (100, 50, True),
        (29, 50, True),  # training: 60 to 100; 32 beyond at least
        (27, 50, False),
        (131, 50, True),
        (133, 50, False),
        (100, 21, True),  # training: 40 to 60; half and twice that
        (100, 19, False),
        (100, 119, True),
        (100, 121, False),
    ],
)
def test_images_are_unlike_those_of_the_training_beyond_their_means_and_deviations(mean, deviation, like):
    training = Values.of_all([image_of(60, 60), image_of(100, 40)])
    image = image_of(mean, deviation)
    assert image.like(training) == like
    assert bool(unlike_training([image], training, "dtype")) != like


def test_a_tenth_of_unlike_images_is_not_told_and_more_are():
    training, good, bad = image_of(100, 50), image_of(100, 50), image_of(5, 2)
    assert unlike_training([bad, *[good] * 9], training, "dtype") == ()
    (told,) = unlike_training([bad, *[good] * 8], training, "dtype")
    assert told.startswith("1 of 9 image(s) have other values than those of the training")


def test_predict_tells_once_of_images_whose_values_are_other_than_in_training(tmp_path, capsys, small_unet):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for i in range(6):
        image = rng.integers(0, 256, (32, 32), np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{i}.png"), image)
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{i}.png"), image // 128)
    run = tmp_path / "run"
    train(tiny_training(tmp_path / "data", run_dir=str(run)))
    (tmp_path / "dark").mkdir()
    for i in range(3):
        deep = rng.integers(300, 3337, (32, 32), np.uint16)
        cv2.imwrite(str(tmp_path / "dark" / f"{i}.png"), deep)
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "dark"), "--out", str(tmp_path / "masks")]) == 0
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and told.startswith("segdrop: warning: 3 of 3 image(s) have other values than")
    assert "which become a mean of 7.0" in told and "(--intensity dtype)" in told
    assert predict(run, tmp_path / "data" / "images", tmp_path / "again").warnings == ()


def test_a_run_that_has_not_stored_its_values_tells_of_faint_images_alone(tmp_path):
    run = write_run(tmp_path / "run", brightness_model())
    assert load(run).values is None
    for name, image in (("faint", spread(300, 3336, "uint16")), ("bright", spread(0, 60000, "uint16"))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    (told,) = predict(run, tmp_path / "faint.png", tmp_path / "one").warnings
    assert "The 1 image(s) hold values from 300 to 3336, of which --intensity dtype makes 1.167 to 12.98" in told
    assert predict(run, tmp_path / "bright.png", tmp_path / "other").warnings == ()


def test_images_of_one_value_are_named_before_training_and_before_a_sweep(tmp_path, capsys, small_unet):
    folder = grey_tiffs(tmp_path / "data", [spread(0, 255, "uint8")] * 4 + [np.full((32, 32), 70, np.uint8)] * 2)
    result = train(tiny_training(folder, run_dir=str(tmp_path / "run"), val_fraction=0.2))
    told = "2 image(s) have one value in all pixels: p4, p5; look whether their files are whole."
    assert json.loads((result.run_dir / "config.json").read_text())["warnings"].count(told) == 1
    assert " ".join(capsys.readouterr().out.replace("│", " ").split()).count(told) == 1
    with pytest.warns(UserWarning, match=re.escape(told)):
        config = TrainConfig(data=str(folder), encoder_weights="none")
        sweep_check(SweepConfig(train=config, folds=2, grid={"encoder_dropout": [0.1]}))


def test_an_image_of_one_value_is_named_after_a_prediction(tmp_path):
    run = write_run(tmp_path / "run", brightness_model())
    (tmp_path / "in").mkdir()
    for name, value in (("flat", 7), ("step", slice(0, 160, 10))):
        image = np.full((16, 16), 7, np.uint8)
        image[0] = np.arange(160, dtype=np.uint8)[value]
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), image)
    tifffile.imwrite(tmp_path / "in" / "volume.tif", np.array([[[3] * 9] * 9, [[4] * 9] * 9], np.uint8))
    told = predict(run, tmp_path / "in", tmp_path / "out").warnings
    assert [said for said in told if "one value" in said] == [
        "1 image(s) have one value in all pixels: flat; look whether their files are whole."
    ]


def test_many_images_of_one_value_are_not_all_named():
    (told,) = constant_images([str(number) for number in range(12)])
    assert told.startswith("12 image(s) have one value in all pixels: 0, 1, 2, 3, 4 and 7 more; ")


def test_a_stored_configuration_without_the_field_means_the_range_of_the_type(tmp_path):
    run = write_run(tmp_path / "run", brightness_model())
    stored = json.loads((run / "config.json").read_text())
    del stored["config"]["intensity"]
    write_json(run / "config.json", stored)
    assert load(run).intensity == Intensity("dtype")
    train_fields = {key: value for key, value in TrainConfig().to_json().items() if key != "intensity"}
    stored = {**SweepConfig().to_json(), "train": train_fields}
    assert SweepConfig.from_json(stored).train.intensity == "dtype"
