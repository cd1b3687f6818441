"""segdrop.sensitivity: how much Dice falls with dropout in one stage alone, on training and validation images."""

import json

import keras
import numpy as np
import pytest
import rich.console
from conftest import randomise, read_csv, tiny_training, write_pairs, write_run
from keras import layers
from standin import build_small_unet

import segdrop
from segdrop import InputError, build_unet
from segdrop.cli.main import main
from segdrop.data.opening import open_dataset
from segdrop.files import write_csv, write_json
from segdrop.scoring.falls import compare_falls, dice_of_present
from segdrop.scoring.statistics import paired_bootstrap
from segdrop.show.sensitivity import Sensitivities
from segdrop.surgery.sampling import MonteCarlo

SPLITS = ["train"] * 6 + ["val"] * 4


def two_stages(first=1.0, second=1.0, classes=1, activation="sigmoid", threshold=128.5):
    """A network that finds what is bright, by two stages in a row; each adds what 8 equal maps say, times a weight.

    The map that is thresholded is (1 + first + second) x the image's first channel, less (1 + first + second) x the
    threshold: where no map is dropped the image itself is, whatever the weights.
    """
    image = keras.Input((None, None, 3), name="data")
    x = layers.Conv2D(1, 1, name="conv0")(image)
    stem = x
    for stage in ("stage1", "stage2"):
        unit = f"{stage}_unit1"
        branch = layers.Conv2D(8, 1, name=f"{unit}_conv1")(stem)
        branch = layers.ReLU(name=f"{unit}_relu2")(branch)
        branch = layers.Conv2D(1, 1, name=f"{unit}_conv2")(branch)
        x = layers.Add(name=f"{unit}_add")([x, branch])
    x = layers.UpSampling2D(1, name="decoder_stage0_upsampling")(x)
    x = layers.Conv2D(classes, 1, name="final_conv")(x)
    model = keras.Model(image, layers.Activation(activation, name=activation)(x))
    model.get_layer("conv0").set_weights([np.eye(3)[0].reshape(1, 1, 3, 1), np.zeros(1)])
    for stage, weight in (("stage1", first), ("stage2", second)):
        model.get_layer(f"{stage}_unit1_conv1").set_weights([np.ones((1, 1, 1, 8)), np.zeros(8)])
        kernel = np.full((1, 1, 8, 1), weight / 8)
        model.get_layer(f"{stage}_unit1_conv2").set_weights([kernel, np.zeros(1)])
    kernel, bias = np.zeros((1, 1, 1, classes)), np.zeros(classes)
    kernel[..., -1], bias[-1] = 1, -threshold * (1 + first + second)
    model.get_layer("final_conv").set_weights([kernel, bias])
    return model


def pictures(count=10, levels=(180,) * 10, values=(0, 1)):
    """Pictures that are dark but for a square, whose brightness is the picture's level; their masks are the squares."""
    found = {}
    for i in range(count):
        mask = np.full((32, 32 + 32 * (i % 2)), values[0], np.uint8)
        mask[4 : 14 + i, 6:20] = values[1]
        found[f"p{i}"] = np.where(mask == values[1], levels[i], 60).astype(np.uint8), mask
    return found


def finished(folder, model, data, splits=SPLITS, groups=None, class_names=("background", "foreground"), **fields):
    """A finished run of `model` on a data set, with these splits."""
    write_run(folder, model, class_names=class_names, data=str(data), **fields)
    dataset = open_dataset(data, **{name: fields[name] for name in ("ignore_value", "multilabel") if name in fields})
    record = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**record, "data_sha256": dataset.digest})
    write_csv(folder / "split.csv", [{"id": i, "split": s} for i, s in zip(dataset.ids, splits, strict=True)])
    return folder


@pytest.fixture
def data(tmp_path):
    """The squares of training pictures are dim, near the threshold; those of validation pictures are bright."""
    return write_pairs(tmp_path / "data", pictures(levels=[135] * 6 + [250] * 4))


def test_a_stage_that_says_nothing_has_no_effect(tmp_path, data):
    table = segdrop.sensitivity(finished(tmp_path / "run", two_stages(second=0.0), data), samples=3)
    first, second = table
    assert [row["stage"] for row in table] == ["stage1", "stage2"]
    assert first["train_dice"] == second["val_dice"] == 1
    assert [second[f"{part}_{what}"] for part in ("train", "val") for what in ("fall", "low", "high")] == [0] * 6
    assert second["difference"] == second["difference_low"] == second["difference_high"] == 0
    assert first["train_fall"] > 0


