"""Pictures: what is coloured, and what is cut off."""

import numpy as np

from segdrop import plots
from segdrop.dataset import IGNORED

IMAGE = np.full((64, 64, 3), 100.0)


def test_only_foreground_is_coloured_and_each_class_in_its_own_way():
    labels = np.zeros((64, 64), np.uint8)
    labels[0, 0], labels[0, 1], labels[0, 2] = 1, 2, IGNORED
    picture = plots.overlay(IMAGE, labels)
    assert picture.dtype == np.uint8
    assert (picture[1:] == 100).all() and (picture[0, 2] == 100).all()
    assert (picture[0, 0] != 100).any() and (picture[0, 0] != picture[0, 1]).any()


def test_a_panel_shows_image_truth_and_prediction_without_the_padding():
    truth = np.full((64, 64), IGNORED, np.uint8)
    truth[:40, :50] = 0
    truth[0, 0] = 1
    pred = np.ones((64, 64), np.uint8)
    picture = plots.panel(IMAGE, truth, pred)
    assert picture.shape == (40, 150, 3)
    image, shown_truth, shown_pred = np.split(picture, 3, axis=1)
    assert (image == 100).all()
    assert (shown_truth[0, 0] != 100).any() and (shown_truth[1:] == 100).all()
    assert (shown_pred != 100).any(axis=-1).all()


def test_a_panel_ignored_as_a_whole_keeps_its_size():
    assert plots.panel(IMAGE, np.full((64, 64), IGNORED, np.uint8), np.zeros((64, 64), np.uint8)).shape == (64, 192, 3)


def test_curves_and_examples_are_written(tmp_path):
    history = [{"epoch": i, "loss": 1.0, "val_loss": 2.0, "dice": 0.5, "val_dice": 0.4} for i in range(3)]
    plots.save_curves(tmp_path / "c.png", history)
    plots.save_examples(tmp_path / "e.png", [np.zeros((40, 150, 3), np.uint8)] * 2, ["a", "b"])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("c.png", "e.png"))
