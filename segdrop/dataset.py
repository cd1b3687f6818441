"""Images and masks on disk: finding, checking, reading and splitting them."""

import csv
import hashlib
import io
import json
import os
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # it would write to stderr what is raised here

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import InputError

IGNORED = 255  # the class index, in every mask that leaves this module, of a pixel that is not scored
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit, past which it suspects a decompression bomb
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277  # TIFF tags
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Dataset:
    """A checked data set; `read(i)` gives image and mask number i.

    Attributes:
        path: the folder or CSV file it was opened from.
        ids: one name per pair, sorted.
        class_names: names of class 0, 1, ...; at least two.
        groups: what must stay together in a split: the given group; without groups the digest of the image's
            file, so that copies of one file are never on both sides.
        splits: the given split ("train", "val", "test") of each pair, or None.
        strata: the value of the column to stratify by of each pair, or None.
        sizes: (N, 2) heights and widths in pixels.
        digest: SHA-256 over classes, ids and file contents.
    """

    path: Path
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    grouped: bool
    splits: tuple[str, ...] | None
    strata: tuple[str, ...] | None
    sizes: np.ndarray
    digest: str
    _pairs: tuple[tuple[Path, Path], ...] = field(repr=False)
    _lut: np.ndarray = field(repr=False)
    _colours: dict | None = field(repr=False)
    _cache: "_Cache" = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image: uint8 or uint16 (H, W, 3), RGB, full dtype range. Mask: uint8 (H, W), class index or IGNORED."""
        pair = self._cache.pairs.get(index)
        if pair is None:
            image, mask = self._pairs[index]
            pair = _decode(image.read_bytes()), _decode_mask(mask.read_bytes(), self._colours)
        image, mask = pair
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        return image, cv2.LUT(mask, self._lut)

    @property
    def cached(self) -> int:
        """How many decoded pairs are held in memory."""
        return len(self._cache.pairs)


class _Cache:
    """Decoded pairs, as many as fit into `budget` bytes."""

    def __init__(self, budget: int):
        self.budget = budget
        self.pairs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def offer(self, index: int, image: np.ndarray, mask: np.ndarray) -> None:
        size = image.nbytes + mask.nbytes
        with self._lock:
            if size <= self.budget:
                self.budget -= size
                self.pairs[index] = (image, mask)


def open_dataset(
    path: str | os.PathLike,
    *,
    classes: int | None = None,
    ignore_value: int | None = None,
    stratify: str | None = None,
    cache_mb: int = 2048,
) -> Dataset:
    """Find, decode and check every pair of a data set; report everything that is wrong with it at once.

    Args:
        path: a folder with `images/` and `masks/` (same stem; optionally `splits.csv`, `groups.csv`,
            `meta.csv`, each with a column `id`, and `classes.json`); or a CSV file with the columns image, mask
            and optionally split and group, paths relative to it.
        classes: number of classes counting the background, except 1, which is binary. Default: what
            `classes.json` says, else what the masks hold.
        ignore_value: mask value of pixels that are never scored.
        stratify: a column of one of the CSV files, kept for the split.
        cache_mb: memory for decoded pairs, in MiB; what does not fit is read from disk each time.

    Raises:
        FileNotFoundError: `path` or a part of it does not exist.
        InputError: the data set cannot be used as it is; the message lists every kind of problem.
    """
    path = Path(path)
    if not path.exists():
        hint = "; `python -m segdrop.cells data/cells` makes the sample set" if path == Path("data/cells") else ""
        raise FileNotFoundError(f"`data` does not exist: {path}{hint}.")
    problems: list[str] = []
    pairs, table = (_list_folder if path.is_dir() else _list_csv)(path, problems)
    if not pairs:
        raise InputError("; ".join([*problems, f"no image and mask pairs in {path}"]) + ".")
    folder = path if path.is_dir() else path.parent
    names, colours = _read_classes(folder)
    ids = sorted(pairs)
    files = tuple(pairs[i] for i in ids)

    cache = _Cache(cache_mb * 2**20)
    # The filters belong to the whole process: set here, once, and not by the workers.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.filterwarnings("ignore", module="PIL")
        scans = list(pool.map(lambda job: _scan(*job, colours, cache), enumerate(files)))
    count, lut = _check_pairs(ids, files, scans, classes or len(names), ignore_value, problems)
    given = {column: _column(table, column, ids, problems) for column in ("split", "group")}
    strata = _column(table, stratify, ids, problems) if stratify else None
    if stratify and strata is None:
        columns = sorted({c for row in table.values() for c in row} - {"id"})
        problems.append(f"`stratify` names no column: {stratify!r}; there are: {', '.join(columns) or 'none'}")
    splits = given["split"] and _check_splits(given["split"], given["group"], problems)
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems) + ".")
    if splits:
        copies = [i for i, sides in _sides([s.image_digest for s in scans], splits).items() if len(sides) > 1]
        if copies:
            warnings.warn(f"{path}: {len(copies)} image(s) stand on both sides of the given split.", stacklevel=2)

    default_names = {0: "background"} | ({1: "foreground"} if count == 2 else {})
    digest = hashlib.sha256()
    digest.update(repr((count, names, colours)).encode())
    for name, scan in zip(ids, scans, strict=True):
        digest.update(f"{name}\0{scan.image_digest}\0{scan.mask_digest}\n".encode())
    return Dataset(
        path=path,
        ids=tuple(ids),
        class_names=tuple(names.get(i, default_names.get(i, f"class {i}")) for i in range(count)),
        groups=given["group"] or tuple(s.image_digest for s in scans),
        grouped=given["group"] is not None,
        splits=splits,
        strata=strata,
        sizes=np.array([s.size for s in scans]),
        digest=digest.hexdigest(),
        _pairs=files,
        _lut=lut,
        _colours=colours,
        _cache=cache,
    )


def _check_pairs(ids, files, scans, classes: int, ignore_value, problems: list[str]) -> tuple[int, np.ndarray]:
    """Note what is wrong with the decoded pairs; return the number of classes and the table of mask values."""
    _add(problems, [f"{s.problem[0]}: {s.problem[1]}" for s in scans if s.problem], "{n} unreadable file(s)")
    scanned = [(f, s) for f, s in zip(files, scans, strict=True) if not s.problem]
    _add(
        problems,
        [f"{f[0].name} is {s.size[1]}x{s.size[0]}, its mask {s.mask_size[1]}x{s.mask_size[0]}"
         for f, s in scanned if s.size != s.mask_size],
        "{n} pair(s) differ in size",
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


def _check_splits(splits, groups, problems: list[str]) -> tuple[str, ...]:
    """Note what is wrong with a given split; return it in the words train, val and test."""
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        problems.append(f"unknown split {unknown[0]!r}; use train, val or test")
    splits = tuple(SPLITS.get(s, s) for s in splits)
    if groups:
        crossing = [g for g, sides in _sides(groups, splits).items() if len(sides) > 1]
        _add(problems, crossing, "{n} group(s) on both sides of the given split", show=False)
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


def _folds(dataset, indices, seed, fraction, needed) -> list[np.ndarray]:
    from sklearn.model_selection import StratifiedGroupKFold

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
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                if file.stem in files[part]:
                    problems.append(f"two files for one id in {part}/: {files[part][file.stem].name}, {file.name}")
                files[part][file.stem] = file
    images, masks = files["images"], files["masks"]
    _add(problems, [images[i].name for i in sorted(set(images) - set(masks))], "{n} image(s) have no mask in masks/")
    _add(problems, [masks[i].name for i in sorted(set(masks) - set(images))], "{n} mask(s) have no image in images/")
    pairs = {i: (images[i], masks[i]) for i in set(images) & set(masks)}
    table: dict[str, dict[str, str]] = {i: {} for i in pairs}
    for file in sorted(path.glob("*.csv")):
        rows = _read_csv(file)
        needed = {"splits.csv": {"id", "split"}, "groups.csv": {"id", "group"}}.get(file.name, {"id"})
        if not rows or not needed <= set(rows[0]):
            if file.name in ("splits.csv", "groups.csv"):
                problems.append(f"{file.name} needs a header with the columns {' and '.join(sorted(needed, key=len))}")
            continue
        if file.name in ("splits.csv", "groups.csv"):
            unknown = [row["id"] for row in rows if row["id"] not in images]
            _add(problems, unknown, f"{{n}} id(s) in {file.name} have no image")
        repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
        _add(problems, repeated, f"{{n}} id(s) stand twice in {file.name}")
        for row in rows:
            if row["id"] in table:
                # A column of the same name in two files: splits.csv and groups.csv own theirs.
                owned = {"split": "splits.csv", "group": "groups.csv"}
                table[row["id"]].update({k: v for k, v in row.items() if owned.get(k, file.name) == file.name})
    return pairs, table


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
        name = Path(row["image"]).with_suffix("").as_posix()
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
    return pairs, table


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


@dataclass
class _Scan:
    problem: tuple[str, str] | None = None
    size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    values: frozenset[int] = frozenset()
    image_digest: str = ""
    mask_digest: str = ""


def _scan(index: int, files: tuple[Path, Path], colours, cache: _Cache) -> _Scan:
    """Decode one pair, keep it if there is room, and note what the checks need."""
    file = files[0]
    try:
        content = file.read_bytes()
        image, image_digest = _decode(content), hashlib.sha256(content).hexdigest()
        file = files[1]
        content = file.read_bytes()
        mask, mask_digest = _decode_mask(content, colours), hashlib.sha256(content).hexdigest()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _Scan(problem=(f"{file.parent.name}/{file.name}", reason))
    cache.offer(index, image, mask)
    values = frozenset(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())
    return _Scan(None, image.shape[:2], mask.shape, values, image_digest, mask_digest)


def _decode(content: bytes) -> np.ndarray:
    """Decode to uint8 or uint16, (H, W) or (H, W, 3) in RGB; alpha is dropped, palettes are expanded."""
    if not content:
        raise ValueError("the file is empty")
    try:
        picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"has {picture.width} x {picture.height} pixels; cut it into tiles")
        picture.load()  # unlike OpenCV, Pillow refuses a truncated file and prints nothing
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, UnidentifiedImageError) and content[:2] in (b"II", b"MM"):
            return _decode_with_opencv(content)  # Pillow knows no TIFF of 16 bits in several channels
        raise ValueError("cannot be decoded: it is corrupt, truncated, too large or not an image") from error
    if getattr(picture, "n_frames", 1) > 1:
        raise ValueError(f"has {picture.n_frames} pages; save each as a file of its own")
    if picture.format == "TIFF" and picture.mode in ("1", "L") and picture.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > 1:
        raise ValueError(f"has {picture.tag_v2[_SAMPLES_PER_PIXEL]} bands; save it as grey, RGB or RGBA")
    if picture.mode.startswith(("I", "F")) or _is_sixteen_bit(picture, content):
        return _decode_with_opencv(content)  # Pillow would cut to 8 bits
    if picture.mode in ("1", "L", "LA"):
        return np.array(picture.convert("L"))
    return np.array(picture.convert("RGB"))


def _decode_with_opencv(content: bytes) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        array = None
    if array is None:
        raise ValueError("cannot be decoded: it is corrupt, truncated, too large or not an image")
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"holds {array.dtype} values; save it as 8- or 16-bit integers")
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ValueError(f"has {array.shape[2]} bands; save it as grey, RGB or RGBA")
    return array if array.ndim == 2 else np.ascontiguousarray(array[..., 2::-1])


def _is_sixteen_bit(picture: Image.Image, content: bytes) -> bool:
    """Whether a PNG or TIFF stores 16 bits per channel, which Pillow's mode does not tell for colour."""
    if picture.format == "PNG":
        return content[24] == 16  # the bit depth in the file's first chunk
    return picture.format == "TIFF" and 16 in picture.tag_v2.get(_BITS_PER_SAMPLE, ())


def _decode_mask(content: bytes, colours: dict | None) -> np.ndarray:
    """Decode a mask to uint8 (H, W) as stored; coloured ones become class indices."""
    mask = _decode(content)
    if mask.ndim == 3:
        if colours:
            return _colours_to_classes(mask, colours)
        if not (mask == mask[..., :1]).all():
            raise ValueError('is a colour or palette mask; give each class of classes.json its "color": [r, g, b]')
        mask = np.ascontiguousarray(mask[..., 0])
    if mask.dtype != np.uint8:
        if mask.max(initial=0) > 255:
            raise ValueError(f"holds the value {mask.max()}; masks hold class indices of at most 254")
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
        raise ValueError(f"holds the colour {stray}, which classes.json does not name")
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