def test_the_falls_equal_a_computation_by_hand(tmp_path, data):
    """With one of 8 equal maps kept in m, the stage's weight is m / 8 / (1 - rate) of what it is without dropout.

    Of dim squares (135, threshold 128.5) all pixels are found or none, as (1 + s) x 135 reaches 2 x 128.5 or not, with
    s = kept / 8 / (1 - rate): that is, s >= 0.9037. Of the dark pixels (60) none is found unless s > 3.28, and at rate
    0.5 it is at most 2. Bright squares (250) are found where s >= 0.028: one map is enough.
    """
    run = finished(tmp_path / "run", two_stages(first=1.0, second=0.0), data)
    table = segdrop.sensitivity(run, rate=0.5, samples=400)
    kept = np.arange(9)
    binomial = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) / 256
    lost = binomial[kept / 8 / 0.5 < (2 * 128.5 / 135 - 1)].sum()  # 3 maps or fewer
    assert lost == pytest.approx(93 / 256)
    assert table[0]["train_fall"] == pytest.approx(lost, abs=4 * np.sqrt(lost * (1 - lost) / 2400))
    assert table[0]["val_fall"] == pytest.approx(1 / 256, abs=4 * np.sqrt(1 / 256 / 1600))
    assert table[0]["difference"] == table[0]["train_fall"] - table[0]["val_fall"]
    assert table[0]["difference_low"] > 0 and table[0]["rate"] == 0.5 and table[0]["places"] == 1
    assert "in stage1 lowers" in table.reading and "--dropout-blocks stage1)" in table.reading


def test_a_rate_near_one_destroys(tmp_path, data):
    table = segdrop.sensitivity(finished(tmp_path / "run", two_stages(), data), rate=0.999, samples=4)
    assert [row[f"{part}_fall"] > 0.9 for row in table for part in ("train",)] == [True, True]


def test_dropout_that_the_network_has_is_taken_out_first(tmp_path, data):
    plain = two_stages(second=0.0)
    dropped = segdrop.insert_dropout(plain, ["stage1_unit1_relu2"], 0.9)
    of = [
        segdrop.sensitivity(finished(tmp_path / name, model, data), samples=3)
        for name, model in (("plain", plain), ("dropped", dropped))
    ]
    assert of[0] == of[1]


def test_the_same_seed_gives_the_same_numbers_and_another_others(tmp_path, data):
    run = finished(tmp_path / "run", two_stages(), data)
    once, again, other = (segdrop.sensitivity(run, samples=2, images=3, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    assert once[0]["train_images"] == once[0]["val_images"] == 3


def test_the_samples_of_an_image_are_those_whose_mean_is_taken():
    model = randomise(build_small_unet(encoder_dropout=0.5, classes=3))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 64, 3)).astype("float32")
    each = MonteCarlo(model, 4, seed=3).each(images, key=7)
    moments = MonteCarlo(model, 4, seed=3).moments(images, key=7)
    apart = each.reshape(2, 32, 64, 4, 3)
    assert np.allclose(apart.mean(axis=3), moments[..., :3], atol=1e-6)
    assert not np.allclose(apart[..., 0, :], apart[..., 1, :]) and np.allclose(apart.sum(axis=4), 1, atol=1e-5)


def test_dice_counts_the_classes_that_the_truth_has():
    background, found, missed, false = [9, 0, 0], [3, 1, 1], [0, 0, 9], [0, 9, 0]
    images = [[background, found, false], [background, found, missed], [background, false, [0, 0, 0]]]
    assert np.allclose(dice_of_present(images), [0.75, 0.375, np.nan], equal_nan=True)


def test_whole_patients_are_drawn_and_the_two_splits_by_themselves():
    rng = np.random.default_rng(0)
    train, val = rng.normal(0.2, 0.1, 40), rng.normal(0.1, 0.1, 30)
    groups = [f"g{i // 4}" for i in range(40)]
    first, second, difference = compare_falls(train, val, groups, seed=3)
    assert (first.mean, first.low, first.high) == paired_bootstrap(train, groups, seed=6)
    assert (second.mean, second.low, second.high) == paired_bootstrap(val, seed=7)
    # Variances of independent means add up.
    width = np.hypot(first.high - first.low, second.high - second.low)
    assert difference.mean == first.mean - second.mean
    assert difference.high - difference.low == pytest.approx(width, rel=0.1)
    # The same numbers on both sides do not cancel.
    alike = compare_falls(train, train)[2]
    assert alike.mean == 0 and alike.low < -0.02 and alike.high > 0.02


