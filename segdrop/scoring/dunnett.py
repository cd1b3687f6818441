"""The largest of several comparisons that share a reference and a spread: Dunnett's distribution, by integration."""

import functools
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

_NODES = 64  # of each of the two integrals; 5 digits of p, see the tests


def largest_exceeds(statistic: float, degrees: float, families: Sequence[Sequence[float]]) -> float:
    """Probability that one or more of the comparisons exceed `statistic` in size, where no arm differs from another.

    The comparisons with one reference are normal variables with a part in common, the reference's mean; all are divided
    by the same estimate of the spread. Families with references of their own are taken as independent, which makes the
    probability too large rather than too small (Royen's inequality).

    Args:
        statistic: not negative.
        degrees: of freedom of the spread, positive.
        families: for each reference the correlations of its comparisons with their reference's mean, each in [0, 1):
            the root of 1/2 where both sides vary alike.

    Returns:
        0..1.

    Example:
        >>> round(largest_exceeds(2.65, 20, [[0.5**0.5] * 4]), 3)  # four treatments, one control
        0.05

    References:
        Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50, 1955.
        Royen, "A simple proof of the Gaussian correlation conjecture", Far East J. Theor. Stat. 48, 2014.
    """
    spread, spread_weights = _spread_nodes(degrees)
    shared, shared_weights = _normal_nodes()
    within = np.ones(len(spread))
    for family in families:
        inside = np.zeros((len(shared), len(spread)))  # logarithm of the probability that all are small
        for correlation, number in zip(*np.unique(np.round(family, 3), return_counts=True), strict=True):
            own = np.sqrt(1 - min(correlation, 0.999) ** 2)
            middle, half = correlation * shared[:, None] / own, statistic * spread[None, :] / own
            chance = special.ndtr(middle + half) - special.ndtr(middle - half)
            inside += number * np.log(np.maximum(chance, 1e-300))
        within *= shared_weights @ np.exp(inside)
    return float(min(1.0, max(0.0, 1 - spread_weights @ within)))


def simultaneous_quantile(confidence: float, degrees: float, families: Sequence[Sequence[float]]) -> float:
    """What none of the comparisons exceeds in size with the probability `confidence`; see `largest_exceeds`.

    Bonferroni's, which is too large rather than too small, where the integral cannot tell so small a probability.

    Example:
        >>> round(simultaneous_quantile(0.95, 20, [[0.5**0.5] * 4]), 2)  # Dunnett (1964), two-sided
        2.65
    """
    number = sum(map(len, families))
    single, bonferroni = (-special.stdtrit(degrees, (1 - confidence) / 2 / n) for n in (1, number))
    if number == 1:
        return float(single)

    def excess(value: float) -> float:
        return largest_exceeds(value, degrees, families) - (1 - confidence)

    low, high = single * 0.99, bonferroni * 1.01
    return optimize.brentq(excess, low, high) if excess(low) > 0 > excess(high) else float(bonferroni)


def _spread_nodes(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights over an estimated standard deviation, where the true one is 1.

    They lie evenly in its logarithm: of few degrees, what is rarely exceeded hangs on spreads that are nearly 0.
    """
    low, high = np.log([2 * special.gammaincinv(degrees / 2, 1e-12), special.chdtri(degrees, 1e-13)]) / 2
    nodes, weights = _legendre()
    spread = np.exp(low + (high - low) * (nodes + 1) / 2) / np.sqrt(degrees)
    log_density = degrees * (np.log(spread) - spread**2 / 2)
    weights = weights * np.exp(log_density - log_density.max())
    return spread, weights / weights.sum()


def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = _legendre()
    weights = weights * np.exp(-((nodes * 8) ** 2) / 2)
    return nodes * 8, weights / weights.sum()


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)
