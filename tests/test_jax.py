"""What is marked `jax` holds under Keras's other backend, too: in one process, since its start takes the most time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

FILES = [path for path in sorted(Path(__file__).parent.glob("test_*.py")) if "mark.jax" in path.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="this is JAX")
def test_what_is_marked_holds_under_jax():
    pytest.importorskip("jax", reason="JAX is not installed; `pip install segdrop[test]` brings it")
    marked = [path for path in FILES if path != Path(__file__)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-m", "jax", "-p", "no:cacheprovider", *map(str, marked)],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    for path in marked:  # and none is skipped as a whole
        assert re.search(rf"{path.name}::\S.* PASSED", run.stdout), run.stdout
