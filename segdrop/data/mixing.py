"""What a training crop takes from another one of its batch: objects, a rectangle, or a share of everything."""

from dataclasses import dataclass

import cv2
import numpy as np

from ..conventions import IGNORED

OF_A_BLEND = 3  # channels of a blend's truth: the mask of either crop, and the second one's share in 255ths


@dataclass(frozen=True)
class Mixing:
    """How the crops of a batch are mixed, after each has been augmented; the result depends on the seed alone.

    Keras's MixUp and CutMix draw from a state that goes on from batch to batch, so that what a batch becomes would
    depend on the ones that were made before it; and they blend class numbers, and 255 with them.

    Attributes:
        copy_paste: probability of a crop to get objects of another: of the connected components of its foreground each
            with probability 1/2, at least one, where they lie there, with sharp edges. What they cover is theirs,
            ignored or not.
        mixup: alpha of the distribution Beta(alpha, alpha) that the shares of two crops are drawn from; or None. The
            larger share is the crop's own, by which metrics go: in a batch each is mixed with each, so that this does
            not change which blends there are.
        cutmix: alpha of Beta(alpha, alpha) that the rest of a crop is drawn from beside a rectangle of another one; or
            None.

    References:
        Ghiasi et al. 2021, Simple copy-paste is a strong data augmentation method for instance segmentation,
        https://arxiv.org/abs/2012.07177; Zhang et al. 2018, mixup: beyond empirical risk minimization,
        https://arxiv.org/abs/1710.09412; Yun et al. 2019, CutMix, https://arxiv.org/abs/1905.04899.
    """

    copy_paste: float = 0.0
    mixup: float | None = None
    cutmix: float | None = None

    @property
    def channels(self) -> int:
        """Of the masks that it gives."""
        return 1 if self.mixup is None else OF_A_BLEND

    def dtype(self, given) -> np.dtype:
        """Of the images that it makes of such ones: blends are no whole numbers."""
        return np.dtype(given if self.mixup is None else np.float32)

    def __call__(self, images: np.ndarray, masks: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Mix a batch of at least two crops.

        Args:
            images: (N, H, W, C), 0..255.
            masks: uint8 (N, H, W).
            seed: whole numbers; equal seeds give equal results.

        Returns:
            images: of the type that `dtype` tells; masks: uint8 (N, H, W, channels).
        """
        rng = np.random.default_rng(seed)
        if self.copy_paste:
            images, masks = self._pasted(images, masks, rng)
        if self.cutmix is not None:
            images, masks = self._cut(images, masks, rng)
        if self.mixup is not None:
            return self._blended(images, masks, rng)
        return images, masks[..., None]

    def _pasted(self, images, masks, rng):
        mixed, labels = images.copy(), masks.copy()
        for i, j in enumerate(_partners(len(images), rng)):
            if rng.random() < self.copy_paste:
                chosen = _some_objects(masks[j], rng)
                mixed[i][chosen], labels[i][chosen] = images[j][chosen], masks[j][chosen]
        return mixed, labels

    def _cut(self, images, masks, rng):
        mixed, labels = images.copy(), masks.copy()
        for i, j in enumerate(_partners(len(images), rng)):
            place = _rectangle(masks.shape[1:], rng.beta(self.cutmix, self.cutmix), rng)
            mixed[i][place], labels[i][place] = images[j][place], masks[j][place]
        return mixed, labels

    def _blended(self, images, masks, rng):
        partners = _partners(len(images), rng)
        drawn = rng.beta(self.mixup, self.mixup, len(images))
        shares = np.round(255 * np.minimum(drawn, 1 - drawn))  # whole, for the loss to have the share of the image
        weights = (shares / 255).astype(np.float32)[:, None, None, None]
        blends = images.astype(np.float32)
        blends += weights * (blends[partners] - blends)
        planes = np.broadcast_to(shares.astype(np.uint8)[:, None, None], masks.shape)
        return blends, np.stack([masks, masks[partners], planes], axis=-1)


def _partners(count: int, rng: np.random.Generator) -> np.ndarray:
    """For each of so many crops another one."""
    return (np.arange(count) + rng.integers(1, count, count)) % count


def _some_objects(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where some of a mask's connected components of foreground are, at least one if there is any; bool (H, W)."""
    count, components = cv2.connectedComponents(((mask != 0) & (mask != IGNORED)).astype(np.uint8))
    if count == 1:
        return np.zeros(mask.shape, bool)
    chosen = np.concatenate([[False], rng.random(count - 1) < 0.5])
    chosen[rng.integers(1, count)] = True
    return chosen[components]


def _rectangle(shape: tuple[int, int], rest: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """A rectangle with the proportions of the shape, around a random pixel, that would leave `rest` of the area if it
    did not end at the edges."""
    side = np.sqrt(1 - rest)
    place = []
    for length in shape:
        middle, half = rng.integers(length), side * length / 2
        place.append(slice(max(0, round(middle - half)), min(length, round(middle + half))))
    return tuple(place)
