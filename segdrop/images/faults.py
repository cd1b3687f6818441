"""What is wrong with a file in one line, and none of what the libraries that decode it say."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

UNDECODABLE = "cannot be decoded: it is corrupt, truncated, too large or not an image"
_one_at_a_time = threading.Lock()


class Fault(Exception):
    """What is wrong with a file, as half a sentence without its name."""


class OtherChannels(InputError):
    """An image has other channels than were asked for."""


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        raise InputError(f"{path}: {fault}.") from None  # the cause may quote the header


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """No warnings, as far as this thread may decide that.

    The filters belong to the whole process: were they changed by a thread while another changes them, they could
    stay so for good. Whoever opens files in threads sets them before (see `open_dataset`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def without_log(name: str) -> Iterator[None]:
    """No messages of a library about odd files, from its modules neither; its logger belongs to the whole process."""
    logger = logging.getLogger(name)
    with _one_at_a_time:
        before = logger.level
        logger.setLevel(logging.CRITICAL + 1)  # which holds for the loggers below it, as `disabled` does not
        try:
            yield
        finally:
            logger.setLevel(before)


@contextlib.contextmanager
def shielded(form: str) -> Iterator[None]:
    """Whatever a reader raises becomes a fault without a word of the header in it."""
    try:
        yield
    except ImportError:
        raise Fault(f'{form} needs `pip install "segdrop[medical]"`') from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise Fault(f"cannot be decoded: it is corrupt, truncated or not a {form} file") from None
    except Fault:
        raise
    except Exception:  # the parsers have types of their own
        raise Fault(f"cannot be decoded: it is corrupt, truncated or not a {form} file") from None
