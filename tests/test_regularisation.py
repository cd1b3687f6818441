"""Options against overfitting besides dropout: what they may be, and that each acts, alone and as an arm of a sweep."""

import csv
import json

import numpy as np
import pytest
from conftest import tiny_training

from segdrop import InputError, TrainConfig
from segdrop.config.arms import config_of
from segdrop.data.opening import open_dataset
from segdrop.training import session
from segdrop.training.folds import train_fold

NEW = "weight_decay ema label_smoothing augment_strength copy_paste mixup cutmix".split()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"weight_decay": -1}, "`weight_decay` must be a number of at least 0, got weight_decay=-1."),
        ({"ema": 1}, "`ema` must be in (0, 1), got ema=1."),
        ({"ema": 0.9, "gpus": "all"}, "`ema` needs gpus='one', got ema=0.9 with gpus='all'."),
        ({"label_smoothing": 1}, "`label_smoothing` must be in [0, 1), got label_smoothing=1."),
        (
            {"label_smoothing": 0.1, "loss": "tversky"},
            "`label_smoothing` needs a loss with cross-entropy (dice_ce, focal), got label_smoothing=0.1 with "
            "loss='tversky'.",
        ),
        ({"augment_strength": -1}, "`augment_strength` must be a number of at least 0, got augment_strength=-1."),
        ({"copy_paste": 1.5}, "`copy_paste` must be in [0, 1], got copy_paste=1.5."),
        ({"mixup": 0}, "`mixup` must be a positive number, got mixup=0."),
        ({"cutmix": float("inf")}, "`cutmix` must be a positive number, got cutmix=inf."),
        ({"mixup": 0.2, "cutmix": 1.0}, "`cutmix` must be left out with mixup=0.2, got cutmix=1.0."),
    ],
)
def test_what_cannot_be_is_told_in_a_line(fields, told):
    with pytest.raises(InputError) as error:
        TrainConfig(**fields)
    assert str(error.value) == told


def test_a_configuration_stored_before_there_were_such_options_is_as_it_was():
    stored = TrainConfig().to_json()
    before = TrainConfig.from_json({name: value for name, value in stored.items() if name not in NEW})
    assert [getattr(before, name) for name in NEW] == [1e-4, None, 0.0, 1.0, 0.0, None, None]
    given = {
        "ema": 0.99,
        "label_smoothing": 0.1,
        "augment_strength": 2,
        "copy_paste": 0.5,
        "cutmix": 1,
        "weight_decay": 0,
    }
    config = TrainConfig(**given)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.fixture(scope="module")
def dataset(cells):
    return open_dataset(cells)


@pytest.fixture
def history_of(dataset, cells, tmp_path, small_unet):
    def trained(changes):
        """The losses of an arm's training."""
        base = tiny_training(cells, epochs=2, batch_size=2, lr=0.01, augment="light", encoder_dropout=0.2)
        run_dir = tmp_path / "-".join(["arm", *changes])
        config = config_of(base, changes)
        split = {"train": np.arange(4), "val": np.arange(4, 6), "test": np.arange(0)}
        train_fold(config, run_dir, dataset, split, config.mixed_precision, "random")
        assert TrainConfig.from_json(json.loads((run_dir / "config.json").read_text())["config"]).ema == config.ema
        with (run_dir / "history.csv").open() as file:
            return [(float(row["loss"]), float(row["val_loss"])) for row in csv.DictReader(file)]

    return trained


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.5},
        {"label_smoothing": 0.3},
        {"augment_strength": 3},
        {"copy_paste": 1.0},
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"encoder_lr": 0.1},
        {"freeze_epochs": 1},
    ],
)
def test_each_changes_the_training_of_an_arm(history_of, changes):
    (*_, (plain, _)), (*_, (other, _)) = history_of({}), history_of(changes)
    assert np.isfinite(other) and other != pytest.approx(plain, rel=1e-4)


def test_averages_change_the_validation_of_an_arm_and_not_its_training(history_of):
    plain, averaged = np.array(history_of({})), np.array(history_of({"ema": 0.9}))
    np.testing.assert_array_equal(plain[:, 0], averaged[:, 0])
    assert np.abs(plain[:, 1] - averaged[:, 1]).min() > 1e-3


def test_weight_decay_is_the_optimizer_s(history_of, monkeypatch):
    given = []
    made = session.OneDeviceAdamW

    def noting(*args, **options):
        given.append(options["weight_decay"])
        return made(*args, **options)

    monkeypatch.setattr(session, "OneDeviceAdamW", noting)
    history_of({})
    history_of({"weight_decay": 0.01})
    assert given == [1e-4, 0.01]
