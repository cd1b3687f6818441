"""The charts of a report."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..folders.state import best_epoch
from ..nets.drawing import draw_network
from ..show import plots
from .embedding import data_uri, svg
from .scores import UNCERTAINTIES, calibrations, detections


def best_row(history: list[dict]) -> int | None:
    """The best epoch, counted from 0; None where there was no validation to tell it."""
    return best_epoch(history) if history and "val_dice" in history[0] else None


def curves_chart(history: list[dict]) -> dict[str, str]:
    columns = [name for name in ("loss", "dice", "learning_rate", "dropout_rate") if history and name in history[0]]
    return {name: svg(plots.curve(history, name, best_row(history))) for name in columns}


def curves_together(histories: Mapping[str, Sequence[Mapping]]) -> dict[str, str]:
    """Loss and Dice of several runs, of validation where all have it, by their titles."""
    columns = {"val_dice": "Validation Dice", "val_loss": "Validation loss", "dice": "Dice", "loss": "Loss"}
    recorded = [set().union(*history) for history in histories.values() if history]
    shared = [name for name in columns if recorded and all(name in names for names in recorded)][:2]
    return {columns[name]: svg(plots.curves_together(histories, name, columns[name])) for name in shared}


def network_drawing(model, side: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.svg")
        draw_network(model, path, (side, side))
        return data_uri("image/svg+xml", path.read_bytes())


def reliability_chart(result: Mapping) -> dict[str, str]:
    """A diagram of each region that has pixels."""
    titles = {"all": "All pixels", "foreground": "Foreground and its neighbourhood"}
    charts = {}
    for region, title in titles.items():
        bins = {
            name: (calibration.get("reliability") or {}).get(region) or []
            for name, calibration in calibrations(result).items()
        }
        if any(row["count"] for rows in bins.values() for row in rows):
            charts[title] = svg(plots.reliability_diagram(bins))
    return charts


def risk_coverage_chart(result: Mapping) -> str | None:
    curves = {
        UNCERTAINTIES.get(name, name): scores["risk_coverage"]
        for name, scores in detections(result).items()
        if scores.get("risk_coverage")
    }
    return svg(plots.risk_coverage(curves)) if curves else None
