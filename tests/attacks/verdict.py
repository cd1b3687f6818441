"""What a command has done with a broken input, and whether that will do."""

import contextlib
import dataclasses
import importlib
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from .attack import Attack, Plan
from .bench import Bench, inside, scratch, use_real_networks, use_small_networks

GOOD = ("refused", "accepted")
FAILURES = ("traceback", "hang", "memory", "crash", "noise", "half-written", "incomplete", "unnamed", "misread")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SECONDS = 30.0  # of processor time that a command may take
_ORDINARY = 1 << 30  # bytes that the memory of a process may grow by at one command


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command has done: exit code (None: an exception left it), what it wrote, and where."""

    code: int | None
    stdout: str = ""
    stderr: str = ""
    raised: str = ""
    place: str = ""
    appeared: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    misread: str = ""
    grown: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One of GOOD and FAILURES, and why."""

    kind: str
    name: str
    seed: str
    verdict: str
    detail: str = ""
    place: str = ""
    command: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.verdict not in GOOD


def judge(plan: Plan, outcome: Outcome) -> tuple[str, str]:
    """The verdict on an outcome, and why."""
    if outcome.code is None:
        return "traceback", outcome.raised
    if outcome.seconds > SECONDS:
        return "hang", f"{outcome.seconds:.0f} s"
    if outcome.grown > _ORDINARY:
        return "memory", f"{outcome.grown / 2**30:.1f} GiB more"
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("segdrop: warning: ")]
    foreign = [line for line in told if not line.startswith("segdrop: ")]
    if foreign or _CONTROL.search(outcome.stderr + outcome.stdout):
        return "noise", (foreign or [repr(outcome.stderr[-300:] + outcome.stdout[-300:])])[0]
    if outcome.code not in (0, 1, 2, 130):
        return "noise", f"exit code {outcome.code}"
    partial = [name for name in outcome.appeared if ".partial" in name]
    if outcome.code != 2:
        if partial:
            return "half-written", f"left {partial[0]}"
        if outcome.code == 0 and outcome.lacking:
            return "incomplete", f"no {outcome.lacking[0]}"
        if outcome.misread:
            return "misread", outcome.misread
        return ("refused" if outcome.code == 1 and told else "accepted"), (told or [""])[0]
    if len(told) != 1:
        return "noise", f"{len(told)} lines: {' | '.join(told)[:300]}"
    left = partial or [name for name in outcome.appeared if not (plan.own and name.startswith(f"{plan.own}/"))]
    if left or outcome.lost:
        what = f"left {left[0]}" if left else f"removed {outcome.lost[0]}"
        return "half-written", f"{what}; {told[0]}"
    if plan.culprits and not any(culprit in told[0] for culprit in plan.culprits):
        return "unnamed", told[0]
    return "refused", told[0]


def attempt(attack: Attack, base: Path, main: Callable[[list[str]], int], keep: bool = False) -> Verdict:
    """Run an attack in this process, in a folder of its own that is removed afterwards."""
    bench = scratch(base, re.sub(r"[^\w]+", "_", f"{attack.kind} {attack.name}")[:80] + f"_{attack.seed[-1]}")
    plan = attack.plan(bench)
    if "segdrop.training.building" in sys.modules:
        (use_real_networks if plan.real else use_small_networks)()
    outcome = _observe(plan, bench, main)
    verdict, detail = judge(plan, outcome)
    if not keep:
        shutil.rmtree(bench.folder, ignore_errors=True)
    shown = " ".join(word if len(word) < 200 else f"{word[:20]}...({len(word)})" for word in plan.command)
    seed = ".".join(map(str, attack.seed))
    return Verdict(
        attack.kind, attack.name, seed, verdict, _shown(detail), outcome.place, _shown(shown), outcome.seconds
    )


def _shown(text: str) -> str:
    """A text of one line that a terminal and a CSV file can take."""
    return text.encode("unicode_escape").decode()[:600]


def _observe(plan: Plan, bench: Bench, main: Callable[[list[str]], int]) -> Outcome:
    before, memory = _files(bench.folder), _peak()
    code, raised, place, misread = None, "", "", ""
    started = time.process_time()
    with inside(bench.folder), captured() as (stdout, stderr):
        try:
            code = main(list(plan.command)) or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:  # whatever leaves the command line is what is looked for
            raised, place = f"{type(error).__name__}: {str(error)[:300]}", place_of(error)
        seconds = round(time.process_time() - started, 2)
        sys.stdout.flush(), sys.stderr.flush()
        written = [file.seek(0) or file.read().decode("utf-8", "backslashreplace") for file in (stdout, stderr)]
        lacking = tuple(glob for glob in plan.outputs if code == 0 and not any(Path().glob(glob)))
        if code == 0 and plan.truth:
            misread = plan.truth()
    _tidy()
    after = _files(bench.folder)
    appeared, lost = tuple(sorted(after - before)), tuple(sorted(before - after))
    return Outcome(code, *written, raised, place, appeared, lost, lacking, misread, _peak() - memory, seconds)


@contextlib.contextmanager
def captured() -> Iterator[tuple]:
    """What is written to the two file descriptors, by Python and by C libraries, goes to two files."""
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, warnings.catch_warnings():
        warnings.resetwarnings()  # as in a process of its own, also under pytest
        warnings.showwarning = _show
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        os.dup2(stdout.fileno(), 1), os.dup2(stderr.fileno(), 2)
        with (
            open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as out,
            open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                yield stdout, stderr
            finally:
                out.flush(), err.flush()
                os.dup2(kept[0], 1), os.dup2(kept[1], 2)
                os.close(kept[0]), os.close(kept[1])


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


def _files(folder: Path) -> set[str]:
    return {os.fsencode(os.path.relpath(os.path.join(root, name), folder)).decode("utf-8", "backslashreplace")
            for root, folders, files in os.walk(folder) for name in (*folders, *files)}  # fmt: skip


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def place_of(error: BaseException) -> str:
    """Where in the package an exception came up, and its deepest place."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}segdrop{os.sep}" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{frame.filename.split(f'{os.sep}segdrop{os.sep}')[-1]}:{frame.lineno} {frame.name}"


def import_quietly() -> None:
    """Import TensorFlow, whose libraries greet on file descriptor 2; a viewer that would serve until Ctrl-C ends."""
    with captured():
        importlib.import_module("segdrop.training.building")
        serving = importlib.import_module("werkzeug.serving")
    serving.BaseWSGIServer.serve_forever = lambda server, poll_interval=0.5: None


def _tidy() -> None:
    """What a command leaves in the process and would not leave to the next one."""
    if "keras" in sys.modules:
        import keras

        keras.config.set_dtype_policy("float32")
        keras.backend.clear_session(free_memory=False)  # the pool ends a process that has grown
