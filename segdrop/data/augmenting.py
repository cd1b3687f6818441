"""Processes that augment crops, since threads hold Python's lock while they do."""

import contextlib
import mmap
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import joblib
import numpy as np

from ..errors import InputError, first_line
from .augment import Sampler

Crop = tuple[np.ndarray, np.ndarray, int]  # image, mask and the seed of its transforms, as `Sampler.crop` gives them

_THREADS = 2  # that augment where no processes do; with more they wait for Python's lock
_GRACE = 10.0  # seconds that a process has to finish its batch before it is killed
_TASK = "import sys; sys.path[:] = sys.argv[1:]; from segdrop.data.augmenting import _work; _work()"


class Augmenters:
    """Augments batches of crops in processes of its own; the results are those of the sampler in this process.

    The processes are interpreters that import what a transform needs and neither TensorFlow nor the caller's program,
    which so needs no `if __name__ == "__main__"`. They end with the `with` block, and when this process dies.

    Args:
        sampler: what augments.
        count: of processes; 0: the calling threads do it themselves.
        shape: of the batches of images: batch, height, width, channels.
        dtype: that they get, float32, or uint8 where all images are: a quarter of the bytes to move.

    Example:
        >>> from segdrop.data.augment import Sampler, load_augmentation
        >>> sampler = Sampler(load_augmentation("light"), crop_size=32)
        >>> crop = sampler.crop(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), seed=(0,))
        >>> with Augmenters(sampler, 1, (2, 32, 32, 3)) as augmenters:
        ...     [part.shape for part in augmenters([crop, crop])]
        [(2, 32, 32, 3), (2, 32, 32)]
    """

    def __init__(self, sampler: Sampler, count: int, shape: tuple[int, int, int, int], dtype: str = "float32"):
        if count and os.name == "nt":
            raise InputError(f"`augment_workers` must be 0 on Windows, got {count}.")
        self.dtype, self._sampler, self._shape = np.dtype(dtype), sampler, shape
        # So many batches are on their way at a time: each process has the next one waiting while its last is fetched.
        self.calls = 2 * count or _THREADS
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes: list[_Process] = []
        if count:
            self._start(count)

    def _start(self, count: int) -> None:
        try:
            # By value what was defined in the caller's program or a notebook, which a process cannot import.
            sampler = pickle.dumps(joblib.wrap_non_picklable_objects(self._sampler, keep_wrapper=False))
        except Exception as error:  # whatever an object raises that cannot be pickled
            raise InputError(
                f"The augmentation cannot be given to other processes: {first_line(error).rstrip('.')}; "
                "train with augment_workers=0."
            ) from error
        with _memory(self.calls * _slot_bytes(self._shape)) as file:
            task = (file.fileno(), self.calls, self._shape, sampler)
            for slot in _map_slots(*task[:3]):
                self._slots.put(slot)
            try:
                for _ in range(count):
                    self._processes.append(_Process(task))
            except OSError:
                self.close()
                raise
        for process in self._processes:
            self._idle.put(process)

    def __call__(self, crops: Iterable[Crop]) -> tuple[np.ndarray, np.ndarray]:
        """Augment a batch; several threads may call at a time.

        Returns:
            images: of the shape and type that were given, 0..255; masks: uint8, without channels.

        Raises:
            InputError: a transform fails, or its process has died.
        """
        crops = list(crops)
        if any(np.promote_types(image.dtype, self.dtype) != self.dtype for image, _, _ in crops):
            raise TypeError(f"Images are to be {self.dtype}.")  # they would be rounded
        images, masks = _aligned(self._shape, self.dtype), _aligned(self._shape[:3], np.uint8)
        if not self._processes or not self._elsewhere(crops, images, masks):
            for i, crop in enumerate(crops):
                images[i], masks[i] = self._sampler.augment(*crop)
        return images, masks

    def _elsewhere(self, crops: list[Crop], images: np.ndarray, masks: np.ndarray) -> bool:
        """Let a process fill `images` and `masks`; False where there is none any more: what is read ahead when a
        training ends is no error."""
        slot = self._slots.get()
        try:
            jobs = [(image.dtype.str, seed) for image, _, seed in crops]
            for i, (image, mask, _) in enumerate(crops):
                slot.image(i, image.dtype)[...], slot.masks[i] = image, mask
            process = self._idle.get()
            try:
                if not process.augment(slot.number, jobs):
                    return False
            finally:
                self._idle.put(process)  # one that has died, too: who waits for it is told
            for i, (dtype, _) in enumerate(jobs):
                images[i] = slot.image(i, dtype)
            masks[...] = slot.masks
            return True
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        """End the processes, when they have done what they are at."""
        for process in self._processes:
            process.end()

    def __enter__(self) -> "Augmenters":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Process:
    """An interpreter that augments what it is told to, one batch after the other."""

    def __init__(self, task: tuple):
        self._lock, self._ended = threading.Lock(), False
        self._process = subprocess.Popen(
            # Warnings have been given when the augmentation was checked.
            [sys.executable, "-W", "ignore", "-c", _TASK, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[task[0]],
            start_new_session=True,  # a Ctrl-C is for the training, which ends this process
            env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")},
        )
        with contextlib.suppress(OSError):  # it has ended at once, which the first batch is told
            self._send(task)

    def augment(self, slot: int, jobs: list[tuple[str, int]]) -> bool:
        """Augment a slot's crops in place; False where the process was told to end."""
        with self._lock:
            if self._ended:
                return False
            try:
                self._send((slot, jobs))
                failure = pickle.load(self._process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                raise InputError(self._how_it_ended()) from None
        if failure:
            raise InputError(failure)
        return True

    def end(self) -> None:
        """Let the process end, and wait for it."""
        done = self._lock.acquire(timeout=_GRACE)
        try:
            self._ended = True
            if not done:
                self._process.kill()
                self._process.wait()
                return
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # it is dead, and was to be told something
                    pipe.close()
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        finally:
            if done:
                self._lock.release()

    def _send(self, message: tuple) -> None:
        pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            code = None
        how = f"was killed by signal {-code}" if code and code < 0 else f"has ended with exit code {code}"
        return f"A process that augments images {how}; if memory is short, take fewer (`augment_workers`)."


class _Slot(NamedTuple):
    """Room for a batch of crops, in memory that all processes see.

    Attributes:
        number: of the slot.
        bytes: uint8 (batch, bytes of a float32 image).
        masks: uint8 (batch, height, width).
        shape: of an image.
    """

    number: int
    bytes: np.ndarray
    masks: np.ndarray
    shape: tuple[int, int, int]

    def image(self, place: int, dtype) -> np.ndarray:
        """The image at a place of the batch, to be read and written."""
        wanted = int(np.prod(self.shape)) * np.dtype(dtype).itemsize
        return self.bytes[place, :wanted].view(dtype).reshape(self.shape)


def _slot_bytes(shape: tuple[int, int, int, int]) -> int:
    batch, height, width, channels = shape
    return batch * height * width * (4 * channels + 1)


def _memory(size: int):
    """A file without a name that processes share by its descriptor, in memory where the system has such.

    Not `multiprocessing.shared_memory`: it lies in /dev/shm, of which a container has 64 MB unless told otherwise, and
    Python before 3.13 unlinks it with the first process that leaves.
    """
    in_memory = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("segdrop"), "r+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _map_slots(file: int, count: int, shape: tuple[int, int, int, int]) -> list[_Slot]:
    batch, height, width, channels = shape
    size, of_images = _slot_bytes(shape), 4 * batch * height * width * channels
    memory = np.frombuffer(mmap.mmap(file, count * size), np.uint8).reshape(count, size)
    return [
        _Slot(
            number,
            memory[number, :of_images].reshape(batch, -1),
            memory[number, of_images:].reshape(batch, height, width),
            (height, width, channels),
        )
        for number in range(count)
    ]


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An empty array that TensorFlow takes without copying it: it begins at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _work() -> None:
    """What a process does: augment the slots that it is told of, until nobody is there to tell it any."""
    told, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a transform prints is no answer
    cv2.setNumThreads(1)  # the other cores have processes of their own
    try:
        file, count, shape, pickled = pickle.load(told)
        slots, failure = _map_slots(file, count, shape), None
        try:
            sampler = pickle.loads(pickled)
        except Exception as error:  # a module of the user's that cannot be imported here, for instance
            failure = f"The augmentation cannot be used in another process: {type(error).__name__}: {error}"
        while True:
            number, jobs = pickle.load(told)
            pickle.dump(failure or _augment(sampler, slots[number], jobs), answers)
            answers.flush()
    except (EOFError, BrokenPipeError):
        pass


def _augment(sampler: Sampler, slot: _Slot, jobs: list[tuple[str, int]]) -> str | None:
    """Augment the crops of a slot in place; what went wrong, or None."""
    try:
        for i, (dtype, seed) in enumerate(jobs):
            image = slot.image(i, dtype)
            image[...], slot.masks[i] = sampler.augment(image, slot.masks[i], seed)
    except Exception as error:  # a transform may raise anything, and the training is to be told
        return str(error) if isinstance(error, InputError) else f"The augmentation failed: {error!r}"
    return None
