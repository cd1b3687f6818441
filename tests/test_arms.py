"""Arms: what a grid compares, what it is compared with, and what is told of a grid that cannot be."""

import json

import numpy as np
import pytest

from segdrop import InputError, SweepConfig, TrainConfig
from segdrop.config.arms import (
    alternatives,
    arm_config,
    arms_of,
    config_of,
    curve_of,
    default_grid,
    key_of,
    name_of,
    read_grid,
    reference_of,
)


def names(grid, train=None, **options):
    return [name_of(arm) for arm in arms_of(SweepConfig(train=train or TrainConfig(), grid=grid, **options))]


def test_a_grid_is_crossed_in_its_order_with_rate_0_first():
    grid = {"encoder_dropout": [0.1, 0.3], "dropout_kind": ["spatial", "element"]}
    assert names(grid) == ["none", "spatial 0.1", "element 0.1", "spatial 0.3", "element 0.3"]


def test_every_field_of_dropout_can_be_crossed():
    grid = {
        "encoder_dropout": [0.2],
        "dropout_kind": ["block"],
        "dropout_placement": ["between_convs", "block_end"],
        "dropout_blocks": [["stage4"], ["stage3", "stage4"]],
        "dropout_schedule": ["constant", "ramp"],
    }
    assert names(grid) == [
        "none",
        "block 0.2 in stage4",
        "block 0.2 in stage4 ramp",
        "block 0.2 in stage3+stage4",
        "block 0.2 in stage3+stage4 ramp",
        "block 0.2 at block_end in stage4",
        "block 0.2 at block_end in stage4 ramp",
        "block 0.2 at block_end in stage3+stage4",
        "block 0.2 at block_end in stage3+stage4 ramp",
    ]


def test_each_value_of_another_field_has_a_reference_without_dropout():
    arms = arms_of(SweepConfig(grid={"encoder_dropout": [0.2], "lr": [0.001, 0.0003], "dropout_kind": ["spatial"]}))
    assert [name_of(arm) for arm in arms] == ["none", "spatial 0.2", "none, lr=0.0003", "spatial 0.2, lr=0.0003"]
    assert [arms.index(reference_of(arm)) for arm in arms] == [0, 0, 2, 2]


def test_rate_0_is_one_arm_whatever_else_is_said_of_its_dropout():
    grid = {
        "encoder_dropout": [0, 0.2],
        "dropout_kind": ["spatial", "element"],
        "dropout_schedule": ["constant", "ramp"],
        "dropout_blocks": [["stage4"]],
    }
    found = names(grid)
    assert [name for name in found if name.startswith("none")] == ["none"] and len(found) == 1 + 2 * 2


def test_parts_of_a_list_follow_one_another_and_equal_arms_are_one():
    grid = [
        {"encoder_dropout": [0.1, 0.2], "dropout_kind": ["spatial"]},
        {"encoder_dropout": [0.2], "spatial": [True]},
        {"encoder_dropout": [0.2]},
    ]
    assert names(grid) == ["none", "spatial 0.1", "spatial 0.2", "element 0.2"]


def test_the_configuration_s_own_dropout_is_the_arm_where_there_is_no_grid():
    train = TrainConfig(encoder_dropout=0.2, spatial=True, lr=0.01)
    assert names(None, train) == names({}, train) == ["none", "spatial 0.2"]
    (plain, dropped) = arms_of(SweepConfig(train=train))
    assert plain == {} and dropped == {"encoder_dropout": 0.2, "dropout_kind": "spatial"}


def test_a_grid_s_dropout_replaces_the_configuration_s():
    train = TrainConfig(encoder_dropout=0.2)
    assert names({"dropout_kind": ["spatial", "block"]}, train) == ["none", "spatial 0.2", "block 0.2"]
    assert names({"encoder_dropout": [0, 0.5]}, train) == ["none", "element 0.5"]


@pytest.mark.parametrize(
    ("train", "given", "expected"),
    [
        ({}, {}, ["none", "spatial 0.1", "spatial 0.2", "spatial 0.3", "spatial 0.5"]),
        ({}, {"encoder_dropout": [0.4]}, ["none", "spatial 0.4"]),
        ({"dropout_kind": "element"}, {"encoder_dropout": [0.4]}, ["none", "element 0.4"]),
        ({"encoder_dropout": 0.2}, {}, ["none", "element 0.2"]),
        ({"encoder_dropout": 0.2, "spatial": True}, {}, ["none", "spatial 0.2"]),
        ({"encoder_dropout": 0.2}, {"dropout_placement": ["block_end"]}, ["none", "element 0.2 at block_end"]),
    ],
)
def test_what_is_not_said_has_defaults(train, given, expected):
    config = TrainConfig(**train)
    assert names(default_grid(config, given), config) == expected


