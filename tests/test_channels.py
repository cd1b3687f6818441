"""Images of any number of channels: what reaches the network, and everything that is done with such a run."""

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import brightness_model, tiny_training, write_run, write_table

import segdrop
from segdrop import InputError
from segdrop.config.train import TrainConfig
from segdrop.data.augment import Sampler, load_augmentation
from segdrop.data.batches import evaluation_batches, training_batches
from segdrop.data.opening import open_configured, open_dataset
from segdrop.data.tiles import in_tiles
from segdrop.images.intensity import Intensity
from segdrop.show.plots import visible

RNG = np.random.default_rng(0)
BANDS = {"planarconfig": "contig", "photometric": "minisblack"}


def write_channels(folder, count=8, channels=5, size=(40, 70)):
    """TIFFs of noise, uint16, and masks of where the last channel is bright; the arrays by id."""
    arrays = {f"p{i}": RNG.integers(0, 65536, (*size, channels), np.uint16) for i in range(count)}
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        stored = array if channels > 1 else array[..., 0]
        tifffile.imwrite(folder / "images" / f"{name}.tif", stored, **(BANDS if channels > 1 else {}))
        tifffile.imwrite(folder / "masks" / f"{name}.tif", (array[..., -1] > 32767).astype(np.uint8))
    return arrays


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_channel_is_read_and_scaled(tmp_path, channels):
    arrays = write_channels(tmp_path, 3, channels)
    dataset = open_dataset(tmp_path, channels=channels)
    assert dataset.channels == channels
    for index, array in enumerate(arrays.values()):
        image, mask = dataset.read(index)
        np.testing.assert_allclose(image, array / 257, rtol=1e-6)
        np.testing.assert_array_equal(mask, array[..., -1] > 32767)


def test_percentiles_are_each_channel_s_own(tmp_path):
    arrays = write_channels(tmp_path, 2)
    config = TrainConfig(data=str(tmp_path), channels=5, intensity="percentiles", intensity_percentiles=(1, 90))
    low, high = np.percentile(arrays["p1"], (1, 90), axis=(0, 1))
    expected = np.clip((arrays["p1"] - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(open_configured(config).read(1)[0], expected, atol=1e-3)


def test_eight_bits_stay_eight_bits(tmp_path):
    for part, array in (("images", RNG.integers(0, 256, (8, 9, 5), np.uint8)), ("masks", np.zeros((8, 9), np.uint8))):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "a.tif", array, **(BANDS if array.ndim == 3 else {}))
    image, _ = open_dataset(tmp_path, channels=5).read(0)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, tifffile.imread(tmp_path / "images" / "a.tif"))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (4, "8 image(s) of another kind than asked for; first: images/p0.tif: has 5 channels; `channels` asks for"),
        (1, "8 image(s) of another kind than asked for; first: images/p0.tif: has 5 channels; `channels` asks for"),
        (None, "8 unreadable file(s); first: images/p0.tif: cannot be decoded as colours: it has 5 bands of uint16, "),
    ],
)
def test_a_training_on_other_channels_names_the_first_image(tmp_path, channels, message):
    write_channels(tmp_path)
    with pytest.raises(InputError) as caught:
        segdrop.train(tiny_training(tmp_path, channels=channels, run_dir=tmp_path / "run"))
    assert message in str(caught.value) and "`channels`" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", [0, 513, 1.5])
def test_a_number_of_channels_that_there_cannot_be_is_refused(channels):
    with pytest.raises(InputError, match="`channels` must be"):
        TrainConfig(channels=channels)


