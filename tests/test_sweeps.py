"""Sweeps: what is trained on what, what is refused, what is chosen. Trainings are stand-ins that give known scores."""

import contextlib
import gc
import json
import shutil
import sqlite3
import statistics
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import brightness_model, read_csv, write_run, write_table

from segdrop import InputError, SweepConfig, TrainConfig, chosen_config, estimate, sweep_report
from segdrop.data.opening import open_dataset
from segdrop.files import write_csv
from segdrop.folders import sweep as sweep_folder
from segdrop.folders.sweep import fold_runs, read_folds
from segdrop.inference.ensemble import load_alike
from segdrop.scoring.counts import dice as dice_of
from segdrop.scoring.counts import foreground_mean
from segdrop.sweeps.foresight import pilot_spread
from segdrop.sweeps.state import _place, open_or_start
from segdrop.sweeps.sweep import sweep
from segdrop.training import folds

GRID = {"encoder_dropout": [0.1, 0.3], "dropout_kind": ["spatial"]}
BEST_EPOCHS = {0.0: 3, 0.1: 4, 0.3: 6}


def tiny(data, **options):
    fields = {"encoder": "resnet18", "encoder_weights": "none", "mixed_precision": "off", **options}
    return TrainConfig.from_json({"data": str(data), **fields})


def config_of(data, train=None, **options):
    return SweepConfig(train=tiny(data, **(train or {})), **{"grid": GRID, "folds": 2, **options})


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Two runs' folders of networks that call pixels foreground from another brightness on each."""
    folder = tmp_path_factory.mktemp("networks")
    return [write_run(folder / str(t), brightness_model(t, slope=0.05)) for t in (100, 161)]


@pytest.fixture(scope="module")
def stand_in(network):
    """Makes a replacement of `train_fold`: Dice is best at a rate of 0.1, and lower in folds with later images."""

    def made(calls):
        def train_fold(config, run_dir, dataset, split, precision, weights):
            calls.append((config, {name: [dataset.ids[i] for i in part] for name, part in split.items()}))
            fold = int(min(split["val"]) > min(split["train"]))
            shutil.copytree(network[fold], run_dir)
            record = json.loads((run_dir / "config.json").read_text())
            (run_dir / "config.json").write_text(json.dumps({**record, "config": config.to_json()}))
            dice = {0.0: 0.5, 0.1: 0.6, 0.3: 0.4}[config.encoder_dropout] - fold / 10
            write_csv(
                run_dir / "per_image.csv", [{"split": "val", "id": dataset.ids[i], "dice": dice} for i in split["val"]]
            )
            return {
                **dict.fromkeys(("dice", "iou", "ece", "ece_foreground", "brier", "train_dice"), dice),
                "best_epoch": BEST_EPOCHS[config.encoder_dropout] + 3 * fold,
                "epochs": 20,
                "train_images": len(split["train"]),
                "val_images": len(split["val"]),
                "device": "a stand-in",
            }

        return train_fold

    return made


def replace(monkeypatch, train_fold):
    monkeypatch.setattr("segdrop.training.folds.train_fold", train_fold)
    monkeypatch.setattr("segdrop.training.building.build_model", lambda *arguments: None)
    monkeypatch.setattr(keras.backend, "clear_session", lambda: None)  # slow, like the next, and nothing is built
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)


@pytest.fixture
def trained(monkeypatch, stand_in):
    """Trainings are stand-ins; the list of those that were done: configuration and ids of each split."""
    calls = []
    replace(monkeypatch, stand_in(calls))
    return calls


@pytest.fixture(scope="module")
def done(stand_in, cells, tmp_path_factory):
    """The folder of a finished sweep of 3 arms in 2 folds, and its trainings."""
    folder, calls = tmp_path_factory.mktemp("done") / "sweep", []
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace(monkeypatch, stand_in(calls))
        sweep(folder, config_of(cells))
    return folder, calls


@pytest.fixture
def finished(done, trained, tmp_path):
    """A copy of the folder of a finished sweep; `trained` has what is trained in it from then on."""
    return shutil.copytree(done[0], tmp_path / "sweep")


