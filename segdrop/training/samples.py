"""The images of one training, and the batches that are made of them."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ..config.train import TrainConfig
from ..conventions import IGNORED
from ..data.augment import A, Sampler, load_augmentation
from ..data.augmenting import Augmenters
from ..data.batches import EvaluationBatches, evaluation_batches, steps_per_epoch, training_batches
from ..data.dataset import Dataset
from ..data.fingerprint import class_pixels, read_each
from ..data.mixing import Mixing
from ..errors import InputError


@dataclass(frozen=True)
class Samples:
    """Which images are for what, and how they become batches.

    Attributes:
        config: says the size of crops and batches, and the seed; nothing is left to a plan.
        dataset: the data set.
        split: indices of the "train", "val" and "test" images.
        augmentation: what is done to the training crops.
    """

    config: TrainConfig
    dataset: Dataset
    split: Mapping[str, np.ndarray]
    augmentation: A.Compose

    def __post_init__(self):
        _ = self.class_weights  # said before anything is trained
        self._sampler.check(*self.dataset.read(int(self.split["train"][0])))

    @functools.cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """What `--class-weights` asks for: a weight for each class, or None.

        Raises:
            InputError: the configuration has another number of weights than there are classes.
        """
        weights, names = self.config.class_weights, self.dataset.class_names
        if weights == "none":
            return None
        if weights == "auto":
            measured = read_each(self.dataset, self.split["train"], lambda _, mask: self._pixels(mask))
            return median_frequency(*map(np.array, zip(*measured, strict=True)))
        if len(weights) != len(names):
            raise InputError(
                f"`class_weights` must be {len(names)} numbers, for {', '.join(names)}, got {len(weights)}: "
                f"{' '.join(f'{weight:g}' for weight in weights)}."
            )
        return weights

    def _pixels(self, mask: np.ndarray) -> tuple[np.ndarray, int]:
        """Of a mask the pixels of each class, and all that are scored."""
        names, multilabel = self.dataset.class_names, self.dataset.multilabel
        return class_pixels(mask, len(names), multilabel), np.count_nonzero(mask != IGNORED)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        if self.config.steps_per_epoch == "images":
            return steps_per_epoch(len(self.split["train"]), self.config.batch_size)
        return self.config.steps_per_epoch

    def augmenters(self, count: int) -> Augmenters:
        """So many processes for `training`, to be closed by the caller; a network makes float32 of uint8 by itself."""
        size, dtype = self.config.crop_size, "uint8" if self.dataset.as_bytes else "float32"
        return Augmenters(self._sampler, count, (self.config.batch_size, size, size, self.dataset.channels), dtype)

    def training(
        self,
        first_epoch: int,
        epochs: int,
        failures: list[Exception] | None = None,
        augmenters: Augmenters | None = None,
        *,
        mixed: bool = True,
    ) -> tf.data.Dataset:
        """The batches of the epochs from `first_epoch` to `epochs - 1`, `mixed` as the configuration says, or not; see
        `data.batches.training_batches`."""
        config = self.config
        return training_batches(
            self.dataset,
            self.split["train"],
            self._sampler,
            batch_size=config.batch_size,
            crop_size=config.crop_size,
            seed=config.seed,
            first_epoch=first_epoch,
            epochs=epochs,
            steps=None if config.steps_per_epoch == "images" else self.steps,
            failures=failures,
            augmenters=augmenters,
            mixing=Mixing(config.copy_paste, config.mixup, config.cutmix) if mixed else None,
        )

    def evaluation(self, name: str, indices: np.ndarray | None = None) -> EvaluationBatches:
        """The whole images of a part of the split, or those of its `indices`; a batch has as many pixels as one of the
        training."""
        members = self.split[name] if indices is None else self.split[name][indices]
        return evaluation_batches(self.dataset, members, self.config.batch_size * self.config.crop_size**2)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.augmentation, self.config.crop_size)


def augmentation_of(config: TrainConfig) -> A.Compose:
    """What a configuration does to the training crops.

    Raises:
        InputError: it names neither a preset nor a readable file.
    """
    return load_augmentation(config.augment, colours=config.has_colours, strength=config.augment_strength)


def median_frequency(counts: np.ndarray, scored: np.ndarray) -> tuple[float, ...]:
    """Weights of the classes by median-frequency balancing: the median of all frequencies over the class's own.

    The frequency of a class is its share of the scored pixels of those images that have it. Of a class that no image
    has the weight is 1.

    Args:
        counts: int (images, classes), pixels of each class.
        scored: int (images,), all pixels that are scored.

    Example:
        >>> counts = np.array([[90, 10, 0], [50, 10, 40]])
        >>> median_frequency(counts, scored=np.array([100, 100]))  # frequencies 140 / 200, 20 / 200, 40 / 100
        (0.571, 4.0, 1.0)

    References:
        Eigen and Fergus, "Predicting depth, surface normals and semantic labels with a common multi-scale convolutional
        architecture", ICCV 2015.
    """
    there = counts > 0
    within = (there * scored[:, None]).sum(axis=0)
    frequencies = np.divide(counts.sum(axis=0), within, out=np.full(counts.shape[1], np.nan), where=within > 0)
    if not there.any():
        return (1.0,) * counts.shape[1]
    return tuple(np.nan_to_num(np.nanmedian(frequencies) / frequencies, nan=1.0).round(3).tolist())
