"""Every file of a data set decoded once: what the checks and the training have to know of it."""

import json
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..errors import first_line
from ..files import file_digest
from ..images.faults import OtherChannels
from ..images.intensity import Bounds, Intensity
from ..images.opening import same_place
from . import remembered
from .listing import Listing
from .store import Store, UnnamedColours

UNREADABLE, UNBOUNDED = "{n} unreadable file(s)", "{n} image(s) that the intensity rule cannot map"
MISFIT = "{n} image(s) of another kind than asked for"
UNNAMED = "{n} mask(s) in colours that classes.json does not name"
# Of a scan what many files of a data set have alike, so that it is kept for the next start once.
_ALIKE = "size mask_size in_colours bounds value_range extremes value_type spacing moved".split()


@dataclass
class Scan:
    """What an image file and its mask hold.

    Attributes:
        problem: its kind, the file and what is wrong with it; None where both could be read. The rest is unset else.
        size, mask_size: (height, width) in pixels.
        slices, mask_slices: None for one 2-D image.
        in_colours: whether the mask is stored as RGB.
        unnamed: of a mask in colours that have no class the number of pixels of each.
        values: of the mask, and how many of its pixels have each.
        bounds: the values that become 0 and 255.
        value_range: what the image's type can hold, where it has such a range.
        extremes: the lowest and the highest value.
        value_type: the type that the values are stored in.
        spacing: (row, column) in mm.
        patient: never to be written or shown.
        moved: whether the mask lies elsewhere in space, by the headers.
        image_digest, mask_digest: SHA-256 of the files.
    """

    problem: tuple[str, str, str] | None = None
    size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    slices: int | None = None
    mask_slices: int | None = None
    in_colours: bool = False
    unnamed: dict[tuple[int, int, int], int] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    bounds: Bounds = (0.0, 0.0)
    value_range: tuple[float, float] | None = None
    extremes: tuple[float, float] = (0.0, 0.0)
    value_type: str = ""
    spacing: tuple[float, float] | None = None
    patient: str | None = field(default=None, repr=False)
    moved: bool = False
    image_digest: str = ""
    mask_digest: str = ""


@dataclass(frozen=True)
class Entry:
    """An image of a data set: a file, or a slice of one.

    Attributes:
        id: its name; slice 12 of the volume a is "a#012".
        file, part: number of its file, and of its slice.
        scan: of the file.
        row: what the tables say of it, by column.
    """

    id: str
    file: int
    part: int
    scan: Scan
    row: dict[str, str]


def scan_files(store: Store, intensity: Intensity, about: object = None) -> tuple[list[Scan], Intensity]:
    """Decode all pairs, several at once, and keep those there is room for; and the intensity rule, never "auto".

    Args:
        about: all that a scan depends on besides the files, `store` and `intensity`.
    """
    about = ("scans", about, store.colours, store.slice_axis, store.channels, store.context, intensity)
    began = time.monotonic()
    stamps = remembered.stamps([(image, *truth.paths) for image, truth in store.files])
    known = _recalled(about)
    scans = [known.get(stamp) for stamp in stamps]
    fresh = [file for file, scan in enumerate(scans) if scan is None]
    # The filters belong to the whole process: set here, once, and not by the workers.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.filterwarnings("ignore", module="PIL|pydicom|nibabel")
        for file, scan in zip(fresh, pool.map(lambda file: _scan_pair(file, store, intensity), fresh), strict=True):
            scans[file] = scan
        if time.monotonic() - began > remembered.WORTH and any(
            stamps[file] and _may_be_kept(scans[file]) for file in fresh
        ):
            _remember(about, stamps, scans)
        return scans, _settle(scans, store, intensity)


def _may_be_kept(scan: Scan) -> bool:
    """Whether the next start may take a scan from this one. A patient is never written, and what is wrong with a file
    names the file. A volume is decoded at every start, slice by slice: in a training's random order each slice would
    cost all of it."""
    return scan.problem is None and scan.patient is None and scan.slices is None and scan.mask_slices is None


def _remember(about: object, stamps: Sequence[bytes | None], scans: Sequence[Scan]) -> None:
    kept = [(stamp, scan) for stamp, scan in zip(stamps, scans, strict=True) if stamp and _may_be_kept(scan)]
    rows = [json.dumps([getattr(scan, name) for name in _ALIKE], default=lambda n: n.item()) for _, scan in kept]
    number = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    hexes = "".join(scan.image_digest + scan.mask_digest for _, scan in kept)
    arrays = {
        "stamps": np.frombuffer(b"".join(stamp for stamp, _ in kept), np.uint8),
        "digests": np.frombuffer(bytes.fromhex(hexes), np.uint8),
        "alike": np.frombuffer(f"[{','.join(number)}]".encode(), np.uint8),
        "which": np.array([number[row] for row in rows]),
        "ends": np.cumsum([len(scan.values) for _, scan in kept]),
        "values": np.array([pair for _, scan in kept for pair in scan.values.items()]),
    }
    remembered.remember(about, arrays)