def test_every_arm_is_trained_on_the_same_folds_with_the_same_seeds(trained, cells, tmp_path):
    sweep(tmp_path / "sweep", config_of(cells, folds=2, repeats=2, seeds=(4, 5), reference_seeds=2))
    seen = {}
    for config, split in trained:
        seen.setdefault(config.encoder_dropout, []).append((config.seed, split["train"], split["val"]))
    assert set(seen) == {0.0, 0.1, 0.3} and all(len(trainings) == 2 * 2 * 2 for trainings in seen.values())
    assert sorted(seen[0.0]) == sorted(seen[0.1]) == sorted(seen[0.3])
    assert len({seed for seed, _, _ in seen[0.0]}) == 8  # another in each fold, of each repeat, for each seed


def test_a_sweep_that_stops_when_told_trains_no_further_what_is_clear(trained, cells, tmp_path):
    config = config_of(cells, folds=3, repeats=4, stop_when_told=True)
    answer = sweep(tmp_path / "sweep", config)
    assert [one.comparison.verdict for one in answer.arms[1:]] == ["helps", "hurts"]
    assert len(trained) == answer.trained == answer.expected < 3 * 3 * 4
    assert all(one.columns == 3 and one.progress == "ended after 3 of 12 folds" for one in answer.arms)
    assert "Trained no further, because they were told" in " ".join(answer.about_the_sweep)
    assert chosen_config(tmp_path / "sweep").encoder_dropout == 0.1
    assert len(fold_runs(tmp_path / "sweep")) == 3  # a network of each fold
    again = sweep(tmp_path / "sweep", config)
    assert again.headline == answer.headline and len(trained) == answer.trained
    assert sweep_report(tmp_path / "sweep", reference="none").headline == answer.headline
    with pytest.raises(InputError, match="`reference` cannot be 'spatial 0.1' in a sweep that stops when told"):
        sweep_report(tmp_path / "sweep", reference="spatial 0.1")


def test_any_arm_can_be_what_the_others_are_compared_with(finished):
    answer = sweep_report(finished, reference="spatial 0.1", margin=0.15)
    assert [one.comparison and round(one.comparison.difference, 3) for one in answer.arms] == [-0.1, None, -0.2]
    verdicts = [one.comparison and one.comparison.verdict for one in answer.arms]
    assert verdicts == ["no difference beyond the margin", None, "hurts"]
    with pytest.raises(InputError, match="`reference` must be the name of an arm, none; spatial 0.1; spatial 0.3"):
        sweep_report(finished, reference="element 0.1")
    with pytest.raises(InputError, match="`margin` must be in 0..0.5"):
        sweep_report(finished, margin=-0.1)


def test_what_was_stated_beforehand_stays_whatever_the_arms_are_compared_with_later(trained, cells, tmp_path):
    beforehand = sweep(tmp_path / "sweep", config_of(cells, contrasts="kinds")).contrasts
    later = sweep_report(tmp_path / "sweep", reference="spatial 0.1").contrasts
    assert beforehand == later and list(later) == ["spatial, mean of 2 rates"]


def test_a_reference_or_contrast_that_there_is_not_is_told_before_anything_is_trained(trained, cells, tmp_path):
    for wrong in ({"reference": "x"}, {"contrasts": "kinds", "grid": {"encoder_dropout": [0.1]}}):
        with pytest.raises(InputError, match="`reference` must be|`contrasts` kinds needs"):
            sweep(tmp_path / "sweep", config_of(cells, **wrong))
    assert not trained and not (tmp_path / "sweep").exists()


def test_a_score_that_is_no_number_is_told(finished):
    with contextlib.closing(sqlite3.connect(finished / "sweep.db")) as database, database:
        database.execute("UPDATE trial_values SET value = 'high' WHERE trial_id = 1")
    with pytest.raises(InputError, match="^trial 0 of the sweep's database has no value; "):
        sweep_report(finished)


def test_a_pilot_without_a_spread_says_what_one_needs(finished):
    with pytest.raises(InputError, match="`pilot` .*has 6 finished training.*two arms that are complete"):
        pilot_spread(finished)


