import numpy as np
import pytest
from conftest import write_pairs, write_table

from segdrop.data.fingerprint import fingerprint
from segdrop.data.opening import open_dataset


def opened(folder, masks, **options):
    """A data set of these masks, with black images."""
    pairs = {name: (np.zeros((*mask.shape, 3), np.uint8), mask) for name, mask in masks.items()}
    return open_dataset(write_pairs(folder, pairs), **options)


def drawn(height, width, *boxes):
    """A mask of rectangles (class, top, left, bottom, right) in this order."""
    mask = np.zeros((height, width), np.uint8)
    for value, top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = value
    return mask


@pytest.fixture
def three_classes(tmp_path):
    masks = {
        "a": drawn(20, 40, (1, 2, 2, 5, 32), (1, 10, 10, 17, 17), (2, 0, 0, 1, 1)),
        "b": drawn(10, 10, (2, 0, 0, 10, 5), (9, 0, 5, 10, 10)),
        "c": drawn(30, 20),
    }
    return opened(tmp_path, masks, classes=3, ignore_value=9)


def test_objects_are_measured_as_they_were_drawn(three_classes):
    first, second = fingerprint(three_classes).objects
    # A line of 3 x 30 pixels and a square of 7 x 7.
    assert first.images.tolist() == [0, 0]
    assert first.areas.tolist() == [90, 49]
    assert first.thicknesses.tolist() == [3, 7]
    assert first.extents.tolist() == [30, 7]
    # By hand: the line's rows have distances 1, 2 and 1, its ends 1; the square's rings 24, 16, 8 and 1 pixels.
    line, square = (90 + 28) / 90, (24 + 2 * 16 + 3 * 8 + 4) / 49
    np.testing.assert_allclose(first.widths, [4 * (line - 0.5), 4 * (square - 0.5)], rtol=1e-6)
    # The speck of one pixel in the first image is none; the image's border ends what it cuts off.
    assert second.images.tolist() == [1]
    assert (second.areas.tolist(), second.thicknesses.tolist(), second.extents.tolist()) == ([50], [5], [10])


def test_shares_are_of_the_pixels_that_are_not_ignored(three_classes):
    found = fingerprint(three_classes)
    assert found.sizes.tolist() == [[20, 40], [10, 10], [30, 20]]
    assert found.ignored.tolist() == [0, 0.5, 0]
    assert found.shares.tolist() == [[660 / 800, 139 / 800, 1 / 800], [0, 0, 1], [1, 0, 0]]


def test_pixels_that_touch_at_a_corner_are_one_object(tmp_path):
    mask = np.eye(8, dtype=np.uint8)
    mask[0, 4:7] = 1  # three pixels are too few
    [objects] = fingerprint(opened(tmp_path, {"a": mask})).objects
    assert (objects.areas.tolist(), objects.thicknesses.tolist(), objects.extents.tolist()) == ([8], [1], [8])


def test_neighbouring_classes_are_objects_of_their_own(tmp_path):
    rings = drawn(15, 15, (1, 1, 1, 14, 14), (2, 4, 4, 11, 11))
    first, second = fingerprint(opened(tmp_path, {"a": rings})).objects
    assert (first.areas.tolist(), first.thicknesses.tolist()) == ([13 * 13 - 7 * 7], [3])
    assert (second.areas.tolist(), second.thicknesses.tolist()) == ([49], [7])


def test_a_part_keeps_the_numbers_of_the_whole(three_classes):
    found = fingerprint(three_classes, [1, 2])
    assert found.indices.tolist() == [1, 2]
    assert found.sizes.tolist() == [[10, 10], [30, 20]]
    assert found.objects[1].images.tolist() == [1]


def test_an_image_that_is_ignored_or_full_has_numbers_too(tmp_path):
    masks = {"full": np.full((6, 9), 1, np.uint8), "ignored": np.full((6, 9), 9, np.uint8)}
    found = fingerprint(opened(tmp_path, masks, classes=2, ignore_value=9))
    assert found.shares.tolist() == [[0, 1], [0, 0]]
    assert found.ignored.tolist() == [0, 1]
    assert (found.objects[0].areas.tolist(), found.objects[0].thicknesses.tolist()) == ([54], [5])


def test_pixels_are_those_of_the_resampled_images(tmp_path):
    write_table(tmp_path / "meta.csv", [{"id": "a", "spacing": 1}])
    dataset = opened(tmp_path, {"a": drawn(20, 40, (1, 4, 4, 8, 24))}, spacing=0.5)
    found = fingerprint(dataset)
    assert found.sizes.tolist() == [[40, 80]]
    assert found.spacings == ((0.5, 0.5),)
    assert (found.objects[0].areas.tolist(), found.objects[0].extents.tolist()) == ([8 * 40], [40])
