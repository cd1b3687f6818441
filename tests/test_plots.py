"""Pictures: what is coloured, and what is cut off."""

import io
import math

import numpy as np
import pytest

from segdrop.conventions import IGNORED
from segdrop.show import plots

IMAGE = np.full((64, 64, 3), 100.0)


def test_only_foreground_is_coloured_and_each_class_in_its_own_way():
    labels = np.zeros((64, 64), np.uint8)
    labels[0, 0], labels[0, 1], labels[0, 2] = 1, 2, IGNORED
    picture = plots.overlay(IMAGE, labels)
    assert picture.dtype == np.uint8
    assert (picture[1:] == 100).all() and (picture[0, 2] == 100).all()
    assert (picture[0, 0] != 100).any() and (picture[0, 0] != picture[0, 1]).any()


def test_forty_classes_have_colours_of_their_own():
    assert len(plots.PALETTE) == len(np.unique(plots.PALETTE.round(), axis=0)) == 40
    apart = np.abs(plots.PALETTE[:, None] - plots.PALETTE[None]).sum(axis=-1)
    assert apart[~np.eye(40, dtype=bool)].min() > 10


def test_errors_are_what_is_missed_and_what_is_false_and_nothing_that_is_ignored():
    truth, pred = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    truth[0, :4], pred[0, :4] = (1, 1, 1, 0), (1, 0, 2, 1)  # right, missed, another class, false
    truth[1, 0], pred[1, 0] = IGNORED, 1
    picture = plots.errors(IMAGE, truth, pred, opacity=1.0)
    assert picture[0, 1].tolist() == picture[0, 2].tolist() == plots.MISSED.round().tolist()
    assert picture[0, 3].tolist() == plots.FALSE.round().tolist()
    assert (picture[0, 0] == 100).all() and (picture[1:] == 100).all()


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([600.0, 0.9, 0.8, 0.7], "log"), ([1.4, 0.9, 0.5, 0.3], "linear"), ([math.nan, 0.0], "linear")],
)
def test_one_early_value_does_not_flatten_the_others(losses, scale):
    history = [{"epoch": epoch, "loss": loss, "val_loss": 0.5} for epoch, loss in enumerate(losses)]
    axes = plots.curve(history, "loss").axes[0]
    assert axes.get_yscale() == scale and ("logarithmic" in axes.get_ylabel()) is (scale == "log")


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


def lines(figure):
    """The figure's lines by their labels: (x, y)."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in figure.axes[0].lines
    }


def test_a_curve_counts_epochs_from_one_and_marks_the_best():
    history = [{"epoch": i, "loss": 3.0 - i, "val_loss": 2.0, "learning_rate": 0.1} for i in range(3)]
    drawn = lines(plots.curve(history, "loss", best=2))
    assert drawn["training"] == ([1, 2, 3], [3, 2, 1])
    assert drawn["validation"] == ([1, 2, 3], [2, 2, 2])
    assert drawn["best epoch"][0] == [3, 3]
    assert list(lines(plots.curve(history, "learning_rate"))) == ["training"]


def test_a_single_epoch_is_seen_as_a_point():
    figure = plots.curve([{"epoch": 0, "loss": 1.0, "val_loss": 2.0}], "loss")
    assert [line.get_marker() for line in figure.axes[0].lines] == [".", "."]


def test_the_reliability_diagram_leaves_empty_bins_out_and_shows_the_shares_of_the_others():
    empty = {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None}
    bins = [
        {"low": 0.5, "high": 0.75, "count": 1, "confidence": 0.6, "accuracy": 0.5},
        {"low": 0.75, "high": 1.0, "count": 3, "confidence": 0.9, "accuracy": 0.8},
    ]
    figure = plots.reliability_diagram({"network": [empty, *bins]})
    assert lines(figure)["network"] == ([0.6, 0.9], [0.5, 0.8])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.25, 0.75]
    assert figure.axes[0].get_xlim() == (0.5, 1.0)


def test_the_reliability_diagram_of_no_pixels_has_no_points():
    assert lines(plots.reliability_diagram({"network": []}))["network"] == ([], [])


def test_risk_is_drawn_over_coverage():
    drawn = lines(plots.risk_coverage({"entropy": [[0.5, 0.0], [1.0, 0.1]], "other": [[1.0, 0.2]]}))
    assert drawn == {"entropy": ([0.5, 1.0], [0.0, 0.1]), "other": ([1.0], [0.2])}


def drawn_arms():
    """Two references, a curve of two rates given in the wrong order, one of one rate, and an arm without a rate."""
    nan = math.nan
    return [
        {"name": name, "rate": rate, "curve": curve, "dice": dice, "difference": middle, "low": low, "high": high}
        for name, rate, curve, dice, middle, low, high in [
            ("none", 0.0, "none", [0.7, 0.9], nan, nan, nan),
            ("none, lr=1", 0.0, "none, lr=1", [0.6, 0.6], nan, nan, nan),
            ("spatial 0.4", 0.4, "spatial", [0.8, 0.9], 0.05, 0.01, 0.07),
            ("spatial 0.2", 0.2, "spatial", [0.7, 0.8], -0.05, -0.15, 0.05),
            ("element 0.2", 0.2, "element", [0.9, 0.9], 0.1, 0.05, 0.15),
            ("spatial 0.1..0.3", None, "spatial", [0.8, 0.8], 0.0, -0.1, 0.1),
        ]
    ]


def test_differences_are_drawn_over_the_rate_with_their_intervals():
    axes = plots.dice_by_rate(drawn_arms()).axes[0]
    spatial, ramp, element = axes.containers
    assert [one.get_label() for one in (spatial, element)] == ["spatial", "element"]
    x, y = spatial[0].get_data()
    assert y.tolist() == [-0.05, 0.05]  # by rate
    np.testing.assert_allclose(x, [0.2, 0.4], atol=0.05)
    bars = [segment[:, 1].tolist() for segment in spatial[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[-0.15, 0.05], [0.01, 0.07]])
    assert element[0].get_xdata()[0] - x[0] > 0.01  # intervals at the same rate are both seen
    assert ramp[0].get_xdata()[0] > 0.45 and ramp[0].get_ydata().tolist() == [0]
    assert [tick.get_text() for tick in axes.get_xticklabels(minor=True)] == ["spatial 0.1..0.3"]
    assert axes.lines[0].get_ydata() == [0, 0]


def test_dice_is_drawn_as_means_single_folds_and_references():
    axes = plots.dice_by_rate(drawn_arms()).axes[1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "none, lr=1", "spatial", "element"]
    by_label = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    np.testing.assert_allclose(by_label["none"], 0.8)
    np.testing.assert_allclose(by_label["spatial"], [0.75, 0.85])
    dots = [np.asarray(line.get_ydata()).tolist() for line in axes.lines if line.get_marker() == "."]
    assert sorted(dots) == sorted(arm["dice"] for arm in drawn_arms())
    assert axes.lines[0].get_linestyle() != axes.lines[2].get_linestyle()


def test_arms_without_an_interval_are_drawn_as_points():
    arms = [{**arm, "low": math.nan, "high": math.nan} for arm in drawn_arms()[:4]]
    plots.dice_by_rate(arms).savefig(io.BytesIO())
    assert plots.dice_by_rate(arms).axes[0].containers[0][0].get_ydata().tolist() == [-0.05, 0.05]