def test_test_images_are_in_no_training_and_all_others_are_held_out_once(done):
    ids = {f"cell_{i}" for i in range(6)}
    for _, split in done[1]:
        assert split["test"] == [] and set(split["train"]) | set(split["val"]) == ids
        assert not set(split["train"]) & set(split["val"])
    held_out = [name for config, split in done[1] if not config.encoder_dropout for name in split["val"]]
    assert sorted(held_out) == sorted(ids)


def test_the_folds_file_says_which_image_is_where(done):
    rows = read_csv(done[0] / "folds.csv")
    assert [row["id"] for row in rows] == [f"cell_{i}" for i in range(8)] and set(rows[0]) == {"id", "repeat_0"}
    assert [row["repeat_0"] for row in rows[6:]] == ["test", "test"]
    _, split = done[1][0]
    (fold,) = {row["repeat_0"] for row in rows if row["id"] in split["val"]}
    assert sorted(split["val"]) == [row["id"] for row in rows if row["repeat_0"] == fold]


def test_without_hold_out_all_images_are_in_the_folds(trained, cells, tmp_path):
    sweep(tmp_path / "sweep", config_of(cells, hold_out=False))
    assert {row["repeat_0"] for row in read_csv(tmp_path / "sweep" / "folds.csv")} == {"0", "1"}
    with pytest.raises(InputError, match="sweep has no test images: all are in its folds."):
        sweep_report(tmp_path / "sweep", test=True)


def grouped(cells, folder, groups):
    shutil.copytree(cells, folder)
    write_table(folder / "groups.csv", [{"id": f"cell_{i}", "group": g} for i, g in enumerate(groups)])
    (folder / "splits.csv").unlink()
    return folder


def test_patients_stay_together_and_unnamed(trained, cells, tmp_path):
    data = grouped(cells, tmp_path / "data", ["Doe"] * 2 + ["Roe"] * 2 + ["Poe"] * 2 + ["Loe"] * 2)
    sweep(tmp_path / "sweep", config_of(data, {"val_fraction": 0.25}))
    rows = read_csv(tmp_path / "sweep" / "folds.csv")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["group"] == second["group"] and first["repeat_0"] == second["repeat_0"]
    assert {row["group"] for row in rows} == {"g0", "g1", "g2", "g3"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file())
    assert not [name for name in (b"Doe", b"Roe", b"Poe", b"Loe") if name in written]


def test_the_answer_has_the_means_and_the_best_is_chosen(trained, finished, cells):
    found = sweep_report(finished)
    assert [one.arm.name for one in found.arms] == ["none", "spatial 0.1", "spatial 0.3"]
    assert [one.means["dice"] for one in found.arms] == pytest.approx([0.45, 0.55, 0.35])
    assert found.chosen == 1 and found.arms[1].comparison.difference == pytest.approx(0.1)
    assert {path.name for path in finished.iterdir()} >= {"answer.md", "answer.csv", "sweep.json", "chosen.json"}
    assert found.headline in (finished / "answer.md").read_text()
    chosen = json.loads((finished / "chosen.json").read_text())
    epochs = [BEST_EPOCHS[0.1] + 1, BEST_EPOCHS[0.1] + 4]
    assert chosen["arm"] == "spatial 0.1" and sorted(chosen["best_epochs"]) == epochs
    assert chosen["stop_after"] == round(statistics.median(epochs)) == 6
    for fold, run in enumerate(fold_runs(finished)):
        stored = json.loads((run / "config.json").read_text())["config"]
        held_out = {row["id"] for row in read_csv(run / "per_image.csv")}
        assert stored["encoder_dropout"] == 0.1
        assert held_out == {r["id"] for r in read_csv(finished / "folds.csv") if r["repeat_0"] == str(fold)}


def test_only_the_chosen_arm_s_models_are_kept(trained, finished):
    kept = sorted(path.parent for path in finished.glob("trainings/*/model.keras"))
    assert kept == sorted(fold_runs(finished)) and len(kept) == 2


