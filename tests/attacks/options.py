"""Every option of the command line with values that it cannot mean; read from the classes that the options are."""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from .attack import Case, Plan
from .bench import TINY, Bench

_SUPPRESSED = tyro.conf.Suppress[int].__metadata__[0]
_POSITIONAL = tyro.conf.Positional[int].__metadata__[0]
VALUES = (
    "", " ", "abc", "-1", "0", "1", "2", "0.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "1e30", "0x10",
    "1_000",
    "٣", "true", "none", "None", "null", "auto", "[]", "{}", "[1", '{"a": 1}', "a,b", ",", "a=b", "stage3=", "..",
    "0.1..",
    "0.3..0.1", "stage3=0.1,stage3=0.2", "../..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "nowhere/x",
    "cells", "run",
    "cells/splits.csv", "x" * 300, "\x1b[31mred", "a\nb", "a\tb", "\udcff", "é" * 200, "*", "**", "?", "$(id)", "-x",
    "--", "%s",
    "os:system", "builtins:eval", "nowhere:Thing", "a:b:c", ":", "https://example.invalid/x", "postgresql://",
    "sqlite://",
)  # fmt: skip
HUGE = ("2147483647", "4294967296", "9223372036854775808", "1" + "0" * 30, "9" * 5000)
# What merely takes long, or all of the machine, where much of it is asked for.
COSTLY = {
    "epochs", "steps", "steps-per-epoch", "minutes", "mc-samples", "folds", "repeats", "seeds", "search", "workers",
    "mc-images",
    "augment-workers", "reference-seeds", "accumulate",
}  # fmt: skip
# What is written must stay in the attack's own folder.
_WRITTEN = {"out", "to", "run-dir", "csv", "json", "svg"}
_ELSEWHERE = ("/", "../")
# Trainings on the network, and what looks for it.
_SLOW = {("train", "encoder-weights", "imagenet"), ("train", "encoder-weights", "auto")}


@dataclass(frozen=True)
class Option:
    """An option of a command: its name without dashes, its choices, and whether it is a switch."""

    command: str
    name: str
    choices: tuple[str, ...] = ()
    switch: bool = False


def options() -> list[Option]:
    """All options of all commands, but for what is given by its place."""
    from segdrop.cli.main import COMMANDS

    return [option for command, (cls, _) in COMMANDS.items() for option in _options_of(command, cls)]


def _options_of(command: str, cls: type) -> Iterator[Option]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, marks = hints[field.name], getattr(hints[field.name], "__metadata__", ())
        if _SUPPRESSED in marks or _POSITIONAL in marks:
            continue
        if dataclasses.is_dataclass(typing.get_args(hint)[0] if marks else hint):
            yield from _options_of(command, field.default_factory)
            continue
        named = [mark.name for mark in marks if getattr(mark, "name", None)]
        choices = tuple(str(choice) for choice in _choices(hint))
        bare = typing.get_args(hint)[0] if marks else hint
        yield Option(command, (named or [field.name])[0].replace("_", "-"), choices, bare is bool)


def _choices(hint) -> Iterator:
    if typing.get_origin(hint) is typing.Literal:
        yield from typing.get_args(hint)
    else:
        for inner in typing.get_args(hint):
            yield from _choices(inner)


_DRY = {"--data": "cells", **TINY, "--folds": "2", "--dry-run": None}
USUAL: dict[str, tuple[tuple[str, ...], dict[str, str | None], tuple[str, ...]]] = {
    "data": (("cells",), {}, ()),
    "train": ((), {"--data": "cells", "--run-dir": "out", **TINY}, ("out/model.keras", "out/metrics.json")),
    "sweep": (("out",), _DRY, ()),
    "evaluate": (("run",), {}, ()),
    "predict": (("run", "cells/images/cell_1.png"), {"--out": "out"}, ()),
    "rank": (("run", "cells/images"), {"--count": "2", "--out": "out"}, ()),
    "view": (("run",), {"--no-open": None}, ()),
    "report": (("run",), {"--out": "page.html"}, ()),
    "export": (("run",), {"--out": "out.onnx"}, ()),
    "inspect": (("run",), {}, ()),
}  # the words by their place, the options, and what an accepted command has written


