"""Opening a data set: its files listed, decoded, checked and put together."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..config.fields import count_inputs
from ..config.train import TrainConfig
from ..conventions import IGNORED, OVERLAPPING
from ..errors import InputError
from ..images.intensity import Intensity, rule_of
from ..images.resampling import resampled_size
from .checking import (
    SPLITS,
    check_colours,
    check_context,
    check_files,
    check_ids,
    check_splits,
    check_tables,
    column_of,
    on_both_sides,
    read_mask_bits,
    read_mask_values,
)
from .dataset import Dataset
from .listing import Listing, list_csv, list_folder, read_classes
from .problems import told
from .scanning import Entry, Scan, entries_of, scan_files
from .store import Store


def find_data(path: str | os.PathLike) -> Path:
    """The path of a data set, which is there.

    Raises:
        FileNotFoundError: it is not.

    Example:
        >>> find_data("data/cells").name
        'cells'
    """
    path = Path(path)
    if not path.exists():
        hint = "; `python -m segdrop.cells data/cells` makes the sample set" if path == Path("data/cells") else ""
        raise FileNotFoundError(f"`data` does not exist: {path}{hint}.")
    return path


def open_dataset(
    path: str | os.PathLike,
    *,
    classes: int | None = None,
    ignore_value: int | None = None,
    stratify: str | None = None,
    cache_mb: int = 2048,
    intensity: Intensity = Intensity(),  # noqa: B008 (frozen)
    spacing: float | None = None,
    slice_axis: int = 2,
    channels: int | None = None,
    context_slices: int = 0,
    images: str | None = None,
    masks: str | None = None,
    annotator: str | None = None,
    multilabel: bool = False,
) -> Dataset:
    """Find, decode and check every pair of a data set; report everything that is wrong with it at once.

    Args:
        path: a folder with `images/` and `masks/` (same stem; optionally `splits.csv`, `groups.csv`,
            `meta.csv`, each with a column `id`, and `classes.json`), or laid out as public data sets are
            (`layouts.read_layout`); or a CSV file with the columns image, mask and optionally split, group and spacing,
            paths relative to it. A row of a volume holds for all its slices unless they have rows of their own
            ("a#012").
        classes: number of classes counting the background, except 1, which is binary. Default: what
            `classes.json` says, else what the masks hold.
        ignore_value: mask value of pixels that are never scored; as the last of `classes.json` it is no class.
        stratify: a column of one of the CSV files, kept for the split.
        cache_mb: memory for decoded pairs, in MiB; what does not fit is read from disk each time.
        intensity: how the images' values become 0..255, found once for each file; "auto" is settled for all of them.
        spacing: mm per pixel that images and masks are resampled to; None: as they are.
        slice_axis: the axis of NIfTI volumes that is cut into slices.
        channels: of the images, which are read as they are stored; None: RGB, with grey repeated to three channels.
        context_slices: slices before and after each slice of a grey volume that become channels beside it.
        images, masks: patterns of the image files and the mask files in a folder, as `patterns.read_patterns` takes
            them, where its names do not tell the pairs.
        annotator: whose masks to take where several have annotated the images; by default the first one's.
        multilabel: classes overlap: masks lie in a folder for each class, or in CSV columns mask_NAME; or they are
            outlines; or each holds sums of bits, 1, 2, 4 ... of class 1, 2, 3 ...

    Raises:
        FileNotFoundError: `path` or a part of it does not exist.
        InputError: the data set cannot be used as it is; the message lists every kind of problem.

    Example:
        >>> dataset = open_dataset("data/cells")
        >>> len(dataset), dataset.class_names
        (96, ('background', 'cell'))
        >>> image, mask = dataset.read(0)
        >>> image.shape, mask.shape, np.unique(mask).tolist()
        ((128, 128, 3), (128, 128), [0, 1])
    """
    path = find_data(path)
    listing = _list(path, images, masks, annotator, multilabel)
    names, colours, ignored = _classes_of(path, listing, multilabel)
    files = tuple(listing.pairs[i] for i in sorted(listing.pairs))
    store = Store(files, colours, slice_axis, channels, context_slices, cache_mb * 2**20)
    scans, rule = scan_files(store, intensity, (path.absolute(), names, listing.names, multilabel))
    entries = entries_of(listing, scans)

    ignored |= {IGNORED} if any(truth.view for _, truth in files) else set()
    ignored |= set() if ignore_value is None else {ignore_value}
    named = len(names) - (ignore_value == len(names) - 1)  # what is ignored is no class to be found and scored
    reading = read_mask_bits if multilabel else partial(read_mask_values, colours=colours)
    count, table, bad_values = reading(files, scans, classes or named, ignored)
    given_groups, splits = column_of(entries, "group"), column_of(entries, "split")
    groups = given_groups or tuple(entry.scan.patient or entry.scan.image_digest for entry in entries)
    # A file that is one image of no known patient belongs to nobody: its copies are remarked, not refused.
    shared = [bool(given_groups or entry.scan.patient or entry.scan.slices) for entry in entries]
    sizes, spacings, bad_spacings = _grid(entries, spacing)
    problems = [
        *listing.problems,
        *check_ids(listing, scans, entries),
        *check_files(files, scans),
        *check_colours(files, scans, names, colours),
        *bad_values,
        *check_tables(entries, listing, stratify),
        *check_splits(splits, groups, shared, bool(given_groups), "splits.csv" if path.is_dir() else path.name),
        *check_context(entries, groups, context_slices),
        *bad_spacings,
    ]
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems) + ".")
    splits = splits and tuple(SPLITS[split] for split in splits)
    _remark(path, sorted(listing.pairs), scans, entries, splits)
    default_names = {0: "background"} | ({1: "foreground"} if count == 2 else {})
    return Dataset(
        path=path,
        understood=listing.said,
        ids=tuple(entry.id for entry in entries),
        class_names=tuple(names.get(i, default_names.get(i, f"class {i}")) for i in range(count)),
        groups=groups,
        grouped=any(shared),
        splits=splits,
        strata=column_of(entries, stratify),
        sizes=np.array(sizes),
        truth_sizes=np.array(sizes),
        digest=_digest((count, names, colours, *["multilabel"] * multilabel), entries),
        channels=count_inputs(channels, context_slices),
        intensity=rule,
        multilabel=multilabel,
        _taken_as_bytes=_are_taken_as_bytes(rule, scans, entries, sizes),
        _places=tuple((entry.file, entry.part) for entry in entries),
        _bounds=tuple(scan.bounds for scan in scans),
        value_types=tuple(sorted({scan.value_type for scan in scans})),
        _extremes=tuple(scan.extremes for scan in scans),
        _spacings=tuple(spacings),
        _lut=table,
        _store=store,
    )


def _are_taken_as_bytes(rule: Intensity, scans, entries, sizes) -> bool:
    """Whether all images are of 8 bits and are neither mapped nor resampled."""
    return (
        rule.rule == "dtype"
        and all(scan.value_type == "uint8" and scan.bounds == (0, 255) for scan in scans)
        and all(tuple(size) == tuple(entry.scan.size) for size, entry in zip(sizes, entries, strict=True))
    )


def _list(path: Path, images: str | None, masks: str | None, annotator: str | None, multilabel: bool) -> Listing:
    """The pairs of a folder or a CSV file, of which there is one at least."""
    if not path.is_dir() and (images or annotator):
        raise InputError(f"`{'images' if images else 'annotator'}` is for a folder; {path} lists its pairs itself.")
    listing = list_folder(path, images, masks, annotator, multilabel) if path.is_dir() else list_csv(path, multilabel)
    if not listing.pairs:
        raise InputError("; ".join([*listing.problems, f"no image and mask pairs in {path}"]) + ".")
    return listing


def _classes_of(path: Path, listing: Listing, multilabel: bool) -> tuple[dict[int, str], dict | None, set[int]]:
    """What `read_classes` tells; names that it lacks are the listing's, and of masks by class they all are."""
    names, colours, ignored = read_classes(path if path.is_dir() else path.parent)
    by_class = any(truth.by_class for _, truth in listing.pairs.values())
    names = listing.names if by_class else names or listing.names
    if multilabel:
        _check_overlapping(path, names, bool(colours) and not by_class)
    return names, colours, ignored


