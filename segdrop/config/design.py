"""The design of a sweep: which arm each is compared with, how many seeds that one has, and what is contrasted."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError
from .arms import curve_of, key_of, name_of, reference_of
from .sweep import SweepConfig


def references_of(arms: Sequence[Mapping], reference: str | None = None) -> list[int]:
    """For each arm the index of the one that it is compared with; its own where it is not compared.

    An arm with dropout is compared with the same training without. Any other is compared with training as it is, unless
    it is trained on fewer images.

    Args:
        arms: as `config.arms.arms_of` gives them.
        reference: the name of one of them, with which all others are compared.

    Raises:
        InputError: there is no arm of this name.

    Example:
        >>> arms = [{}, {"lr": 0.01}, {"encoder_dropout": 0.2, "dropout_kind": "spatial", "lr": 0.01}]
        >>> references_of(arms), references_of(arms, "none, lr=0.01")
        ([0, 0, 1], [1, 1, 1])
    """
    names = [name_of(arm) for arm in arms]
    if reference:
        if reference not in names:
            raise InputError(f"`reference` must be the name of an arm, {'; '.join(names)}, got {reference!r}.")
        return [names.index(reference)] * len(arms)
    keys = {key_of(arm): i for i, arm in enumerate(arms)}
    return [
        keys[key_of(reference_of(arm))] if "encoder_dropout" in arm else i if "train_fraction" in arm else keys["{}"]
        for i, arm in enumerate(arms)
    ]


def seeds_of(sweep: SweepConfig, arms: Sequence[Mapping]) -> list[tuple[int, ...]]:
    """For each arm the seeds that it is trained with: those of the sweep, and of a reference further ones.

    A reference takes part in every comparison; with the square root of their number as many trainings, the same number
    of trainings tells most (Dunnett, 1955). In a search, whose arms are not known beforehand, auto adds none.

    Example:
        >>> arms = [{}, *({"encoder_dropout": rate / 10, "dropout_kind": "spatial"} for rate in range(1, 5))]
        >>> [len(seeds) for seeds in seeds_of(segdrop.SweepConfig(), arms)]
        [2, 1, 1, 1, 1]
    """
    references = references_of(arms, sweep.reference)
    compared = Counter(reference for i, reference in enumerate(references) if reference != i)
    wanted = sweep.reference_seeds
    all_seeds = []
    for i in range(len(arms)):
        number = len(sweep.seeds)
        if compared[i] and wanted != "auto":
            number = max(number, wanted)
        elif compared[i] and not sweep.search:
            number = max(number, round(math.sqrt(compared[i]) * number))
        further = (seed for seed in range(max(sweep.seeds) + 1, 2**32))
        all_seeds.append((*sweep.seeds, *(next(further) for _ in range(number - len(sweep.seeds)))))
    return all_seeds


def shares_of(sweep: SweepConfig, arms: Sequence[Mapping]) -> list[float]:
    """For each arm n_test / n_train of equal folds, which a sweep that stops when told reckons with.

    Example:
        >>> shares_of(segdrop.SweepConfig(folds=5), [{}, {"train_fraction": 0.5}])
        [0.25, 0.5]
    """
    whole = sweep.train.train_fraction
    return [1 / (sweep.folds - 1) / arm.get("train_fraction", whole) for arm in arms]


def contrasts_of(kind: str, arms: Sequence[Mapping], references: Sequence[int]) -> dict[str, list[float]]:
    """Weights (arms,) of the contrasts, by name; a curve is what the arms have in common that differ in the rate alone.

    Args:
        kind: "none"; "kinds", the mean of a curve less its reference; or "trend", the slope of Dice in the rate.

    Raises:
        InputError: there is no curve of two rates or more.

    Example:
        >>> arms = [{}, *({"encoder_dropout": rate, "dropout_kind": "spatial"} for rate in (0.1, 0.3))]
        >>> contrasts_of("kinds", arms, [0, 0, 0])
        {'spatial, mean of 2 rates': [-1.0, 0.5, 0.5]}
        >>> contrasts_of("trend", arms, [0, 0, 0])["spatial, per 0.1 of the rate"]  # the rates' mean is 0.4 / 3
        [-0.285..., -0.071..., 0.357...]
    """
    if kind == "none":
        return {}
    curves: dict[tuple[str, int], list[int]] = {}
    for i, arm in enumerate(arms):
        if isinstance(arm.get("encoder_dropout"), float) and references[i] != i:
            curves.setdefault((curve_of(arm), references[i]), []).append(i)
    curves = {curve: members for curve, members in curves.items() if len(members) > 1}
    if not curves:
        raise InputError(f"`contrasts` {kind} needs two rates of a kind at least that are compared with another arm.")
    contrasts = {}
    for (curve, reference), members in curves.items():
        weights = np.zeros(len(arms))
        if kind == "kinds":
            weights[members] = 1 / len(members)
            weights[reference] = -1
            contrasts[f"{curve}, mean of {len(members)} rates"] = weights.tolist()
        else:
            rates = np.array([arms[i].get("encoder_dropout", 0.0) for i in [reference, *members]], np.float64)
            deviations = rates - rates.mean()
            weights[[reference, *members]] = 0.1 * deviations / (deviations**2).sum()
            contrasts[f"{curve}, per 0.1 of the rate"] = weights.tolist()
    return contrasts
