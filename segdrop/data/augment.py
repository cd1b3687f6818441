"""Augmentation: presets, a user's own Albumentations pipeline, and the random crop before either.

The only module that imports Albumentations.
"""

import copy
import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import yaml
from albumentations.core.serialization import SERIALIZABLE_REGISTRY, shorten_class_name

from ..conventions import IGNORED
from ..errors import InputError, first_line
from ..images.resampling import extend

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version check over the network at import


_REFLECT = cv2.BORDER_REFLECT_101
_SCALES = (
    "The augmentation must keep the image's dtype and range, the network scales it itself; "
    "take out Normalize, ToFloat and ToTensor."
)
# This share of the crops is placed around a foreground pixel, where an image has any: most random crops of a small
# structure would be empty.
FOREGROUND_CROPS = 0.5
# Where Albumentations has the transforms that read other images or fonts: FDA, Mosaic, TextImage and so on.
_FROM_ELSEWHERE = ("albumentations.augmentations.mixing.", "albumentations.augmentations.text.")
_FEW_CLASSES = 16  # from this class on, all are counted at once


class _Strength:
    """Makes the numbers of a preset stronger or weaker, as far as they go: probabilities by its factor, magnitudes by
    the square root of it.

    At twice the probabilities and twice the magnitudes, half of the pixels were black or white in up to a fifth of the
    crops of the sample set, and by the square root in at most 7 of 100 (`light`: 8 and 2). 1 leaves every number as it
    is.
    """

    def __init__(self, factor: float):
        self._factor, self.magnitude = factor, factor**0.5

    def probability(self, value: float, most: float = 1.0) -> float:
        return min(most, value * self._factor)

    def reach(self, low: float, high: float, most: float) -> tuple[float, float]:
        """A range around 0, or one from 0 on."""
        return max(-most, min(most, low * self.magnitude)), min(most, high * self.magnitude)

    def around(self, low: float, high: float, middle: float, least: float) -> tuple[float, float]:
        """A range around the value that changes nothing, with `least` as its lowest."""
        if self.magnitude == 1:
            return low, high  # to the last bit
        return max(least, middle + (low - middle) * self.magnitude), middle + (high - middle) * self.magnitude


def _light(by: _Strength) -> list:
    return [
        A.HorizontalFlip(p=by.probability(0.5, most=0.5)),  # an image and its mirror image are as likely
        _brightness(by),
    ]


def _medical(by: _Strength) -> list:
    affine = A.Affine(
        scale=by.around(0.85, 1.15, middle=1, least=0.1),
        rotate=by.reach(-15, 15, most=180),
        translate_percent=by.reach(-0.05, 0.05, most=0.5),
        border_mode=_REFLECT,
        p=by.probability(0.7),
    )
    noise = A.GaussNoise(std_range=by.reach(0.01, 0.05, most=1))
    blur = A.GaussianBlur(sigma_limit=by.reach(0.3, 1.2, most=10), blur_limit=0)
    return [
        A.HorizontalFlip(p=by.probability(0.5, most=0.5)),
        affine,
        _brightness(by),
        A.RandomGamma(by.around(70, 140, middle=100, least=10), p=by.probability(0.3)),
        A.OneOf([noise, blur], p=by.probability(0.2)),
    ]


def _microscopy(by: _Strength) -> list:
    of_colours = by.around(0.8, 1.2, middle=1, least=0)
    elastic = A.ElasticTransform(
        alpha=40 * by.magnitude, sigma=8, approximate=True, border_mode=_REFLECT, p=by.probability(0.2)
    )
    return [
        A.D4(p=by.probability(1)),
        elastic,
        A.ColorJitter(of_colours, of_colours, of_colours, by.reach(-0.05, 0.05, most=0.5), p=by.probability(0.5)),
        *_medical(by)[1:],
    ]


def _brightness(by: _Strength) -> A.RandomBrightnessContrast:
    reach = by.reach(-0.2, 0.2, most=1)
    return A.RandomBrightnessContrast(reach, reach, p=by.probability(0.5))


PRESETS: dict[str, Callable[[_Strength], list]] = {
    "none": lambda by: [],
    "light": _light,
    "medical": _medical,
    "microscopy": _microscopy,
}


