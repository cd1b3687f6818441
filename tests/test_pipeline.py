"""tf.data pipelines: shapes, order, reproducibility, and whole images in evaluation."""

import numpy as np
import pytest
from conftest import write_pairs

from segdrop.conventions import IGNORED
from segdrop.data import batches as data_batches
from segdrop.data.augment import Sampler, load_augmentation
from segdrop.data.batches import evaluation_batches, steps_per_epoch, training_batches
from segdrop.data.opening import open_dataset
from segdrop.images.intensity import Intensity

RNG = np.random.default_rng(0)


def batches(dataset, indices=range(8), first_epoch=0, epochs=1, preset="medical", seed=0, batch_size=3):
    pipeline = training_batches(
        dataset,
        list(indices),
        Sampler(load_augmentation(preset), 32),
        batch_size=batch_size,
        crop_size=32,
        seed=seed,
        first_epoch=first_epoch,
        epochs=epochs,
    )
    return pipeline, [(images.numpy(), masks.numpy()) for images, masks in pipeline]


@pytest.fixture(scope="module")
def dataset(cells):
    return open_dataset(cells)


@pytest.fixture
def numbered(tmp_path):
    """Nine pictures, picture i all of the value i + 1, with one foreground pixel."""
    mask = np.zeros((32, 32), np.uint8)
    mask[0, 0] = 1
    return open_dataset(write_pairs(tmp_path, {f"p{i}": (np.full((32, 32), i + 1, np.uint8), mask) for i in range(9)}))


def seen(pairs):
    return [int(value) for images, _ in pairs for value in images[:, 0, 0, 0]]


def test_training_shapes_are_static(dataset):
    pipeline, pairs = batches(dataset)
    images, masks = pipeline.element_spec
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), "float32")
    assert (masks.shape, masks.dtype) == ((3, 32, 32, 1), "uint8")
    assert {image.shape for image, _ in pairs} == {(3, 32, 32, 3)}


def test_every_epoch_shows_every_image_in_another_order(numbered):
    per_epoch = [seen(batches(numbered, range(9), epoch, epoch + 1, "none", batch_size=4)[1]) for epoch in range(3)]
    for order in per_epoch:
        assert len(order) == steps_per_epoch(9, 4) * 4 == 12  # the last batch is filled up
        assert set(order) == set(range(1, 10))
        assert set(order[:9]) == set(range(1, 10))
    assert len({tuple(order) for order in per_epoch}) == 3


def test_a_batch_larger_than_the_set_is_filled_with_repeats(numbered):
    order = seen(batches(numbered, range(3), 0, 1, "none", batch_size=8)[1])
    assert len(order) == 8 and set(order) == {1, 2, 3}


