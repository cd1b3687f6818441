"""Commands that do what segdrop must not do, for the tests of the harness."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .attack import Attack, Plan

USUAL = Plan(("predict",), ("broken.png",), ("out/*.png",))
Command = Callable[[Sequence[str]], int]


def attack_with(plan: Plan) -> Attack:
    """An attack that makes a file of rubbish."""

    def prepare(bench, rng) -> Plan:
        (bench.folder / "broken.png").write_bytes(rng.bytes(9))
        return plan

    return Attack("image", "broken.png of rubbish", (0, 0), prepare)


def two_attacks() -> list[Attack]:
    return [attack_with(USUAL), attack_with(USUAL)]


def fail(words) -> int:
    raise KeyError("Rows")


def shout(words) -> int:
    os.write(2, b"libpng warning: bad CRC\n")  # as a C library does
    return 0


def warn(words) -> int:
    warnings.warn("invalid value encountered in divide", RuntimeWarning, stacklevel=1)
    return 0


def say(text: str, code: int = 2) -> Command:
    def command(words) -> int:
        print(f"segdrop: {text}", file=sys.stderr)
        return code

    return command


def leave(name: str, code: int) -> Command:
    def command(words) -> int:
        Path(name).write_text("half")
        return say("broken.png cannot be read.")(words) if code else 0

    return command


def lose(words) -> int:
    Path("broken.png").unlink()
    return say("broken.png cannot be read.")(words)


def hang(words) -> int:
    time.sleep(600)
    return 0


def grow(words) -> int:
    held = bytearray(400 << 20)
    time.sleep(600)
    return len(held)


def die(words) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0
