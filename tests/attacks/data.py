"""Broken tables, classes, outlines and masks of a data set."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from .attack import Case, Plan
from .bench import IMAGES, TINY, Bench, words
from .damage import BYTES, TEXTS, Damage
from .structures import CSV, JSON

TABLES = ("splits.csv", "groups.csv", "meta.csv")
_TRAIN = ("train", "--data", "{}", "--run-dir", "out", *words(TINY))
_COMMANDS = (("data", "{}"), ("data", "{}"), _TRAIN, ("data", "{}", "--json"), ("data", "{}", "--to", "plain"))


def _any_command(data: str, rng: np.random.Generator, *more: str) -> tuple[str, ...]:
    chosen = _COMMANDS[rng.integers(len(_COMMANDS))]
    return (*(word.format(data) for word in chosen), *more)


def _of_table(name: str, damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    folder = bench.take("cells")
    damage(folder / "cells" / name, rng)
    more = ("--stratify", "site") if name == "meta.csv" and rng.random() < 0.5 else ()
    command = _any_command("cells", rng)
    return Plan((*command, *(more if command[0] == "train" else ())), (name, "cell_", "splits", "site", "`spacing`"))


def _of_list(damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    """A CSV file of pairs."""
    folder = bench.take("cells")
    rows = ["image,mask,split,group,spacing"]
    splits = ("train", "train", "train", "val", "val", "test")
    rows += [f"cells/images/{n}.png,cells/masks/{n}.png,{s},{n},0.5" for n, s in zip(IMAGES, splits, strict=True)]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    damage(folder / "list.csv", rng)
    return Plan(_any_command("list.csv", rng), ("list.csv", "cell_"))


def coco() -> dict:
    """Outlines of COCO for all images, polygons and runs."""
    box = [5, 5, 30, 5, 30, 40, 5, 40]
    return {
        "images": [{"id": i, "file_name": f"{name}.png", "height": 64, "width": 64} for i, name in enumerate(IMAGES)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 3, "name": "vein"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": (1, 3)[i % 2], "segmentation": (box,) if i else {"counts": [96,
            4000], "size": [64, 64]}}
            for i in range(len(IMAGES))
        ],
    }  # fmt: skip


def labelme(name: str) -> dict:
    points = [[5, 5], [30, 5], [30, 40]]
    return {
        "imagePath": f"{name}.png",
        "imageHeight": 64,
        "imageWidth": 64,
        "shapes": [
            {"label": "cell", "points": points, "shape_type": "polygon"},
            {"label": "vein", "points": points[:2], "shape_type": "rectangle"},
            {"label": "cell", "points": points[:2], "shape_type": "circle"},
        ],
    }


def _of_outlines(of: str, damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    folder = bench.take("cells") / "cells"
    for path in (*(folder / "masks").iterdir(), *(folder / table for table in TABLES), folder / "classes.json"):
        path.unlink()
    (folder / "masks").rmdir()
    if of == "coco":
        broken = folder / "annotations.json"
        broken.write_text(json.dumps(coco()))
    else:
        for name in IMAGES:
            (folder / "images" / f"{name}.json").write_text(json.dumps(labelme(name)))
        broken = folder / "images" / f"{IMAGES[rng.integers(len(IMAGES))]}.json"
    damage(broken, rng)
    more = ("--multilabel",) if rng.random() < 0.3 else ()
    return Plan(_any_command("cells", rng, *more), (broken.name, "cell_", "cells"))


def _huge_outline(path: Path, rng: np.random.Generator) -> None:
    """An image of 2^31 pixels a side, runs of 10^12 pixels, or points at 1e300."""
    content = coco()
    what = rng.integers(5)
    if what == 0:
        content["images"][0] |= {"height": 2**31, "width": 2**31}
    elif what == 1:
        content["annotations"][0]["segmentation"]["counts"] = [10**12, 5]
    elif what == 2:
        content["annotations"][1]["segmentation"] = [[1e300, -1e300, 1e300, 1e300, -1e300, 5]]
    elif what == 3:
        content["annotations"][0]["segmentation"]["counts"] = "~" * 3000
    else:
        content["annotations"][0]["segmentation"]["counts"] = [-96, 4192]
    path.write_text(json.dumps(content))


def _masks(change: Callable[[np.ndarray, np.random.Generator], np.ndarray], suffix: str = ".png"):
    def prepare(bench: Bench, rng: np.random.Generator) -> Plan:
        import cv2

        folder = bench.take("cells") / "cells" / "masks"
        name = IMAGES[rng.integers(len(IMAGES))]
        mask = change(cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_UNCHANGED), rng)
        (folder / f"{name}.png").unlink()
        cv2.imwrite(str(folder / f"{name}{suffix}"), mask)
        return Plan(_any_command("cells", rng), (name,))

    return prepare


MASKS: dict[str, Callable] = {
    "of another size": _masks(lambda mask, rng: mask[:-1]),
    "turned": _masks(lambda mask, rng: mask[:, :40].T.copy()),
    "of 1 pixel": _masks(lambda mask, rng: mask[:1, :1]),
    "of an unknown class": _masks(lambda mask, rng: mask + np.uint8(rng.integers(1, 200))),
    "of 255": _masks(lambda mask, rng: mask * 255),
    "of all values": _masks(lambda mask, rng: rng.integers(0, 256, mask.shape, np.uint8)),
    "of 16 bits": _masks(lambda mask, rng: mask.astype(np.uint16) * 65535),
    "of floats": _masks(lambda mask, rng: mask.astype(np.float32) / 3, ".tif"),
    "of NaN": _masks(lambda mask, rng: np.full(mask.shape, np.nan, np.float32), ".tif"),
    "of negative numbers": _masks(lambda mask, rng: -mask.astype(np.int16), ".tif"),
    "in colours": _masks(lambda mask, rng: np.stack([mask, mask * 2, mask * 0], -1)),
    "with alpha": _masks(lambda mask, rng: np.stack([mask, mask, mask, mask * 255], -1)),
    "as JPEG": _masks(lambda mask, rng: mask * 255, ".jpg"),
    "of nothing": _masks(lambda mask, rng: mask * 0),
    "of a photograph": _masks(lambda mask, rng: rng.integers(0, 256, (400, 500, 3), np.uint8)),
    "in colours of 16 bits": _masks(lambda mask, rng: np.stack([mask.astype(np.uint16) << 8] * 3, -1)),
}
CLASSES = (
    "[]", "{}", '["a"]', '["a", "a"]', '{"0": "a", "0": "b"}', '{"1": "a"}', '{"-1": "a"}', '{"0.5": "a"}', '{"0": 5}',
    '{"0": ""}', '{"0": "background", "300": "x"}', '{"0": {"name": "a"}}', '{"0": {"name": "a", "color": [0, 0]}}',
    '{"0": {"name": "a", "color": [0, 0, 999]}}', '{"0": {"name": "a", "color": "red"}}', '["background", null]',
    '{"0": {"name": "a", "color": [0, 0, 0]}, "1": {"name": "b", "color": [0, 0, 0]}}', '[["a"]]', '{"\u0663": "a"}',
    '{"0": "a", "1": {"name": "b", "color": [1, 1, 1]}}', '{"0": "background", "1": "\\u001b[31mcell"}', "1", "NaN",
    json.dumps(["x" * 5000, "b"]), json.dumps([str(i) for i in range(300)]), '{"99999999999999999999": "a"}',
    '{"0": "background", "1": "cell", "255": "ignored"}', '{"0": "a", "0": "b", "1": "c"}', '["background", "a", "a"]',
    '{"1": "a", "01": "b", "0": "c"}',
    '{"0": {"name": 5, "color": [0, 0, 0]}, "1": {"name": {}, "color": [255, 255, 255]}}',
)  # fmt: skip


def _of_classes(content: str, bench: Bench, rng: np.random.Generator) -> Plan:
    folder = bench.take("cells")
    (folder / "cells" / "classes.json").write_text(content)
    return Plan(_any_command("cells", rng), ("classes.json", "classes", "cell_", "class"))


def _folder(change: Callable[[Path], object]):
    def prepare(bench: Bench, rng: np.random.Generator) -> Plan:
        folder = bench.take("cells")
        change(folder / "cells")
        return Plan(_any_command("cells", rng), ("cells", "images", "masks", "cell_"))

    return prepare


def _move(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


FOLDERS: dict[str, Callable] = {
    "with a link in a circle": _folder(lambda f: (f / "images" / "again").symlink_to("..")),
    "with images/ as a file": _folder(lambda f: (_move(f, "images", "old"), (f / "images").write_text(""))),
    "with masks/ missing": _folder(lambda f: _move(f, "masks", "images/masks")),
    "with images/ empty": _folder(lambda f: [path.unlink() for path in (f / "images").iterdir()]),
    "with a mask too few": _folder(lambda f: (f / "masks" / "cell_1.png").unlink()),
    "with an image too few": _folder(lambda f: (f / "images" / "cell_1.png").unlink()),
    "with an id twice": _folder(lambda f: (f / "images" / "cell_1.bmp").write_bytes(b"BM")),
    "with a folder called like an image": _folder(lambda f: (f / "images" / "a.png").mkdir()),
    "with one image": _folder(lambda f: [p.unlink() for p in f.glob("*/cell_[1-5].png")]),
    "with images in a subfolder": _folder(lambda f: shutil.copytree(f / "images", f / "images" / "more")),
    "with a dangling link": _folder(lambda f: (f / "images" / "a.png").symlink_to("nowhere")),
}


def cases() -> Iterator[Case]:
    for name in TABLES:
        for what, damage in {**BYTES, **TEXTS, **CSV}.items():
            yield name, what, partial(_of_table, name, damage)
    for what, damage in {**BYTES, **TEXTS, **CSV}.items():
        yield "list.csv", what, partial(_of_list, damage)
    for what, damage in {**BYTES, **TEXTS, **JSON}.items():
        yield "classes.json", what, partial(_of_table, "classes.json", damage)
        for of in ("coco", "labelme"):
            yield of, what, partial(_of_outlines, of, damage)
    for number in range(3):
        yield "coco", f"with huge numbers {number}", partial(_of_outlines, "coco", _huge_outline)
    for what, prepare in MASKS.items():
        yield "a mask", what, prepare
    for content in CLASSES:
        yield "classes.json", f"that says {content[:60]}", partial(_of_classes, content)
    for what, prepare in FOLDERS.items():
        yield "a data set", what, prepare
