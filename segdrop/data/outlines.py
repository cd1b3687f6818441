"""Annotations that are outlines and not masks, COCO's and labelme's JSON, and the masks that they make."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..conventions import IGNORED
from ..errors import InputError, first_line
from ..images.faults import Fault
from ..images.opening import stem
from ..images.picture import check_size
from .layouts import Pair, describe
from .naming import role_of_folders, split_of
from .problems import told


@dataclass(frozen=True)
class Shape:
    """An annotated object: outlines, each float (N, 2) of x and y in pixels, or the lengths of runs of pixels."""

    label: str
    outlines: tuple[np.ndarray, ...] = ()
    runs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """The objects of one image, in the order in which later ones cover earlier ones.

    Attributes:
        file: the JSON file.
        classes: the class index of each label.
        multilabel: whether classes overlap, so that the mask holds a bit of each and none covers another.
    """

    file: Path
    height: int
    width: int
    shapes: tuple[Shape, ...]
    classes: Mapping[str, int]
    multilabel: bool = False

    def draw(self) -> np.ndarray:
        """The mask: uint8 (H, W), class indices or sums of bits; what lies outside of the image is cut off."""
        if not self.multilabel:
            return self._drawn(self.shapes, self.classes)
        mask = np.zeros((self.height, self.width), np.uint8)
        bits = {label: 1 << (index - 1) if index else 0 for label, index in self.classes.items()}
        for shape in self.shapes:
            mask |= self._drawn([shape], bits)
        return mask

    def _drawn(self, shapes: Sequence[Shape], values: Mapping[str, int]) -> np.ndarray:
        mask = np.zeros((self.height, self.width), np.uint8)
        for shape in shapes:
            for outline in shape.outlines:
                fill(mask, outline, values[shape.label])
            if shape.runs:  # down the columns, background first
                inside = np.repeat(np.arange(len(shape.runs)) % 2 == 1, shape.runs).reshape(mask.shape[::-1]).T
                mask[inside] = values[shape.label]
        return mask


def fill(mask: np.ndarray, outline: np.ndarray, value: int) -> None:
    """Give the pixels whose centre lies within an outline a value, in place; by the even-odd rule.

    OpenCV's and Pillow's polygons take in every pixel that the outline touches, too: half a pixel more all round.

    Example:
        >>> mask = np.zeros((4, 5), np.uint8)
        >>> fill(mask, np.array([[1, 1], [3, 1], [3, 9], [1, 9]]), 1)
        >>> mask.sum(axis=0).tolist()
        [0, 3, 3, 0, 0]
    """
    (left, top), (right, bottom) = np.floor(outline.min(axis=0)), np.ceil(outline.max(axis=0))
    top, bottom = int(max(0, top)), int(min(mask.shape[0], bottom))
    left, right = int(max(0, left)), int(min(mask.shape[1], right))
    if top >= bottom or left >= right:
        return
    crossed = np.zeros((bottom - top, right - left + 1), bool)
    edges = np.stack([outline, np.roll(outline, -1, axis=0)], axis=1)
    ends = np.clip(np.ceil(np.sort(edges[..., 1], axis=1) - 0.5), top, bottom).astype(int)
    long = ends[:, 0] < ends[:, 1]  # enough to pass a row's centre; a finely drawn outline has few such edges
    for ((x0, y0), (x1, y1)), (first, last) in zip(edges[long], ends[long], strict=True):
        rows = np.arange(first, last)
        x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0 if y1 != y0 else 1))
        crossed[rows - top, np.clip(np.ceil(x - 0.5), left, right).astype(int) - left] ^= True
    inside = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
    mask[top:bottom, left:right][inside] = value


@dataclass(frozen=True)
class Outlines:
    """What JSON files say of a folder's images.

    Attributes:
        pairs: of images and JSON files.
        drawings: by image.
        names: of the classes.
        said: what was understood, in one line.
        damaged: of the files that are no JSON, whatever they were, how many there are; or nothing.
    """

    pairs: tuple[Pair, ...] = ()
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    said: str = ""
    damaged: Sequence[str] = ()


def read_outlines(
    folder: Path, images: Sequence[str], tables: Sequence[str], names: Mapping[int, str], multilabel: bool = False
) -> Outlines:
    """The annotations in the JSON files of COCO and of labelme among some; empty where there are none.

    Args:
        images, tables: image files and JSON files, relative to the folder.
        names: of the classes, where they are given; else the labels that are used are the classes: COCO's in the order
            of their ids, labelme's in that of the alphabet, after the background.

    Raises:
        InputError: an annotation has no known class or no outline, or an image is not there.
    """
    found: dict[str, tuple[str, tuple[int, int], tuple[Shape, ...]]] = {}
    ranks: dict[str, tuple] = {}
    by_name, faults = defaultdict(list), []
    for image in images:
        by_name[PurePosixPath(image).name].append(image)
    for table in tables:
        try:
            content = json.loads((folder / table).read_bytes())  # also of UTF-16, as some editors save it
        except (ValueError, RecursionError) as error:
            faults.append(f"{table} ({first_line(error)})")
            continue
        drawn, order = _read_table(folder / table, content)
        for name, size, shapes in drawn:
            image = _find(table, name, by_name)
            if image in found:
                raise InputError(
                    f"`data` has two annotations of {image}: in {found[image][0]} and in {table}; keep one."
                )
            found[image] = table, size, shapes
        ranks |= order
    used = {shape.label for _, _, shapes in found.values() for shape in shapes}
    given = names or dict(enumerate(["background", *sorted(used - {"background"}, key=lambda label: ranks[label])]))
    if len(given) > IGNORED:
        raise InputError(
            f"`data` has annotations of {len(given) - 1} labels, {sorted(used)[0]!r} and others, and a mask holds at "
            f"most {IGNORED - 1} classes besides the background; give all objects of a class one label."
        )
    classes = {name: index for index, name in given.items()}
    if unknown := sorted(used - classes.keys()):
        raise InputError(f"`data` has annotations of {unknown[0]!r}, no class of classes.json: {', '.join(classes)}.")
    damaged = told(faults, "{n} JSON file(s) cannot be read")
    pairs = tuple(Pair(i, (table,), split=_split(i, table)) for i, (table, _, _) in sorted(found.items()))
    return Outlines(
        pairs,
        {i: Drawing(folder / table, *size, shapes, classes, multilabel) for i, (table, size, shapes) in found.items()},
        dict(given),
        "; ".join([_describe(pairs, len(images)), *damaged]),
        damaged,
    )


def _describe(pairs: Sequence[Pair], images: int) -> str:
    tables = sorted({pair.masks[0] for pair in pairs})
    if len(tables) == len(pairs):
        said = describe(pairs)
    else:
        more = f" and {len(tables) - 3} more" if len(tables) > 3 else ""
        said = f"{len(pairs)} pairs: images with the outlines in {', '.join(tables[:3])}{more}"
    left = images - len(pairs)
    return said + (f"; {left} image(s) without annotations left out" if left else "")


def _read_table(path: Path, content: Any) -> tuple[list, dict[str, tuple]]:
    """Of each image of a JSON file the name, the size and the shapes; and what the labels are sorted by."""
    if not isinstance(content, dict):
        return [], {}
    try:
        if {"images", "annotations", "categories"} <= content.keys():
            drawn, order = _read_coco(content)
        elif "shapes" in content and {"imagePath", "imageHeight"} & content.keys():
            drawn, order = _read_labelme(content)
        else:
            return [], {}
        for _, (height, width), _ in drawn:
            check_size(height, width)
            if min(height, width) < 1:
                raise InputError(f"has an image of {width} x {height} pixels")
        return drawn, order
    except (InputError, Fault) as error:
        raise InputError(f"{path}: {error}.") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(
            f"{path}: is no complete annotation file ({type(error).__name__}: {first_line(error)})."
        ) from error


def _split(image: str, table: str) -> str | None:
    return split_of(PurePosixPath(image).parent.parts) or split_of((*PurePosixPath(table).parent.parts, stem(table)))


def _find(table: str, name: str, by_name: Mapping[str, list[str]]) -> str:
    """The image file of a name in a JSON file: beside it, else the one that ends so, best in the same split."""
    name = name.replace("\\", "/")
    ends = by_name.get(PurePosixPath(name).name, [])
    if (beside := (PurePosixPath(table).parent / name).as_posix()) in ends:
        return beside
    for narrower in (
        [one for one in ends if role_of_folders(PurePosixPath(one).parent.parts)[0] != "mask"],
        [one for one in ends if f"/{one}".endswith(f"/{name}")],
        [one for one in ends if split_of(PurePosixPath(one).parent.parts) == split_of((stem(table),))],
    ):
        ends = [one for one in ends if one in narrower] or ends
    if len(ends) != 1:
        what = f"could be {ends[0]} or {ends[1]}" if ends else "is not there"
        raise InputError(f"`data` has annotations in {table} of an image {name} that {what}.")
    return ends[0]


def _read_coco(content: dict) -> tuple[list, dict[str, tuple]]:
    names = _by_id(((category["id"], category["name"]) for category in content["categories"]), "categories")
    images = _by_id(
        ((i["id"], (str(i["file_name"]), (int(i["height"]), int(i["width"])))) for i in content["images"]), "images"
    )
    if nameless := [number for number, name in names.items() if name is None]:
        raise InputError(f"category {nameless[0]} has no name")
    labels = {number: str(name) for number, name in names.items()}
    of_image: dict = {number: [] for number in images}
    for number, annotation in enumerate(content["annotations"]):
        which = f"annotation {annotation.get('id', number)}"
        if annotation["category_id"] not in labels:
            raise InputError(f"{which} is of category {annotation['category_id']}, of which there is none")
        if annotation["image_id"] not in of_image:
            raise InputError(f"{which} is of image {annotation['image_id']}, of which there is none")
        label, segmentation = labels[annotation["category_id"]], annotation.get("segmentation")
        if isinstance(segmentation, dict):
            counts = segmentation["counts"]
            runs = tuple(map(int, _decompress(counts) if isinstance(counts, str) else counts))
            if min(runs, default=0) < 0:
                raise InputError(f"{which} has a run of {min(runs)} pixels")
            size = list(images[annotation["image_id"]][1])
            told = list(segmentation.get("size", size))
            if told != size or sum(runs) != size[0] * size[1]:
                raise InputError(f"{which} has runs of {sum(runs)} pixels and the size {told} for an image of {size}")
            of_image[annotation["image_id"]].append(Shape(label, runs=runs))
        else:
            outlines = tuple(_outline(np.reshape(flat, (-1, 2)), which) for flat in segmentation or [[]])
            of_image[annotation["image_id"]].append(Shape(label, outlines))
    drawn = [(name, size, tuple(of_image[number])) for number, (name, size) in images.items()]
    return drawn, {
        label: (0, number, "") if isinstance(number, (int, float)) else (1, 0, str(number))
        for number, label in labels.items()
    }


def _by_id(named: Iterable[tuple[Any, Any]], kind: str) -> dict[Any, Any]:
    """What an id stands for, which is one thing."""
    found: dict = {}
    for number, one in named:
        if found.setdefault(number, one) != one:
            raise InputError(f"has two {kind} of the id {number}")
    return found


def _decompress(text: str) -> list[int]:
    """Lengths of runs from COCO's text: groups of five bits, each number the difference from the last but one."""
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode():
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("runs that are no numbers")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the number's last group
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _read_labelme(content: dict) -> tuple[list, dict[str, tuple]]:
    shapes = []
    for number, shape in enumerate(content["shapes"], start=1):
        points, kind = np.array(shape["points"], float), shape.get("shape_type") or "polygon"
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        elif kind == "circle":
            angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
            with np.errstate(all="ignore"):  # what is not finite is refused below
                radius = np.hypot(*(points[1] - points[0]))
                points = points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        elif kind != "polygon":
            raise InputError(f"shape {number} is a {kind}; polygons, rectangles and circles have an area")
        shapes.append(Shape(str(shape["label"]), (_outline(points, f"shape {number}"),)))
    size = int(content["imageHeight"]), int(content["imageWidth"])
    return [(str(content["imagePath"]), size, tuple(shapes))], {s.label: (2, 0, s.label) for s in shapes}


def _outline(points: np.ndarray, which: str) -> np.ndarray:
    points = np.asarray(points, float)
    if len(points) < 3 or points.shape[1:] != (2,) or not (np.abs(points) < 1e9).all():
        raise InputError(f"{which} has no outline of at least three points")
    return points
