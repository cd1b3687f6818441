"""How often the interval of a learning curve, fitted to half of the labels, holds the mean Dice with all of them.

    python benchmarks/learning_curves.py [--sweeps 1000] [--csv FILE]
    python benchmarks/learning_curves.py --trained DIR [DIR ...] [--csv FILE]

A simulated sweep has K folds, each scored at some fractions of 40 labelled patients. A score is a curve's Dice at that
number, plus what is hard or easy about the fold (standard deviation 0.03, the same at every fraction), plus the luck of
a training, whose standard deviation is given for 40 patients and falls with the square root of their number; 1/K of its
variance is common to all folds, as their training patients are. Three of the curves are of the family that is fitted,
one is its limit, and one, which saturates exponentially, is not of it.

Fitted are the fractions up to a half. Printed for each number of fractions, of folds and each noise, of all curves
together and of the curve that does worst: how often the 95% interval for 40 patients holds the curve's Dice there, and
its median width; how often the interval for the same folds holds the mean that they then have, and its width; and how
often an interval holds that mean that comes of folds drawn with replacement, the exponent as it was fitted
(`bootstrap`). The second table: how often the interval of the worth holds what an arm is worth that is ahead by 0 or by
8 patients, all fractions known; how often it has no upper end; and how often it lies above 0.

With `--trained` real sweeps take their place, whose arms differ in `train_fraction` alone: all choices of as many of a
sweep's trainings as it has folds, without putting back, of all its folds and repeats. The curve is fitted to a choice's
Dice at the fractions up to a half. "Same" is the mean Dice that the very trainings of the choice have with all labels;
"new" that of all trainings with all labels, for which the interval that holds other patients, too, is taken.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segdrop.scoring.learning import fit_curve, fit_curves
from segdrop.show.tables import Table
from segdrop.sweeps.collecting import results
from segdrop.sweeps.state import open_state

PATIENTS, FOLD = 40, 0.03
CURVES = {
    "0.85 - 1.0 / n": lambda n: 0.85 - 1.0 / n,
    "0.90 - 0.7 / n^0.5": lambda n: 0.90 - 0.7 * n**-0.5,
    "1.00 - 0.8 / n^0.2": lambda n: 1.00 - 0.8 * n**-0.2,
    "0.50 + 0.08 log n": lambda n: 0.50 + 0.08 * np.log(n),
    "0.80 - 0.4 exp(-n / 8)": lambda n: 0.80 - 0.4 * np.exp(-n / 8),
}
HALF = {2: (10, 20), 3: (5, 10, 20), 4: (3, 5, 10, 20)}
NOISES, FOLDS = (0.005, 0.02), (3, 5)
AHEAD = (0, 8)


def draw(curve, units, folds: int, noise: float, rng, shift=(0,)) -> np.ndarray:
    """Scores (arms, fractions, folds) of arms that are ahead by so many patients."""
    units = np.asarray(units, np.float64)
    own = rng.normal(size=(len(shift), len(units), folds)) * np.sqrt(1 - 1 / folds)
    common = rng.normal(size=(len(shift), len(units), 1)) * np.sqrt(1 / folds)
    luck = noise * np.sqrt(PATIENTS / units)[:, None] * (own + common)
    level = np.stack([curve(units + by) for by in shift])[..., None]
    return np.clip(level + FOLD * rng.normal(size=folds) + luck, 0, 1)


def bootstrap(fitted, units: float, rng, resamples: int = 400) -> tuple[float, float]:
    """The percentile interval over folds drawn with replacement, the exponent as it was fitted."""
    weights = np.polynomial.polynomial.polyvander(_rises(fitted.units, fitted), 1)
    at = np.array([1, _rises(np.array([units]), fitted)[0]])
    each = at @ np.linalg.pinv(weights) @ fitted.scores
    drawn = each[rng.integers(len(each), size=(resamples, len(each)))].mean(axis=1)
    return tuple(np.percentile(drawn, [2.5, 97.5]))


def _rises(units: np.ndarray, fitted) -> np.ndarray:
    ratios = units / fitted.units[-1]
    return (1 - ratios**-fitted.exponent) / fitted.exponent if fitted.exponent > 1e-6 else np.log(ratios)


def predictions(sweeps: int, fractions: int, folds: int, noise: float, rng) -> np.ndarray:
    """For each curve: truth held, width, the folds' mean held, its width, held by the bootstrap; (curves, 5)."""
    rows = []
    for curve in CURVES.values():
        found = []
        for scores in (draw(curve, (*HALF[fractions], PATIENTS), folds, noise, rng)[0] for _ in range(sweeps)):
            fitted = fit_curve(scores[:-1], HALF[fractions], test_share=1 / (folds - 1))
            told, same = fitted.predict(PATIENTS), fitted.predict(PATIENTS, same_folds=True)
            mean = scores[-1].mean()
            low, high = bootstrap(fitted, PATIENTS, rng)
            found.append(
                [
                    told.low <= curve(PATIENTS) <= told.high,
                    told.high - told.low,
                    same.low <= mean <= same.high,
                    same.high - same.low,
                    low <= mean <= high,
                ]
            )
        found = np.array(found, np.float64)
        rows.append(np.where([False, True, False, True, False], np.median(found, axis=0), found.mean(axis=0)))
    return np.array(rows)


