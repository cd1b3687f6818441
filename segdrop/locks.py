"""Locks of folders, which the system frees when the process that holds one ends, however it ends."""

import contextlib
import errno
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

if os.name == "nt":
    import msvcrt
else:
    import fcntl

_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_POLL = 0.1  # seconds


@contextlib.contextmanager
def locked(folder: Path, name: str, doing: str, remedy: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock of a folder; a file `.NAME.lock` tells others who does.

    Where the file system knows no locks, as some of networks, a warning says so and nothing is held.

    Args:
        doing: what is done to the folder, for the message.
        remedy: what another process can do instead, for the message.
        wait: seconds that another process may hold it before this is an error.

    Raises:
        InputError: another process holds it; the message names its host and number.

    Example:
        >>> from pathlib import Path
        >>> with locked(Path(), "predicting", "is being written", "choose another `out`"):
        ...     with locked(Path(), "predicting", "is being written", "choose another `out`"):
        ...         pass
        Traceback (most recent call last):
            ...
        segdrop.errors.InputError: . is being written by another process (...); choose another `out`.
    """
    path, deadline = folder / f".{name}.lock", time.monotonic() + wait
    try:
        while (file := _take(path)) is None:
            if time.monotonic() >= deadline:
                raise InputError(f"{folder} {doing} by another process ({_holder(path)}); {remedy}.")
            time.sleep(_POLL)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        warnings.warn(
            f"{folder} lies on a file system without locks ({error.strerror}); see to it that no two processes write "
            "there at once.",
            stacklevel=3,
        )
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held, so that nobody else's is removed
        os.close(file)


@contextlib.contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` in which is made what gets that name in the end; it is removed, and where a kill has
    left one, by whoever makes the same next.

    Raises:
        InputError: another process makes it.
        OSError: a file cannot be written; `out` is named.
    """
    folder = out.absolute().with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "writing", "is being written", "wait for it or choose another `out`"):
        try:
            for left in folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != ".writing.lock":
                    left.unlink()
            yield folder
        except OSError as error:
            if error.errno is not None and str(error.filename or folder).startswith(str(folder)):
                error.filename = str(out)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _take(path: Path) -> int | None:
    """The descriptor of a lock file that is locked now; None where another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
            # Whoever had it may have removed the file since it was opened here.
            if _is_at(file, path):
                with contextlib.suppress(OSError):  # a full disk: it is held all the same
                    os.ftruncate(file, 0)
                    os.write(file, f"{socket.gethostname()}, process {os.getpid()}".encode())
                return file
        except OSError as error:
            os.close(file)
            if error.errno not in _TAKEN:
                error.filename = str(path)
                raise
            return None
        os.close(file)


def _lock(file: int) -> None:
    if os.name == "nt":
        os.lseek(file, 2**30, os.SEEK_SET)  # beyond what others are to read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "unknown"
    except OSError:  # it has just ended
        return "unknown"
