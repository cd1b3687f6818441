"""The answer of a sweep as tables, as answer.md, answer.csv and dice.png. Neither TensorFlow nor Keras is imported."""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import write_atomically, write_csv
from ..scoring.comparison import ArmComparison
from ..scoring.statistics import pooled_std
from ..show.scores import difference_in_words
from ..show.tables import Table
from .answers import LEVEL, Answer, ArmAnswer
from .results import MEASURES
from .wording import count

MARKDOWN, CSV, PLOT = "answer.md", "answer.csv", "dice.png"
_NONE = "–"


@dataclass(frozen=True)
class Section:
    """A heading of the answer, and what stands below it: a text, tables and a list of sentences."""

    title: str
    text: str = ""
    tables: Sequence[Sequence[Mapping[str, str]]] = ()
    sentences: Sequence[str] = ()


def tables(answer: Answer) -> list[Table]:
    """The answer as tables for a terminal of 100 columns: facts, arms, training and calibration, failures."""
    columns = ("difference", "adjusted p", "verdict")
    arms = []
    for row, arm_answer in zip(_arms(answer), answer.arms, strict=True):
        difference = _difference(answer, arm_answer)
        arms.append({"arm": row["arm"], "Dice": row["Dice"], **{key: difference[key] for key in columns}})
    all_tables = [
        Table([{"sweep": name, "": value} for name, value in answer.results.facts.items()], answer.results.title),
        Table(
            arms, "Validation Dice, mean ± standard deviation over folds; difference [95% interval, of all together]"
        ),
        Table(_training(answer), "Means over the trainings of an arm"),
        Table(_failures(answer), "Failed trainings"),
    ]
    return [table for table in all_tables if table]


