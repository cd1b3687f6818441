"""Augmentation: geometric changes alike for image and mask, and nothing left to chance."""

import re
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import cv2
import numpy as np
import pytest

from segdrop import InputError, TrainConfig, train
from segdrop.cells import draw_cells
from segdrop.config.fields import SCALABLE
from segdrop.data.augment import PRESETS, Sampler, describe, load_augmentation, restore

RNG = np.random.default_rng(0)
IMAGE, MASK = draw_cells(np.random.default_rng(0), 160)
IMAGE = np.repeat(IMAGE[..., None], 3, axis=-1)


def sample(augmentation, seed=0, image=IMAGE, mask=MASK, size=96):
    return Sampler(augmentation, size)(image, mask, (seed,))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_has_the_stated_shape_type_and_range(preset):
    image, mask = sample(load_augmentation(preset))
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((96, 96, 3), "float32", (96, 96), "uint8")
    assert 0 <= image.min() and 1 < image.max() <= 255


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_are_never_interpolated(preset):
    mask = MASK * 2  # an interpolated edge would hold a 1
    transform = Sampler(load_augmentation(preset), 96)
    values = {v for seed in range(40) for v in np.unique(transform(IMAGE, mask, (seed,))[1])}
    assert values == {0, 2}


def test_a_user_s_interpolation_of_masks_is_overruled():
    smooth = A.Compose([A.Affine(rotate=(30, 30), mask_interpolation=cv2.INTER_LINEAR, p=1)])
    _, mask = sample(smooth, mask=MASK * 2)
    assert set(np.unique(mask)) <= {0, 2}


