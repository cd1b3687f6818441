"""A data set as tables and lines for a terminal of 80 columns."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from .tables import Table

WIDTH = 80
CASES = 3  # named of each finding


def data_tables(told: Mapping) -> list[Table]:
    """What `overview` tells as tables."""
    foreground = [one for one in told["classes"] if "objects" in one]
    classes = [
        {
            "class": short(one["name"]),
            "of pixels": f"{one['share']:.1%}",
            "images with it": one["images"],
            "objects": one["objects"]["count"] if "objects" in one else "",
            "in an image": spread(one["objects"]["per_image"]) if "objects" in one else "",
        }
        for one in told["classes"]
    ]
    measures = [
        {
            "class": short(one["name"]),
            "area": spread(one["objects"]["area"]),
            "width": spread(one["objects"]["width"]),
            "length": spread(one["objects"]["length"]),
        }
        for one in foreground
    ]
    splits = [
        {"split": name, "images": one["images"], **({} if one["groups"] is None else {"groups": one["groups"]})}
        for name, one in told["splits"].items()
    ]
    tables = [
        Table(classes, "Classes; of numbers the median [5%, 95%]"),
        Table(measures, "Objects in pixels, median [5%, 95%]"),
    ]
    return tables + ([Table(splits, "Splits")] if splits else [])


def summary(told: Mapping) -> list[str]:
    """What there is of images, line by line."""
    sizes, (low, high), spacing = told["sizes"], told["stored_values"], told["spacing_mm"]
    first, middle, last = (f"{height} x {width}" for height, width in (sizes[k] for k in _SIZES))
    lines = [
        *textwrap.wrap(told["pairs"], WIDTH, subsequent_indent="  "),
        f"{told['images']} images with masks" + (f" in {told['groups']} groups" if told["groups"] else ""),
        f"size: all {first}" if sizes["different"] == 1 else f"size: {first} to {last}, median {middle}",
        f"channels: {told['channels']}; values: {low:g} to {high:g}, stored as {', '.join(told['value_types'])}",
    ]
    if spacing["known"]:
        [low], [high] = spacing["from"], spacing["to"]
        lines.append(f"spacing: {low[0]:g} x {low[1]:g} to {high[0]:g} x {high[1]:g} mm")
    if told["ignored"]:
        lines.append(f"ignored: {told['ignored']:.1%} of the pixels")
    return lines


_SIZES = ("smallest", "median", "largest")


def findings_in_lines(findings: Sequence[Mapping]) -> Iterator[str]:
    """What looks wrong, none of the lines longer than `WIDTH`."""
    for finding in findings:
        yield from textwrap.wrap(finding["message"], WIDTH, initial_indent="! ", subsequent_indent="  ")
        for case in finding["images"][:CASES]:
            yield "    " + " = ".join(short(name, (WIDTH - 8) // len(case)) for name in case)
        more = len(finding["images"]) - CASES
        if more > 0:
            yield f"    and {more} more"


def short(name: str, most: int = 24) -> str:
    """A name of at most `most` characters, its middle left out.

    Example:
        >>> short("a_very_long_name_of_an_image", most=15)
        'a_very_…n_image'
    """
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}"


def spread(percentiles: Sequence[float] | None) -> str:
    """A median between two percentiles.

    Example:
        >>> spread([3, 12.5, 40000]), spread(None)
        ('12.5 [3, 40000]', 'none')
    """
    if percentiles is None:
        return "none"
    low, median, high = (f"{value:.1f}".removesuffix(".0") for value in percentiles)
    return f"{median} [{low}, {high}]"
