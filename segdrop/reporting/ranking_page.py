"""What to annotate next, as a page of pictures and a table."""

from pathlib import Path

import numpy as np

from ..files import write_atomically, write_csv
from ..images.intensity import scale
from ..inference.network import Network
from ..inference.ranking import Ranking
from ..show import plots
from ..version import __version__
from .embedding import jpeg, render, shrink

PAGE, ROWS = "ranking.html", "ranking.csv"


def write_ranking(network: Network, ranking: Ranking, out: Path) -> None:
    """Write a page of the chosen images, each with what the network sees in it, and a table of all, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / ROWS, list(ranking.images))
    shown = [
        {**row, **_pictures(network, *place)}
        for row, place in zip(ranking.images, ranking.places, strict=True)
        if row["chosen"]
    ]
    page = {
        "run": str(network.path),
        "measure": ranking.measure.replace("_", " "),
        "images": len(ranking.images),
        "pictures": shown,
        "failed": ranking.failed,
        "version": __version__,
    }
    write_atomically(out / PAGE, lambda path: path.write_text(render("ranking.html", page), encoding="utf-8"))


def _pictures(network: Network, file: Path, part: int) -> dict[str, str]:
    """An image, and the same with its prediction over it."""
    picture = network.open(file)
    values = picture.read(part)
    bounds = network.intensity.bounds(picture)
    labels = network.labels(network.predict(values, bounds=bounds, spacing=picture.spacing))
    image = plots.visible(scale(values, *bounds), network.context_slices)
    return {
        "image_uri": jpeg(shrink(plots.overlay(image, np.zeros_like(labels)))),
        "mask_uri": jpeg(shrink(plots.overlay(image, labels, multilabel=network.multilabel))),
    }
