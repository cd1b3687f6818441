"""Processes that run attacks, and are ended where they hang, grow or die."""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil

from .attack import Attack
from .verdict import Verdict, attempt, import_quietly

MAIN = "segdrop.cli.main:main"
PATIENCE = 120.0  # seconds, on a busy machine, in which an attack is prepared, run and cleared away
BYTES = 4 << 30  # that a process may hold
RECYCLED = 2 << 30  # bytes that a process may hold before the next command gets a fresh one
_START = 120.0  # seconds that a process may take to begin


def _serve(link: Connection, listing: Callable[[], list[Attack]], base: Path, main: str, log: str) -> None:
    """Run the attacks whose numbers come over a link, and send their verdicts."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "SEGDROP_CACHE": "off", "OMP_NUM_THREADS": "1"}
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's
    if main == MAIN:
        import_quietly()
    module, name = main.split(":")
    command, attacks = getattr(importlib.import_module(module), name), listing()
    with open(log, "w") as stack:
        faulthandler.enable(stack)
        link.send("ready")
        while (number := link.recv()) is not None:
            stack.seek(0), stack.truncate()
            faulthandler.dump_traceback_later(PATIENCE / 2, file=stack)
            verdict = attempt(attacks[number], base, command)
            faulthandler.cancel_dump_traceback_later()
            link.send((verdict, psutil.Process().memory_info().rss))


class _Worker:
    def __init__(self, listing: Callable[[], list[Attack]], base: Path, main: str, logs: Path):
        context = multiprocessing.get_context("spawn")
        self.link, other = context.Pipe()
        self.log = logs / f"{time.monotonic_ns()}.txt"
        self.process = context.Process(target=_serve, args=(other, listing, base, main, str(self.log)), daemon=False)
        self.process.start()
        other.close()
        self.number, self.deadline, self.ready = None, time.monotonic() + _START, False

    def give(self, number: int, seconds: float) -> None:
        self.number, self.deadline = number, time.monotonic() + seconds
        self.link.send(number)

    def held(self) -> int:
        """Bytes that it and what it has started hold."""
        held = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    held += process.memory_info().rss
        return held

    def end(self) -> None:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            for process in (*root.children(recursive=True), root):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.process.join()
        self.link.close()

    def where(self) -> str:
        """The innermost place in the package of a process that hung or died."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        threads = "\n".join(lines).split("\n\n")
        main = [line.strip() for line in threads[-1].splitlines() if "File" in line]
        ours = [line for line in main if "/segdrop/" in line and "/tests/" not in line]
        return (ours or main or [""])[0].split("/segdrop/")[-1]


def run_attacks(
    attacks: Sequence[Attack],
    listing: Callable[[], list[Attack]],
    base: Path,
    *,
    main: str = MAIN,
    workers: int = 2,
    seconds: float = PATIENCE,
    bytes_held: int = BYTES,
    done: frozenset[int] = frozenset(),
) -> Iterator[tuple[int, Verdict]]:
    """The verdict on each attack, as they come, with its number.

    Args:
        attacks: what `listing` gives.
        listing: makes the same list in another process; picklable.
        base: the folder of `bench.make_base`.
        main: the command line, as module:function.
        done: numbers to leave out.
    """
    waiting = [number for number in range(len(attacks)) if number not in done][::-1]
    logs = Path(tempfile.mkdtemp(prefix="attacks_"))
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.number is not None for worker in crew):
            while len(crew) < min(workers, len(waiting) + sum(worker.number is not None for worker in crew)):
                crew.append(_Worker(listing, base, main, logs))
            wait([worker.link for worker in crew], timeout=0.05)
            for worker in list(crew):
                if worker.link.poll():
                    try:
                        said = worker.link.recv()
                    except (EOFError, OSError):
                        said = None
                    if said is None:
                        worker.process.join()
                        yield from _ended(worker, attacks, "crash", f"exit code {worker.process.exitcode}")
                        crew.remove(worker), worker.end()
                        continue
                    if said == "ready":
                        worker.ready = True
                    else:
                        verdict, held = said
                        yield worker.number, verdict
                        worker.number = None
                        if held > RECYCLED:
                            crew.remove(worker), worker.end()
                            continue
                    if waiting:
                        worker.give(waiting.pop(), seconds)
                    else:
                        crew.remove(worker), worker.end()
                elif time.monotonic() > worker.deadline:
                    yield from _ended(worker, attacks, "hang", f"more than {seconds:g} s")
                    crew.remove(worker), worker.end()
                elif worker.held() > bytes_held:
                    yield from _ended(worker, attacks, "memory", f"more than {bytes_held / 2**30:g} GiB")
                    crew.remove(worker), worker.end()
    finally:
        for worker in crew:
            worker.end()
        shutil.rmtree(logs, ignore_errors=True)


def _ended(worker: _Worker, attacks: Sequence[Attack], verdict: str, detail: str) -> Iterator[tuple[int, Verdict]]:
    """The verdict on what a worker did when it was ended.

    Raises:
        RuntimeError: it did nothing yet.
    """
    if worker.number is None:
        raise RuntimeError(f"a process that was to run attacks did not begin: {verdict}, {detail}")
    attack = attacks[worker.number]
    seed = ".".join(map(str, attack.seed))
    yield worker.number, Verdict(attack.kind, attack.name, seed, verdict, detail, worker.where())


if sys.platform == "win32":  # the pipes, links and signals of attacks are those of POSIX
    raise ImportError("attacks run on Linux and macOS")