def test_groups_of_the_data_set_make_the_intervals(tmp_path):
    pairs = pictures(levels=[135] * 6 + [250] * 4)
    data = write_pairs(tmp_path / "data", pairs)
    alone = segdrop.sensitivity(finished(tmp_path / "alone", two_stages(), data), samples=2)
    write_csv(data / "groups.csv", [{"id": name, "group": f"g{i // 3}"} for i, name in enumerate(pairs)])
    grouped = segdrop.sensitivity(finished(tmp_path / "grouped", two_stages(), data), samples=2)
    assert grouped[0]["train_fall"] == alone[0]["train_fall"]
    assert grouped[0]["train_low"] != alone[0]["train_low"]


def test_ignored_pixels_do_not_count(tmp_path):
    pairs = pictures()
    for image, mask in pairs.values():
        image[20:, :4], mask[20:, :4] = 255, 9  # bright, where no foreground is
    data = write_pairs(tmp_path / "data", pairs)
    run = finished(tmp_path / "run", two_stages(second=0.0), data, ignore_value=9)
    table = segdrop.sensitivity(run, samples=2)
    assert table[0]["train_dice"] == table[0]["val_dice"] == 1 and table[1]["train_fall"] == 0


def test_several_classes_and_classes_that_overlap(tmp_path):
    names = ("background", "a", "b")
    pairs = pictures(values=(0, 2), levels=[200] * 10)
    for _, mask in pairs.values():
        mask[30:, :4] = 1  # never found: the mean over both classes is a half
    data = write_pairs(tmp_path / "data", pairs)
    write_json(data / "classes.json", {"0": "background", "1": "a", "2": "b"})
    model = two_stages(second=0.0, classes=3, activation="softmax")
    table = segdrop.sensitivity(finished(tmp_path / "run", model, data, class_names=names), samples=2)
    assert table[0]["train_dice"] == table[0]["val_dice"] == 0.5
    assert table[1]["train_fall"] == 0 and table[0]["train_low"] >= 0

    model = two_stages(second=0.0, classes=2)  # the first channel is 0.5 everywhere: found in all pixels
    model.get_layer("final_conv").bias.assign([-1.0, float(model.get_layer("final_conv").bias[1])])
    run = finished(tmp_path / "overlapping", model, data, class_names=names, multilabel=True)
    table = segdrop.sensitivity(run, samples=2)
    assert table[0]["train_dice"] == table[0]["val_dice"] == 0.5
    assert table[1]["train_fall"] == 0


def test_a_training_can_be_asked(tmp_path, cells, small_unet):
    segdrop.train(tiny_training(cells, run_dir=str(tmp_path / "run"), encoder_dropout=0.2))
    (row,) = segdrop.sensitivity(tmp_path / "run", samples=2)
    assert (row["stage"], row["places"], row["train_images"], row["val_images"]) == ("stage3", 1, 4, 2)


@pytest.mark.slow
def test_the_places_are_those_of_dropout_blocks(tmp_path, cells):
    run = finished(tmp_path / "run", build_unet("resnet18", encoder_weights=None), cells, splits_of(cells))
    table = segdrop.sensitivity(run, samples=1)
    built = [
        segdrop.dropout_table(build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, blocks=[f"stage{n}"]))
        for n in range(1, 5)
    ]
    assert [row["places"] for row in table] == [len(each) for each in built]


def splits_of(data):
    return [row["split"] for row in read_csv(data / "splits.csv")]


