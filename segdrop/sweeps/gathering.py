"""The trainings of a sweep in tables: which have ended, with which scores, and which arms are whole."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..scoring.stopping import Course, follow
from .results import MEASURES, Failure, Results, Training

Slot = tuple[int, int, int]  # repeat, fold, and the place of the seed


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a sweep has, arm by arm.

    Attributes:
        results: what it was made from.
        scores: by measure float64 (arms, repeats, folds, seeds), NaN where there is none; "gap" for "train_dice".
        trainings: for each arm its finished trainings.
        failures: those of trainings that have not succeeded since.
        failed: (arms,), their number.
        course: how far the looks are, of a sweep whose arms are trained no further once they are told.
        columns: (arms,), the folds and repeats that are to be trained.
        expected: (arms,), the number of trainings.
        complete, usable: (arms,), whether all are finished; whether all have ended, and none with an undefined Dice,
            which is not missing by chance.
    """

    results: Results
    scores: Mapping[str, np.ndarray]
    trainings: Sequence[Mapping[Slot, Training]]
    failures: Sequence[Failure]
    failed: Sequence[int]
    course: Course | None
    columns: Sequence[int]
    expected: Sequence[int]
    complete: Sequence[bool]
    usable: Sequence[bool]

    def by_fold(self, name: str) -> np.ndarray:
        """Means over the seeds, (arms, repeats, folds); NaN where one has not ended yet or has an undefined score."""
        ended = _ended(self.trainings, self.failures, self.scores[name].shape[:3])
        means = np.full(ended.shape, np.nan)
        for arm, repeat, fold in zip(*np.nonzero(ended), strict=True):
            values = [self.scores[name][(arm, *slot)] for slot in self.trainings[arm] if slot[:2] == (repeat, fold)]
            if values and ended[arm, repeat, fold] == len(self.results.seeds_of(arm)):
                means[arm, repeat, fold] = np.mean(values)
        return means

    def candidates(self) -> list[tuple[list[float], float | None]]:
        """What `results.best_arm` chooses from: the seeds that all arms have.

        Where arms are trained no further once they are told, the first repeat is what an arm needs to be chosen.
        """
        dice = self.scores["dice"][:, : 1 if self.results.stops else None, :, : len(self.results.seeds)]
        return [
            (dice[i].ravel().tolist() if self.complete[i] else [], arm.rate) for i, arm in enumerate(self.results.arms)
        ]


def gather(results: Results) -> Gathered:
    """Put the trainings into tables; those of folds, repeats and seeds beyond the sweep's own are not looked at."""
    seeds = {seed: i for i, seed in enumerate(results.all_seeds)}
    trainings: list[dict[Slot, Training]] = [{} for _ in results.arms]
    shape = len(results.arms), results.repeats, results.folds, len(seeds)
    scores = {name: np.full(shape, np.nan) for name in MEASURES}
    failures = {_place(failure): failure for failure in results.failures if _belongs(failure, results)}
    for training in results.trainings:
        if _belongs(training, results):
            failures.pop(_place(training), None)
            slot = training.repeat, training.fold, seeds[training.seed]
            trainings[training.arm][slot] = training
            for name, table in scores.items():
                table[(training.arm, *slot)] = getattr(training, name)
    scores["gap"] = scores.pop("train_dice") - scores["dice"]

    number = Counter(failure.arm for failure in failures.values())
    failed = [number[i] for i in range(len(results.arms))]
    course = _course(results, scores["dice"], trainings, list(failures.values())) if results.stops else None
    columns = [results.repeats * results.folds] * len(results.arms) if course is None else course.columns
    expected = [columns[i] * len(results.seeds_of(i)) for i in range(len(results.arms))]
    ended = [len(done) + failed[i] == expected[i] and not results.arms[i].pruned for i, done in enumerate(trainings)]
    return Gathered(
        results=results,
        scores=scores,
        trainings=trainings,
        failures=list(failures.values()),
        failed=failed,
        course=course,
        columns=columns,
        expected=expected,
        complete=[all_ended and not lost for all_ended, lost in zip(ended, failed, strict=True)],
        usable=[
            ended[i] and not any(math.isnan(training.dice) for training in done.values())
            for i, done in enumerate(trainings)
        ],
    )


def _course(
    results: Results, dice: np.ndarray, trainings: Sequence[Mapping[Slot, Training]], failures: Sequence[Failure]
) -> Course:
    """How far a sweep has come whose arms are trained no further once they are told."""
    seeds = np.array([len(results.seeds_of(i)) for i in range(len(results.arms))])
    ended = _ended(trainings, failures, dice.shape[:3]) >= seeds[:, None, None]
    return follow(
        dice.reshape(len(dice), -1, dice.shape[3]),
        ended.reshape(len(dice), -1),
        results.folds,
        results.shares,
        [arm.reference for arm in results.arms],
        results.margin,
    )


def _ended(
    trainings: Sequence[Mapping[Slot, Training]], failures: Sequence[Failure], shape: tuple[int, ...]
) -> np.ndarray:
    """The number of trainings that have ended, (arms, repeats, folds)."""
    ended = np.zeros(shape, int)
    for arm, done in enumerate(trainings):
        for repeat, fold, _ in done:
            ended[arm, repeat, fold] += 1
    for failure in failures:
        ended[failure.arm, failure.repeat, failure.fold] += 1
    return ended


def _belongs(attempt: Training | Failure, results: Results) -> bool:
    """Whether it is of a fold, repeat and seed that the sweep asks for."""
    asked = attempt.repeat < results.repeats and attempt.fold < results.folds
    return asked and attempt.seed in results.seeds_of(attempt.arm)


def _place(attempt: Training | Failure) -> tuple[int, int, int, int]:
    return attempt.arm, attempt.repeat, attempt.fold, attempt.seed
