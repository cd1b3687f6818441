"""Mixed crops: what is taken from where, whose truth it has, and that the seed alone decides."""

import cv2
import numpy as np
import pytest
from conftest import tiny_training, write_pairs

from segdrop import TrainConfig, train
from segdrop.conventions import IGNORED
from segdrop.data.augment import Sampler, load_augmentation
from segdrop.data.augmenting import Augmenters
from segdrop.data.batches import training_batches
from segdrop.data.mixing import Mixing
from segdrop.data.opening import open_dataset
from segdrop.training.metrics import Dice
from segdrop.training.samples import Samples

SIZE = 32


def batch(count=4, dtype="uint8"):
    """Crops whose every pixel tells its crop and its place, and masks of three squares, one of a second class, beside
    ignored pixels."""
    places = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 251
    images = np.stack([np.stack([places, np.full_like(places, i)], axis=-1) for i in range(count)]).astype(dtype)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[2:8, 2:8], mask[12:20, 12:20], mask[24:30, 4:9], mask[22:24, 20:30] = 1, 2, 1, IGNORED
    return images, np.stack([np.roll(mask, 3 * i, axis=1) for i in range(count)])


def whence(mixed):
    """Which crop each pixel is from."""
    return mixed[..., 1].astype(int)


def mixed_often(mixing, times=60, **options):
    images, masks = batch(**options)
    return images, masks, [mixing(images, masks, (seed,)) for seed in range(times)]


@pytest.mark.parametrize("mixing", [Mixing(copy_paste=0.7), Mixing(cutmix=1.0)])
def test_every_pixel_has_the_truth_of_the_crop_that_it_is_from(mixing):
    images, masks, results = mixed_often(mixing)
    for mixed, labels in results:
        source = whence(mixed)
        assert mixed.dtype == np.uint8 and labels.shape == (*masks.shape, 1)
        np.testing.assert_array_equal(labels[..., 0], np.take_along_axis(masks, source, axis=0))
        np.testing.assert_array_equal(mixed[..., 0], images[..., 0])  # each at the place that it had


