"""The images of one training, and the batches that are made of them."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ..config.train import TrainConfig
from ..data.augment import A, Sampler
from ..data.batches import EvaluationBatches, evaluation_batches, steps_per_epoch, training_batches
from ..data.dataset import Dataset


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
        self._sampler.check(*self.dataset.read(int(self.split["train"][0])))

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        if self.config.steps_per_epoch == "images":
            return steps_per_epoch(len(self.split["train"]), self.config.batch_size)
        return self.config.steps_per_epoch

    def training(self, first_epoch: int, epochs: int, failures: list[Exception] | None = None) -> tf.data.Dataset:
        """The batches of the epochs from `first_epoch` to `epochs - 1`; see `data.batches.training_batches`."""
        return training_batches(
            self.dataset,
            self.split["train"],
            self._sampler,
            batch_size=self.config.batch_size,
            crop_size=self.config.crop_size,
            seed=self.config.seed,
            first_epoch=first_epoch,
            epochs=epochs,
            steps=None if self.config.steps_per_epoch == "images" else self.steps,
            failures=failures,
        )

    def evaluation(self, name: str, indices: np.ndarray | None = None) -> EvaluationBatches:
        """The whole images of a part of the split, or those of its `indices`; a batch has as many pixels as one of the
        training."""
        members = self.split[name] if indices is None else self.split[name][indices]
        return evaluation_batches(self.dataset, members, self.config.batch_size * self.config.crop_size**2)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.augmentation, self.config.crop_size)
