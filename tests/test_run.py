"""A run's folder: no file there in part, and clear words where it cannot be used."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from conftest import Variable

from segdrop import InputError
from segdrop.files import write_atomically, write_csv, write_json
from segdrop.folders import run
from segdrop.folders.run import (
    create_run,
    open_run,
    package_versions,
    start_run,
    store_all_scores,
    store_scores,
    stored_scores,
)
from segdrop.folders.state import load_history, restore_state, save_state


def scores(dice):
    return {"images": 1, "dice": dice, "iou": 0.1, "classes": {}}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_state_comes_back_with_its_history(tmp_path):
    variables = [Variable(np.arange(3.0)), Variable(np.uint32(7))]
    history = [{"epoch": 0, "loss": 0.1}]
    save_state(tmp_path, variables, history)
    restored = [Variable(np.zeros(3)), Variable(0)]
    restore_state(tmp_path, restored)
    np.testing.assert_array_equal(restored[0].value, [0, 1, 2])
    assert restored[1].value == 7
    assert load_history(tmp_path) == history


def test_csv_keeps_all_digits(tmp_path):
    write_csv(tmp_path / "h.csv", [{"loss": 0.1234567890123456}])
    assert (tmp_path / "h.csv").read_text() == "loss\n0.1234567890123456\n"


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "model.keras"])
def test_an_existing_run_folder_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match="`run_dir` exists: .* choose another name, or continue that run"):
        create_run(tmp_path, 0)


@pytest.mark.parametrize("left", [[], ["split.csv"], [".config.partial.json", ".training.lock", "split.csv"]])
def test_what_a_start_that_was_interrupted_left_is_taken_over(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()
    create_run(tmp_path, 0)
    assert sorted(os.listdir(tmp_path)) == sorted(left)


def test_a_folder_that_another_process_has_started_a_run_in_meanwhile_is_refused(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(FileExistsError, match="`run_dir` exists"):
        start_run(tmp_path, None, None, {})
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_disk_that_is_too_small_is_found_before_the_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    with pytest.raises(InputError, match=r"needs about 0.8 GB and its disk has 0.0 GB free"):
        create_run(tmp_path / "run", 800_000_000)
    assert not (tmp_path / "run").exists()


def test_a_place_without_permission_is_found_before_the_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="no permission to write in"):
        create_run(tmp_path / "run", 0)


@pytest.mark.parametrize("content", [None, "not json", "[]", "{}"])
def test_a_foreign_folder_is_not_a_run(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"is not a run of segdrop|config.json (is damaged|lacks `config`)"):
        open_run(tmp_path)


def test_a_sweep_is_told_from_a_run(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match=r"is the folder of a sweep; name one of its trainings"):
        open_run(tmp_path)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="The run does not exist: .*nowhere"):
        open_run(tmp_path / "nowhere")


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    write_json(tmp_path / "metrics.json", {})
    with pytest.raises(InputError, match="is a finished run; there is nothing to resume"):
        load_history(tmp_path)


def test_a_run_without_a_finished_epoch_begins_again(tmp_path):
    assert load_history(tmp_path) == []


def test_a_run_that_keeps_no_state_cannot_be_resumed(tmp_path):
    write_csv(tmp_path / "history.csv", [{"epoch": 0}])
    with pytest.raises(InputError, match="keeps no state to go on from"):
        load_history(tmp_path)


def test_what_was_scored_of_an_earlier_model_goes_when_a_training_is_finished(tmp_path):
    store_scores(tmp_path, "val", scores(0.1), [{"id": "a", "dice": 0.1}])
    store_scores(tmp_path, "elsewhere/all", scores(0.2), [{"id": "b", "dice": 0.2}])
    store_all_scores(tmp_path, {"val": scores(0.3)}, {"val": [{"id": "a", "dice": 0.3}]})
    assert stored_scores(tmp_path) == {"val": scores(0.3)}
    assert (tmp_path / "per_image.csv").read_text() == "split,id,dice\nval,a,0.3\n"
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "per_image.csv"]


def test_scores_are_not_written_while_another_process_writes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SCORES_WAIT", 0.2)
    with (
        run._lock_scores(tmp_path),
        pytest.raises(InputError, match=rf"has its scores written by another process .*process {os.getpid()}\)"),
    ):
        store_scores(tmp_path, "val", scores(0.1))
    store_scores(tmp_path, "val", scores(0.2))
    assert stored_scores(tmp_path) == {"val": scores(0.2)}


def test_json_is_readable_by_others(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Zürich", "path": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["name"] == "Zürich"


def test_numpys_numbers_are_numbers_in_json(tmp_path):
    write_json(tmp_path / "x.json", {"dice": np.float32(0.5), "epochs": np.int64(3), "better": np.True_})
    assert json.loads((tmp_path / "x.json").read_text()) == {"dice": 0.5, "epochs": 3, "better": True}


def test_what_json_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="not complex"):
        write_json(tmp_path / "x.json", {"dice": 1j})
    assert os.listdir(tmp_path) == []


def test_versions_name_what_a_run_depends_on():
    assert {"python", "segdrop", "tensorflow", "keras", "albumentations"} <= set(package_versions())
