"""The command line: one function per command. TensorFlow is imported inside them."""

import contextlib
import dataclasses
import errno
import io
import itertools
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from . import __version__
from .config import OVERLAP, TILE, Kind, Placement, PredictOptions, Schedule, SweepConfig, TrainConfig
from .errors import InputError


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Score a run's best model: overlap, distances, calibration, and with samples how well it knows its errors."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    data: str | None = None
    """Data set; by default the run's own, with the run's split."""
    split: str = "test"
    """train, val, test, or all."""
    mc_samples: int = 0
    """Monte Carlo dropout samples of each image, to score uncertainty; 0: none."""
    ensemble: tuple[Path, ...] = ()
    """Further runs, to score the uncertainty of all together."""
    seed: int = 0
    """Seed of these samples, and of the intervals' resampling."""
    tolerance: float = 2.0
    """Of the surface Dice, in pixels, or in mm where the images tell their spacing."""
    tile: int = TILE
    """Side of the tiles that larger images are cut into, in pixels, a multiple of 32."""
    overlap: int = OVERLAP
    """Overlap of neighbouring tiles in pixels, a multiple of 32, at most half a tile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictFilesOptions(PredictOptions):
    """Write masks, and if asked for probabilities, uncertainty and overlays, of images of any size and format."""

    run: tyro.conf.Positional[Path]
    """The run's folder, a finished sweep's, or an exported .onnx file."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders (with their subfolders), or globs."""
    out: Path
    """Folder to write to, a new one."""
    resume: bool = False
    """Go on in --out where the same command was interrupted."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write a run's report: one HTML file with its scores, plots and pictures."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """The file to write; by default report.html in the run's folder."""
    split: str = "test"
    """train, val or test."""
    mc_samples: int = 20
    """Monte Carlo dropout samples for the pictures of uncertainty, where the network has dropout."""
    images: int = 3
    """How many of the best, of the median and of the worst images to show."""
    seed: int = 0
    """Seed of the samples."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a run's network for use elsewhere: no dropout, float32, intensity scaling inside, checked."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """The file or folder to write; by default model.onnx or saved_model in the run's folder."""
    format: Literal["onnx", "saved_model"] = "onnx"
    """ONNX, or TensorFlow's SavedModel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(SweepConfig):
    """Does dropout help on these data? Train with and without it on the same folds, and tell how sure the answer is."""

    folder: tyro.conf.Positional[Path]
    """The sweep's folder: a new one, or one to go on with or to join; then it may stand alone."""
    rates: tuple[float, ...] = ()
    """Dropout rates to compare with 0, by default 0.1 0.2 0.3 0.5."""
    kinds: tuple[Kind, ...] = ()
    """Kinds of dropout, by default spatial; with --grid or --encoder-dropout what those and --dropout-kind say."""
    placements: tuple[Placement, ...] = ()
    """Places of the dropout in its units."""
    blocks: tuple[str, ...] = ()
    """Stages or units, those of one arm joined by commas: stage4 stage3,stage4."""
    schedules: tuple[Schedule, ...] = ()
    """How rates change during training."""
    grid: str | None = None
    """Any fields of the training and their values as JSON, {"lr": [0.001, 0.0003]}, or a file of it; a list of such
    mappings is one grid after the other, and for --search {"low": 0.05, "high": 0.5} is a range."""
    storage: str | None = None
    """Database for many machines, postgresql://user@host/database; by default a file in the folder, for one machine."""
    workers: int | None = None
    """Processes on this machine, by default one for each GPU, else one; without GPUs they share the cores."""
    dry_run: bool = False
    """Tell the arms, the number of trainings and how long they would take, and train nothing."""
    report: bool = False
    """Answer from what is finished by now, and train nothing."""
    test: bool = False
    """With --report: score the chosen arm of a finished sweep on the test images, once."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)
    """What all trainings have in common."""


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Show the dropout layers of a run or a model file, and which layers each affects."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or a .keras file."""
    image_size: int | None = None
    """Side of the images that shapes are shown for; by default a run's crop size, and open for a file."""
    verify: bool = False
    """Prove that the model is the plain one with working dropout in it and nothing else changed."""
    svg: Path | None = None
    """Write a picture of the network with its dropout marked."""
    csv: Path | None = None
    """Write the table as CSV, with the names of all layers affected."""
    json: Path | None = None
    """Write the table as JSON."""