@pytest.mark.parametrize("mixing", [Mixing(copy_paste=0.7), Mixing(cutmix=1.0), Mixing(mixup=0.4)])
def test_what_it_is_given_stays_as_it_is(mixing):
    images, masks, _ = mixed_often(mixing)
    for ours, theirs in zip((images, masks), batch(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_whole_objects_are_pasted_and_nothing_else():
    _, masks, results = mixed_often(Mixing(copy_paste=1.0))
    numbers = []
    for mixed, _ in results:
        for i, source in enumerate(whence(mixed)):
            (j,) = set(np.unique(source)) - {i}  # one other crop
            _, components = cv2.connectedComponents(np.isin(masks[j], (1, 2)).astype(np.uint8))
            pasted = np.unique(components[source == j])
            np.testing.assert_array_equal(source == j, np.isin(components, pasted) & (components > 0))
            numbers.append(len(pasted))
    assert set(numbers) == {1, 2, 3}


def test_as_many_crops_get_objects_as_the_probability_says():
    _, _, results = mixed_often(Mixing(copy_paste=0.3), times=300)
    changed = np.mean([[np.any(source != i) for i, source in enumerate(whence(mixed))] for mixed, _ in results])
    assert changed == pytest.approx(0.3, abs=0.04)  # of 1200, three deviations


def test_nothing_is_pasted_from_a_crop_without_objects():
    images, masks = batch(2)
    masks[0] = 0
    masks[0, 5:9] = IGNORED
    mixed, labels = Mixing(copy_paste=1.0)(images, masks, (0,))
    np.testing.assert_array_equal(mixed[1], images[1])
    assert np.any(mixed[0] != images[0]) and np.any(labels[0] != masks[0][..., None])


def test_the_rectangle_s_share_is_the_distribution_s():
    """A rectangle that would have half of the area ends at the edges: a side of s leaves s (1 - s / 4) on average."""
    _, _, results = mixed_often(Mixing(cutmix=1e4), times=100)
    shares = []
    for mixed, _ in results:
        for i, source in enumerate(whence(mixed)):
            other = source != i
            assert len(np.unique(source[other])) <= 1
            rows, columns = other.any(axis=1), other.any(axis=0)
            np.testing.assert_array_equal(other, rows[:, None] & columns)  # one rectangle
            assert all(np.ptp(np.flatnonzero(line)) + 1 == line.sum() for line in (rows, columns))
            shares.append(other.mean())
    side = np.sqrt(0.5)  # Beta(1e4, 1e4) is 1/2 nearly always
    assert np.mean(shares) == pytest.approx((side * (1 - side / 4)) ** 2, rel=0.06)
    assert max(shares) == pytest.approx(0.5, rel=0.06)
    uniform = [(whence(mixed)[0] != 0).mean() for mixed, _ in mixed_often(Mixing(cutmix=1.0), times=200)[2]]
    assert min(uniform) < 0.05 and max(uniform) > 0.8


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_blend_s_share_is_that_of_its_truth(dtype):
    images, masks, results = mixed_often(Mixing(mixup=0.4), dtype=dtype)
    shares = []
    for mixed, labels in results:
        assert mixed.dtype == np.float32 and labels.dtype == np.uint8 and labels.shape == (4, SIZE, SIZE, 3)
        np.testing.assert_array_equal(labels[..., 0], masks)
        for i in range(4):
            (share,) = np.unique(labels[i, ..., 2])
            (j,) = [j for j in range(4) if j != i and np.array_equal(labels[i, ..., 1], masks[j])]
            expected = images[i] + share / 255 * (images[j].astype(float) - images[i])
            np.testing.assert_allclose(mixed[i], expected, atol=1e-4)
            shares.append(share / 255)
    assert 0 <= min(shares) < 0.01 and 0.45 < max(shares) <= 0.5
    folded = np.random.default_rng(0).beta(0.4, 0.4, 100_000)
    assert np.mean(shares) == pytest.approx(np.minimum(folded, 1 - folded).mean(), abs=0.03)


def test_all_three_partners_are_taken():
    _, _, results = mixed_often(Mixing(cutmix=5.0))
    found = {(i, j) for mixed, _ in results for i, source in enumerate(whence(mixed)) for j in np.unique(source)}
    assert found == {(i, j) for i in range(4) for j in range(4)}


def test_objects_are_pasted_before_crops_are_blended():
    images, masks = batch()
    pasted, labels = Mixing(copy_paste=1.0)(images, masks, (7,))
    blend, truth = Mixing(copy_paste=1.0, mixup=5.0)(images, masks, (7,))
    np.testing.assert_array_equal(truth[..., :1], labels)
    share = truth[0, 0, 0, 2] / 255
    assert np.any(labels[..., 0] != masks) and 0 < share
    j = next(j for j in range(1, 4) if np.array_equal(truth[0, ..., 1], labels[j, ..., 0]))
    np.testing.assert_allclose(blend[0], (1 - share) * pasted[0] + share * pasted[j], atol=1e-4)


@pytest.mark.jax
def test_metrics_go_by_the_crop_that_has_the_larger_share():
    truth = np.zeros((1, 2, 2, 3), np.uint8)
    truth[0, 0, :, 0], truth[0, :, 0, 1], truth[..., 2] = 1, 1, 100
    metric = Dice()
    metric.update_state(truth, (truth[..., :1]).astype("float32"))
    assert float(metric.result()) == 1


MIXINGS = [Mixing(copy_paste=0.5), Mixing(cutmix=1.0), Mixing(mixup=0.4), Mixing(copy_paste=0.5, mixup=0.4)]


def made(dataset, mixing, workers=0, dtype="float32", first=0, epochs=2, seed=3):
    sampler = Sampler(load_augmentation("medical"), 64)
    with Augmenters(sampler, workers, (4, 64, 64, 3), dtype) as augmenters:
        batches = training_batches(
            dataset,
            range(6),
            sampler,
            batch_size=4,
            crop_size=64,
            seed=seed,
            first_epoch=first,
            epochs=epochs,
            steps=4,
            augmenters=augmenters,
            mixing=mixing,
        )
        return [(images.numpy(), masks.numpy()) for images, masks in batches]


@pytest.fixture(scope="module")
def dataset(cells):
    return open_dataset(cells)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_batches_depend_on_seed_epoch_and_step_alone(dataset, mixing):
    """Not on processes, on the type that images travel in, or on the epoch that a training is resumed at."""
    all_of_them = made(dataset, mixing)
    plain = made(dataset, None)
    assert all(np.any(ours[0] != theirs[0]) for ours, theirs in zip(all_of_them, plain, strict=True))
    assert np.any(all_of_them[0][0] != made(dataset, mixing, seed=4)[0][0])
    for others in (
        made(dataset, mixing, workers=2, dtype="uint8"),
        [*all_of_them[:4], *made(dataset, mixing, first=1)],
    ):
        for (images, masks), (other_images, other_masks) in zip(all_of_them, others, strict=True):
            np.testing.assert_array_equal(images, other_images)
            np.testing.assert_array_equal(masks, other_masks)


def test_every_batch_is_mixed_by_draws_of_its_own(dataset, monkeypatch):
    """Of four epochs, in each of which the images come round more than twice."""
    seeds = []

    def noting(self, images, masks, seed):
        seeds.append(seed)
        return images, masks[..., None]

    monkeypatch.setattr(Mixing, "__call__", noting)
    for seed in (3, 4):
        made(dataset, Mixing(), epochs=4, seed=seed)
    assert len(seeds) == len(set(seeds)) == 2 * 4 * 4


def test_bytes_stay_bytes_unless_they_are_blended(dataset):
    kinds = [made(dataset, mixing, dtype="uint8")[0][0].dtype for mixing in MIXINGS]
    assert kinds == [np.uint8, np.uint8, np.float32, np.float32]


def test_without_mixing_batches_are_what_they_were(dataset):
    for (images, masks), (others, labels) in zip(made(dataset, None), made(dataset, Mixing()), strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(masks, labels)


def test_a_training_mixes_as_it_is_told(dataset, cells):
    config = tiny_training(cells, batch_size=4, cutmix=1.0, augment="none")
    samples = Samples(config, dataset, {"train": np.arange(4)}, load_augmentation("none"))
    (images, _), (plain, _) = next(iter(samples.training(0, 1))), next(iter(samples.training(0, 1, mixed=False)))
    assert np.any(images.numpy() != plain.numpy())


KINDS_OF_TRAINING = {
    "pasted": {"copy_paste": 0.5},
    "cut": {"cutmix": 1.0},
    "blended": {"mixup": 0.4},
    "float16": {"mixup": 0.4, "mixed_precision": "float16"},
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("binary", how) for how in ("pasted", "float16")),
        pytest.param("binary", "blended", marks=pytest.mark.jax),
        *(("multilabel", how) for how in ("cut", "blended")),
    ],
)
def test_a_training_runs_with_it(tmp_path, small_unet, kind, how):
    """On an ignore value, and on classes that overlap."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2 if kind == "binary" else 4, (8, 64, 64)).astype(np.uint8)
    masks[:, :5] = 200
    pairs = {f"p{i}": (rng.integers(0, 256, (64, 64), np.uint8), mask) for i, mask in enumerate(masks)}
    fields = KINDS_OF_TRAINING[how] | ({"multilabel": True, "classes": 3} if kind == "multilabel" else {})
    config = tiny_training(
        write_pairs(tmp_path / "data", pairs), run_dir=tmp_path / "run", batch_size=2, ignore_value=200, **fields
    )
    result = train(config)
    assert np.isfinite(result.history[0]["loss"]) and 0 <= result.history[0]["dice"] <= 1


def test_a_batch_of_one_has_no_other_crop():
    for name in ("copy_paste", "mixup", "cutmix"):
        with pytest.raises(ValueError, match=rf"^`{name}` needs a batch_size of at least 2, .*, got batch_size=1\.$"):
            TrainConfig(batch_size=1, **{name: 0.5})
