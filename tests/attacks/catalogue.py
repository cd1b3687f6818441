"""All attacks there are, and a number of them."""

import os
from collections.abc import Iterable
from pathlib import Path

from . import data, images, names, options, stored, weights
from .attack import Attack, in_rounds
from .bench import make_base
from .verdict import import_quietly

KINDS = {
    "image": images.cases,
    "data": data.cases,
    "stored": stored.cases,
    "option": options.cases,
    "name": names.cases,
    "weights": weights.cases,
}
SHARES = {"image": 0.22, "data": 0.15, "stored": 0.3, "option": 0.23, "name": 0.07, "weights": 0.03}


def attacks(seed: int, count: int, kinds: Iterable[str] = tuple(KINDS)) -> list[Attack]:
    """`count` attacks of some kinds: the same for the same arguments."""
    kinds = [kind for kind in KINDS if kind in set(kinds)]
    total = sum(SHARES[kind] for kind in kinds)
    counts = [round(count * SHARES[kind] / total) for kind in kinds]
    counts[0] += count - sum(counts)
    return [one for kind, of in zip(kinds, counts, strict=True) for one in in_rounds(kind, KINDS[kind](), seed, of)]


def listing(seed: int, count: int, kinds: tuple[str, ...], only: str) -> list[Attack]:
    """`attacks`; where `only` is a text, those whose names hold it, of all that there are."""
    if not only:
        return attacks(seed, count, kinds)
    every = [in_rounds(kind, cases := list(KINDS[kind]()), seed, len(cases)) for kind in kinds]
    return [attack for of_kind in every for attack in of_kind if only in attack.name][:count]


def make_all(base: Path) -> None:
    """Write everything that attacks break into a new folder, in a process that may be changed for good."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "SEGDROP_CACHE": "off"}
    import_quietly()
    make_base(base)
    weights.make_weights(base)
