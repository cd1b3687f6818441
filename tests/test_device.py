"""The device that trains, and whether a training on it can be repeated to the last bit."""

import os
import subprocess
import sys

import keras
import pytest
import tensorflow as tf
from conftest import tiny_training

from segdrop import train
from segdrop.training.device import choose_device
from segdrop.training.session import Session


@pytest.mark.parametrize(("deterministic", "threads"), [("auto", 1), ("on", 1), ("off", 0)])
def test_on_a_cpu_operations_run_one_after_the_other_unless_told_otherwise(deterministic, threads):
    code = (
        "import tensorflow as tf; from segdrop.training.device import choose_device\n"
        f"choose_device('off', {deterministic!r})\n"
        "print(tf.config.threading.get_inter_op_parallelism_threads())"
    )
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", code], env=without_gpu, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(threads)]  # 0 leaves it to TensorFlow


@pytest.mark.parametrize(("deterministic", "asked"), [("auto", 0), ("on", 1), ("off", 0)])
def test_on_a_gpu_deterministic_kernels_are_taken_where_they_are_asked_for(monkeypatch, deterministic, asked):
    calls = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append(1))
    details = {"device_name": "One", "compute_capability": (8, 0)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: details)
    assert choose_device("auto", deterministic) == ("GPU, One", "float16")
    assert len(calls) == asked


@pytest.mark.jax
def test_steps_are_compiled_by_xla_where_there_is_nothing_else_and_left_to_onednn_on_a_cpu(
    cells, tmp_path, monkeypatch, small_unet
):
    seen, original = [], Session.compile

    def compile(self, *arguments, **options):
        original(self, *arguments, **options)
        seen.append(self.trained.jit_compile)

    monkeypatch.setattr(Session, "compile", compile)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])  # whatever the machine has
    train(tiny_training(cells, run_dir=str(tmp_path / "run"), steps_per_epoch=1))
    assert seen == [keras.backend.backend() == "jax"]
