"""evaluate: scores of every image once, against computations by hand and by scikit-learn."""

import json
import shutil

import keras
import numpy as np
import pytest
from conftest import brightness_model, read_csv, write_pairs, write_table
from rich.console import Console
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score, roc_auc_score

from segdrop import InputError, TrainConfig, evaluate
from segdrop.data.batches import evaluation_batches
from segdrop.data.dataset import Dataset
from segdrop.data.opening import open_dataset
from segdrop.files import write_csv, write_json
from segdrop.folders.run import store_scores
from segdrop.scoring.score import score, score_images
from segdrop.scoring.surfaces import hausdorff95, surface_dice
from segdrop.scoring.uncertainty import from_moments
from segdrop.show.scores import scores_table
from segdrop.surgery.sampling import MonteCarlo

RNG = np.random.default_rng(0)
SPLITS = ["train", "train", "val", "test", "test", "test"]


def dropped_model():
    """The same from eight copies of the image; of four of them half are dropped."""
    inputs = keras.Input((None, None, 3))
    copies, more = keras.layers.Conv2D(4, 1), keras.layers.Conv2D(4, 1)
    pick = keras.layers.Conv2D(1, 1, activation="sigmoid")
    dropped = keras.layers.SpatialDropout2D(0.5, seed=0)(copies(inputs))
    model = keras.Model(inputs, pick(keras.layers.Add()([dropped, more(inputs)])))
    for layer in (copies, more):
        layer.set_weights([np.eye(3)[0].reshape(1, 1, 3, 1).repeat(4, axis=3), np.zeros(4)])
    pick.set_weights([np.full((1, 1, 4, 1), 0.005), np.array([-5.14])])
    return model


def write_run(folder, data, model, splits, **record):
    """A finished run of `model`, which has these splits of the data set."""
    folder.mkdir()
    model.save(folder / "model.keras")
    config = TrainConfig.from_json({"data": str(data), "run_dir": str(folder)}).to_json()
    dataset = open_dataset(data)
    write_json(
        folder / "config.json",
        {
            "config": config,
            "classes": model.output_shape[-1],
            "class_names": list(dataset.class_names),
            "data_sha256": dataset.digest,
        },
    )
    rows = [{"id": i, "split": s, **record} for i, s in zip(dataset.ids, splits, strict=True)]
    write_csv(folder / "split.csv", rows)
    return folder


@pytest.fixture
def run(tmp_path):
    """A finished run of the threshold model on six pictures of two sizes."""
    pairs = {}
    for i in range(6):
        size = (40, 50) if i % 2 else (64, 64)
        pairs[f"p{i}"] = RNG.integers(0, 256, size, np.uint8), RNG.integers(0, 2, size, np.uint8)
    pairs["p5"] = (np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8))  # nothing there, nothing found
    return write_run(tmp_path / "run", write_pairs(tmp_path / "data", pairs), brightness_model(), SPLITS)


@pytest.fixture(scope="module")
def blurred(tmp_path_factory):
    """A run on eight noisy pictures of a square, whose best threshold is not 0.5; do not change it."""
    folder = tmp_path_factory.mktemp("blurred")
    rng = np.random.default_rng(1)
    pairs = {}
    for i in range(8):
        mask = np.zeros((40, 50), np.uint8)
        mask[5 + i : 25, 10 : 30 + i] = 1
        pairs[f"p{i}"] = (90 + 70 * mask + rng.normal(0, 25, mask.shape)).clip(0, 255).astype(np.uint8), mask
    data = write_pairs(folder / "data", pairs)
    splits = ["train"] + ["val"] * 3 + ["test"] * 4
    return write_run(folder / "run", data, brightness_model(slope=0.05), splits)


@pytest.fixture
def graded(blurred, tmp_path):
    """A copy of `blurred`, to work in; the data set stays where it is."""
    return shutil.copytree(blurred, tmp_path / "graded")


def probabilities_by_hand(run, indices, slope=0.05):
    """Truths and foreground probabilities of the graded model, lists of (H, W)."""
    pairs = [open_dataset(run_data(run)).read(i) for i in indices]
    return [m for _, m in pairs], [1 / (1 + np.exp(-slope * (image[..., 0] - 128.5))) for image, _ in pairs]


def run_data(run):
    return json.loads((run / "config.json").read_text())["config"]["data"]


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