@pytest.mark.parametrize("channels", [1, 5])
def test_batches_hold_all_channels(tmp_path, channels):
    arrays = write_channels(tmp_path, 3, channels)
    dataset = open_dataset(tmp_path, channels=channels)
    batches = training_batches(
        dataset,
        range(3),
        Sampler(load_augmentation("none"), 64),
        batch_size=2,
        crop_size=64,
        seed=0,
        first_epoch=0,
        epochs=1,
    )
    assert batches.element_spec[0].shape == (2, 64, 64, channels)
    padded = [np.pad(array / 257, ((0, 24), (0, 0), (0, 0)), mode="reflect") for array in arrays.values()]
    for image in (image for images, _ in batches for image in images.numpy()):
        assert any(np.allclose(image, whole[:, left : left + 64], rtol=1e-5) for whole in padded for left in range(7))
    evaluation = evaluation_batches(dataset, range(3), 1)
    images, masks = evaluation.read([1])
    whole = np.pad(arrays["p1"] / 257, ((0, 24), (0, 26), (0, 0)), mode="reflect")
    np.testing.assert_allclose(images[0], whole, rtol=1e-6)
    assert masks.shape == (1, 64, 96, 1)
    assert [batch[0].shape for batch in evaluation.as_tf_dataset()] == [(1, 64, 96, channels)] * 3


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_tiles_hold_all_channels(channels):
    image = RNG.uniform(0, 255, (70, 100, channels)).astype(np.float32)
    np.testing.assert_allclose(in_tiles(lambda tiles: tiles, image, tile=64, overlap=32), image, rtol=1e-5)


@pytest.fixture
def run(tmp_path):
    """A network that finds the pixels whose fifth channel is bright."""
    return write_run(tmp_path / "run", brightness_model(channel=4, channels=5), channels=5)


def test_a_network_takes_arrays_of_its_channels_and_files_of_them(run, tmp_path):
    array = RNG.integers(0, 65536, (70, 100, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, **BANDS)
    network, truth = segdrop.load(run), (array[..., 4] / 257 > 128.5)
    assert (network.image_channels, network.input_channels) == (5, 5)
    np.testing.assert_allclose(network.preprocess(array), array / 257, rtol=1e-6)
    np.testing.assert_array_equal(network.labels(network.predict(array, tile=64, overlap=32)), truth)
    done = segdrop.predict(run, tmp_path / "a.tif", tmp_path / "out", overlay=True, tile=64, overlap=32)
    assert done.failed == 0
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED), truth)
    seen = cv2.imread(str(tmp_path / "out" / "a_overlay.png"))[..., ::-1]
    np.testing.assert_array_equal(seen[~truth], np.round(array[..., :3] / 257)[~truth])
    unsure = [segdrop.predict_uncertainty(run, image, samples=0).mean for image in (array, tmp_path / "a.tif")]
    np.testing.assert_array_equal(*unsure)


def test_a_huge_image_of_channels_is_predicted_row_by_row(run, tmp_path, monkeypatch):
    array = RNG.integers(0, 65536, (130, 100, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(32, 32), **BANDS)
    for module in ("images.picture", "images.tiff", "images.tiff_pieces"):
        monkeypatch.setattr(f"segdrop.{module}.MAX_PIXELS", 6000)
    assert segdrop.predict(run, tmp_path / "a.tif", tmp_path / "out", tile=64, overlap=32).failed == 0
    mask = cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, array[..., 4] / 257 > 128.5)


def test_an_image_of_other_channels_is_an_error_of_one_line(run, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40, 3), np.uint8), photometric="rgb")
    (row,) = segdrop.predict(run, tmp_path / "a.tif", tmp_path / "out").files
    assert row["status"] == f"{tmp_path / 'a.tif'}: has 3 channels; `channels` asks for 5."
    network = segdrop.load(run)
    for shape in ((40, 40), (40, 40, 3), (5, 40)):
        with pytest.raises(InputError, match=r"`image` must have the shape \(H, W, 5\), got"):
            network.predict(np.zeros(shape, np.uint8))


def test_a_grey_network_takes_grey_arrays_with_and_without_an_axis_of_channels(tmp_path):
    network = segdrop.load(write_run(tmp_path / "run", brightness_model(channels=1), channels=1))
    array = RNG.integers(0, 256, (33, 40), np.uint8)
    for image in (array, array[..., None]):
        np.testing.assert_array_equal(network.labels(network.predict(image)), array > 128)
    with pytest.raises(InputError, match=r"`image` must have the shape \(H, W\) or \(H, W, 1\), got \(33, 40, 3\)"):
        network.predict(np.zeros((33, 40, 3), np.uint8))


