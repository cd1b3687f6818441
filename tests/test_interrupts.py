"""Requests to end: heard wherever they come, held back where they must be, and obeyed in time."""

import _thread
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from segdrop import interrupts
from segdrop.cli.main import COMMANDS, main
from segdrop.cli.options import ExportOptions
from segdrop.interrupts import Terminated, check, heeding, held, let_through


def ask(number=signal.SIGINT):
    signal.raise_signal(number)


@pytest.fixture(autouse=True)
def heeds_interrupts():
    """A shell has its background jobs ignore them, and these tests may run in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def noted():
    original, set_for = interrupts._later, []

    def later(seconds, function, *arguments):
        if function is os._exit:
            set_for.append((seconds, *arguments))
        else:
            original(seconds, function, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts, "_later", later)
        yield set_for
        time.sleep(1)  # a thread sets them, which may be late


@pytest.fixture(autouse=True)
def deadlines(noted):
    """What would end the tests' process is noted."""
    noted.clear()
    return noted


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_raises_what_it_is(number, kind, deadlines):
    with pytest.raises(KeyboardInterrupt) as raised, heeding():
        ask(number)
    assert type(raised.value) is kind
    if kind is Terminated:
        wait(until=lambda: deadlines)  # set by a thread, which may be late on a busy machine
    assert deadlines == ([(25, 143)] if kind is Terminated else [])


def wait(until=lambda: False):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not until():
        time.sleep(0.01)


def in_a_finalizer():
    class Finalized:
        def __del__(self):
            ask()

    Finalized()


def in_a_weak_reference():
    class Gone:
        pass

    gone = Gone()
    reference = weakref.ref(gone, lambda _: ask())
    del gone
    assert reference() is None


def in_a_garbage_collection():
    def hook(phase, info):
        gc.callbacks.remove(hook)
        ask()

    gc.callbacks.append(hook)
    gc.collect()


@pytest.mark.parametrize("lose", [in_a_finalizer, in_a_weak_reference, in_a_garbage_collection])
def test_what_python_forgets_is_raised_again(lose):
    passed = []
    with pytest.raises(KeyboardInterrupt), heeding():
        lose()
        passed.append("lost")
        wait()
        passed.append("for good")
    assert passed == ["lost"]


def test_what_is_lost_at_the_very_end_is_not_raised_afterwards():
    raised = []
    signal.signal(signal.SIGINT, lambda *_: raised.append("afterwards"))
    with heeding():
        in_a_finalizer()
    time.sleep(3 * interrupts._AGAIN)
    assert raised == []


def test_what_has_been_made_another_error_is_the_request():
    with pytest.raises(KeyboardInterrupt), heeding():
        try:
            ask()
        except KeyboardInterrupt:
            raise SystemError("bad argument to internal function") from None


def test_an_error_without_a_request_is_itself():
    with pytest.raises(SystemError, match="bad argument"), heeding():
        raise SystemError("bad argument to internal function")


def test_check_raises_what_was_swallowed_and_nothing_else():
    with pytest.raises(Terminated), heeding():
        check()
        with contextlib.suppress(KeyboardInterrupt):
            ask(signal.SIGTERM)
        check()
    check()


def test_check_is_for_the_main_thread():
    errors = []

    def elsewhere():
        try:
            check()
        except KeyboardInterrupt as error:
            errors.append(error)

    with pytest.raises(KeyboardInterrupt), heeding():
        try:
            ask()
        except KeyboardInterrupt:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            raise
    assert not errors


def test_what_is_held_back_is_raised_at_the_end():
    passed = []
    with pytest.raises(KeyboardInterrupt), heeding():
        with held():
            ask()
            passed.append("inside")
        passed.append("after")
    assert passed == ["inside"]


def test_what_is_let_through_is_raised_at_once_also_what_came_before():
    passed = []
    with pytest.raises(KeyboardInterrupt), heeding(), held():
        try:
            with let_through():
                ask()
                passed.append("missed")
        finally:
            passed.append("told")
    with pytest.raises(KeyboardInterrupt), heeding(), held():
        ask()
        passed.append("held")
        with let_through():
            passed.append("missed")
    assert passed == ["told", "held"]


def test_a_second_sigterm_does_not_end_what_the_first_has_begun_and_a_second_ctrl_c_does():
    passed = []
    with pytest.raises(KeyboardInterrupt), heeding():
        try:
            ask(signal.SIGTERM)
        finally:
            ask(signal.SIGTERM)
            passed.append("put right")
            ask(signal.SIGINT)
            passed.append("missed")
    assert passed == ["put right"]


def test_handlers_and_hook_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), heeding():
        ask()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert sys.unraisablehook is hook


def test_a_signal_that_is_ignored_still_is():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with heeding():
        ask()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def elsewhere():
        with heeding():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_that_comes_while_tensorflow_is_imported_waits_until_it_is(number, code, monkeypatch, capsys):
    """Raised within the import of its C++, it ended a command now and then by a segmentation fault."""
    passed = []

    def importing():
        ask(number)
        passed.append("imported")

    monkeypatch.setattr("segdrop.cli.main._import_tensorflow", importing)
    monkeypatch.setitem(COMMANDS, "export", (ExportOptions, lambda options: passed.append("exported")))
    assert main(["export", "run"]) == code
    assert passed == ["imported"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_that_does_not_heed_a_sigterm_is_ended():
    script = """
        import signal, time
        from segdrop import interrupts
        interrupts.DEADLINE = 0.3
        with interrupts.heeding():
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=300)
    assert done.returncode == 143


def test_so_is_one_that_hears_of_none_within_a_library():
    script = """
        import hashlib, os, signal, threading
        from segdrop import interrupts
        interrupts.DEADLINE = 0.3
        with interrupts.heeding():
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=300)
    assert done.returncode == 143


def test_a_request_can_be_made_from_a_thread():
    """Python delivers it to the main one."""
    with pytest.raises(KeyboardInterrupt), heeding():
        threading.Timer(0.1, _thread.interrupt_main, (signal.SIGINT,)).start()
        wait()
