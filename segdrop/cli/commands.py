"""What each command does."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.checks import check_fields
from ..config.sweep import SweepConfig
from ..config.train import TrainConfig
from ..errors import InputError, naming
from ..printing import printable, say
from .options import (
    DataOptions,
    EvaluateOptions,
    ExportOptions,
    InspectOptions,
    PredictFilesOptions,
    RankOptions,
    ReportOptions,
    SweepOptions,
    ViewOptions,
)

if TYPE_CHECKING:  # it imports Optuna
    from ..sweeps.sweep import Price


def run_train(config: TrainConfig) -> None:
    from ..training.train import train

    train(config)


def run_data(options: DataOptions) -> None:
    from ..data.findings import examine
    from ..data.opening import open_configured
    from ..data.overview import overview
    from ..data.plain import check_new, write_plain
    from ..show.data import WIDTH, data_tables, findings_in_lines, summary

    _check_folder(options.out)
    if options.to:
        check_new(options.to, "to")
    dataset = open_configured(options)
    found, findings = examine(dataset)
    told = overview(dataset, found, findings)
    if options.json:
        _say_json(told)
    else:
        console = _console(WIDTH)
        say(*summary(told), "")
        for table in data_tables(told):
            console.print(table.rich())
        say(*(list(findings_in_lines(told["findings"])) or ["Nothing looks wrong."]))
    if options.out:
        from ..reporting.data_page import PAGE, write_data_pages

        write_data_pages(dataset, told, findings, options.out, options.context_slices)
        if not options.json:
            say("", f"Pictures: {options.out / PAGE}")
    if options.to:
        write_plain(dataset, options.to)
        if not options.json:
            say("", f"In the plain layout: {options.to}")


def run_sweep(options: SweepOptions) -> None:
    from ..folders.sweep import open_sweep
    from ..show.plan import plan_table
    from ..show.times import in_words
    from ..sweeps.answer_files import tables
    from ..sweeps.state import check_same
    from ..sweeps.sweep import estimate, sweep, sweep_report

    if options.report or options.test:
        reference = open_sweep(options.folder).config.reference  # of a report it may be another
        check_same(options.folder, dataclasses.replace(_sweep_config(options), reference=reference))
        answer = sweep_report(
            options.folder,
            storage=options.storage,
            test=options.test,
            data=options.train.data,
            margin=options.margin,
            reference=options.reference or None,
        )
    elif options.dry_run:
        config = _sweep_config(options)
        price = estimate(config)
        if price.plan["choices"]:
            _console().print(plan_table(price.plan).rich())
        say(*price.arms)
        say(
            f"{price.trainings} trainings, about {in_words(price.seconds)} one after the other on this machine"
            f"{', if no patience ends them earlier' if price.at_most else ''}."
        )
        _tell_foresight(options, config, price)
        return
    else:
        answer = sweep(options.folder, _sweep_config(options), storage=options.storage, workers=options.workers)
    console = _console()
    for table in tables(answer):
        console.print(table.rich())
    say(answer.headline, "", f"All of it: {options.folder / 'answer.md'}")


def _tell_foresight(options: SweepOptions, config: SweepConfig, price: "Price") -> None:
    """What the sweep could tell, or which one could tell what is asked."""
    from ..scoring.designs import Design
    from ..show.tables import Table
    from ..show.times import in_words
    from ..sweeps.foresight import pilot_spread, proposals, stated_spread, what_it_tells

    if options.pilot is None and options.spread is None:
        if options.detect is not None:
            raise InputError("`detect` needs the spread of a training: --spread, or an earlier sweep as --pilot.")
        say("What it could tell depends on how much trainings vary: --spread 0.02, or an earlier sweep as --pilot.")
        return
    spread = stated_spread(options.spread) if options.pilot is None else pilot_spread(options.pilot)
    if price.compared:
        seeds = price.reference_seeds / len(config.seeds)
        say(*what_it_tells(Design(price.compared, config.folds, config.repeats, seeds), spread).split("\n"))
    if options.detect is not None:
        seconds = price.seconds / price.trainings
        found = proposals(options.detect, spread, max(1, price.compared), seconds, options.hours)
        rows = [
            {
                "arms": str(one.arms),
                "folds": str(one.folds),
                "repeats": str(one.repeats),
                "seeds of the reference": str(one.reference_seeds),
                "trainings": str(one.trainings),
                "time": in_words(one.seconds),
                "tells": f"{one.detectable:.3f}",
            }
            for one in found
        ]
        _console().print(
            Table(rows, f"Sweeps that tell a difference of {options.detect:g} in four of five times").rich()
        )


def _sweep_config(options: SweepOptions) -> SweepConfig:
    """What the options ask to compare; of a sweep that is there, where they say nothing of it, what it compares."""
    from ..config.arms import alternatives, default_grid, read_grid, subgrids_of
    from ..config.checks import check_rate
    from ..folders.run import is_sweep
    from ..folders.sweep import open_sweep

    for rate in options.rates:
        check_rate(rate, "rates")
    given = {
        "encoder_dropout": options.rates,
        "dropout_kind": options.kinds,
        "dropout_placement": options.placements,
        "dropout_blocks": [blocks.split(",") for blocks in options.blocks],
        "dropout_schedule": options.schedules,
    }
    given = {name: list(values) for name, values in given.items() if values}
    grid = read_grid(options.grid)
    if grid is not None and given:
        raise InputError(f"`grid` is given beside {', '.join(given)}; put all into it.")
    if grid is None and not given and not options.alternatives and is_sweep(options.folder):
        grid = open_sweep(options.folder).config.grid
    else:
        grid = default_grid(options.train, given) if grid is None else grid
        _check_said_once(options.train, grid)
        if options.alternatives:
            grid = [*subgrids_of(grid), *alternatives(options.train)]
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(SweepConfig)}
    return SweepConfig(**{**shared, "grid": grid})


def _check_said_once(train: TrainConfig, grid) -> None:
    """Raise InputError where what all trainings have in common says of dropout what the grid says for each arm."""
    from ..config.arms import DROPOUT_FIELDS, subgrids_of

    varied = {name for subgrid in subgrids_of(grid) for name in subgrid}
    silent = TrainConfig()
    for name in DROPOUT_FIELDS:
        if ("dropout_kind" if name == "spatial" else name) in varied and getattr(train, name) != getattr(silent, name):
            raise InputError(f"`{name}` is given beside values of it to compare; leave one of them out.")


def run_evaluate(options: EvaluateOptions) -> None:
    from ..inference.evaluate import evaluate
    from ..show.scores import scores_table

    result = evaluate(**options.arguments)
    console = _console()
    for table in scores_table(result):
        console.print(table.rich())
    if "warning" in result:
        console.print(f"Warning: {result['warning']}.", style="bold yellow")


def run_predict(options: PredictFilesOptions) -> int:
    from ..inference.predict import predict

    predictions = predict(**options.arguments)
    failures = [row for row in predictions.files if row["status"] != "ok"]
    for row in failures[:10]:
        say(f"segdrop: {row['status']}", to_stderr=True)
    if len(failures) > 10:
        say(f"segdrop: ... and {len(failures) - 10} more, in {predictions.out / 'predictions.csv'}", to_stderr=True)
    say(
        f"{len(predictions.files) - len(failures)} of {len(predictions.files)} files predicted, in {predictions.out}: "
        f"{predictions.images_per_second:.2f} images/s, {predictions.tiles_per_second:.2f} tiles/s."
    )
    for warning in predictions.warnings:
        say(f"segdrop: warning: {warning}", to_stderr=True)
    return 1 if failures else 0


def run_view(options: ViewOptions) -> int:
    from ..viewing.server import view

    with contextlib.suppress(KeyboardInterrupt):  # SIGTERM, too; that is how a viewer ends
        view(options.run, options.inputs, port=options.port, open_browser=options.open)
    say("segdrop: interrupted, the viewer has ended.", to_stderr=True)
    return 130


def run_rank(options: RankOptions) -> int:
    from ..inference.network import load
    from ..inference.ranking import rank
    from ..reporting.ranking_page import PAGE, write_ranking
    from ..show.data import WIDTH, short
    from ..show.tables import Table

    check_fields(options)  # named as the user knows them
    if options.out is None and options.run.is_file():
        raise InputError(f"`out` must be given where the network is a file, got run={options.run} alone.")
    network, out = load(options.run), options.out or options.run
    _check_folder(out)
    ranking = rank(network, options.inputs, count=options.count, samples=options.mc_samples, seed=options.seed)
    write_ranking(network, ranking, out)
    if options.json:
        told = {"measure": ranking.measure, "images": list(ranking.images), "failed": ranking.failed}
        _say_json(told)
    else:
        rows = [
            {
                "rank": row["rank"],
                "image": short(row["image"], 44),
                "nats": row["uncertainty"],
                "distance": row["distance"],
            }
            for row in ranking.images
            if row["chosen"]
        ]
        _console(WIDTH).print(Table(rows, f"By {ranking.measure.replace('_', ' ')}, and different").rich())
        say(f"Page: {out / PAGE}")
    for line in ranking.failed:
        say(f"segdrop: {line}", to_stderr=True)
    return 1 if ranking.failed else 0


def run_report(options: ReportOptions) -> None:
    from ..folders.run import is_sweep
    from ..reporting.embedding import page_at
    from ..reporting.page import report
    from ..reporting.runs_page import PAGE, report_runs
    from ..sweeps import answer_page
    from ..sweeps.sweep import sweep_report

    several, sweep = len(options.runs) > 1, len(options.runs) == 1 and is_sweep(options.runs[0])
    if several or sweep:
        _refuse(options, ("mc_samples", "seed"), "is for the report of one run; leave it out")
    if sweep:
        _refuse(options, ("split", "images"), "is for the report of runs; leave it out")
    if several:
        page = report_runs(options.runs, options.out or PAGE, split=options.split, images=options.images)
    elif options.runs:
        run, *_ = options.runs
        if sweep:
            page = page_at(options.out or run / answer_page.PAGE)
            answer_page.write_answer_page(page, sweep_report(run))
        else:
            page = report(run, **{name: value for name, value in options.arguments.items() if name != "runs"})
    else:
        raise InputError("`runs` is empty; name the folder of a run, or several to compare.")
    say(f"Report: {page}")


def run_export(options: ExportOptions) -> None:
    from ..inference.export import export

    names = {"onnx": "model.onnx", "saved_model": "saved_model"}
    result = export(options.run, options.out or options.run / names[options.format], format=options.format)
    say(f"Exported: {result.path} (probabilities differ by at most {result.difference:.2g} on {result.images}).")


def run_inspect(options: InspectOptions) -> None:
    from ..folders.run import MODEL, open_run
    from ..nets.drawing import draw_network
    from ..nets.inspection import dropout_table
    from ..nets.stored import load_model
    from ..surgery.dropout import remove_dropout
    from ..surgery.verification import verify

    _check_inspection(options)
    if options.sensitivity:
        _show_sensitivity(options)
        return
    path, side = options.model, options.image_size
    if path.is_dir():
        side = side or open_run(path).config.crop_size
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
    console.print(table.rich() if table else printable(f"{path} has no dropout layer."))
    if options.verify:
        with naming("model"):
            console.print(verify(remove_dropout(model), model).rich())
    if options.csv:
        table.to_csv(options.csv)
    if options.json:
        table.to_json(options.json)
    if options.svg:
        draw_network(model, options.svg, size)


def _check_inspection(options: InspectOptions) -> None:
    """Raise InputError, FileNotFoundError or FileExistsError where an output cannot be written, or an option is for
    nothing."""
    check_fields(options)  # named as the user knows them
    if options.sensitivity and (options.verify or options.svg or options.image_size):
        raise InputError("`sensitivity` has a table of its own; leave --verify, --svg and --image-size out.")
    if not options.sensitivity:
        _refuse(options, ("mc_rate", "mc_samples", "mc_images", "seed"), "needs sensitivity, whose samples it is for")
    for name in ("csv", "json", "svg"):
        out = getattr(options, name)
        if out and not out.absolute().parent.is_dir():
            raise FileNotFoundError(f"`{name}` has no folder: {out.parent}; make it first.")
        if out and out.exists():
            raise FileExistsError(f"`{name}` exists: {out}; choose another name or delete it.")
    given = [out.absolute() for out in (options.csv, options.json, options.svg) if out]
    for out in (out for out in given if given.count(out) > 1):
        raise InputError(f"`csv`, `json` and `svg` must be different files, got {out} twice.")


def _show_sensitivity(options: InspectOptions) -> None:
    from ..inference.sensitivity import sensitivity

    table = sensitivity(
        options.model,
        rate=options.mc_rate,
        samples=options.mc_samples,
        images=options.mc_images,
        seed=options.seed,
    )
    console = _console()
    console.print(table.rich())
    console.print(table.reading)
    if options.csv:
        table.to_csv(options.csv)
    if options.json:
        table.to_json(options.json)


def _refuse(options, names: Sequence[str], told: str) -> None:
    """Raise InputError where something is said of options for which the others leave no use."""
    for field in dataclasses.fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise InputError(f"`{field.name}` {told}.")


def _check_folder(out: Path | None) -> None:
    if out and out.exists() and not out.is_dir():
        raise InputError(f"`out` must be a folder, but {out} is a file; choose another name.")


def _say_json(told) -> None:
    """Print JSON, in which what a terminal would obey is an escape, too."""
    say(*json.dumps(told, indent=1, ensure_ascii=False).split("\n"))


def _console(width: int = 140):
    """A console as wide as the terminal; where there is none, of `width` columns."""
    from ..show.console import Console

    return Console(width=None if sys.stdout.isatty() else width)
