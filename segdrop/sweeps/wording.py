"""A sweep's answer in words."""

import math

from ..config.train import DROPOUT_KINDS
from .answers import LEVEL, Answer, Comparison
from .results import Arm, Results


def headline(answer: Answer) -> str:
    """The answer in one sentence."""
    text = _verdict(answer)
    if answer.trained + len(answer.failures) < answer.expected:
        return f"So far, with {answer.trained} of {answer.expected} trainings done, {text}"
    return capital(text)


def _verdict(answer: Answer) -> str:
    compared = [(arm_answer.arm, arm_answer.comparison) for arm_answer in answer.arms if arm_answer.comparison]
    better = sorted((pair for pair in compared if pair[1].verdict == "helps"), key=lambda pair: -pair[1].difference)
    worse = sorted((pair for pair in compared if pair[1].verdict == "hurts"), key=lambda pair: pair[1].difference)
    if answer.nothing_learnt:
        best = max(answer.blank, key=lambda training: training.dice)
        return (
            "nothing was learnt, so that nothing can be told of dropout: the best validation Dice of all trainings is "
            f"{best.dice:.3f}, and one class for all pixels of these images has {best.constant_dice:.3f}; train "
            "longer, try another learning rate, and look whether the masks belong to their images."
        )
    if not compared:
        return "there is no answer: no setting with dropout is complete together with its reference without."
    if better:
        arm, comparison = better[0]
        more = f", and {len(better) - 1} more of {len(compared)} settings help" if better[1:] else ""
        harm = f"; {len(worse)} of {len(compared)} settings hurt" if worse else ""
        return f"dropout helps on these data: {_phrase(arm)} raises Dice by {_size(comparison)}{more}{harm}."
    if worse:
        arm, comparison = worse[0]
        start = "dropout hurts on these data" if len(worse) == len(compared) else "no dropout is shown to help"
        more = f", and {len(worse) - 1} more of {len(compared)} settings hurt" if worse[1:] else ""
        return f"{start}: {_phrase(arm)} lowers Dice by {_size(comparison)}{more}."
    arm, comparison = max(compared, key=lambda pair: abs(pair[1].difference))
    start = "whether dropout helps on these data cannot be told"
    size = f"{comparison.difference:+.3f}{_interval(comparison)}"
    if len(compared) == 1:
        return f"{start}: with {_phrase(arm)} the difference of Dice is {size}."
    return (
        f"{start} for any of {len(compared)} settings: the largest difference of Dice, with {_phrase(arm)}, is {size}."
    )


def about_the_sweep(answer: Answer) -> list[str]:
    """What there is to say of the sweep beside the headline."""
    results = answer.results
    done = "All" if answer.trained == answer.expected else f"{answer.trained} of"
    said = [
        f"{done} {answer.expected} trainings are done{f', {len(answer.failures)} failed' if answer.failures else ''}."
    ]
    missing = [
        f"{arm_answer.arm.name} ({arm_answer.progress})"
        for arm_answer in answer.arms
        if arm_answer.state in ("incomplete", "failed")
    ]
    if missing:
        said.append(f"Not compared until they are complete: {'; '.join(missing)}.")
    if results.dropped:
        said.append(f"Dropped by the search after the first fold, and not compared: {count(results.dropped, 'arm')}.")
    undefined = [
        arm_answer.arm.name for arm_answer in answer.arms if arm_answer.means and math.isnan(arm_answer.means["dice"])
    ]
    if undefined:
        said.append(f"Not compared, as the Dice of a fold is undefined: {'; '.join(undefined)}.")
    if answer.blank and not answer.nothing_learnt:
        said.append(
            f"Nothing was learnt in {len(answer.blank)} of {answer.trained} trainings: their Dice is hardly above that "
            "of one class for all pixels."
        )
    if answer.rising:
        said.append(
            f"In {len(answer.rising)} of {answer.trained} trainings the best epoch is the last: they were still "
            "improving, and more epochs may change the answer."
        )
    if answer.chosen is not None:
        best = answer.arms[answer.chosen]
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
    if not math.isnan(answer.seed_std):
        folds = "" if math.isnan(answer.fold_std) else f" and of {answer.fold_std:.3f} over the folds of an arm"
        said.append(f"Dice has a standard deviation of {answer.seed_std:.3f} over the seeds of a fold{folds}.")
    return said


def about_the_arms(answer: Answer) -> list[str]:
    """A sentence or more for each comparison."""
    said = []
    for arm_answer in answer.arms:
        if arm_answer.comparison is None:
            continue
        phrase, verdict, needed = _phrase(arm_answer.arm), arm_answer.comparison.verdict, arm_answer.comparison.needed
        if verdict != "cannot be told":
            direction = "higher" if verdict == "helps" else "lower"
            said.append(f"{capital(phrase)} {verdict}: Dice is {direction} by {_size(arm_answer.comparison)}.")
            continue
        text = f"Whether {phrase} helps cannot be told from {_folds(answer.results)}: the difference is "
        text += f"{arm_answer.comparison.difference:.3f}{_interval(arm_answer.comparison)}."
        if math.isnan(arm_answer.comparison.test.p):
            text += " Chance shows in the spread of two folds at least."
        elif arm_answer.comparison.test.p < LEVEL:
            text += " By itself it would be told; among the comparisons of this sweep it is not."
        as_now = " If difference and spread stay as they are,"
        if needed.repeats is not None:
            repeats = f"{needed.repeats} repeats of the cross-validation instead of {answer.results.repeats}"
            text += f"{as_now} {repeats} would be needed to tell."
        if needed.patients_factor is not None:
            patients = _patients(answer, needed.patients_factor)
            text += f"{as_now} no number of repeats can tell it; {patients} would be needed."
        said.append(text)
    return said


def _patients(answer: Answer, factor: float) -> str:
    what = "images" if answer.results.groups is None else "patients"
    if factor > 100:
        return f"more than 100 times as many {what}"
    times = f"{factor:.2g}" if factor < 10 else f"{factor:.0f}"
    then = float(f"{factor * answer.independent:.3g}")
    return f"about {times} times as many {what} (about {then:.0f} instead of {answer.independent})"


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


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
