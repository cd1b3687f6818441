"""A data set on one page and one contact sheet: what it holds, and what looks wrong with it."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.dataset import Dataset
from ..data.findings import Finding
from ..files import write_atomically, write_json
from ..show import plots
from ..show.data import data_tables, short, summary
from ..version import __version__
from .embedding import hex_colour, jpeg, render, shrink

PAGE, SHEET, NUMBERS = "data.html", "contact_sheet.png", "data.json"
SHOWN = 24  # images of the sheet, evenly taken from the set
CASES = 6  # of each finding with pictures
_COLUMNS, _SIDE, _GAP, _CAPTION = 6, 200, 8, 18  # of the sheet; pixels


def write_data_pages(dataset: Dataset, told: dict, findings: Sequence[Finding], out: Path, context: int = 0) -> None:
    """Write a page, a contact sheet and the numbers into the folder `out`, which is made; replaced where they exist.

    Args:
        told: what `overview` tells.
        context: slices before and after each, of which none are shown.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, SHOWN).round().astype(int)).tolist()
    pictures = {number: _picture(dataset, number, context) for number in numbers}
    write_json(out / NUMBERS, told)
    sheet = contact_sheet([(dataset.ids[number], picture) for number, picture in pictures.items()])
    write_atomically(out / SHEET, sheet.save)
    html = render(
        "data.html",
        {
            "told": told,
            "lines": summary(told),
            "tables": data_tables(told),
            "findings": [_with_pictures(dataset, finding, context) for finding in findings],
            "pictures": [_named(dataset, number, picture) for number, picture in pictures.items()],
            "colours": {
                name: hex_colour(plots.PALETTE[i % len(plots.PALETTE)])
                for i, name in enumerate(dataset.class_names[1:])
            },
            "version": __version__,
        },
    )
    write_atomically(out / PAGE, lambda path: path.write_text(html, encoding="utf-8"))


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Pictures, uint8 (H, W, 3), in rows, each over its name."""
    rows = -(-len(pictures) // _COLUMNS)
    width, height = _SIDE + _GAP, _SIDE + _CAPTION + _GAP
    sheet = Image.new("RGB", (min(len(pictures), _COLUMNS) * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (name, picture) in enumerate(pictures):
        row, column = divmod(place, _COLUMNS)
        left, top = _GAP + column * width, _GAP + row * height
        small = Image.fromarray(shrink(picture, side=_SIDE))
        sheet.paste(small, (left + (_SIDE - small.width) // 2, top + (_SIDE - small.height) // 2))
        draw.text((left, top + _SIDE + 2), short(name, 30), fill="black", font=font)
    return sheet


def _picture(dataset: Dataset, number: int, context: int) -> np.ndarray:
    """An image with its mask over it, small."""
    image, mask = dataset.read(number)
    image, mask = shrink(plots.visible(image, context)), shrink(mask, cv2.INTER_NEAREST)
    return plots.overlay(image, mask, multilabel=dataset.multilabel)


def _named(dataset: Dataset, number: int, picture: np.ndarray) -> dict[str, str]:
    return {"name": dataset.ids[number], "uri": jpeg(shrink(picture, side=256))}


def _with_pictures(dataset: Dataset, finding: Finding, context: int) -> dict:
    cases = [
        [_named(dataset, number, _picture(dataset, number, context)) for number in case]
        for case in finding.cases[:CASES]
    ]
    rest = [" = ".join(dataset.ids[number] for number in case) for case in finding.cases[CASES:]]
    # Of one image each, all stand in one row.
    shown = [[picture for case in cases for picture in case]] if all(len(case) == 1 for case in cases) else cases
    return {"message": finding.message, "shown": shown, "rest": rest}
