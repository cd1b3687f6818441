"""What is wrong with a data set: each check yields its problems, which are told together."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..conventions import IGNORED, OVERLAPPING
from .listing import Listing
from .naming import SPLITS
from .problems import told
from .scanning import MISFIT, UNBOUNDED, UNNAMED, UNREADABLE, Entry, Scan
from .truth import Truth


def check_ids(listing: Listing, scans: Sequence[Scan], entries: Sequence[Entry]) -> Iterator[str]:
    """Ids that two images have, and ids in a table that no image has."""
    times = Counter(entry.id for entry in entries)
    repeated = [name for name, count in times.items() if count > 1]
    yield from told(repeated, "{n} id(s) of a slice and of a file are the same")
    unread = {name for name, scan in zip(sorted(listing.pairs), scans, strict=True) if scan.problem}
    for source, names in listing.elsewhere.items():
        unknown = [i for i in names if i not in times and i.rpartition("#")[0] not in unread]
        yield from told(unknown, f"{{n}} id(s) in {source} have no image")


def check_files(files: Sequence[tuple[Path, Truth]], scans: Sequence[Scan]) -> Iterator[str]:
    """Files that cannot be read, and masks that do not fit their image."""
    for kind in (UNREADABLE, MISFIT, UNBOUNDED):
        faults = [scan.problem for scan in scans if scan.problem and scan.problem[0] == kind]
        yield from told([f"{file}: {reason}" for _, file, reason in faults], kind)
    pairs = [(image.name, scan) for (image, _), scan in zip(files, scans, strict=True) if not scan.problem]
    sizes = [
        f"{name} is {scan.size[1]}x{scan.size[0]}, its mask {scan.mask_size[1]}x{scan.mask_size[0]}"
        for name, scan in pairs
        if scan.size != scan.mask_size
    ]
    yield from told(sizes, "{n} pair(s) differ in size")
    slices = [
        f"{name} has {scan.slices or 1}, its mask {scan.mask_slices or 1}"
        for name, scan in pairs
        if (scan.slices or 1) != (scan.mask_slices or 1)
    ]
    yield from told(slices, "{n} pair(s) differ in the number of slices")


def read_mask_values(
    files: Sequence[tuple[Path, Truth]],
    scans: Sequence[Scan],
    classes: int,
    ignored: Collection[int],
    colours: dict | None = None,
) -> tuple[int, np.ndarray, list[str]]:
    """What the masks' values mean.

    Args:
        classes: how many there are; 0 where the masks tell.
        ignored: values of pixels that are not scored.
        colours: classes by colour. Masks of one channel alone, whose values cannot all be class indices and are the
            grey ones of these, are in colours, too.

    Returns:
        The number of classes, the class index or IGNORED of each value, uint8 (256,), and the problems.
    """
    masks = [(mask.name, scan) for (_, mask), scan in zip(files, scans, strict=True) if not scan.problem]
    observed = set().union(*(scan.values for _, scan in masks)) - set(ignored)
    binary = 255 in observed and observed <= {0, 255}
    if not classes and not binary and observed | {0} != set(range(max(observed, default=0) + 1)):
        if any(is_lossy(name) for name, _ in masks):
            return 2, np.zeros(256, np.uint8), check_lossy(masks)
        listed = ", ".join(map(str, sorted(observed)[:6])) + (", ..." if len(observed) > 6 else "")
        problem = (
            f"the masks hold the values {listed}, not 0, 1, 2, ...; say how many classes there are (--classes or "
            "classes.json) and what to ignore (--ignore-value), or save the masks as class indices"
        )
        return 2, np.zeros(256, np.uint8), [problem]
    count = max(2, classes or (2 if binary else max(observed, default=1) + 1))
    classes_of = {0: 0, 255: 1} if binary else {i: i for i in range(count)}
    if not observed <= set(range(count)) and not any(scan.in_colours for _, scan in masks):
        greys = {c[0]: i for c, i in (colours or {}).items() if len(set(c)) == 1 and (i < count or i == IGNORED)}
        if observed <= greys.keys() and all(greys.get(value, IGNORED) == IGNORED for value in ignored):
            classes_of = greys
    table = np.full(256, IGNORED, np.uint8)
    for value, index in classes_of.items():
        table[value] = index
    allowed = set(classes_of)
    for value in ignored:
        table[value] = IGNORED
        allowed.add(value)
    stray = [(name, scan) for name, scan in masks if scan.values.keys() - allowed]
    lossy = check_lossy(stray)
    outside = [f"{name} has {sorted(scan.values.keys() - allowed)[:5]}" for name, scan in stray if not is_lossy(name)]
    return count, table, lossy + told(outside, f"{{n}} mask(s) with values outside the {count} classes 0..{count - 1}")


def read_mask_bits(
    files: Sequence[tuple[Path, Truth]], scans: Sequence[Scan], classes: int, ignored: Collection[int]
) -> tuple[int, np.ndarray, list[str]]:
    """What the values of masks mean that are sums of bits of overlapping classes; as `read_mask_values`."""
    masks = [(mask.name, scan) for (_, mask), scan in zip(files, scans, strict=True) if not scan.problem]
    observed = set().union(*(scan.values for _, scan in masks)) - set(ignored)
    count = classes or (2 if observed <= {0, 255} else 1 + max(observed).bit_length())
    table = np.full(256, IGNORED, np.uint8)
    if not 2 < count <= OVERLAPPING + 1:
        few = "two are needed for one to overlap another (leave out --multilabel)"
        wrong = few if count < 3 else f"at most {OVERLAPPING} can overlap"
        return 3, table, [f"masks of {count - 1} class(es) besides the background; {wrong}"]
    allowed = set(range(1 << (count - 1)))
    table[list(allowed)] = list(allowed)
    for value in ignored:
        table[value] = IGNORED
    stray = [
        f"{name} has {odd[:5]}" for name, scan in masks if (odd := sorted(scan.values.keys() - allowed - set(ignored)))
    ]
    bits = ", ".join(str(1 << index) for index in range(count - 1))
    return count, table, told(stray, f"{{n}} mask(s) with other values than sums of the classes' bits {bits}")


def check_colours(
    files: Sequence[tuple[Path, Truth]], scans: Sequence[Scan], names: dict[int, str], colours: dict | None
) -> list[str]:
    """Masks in colours that have no class, with a whole classes.json that gives them one.

    Args:
        names, colours: what there is of it: the names of classes, and classes by colour.
    """
    concerned = [(mask.name, scan) for (_, mask), scan in zip(files, scans, strict=True) if scan.unnamed]
    counts = Counter[tuple[int, ...]]()
    for scan in scans:
        grey = {(value,) * 3: count for value, count in scan.values.items() if scan.in_colours and not colours}
        counts.update({**grey, **scan.unnamed})
    known = {index: {"name": names.get(index, "ignored"), "color": list(c)} for c, index in (colours or {}).items()}
    first = len(known.keys() - {IGNORED})
    unnamed = [scan.problem[1] for _, scan in concerned if scan.problem]
    if len(known) + len(counts) >= IGNORED or any(is_lossy(name) for name, _ in concerned):
        pixels = max(1, counts.total())
        odd = sum(count for count in counts.values() if count < 0.001 * pixels) / pixels
        advice = (
            f"{UNNAMED}: {len(counts)} of them, {odd:.2%} of the pixels in ones that less than a pixel in 1,000 has, "
            "as JPEG and smooth scaling make them; save the masks as they were before, as PNG"
        )
        return told(unnamed, advice)
    fresh = {
        index: {"name": f"class {index}" if index else "background", "color": list(colour)}
        for index, (colour, _) in enumerate(counts.most_common(), start=first)
    }
    whole = json.dumps(known | fresh).replace("{", "{{").replace("}", "}}")
    return told(unnamed, f"{UNNAMED}; this one does, to be given your names: {whole}")


def is_lossy(name: str) -> bool:
    """Whether a mask of this name is a JPEG, which changes values at the edges of what it shows."""
    return name.lower().endswith((".jpg", ".jpeg"))


def check_lossy(masks: Sequence[tuple[str, Scan]]) -> list[str]:
    """Masks whose values JPEG has changed. For classes' own are taken those that a pixel in a hundred has, and more
    have than the 16 values to either side: the classes are not known."""
    lossy = [(name, scan.values) for name, scan in masks if is_lossy(name)]
    counts = np.zeros(256 + 2 * 16)
    for _, values in lossy:
        counts[[value + 16 for value in values]] += list(values.values())
    most = np.lib.stride_tricks.sliding_window_view(counts, 33).max(axis=1)
    counts, pixels = counts[16:-16], max(1, counts.sum())
    kept = np.flatnonzero((counts >= 0.01 * pixels) & (counts == most))
    advice = (
        f"{{n}} JPEG mask(s), in which compression gave {1 - counts[kept].sum() / pixels:.2%} of the pixels values "
        f"between the classes' ({', '.join(map(str, kept))}); take the masks as they were before, or save each pixel's "
        "nearest class as PNG (data/README.md, JPEG masks)"
    )
    return told([name for name, _ in lossy], advice)


def column_of(entries: Sequence[Entry], column: str | None) -> tuple[str, ...] | None:
    """The values of a column; None where no image has one."""
    values = tuple(entry.row.get(column) or "" for entry in entries) if column else ()
    return values if any(column in entry.row for entry in entries) else None


def check_tables(entries: Sequence[Entry], listing: Listing, stratify: str | None) -> Iterator[str]:
    """What CSV files say of some images and not of others, or in two ways."""
    for column in ("split", "group"):
        yield from _check_column(entries, column)
    yield from _check_strata(entries, stratify)
    yield from _check_contested(entries, listing, stratify)


def _check_column(entries: Sequence[Entry], column: str) -> Iterator[str]:
    """A column that some images have no value in."""
    missing = [e.id for e, value in zip(entries, column_of(entries, column) or (), strict=False) if not value]
    yield from told(missing, f"{{n}} image(s) without a {column}")


def _check_contested(entries: Sequence[Entry], listing: Listing, stratify: str | None) -> Iterator[str]:
    """Images of which two CSV files of a folder say different things in a column that is used."""
    for column in dict.fromkeys((stratify, "spacing")):
        names = set(listing.contested.get(column or "", ()))
        concerned = [
            entry.id
            for entry in entries
            if names & {entry.id, entry.id.rpartition("#")[0]}
            and (column == stratify or entry.scan.spacing is None)  # a file's own spacing comes before a table's
        ]
        yield from told(concerned, f"{{n}} image(s) with two values of {column}, in two CSV files; remove one")


def _check_strata(entries: Sequence[Entry], column: str | None) -> Iterator[str]:
    """A column to stratify by that is not there, or not whole."""
    if column is None:
        return
    yield from _check_column(entries, column)
    if entries and column_of(entries, column) is None:
        columns = sorted({name for entry in entries for name in entry.row} - {"id"})
        yield f"`stratify` names no column: {column!r}; there are: {', '.join(columns) or 'none'}"


def check_splits(splits, groups: Sequence[str], shared: Sequence[bool], given: bool, table: str) -> Iterator[str]:
    """Unknown words in a given split, and groups on both of its sides.

    Args:
        splits: the given split of each image, in words that `SPLITS` translates; None where none is given.
        groups, shared: of each image its group, and whether that must stay on one side.
        given: whether the groups were given by the user.
        table: the file that gives the split.
    """
    if splits is None:
        return
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        yield f"unknown split {unknown[0]!r} in {table}; use train, val or test"
    bound = {group for group, is_shared in zip(groups, shared, strict=True) if is_shared}
    crossing = [group for group in on_both_sides(groups, [SPLITS.get(s, s) for s in splits]) if group in bound]
    kind = "group(s)" if given else "patient(s) or volume(s)"
    advice = "" if given else " (groups.csv can say what belongs together instead)"
    yield from told(crossing, f"{{n}} {kind} on both sides of the given split{advice}", show=False)


def check_context(entries: Sequence[Entry], groups: Sequence[str], context: int) -> list[str]:
    """Volumes in several groups, whose slices could see those of another side of a split."""
    homes = defaultdict(set)
    for entry, group in zip(entries, groups, strict=True):
        homes[entry.file].add(group)
    divided = [entry.id for entry in entries if context and len(homes[entry.file]) > 1 and not entry.part]
    return told(divided, "{n} volume(s) in several groups, which `context_slices` would mix")


def on_both_sides(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The groups that are in more than one split."""
    sides = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        sides[group].add(split)
    return [group for group, group_splits in sides.items() if len(group_splits) > 1]
