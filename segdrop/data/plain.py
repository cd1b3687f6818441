"""Writing a data set in the plain layout: images/ and masks/ with the same stems, and tables beside them."""

import os
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from ..conventions import IGNORED
from ..errors import InputError
from ..files import write_csv, write_json
from ..images.nifti import NIFTI_SUFFIXES, write_volume_mask
from ..images.opening import stem
from ..locks import unfinished
from .dataset import Dataset


def check_new(folder: Path, argument: str) -> None:
    """Raise FileExistsError, naming the argument, where a folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`{argument}` exists and is not empty: {folder}; choose a new folder.")


def write_plain(dataset: Dataset, out: str | os.PathLike) -> None:
    """Write a data set so that it opens with no option: images/, masks/, classes.json, splits.csv and groups.csv.

    Image files are copied. Masks hold class indices, and 255 where pixels are ignored: PNG; of volumes NIfTI where the
    image is, else TIFF. Groups are numbered, so that no patient's name or id is written. Other tables of the folder are
    copied where ids stay what they are; slashes in ids become underscores.

    Args:
        dataset: opened in any layout; resampling to a spacing is left out.
        out: a new folder, or an empty one.

    Raises:
        FileExistsError: `out` holds something.
        InputError: two images would have the same name.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> write_plain(open_dataset("data/cells"), "plain")
        >>> open_dataset("plain").understood
        '96 pairs: images/ with masks/, same names'
    """
    out = Path(out)
    check_new(out, "out")
    names = _file_names(dataset)
    with unfinished(out) as folder:
        _write_pairs(dataset, names, folder / out.name)
        _write_tables(dataset, names, folder / out.name)
        os.replace(folder / out.name, out)


def _write_pairs(dataset: Dataset, names: dict[int, str], out: Path) -> None:
    store = dataset._store
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    ignoring = False
    for file, (source, _) in enumerate(store.files):
        shutil.copyfile(source, out / "images" / (names[file] + source.name[len(stem(source)) :]))
        image, mask = store.open(file)
        masks = np.stack([cv2.LUT(store.labels(file, mask, part), dataset._lut) for part in range(mask.slices or 1)])
        ignoring |= bool((masks == IGNORED).any())
        if image.slices is None:
            Image.fromarray(masks[0]).save(out / "masks" / f"{names[file]}.png")
        elif source.name.lower().endswith(NIFTI_SUFFIXES):
            write_volume_mask(image, masks, out / "masks" / f"{names[file]}.nii.gz")
        else:
            tifffile.imwrite(out / "masks" / f"{names[file]}.tif", masks, photometric="minisblack", compression="zlib")
    classes = {str(index): name for index, name in enumerate(dataset.class_names)}
    write_json(out / "classes.json", classes | ({str(IGNORED): "ignored"} if ignoring else {}))


def _file_names(dataset: Dataset) -> dict[int, str]:
    """By file the stem that it is written under."""
    names: dict[int, str] = {}
    for name, (file, _) in zip(dataset.ids, dataset._places, strict=True):
        whole = name.rpartition("#")[0] if dataset._store.is_volume(file) else name
        names[file] = whole.replace("/", "_")
    by_name = defaultdict(list)
    for file, name in names.items():
        by_name[name].append(dataset._store.files[file][0])
    for name, sources in by_name.items():
        if len(sources) > 1:
            raise InputError(f"{sources[0]} and {sources[1]} would both be written as {name}; rename one of them.")
    return names


def _write_tables(dataset: Dataset, names: dict[int, str], out: Path) -> None:
    ids = []
    for name, (file, _) in zip(dataset.ids, dataset._places, strict=True):
        ids.append(names[file] + (f"#{name.rpartition('#')[2]}" if dataset._store.is_volume(file) else ""))
    if dataset.splits:
        write_csv(out / "splits.csv", [{"id": i, "split": s} for i, s in zip(ids, dataset.splits, strict=True)])
    if dataset.grouped:
        numbers = {group: f"g{number}" for number, group in enumerate(dict.fromkeys(dataset.groups), start=1)}
        write_csv(
            out / "groups.csv", [{"id": i, "group": numbers[g]} for i, g in zip(ids, dataset.groups, strict=True)]
        )
    if dataset.path.is_dir() and tuple(ids) == dataset.ids:
        for table in sorted(dataset.path.glob("*.csv")):
            if table.name not in ("splits.csv", "groups.csv"):
                shutil.copyfile(table, out / table.name)
