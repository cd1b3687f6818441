"""Inputs that once did what they must not: of each a target of `fuzz`, a name and a content."""

import json

from .data import coco

_RUN = {"config": {"data": "data/cells"}, "classes": 1, "class_names": ["background", "cell"]}
_DEEP = b"[" * 100_000


def _run(**changes) -> bytes:
    return json.dumps({**_RUN, **changes}).encode()


def _coco(**changes) -> bytes:
    content = coco()
    content["images"] = [{**content["images"][0], "file_name": "image.png", **changes.pop("image", {})}]
    content["annotations"] = [{**content["annotations"][0], **changes}]
    return json.dumps(content).encode()


CASES: dict[str, tuple[str, str, bytes]] = {
    "a run's configuration nested deeply": ("stored", "config.json", _DEEP),
    "a sweep's configuration nested deeply": ("stored", "sweep.json", _DEEP),
    "a run whose names of classes are a number": ("stored", "config.json", _run(class_names=5)),
    "a run without names of classes": ("stored", "config.json", _run(class_names=None)),
    "a run whose warnings are a number": ("stored", "config.json", _run(warnings=7)),
    "classes nested deeply": ("table", "classes.json", _DEEP),
    "outlines of an image whose name is a list": ("table", "annotations.json", _coco(image={"file_name": []})),
    "outlines nested deeply": ("table", "annotations.json", _DEEP),
}
