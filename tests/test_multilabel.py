"""Classes that overlap: masks of them as people have them, and every score, loss and command of such a network."""

import json

import cv2
import keras
import numpy as np
import onnxruntime
import pytest
import tifffile
from conftest import tiny_training, write_run, write_table
from keras import losses as keras_losses
from PIL import Image
from scipy import stats
from sklearn import metrics
from test_layouts import GREY, lay, square

import segdrop
from segdrop import InputError, TrainConfig
from segdrop.cli.main import main
from segdrop.config.arms import arms_of
from segdrop.conventions import IGNORED, OVERLAPPING, class_by_class
from segdrop.data.fingerprint import fingerprint
from segdrop.data.opening import open_configured, open_dataset
from segdrop.data.plain import write_plain
from segdrop.nets.temperature import TemperedProbabilities
from segdrop.scoring.counts import confusion_counts, dice_from_counts, to_labels
from segdrop.scoring.reliability import brier_sum, reliability
from segdrop.scoring.tally import Tally
from segdrop.scoring.temperature import fit_temperature, tempered
from segdrop.scoring.uncertainty import entropy, from_moments, moments
from segdrop.show import plots
from segdrop.surgery.sampling import MonteCarlo
from segdrop.training.losses import LOSSES, SegmentationLoss
from segdrop.training.metrics import Dice, IoU

RNG = np.random.default_rng(0)
CLASSES = 4  # the background and three that overlap
TRUTH = RNG.integers(0, 8, (24, 30)).astype(np.uint8)
TRUTH[3:6] = IGNORED
P = RNG.uniform(0.01, 0.99, (24, 30, 3)).astype(np.float32)
SCORED = TRUTH != IGNORED
YES = np.stack([TRUTH & 1, TRUTH >> 1 & 1, TRUTH >> 2 & 1], axis=-1)[SCORED]  # (pixels, 3)


# What a mask's numbers mean, against arrays of yes and no.


def test_labels_are_sums_of_bits_and_come_apart_again():
    labels = to_labels(P, 0.3, multilabel=True)
    np.testing.assert_array_equal(np.stack(class_by_class(labels, CLASSES, True), axis=-1), P >= 0.3)
    assert to_labels(P[..., :1], 0.3, multilabel=True).max() == 1  # of one class the same as without


def test_dice_of_each_class_is_that_of_its_own_mask():
    pred = to_labels(P, multilabel=True)
    dice = dice_from_counts(confusion_counts(TRUTH, pred, CLASSES, multilabel=True))
    of_each = [metrics.f1_score(YES[:, i], P[SCORED][:, i] >= 0.5) for i in range(3)]
    of_none = metrics.f1_score(~YES.any(axis=1), ~(P[SCORED] >= 0.5).any(axis=1))
    np.testing.assert_allclose(dice, [of_none, *of_each])


def test_distances_are_of_each_class_where_it_overlaps_too():
    tally = Tally(3, sampled=False, tolerance=2, tune=False, threshold=None, multilabel=True)
    truth = np.full((8, 8), 2, np.uint8)
    truth[:, :4] = 3
    p = np.ones((8, 8, 2), np.float32)
    p[:, 2:, 0] = 0  # class 1 in two columns instead of four
    tally.add([truth], [p], [None])
    assert tally.images[0]["distances"][1:, 0].tolist() == [2, 0]


def test_what_is_no_sum_of_bits_is_refused():
    with pytest.raises(ValueError, match="`pred` must hold sums of the classes' bits, 0..3, got 4..4"):
        confusion_counts([1], [4], 3, multilabel=True)


def test_calibration_counts_each_class_of_a_pixel_by_itself():
    bins, total = reliability(P, TRUTH, multilabel=True), brier_sum(P, TRUTH, multilabel=True)
    masks = class_by_class(TRUTH, CLASSES, True)
    np.testing.assert_allclose(bins, sum(reliability(P[..., [i]], masks[i]) for i in range(3)))
    assert bins[0, 0].sum() == YES.size
    assert total == pytest.approx(np.square(P[SCORED] - YES).sum(), rel=1e-5)


