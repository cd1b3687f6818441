"""A network as a drawing."""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from ..anatomy import LAST_NORM, UNIT
from ..errors import InputError
from ..files import write_atomically
from ..layers import is_dropout, kind_of, rate_of
from ..surgery.graph import Call, trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_network(model: keras.Model, path: str | os.PathLike, image_size: tuple[int, int] | None = None) -> None:
    """Draw `model` with its dropout marked; the name's ending chooses the format (.svg, .png, .pdf).

    Each box is a unit of the network, further down the smaller its feature maps are; a line between two boxes that
    do not follow each other is a skip.

    Example:
        >>> import os
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2)
        >>> segdrop.draw_network(model, "network.svg")
        >>> os.path.getsize("network.svg") > 0
        True
    """
    from matplotlib.figure import Figure

    from ..show.plots import save_undated

    ending = Path(path).suffix.lstrip(".").lower() or "svg"
    if ending not in (known := Figure().canvas.get_supported_filetypes()):
        raise InputError(f"The picture's name must end in one of {', '.join(sorted(known))}, got {path}.")
    size = image_size or (256, 256)
    calls = trace(model, size)
    groups = _groups(calls)
    names = list(dict.fromkeys(groups.values()))
    column = {name: i for i, name in enumerate(names)}
    level = _levels(calls, groups, size[0])

    # A ResNet34 has 25 boxes: 11.5 inches, which a page of 1,280 pixels has room for.
    figure = Figure(figsize=(max(6, 0.46 * len(names)), 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    makers = {tensor: groups[call.path] for call in calls for tensor in call.outputs}
    edges = {(makers[t], groups[call.path]) for call in calls for t in call.inputs if t in makers}
    for start, end in sorted(edges, key=lambda edge: (column[edge[0]], column[edge[1]])):
        if start == end:
            continue
        skip = column[end] - column[start] > 1
        _draw_arrow(axes, (column[start], level[start]), (column[end], level[end]), skip)
    marks = _marks(calls, groups)
    for name in names:
        mark = marks.get(name)
        axes.text(
            column[name],
            level[name],
            name.replace("_", "\n"),
            ha="center",
            va="center",
            fontsize=6,
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": "mistyrose" if mark else "white",
                "edgecolor": "crimson" if mark else "0.5",
            },
        )
        if mark:
            axes.text(column[name], level[name] - 0.36, mark, ha="center", va="top", fontsize=6, color="crimson")
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylim(min(level.values()) - 1, max(level.values()) + 0.6)
    axes.set_title(
        f"{model.name}: {sum(is_dropout(call.layer) for call in calls)} dropout layers (red, with rate and kind); "
        f"lower is coarser, drawn for {size[0]} x {size[1]}; dashed: skips",
        fontsize=9,
    )
    write_atomically(Path(path), lambda temporary: save_undated(figure, temporary, ending))


def _draw_arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], skip: bool) -> None:
    style = {"color": "tab:blue", "linestyle": "--"} if skip else {"color": "0.4", "linestyle": "-"}
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "shrinkA": 14, "shrinkB": 14, **style})


def _levels(calls: list[Call], groups: dict[str, str], height: int) -> dict[str, float]:
    """How often each unit's maps are halved, negative: those of its last output; without maps below all others."""
    level: dict[str, float] = {}
    for call in calls:
        shape = call.shapes[0]
        if len(shape) == 4:
            axis = 1 if keras.config.image_data_format() == "channels_last" else 2
            level[groups[call.path]] = -math.log2(max(height / max(shape[axis], 1), 1e-6))
    lowest = min(level.values(), default=0)
    return {name: level.get(name, lowest - 1) for name in groups.values()}


def _marks(calls, groups) -> dict[str, str]:
    marks: dict[str, list[str]] = {}
    for call in calls:
        if is_dropout(call.layer):
            kind, _ = kind_of(call.layer)
            marks.setdefault(groups[call.path], []).append(f"{kind}\n{rate_of(call.layer):.3g}")
    return {name: "\n".join(dict.fromkeys(lines)) for name, lines in marks.items()}


def _groups(calls: list[Call]) -> dict[str, str]:
    """The unit that each layer belongs to, by its name; a layer without a unit's name goes with what it works on."""
    pattern = re.compile(
        rf"(?:.*/)?({UNIT}|decoder_stage\d+|conv\d+_block\d+|(?:expanded_conv|block|mixed|conv|stage)_?\d+\w?"
        r"|final|center_block)(?:_|$)"
    )
    groups: dict[str, str] = {}
    made: dict[int, str] = {}
    for call in calls:
        group = made.get(call.inputs[0], "stem") if call.inputs else "stem"
        if not is_dropout(call.layer):
            if match := pattern.match(call.path):
                group = match[1]
            elif call.path == LAST_NORM:  # after the last unit of the ResNets
                group = "end"
        made.update(dict.fromkeys(call.outputs, group))
        groups.setdefault(call.path, group)
    return groups
