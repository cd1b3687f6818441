"""Does dropout help on these data, where, how much, and how sure is that: each arm beside its reference.

What comes in are the numbers of finished trainings and what goes out are comparisons and sentences. Neither TensorFlow
nor Keras is imported.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..scoring.statistics import (
    Needed,
    corrected_paired_test,
    holm,
    needed_to_tell,
    paired_bootstrap,
    pooled_std,
)
from .answers import LEVEL, Answer, ArmAnswer, Comparison
from .results import MEASURES, Failure, Results, Training, best_arm
from .wording import about_the_arms, about_the_sweep, headline


def answer(results: Results) -> Answer:
    """Compare every complete arm with its reference.

    Seeds are averaged within a fold first. An arm is complete when every fold, repeat and seed is finished; only
    complete arms are compared, and only with a complete reference.

    Args:
        results: the trainings so far; those of folds, repeats and seeds beyond its own are not looked at.
    """
    seeds = {seed: i for i, seed in enumerate(results.seeds)}
    shape = results.repeats, results.folds, len(seeds)
    trainings: list[dict[tuple[int, int, int], Training]] = [{} for _ in results.arms]
    scores = {name: np.full((len(results.arms), *shape), np.nan) for name in MEASURES}
    failures = {_slot(failure): failure for failure in results.failures if _belongs(failure, results)}
    for training in results.trainings:
        if _belongs(training, results):
            failures.pop(_slot(training), None)
            key = training.repeat, training.fold, seeds[training.seed]
            trainings[training.arm][key] = training
            for name, table in scores.items():
                table[(training.arm, *key)] = getattr(training, name)
    scores["gap"] = scores.pop("train_dice") - scores["dice"]
    by_fold = {name: scores[name].mean(axis=3) for name in ("dice", "iou")}

    failed = Counter(failure.arm for failure in failures.values())
    reasons = {failure.arm: failure.reason for failure in reversed(failures.values())}
    complete = [
        len(done) == math.prod(shape) and not arm.pruned for arm, done in zip(results.arms, trainings, strict=True)
    ]
    finished = [training for done in trainings for training in done.values()]
    blank = [training for training in finished if training.learnt_nothing]
    nothing = len(blank) == len(finished)  # is learnt: the differences are those of noise
    comparisons = {} if nothing else _compare(results, complete, by_fold["dice"], trainings)
    arms = [
        ArmAnswer(
            arm=arm,
            state="pruned" if arm.pruned else "complete" if complete[i] else "failed" if failed[i] else "incomplete",
            trained=len(trainings[i]),
            failed=failed[i],
            expected=len(trainings[i]) + failed[i] if arm.pruned else math.prod(shape),
            reason=reasons.get(i, ""),
            dice=by_fold["dice"][i],
            iou=by_fold["iou"][i],
            means={name: float(table[i].mean()) for name, table in scores.items()} if complete[i] else {},
            comparison=comparisons.get(i),
        )
        for i, arm in enumerate(results.arms)
    ]
    candidates = [
        (scores["dice"][i].ravel().tolist() if complete[i] else [], arm.rate) for i, arm in enumerate(results.arms)
    ]
    images = {image for training in finished for image in training.images}
    without_words = Answer(
        results=results,
        arms=arms,
        chosen=best_arm(candidates),
        failures=list(failures.values()),
        independent=len(images if results.groups is None else {results.groups[image] for image in images}),
        fold_std=pooled_std(by_fold["dice"][complete].reshape(sum(complete), results.repeats * results.folds)),
        seed_std=pooled_std(scores["dice"][complete]),
        blank=blank,
        rising=[training for training in finished if training.rising],
    )
    return dataclasses.replace(
        without_words,
        headline=headline(without_words),
        about_the_sweep=about_the_sweep(without_words),
        about_the_arms=about_the_arms(without_words),
    )


def _compare(
    results: Results,
    complete: Sequence[bool],
    dice: np.ndarray,
    trainings: Sequence[Mapping[tuple[int, int, int], Training]],
) -> dict[int, Comparison]:
    """The comparisons by arm; `dice`: float64 (arms, repeats, folds)."""
    pairs = [
        (i, arm.reference)
        for i, arm in enumerate(results.arms)
        if i != arm.reference
        and complete[i]
        and not np.isnan(dice[[i, arm.reference]]).any()  # as it is where a training is missing
    ]
    differences = [(dice[i] - dice[reference]).ravel() for i, reference in pairs]
    shares = [results.arms[i].test_share or results.test_share for i, _ in pairs]
    tests = [corrected_paired_test(values, share) for values, share in zip(differences, shares, strict=True)]
    adjusted = holm([*(test.p for test in tests), *[1.0] * results.dropped])[: len(tests)]
    # Holm's procedure is done with those that are told, and multiplies the next by the number of the others.
    family = max(1, results.dropped + int(np.count_nonzero(adjusted >= LEVEL)))
    used = {i for pair in pairs for i in pair}
    names = {image for i in used for training in trainings[i].values() for image in training.images}
    position = {image: i for i, image in enumerate(sorted(names))}
    groups = None if results.groups is None else [results.groups[image] for image in position]
    by_image = {i: _by_image(results, trainings[i], position) for i in used}
    comparisons = {}
    for (i, reference), values, share, test, p in zip(pairs, differences, shares, tests, adjusted, strict=True):
        paired = (by_image[i] - by_image[reference]).reshape(results.repeats * len(results.seeds), len(position))
        number = np.count_nonzero(~np.isnan(paired), axis=0)
        means = np.divide(np.nansum(paired, axis=0), number, out=np.full(len(position), np.nan), where=number > 0)
        comparisons[i] = Comparison(
            difference=float(values.mean()),
            test=test,
            adjusted_p=float(p),
            images=paired_bootstrap(means, groups),
            verdict=("helps" if test.mean > 0 else "hurts") if p < LEVEL else "cannot be told",
            needed=needed_to_tell(values, share, results.folds, family)
            if p >= LEVEL and results.folds > 1
            else Needed(),
        )
    return comparisons


def _belongs(attempt: Training | Failure, results: Results) -> bool:
    """Whether it is of a fold, repeat and seed that the sweep asks for."""
    return attempt.repeat < results.repeats and attempt.fold < results.folds and attempt.seed in results.seeds


def _slot(attempt: Training | Failure) -> tuple[int, int, int, int]:
    return attempt.arm, attempt.repeat, attempt.fold, attempt.seed


def _by_image(
    results: Results, trainings: Mapping[tuple[int, int, int], Training], position: Mapping[str, int]
) -> np.ndarray:
    """Dice of each image, float64 (repeats, seeds, images); NaN where it is undefined."""
    table = np.full((results.repeats, len(results.seeds), len(position)), np.nan)
    for (repeat, _, seed), training in trainings.items():
        table[repeat, seed, [position[image] for image in training.images]] = list(training.images.values())
    return table
