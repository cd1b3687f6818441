"""The answer of a sweep on one HTML page. Neither TensorFlow nor Keras is imported."""

from pathlib import Path

from ..files import write_atomically
from ..reporting.embedding import render, svg
from ..show import plots
from ..show.tables import Table
from .answer_files import sections
from .answers import Answer

PAGE = "answer.html"


def write_answer_page(path: Path, answer: Answer) -> None:
    """Write what answer.md says, with a forest plot of the comparisons, into one file that refers to no other."""
    page = {
        "answer": answer,
        "forest": _forest(answer),
        "sections": [
            {"section": section, "tables": [Table(rows) for rows in section.tables if rows]}
            for section in sections(answer)
        ],
    }
    html = render("answer.html", page)
    write_atomically(path, lambda file: file.write_text(html, encoding="utf-8"))


def _forest(answer: Answer) -> str | None:
    """The comparisons as a picture; None where there are none."""
    compared = [arm_answer for arm_answer in answer.arms if arm_answer.comparison]
    if not compared:
        return None
    return svg(plots.forest({"": [_row(arm_answer) for arm_answer in compared]}, answer.results.margin))


def _row(arm_answer) -> dict:
    """What `plots.forest` draws of an arm."""
    comparison = arm_answer.comparison
    return {
        "name": arm_answer.arm.name,
        "difference": comparison.difference,
        "low": comparison.table.simultaneous_low,
        "high": comparison.table.simultaneous_high,
        "verdict": comparison.verdict,
    }
