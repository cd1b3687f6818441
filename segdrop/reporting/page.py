"""A run on one page: what was trained, on what, how well it does, where it fails, and how sure it is of it."""

import dataclasses
import math
import os
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from ..config.checks import check_whole
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.opening import open_configured
from ..errors import InputError
from ..files import write_atomically
from ..folders.run import (
    RECALIBRATION,
    RunRecord,
    open_run,
    read_history,
    read_images,
    read_metrics,
    read_split,
    recorded_split,
    stored_scores,
)
from ..folders.state import is_interrupted
from ..inference.evaluate import evaluate
from ..inference.network import load
from ..nets.inspection import dropout_table
from ..show import plots
from ..show.scores import sampled_in_words
from ..version import __version__
from .charts import (
    best_row,
    curves_chart,
    network_drawing,
    reliability_chart,
    risk_coverage_chart,
)
from .embedding import hex_colour, page_at, render
from .pictures import choose_pictures
from .scores import (
    UNCERTAINTIES,
    best_uncertainty,
    calibrations,
    columns_of,
    detections,
    field_in_words,
    image_table,
    misleading,
    number_in_words,
    undefined,
)

SPLITS = {"train": "training", "val": "validation", "test": "test", "all": "whole data set"}


def report(
    run: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    split: str = "test",
    mc_samples: int = 20,
    images: int = 3,
    seed: int = 0,
) -> Path:
    """Write a run's report: one HTML file without any reference to another file or the network.

    What it shows is read from the run's folder. Scores of the split that are missing, or lack the uncertainty, are
    first computed and stored by `segdrop.evaluate`. Without the data set the page has no pictures and says so.

    Args:
        run: the run's folder.
        out: the file to write, in place of an earlier page; by default report.html in the run's folder.
        split: whose scores and images are shown: "train", "val", "test", or "all".
        mc_samples: Monte Carlo samples for the uncertainty of a network with dropout; 0 shows the entropy of its
            single prediction instead, as for a network without.
        images: how many of the best, of the middle and of the worst images by Dice are shown.
        seed: of the Monte Carlo samples.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: the run or the folder of `out` does not exist.
        FileExistsError: `out` is there and is no page.
        InputError: the run cannot be used, or the split is unknown or empty.

    Example:
        >>> page = segdrop.report("runs/first", mc_samples=0, images=1)
        >>> page.as_posix()
        'runs/first/report.html'
    """
    run = Path(run)
    for name, value in (("mc_samples", mc_samples), ("images", images), ("seed", seed)):
        check_whole(value, name, minimum=0)
    if split not in SPLITS:
        raise InputError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    record = open_run(run)
    config = record.config
    out = page_at(run / "report.html" if out is None else out)

    network = load(run)
    dropout = dropout_table(network.model, (config.crop_size, config.crop_size))
    samples = mc_samples if any(row["rate"] for row in dropout) else 0
    dataset, problem = open_data(run, record, split)
    result, rows = scores_of(run, split, samples, seed, evaluates=dataset is not None)
    background, *foreground = network.class_names
    kind = best_uncertainty(result, samples)
    history = read_history(run)
    page = {
        "name": run.resolve().name,
        "made": f"segdrop {__version__}, {datetime.now():%Y-%m-%d %H:%M}",
        "record": record,
        "config": config,
        "split": split,
        "split_name": SPLITS[split],
        "result": result,
        "warnings": warnings_of(run, record, result, dataset),
        "changed": _options(config, changed=True),
        "unchanged": _options(config, changed=False),
        "members": _members(run),
        "sizes": None if dataset is None else _sizes(dataset),
        "dropout": dropout,
        "network": network_drawing(network.model, config.crop_size),
        "curves": curves_chart(history),
        "best": best_row(history),
        "epochs": len(history),
        "score_columns": columns_of(result),
        "undefined": undefined(result, foreground),
        "others": {key: scores for key, scores in stored_scores(run).items() if key != split},
        "recalibration": read_metrics(run).get(RECALIBRATION),
        "calibrations": calibrations(result),
        "detections": {UNCERTAINTIES.get(key, key): scores for key, scores in detections(result).items()},
        "misleading": misleading(result),
        "reliability": reliability_chart(result),
        "risk_coverage": risk_coverage_chart(result),
        "problem": problem,
        "pictures": None if dataset is None else choose_pictures(network, dataset, rows, images, samples, seed, kind),
        "colours": {name: hex_colour(plots.PALETTE[i % len(plots.PALETTE)]) for i, name in enumerate(foreground)},
        "error_colours": {"missed": hex_colour(plots.MISSED), "false": hex_colour(plots.FALSE)},
        "table": image_table(rows, background, foreground, result.get("distance_unit", "px")),
        "commands": _commands(run, config, split, samples, mc_samples, images, seed),
    }
    html = render("report.html", page, number=number_in_words, shown=field_in_words, sampled=sampled_in_words)
    write_atomically(out, lambda path: path.write_text(html, encoding="utf-8"))
    return out