def test_entropy_is_the_sum_of_the_classes():
    np.testing.assert_allclose(entropy(P, True), stats.bernoulli(P).entropy().sum(axis=-1), rtol=1e-5)
    sampled = from_moments(np.mean([moments(p, True) for p in (P, 1 - P)], axis=0), True)
    np.testing.assert_allclose(sampled.predictive_entropy, 3 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(sampled.expected_entropy, entropy(P, True), rtol=1e-5)


def test_a_temperature_is_fitted_to_each_class_of_a_pixel_by_itself():
    p = RNG.uniform(0.05, 0.95, (40_000, 3)).astype(np.float32)
    truth = ((RNG.uniform(size=p.shape) < p) @ [1, 2, 4]).astype(np.uint8)
    assert fit_temperature(tempered(p, 0.5, True), truth, multilabel=True).value == pytest.approx(2, rel=0.05)
    np.testing.assert_allclose(TemperedProbabilities(2.0, True)(p), tempered(p, 2.0, True), rtol=1e-5)
    layer = TemperedProbabilities.from_config(TemperedProbabilities(2.0, True).get_config())
    assert layer.multilabel and layer.temperature == 2


@pytest.mark.jax
def test_the_keras_metrics_say_the_same():
    counts = confusion_counts(TRUTH, to_labels(P, multilabel=True), CLASSES, multilabel=True)
    for metric, score in ((Dice, dice_from_counts), (IoU, lambda c: c[:, 0] / c.sum(axis=1))):
        found = metric(CLASSES, multilabel=True)
        found.update_state(TRUTH[None, ..., None], P[None])
        assert float(found.result()) == pytest.approx(score(counts)[1:].mean(), rel=1e-6)
        assert metric.from_config(found.get_config()).multilabel


# Losses, against Keras's own on each class.


@pytest.mark.jax
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0, 4.0)])
def test_a_loss_is_made_of_the_classes_own(name, weights):
    loss = SegmentationLoss(name, class_weights=weights, multilabel=True)(TRUTH[None, ..., None], P[None])
    background, *others = weights or (1, 1, 1, 1)
    truth, p = YES.astype(np.float32), P[SCORED]
    of_pixels = np.where(truth == 1, others, background)
    pixelwise = keras_losses.binary_focal_crossentropy if name == "focal" else keras_losses.binary_crossentropy
    mean = np.average(np.asarray(pixelwise(truth[..., None], p[..., None])), weights=of_pixels)
    alpha = 0.7 if name == "tversky" else 0.5
    hit = (truth * p).sum(axis=0)
    overlap = hit / (hit + alpha * (truth * (1 - p)).sum(axis=0) + (1 - alpha) * ((1 - truth) * p).sum(axis=0))
    parts = {"focal": mean, "dice_ce": mean + np.average(1 - overlap, weights=others)}
    assert float(loss) == pytest.approx(parts.get(name, np.average(1 - overlap, weights=others)), rel=1e-4)


@pytest.mark.jax
def test_where_all_is_ignored_a_loss_is_nothing_and_it_keeps_what_it_was_told():
    loss = SegmentationLoss("dice_ce", multilabel=True)
    assert float(loss(np.full((1, 4, 4, 1), IGNORED), P[None, :4, :4])) == 0
    assert SegmentationLoss.from_config(loss.get_config()).multilabel


# Masks as people have them.

DISC, CUP = square(4, size=16), square(8)  # columns 4 to 19, and 8 to 15 within them
BOTH = (DISC > 0) + 2 * (CUP > 0)
CUP_FIRST = (CUP > 0) + 2 * (DISC > 0)


def by_class(folders=("masks/cup", "masks/disc")):
    files = {f"images/{i}.png": GREY for i in "ab"}
    return files | {f"{f}/{i}.png": m for f, m in zip(folders, (CUP, DISC), strict=True) for i in "ab"}


@pytest.mark.parametrize(
    "folders", [("masks/cup", "masks/disc"), ("cup_masks", "disc_masks"), ("GT/cup/train", "GT/disc/train")]
)
def test_a_folder_of_masks_is_a_class(tmp_path, folders):
    dataset = open_dataset(lay(tmp_path, by_class(folders)), multilabel=True)
    assert dataset.class_names == ("background", "cup", "disc") and dataset.multilabel
    assert "and a mask of disc beside each" in dataset.understood
    np.testing.assert_array_equal(dataset.read(1)[1], CUP_FIRST)


def test_classes_json_says_their_order(tmp_path):
    lay(tmp_path, by_class())
    (tmp_path / "classes.json").write_text('["nothing", "disc", "cup"]')
    dataset = open_dataset(tmp_path, multilabel=True)
    assert dataset.class_names == ("nothing", "disc", "cup")
    np.testing.assert_array_equal(dataset.read(0)[1], BOTH)


