"""How often cross-validation finds a difference where there is none: the plain and the corrected paired t test.

    python benchmarks/rejection.py [--sweeps 2000] [--csv FILE]

A sweep draws a data set and compares ten arms with an eleventh, all equally good, on the same folds. Every learner is a
ridge regression, solved exactly on the training images of each fold; the score is minus the mean absolute error on the
fold. Two kinds of arms:

- own inputs: each arm sees some inputs of its own, all of which tell the target equally well. What makes folds alike is
  that their training images overlap.
- random layer: all arms see the same inputs through a layer of random weights, like one network trained from several
  initial weights. These are drawn for each fold anew, or once for all folds of an arm: then the luck of the draw is
  the same in all folds. The more images, the less else is left.

To some rows luck is added that belongs to a training alone, a normal variable: several times as much for some arms than
for others, or to see what further seeds of the reference do. In some, one training of ten is missing.

Printed are the correlation of two folds' differences, the share of comparisons that each test at 5% finds significant,
and the share of sweeps in which it does so for any of the ten (after Holm: the corrected test, adjusted; by the table:
`segdrop.compare`, which is what sweeps are answered by), each with its standard error of simulation. The second table
is what theory says of differences that are Gaussian with the same correlation between any two folds; the third, how
often the table finds something in sweeps of such scores; the last, how large a difference must be for the corrected
test to find it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from segdrop import compare
from segdrop.scoring.statistics import corrected_paired_test, fold_correlation, holm
from segdrop.show.tables import Table

ARMS = 11
LEVEL = 0.05
AT_ONCE = 250  # sweeps in memory


def ridge_scores(features, target, test, penalty: float) -> np.ndarray:
    """Scores (sweeps,) on the images `test` after training on the others; features (sweeps, n, p), target likewise."""
    train = np.setdiff1d(np.arange(target.shape[1]), test)
    inputs, transposed = features[:, train], features[:, train].transpose(0, 2, 1)
    weights = np.linalg.solve(
        transposed @ inputs + penalty * np.eye(features.shape[-1]), transposed @ target[:, train, None]
    )
    return -np.abs((features[:, test] @ weights)[..., 0] - target[:, test]).mean(axis=1)


def own_inputs(sweeps: int, images: int, parts, rng, inputs: int) -> np.ndarray:
    """Scores (sweeps, folds, arms)."""
    x = rng.normal(size=(sweeps, ARMS, images, inputs))
    target = x.sum(axis=(1, 3)) / np.sqrt(ARMS * inputs) + 0.3 * rng.normal(size=(sweeps, images))
    scores = [[ridge_scores(x[:, arm], target, part, penalty=1) for arm in range(ARMS)] for part in parts]
    return np.moveaxis(np.array(scores), 2, 0)


def random_layer(sweeps: int, images: int, parts, rng, anew: bool, seeds: int = 1) -> np.ndarray:
    """Scores (sweeps, folds, arms), the mean over `seeds` draws of the layer."""
    x = rng.normal(size=(sweeps, images, 8))
    target = np.tanh(x @ rng.normal(size=(sweeps, 8, 4))).sum(axis=-1) / 2 + 0.1 * rng.normal(size=(sweeps, images))
    scores = np.zeros((sweeps, len(parts), ARMS))
    for arm in np.repeat(np.arange(ARMS), seeds):
        for fold, part in enumerate(parts):
            if anew or fold == 0:
                features = np.maximum(x @ rng.normal(size=(sweeps, 8, 4)), 0)
            scores[:, fold, arm] += ridge_scores(features, target, part, penalty=0.04) / seeds
    return scores


def with_luck(sweeps: int, images: int, parts, rng, times: dict[int, float], seeds: int = 1, inputs: int = 30):
    """`own_inputs` with luck of each training beside; scores (sweeps, folds, arms, seeds), NaN but for the reference's.

    `times`: how many times as much some arms have.
    """
    scores = own_inputs(sweeps, images, parts, rng, inputs)
    spread = np.full(ARMS, scores.std(axis=1).mean())
    for arm, factor in times.items():
        spread[arm] *= factor
    lucky = scores[..., None] + spread[:, None] * rng.normal(size=(*scores.shape, seeds))
    lucky[:, :, 1:, 1:] = np.nan
    return lucky


def with_gaps(sweeps: int, images: int, parts, rng, inputs: int = 30):
    """`own_inputs`, one training of ten of which is missing."""
    scores = own_inputs(sweeps, images, parts, rng, inputs)
    return np.where(rng.uniform(size=scores.shape) < 0.1, np.nan, scores)


SETTINGS: dict[str, tuple[int, Callable]] = {  # number of images, scores
    "own inputs, 2": (60, partial(own_inputs, inputs=2)),
    "own inputs, 30": (60, partial(own_inputs, inputs=30)),
    "own inputs, 30, one of ten missing": (60, with_gaps),
    "with luck": (60, partial(with_luck, times={})),
    "with luck, three seeds of the reference": (60, partial(with_luck, times={}, seeds=3)),
    "luck three times for one arm": (60, partial(with_luck, times={4: 3})),
    "luck three times for half of the arms": (60, partial(with_luck, times=dict.fromkeys(range(6, 11), 3))),
    "luck of 0.5 to 2 times": (60, partial(with_luck, times=dict(enumerate(np.linspace(0.5, 2, ARMS))))),
    "luck three times for the reference": (60, partial(with_luck, times={0: 3})),
    "luck three times for the reference, three seeds": (60, partial(with_luck, times={0: 3}, seeds=3)),
    "layer anew in each fold": (60, partial(random_layer, anew=True)),
    "same layer, mean of 5": (60, partial(random_layer, anew=False, seeds=5)),
    "same layer": (60, partial(random_layer, anew=False)),
    "same layer, 120 images": (120, partial(random_layer, anew=False)),
    "same layer, 240 images": (240, partial(random_layer, anew=False)),
    "same layer, 480 images": (480, partial(random_layer, anew=False)),
}


def measure(name: str, folds: int, repeats: int, sweeps: int) -> dict:
    images, scores_of = SETTINGS[name]
    rng = np.random.default_rng(0)
    # The images of a sweep are exchangeable, so that all sweeps may have the same folds.
    parts = [part for _ in range(repeats) for part in np.array_split(rng.permutation(images), folds)]
    sizes = [min(AT_ONCE, sweeps - done) for done in range(0, sweeps, AT_ONCE)]
    tables = np.concatenate([scores_of(size, images, parts, rng) for size in sizes])
    scores = tables if tables.ndim == 3 else np.nanmean(tables, axis=3)
    differences = np.moveaxis(scores[..., 1:] - scores[..., :1], 1, 2)  # (sweeps, arms, folds)

    def p_values(test_share: float) -> np.ndarray:
        return np.array(
            [[corrected_paired_test(arm[~np.isnan(arm)], test_share).p for arm in sweep] for sweep in differences]
        )

    def by_table() -> np.ndarray:
        return np.array(
            [
                [arm.adjusted_p for arm in compare(np.moveaxis(table, 1, 0), 1 / (folds - 1)).arms[1:]]
                for table in tables
            ]
        )

    plain, corrected = p_values(0), p_values(1 / (folds - 1))
    rates = {
        "plain": (plain < LEVEL).mean(axis=1),
        "corrected": (corrected < LEVEL).mean(axis=1),
        "any_plain": (plain < LEVEL).any(axis=1),
        "any_corrected": (corrected < LEVEL).any(axis=1),
        "any_after_holm": (np.array([holm(p) for p in corrected]) < LEVEL).any(axis=1),
        "any_by_table": (by_table() < LEVEL).any(axis=1),
    }
    whole = differences[~np.isnan(differences).any(axis=(1, 2))]
    correlation = np.mean([fold_correlation(whole[:, arm]) for arm in range(ARMS - 1)])
    shown = {key: f"{100 * rate.mean():.1f} ± {100 * rate.std() / np.sqrt(sweeps):.1f}%" for key, rate in rates.items()}
    return {
        "arms": name,
        "folds": f"{repeats} x {folds}" if repeats > 1 else str(folds),
        "correlation": f"{correlation:.2f}",
        **shown,
    }


def gaussian_sweeps(folds: int, correlation: float, sweeps: int) -> dict[str, str]:
    """Share of sweeps in which the table finds something; scores are normal, an arm's folds alike by `correlation`."""
    found = {}
    settings = {
        "alike": {},
        "one arm three times as variable": {4: 3},
        "two": {4: 3, 5: 3},
        "half": dict.fromkeys(range(6, 11), 3),
    }
    settings |= {"the reference twice": {0: 2}, "three times": {0: 3}, "five times": {0: 5}}
    for name, times in settings.items():
        rng, spread = np.random.default_rng(0), np.ones(ARMS)
        for arm, factor in times.items():
            spread[arm] = factor
        tables = np.sqrt(correlation) * rng.normal(size=(sweeps, ARMS, 1))
        tables = spread[:, None] * (tables + np.sqrt(1 - correlation) * rng.normal(size=(sweeps, ARMS, folds)))
        alarms = [min(arm.adjusted_p for arm in compare(t, 1 / (folds - 1)).arms[1:]) < LEVEL for t in tables]
        found[name] = f"{100 * np.mean(alarms):.1f}%"
    return {"folds": str(folds), "correlation": f"{correlation:.2f}", **found}