def test_the_chosen_configuration_is_the_arm_s_on_all_folds_for_the_median_best_epoch(trained, cells, tmp_path):
    train = {"epochs": 20, "lr": 0.01, "train_fraction": 0.8, "recalibrate_batchnorm": True}
    sweep(tmp_path / "sweep", config_of(cells, train, seeds=(7, 8)))
    config = chosen_config(tmp_path / "sweep", run_dir="somewhere")
    assert config == tiny(
        cells,
        epochs=20,
        lr=0.01,
        encoder_dropout=0.1,
        dropout_kind="spatial",
        seed=7,
        stop_after=6,
        from_sweep=str(tmp_path / "sweep"),
        run_dir="somewhere",
    )
    assert chosen_config(tmp_path / "sweep", stop_after=2).stop_after == 2
    told = sweep_report(tmp_path / "sweep").results.facts
    assert told["training"].startswith("20 epochs at most") and told["other options"] == (
        "lr=0.01, recalibrate_batchnorm=True, train_fraction=0.8"
    )


def test_rate_0_can_be_chosen_too(trained, cells, tmp_path):
    sweep(tmp_path / "sweep", config_of(cells, grid={"encoder_dropout": [0.3]}))
    config = chosen_config(tmp_path / "sweep")
    assert config.encoder_dropout == 0 and config.stop_after == round(BEST_EPOCHS[0.0] + 1 + 1.5)


def test_the_same_call_again_trains_nothing(trained, finished, cells):
    assert sweep(finished, config_of(cells)).trained == 6
    assert sweep(finished).trained == 6
    assert trained == []