def test_a_table_names_a_mask_of_each_class(tmp_path):
    lay(tmp_path, {"x.png": GREY, "one.png": DISC, "two.png": CUP})
    write_table(tmp_path / "all.csv", [{"image": "x.png", "mask_disc": "one.png", "mask_cup": "two.png"}])
    dataset = open_dataset(tmp_path / "all.csv", multilabel=True)
    assert dataset.class_names == ("background", "disc", "cup")
    np.testing.assert_array_equal(dataset.read(0)[1], BOTH)


def test_volumes_have_a_mask_of_each_class_too(tmp_path):
    files = {"images/v.nii.gz": GREY, "masks/disc/v.nii.gz": DISC, "masks/cup/v.nii.gz": CUP}
    dataset = open_dataset(lay(tmp_path, files), multilabel=True)
    assert dataset.ids == ("v#000",)
    np.testing.assert_array_equal(dataset.read(0)[1], CUP_FIRST)


def test_outlines_do_not_cover_each_other(tmp_path):
    lay(tmp_path, {"x.png": GREY})
    ring = {"label": "disc", "points": [[4, 8], [20, 8], [20, 24], [4, 24]], "shape_type": "polygon"}
    core = {"label": "cup", "points": [[8, 8], [16, 8], [16, 16], [8, 16]], "shape_type": "polygon"}
    told = {"shapes": [core, ring], "imagePath": "x.png", "imageHeight": 32, "imageWidth": 40}
    (tmp_path / "x.json").write_text(json.dumps(told))
    np.testing.assert_array_equal(open_dataset(tmp_path, multilabel=True).read(0)[1], CUP_FIRST)
    np.testing.assert_array_equal(open_dataset(tmp_path).read(0)[1], (DISC > 0) * 2)  # the later covers the earlier


def test_outside_of_the_field_of_view_is_ignored(tmp_path):
    files = by_class(("1st_manual/cup", "1st_manual/disc")) | {f"mask/{i}.png": square(6, size=20) for i in "ab"}
    mask = open_dataset(lay(tmp_path, files), multilabel=True).read(0)[1]
    inside = square(6, size=20) > 0
    assert (mask[~inside] == IGNORED).all()
    np.testing.assert_array_equal(mask[inside], CUP_FIRST[inside])


def test_what_is_written_plain_is_read_again(tmp_path):
    dataset = open_dataset(lay(tmp_path / "in", by_class()), multilabel=True)
    write_plain(dataset, tmp_path / "out")
    again = open_dataset(tmp_path / "out", multilabel=True)
    assert again.class_names == dataset.class_names
    np.testing.assert_array_equal(again.read(0)[1], CUP_FIRST)


def test_shares_and_objects_are_each_class_s_own(tmp_path):
    found = fingerprint(open_dataset(lay(tmp_path, by_class()), multilabel=True))
    np.testing.assert_allclose(found.shares[0], [1 - 256 / 1280, 64 / 1280, 256 / 1280])
    assert [objects.areas.tolist() for objects in found.objects] == [[64, 64], [256, 256]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masks/cup/b.png": None}, r"1 image\(s\) have no mask of cup"),
        ({"masks/disc/a.png": DISC[:30]}, "disc/a.png: its size differs from that of the image's other classes"),
        ({"masks/cup/a.png": CUP // 2 + DISC // 2}, "cup/a.png: a mask of one class is of 0 and another value"),
        ({"masks/cup/a.png": None, "masks/cup/b.png": None}, "masks of 1 class.*leave out --multilabel"),
        ({f"masks/c{k}/{i}.png": CUP for k in range(7) for i in "ab"}, "at most 7 classes that overlap; .* has 9"),
        ({"classes.json": '["no", "disc", "rim"]'}, "each class of classes.json, disc, rim; there are: cup, disc"),
    ],
)
def test_a_fault_is_found_and_named(tmp_path, change, words):
    lay(
        tmp_path, {name: array for name, array in {**by_class(), **change}.items() if not isinstance(array, str | None)}
    )
    for name, text in change.items():
        if isinstance(text, str):
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path, multilabel=True)


