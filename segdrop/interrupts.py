"""Requests to end, by Ctrl-C or by SIGTERM: none is lost, and none leaves a database's record half-made.

Python raises KeyboardInterrupt wherever the main thread happens to be, and forgets it where that is a finalizer, a weak
reference's callback or a hook of the garbage collector, which every new network of a sweep runs many of; and from
within TensorFlow's C++ another error comes out. So a request is remembered until the program has come to its end.
"""

import _thread
import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

DEADLINE = 25.0  # seconds after a SIGTERM; schedulers wait for 30 before they kill
_AGAIN = 0.05  # seconds until a lost request is made again, when what has swallowed it has ended


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises."""


@dataclasses.dataclass
class _State:
    """
    Attributes:
        asked: the signal that has come.
        lost: whether Python has forgotten what was raised for it.
        held: whether nothing is to be raised now.
    """

    asked: int | None = None
    lost: bool = False
    held: bool = False


_state = _State()


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """A Ctrl-C raises KeyboardInterrupt within it, and SIGTERM `Terminated`, again where that was lost; a process that
    has not ended `DEADLINE` seconds after a SIGTERM is ended as by a kill, which no file minds.

    Signals that are ignored, as a shell's background jobs ignore Ctrl-C, still are. In another thread than the main one
    nothing changes.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = _State()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before, hook = {number: signal.signal(number, _heed) for number in numbers}, sys.unraisablehook
    told = _watch() if signal.SIGTERM in numbers else None

    def remember(unraisable) -> None:
        if not (_state.asked and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            hook(unraisable)
            return
        _state.lost = True
        _later(_AGAIN, _remind, _state)

    sys.unraisablehook = remember
    try:
        yield
    except Exception:
        check()  # what TensorFlow has made of it, perhaps
        raise
    finally:
        _state = _State()
        sys.unraisablehook = hook
        if told is not None:
            signal.set_wakeup_fd(-1)
            os.close(told)
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch() -> int:
    """See to the deadline in a thread of its own, which hears of signals by a pipe: the main thread hears of none while
    it is in a library's C++. Returns the end to close."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                _later(DEADLINE, os._exit, 128 + signal.SIGTERM)
        os.close(reading)

    threading.Thread(target=watch, daemon=True).start()
    return writing


def _heed(number: int, _frame) -> None:
    first, again = _state.asked is None, _state.lost
    _state.lost = False
    if first:
        _state.asked = number
    # A second SIGTERM, to a whole group of processes for instance, must not end what the first has begun to put right.
    if not _state.held and (first or again or number == signal.SIGINT):
        raise _request()


def _remind(state: _State) -> None:
    if state is _state and state.asked is not None:
        _thread.interrupt_main(state.asked)


def _later(seconds: float, function: Callable, *arguments) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def _request() -> KeyboardInterrupt:
    return Terminated() if _state.asked == signal.SIGTERM else KeyboardInterrupt()


def check() -> None:
    """Raise a request that has come, whether it was lost or is held back; in the main thread."""
    if _state.asked is not None and threading.current_thread() is threading.main_thread():
        raise _request()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A request that comes meanwhile is raised at the end."""
    before, _state.held = _state.held, True
    try:
        yield
    finally:
        _state.held = before
        if not before:
            check()


@contextlib.contextmanager
def let_through() -> Iterator[None]:
    """Within `held`, a request is raised at once again."""
    before, _state.held = _state.held, False
    try:
        check()
        yield
    finally:
        _state.held = before