def test_an_interrupted_sweep_goes_on_where_it_was(trained, cells, tmp_path, monkeypatch):
    original, started = folds.train_fold, []

    def interrupted(*arguments):
        started.append(arguments)
        if len(started) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr("segdrop.training.folds.train_fold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "sweep", config_of(cells))
    assert len(trained) == 2
    assert sweep_report(tmp_path / "sweep").trained == 2
    assert not (tmp_path / "sweep" / "chosen.json").exists()
    answer = sweep(tmp_path / "sweep", config_of(cells))
    assert answer.trained == answer.expected == 6 and not answer.failures
    assert len({(config.encoder_dropout, *split["val"]) for config, split in trained}) == len(trained) == 6


def test_a_sweep_grows_by_repeats_and_seeds_and_keeps_its_folds(trained, finished, cells, monkeypatch):
    before = [row["repeat_0"] for row in read_csv(finished / "folds.csv")]

    def divided_otherwise(dataset, indices, folds, seed):
        return np.array_split(indices[::-1], folds)

    monkeypatch.setattr("segdrop.sweeps.state.cross_validation", divided_otherwise)
    answer = sweep(finished, config_of(cells, repeats=2, seeds=(0, 1)))
    further = 2 * 2  # a third seed of rate 0, which both others are compared with
    assert answer.trained == answer.expected == 3 * 2 * 2 * 2 + further and len(trained) == 24 - 6 + further
    rows = read_csv(finished / "folds.csv")
    assert [row["repeat_0"] for row in rows] == before
    assert [row["repeat_1"] for row in rows] == ["1"] * 3 + ["0"] * 3 + ["test"] * 2
    with pytest.raises(InputError, match="`repeats` is 1, but .* was started with 2; choose another folder."):
        sweep(finished, config_of(cells))


def test_a_sweep_that_has_grown_has_chosen_nothing_until_it_is_finished(trained, finished, cells, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("segdrop.training.folds.train_fold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(finished, config_of(cells, repeats=2))
    with pytest.raises(InputError, match="is not finished, so that no arm is chosen; run its `segdrop sweep` command"):
        chosen_config(finished)
    with pytest.raises(InputError, match="`test` is for the arm that a finished sweep has chosen"):
        sweep_report(finished, test=True)


@pytest.mark.parametrize(
    ("options", "train", "message"),
    [
        ({"grid": {"encoder_dropout": [0.1]}}, {}, "`grid` is {'encoder_dropout': [0.1]}, but"),
        ({"folds": 3}, {}, "`folds` is 3, but"),
        ({"seeds": (1,)}, {}, "`seeds` is [1], but"),
        ({"search": 4}, {}, "`search` is 4, but"),
        ({"hold_out": False}, {}, "`hold_out` is False, but"),
        ({}, {"lr": 0.5}, "`lr` is 0.5, but"),
        ({}, {"seed": 1}, "`seed` is 1, but"),
    ],
)
def test_another_configuration_is_refused_with_what_differs(trained, finished, cells, options, train, message):
    with pytest.raises(InputError) as caught:
        sweep(finished, config_of(cells, train, **options))
    assert str(caught.value).startswith(message) and f"{finished} was started with" in str(caught.value)
    assert trained == [] and sweep_report(finished).trained == 6


def test_data_that_lie_elsewhere_now_are_the_same_and_changed_ones_are_not(trained, finished, cells, tmp_path):
    moved = shutil.copytree(cells, tmp_path / "moved")
    assert sweep(finished, config_of(moved, {"cache_mb": 1})).trained == 6
    shutil.copyfile(moved / "images" / "cell_1.png", moved / "images" / "cell_0.png")
    with pytest.raises(InputError, match="moved has other images or masks than .*sweep was started with"):
        sweep(finished, config_of(moved))


def test_other_groups_are_refused(trained, finished, cells, tmp_path):
    other = shutil.copytree(cells, tmp_path / "other")
    write_table(other / "groups.csv", [{"id": f"cell_{i}", "group": str(i)} for i in range(8)])
    with pytest.raises(InputError, match="other has other groups, splits or strata than"):
        sweep(finished, config_of(other))


def test_another_storage_is_refused(trained, finished, cells, tmp_path):
    address = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(InputError, match="sweep was started without `storage`; give the same."):
        sweep(finished, config_of(cells), storage=address)
    sweep(tmp_path / "stored", config_of(cells), storage=address)
    assert sweep_report(tmp_path / "stored", storage=address).trained == 6
    with pytest.raises(InputError, match=r"stored was started with `storage` sqlite:.*other.db; give the same."):
        sweep_report(tmp_path / "stored")
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    with pytest.raises(InputError, match="does not know the sweep of .*stored"):
        sweep_report(tmp_path / "stored", storage=empty)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"notes.txt": "mine"}, FileExistsError, "`folder` exists and is not a sweep's: "),
        ({"config.json": "{}", "history.csv": ""}, FileExistsError, "`folder` exists and is not a sweep's: "),
        ({"sweep.json": "{"}, InputError, "sweep.json is damaged"),
        ({"sweep.json": "[]"}, InputError, "sweep.json is damaged"),
        ({"sweep.json": '{"config": {"train": {"colour": 1}}}'}, InputError, "sweep.json lacks `segdrop`"),
        (None, NotADirectoryError, "Not a directory"),
    ],
)
def test_a_folder_that_is_something_else_is_refused(trained, cells, tmp_path, content, error, message):
    folder = tmp_path / "folder"
    if content is None:
        folder.write_text("a file")
    else:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(error, match=message):
        sweep(folder, config_of(cells))
    assert trained == [] and (content is None or {path.name for path in folder.iterdir()} == set(content))


def test_what_a_start_that_was_interrupted_left_is_taken_over(trained, cells, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("segdrop.sweeps.state.os.link", killed)
        sweep(tmp_path / "sweep", config_of(cells))
    (tmp_path / "sweep" / "sweep.db-journal").touch()
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"sweep.db", "sweep.db-journal"}
    state = open_or_start(tmp_path / "sweep", config_of(cells), None)
    assert len(state.trials.all()) == 6