def test_outlines_of_too_many_classes_are_refused(tmp_path):
    lay(tmp_path, {"x.png": GREY})
    shapes = [{"label": f"c{i}", "points": [[4, 8], [20, 8], [20, 24]], "shape_type": "polygon"} for i in range(9)]
    told = {"shapes": shapes, "imagePath": "x.png", "imageHeight": 32, "imageWidth": 40}
    (tmp_path / "x.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="at most 7 classes that overlap; .* has 9"):
        open_dataset(tmp_path, multilabel=True)


def test_masks_in_colours_cannot_overlap(tmp_path):
    lay(tmp_path, {"images/a.png": GREY, "masks/a.png": np.stack([DISC] * 3, axis=-1)})
    colours = {i: {"name": f"c{i}", "color": [c] * 3} for i, c in enumerate((0, 255, 7))}
    (tmp_path / "classes.json").write_text(json.dumps(colours))
    with pytest.raises(InputError, match="in colours, of which each is one class: give each class a folder of masks"):
        open_dataset(tmp_path, multilabel=True)


def test_arms_of_a_sweep_have_it_in_common():
    with pytest.raises(InputError, match="arms must be scored on the same images"):
        arms_of(segdrop.SweepConfig(grid={"multilabel": [True, False]}))


def test_values_beyond_the_classes_are_named(tmp_path):
    lay(tmp_path, {"images/a.png": GREY, "masks/a.png": square(4, 9)})
    with pytest.raises(InputError, match=r"other values than sums of the classes' bits 1, 2; first: a.png has \[9\]"):
        open_dataset(tmp_path, multilabel=True, classes=3)
    assert len(open_dataset(tmp_path, multilabel=True).class_names) == 5  # 9 is 1 and 8


def test_folders_of_classes_without_the_option_name_it(tmp_path):
    with pytest.raises(InputError, match="two ways: .*, or --multilabel where the folders are classes"):
        open_dataset(lay(tmp_path, by_class()))


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_a_number_of_classes_that_cannot_overlap_is_refused(classes):
    with pytest.raises(InputError, match=f"`classes` must be 3 to {OVERLAPPING + 1} with multilabel.*={classes}"):
        TrainConfig(multilabel=True, classes=classes)


# A network whose answer is known: class 1 where red is bright, class 2 where green is.


def channel_model(activation="sigmoid", slope=1.0):
    inputs = keras.Input((None, None, 3))
    dropped = keras.layers.SpatialDropout2D(0.2, seed=0, name="dropout")(inputs)
    pick = keras.layers.Conv2D(2, 1, activation=activation, name="pick")
    model = keras.Model(inputs, pick(dropped))
    kernel = slope * np.array([[[[1, 0], [0, 1], [0, 0]]]], "float32")
    pick.set_weights([kernel, np.full(2, -128.5 * slope, "float32")])
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on four images of which two are of each split that is scored, and what is right for each."""
    home = tmp_path_factory.mktemp("overlapping")
    rng = np.random.default_rng(1)
    right = {}
    for i in range(4):
        image = np.kron(rng.choice([40, 210], (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        red, green = (image[..., c] > 128 for c in (0, 1))
        right[f"p{i}"] = image, red + 2 * green
        for path, array in (("images", image), ("masks/green", green * 255), ("masks/red", red * 255)):
            (home / "data" / path).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(home / "data" / path / f"p{i}.png")
    (home / "data" / "classes.json").write_text('["background", "red", "green"]')
    write_table(home / "data" / "splits.csv", [{"id": f"p{i}", "split": ("val", "test")[i % 2]} for i in range(4)])
    names, fields = ("background", "red", "green"), {"data": str(home / "data"), "multilabel": True}
    folder = write_run(home / "run", channel_model(), class_names=names, **fields, crop_size=32, batch_size=8)
    record = json.loads((folder / "config.json").read_text())
    digest = open_configured(TrainConfig(**fields)).digest
    (folder / "config.json").write_text(json.dumps({**record, "data_sha256": digest}))
    write_table(folder / "split.csv", [{"id": f"p{i}", "split": ("val", "test")[i % 2]} for i in range(4)])
    return folder, right


def test_a_run_is_loaded_and_predicts_every_class(run):
    network = segdrop.load(run[0])
    assert (network.channels, network.multilabel, network.class_names[1:]) == (2, True, ("red", "green"))
    image, right = run[1]["p2"]
    np.testing.assert_array_equal(network.labels(network.predict(image)), right)


def test_a_keras_model_that_ends_in_a_sigmoid_is_of_overlapping_classes():
    network = segdrop.load(channel_model())
    assert network.multilabel and network.class_names == ("background", "class 1", "class 2")
    assert not segdrop.load(channel_model("softmax")).multilabel


def test_scores_of_a_right_prediction_are_perfect(run):
    scores = segdrop.evaluate(run[0], split="all")
    assert [scores["classes"][name]["dice"] for name in ("background", "red", "green")] == [1, 1, 1]
    assert scores["classes"]["red"]["hd95"] == 0 and scores["calibration"]["ece"] == pytest.approx(0, abs=1e-6)


def test_prediction_writes_bits_shares_and_a_map_for_each_class(run, tmp_path):
    files = [str(path) for path in sorted((run[0].parent / "data" / "images").iterdir())]
    options = {"probabilities": "tiff", "uncertainty": True, "mc_samples": 3, "overlay": True}
    done = segdrop.predict(run[0], files, tmp_path / "out", **options, threshold=0.4, seed=1)
    plain = segdrop.predict(run[0], files, tmp_path / "plain", threshold=0.4)
    for name, (_, right) in run[1].items():
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "plain" / f"{name}.png"), -1), right)
        with tifffile.TiffFile(tmp_path / "out" / f"{name}_probabilities.tif") as file:
            assert file.asarray().shape[0] == 2 and json.loads(file.pages[0].description)
        assert tifffile.imread(tmp_path / "out" / f"{name}_uncertainty.tif").shape[0] == 3 + 2
    row, right = plain.files[1], run[1]["p1"][1]
    assert row["share red"] == (right & 1).mean() and row["share background"] == (right == 0).mean()
    assert done.failed == 0


def test_samples_have_the_entropy_of_each_class(run):
    image = run[1]["p0"][0]
    unsure = segdrop.predict_uncertainty(run[0], image, samples=64, seed=0)
    p = unsure.mean.astype(np.float64)
    np.testing.assert_allclose(unsure.predictive_entropy, stats.bernoulli(p).entropy().sum(axis=-1), atol=1e-4)
    vague = channel_model(slope=0.02)
    sample = MonteCarlo(vague, 1, multilabel=True).moments(image[None].astype(np.float32))
    np.testing.assert_allclose(sample[..., -1], stats.bernoulli(sample[..., :2]).entropy().sum(axis=-1), rtol=1e-4)


def test_the_exported_file_knows_its_classes_and_its_recipe_runs(run, tmp_path, monkeypatch):
    segdrop.export(run[0], tmp_path / "model.onnx")
    network, (image, right) = segdrop.load(tmp_path / "model.onnx"), run[1]["p3"]
    np.testing.assert_array_equal(network.labels(network.predict(image)), right)
    recipe = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map["recipe"]
    Image.fromarray(image).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(recipe, found)
    np.testing.assert_array_equal(found["labels"], right)


def test_pictures_show_what_overlaps_in_both_colours_and_each_error():
    grey = np.full((1, 4, 3), 100, np.uint8)
    shown = plots.overlay(grey, np.array([[0, 1, 2, 3]], np.uint8), opacity=1, multilabel=True)[0].astype(int)
    np.testing.assert_allclose(shown[3], (shown[1] + shown[2]) / 2, atol=1)
    truth, pred = np.array([[3, 3, 1, 1]], np.uint8), np.array([[3, 1, 3, 2]], np.uint8)
    errors = plots.errors(grey, truth, pred, opacity=1, multilabel=True)[0]
    expected = [(100, 100, 100), plots.MISSED, plots.FALSE, plots.MISSED]
    np.testing.assert_allclose(errors, np.round(expected), atol=1)


@pytest.mark.filterwarnings("ignore:.* outside of its folder")
def test_a_training_goes_all_the_way(tmp_path, run, small_unet, capsys):
    data = run[0].parent / "data"
    write_table(
        tmp_path / "list.csv",
        [
            {
                "image": str(data / "images" / f"p{i}.png"),
                "mask_red": str(data / "masks" / "red" / f"p{i}.png"),
                "mask_green": str(data / "masks" / "green" / f"p{i}.png"),
                "split": ("train", "train", "val", "test")[i],
            }
            for i in range(4)
        ],
    )
    options = {"epochs": 30, "encoder_dropout": 0.1, "class_weights": "auto", "lr": 0.02, "augment": "none"}
    folder = tmp_path / "run"
    segdrop.train(tiny_training(tmp_path / "list.csv", run_dir=str(folder), multilabel=True, **options))
    assert segdrop.evaluate(folder, split="val", mc_samples=2)["dice"] > 0.9
    assert "Balance: background" in capsys.readouterr().out
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert "red" in page and "green" in page