def write_answer(folder: Path, answer: Answer) -> Path:
    """Write answer.md, for people, answer.csv, for programs, and dice.png; return the path of the first.

    answer.csv has one row for each arm with all numbers in all digits, cells that are empty where there is none, and
    epochs counted from 0. dice.png is written once an arm with dropout is complete.

    Args:
        folder: exists; files of these names are replaced.
    """
    from ..show import plots  # with Matplotlib, which tables in a terminal do not need

    complete = [arm_answer for arm_answer in answer.arms if arm_answer.state == "complete"]
    plotted = any(arm_answer.arm.rate != 0 for arm_answer in complete)
    if plotted:
        figure = plots.dice_by_rate([_point(arm_answer) for arm_answer in complete])
        write_atomically(folder / PLOT, lambda path: figure.savefig(path, dpi=120))
    write_csv(folder / CSV, [_csv_row(answer, i) for i in range(len(answer.arms))])
    text = _markdown(answer, plotted)
    write_atomically(folder / MARKDOWN, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / MARKDOWN


def _arms(answer: Answer) -> list[dict[str, str]]:
    rows = []
    for arm_answer in answer.arms:
        row = {"arm": arm_answer.arm.name}
        for title, name in (("Dice", "dice"), ("IoU", "iou")):
            std = pooled_std(getattr(arm_answer, name).reshape(1, -1))
            row[title] = (
                f"{arm_answer.means[name]:.3f}" + ("" if math.isnan(std) else f" ± {std:.3f}")
                if arm_answer.means
                else _NONE
            )
        rows.append({**row, "state": arm_answer.progress})
    return rows


def _difference(answer: Answer, arm_answer: ArmAnswer) -> dict[str, str]:
    """A row of the table of differences; without numbers where there is no comparison."""
    several = len({other.arm.reference for other in answer.arms}) > 1
    comparison = arm_answer.comparison
    row = {
        "arm": arm_answer.arm.name,
        **({"from": answer.arms[arm_answer.arm.reference].arm.name} if several else {}),
        **dict.fromkeys(("difference", "adjusted p", "helps / equal / hurts", "over images"), _NONE),
        "verdict": "reference" if arm_answer.arm is answer.arms[arm_answer.arm.reference].arm else arm_answer.progress,
    }
    if comparison is None:
        return row
    told = comparison.table
    return {
        **row,
        "difference": difference_in_words(told.difference, told.simultaneous_low, told.simultaneous_high),
        "adjusted p": _format_p(told.adjusted_p),
        "helps / equal / hurts": " / ".join(f"{100 * share:.0f}%" for share in (told.helps, told.equal, told.hurts)),
        "over images": difference_in_words(*comparison.images),
        "verdict": told.verdict,
    }


def _by_itself(arm_answer: ArmAnswer) -> dict[str, str]:
    """An arm with the spread of its own differences alone, as sweeps were answered before they were pooled."""
    comparison = arm_answer.comparison
    told, test = comparison.table, comparison.test
    return {
        "arm": arm_answer.arm.name,
        "pooled spread": difference_in_words(told.difference, told.low, told.high),
        "p": _format_p(told.p),
        "own spread": difference_in_words(test.mean, test.low, test.high),
        "its std": _format_number(test.std),
        "its p": _format_p(test.p),
        "Holm's p": _format_p(comparison.holm_p),
    }


def _contrasts(answer: Answer) -> list[dict[str, str]]:
    return [
        {
            "contrast": name,
            "difference": difference_in_words(told.difference, told.simultaneous_low, told.simultaneous_high),
            "adjusted p": _format_p(told.adjusted_p),
            "verdict": told.verdict,
        }
        for name, told in answer.contrasts.items()
    ]


def _training(answer: Answer) -> list[dict[str, str]]:
    return [
        {
            "arm": arm_answer.arm.name,
            "gap": f"{arm_answer.means['gap']:+.3f}",
            "ECE": _format_number(arm_answer.means["ece"]),
            "ECE near foreground": _format_number(arm_answer.means["ece_foreground"]),
            "Brier": _format_number(arm_answer.means["brier"], 4),
            "best epoch": f"{arm_answer.means['best_epoch'] + 1:.1f} of {arm_answer.means['epochs']:.1f}",
            "minutes": f"{arm_answer.means['seconds'] / 60:.1f}",
        }
        for arm_answer in answer.arms
        if arm_answer.means
    ]


def _single_folds(answer: Answer, name: str) -> list[dict[str, str]]:
    return [
        {
            "arm": arm_answer.arm.name,
            **({"repeat": str(repeat + 1)} if answer.results.repeats > 1 else {}),
            **{f"fold {fold + 1}": _format_number(value) for fold, value in enumerate(values)},
        }
        for arm_answer in answer.arms
        for repeat, values in enumerate(getattr(arm_answer, name))
        if not np.isnan(values).all()
    ]


def _failures(answer: Answer) -> list[dict[str, str]]:
    return [
        {
            "arm": answer.results.arms[failure.arm].name,
            "repeat": str(failure.repeat + 1),
            "fold": str(failure.fold + 1),
            "seed": str(failure.seed),
            "reason": " ".join(failure.reason.split()),
        }
        for failure in answer.failures
    ]


def _format_number(value: float, digits: int = 3) -> str:
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else _format_number(p)


def sections(answer: Answer) -> list[Section]:
    """What there is to read below the headline, for answer.md and answer.html alike."""
    results = answer.results
    compared = [arm_answer for arm_answer in answer.arms if arm_answer.comparison]
    settings = [
        {"arm": arm.name, "sets": ", ".join(f"{key}={value}" for key, value in arm.changes.items()) or _NONE}
        for arm in results.arms
    ]
    all_sections = [
        Section("Arms", "Validation Dice and IoU, mean ± standard deviation over the folds.", [_arms(answer)]),
        Section(
            "Differences of Dice",
            "In brackets the intervals that hold for all arms together, with 95%. The percentages are the "
            f"probabilities that the difference is above {results.margin:g}, within it, and below "
            f"-{results.margin:g}, for the arm by itself.",
            [_contrasts(answer), [_difference(answer, one) for one in compared]],
            answer.about_the_arms,
        ),
        Section(
            "Each arm by itself",
            "95% intervals that hold for one arm, with the spread of all arms together and with that of its own "
            "differences alone (the corrected t test, adjusted by Holm's procedure).",
            [[_by_itself(one) for one in compared]],
        ),
        Section(
            "Training and calibration",
            "Means over the trainings of an arm. The gap is Dice on training images, with dropout off, less that on "
            "validation images. ECE is the expected calibration error, ECE and Brier score are of validation images.",
            [_training(answer)],
        ),
        Section("Failed trainings", tables=[_failures(answer)]),
        Section("How this was decided", sentences=_method(answer)),
        *(
            Section(f"{title} of single folds", tables=[_single_folds(answer, name)])
            for title, name in (("Dice", "dice"), ("IoU", "iou"))
        ),
        Section("What was run", tables=[[{"": key, "value": value} for key, value in results.facts.items()], settings]),
    ]
    return [section for section in all_sections if any(section.tables) or section.sentences]


def _markdown(answer: Answer, plotted: bool) -> str:
    parts = [f"# {answer.results.title}", f"**{answer.headline}**", _list(answer.about_the_sweep)]
    if plotted:
        parts.append(f"![Dice by dropout rate]({PLOT})")
    for section in sections(answer):
        parts += [f"## {section.title}", section.text, *(_aligned(rows) for rows in section.tables if rows)]
        parts.append(_list(section.sentences))
    return "\n\n".join(filter(None, parts)) + "\n"


def _method(answer: Answer) -> list[str]:
    results = answer.results
    counted = count(
        results.dropped + sum(arm_answer.comparison is not None for arm_answer in answer.arms), "comparison"
    )
    counted += ", dropped arms among them" if results.dropped else ""
    columns = count(results.folds * results.repeats, "fold")
    unit = "images" if results.groups is None else "patients (groups of images)"
    said = [
        f"Every arm is trained on the same {columns} with the same {count(len(results.seeds), 'seed')}; what others "
        "are compared with may have more. A Dice is its arm's mean, its fold's, and luck, whose spread is that of the "
        f"whole table (least squares): {_format_number(answer.std)}. Seeds of a fold count as their mean.",
        "The variance of a mean allows for the training images that folds share (Nadeau and Bengio, 2003): there are "
        f"{results.test_share:.3g} images of validation for one of training.",
        f'"helps" and "hurts" stand for an interval that leaves out 0, and an adjusted p below {LEVEL}; "no difference '
        f'beyond the margin" for one that lies within {results.margin:g} on both sides. Intervals and p hold for '
        f"{counted} together (Dunnett, 1955).",
        "An arm whose Dice varies more than the others', or whose reference's does, is tested with the spread of its "
        "own differences, and its p is multiplied by the number of comparisons.",
        f'"Over images" answers another question: how these very networks would differ on other {unit}. It is the mean '
        f"over single images, not over all pixels of a fold, and a bootstrap over {answer.independent} {unit}.",
        "How many repeats or patients would be needed is rough: few folds tell little of the true difference and of "
        "its spread.",
        "Every score is that of the best epoch by validation Dice, and therefore optimistic, for all arms alike. The "
        "highest of many arms is optimistic once more, for having been chosen.",
    ]
    if results.dropped:
        said.append(
            "The search kept arms for the Dice of their first fold, which is part of their differences: what they gain "
            "is optimistic."
        )
    if answer.trained + len(answer.failures) < answer.expected:
        said.append("With every further arm that is complete there is one comparison more, and adjusted p values rise.")
    return said


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table whose columns are aligned in the raw text too."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    from ..show.console import Console

    table = RichTable(*rows[0], box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(Text(value.replace("|", "\\|")) for value in row.values()))
    buffer = io.StringIO()
    Console(file=buffer, width=100_000).print(table)
    return buffer.getvalue().strip()


def _point(arm_answer: ArmAnswer) -> dict:
    """What `plots.dice_by_rate` draws of an arm."""
    comparison = arm_answer.comparison
    return {
        "name": arm_answer.arm.name,
        "curve": arm_answer.arm.curve,
        "rate": arm_answer.arm.rate,
        "dice": arm_answer.dice.ravel(),
        "difference": comparison.difference if comparison else math.nan,
        "low": comparison.table.simultaneous_low if comparison else math.nan,
        "high": comparison.table.simultaneous_high if comparison else math.nan,
    }


def _csv_row(answer: Answer, index: int) -> dict:
    arm_answer = answer.arms[index]
    comparison = arm_answer.comparison
    row = {
        "arm": arm_answer.arm.name,
        "curve": arm_answer.arm.curve,
        "rate": arm_answer.arm.rate,
        "reference": answer.arms[arm_answer.arm.reference].arm.name,
        "changes": json.dumps(dict(arm_answer.arm.changes), default=str),
        "state": arm_answer.state,
        "trained": arm_answer.trained,
        "failed": arm_answer.failed,
        "expected": arm_answer.expected,
        "reason": arm_answer.reason,
        "chosen": index == answer.chosen,
        **{name: arm_answer.means.get(name) for name in ("dice", "iou")},
        **{f"{name}_std": pooled_std(getattr(arm_answer, name).reshape(1, -1)) for name in ("dice", "iou")},
        **{
            name: comparison and getattr(comparison.table, name)
            for name in (field.name for field in dataclasses.fields(ArmComparison))
        },
        **{
            f"own_{name}": comparison and getattr(comparison.test, name)
            for name in ("low", "high", "std", "standard_error", "statistic", "degrees", "p")
        },
        "holm_p": comparison and comparison.holm_p,
        **{
            f"images_{name}": comparison and comparison.images[i]
            for i, name in enumerate(("difference", "low", "high"))
        },
        "repeats_needed": comparison and comparison.needed.repeats,
        "patients_factor": comparison and comparison.needed.patients_factor,
        **{name: arm_answer.means.get(name) for name in ("gap", *MEASURES[3:])},
        **{
            f"{name}_repeat{repeat + 1}_fold{fold + 1}": value
            for name in ("dice", "iou")
            for (repeat, fold), value in np.ndenumerate(getattr(arm_answer, name))
        },
    }
    return {
        key: "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
        for key, value in row.items()
    }
