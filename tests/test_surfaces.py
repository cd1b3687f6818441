"""Boundary distances: brute force over all pairs of pixels, and tables worked out by hand."""

import cv2
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from segdrop.conventions import IGNORED
from segdrop.scoring.surfaces import boundary_distances, hausdorff95, surface_dice

UNDEFINED = np.nan


def blobs(seed, shape=(60, 75)):
    """Two masks that resemble each other, with holes, islands and parts at the image's border."""
    rng = np.random.default_rng(seed)
    field, change = (cv2.GaussianBlur(rng.normal(size=shape), (0, 0), sigma) for sigma in (5, 3))
    return field > 0.02, field + 0.3 * change > 0.02


def by_brute_force(truth, pred, spacing):
    """Distances between all pairs of boundary pixels, which are found by looking at the neighbours of each."""
    points = []
    for mask in (truth, pred):
        padded = np.pad(mask, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        points.append(np.argwhere(mask & ~inside) * np.array(spacing or (1, 1)))
    pairs = cdist(*points)
    return pairs.min(axis=1), pairs.min(axis=0)


@pytest.mark.parametrize("spacing", [None, (0.5, 0.5), (0.7, 1.3), (3, 0.4)])
@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_brute_force(seed, spacing):
    truth, pred = blobs(seed)
    there, back = by_brute_force(truth, pred, spacing)
    assert there.max() > 3 * min(spacing or (1, 1))  # the masks do differ
    found = boundary_distances(truth, pred, spacing)
    np.testing.assert_allclose(found[0], there, rtol=1e-12)
    np.testing.assert_allclose(found[1], back, rtol=1e-12)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff95(truth, pred, spacing) == pytest.approx(expected, rel=1e-12)
    near = np.concatenate([there, back]) <= 1.5
    assert surface_dice(truth, pred, 1.5, spacing) == pytest.approx(near.mean(), rel=1e-12)


def square(top, left, side=5, shape=(20, 30)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


EMPTY = square(0, 0, 0)


@pytest.mark.parametrize(
    ("truth", "pred", "spacing", "tolerance", "distance", "share"),
    [
        (square(5, 5), square(5, 5), None, 0, 0, 1),
        (square(5, 5), square(5, 5), (2, 3), 0, 0, 1),
        (square(5, 5, 1), square(8, 9, 1), None, 5, 5, 1),  # one pixel each: 3, 4, 5
        (square(5, 5, 1), square(8, 9, 1), None, 4.9, 5, 0),
        (square(5, 5, 1), square(8, 9, 1), (2, 1), 7, np.sqrt(52), 0),
        (square(0, 0, 1), square(3, 0, 1), (0.1, 0.1), 0.3, 0.3, 1),  # equal to the tolerance, but for rounding
        # A square of 5 x 5 moved by 10: its near side, 5 of its 16 pixels, is 6 columns away, its far side 10 ...
        (square(5, 5), square(5, 15), None, 6, 10, 5 / 16),
        # ... and a column is 2 mm wide.
        (square(5, 5), square(5, 15), (1, 2), 12, 20, 5 / 16),
        # Inside another: the outer boundary's corners are the farthest, the inner one's pixels are 1 away.
        (square(5, 5, 3), square(4, 4, 5), None, 1, np.sqrt(2), 20 / 24),
        (square(5, 5), EMPTY, None, 2, UNDEFINED, 0),
        (EMPTY, square(5, 5), (1, 2), 2, UNDEFINED, 0),
        (EMPTY, EMPTY, None, 2, UNDEFINED, UNDEFINED),
    ],
)
def test_distances_by_hand(truth, pred, spacing, tolerance, distance, share):
    np.testing.assert_allclose(hausdorff95(truth, pred, spacing), distance, rtol=1e-12)
    np.testing.assert_allclose(surface_dice(truth, pred, tolerance, spacing), share, rtol=1e-12)
    np.testing.assert_allclose(hausdorff95(truth.astype(bool), pred.astype(bool), spacing), distance, rtol=1e-12)


def test_the_images_border_counts_as_outside():
    whole = np.ones((10, 10), bool)
    there, back = boundary_distances(whole, square(5, 5, 1, (10, 10)))
    assert len(there) == 36
    assert back == [4]


def test_a_hole_has_a_boundary():
    pred = square(5, 5, 9)
    pred[9, 9] = 0
    there, back = boundary_distances(square(5, 5, 9), pred)
    assert there.tolist() == [0] * 32
    assert sorted(back.tolist()) == [0] * 32 + [3] * 4  # the hole's neighbours; the hole itself is outside


def test_one_far_pixel_of_many_does_not_count():
    pred = square(5, 5, 10, (60, 60))
    truth = pred.copy()
    truth[50, 50] = 1
    assert hausdorff95(truth, pred) == 0
    assert hausdorff95(truth, pred) == hausdorff95(pred, truth)


def test_ignored_pixels_are_in_neither_mask():
    truth, pred = square(5, 5), square(5, 5) | square(5, 20)
    assert hausdorff95(truth, pred) > 0
    truth[:, 18:] = IGNORED
    assert hausdorff95(truth, pred) == 0
    assert surface_dice(truth, pred, 0) == 1


def test_masks_of_two_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"must have one shape, got \(20, 30\) and \(4, 4\)"):
        hausdorff95(EMPTY, np.zeros((4, 4), bool))
