"""Processes that take steps when they are told to, and what is said to them, by Python's own library: all have it."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(hello: str, do: Callable[[str], object]) -> None:
    """Say `hello`, then for each line of standard input what `do` makes of it, as JSON."""
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(do(line.strip())), flush=True)


def answer(version: str, step: Callable[[], object]) -> None:
    """Say `version`, then for each line of standard input the seconds of a step, or the most memory held yet in GB."""

    def do(word: str) -> float:
        if word == "memory":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    serve(version, do)


class Process:
    """One that serves; `hello` is what it has said first.

    Args:
        words: Python, a program of this folder, and what it is told.
        environment: what it has beside this process's.
    """

    def __init__(self, *words: str, **environment: str):
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONPATH": str(Path(__file__).parents[1]),
                **environment,
            },
        )
        self.hello = self.answer()

    def ask(self, word: str):
        """What it makes of a word."""
        self.begin(word)
        return self.answer()

    def begin(self, word: str) -> None:
        print(word, file=self._process.stdin, flush=True)

    def answer(self):
        """What it has made of the word that was begun."""
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._process.args)} has ended; run it by itself to see why.")
        return json.loads(line)

    def end(self) -> None:
        self._process.communicate()
