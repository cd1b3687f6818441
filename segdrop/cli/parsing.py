"""From a command line to options."""

import contextlib
import dataclasses
import difflib
import errno
import io
import itertools
import os
import re
import shutil
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Union

import tyro

from ..errors import InputError

_ABOUT = "Dropout in the encoder of a pretrained U-Net. `segdrop --version` tells the version."


def parse(commands: Mapping[str, type], arguments: list[str], defaults: Mapping[str, object]):
    """The options of the command that the arguments name; tyro's boxed error messages become an InputError of one line.

    Args:
        commands: the class of the options of each command.
        arguments: the command and its own.
        defaults: options of a command to take where the arguments say nothing.
    """
    choices = []
    for name, options in commands.items():
        stored = {} if defaults.get(name) is None else {"default": defaults[name]}
        about = (options.__doc__ or "").splitlines()[0]
        choices.append(Annotated[options, tyro.conf.subcommand(name, description=about, **stored)])
    os.environ["COLUMNS"], columns = "1000", os.environ.get("COLUMNS")  # so that tyro does not wrap them
    stderr = io.StringIO()
    try:
        if {"-h", "--help"} & set(arguments):
            os.environ["COLUMNS"] = columns or str(min(110, shutil.get_terminal_size().columns))
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                Union[tuple(choices)],  # noqa: UP007 (made of a list)
                prog="segdrop",
                args=arguments,
                registry=_registry,
                description=_ABOUT,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        told = stderr.getvalue()
        raise InputError(_first_block(told) + _did_you_mean(told, commands.get(arguments[0]))) from None
    finally:
        os.environ.pop("COLUMNS")
        if columns:
            os.environ["COLUMNS"] = columns


def _first_block(box: str) -> str:
    """What a box of tyro's says before its first rule; without Unicode its title is a block of its own."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    grouped = itertools.groupby(lines, key=lambda line: bool(line.strip("─- ")))
    blocks = [" ".join(block) for says_something, block in grouped if says_something]
    return re.sub(r"^Error parsing \w+(Config|Options): ", "", blocks[0 if "╭" in box else 1])


def _did_you_mean(box: str, options: type | None) -> str:
    """Of the options of a command that which is spelt most like an unknown one."""
    unknown = re.search(r"Unrecognized options: (--[^\s,=]+)", box)
    if unknown is None or options is None:
        return ""
    nearest = closest(unknown[1], [f"--{name.replace('_', '-')}" for name in _names_of(options)])
    return f"; did you mean {nearest}?" if nearest else ""


def _names_of(options: type) -> list[str]:
    """The fields of a command's options, and of the options within them."""
    names = []
    for field in dataclasses.fields(options):
        inner = field.default_factory
        names += _names_of(inner) if isinstance(inner, type) and dataclasses.is_dataclass(inner) else [field.name]
    return names


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is spelt most like another; None where none is like it."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


_GO_ON = "then go on: with the same command, a run or prediction that has begun with --resume besides"
_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """What may be left out is described as what is given otherwise; the word none stands for nothing."""
    members = [member for member in typing.get_args(info.type) if member is not type(None)]
    if type(None) not in typing.get_args(info.type) or not members:
        return None
    given = tyro.constructors.ConstructorRegistry.get_primitive_spec(
        tyro.constructors.PrimitiveTypeInfo.make(Union[tuple(members)], info.markers)  # noqa: UP007 (made of a list)
    )
    if not isinstance(given, tyro.constructors.PrimitiveConstructorSpec):
        return None
    none = ("none", "None")

    def parse(words: list[str]):
        return None if len(words) == 1 and words[0] in none else given.instance_from_str(words)

    return dataclasses.replace(
        given,
        nargs=given.nargs if given.nargs == 1 else (1, given.nargs),
        choices=given.choices and (*given.choices, *none),
        instance_from_str=parse,
        is_instance=lambda value: value is None or given.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else given.str_from_instance(value),
    )


@_registry.primitive_rule
def _rates(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """One rate, a ramp 0.05..0.3, or stage3=0.1,stage4=0.2."""
    if info.type != (float | dict[str, float] | tuple[float, float]):
        return None

    def parse(words: list[str]) -> float | dict[str, float] | tuple[float, float]:
        if ".." in words[0]:
            first, _, last = words[0].partition("..")
            return float(first), float(last)
        if "=" not in words[0]:
            return float(words[0])
        parts = [part.partition("=") for part in words[0].split(",")]
        if len({block for block, _, _ in parts}) < len(parts):
            raise ValueError(f"a block is named twice in {words[0]}")
        return {block: float(rate) for block, _, rate in parts}

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="RATE",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, (int, float, dict, tuple)),
        str_from_instance=lambda value: [
            ",".join(f"{k}={v}" for k, v in value.items())
            if isinstance(value, dict)
            else "..".join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
        ],
    )


@_registry.primitive_rule
def _names(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Names separated by commas."""
    if info.type != (tuple[str, ...] | None):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME,NAME,...",
        instance_from_str=lambda words: None if words[0] == "none" else tuple(words[0].split(",")),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["none" if value is None else ",".join(value)],
    )


def describe_error(error: OSError) -> str:
    """An OSError in one line: ours as they are, the system's with the file and what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    gone = f"; see that the network folder is there again, {_GO_ON}"
    advice = {
        errno.ENOSPC: f"; free some space, {_GO_ON}",
        errno.EDQUOT: f"; free some of your quota, {_GO_ON}",
        errno.EFBIG: f"; allow larger files (ulimit -f), {_GO_ON}",
        **dict.fromkeys((errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN), gone),
        errno.EIO: f"; see that the disk is well, {_GO_ON}",
        errno.EACCES: "; choose another place or change the permissions",
        errno.EROFS: "; choose another place",
    }.get(error.errno, "")
    return f"{error.strerror}{where}{advice}."