def load_augmentation(name: str, *, colours: bool = True, strength: float = 1.0) -> A.Compose:
    """The preset called `name`, or the pipeline in the Albumentations file (`A.save`; JSON or YAML) at `name`.

    Args:
        colours: whether the images are grey or RGB; a preset for others leaves out what needs colours.
        strength: at least 0: how strong a preset is. Its probabilities, up to 1 and of a mirror image up to 1/2, are
            multiplied by it, and its magnitudes, as far as they go, by its square root: 1 is the preset, and 0 nothing.

    Raises:
        InputError: neither a preset nor a readable Albumentations file, or a file with a strength other than 1.
    """
    if name in PRESETS:
        preset = PRESETS[name](_Strength(strength)) if strength else []
        kept = [transform for transform in preset if colours or not isinstance(transform, A.ColorJitter)]
        if len(kept) < len(preset):
            warnings.warn(f"`augment` {name} goes without its ColorJitter, which needs RGB images.", stacklevel=2)
        return A.Compose(kept)
    if strength != 1:
        raise InputError(
            f"`augment_strength` needs a preset to scale, got augment_strength={strength} with augment={name!r}."
        )
    path = Path(name)
    if not path.is_file():
        raise InputError(f"`augment` must be one of {', '.join(PRESETS)} or an Albumentations file, got {name!r}.")
    try:
        text = path.read_text(encoding="utf-8")
        description = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
        _check_transforms(description["transform"], str(path), own_only=True)
        transform = A.from_dict(description)
    except InputError:
        raise
    except Exception as error:  # a parser's, a constructor's or a registry's, all with types of their own
        raise InputError(f"{path} is not an Albumentations file: {first_line(error)}.") from error
    return transform if isinstance(transform, A.Compose) else A.Compose([transform])


def describe(augmentation: A.Compose) -> dict:
    """The pipeline as a JSON-ready dict, for the record and for `restore`.

    Raises:
        InputError: a transform cannot be stored (an unnamed `A.Lambda`), so that the run could not be resumed.
    """
    try:
        return A.to_dict(augmentation)
    except Exception as error:
        raise InputError(f"The augmentation cannot be stored with the run: {error}") from error


def restore(description: dict) -> A.Compose:
    """The pipeline that `describe` described.

    Raises:
        InputError: it has a transform that takes pixels from elsewhere, or cannot be made.
    """
    if description:
        _check_transforms(description["transform"], "the run's record", own_only=False)
    try:
        return A.from_dict(description)
    except Exception as error:  # of a constructor or a registry
        raise InputError(f"the `augmentation` of the run's config.json cannot be made: {first_line(error)}.") from error


def _check_transforms(description: Mapping, where: str, own_only: bool) -> None:
    """Raise InputError where a pipeline, as a file describes it, would make anything but transforms of a crop and its
    mask.

    Args:
        own_only: refuse what is not Albumentations' own; a pipeline made in Python may have more.
    """
    name = description["__class_fullname__"]
    short = shorten_class_name(name)
    kind = SERIALIZABLE_REGISTRY.get(short)
    if short == "Lambda" or (own_only and (kind is None or not kind.__module__.startswith("albumentations."))):
        raise InputError(f"{where} has {short}, which is no transform of Albumentations' own with numbers alone.")
    if kind is not None and kind.__module__.startswith(_FROM_ELSEWHERE):
        raise InputError(f"{where} has {short}, which takes images or fonts from elsewhere; take it out.")
    for member in description.get("transforms", ()):
        _check_transforms(member, where, own_only)


