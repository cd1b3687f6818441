"""Every write of a command fails once, or is where it is killed: a line that names the file, nothing in part, and the
command that goes on comes to the same end."""

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import brightness_model, write_pairs, write_run
from kills import differences, files_of, litter, predict_again, run_of, sweep_of, train_again

from segdrop.cells import draw_cells
from segdrop.cli.main import main
from segdrop.cli.parsing import describe_error
from segdrop.files import write_atomically
from segdrop.folders.run import lock_training
from segdrop.locks import locked
from segdrop.sweeps.state import open_state

pytestmark = pytest.mark.usefixtures("small_unet")
KINDS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENOTCONN]
TINY = "--encoder resnet18 --encoder-weights none --mixed-precision off --crop-size 32 --batch-size 2".split()
TINY += "--augment medical --scale 1.0 --steps-per-epoch 2 --data".split()


class Killed(BaseException):
    """Passes what catches errors, as a kill does; what tidies up is still run, which a kill does not let happen."""


@contextlib.contextmanager
def failing(number, error):
    """The `number`th file that is put into place is not; yields the list of what failed."""
    original, calls, struck = os.replace, itertools.count(1), []

    def replace(source, target, **options):
        if next(calls) == number:
            struck.append(str(target))
            raise Killed if error is Killed else OSError(error, os.strerror(error), str(source))
        return original(source, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield struck


def call(words, capsys):
    """The exit code and what was told; 137 where it was killed."""
    try:
        code = main([str(word) for word in words])
    except Killed:
        code = 137
    return code, capsys.readouterr().err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pairs = {f"cell_{i}": draw_cells(np.random.default_rng(i), 48) for i in range(8)}
    return write_pairs(tmp_path_factory.mktemp("data") / "data", pairs)


def train_words(folder, data):
    more = "--epochs 2 --encoder-dropout 0.3 --spatial --recalibrate-batchnorm --freeze-epochs 1 --ema 0.9".split()
    return ["train", "--run-dir", folder / "run", *more, *TINY, data]


def predict_words(folder, data):
    if not (data.parent / "bright").exists():
        write_run(data.parent / "bright", brightness_model())
    return ["predict", data.parent / "bright", data / "images", "--out", folder / "out", "--overlay"]


def sweep_words(folder, data):
    return ["sweep", folder / "sweep", "--epochs", 1, "--folds", 2, "--rates", 0.2, "--kinds", "spatial", *TINY, data]


def evaluate_words(folder, data):
    trained = data.parent / "trained"
    if not trained.exists():
        trained.mkdir()
        assert main([str(word) for word in train_words(trained, data)]) == 0
    shutil.copytree(trained / "run", folder / "run", dirs_exist_ok=True)
    return ["evaluate", folder / "run", "--split", "train"]


def plain_words(folder, data):
    return ["data", data, "--to", folder / "plain"]


def same(folder, words):
    return words


CASES = {
    "train": (train_words, train_again, run_of),
    "predict": (predict_words, predict_again, files_of("out")),
    "sweep": (sweep_words, same, sweep_of),
    "evaluate": (evaluate_words, same, run_of),
    "data --to": (plain_words, same, files_of("plain")),
}


def every_write(name, data, tmp_path, capsys, kinds, numbers):
    """Fail the writes of `numbers`; returns at how many the command failed."""
    words_of, goes_on, told = CASES[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert call(words_of(whole, data), capsys)[0] == 0
    expected, failures = told(whole), 0
    for number, kind in zip(numbers, itertools.cycle(kinds)):
        folder = tmp_path / f"failed-{number}"
        folder.mkdir()
        words = words_of(folder, data)
        with failing(number, kind) as struck:
            code, error = call(words, capsys)
        if not struck:
            assert code == 0
            break
        failures += 1
        if kind is Killed:
            assert code == 137
        else:
            assert (code, error.count("\n")) == (2, 1), error
            assert f"segdrop: {os.strerror(kind)}: {folder}" in error and ".partial" not in error
        following = goes_on(folder, words)
        if following is not None:
            assert call(following, capsys)[0] == 0
        assert differences(told(folder), expected) + litter(folder) == [], struck
        shutil.rmtree(folder)
    return failures


@pytest.mark.parametrize("kinds", [KINDS, [Killed]], ids=["error", "kill"])
@pytest.mark.parametrize(("name", "least"), [("predict", 10), ("evaluate", 2), ("data --to", 2)])
def test_a_write_that_fails_is_a_line_and_the_command_goes_on_to_the_same_end(
    name, least, kinds, data, tmp_path, capsys
):
    assert every_write(name, data, tmp_path, capsys, kinds, itertools.count(1)) >= least


@pytest.mark.parametrize(("number", "kind"), [(4, errno.ENOSPC), (14, Killed)])
def test_a_training_whose_write_fails_goes_on_to_the_same_end(number, kind, data, tmp_path, capsys):
    assert every_write("train", data, tmp_path, capsys, [kind], [number]) == 1


def test_a_folder_that_is_gone_does_not_hide_which_file_could_not_be_written(tmp_path, monkeypatch):
    def gone(path, *_, **__):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    monkeypatch.setattr(Path, "unlink", gone)
    with pytest.raises(OSError, match="not connected") as told:
        write_atomically(tmp_path / "model.keras", gone)
    assert told.value.filename == str(tmp_path / "model.keras")
    assert describe_error(told.value).startswith(
        f"Transport endpoint is not connected: {tmp_path}/model.keras; see that the network folder is there again, "
    )


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [KINDS, [Killed]], ids=["error", "kill"])
@pytest.mark.parametrize(("name", "step", "least"), [("train", 4, 4), ("sweep", 16, 3)])
def test_any_write_of_a_training_and_of_a_sweep_may_fail(name, step, least, kinds, data, tmp_path, capsys, monkeypatch):
    """A sample of them: all of a sweep's take five minutes."""
    # Without it each killed sweep waits 150 s until its dead training counts as one.
    monkeypatch.setitem(open_state.__kwdefaults__, "heartbeat", 1)
    monkeypatch.setitem(open_state.__kwdefaults__, "grace", 5)
    assert every_write(name, data, tmp_path, capsys, kinds, itertools.count(2, step)) >= least


@pytest.mark.parametrize("resume", [False, True])
def test_nobody_trains_into_a_folder_that_another_process_trains_into(resume, data, tmp_path, capsys):
    words = train_words(tmp_path, data)
    with failing(5, Killed):
        assert call(words, capsys)[0] == 137
    if not resume:
        (tmp_path / "run" / "config.json").unlink()
        words = ["train", "--run-dir", tmp_path / "run", "--epochs", "1", *TINY, data]
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
    with lock_training(tmp_path / "run"):
        code, error = call(train_again(tmp_path, words), capsys)
    assert code == 2 and f"{tmp_path / 'run'} is being trained by another process (" in error
    assert error.endswith("); wait for it or choose another run_dir.\n")
    assert call(train_again(tmp_path, words), capsys)[0] == 0


def test_nobody_predicts_into_a_folder_that_another_process_predicts_into(data, tmp_path, capsys):
    words = predict_words(tmp_path, data)
    with failing(4, Killed):
        assert call(words, capsys)[0] == 137
    with locked(tmp_path / "out", "predicting", "is being written", "wait"):
        code, error = call([*words, "--resume"], capsys)
    assert code == 2 and f"{tmp_path / 'out'} is being written by another process (" in error
    assert call([*words, "--resume"], capsys)[0] == 0 and litter(tmp_path) == []


def test_a_run_is_evaluated_while_it_is_trained_and_finished_without_what_that_scored(data, tmp_path, capsys):
    words = train_words(tmp_path, data)
    with failing(9, Killed):  # after the first epoch
        assert call(words, capsys)[0] == 137
    with lock_training(tmp_path / "run"):
        assert call(["evaluate", tmp_path / "run", "--split", "train"], capsys)[0] == 0
    assert call(["train", "--resume", "--run-dir", tmp_path / "run"], capsys)[0] == 0
    assert {"val", "test"} <= set(run_of(tmp_path)["metrics.json"]) and "train," not in (
        tmp_path / "run" / "per_image.csv"
    ).read_text()
    assert "train" not in run_of(tmp_path)["metrics.json"]
