"""The forest plot of a finished sweep, from its answer's table.

python benchmarks/forest.py docs/evidence/kvasir_seg.csv docs/pictures/forest.png
"""

import csv
import sys
from pathlib import Path

from segdrop.show.plots import forest


def main(table: Path, picture: Path) -> None:
    with table.open(newline="", encoding="utf-8") as file:
        arms = [arm for arm in csv.DictReader(file) if arm["difference"]]
    numbers = ("difference", "low", "high")
    forest([arm | {"name": arm["arm"]} | {name: float(arm[name]) for name in numbers} for arm in arms]).savefig(
        picture, dpi=120
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