def _check_overlapping(path: Path, names: Mapping[int, str], in_colours: bool) -> None:
    """Raise InputError where a mask of 8 bits cannot hold a bit of each class, or a colour stands for one."""
    if len(names) > OVERLAPPING + 1:
        raise InputError(f"`multilabel` takes at most {OVERLAPPING} classes that overlap; {path} has {len(names) - 1}.")
    if in_colours:
        raise InputError(
            f"`multilabel` needs masks that can show two classes in a pixel; those of {path} are in colours, of which "
            "each is one class: give each class a folder of masks."
        )


def _grid(entries: Sequence[Entry], target: float | None) -> tuple[list, list, list[str]]:
    """Sizes in pixels and spacings in mm that the images are read at, resampled to `target` mm, and the problems."""
    sizes = [entry.scan.size for entry in entries]
    spacings, problems = [], []
    for entry in entries:
        spacings.append(entry.scan.spacing or _spacing_in(entry.row))
        if spacings[-1] is None and entry.row.get("spacing"):
            problems.append(f"a `spacing` in a table is no positive number of mm: {entry.row['spacing']!r}")
    problems = list(dict.fromkeys(problems))
    if target is None:
        return sizes, spacings, problems
    unknown = [entry.id for entry, known in zip(entries, spacings, strict=True) if known is None]
    if unknown:
        advice = "{n} image(s) without a spacing, which a column spacing (mm per pixel) can give"
        return sizes, spacings, problems + told(unknown, advice)
    resampled, exact, faults = [], [], []
    for entry, (height, width), (row, column) in zip(entries, sizes, spacings, strict=True):
        try:
            rows, columns = resampled_size(height, width, (row, column), target)
        except InputError as error:
            faults.append(f"{entry.id}: {str(error).removesuffix('.')}")
            continue
        resampled.append((rows, columns))
        exact.append((row * height / rows, column * width / columns))
    return resampled, exact, problems + told(faults, "{n} image(s) cannot be resampled")


