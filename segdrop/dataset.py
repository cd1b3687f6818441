"""Images and masks on disk: finding, checking, reading and splitting them."""

import csv
import hashlib
import json
import os
import threading
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .config import check_whole
from .errors import InputError
from .images import Picture, is_image, open_image, resample, resampled_size, same_place, stem
from .intensity import Intensity, scale

IGNORED = 255  # the class index, in every mask that leaves this module, of a pixel that is not scored
_DIVISIONS = 100  # tried for folds that have every class
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Dataset:
    """A checked data set; `read(i)` gives image and mask number i. A slice of a volume is an image of its own.

    Attributes:
        path: the folder or CSV file it was opened from.
        ids: one name per pair, sorted by file and slice; slice 12 of the volume a is "a#012".
        class_names: names of class 0, 1, ...; at least two.
        groups: what must stay together in a split: the given group; else the patient of a DICOM file; else the digest
            of the image's file, so that its slices and its copies are never on both sides. May hold patients' names
            and ids: never to be written or shown as it is.
        grouped: whether groups were given, or there are patients or volumes.
        splits: the given split ("train", "val", "test") of each pair, or None.
        strata: the value of the column to stratify by of each pair, or None.
        sizes: (N, 2) heights and widths in pixels, of what `read` gives.
        digest: SHA-256 over classes, ids and file contents.
    """

    path: Path
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...] = field(repr=False)
    grouped: bool
    splits: tuple[str, ...] | None
    strata: tuple[str, ...] | None
    sizes: np.ndarray
    digest: str
    _places: tuple[tuple[int, int], ...] = field(repr=False)  # file and slice of each pair
    _bounds: tuple[tuple[float, float], ...] = field(repr=False)  # of each file
    _spacings: tuple[tuple[float, float] | None, ...] = field(repr=False)
    _exact: bool = field(repr=False)  # 8-bit images keep their type
    _lut: np.ndarray = field(repr=False)
    _store: "_Store" = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask number `index`.

        Returns:
            image: (H, W, 3), RGB, 0..255 by the intensity rule; uint8 where 8-bit images are taken as they are (the
                rule "dtype", not resampled), else float32. mask: uint8 (H, W), class index or IGNORED.
        """
        file, part = self._places[index]
        image, mask = self._store.read(file, part)
        size = tuple(self.sizes[index].tolist())
        bounds = self._bounds[file]
        if not self._exact or image.dtype != np.uint8 or bounds != (0, 255) or size != mask.shape:
            image = resample(scale(image, *bounds), size)
        elif image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        return image, resample(cv2.LUT(mask, self._lut), size, nearest=True)

    def spacing_of(self, index: int) -> tuple[float, float] | None:
        """(row, column) distance in mm of the pixels that `read(index)` gives; None where it is not known."""
        return self._spacings[index]

    @property
    def cached(self) -> int:
        """How many decoded pairs are held in memory."""
        return len(self._store.slices)


class _Store:
    """The files' decoded slices, as many as fit into `budget` bytes, and the volumes opened last."""

    OPEN = 2  # volumes: one for each of the workers that read a data set from start to end

    def __init__(self, files: Sequence[tuple[Path, Path]], colours: dict | None, slice_axis: int, budget: int):
        self.files, self.colours, self.slice_axis, self.budget = files, colours, slice_axis, budget
        self.slices: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._volumes: OrderedDict[int, tuple[Picture, Picture]] = OrderedDict()
        self._volume_files: set[int] = set()
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def open(self, file: int) -> tuple[Picture, Picture]:
        image, mask = (open_image(path, slice_axis=self.slice_axis) for path in self.files[file])
        return image, mask

    def read(self, file: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Image as stored and mask as class indices or stored values, uint8 (H, W)."""
        pair = self.slices.get((file, part))
        if pair is not None:
            return pair
        image, mask = self._open_volume(file) if file in self._volume_files else self.open(file)
        return image.read(part), _read_mask(mask, part, self.colours)

    def _open_volume(self, file: int) -> tuple[Picture, Picture]:
        with self._opening:
            if file not in self._volumes:
                while len(self._volumes) >= self.OPEN:
                    self._volumes.popitem(last=False)
                self._volumes[file] = self.open(file)
            self._volumes.move_to_end(file)
            return self._volumes[file]

    def offer(self, file: int, part: int, image: np.ndarray, mask: np.ndarray, is_volume: bool) -> None:
        size = image.nbytes + mask.nbytes
        with self._lock:
            if is_volume:
                self._volume_files.add(file)
            if size <= self.budget:
                self.budget -= size
                # A view of a slice would keep the whole volume.
                self.slices[file, part] = (image.copy(), mask.copy()) if is_volume else (image, mask)


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
) -> Dataset:
    """Find, decode and check every pair of a data set; report everything that is wrong with it at once.

    Args:
        path: a folder with `images/` and `masks/` (same stem; optionally `splits.csv`, `groups.csv`,
            `meta.csv`, each with a column `id`, and `classes.json`); or a CSV file with the columns image, mask
            and optionally split, group and spacing, paths relative to it. A row of a volume holds for all its slices
            unless they have rows of their own ("a#012").
        classes: number of classes counting the background, except 1, which is binary. Default: what
            `classes.json` says, else what the masks hold.
        ignore_value: mask value of pixels that are never scored.
        stratify: a column of one of the CSV files, kept for the split.
        cache_mb: memory for decoded pairs, in MiB; what does not fit is read from disk each time.
        intensity: how the images' values become 0..255, found once for each file.
        spacing: mm per pixel that images and masks are resampled to; None: as they are.
        slice_axis: the axis of NIfTI volumes that is cut into slices.

    Raises:
        FileNotFoundError: `path` or a part of it does not exist.
        InputError: the data set cannot be used as it is; the message lists every kind of problem.
    """
    path = Path(path)
    if not path.exists():
        hint = "; `python -m segdrop.cells data/cells` makes the sample set" if path == Path("data/cells") else ""
        raise FileNotFoundError(f"`data` does not exist: {path}{hint}.")
    problems: list[str] = []
    pairs, table, others = (_list_folder if path.is_dir() else _list_csv)(path, problems)
    if not pairs:
        raise InputError("; ".join([*problems, f"no image and mask pairs in {path}"]) + ".")
    folder = path if path.is_dir() else path.parent
    names, colours = _read_classes(folder)
    stems = sorted(pairs)
    files = tuple(pairs[i] for i in stems)

    store = _Store(files, colours, slice_axis, cache_mb * 2**20)
    # The filters belong to the whole process: set here, once, and not by the workers.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.filterwarnings("ignore", module="PIL|pydicom|nibabel")
        scans = list(pool.map(lambda file: _scan(file, store, intensity), range(len(files))))
    places = [(file, part) for file, scan in enumerate(scans) if not scan.problem for part in range(scan.slices or 1)]
    ids = [_slice_id(stems[file], part, scans[file].slices) for file, part in places]
    times = Counter(ids)
    repeated = [name for name, count in times.items() if count > 1]
    _add(problems, repeated, "{n} id(s) of a slice and of a file are the same")
    unread = {name for name, scan in zip(stems, scans, strict=True) if scan.problem}
    for source, names_there in others.items():
        unknown = [i for i in names_there if i not in times and i.rpartition("#")[0] not in unread]
        _add(problems, unknown, f"{{n}} id(s) in {source} have no image")
    rows = {
        name: {**table.get(stems[file], {}), **_filled(table.get(name))}
        for name, (file, _) in zip(ids, places, strict=True)
    }
    count, lut = _check_pairs(files, scans, classes or len(names), ignore_value, problems)
    given = {column: _column(rows, column, ids, problems) for column in ("split", "group")}
    strata = _column(rows, stratify, ids, problems) if stratify else None
    if stratify and rows and strata is None:
        columns = sorted({c for row in rows.values() for c in row} - {"id"})
        problems.append(f"`stratify` names no column: {stratify!r}; there are: {', '.join(columns) or 'none'}")
    groups = given["group"] or tuple(scans[file].patient or scans[file].image_digest for file, _ in places)
    # A file that is one image of no known patient belongs to nobody: its copies are remarked, not refused.
    shared = [bool(given["group"] or scans[file].patient or scans[file].slices) for file, _ in places]
    splits = given["split"] and _check_splits(given["split"], groups, shared, bool(given["group"]), problems)
    spacings = [_spacing(scans[file], rows[name], problems) for name, (file, _) in zip(ids, places, strict=True)]
    sizes = [scans[file].size for file, _ in places]
    if spacing is not None:
        sizes, spacings = _resampled(ids, sizes, spacings, spacing, problems)
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems) + ".")
    moved = [stems[file] for file, scan in enumerate(scans) if scan.moved]
    if moved:
        warnings.warn(
            f"{path}: {len(moved)} mask(s) lie elsewhere in space than their image, by their headers; they are taken "
            f"voxel by voxel; first: {moved[0]}.",
            stacklevel=2,
        )
    if splits:
        contents = [f"{scans[file].image_digest} {part}" for file, part in places]
        copies = [i for i, sides in _sides(contents, splits).items() if len(sides) > 1]
        if copies:
            warnings.warn(f"{path}: {len(copies)} image(s) stand on both sides of the given split.", stacklevel=2)

    default_names = {0: "background"} | ({1: "foreground"} if count == 2 else {})
    digest = hashlib.sha256()
    digest.update(repr((count, names, colours)).encode())
    for name, (file, _) in zip(ids, places, strict=True):
        digest.update(f"{name}\0{scans[file].image_digest}\0{scans[file].mask_digest}\n".encode())
    return Dataset(
        path=path,
        ids=tuple(ids),
        class_names=tuple(names.get(i, default_names.get(i, f"class {i}")) for i in range(count)),
        groups=groups,
        grouped=any(shared),
        splits=splits,
        strata=strata,
        sizes=np.array(sizes),
        digest=digest.hexdigest(),
        _places=tuple(places),
        _bounds=tuple(scan.bounds for scan in scans),
        _spacings=tuple(spacings),
        _exact=intensity.rule == "dtype",
        _lut=lut,
        _store=store,
    )


def _resampled(ids, sizes, spacings, target: float, problems: list[str]):
    """Sizes and spacings after resampling to `target` mm; note the images whose spacing is not known."""
    unknown = [name for name, known in zip(ids, spacings, strict=True) if known is None]
    _add(problems, unknown, "{n} image(s) without a spacing, which a column spacing (mm per pixel) can give")
    if unknown:
        return sizes, spacings
    resampled, faults = [], []
    for name, size, known in zip(ids, sizes, spacings, strict=True):
        try:
            resampled.append(resampled_size(*size, known, target))
        except InputError as error:
            faults.append(f"{name}: {str(error).removesuffix('.')}")
    _add(problems, faults, "{n} image(s) cannot be resampled")
    if faults:
        return sizes, spacings
    exact = [
        (row * height / rows, column * width / columns)
        for (row, column), (height, width), (rows, columns) in zip(spacings, sizes, resampled, strict=True)
    ]
    return resampled, exact


def _slice_id(name: str, part: int, slices: int | None) -> str:
    return name if slices is None else f"{name}#{part:0{max(3, len(str(slices - 1)))}d}"


def _filled(row: dict[str, str] | None) -> dict[str, str]:
    """What a slice's own row says; where it says nothing, its file's row does."""
    return {column: value for column, value in (row or {}).items() if value}


def _spacing(scan: "_Scan", row: dict[str, str], problems: list[str]) -> tuple[float, float] | None:
    """The file's own spacing, else what its row of a table says."""
    if scan.spacing or not row.get("spacing"):
        return scan.spacing
    try:
        value = float(row["spacing"])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        problem = f"a spacing is no positive number of mm: {row['spacing']!r}"
        if problem not in problems:
            problems.append(problem)
        return None
    return value, value


def _check_pairs(files, scans, classes: int, ignore_value, problems: list[str]) -> tuple[int, np.ndarray]:
    """Note what is wrong with the decoded pairs; return the number of classes and the table of mask values."""
    for kind in (_UNREADABLE, _UNBOUNDED):
        _add(problems, [f"{s.problem[1]}: {s.problem[2]}" for s in scans if s.problem and s.problem[0] == kind], kind)
    scanned = [(f, s) for f, s in zip(files, scans, strict=True) if not s.problem]
    _add(
        problems,
        [f"{f[0].name} is {s.size[1]}x{s.size[0]}, its mask {s.mask_size[1]}x{s.mask_size[0]}"
         for f, s in scanned if s.size != s.mask_size],
        "{n} pair(s) differ in size",
    )  # fmt: skip
    _add(
        problems,
        [f"{f[0].name} has {s.slices or 1}, its mask {s.mask_slices or 1}"
         for f, s in scanned if (s.slices or 1) != (s.mask_slices or 1)],
        "{n} pair(s) differ in the number of slices",
    )  # fmt: skip
    observed = set().union(*(s.values for _, s in scanned)) - {ignore_value}
    binary = 255 in observed and observed <= {0, 255}
    if not classes and not binary and observed | {0} != set(range(max(observed, default=0) + 1)):
        listed = ", ".join(map(str, sorted(observed)[:6])) + (", ..." if len(observed) > 6 else "")
        problems.append(
            f"the masks hold the values {listed}, not 0, 1, 2, ...; say how many classes there are (--classes or "
            "classes.json) and what to ignore (--ignore-value), or save the masks as class indices"
        )
        return 2, np.zeros(256, np.uint8)
    count = max(2, classes or (2 if binary else max(observed, default=1) + 1))
    lut, allowed = _class_lut(count, binary, ignore_value)
    _add(
        problems,
        [f"{f[1].name} has {sorted(s.values - allowed)[:5]}" for f, s in scanned if s.values - allowed],
        f"{{n}} mask(s) with values outside the {count} classes 0..{count - 1}",
    )
    return count, lut


def _check_splits(splits, groups, shared, given: bool, problems: list[str]) -> tuple[str, ...]:
    """Note what is wrong with a given split; return it in the words train, val and test."""
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        problems.append(f"unknown split {unknown[0]!r}; use train, val or test")
    splits = tuple(SPLITS.get(s, s) for s in splits)
    bound = {group for group, is_shared in zip(groups, shared, strict=True) if is_shared}
    crossing = [g for g, sides in _sides(groups, splits).items() if len(sides) > 1 and g in bound]
    kind = "group(s)" if given else "patient(s) or volume(s)"
    advice = "" if given else " (groups.csv can say what belongs together instead)"
    _add(problems, crossing, f"{{n}} {kind} on both sides of the given split{advice}", show=False)
    return splits


def split_dataset(dataset: Dataset, seed: int, fraction: float = 0.15) -> dict[str, np.ndarray]:
    """Indices of the "train", "val" and "test" images; groups are never divided.

    A given split is kept. Without a validation split one is cut from train; without a test split the validation
    split is the held-out test and another validation split is cut from train; without any split both are cut.

    Args:
        seed: of the cut.
        fraction: share of the images to cut for each missing split; the cut is one fold of
            `StratifiedGroupKFold(round(1 / fraction))`, stratified by `dataset.strata` where there are any.

    Raises:
        InputError: a split would be empty, or there are too few groups to cut it.
    """
    everything = np.arange(len(dataset))
    if dataset.splits is None:
        folds = _folds(dataset, everything, seed, fraction, needed=2)
        split = {"test": folds[0], "val": folds[1]}
        split["train"] = np.setdiff1d(everything, np.concatenate(folds[:2]))
    else:
        given = np.array(dataset.splits)
        split = {name: everything[given == name] for name in ("train", "val", "test")}
        if not len(split["test"]):
            split["test"], split["val"] = split["val"], split["test"]
        if not len(split["val"]) and len(split["train"]):
            split["val"] = _folds(dataset, split["train"], seed, fraction, needed=1)[0]
            split["train"] = np.setdiff1d(split["train"], split["val"])
    for name in ("train", "val"):
        if not len(split[name]):
            raise InputError(f"{dataset.path}: the {name} split is empty; give splits.csv images for it.")
    return split


def part_of(dataset: Dataset, indices: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """`fraction` of the images `indices`, sorted: whole groups in a random order, in each stratum.

    A smaller part lies within a larger one of the same seed. A group counts to the stratum of its first image; every
    stratum keeps at least one group.
    """
    if fraction == 1:
        return indices
    members = defaultdict(list)
    for index in sorted(indices.tolist()):
        members[dataset.groups[index]].append(index)
    strata = defaultdict(list)
    for group, images in members.items():
        strata[dataset.strata[images[0]] if dataset.strata else ""].append(group)
    rng = np.random.default_rng(seed)
    kept = []
    for _, groups in sorted(strata.items()):
        order = rng.permutation(len(groups))
        sizes = np.array([len(members[groups[i]]) for i in order])
        before = np.cumsum(sizes) - sizes
        wanted = round(fraction * sizes.sum(), 6)  # 0.07 * 100 is a little more than 7
        kept += [index for i in order[before < wanted] for index in members[groups[i]]]
    return np.array(sorted(kept))


def cross_validation(
    dataset: Dataset, indices: np.ndarray, folds: int, seed: int | tuple[int, ...]
) -> list[np.ndarray]:
    """The validation images of each of `folds` folds of the images `indices`; groups are never divided.

    Stratified by `dataset.strata` and by the foreground: the classes that an image has, and within these by thirds of
    the share of its pixels that they take. Of several divisions the first is taken whose folds have all classes.

    Raises:
        InputError: there are fewer groups than folds, or a fold has no image of a class, to train or to validate with.
    """
    check_whole(folds, "folds", minimum=2)
    groups = len({dataset.groups[index] for index in indices})
    if groups < folds:
        what = "group(s)" if dataset.grouped else "different image(s)"
        raise InputError(f"{dataset.path} has {groups} {what} to divide into folds={folds}; use fewer folds.")
    shares = np.array([_class_shares(dataset, index) for index in indices])
    present = shares > 0
    kinds = [tuple(row) for row in present.tolist()]
    column = [dataset.strata[index] for index in indices] if dataset.strata else [""] * len(indices)
    total = shares.sum(axis=1)
    # As objects: an array of strings would cut off what is added to them.
    labels = np.array([repr(pair) for pair in zip(column, kinds, strict=True)], object)
    for label in np.unique(labels):
        inside = labels == label
        if inside.sum() >= 3 * folds:  # fewer could not be spread over the folds
            third = np.searchsorted(np.quantile(total[inside], [1 / 3, 2 / 3]), total[inside])
            labels[inside] = [f"{label} {n}" for n in third]
    if max(Counter(labels.tolist()).values()) < folds:
        labels = np.zeros(len(indices), int)
    place = {int(index): i for i, index in enumerate(indices)}
    homes = [len({dataset.groups[index] for index in indices[having]}) for having in present.T]
    problem = ""
    for attempt in range(_DIVISIONS if min(homes) >= folds else 1):
        parts = _group_folds(indices, np.array(dataset.groups)[indices], labels, folds, np.append(attempt, seed))
        inside = [np.isin(np.arange(len(indices)), [place[int(index)] for index in part]) for part in parts]
        problem = _lacking(dataset, present, inside)
        if not problem:
            return parts
    raise InputError(problem)


def _lacking(dataset: Dataset, present: np.ndarray, folds: Sequence[np.ndarray]) -> str:
    """What is wrong where a fold has no image of a class, to train or to validate with; "" where nothing is.

    Args:
        present: bool (N, K), whether an image has each foreground class.
        folds: bool (N,), whether an image is in each fold.
    """
    for number, fold in enumerate(folds):
        for held_out, use in ((fold, "validate"), (~fold, "train")):
            missing = np.flatnonzero(~present[held_out].any(axis=0))
            if missing.size:
                return (
                    f"{dataset.path}: fold {number + 1} of {len(folds)} has no image with the class "
                    f"{dataset.class_names[missing[0] + 1]!r} to {use} with ({present[:, missing[0]].sum()} image(s) "
                    "have it); use fewer folds or add such images."
                )
    return ""


def _class_shares(dataset: Dataset, index: int) -> np.ndarray:
    """The share of an image's pixels that each foreground class takes."""
    mask = dataset.read(int(index))[1]
    return np.bincount(mask.ravel(), minlength=256)[1 : len(dataset.class_names)] / mask.size


def _folds(dataset, indices, seed, fraction, needed) -> list[np.ndarray]:
    groups = np.array(dataset.groups)[indices]
    count = min(round(1 / fraction), len(set(groups)))
    if count <= needed:
        raise InputError(
            f"{dataset.path}: the validation split would be empty: {len(set(groups))} group(s) or different image(s) "
            f"cannot be divided into train and {needed} held-out part(s); add data or give splits.csv."
        )
    strata = np.array(dataset.strata)[indices] if dataset.strata else np.zeros(len(indices), int)
    if max(Counter(strata.tolist()).values()) < count:
        raise InputError(f"{dataset.path}: no stratum has the {count} images for {count} folds; stratify coarser.")
    return _group_folds(indices, groups, strata, count, seed)


def _group_folds(indices, groups, strata, count: int, seed) -> list[np.ndarray]:
    from sklearn.model_selection import StratifiedGroupKFold

    # The splitter takes groups in the order of their labels; random labels shuffle them, alike in every version of
    # scikit-learn, whose own shuffle had no effect in 1.7.
    names, inverse = np.unique(groups, return_inverse=True)
    labels = np.random.default_rng(seed).permutation(len(names))[inverse]
    with warnings.catch_warnings():
        # A stratum smaller than the number of folds is spread as far as it goes, which is what is wanted.
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = StratifiedGroupKFold(count).split(indices, strata, labels)
        return [indices[held_out] for _, held_out in folds]


def _sides(groups: Sequence[str], splits: Sequence[str]) -> dict[str, set[str]]:
    sides = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        sides[group].add(split)
    return sides


def _add(problems: list[str], found: Sequence[str], template: str, show: bool = True) -> None:
    if found:
        problems.append(template.format(n=len(found)) + (f"; first: {found[0]}" if show else ""))


def _list_folder(path: Path, problems: list[str]):
    files = {}
    for part in ("images", "masks"):
        folder = path / part
        if not folder.is_dir():
            raise FileNotFoundError(f"`data` has no folder {part}/: {path}; it needs images/ and masks/, same stems.")
        files[part] = {}
        for file in sorted(folder.iterdir()):
            if is_image(file) and not file.name.startswith("."):
                name = stem(file)
                if name in files[part]:
                    problems.append(f"two files for one id in {part}/: {files[part][name].name}, {file.name}")
                files[part][name] = file
    images, masks = files["images"], files["masks"]
    _add(problems, [images[i].name for i in sorted(set(images) - set(masks))], "{n} image(s) have no mask in masks/")
    _add(problems, [masks[i].name for i in sorted(set(masks) - set(images))], "{n} mask(s) have no image in images/")
    pairs = {i: (images[i], masks[i]) for i in set(images) & set(masks)}
    table: dict[str, dict[str, str]] = defaultdict(dict)
    others = {}  # ids that no file has: of slices, or of nothing
    for file in sorted(path.glob("*.csv")):
        rows = _read_csv(file)
        needed = {"splits.csv": {"id", "split"}, "groups.csv": {"id", "group"}}.get(file.name, {"id"})
        if not rows or not needed <= set(rows[0]):
            if file.name in ("splits.csv", "groups.csv"):
                problems.append(f"{file.name} needs a header with the columns {' and '.join(sorted(needed, key=len))}")
            continue
        if file.name in ("splits.csv", "groups.csv"):
            others[file.name] = [row["id"] for row in rows if row["id"] not in images]
        repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
        _add(problems, repeated, f"{{n}} id(s) stand twice in {file.name}")
        for row in rows:
            # A column of the same name in two files: splits.csv and groups.csv own theirs.
            owned = {"split": "splits.csv", "group": "groups.csv"}
            table[row["id"]].update({k: v for k, v in row.items() if owned.get(k, file.name) == file.name})
    return pairs, table, others


def _list_csv(path: Path, problems: list[str]):
    rows = _read_csv(path)
    if not rows or not {"image", "mask"} <= set(rows[0]):
        raise InputError(f"{path} needs a header with the columns image and mask.")
    pairs, table = {}, {}
    incomplete, repeated, missing = [], [], []
    for number, row in enumerate(rows, start=2):
        if not row["image"] or not row["mask"]:
            incomplete.append(f"line {number}")
            continue
        name = (Path(row["image"]).parent / stem(row["image"])).as_posix()
        if name in pairs:
            repeated.append(row["image"])
        files = path.parent / row["image"], path.parent / row["mask"]
        absent = [str(file) for file in files if not file.is_file()]
        missing += absent
        if not absent:
            pairs[name], table[name] = files, row
    _add(problems, incomplete, "{n} row(s) without image or mask")
    _add(problems, repeated, "{n} image(s) listed twice")
    _add(problems, missing, "{n} file(s) do not exist")
    return pairs, table, {}


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a UTF-8 CSV file: {error}.") from error
    longer = [number for number, row in enumerate(rows, start=2) if None in row]
    if longer:
        raise InputError(f"{path} has more fields than columns in line {longer[0]}; quote those that hold commas.")
    return rows


def _column(table, column: str, ids, problems: list[str]) -> tuple[str, ...] | None:
    """Values of a column in the order of `ids`; None where no pair has one; some without is a problem."""
    if not any(column in row for row in table.values()):
        return None
    values = [table[i].get(column) or "" for i in ids]
    _add(problems, [i for i, value in zip(ids, values, strict=True) if not value], f"{{n}} image(s) without a {column}")
    return tuple(values)


def _read_classes(folder: Path) -> tuple[dict[int, str], dict | None]:
    """Class names by index, and the class index by RGB colour where colours are given."""
    path = folder / "classes.json"
    if not path.is_file():
        return {}, None
    try:
        entries = {int(k): v for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
        if sorted(entries) != list(range(len(entries))) or not 1 < len(entries) < IGNORED:
            raise ValueError("the keys must be 0, 1, 2, ...")
        names = {k: v if isinstance(v, str) else v["name"] for k, v in entries.items()}
        colours = {tuple(v["color"]): k for k, v in entries.items() if not isinstance(v, str)}
        return names, colours or None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} must look like {{"0": "background", "1": "cell"}} or, for coloured masks, '
            f'{{"0": {{"name": "background", "color": [0, 0, 0]}}, ...}}: {error}.'
        ) from error


_UNREADABLE, _UNBOUNDED = "{n} unreadable file(s)", "{n} image(s) that the intensity rule cannot map"


@dataclass
class _Scan:
    problem: tuple[str, str, str] | None = None  # kind, file, what is wrong
    size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    slices: int | None = None
    mask_slices: int | None = None
    values: frozenset[int] = frozenset()
    bounds: tuple[float, float] = (0.0, 0.0)
    spacing: tuple[float, float] | None = None
    patient: str | None = field(default=None, repr=False)
    moved: bool = False
    image_digest: str = ""
    mask_digest: str = ""


def _scan(file: int, store: _Store, intensity: Intensity) -> _Scan:
    """Decode one file and its mask, keep the slices there is room for, and note what the checks need."""
    path, kind = store.files[file][0], _UNREADABLE
    try:
        image = open_image(path, slice_axis=store.slice_axis)
        image_digest = file_digest(path)
        kind = _UNBOUNDED
        bounds = intensity.bounds(image)
        path, kind = store.files[file][1], _UNREADABLE
        mask = open_image(path, slice_axis=store.slice_axis)
        mask_digest = file_digest(path)
        counts = np.zeros(256, np.int64)
        for part in range(mask.slices or 1):
            path = store.files[file][1]
            labels = _read_mask(mask, part, store.colours)
            counts += np.bincount(labels.ravel(), minlength=256)
            if part < (image.slices or 1):
                path = store.files[file][0]
                store.offer(file, part, image.read(part), labels, image.slices is not None)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.removeprefix(f"{path}: ").removesuffix(".")
        return _Scan(problem=(kind, f"{path.parent.name}/{path.name}", reason))
    return _Scan(
        None,
        (image.height, image.width),
        (mask.height, mask.width),
        image.slices,
        mask.slices,
        frozenset(np.flatnonzero(counts).tolist()),
        bounds,
        image.spacing,
        image.patient,
        not same_place(image, mask),
        image_digest,
        mask_digest,
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_mask(picture: Picture, part: int, colours: dict | None) -> np.ndarray:
    """A slice of a mask as uint8 (H, W), values as stored; coloured ones become class indices."""
    mask = picture.read(part)
    if mask.ndim == 3:
        if colours:
            return _colours_to_classes(mask, colours)
        if not (mask == mask[..., :1]).all():
            raise InputError('is a colour or palette mask; give each class of classes.json its "color": [r, g, b].')
        mask = np.ascontiguousarray(mask[..., 0])
    if mask.dtype != np.uint8:
        wrong = mask[(mask < 0) | (mask > 255) | (mask != np.round(mask))]
        if wrong.size:
            raise InputError(f"holds the value {wrong.max():g}; masks hold class indices of at most 254.")
        mask = mask.astype(np.uint8)
    return mask


def _colours_to_classes(mask: np.ndarray, colours: dict) -> np.ndarray:
    code = (mask.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=2)
    classes = np.full(code.shape, IGNORED, np.uint8)
    known = np.zeros(code.shape, bool)
    for (r, g, b), index in colours.items():
        hit = code == (r << 16 | g << 8 | b)
        classes[hit] = index
        known |= hit
    if not known.all():
        stray = mask[~known][0].tolist()
        raise InputError(f"holds the colour {stray}, which classes.json does not name")
    return classes


def _class_lut(count: int, binary: bool, ignore_value: int | None) -> tuple[np.ndarray, set[int]]:
    """The table from stored mask values to class indices, and the stored values that are allowed."""
    lut = np.full(256, IGNORED, np.uint8)
    values = {0: 0, 255: 1} if binary and ignore_value != 255 else {i: i for i in range(count)}
    for value, index in values.items():
        lut[value] = index
    allowed = set(values)
    if ignore_value is not None:
        lut[ignore_value] = IGNORED
        allowed.add(ignore_value)
    return lut, allowed
