"""predict: masks of files of any size and format, in tiles, resumed, and nothing left in part."""

import errno
import json
import os

import cv2
import keras
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import brightness_model, read_csv, write_run
from dicom_files import write_dicom

import segdrop
from segdrop import InputError
from segdrop.inference import canvas, ensemble
from segdrop.inference.predict import predict, predict_uncertainty
from segdrop.inference.writer import Writer

RNG = np.random.default_rng(0)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", brightness_model())


@pytest.fixture(scope="module")
def dropout_run(tmp_path_factory):
    """A network of few weights with dropout in it."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Dropout(0.5, seed=0)(keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x))
    model.set_weights([RNG.normal(0, 0.5, w.shape) for w in model.weights])
    return write_run(tmp_path_factory.mktemp("runs") / "dropout", model)


def write_images(folder, **images):
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        cv2.imwrite(str(folder / f"{name}.png"), image if image.ndim == 2 else image[..., ::-1])
    return folder


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def mask_of(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def left_over(folder):
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 64), (200, 130)])
@pytest.mark.parametrize("colours", [1, 3])
def test_masks_are_class_indices_of_the_image_s_size(run, tmp_path, size, colours):
    image = noise(*size) if colours == 1 else noise(*size, 3)
    predict(run, write_images(tmp_path / "in", a=image), tmp_path / "out", tile=64, overlap=32)
    mask = mask_of(tmp_path / "out" / "a.png")
    np.testing.assert_array_equal(mask, (image if colours == 1 else image[..., 0]) > 128)
    assert mask.dtype == np.uint8


def test_files_folders_and_globs_are_found_and_folders_keep_their_structure(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32), b=noise(32, 32))
    write_images(folder / "deep", a=noise(32, 32))
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    found = predict(run, folder, tmp_path / "out1")
    assert [row["file"] for row in found.files] == ["a", "b", "deep/a"]
    assert (tmp_path / "out1" / "deep" / "a.png").is_file()
    found = predict(run, [str(folder / "?.png"), folder / "b.png"], tmp_path / "out2")
    assert [row["file"] for row in found.files] == ["a", "b"]


def test_one_bad_file_is_reported_and_the_others_are_written(run, tmp_path):
    folder = write_images(tmp_path / "in", **{f"p{i}": noise(32, 32) for i in range(9)})
    (folder / "p4.png").write_bytes((folder / "p4.png").read_bytes()[:50])
    (folder / "empty.tif").write_bytes(b"")
    found = predict(run, folder, tmp_path / "out")
    assert found.failed == 2 and len(found.files) == 10
    status = {row["file"]: row["status"] for row in read_csv(tmp_path / "out" / "predictions.csv")}
    assert "p4.png: cannot be decoded" in status["p4"] and "the file is empty" in status["empty"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [f"p{i}.png" for i in range(9) if i != 4]
    assert left_over(tmp_path / "out") == []


def test_the_table_tells_the_share_of_each_class(run, tmp_path):
    image = np.zeros((10, 20), np.uint8)
    image[:5, :4] = 255
    (row,) = predict(run, write_images(tmp_path / "in", a=image), tmp_path / "out").files
    assert (row["height"], row["width"], row["slices"]) == (10, 20, 1)
    assert row["share foreground"] == pytest.approx(0.1)
    assert row["share background"] == pytest.approx(0.9)


def test_probabilities_are_written_as_float16(run, tmp_path):
    image = np.array([[120, 128, 129, 140]], np.uint8)
    folder = write_images(tmp_path / "in", a=image)
    expected = 1 / (1 + np.exp(128.5 - image.astype(float)))
    predict(run, folder, tmp_path / "tiff", probabilities="tiff")
    predict(run, folder, tmp_path / "npz", probabilities="npz")
    with tifffile.TiffFile(tmp_path / "tiff" / "a_probabilities.tif") as file:
        page = file.pages[0].asarray()
        assert json.loads(file.pages[0].description) == {"pages": ["foreground"]}
    assert page.dtype == np.float16
    np.testing.assert_allclose(page, expected, rtol=1e-2, atol=1e-6)
    with np.load(tmp_path / "npz" / "a_probabilities.npz") as file:
        np.testing.assert_array_equal(file["probabilities"][0], page)
        assert file["classes"].tolist() == ["foreground"]


def test_three_classes_have_three_maps(tmp_path):
    model = brightness_model(classes=3)
    run = write_run(tmp_path / "run", model, class_names=("background", "nerve", "vessel"))
    image = noise(40, 50)
    predict(run, write_images(tmp_path / "in", a=image), tmp_path / "out", probabilities="tiff", uncertainty=True)
    assert set(np.unique(mask_of(tmp_path / "out" / "a.png"))) == {0, 2}
    assert tifffile.imread(tmp_path / "out" / "a_probabilities.tif").shape == (3, 40, 50)
    with tifffile.TiffFile(tmp_path / "out" / "a_uncertainty.tif") as file:
        names = json.loads(file.pages[0].description)["pages"]
        assert len(file.pages) == len(names) == 6
    assert names[:3] == ["predictive_entropy", "expected_entropy", "mutual_information"]
    assert names[3:] == ["std background", "std nerve", "std vessel"]


def test_the_threshold_can_be_chosen(run, tmp_path):
    image = np.array([[120, 128, 129, 140]], np.uint8)
    predict(run, write_images(tmp_path / "in", a=image), tmp_path / "out", threshold=0.99)
    assert mask_of(tmp_path / "out" / "a.png").tolist() == [[0, 0, 0, 1]]


def test_flips_and_turns_are_undone(tmp_path, monkeypatch):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="edge")(inputs))
    kernel, bias = RNG.normal(0, 0.01, (3, 3, 3, 1)), np.zeros(1)
    model.get_layer("edge").set_weights([kernel, bias])
    run = write_run(tmp_path / "run", model)
    image = noise(64, 96, 3)
    folder = write_images(tmp_path / "in", a=image)
    for tta, views in (("flips", 4), ("d4", 8)):
        predict(run, folder, tmp_path / tta, tta=tta, probabilities="npz")
        with np.load(tmp_path / tta / "a_probabilities.npz") as file:
            found = file["probabilities"][0]
        # A mean over all views is the same as turning the kernel instead of the image.
        kernels = {
            "flips": [kernel, kernel[::-1], kernel[:, ::-1], kernel[::-1, ::-1]],
            "d4": [np.rot90(one, turns) for turns in range(4) for one in (kernel, kernel[:, ::-1])],
        }[tta]
        assert len(kernels) == views
        total = 0
        for one in kernels:
            model.get_layer("edge").set_weights([one, bias])
            total = total + model.predict_on_batch(image[None].astype("float32"))[0, ..., 0]
        np.testing.assert_allclose(found, total / views, atol=1e-3)


def test_an_ensemble_is_the_mean_of_its_members(tmp_path):
    runs = [write_run(tmp_path / f"run{level}", brightness_model(level)) for level in (100.5, 200.5, 220.5)]
    image = np.array([[50, 150, 210, 240]], np.uint8)
    folder = write_images(tmp_path / "in", a=image)
    found = predict(runs[0], folder, tmp_path / "out", ensemble=runs[1:], probabilities="npz", uncertainty=True)
    with np.load(tmp_path / "out" / "a_probabilities.npz") as file:
        np.testing.assert_allclose(file["probabilities"][0], [[0, 1 / 3, 2 / 3, 1]], atol=1e-3)
    entropy, expected, information, std = tifffile.imread(tmp_path / "out" / "a_uncertainty.tif")
    coin = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    np.testing.assert_allclose(entropy, [[0, coin, coin, 0]], atol=1e-3)
    np.testing.assert_allclose(expected, np.zeros((1, 4)), atol=1e-3)
    np.testing.assert_allclose(information, [[0, coin, coin, 0]], atol=1e-3)
    np.testing.assert_allclose(std, [[0, np.sqrt(2) / 3, np.sqrt(2) / 3, 0]], atol=1e-3)
    assert found.files[0]["mutual_information"] == pytest.approx(coin / 2, abs=1e-3)
    scores = predict_uncertainty(runs, image, samples=0)
    np.testing.assert_allclose(scores.predictive_entropy, [[0, coin, coin, 0]], atol=1e-3)


def test_a_run_is_not_in_an_ensemble_twice(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(20, 20))
    with pytest.raises(InputError, match="`ensemble` has .*run twice; name each run once"):
        predict(run, folder, tmp_path / "out", ensemble=str(run))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": -1}, "`samples` must be a whole number of at least 0, got samples=-1"),
        ({"rate": 1}, r"`rate` must be a number in \[0, 1\), got rate=1"),
        ({"rate": 0.2, "samples": 0}, "`rate` needs samples"),
    ],
)
def test_options_of_samples_are_named_as_they_are_given(dropout_run, options, message):
    with pytest.raises(InputError, match=message):
        predict_uncertainty(dropout_run, noise(32, 32), **options)


def test_members_of_an_ensemble_must_have_the_same_classes(run, tmp_path):
    other = write_run(tmp_path / "other", brightness_model(), class_names=("background", "nerve"))
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    with pytest.raises(InputError, match="only networks trained alike can be averaged"):
        predict(run, folder, tmp_path / "out", ensemble=[other])
    assert not (tmp_path / "out").exists()


def test_samples_are_seeded_and_scored(dropout_run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(48, 80, 3))
    options = {"mc_samples": 8, "uncertainty": True, "tile": 64, "overlap": 32}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        predict(dropout_run, folder, tmp_path / name, seed=seed, **options)
    one, same, other = (tifffile.imread(tmp_path / n / "a_uncertainty.tif") for n in ("one", "same", "other"))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    entropy, expected, information, std = one.astype(float)
    np.testing.assert_allclose(information, entropy - expected, atol=2e-3)
    assert information.min() >= 0 and std.min() >= 0 and information.mean() > 0.01
    (row,) = read_csv(tmp_path / "one" / "predictions.csv")
    assert float(row["mutual_information"]) == pytest.approx(information.mean(), rel=1e-2)


def test_numpys_numbers_are_stored_as_pythons(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(40, 50))
    predict(run, folder, tmp_path / "out", seed=np.int64(4), tile=np.int64(64), overlap=0, threshold=np.float32(0.25))
    told = json.loads((tmp_path / "out/predict.json").read_text())
    assert (told["seed"], told["tile"], told["threshold"]) == (4, 64, 0.25)


def test_uncertainty_of_an_array_equals_that_of_its_file(dropout_run, tmp_path):
    image = noise(40, 70, 3)
    folder = write_images(tmp_path / "in", a=image)
    network = segdrop.load(dropout_run)
    by_array = predict_uncertainty(network, image, samples=6, seed=3)
    by_file = predict_uncertainty(dropout_run, folder / "a.png", samples=6, seed=3)
    assert by_array.mean.shape == (40, 70, 1)
    np.testing.assert_array_equal(by_array.mutual_information, by_file.mutual_information)
    assert by_array.score == pytest.approx(float(by_array.predictive_entropy.mean()))


def test_overlays_are_pictures_of_the_image_s_size(dropout_run, tmp_path):
    image = noise(60, 50, 3)
    folder = write_images(tmp_path / "in", a=image)
    predict(dropout_run, folder, tmp_path / "out", mc_samples=2, uncertainty=True, overlay=True)
    shown, mask = mask_of(tmp_path / "out" / "a_overlay.png")[..., ::-1], mask_of(tmp_path / "out" / "a.png")
    np.testing.assert_array_equal(shown[mask == 0], image[mask == 0])
    assert (shown[mask == 1] != image[mask == 1]).any()
    assert mask_of(tmp_path / "out" / "a_uncertainty.png").shape == (60, 50, 3)


@pytest.fixture
def small_is_huge(monkeypatch):
    """Let images of more than 5,000 pixels be kept on disk and written as tiled TIFF."""
    monkeypatch.setattr("segdrop.inference.canvas.HUGE_PIXELS", 5000)
    monkeypatch.setattr("segdrop.inference.writer.HUGE_PIXELS", 5000)
    monkeypatch.setattr("segdrop.inference.canvas._FILE_TILE", 64)


OPTIONS = {"tile": 64, "overlap": 32, "mc_samples": 3, "uncertainty": True, "probabilities": "tiff", "overlay": True}


def test_a_huge_image_gives_what_a_small_one_gives(dropout_run, tmp_path, monkeypatch):
    image = noise(300, 210, 3)
    folder = write_images(tmp_path / "in", a=image)
    predict(dropout_run, folder, tmp_path / "small", **OPTIONS)
    monkeypatch.setattr("segdrop.inference.canvas.HUGE_PIXELS", 5000)
    monkeypatch.setattr("segdrop.inference.writer.HUGE_PIXELS", 5000)
    predict(dropout_run, folder, tmp_path / "huge", **OPTIONS)
    with tifffile.TiffFile(tmp_path / "huge" / "a.tif") as file:
        assert file.pages[0].is_tiled
        np.testing.assert_array_equal(file.pages[0].asarray(), mask_of(tmp_path / "small" / "a.png"))
    for name in ("a_probabilities.tif", "a_uncertainty.tif"):
        np.testing.assert_array_equal(
            tifffile.imread(tmp_path / "huge" / name), tifffile.imread(tmp_path / "small" / name)
        )
    for name in ("a_overlay.png", "a_uncertainty.png"):
        np.testing.assert_array_equal(mask_of(tmp_path / "huge" / name), mask_of(tmp_path / "small" / name))
    assert left_over(tmp_path / "huge") == []


@pytest.mark.parametrize("stop_after", [1, 4, 8])
def test_a_huge_image_is_resumed_at_its_row_of_tiles(dropout_run, tmp_path, small_is_huge, monkeypatch, stop_after):
    folder = write_images(tmp_path / "in", a=noise(300, 210, 3), b=noise(32, 32, 3))
    predict(dropout_run, folder, tmp_path / "whole", **OPTIONS)
    combine = ensemble.combine
    calls = []

    def interrupted(networks, **options):
        function = combine(networks, **options)

        def call(images, key):
            calls.append(key)
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            return function(images, key)

        return call

    monkeypatch.setattr("segdrop.inference.predict.combine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(dropout_run, folder, tmp_path / "parts", **OPTIONS)
    assert not (tmp_path / "parts" / "a.tif").exists()
    calls.clear()
    stop_after = 10**6
    predict(dropout_run, folder, tmp_path / "parts", resume=True, **OPTIONS)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes() or path.suffix == ".csv"
    rows = [read_csv(tmp_path / name / "predictions.csv") for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert left_over(tmp_path / "parts") == []


def test_finished_files_are_not_predicted_again(run, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "in", a=noise(32, 32), b=noise(32, 32))
    predict(run, folder, tmp_path / "out")
    (tmp_path / "out" / "b.png").unlink()
    stamp = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    found = predict(run, folder, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == stamp
    assert (tmp_path / "out" / "b.png").is_file()
    assert [row["status"] for row in found.files] == ["ok", "ok"]


def test_the_table_keeps_what_an_earlier_call_predicted(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32), b=noise(32, 32))
    predict(run, folder / "b.png", tmp_path / "out")
    found = predict(run, folder / "a.png", tmp_path / "out", resume=True)
    assert [row["file"] for row in found.files] == ["b", "a"]
    assert [row["mask"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == ["b.png", "a.png"]


def test_a_file_that_has_changed_is_predicted_again(run, tmp_path):
    folder = write_images(tmp_path / "in", a=np.zeros((32, 32), np.uint8), b=noise(32, 32))
    predict(run, folder, tmp_path / "out")
    write_images(folder, a=np.full((40, 20), 255, np.uint8))
    predict(run, folder, tmp_path / "out", resume=True)
    assert mask_of(tmp_path / "out" / "a.png").tolist() == np.ones((40, 20)).tolist()


def test_networks_with_one_and_two_channels_are_not_averaged(run, tmp_path):
    other = write_run(tmp_path / "other", brightness_model(classes=2))
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    with pytest.raises(InputError, match="has channels 2, .* has 1; only networks trained alike"):
        predict(run, folder, tmp_path / "out", ensemble=[other])
    with pytest.raises(InputError, match="`threshold` has no effect"):
        predict(other, folder, tmp_path / "out", threshold=0.3)


def test_names_that_cannot_be_written_are_reported_and_the_others_predicted(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    content = (folder / "a.png").read_bytes()
    (folder / ("n" * 246 + ".png")).write_bytes(content)
    (folder / "x.jpg").write_bytes(content)
    write_images(folder / "x.png", deep=noise(32, 32))
    os.makedirs(os.fsencode(folder) + b"/odd\xff")
    (folder / os.fsdecode(b"odd\xff") / "b.png").write_bytes(content)
    found = predict(run, folder, tmp_path / "out")
    status = {row["file"]: row["status"] for row in found.files}
    assert found.failed == 2 and status["a"] == status["x"] == status["odd\\udcff/b"] == "ok"
    assert "its results cannot be written as" in status["x.png/deep"]
    assert "rename it" in status["n" * 246]
    assert read_csv(tmp_path / "out" / "predictions.csv")


@pytest.mark.parametrize("content", [noise(32, 32), None])
def test_a_name_that_only_a_temporary_file_makes_too_long_is_written(run, tmp_path, content):
    folder, name = tmp_path / "in", "n" * 240
    write_images(folder, **({} if content is None else {name: content}))
    (folder / f"{name}.png").open("ab").close()  # an empty file, where there is none
    found = predict(run, folder, tmp_path / "out")
    assert found.failed == (content is None)
    assert (tmp_path / "out" / f"{name}.png").is_file() == (content is not None)
    assert len(read_csv(tmp_path / "out" / "predictions.csv")) == 1


def test_a_file_without_a_name_is_an_error(run, tmp_path):
    (tmp_path / ".png").write_bytes(b"")
    with pytest.raises(InputError, match="has no name before its suffix"):
        predict(run, tmp_path / ".png", tmp_path / "out")
    with pytest.raises(InputError, match="`inputs` has an empty name"):
        predict(run, "", tmp_path / "out")
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    with pytest.raises(InputError, match="`out` is the folder of the images, or holds it"):
        predict(run, folder, folder)


def test_an_image_too_wide_for_png_becomes_tiff(run, tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", np.full((3, 66_000), 255, np.uint8))
    (row,) = predict(run, tmp_path / "in", tmp_path / "out", overlay=True).files
    assert row["mask"] == "a.tif" and tifffile.imread(tmp_path / "out" / "a.tif").min() == 1


def test_what_an_interrupted_call_left_of_a_file_that_is_bad_now_is_removed(run, tmp_path, small_is_huge):
    folder = write_images(tmp_path / "in", a=noise(100, 100))
    predict(run, folder, tmp_path / "out")
    for name in (".a.mask.partial", ".a.progress.json"):
        (tmp_path / "out" / name).write_bytes(b"{}")
    (folder / "a.png").write_bytes(b"")
    assert predict(run, folder, tmp_path / "out", resume=True).failed == 1
    assert left_over(tmp_path / "out") == []


def test_a_resampled_volume_counts_every_slice_once_after_an_interruption(tmp_path, small_is_huge, monkeypatch):
    run = write_run(tmp_path / "run", brightness_model(), spacing=2.0, intensity="window", intensity_window=(0, 255))
    (tmp_path / "in").mkdir()
    values = RNG.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 5.0, 1.0])).to_filename(tmp_path / "in" / "scan.nii")
    finish, calls = canvas.Work.finish_row, []

    def interrupted(self, *arguments):
        finish(self, *arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(canvas.Work, "finish_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(run, tmp_path / "in", tmp_path / "out")
    (row,) = predict(run, tmp_path / "in", tmp_path / "out", resume=True).files
    assert row["share background"] + row["share foreground"] == pytest.approx(1)


def test_failed_files_are_tried_again_by_resume(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    (folder / "b.png").write_bytes(b"")
    assert predict(run, folder, tmp_path / "out").failed == 1
    write_images(folder, b=noise(32, 32))
    assert predict(run, folder, tmp_path / "out", resume=True).failed == 0


def test_resuming_with_other_options_is_an_error(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    predict(run, folder, tmp_path / "out")
    with pytest.raises(InputError, match="`tta` is 'flips', but .* was started with 'none'"):
        predict(run, folder, tmp_path / "out", resume=True, tta="flips")


def test_results_are_never_overwritten(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    predict(run, folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds predictions: .*; continue them with --resume"):
        predict(run, folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match="`out` is not empty"):
        predict(run, folder, run)


def test_results_that_would_share_a_name_are_an_error(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32), a_overlay=noise(32, 32))
    with pytest.raises(InputError, match="its results could replace those of a_overlay"):
        predict(run, folder, tmp_path / "out")
    cv2.imwrite(str(folder / "a.tif"), noise(32, 32))
    with pytest.raises(InputError, match="would both be written as a; predict them apart"):
        predict(run, folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="`inputs` names no file: .*nowhere"):
        predict(run, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="`inputs` folder holds no image"):
        predict(run, tmp_path / "bare", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_stops_and_leaves_no_file_in_part(run, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "in", a=noise(32, 32), b=noise(32, 32))
    write, count = canvas.write_png, []

    def full(path, picture):
        count.append(path)
        if len(count) == 2:
            path.with_name(f".{path.stem}.partial.png").write_bytes(b"part")
            path.with_name(f".{path.stem}.partial.png").unlink()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, picture)

    monkeypatch.setattr("segdrop.inference.writer.write_png", full)
    with pytest.raises(OSError, match="No space left on device"):
        predict(run, folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]
    monkeypatch.setattr("segdrop.inference.writer.write_png", write)
    assert predict(run, folder, tmp_path / "out", resume=True).failed == 0
    assert left_over(tmp_path / "out") == []


def test_a_nifti_volume_gets_a_mask_with_its_affine_and_shape(tmp_path):
    run = write_run(
        tmp_path / "run", brightness_model(), intensity="percentiles", intensity_percentiles=(0, 100), slice_axis=1
    )
    values = RNG.integers(-1000, 1000, (20, 6, 40)).astype(np.int16)
    affine = np.array([[0, 0, 2.0, 1], [-0.7, 0, 0, 2], [0, 5, 0, 3], [0, 0, 0, 1]])
    (tmp_path / "in").mkdir()
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"PATIENT DOE"
    image.to_filename(tmp_path / "in" / "scan.nii.gz")
    (row,) = predict(run, tmp_path / "in", tmp_path / "out").files
    mask = nibabel.load(tmp_path / "out" / "scan.nii.gz")
    assert row["slices"] == 6 and mask.shape == values.shape
    np.testing.assert_allclose(mask.affine, affine)
    scaled = (values - values.min()) / (values.max() - values.min()) * 255
    np.testing.assert_array_equal(np.asarray(mask.dataobj), scaled > 128.5)
    assert b"DOE" not in bytes(mask.header.binaryblock)


def test_pages_become_pages(run, tmp_path):
    pages = noise(5, 40, 30)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "stack.tif", pages, photometric="minisblack")
    predict(run, tmp_path / "in", tmp_path / "out", probabilities="tiff", overlay=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "stack.tif"), pages > 128)
    assert tifffile.imread(tmp_path / "out" / "stack_probabilities.tif").shape == (5, 40, 30)
    assert mask_of(tmp_path / "out" / "stack_overlay.png").shape == (40, 30, 3)


def test_percentiles_are_those_of_the_image_and_not_of_a_tile(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(), intensity="percentiles", intensity_percentiles=(0, 100))
    image = np.zeros((64, 256), np.uint8)
    image[:, 128:] = 100
    image[0, 0] = 200  # the brightest pixel of the image is in its first tile only
    predict(run, write_images(tmp_path / "in", a=image), tmp_path / "out", tile=64, overlap=32)
    assert mask_of(tmp_path / "out" / "a.png").sum() == 1


def test_an_image_of_another_spacing_is_resampled_and_its_mask_is_not(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(), spacing=2.0, intensity="window", intensity_window=(0, 255))
    values = np.zeros((64, 64, 1), np.uint8)
    values[16:48, 16:48] = 255
    (tmp_path / "in").mkdir()
    nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 5.0, 1.0])).to_filename(tmp_path / "in" / "scan.nii")
    predict(run, tmp_path / "in", tmp_path / "out")
    mask = np.asarray(nibabel.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    assert mask.shape == values.shape
    assert np.mean(mask != values // 255) < 0.05
    network = segdrop.load(run)
    assert network.preprocess(values[..., 0], spacing=(1.0, 1.0)).shape == (32, 32, 3)
    with pytest.raises(InputError, match="was trained at 2 mm per pixel; the image's own is unknown"):
        network.preprocess(values[..., 0])


def test_a_file_without_a_spacing_is_reported(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(), spacing=2.0)
    found = predict(run, write_images(tmp_path / "in", a=noise(32, 32)), tmp_path / "out")
    assert found.failed == 1 and "the image's own is unknown" in found.files[0]["status"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, "multiples of 32, got tile=100"),
        ({"mc_samples": -1}, "`mc_samples` must be a whole number of at least 0"),
        ({"tta": "spin"}, "`tta` must be one of none, flips, d4, got tta='spin'"),
        ({"probabilities": "png"}, "`probabilities` must be one of none, tiff, npz"),
        ({"threshold": 1.5}, r"`threshold` must be in \(0, 1\), got threshold=1.5"),
        ({"mc_rate": 0.2}, "`mc_rate` needs mc_samples"),
        ({"mc_rate": 0, "mc_samples": 2}, "`mc_rate` must be above 0, for samples to differ"),
        ({"uncertainty": "no"}, "`uncertainty` must be True or False, got uncertainty='no'"),
        ({"resume": "no"}, "`resume` must be True or False, got resume='no'"),
        ({"mc_rate": 1.2, "mc_samples": 2}, r"`mc_rate` must be a number in \[0, 1\)"),
        ({"mc_samples": 5}, "`mc_samples` cannot be drawn from .*has no dropout layer"),
    ],
)
def test_wrong_options_are_an_error_before_anything_is_written(run, tmp_path, options, message):
    folder = write_images(tmp_path / "in", a=noise(32, 32))
    with pytest.raises(InputError, match=message):
        predict(run, folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


EVERYTHING = {"probabilities": "npz", "overlay": True, "uncertainty": True, "tta": "flips"}


@pytest.mark.parametrize("failing", ["write_volume_mask", "write_tiff", "write_png"])
def test_the_results_of_an_image_appear_together_or_not_at_all(run, tmp_path, monkeypatch, failing):
    (tmp_path / "in").mkdir()
    nibabel.Nifti1Image(noise(40, 30, 3), np.eye(4)).to_filename(tmp_path / "in" / "a.nii")

    def broken(*arguments, **options):
        raise InputError("The result cannot be written.")

    monkeypatch.setattr(f"segdrop.inference.writer.{failing}", broken)
    (row,) = predict(run, tmp_path / "in", tmp_path / "out", **EVERYTHING).files
    assert row["status"] == "The result cannot be written."
    assert sorted(os.listdir(tmp_path / "out")) == ["predict.json", "predictions.csv"]


def test_a_result_that_cannot_be_put_into_place_takes_the_others_with_it(run, tmp_path):
    folder = write_images(tmp_path / "in", a=noise(32, 32), b=noise(32, 32))
    predict(run, folder / "b.png", tmp_path / "out", **EVERYTHING)
    (tmp_path / "out" / "a.png").mkdir()
    found = predict(run, folder, tmp_path / "out", resume=True, **EVERYTHING)
    assert found.failed == 1 and "its results cannot be written" in found.files[0]["status"]
    assert [path.name for path in (tmp_path / "out").glob("a*")] == ["a.png"]


def test_dicom_that_is_called_nifti_gets_all_of_its_results(run, tmp_path):
    (tmp_path / "in").mkdir()
    image = noise(40, 30)
    write_dicom(tmp_path / "in" / "a.nii", image)
    (row,) = predict(run, tmp_path / "in", tmp_path / "out", **EVERYTHING).files
    assert (row["status"], row["mask"]) == ("ok", "a.png")
    np.testing.assert_array_equal(mask_of(tmp_path / "out" / "a.png"), image > 128)
    results = ["a.png", "a_overlay.png", "a_probabilities.npz", "a_uncertainty.png", "a_uncertainty.tif"]
    assert sorted(os.listdir(tmp_path / "out")) == [*results, "predict.json", "predictions.csv"]


def test_an_image_that_memory_does_not_hold_is_reported(run, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "in", a=noise(32, 32), b=noise(32, 32))
    keep, calls = Writer._keep, []

    def full(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        keep(self, *arguments)

    monkeypatch.setattr(Writer, "_keep", full)
    found = predict(run, folder, tmp_path / "out").files
    assert [row["status"] for row in found] == [f"{folder / 'a.png'}: does not fit into memory.", "ok"]
