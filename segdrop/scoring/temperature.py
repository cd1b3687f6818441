"""Temperature scaling: one number, fitted on validation, that makes probabilities mean what they say."""

import dataclasses

import numpy as np
from scipy import optimize, special

from ..conventions import IGNORED, LEAST_DOUBT, class_by_class

RANGE = (0.1, 10.0)  # of temperatures
PIXELS = 200_000  # are enough: the mean over them is known to a few thousandths


@dataclasses.dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: above 1 the network was too sure, below 1 not sure enough.
        nll_before, nll_after: mean negative log-likelihood of the truth in nats, at 1 and at the temperature.
        pixels: how many it was fitted to.
    """

    value: float
    nll_before: float
    nll_after: float
    pixels: int


def tempered(probabilities, temperature: float, multilabel: bool = False) -> np.ndarray:
    """Probabilities with their logits divided by a temperature, which leaves the most probable class what it is.

    Args:
        probabilities: float32 (..., C); C = 1 is that of the foreground.
        temperature: positive; its inverse undoes it.
        multilabel: each channel is a probability by itself.

    Example:
        >>> [round(float(p), 3) for p in tempered([0.9], 2.0)]  # sigmoid(log(9) / 2) = 3 / 4
        [0.75]
        >>> [round(float(p), 3) for p in tempered([0.8, 0.2], 2.0)]  # 2 to 1
        [0.667, 0.333]

    References:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    probabilities = np.asarray(probabilities, np.float32)
    if temperature == 1:
        return probabilities
    if multilabel or probabilities.shape[-1] == 1:
        logits = special.logit(np.clip(probabilities, LEAST_DOUBT, 1 - LEAST_DOUBT))
        return special.expit(logits / np.float32(temperature))
    return special.softmax(np.log(np.maximum(probabilities, LEAST_DOUBT)) / np.float32(temperature), axis=-1)


def fit_temperature(probabilities, truth, multilabel: bool = False) -> Temperature | None:
    """The temperature at which the truth is most likely.

    Args:
        probabilities: float32 (N, C) of pixels.
        truth: uint8 (N,), class indices.
        multilabel: the truth is sums of the classes' bits; each class of a pixel is a case by itself.

    Returns:
        None where it cannot be told: without pixels, or where it lies outside of `RANGE`, as where every pixel is
        predicted rightly, so that no certainty is too much.

    Example:
        >>> p, truth = np.repeat([[0.9]], 4, axis=0), np.array([1, 1, 1, 0])  # right in three of four cases
        >>> fitted = fit_temperature(p, truth)
        >>> round(fitted.value, 3), fitted.nll_after < fitted.nll_before
        (2.0, True)

    References:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    probabilities, truth = np.asarray(probabilities, np.float32), np.asarray(truth, int)
    if multilabel:
        truth = np.concatenate(class_by_class(truth, probabilities.shape[1] + 1, True))
        probabilities = probabilities.T.reshape(-1, 1)
    if not len(truth):
        return None

    def nll(temperature: float) -> float:
        p = tempered(probabilities, temperature)
        likelihood = np.where(truth == 1, p[:, 0], 1 - p[:, 0]) if p.shape[1] == 1 else p[np.arange(len(p)), truth]
        return float(-np.log(np.maximum(likelihood, LEAST_DOUBT)).mean(dtype=np.float64))

    low, high = np.log(RANGE)
    found = optimize.minimize_scalar(lambda log: nll(np.exp(log)), bounds=(low, high), method="bounded")
    if not low + 0.01 < found.x < high - 0.01:
        return None
    return Temperature(float(np.exp(found.x)), nll(1.0), float(found.fun), len(truth))


def sample_pixels(probabilities, truth, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` pixels of an image for `fit_temperature`, drawn evenly from those that are not IGNORED.

    Args:
        probabilities: float32 (H, W, C).
        truth: uint8 (H, W), class indices or IGNORED.

    Example:
        >>> p, truth = sample_pixels(np.ones((4, 4, 1)), np.ones((4, 4), np.uint8), 5, np.random.default_rng(0))
        >>> p.shape, truth.shape
        ((5, 1), (5,))
    """
    truth = np.asarray(truth).ravel()
    places = np.flatnonzero(truth != IGNORED)
    if len(places) > count:
        places = rng.choice(places, count, replace=False)
    return np.asarray(probabilities).reshape(len(truth), -1)[places], truth[places]
