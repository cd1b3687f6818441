"""A run on one page: what was trained, on what, how well it does, where it fails, and how sure it is of it."""

import base64
import dataclasses
import importlib.resources
import io
import json
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import cv2
import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from . import __version__, plots
from .config import OVERLAP, TILE, TrainConfig, check_whole
from .dataset import Dataset
from .errors import InputError
from .evaluation import PER_IMAGE, evaluate, open_data, recorded_split, sampled_in_words
from .inspection import draw_network, dropout_table
from .loading import load
from .metrics import to_labels
from .pipeline import evaluation_batches
from .run import HISTORY, METRICS, SPLIT, STATE, best_epoch, open_run, read_csv, stored_config, write_atomically
from .tiles import in_tiles
from .uncertainty import MonteCarlo, entropy, from_moments

SPLITS = {"train": "training", "val": "validation", "test": "test", "all": "whole data set"}
LONGEST_SIDE = 512  # of a picture in the page, in pixels
SCORES = {  # of a class: the column's title and the score's name in metrics.json
    "Dice": "dice",
    "IoU": "iou",
    "Precision": "precision",
    "Recall": "recall",
    "Dice per image": "dice_per_image",
    "Dice per case": "dice_per_case",
    "HD95": "hd95",
    "Surface Dice": "surface_dice",
}
NATS = ("entropy", "predictive_entropy", "mutual_information")  # columns of per_image.csv
UNCERTAINTIES = {
    "single_pass_entropy": "entropy of the single prediction",
    "predictive_entropy": "predictive entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
}


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
        out: the file to write, replaced where it exists; by default report.html in the run's folder.
        split: whose scores and images are shown: "train", "val", "test", or "all".
        mc_samples: Monte Carlo samples for the uncertainty of a network with dropout; 0 shows the entropy of its
            single prediction instead, as for a network without.
        images: how many of the best, of the middle and of the worst images by Dice are shown.
        seed: of the Monte Carlo samples.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: the run or the folder of `out` does not exist.
        InputError: the run cannot be used, or the split is unknown or empty.
    """
    run = Path(run)
    for name, value in (("mc_samples", mc_samples), ("images", images), ("seed", seed)):
        check_whole(value, name, minimum=0)
    if split not in SPLITS:
        raise InputError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    record, config = open_run(run), stored_config(run)
    out = run / "report.html" if out is None else Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"`out` has no folder: {out.parent}; make it first.")

    network = load(run)
    dropout = dropout_table(network.model, (config.crop_size, config.crop_size))
    samples = mc_samples if any(row["rate"] for row in dropout) else 0
    dataset, problem = _open_data(run, config, record, split)
    result, rows = _scores(run, split, samples, seed, evaluates=dataset is not None)
    background, *foreground = network.class_names
    history = _history(run)
    page = {
        "name": run.resolve().name,
        "made": f"segdrop {__version__}, {datetime.now():%Y-%m-%d %H:%M}",
        "record": record,
        "config": config,
        "split": split,
        "split_name": SPLITS[split],
        "result": result,
        "warnings": _warnings(run, record, result, dataset),
        "changed": _options(config, changed=True),
        "unchanged": _options(config, changed=False),
        "members": _members(run),
        "sizes": None if dataset is None else _sizes(dataset),
        "dropout": dropout,
        "network": _network_drawing(network.model, config.crop_size),
        "curves": _curves(history),
        "best": _best(history),
        "epochs": len(history),
        "score_columns": _columns(result),
        "undefined": _undefined(result, foreground),
        "others": {k: v for k, v in _stored(run).items() if k != split and isinstance(v, dict) and "images" in v},
        "recalibration": _stored(run).get("batchnorm_recalibration"),
        "calibrations": _calibrations(result),
        "detections": {UNCERTAINTIES.get(key, key): scores for key, scores in _detections(result).items()},
        "reliability": _reliability(result),
        "risk_coverage": _risk_coverage(result),
        "problem": problem,
        "pictures": None if dataset is None else _pictures(network, dataset, rows, images, samples, seed),
        "colours": {name: _hex(plots.PALETTE[i % len(plots.PALETTE)]) for i, name in enumerate(foreground)},
        "table": _image_table(rows, background, foreground, result.get("distance_unit", "px")),
        "commands": _commands(run, config, split, samples, mc_samples, images, seed),
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "shown": _shown, "sampled": sampled_in_words}
    template = importlib.resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    html = environment.from_string(template).render(page)
    write_atomically(out, lambda path: path.write_text(html, encoding="utf-8"))
    return out


def _open_data(run: Path, config: TrainConfig, record: Mapping, split: str) -> tuple[Dataset | None, str | None]:
    """The run's data set, or None and why it cannot be used."""
    try:
        dataset = open_data(config.data, record, config)
        recorded_split(run, dataset, split)
    except (InputError, OSError) as error:
        return None, str(error)
    return dataset, None


