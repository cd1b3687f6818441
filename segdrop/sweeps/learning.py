"""How many more labelled images or patients an arm's gain is worth: the learning curves of a sweep's fractions."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..config.arms import key_of
from ..scoring.learning import Worth, fit_curves
from .results import Results


def worths(results: Results, dice: np.ndarray, complete: Sequence[bool]) -> dict[int, Worth]:
    """For each arm that is trained on all labels, and with its reference on a part of them too, what it is worth.

    Args:
        dice: float64 (arms, repeats, folds).
        complete: (arms,), which arms can be used.
    """
    arms = results.arms
    fractions: dict[str, dict[float, int]] = {}  # arms that differ in the number of labels alone, by that number
    for i, arm in enumerate(arms):
        if complete[i] and arm.labelled:
            fractions.setdefault(_without_fraction(arm.changes), {})[arm.labelled] = i
    found = {}
    for i, arm in enumerate(arms):
        reference = arms[arm.reference]
        if "train_fraction" in arm.changes or arm.reference == i:
            continue
        own, others = (fractions.get(_without_fraction(one.changes), {}) for one in (arm, reference))
        units = sorted(set(own) & set(others))
        if len(units) > 1 and own[units[-1]] == i:
            tables = [[dice[curve[unit]].ravel() for unit in units] for curve in (others, own)]
            curves = fit_curves(tables, units, results.test_share)
            found[i] = curves[0].worth(curves[1])
    return found


def _without_fraction(changes: Mapping) -> str:
    return key_of({name: value for name, value in changes.items() if name != "train_fraction"})