def test_an_arm_is_what_it_changes_and_changes_survive_json():
    train = TrainConfig(epochs=3, encoder="resnet18")
    for arm in arms_of(SweepConfig(train=train, grid={"encoder_dropout": [(0.05, 0.3)], "dropout_blocks": ["stage4"]})):
        stored = json.loads(key_of(arm))
        assert stored == arm
        config = arm_config(train, stored)
        assert (config.epochs, config.encoder, config.dropout_kind) == (3, "resnet18", arm.get("dropout_kind"))
    assert config.encoder_dropout == (0.05, 0.3) and config.dropout_blocks == ("stage4",)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"encoder_dropout": {"stage3": 0.1, "stage4": 0.2}}, "element stage3=0.1,stage4=0.2"),
        ({"encoder_dropout": (0.05, 0.3)}, "element 0.05..0.3"),
        ({"encoder_dropout": 0.2, "dropout_kind": "block", "dropout_block_size": 5}, "block 0.2 of 5"),
        (
            {"encoder_dropout": 0.2, "dropout_schedule": "warmup", "dropout_schedule_epochs": 4},
            "element 0.2 warmup over 4 epochs",
        ),
        (
            {"encoder_dropout": 0.2, "dropout_shared": True, "skips": "dropped", "epochs": 9},
            "element 0.2 shared skips dropped, epochs=9",
        ),
    ],
)
def test_an_arm_s_name_says_all_that_it_changes(changes, name):
    (arm,) = [arm for arm in arms_of(SweepConfig(grid={k: [v] for k, v in changes.items()})) if "dropout_kind" in arm]
    assert name_of(arm) == name


def test_arms_that_differ_in_the_rate_alone_are_one_curve():
    arms = arms_of(SweepConfig(grid={"encoder_dropout": [0.1, 0.5], "dropout_kind": ["spatial"], "lr": [0.001, 0.01]}))
    assert [curve_of(arm) for arm in arms] == [
        "",
        "spatial",
        "lr=0.01",
        "spatial, lr=0.01",
        "spatial",
        "spatial, lr=0.01",
    ]


def test_a_ramp_from_a_rate_to_itself_is_that_rate():
    arms = arms_of(SweepConfig(grid={"encoder_dropout": [[0.1, 0.1], 0.1, [0.1, 0.2]]}))
    assert [name_of(arm) for arm in arms] == ["none", "element 0.1", "element 0.1..0.2"]