def _scores(run: Path, split: str, samples: int, seed: int, evaluates: bool) -> tuple[dict, list[dict[str, str]]]:
    """The split's result in metrics.json and rows of per_image.csv, computed where something is missing."""

    def rows() -> list[dict[str, str]]:
        path = run / PER_IMAGE
        return [row for row in read_csv(path) if row["split"] == split] if path.is_file() else []

    result = _stored(run).get(split, {})
    if evaluates and (not result or not rows() or (samples and "uncertainty" not in result)):
        result = evaluate(run, split=split, mc_samples=samples, seed=seed)
    return result, rows()


def _stored(run: Path) -> dict:
    path = run / METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _warnings(run: Path, record: Mapping, result: Mapping, dataset: Dataset | None) -> list[str]:
    warnings = list(record.get("warnings", []))
    if (run / STATE).is_file():
        warnings.append("The training is not finished; this is its best model so far.")
    if "warning" in result or (dataset is not None and dataset.digest != record.get("data_sha256")):
        warnings.append("The data set has changed since the training: these are not the images that the run saw.")
    return warnings


def _options(config: TrainConfig, changed: bool) -> dict[str, str]:
    """The options that differ from their defaults, or those that do not, as the command line writes them."""
    return {
        field.name: _words(field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if (getattr(config, field.name) != field.default) == changed and field.name not in ("run_dir", "resume")
    }


def _words(name: str, value) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in value.items())
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
    scored = ["--split", split, "--mc-samples", str(samples), "--seed", str(seed)]
    shown = ["--split", split, "--mc-samples", str(mc_samples), "--images", str(images), "--seed", str(seed)]
    return [
        shlex.join(train),
        shlex.join(["segdrop", "evaluate", str(run), *scored]),
        shlex.join(["segdrop", "report", str(run), *shown]),
    ]


def _members(run: Path) -> list[dict]:
    """Images and groups of each split."""
    members: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(run / SPLIT):
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


def _history(run: Path) -> list[dict[str, float]]:
    path = run / HISTORY
    rows = read_csv(path) if path.is_file() else []
    return [{key: float(value) for key, value in row.items() if value} | {"epoch": int(row["epoch"])} for row in rows]


def _best(history: list[dict]) -> int | None:
    """The best epoch, counted from 0; None where there was no validation to tell it."""
    return best_epoch(history) if history and "val_dice" in history[0] else None


def _curves(history: list[dict]) -> dict[str, str]:
    shown = [name for name in ("loss", "dice", "learning_rate", "dropout_rate") if history and name in history[0]]
    return {name: _chart(plots.curve(history, name, _best(history))) for name in shown}