def test_a_run_s_model_must_have_the_channels_of_its_configuration(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(channels=5), channels=4)
    with pytest.raises(InputError, match=r"has a network for \(None, None, None, 5\), not for images of 4 channel"):
        segdrop.load(run)


def test_networks_of_other_channels_are_not_averaged(run, tmp_path):
    other = write_run(tmp_path / "other", brightness_model(channels=4), channels=4)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40, 5), np.uint8), **BANDS)
    with pytest.raises(InputError, match="has image_channels 4, .* has 5; only networks trained alike"):
        segdrop.predict(run, tmp_path / "a.tif", tmp_path / "out", ensemble=(other,))


@pytest.mark.parametrize("channels", [1, 5])
def test_a_training_on_channels_is_predicted_evaluated_reported_and_exported(tmp_path, small_unet, channels):
    arrays = write_channels(tmp_path / "data", channels=channels)
    config = tiny_training(
        tmp_path / "data",
        channels=channels,
        intensity="percentiles",
        augment="medical",
        encoder_dropout=0.2,
        run_dir=tmp_path / "run",
    )
    segdrop.train(config)
    network = segdrop.load(tmp_path / "run")
    assert network.model.input_shape == (None, None, None, channels)
    assert network.intensity == Intensity("percentiles", by_channel=True)
    done = segdrop.predict(tmp_path / "run", tmp_path / "data" / "images", tmp_path / "out", overlay=True, mc_samples=2)
    assert done.failed == 0
    assert segdrop.evaluate(tmp_path / "run", split="val", mc_samples=2)["images"] == 1
    assert "Best" in segdrop.report(tmp_path / "run", mc_samples=2).read_text()
    exported = segdrop.load(segdrop.export(tmp_path / "run", tmp_path / "network.onnx").path)
    assert (exported.image_channels, exported.intensity) == (channels, network.intensity)
    np.testing.assert_allclose(exported.predict(arrays["p0"]), network.predict(arrays["p0"]), atol=1e-5)
    raw = arrays["p0"][:32, :64]
    low, high = np.percentile(arrays["p0"], (0.5, 99.5), axis=(0, 1))
    prepared = np.clip((raw - low) / (high - low), 0, 1) * 255
    expected = network.probabilities(prepared[None].astype(np.float32))
    np.testing.assert_allclose(exported.probabilities(raw[None], low, high), expected, atol=1e-5)
    assert segdrop.export(tmp_path / "run", tmp_path / "saved", format="saved_model").difference < 1e-4


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_pictures_show_three_channels_or_grey(channels, shown):
    image = RNG.integers(0, 256, (4, 5, channels), np.uint8)
    np.testing.assert_array_equal(visible(image), image[..., shown])


# Slices in their context