def command_of(command: str, given: dict[str, str | None], behind: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A command that is right but for the options given; None stands for a switch."""
    places, usual, _ = USUAL[command]
    pairs = {**usual, **given}
    return (
        command,
        *places,
        *(word for name, value in pairs.items() for word in (name, value) if word is not None),
        *behind,
    )


def _prepare(bench: Bench, command: str) -> None:
    bench.take("cells", *(["run"] if command not in ("data", "train", "sweep") else []))


def _outputs(command: str, given: dict) -> tuple[str, ...]:
    moved = {"--out", "--run-dir", "--format", "--from-sweep", "--resume"} & set(given)
    return () if moved else USUAL[command][2]


def _culprits(option: Option, *values: str) -> tuple[str, ...]:
    name = option.name
    given = [value for value in values if len(value.strip()) > 2]
    shown = [form for value in given for form in (value, value.replace("\n", " "), str(Path(value)))]
    needed = ("run_dir",) if name == "resume" else ()  # which says what is resumed
    return (f"--{name}", name, name.replace("-", "_"), *needed, *shown)


def _with_value(option: Option, value: str, bench: Bench, rng: np.random.Generator) -> Plan:
    _prepare(bench, option.command)
    given = {f"--{option.name}": None} if option.switch else {f"--{option.name}": value}
    behind = (value,) if option.switch else ()
    command = command_of(option.command, given, behind)
    # A value that looks like an option is one; a data set of another name is what it is.
    culprits = () if option.switch or value in ("-x", "--") else _culprits(option, value)
    return Plan(command, culprits, () if option.switch else _outputs(option.command, given))


def _without_value(option: Option, bench: Bench, rng: np.random.Generator) -> Plan:
    _prepare(bench, option.command)
    given = {f"--{option.name}": None}
    return Plan(command_of(option.command, given), _culprits(option), _outputs(option.command, given))


def _twice(option: Option, value: str, bench: Bench, rng: np.random.Generator) -> Plan:
    _prepare(bench, option.command)
    words = (f"--{option.name}",) if option.switch else (f"--{option.name}", value)
    given = {words[0]: words[1] if len(words) > 1 else None}
    return Plan(command_of(option.command, given, words), _culprits(option), _outputs(option.command, given))


def _together(command: str, bench: Bench, rng: np.random.Generator) -> Plan:
    """Three options that are right by themselves."""
    _prepare(bench, command)
    known = [option for option in options() if option.command == command]
    chosen = [known[i] for i in rng.choice(len(known), min(3, len(known)), replace=False)]
    given: dict[str, str | None] = {}
    for option in chosen:
        values = [choice for choice in option.choices if (command, option.name, choice) not in _SLOW]
        if not option.switch and option.name not in COSTLY:
            values += ["0", "1", "2", "0.5", "32", "64"]
        elif not option.switch:
            values += ["1", "2"]
        given[f"--{option.name}"] = None if option.switch else values[rng.integers(len(values))]
    culprits = tuple(culprit for option in chosen for culprit in _culprits(option))
    return Plan(
        command_of(command, given), (*culprits, "spatial", "dropout", "steps", "epochs"), _outputs(command, given)
    )


def _raw(words: tuple[str, ...], bench: Bench, rng: np.random.Generator) -> Plan:
    bench.take("cells", "run")
    return Plan(words)


COMMAND_LINES = (
    ("",), ("trian",), ("--nothing",), ("train", "--nothing"), ("train", "cells"), ("train", "--data"), ("predict",),
    ("predict", "run"),
    ("predict", "run", "--out", "out"), ("predict", "", "", "--out", ""), ("evaluate",), ("report",), ("report", ""),
    ("sweep",),
    ("rank",), ("export", "cells"), ("inspect", "cells/splits.csv"), ("inspect", "cells"), ("evaluate", "cells"),
    ("data",), ("data", ""),
    ("data", "run"), ("train", "--resume"), ("train", "--run-dir", "run", "--resume"), ("train", "--run-dir",
    "nowhere", "--resume"),
    ("sweep", "run"), ("sweep", "cells", "--report"), ("report", "run", "cells"), ("predict", "run", "nowhere.png",
    "--out", "out"),
    ("predict", "run", "cells/splits.csv", "--out", "out"), ("predict", "run", "cells", "--out", "cells"), ("train",
    "--run-dir"),
    ("predict", "run", "cells/images/*", "--out", "run"), ("-h", "train"), ("train", "-h"), ("--version", "x"),
    ("\udcff",), ("\x1b[31m",),
    ("train", "--data", "cells", "--data", "run"), ("inspect", "run", "run"), ("x" * 100_000,), ("train", "--",
    "--data", "cells"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    for option in options():
        label = f"{option.command} --{option.name}"
        values = (*VALUES, *(() if option.name in COSTLY else HUGE), *option.choices)
        if option.name in ("workers", "augment-workers"):
            values = tuple(value for value in values if not value.replace("_", "").isdigit() or int(value) < 3)
        if option.name in _WRITTEN and not option.switch:
            values = tuple(value for value in values if not value.startswith(_ELSEWHERE))
        for value in dict.fromkeys(values):
            if (option.command, option.name, value) not in _SLOW:
                shown = value if len(value) < 40 else f"{value[:10]}...({len(value)})"
                yield label, ascii(shown), partial(_with_value, option, value)
        yield label, "without a value", partial(_without_value, option)
        yield label, "twice", partial(_twice, option, (*option.choices, "1")[0])
    for command in USUAL:
        for number in range(30):
            yield f"{command} with three options,", f"choice {number}", partial(_together, command)
    for line in COMMAND_LINES:
        yield "segdrop", ascii(" ".join(line)[:60]), partial(_raw, line)
