"""The device that trains, and its precision."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf


def choose_device(precision: str) -> tuple[str, str]:
    """What the training runs on, in words, and the precision it computes in (off, float16 or bfloat16)."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # already in use by the caller's own program
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        device = f"GPU, {details.get('device_name', 'unknown model')}"
        auto = "float16" if details.get("compute_capability", (0, 0)) >= (7, 0) else "off"
    else:
        # Operations that run side by side share oneDNN's threads in an order that changes from run to run, and the
        # last bits of sums with it; one after the other, each with all threads, two runs are the same.
        with contextlib.suppress(RuntimeError):  # too late: the caller's program has used TensorFlow already
            tf.config.threading.set_inter_op_parallelism_threads(1)
        device = f"CPU, {os.cpu_count()} cores"
        auto = "bfloat16" if _cpu_has_bfloat16() else "off"
    return device, auto if precision == "auto" else precision


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
