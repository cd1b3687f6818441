"""Run attacks, write their verdicts as CSV while they come, and count them: `python -m tests.attacks --help`."""

import csv
import dataclasses
import functools
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import tyro

from .catalogue import KINDS, listing, make_all
from .pool import run_attacks
from .verdict import FAILURES, GOOD, Verdict


@dataclasses.dataclass(frozen=True)
class Options:
    """Attack segdrop with broken inputs; exit code 1 where one of them is not refused or accepted as it should be."""

    seed: int = 7
    """Of the choice of attacks and of what they break."""
    count: int = 1500
    """How many."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Which kinds."""
    only: str = ""
    """Those whose names hold this text, of all that there are."""
    out: Path = Path("attacks.csv")
    """A table of all verdicts; what it holds already is not run again."""
    workers: int = 2
    """Processes."""


def run(options: Options) -> int:
    made = functools.partial(listing, options.seed, options.count, options.kinds, options.only)
    chosen = made()
    known = _read(options.out)
    key = {(attack.kind, attack.name, ".".join(map(str, attack.seed))): i for i, attack in enumerate(chosen)}
    done = frozenset(key[name] for name in known if name in key)
    home = Path(tempfile.mkdtemp(prefix="attacks_"))
    started = time.monotonic()
    try:
        if len(done) < len(chosen):
            process = multiprocessing.get_context("spawn").Process(target=make_all, args=(home / "base",))
            process.start(), process.join()
            if process.exitcode:
                raise RuntimeError("the runs that attacks break could not be made")
            with options.out.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Verdict)])
                if not known:
                    writer.writeheader()
                for number, (_, verdict) in enumerate(
                    run_attacks(chosen, made, home / "base", workers=options.workers, done=done), start=1
                ):
                    writer.writerow(dataclasses.asdict(verdict))
                    file.flush()
                    if verdict.failed:
                        print(f"{verdict.verdict}: {verdict.name}: {verdict.detail} {verdict.place}", flush=True)
                    if number % 100 == 0:
                        print(f"{number + len(done)} of {len(chosen)}, {time.monotonic() - started:.0f} s", flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    verdicts = [verdict for name, verdict in _read(options.out).items() if name in key]
    print(table(verdicts), f"{time.monotonic() - started:.0f} s", sep="\n")
    return int(any(verdict.failed for verdict in verdicts))


def _read(path: Path) -> dict[tuple, Verdict]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Verdict(**{**row, "seconds": float(row["seconds"])}) for row in csv.DictReader(file)]
    return {(row.kind, row.name, row.seed): row for row in rows}


def table(verdicts: list[Verdict]) -> str:
    """How many attacks of each kind got each verdict, in Markdown."""
    counts = Counter((verdict.kind, verdict.verdict) for verdict in verdicts)
    kinds = [kind for kind in KINDS if any(kind == known for known, _ in counts)]
    columns = [*GOOD, *FAILURES]
    rows = [["kind", "attacks", *columns], ["---"] * (len(columns) + 2)]
    rows += [[kind, sum(counts[kind, c] for c in columns), *(counts[kind, c] for c in columns)] for kind in kinds]
    rows += [["all", len(verdicts), *(sum(counts[kind, c] for kind in kinds) for c in columns)]]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__)))
