"""Pictures of images with their masks, of a training's history, and of what a network's certainty is worth."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..conventions import IGNORED, OVERLAPPING, has_class
from ..printing import printable

# Of the foreground classes, in turn: first those that stand out from greys and from stained and living tissue.
_ORDER = (9, 1, 8, 2, 0, 3, 6, 4, 5, 7)
PALETTE = 255 * np.array(
    [
        *(colormaps["tab10"].colors[i] for i in _ORDER),
        *(colormaps["tab20"].colors[2 * i + 1] for i in _ORDER),  # the lighter ones
        *colormaps["tab20b"].colors,
    ]
)
MISSED, FALSE = PALETTE[1], PALETTE[4]  # orange and blue, which all eyes tell apart
STYLES = ("-", "--", "-.", ":")  # so that lines that coincide are all seen


def save_undated(figure: Figure, file: Path | BinaryIO, ending: str) -> None:
    """Write a figure in a format, SVG and PDF without a date: the same figure, the same bytes."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
    with rc_context({"svg.hashsalt": "segdrop"}):
        figure.savefig(file, format=ending, metadata=undated)


def _literal(name: str) -> str:
    """A name as Matplotlib shows it: what stands between two $ it takes for a formula."""
    return printable(name).replace("$", r"\$")


def visible(image: np.ndarray, context: int = 0) -> np.ndarray:
    """What people are shown of an image, (H, W, C): the first three channels as RGB, of fewer the first as grey; of a
    slice with as many before and after it as `context` says that slice."""
    image = image[..., context : context + 1] if context else image
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def colours_of(multilabel: bool = False) -> np.ndarray:
    """The colour of each number that a mask can hold, float (256, 3), 0..255; of 0 and IGNORED it means nothing."""
    numbers = np.arange(256)
    if not multilabel:
        return PALETTE[(numbers - 1) % len(PALETTE)]
    shown = np.stack([has_class(numbers, index, True) for index in range(1, OVERLAPPING + 1)], axis=1)
    return shown @ PALETTE[:OVERLAPPING] / np.maximum(shown.sum(axis=1, keepdims=True), 1)


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.45, multilabel: bool = False) -> np.ndarray:
    """Colour the foreground classes of `labels`, uint8 (H, W), over `image`, (H, W, 3), 0..255; uint8 (H, W, 3).

    Where classes overlap the colour is the mean of theirs.
    """
    foreground = (labels > 0) & (labels != IGNORED)
    picture = np.asarray(image, np.float32).copy()
    picture[foreground] = (1 - opacity) * picture[foreground] + opacity * colours_of(multilabel)[labels[foreground]]
    return picture.round().clip(0, 255).astype(np.uint8)


def errors(
    image: np.ndarray, truth: np.ndarray, pred: np.ndarray, opacity: float = 0.7, multilabel: bool = False
) -> np.ndarray:
    """Colour the foreground that a prediction misses, in `MISSED`, and what it finds elsewhere, in `FALSE`, over
    `image`, (H, W, 3), 0..255, made grey; uint8 (H, W, 3). What it takes for another class is missed, and so is each of
    several classes that overlap."""
    scored = truth != IGNORED
    picture = np.repeat(np.asarray(image, np.float32).mean(axis=-1, keepdims=True), 3, axis=-1)
    missed = truth & ~pred if multilabel else (truth > 0) & (pred != truth)
    false = (pred & ~truth > 0) & (missed == 0) if multilabel else (truth == 0) & (pred > 0)
    for where, colour in ((missed > 0, MISSED), (false, FALSE)):
        picture[where & scored] = (1 - opacity) * picture[where & scored] + opacity * colour
    return picture.round().clip(0, 255).astype(np.uint8)


def heat(values: np.ndarray, highest: float) -> np.ndarray:
    """Colour a map, (H, W), from black at 0 to pale yellow at `highest`; uint8 (H, W, 3)."""
    return (colormaps["magma"](np.asarray(values, np.float32) / highest)[..., :3] * 255).round().astype(np.uint8)