def _spacing_in(row: dict[str, str]) -> tuple[float, float] | None:
    """The spacing that a row of a table gives; None where it gives none that can be used."""
    text = row.get("spacing") or "0"
    try:
        value = float(text.replace("_", " "))  # Python takes 1_0 for 10
    except ValueError:
        return None
    return (value, value) if 0 < value < float("inf") else None


def _remark(path: Path, stems: Sequence[str], scans: Sequence[Scan], entries: Sequence[Entry], splits) -> None:
    """Warn of what may be meant so."""
    moved = [stem for stem, scan in zip(stems, scans, strict=True) if scan.moved]
    if moved:
        warnings.warn(
            f"{path}: {len(moved)} mask(s) lie elsewhere in space than their image, by their headers; they are taken "
            f"voxel by voxel; first: {moved[0]}.",
            stacklevel=3,
        )
    if splits:
        copies = on_both_sides([f"{entry.scan.image_digest} {entry.part}" for entry in entries], splits)
        if copies:
            warnings.warn(f"{path}: {len(copies)} image(s) stand on both sides of the given split.", stacklevel=3)


def _digest(classes: tuple, entries: Sequence[Entry]) -> str:
    """SHA-256 over classes, ids and file contents."""
    digest = hashlib.sha256(repr(classes).encode())
    for entry in entries:
        digest.update(f"{entry.id}\0{entry.scan.image_digest}\0{entry.scan.mask_digest}\n".encode())
    return digest.hexdigest()


def open_configured(
    config: TrainConfig,
    data: str | os.PathLike | None = None,
    *,
    outputs: int | None = None,
    cache_mb: int | None = None,
) -> Dataset:
    """The configuration's data set, or another, `data`, opened as the configuration says.

    Args:
        outputs: of the network that the masks are for, where the configuration does not say the number of classes.
        cache_mb: the configuration's unless given.

    Example:
        >>> dataset = open_configured(segdrop.TrainConfig(data="data/cells"))
        >>> dataset.ids[0], dataset.splits[0], dataset.sizes[0].tolist()
        ('test_000', 'test', [128, 128])
    """
    layout = {"images": config.images, "masks": config.masks, "annotator": config.annotator}  # of no other folder
    dataset = open_dataset(
        config.data if data is None else data,
        classes=outputs + config.multilabel if outputs else config.classes,
        ignore_value=config.ignore_value,
        stratify=config.stratify if data is None else None,  # another data set need not have the column
        cache_mb=config.cache_mb if cache_mb is None else cache_mb,
        intensity=rule_of(config),
        spacing=config.spacing,
        slice_axis=config.slice_axis,
        channels=config.channels,
        context_slices=config.context_slices,
        multilabel=config.multilabel,
        **(layout if data is None or os.fspath(data) == config.data else {}),
    )
    return dataset if config.scale == "auto" else dataset.scaled(config.scale)
