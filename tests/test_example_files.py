"""What lies in examples/ runs as it stands, in a process of its own and an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def output_of(folder, *words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
