"""What an attack is."""

import itertools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Plan:
    """What to do in the folder that an attack has prepared.

    Attributes:
        command: the words after `segdrop`, run in that folder.
        culprits: a refusal has to name one of them; none: whatever it says is right.
        outputs: globs of the files that an accepted command has written.
        truth: says after an accepted command what was read wrongly, "" where nothing was.
        own: a folder that the command goes on in, where a refusal may leave new files, but none in part.
        real: with networks of the real size, where the small ones would not read what is attacked.
    """

    command: tuple[str, ...]
    culprits: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    truth: Callable[[], str] | None = None
    own: str | None = None
    real: bool = False


@dataclass(frozen=True)
class Attack:
    """A broken input: what `prepare` makes in a folder with random numbers of `seed`."""

    kind: str
    name: str
    seed: tuple[int, ...]
    prepare: Callable[["Bench", np.random.Generator], Plan]  # noqa: F821

    def plan(self, bench) -> Plan:
        return self.prepare(bench, np.random.default_rng([*self.seed, zlib.crc32(f"{self.kind}/{self.name}".encode())]))


Case = tuple[str, str, Callable]  # what is attacked, how, and what prepares it


def in_rounds(kind: str, cases: Iterable[Case], seed: int, count: int) -> list[Attack]:
    """`count` attacks of a kind, in random order: of everything that is attacked one, then of everything another, until
    all cases are through; then each again with other random numbers."""
    by_target: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case[:2]):
        by_target[case[0]].append(case)
    found: list[Attack] = []
    while len(found) < count:
        turn = len(found) // sum(map(len, by_target.values()))
        rng = np.random.default_rng([seed, turn, zlib.crc32(kind.encode())])
        columns = [[several[i] for i in rng.permutation(len(several))] for several in by_target.values()]
        for row in itertools.zip_longest(*columns):
            there = [case for case in row if case is not None]
            found += [
                Attack(kind, f"{there[i][0]} {there[i][1]}", (seed, turn), there[i][2])
                for i in rng.permutation(len(there))
            ]
    return found[:count]


def replace_bytes(path: Path, content: bytes) -> None:
    """Give a file another content, whatever it was before."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
