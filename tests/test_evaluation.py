"""evaluate: scores of every image once, against a computation by hand."""

import json

import keras
import numpy as np
import pytest
from conftest import write_pairs, write_table

from segdrop import InputError, TrainConfig, evaluate
from segdrop.dataset import open_dataset
from segdrop.evaluation import score
from segdrop.pipeline import evaluation_batches
from segdrop.run import write_csv, write_json

RNG = np.random.default_rng(0)


def threshold_model():
    """A "network" that calls a pixel foreground where it is brighter than 128."""
    inputs = keras.Input((None, None, 3))
    pick = keras.layers.Conv2D(1, 1, activation="sigmoid", name="pick")
    model = keras.Model(inputs, pick(inputs))
    pick.set_weights([np.array([1.0, 0, 0], "float32").reshape(1, 1, 3, 1), np.array([-128.5], "float32")])
    return model


@pytest.fixture
def run(tmp_path):
    """A finished run of the threshold model on six pictures of two sizes."""
    pairs = {}
    for i in range(6):
        size = (40, 50) if i % 2 else (64, 64)
        pairs[f"p{i}"] = RNG.integers(0, 256, size, np.uint8), RNG.integers(0, 2, size, np.uint8)
    pairs["p5"] = (np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8))  # nothing there, nothing found
    data = write_pairs(tmp_path / "data", pairs)
    folder = tmp_path / "run"
    folder.mkdir()
    threshold_model().save(folder / "model.keras")
    config = TrainConfig(data=str(data), run_dir=str(folder)).to_json()
    write_json(folder / "config.json", {"config": config, "classes": 1, "data_sha256": open_dataset(data).digest})
    splits = ["train", "train", "val", "test", "test", "test"]
    write_csv(folder / "split.csv", [{"id": f"p{i}", "split": s} for i, s in enumerate(splits)])
    return folder


def by_hand(dataset, indices):
    pairs = [dataset.read(index) for index in indices]
    truth = np.concatenate([mask.ravel() == 1 for _, mask in pairs])
    pred = np.concatenate([image[..., 0].ravel() > 128 for image, _ in pairs])
    tp, fp, fn = (truth & pred).sum(), (~truth & pred).sum(), (truth & ~pred).sum()
    return 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)


def test_scores_equal_a_computation_by_hand(run):
    result = evaluate(run)
    dice, iou = by_hand(open_dataset(run.parent / "data"), [3, 4, 5])
    assert result["images"] == 3
    assert result["dice"] == pytest.approx(dice, rel=1e-12)
    assert result["iou"] == pytest.approx(iou, rel=1e-12)


def test_an_image_without_the_class_is_counted_and_left_out_of_the_mean(run):
    scores = evaluate(run)["classes"]["foreground"]
    dataset = open_dataset(run.parent / "data")
    assert scores["images_undefined"] == 1
    assert scores["dice_per_image"] == pytest.approx(np.mean([by_hand(dataset, [i])[0] for i in (3, 4)]), rel=1e-12)


@pytest.mark.parametrize(("split", "images"), [("train", 2), ("val", 1), ("test", 3), ("all", 6)])
def test_every_image_of_the_split_is_counted(run, split, images):
    assert evaluate(run, split=split)["images"] == images


def test_results_are_added_to_metrics_json(run):
    evaluate(run, split="val")
    evaluate(run, split="test")
    assert set(json.loads((run / "metrics.json").read_text())) == {"val", "test"}


def test_ignored_pixels_are_not_scored(run):
    dataset = open_dataset(run.parent / "data", ignore_value=0)
    result = score(threshold_model(), evaluation_batches(dataset, [0, 1], 64 * 64), ("background", "foreground"))
    assert result["classes"]["foreground"]["false_positives"] == 0
    assert result["classes"]["foreground"]["true_positives"] > 0


def test_another_data_set_is_scored_by_its_own_split(run, tmp_path):
    noise = RNG.integers(0, 256, (4, 32, 32), np.uint8)
    other = write_pairs(tmp_path / "other", {f"q{i}": (noise[i], np.eye(32, dtype=np.uint8)) for i in range(4)})
    with pytest.raises(InputError, match="gives no split; score all of it with split='all'"):
        evaluate(run, other)
    assert evaluate(run, other, "all")["images"] == 4
    write_table(other / "splits.csv", [{"id": f"q{i}", "split": "test" if i else "train"} for i in range(4)])
    assert evaluate(run, other)["images"] == 3


def test_changed_data_is_remarked(run):
    assert "warning" not in evaluate(run)
    write_pairs(run.parent / "data", {"p0": (np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8))})
    assert evaluate(run)["warning"] == "the data set has changed since the training"


def test_missing_images_of_the_split_are_an_error(run):
    for part in ("images", "masks"):
        (run.parent / "data" / part / "p3.png").unlink()
    with pytest.raises(InputError, match=r"lacks 1 image\(s\) of the run's split; first: p3"):
        evaluate(run)


def test_an_unknown_split_is_an_error(run):
    with pytest.raises(InputError, match="has no image in the split 'dev'"):
        evaluate(run, split="dev")


def test_a_run_without_a_model_is_an_error(run):
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"has no model\.keras yet: no epoch has ended"):
        evaluate(run)
