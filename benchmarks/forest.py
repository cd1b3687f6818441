"""The tables of finished sweeps compared anew, and their forest plots side by side.

    python benchmarks/forest.py docs/pictures/forest.png docs/evidence/kvasir_seg.csv ... [--margin 0.01]

A table is a sweep's answer.csv, of any version: what is taken from it are the arms, the folds' Dice (means over seeds,
where it does not say more), and the arms that they are compared with. One image of validation for K - 1 of training.
"""

import argparse
import csv
import math
import re
from pathlib import Path

from segdrop import compare
from segdrop.scoring.comparison import Compared
from segdrop.show.plots import forest
from segdrop.show.tables import Table


def compared_anew(path: Path, margin: float) -> tuple[list[str], Compared]:
    """The arms' names, and their comparison."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if re.fullmatch(r"dice_repeat\d+_fold\d+", name)]
    folds = len({name.rpartition("fold")[2] for name in columns})
    names = [row["arm"] for row in rows]
    scores = [[float(row[column] or math.nan) for column in columns] for row in rows]
    references = [names.index(row["reference"]) for row in rows]
    return names, compare(scores, 1 / (folds - 1), references, margin=margin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--margin", type=float, default=0.01)
    options = parser.parse_args()
    drawn = {}
    for path in options.tables:
        names, compared = compared_anew(path, options.margin)
        arms = [(name, arm) for name, arm in zip(names, compared.arms, strict=True) if arm.folds]
        drawn[path.stem if len(options.tables) > 1 else ""] = [
            {
                "name": name,
                "difference": arm.difference,
                "low": arm.simultaneous_low,
                "high": arm.simultaneous_high,
                "verdict": arm.verdict,
            }
            for name, arm in arms
        ]
        rows = [
            {
                "arm": name,
                "difference": f"{arm.difference:+.3f} [{arm.simultaneous_low:+.3f}, {arm.simultaneous_high:+.3f}]",
                "adjusted p": f"{arm.adjusted_p:.3f}",
                "helps / equal / hurts": " / ".join(f"{100 * p:.0f}%" for p in (arm.helps, arm.equal, arm.hurts)),
                "verdict": arm.verdict,
            }
            for name, arm in arms
        ]
        print(Table(rows, f"{path.stem}: spread of a training {compared.std:.4f}"))
    forest(drawn, options.margin).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