def stored(run):
    return json.loads((run / "metrics.json").read_text(), parse_constant=no_constant)


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
    result = evaluate(run, split="test")
    assert stored(run)["test"] == result
    assert set(stored(run)) == {"val", "test"}


def test_ignored_pixels_are_not_scored(run):
    dataset = open_dataset(run.parent / "data", ignore_value=0)
    result = score(
        brightness_model().predict_on_batch, evaluation_batches(dataset, [0, 1], 64 * 64), ("background", "foreground")
    )
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
    with pytest.raises(InputError, match=r"lacks 1 image\(s\) that .*split.csv names; first: p3"):
        evaluate(run)


def test_an_unknown_split_is_an_error(run):
    with pytest.raises(InputError, match="has no image in the split 'dev'"):
        evaluate(run, split="dev")


def test_a_run_without_a_model_is_an_error(run):
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"has no model\.keras yet: no epoch has ended"):
        evaluate(run)


def test_precision_and_recall_agree_with_scikit_learn(graded):
    result = evaluate(graded)
    truths, probabilities = probabilities_by_hand(graded, [4, 5, 6, 7])
    truth, pred = np.ravel(truths), np.ravel(probabilities) >= 0.5
    for name, label in (("background", 0), ("foreground", 1)):
        scores = result["classes"][name]
        assert scores["precision"] == pytest.approx(precision_score(truth, pred, pos_label=label), rel=1e-9)
        assert scores["recall"] == pytest.approx(recall_score(truth, pred, pos_label=label), rel=1e-9)
        assert scores["dice"] == pytest.approx(f1_score(truth, pred, pos_label=label), rel=1e-9)


def test_distances_are_means_over_images_where_they_are_defined(graded):
    result = evaluate(graded, tolerance=1)
    pairs = list(zip(*probabilities_by_hand(graded, [4, 5, 6, 7]), strict=True))
    scores = result["classes"]["foreground"]
    assert (result["distance_unit"], result["surface_tolerance"]) == ("px", 1)
    assert scores["hd95"] == pytest.approx(np.mean([hausdorff95(t, p >= 0.5) for t, p in pairs]))
    assert scores["surface_dice"] == pytest.approx(np.mean([surface_dice(t, p >= 0.5, 1) for t, p in pairs]))
    assert (scores["hd95_undefined"], scores["surface_dice_undefined"]) == (0, 0)
    assert result["classes"]["background"]["hd95"] is None


def test_a_distance_without_a_boundary_is_counted_and_left_out(run):
    scores = evaluate(run)["classes"]["foreground"]
    assert (scores["hd95_undefined"], scores["surface_dice_undefined"]) == (1, 1)
    write_pairs(run.parent / "data", {"p5": (np.zeros((40, 50), np.uint8), np.eye(40, 50, dtype=np.uint8))})
    scores = evaluate(run)["classes"]["foreground"]  # there, and not found
    assert (scores["hd95_undefined"], scores["surface_dice_undefined"]) == (1, 0)


def test_distances_are_in_mm_if_every_image_of_the_split_has_a_spacing(graded, monkeypatch):
    pixels = evaluate(graded)["classes"]["foreground"]
    spacings = dict.fromkeys(range(8), (0.5, 0.5))
    monkeypatch.setattr(Dataset, "spacing_of", lambda self, index: spacings[index])
    result = evaluate(graded)
    assert result["distance_unit"] == "mm"
    assert result["classes"]["foreground"]["hd95"] == pytest.approx(pixels["hd95"] / 2)
    assert result["classes"]["foreground"]["surface_dice"] > pixels["surface_dice"]  # 2 mm are 4 pixels
    spacings[5] = None
    result = evaluate(graded)
    assert result["distance_unit"] == "px"
    assert result["classes"]["foreground"]["hd95"] == pixels["hd95"]


