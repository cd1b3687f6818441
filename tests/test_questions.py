"""docs/questions.md: each answer runs as it stands, and prints what stands behind its `print`."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "questions.md").read_text(encoding="utf-8")
ANSWERS = dict(re.findall(r"^## (.*?)\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_every_question_has_an_answer():
    assert list(ANSWERS) == re.findall(r"^## (.*)", PAGE, flags=re.MULTILINE)
    assert PAGE.count("```python") == len(ANSWERS) >= 10


@pytest.mark.parametrize("question", ANSWERS)
def test_the_answer_prints_what_stands_there(question, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told = ANSWERS[question], io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(code, {"__name__": "answer"})
    promised = re.findall(r"print\(.*\)  # (.*)", code)
    assert promised, "an answer shows what it does"
    assert ", ".join(told.getvalue().splitlines()) == ", ".join(promised)  # a loop's lines stand in one