class Sampler:
    """Random crop and augmentation of one pair; the result depends on the seeds given to it alone.

    Each thread has its own copy of the transforms: one Compose shared by the workers of a parallel map mixes
    their random states.
    """

    def __init__(self, augmentation: A.Compose, crop_size: int):
        self._crop_size, self._augmentation = crop_size, augmentation
        if any(isinstance(transform, (A.Normalize, A.ToFloat, A.FromFloat)) for transform in _leaves(augmentation)):
            raise InputError(_SCALES)
        # Masks are never interpolated, by a user's transforms neither.
        self._template = A.Compose([augmentation], mask_interpolation=cv2.INTER_NEAREST)
        self._local = threading.local()

    def __reduce__(self) -> tuple:
        return Sampler, (self._augmentation, self._crop_size)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Crop and augment.

        Args:
            image: uint8 or float32 (H, W, C), 0..255.
            mask: uint8 (H, W).
            seed: whole numbers; equal seeds give equal results.

        Returns:
            image: float32 (crop_size, crop_size, C), 0..255; mask: uint8 (crop_size, crop_size).
        """
        image, mask = self.augment(*self.crop(image, mask, seed))
        return image.astype(np.float32, copy=False), mask

    def crop(self, image: np.ndarray, mask: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
        """The first half of a call: a view of the pair or a padded copy, and the seed for `augment`."""
        rng = np.random.default_rng(seed)
        return *random_crop(image, mask, self._crop_size, rng), int(rng.integers(2**32))

    def augment(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The second half: a crop's image, of the type it had, and mask after the transforms."""
        if not hasattr(self._local, "transform"):
            self._local.transform = copy.deepcopy(self._template)
        transform = self._local.transform
        transform.set_random_seed(seed)
        if image.dtype != np.uint8:
            image = image / np.float32(255)  # Albumentations takes floats in 0..1
        dtype, channels = image.dtype, image.shape[2]
        try:
            result = transform(image=image, mask=mask)
        except Exception as error:  # a transform may raise anything
            raise InputError(f"The augmentation failed: {type(error).__name__}: {error}") from error
        image, mask = result["image"], result["mask"]
        if not isinstance(image, np.ndarray) or image.dtype != dtype:
            raise InputError(_SCALES)
        if image.shape != (self._crop_size, self._crop_size, channels) or mask.shape != image.shape[:2]:
            raise InputError(
                f"The augmentation must keep the crop's size {self._crop_size}x{self._crop_size}; "
                f"it gave an image of shape {image.shape} and a mask of shape {mask.shape}."
            )
        return (image if dtype == np.uint8 else image * np.float32(255)), mask

    def check(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Augment a pair, lest what fails do so in the middle of a training.

        Raises:
            InputError: it fails; or one of its transforms does on images of so many channels, however seldom it is
                drawn.
        """
        self(image, mask, (0,))
        if image.shape[2] == 3:
            return
        image = image if image.dtype == np.uint8 else image / np.float32(255)
        for transform in map(copy.deepcopy, _leaves(self._template)):
            transform.p = 1
            try:
                shape = A.Compose([transform])(image=image, mask=mask)["image"].shape
                reason = "" if shape[2:] == image.shape[2:] else f"it gives the shape {shape}"
            except Exception as error:  # a transform may raise anything
                reason = first_line(error).rstrip(".")
            if reason:
                raise InputError(
                    f"`augment` has {type(transform).__name__}, which cannot be used on images of {image.shape[2]} "
                    f"channel(s): {reason}; take it out."
                )


def _leaves(transform) -> list:
    """The transforms of a pipeline, those inside OneOf and the like too."""
    if isinstance(transform, A.BaseCompose):
        return [leaf for member in transform.transforms for leaf in _leaves(member)]
    return [transform]


def random_crop(
    image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square out of a pair, reflect-padded first where it is smaller.

    A share of `FOREGROUND_CROPS` is drawn uniformly among the crops that hold a random pixel of a random class of
    those in the image; Albumentations' CropNonEmptyMaskIfExists clips its crops to the image and so takes half of
    them from the edges where an image is twice as large as the crop.
    """
    bottom, right = (max(0, size - n) for n in mask.shape)
    if bottom or right:
        image, mask = (extend(a, bottom, right) for a in (image, mask))
    height, width = mask.shape
    low, high = np.zeros(2, int), np.array([height - size, width - size])
    if rng.random() < FOREGROUND_CROPS:
        present = _classes_in(mask)
        if present.size:
            pixel = _random_pixel(mask == rng.choice(present), rng)
            low, high = np.maximum(low, pixel - size + 1), np.minimum(high, pixel)
    y, x = rng.integers(low, high, endpoint=True)
    return image[y : y + size, x : x + size], mask[y : y + size, x : x + size]


def _classes_in(mask: np.ndarray) -> np.ndarray:
    """The classes of a mask but the background, in order.

    Compared one by one until all pixels are accounted for: to count them all in one pass takes thirty times as long,
    longer than all transforms of a crop, since neighbours wait for the same counter.
    """
    left = mask.size - np.count_nonzero(mask == 0) - np.count_nonzero(mask == IGNORED)
    found = []
    for value in range(1, _FEW_CLASSES):
        if not left:
            break
        if pixels := np.count_nonzero(mask == value):
            found.append(value)
            left -= pixels
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:IGNORED]) + 1 if left else np.array(found, int)


def _random_pixel(chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row and column of a random one of the True pixels.

    The number drawn is that of `rng.choice(np.flatnonzero(chosen))`; to list all pixels for one takes longer than to
    halve the mask until few are left.
    """
    pixels, first, last = chosen.ravel(), 0, chosen.size
    number = int(rng.integers(np.count_nonzero(pixels)))
    while last - first > 2048:
        middle = (first + last) // 2
        before = np.count_nonzero(pixels[first:middle])
        if number < before:
            last = middle
        else:
            first, number = middle, number - before
    return np.array(divmod(first + int(np.flatnonzero(pixels[first:last])[number]), chosen.shape[1]))
