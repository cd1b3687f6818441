"""The command line."""

import contextlib
import dataclasses
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config.importing import import_modules
from ..config.train import TrainConfig
from ..errors import InputError, naming
from ..folders.run import is_sweep
from ..interrupts import Terminated, heeding, held
from ..printing import printable, say, without_passwords
from ..version import __version__
from .commands import (
    run_data,
    run_evaluate,
    run_export,
    run_inspect,
    run_predict,
    run_rank,
    run_report,
    run_sweep,
    run_train,
    run_view,
)
from .options import (
    DataOptions,
    EvaluateOptions,
    ExportOptions,
    InspectOptions,
    LoadsModels,
    PredictFilesOptions,
    RankOptions,
    ReportOptions,
    SweepOptions,
    ViewOptions,
)
from .parsing import closest, describe_error, parse

COMMANDS = {
    "data": (DataOptions, run_data),
    "train": (TrainConfig, run_train),
    "sweep": (SweepOptions, run_sweep),
    "evaluate": (EvaluateOptions, run_evaluate),
    "predict": (PredictFilesOptions, run_predict),
    "rank": (RankOptions, run_rank),
    "view": (ViewOptions, run_view),
    "report": (ReportOptions, run_report),
    "export": (ExportOptions, run_export),
    "inspect": (InspectOptions, run_inspect),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 where some files failed, 2 for wrong input, 130 after Ctrl-C and
    143 after SIGTERM, all told in one line; 141, as of any program, where nobody reads its output any more."""
    arguments, code = list(sys.argv[1:] if arguments is None else arguments), 2
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_traceback
    try:
        with heeding(), _warnings_in_one_line(), _flushing():
            return _dispatch(arguments)
    except InputError as error:
        message = str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except OSError as error:
        message = describe_error(error)
    except KeyboardInterrupt as request:
        code, ended = (143, "terminated") if isinstance(request, Terminated) else (130, "interrupted")
        message = f"{ended}; a sweep goes on with the same command, train and predict with --resume besides."
    say(f"segdrop: {without_passwords(' '.join(message.split()))}", to_stderr=True)
    return code


def _print_traceback(kind: type[BaseException], error: BaseException, trace) -> None:
    """As Python does it, but for what a terminal would obey."""
    say(*"".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"), to_stderr=True)


@contextlib.contextmanager
def _flushing() -> Iterator[None]:
    """Write all that was printed, also where the help ends the program, so that a closed pipe shows here."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings for the user without the place in the code that gave them; developers' ones stay as they are."""
    usual = warnings.formatwarning

    def in_one_line(message, category, *where) -> str:
        told = f"segdrop: warning: {' '.join(str(message).split())}\n"
        return printable(told if category is UserWarning else usual(message, category, *where), keep="\n")

    warnings.formatwarning = in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        say(f"segdrop {__version__}")
        return 0
    options = read_options(arguments or ["--help"])
    _find_data(options)
    answers = isinstance(options, SweepOptions) and options.report and not options.test
    if not (answers or isinstance(options, DataOptions)):
        with held():  # raised from within the import of TensorFlow's C++, a request can end in a segmentation fault
            _import_tensorflow()
        if isinstance(options, LoadsModels):
            import_modules(options.imports, "import")
    return COMMANDS[arguments[0]][1](options) or 0


def _find_data(options) -> None:
    """Raise FileNotFoundError where there is no such data set, which takes no TensorFlow to find out."""
    trains = isinstance(options, SweepOptions) and not (options.report or options.test)
    if trains or isinstance(options, TrainConfig):
        from ..data.opening import find_data

        find_data(options.train.data if trains else options.data)


def read_options(arguments: list[str]):
    """The options of the command that the arguments begin with."""
    for before, argument in itertools.pairwise(["", *arguments]):
        if argument != argument.encode("utf-8", "replace").decode():  # TensorFlow and OpenCV cannot open it
            told = f"{before} {argument}" if before.startswith("-") else argument
            raise InputError(f"the argument {told} is not UTF-8; rename what it names.")
    name, *rest = arguments
    if name not in (*COMMANDS, "-h", "--help"):
        meant = closest(name, list(COMMANDS))
        meant = f"did you mean {meant}? There" if meant else "there"
        raise InputError(f"no such command: {name!r}; {meant} are {', '.join(COMMANDS)}.")
    classes = {command: options for command, (options, _) in COMMANDS.items()}
    options = parse(classes, arguments, {name: _stored_config(rest)} if name == "train" else {})
    if isinstance(options, SweepOptions) and is_sweep(options.folder):
        options = parse(classes, arguments, {name: _stored_sweep(options.folder)})
    return options


def _stored_sweep(folder: Path) -> SweepOptions:
    """What a sweep was started with, so that what is not given is so; its arms the options say in another way."""
    from ..folders.sweep import open_sweep

    stored = open_sweep(folder).config
    fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
    return SweepOptions(folder=folder, **{**fields, "grid": None})


def _stored_config(arguments: list[str]) -> TrainConfig | None:
    """The stored configuration of the run to resume, or of a sweep's chosen arm: what is not given is as it says."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    # Options may be written with underscores.
    words = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    if "--resume" in words and "--run-dir" in words[:-1]:
        from ..folders.run import open_run

        run_dir = words[words.index("--run-dir") + 1]
        with naming("run_dir"):
            return dataclasses.replace(open_run(run_dir).config, run_dir=run_dir)
    if "--from-sweep" in words[:-1]:
        from ..folders.sweep import chosen_config

        with naming("from_sweep"):
            return chosen_config(words[words.index("--from-sweep") + 1])
    return None


def _import_tensorflow() -> None:
    """Import TensorFlow without the start-up messages that its libraries write straight to file descriptor 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.get_logger().setLevel("ERROR")  # images of many sizes are many graphs, which is no news to the user
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(main())
