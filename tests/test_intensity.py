"""Intensity: from a file's values to 0..255, by one rule for an image or a whole volume."""

from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import tifffile

from segdrop import InputError
from segdrop.images import intensity
from segdrop.images.intensity import Intensity, scale
from segdrop.images.opening import open_image
from segdrop.images.picture import Picture

RNG = np.random.default_rng(0)


def write(path: Path, array):
    if path.suffix == ".nii":
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        assert cv2.imwrite(str(path), array)
    return open_image(path)


def test_8_bit_images_keep_their_values_exactly():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scaled = scale(image, 0.0, 255.0)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, np.repeat(image[..., None], 3, axis=-1).astype(np.float32))


@pytest.mark.parametrize(
    ("values", "low", "high", "expected"),
    [
        ([0, 65535, 257], 0, 65535, [0, 255, 1]),
        ([-200, -100, 0, 100, 300], -100, 100, [0, 0, 127.5, 255, 255]),
        ([0.25, 0.5, 0.75], 0.25, 0.75, [0, 127.5, 255]),
        ([7, 7, 7], 7, 7, [0, 0, 0]),
        ([1, 2, 3], 3, 1, [0, 0, 0]),
        ([-3e38, 0, 1.5e38, 3e38], -3e38, 3e38, [0, 127.5, 191.25, 255]),
        ([0, 1e-40, 2e-40, 5e-40], 0, 2e-40, [0, 127.5, 255, 255]),
        ([-3e38, 0, 0.5, 3e38], 0, 1, [0, 0, 127.5, 255]),
        ([3e38, -3e38], -3e38, -3e38, [0, 0]),
    ],
)
def test_values_are_clipped_and_scaled(values, low, high, expected):
    scaled = scale(np.array([values]), low, high)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[0], np.repeat(np.array(expected)[:, None], 3, axis=-1), rtol=1e-6)


def test_colours_are_scaled_alike():
    image = RNG.integers(0, 65536, (5, 7, 3), np.uint16)
    np.testing.assert_allclose(scale(image, 0, 65535), image / 257, rtol=1e-6)


def test_the_image_given_is_left_alone():
    image = np.ones((4, 4, 3), np.float32)
    scale(image, 0, 2)
    assert (image == 1).all()


@pytest.mark.parametrize(("dtype", "expected"), [(np.uint8, (0, 255)), (np.uint16, (0, 65535))])
def test_the_dtype_rule_is_the_range_of_the_type(tmp_path, dtype, expected):
    picture = write(tmp_path / "a.png", np.full((4, 4), 7, dtype))
    assert Intensity().bounds(picture) == expected


def test_floating_point_has_no_range_of_its_type(tmp_path):
    picture = write(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"a\.tif: holds floating-point.*use `intensity` percentiles or window"):
        Intensity().bounds(picture)


def test_truth_values_are_not_called_floating_point():
    picture = Picture(Path("`image`"), 4, 4, None, 1, np.dtype(bool))
    with pytest.raises(InputError, match="`image`: holds bool values, whose type tells no range"):
        Intensity().bounds(picture)


def test_percentiles_are_those_of_the_image_with_all_its_channels(tmp_path):
    image = RNG.integers(0, 65536, (50, 40, 3), np.uint16)
    picture = write(tmp_path / "a.png", image)
    expected = np.percentile(image, (2, 90))
    np.testing.assert_allclose(Intensity("percentiles", (2, 90)).bounds(picture), expected)


def test_percentiles_of_channels_are_each_channel_s_own_where_they_are_no_colours(tmp_path):
    image = RNG.integers(0, 1000, (40, 50, 5)).astype(np.uint16) * np.array([1, 2, 4, 8, 16], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, planarconfig="contig", photometric="minisblack")
    picture = open_image(tmp_path / "a.tif", channels=5)
    low, high = Intensity("percentiles", (2, 98), by_channel=True).bounds(picture)
    expected = [np.percentile(image[..., i], (2, 98)) for i in range(5)]
    np.testing.assert_allclose(np.transpose([low, high]), expected)
    scaled = scale(image, low, high)
    for i, (bottom, top) in enumerate(expected):
        np.testing.assert_allclose(
            scaled[..., i], np.clip((image[..., i] - bottom) / (top - bottom), 0, 1) * 255, atol=1e-3
        )


def test_a_constant_channel_becomes_zeros_and_leaves_the_others_alone():
    image = np.stack([np.full((4, 4), 7.0), np.linspace(0, 10, 16).reshape(4, 4)], axis=-1)
    scaled = scale(image, (7, 0), (7, 10))
    np.testing.assert_array_equal(scaled[..., 0], 0)
    np.testing.assert_allclose(scaled[..., 1], image[..., 1] * 25.5, rtol=1e-6)


def test_percentiles_are_those_of_the_whole_volume(tmp_path):
    volume = np.cumsum(np.ones((8, 9, 10), np.float32), axis=2)
    picture = write(tmp_path / "a.nii", volume)
    assert Intensity("percentiles", (0, 100)).bounds(picture) == (1, 10)


@pytest.mark.parametrize("rule", [Intensity("percentiles", (0, 100)), Intensity("percentiles", (0.5, 99.5))])
@pytest.mark.parametrize("ends", [(-3e38, 3e38), (0, 1e-40)])
def test_percentiles_of_an_extreme_span_are_found(tmp_path, rule, ends):
    values = np.linspace(*ends, 40 * 48).astype(np.float32)
    picture = write(tmp_path / "a.tif", values.reshape(40, 48))
    expected = np.percentile(values.astype(np.float64), rule.percentiles)
    np.testing.assert_allclose(rule.bounds(picture), expected, rtol=1e-5)
    assert scale(picture.read(), *rule.bounds(picture)).mean() == pytest.approx(127.5, abs=0.5)


def test_a_percentile_may_lie_between_two_values_far_apart(tmp_path):
    picture = write(tmp_path / "a.tif", np.repeat(np.float32([-3e38, 3e38]), 8).reshape(4, 4))
    assert Intensity("percentiles", (50, 100)).bounds(picture) == pytest.approx((0, 3e38))


def test_percentiles_of_a_large_image_come_from_a_grid_whatever_the_bands(tmp_path, monkeypatch):
    image = RNG.integers(0, 65536, (91, 83), np.uint16)
    picture = write(tmp_path / "a.png", image)
    monkeypatch.setattr(intensity, "SAMPLES", 1000)
    whole = Intensity("percentiles", (5, 95)).bounds(picture)
    np.testing.assert_allclose(whole, np.percentile(image[::3, ::3], (5, 95)))
    monkeypatch.setattr(intensity, "_BAND_PIXELS", 83 * 7)
    assert Intensity("percentiles", (5, 95)).bounds(picture) == whole


def test_a_constant_image_becomes_zeros(tmp_path):
    picture = write(tmp_path / "a.png", np.full((4, 4), 9, np.uint8))
    low, high = Intensity("percentiles").bounds(picture)
    assert not scale(picture.read(), low, high).any()


def picture_with_window(window):
    return Picture(Path("a.dcm"), 4, 4, None, 1, np.dtype(np.int16), value_range=(-1024.0, 3071.0), window=window)


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [((0, 80), (-160, 240), (0, 80)), (None, (-160, 240), (-160, 240))],
)
def test_a_given_window_comes_before_the_file_s_own(given, own, expected):
    assert Intensity("window", window=given).bounds(picture_with_window(own)) == expected


def test_no_window_anywhere_is_an_error():
    with pytest.raises(InputError, match=r"a\.dcm: has no window of its own; give `intensity_window`"):
        Intensity("window").bounds(picture_with_window(None))