def gaussian_rate(correlation: float, folds: int, test_share: float) -> float:
    """Rejection rate of the test for equicorrelated Gaussian differences with mean 0.

    Their mean has the variance (1 + (J - 1) r) / J and is independent of their spread, whose square is 1 - r times what
    it is for independent ones: the statistic is a multiple of one with the t distribution.
    """
    scale = (1 - correlation) * (1 + folds * test_share) / (1 + (folds - 1) * correlation)
    return 2 * stats.t.sf(stats.t.ppf(1 - LEVEL / 2, folds - 1) * np.sqrt(scale), folds - 1)


def least_difference(folds: int, repeats: float, comparisons: int) -> float:
    """The mean difference, in standard deviations of the folds' differences, that is significant after Holm.

    It is the smallest p value's; the next ones have fewer comparisons left.
    """
    count = folds * repeats
    return stats.t.ppf(1 - LEVEL / comparisons / 2, count - 1) * np.sqrt(1 / count + 1 / (folds - 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = []
    for folds, repeats in ((3, 1), (5, 1), (3, 10)):
        for name in SETTINGS:
            rows.append(measure(name, folds, repeats, options.sweeps))
            print(" | ".join(rows[-1].values()), flush=True)
    table = Table(rows, f"{options.sweeps} sweeps without an effect, ten comparisons each")
    print(table)
    theory = [
        {"correlation": f"{r:.2f}"}
        | {
            f"{test}, {folds} folds": f"{100 * gaussian_rate(r, folds, share):.1f}%"
            for folds in (3, 5)
            for test, share in (("plain", 0), ("corrected", 1 / (folds - 1)))
        }
        for r in (0, 0.1, 0.2, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ]
    print(Table(theory, "Gaussian differences with the same correlation between any two folds"))
    normal = [
        gaussian_sweeps(folds, correlation, options.sweeps)
        for folds in (3, 5)
        for correlation in (0, 0.15, 1 / folds, 0.5)
    ]
    print(Table(normal, "Sweeps without an effect of normal scores: something is found by the table"))
    least = [
        {"repeats": f"{repeats:g}"}
        | {f"{k} folds, {m} compared": f"{least_difference(k, repeats, m):.2f}" for m in (1, 10) for k in (3, 5, 10)}
        for repeats in (1, 3, 10, np.inf)
    ]
    print(Table(least, "Least significant difference, in standard deviations of the folds' differences"))
    if options.csv:
        table.to_csv(options.csv)


if __name__ == "__main__":
    main()