def test_calibration_agrees_with_a_computation_over_all_pixels(graded):
    found = evaluate(graded)["calibration"]
    truth, p = (np.ravel(x) for x in probabilities_by_hand(graded, [4, 5, 6, 7]))
    assert found["brier"] == pytest.approx(brier_score_loss(truth, p), rel=1e-5)
    confidence, correct = np.maximum(p, 1 - p), (p >= 0.5) == truth
    cell = np.minimum(confidence * 15, 14).astype(int)
    gaps = [abs(confidence[cell == i].sum() - correct[cell == i].sum()) for i in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps) / truth.size, rel=1e-4)
    bins = found["reliability"]["all"]
    assert [one["count"] for one in bins] == np.bincount(cell, minlength=15).tolist()
    assert bins[10]["accuracy"] == pytest.approx(correct[cell == 10].mean())
    assert bins[10]["confidence"] == pytest.approx(confidence[cell == 10].mean(), rel=1e-5)
    assert bins[0]["accuracy"] is None
    bins = [one for one in found["reliability"]["foreground"] if one["count"]]
    gap = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins)
    assert found["ece_foreground"] == pytest.approx(gap / sum(one["count"] for one in bins))


def test_entropy_finds_errors_as_scikit_learn_says(graded):
    found = evaluate(graded)["error_detection"]["single_pass_entropy"]
    truth, p = (np.ravel(x) for x in probabilities_by_hand(graded, [4, 5, 6, 7]))
    wrong, entropy = (p >= 0.5) != truth, -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert found["auroc_pixels"] == pytest.approx(roc_auc_score(wrong, entropy), abs=1e-4)
    risks = np.cumsum(wrong[np.argsort(entropy)]) / np.arange(1, wrong.size + 1)
    assert found["aurc_pixels"] == pytest.approx(risks.mean(), rel=0.01)
    assert found["risk_coverage"][-1] == [1, pytest.approx(wrong.mean(), abs=1e-6)]


def test_the_threshold_is_the_best_on_validation(graded):
    result = evaluate(graded)
    grid = np.arange(1, 200) / 200
    truth, p = (np.ravel(x) for x in probabilities_by_hand(graded, [1, 2, 3]))
    dice = np.array([f1_score(truth, p >= t) for t in grid])
    threshold = result["tuned"]["threshold"]
    assert threshold == pytest.approx(min(grid[dice == dice.max()], key=lambda t: abs(t - 0.5)))
    assert abs(threshold - 0.5) > 0.02  # or the test says nothing
    validation = stored(graded)["val"]  # scored on the way
    assert validation["tuned_threshold"] == threshold
    assert validation["tuned"]["dice"] == pytest.approx(dice.max(), rel=1e-9)
    assert validation["images"] == 3
    truth, p = (np.ravel(x) for x in probabilities_by_hand(graded, [4, 5, 6, 7]))
    assert result["tuned"]["dice"] == pytest.approx(f1_score(truth, p >= threshold), rel=1e-9)
    assert result["dice"] == pytest.approx(f1_score(truth, p >= 0.5), rel=1e-9)
    assert "tuned_threshold" not in result


def test_the_threshold_of_an_earlier_validation_is_taken(graded):
    validated = {"images": 1, "dice": 0.5, "iou": 0.4, "classes": {}, "tuned_threshold": 0.9}
    store_scores(graded, "val", validated)
    truth, p = (np.ravel(x) for x in probabilities_by_hand(graded, [4, 5, 6, 7]))
    tuned = evaluate(graded)["tuned"]
    assert tuned["threshold"] == 0.9
    assert tuned["dice"] == pytest.approx(f1_score(truth, p >= 0.9), rel=1e-9)
    assert stored(graded)["val"] == validated


def test_another_data_set_gets_the_runs_own_threshold(graded, run):
    other = run.parent / "data"
    threshold = evaluate(graded, split="val")["tuned_threshold"]
    assert evaluate(graded, other, "all")["tuned"]["threshold"] == threshold
    assert "tuned_threshold" not in stored(graded)[f"{other}/all"]


def test_a_run_whose_data_is_gone_scores_other_data_without_a_threshold(run, tmp_path):
    other = shutil.copytree(run.parent / "data", tmp_path / "other")
    shutil.rmtree(run.parent / "data")
    result = evaluate(run, other, "all")
    assert result["images"] == 6
    assert result["tuned"] is None
    assert stored(run)[f"{other}/all"] == result


def test_intervals_hold_the_score(graded):
    result = evaluate(graded)
    scores = result["classes"]["foreground"]
    keys = ["dice", "iou", "precision", "recall", "dice_per_image", "hd95", "surface_dice"]
    for holder, names in ((result, keys[:2]), (scores, keys)):
        for key in names:
            low, high = holder[f"{key}_interval"]
            assert low < holder[key] < high, key
    assert result["dice_interval"] == scores["dice_interval"]  # one foreground class
    assert scores["dice_per_case"] is scores["dice_per_case_interval"] is None
    assert result["groups"] is None


