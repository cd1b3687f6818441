"""A few kills of `tests/kills.py`, in processes of their own."""

import pytest
from kills import run


@pytest.mark.slow
@pytest.mark.parametrize(("command", "seed"), [("train", 1), ("predict", 2)])
def test_a_killed_command_goes_on_to_the_same_end(command, seed):
    rows = list(run(seed, 1, [command]))
    assert [row["problems"] for row in rows] == [""], rows
