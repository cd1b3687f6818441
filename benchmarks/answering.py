"""The words between side_by_side.py and the processes that it starts, by Python's own library: all of them have it."""

import resource
import sys
import time
from collections.abc import Callable


def answer(version: str, step: Callable[[], object]) -> None:
    """Say `version`, then for each line of standard input the seconds of a step, or the most memory held yet in GB."""
    print(version, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)
            continue
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)
