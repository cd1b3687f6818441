"""A sweep's answer in words."""

import math
from collections.abc import Sequence

from ..config.fields import DROPOUT_KINDS
from ..scoring.comparison import NO_DIFFERENCE, ArmComparison
from .answers import LEVEL, Answer, ArmAnswer, Comparison
from .results import Arm, Results


def headline(answer: Answer) -> str:
    """The answer in one sentence."""
    text = _verdict(answer)
    if answer.trained + len(answer.failures) < answer.expected:
        return f"So far, with {answer.trained} of {answer.expected} trainings done, {text}"
    return capital(text)


def _verdict(answer: Answer) -> str:
    compared = [(one.arm, one.comparison) for one in answer.arms if one.comparison]
    if answer.nothing_learnt:
        best = max(answer.blank, key=lambda training: training.dice)
        return (
            "nothing was learnt, so that nothing can be told of dropout: the best validation Dice of all trainings is "
            f"{best.dice:.3f}, and one class for all pixels of these images has {best.constant_dice:.3f}; train "
            "longer, try another learning rate, and look whether the masks belong to their images."
        )
    if not compared:
        return "there is no answer: no arm is complete together with the one that it is compared with."
    dropout = [pair for pair in compared if pair[0].rate != 0]
    others = [pair for pair in compared if pair[0].rate == 0]
    said = [_of_dropout(answer, dropout)] if dropout else []
    said += [_of_others(answer, others)] if others else []
    return "; ".join(said) + "."


def _of_dropout(answer: Answer, compared: Sequence[tuple[Arm, Comparison]]) -> str:
    """Whether dropout helps, of the arms that have it."""
    number = len(compared)
    better, worse, alike = (_by_size(compared, verdict) for verdict in ("helps", "hurts", NO_DIFFERENCE))
    if better:
        more = f", and {len(better) - 1} more of {number} settings help" if better[1:] else ""
        harm = f"; {len(worse)} of {number} settings hurt" if worse else ""
        return f"dropout helps on these data: {_phrase(better[0][0])} raises Dice by {_size(better[0][1])}{more}{harm}"
    if worse:
        start = "dropout hurts on these data" if len(worse) == number else "no dropout is shown to help"
        more = f", and {len(worse) - 1} more of {number} settings hurt" if worse[1:] else ""
        return f"{start}: {_phrase(worse[0][0])} lowers Dice by {_size(worse[0][1])}{more}"
    margin = f"{answer.results.margin:g}"
    arm, comparison = max(compared, key=lambda pair: abs(pair[1].difference))
    size = f"{comparison.difference:+.3f}{_interval(comparison)}"
    if len(alike) == number:
        which = f"with {_phrase(arm)}" if number == 1 else f"in none of {number} settings"
        text = f"dropout makes no difference of Dice beyond {margin} on these data, {which}"
        return f"{text}: {size}" if number == 1 else f"{text}; the largest, with {_phrase(arm)}, is {size}"
    start = "whether dropout helps on these data cannot be told"
    if number == 1:
        return f"{start}: with {_phrase(arm)} the difference of Dice is {size}"
    largest = f"the largest difference of Dice, with {_phrase(arm)}, is {size}"
    if alike:
        return f"{start} for {number - len(alike)} of {number} settings, and {len(alike)} {_make(len(alike))} no " + (
            f"difference beyond {margin}: {largest}"
        )
    return f"{start} for any of {number} settings: {largest}"


def _of_others(answer: Answer, compared: Sequence[tuple[Arm, Comparison]]) -> str:
    """What else one could do helps, of the arms without dropout."""
    better = _by_size(compared, "helps")
    if better:
        named = " and ".join(f"{_phrase(arm)} raises Dice by {_size(comparison)}" for arm, comparison in better[:2])
        more = f", and {len(better) - 2} more of {len(compared)} help" if better[2:] else ""
        return f"without dropout, {named}{more}"
    return f"of {len(compared)} {_settings(len(compared))} without dropout none is shown to help"


def _by_size(compared: Sequence[tuple[Arm, Comparison]], verdict: str) -> list[tuple[Arm, Comparison]]:
    """Those with the verdict, the largest difference first."""
    found = [pair for pair in compared if pair[1].verdict == verdict]
    return sorted(found, key=lambda pair: -abs(pair[1].difference))


def _make(number: int) -> str:
    return "makes" if number == 1 else "make"


def _settings(number: int) -> str:
    return "setting" if number == 1 else "settings"


def about_the_sweep(answer: Answer) -> list[str]:
    """What there is to say of the sweep beside the headline."""
    results = answer.results
    done = "All" if answer.trained == answer.expected else f"{answer.trained} of"
    said = [
        f"{done} {answer.expected} trainings are done{f', {len(answer.failures)} failed' if answer.failures else ''}."
    ]
    for state, told in (("incomplete", "Not compared until they are complete"), ("failed", "Not all are compared")):
        missing = [f"{one.arm.name} ({one.progress})" for one in answer.arms if one.state == state]
        if missing:
            said.append(f"{told}: {'; '.join(missing)}.")
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
    said += _about_the_comparison(answer)
    return said


def _about_the_comparison(answer: Answer) -> list[str]:
    """What the comparison rests on, where it is not as usual."""
    said, results = [], answer.results
    if results.before:
        said.append(
            f"The sweep was started by segdrop {results.before}, which compared each arm by itself; here all arms are "
            'compared together, and the numbers of then stand under "Each arm by itself".'
        )
    early = [one.arm.name for one in answer.arms if one.columns is not None]
    if early:
        said.append(f"Trained no further, because they were told or could hardly be told any more: {'; '.join(early)}.")
    if answer.apart:
        names = "; ".join(answer.arms[i].arm.name for i in answer.apart)
        said.append(
            f"Dice varies more over the folds than with the other arms: {names}. Their own spread is taken, which "
            "makes their intervals wider."
        )
    for i in answer.noisy:
        said.append(
            f"What others are compared with, {answer.arms[i].arm.name}, varies more over the folds than the other arms "
            "do: its own spread is taken, which makes the intervals wider."
        )
    if answer.gained >= 0.005:
        said.append(
            "What others are compared with was trained with further seeds, which narrowed the intervals by "
            f"{100 * answer.gained:.0f}%."
        )
    return said