def _network_drawing(model, side: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.svg")
        draw_network(model, path, (side, side))
        return _uri("image/svg+xml", path.read_bytes())


def _columns(result: Mapping) -> dict[str, str]:
    """The scores that some class has, by the titles of their columns."""
    units = {"hd95": f" ({result.get('distance_unit', 'px')})"}
    classes = result.get("classes", {}).values()
    return {
        title + units.get(key, ""): key
        for title, key in SCORES.items()
        if any(scores.get(key) is not None for scores in classes)
    }


def _undefined(result: Mapping, foreground: Sequence[str]) -> list[str]:
    """In how many images a score of a class has no value."""
    keys = {"Dice": "images_undefined", "HD95": "hd95_undefined", "surface Dice": "surface_dice_undefined"}
    lines = []
    for name in foreground:
        scores = result.get("classes", {}).get(name, {})
        counts = [f"{title} in {scores[key]}" for title, key in keys.items() if scores.get(key)]
        if counts:
            lines.append(
                f"{name}: undefined and left out of the mean are {', '.join(counts)} of {result['images']} images"
            )
    return lines


def _calibrations(result: Mapping) -> dict[str, Mapping]:
    found = {"Single prediction": result.get("calibration")}
    if result.get("uncertainty"):
        found[f"Mean of {sampled_in_words(result['uncertainty'])}"] = result["uncertainty"]["calibration"]
    return {name: calibration for name, calibration in found.items() if calibration}


def _detections(result: Mapping) -> dict[str, Mapping]:
    return (result.get("uncertainty") or {}).get("scores") or result.get("error_detection") or {}


def _reliability(result: Mapping) -> dict[str, str]:
    """A diagram of each region that has pixels."""
    titles = {"all": "All pixels", "foreground": "Foreground and its neighbourhood"}
    charts = {}
    for region, title in titles.items():
        bins = {name: (one.get("reliability") or {}).get(region) or [] for name, one in _calibrations(result).items()}
        if any(one["count"] for rows in bins.values() for one in rows):
            charts[title] = _chart(plots.reliability_diagram(bins))
    return charts


def _risk_coverage(result: Mapping) -> str | None:
    curves = {
        UNCERTAINTIES.get(name, name): scores["risk_coverage"]
        for name, scores in _detections(result).items()
        if scores.get("risk_coverage")
    }
    return _chart(plots.risk_coverage(curves)) if curves else None


def _pictures(network, dataset: Dataset, rows: Sequence[Mapping], count: int, samples: int, seed: int) -> dict | None:
    """The best, middle and worst images by Dice with truth, prediction and uncertainty; None where there are none."""
    scored = sorted((row for row in rows if row.get("dice")), key=lambda row: float(row["dice"]), reverse=True)
    chosen = {title: [scored[i] for i in ranks] for title, ranks in _ranks(len(scored), count).items() if ranks}
    if not chosen:
        return None
    position = {name: i for i, name in enumerate(dataset.ids)}
    predict = _predictor(network, samples, seed)
    views = {}
    for row in (row for members in chosen.values() for row in members):
        index = position[row["id"]]
        height, width = dataset.sizes[index]
        images, truth = evaluation_batches(dataset, [index], 0).read([index])
        labels, uncertainty = (part[:height, :width] for part in predict(images[0]))
        image, truth = _small(images[0, :height, :width]), _small(truth[0, :height, :width, 0], cv2.INTER_NEAREST)
        views[row["id"]] = (
            {
                "image": plots.overlay(image, np.zeros_like(truth)),
                "truth": plots.overlay(image, truth),
                "prediction": plots.overlay(image, _small(labels, cv2.INTER_NEAREST)),
            },
            _small(uncertainty),
        )
    groups = {}
    for title, members in chosen.items():
        groups[title] = []
        for row in members:
            pictures, uncertainty = views[row["id"]]
            highest = float(uncertainty.max())
            pictures["uncertainty"] = plots.heat(uncertainty, highest or 1)
            uris = {name: _jpeg(picture) for name, picture in pictures.items()}
            groups[title].append({"id": row["id"], "dice": float(row["dice"]), "highest": highest, "pictures": uris})
    return {
        "groups": groups,
        "kind": f"mutual information of {samples} Monte Carlo samples"
        if samples
        else "entropy of the single prediction",
        "most": math.log(len(dataset.class_names)),
        "bar": _jpeg(plots.heat(np.tile(np.linspace(0, 1, 256), (12, 1)), 1)),
        "unranked": len(rows) - len(scored),
    }


def _ranks(total: int, count: int) -> dict[str, list[int]]:
    """Which places in the order from best to worst to show: the first, the middle and the last, none of them twice."""
    count = min(count, max(1, total // 3))
    best, worst = range(count), range(max(count, total - count), total)
    middle = (total - count) // 2
    median = [i for i in range(middle, middle + count) if i not in best and i not in worst]
    return {"Best": list(best), "Median": median, "Worst": list(worst)}


def _predictor(network, samples: int, seed: int) -> Callable:
    """A function of a padded image, float32 (H, W, 3), that gives labels, uint8 (H, W), and uncertainty in nats."""
    monte_carlo = MonteCarlo(network.model, samples, seed) if samples else None

    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities = in_tiles(network.probabilities, image, TILE, OVERLAP)
        if monte_carlo is None:
            return to_labels(probabilities), entropy(probabilities)
        sampled = from_moments(in_tiles(monte_carlo.moments, image, TILE, OVERLAP))
        return to_labels(probabilities), sampled.mutual_information

    return predict


def _image_table(rows: Sequence[Mapping[str, str]], background: str, foreground: Sequence[str], unit: str) -> dict:
    """Columns with their titles, and rows of values, worst Dice first and undefined last."""
    hidden = {f"{key}_{background}" for key in SCORES.values()} | {"split"}
    if len(foreground) == 1:  # whose mean it is
        hidden |= {f"{key}_{foreground[0]}" for key in ("dice", "iou")}
    keys = [key for key in (rows[0] if rows else ()) if key not in hidden and any(row[key] for row in rows)]
    columns = [
        {"key": key, "title": _title(key, foreground, unit), "numeric": key not in ("id", "group")} for key in keys
    ]
    ordered = sorted(rows, key=lambda row: float(row["dice"]) if row.get("dice") else math.inf)
    return {"columns": columns, "rows": ordered}


def _title(key: str, foreground: Sequence[str], unit: str) -> str:
    titles = {name: title for title, name in SCORES.items()} | {
        "hd95": f"HD95 ({unit})",
        "id": "Image",
        "group": "Group",
    }
    for name in foreground:
        part = key.removesuffix(f"_{name}")
        if part != key and part in titles:
            return titles[part] if len(foreground) == 1 else f"{titles[part]}, {name}"
    if key in NATS:
        return f"{key.replace('_', ' ').capitalize()} (nats)"
    return titles.get(key, key)


def _small(array: np.ndarray, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """An image or map of at most `LONGEST_SIDE` pixels a side."""
    factor = LONGEST_SIDE / max(array.shape[:2])
    if factor >= 1:
        return array
    height, width = (max(1, round(side * factor)) for side in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=interpolation)


def _jpeg(picture: np.ndarray) -> str:
    flags = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), flags)
    return _uri("image/jpeg", data.tobytes())


def _chart(figure: Figure) -> str:
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "segdrop"}):  # the same figure, the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(value):02x}" for value in colour)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _shown(value: str, key: str) -> str:
    """A field of per_image.csv with the digits that matter."""
    if not value:
        return ""
    return f"{float(value):.3g}" if key in NATS else _number(float(value), 1 if key.startswith("hd95") else 3)
