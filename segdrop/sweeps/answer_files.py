"""The answer of a sweep as tables, as answer.md, answer.csv and dice.png. Neither TensorFlow nor Keras is imported."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..files import write_atomically, write_csv
from ..scoring.statistics import pooled_std
from ..show.tables import Table
from .answers import LEVEL, Answer, ArmAnswer
from .results import MEASURES
from .wording import count

MARKDOWN, CSV, PLOT = "answer.md", "answer.csv", "dice.png"
_NONE = "–"


def tables(answer: Answer) -> list[Table]:
    """The answer as tables for a terminal of 100 columns: facts, arms, training and calibration, failures."""
    shown = ("difference", "adjusted p", "verdict")
    arms = []
    for row, one in zip(_arms(answer), answer.arms, strict=True):
        difference = _difference(answer, one)
        arms.append({"arm": row["arm"], "Dice": row["Dice"], **{key: difference[key] for key in shown}})
    found = [
        Table([{"sweep": name, "": value} for name, value in answer.results.facts.items()], answer.results.title),
        Table(arms, "Validation Dice, mean ± standard deviation over folds; difference from rate 0 [95% interval]"),
        Table(_training(answer), "Means over the trainings of an arm"),
        Table(_failures(answer), "Failed trainings"),
    ]
    return [table for table in found if table]


def write_answer(folder: Path, answer: Answer) -> Path:
    """Write answer.md, for people, answer.csv, for programs, and dice.png; return the path of the first.

    answer.csv has one row for each arm with all numbers in all digits, cells that are empty where there is none, and
    epochs counted from 0. dice.png is written once an arm with dropout is complete.

    Args:
        folder: exists; files of these names are replaced.
    """
    from ..show import plots  # with Matplotlib, which tables in a terminal do not need

    complete = [one for one in answer.arms if one.state == "complete"]
    plotted = any(one.arm.rate != 0 for one in complete)
    if plotted:
        figure = plots.dice_by_rate([_point(one) for one in complete])
        write_atomically(folder / PLOT, lambda path: figure.savefig(path, dpi=120))
    write_csv(folder / CSV, [_csv_row(answer, i) for i in range(len(answer.arms))])
    text = "\n\n".join(_sections(answer, plotted)) + "\n"
    write_atomically(folder / MARKDOWN, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / MARKDOWN


def _arms(found: Answer) -> list[dict[str, str]]:
    rows = []
    for one in found.arms:
        row = {"arm": one.arm.name}
        for title, name in (("Dice", "dice"), ("IoU", "iou")):
            std = pooled_std(getattr(one, name).reshape(1, -1))
            row[title] = f"{one.means[name]:.3f}" + ("" if math.isnan(std) else f" ± {std:.3f}") if one.means else _NONE
        rows.append({**row, "state": one.progress})
    return rows


def _difference(found: Answer, one: ArmAnswer) -> dict[str, str]:
    """A row of the table of differences; without numbers where there is no comparison."""
    several = len({other.arm.reference for other in found.arms}) > 1
    comparison = one.comparison
    row = {
        "arm": one.arm.name,
        **({"from": found.arms[one.arm.reference].arm.name} if several else {}),
        **dict.fromkeys(("difference", "std", "p", "adjusted p", "over images"), _NONE),
        "verdict": "reference" if one.arm is found.arms[one.arm.reference].arm else one.progress,
    }
    if comparison is None:
        return row
    test = comparison.test
    return {
        **row,
        "difference": _signed(comparison.difference, test.low, test.high),
        "std": _shown(test.std),
        "p": _shown_p(test.p),
        "adjusted p": _shown_p(comparison.adjusted_p),
        "over images": _signed(*comparison.images),
        "verdict": comparison.verdict,
    }


def _training(found: Answer) -> list[dict[str, str]]:
    return [
        {
            "arm": one.arm.name,
            "gap": f"{one.means['gap']:+.3f}",
            "ECE": _shown(one.means["ece"]),
            "ECE near foreground": _shown(one.means["ece_foreground"]),
            "Brier": _shown(one.means["brier"], 4),
            "best epoch": f"{one.means['best_epoch'] + 1:.1f} of {one.means['epochs']:.1f}",
            "minutes": f"{one.means['seconds'] / 60:.1f}",
        }
        for one in found.arms
        if one.means
    ]


def _single_folds(found: Answer, name: str) -> list[dict[str, str]]:
    return [
        {
            "arm": one.arm.name,
            **({"repeat": str(repeat + 1)} if found.results.repeats > 1 else {}),
            **{f"fold {fold + 1}": _shown(value) for fold, value in enumerate(values)},
        }
        for one in found.arms
        for repeat, values in enumerate(getattr(one, name))
        if not np.isnan(values).all()
    ]


def _failures(found: Answer) -> list[dict[str, str]]:
    return [
        {
            "arm": found.results.arms[one.arm].name,
            "repeat": str(one.repeat + 1),
            "fold": str(one.fold + 1),
            "seed": str(one.seed),
            "reason": " ".join(one.reason.split()),
        }
        for one in found.failures
    ]


def _shown(value: float, digits: int = 3) -> str:
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else _shown(p)


def _signed(value: float, low: float, high: float) -> str:
    return _NONE if math.isnan(value) else f"{value:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")


def _sections(found: Answer, plotted: bool) -> list[str]:
    """The paragraphs, headings and tables of answer.md."""
    results = found.results
    differences = [_difference(found, one) for one in found.arms if one.comparison]
    folds = {title: _single_folds(found, name) for title, name in (("Dice", "dice"), ("IoU", "iou"))}
    training = _training(found)
    settings = [
        {"arm": arm.name, "sets": ", ".join(f"{key}={value}" for key, value in arm.changes.items()) or _NONE}
        for arm in results.arms
    ]
    parts = [f"# {results.title}", f"**{found.headline}**", _list(found.about_the_sweep)]
    if plotted:
        parts.append(f"![Dice by dropout rate]({PLOT})")
    parts += ["## Arms", "Validation Dice and IoU, mean ± standard deviation over the folds.", _aligned(_arms(found))]
    if differences:
        parts += [
            "## Differences of Dice from rate 0",
            "95% intervals in brackets.",
            _aligned(differences),
            _list(found.about_the_arms),
        ]
    if training:
        parts += [
            "## Training and calibration",
            "Means over the trainings of an arm. The gap is Dice on training images, with dropout off, less that on "
            "validation images. ECE is the expected calibration error, ECE and Brier score are of validation images.",
            _aligned(training),
        ]
    if found.failures:
        parts += ["## Failed trainings", _aligned(_failures(found))]
    parts += ["## How this was decided", _list(_method(found))]
    for title, rows in folds.items():
        if rows:
            parts += [f"## {title} of single folds", _aligned(rows)]
    parts.append("## What was run")
    if results.facts:
        parts.append(_aligned([{"": key, "value": value} for key, value in results.facts.items()]))
    return [*parts, _aligned(settings)]


def _method(found: Answer) -> list[str]:
    results = found.results
    counted = count(results.dropped + sum(one.comparison is not None for one in found.arms), "comparison")
    counted += ", dropped arms among them" if results.dropped else ""
    differences = count(results.folds * results.repeats, "difference")
    unit = "images" if results.groups is None else "patients (groups of images)"
    said = [
        f"Every arm is trained on the same folds with the same {count(len(results.seeds), 'seed')} as its reference "
        f"of rate 0. What is tested is the mean of {differences} of Dice, one for each fold, averaged "
        "over the seeds.",
        "p and interval are those of the corrected resampled t test (Nadeau and Bengio, 2003), which allows for the "
        f"training images that folds share: there are {results.test_share:.3g} images of validation for one of "
        "training.",
        f'"helps" and "hurts" stand for an adjusted p below {LEVEL}. It is adjusted by Holm\'s procedure (1979) for '
        f"{counted}; the intervals are not adjusted, and hold for one comparison by itself.",
        f'"Over images" answers another question: how these very networks would differ on other {unit}. It is the mean '
        f"over single images, not over all pixels of a fold, and a bootstrap over {found.independent} {unit}.",
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
    if found.trained + len(found.failures) < found.expected:
        said.append("With every further arm that is complete there is one comparison more, and adjusted p values rise.")
    return said


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {one}" for one in sentences)


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table whose columns are aligned in the raw text too."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(*rows[0], box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(Text(value.replace("|", "\\|")) for value in row.values()))
    buffer = io.StringIO()
    Console(file=buffer, width=100_000).print(table)
    return buffer.getvalue().strip()


def _point(one: ArmAnswer) -> dict:
    """What `plots.dice_by_rate` draws of an arm."""
    comparison = one.comparison
    return {
        "name": one.arm.name,
        "curve": one.arm.curve,
        "rate": one.arm.rate,
        "dice": one.dice.ravel(),
        "difference": comparison.difference if comparison else math.nan,
        "low": comparison.test.low if comparison else math.nan,
        "high": comparison.test.high if comparison else math.nan,
    }


def _csv_row(found: Answer, index: int) -> dict:
    one = found.arms[index]
    comparison = one.comparison
    row = {
        "arm": one.arm.name,
        "curve": one.arm.curve,
        "rate": one.arm.rate,
        "reference": found.arms[one.arm.reference].arm.name,
        "changes": json.dumps(dict(one.arm.changes), default=str),
        "state": one.state,
        "trained": one.trained,
        "failed": one.failed,
        "expected": one.expected,
        "reason": one.reason,
        "chosen": index == found.chosen,
        **{name: one.means.get(name) for name in ("dice", "iou")},
        **{f"{name}_std": pooled_std(getattr(one, name).reshape(1, -1)) for name in ("dice", "iou")},
        "difference": comparison and comparison.difference,
        **{
            name: comparison and getattr(comparison.test, name)
            for name in ("low", "high", "std", "standard_error", "statistic", "degrees", "p")
        },
        "adjusted_p": comparison and comparison.adjusted_p,
        "verdict": comparison and comparison.verdict,
        **{
            f"images_{name}": comparison and comparison.images[i]
            for i, name in enumerate(("difference", "low", "high"))
        },
        "repeats_needed": comparison and comparison.needed.repeats,
        "patients_factor": comparison and comparison.needed.patients_factor,
        **{name: one.means.get(name) for name in ("gap", *MEASURES[3:])},
        **{
            f"{name}_repeat{repeat + 1}_fold{fold + 1}": value
            for name in ("dice", "iou")
            for (repeat, fold), value in np.ndenumerate(getattr(one, name))
        },
    }
    return {
        key: "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
        for key, value in row.items()
    }
