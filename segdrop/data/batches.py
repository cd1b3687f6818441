"""From a checked data set to batches: `tf.data` pipelines for training and for evaluation."""

from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
import tensorflow as tf

from ..conventions import IGNORED, MULTIPLE
from ..images.resampling import extend
from .augment import Sampler
from .augmenting import Augmenters
from .dataset import Dataset
from .mixing import Mixing
from .tiles import padded

_MIXED = 1  # sets the draws of a batch apart from those of its samples


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches in one epoch: every image at least once."""
    return -(-images // batch_size)


def training_batches(
    dataset: Dataset,
    indices: Sequence[int],
    sampler: Sampler,
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    first_epoch: int,
    epochs: int,
    steps: int | None = None,
    failures: list[Exception] | None = None,
    augmenters: Augmenters | None = None,
    mixing: Mixing | None = None,
) -> tf.data.Dataset:
    """Batches of epochs `first_epoch` to `epochs - 1`, one after the other.

    Every epoch has `steps` full batches, of all images in an order of its own, then in another, as often as it takes. A
    sample depends on (seed, epoch, image) and how often it has been drawn in this epoch, and what it takes from others
    on (seed, epoch, batch), so neither the number of workers nor the epoch that a run is resumed at changes it.

    Args:
        steps: of an epoch; None: `steps_per_epoch`.
        failures: takes the exception of a sample that fails; what the pipeline raises is one of TensorFlow's.
        augmenters: the processes that augment, and the type of the images; None: threads of this one do.
        mixing: what crops take from others of their batch; None: nothing.

    Yields:
        images: float32, or the augmenters' uint8 (batch_size, crop_size, crop_size, dataset.channels), 0..255;
        masks: uint8 (batch_size, crop_size, crop_size, 1), class index or IGNORED, or with the channels of the mixing.
    """
    mixing = mixing or Mixing()
    wanted = (steps or steps_per_epoch(len(indices), batch_size)) * batch_size

    def jobs_of(epoch):  # one epoch's at a time: those of all epochs of a large set would be millions
        order = tf.numpy_function(lambda number: _shuffle(indices, wanted, seed, int(number)), [epoch], tf.int64)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(order, (wanted, 3)))

    shape = (batch_size, crop_size, crop_size, dataset.channels)
    augment = augmenters or Augmenters(sampler, 0, shape)
    dtype = mixing.dtype(augment.dtype)

    def load(jobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, masks = augment(
            # Without `steps` an image that fills up the last batch is the same sample again, as in earlier versions.
            sampler.crop(*dataset.read(index), (seed, epoch, index, number) if steps else (seed, epoch, index))
            for epoch, index, number in jobs.tolist()
        )
        # A batch is known by its first sample, of which no other batch of the epoch has the index and the number.
        return mixing(images, masks, (seed, *jobs[0].tolist(), _MIXED))

    def load_in_graph(jobs):
        images, masks = tf.numpy_function(_keeping(failures, load), [jobs], (dtype, tf.uint8))
        return tf.ensure_shape(images, shape), tf.ensure_shape(masks, (*shape[:3], mixing.channels))

    options = tf.data.Options()
    # TensorFlow's own threads are one where a training is to be repeatable, and calls would follow one another.
    options.threading.private_threadpool_size = augment.calls
    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(jobs_of)
        .apply(tf.data.experimental.assert_cardinality((epochs - first_epoch) * wanted))
        .batch(batch_size, drop_remainder=True)
        # Whole batches to few calls: handing over single samples costs more, in waits for Python's lock, than
        # augmenting them (measured: half the images per second).
        .map(load_in_graph, num_parallel_calls=augment.calls, deterministic=True)
        .prefetch(2)
        .with_options(options)
    )


def evaluation_batches(dataset: Dataset, indices: Iterable[int], max_pixels: int) -> "EvaluationBatches":
    """Whole images, reflect-padded to a multiple of 32, in batches of equal size.

    Args:
        max_pixels: a batch holds one image, or as many of equal padded size as have this many pixels together.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        height, width = (padded(int(n)) for n in dataset.sizes[index])
        by_shape.setdefault((height, width), []).append(int(index))
    batches = []
    for (height, width), members in sorted(by_shape.items()):
        size = max(1, max_pixels // (height * width))
        batches += [members[i : i + size] for i in range(0, len(members), size)]
    return EvaluationBatches(dataset, batches)


class EvaluationBatches:
    """The batches of an evaluation of images of `dataset`; `plan[i]` lists the images in batch number i."""

    def __init__(self, dataset: Dataset, plan: list[list[int]]):
        self.dataset, self.plan = dataset, plan

    def read(self, batch: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """images: float32 (B, H, W, C), 0..255; masks: uint8 (B, H, W, 1), padding and ignored pixels IGNORED."""
        images, masks = zip(*(self.dataset.read(int(index)) for index in batch), strict=True)
        return np.stack([_pad_image(image) for image in images]), np.stack([_pad_mask(mask) for mask in masks])

    def read_with_truths(self, batch: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
        """images as `read` gives them; truths: uint8 (H, W), as `Dataset.read_with_truth` does."""
        images, truths = zip(*(self.dataset.read_with_truth(int(index)) for index in batch), strict=True)
        return np.stack([_pad_image(image) for image in images]), list(truths)

    def as_tf_dataset(self, failures: list[Exception] | None = None) -> tf.data.Dataset:
        """All batches, read ahead; for `model.fit(validation_data=...)`. `failures`: as in `training_batches`."""
        images = tf.TensorSpec((None, None, None, self.dataset.channels), tf.float32)
        masks = tf.TensorSpec((None, None, None, 1), tf.uint8)

        def read_in_graph(number):
            read = _keeping(failures, lambda n: self.read(self.plan[int(n)]))
            pair = tf.numpy_function(read, [number], (tf.float32, tf.uint8))
            return tf.ensure_shape(pair[0], images.shape), tf.ensure_shape(pair[1], masks.shape)

        return (
            tf.data.Dataset.range(len(self.plan))
            .map(read_in_graph, num_parallel_calls=2, deterministic=True)
            .prefetch(1)
        )


def _keeping(failures: list[Exception] | None, function: Callable) -> Callable:
    """`function`, with what it raises put into `failures` on the way."""

    def call(argument):
        try:
            return function(argument)
        except Exception as error:
            if failures is not None:
                failures.append(error)
            raise

    return call


def _shuffle(indices: Sequence[int], wanted: int, seed: int, epoch: int) -> np.ndarray:
    """`wanted` images in random order, int64 (wanted, 3): the epoch, the image, and how often it was drawn in the epoch
    before: all equally often, and those of an unfinished round once more."""
    rng = np.random.default_rng((seed, epoch))
    rounds = -(-wanted // len(indices))
    drawn = np.concatenate([rng.permutation(np.asarray(indices, np.int64)) for _ in range(rounds)])[:wanted]
    return np.stack([np.full(wanted, epoch), drawn, np.arange(wanted) // len(indices)], axis=1)


def _pad_image(image: np.ndarray) -> np.ndarray:
    """As float32, padded by reflection at the bottom and right to a multiple of 32."""
    bottom, right = (-n % MULTIPLE for n in image.shape[:2])
    return extend(image.astype(np.float32), bottom, right)


def _pad_mask(mask: np.ndarray) -> np.ndarray:
    """(H, W, 1), padded with IGNORED at the bottom and right to a multiple of 32."""
    bottom, right = (-n % MULTIPLE for n in mask.shape)
    return cv2.copyMakeBorder(mask, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORED)[..., None]
