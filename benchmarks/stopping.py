"""What a sweep that stops when told finds, and what it saves: simulated sweeps, no training.

    python benchmarks/stopping.py [--sweeps 1000]

A score is its arm's mean plus luck, a normal variable of which a part is shared by an arm's folds, as much as the
correction for shared training images assumes (1 / folds), so that this is the worst case that it allows for. Four arms
are compared with the reference; none, one or all of them are better, by so many standard deviations of a training.

Printed are the share of sweeps with a false alarm, the share of better arms that are told, by the looks and by a sweep
that trains everything, the share of the trainings that the looks leave, and the share that a sweep without looks needs
to tell as much: of one that stops after fewer folds, interpolated.
"""

import argparse
import math

import numpy as np

from segdrop import compare
from segdrop.scoring.stopping import follow
from segdrop.show.tables import Table

ARMS, SPREAD = 5, 0.01


def draw(sweeps: int, folds: int, repeats: int, effects: np.ndarray) -> np.ndarray:
    """Scores (sweeps, arms, folds x repeats), whose spread within an arm is SPREAD."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((sweeps, ARMS, 1)) / math.sqrt(folds - 1)
    luck = rng.standard_normal((sweeps, ARMS, folds * repeats))
    return 0.8 + SPREAD * (effects[:, None] + shared + luck)


def measure(folds: int, repeats: int, better: int, effect: float, sweeps: int) -> dict[str, str]:
    effects = np.zeros(ARMS)
    effects[1 : 1 + better] = effect
    scores, columns = draw(sweeps, folds, repeats, effects), folds * repeats
    everything = np.ones((ARMS, columns), bool)
    shares, references = [1 / (folds - 1)] * ARMS, [0] * ARMS
    courses = [follow(table[..., None], everything, folds, shares, references, margin=0.0) for table in scores]
    told = np.array([[course.told[i].verdict for i in range(1, ARMS)] for course in courses])
    cost = np.mean([sum(course.columns) for course in courses]) / (ARMS * columns)
    whole, least = [
        np.array([[arm.verdict for arm in compare(t[:, :seen], shares, margin=0.0).arms[1:]] for t in scores])
        for seen in (columns, max(2, round(columns / 2)))
    ]
    found, fixed, half = (
        (verdicts[:, :better] == "helps").mean() if better else 0 for verdicts in (told, whole, least)
    )
    share = 1 - (fixed - found) / (fixed - half) / 2 if better and fixed > half else math.nan
    return {
        "folds": f"{repeats} x {folds}" if repeats > 1 else str(folds),
        "better": f"{better} by {effect:g}" if better else "none",
        "false alarms": f"{100 * (told[:, better:] != 'cannot be told').any(axis=1).mean():.1f}%",
        "told, with looks": f"{100 * found:.0f}%" if better else "",
        "told, whole": f"{100 * fixed:.0f}%" if better else "",
        "trainings": f"{100 * cost:.0f}%",
        "needed without looks": "" if math.isnan(share) else f"{100 * min(1, share):.0f}%",
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    for folds, repeats in ((5, 1), (5, 3), (10, 1)):
        for better, effect in ((0, 0), (1, 3), (1, 5), (4, 3), (4, 5)):
            rows.append(measure(folds, repeats, better, effect, options.sweeps))
            print(" | ".join(rows[-1].values()), flush=True)
    print(Table(rows, f"{options.sweeps} simulated sweeps of four arms and a reference"))


if __name__ == "__main__":
    main()