def write_volumes(folder, count=4, shape=(34, 40, 6)):
    """NIfTI volumes of int16 and masks of where they are above 0; the arrays by id."""
    arrays = {f"v{i}": RNG.integers(-500, 500, shape).astype(np.int16) for i in range(count)}
    for name, array in arrays.items():
        for part, values in (("images", array), ("masks", (array > 0).astype(np.uint8))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(values, np.diag([0.5, 0.8, 3, 1])).to_filename(folder / part / f"{name}.nii.gz")
    return arrays


def in_context(volume, index, context):
    """By hand: the volume padded with its ends, and a window of it; (H, W, 2 * context + 1)."""
    padded = np.pad(volume, ((0, 0), (0, 0), (context, context)), mode="edge")
    return padded[..., index : index + 2 * context + 1]


WINDOW = Intensity("window", window=(-500, 500))


def scaled(values):
    return np.clip((values.astype(float) + 500) / 1000, 0, 1) * 255


@pytest.mark.parametrize("context", [1, 2, 7])
@pytest.mark.parametrize("cache_mb", [2048, 0])
def test_a_slice_comes_between_those_before_and_after_it(tmp_path, context, cache_mb):
    arrays = write_volumes(tmp_path, 2)
    dataset = open_dataset(tmp_path, intensity=WINDOW, context_slices=context, cache_mb=cache_mb)
    assert (len(dataset), dataset.channels, dataset.cached) == (12, 2 * context + 1, 12 if cache_mb else 0)
    for index in range(12):
        volume, part = arrays[f"v{index // 6}"], index % 6
        image, mask = dataset.read(index)
        np.testing.assert_allclose(image, scaled(in_context(volume, part, context)), atol=1e-3)
        np.testing.assert_array_equal(mask, volume[..., part] > 0)


def test_the_context_follows_the_slice_axis(tmp_path):
    volume = write_volumes(tmp_path, 1)["v0"]
    image, mask = open_dataset(tmp_path, intensity=WINDOW, context_slices=1, slice_axis=0).read(33)
    np.testing.assert_allclose(image, scaled(np.moveaxis(volume[[32, 33, 33]], 0, -1)), atol=1e-3)
    np.testing.assert_array_equal(mask, volume[33] > 0)


def test_a_context_leaves_the_percentiles_those_of_the_volume(tmp_path):
    write_volumes(tmp_path, 1)
    alone, among = (
        open_dataset(tmp_path, intensity=Intensity("percentiles", (1, 90)), context_slices=context)
        for context in (0, 2)
    )
    for index in range(6):
        np.testing.assert_array_equal(among.read(index)[0][..., 2], alone.read(index)[0][..., 0])


def test_pages_of_a_tiff_have_a_context_too(tmp_path):
    pages = RNG.integers(0, 256, (5, 33, 40), np.uint8)
    for part, values in (("images", pages), ("masks", pages > 128)):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "a.tif", values.astype(np.uint8), photometric="minisblack")
    image, _ = open_dataset(tmp_path, context_slices=1).read(0)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.stack([pages[0], pages[0], pages[1]], axis=-1))


def test_an_image_that_is_no_grey_volume_has_no_context(tmp_path):
    write_channels(tmp_path / "a", 2, channels=1)
    with pytest.raises(
        InputError, match=r"2 image.* kind than asked for; first: images/p0.tif: is a single image; `cont"
    ):
        open_dataset(tmp_path / "a", context_slices=1)
    write_channels(tmp_path / "b", 2)
    with pytest.raises(InputError, match=r"first: images/p0.tif: has 5 channels; `context_slices` needs grey volumes"):
        segdrop.train(tiny_training(tmp_path / "b", context_slices=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"context_slices": 2, "channels": 3},
            "`channels` must be 5 with context_slices=2, or left out, got channels=3.",
        ),
        ({"context_slices": -1}, "`context_slices` must be a whole number of at least 0"),
        ({"context_slices": 256}, "`context_slices` must be at most 255"),
    ],
)
def test_a_context_that_there_cannot_be_is_refused(fields, message):
    with pytest.raises(InputError) as caught:
        TrainConfig(**fields)
    assert message in str(caught.value)
    assert TrainConfig(context_slices=2, channels=5).input_channels == TrainConfig(context_slices=2).input_channels == 5


def test_a_volume_in_several_groups_has_no_context(tmp_path):
    write_volumes(tmp_path, 2)
    rows = [{"id": f"v{v}#{i:03d}", "group": f"g{v and i}"} for v in range(2) for i in range(6)]
    write_table(tmp_path / "groups.csv", rows)
    assert len(open_dataset(tmp_path)) == 12
    with pytest.raises(
        InputError, match=r"1 volume.* in several groups, which `context_slices` would mix; first: v1#0"
    ):
        open_dataset(tmp_path, context_slices=1)


