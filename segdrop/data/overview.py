"""What a data set holds, as a dict for JSON, tables and pages."""

from collections.abc import Sequence

import numpy as np

from .dataset import Dataset
from .findings import Finding
from .fingerprint import Fingerprint, Objects

PERCENTILES = (5, 50, 95)


def overview(dataset: Dataset, found: Fingerprint, findings: Sequence[Finding]) -> dict:
    """What there is of images, classes, objects and splits, and what looks wrong.

    Sizes, areas, widths and lengths are in pixels of what `Dataset.read` gives. Groups, which can be patients, are
    counted and not named.

    Example:
        >>> from segdrop.data.findings import examine
        >>> from segdrop.data.opening import open_dataset
        >>> dataset = open_dataset("data/cells")
        >>> told = overview(dataset, *examine(dataset))
        >>> told["images"], [one["name"] for one in told["classes"]], told["splits"]["test"]["images"]
        (96, ['background', 'cell'], 16)
    """
    everything = range(len(dataset))
    order = np.argsort(dataset.sizes.prod(axis=1), kind="stable")
    smallest, middle, largest = (dataset.sizes[order[place]].tolist() for place in (0, len(order) // 2, -1))
    known = sorted({spacing for spacing in found.spacings if spacing is not None})
    splits = {}
    for name in ("train", "val", "test"):
        members = [number for number in everything if dataset.splits and dataset.splits[number] == name]
        if members:
            groups = len({dataset.groups[number] for number in members}) if dataset.grouped else None
            splits[name] = {"images": len(members), "groups": groups}
    return {
        "data": str(dataset.path),
        "pairs": dataset.understood,
        "images": len(dataset),
        "groups": len(set(dataset.groups)) if dataset.grouped else None,
        "channels": dataset.channels,
        "sizes": {
            "different": len(np.unique(dataset.sizes, axis=0)),
            "smallest": smallest,
            "median": middle,
            "largest": largest,
        },
        "value_types": list(dataset.value_types),
        "stored_values": list(dataset.extremes_of(everything)[0]),
        "spacing_mm": {"known": sum(s is not None for s in found.spacings), "from": known[:1], "to": known[-1:]},
        "ignored": float(np.average(found.ignored, weights=found.sizes.prod(axis=1))),
        "classes": [_class(dataset, found, number) for number in range(len(dataset.class_names))],
        "splits": splits,
        "findings": [
            {
                "check": finding.check,
                "message": finding.message,
                "images": [[dataset.ids[number] for number in case] for case in finding.cases],
            }
            for finding in findings
        ],
    }


def _class(dataset: Dataset, found: Fingerprint, number: int) -> dict:
    scored = found.sizes.prod(axis=1) * (1 - found.ignored)
    told = {
        "name": dataset.class_names[number],
        "share": float((found.shares[:, number] * scored).sum() / max(scored.sum(), 1)),
        "images": int((found.shares[:, number] > 0).sum()),
    }
    return told if number == 0 else {**told, "objects": _objects(found.objects[number - 1])}


def _objects(objects: Objects) -> dict:
    """How many, in how many images, and percentiles of their measures; None where there are none."""
    per_image = np.unique(objects.images, return_counts=True)[1]
    measures = {
        "per_image": per_image,
        "area": objects.areas,
        "width": objects.thicknesses,
        "length": objects.extents,
    }
    percentiles = {
        name: [float(value) for value in np.percentile(values, PERCENTILES)] if len(values) else None
        for name, values in measures.items()
    }
    return {"count": len(objects), **percentiles}
