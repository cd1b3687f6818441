"""Does dropout help on these data, where, how much, and how sure is that: each arm beside its reference.

What comes in are the numbers of finished trainings and what goes out are comparisons and sentences. Neither TensorFlow
nor Keras is imported.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..scoring.comparison import ArmComparison, Compared, compare
from ..scoring.designs import Design
from ..scoring.statistics import (
    Needed,
    PairedTest,
    corrected_paired_test,
    holm,
    needed_to_tell,
    paired_bootstrap,
    pooled_std,
)
from ..scoring.stopping import Course, follow
from .answers import LEVEL, Answer, ArmAnswer, Comparison
from .learning import worths
from .results import MEASURES, Failure, Results, Training, best_arm
from .wording import about_the_arms, about_the_sweep, headline

_Slot = tuple[int, int, int]  # repeat, fold, seed


def answer(results: Results) -> Answer:
    """Compare every arm with its reference.

    An arm is complete when every fold, repeat and seed is finished, and compared when all have ended: where some have
    failed, on what it has.

    Args:
        results: the trainings so far; those of folds, repeats and seeds beyond its own are not looked at.
    """
    seeds = {seed: i for i, seed in enumerate(results.all_seeds)}
    trainings: list[dict[_Slot, Training]] = [{} for _ in results.arms]
    scores = {
        name: np.full((len(results.arms), results.repeats, results.folds, len(seeds)), np.nan) for name in MEASURES
    }
    failures = {_slot(failure): failure for failure in results.failures if _belongs(failure, results)}
    for training in results.trainings:
        if _belongs(training, results):
            failures.pop(_slot(training), None)
            key = training.repeat, training.fold, seeds[training.seed]
            trainings[training.arm][key] = training
            for name, table in scores.items():
                table[(training.arm, *key)] = getattr(training, name)
    scores["gap"] = scores.pop("train_dice") - scores["dice"]

    failed = Counter(failure.arm for failure in failures.values())
    reasons = {failure.arm: failure.reason for failure in reversed(failures.values())}
    course = _course(results, scores["dice"], trainings, failures.values()) if results.stops else None
    all_columns = results.repeats * results.folds
    columns = [all_columns] * len(results.arms) if course is None else course.columns
    expected = [columns[i] * len(results.seeds_of(i)) for i in range(len(results.arms))]
    ended = [len(done) + failed[i] == expected[i] and not results.arms[i].pruned for i, done in enumerate(trainings)]
    complete = [ended[i] and not failed[i] for i in range(len(expected))]
    by_fold = {name: _by_fold(scores[name], trainings, failures.values(), results) for name in ("dice", "iou")}
    finished = [training for done in trainings for training in done.values()]
    blank = [training for training in finished if training.learnt_nothing]
    nothing = len(blank) == len(finished)  # is learnt: the differences are those of noise
    # An undefined Dice is not missing by chance: such an arm is left out.
    usable = [
        ended[i] and not any(math.isnan(training.dice) for training in done.values())
        for i, done in enumerate(trainings)
    ]
    table = None if nothing else _table(results, usable, scores["dice"])
    if course is not None and table is not None:  # each arm as it was when it was looked at last
        own = {i: told for i, told in course.told.items() if i not in course.going}
        table = dataclasses.replace(table, arms=tuple(own.get(i, ArmComparison()) for i in range(len(results.arms))))
    comparisons = {} if table is None else _compare(results, table, by_fold["dice"], trainings)
    arms = [
        ArmAnswer(
            arm=arm,
            state="pruned" if arm.pruned else "complete" if complete[i] else "failed" if failed[i] else "incomplete",
            trained=len(trainings[i]),
            failed=failed[i],
            expected=len(trainings[i]) + failed[i] if arm.pruned else expected[i],
            reason=reasons.get(i, ""),
            dice=by_fold["dice"][i],
            iou=by_fold["iou"][i],
            means={name: _mean(scores[name][i], trainings[i]) for name in scores} if complete[i] else {},
            comparison=comparisons.get(i),
            columns=columns[i] if columns[i] < all_columns and not (course and i in course.going) else None,
        )
        for i, arm in enumerate(results.arms)
    ]
    # Where arms are trained no further once they are told, the first repeat is what an arm needs to be chosen.
    common = scores["dice"][:, : 1 if results.stops else None, :, : len(results.seeds)]
    candidates = [(common[i].ravel().tolist() if complete[i] else [], arm.rate) for i, arm in enumerate(results.arms)]
    images = {image for training in finished for image in training.images}
    without_words = Answer(
        results=results,
        arms=arms,
        chosen=best_arm(candidates),
        failures=list(failures.values()),
        independent=len(images if results.groups is None else {results.groups[image] for image in images}),
        fold_std=pooled_std(by_fold["dice"][complete].reshape(sum(complete), results.repeats * results.folds)),
        seed_std=_seed_std(scores["dice"], complete),
        blank=blank,
        rising=[training for training in finished if training.rising],
        contrasts={} if table is None else {k: v for k, v in table.contrasts.items() if not math.isnan(v.difference)},
        worths={} if table is None else worths(results, by_fold["dice"], complete),
        std=math.nan if table is None else table.std,
        degrees=0.0 if table is None else table.degrees,
        apart=() if table is None else table.apart,
        gained=0.0 if table is None else _gained(results, table),
    )
    return dataclasses.replace(
        without_words,
        headline=headline(without_words),
        about_the_sweep=about_the_sweep(without_words),
        about_the_arms=about_the_arms(without_words),
    )


def _course(
    results: Results,
    dice: np.ndarray,
    trainings: Sequence[Mapping[_Slot, Training]],
    failures: Collection[Failure],
) -> Course:
    """How far a sweep has come whose arms are trained no further once they are told."""
    shape = dice.shape[:3]
    ended = np.zeros(shape, int)
    for i, own in enumerate(trainings):
        for repeat, fold, _ in own:
            ended[i, repeat, fold] += 1
    for failure in failures:
        ended[failure.arm, failure.repeat, failure.fold] += 1
    seeds = np.array([len(results.seeds_of(i)) for i in range(shape[0])])
    return follow(
        dice.reshape(shape[0], -1, dice.shape[3]),
        (ended >= seeds[:, None, None]).reshape(shape[0], -1),
        results.folds,
        results.shares,
        [arm.reference for arm in results.arms],
        results.margin,
    )


def _by_fold(
    scores: np.ndarray, trainings: Sequence[Mapping[_Slot, Training]], failures: Sequence[Failure], results: Results
) -> np.ndarray:
    """Means over the seeds, (arms, repeats, folds); NaN where one has not ended yet or an undefined score."""
    means = np.full(scores.shape[:3], np.nan)
    lost = Counter((failure.arm, failure.repeat, failure.fold) for failure in failures)
    done = Counter((i, repeat, fold) for i, own in enumerate(trainings) for repeat, fold, _ in own)
    for place, number in done.items():
        if number + lost[place] == len(results.seeds_of(place[0])):
            values = [scores[(*place, seed)] for _, _, seed in _of_fold(trainings, place)]
            means[place] = np.mean(values)
    return means


def _of_fold(trainings: Sequence[Mapping[_Slot, Training]], place: tuple[int, int, int]) -> list[_Slot]:
    arm, repeat, fold = place
    return [slot for slot in trainings[arm] if slot[:2] == (repeat, fold)]


def _mean(scores: np.ndarray, done: Mapping[_Slot, Training]) -> float:
    return float(np.mean([scores[slot] for slot in done]))


def _seed_std(dice: np.ndarray, complete: Sequence[bool]) -> float:
    """Over the seeds of a fold, pooled over the arms that have several."""
    cells = dice[complete].reshape(-1, dice.shape[3])
    numbers = np.count_nonzero(~np.isnan(cells), axis=1)
    cells, numbers = cells[numbers > 1], numbers[numbers > 1]
    return float(np.sqrt((np.nanvar(cells, axis=1) * numbers).sum() / (numbers - 1).sum())) if len(cells) else math.nan


def _table(results: Results, usable: Sequence[bool], dice: np.ndarray) -> Compared | None:
    """The arms that can be compared, in one table; None where it is too small."""
    table = dice.reshape(len(results.arms), -1, dice.shape[3]).copy()
    for i in range(len(results.arms)):
        if not usable[i]:
            table[i] = np.nan
    if table.shape[0] < 2 or table.shape[1] < 2:
        return None
    return compare(
        table,
        [arm.test_share or results.test_share for arm in results.arms],
        [arm.reference for arm in results.arms],
        contrasts=results.contrasts,
        margin=results.margin,
        further=results.dropped,
    )


def _gained(results: Results, table: Compared) -> float:
    """By what share the further seeds of references have narrowed the standard error of the comparisons, the median."""
    columns = results.folds * results.repeats
    ratios = [
        told.standard_error / table.std / math.sqrt(2 / columns + 2 * results.test_share)
        for told, arm in zip(table.arms, results.arms, strict=True)
        if results.arms[arm.reference].seeds and told.pooled and told.folds == columns and table.std > 0
    ]
    return max(0.0, 1 - float(np.median(ratios))) if ratios else 0.0


def _compare(
    results: Results,
    table: Compared,
    dice: np.ndarray,
    trainings: Sequence[Mapping[_Slot, Training]],
) -> dict[int, Comparison]:
    """The comparisons by arm; `dice`: float64 (arms, repeats, folds)."""
    pairs = [(i, arm.reference) for i, arm in enumerate(results.arms) if not math.isnan(table.arms[i].difference)]
    shares = [results.arms[i].test_share or results.test_share for i, _ in pairs]
    tests = [_paired(dice[i] - dice[reference], share) for (i, reference), share in zip(pairs, shares, strict=True)]
    adjusted = holm([*(test.p for test in tests), *[1.0] * results.dropped])[: len(tests)]
    # Holm's procedure is done with those that are told, and multiplies the next by the number of the others.
    family = max(1, results.dropped + int(np.count_nonzero(~(adjusted < LEVEL))))
    used = {i for pair in pairs for i in pair}
    names = {image for i in used for training in trainings[i].values() for image in training.images}
    position = {image: i for i, image in enumerate(sorted(names))}
    groups = None if results.groups is None else [results.groups[image] for image in position]
    by_image = {i: _by_image(results, trainings[i], position) for i in used}
    comparisons = {}
    for (i, reference), share, test, p in zip(pairs, shares, tests, adjusted, strict=True):
        told = table.arms[i]
        comparisons[i] = Comparison(
            table=told,
            test=test,
            holm_p=float(p),
            images=paired_bootstrap(by_image[i] - by_image[reference], groups),
            needed=_needed(results, table, i, (dice[i] - dice[reference]).ravel(), share, family),
        )
    return comparisons


def _paired(differences: np.ndarray, share: float) -> PairedTest:
    return corrected_paired_test(differences[~np.isnan(differences)], share)


def _needed(results: Results, table: Compared, arm: int, differences: np.ndarray, share: float, family: int) -> Needed:
    """What would tell an arm that is not told, by the same comparison."""
    told: ArmComparison = table.arms[arm]
    if told.adjusted_p < LEVEL:
        return Needed()
    if not told.pooled:
        return needed_to_tell(differences, share, results.folds, family)
    compared = sum(not math.isnan(other.difference) for other in table.arms) + results.dropped
    reference = results.arms[arm].reference
    seeds = len(results.seeds_of(reference)) / len(results.seeds_of(arm))
    design = Design(compared, results.folds, results.repeats, max(1.0, seeds), share)
    return design.needed(told.difference, table.std)


def _belongs(attempt: Training | Failure, results: Results) -> bool:
    """Whether it is of a fold, repeat and seed that the sweep asks for."""
    asked = attempt.repeat < results.repeats and attempt.fold < results.folds
    return asked and attempt.seed in results.seeds_of(attempt.arm)


def _slot(attempt: Training | Failure) -> tuple[int, int, int, int]:
    return attempt.arm, attempt.repeat, attempt.fold, attempt.seed


def _by_image(results: Results, trainings: Mapping[_Slot, Training], position: Mapping[str, int]) -> np.ndarray:
    """Mean Dice of each image over repeats and seeds, float64 (images,); NaN where it is undefined."""
    total, number = np.zeros(len(position)), np.zeros(len(position))
    for training in trainings.values():
        values = np.array(list(training.images.values()))
        places = np.array([position[image] for image in training.images], np.int64)
        defined = ~np.isnan(values)
        np.add.at(total, places[defined], values[defined])
        np.add.at(number, places[defined], 1)
    return np.divide(total, number, out=np.full(len(position), np.nan), where=number > 0)