def panel(image: np.ndarray, truth: np.ndarray, pred: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """Image, truth and prediction side by side, without the ignored rows and columns at the end; uint8 (H, 3W, 3)."""
    inside = truth != IGNORED
    if inside.any():
        height, width = (int(np.flatnonzero(inside.any(axis=axis))[-1]) + 1 for axis in (1, 0))
    else:
        height, width = truth.shape
    image, truth, pred = image[:height, :width], truth[:height, :width], pred[:height, :width]
    shown = (np.zeros_like(truth), truth, pred)
    return np.concatenate([overlay(image, labels, multilabel=multilabel) for labels in shown], axis=1)


def save_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Plot loss and Dice of training and, where there is one, validation against the epoch."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "dice"), strict=True):
        for column, label in ((name, "training"), (f"val_{name}", "validation")):
            if column in history[0]:
                axes.plot(epochs, [row[column] for row in history], label=label)
        axes.set(xlabel="epoch", ylabel=name)
        _spread(axes)
        axes.legend()
    figure.savefig(path, dpi=120)


def save_examples(path: Path, panels: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Plot panels (`panel`) under each other."""
    heights = [3 * p.shape[0] / p.shape[1] for p in panels]
    figure = Figure(figsize=(9, 3 * sum(heights) + 0.4 * len(panels)), layout="constrained")
    for axes, picture, title in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels, titles, strict=True
    ):
        axes.imshow(picture)
        axes.set_title(f"{_literal(title)}: image, truth, prediction", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=110)


def curve(history: Sequence[Mapping[str, float]], name: str, best: int | None = None) -> Figure:
    """Draw a column of the history, with its `val_` twin where there is one, over the epochs counted from 1.

    Args:
        history: rows with `epoch`, counted from 0, and `name`.
        name: the column.
        best: the epoch, counted from 0, to mark as the best.
    """
    figure, axes = _small_figure()
    epochs = [row["epoch"] + 1 for row in history]
    twin = f"val_{name}" in history[0]
    axes.plot(epochs, [row[name] for row in history], label="training", marker="." if len(epochs) == 1 else None)
    if twin:
        axes.plot(
            epochs, [row[f"val_{name}"] for row in history], label="validation", marker=axes.lines[0].get_marker()
        )
    if best is not None:
        axes.axvline(best + 1, color="0.5", linestyle=":", label="best epoch")
    axes.set(xlabel="epoch", ylabel="Dice" if name == "dice" else name.replace("_", " "))
    if name == "loss":
        _spread(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if twin:
        axes.legend(frameon=False)
    return figure


def curves_together(histories: Mapping[str, Sequence[Mapping[str, float]]], column: str, title: str) -> Figure:
    """Draw a column of several histories, by the names of their runs, over the epochs counted from 1."""
    figure, axes = _small_figure()
    for (name, history), style in zip(histories.items(), itertools.cycle(STYLES), strict=False):
        epochs, values = ([row[key] for row in history if column in row] for key in ("epoch", column))
        marker = "." if len(epochs) == 1 else None
        axes.plot([epoch + 1 for epoch in epochs], values, style, label=_literal(name), marker=marker)
    axes.set(xlabel="epoch", ylabel=title)
    if column.endswith("loss"):
        _spread(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize="small")
    return figure


def _spread(axes: Axes) -> None:
    """A logarithmic axis where single values, as of the first epochs, would make all others one flat line."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 10 * np.median(values):
        axes.set_yscale("log")
        axes.set_ylabel(f"{axes.get_ylabel()}, logarithmic")


def reliability_diagram(bins: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Draw the accuracy of the predicted labels over their confidence, and how many pixels have it.

    Args:
        bins: for each label of the legend its bins: low, high, count, confidence and accuracy; empty bins are left
            out. The bars are the shares of pixels of the first.
    """
    figure, axes = _small_figure()
    filled = {label: [row for row in rows if row["count"]] for label, rows in bins.items()}
    first = next(iter(filled.values()))
    total = sum(row["count"] for row in first) or 1
    axes.bar(
        [row["low"] for row in first],
        [row["count"] / total for row in first],
        [row["high"] - row["low"] for row in first],
        align="edge",
        color="0.88",
        label="share of pixels",
    )
    lowest = min((row["low"] for rows in filled.values() for row in rows), default=0)
    axes.plot([lowest, 1], [lowest, 1], color="0.5", linestyle=":", label="calibrated")
    for (label, rows), style in zip(filled.items(), itertools.cycle(STYLES), strict=False):
        confidence, accuracy = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, style, marker=".", label=label)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(lowest, 1), ylim=(0, 1.02))
    axes.legend(frameon=False)
    return figure


def risk_coverage(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw the error rate of the most certain pixels over their share; `curves`: label to [coverage, risk] pairs."""
    figure, axes = _small_figure()
    for (label, points), style in zip(curves.items(), itertools.cycle(STYLES), strict=False):
        axes.plot([coverage for coverage, _ in points], [risk for _, risk in points], style, label=label)
    axes.set(xlabel="coverage: share of pixels kept", ylabel="risk: their error rate", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _small_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def dice_by_rate(arms: Sequence[Mapping]) -> Figure:
    """Draw the difference of Dice from rate 0 over the dropout rate, and beside it Dice itself.

    The intervals are those of the paired differences, in which what the folds differ in by themselves has gone. The
    second panel, where it has not, shows means, and single folds as faint dots. Curves are a little apart so that
    their intervals are all seen.

    Args:
        arms: name, rate (None, where it is not one number: drawn at the right, by its name), curve (whose arms are
            joined by a line), dice (a value for each fold), and difference, low and high, NaN for rate 0 and where
            undefined.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    rates = sorted({0.0, *(arm["rate"] for arm in arms if arm["rate"] is not None)})
    highest = rates[-1] or 0.1
    width = highest / 5
    named = [arm["name"] for arm in arms if arm["rate"] is None]
    places = {name: highest + width * (i + 1) for i, name in enumerate(named)}
    curves = list(dict.fromkeys(arm["curve"] for arm in arms if arm["rate"] != 0))
    nearest = min((high - low for low, high in itertools.pairwise(rates)), default=width)
    apart = min(width / 8, nearest / (len(curves) + 1))
    differences, scores = panels = figure.subplots(1, 2)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(
            [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, highest) if 0 <= tick < highest * 1.01]
        )
        ticks = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(list(places.values()), list(map(_literal, named)), minor=True, **ticks)
        axes.set(xlabel="dropout rate", xlim=(-width / 2, max([highest, *places.values()]) + width / 2))
    differences.axhline(0, color="0.3", linewidth=1)
    differences.set_ylabel("difference of Dice from rate 0, 95% interval")
    scores.set_ylabel("Dice: means, and single folds as dots")
    for arm, style in zip((arm for arm in arms if arm["rate"] == 0), itertools.cycle(STYLES), strict=False):
        scores.axhline(np.mean(arm["dice"]), color="0.3", linewidth=1, linestyle=style, label=_literal(arm["name"]))
        scores.plot([0] * len(arm["dice"]), arm["dice"], ".", color="0.3", alpha=0.35)
    for i, (curve, marker) in enumerate(zip(curves, itertools.cycle("os^Dv<>"), strict=False)):
        shift = (i - (len(curves) - 1) / 2) * apart
        style = {"color": f"C{i % 10}", "marker": marker, "markersize": 5, "linewidth": 1}
        members = [arm for arm in arms if arm["curve"] == curve and arm["rate"] != 0]
        rated = sorted((arm for arm in members if arm["rate"] is not None), key=lambda arm: arm["rate"])
        label = _literal(curve)
        for joined in filter(None, [rated, *([arm] for arm in members if arm["rate"] is None)]):
            x = np.array([places.get(arm["name"], arm["rate"]) for arm in joined], float) + shift
            middle, low, high = (np.array([arm[key] for arm in joined], float) for key in ("difference", "low", "high"))
            differences.errorbar(x, middle, np.array([middle - low, high - middle]), **style, capsize=2, label=label)
            scores.plot(x, [np.mean(arm["dice"]) for arm in joined], **style, label=label)
            for place, arm in zip(x, joined, strict=True):
                scores.plot([place] * len(arm["dice"]), arm["dice"], ".", color=style["color"], alpha=0.35)
            label = None
    scores.legend(frameon=False, fontsize="small")
    return figure


def forest(tables: Mapping[str, Sequence[Mapping]], margin: float | None = None) -> Figure:
    """Draw each arm's difference of Dice with its interval, one below the other, and a line at 0; tables side by side.

    Names that all tables share stand once. An interval more than twice as far as most is cut off at the edge.

    Args:
        tables: by title ("" for none) the arms: name, difference, low and high (NaN where undefined) and verdict, by
            which its mark is filled, half filled for no difference beyond the margin, or open.
        margin: shaded to both sides of 0.
    """
    labels = [[textwrap.fill(_literal(arm["name"]), 40) for arm in arms] for arms in tables.values()]
    once = len(tables) > 1 and all(names == labels[0] for names in labels)
    lines = max(sum(max(1.0, 0.7 * (name.count("\n") + 1)) for name in names) for names in labels)
    figure = Figure(figsize=(4.5 + (2.7 if once else 3.5) * len(tables), 1.2 + 0.32 * lines), layout="constrained")
    for place, (title, arms) in enumerate(tables.items()):
        axes = figure.add_subplot(1, len(tables), place + 1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.axvline(0, color="0.3", linewidth=1)
        if margin:
            axes.axvspan(-margin, margin, color="0.9", linewidth=0, zorder=0)
        for row, arm in enumerate(arms):
            axes.plot([arm["low"], arm["high"]], [row, row], color="C0", linewidth=1.5)
            inside = {"cannot be told": "white", "no difference beyond the margin": "0.7"}.get(arm["verdict"], "C0")
            axes.plot(arm["difference"], row, "s", color="C0", markerfacecolor=inside, markersize=6)
        axes.set_yticks(range(len(arms)), [] if once and place else labels[place])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set(title=title, xlabel="difference of Dice", ylim=(len(arms) - 0.5, -0.5))
        reach = 2 * np.median([max(abs(arm["low"]), abs(arm["high"])) for arm in arms])
        if np.isfinite(reach) and reach > 0:
            axes.set_xlim(*np.clip(axes.get_xlim(), -reach, reach))
    return figure