@pytest.mark.parametrize("preset", ["light", "medical", "microscopy"])
def test_image_and_mask_move_together(preset):
    """Where the image is its own mask, it stays so but for the interpolated edges and the noise."""
    image = np.repeat(MASK[..., None] * 200, 3, axis=-1)
    transform = Sampler(load_augmentation(preset), 96)
    agreement = []
    for seed in range(30):
        picture, mask = transform(image, MASK, (seed,))
        middle = (picture.min() + picture.max()) / 2
        agreement.append(((picture.mean(axis=-1) > middle) == mask).mean())
    assert np.median(agreement) > 0.97


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_depends_on_its_seed_alone_whatever_the_threads(preset):
    alone = [sample(load_augmentation(preset), seed) for seed in range(16)]
    shared = Sampler(load_augmentation(preset), 96)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: shared(IMAGE, MASK, (seed,)), reversed(range(16))))
    for (image, mask), (other_image, other_mask) in zip(alone, reversed(together), strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(mask, other_mask)


def test_different_seeds_give_different_samples():
    images = {sample(load_augmentation("medical"), seed)[0].tobytes() for seed in range(10)}
    assert len(images) == 10


def test_crops_around_foreground_are_not_drawn_to_the_edges():
    """Uniform over the 65 x 65 places there are, 200 draws give 195 different ones on average."""
    images = {sample(load_augmentation("none"), seed, mask=np.ones_like(MASK))[0].tobytes() for seed in range(200)}
    assert len(images) > 180


def test_every_class_is_looked_for_equally():
    mask = np.ones((512, 512), np.uint8)
    mask[30:36, 470:476] = 2
    transform = Sampler(load_augmentation("none"), 96)
    image = np.zeros((512, 512, 3), np.uint8)
    share = np.mean([(transform(image, mask, (seed,))[1] == 2).any() for seed in range(300)])
    assert 0.2 < share < 0.35  # half of the crops around foreground, which are half of all


def test_at_least_a_third_of_the_crops_show_a_small_structure():
    mask = np.zeros((512, 512), np.uint8)
    mask[30:36, 470:476] = 1  # a uniform crop of 96 pixels holds it in 2% of the cases
    transform = Sampler(load_augmentation("none"), 96)
    image = np.zeros((512, 512, 3), np.uint8)
    share = np.mean([transform(image, mask, (seed,))[1].any() for seed in range(300)])
    assert 1 / 3 < share < 0.65


def test_ignored_pixels_do_not_count_as_foreground_of_a_crop():
    mask = np.zeros((512, 512), np.uint8)
    mask[:100, :100] = 255
    transform = Sampler(load_augmentation("none"), 96)
    image = np.zeros((512, 512, 3), np.uint8)
    assert np.mean([(transform(image, mask, (seed,))[1] == 255).any() for seed in range(100)]) < 0.3


def test_an_image_smaller_than_the_crop_is_padded_by_reflection():
    image, mask = sample(load_augmentation("none"), image=IMAGE[:40, :50], mask=MASK[:40, :50])
    assert image.shape == (96, 96, 3)
    assert set(np.unique(image)) <= set(np.unique(IMAGE[:40, :50]))
    assert abs(mask.mean() - MASK[:40, :50].mean()) < 0.2


def test_floating_point_values_keep_their_precision():
    image = np.linspace(0, 255, 96 * 96 * 3, dtype=np.float32).reshape(96, 96, 3)
    result, _ = sample(load_augmentation("none"), image=image, mask=MASK[:96, :96])
    np.testing.assert_allclose(result, image, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_bytes_and_floating_point_are_augmented_alike(preset):
    """But for rounding, and for noise, which is drawn otherwise."""
    differences = []
    for seed in range(20):
        as_bytes, as_floats = (sample(load_augmentation(preset), seed, image=IMAGE.astype(t)) for t in ("u1", "f4"))
        np.testing.assert_array_equal(as_bytes[1], as_floats[1])
        assert 0 <= as_floats[0].min() and as_floats[0].max() <= 255.001
        differences.append(np.abs(as_bytes[0] - as_floats[0]).mean())
    assert np.median(differences) < 2


def test_no_augmentation_is_a_plain_crop():
    image, mask = sample(load_augmentation("none"), seed=5)
    found = [
        (y, x)
        for y in range(65)
        for x in range(65)
        if (IMAGE[y : y + 96, x : x + 96] == image).all() and (MASK[y : y + 96, x : x + 96] == mask).all()
    ]
    assert len(found) == 1


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_an_albumentations_file_gives_the_pipeline_that_was_saved(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    mine = A.Compose([A.VerticalFlip(p=1), A.RandomBrightnessContrast(p=1)])
    A.save(mine, path, data_format=suffix)
    for ours, theirs in zip(sample(load_augmentation(str(path)), 3), sample(mine, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_description_restores_the_pipeline():
    medical = load_augmentation("medical")
    for ours, theirs in zip(sample(restore(describe(medical)), 3), sample(medical, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(InputError, match="`augment` must be one of none, light, medical, microscopy or an Albumentat"):
        load_augmentation("heavy")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"x\.json is not an Albumentations file"):
        load_augmentation(str(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_transform_that_scales_the_values_is_an_error(dtype):
    pipeline = A.Compose([A.OneOf([A.Normalize()], p=1)])
    with pytest.raises(InputError, match="must keep the image's dtype and range.*take out Normalize, ToFloat"):
        sample(pipeline, image=IMAGE.astype(dtype))


def broken(image, **_):
    raise RuntimeError("broken pipe")


def test_a_transform_that_fails_is_an_error_of_one_line():
    with pytest.raises(InputError, match="The augmentation failed: RuntimeError: broken pipe"):
        sample(A.Compose([A.Lambda(image=broken)]))


def test_a_transform_that_changes_the_size_is_an_error():
    with pytest.raises(InputError, match=r"must keep the crop's size 96x96; it gave an image of shape \(48, 48, 3\)"):
        sample(A.Compose([A.Resize(48, 48)]))


# Strength

REFLECT = cv2.BORDER_REFLECT_101
MEDICAL = [
    A.HorizontalFlip(p=0.5),
    A.Affine(scale=(0.85, 1.15), rotate=(-15, 15), translate_percent=(-0.05, 0.05), border_mode=REFLECT, p=0.7),
    A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    A.RandomGamma((70, 140), p=0.3),
    A.OneOf([A.GaussNoise(std_range=(0.01, 0.05)), A.GaussianBlur(sigma_limit=(0.3, 1.2), blur_limit=0)], p=0.2),
]
JITTER = A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.05, 0.05), p=0.5)
ELASTIC = A.ElasticTransform(alpha=40, sigma=8, approximate=True, border_mode=REFLECT, p=0.2)
# The presets as they are at strength 1, and the medical one at 4.
WRITTEN_OUT = {
    "none": [],
    "light": [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(0.2, 0.2, p=0.5)],
    "medical": MEDICAL,
    "microscopy": [A.D4(p=1), ELASTIC, JITTER, *MEDICAL[1:]],
}
FOUR_TIMES = [
    A.HorizontalFlip(p=0.5),
    A.Affine(scale=(0.7, 1.3), rotate=(-30, 30), translate_percent=(-0.1, 0.1), border_mode=REFLECT, p=1),
    A.RandomBrightnessContrast(0.4, 0.4, p=1),
    A.RandomGamma((40, 180), p=1),
    A.OneOf([A.GaussNoise(std_range=(0.02, 0.1)), A.GaussianBlur(sigma_limit=(0.6, 2.4), blur_limit=0)], p=0.8),
]


@pytest.mark.parametrize("preset", PRESETS)
def test_strength_1_is_the_preset_to_the_last_bit(preset):
    written_out = Sampler(A.Compose(WRITTEN_OUT[preset]), 96)
    for augmentation in (load_augmentation(preset), load_augmentation(preset, strength=1)):
        sampler = Sampler(augmentation, 96)
        for seed in range(40):
            for ours, theirs in zip(sampler(IMAGE, MASK, (seed,)), written_out(IMAGE, MASK, (seed,)), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_strength_multiplies_probabilities_and_magnitudes():
    """By its square root the magnitudes; of a mirror image, which is as likely as the image, not the probability."""
    ours, written_out = (Sampler(a, 96) for a in (load_augmentation("medical", strength=4), A.Compose(FOUR_TIMES)))
    for seed in range(40):
        image, mask = ours(IMAGE, MASK, (seed,))
        expected, labels = written_out(IMAGE, MASK, (seed,))
        np.testing.assert_allclose(image, expected, atol=1)  # a grey level, of rounding
        assert np.mean(mask != labels) < 0.001


@pytest.mark.parametrize("preset", ["light", "medical", "microscopy"])
def test_changes_grow_with_the_strength_from_none_at_all(preset):
    def change(strength):
        sampler, plain = Sampler(load_augmentation(preset, strength=strength), 96), Sampler(A.Compose([]), 96)
        pairs = [(sampler(IMAGE, MASK, (seed,))[0], plain(IMAGE, MASK, (seed,))[0]) for seed in range(40)]
        return np.mean([np.abs(changed - image).mean() for changed, image in pairs])

    changes = [change(strength) for strength in (0, 0.1, 0.5, 1, 2, 4)]
    assert changes[0] == 0 and np.all(np.diff(changes) > 0)


@pytest.mark.parametrize("preset", ["light", "medical", "microscopy"])
def test_the_strongest_presets_are_possible_ones(preset):
    sampler = Sampler(load_augmentation(preset, strength=1e6), 96)
    sampler.check(IMAGE, MASK)
    assert {sampler(IMAGE, MASK, (seed,))[0].shape for seed in range(20)} == {(96, 96, 3)}
    assert load_augmentation(preset, strength=1e6).transforms[0].p <= 1


def test_a_strength_is_of_a_preset(tmp_path):
    path = tmp_path / "mine.json"
    A.save(A.Compose([A.VerticalFlip(p=1)]), path, data_format="json")
    assert load_augmentation(str(path), strength=1).transforms
    with pytest.raises(
        InputError, match=r"^`augment_strength` needs a preset to scale, got augment_strength=2 with aug"
    ):
        load_augmentation(str(path), strength=2)
    for augment in (str(path), "none"):
        with pytest.raises(
            InputError, match=r"^`augment_strength` needs a preset to scale \(light, medical, microscopy\)"
        ):
            TrainConfig(augment=augment, augment_strength=2)
    with pytest.raises(
        InputError, match=r"^`augment_strength` is for a preset, not for an augmentation of your own, got"
    ):
        train(TrainConfig(augment_strength=2), augmentation=A.Compose([A.VerticalFlip(p=1)]))


def test_presets_that_can_be_scaled_are_those_that_do_something():
    assert {"none", *SCALABLE} == set(PRESETS)


# Other channels than RGB


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_presets_take_any_number_of_channels(channels, dtype):
    image = np.repeat(IMAGE[..., :1], channels, axis=-1).astype(dtype)
    sampler = Sampler(A.Compose([one for preset in PRESETS for one in load_preset(preset)]), 96)
    sampler.check(image, MASK)
    picture, mask = sampler(image, MASK, (0,))
    assert (picture.shape, picture.dtype, mask.shape) == ((96, 96, channels), "float32", (96, 96))
    assert 1 < picture.max() <= 255


def load_preset(name):
    if name == "microscopy":
        with pytest.warns(UserWarning, match="`augment` microscopy goes without its ColorJitter, which needs RGB"):
            return load_augmentation(name, colours=False)
    return load_augmentation(name, colours=False)


def test_what_is_left_out_is_not_in_the_record():
    assert "ColorJitter" in str(describe(load_augmentation("microscopy")))
    assert "ColorJitter" not in str(describe(load_preset("microscopy")))


def test_grey_images_keep_the_whole_preset():
    grey = IMAGE[..., :1]
    preset = load_augmentation("microscopy", colours=TrainConfig(channels=1).has_colours)
    assert describe(preset) == describe(load_augmentation("microscopy"))
    sampler = Sampler(preset, 96)
    sampler.check(grey, MASK)
    assert {sampler(grey, MASK, (seed,))[0].shape for seed in range(20)} == {(96, 96, 1)}


def test_a_small_image_of_channels_is_reflected():
    image = RNG.integers(0, 256, (20, 30, 7), np.uint8)
    picture, _ = Sampler(load_augmentation("none"), 32)(image, np.zeros((20, 30), np.uint8), (0,))
    np.testing.assert_array_equal(picture, np.pad(image, ((0, 12), (0, 2), (0, 0)), mode="reflect"))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.HueSaturationValue(p=1e-9), "`augment` has HueSaturationValue, which cannot be used on images of 5 channel"),
        (A.ToGray(p=1e-9), "`augment` has ToGray, which cannot be used on images of 5 channel"),
    ],
)
def test_a_transform_that_needs_colours_is_found_however_seldom_it_is_drawn(transform, message):
    image = np.zeros((96, 96, 5), np.uint8)
    with pytest.raises(InputError, match=re.escape(message)):
        Sampler(A.Compose([A.OneOf([transform, A.HorizontalFlip()])]), 96).check(image, MASK[:96, :96])


def test_a_stored_pipeline_that_cannot_be_made_is_told():
    described = describe(load_augmentation("light"))
    described["transform"]["unknown"] = 1
    with pytest.raises(InputError, match=r"the `augmentation` of the run's config\.json cannot be made: .*unknown"):
        restore(described)
