"""How much do folds share? The correction for shared training images, measured on finished sweeps of one repeat.

    python benchmarks/overlap.py docs/evidence/*_pretrained.csv [--margin 0.02] [--check 100]

An answer takes the mean of an arm over J folds to vary by s^2 (1/J + g n_test/n_train), with g = 1 (Nadeau and Bengio):
what the folds share makes the means of arms differ by more than the spread s within the table tells. That is what F of
an analysis of variance looks at: F / (1 + g J n_test/n_train) has the F distribution where arms do not differ. Only
arms of dropout alone are taken, as the most alike; true differences between them make g look larger, never smaller. g
is the most likely one of all tables together, its interval by the likelihood ratio. `--check` simulates so many sets of
such tables with normal scores, and tells how often interval and p are right.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from forest import anew, read, scores_of
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, f

from segdrop.show.tables import Table

DROPOUT = {"encoder_dropout", "dropout_kind", "dropout_placement"}


def of_dropout(row: dict) -> bool:
    """Whether an arm has dropout and nothing else."""
    changes = json.loads(row["changes"])
    return bool(changes.get("encoder_dropout")) and set(changes) <= DROPOUT


def ratio(scores: np.ndarray) -> float:
    """F of the arms: their mean square by that of the residuals."""
    arms, folds = scores.shape
    means = scores.mean(axis=1)
    residuals = scores - means[:, None] - scores.mean(axis=0) + means.mean()
    return folds * means.var(ddof=1) / ((residuals**2).sum() / ((arms - 1) * (folds - 1)))


def estimate(tables: list[np.ndarray]) -> tuple[float, float, float, float]:
    """The most likely g, its 95% interval, and p of g = 1."""

    known = [(ratio(scores), *scores.shape) for scores in tables]

    def loss(g: float) -> float:
        total = 0.0
        for value, arms, folds in known:
            scale = 1 + g * folds / (folds - 1)
            total -= f.logpdf(value / scale, arms - 1, (arms - 1) * (folds - 1)) - np.log(scale)
        return total

    best = minimize_scalar(loss, bounds=(-0.5, 5), method="bounded")
    tried = np.linspace(-0.5, 5, 551)
    inside = tried[[2 * (loss(g) - best.fun) < chi2.isf(0.05, 1) for g in tried]]
    return best.x, inside[0], inside[-1], chi2.sf(2 * (loss(1) - best.fun), 1)


def check(shapes: list[tuple[int, int]], g: float, count: int) -> str:
    """How often the interval holds a true g, and p of g = 1 is below 0.05."""
    rng, held, refuted = np.random.default_rng(0), 0, 0
    for _ in range(count):
        tables = [
            rng.normal(size=(arms, folds)) + rng.normal(size=(arms, 1)) * np.sqrt(g / (folds - 1))
            for arms, folds in shapes
        ]
        _, low, high, p = estimate(tables)
        held, refuted = held + (low <= g <= high), refuted + (p < 0.05)
    return f"simulated, g = {g:.2f}: the interval holds it in {held / count:.0%}, 1 is refuted in {refuted / count:.0%}"


def decided(rows: list[dict], g: float, margin: float) -> str:
    """How many arms are told from the reference or from the margin, and half of the median interval."""
    arms = [arm for arm in anew(rows, margin, g) if not np.isnan(arm.difference)]
    halves = [(arm.simultaneous_high - arm.simultaneous_low) / 2 for arm in arms]
    return f"{sum(arm.verdict != 'cannot be told' for arm in arms)} of {len(arms)}, {np.median(halves):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--margin", type=float, default=0.02)
    parser.add_argument("--check", type=int, default=0)
    given = parser.parse_args()
    found = {path.stem: read(path) for path in given.tables}
    alike = {name: scores_of([row for row in rows if of_dropout(row)]) for name, rows in found.items()}
    best, low, high, p = estimate(list(alike.values()))
    candidates = 1.0, high, max(best, 0.0)
    shown = [
        {
            "table": name,
            "arms, folds": "{} x {}".format(*alike[name].shape),
            "F": f"{ratio(alike[name]):.2f}",
            **{f"decided, half an interval with g = {g:.2f}": decided(rows, g, given.margin) for g in candidates},
        }
        for name, rows in found.items()
    ]
    print(Table(shown))
    print(f"g {best:.2f} [{low:.2f}, {high:.2f}]; p of g = 1: {p:.4f}")
    for g in candidates if given.check else ():
        print(check([scores.shape for scores in alike.values()], g, given.check))


if __name__ == "__main__":
    main()