def test_a_start_that_was_cut_off_before_its_folds_were_written_writes_them_when_it_goes_on(
    trained, cells, tmp_path, monkeypatch
):
    def killed(*arguments):
        raise KeyboardInterrupt

    open_or_start(tmp_path / "whole", config_of(cells), None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("segdrop.sweeps.state.write_folds", killed)
        open_or_start(tmp_path / "sweep", config_of(cells), None)
    assert not (tmp_path / "sweep" / "folds.csv").exists()
    open_or_start(tmp_path / "sweep", config_of(cells), None)
    assert (tmp_path / "sweep" / "folds.csv").read_text() == (tmp_path / "whole" / "folds.csv").read_text()


def overtake(monkeypatch, folder, config):
    """Let another start the folder's sweep just before the next start would have placed its own; the other's state."""
    first, place = [], _place

    def overtaken(*arguments):
        monkeypatch.setattr("segdrop.sweeps.state._place", place)
        first.append(open_or_start(folder, config, None))
        return place(*arguments)

    monkeypatch.setattr("segdrop.sweeps.state._place", overtaken)
    return first


def test_of_two_different_sweeps_that_start_at_once_in_a_folder_one_is_refused_and_spoils_nothing(
    trained, cells, tmp_path, monkeypatch
):
    overtake(monkeypatch, tmp_path / "sweep", config_of(cells, folds=3))
    with pytest.raises(InputError, match="`folds` is 2, but .* was started with 3"):
        open_or_start(tmp_path / "sweep", config_of(cells, folds=2), None)
    assert {row["repeat_0"] for row in read_csv(tmp_path / "sweep" / "folds.csv")} == {"0", "1", "2", "test"}


def test_of_two_that_start_at_once_both_take_part_in_one_sweep(trained, cells, tmp_path, monkeypatch):
    first = overtake(monkeypatch, tmp_path / "sweep", config_of(cells))
    second = open_or_start(tmp_path / "sweep", config_of(cells), None)
    assert second.record.study == first[0].record.study
    assert len(second.trials.all()) == 6
    assert len(second.trials.study._storage.get_all_studies()) == 1  # the other is removed


@pytest.mark.parametrize(
    ("options", "train", "message"),
    [
        ({"folds": 7}, {}, "cells has 6 different image(s) to divide into folds=7; use fewer folds."),
        ({"grid": {"encoder_dropout": [2]}}, {}, "`grid` has an impossible arm (encoder_dropout=2): "),
        ({"grid": {"colour": [2]}}, {}, "`grid` has an unknown field: 'colour'"),
        ({"grid": {"augment": ["nothing.json"]}}, {}, "`augment` must be one of none, light"),
        ({}, {"data": "nowhere"}, "`data` does not exist: nowhere."),
        ({"search": 3}, {}, "`search` needs one mapping"),
        ({"search": 3, "grid": {"lr": {"low": 0.1}}}, {}, "`grid` has no range of 'lr' in {'low': 0.1}"),
        ({"search": 3, "grid": {"lr": {"low": 0.1, "high": 0.01}}}, {}, "`grid` has no range of 'lr'"),
        (
            {"search": 3, "grid": {"encoder_dropout": {"low": 0.1, "high": 1.2}}},
            {},
            "`grid` has an impossible arm (encoder_dropout=1.2): `encoder_dropout` must be",
        ),
    ],
)
def test_bad_input_is_found_before_the_first_training(trained, cells, tmp_path, options, train, message):
    if options == {"search": 3}:
        options = {"search": 3, "grid": [GRID, GRID]}
    for call in (lambda config: sweep(tmp_path / "sweep", config), estimate):
        with pytest.raises((InputError, FileNotFoundError)) as caught:
            call(config_of(**{"data": cells, "train": {}, **({"data": train["data"]} if train else {}), **options}))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert trained == [] and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("call", [lambda config: sweep("sweep", config), estimate])
def test_a_mapping_is_no_configuration(call):
    with pytest.raises(InputError, match=r"`config` must be a SweepConfig, got config=\{'folds': 2\}"):
        call({"folds": 2})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"encoder_dropout": [0.1], "dropout_blocks": [["stage4"], ["stage9"]]},
            "names no unit of this encoder: 'stage9",
        ),
        ({"encoder_dropout": [0.1], "encoder_weights": ["lost.h5"]}, "lost.h5"),
    ],
)
def test_networks_that_cannot_be_built_are_found_before_the_first_training(cells, tmp_path, grid, message):
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        sweep(tmp_path / "sweep", config_of(cells, grid=grid))
    assert message in str(caught.value) and not (tmp_path / "sweep").exists()


