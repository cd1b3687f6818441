"""Weights that were trained on colours, for any number of input channels."""

import numpy as np


def fit_channels(value: np.ndarray, channels: int, bgr: bool = False) -> np.ndarray:
    """A kernel (h, w, 3, F), or one value per colour (3,), for another number of input channels.

    Channel i takes that of colour i mod 3; kernels are scaled by 3 / channels. A single channel takes the sum of
    kernels and the mean of values. What is not of three channels is left as it is.

    Args:
        bgr: the three are blue, green and red.

    Example:
        >>> from segdrop.nets.channels import fit_channels
        >>> fit_channels(np.ones((1, 1, 3, 2)), 6)[0, 0, :, 0]
        array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
        >>> fit_channels(np.array([1.0, 2.0, 6.0]), 1), fit_channels(np.array([1.0, 2.0, 6.0]), 4)
        (array([3.]), array([1., 2., 6., 1.]))
    """
    axis = 2 if value.ndim == 4 else -1
    if channels == 3 or value.ndim not in (1, 4) or value.shape[axis] != 3:
        return value
    kernel = value.ndim == 4
    if channels == 1:
        return value.sum(axis=2, keepdims=True) if kernel else value.mean(keepdims=True)
    colours = np.arange(channels) % 3
    fitted = np.take(value, 2 - colours if bgr else colours, axis=axis)
    return fitted * np.float32(3 / channels) if kernel else fitted
