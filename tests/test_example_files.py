"""What lies in examples/ runs as it stands, in a process of its own and an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "from_data_to_answer.ipynb"


def output_of(folder, *words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_notebook_is_stored_without_what_it_printed():
    """Pictures and times differ with each run and machine, and would be all that a change shows."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    kept = [cell for cell in cells if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"])]
    assert kept == []


@pytest.mark.slow
def test_the_notebook_goes_from_data_to_an_answer(tmp_path, monkeypatch):
    """Also where the environment of its kernel is not the one that is active."""
    monkeypatch.setenv("PATH", os.defpath)
    copy = tmp_path / NOTEBOOK.name
    copy.write_bytes(NOTEBOOK.read_bytes())
    output_of(tmp_path, "-m", "jupyter", "execute", "--inplace", copy)
    told = json.dumps(json.loads(copy.read_text(encoding="utf-8"))["cells"])
    assert "Nothing looks wrong" in told and "image/png" in told
    assert (tmp_path / "sweeps" / "first" / "answer.html").is_file()


@pytest.mark.slow
def test_one_s_own_project_is_surer_where_it_is_right(tmp_path):
    told = re.search(
        r"([.\d]+) where the prediction is wrong, ([.\d]+) where", output_of(tmp_path, EXAMPLES / "own_project.py")
    )
    assert float(told[1]) > float(told[2])


@pytest.mark.slow
def test_volumes_are_learnt_and_their_spacing_is_kept(tmp_path):
    told = output_of(tmp_path, EXAMPLES / "volumes.py", "out")
    assert float(re.search(r"Dice of the new volume: ([.\d]+)", told)[1]) > 0.5
    assert "Spacing of its mask: 0.7 x 0.7 x 2.0 mm" in told
