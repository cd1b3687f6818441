"""How sure a mean of several predictions is: entropy, mutual information, variance."""

import dataclasses

import numpy as np

SMALLEST = float(np.finfo(np.float32).tiny)  # a probability whose logarithm is taken instead of that of 0


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """What samples of a prediction say, for each pixel; C is 1 for binary networks, whose entropies are Bernoulli's;
    those of overlapping classes are sums of such.

    Attributes:
        mean: float32 (..., C), 0..1, mean probability.
        predictive_entropy: float32 (...), nats, 0..ln(max(C, 2)), or 0..C ln 2 where classes overlap: entropy of the
            mean; total uncertainty.
        expected_entropy: float32 (...), nats: mean entropy of the samples; what they agree to be unsure of.
        mutual_information: float32 (...), nats: the difference of the two; how much the samples disagree.
        std: float32 (..., C): standard deviation of the probability over the samples.

    Example:
        >>> from segdrop.scoring.uncertainty import from_moments, moments
        >>> disagreeing = [moments([0.0]), moments([1.0])]  # two samples of one pixel
        >>> unsure = from_moments(np.mean(disagreeing, axis=0))
        >>> [round(float(one), 3) for one in (unsure.predictive_entropy, unsure.mutual_information, unsure.std[0])]
        [0.693, 0.693, 0.5]
    """

    mean: np.ndarray
    predictive_entropy: np.ndarray
    expected_entropy: np.ndarray
    mutual_information: np.ndarray
    std: np.ndarray

    @property
    def score(self) -> float:
        """Of the whole image: the mean predictive entropy over its pixels, in nats."""
        return float(self.predictive_entropy.mean())


def entropy(probabilities, multilabel: bool = False) -> np.ndarray:
    """Entropy in nats, float32 (...), of probabilities (..., C); for C = 1 that of p and 1 - p, for `multilabel` the
    sum of these over the classes.

    Example:
        >>> entropy([[0.5], [0.9]]).round(3)
        array([0.693, 0.325], dtype=float32)
    """
    p = np.asarray(probabilities, np.float32)
    # Channel by channel: a sum over a short last axis takes NumPy several times as long.
    channels = [p[..., i] for i in range(p.shape[-1])]
    if multilabel or len(channels) == 1:
        channels += [1 - channel for channel in channels]
    total = -sum(channel * np.log(np.maximum(channel, SMALLEST)) for channel in channels)
    return total.astype(np.float32, copy=False)  # NumPy 1 makes a single pixel's float64


def moments(probabilities, multilabel: bool = False) -> np.ndarray:
    """What one sample gives to the means: p, p squared and the entropy, float32 (..., 2C + 1), of p, (..., C).

    Example:
        >>> moments([0.5]).round(3)
        array([0.5  , 0.25 , 0.693], dtype=float32)
    """
    p = np.asarray(probabilities, np.float32)
    return np.concatenate([p, p * p, entropy(p, multilabel)[..., None]], axis=-1)


def from_moments(means: np.ndarray, multilabel: bool = False) -> Uncertainty:
    """The scores that follow from the means of `moments` over samples, (..., 2C + 1).

    Example:
        >>> agreeing = [moments([0.5]), moments([0.5])]
        >>> unsure = from_moments(np.mean(agreeing, axis=0))
        >>> round(float(unsure.expected_entropy), 3), round(float(unsure.mutual_information), 3)
        (0.693, 0.0)
    """
    classes = means.shape[-1] // 2
    mean, square, expected = means[..., :classes], means[..., classes:-1], means[..., -1]
    total = entropy(mean, multilabel)
    return Uncertainty(
        mean=mean,
        predictive_entropy=total,
        expected_entropy=expected,
        # Both are rounded, so that their differences may fall below what they can mathematically be.
        mutual_information=np.maximum(total - expected, 0),
        std=np.sqrt(np.maximum(square - mean * mean, 0)),
    )
