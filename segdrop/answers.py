"""The answer of a sweep: does dropout help on these data, where, how much, and how sure is that.

What comes in are the numbers of finished trainings and what goes out are comparisons and sentences. Neither TensorFlow
nor Keras is imported.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .config import DROPOUT_KINDS
from .statistics import Needed, PairedTest, corrected_paired_test, holm, needed_to_tell, paired_bootstrap, pooled_std

LEVEL = 0.05  # of the adjusted p value
SCORES = ("dice", "iou", "train_dice", "ece", "ece_foreground", "brier", "best_epoch", "epochs", "seconds")


@dataclass(frozen=True)
class Arm:
    """One configuration of a sweep, trained on the same folds, repeats and seeds as all others.

    Attributes:
        name: as the user reads it, e.g. "none", "spatial 0.2", "element 0.2 at block_end", "spatial 0.2, lr=0.0003".
        rate: the dropout rate, 0 <= rate < 1; None where it is not one number.
        curve: what the plot joins by a line: the name without the rate, e.g. "spatial", "element at block_end".
        reference: the index of the arm of rate 0 that has the same other settings; of an arm of rate 0 its own.
        changes: the fields of the training configuration that the arm sets.
        pruned: whether a search dropped it after its first fold: it is listed and never compared.
        test_share: images of validation for one of training, where it trains on fewer than the sweep's other arms.
    """

    name: str
    rate: float | None
    curve: str
    reference: int
    changes: Mapping[str, object]
    pruned: bool = False
    test_share: float | None = None


@dataclass(frozen=True)
class Training:
    """The scores of one finished training, of its best epoch, in 0..1.

    Attributes:
        arm: index of the arm.
        repeat, fold: which repeat of the cross-validation and which of its folds, counted from 0.
        seed: the seed itself.
        dice, iou: on the validation images of the fold.
        train_dice: of the same model on as many training images, with dropout off.
        best_epoch: counted from 0.
        epochs: how many were trained.
        seconds: how long that took.
        ece, ece_foreground, brier: calibration on the validation images: expected calibration error over all pixels
            and over those near the foreground, and Brier score.
        images: Dice of each validation image, the mean of its foreground classes; NaN where undefined.
    """

    arm: int
    repeat: int
    fold: int
    seed: int
    dice: float
    iou: float
    train_dice: float
    best_epoch: int
    epochs: int
    seconds: float
    ece: float
    ece_foreground: float
    brier: float
    images: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """A training that ended with an error; `reason` is one sentence."""

    arm: int
    repeat: int
    fold: int
    seed: int
    reason: str


@dataclass(frozen=True)
class Results:
    """The finished trainings of a sweep.

    Attributes:
        title: the name of the sweep.
        facts: what the answer shows as a small table: data, images, groups, epochs, device.
        arms: all configurations, one at least of rate 0.
        folds, repeats: of the cross-validation.
        seeds: trained in every fold.
        test_share: images of validation for one of training, the mean over folds, of arms that train on all.
        trainings: those that are finished, in any order; of several of the same arm, repeat, fold and seed the last
            counts.
        failures: those that ended with an error; one that has succeeded since does not count.
        groups: what stays together in a split, by image; None if each image stands for itself.
        test: the scores of the chosen arm on test data: dice, dice_interval, iou, iou_interval (pairs, or None),
            images (their number) and what (a phrase that says what was scored); None if there are none.
    """

    title: str
    facts: Mapping[str, str]
    arms: Sequence[Arm]
    folds: int
    repeats: int
    seeds: Sequence[int]
    test_share: float
    trainings: Sequence[Training]
    failures: Sequence[Failure]
    groups: Mapping[str, str] | None
    test: Mapping | None = None

    @property
    def dropped(self) -> int:
        """The number of arms that a search dropped for their first fold: looked at, and so among the comparisons."""
        return sum(arm.pruned for arm in self.arms)


@dataclass(frozen=True, eq=False)
class Comparison:
    """An arm beside its reference.

    Attributes:
        difference: of the mean Dice, positive where the arm is better.
        test: `statistics.corrected_paired_test` of the differences of the folds; NaN where there is but one fold.
        adjusted_p: its p value, adjusted by Holm's procedure for all comparisons of the sweep and for its pruned arms.
        images: the mean difference of the images and its 95% interval over groups of images, for the networks as they
            were trained.
        verdict: "helps" or "hurts" where `adjusted_p` is below 0.05, else "cannot be told".
        needed: what would make this test and all that are not yet significant and have smaller p values significant.
    """

    difference: float
    test: PairedTest
    adjusted_p: float
    images: tuple[float, float, float]
    verdict: str
    needed: Needed


@dataclass(frozen=True, eq=False)
class ArmAnswer:
    """What is known of an arm.

    Attributes:
        arm: its description.
        state: "complete" if all its trainings are finished, else "failed" (one at least ended with an error),
            "incomplete" or "pruned".
        trained, failed, expected: the number of finished trainings, of those that ended with an error, and of all.
        reason: of its first failure; "" if it has none.
        dice, iou: float64 (repeats, folds), means over the seeds; NaN where not all seeds are finished.
        means: of a complete arm the means over all trainings of "dice", "iou", "gap" (Dice on training images less that
            on validation images), "ece", "ece_foreground", "brier", "best_epoch" (counted from 0), "epochs" and
            "seconds"; empty for others.
        comparison: None for an arm of rate 0, and unless it and its reference are complete and all their Dice defined.
    """

    arm: Arm
    state: str
    trained: int
    failed: int
    expected: int
    reason: str
    dice: np.ndarray
    iou: np.ndarray
    means: Mapping[str, float]
    comparison: Comparison | None

    @property
    def progress(self) -> str:
        """The state as it is told, with the number of trainings that are there of an arm that is not complete."""
        if self.state in ("complete", "pruned"):
            return {"complete": "complete", "pruned": "dropped after a fold"}[self.state]
        return f"{self.trained} of {self.expected} trained" + (f", {self.failed} failed" if self.failed else "")


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a sweep, made by `answer`.

    Attributes:
        results: what it was made from.
        arms: in the order of the sweep.
        chosen: index of the complete arm with the highest mean Dice (of equal ones that with the lower rate, then the
            first); None if there is none.
        failures: those of trainings that have not succeeded since.
        independent: the number of groups of validation images, or of images where there are no groups.
        fold_std, seed_std: standard deviation of Dice over the folds of an arm (seeds averaged) and over the seeds of a
            fold, pooled over the complete arms; NaN where there are fewer than two.
    """

    results: Results
    arms: Sequence[ArmAnswer]
    chosen: int | None
    failures: Sequence[Failure]
    independent: int
    fold_std: float
    seed_std: float

    @property
    def trained(self) -> int:
        """The number of finished trainings."""
        return sum(one.trained for one in self.arms)

    @property
    def expected(self) -> int:
        """The number of all trainings; of pruned arms those that have ended."""
        return sum(one.expected for one in self.arms)

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        text = _headline(self)
        if self.trained + len(self.failures) < self.expected:
            return f"So far, with {self.trained} of {self.expected} trainings done, {text}"
        return _capital(text)

    @property
    def about_the_sweep(self) -> list[str]:
        """What there is to say of the sweep beside the headline."""
        return _about_the_sweep(self)

    @property
    def about_the_arms(self) -> list[str]:
        """A sentence or more for each comparison."""
        return _about_the_arms(self)

    @property
    def sentences(self) -> list[str]:
        """What there is to say beside the headline."""
        return [*self.about_the_sweep, *self.about_the_arms]


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
    scores = {name: np.full((len(results.arms), *shape), np.nan) for name in SCORES}
    failures = {_slot(one): one for one in results.failures if _listed(one, results)}
    for one in results.trainings:
        if _listed(one, results):
            failures.pop(_slot(one), None)
            key = one.repeat, one.fold, seeds[one.seed]
            trainings[one.arm][key] = one
            for name, table in scores.items():
                table[(one.arm, *key)] = getattr(one, name)
    scores["gap"] = scores.pop("train_dice") - scores["dice"]
    by_fold = {name: scores[name].mean(axis=3) for name in ("dice", "iou")}

    failed = Counter(one.arm for one in failures.values())
    reasons = {one.arm: one.reason for one in reversed(failures.values())}
    complete = [
        len(done) == math.prod(shape) and not arm.pruned for arm, done in zip(results.arms, trainings, strict=True)
    ]
    comparisons = _compare(results, complete, by_fold["dice"], trainings)
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
    ranked = [
        (-one.means["dice"], math.inf if one.arm.rate is None else one.arm.rate, i)
        for i, one in enumerate(arms)
        if one.means and not math.isnan(one.means["dice"])
    ]
    images = {image for done in trainings for one in done.values() for image in one.images}
    return Answer(
        results=results,
        arms=arms,
        chosen=min(ranked)[-1] if ranked else None,
        failures=list(failures.values()),
        independent=len(images if results.groups is None else {results.groups[image] for image in images}),
        fold_std=pooled_std(by_fold["dice"][complete].reshape(sum(complete), results.repeats * results.folds)),
        seed_std=pooled_std(scores["dice"][complete]),
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
    tests = [corrected_paired_test(one, share) for one, share in zip(differences, shares, strict=True)]
    adjusted = holm([*(test.p for test in tests), *[1.0] * results.dropped])[: len(tests)]
    # Holm's procedure is done with those that are told, and multiplies the next by the number of the others.
    family = max(1, results.dropped + int(np.count_nonzero(adjusted >= LEVEL)))
    used = {i for pair in pairs for i in pair}
    names = {image for i in used for one in trainings[i].values() for image in one.images}
    position = {image: i for i, image in enumerate(sorted(names))}
    groups = None if results.groups is None else [results.groups[image] for image in position]
    by_image = {i: _by_image(results, trainings[i], position) for i in used}
    found = {}
    for (i, reference), values, share, test, p in zip(pairs, differences, shares, tests, adjusted, strict=True):
        paired = (by_image[i] - by_image[reference]).reshape(results.repeats * len(results.seeds), len(position))
        number = np.count_nonzero(~np.isnan(paired), axis=0)
        means = np.divide(np.nansum(paired, axis=0), number, out=np.full(len(position), np.nan), where=number > 0)
        found[i] = Comparison(
            difference=float(values.mean()),
            test=test,
            adjusted_p=float(p),
            images=paired_bootstrap(means, groups),
            verdict=("helps" if test.mean > 0 else "hurts") if p < LEVEL else "cannot be told",
            needed=needed_to_tell(values, share, results.folds, family)
            if p >= LEVEL and results.folds > 1
            else Needed(),
        )
    return found


def _listed(one: Training | Failure, results: Results) -> bool:
    return one.repeat < results.repeats and one.fold < results.folds and one.seed in results.seeds


def _slot(one: Training | Failure) -> tuple[int, int, int, int]:
    return one.arm, one.repeat, one.fold, one.seed


def _by_image(
    results: Results, trainings: Mapping[tuple[int, int, int], Training], position: Mapping[str, int]
) -> np.ndarray:
    """Dice of each image, float64 (repeats, seeds, images); NaN where it is undefined."""
    table = np.full((results.repeats, len(results.seeds), len(position)), np.nan)
    for (repeat, _, seed), one in trainings.items():
        table[repeat, seed, [position[image] for image in one.images]] = list(one.images.values())
    return table


def _headline(found: Answer) -> str:
    compared = [(one.arm, one.comparison) for one in found.arms if one.comparison]
    better = sorted((pair for pair in compared if pair[1].verdict == "helps"), key=lambda pair: -pair[1].difference)
    worse = sorted((pair for pair in compared if pair[1].verdict == "hurts"), key=lambda pair: pair[1].difference)
    if not compared:
        return "there is no answer: no setting with dropout is complete together with its reference without."
    if better:
        arm, comparison = better[0]
        others = f", and {len(better) - 1} more of {len(compared)} settings help" if better[1:] else ""
        harm = f"; {len(worse)} of {len(compared)} settings hurt" if worse else ""
        return f"dropout helps on these data: {_phrase(arm)} raises Dice by {_size(comparison)}{others}{harm}."
    if worse:
        arm, comparison = worse[0]
        start = "dropout hurts on these data" if len(worse) == len(compared) else "no dropout is shown to help"
        others = f", and {len(worse) - 1} more of {len(compared)} settings hurt" if worse[1:] else ""
        return f"{start}: {_phrase(arm)} lowers Dice by {_size(comparison)}{others}."
    arm, comparison = max(compared, key=lambda pair: abs(pair[1].difference))
    start = "whether dropout helps on these data cannot be told"
    size = f"{comparison.difference:+.3f}{_interval(comparison)}"
    if len(compared) == 1:
        return f"{start}: with {_phrase(arm)} the difference of Dice is {size}."
    return (
        f"{start} for any of {len(compared)} settings: the largest difference of Dice, with {_phrase(arm)}, is {size}."
    )


def _about_the_sweep(found: Answer) -> list[str]:
    results = found.results
    done = "All" if found.trained == found.expected else f"{found.trained} of"
    said = [f"{done} {found.expected} trainings are done{f', {len(found.failures)} failed' if found.failures else ''}."]
    missing = [f"{one.arm.name} ({one.progress})" for one in found.arms if one.state in ("incomplete", "failed")]
    if missing:
        said.append(f"Not compared until they are complete: {'; '.join(missing)}.")
    if results.dropped:
        said.append(f"Dropped by the search after the first fold, and not compared: {count(results.dropped, 'arm')}.")
    undefined = [one.arm.name for one in found.arms if one.means and math.isnan(one.means["dice"])]
    if undefined:
        said.append(f"Not compared, as the Dice of a fold is undefined: {'; '.join(undefined)}.")
    if found.chosen is not None:
        best = found.arms[found.chosen]
        said.append(f'The highest mean Dice, {best.means["dice"]:.3f}, is that of the arm "{best.arm.name}".')
    if results.test is not None:
        scores = []
        for label, key in (("a Dice", "dice"), ("an IoU", "iou")):
            bounds = results.test[f"{key}_interval"]
            interval = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
            scores.append(f"{label} of {results.test[key]:.3f}{interval}")
        said.append(
            f"On {results.test['what']} ({count(results.test['images'], 'image')}) it has {' and '.join(scores)}."
        )
    if not math.isnan(found.seed_std):
        folds = "" if math.isnan(found.fold_std) else f" and of {found.fold_std:.3f} over the folds of an arm"
        said.append(f"Dice has a standard deviation of {found.seed_std:.3f} over the seeds of a fold{folds}.")
    return said


def _about_the_arms(found: Answer) -> list[str]:
    said = []
    for one in found.arms:
        if one.comparison is None:
            continue
        phrase, verdict, needed = _phrase(one.arm), one.comparison.verdict, one.comparison.needed
        if verdict != "cannot be told":
            direction = "higher" if verdict == "helps" else "lower"
            said.append(f"{_capital(phrase)} {verdict}: Dice is {direction} by {_size(one.comparison)}.")
            continue
        text = f"Whether {phrase} helps cannot be told from {_folds(found.results)}: the difference is "
        text += f"{one.comparison.difference:.3f}{_interval(one.comparison)}."
        if math.isnan(one.comparison.test.p):
            text += " Chance shows in the spread of two folds at least."
        elif one.comparison.test.p < LEVEL:
            text += " By itself it would be told; among the comparisons of this sweep it is not."
        as_now = " If difference and spread stay as they are,"
        if needed.repeats is not None:
            repeats = f"{needed.repeats} repeats of the cross-validation instead of {found.results.repeats}"
            text += f"{as_now} {repeats} would be needed to tell."
        if needed.patients_factor is not None:
            patients = _patients(found, needed.patients_factor)
            text += f"{as_now} no number of repeats can tell it; {patients} would be needed."
        said.append(text)
    return said


def _patients(found: Answer, factor: float) -> str:
    what = "images" if found.results.groups is None else "patients"
    if factor > 100:
        return f"more than 100 times as many {what}"
    times = f"{factor:.2g}" if factor < 10 else f"{factor:.0f}"
    then = float(f"{factor * found.independent:.3g}")
    return f"about {times} times as many {what} (about {then:.0f} instead of {found.independent})"


def _phrase(arm: Arm) -> str:
    kind, _, rest = arm.name.partition(" ")
    if kind not in DROPOUT_KINDS:
        return f"the arm {arm.name}"
    rate, _, settings = rest.partition(", ")
    return f"{kind} dropout of {rate}" + (f" ({settings})" if settings else "")


def _size(comparison: Comparison) -> str:
    low, high = sorted(abs(bound) for bound in (comparison.test.low, comparison.test.high))
    return f"{abs(comparison.difference):.3f} (95% interval {low:.3f} to {high:.3f}, {_p(comparison)})"


def _interval(comparison: Comparison) -> str:
    test = comparison.test
    return "" if math.isnan(test.p) else f" (95% interval {test.low:.3f} to {test.high:.3f}, {_p(comparison)})"


def _p(comparison: Comparison) -> str:
    p = comparison.adjusted_p
    return "adjusted p below 0.001" if p < 0.001 else f"adjusted p {p:.3f}"


def _folds(results: Results) -> str:
    folds = count(results.folds, "fold")
    if results.repeats > 1:
        return f"these {results.repeats} repeats of {folds}"
    return "a single fold" if results.folds == 1 else f"these {folds}"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 fold", "3 folds"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
