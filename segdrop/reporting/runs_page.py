"""Several runs on one page: what sets them apart, their scores on the same images, and where these differ."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from ..config.checks import check_whole
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..errors import InputError
from ..files import write_atomically
from ..folders.run import RunRecord, open_run, read_history
from ..inference.network import load
from ..scoring.statistics import paired_bootstrap
from ..show import plots
from ..show.scores import difference_in_words
from ..show.tables import Table
from ..version import __version__
from .charts import best_row, curves_together
from .embedding import hex_colour, jpeg, page_at, render
from .page import SPLITS, open_data, scores_of, warnings_of, words_of
from .pictures import views
from .scores import SINGLE, number_in_words

PAGE = "runs.html"


@dataclass(frozen=True)
class _Run:
    path: Path
    name: str
    record: RunRecord
    dataset: Dataset | None
    problem: str | None
    result: Mapping
    rows: Mapping[str, Mapping[str, str]]  # of per_image.csv, by image
    history: Sequence[Mapping[str, float]]


def report_runs(
    runs: Sequence[str | os.PathLike], out: str | os.PathLike = PAGE, *, split: str = "test", images: int = 3
) -> Path:
    """Write several runs side by side on one page: options that differ, scores, learning curves and predictions.

    Each run is compared with the first, image by image, on the images of `split` that both have. The intervals hold for
    these networks on other images; how networks of the same options differ from training to training, a sweep tells.
    Scores that are missing are first computed and stored by `segdrop.evaluate`.

    Args:
        runs: folders of runs, two at least, of the same data and classes.
        out: the file to write, in place of an earlier page.
        split: whose scores and images are shown: "train", "val", "test", or "all".
        images: how many pictures to show of those whose Dice differs most, and of those where it is lowest.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: a run or the folder of `out` does not exist.
        FileExistsError: `out` is there and is no page.
        InputError: a run cannot be used or is named twice, or runs have other data or other classes than the first.

    Example:
        >>> import shutil
        >>> second = shutil.copytree("runs/first", "runs/second")  # in place of another training
        >>> segdrop.report_runs(["runs/first", second], images=1).as_posix()
        'runs.html'
    """
    check_whole(images, "images", minimum=0)
    if split not in SPLITS:
        raise InputError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    out = page_at(out)
    opened = _open(runs, split)
    foreground = opened[0].record.class_names[1:]
    page = {
        "runs": opened,
        "split_name": SPLITS[split],
        "made": f"segdrop {__version__}, {datetime.now():%Y-%m-%d %H:%M}",
        "warnings": [
            f"{run.name}: {warning}"
            for run in opened
            for warning in warnings_of(run.path, run.record, run.result, run.dataset)
        ],
        "unlike": len({frozenset(run.rows) for run in opened}) > 1,
        "scores": _scores(opened, foreground),
        "differences": _differences(opened),
        "grouped": all("group" in row for row in opened[0].rows.values()),
        "options": _options(opened),
        "curves": curves_together({run.name: run.history for run in opened}),
        "problem": next((f"{run.name}: {run.problem}" for run in opened if run.problem), None),
        "colours": {name: hex_colour(plots.PALETTE[i % len(plots.PALETTE)]) for i, name in enumerate(foreground)},
        "error_colours": {"missed": hex_colour(plots.MISSED), "false": hex_colour(plots.FALSE)},
    }
    page["pictures"] = {} if page["problem"] else _pictures(opened, images)
    html = render("runs.html", page, number=number_in_words)
    write_atomically(out, lambda path: path.write_text(html, encoding="utf-8"))
    return out


def _open(paths: Sequence[str | os.PathLike], split: str) -> list[_Run]:
    """The runs, once it is sure that they can be compared."""
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(f"`runs` must be two runs at least, each once, got {', '.join(map(str, paths)) or 'none'}.")
    records = [open_run(path) for path in paths]
    for path, record in zip(paths[1:], records[1:], strict=True):
        for what, said in (("classes", _classes), ("data", _data)):
            if said(record) != said(records[0]):
                raise InputError(
                    f"`runs` must be of the same {what}: {path} has {said(record)}, and {paths[0]} "
                    f"{said(records[0])}; give each a report of its own."
                )
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else list(map(str, paths))
    opened = []
    for path, name, record in zip(paths, names, records, strict=True):
        dataset, problem = open_data(path, record, split)
        result, rows = scores_of(path, split, 0, 0, evaluates=dataset is not None)
        by_image = {row["id"]: row for row in rows}
        opened.append(_Run(path, name, record, dataset, problem, result, by_image, read_history(path)))
    return opened


def _classes(record: RunRecord) -> str:
    return ", ".join(record.class_names)


def _data(record: RunRecord) -> str:
    """What tells data sets apart, wherever they lie."""
    return f"SHA-256 {record.data_sha256[:12]}..." if record.data_sha256 else record.config.data


def _scores(runs: Sequence[_Run], foreground: Sequence[str]) -> Table:
    rows = []
    for run in runs:
        result, best = run.result, best_row(run.history)
        calibration = result.get("calibration") or {}
        classes = {f"Dice, {name}": result.get("classes", {}).get(name, {}) for name in foreground}
        rows.append(
            {
                "run": run.name,
                "Dice": _with_interval(result, "dice"),
                **({title: _with_interval(scores, "dice") for title, scores in classes.items() if len(classes) > 1}),
                "IoU": _with_interval(result, "iou"),
                "calibration error": number_in_words(calibration.get("ece")),
                "near foreground": number_in_words(calibration.get("ece_foreground")),
                "images": str(result.get("images", "–")),
                "best epoch": "–" if best is None else f"{best + 1} of {len(run.history)}",
            }
        )
    return Table(rows, "All pixels together, with 95% intervals")


def _with_interval(scores: Mapping, key: str) -> str:
    low, high = scores.get(f"{key}_interval") or (None, None)
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return number_in_words(scores.get(key)) + interval


def _dice(run: _Run, ids: Sequence[str]) -> np.ndarray:
    """Dice of single images, NaN where undefined."""
    return np.array([float(run.rows[name].get("dice") or "nan") for name in ids])


def _differences(runs: Sequence[_Run]) -> Table:
    """Each run beside the first, on the images that both have."""
    first, *others = runs
    rows = []
    for run in others:
        shared = [name for name in first.rows if name in run.rows]
        differences = _dice(run, shared) - _dice(first, shared)
        groups = [first.rows[name].get("group", name) for name in shared]
        rows.append(
            {
                "run": run.name,
                "difference of Dice": difference_in_words(*paired_bootstrap(differences, groups)),
                "better in": str(np.count_nonzero(differences > 0)),
                "worse in": str(np.count_nonzero(differences < 0)),
                "equal in": str(np.count_nonzero(differences == 0)),
                "undefined in": str(np.count_nonzero(np.isnan(differences))),
            }
        )
    return Table(rows, f"Less the Dice of {first.name}, mean over single images [95% interval]")


def _options(runs: Sequence[_Run]) -> Table:
    rows = []
    for field in dataclasses.fields(TrainConfig):
        values = [words_of(field.name, getattr(run.record.config, field.name)) for run in runs]
        if field.name not in ("run_dir", "resume") and len(set(values)) > 1:
            rows.append({"": field.name, **dict(zip((run.name for run in runs), values, strict=True))})
    return Table(rows, "Options that differ")


def _pictures(runs: Sequence[_Run], count: int) -> dict[str, list[dict]]:
    """Of each heading its images: what they are, and of each run the prediction and its errors."""
    ids = [name for name in runs[0].rows if all(name in run.rows for run in runs)]
    dice = np.array([_dice(run, ids) for run in runs])
    known = [i for i in range(len(ids)) if not math.isnan(dice[:, i].sum())]
    apart = sorted(known, key=lambda i: -np.ptp(dice[:, i]))[:count]
    low = sorted((i for i in known if i not in apart), key=lambda i: dice[:, i].mean())[:count]
    seen = []
    for run in runs:
        network = load(run.path)
        indices = [run.dataset.ids.index(ids[i]) for i in apart + low]
        found = views(network, run.dataset, indices, 0, 0, SINGLE) if indices else ()
        seen.append({name: pictures for name, (pictures, _) in found})
    chosen = {"Where they differ most": apart, "The lowest of the others": low}
    return {
        title: [
            {
                "id": ids[i],
                "image": jpeg(seen[0][ids[i]]["image"]),
                "truth": jpeg(seen[0][ids[i]]["truth"]),
                "runs": [
                    {
                        "name": run.name,
                        "dice": float(dice[place, i]),
                        **{view: jpeg(seen[place][ids[i]][view]) for view in ("prediction", "errors")},
                    }
                    for place, run in enumerate(runs)
                ],
            }
            for i in places
        ]
        for title, places in chosen.items()
        if places
    }