def about_the_arms(answer: Answer) -> list[str]:
    """A sentence or more for each comparison."""
    several = len({one.arm.reference for one in answer.arms if one.comparison}) > 1
    said = []
    for one in answer.arms:
        if one.comparison is None:
            continue
        phrase, comparison = _phrase(one.arm), one.comparison
        if several or answer.arms[one.arm.reference].arm.rate != 0:
            phrase += f", compared with {_phrase(answer.arms[one.arm.reference].arm)},"
        if comparison.verdict in ("helps", "hurts"):
            direction = "higher" if comparison.verdict == "helps" else "lower"
            text = f"{capital(phrase)} {comparison.verdict}: Dice is {direction} by {_size(comparison)}."
        elif comparison.verdict == NO_DIFFERENCE:
            text = f"{capital(phrase)} makes no difference beyond {answer.results.margin:g}: "
            text += f"{comparison.difference:+.3f}{_interval(comparison)}."
        else:
            text = f"Whether {phrase} helps cannot be told from {_folds(answer.results)}: the difference is "
            text += f"{comparison.difference:+.3f}{_interval(comparison)}, {_chances(answer, comparison)}."
            text += _what_would_tell(answer, comparison)
        said.append(text + _on_what(answer, one))
    said += [_contrast(answer, name, told) for name, told in answer.contrasts.items()]
    unit = "images" if answer.results.groups is None else "patients"
    for i, worth in answer.worths.items():
        phrase = capital(_phrase(answer.arms[i].arm))
        said.append(f"{phrase} is {worth.in_words(unit)}, by the learning curve of what it is compared with.")
    return said


def _what_would_tell(answer: Answer, comparison: Comparison) -> str:
    needed, text = comparison.needed, ""
    if comparison.table.p < LEVEL:
        text = " By itself it would be told; among the comparisons of this sweep it is not."
    as_now = " If difference and spread stay as they are,"
    if needed.repeats is not None:
        repeats = f"{needed.repeats} repeats of the cross-validation instead of {answer.results.repeats}"
        text += f"{as_now} {repeats} would be needed to tell."
    if needed.patients_factor is not None:
        patients = _patients(answer, needed.patients_factor)
        text += f"{as_now} no number of repeats can tell it; {patients} would be needed."
    return text


def _on_what(answer: Answer, one: ArmAnswer) -> str:
    """Where an arm is not compared as the others are."""
    text = ""
    if one.failed:
        columns = answer.results.folds * answer.results.repeats
        text += (
            f" {capital(count(one.failed, 'training'))} of it failed: it is compared on {one.comparison.table.folds} "
        )
        text += f"of {columns} folds."
    if not one.comparison.table.pooled:
        text += " Its Dice varies more than the others' do, so that its own spread is taken."
    return text


def _contrast(answer: Answer, name: str, told: ArmComparison) -> str:
    interval = f"[{told.simultaneous_low:+.3f}, {told.simultaneous_high:+.3f}]"
    return (
        f"Stated beforehand: {name}: {told.difference:+.3f} {interval}, p {_p_text(told.adjusted_p)}: {told.verdict}."
    )


def _chances(answer: Answer, comparison: Comparison) -> str:
    """The probabilities of the three answers, in words."""
    told, margin = comparison.table, f"{answer.results.margin:g}"
    shares = (f"{100 * share:.0f}%" for share in (told.helps, told.equal, told.hurts))
    return "with a probability of {} above {margin}, {} within, {} below".format(*shares, margin=margin)


def _patients(answer: Answer, factor: float) -> str:
    what = "images" if answer.results.groups is None else "patients"
    if factor > 100:
        return f"more than 100 times as many {what}"
    times = f"{factor:.2g}" if factor < 10 else f"{factor:.0f}"
    then = float(f"{factor * answer.independent:.3g}")
    return f"about {times} times as many {what} (about {then:.0f} instead of {answer.independent})"


def _phrase(arm: Arm) -> str:
    kind, _, rest = arm.name.partition(" ")
    if arm.rate == 0 and not arm.changes:
        return "no dropout"
    if kind not in DROPOUT_KINDS:
        return arm.name.removeprefix("none, ")
    rate, _, settings = rest.partition(", ")
    return f"{kind} dropout of {rate}" + (f" ({settings})" if settings else "")


def _size(comparison: Comparison) -> str:
    told = comparison.table
    low, high = sorted(abs(bound) for bound in (told.simultaneous_low, told.simultaneous_high))
    return f"{abs(comparison.difference):.3f} (95% interval {low:.3f} to {high:.3f}, {_p(comparison)})"


def _interval(comparison: Comparison) -> str:
    told = comparison.table
    return f" (95% interval {told.simultaneous_low:.3f} to {told.simultaneous_high:.3f}, {_p(comparison)})"


def _p(comparison: Comparison) -> str:
    return f"adjusted p {_p_text(comparison.adjusted_p)}"


def _p_text(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _folds(results: Results) -> str:
    folds = count(results.folds, "fold")
    if results.repeats > 1:
        return f"these {results.repeats} repeats of {folds}"
    return f"these {folds}"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 fold", "3 folds"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