def test_a_name_that_is_twice_in_a_grid_is_an_error():
    with pytest.raises(InputError, match=r"^`grid` is not JSON: the key 'lr' is there twice\.$"):
        read_grid('{"lr": [0.1], "lr": [0.2]}')


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"encoder_droput": [0.1]}, "`grid` has an unknown field: 'encoder_droput'; the fields are those of"),
        ({"seed": [1, 2]}, "`grid` cannot vary 'seed': give `seeds`."),
        ({"val_fraction": [0.1]}, "`grid` cannot vary 'val_fraction': arms must be scored on the same images."),
        ({"run_dir": ["x"]}, "`grid` cannot vary 'run_dir': it is no part of an arm."),
        ({"encoder_dropout": 0.1}, "`grid` needs a list of values for 'encoder_dropout', got 0.1."),
        ({"encoder_dropout": []}, "`grid` needs a list of values for 'encoder_dropout', got []."),
        ({"encoder_dropout": "0.1"}, "`grid` needs a list of values for 'encoder_dropout', got '0.1'."),
        (["encoder_dropout"], "`grid` must map fields to lists of values, or be a list of such mappings, got"),
        (3, "`grid` must map fields to lists of values, or be a list of such mappings, got 3."),
        (
            {"encoder_dropout": {"low": 0.1, "high": 0.5}},
            "`grid` has a range for 'encoder_dropout', which only a search",
        ),
        (
            {"encoder_dropout": [0.1, 1.5]},
            "`grid` has an impossible arm (encoder_dropout=1.5): `encoder_dropout` must be a number in [0, 1), got",
        ),
        ({"lr": ["fast"]}, "`grid` has an impossible arm (lr='fast'): `lr` must be a positive number"),
        ({"bn_momentum": ["slow"]}, "`grid` has an impossible arm (bn_momentum='slow'): "),
        (
            {"encoder_dropout": [0.1], "dropout_kind": ["spatial"], "dropout_block_size": [3]},
            "`grid` has an impossible arm (encoder_dropout=0.1, dropout_kind='spatial', dropout_block_size=3): ",
        ),
        ({"encoder_dropout": [0.0]}, "`grid` has nothing to compare with rate 0; give rates above 0 or other fields."),
        (None, "`grid` has nothing to compare with rate 0; give rates above 0 or other fields."),
        (
            {"minutes": [5, 10]},
            "`grid` cannot vary 'minutes': the plan, which all arms have in common, reads it; give `ep",
        ),
        ({"ema": [0.99001, 0.99002]}, "`grid` has two arms that are called 'weight averaging 0.99'; take values that"),
        (
            {"intensity_percentiles": [[1, 99]]},
            "`grid` has an impossible arm (intensity_percentiles=[1, 99]): `intensity",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_told_in_a_sentence(grid, message):
    with pytest.raises(InputError) as caught:
        arms_of(SweepConfig(grid=grid))
    assert str(caught.value).startswith(message)


def test_a_search_starts_from_no_dropout_alone():
    grid = {"encoder_dropout": {"low": 0.05, "high": 0.5}}
    assert names(grid, TrainConfig(encoder_dropout=0.2), search=3) == ["none"]


def test_a_grid_is_json_or_a_file_of_it(tmp_path):
    grid = [{"lr": [0.001]}, {"dropout_blocks": [["stage3", "stage4"]]}]
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    assert read_grid(json.dumps(grid)) == read_grid(str(tmp_path / "grid.json")) == grid
    assert read_grid(None) is None
    with pytest.raises(InputError, match="`grid` is not JSON: "):
        read_grid('{"lr": [0.001}')
    with pytest.raises(FileNotFoundError, match="`grid` is neither JSON nor a file: nowhere.json."):
        read_grid("nowhere.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "`folds` must be a whole number of at least 2, got folds=1."),
        ({"repeats": 0}, "`repeats` must be a whole number of at least 1"),
        ({"seeds": ()}, "`seeds` must be one or more different numbers"),
        ({"seeds": (1, 1)}, "`seeds` must be one or more different numbers"),
        ({"seeds": (2**32,)}, "`seeds` must be below 2^32"),
        ({"seeds": (-1,)}, "`seeds` must be a whole number of at least 0"),
        ({"search": -1}, "`search` must be a whole number of at least 0"),
        ({"prune": True}, "`prune` belongs to a search"),
        ({"hold_out": "no"}, "`hold_out` must be True or False, got hold_out='no'."),
        ({"stop_when_told": "no"}, "`stop_when_told` must be True or False"),
        ({"reference": 5}, "`reference` must be text, got reference=5."),
        ({"train": None}, "`train` must be a TrainConfig, got train=None."),
        ({"train": TrainConfig(run_dir="x")}, "`run_dir` is not for a sweep"),
        ({"train": TrainConfig(from_sweep="x")}, "`from_sweep` is not for a sweep"),
        ({"train": TrainConfig(resume=True, run_dir="x")}, "`resume` is not for a sweep"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError) as caught:
        SweepConfig(**options)
    assert str(caught.value).startswith(message)


def test_numpys_numbers_in_a_sweep_become_pythons():
    grid = {"encoder_dropout": np.float32([0.25, 0.5]), "lr": [np.float64(0.01)]}
    config = SweepConfig(grid=grid, folds=np.int64(2), seeds=np.arange(2), margin=np.float32(0.25))
    assert config == SweepConfig(
        grid={"encoder_dropout": (0.25, 0.5), "lr": [0.01]}, folds=2, seeds=(0, 1), margin=0.25
    )
    assert SweepConfig.from_json(json.loads(json.dumps(config.to_json()))).folds == 2


def test_a_sweep_s_configuration_survives_json():
    config = SweepConfig(
        train=TrainConfig(dropout_blocks=("stage4",), intensity="percentiles", intensity_percentiles=(1, 99)),
        grid={"encoder_dropout": [(0.1, 0.2), {"stage4": 0.3}]},
        seeds=[3, 5],
    )
    back = SweepConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert back.train == config.train and back.seeds == (3, 5)
    assert list(map(key_of, arms_of(back))) == list(map(key_of, arms_of(config)))


# What else is done against overfitting


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ema": 0.99}, "weight averaging 0.99"),
        ({"label_smoothing": 0.1}, "label smoothing 0.1"),
        ({"augment_strength": 2.0}, "augmentation x2"),
        ({"augment_strength": 0.5}, "augmentation x0.5"),
        ({"mixup": 0.2}, "mixup 0.2"),
        ({"cutmix": 1.0}, "cutmix 1"),
        ({"weight_decay": 0.001}, "weight decay 0.001"),
        ({"copy_paste": 0.5}, "copy-paste 0.5"),
        ({"ema": None}, "no weight averaging"),
        ({"lr": 0.01, "ema": 0.99, "mixup": 0.2}, "weight averaging 0.99, mixup 0.2, lr=0.01"),
        ({"lr": 0.01}, "none, lr=0.01"),
        (
            {"ema": 0.99, "lr": 0.01, "encoder_dropout": 0.2, "dropout_kind": "spatial"},
            "spatial 0.2, weight averaging 0.99, lr=0.01",
        ),
    ],
)
def test_an_arm_is_called_what_it_is_known_for(changes, name):
    assert name_of(changes) == name
    assert curve_of(changes) == name.replace("spatial 0.2", "spatial").removeprefix("none, ")