def test_intervals_depend_on_the_seed_alone(graded):
    first, again, other = (evaluate(graded, split="all", seed=seed)["dice_interval"] for seed in (1, 1, 2))
    assert first == again != other


def test_one_image_has_no_interval(run):
    result = evaluate(run, split="val")
    assert result["images"] == 1
    assert result["dice_interval"] is None
    assert result["classes"]["foreground"]["hd95_interval"] is None


def test_with_groups_cases_and_intervals_are_of_groups(run, tmp_path):
    data = run.parent / "data"
    write_table(data / "groups.csv", [{"id": f"p{i}", "group": "ab"[i >= 4]} for i in range(6)])
    result = evaluate(run, split="all")
    dataset = open_dataset(data)
    dice = [by_hand(dataset, members)[0] for members in ([0, 1, 2, 3], [4, 5])]
    scores = result["classes"]["foreground"]
    assert result["groups"] == 2
    assert scores["dice_per_case"] == pytest.approx(np.mean(dice), rel=1e-12)
    # Two groups: a resample has the one, the other, or both.
    assert scores["dice_interval"] == pytest.approx(sorted(dice), rel=1e-12)
    assert scores["dice_per_case_interval"] == pytest.approx(sorted(dice), rel=1e-12)


def test_per_image_rows_are_kept_for_each_split_and_replaced_in_it(run):
    evaluate(run)
    evaluate(run)
    evaluate(run, split="train")
    rows = read_csv(run / "per_image.csv")
    assert sorted((row["split"], row["id"]) for row in rows) == [
        ("test", "p3"), ("test", "p4"), ("test", "p5"), ("train", "p0"), ("train", "p1"), ("val", "p2")
    ]  # fmt: skip
    assert list(rows[0]) == [
        "split", "id", "dice", "iou",
        *(f"{key}_{name}" for name in ("background", "foreground")
          for key in ("dice", "iou", "precision", "recall", "hd95", "surface_dice")),
        "entropy",
    ]  # fmt: skip
    by_id = {row["id"]: row for row in rows}
    dataset = open_dataset(run.parent / "data")
    assert float(by_id["p4"]["dice"]) == float(by_id["p4"]["dice_foreground"]) == by_hand(dataset, [4])[0]
    assert float(by_id["p3"]["iou_foreground"]) == by_hand(dataset, [3])[1]
    image, truth = dataset.read(4)
    assert float(by_id["p4"]["surface_dice_foreground"]) == surface_dice(truth, image[..., 0] > 128, 2)
    assert by_id["p5"]["dice"] == by_id["p5"]["hd95_foreground"] == ""
    assert float(by_id["p5"]["dice_background"]) == 1


def test_rows_have_the_hashed_groups_of_the_runs_split(graded, run):
    rows = read_csv(graded / "split.csv")
    write_csv(graded / "split.csv", [{**row, "group": f"hash{row['id']}"} for row in rows])
    evaluate(graded)
    evaluate(graded, run.parent / "data", "all")
    groups = {(row["split"], row["id"]): row["group"] for row in read_csv(graded / "per_image.csv")}
    assert groups["test", "p4"] == "hashp4"
    assert groups[f"{run.parent / 'data'}/all", "p4"] == ""  # an image of another set, which only has the same name


def test_a_mean_entropy_is_in_nats_and_over_scored_pixels(graded):
    evaluate(graded)
    (p,) = probabilities_by_hand(graded, [4])[1]
    row = next(row for row in read_csv(graded / "per_image.csv") if row["id"] == "p4")
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert float(row["entropy"]) == pytest.approx(expected, rel=1e-5)


def test_large_images_are_predicted_in_tiles(graded):
    whole, tiled = evaluate(graded), evaluate(graded, tile=32, overlap=0)
    assert tiled["classes"] == whole["classes"]  # this network sees single pixels
    assert tiled["calibration"]["brier"] == pytest.approx(whole["calibration"]["brier"], rel=1e-6)