def test_the_same_seed_gives_the_same_batches(dataset):
    for (a, b), (c, d) in zip(batches(dataset)[1], batches(dataset)[1], strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_augmentation_differs_between_epochs_and_seeds(dataset):
    first, second = batches(dataset, [0], 0, 2, batch_size=1)[1]
    assert (first[0] != second[0]).any()
    assert (batches(dataset, [0], seed=1, batch_size=1)[1][0][0] != first[0]).any()


def test_starting_at_a_later_epoch_gives_that_epoch_s_batches(dataset):
    both = batches(dataset, epochs=2)[1]
    later = batches(dataset, first_epoch=1, epochs=2)[1]
    for (a, b), (c, d) in zip(both[len(both) // 2 :], later, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_a_set_larger_than_the_cache_gives_the_same_batches(cells, dataset):
    uncached = open_dataset(cells, cache_mb=0)
    assert uncached.cached == 0
    for (a, _), (b, _) in zip(batches(dataset)[1], batches(uncached)[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def mixed(tmp_path):
    sizes = [(40, 50), (64, 64), (64, 64), (40, 50), (10, 100)]
    pairs = {
        f"p{i}": (RNG.integers(0, 256, size, np.uint8), RNG.integers(0, 2, size, np.uint8))
        for i, size in enumerate(sizes)
    }
    return open_dataset(write_pairs(tmp_path, pairs))


def test_evaluation_sees_every_image_once_whole_and_unchanged(mixed):
    evaluation = evaluation_batches(mixed, range(5), max_pixels=2 * 64 * 64)
    assert sorted(i for batch in evaluation.plan for i in batch) == [0, 1, 2, 3, 4]
    for batch in evaluation.plan:
        images, masks = evaluation.read(batch)
        assert images.shape[1] % 32 == images.shape[2] % 32 == 0
        for image, mask, index in zip(images, masks, batch, strict=True):
            height, width = mixed.sizes[index]
            original, truth = mixed.read(index)
            np.testing.assert_array_equal(image[:height, :width], original)
            np.testing.assert_array_equal(mask[:height, :width, 0], truth)


def test_padding_reflects_the_image_and_is_not_scored(mixed):
    images, masks = evaluation_batches(mixed, [0], 1).read([0])
    assert images.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(images[0, 40:64, :50], images[0, 38:14:-1, :50])
    assert (masks[0, 40:] == IGNORED).all() and (masks[0, :, 50:] == IGNORED).all()


def test_a_batch_of_evaluation_stays_within_its_pixels(mixed):
    plan = evaluation_batches(mixed, range(5), max_pixels=2 * 64 * 64).plan
    assert sorted(len(batch) for batch in plan) == [1, 2, 2]
    assert {len(batch) for batch in evaluation_batches(mixed, range(5), max_pixels=1).plan} == {1}


def test_the_tf_dataset_of_an_evaluation_holds_its_batches(mixed):
    evaluation = evaluation_batches(mixed, range(5), max_pixels=2 * 64 * 64)
    for (images, masks), batch in zip(evaluation.as_tf_dataset(), evaluation.plan, strict=True):
        np.testing.assert_array_equal(images, evaluation.read(batch)[0])
        np.testing.assert_array_equal(masks, evaluation.read(batch)[1])


def test_16_bit_images_are_scaled_by_their_range(tmp_path):
    image = RNG.integers(0, 65536, (32, 32), np.uint16)
    dataset = open_dataset(write_pairs(tmp_path, {"p": (image, np.eye(32, dtype=np.uint8))}))
    images, _ = evaluation_batches(dataset, [0], 1).read([0])
    np.testing.assert_allclose(images[0, ..., 0], image / 257, rtol=1e-5)


def test_float_images_reach_the_network_as_they_are_read(tmp_path):
    """Percentiles are no whole numbers: nothing is rounded or scaled a second time."""
    image = RNG.integers(0, 65536, (32, 32), np.uint16)
    folder = write_pairs(tmp_path, {"p": (image, np.eye(32, dtype=np.uint8))})
    dataset = open_dataset(folder, intensity=Intensity("percentiles", (10, 90)))
    read, _ = dataset.read(0)
    images, _ = evaluation_batches(dataset, [0], 1).read([0])
    np.testing.assert_array_equal(images[0], read)
    _, [(images, _)] = batches(dataset, [0], preset="none", batch_size=1)
    np.testing.assert_allclose(images[0], read, rtol=1e-5, atol=1e-5)


def test_the_order_of_an_epoch_is_made_when_it_begins(numbered, monkeypatch):
    made, shuffle = [], data_batches._shuffle
    monkeypatch.setattr(data_batches, "_shuffle", lambda *of: (made.append(of[-1]), shuffle(*of))[1])
    pipeline = training_batches(
        numbered,
        range(9),
        Sampler(load_augmentation("none"), 32),
        batch_size=3,
        crop_size=32,
        seed=0,
        first_epoch=2,
        epochs=1000,
    )
    assert len(pipeline) == 998 * 3
    next(iter(pipeline))
    assert made[0] == 2 and len(made) < 20  # some are read ahead
