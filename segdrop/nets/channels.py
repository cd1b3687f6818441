"""Weights that were trained on colours, for any number of input channels."""

import numpy as np

BGR = "rgb_to_bgr"  # the operation that turns colours round, in networks of weights trained on BGR


def fit_channels(value: np.ndarray, channels: int, given: int = 3, bgr: bool = False) -> np.ndarray:
    """A kernel (h, w, given, F), or one value per channel (given,), for another number of input channels.

    Channel i takes that of i mod given; kernels are scaled by given / channels. A single channel takes the sum of
    kernels and the mean of values. What is not of so many channels is left as it is.

    Args:
        given: channels that the weights were trained on, by default the three colours.
        bgr: the three are blue, green and red.

    Example:
        >>> from segdrop.nets.channels import fit_channels
        >>> fit_channels(np.ones((1, 1, 3, 2)), 6)[0, 0, :, 0]
        array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
        >>> fit_channels(np.array([1.0, 2.0, 6.0]), 1), fit_channels(np.array([1.0, 2.0, 6.0]), 4)
        (array([3.]), array([1., 2., 6., 1.]))
    """
    axis = 2 if value.ndim == 4 else -1
    if channels == given or value.ndim not in (1, 4) or value.shape[axis] != given:
        return value
    kernel = value.ndim == 4
    if channels == 1:
        return value.sum(axis=2, keepdims=True) if kernel else value.mean(keepdims=True)
    of = np.arange(channels) % given
    fitted = np.take(value, given - 1 - of if bgr else of, axis=axis)
    return fitted * np.float32(given / channels) if kernel else fitted