COMMANDS = {
    "train": TrainConfig,
    "sweep": SweepOptions,
    "evaluate": EvaluateOptions,
    "predict": PredictFilesOptions,
    "report": ReportOptions,
    "export": ExportOptions,
    "inspect": InspectOptions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 where some files failed, 2 for wrong input, told in one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _warnings_in_one_line():
            return _dispatch(arguments)
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = _describe(error)
    except KeyboardInterrupt:
        message = "interrupted; a sweep goes on with the same command, train and predict with --resume besides."
    print(f"segdrop: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings for the user without the place in the code that gave them; developers' ones stay as they are."""
    usual = warnings.formatwarning

    def in_one_line(message, category, *where) -> str:
        return f"segdrop: warning: {message}\n" if category is UserWarning else usual(message, category, *where)

    warnings.formatwarning = in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _dispatch(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name == "--version":
        print(f"segdrop {__version__}")
        return 0
    if name in ("-h", "--help"):
        print("usage: segdrop COMMAND [OPTIONS]\n")
        for command, options in COMMANDS.items():
            print(f"  {command:10} {(options.__doc__ or '').splitlines()[0]}")
        print("\n`segdrop COMMAND --help` lists a command's options; `segdrop --version` tells the version.")
        return 0
    if name not in COMMANDS:
        raise InputError(f"no such command: {name!r}; there are {', '.join(COMMANDS)}.")
    options = _parse(name, rest, _stored_config(rest) if name == "train" else None)
    if not (isinstance(options, SweepOptions) and options.report and not options.test):
        _import_tensorflow()
    return _RUN[type(options)](options) or 0


def _stored_config(arguments: list[str]) -> TrainConfig | None:
    """The stored configuration of the run to resume, or of a sweep's chosen arm: what is not given is as it says."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    if "--resume" in words and "--run-dir" in words[:-1]:
        from .run import stored_config

        run_dir = words[words.index("--run-dir") + 1]
        return dataclasses.replace(stored_config(run_dir), run_dir=run_dir)
    if "--from-sweep" in words[:-1]:
        from .sweep_folder import chosen_config

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


def _parse(name: str, arguments: list[str], default: TrainConfig | None = None):
    """The options of a command; tyro's boxed error messages become an InputError of one line."""
    os.environ["COLUMNS"], columns = "1000", os.environ.get("COLUMNS")  # so that tyro does not wrap them
    stderr = io.StringIO()
    try:
        if {"-h", "--help"} & set(arguments):
            os.environ["COLUMNS"] = columns or str(min(110, shutil.get_terminal_size().columns))
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                COMMANDS[name],
                prog=f"segdrop {name}",
                args=arguments,
                registry=_registry,
                **({} if default is None else {"default": default}),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_first_block(stderr.getvalue())) from None
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


_registry = tyro.constructors.ConstructorRegistry()


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
        instance_from_str=lambda words: tuple(words[0].split(",")),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["None" if value is None else ",".join(value)],
    )


def _describe(error: OSError) -> str:
    """An OSError in one line: ours as they are, the system's with the file and what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    advice = {
        errno.ENOSPC: "; free some space, then go on: a sweep with the same command, a run with --resume",
        errno.EACCES: "; choose another place or change the permissions",
        errno.EROFS: "; choose another place",
    }.get(error.errno, "")
    return f"{error.strerror}{where}{advice}."


def _train(config: TrainConfig) -> None:
    from .training import train

    train(config)


def _sweep(options: SweepOptions) -> None:
    from .answer_files import tables
    from .sweep_folder import open_sweep
    from .sweeps import estimate, sweep, sweep_report
    from .workers import in_words

    config = _sweep_config(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's request to end is as good as Ctrl-C
    if options.dry_run:
        config = config or SweepConfig.from_json(open_sweep(options.folder)["config"])
        price = estimate(config)
        print("\n".join(price.arms))
        print(
            f"{price.trainings} trainings, about {in_words(price.seconds)} one after the other on this machine"
            f"{', if no patience ends them earlier' if config.train.patience < config.train.epochs else ''}."
        )
        return
    if options.report or options.test:
        data = options.train.data if options.train != TrainConfig() else None
        found = sweep_report(options.folder, storage=options.storage, test=options.test, data=data)
    else:
        found = sweep(options.folder, config, storage=options.storage, workers=options.workers)
    console = _console()
    for table in tables(found):
        console.print(table.rich())
    console.print(f"{found.headline}\n\nAll of it: {options.folder / 'answer.md'}", highlight=False, markup=False)


def _sweep_config(options: SweepOptions) -> SweepConfig | None:
    """What the options ask to compare; None where they say nothing of it, for a sweep that is there."""
    from .arms import default_grid, read_grid
    from .run import is_sweep

    asked = {**_fields(options), **dict.fromkeys(("storage", "workers"), None)}
    asked |= dict.fromkeys(("dry_run", "report", "test"), False)
    if SweepOptions(**asked) == SweepOptions(folder=options.folder) and is_sweep(options.folder):
        return None
    given = {
        "encoder_dropout": options.rates,
        "dropout_kind": options.kinds,
        "dropout_placement": options.placements,
        "dropout_blocks": [blocks.split(",") for blocks in options.blocks],
        "dropout_schedule": options.schedules,
    }
    given = {name: list(values) for name, values in given.items() if values}
    grid = read_grid(options.grid)
    if grid is None:
        grid = default_grid(options.train, given)
    elif given:
        raise InputError(f"`grid` is given beside {', '.join(given)}; put all into it.")
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(SweepConfig)}
    return SweepConfig(**{**shared, "grid": grid})


def _evaluate(options: EvaluateOptions) -> None:
    from .evaluation import evaluate, scores_table

    result = evaluate(**_fields(options))
    console = _console()
    for table in scores_table(result):
        console.print(table.rich())
    if "warning" in result:
        console.print(f"[bold yellow]Warning: {result['warning']}.")


def _predict(options: PredictFilesOptions) -> int:
    from .prediction import predict

    found = predict(**_fields(options))
    failures = [row for row in found.files if row["status"] != "ok"]
    for row in failures[:10]:
        print(f"segdrop: {row['status']}", file=sys.stderr)
    if len(failures) > 10:
        print(f"segdrop: ... and {len(failures) - 10} more, in {found.out / 'predictions.csv'}", file=sys.stderr)
    print(
        f"{len(found.files) - len(failures)} of {len(found.files)} files predicted, in {found.out}: "
        f"{found.images_per_second:.2f} images/s, {found.tiles_per_second:.2f} tiles/s."
    )
    return 1 if failures else 0


def _report(options: ReportOptions) -> None:
    from .reporting import report

    print(f"Report: {report(**_fields(options))}")


def _export(options: ExportOptions) -> None:
    from .exporting import export

    names = {"onnx": "model.onnx", "saved_model": "saved_model"}
    result = export(options.run, options.out or options.run / names[options.format], format=options.format)
    print(f"Exported: {result.path} (probabilities differ by at most {result.difference:.2g} on {result.images}).")


def _inspect(options: InspectOptions) -> None:
    from .dropout import remove_dropout
    from .inspection import draw_network, dropout_table
    from .loading import load_model
    from .run import MODEL, stored_config
    from .verification import verify

    path, side = options.model, options.image_size
    if path.is_dir():
        side = side or stored_config(path).crop_size
        path = path / MODEL
    if not path.is_file():
        raise FileNotFoundError(f"There is no model: {path}.")
    model = load_model(path)
    size = None if side is None else (side, side)
    try:
        table = dropout_table(model, size)
    except TypeError as error:  # a subclassed model, or one that was never built
        raise InputError(f"{path}: {error}") from error
    console = _console()
    console.print(table.rich() if table else f"{path} has no dropout layer.")
    if options.verify:
        console.print(verify(remove_dropout(model), model).rich())
    if options.csv:
        table.to_csv(options.csv)
    if options.json:
        table.to_json(options.json)
    if options.svg:
        draw_network(model, options.svg, size)


def _console():
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def _fields(options) -> dict:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


_RUN = {
    TrainConfig: _train,
    SweepOptions: _sweep,
    EvaluateOptions: _evaluate,
    PredictFilesOptions: _predict,
    ReportOptions: _report,
    ExportOptions: _export,
    InspectOptions: _inspect,
}


if __name__ == "__main__":
    sys.exit(main())