@pytest.mark.parametrize(("channel", "shift"), [(0, -2), (2, 0), (4, 2)])
def test_a_volume_is_predicted_with_each_slice_in_its_context(tmp_path, channel, shift):
    volume = write_volumes(tmp_path / "data", 1)["v0"]
    run = write_run(
        tmp_path / "run",
        brightness_model(channel=channel, channels=5),
        context_slices=2,
        intensity="window",
        intensity_window=(-500, 500),
    )
    done = segdrop.predict(run, tmp_path / "data" / "images", tmp_path / "out", overlay=True, tile=32, overlap=0)
    assert done.failed == 0
    mask = nibabel.load(tmp_path / "out" / "v0.nii.gz")
    source = volume[..., np.clip(np.arange(6) + shift, 0, 5)]
    np.testing.assert_array_equal(np.asarray(mask.dataobj), scaled(source) > 128.5)
    np.testing.assert_allclose(mask.affine, np.diag([0.5, 0.8, 3, 1]))
    most = int(np.argmax((scaled(source) > 128.5).sum(axis=(0, 1))))
    background = scaled(source)[..., most] <= 128.5
    seen = cv2.imread(str(tmp_path / "out" / "v0_overlay.png"))
    expected = np.repeat(scaled(volume[..., most])[..., None], 3, axis=-1)
    np.testing.assert_allclose(seen[background], expected[background], atol=0.51)
    network = segdrop.load(run)
    picture = network.open(tmp_path / "data" / "images" / "v0.nii.gz")
    np.testing.assert_array_equal(picture.read(4), in_context(volume, 4, 2))
    with pytest.raises(IndexError, match="no slice 6"):
        picture.read(6)
    np.testing.assert_array_equal(network.labels(network.predict(picture.read(4))), np.asarray(mask.dataobj)[..., 4])


def test_a_single_image_is_not_predicted_in_context(tmp_path):
    run = write_run(tmp_path / "run", brightness_model(), context_slices=1)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32), np.uint8))
    (row,) = segdrop.predict(run, tmp_path / "a.png", tmp_path / "out").files
    assert row["status"].endswith("a.png: is a single image; `context_slices` needs grey volumes of several slices.")
    with pytest.raises(InputError, match=r"`image` must have the shape \(H, W, 3\), got \(32, 32\)"):
        segdrop.load(run).predict(np.zeros((32, 32), np.uint8))


def test_a_training_in_context_is_predicted_evaluated_reported_and_exported(tmp_path, small_unet):
    arrays = write_volumes(tmp_path / "data", 5)
    config = tiny_training(
        tmp_path / "data",
        channels=5,
        context_slices=2,
        intensity="percentiles",
        encoder_dropout=0.2,
        val_fraction=0.2,
        run_dir=tmp_path / "run",
    )
    segdrop.train(config)
    network = segdrop.load(tmp_path / "run")
    assert network.model.input_shape == (None, None, None, 5)
    assert network.intensity == Intensity("percentiles")
    assert segdrop.evaluate(tmp_path / "run", split="val", mc_samples=2)["images"] == 6
    assert "Best" in segdrop.report(tmp_path / "run", mc_samples=2).read_text()
    exported = segdrop.load(segdrop.export(tmp_path / "run", tmp_path / "network.onnx").path)
    assert (exported.context_slices, exported.input_channels) == (2, 5)
    done = segdrop.predict(tmp_path / "run", tmp_path / "data" / "images", tmp_path / "out", probabilities="npz")
    assert done.failed == 0
    again = segdrop.predict(exported, tmp_path / "data" / "images", tmp_path / "again", probabilities="npz")
    assert again.failed == 0
    low, high = np.percentile(arrays["v3"], (0.5, 99.5))
    slices = [np.clip((in_context(arrays["v3"], i, 2) - low) / (high - low), 0, 1) * 255 for i in range(6)]
    padded = np.pad(np.float32(slices), ((0, 0), (0, 30), (0, 24), (0, 0)), mode="reflect")
    expected = network.probabilities(padded)[:, :34, :40, 0]
    for out in ("out", "again"):
        with np.load(tmp_path / out / "v3_probabilities.npz") as file:
            np.testing.assert_allclose(file["probabilities"][:, 0], expected, atol=2e-3)


def test_of_slices_in_context_the_middle_one_is_shown():
    image = RNG.integers(0, 256, (4, 5, 5), np.uint8)
    np.testing.assert_array_equal(visible(image, 2), image[..., [2, 2, 2]])