def test_fewer_patients_than_folds_and_a_class_that_a_fold_lacks_are_found(trained, cells, tmp_path):
    data = grouped(cells, tmp_path / "groups", [*"aabbccdd"])
    with pytest.raises(InputError, match=r"has 4 group\(s\) to divide into folds=5; use fewer folds."):
        sweep(tmp_path / "sweep", config_of(data, hold_out=False, folds=5))
    data = shutil.copytree(cells, tmp_path / "classes")
    (data / "classes.json").write_text('{"0": "background", "1": "cell", "2": "tumour"}')
    with pytest.raises(InputError, match=r"has no image with the class '.*' to validate with \(0 image\(s\) have it\)"):
        sweep(tmp_path / "sweep", config_of(data, {"ignore_value": 255}))
    assert trained == [] and not (tmp_path / "sweep").exists()


def test_a_folder_that_is_no_sweep_needs_a_configuration(tmp_path):
    with pytest.raises(InputError, match="nothing is not the folder of a sweep, and no configuration is given"):
        sweep(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="The sweep does not exist: .*nothing."):
        sweep_report(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not the folder of a sweep: it has no sweep.json."):
        chosen_config(tmp_path)
    with pytest.raises(InputError, match="`workers` must be a whole number of at least 1"):
        sweep(tmp_path / "nothing", workers=0)


def test_a_report_before_the_first_training_says_that_there_is_no_answer(trained, cells, tmp_path):
    open_or_start(tmp_path / "sweep", config_of(cells), None)
    found = sweep_report(tmp_path / "sweep")
    assert found.trained == 0 and found.expected == 6 and "there is no answer" in found.headline
    with pytest.raises(InputError, match="`test` is for the arm that a finished sweep has chosen; .* is not finished."):
        sweep_report(tmp_path / "sweep", test=True)


def probability(image, threshold):
    return 1 / (1 + np.exp(-0.05 * (image[..., 0].astype(float) - threshold)))


def test_test_images_are_scored_once_by_the_mean_of_the_chosen_arm_s_models(trained, finished, cells, monkeypatch):
    dataset = open_dataset(cells)
    truth, pred = [], []
    for index in (6, 7):  # the given test split
        image, mask = dataset.read(index)
        truth.append(mask)
        pred.append((probability(image, 100) + probability(image, 161)) / 2 > 0.5)
    by_hand = foreground_mean(dice_of(np.stack(truth), np.stack(pred).astype(np.uint8)))
    assert sweep_report(finished).results.test is None
    scores = sweep_report(finished, test=True).results.test
    assert scores["dice"] == pytest.approx(by_hand, rel=1e-9) and scores["images"] == 2
    assert scores["arm"] == "spatial 0.1" and scores["runs"] == list(map(str, fold_runs(finished)))
    assert f"On the test images (2 images) it has a Dice of {by_hand:.3f}" in (finished / "answer.md").read_text()
    monkeypatch.setattr("segdrop.scoring.score.score_images", None)
    assert sweep_report(finished, test=True).results.test == scores


def test_test_images_are_not_scored_with_a_second_arm(trained, finished, cells):
    sweep_report(finished, test=True)
    stored = json.loads((finished / "test.json").read_text())
    (finished / "test.json").write_text(json.dumps({**stored, "arm": "none"}))
    with pytest.raises(
        InputError, match="`test` was asked when 'none' was the chosen arm .* by now it is 'spatial 0.1'"
    ):
        sweep_report(finished, test=True)


def test_test_images_that_have_changed_are_not_scored(trained, cells, tmp_path):
    data = shutil.copytree(cells, tmp_path / "data")
    sweep(tmp_path / "sweep", config_of(data))
    (data / "splits.csv").unlink()
    shutil.copyfile(data / "images" / "cell_0.png", data / "images" / "cell_7.png")
    with pytest.raises(InputError, match="data has other images or masks than .*sweep was started with"):
        sweep_report(tmp_path / "sweep", test=True)
    assert not (tmp_path / "sweep" / "test.json").exists()


def test_test_images_are_seen_as_the_chosen_arm_sees_images(trained, cells, tmp_path):
    """Everything is foreground below a window's lower end of 255, and nothing above its upper end."""
    window = {"intensity": ["window"], "intensity_window": [[-2, -1]]}
    sweep(tmp_path / "sweep", config_of(cells, {"encoder_dropout": 0.1}, grid=[window]))
    scores = sweep_report(tmp_path / "sweep", test=True).results.test
    truth = np.stack([open_dataset(cells).read(i)[1] for i in (6, 7)])
    chosen = chosen_config(tmp_path / "sweep")
    assert chosen.intensity == "window"
    share = truth.mean()
    assert scores["dice"] == pytest.approx(2 * share / (1 + share))  # of a mask that is foreground everywhere


def test_a_finished_sweep_s_folder_stands_for_its_models(trained, finished):
    networks = load_alike([finished])
    assert [network.path for network in networks] == fold_runs(finished)
    image = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    mean = np.mean([network.predict(image)[..., 0] for network in networks], axis=0)
    expected = (probability(image[..., None], 100) + probability(image[..., None], 161)) / 2
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_a_sweep_that_is_not_finished_stands_for_nothing(trained, cells, tmp_path):
    open_or_start(tmp_path / "sweep", config_of(cells), None)
    with pytest.raises(InputError, match="is not finished, so that no arm is chosen; run its `segdrop sweep` command"):
        load_alike([tmp_path / "sweep"])


def test_folds_of_images_that_are_gone_are_told(trained, finished, cells, tmp_path):
    data = shutil.copytree(cells, tmp_path / "data")
    for part in ("images", "masks"):
        (data / part / "cell_3.png").unlink()
    (data / "splits.csv").unlink()
    with pytest.raises(InputError, match=r"data lacks 1 image\(s\) that .*folds.csv names; first: cell_3."):
        read_folds(finished, open_dataset(data))


def test_the_price_is_the_time_of_a_training_times_their_number(trained, cells, monkeypatch):
    timed = []

    def time_training(config, dataset, split, precision):
        timed.append((config.lr, len(split["train"]), len(split["val"])))
        return 100.0 if config.lr == 0.001 else 7.0

    monkeypatch.setattr("segdrop.training.folds.time_training", time_training)
    grid = {"encoder_dropout": [0.1, 0.3], "lr": [0.001, 0.01]}
    price = estimate(config_of(cells, grid=grid, folds=3, repeats=2, seeds=(0, 1)))
    assert price.arms[:2] == ("none", "element 0.1") and len(price.arms) == 6
    # Three seeds of what two or more others are compared with, as 2 times the root of 2 or 3 is nearly that.
    assert price.trainings == 6 * 3 * 2 * 2 + 2 * 3 * 2 and price.seconds == 42 * 100 + 42 * 7
    assert timed == [(0.001, 4, 2), (0.01, 4, 2)]  # dropout is not timed by itself
    found = estimate(config_of(cells, grid={"encoder_dropout": {"low": 0.1, "high": 0.5}}, search=5))
    assert found.arms == ("none",) and found.trainings == (1 + 5) * 2 and found.seconds == 12 * 100
    space = {"encoder_dropout": {"low": 0.1, "high": 0.5}, "lr": {"low": 0.0001, "high": 0.01}}
    found = estimate(config_of(cells, grid=space, search=5))  # each proposal with a reference of its learning rate
    assert found.trainings == (1 + 2 * 5) * 2


def test_an_estimate_writes_nothing(trained, cells, tmp_path, monkeypatch):
    monkeypatch.setattr("segdrop.training.folds.time_training", lambda *arguments: 1.0)
    monkeypatch.chdir(tmp_path)
    estimate(config_of(cells))
    assert list(Path().iterdir()) == []


def test_an_answer_is_not_written_while_another_process_writes_it(finished, monkeypatch):
    monkeypatch.setattr(sweep_folder, "ANSWER_WAIT", 0.1)
    before = (finished / "answer.csv").read_bytes()
    with (
        sweep_folder.lock_answer(finished),
        pytest.raises(InputError, match="sweep has its answer written by another process"),
    ):
        sweep(finished)
    assert (finished / "answer.csv").read_bytes() == before


def test_scores_of_an_image_that_is_in_no_fold_are_told(finished):
    path = finished / "trainings" / "00000" / "per_image.csv"
    rows = read_csv(path)
    write_csv(path, [{**rows[0], "id": "another"}, *rows[1:]])
    with pytest.raises(InputError, match=r"00000/per_image\.csv does not fit: folds\.csv has no image 'another'"):
        sweep(finished)