def test_bad_numbers_are_told_in_one_line(tmp_path, data):
    run = finished(tmp_path / "run", two_stages(), data)
    for options, message in [
        ({"rate": 0}, "`rate` must be a number in (0, 1), got rate=0."),
        ({"rate": 1.0}, "`rate` must be a number in (0, 1), got rate=1.0."),
        ({"rate": True}, "got rate=True"),
        ({"rate": float("nan")}, "got rate=nan"),
        ({"samples": 0}, "`samples` must be a whole number of at least 1, got samples=0."),
        ({"images": 1}, "`images` must be a whole number of at least 2, got images=1."),
        ({"seed": -1}, "`seed` must be a whole number of at least 0"),
    ]:
        with pytest.raises(InputError) as caught:
            segdrop.sensitivity(run, **options)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_runs_that_cannot_be_asked_are_told_in_one_line(tmp_path, data, capsys):
    run = finished(tmp_path / "run", two_stages(), data)
    none = finished(tmp_path / "none", two_stages(), data, ["train"] * 10)
    empty = write_pairs(tmp_path / "empty", {k: (i, m if k < "p6" else 0 * m) for k, (i, m) in pictures().items()})
    other = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(1, 1, activation="sigmoid")])
    other = finished(tmp_path / "other", keras.Model(other.inputs, other.outputs), data)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    untrained = finished(tmp_path / "untrained", two_stages(), data)
    (untrained / "model.keras").unlink()
    for path, message in [
        (tmp_path / "nowhere", "does not exist"),
        (run / "model.keras", "`run` must be the folder of a run"),
        (none, "has 0 image(s) in the split 'val'"),
        (finished(tmp_path / "of_empty", two_stages(), empty), "fewer than two val images with foreground among 4"),
        (other, "has no stages of residual units; compare places for dropout by `segdrop sweep"),
        (tmp_path / "sweep", "is the folder of a sweep; name one of its trainings"),
        (untrained, "has no model.keras yet"),
    ]:
        assert main(["inspect", str(path), "--sensitivity"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_data_set_that_has_changed_is_told(tmp_path, data):
    run = finished(tmp_path / "run", two_stages(), data)
    record = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**record, "data_sha256": "another"})
    with pytest.warns(UserWarning, match="has changed since"):
        segdrop.sensitivity(run, samples=1)


def test_the_command_shows_and_writes_what_the_function_gives(tmp_path, data, capsys):
    run = finished(tmp_path / "run", two_stages(second=0.0), data)
    options = ["--mc-rate", "0.5", "--mc-samples", "3", "--mc-images", "4", "--seed", "5"]
    files = ["--json", str(tmp_path / "t.json"), "--csv", str(tmp_path / "t.csv")]
    assert main(["inspect", str(run), "--sensitivity", *options, *files]) == 0
    table = segdrop.sensitivity(run, rate=0.5, samples=3, images=4, seed=5)
    assert json.loads((tmp_path / "t.json").read_text()) == table
    assert [row["stage"] for row in read_csv(tmp_path / "t.csv")] == ["stage1", "stage2"]
    told = capsys.readouterr().out
    assert "stage2" in told and "0.000 [0.000, 0.000]" in told and "docs/dropout.md" in told
    assert main(["inspect", str(run), "--sensitivity", "--verify"]) == 2
    assert "leave --verify," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rank", "RUN", "IMAGES", "--mc-samples", "0"], "`mc_samples` must be a whole number of at least 1"),
        (["inspect", "RUN", "--sensitivity", "--mc-samples", "0"], "`mc_samples` must be a whole number of at least 1"),
        (["inspect", "RUN", "--sensitivity", "--mc-images", "1"], "`mc_images` must be a whole number of at least 2"),
        (["inspect", "RUN", "--sensitivity", "--mc-rate", "1"], "`mc_rate` must be a number in (0, 1)"),
    ],
)
def test_options_are_named_as_the_user_has_given_them(words, named, capsys):
    assert main(words) == 2 and named in capsys.readouterr().err


def test_the_sentence_claims_no_more_than_the_rows_say():
    row = {"rate": 0.2, "train_fall": 0.05, "val_fall": 0.01, "difference_low": -0.001}
    told = Sensitivities([row | {"stage": "stage1"}]).reading
    assert told.startswith("Not even in the one stage does spatial dropout of 0.2 lower the Dice of the training")
    assert "no hint where dropout might help, nor that it would not" in told
    rows = [row | {"stage": f"stage{n}", "difference_low": 0.01 * (n > 1)} for n in (1, 2, 3)]
    told = Sensitivities(rows).reading
    assert "in stage2 and stage3 lowers" in told and "by 0.050 and 0.050, that of" in told
    assert "(--dropout-blocks stage2 stage3)" in told and "whether it does, a sweep measures" in told


def test_one_group_has_no_intervals_and_gives_no_hint():
    nothing = dict.fromkeys(["train_low", "train_high", "val_low", "val_high"], np.nan)
    nothing |= {"difference_low": np.nan, "difference_high": np.nan, "train_dice": 0.7, "val_dice": 0.6}
    falls = {"train_fall": 0.05, "val_fall": 0.01, "difference": 0.04, "train_images": 4, "val_images": 2}
    table = Sensitivities([falls | nothing | {"stage": "stage1", "places": 2, "rate": 0.2, "samples": 5}])
    console = rich.console.Console(width=100, record=True)
    console.print(table.rich())
    (row,) = (line.split() for line in console.export_text().splitlines() if "stage1" in line)
    assert row == ["stage1", "2", "0.050", "0.010", "0.040"]
    assert table.reading.startswith("The training or the validation images are of one group, which tells nothing")
