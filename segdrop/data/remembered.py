"""What an earlier start has found out about a data set's files, so that the next one need not decode them all again.

It lies in the user's cache folder and never beside the data, and nothing depends on it: whatever is not there, cannot
be read or is out of date is found out anew. It holds numbers alone. Names of folders and files are in it as hashes,
those of files together with times in nanoseconds, which nobody guesses.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..version import __version__

VARIABLE = "SEGDROP_CACHE"
WORTH = 2.0  # seconds that finding out has to take for it to be kept
_SCHEMA = 2  # of what is kept; another one finds nothing of this one's
_SETTLED = 2_000_000_000  # ns: some file systems tell times in steps of 2 s, within which a change would not show
_FORGOTTEN = 90 * 24 * 3600  # s: what was not written anew for so long is removed


def cache_folder() -> Path | None:
    """Where it lies: in $SEGDROP_CACHE, else in $XDG_CACHE_HOME/segdrop, else in ~/.cache/segdrop; None where
    $SEGDROP_CACHE is "off", or nobody is at home.

    Example:
        >>> cache_folder().name
        'segdrop'
    """
    given = os.environ.get(VARIABLE)
    if given:
        return None if given == "off" else Path(given)
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "segdrop"
    except RuntimeError:
        return None


def stamps(pairs: Iterable[Iterable[str | os.PathLike]]) -> list[bytes | None]:
    """For the files of each pair one number that is another one as soon as a file is: of their paths, sizes and times;
    None where a file is not there or was changed so lately that its time may not tell the next change.

    Example:
        >>> [stamp] = stamps([["image.png"]])
        >>> [stamp] == stamps([["image.png"]]), stamps([["nothing.png"]])
        (True, [None])
    """
    latest, here, seen = time.time_ns() - _SETTLED, os.getcwd(), {}

    def stamp(path: str) -> str:
        try:
            status = os.stat(path)
        except OSError:
            return ""
        # The time of the last change of its state also tells a file whose time was put back, as by `cp -p`.
        told = f"{os.path.join(here, path)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
        return told if status.st_mtime_ns < latest else ""

    found = []
    for paths in pairs:
        paths = [os.fspath(path) for path in paths]
        for path in paths:
            if path not in seen:  # outlines of many images are in one file
                seen[path] = stamp(path)
        told = [seen[path] for path in paths]
        whole = hashlib.blake2b("".join(told).encode("utf-8", "surrogateescape"), digest_size=16)
        found.append(whole.digest() if all(told) else None)
    return found


def recall(about: object) -> dict[str, np.ndarray]:
    """What `remember` has kept under `about`, told by its `repr`; {} where there is nothing that can be read.

    Example:
        >>> recall("never kept")
        {}
    """
    folder = cache_folder()
    if folder is None:
        return {}
    try:
        with open(folder / _name(about), "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception:  # whatever is wrong with it, nothing is lost
        return {}


def remember(about: object, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays under `about`, if they can be written.

    Example:
        >>> remember("three", {"numbers": np.arange(3)})
        >>> recall("three")["numbers"].tolist()
        [0, 1, 2]
    """
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.glob("*.npz"):
            if time.time() - old.stat().st_mtime > _FORGOTTEN:
                old.unlink(missing_ok=True)
        # A name of its own, for other processes may write the same, as the workers of a sweep do.
        number, temporary = tempfile.mkstemp(suffix=".npz", prefix=".", dir=folder)
        try:
            with open(number, "wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, folder / _name(about))
        finally:
            Path(temporary).unlink(missing_ok=True)


def _name(about: object) -> str:
    return hashlib.sha256(repr((_SCHEMA, __version__, about)).encode("utf-8", "surrogateescape")).hexdigest() + ".npz"
