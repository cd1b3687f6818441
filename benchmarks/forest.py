"""The tables of finished sweeps, all arms compared together, and their forest plots side by side.

    python benchmarks/forest.py docs/pictures/forest.png docs/evidence/kvasir_seg.csv ... [--margin 0.01] [--together]

A table is a sweep's answer.csv. One of a version that compared each arm by itself is compared anew: by the folds' Dice,
means over seeds, and one image of validation for K - 1 of training.

`--together` adds the means of the arms' differences over these very sets, weighted by the inverse variances (Hedges and
Olkin, Statistical Methods for Meta-Analysis, 1985, ch. 6), with intervals that hold for all arms (Bonferroni), and p of
Cochran's Q: that an arm's differences vary between the sets by chance alone. Of another set it says nothing.
"""

import argparse
import csv
import math
import re
from pathlib import Path

import numpy as np
from scipy.stats import chi2, norm

from segdrop import compare
from segdrop.scoring.comparison import ArmComparison, verdict_of
from segdrop.show.plots import forest
from segdrop.show.tables import Table

ALL = "all sets together"
NUMBERS = ("difference", "simultaneous_low", "simultaneous_high", "adjusted_p", "helps", "equal", "hurts")


def read(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def columns_of(rows: list[dict]) -> list[str]:
    """Of the folds' Dice, means over seeds."""
    return [name for name in rows[0] if re.fullmatch(r"dice_repeat\d+_fold\d+", name)]


def scores_of(rows: list[dict]) -> np.ndarray:
    """Dice, (arms, folds x repeats); NaN where missing."""
    return np.array([[float(row[column] or math.nan) for column in columns_of(rows)] for row in rows])


def anew(rows: list[dict], margin: float, correction: float = 1.0) -> tuple[ArmComparison, ...]:
    """The arms of a table compared by its scores; `correction` times what is assumed for images that folds share."""
    folds = len({name.rpartition("fold")[2] for name in columns_of(rows)})
    names = [row["arm"] for row in rows]
    references = [names.index(row["reference"]) for row in rows]
    return compare(scores_of(rows), correction / (folds - 1), references, margin=margin).arms


def arms_in(rows: list[dict], margin: float) -> list[dict]:
    """The compared arms of a table: name, verdict and NUMBERS."""
    if "simultaneous_low" in rows[0]:
        told = [{name: float(row[name] or math.nan) for name in NUMBERS} for row in rows]
    else:
        told = [{name: getattr(arm, name) for name in NUMBERS} for arm in anew(rows, margin)]
    return [
        {"name": row["arm"], **arm, "verdict": verdict_of(arm["simultaneous_low"], arm["simultaneous_high"], margin)}
        for row, arm in zip(rows, told, strict=True)
        if not math.isnan(arm["difference"])
    ]


def over_sets(sets: list[list[dict]], margin: float) -> list[dict]:
    """What `arms_in` gives, of the weighted means over the sets, for arms that all tables have; and Q's p."""
    tables = [{row["arm"]: row for row in rows if row["difference"]} for rows in sets]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    told = []
    for name in names:
        differences = np.array([float(table[name]["difference"]) for table in tables])
        weights = np.array([float(table[name]["standard_error"]) ** -2 for table in tables])
        mean, error = np.average(differences, weights=weights), weights.sum() ** -0.5
        half = norm.isf(0.025 / len(names)) * error
        helps, hurts = norm.sf(margin, mean, error), norm.cdf(-margin, mean, error)
        told.append(
            {
                "name": name,
                "difference": mean,
                "simultaneous_low": mean - half,
                "simultaneous_high": mean + half,
                "adjusted_p": min(1, 2 * len(names) * norm.sf(abs(mean) / error)),
                **{"helps": helps, "equal": 1 - helps - hurts, "hurts": hurts},
                "verdict": verdict_of(mean - half, mean + half, margin),
                "homogeneous": chi2.sf((weights * (differences - mean) ** 2).sum(), len(tables) - 1),
            }
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--margin", type=float, default=0.01)
    parser.add_argument("--together", action="store_true")
    options = parser.parse_args()
    sets = {path.stem: read(path) for path in options.tables}
    tables = {name: arms_in(rows, options.margin) for name, rows in sets.items()}
    if options.together:
        tables[ALL] = over_sets(list(sets.values()), options.margin)
    drawn = {}
    for name, arms in tables.items():
        drawn[name if len(tables) > 1 else ""] = [
            {**arm, "low": arm["simultaneous_low"], "high": arm["simultaneous_high"]} for arm in arms
        ]
        rows = [
            {
                "arm": arm["name"],
                "difference": f"{arm['difference']:+.3f} [{arm['simultaneous_low']:+.3f}, "
                f"{arm['simultaneous_high']:+.3f}]",
                "adjusted p": f"{arm['adjusted_p']:.3f}",
                "helps / equal / hurts": " / ".join(f"{100 * arm[key]:.0f}%" for key in NUMBERS[-3:]),
                "verdict": arm["verdict"],
                **({"p of Q": f"{arm['homogeneous']:.2f}"} if name == ALL else {}),
            }
            for arm in arms
        ]
        print(Table(rows, name))
    forest(drawn, options.margin).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