def test_an_image_that_is_wholly_ignored_adds_nothing(graded):
    pairs = {f"q{i}": (np.full((32, 32), 200, np.uint8), np.full((32, 32), 7 * i, np.uint8)) for i in range(2)}
    dataset = open_dataset(write_pairs(graded / "ignored", pairs), classes=1, ignore_value=7)
    batches = evaluation_batches(dataset, [0, 1], 32 * 32)
    result, rows = score_images(brightness_model().predict_on_batch, batches, dataset.class_names)
    assert result["classes"]["foreground"]["false_positives"] == 32 * 32
    assert result["images"] == 2
    scores = result["classes"]["foreground"]
    assert (scores["images_undefined"], scores["surface_dice_undefined"], scores["hd95_undefined"]) == (1, 1, 2)
    assert rows[1]["entropy"] is None


def test_several_classes_have_scores_each_and_no_threshold(tmp_path):
    image = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    truth = image.argmax(axis=-1).astype(np.uint8)
    truth[:16, :8] = (truth[:16, :8] + 1) % 3
    data = write_pairs(tmp_path / "data", {f"p{i}": (np.roll(image, i, 0), np.roll(truth, i, 0)) for i in range(3)})
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Softmax()(inputs))
    run = write_run(tmp_path / "run", data, model, ["val", "test", "test"])
    result = evaluate(run)
    assert set(stored(run)) == {"test"}  # no threshold to find
    assert not {"tuned", "tuned_threshold"} & (set(result) | set(evaluate(run, split="val")))
    expected = f1_score(truth.ravel(), image.argmax(axis=-1).ravel(), average=None)
    assert [scores["dice"] for scores in result["classes"].values()] == pytest.approx(expected.tolist())
    assert result["dice"] == pytest.approx(expected[1:].mean())
    assert result["dice_interval"] == pytest.approx([expected[1:].mean()] * 2)  # both images have the same counts
    assert result["classes"]["class 2"]["hd95"] > 0


