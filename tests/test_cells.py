"""The sample set: what it promises about itself, and that the committed one is what the generator makes."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from segdrop.cells import SPLIT_SIZES, write_sample_set
from segdrop.data.opening import open_dataset
from segdrop.data.splits import split_dataset

COMMITTED = Path(__file__).parents[1] / "data" / "cells"


@pytest.fixture(scope="module")
def pictures():
    dataset = open_dataset(COMMITTED)
    pairs = [dataset.read(i) for i in range(len(dataset))]
    return np.stack([image[..., 0] for image, _ in pairs]), np.stack([mask for _, mask in pairs])


def test_the_committed_set_is_what_the_generator_makes(tmp_path):
    write_sample_set(tmp_path)
    names = sorted(p.relative_to(COMMITTED) for p in COMMITTED.rglob("*.png"))
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.png"))
    for name in names:
        committed, made = (cv2.imread(str(folder / name), -1).astype(int) for folder in (COMMITTED, tmp_path))
        different = np.abs(committed - made) > 1
        # Versions of OpenCV draw and blur a little differently; the masks are the same in all of them.
        assert different.mean() < (0.05 if name.parts[0] == "images" else 1e-9), name


def test_it_is_small_enough_to_commit():
    assert sum(p.stat().st_size for p in COMMITTED.rglob("*") if p.is_file()) < 4e6


def test_its_split_is_the_stated_one():
    split = split_dataset(open_dataset(COMMITTED), seed=0)
    assert {name: len(indices) for name, indices in split.items()} == SPLIT_SIZES


def test_no_threshold_segments_it(pictures):
    """The best threshold, chosen on the truth and of either sign, stays under a Dice of 0.7."""
    images, masks = pictures
    inside = np.bincount(images[masks == 1], minlength=256)
    total = np.bincount(images.ravel(), minlength=256)
    best = 0.0
    for direction in (1, -1):
        hits, chosen = np.cumsum(inside[::direction]), np.cumsum(total[::direction])
        best = max(best, (2 * hits / (chosen + inside.sum())).max())
    assert 0.3 < best < 0.7


def test_brightness_varies_between_images_and_across_them(pictures):
    images, masks = pictures
    signs = [image[mask == 1].mean() > image[mask == 0].mean() for image, mask in zip(images, masks, strict=True)]
    assert 0.2 < np.mean(signs) < 0.8  # bright cells in some, dark ones in others
    assert np.std(images.mean(axis=(1, 2))) > 10
    assert (masks.mean(axis=(1, 2)) > 0.02).all()