def _recalled(about: object) -> dict[bytes | None, Scan]:
    """The scans that an earlier start has kept, by the stamps of their files."""
    try:
        stored = remembered.recall(about)
        stamps, digests = stored["stamps"].tobytes(), stored["digests"].tobytes().hex()
        alike = [dict(zip(_ALIKE, map(_as_tuples, row), strict=True)) for row in json.loads(stored["alike"].tobytes())]
        pairs, ends = stored["values"].tolist(), stored["ends"].tolist()
        return {
            stamps[16 * i : 16 * i + 16]: Scan(
                **alike[which],
                values=dict(pairs[begin:end]),
                image_digest=digests[128 * i : 128 * i + 64],
                mask_digest=digests[128 * i + 64 : 128 * i + 128],
            )
            for i, (which, begin, end) in enumerate(zip(stored["which"].tolist(), [0, *ends[:-1]], ends, strict=True))
        }
    except (KeyError, ValueError, TypeError, IndexError):
        return {}


def _as_tuples(value):
    """What JSON has made lists of."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _settle(scans: list[Scan], store: Store, intensity: Intensity) -> Intensity:
    """The rule that "auto" stands for; the scans get its bounds."""
    rule = intensity.settled((scan.value_range, scan.bounds) for scan in scans if not scan.problem)
    if rule != intensity:
        for file, scan in enumerate(scans):
            if scan.value_range is not None and rule.rule == "dtype":
                scan.bounds = scan.value_range
            elif scan.bounds == scan.value_range:  # 8 bits among images of other types
                scan.bounds = rule.bounds(store.open_image(file))
    return rule


def _scan_pair(file: int, store: Store, intensity: Intensity) -> Scan:
    """Decode one file and its mask, keep the slices there is room for, and note what the checks need."""
    path, kind = store.files[file][0], UNREADABLE
    try:
        image = store.open_image(file)
        image_digest = file_digest(path)
        kind = UNBOUNDED
        bounds = intensity.bounds(image)
        truth, kind = store.files[file][1], UNREADABLE
        path = truth.files[0]
        mask = store.open_mask(file)
        mask_digest = truth.digest()
        counts, extremes, value_type = np.zeros(256, np.int64), [], ""
        for part in range(mask.slices or 1):
            path = truth.files[0]
            labels = store.labels(file, mask, part)
            counts += np.bincount(labels.ravel(), minlength=256)
            if part < (image.slices or 1):
                path = store.files[file][0]
                values = image.read_alone(part)
                extremes += [float(values.min()), float(values.max())]
                value_type = values.dtype.name
                store.offer(file, part, values, labels, image.slices)
    except UnnamedColours as error:
        return Scan(problem=(UNNAMED, f"{path.parent.name}/{path.name}", str(error)), unnamed=error.counts)
    except (OSError, ValueError) as error:
        kind = MISFIT if isinstance(error, OtherChannels) else kind
        named = [one for one in store.files[file][1].paths if first_line(error).startswith(f"{one}: ")]
        path = named[0] if named else path
        reason = first_line(error).removeprefix(f"{path}: ").removesuffix(".")
        return Scan(problem=(kind, f"{path.parent.name}/{path.name}", reason))
    return Scan(
        size=(image.height, image.width),
        mask_size=(mask.height, mask.width),
        slices=image.slices,
        mask_slices=mask.slices,
        in_colours=mask.channels == 3,
        values={int(value): int(counts[value]) for value in np.flatnonzero(counts)},
        bounds=bounds,
        value_range=image.value_range,
        extremes=(min(extremes), max(extremes)),
        value_type=value_type,
        spacing=image.spacing,
        patient=image.patient,
        moved=not same_place(image, mask),
        image_digest=image_digest,
        mask_digest=mask_digest,
    )


def entries_of(listing: Listing, scans: list[Scan]) -> list[Entry]:
    """The images of all files that could be read, by id; a slice's row is filled in by its file's."""
    entries = []
    for file, (stem, scan) in enumerate(zip(sorted(listing.pairs), scans, strict=True)):
        for part in [] if scan.problem else range(scan.slices or 1):
            name = stem if scan.slices is None else f"{stem}#{part:0{max(3, len(str(scan.slices - 1)))}d}"
            own = {column: value for column, value in listing.table.get(name, {}).items() if value}
            entries.append(Entry(name, file, part, scan, {**listing.table.get(stem, {}), **own}))
    return entries