@pytest.fixture(scope="module")
def sampled(blurred, tmp_path_factory):
    """A run of the model with dropout, and its scores with samples."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    splits = [row["split"] for row in read_csv(blurred / "split.csv")]
    run = write_run(folder, run_data(blurred), dropped_model(), splits)
    return run, evaluate(run, mc_samples=7, seed=3)


def test_samples_add_their_uncertainty_and_leave_the_headline(sampled, blurred):
    run, result = sampled
    plain = evaluate(run)
    assert plain["dice"] == result["dice"]
    assert plain["error_detection"] == result["error_detection"]
    assert "uncertainty" not in plain
    found = result["uncertainty"]
    assert (found["samples"], found["seed"]) == (7, 3)
    assert found["scores"]["single_pass_entropy"] == result["error_detection"]["single_pass_entropy"]
    assert evaluate(run, mc_samples=7, seed=3)["uncertainty"] == found
    assert evaluate(run, mc_samples=7, seed=4)["uncertainty"] != found


def test_uncertainty_is_scored_against_errors_of_the_single_pass(sampled):
    run, result = sampled
    dataset = open_dataset(run_data(run))
    model = keras.saving.load_model(run / "model.keras")
    batches = evaluation_batches(dataset, [4, 5, 6, 7], 8 * 128 * 128)
    images, truth = batches.read(batches.plan[0])
    part = (slice(None), slice(0, 40), slice(0, 50))
    found = from_moments(MonteCarlo(model, 7, seed=3).moments(images)[part])
    truth = truth[part][..., 0]
    wrong = (np.asarray(model.predict_on_batch(images))[part][..., 0] >= 0.5) != truth
    scores = result["uncertainty"]["scores"]
    for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
        expected = roc_auc_score(wrong.ravel(), getattr(found, name).ravel())
        assert scores[name]["auroc_pixels"] == pytest.approx(expected, abs=1e-3), name
    assert len({scores[name]["auroc_pixels"] for name in scores}) == 4
    mean = found.mean[..., 0].ravel()
    assert result["uncertainty"]["dice"] == pytest.approx(f1_score(truth.ravel(), mean >= 0.5), rel=1e-6)
    assert result["uncertainty"]["calibration"]["brier"] == pytest.approx(
        brier_score_loss(truth.ravel(), mean), rel=1e-5
    )


def test_rows_have_the_samples_uncertainty_too(sampled):
    run, _ = sampled
    result = evaluate(run, mc_samples=3)
    row = next(row for row in read_csv(run / "per_image.csv") if row["split"] == "test")
    assert 0 < float(row["mutual_information"]) < float(row["predictive_entropy"]) < np.log(2)
    assert stored(run)["test"] == result


def test_scores_of_numpys_numbers_are_loaded_again(sampled):
    run, result = sampled
    again = evaluate(run, mc_samples=np.int64(7), seed=np.int64(3), tolerance=np.float32(2), tile=np.int64(512))
    assert stored(run)["test"]["uncertainty"] == again["uncertainty"] == result["uncertainty"]
    assert evaluate(run)["dice"] == result["dice"]


def test_samples_need_dropout(graded):
    with pytest.raises(InputError, match="no dropout"):
        evaluate(graded, mc_samples=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mc_samples": -1}, r"`mc_samples` must be a whole number of at least 0, got mc_samples=-1"),
        ({"seed": 0.5}, r"`seed` must be a whole number of at least 0, got seed=0.5"),
        ({"tolerance": -1}, r"`tolerance` must be a number of at least 0, got tolerance=-1"),
        ({"tolerance": float("nan")}, r"`tolerance` must be a number of at least 0, got tolerance=nan"),
        ({"tile": 100}, r"`tile` and `overlap` must be multiples of 32, got tile=100"),
    ],
)
def test_wrong_options_are_an_error(blurred, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(blurred, **options)


def test_a_path_is_an_ensemble_of_one_and_no_run_is_in_it_twice(blurred):
    with pytest.raises(InputError, match="`ensemble` has .* twice; name each run once"):
        evaluate(blurred, ensemble=blurred)


def shown(result):
    """The lines that a terminal of 100 columns shows."""
    console = Console(width=100)
    with console.capture() as capture:
        for table in scores_table(result):
            console.print(table.rich())
    return [line.rstrip() for line in capture.get().splitlines()]


def test_tables_show_scores_with_their_intervals(sampled):
    _, result = sampled
    lines = shown(result)
    low, high = result["dice_interval"]
    mean = next(line for line in lines if "foreground mean" in line)
    assert f"{result['dice']:.3f} [{low:.2f}, {high:.2f}]" in mean
    tuned = next(line for line in lines if "tuned" in line)
    assert f"threshold {result['tuned']['threshold']:g}" in tuned
    assert f"{result['tuned']['dice']:.3f}" in tuned
    assert any("mean of 7 Monte Carlo samples" in line and f"{result['calibration']['ece']:.3f}" for line in lines)
    (line,) = (line for line in lines if "mutual information" in line)
    assert f"{result['uncertainty']['scores']['mutual_information']['auroc_pixels']:.4f}" in line


def test_tables_fit_into_100_columns(sampled, run):
    data = run.parent / "data"
    write_table(data / "groups.csv", [{"id": f"p{i}", "group": i // 2} for i in range(6)])
    result = evaluate(run, split="all")
    result["uncertainty"] = sampled[1]["uncertainty"]
    result["classes"] = {f"{name} of the eye": scores for name, scores in result["classes"].items()}
    rows = sum(len(table) for table in scores_table(result))
    titles = len(scores_table(result))
    assert (
        len([line for line in shown(result) if line.strip()]) == rows + 3 * titles
    )  # title, header, rule: none folded


def test_undefined_scores_are_shown_as_such(run):
    lines = shown(evaluate(run, split="val"))
    assert not any("nan" in line or "None" in line for line in lines)
    write_csv(run / "split.csv", [{"id": "p5", "split": "test"}, {"id": "p2", "split": "val"}])
    assert any("undefined" in line for line in shown(evaluate(run)) if "foreground mean" in line)


def test_an_ensemble_is_scored_beside_the_run_s_own_prediction(graded, tmp_path):
    others = [shutil.copytree(graded, tmp_path / name) for name in ("second", "third")]
    alone = evaluate(graded)
    found = evaluate(graded, ensemble=others)
    assert found["dice"] == alone["dice"]
    uncertainty = found["uncertainty"]
    assert (uncertainty["networks"], uncertainty["samples"]) == (3, 0)
    # Equal members agree: the mean is the prediction, and nothing is left that they could disagree about.
    assert uncertainty["dice"] == pytest.approx(alone["dice"])
    scores = uncertainty["scores"]
    assert scores["predictive_entropy"]["auroc_pixels"] == pytest.approx(
        scores["single_pass_entropy"]["auroc_pixels"], abs=1e-3
    )
    assert "mean of 3 networks" in "\n".join(map(str, scores_table(found)))
