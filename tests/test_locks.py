"""Locks of folders: one process at a time, free at once when it dies, and nothing left."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from segdrop import InputError, locks
from segdrop.locks import locked

HOLD = """
import pathlib, sys, time
from segdrop.locks import locked
with locked(pathlib.Path(sys.argv[1]), "training", "is being trained", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def lock(folder, **options):
    return locked(folder, "training", "is being trained", "wait for it or choose another run_dir", **options)


@contextlib.contextmanager
def held_elsewhere(folder):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_who_holds_a_folder_is_told_and_what_to_do(tmp_path):
    with held_elsewhere(tmp_path) as process, pytest.raises(InputError) as told, lock(tmp_path):
        pass
    host = os.uname().nodename
    assert str(told.value) == (
        f"{tmp_path} is being trained by another process ({host}, process {process.pid}); wait for it or choose "
        "another run_dir."
    )


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert os.listdir(tmp_path) == [".training.lock"]
        with lock(tmp_path):
            assert f"process {os.getpid()}" in (tmp_path / ".training.lock").read_text()
    assert os.listdir(tmp_path) == []


def test_locks_of_different_names_do_not_exclude_each_other(tmp_path):
    with lock(tmp_path), locked(tmp_path, "scores", "", ""):
        assert sorted(os.listdir(tmp_path)) == [".scores.lock", ".training.lock"]


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path):
    inside, order = threading.Event(), []

    def first():
        with lock(tmp_path):
            inside.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with lock(tmp_path, wait=30):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_of_many_who_wait_one_is_inside_at_a_time(tmp_path):
    inside, most = [], []

    def enter():
        for _ in range(20):
            with lock(tmp_path, wait=60):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_a_lock_file_that_was_removed_before_it_was_locked_is_no_lock(tmp_path, monkeypatch):
    """As it is when the holder ends between opening and locking."""
    original, calls = locks._lock, []

    def removed(file):
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".training.lock").unlink()
        original(file)

    monkeypatch.setattr(locks, "_lock", removed)
    with lock(tmp_path):
        monkeypatch.setattr(locks, "_lock", original)
        with pytest.raises(InputError, match="is being trained"), lock(tmp_path):
            pass
    assert len(calls) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_warning_says_so_and_work_goes_on(tmp_path, monkeypatch, number):
    def unknown(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "_lock", unknown)
    with pytest.warns(UserWarning, match="file system without locks .*no two processes"), lock(tmp_path):
        (tmp_path / "done").touch()
    assert (tmp_path / "done").exists()


def test_an_error_within_is_passed_on_and_frees_the_lock(tmp_path):
    with pytest.raises(OSError, match="disk"), lock(tmp_path):
        raise OSError(errno.ENOLCK, "the disk")
    with lock(tmp_path):
        pass


def test_a_full_disk_does_not_keep_from_holding(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with lock(tmp_path), pytest.raises(InputError, match=r"another process \(unknown\)"), lock(tmp_path):
        pass