def test_every_option_against_overfitting_is_a_field_of_a_grid():
    grid = {
        "ema": [None, 0.9],
        "weight_decay": [0.01],
        "label_smoothing": [0.1],
        "augment_strength": [2],
        "copy_paste": [0.5],
        "mixup": [0.2],
        "encoder_lr": [0.1],
        "freeze_epochs": [2],
        "encoder_dropout": [0.2],
    }
    arms = arms_of(SweepConfig(grid=grid))
    common = "label smoothing 0.1, augmentation x2, copy-paste 0.5, mixup 0.2, encoder_lr=0.1, freeze_epochs=2"
    assert [name_of(arm).replace(common, "...") for arm in arms] == [
        "none",
        "weight decay 0.01, ...",
        "element 0.2, weight decay 0.01, ...",
        "weight decay 0.01, weight averaging 0.9, ...",
        "element 0.2, weight decay 0.01, weight averaging 0.9, ...",
    ]
    assert arms[2] == {**arms[1], "encoder_dropout": 0.2, "dropout_kind": "element"} and arms[1] == reference_of(
        arms[2]
    )
    config = config_of(TrainConfig(), arms[4])
    assert (config.ema, config.mixup, config.encoder_lr, config.freeze_epochs) == (0.9, 0.2, 0.1, 2)


def test_the_alternatives_to_dropout_are_an_arm_each():
    """Whatever dropout the training has itself."""
    told = ["none", "weight averaging 0.99", "augmentation x2", "label smoothing 0.1", "weight decay 0.001"]
    told += ["copy-paste 0.5", "cutmix 1"]
    for train in (TrainConfig(), TrainConfig(encoder_dropout=0.3, spatial=True)):
        assert names(alternatives(train), train) == told


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({"ema": 0.9}, {"ema"}),
        ({"gpus": "all"}, {"ema"}),
        ({"augment": "none"}, {"augment_strength"}),
        ({"augment": "mine.json"}, {"augment_strength"}),
        ({"augment": "light"}, set()),
        ({"loss": "dice"}, {"label_smoothing"}),
        ({"loss": "focal"}, set()),
        ({"weight_decay": 0.0}, {"weight_decay"}),
        ({"mixup": 0.2}, {"cutmix"}),
        ({"cutmix": 0.5, "copy_paste": 0.1}, {"cutmix", "copy_paste"}),
        ({"batch_size": 1}, {"cutmix", "copy_paste"}),
    ],
)
def test_alternatives_that_are_set_or_cannot_be_are_left_out(fields, left_out):
    def offered(train):
        return {name for grid in alternatives(train) for name in grid}

    train = TrainConfig(**fields)
    assert offered(TrainConfig()) - offered(train) == left_out
    if train.gpus == "one":
        assert len(names(alternatives(train), train)) == 7 - len(left_out)
