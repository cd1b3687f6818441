"""What a page is made of: templates, and pictures within it instead of beside it."""

import base64
import hashlib
import importlib.resources
import io
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ..show.plots import save_undated

LONGEST_SIDE = 512  # of a picture in the page, in pixels


def page_at(out: str | os.PathLike) -> Path:
    """The file to write a page to.

    Raises:
        FileNotFoundError, FileExistsError: it has no folder, or is there and no page, which alone is replaced.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"`out` has no folder: {out.parent}; make it first.")
    if out.exists():
        start = b""
        if out.is_file():
            with out.open("rb") as file:
                start = file.read(100)
        if not start.lstrip().lower().startswith(b"<!doctype html"):
            raise FileExistsError(f"`out` exists and is no page: {out}; choose another name.")
    return out


def render(template: str, page: Mapping, **filters) -> str:
    """Fill in one of this room's templates; what is put in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    environment.globals |= {"asset": lambda name: Markup(_read(name)), "hash_of": _hash_of}
    return environment.get_template(template).render(page)


def _read(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash_of(name: str) -> Markup:
    """A file of this room as a Content-Security-Policy names it."""
    digest = hashlib.sha256(_read(name).encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode()}'")


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def svg(figure: Figure) -> str:
    """A figure as an address that holds it."""
    buffer = io.BytesIO()
    save_undated(figure, buffer, "svg")
    return data_uri("image/svg+xml", buffer.getvalue())


def hex_colour(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(value):02x}" for value in colour)


def shrink(array: np.ndarray, interpolation: int = cv2.INTER_AREA, side: int = LONGEST_SIDE) -> np.ndarray:
    """An image or map of at most `side` pixels a side."""
    factor = side / max(array.shape[:2])
    if factor >= 1:
        return array
    height, width = (max(1, round(n * factor)) for n in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=interpolation)


def jpeg(picture: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), as an address that holds it."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), flags)
    return data_uri("image/jpeg", data.tobytes())
