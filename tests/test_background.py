"""What is written beside the next epoch."""

import threading

import keras
import numpy as np
import pytest
from conftest import read_csv, tiny_training
from standin import build_small_unet

from segdrop.data.augment import load_augmentation
from segdrop.data.opening import open_dataset
from segdrop.folders import state as states
from segdrop.training import session as sessions
from segdrop.training.background import Background
from segdrop.training.samples import Samples
from segdrop.training.session import Session


def test_things_are_done_one_after_the_other_and_the_next_waits():
    background, may_end, log = Background(), threading.Event(), []

    def first():
        may_end.wait(300)
        log.append("first")

    background.do(first)
    log.append("caller goes on")
    threading.Timer(0.05, may_end.set).start()
    background.do(lambda: log.append("second"))
    background.wait()
    assert log == ["caller goes on", "first", "second"]


def test_what_went_wrong_is_raised_by_the_next_call_and_once():
    background = Background()

    def full():
        raise OSError("No space left on device")

    background.do(full)
    with pytest.raises(OSError, match="No space left"):
        background.do(lambda: None)
    background.wait()


@pytest.fixture
def session(cells, tmp_path):
    config = tiny_training(cells, run_dir=str(tmp_path), batch_size=4, epochs=2)
    dataset, split = open_dataset(cells), {"train": np.arange(4), "val": np.empty(0, int)}
    session = Session(
        tmp_path, build_small_unet(), Samples(config, dataset, split, load_augmentation("none")), keep_state=True
    )
    session.compile(0, frozen=False)
    return session


def row(epoch):
    return {"epoch": epoch, "learning_rate": 0.1, "loss": 1.0}


def test_the_state_is_of_the_end_of_its_epoch_though_training_goes_on_meanwhile(session, tmp_path, monkeypatch):
    training_went_on = threading.Event()
    save = sessions.save_state

    def later(*arguments):
        assert training_went_on.wait(300)
        save(*arguments)

    monkeypatch.setattr(sessions, "save_state", later)
    then = [np.array(variable) for variable in session._variables()]
    session.record_epoch(row(0))
    assert not (tmp_path / "state.npz").exists()
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    for _ in range(2):  # the first step of the warm-up moves no weight
        session.trained.train_on_batch(images, images[..., :1] > 128)
    session.history.append(row(1))
    assert any(np.any(a != np.array(b)) for a, b in zip(then, session.model.trainable_variables, strict=False))
    training_went_on.set()
    session._background.wait()
    states.restore_state(tmp_path, session._variables())
    for expected, variable in zip(then, session._variables(), strict=True):
        np.testing.assert_array_equal(expected, np.array(variable))
    assert [epoch["epoch"] for epoch in states.load_history(tmp_path)] == [0]
    assert [epoch["epoch"] for epoch in read_csv(tmp_path / "history.csv")] == ["0"]


def test_the_model_is_of_the_end_of_its_epoch_though_training_goes_on_meanwhile(session, tmp_path, monkeypatch):
    training_went_on = threading.Event()
    save = keras.Model.save

    def later(*arguments):
        assert training_went_on.wait(300)
        save(*arguments)

    monkeypatch.setattr(keras.Model, "save", later)
    then = [np.array(variable) for variable in session.model.variables]
    session.record_epoch(row(0))
    session.model.set_weights([0 * weight for weight in session.model.get_weights()])
    training_went_on.set()
    session._background.wait()
    saved = keras.saving.load_model(tmp_path / "model.keras")
    for expected, variable in zip(then, saved.variables, strict=True):
        np.testing.assert_array_equal(expected, np.array(variable))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_on_disk_has_the_flags_of_its_phase(session, tmp_path, frozen):
    session.compile(0, frozen)
    session.record_epoch(row(0))
    session._background.wait()
    saved = keras.saving.load_model(tmp_path / "model.keras")
    flags = [[layer.trainable for layer in model.layers if layer.weights] for model in (saved, session.model)]
    assert flags[0] == flags[1] and all(flags[0]) != frozen


def test_the_next_model_is_not_written_before_the_state_of_the_epoch_before(session, tmp_path, monkeypatch):
    order = []

    def slowly(*_):
        threading.Event().wait(0.2)
        order.append("state")

    monkeypatch.setattr(sessions, "save_state", slowly)
    monkeypatch.setattr(keras.Model, "save", lambda self, path: (order.append("model"), path.touch()))
    session.record_epoch(row(0))
    session.record_epoch(row(1))
    session._background.wait()
    assert order == ["model", "state", "model", "state"]


def test_a_full_disk_ends_the_training_with_its_message(session, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "state.npz")

    monkeypatch.setattr(sessions, "save_state", full)
    with pytest.raises(OSError, match="No space left on device"):
        session.fit()
    assert len(session.history) == 1