def open_data(run: Path, record: RunRecord, split: str) -> tuple[Dataset | None, str | None]:
    """The run's data set, or None and why it cannot be used."""
    try:
        dataset = open_configured(record.config, record.config.data, outputs=record.classes)
        recorded_split(run, dataset, split)
    except (InputError, OSError) as error:
        return None, str(error)
    return dataset, None


def scores_of(run: Path, split: str, samples: int, seed: int, evaluates: bool) -> tuple[dict, list[dict[str, str]]]:
    """The split's result in metrics.json and rows of per_image.csv, computed where something is missing."""
    result = stored_scores(run).get(split, {})
    if evaluates and (not result or not read_images(run, split) or (samples and "uncertainty" not in result)):
        result = evaluate(run, split=split, mc_samples=samples, seed=seed)
    return result, read_images(run, split)


def warnings_of(run: Path, record: RunRecord, result: Mapping, dataset: Dataset | None) -> list[str]:
    """What has to be known before a run's scores are believed."""
    warnings = list(record.warnings)
    if is_interrupted(run):
        warnings.append("The training is not finished; this is its best model so far.")
    if "warning" in result or (dataset is not None and dataset.digest != record.data_sha256):
        warnings.append("The data set has changed since the training: these are not the images that the run saw.")
    return warnings


def _options(config: TrainConfig, changed: bool) -> dict[str, str]:
    """The options that differ from their defaults, or those that do not, as the command line writes them."""
    return {
        field.name: words_of(field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if (getattr(config, field.name) != field.default) == changed and field.name not in ("run_dir", "resume")
    }


def words_of(name: str, value) -> str:
    """The value of an option as the command line writes it."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        between = {"encoder_dropout": "..", "dropout_blocks": ","}.get(name, " ")
        return between.join(map(str, value))
    return str(value)


def _commands(run, config, split, samples, mc_samples, images, seed) -> list[str]:
    """The command lines that train such a run, score it, and write its report."""
    train = ["segdrop", "train"]
    for name, words in _options(config, changed=True).items():
        flag = name.replace("_", "-")
        if isinstance(getattr(config, name), bool):
            train.append(f"--{flag}" if getattr(config, name) else f"--no-{flag}")
        else:
            many = isinstance(getattr(config, name), (tuple, list)) and " " in words
            train += [f"--{flag}", *(words.split(" ") if many else [words])]
    own = ["--import", config.dropout_layer.partition(":")[0]] if config.dropout_layer else []
    evaluate_options = ["--split", split, "--mc-samples", str(samples), "--seed", str(seed)]
    report_options = ["--split", split, "--mc-samples", str(mc_samples), "--images", str(images), "--seed", str(seed)]
    return [
        shlex.join(train),
        shlex.join(["segdrop", "evaluate", str(run), *own, *evaluate_options]),
        shlex.join(["segdrop", "report", str(run), *own, *report_options]),
    ]


def _members(run: Path) -> list[dict]:
    """Images and groups of each split."""
    members: dict[str, list[dict[str, str]]] = {}
    for row in read_split(run):
        members.setdefault(row["split"], []).append(row)
    return [
        {
            "split": SPLITS.get(name, name),
            "images": len(members[name]),
            "groups": len({row["group"] for row in members[name]}) if "group" in members[name][0] else None,
        }
        for name in sorted(members, key=list(SPLITS).index)
    ]


def _sizes(dataset: Dataset) -> str:
    sizes = sorted({(int(height), int(width)) for height, width in dataset.sizes}, key=math.prod)
    first, last = (f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
    return f"all {first}" if len(sizes) == 1 else f"{len(sizes)} sizes, {first} to {last}"
