"""The tables of finished sweeps, all arms compared together, and their forest plots side by side.

    python benchmarks/forest.py docs/pictures/forest.png docs/evidence/kvasir_seg.csv ... [--margin 0.01]

A table is a sweep's answer.csv. One of a version that compared each arm by itself is compared anew: by the folds' Dice,
means over seeds, and one image of validation for K - 1 of training.
"""

import argparse
import csv
import math
import re
from pathlib import Path

from segdrop import compare
from segdrop.scoring.comparison import verdict_of
from segdrop.show.plots import forest
from segdrop.show.tables import Table

NUMBERS = ("difference", "simultaneous_low", "simultaneous_high", "adjusted_p", "helps", "equal", "hurts")


def arms_in(path: Path, margin: float) -> list[dict]:
    """The compared arms of a table: name, verdict and NUMBERS."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if "simultaneous_low" in rows[0]:
        told = [{name: float(row[name] or math.nan) for name in NUMBERS} for row in rows]
    else:
        columns = [name for name in rows[0] if re.fullmatch(r"dice_repeat\d+_fold\d+", name)]
        folds = len({name.rpartition("fold")[2] for name in columns})
        names = [row["arm"] for row in rows]
        scores = [[float(row[column] or math.nan) for column in columns] for row in rows]
        references = [names.index(row["reference"]) for row in rows]
        arms = compare(scores, 1 / (folds - 1), references, margin=margin).arms
        told = [{name: getattr(arm, name) for name in NUMBERS} for arm in arms]
    return [
        {"name": row["arm"], **arm, "verdict": verdict_of(arm["simultaneous_low"], arm["simultaneous_high"], margin)}
        for row, arm in zip(rows, told, strict=True)
        if not math.isnan(arm["difference"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--margin", type=float, default=0.01)
    options = parser.parse_args()
    drawn = {}
    for path in options.tables:
        arms = arms_in(path, options.margin)
        drawn[path.stem if len(options.tables) > 1 else ""] = [
            {**arm, "low": arm["simultaneous_low"], "high": arm["simultaneous_high"]} for arm in arms
        ]
        rows = [
            {
                "arm": arm["name"],
                "difference": f"{arm['difference']:+.3f} [{arm['simultaneous_low']:+.3f}, "
                f"{arm['simultaneous_high']:+.3f}]",
                "adjusted p": f"{arm['adjusted_p']:.3f}",
                "helps / equal / hurts": " / ".join(f"{100 * arm[name]:.0f}%" for name in NUMBERS[-3:]),
                "verdict": arm["verdict"],
            }
            for arm in arms
        ]
        print(Table(rows, path.stem))
    forest(drawn, options.margin).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
