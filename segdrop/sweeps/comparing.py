"""Does dropout help on these data, where, how much, and how sure is that: each arm beside its reference.

What comes in are the numbers of finished trainings and what goes out are comparisons and sentences. Neither TensorFlow
nor Keras is imported.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ..scoring.comparison import ArmComparison, Compared, compare
from ..scoring.designs import Design, Needed
from ..scoring.statistics import (
    PairedTest,
    corrected_paired_test,
    holm,
    paired_bootstrap,
    pooled_std,
)
from .answers import LEVEL, Answer, ArmAnswer, Comparison
from .gathering import Gathered, Slot, gather
from .learning import worths
from .results import Results, Training, best_arm
from .wording import about_the_arms, about_the_sweep, headline


def answer(results: Results) -> Answer:
    """Compare every arm with its reference.

    An arm is complete when every fold, repeat and seed is finished, and compared when all have ended: where some have
    failed, on what it has.

    Args:
        results: the trainings so far; those of folds, repeats and seeds beyond its own are not looked at.
    """
    found = gather(results)
    finished = [training for done in found.trainings for training in done.values()]
    blank = [training for training in finished if training.learnt_nothing]
    nothing = len(blank) == len(finished)  # is learnt: the differences are those of noise
    dice, iou = found.by_fold("dice"), found.by_fold("iou")
    table = None if nothing else _table(found)
    comparisons = {} if table is None else _compare(found, table, dice)
    images = {image for training in finished for image in training.images}
    without_words = Answer(
        results=results,
        arms=[_arm_answer(found, i, dice[i], iou[i], comparisons.get(i)) for i in range(len(results.arms))],
        chosen=best_arm(found.candidates()),
        failures=found.failures,
        independent=len(images if results.groups is None else {results.groups[image] for image in images}),
        fold_std=pooled_std(dice[found.complete].reshape(sum(found.complete), results.repeats * results.folds)),
        seed_std=_seed_std(found.scores["dice"][found.complete]),
        blank=blank,
        rising=[training for training in finished if training.rising],
    )
    if table is not None:
        without_words = dataclasses.replace(
            without_words,
            contrasts={name: told for name, told in table.contrasts.items() if not math.isnan(told.difference)},
            worths=worths(results, dice, found.complete),
            std=table.std,
            degrees=table.degrees,
            apart=table.apart,
            noisy=table.noisy,
            gained=_gained(results, table),
        )
    return dataclasses.replace(
        without_words,
        headline=headline(without_words),
        about_the_sweep=about_the_sweep(without_words),
        about_the_arms=about_the_arms(without_words),
    )


def _arm_answer(
    found: Gathered, arm: int, dice: np.ndarray, iou: np.ndarray, comparison: Comparison | None
) -> ArmAnswer:
    done, failed, pruned = found.trainings[arm], found.failed[arm], found.results.arms[arm].pruned
    complete, going = found.complete[arm], found.course is not None and arm in found.course.going
    return ArmAnswer(
        arm=found.results.arms[arm],
        state="pruned" if pruned else "complete" if complete else "failed" if failed else "incomplete",
        trained=len(done),
        failed=failed,
        expected=len(done) + failed if pruned else found.expected[arm],
        reason=next((failure.reason for failure in found.failures if failure.arm == arm), ""),
        dice=dice,
        iou=iou,
        means={name: float(np.mean([table[arm][slot] for slot in done])) for name, table in found.scores.items()}
        if complete
        else {},
        comparison=comparison,
        columns=found.columns[arm] if found.columns[arm] < dice.size and not going else None,
    )


def _seed_std(dice: np.ndarray) -> float:
    """Over the seeds of a fold, (arms, repeats, folds, seeds), pooled over the arms that have several."""
    cells = dice.reshape(-1, dice.shape[3])
    numbers = np.count_nonzero(~np.isnan(cells), axis=1)
    cells, numbers = cells[numbers > 1], numbers[numbers > 1]
    return float(np.sqrt((np.nanvar(cells, axis=1) * numbers).sum() / (numbers - 1).sum())) if len(cells) else math.nan


def _table(found: Gathered) -> Compared | None:
    """The arms that can be compared, in one table; None where it is too small."""
    results, dice = found.results, found.scores["dice"]
    table = np.where(np.array(found.usable)[:, None, None], dice.reshape(len(dice), -1, dice.shape[3]), np.nan)
    if table.shape[0] < 2 or table.shape[1] < 2:
        return None
    shares = [arm.test_share or results.test_share for arm in results.arms]
    references = [arm.reference for arm in results.arms]
    compared = compare(table, shares, references, margin=results.margin, further=results.dropped)
    if results.contrasts:  # are what they were beforehand, whatever the arms are compared with now
        stated = compare(
            table, shares, results.stated or references, contrasts=results.contrasts, margin=results.margin
        )
        compared = dataclasses.replace(compared, contrasts=stated.contrasts)
    if found.course is None:
        return compared
    # Each arm as it was when it was looked at last.
    own = {i: told for i, told in found.course.told.items() if i not in found.course.going}
    return dataclasses.replace(compared, arms=tuple(own.get(i, ArmComparison()) for i in range(len(table))))


def _gained(results: Results, table: Compared) -> float:
    """By what share the further seeds of references have narrowed the standard error of the comparisons, the median."""
    columns = results.folds * results.repeats
    ratios = [
        told.standard_error / table.std / math.sqrt(2 / columns + 2 * results.test_share)
        for told, arm in zip(table.arms, results.arms, strict=True)
        if results.arms[arm.reference].seeds and told.pooled and told.folds == columns and table.std > 0
    ]
    return max(0.0, 1 - float(np.median(ratios))) if ratios else 0.0


def _compare(found: Gathered, table: Compared, dice: np.ndarray) -> dict[int, Comparison]:
    """The comparisons by arm; `dice`: float64 (arms, repeats, folds)."""
    results, trainings = found.results, found.trainings
    pairs = [(i, arm.reference) for i, arm in enumerate(results.arms) if not math.isnan(table.arms[i].difference)]
    shares = [results.arms[i].test_share or results.test_share for i, _ in pairs]
    tests = [_paired(dice[i] - dice[reference], share) for (i, reference), share in zip(pairs, shares, strict=True)]
    adjusted = holm([*(test.p for test in tests), *[1.0] * results.dropped])[: len(tests)]
    used = {i for pair in pairs for i in pair}
    names = {image for i in used for training in trainings[i].values() for image in training.images}
    position = {image: i for i, image in enumerate(sorted(names))}
    groups = None if results.groups is None else [results.groups[image] for image in position]
    by_image = {i: _by_image(trainings[i], position) for i in used}
    comparisons = {}
    for (i, reference), share, test, p in zip(pairs, shares, tests, adjusted, strict=True):
        told = table.arms[i]
        comparisons[i] = Comparison(
            table=told,
            test=test,
            holm_p=float(p),
            images=paired_bootstrap(by_image[i] - by_image[reference], groups),
            needed=_needed(results, table, i, share),
        )
    return comparisons


def _paired(differences: np.ndarray, share: float) -> PairedTest:
    return corrected_paired_test(differences[~np.isnan(differences)], share)


def _needed(results: Results, table: Compared, arm: int, share: float) -> Needed:
    """What would tell an arm that is not told, by the same comparison."""
    told: ArmComparison = table.arms[arm]
    if told.adjusted_p < LEVEL:
        return Needed()
    compared = sum(not math.isnan(other.difference) for other in table.arms) + results.dropped
    reference = results.arms[arm].reference
    seeds = len(results.seeds_of(reference)) / len(results.seeds_of(arm))
    design = Design(compared, results.folds, results.repeats, max(1.0, seeds), share)
    own = {*table.apart, *table.noisy}
    spread = [max(table.std, table.spread[one]) if one in own else table.std for one in (arm, reference)]
    return design.needed(told.difference, math.hypot(*spread) / math.sqrt(2))


def _by_image(trainings: Mapping[Slot, Training], position: Mapping[str, int]) -> np.ndarray:
    """Mean Dice of each image over repeats and seeds, float64 (images,); NaN where it is undefined."""
    total, number = np.zeros(len(position)), np.zeros(len(position))
    for training in trainings.values():
        values = np.array(list(training.images.values()))
        places = np.array([position[image] for image in training.images], np.int64)
        defined = ~np.isnan(values)
        np.add.at(total, places[defined], values[defined])
        np.add.at(number, places[defined], 1)
    return np.divide(total, number, out=np.full(len(position), np.nan), where=number > 0)
