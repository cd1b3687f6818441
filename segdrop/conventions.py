"""The numbers that files, networks and scores share.

A mask's number is the index of its pixel's class; where classes overlap ("multilabel"), it is the sum of a bit for each
class that the pixel has: 1 for class 1, 2 for class 2, 4 for class 3; 0, the background, is none of them.
"""

import numpy as np

MULTIPLE = 32  # of the sides of what the network sees: the U-Net halves them five times
TILE, OVERLAP = 1024, 256  # pixels; larger images are predicted in tiles
IGNORED = 255  # the class index, in every mask that leaves this module, of a pixel that is not scored
LEAST_DOUBT = 1e-7  # distance of a probability from 0 and 1 before its logit is taken: what float32 can tell from 1
OVERLAPPING = 7  # classes of which a mask can hold a bit each: 8 bits less that which makes IGNORED of them all


def has_class(labels, index: int, multilabel: bool = False) -> np.ndarray:
    """Where a mask, uint8 of any shape, shows a class: bool of that shape.

    Example:
        >>> has_class(np.array([0, 1, 2, 3, 255], np.uint8), 1, multilabel=True).tolist()
        [False, True, False, True, False]
    """
    if not multilabel or index == 0:
        return np.equal(labels, index)
    return (np.bitwise_and(labels, 1 << (index - 1)) != 0) & np.not_equal(labels, IGNORED)


def class_by_class(labels, classes: int, multilabel: bool = False) -> list[np.ndarray]:
    """A mask for each foreground class, uint8: 1 where it is, 0 where it is not, IGNORED where nothing is scored.

    Example:
        >>> [one.tolist() for one in class_by_class(np.array([0, 3, 2, 255], np.uint8), 3, multilabel=True)]
        [[0, 1, 0, 255], [0, 1, 1, 255]]
    """
    ignored = np.equal(labels, IGNORED)
    return [np.where(ignored, IGNORED, has_class(labels, i, multilabel)).astype(np.uint8) for i in range(1, classes)]


def most_entropy(classes: int, multilabel: bool = False) -> float:
    """The entropy in nats of a network that knows nothing of a pixel; `classes` count the background.

    Example:
        >>> [round(most_entropy(3, multilabel), 3) for multilabel in (False, True)]  # ln 3, and twice ln 2
        [1.099, 1.386]
    """
    return float((classes - 1) * np.log(2) if multilabel else np.log(max(2, classes)))