def worths(sweeps: int, folds: int, noise: float, ahead: int, rng) -> np.ndarray:
    """For each curve the shares: worth held, no upper end, 0 below the interval; (curves, 3)."""
    units = (5, 10, 20, PATIENTS)
    rows = []
    for curve in CURVES.values():
        found = []
        for dice in (draw(curve, units, folds, noise, rng, (0, ahead)) for _ in range(sweeps)):
            plain, other = fit_curves(dice, units, test_share=1 / (folds - 1))
            worth = plain.worth(other)
            found.append([worth.low <= ahead <= worth.high, np.isinf(worth.high), worth.low > 0])
        rows.append(np.mean(found, axis=0))
    return np.array(rows)


def tables(sweeps: int, seed: int = 0) -> tuple[Table, Table]:
    """Of predictions and of worths, shares 0..1."""
    rng, told, worth = np.random.default_rng(seed), [], []
    for fractions in HALF:
        for folds in FOLDS:
            for noise in NOISES:
                found = predictions(sweeps, fractions, folds, noise, rng)
                setting = {"fractions": fractions, "folds": folds, "noise": noise}
                names = ("held", "width", "same_held", "same_width", "bootstrap")
                columns = dict(zip(names, found.mean(axis=0), strict=True))
                worst = {"worst": found[:, 0].min(), "worst_same": found[:, 2].min()}
                told.append(setting | {name: round(float(value), 3) for name, value in (columns | worst).items()})
    for folds in FOLDS:
        for noise in NOISES:
            for ahead in AHEAD:
                found = worths(sweeps, folds, noise, ahead, rng)
                columns = dict(zip(("held", "no_upper_end", "above_0"), found.mean(axis=0), strict=True))
                setting = {"folds": folds, "noise": noise, "ahead": ahead}
                columns["worst"] = found[:, 0].min()
                worth.append(setting | {name: round(float(value), 3) for name, value in columns.items()})
    return Table(told, "Mean Dice with all labels, predicted from half"), Table(worth, "Worth of an arm that is ahead")


def trained(folders: Sequence[Path]) -> Table:
    """Of sweeps that were really trained: how often the interval holds the Dice with all labels; shares 0..1."""
    rows = []
    for folder in folders:
        found = results(open_state(folder, None))
        scores = defaultdict(dict)  # by number of labelled units, then by repeat and fold
        for training in found.trainings:
            scores[found.arms[training.arm].labelled][training.repeat, training.fold] = training.dice
        units = np.array(sorted(scores))
        every = units[-1]
        dice = np.array([[scores[unit][key] for key in sorted(scores[every])] for unit in units])
        half = units <= every / 2
        held = []
        for choice in itertools.combinations(range(dice.shape[1]), found.folds):
            fitted = fit_curve(dice[half][:, choice], units[half], found.test_share)
            same, new = (fitted.predict(every, same_folds=same) for same in (True, False))
            mean = dice[-1, choice].mean()
            held.append(
                [
                    same.low <= mean <= same.high,
                    same.high - same.low,
                    new.low <= dice[-1].mean() <= new.high,
                    new.high - new.low,
                    abs(new.mean - mean),
                ]
            )
        held = np.array(held, np.float64)
        names = ("same_held", "same_width", "held", "width", "off_by")
        values = np.where([False, True, False, True, True], np.median(held, axis=0), held.mean(axis=0))
        shown = {"sweep": folder.name, "units": ", ".join(f"{unit:g}" for unit in units), "choices": len(held)}
        means = {"dice": ", ".join(f"{mean:.3f}" for mean in dice.mean(axis=1))}
        rows.append(shown | means | {name: round(float(value), 3) for name, value in zip(names, values, strict=True)})
    return Table(rows, "Mean Dice with all labels, predicted from half, of trained sweeps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps of each curve and setting")
    parser.add_argument("--trained", type=Path, nargs="+", default=[], metavar="DIR", help="sweeps that were trained")
    parser.add_argument("--csv", type=Path, help="write the first table")
    options = parser.parse_args()
    found = (trained(options.trained),) if options.trained else tables(options.sweeps)
    for table in found:
        print(table, end="\n\n")
    if options.csv:
        found[0].to_csv(options.csv)


if __name__ == "__main__":
    main()
