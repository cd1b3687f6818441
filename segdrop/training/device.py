"""The device that trains, and its precision."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf


def choose_device(precision: str, deterministic: str = "auto") -> tuple[str, str]:
    """What the training runs on, in words, and the precision it computes in (off, float16 or bfloat16).

    TensorFlow is set up for it, as far as the caller's program has not used it already: on a CPU operations run one
    after the other unless `deterministic` is "off", on a GPU by deterministic kernels if it is "on".
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # already in use by the caller's own program
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        device = f"GPU, {details.get('device_name', 'unknown model')}"
        auto = "float16" if details.get("compute_capability", (0, 0)) >= (7, 0) else "off"
        if deterministic == "on":
            tf.config.experimental.enable_op_determinism()
    else:
        # Operations that run side by side share oneDNN's threads in an order that changes from run to run, and the
        # last bits of sums with it; one after the other, each with all threads, two runs are the same.
        if deterministic != "off":
            with contextlib.suppress(RuntimeError):  # too late
                tf.config.threading.set_inter_op_parallelism_threads(1)
        device = f"CPU, {os.cpu_count()} cores"
        auto = "bfloat16" if _cpu_has_bfloat16() else "off"
    return device, auto if precision == "auto" else precision


@dataclass(frozen=True)
class Machine:
    """What trains, as a plan takes it.

    Attributes:
        kind: "CPU" or "GPU".
        speed: pixels of crops that it trains a U-Net on resnet34 with in a second.
        memory: bytes.
        devices: how many each batch is divided among.
    """

    kind: str
    speed: float
    memory: float
    devices: int = 1


# Pixels that a core trains in a second, measured on 2 cores of an AMD EPYC, and a small GPU, which was not: an H100
# under JAX trains 65 million.
_CORE, _BFLOAT16, _MOST_CORES, _GPU = 123_000, 1.5, 16, 5_000_000

_MOST_WORKERS = 16  # by then the process that cuts the crops has no time for more


def this_machine(precision: str, gpus: str = "one") -> Machine:
    """The machine at hand.

    It is not timed: the same training on the same machine must come out the same however busy it is.

    Args:
        precision: that it trains in, off, float16 or bfloat16.
        gpus: one or all.
    """
    found = len(tf.config.list_physical_devices("GPU"))
    if found:
        devices = found if gpus == "all" else 1
        return Machine("GPU", _GPU * devices, math.inf, devices)
    speed = min(_usable_cores(), _MOST_CORES) * _CORE * (_BFLOAT16 if precision == "bfloat16" else 1)
    return Machine("CPU", speed, _memory())


def count_augmenters(workers: int | str) -> int:
    """How many processes augment: as `--augment-workers` says, or with "auto" as many as can keep a GPU fed.

    A CPU that trains has no cores to spare for them.

    Example:
        >>> count_augmenters(3)
        3
    """
    if workers != "auto":
        return workers
    return min(_usable_cores() - 1, _MOST_WORKERS) if tf.config.list_physical_devices("GPU") else 0


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> float:
    """Bytes of memory that the process may use, as far as the system tells."""
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not on Windows
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # a container's; "max" where there is none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return float(min(limits, default=math.inf))


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 (Linux tells; elsewhere the answer is no)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


@contextlib.contextmanager
def precision_policy(precision: str) -> Iterator[None]:
    """Build layers under a precision; the caller's own policy is put back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "off" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
