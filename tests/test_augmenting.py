"""Processes that augment: the same batches as without them, errors in one line, and nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import albumentations as A
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_training, use_small_networks, write_pairs

from segdrop import InputError, TrainConfig
from segdrop.data.augment import FOREGROUND_CROPS, Sampler, load_augmentation, random_crop
from segdrop.data.augmenting import Augmenters
from segdrop.data.batches import training_batches
from segdrop.data.opening import open_dataset
from segdrop.folders.run import open_run
from segdrop.images.intensity import Intensity
from segdrop.training import device
from segdrop.training.device import count_augmenters
from segdrop.training.session import Session
from segdrop.training.train import train

RNG = np.random.default_rng(0)
SHAPE = (4, 64, 64, 3)


@pytest.fixture(scope="module")
def dataset(cells):
    return open_dataset(cells)


def sampler(*transforms):
    return Sampler(A.Compose(transforms) if transforms else load_augmentation("medical"), 64)


def batches(dataset, count, sampler, dtype="float32", failures=None):
    """Five batches by so many processes."""
    with Augmenters(sampler, count, SHAPE, dtype) as augmenters:
        made = training_batches(
            dataset,
            range(6),
            sampler,
            batch_size=4,
            crop_size=64,
            seed=3,
            first_epoch=0,
            epochs=1,
            steps=5,
            failures=failures,
            augmenters=augmenters,
        )
        return [(images.numpy(), masks.numpy()) for images, masks in made]


def crops(count=4):
    image, mask = RNG.integers(0, 256, (80, 90, 3), np.uint8), RNG.integers(0, 2, (80, 90), np.uint8)
    return [sampler().crop(image, mask, (seed,)) for seed in range(count)]


def pids(augmenters):
    return [process._process.pid for process in augmenters._processes]


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("preset", ["medical", "microscopy"])
def test_batches_are_the_same_for_any_number_of_processes(dataset, preset):
    one = Sampler(load_augmentation(preset), 64)
    alone = batches(dataset, 0, one)
    for count in (1, 2):
        for (image, mask), (other_image, other_mask) in zip(alone, batches(dataset, count, one), strict=True):
            np.testing.assert_array_equal(image, other_image)
            np.testing.assert_array_equal(mask, other_mask)


def test_floating_point_images_beside_bytes_are_the_same_in_a_process(tmp_path):
    images = [RNG.integers(0, 256, (70, 80)).astype(dtype) * k for dtype, k in (("u1", 1), ("u2", 99), ("u1", 1))] * 2
    pairs = {f"p{i}": (image, (image > 100).astype(np.uint8)) for i, image in enumerate(images)}
    mixed = open_dataset(write_pairs(tmp_path, pairs), intensity=Intensity("dtype"))
    assert not mixed.as_bytes
    for ours, theirs in zip(batches(mixed, 0, sampler()), batches(mixed, 2, sampler()), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    with pytest.raises(tf.errors.OpError, match=r"Images are to be uint8\."):
        batches(mixed, 0, sampler(), "uint8")


def test_images_of_8_bits_that_are_taken_as_they_are_stay_bytes(dataset, cells):
    assert dataset.as_bytes and not dataset.scaled(0.5).as_bytes
    assert not open_dataset(cells, intensity=Intensity("percentiles", (1, 99))).as_bytes
    for count in (0, 1):
        made = batches(dataset, count, sampler(), "uint8")
        for (images, _), (floats, _) in zip(made, batches(dataset, 0, sampler()), strict=True):
            assert images.dtype == np.uint8
            np.testing.assert_array_equal(images, floats)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_network_learns_the_same_from_bytes(policy):
    images = RNG.integers(0, 256, (2, 64, 64, 3), np.uint8)
    left = []
    for dtype in (np.uint8, np.float32):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((None, None, 3))
        x = keras.layers.BatchNormalization(dtype=policy)(inputs)
        model = keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", dtype=policy)(x))
        model.compile("adam", "mse", jit_compile=False)
        model.fit(
            tf.data.Dataset.from_tensors((images.astype(dtype), images[..., :1])).repeat(3), shuffle=False, verbose=0
        )
        left.append([np.asarray(variable) for variable in model.variables])
    for ours, theirs in zip(*left, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("classes", [2, 15, 16, 17, 255, 256])
def test_a_crop_lies_where_it_lay_when_whole_masks_were_counted(classes):
    """The place that the plain way of drawing it gives, and the same state of the random numbers after it."""

    def plain(mask, size, rng):
        low, high = np.zeros(2, int), np.array(mask.shape) - size
        if rng.random() < FOREGROUND_CROPS:
            present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:255]) + 1
            if present.size:
                pixel = np.array(divmod(int(rng.choice(np.flatnonzero(mask == rng.choice(present)))), mask.shape[1]))
                low, high = np.maximum(low, pixel - size + 1), np.minimum(high, pixel)
        return tuple(rng.integers(low, high, endpoint=True))

    for seed in range(50):
        mask = np.random.default_rng(seed).integers(0, classes, (100, 130)).astype(np.uint8)
        mask[:, :60] = seed % 2 * 255
        where = np.arange(100 * 130).reshape(100, 130, 1)
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        crop, _ = random_crop(where, mask, 64, ours)
        assert divmod(crop[0, 0, 0], 130) == plain(mask, 64, theirs)
        assert ours.integers(2**32) == theirs.integers(2**32)


def broken(image, **_):
    raise RuntimeError("broken pipe")


def leave(image, **_):
    os._exit(7)


@pytest.mark.parametrize(
    "transform, said",
    [
        (A.Lambda(image=broken), "The augmentation failed: RuntimeError: broken pipe"),
        (A.Resize(32, 32), "The augmentation must keep the crop's size 64x64; it gave an image of shape (32, 32, 3)"),
        (A.ToFloat(), None),
    ],
)
def test_an_error_in_a_process_is_that_of_the_sampler(dataset, transform, said):
    if said is None:  # refused before any process is made
        with pytest.raises(InputError, match="must keep the image's dtype"):
            sampler(transform)
        return
    failures = []
    with pytest.raises(tf.errors.OpError):
        batches(dataset, 1, sampler(transform), failures=failures)
    assert type(failures[0]) is InputError and str(failures[0]).startswith(said)


def test_what_cannot_be_given_to_a_process_is_an_error_of_one_line():
    lock = threading.Lock()

    def locked(image, **_):
        with lock:
            return image

    with pytest.raises(InputError, match=r"cannot be given to other processes: .*; train with augment_workers=0\.$"):
        Augmenters(sampler(A.Lambda(image=locked)), 1, SHAPE)


def test_a_process_that_leaves_is_an_error_of_one_line():
    with (
        Augmenters(sampler(A.Lambda(image=leave)), 1, SHAPE) as augmenters,
        pytest.raises(InputError, match=r"^A process that augments images has ended with exit code 7; if memory .*\.$"),
    ):
        augmenters(crops())


def test_a_killed_process_is_an_error_and_no_wait(dataset):
    with Augmenters(sampler(), 2, SHAPE) as augmenters:
        augmenters(crops())
        for pid in pids(augmenters):
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        for _ in range(6):  # more than there are slots: none is lost
            with pytest.raises(InputError, match="A process that augments images was killed by signal 9; if memory"):
                augmenters(crops())
        assert time.monotonic() - began < 5


def test_processes_are_gone_afterwards_also_after_an_error():
    with pytest.raises(KeyboardInterrupt), Augmenters(sampler(), 2, SHAPE) as augmenters:
        augmenters(crops())
        assert all(map(runs, pids(augmenters)))
        raise KeyboardInterrupt
    assert not any(map(runs, pids(augmenters)))
    images, _ = augmenters(crops())  # what is read ahead when a training ends is no error
    assert images.shape == SHAPE


PROGRAM = """
    import signal, sys, time
    import albumentations as A, numpy as np
    from segdrop.data.augment import Sampler
    from segdrop.data.augmenting import Augmenters

    print("this program begins")

    def report(image, **_):  # of this program, which a process does not import
        sys.stdout.write("heard by nobody who waits for an answer")
        return np.full_like(image, "tensorflow" in sys.modules)

    sampler = Sampler(A.Compose([A.Lambda(image=report)]), 32)
    augmenters = Augmenters(sampler, 1, (1, 32, 32, 3))
    image = np.full((32, 32, 3), 9, np.uint8)
    print("TensorFlow:", augmenters([sampler.crop(image, image[..., 0], (0,))])[0].max())
    process = augmenters._processes[0]._process
    signal.signal(signal.SIGINT, lambda *_: None)
    print("pid", process.pid, flush=True)
"""


def program(then):
    return [sys.executable, "-c", textwrap.dedent(PROGRAM) + textwrap.dedent(then)]


def test_a_program_needs_no_guard_and_its_processes_no_tensorflow(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(program("augmenters.close(); print('returned', process.returncode)")[2])
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines.count("this program begins") == 1
    assert lines[1] == "TensorFlow: 0.0" and lines[-1] == "returned 0"


def test_processes_end_with_a_program_that_is_killed_and_say_nothing_at_ctrl_c():
    started = subprocess.Popen(
        program("time.sleep(60)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C reaches all processes of the group
    )
    with started:
        pid = next(int(line.split()[1]) for line in started.stdout if line.startswith("pid"))
        os.killpg(started.pid, signal.SIGINT)
        time.sleep(0.5)
        assert runs(pid)  # it is the training that ends it
        started.kill()
        said = started.stderr.read()  # until the last process that holds it is gone
    assert "Traceback" not in said and "KeyboardInterrupt" not in said


def test_auto_is_threads_on_a_cpu_and_the_other_cores_on_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert (count_augmenters("auto"), count_augmenters(5)) == (0, 5)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    for cores, count in ((1, 0), (8, 7), (64, 16)):
        monkeypatch.setattr(device, "_usable_cores", lambda cores=cores: cores)
        assert count_augmenters("auto") == count


@pytest.mark.parametrize("value", [-1, 1.5, "many"])
def test_an_impossible_number_is_refused(value):
    with pytest.raises(InputError, match=r"`augment_workers` must be a whole number of at least 0, or auto, got"):
        TrainConfig(augment_workers=value)


def test_an_interrupted_training_goes_on_with_other_processes_to_the_same_end(cells, tmp_path, small_unet, monkeypatch):
    whole = train(tiny_training(cells, run_dir=tmp_path / "threads", epochs=2, augment_workers=0))
    record_epoch = Session.record_epoch

    def interrupt(self, row):
        record_epoch(self, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "record_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_training(cells, run_dir=tmp_path / "run", epochs=2, augment_workers=2))
    monkeypatch.undo()
    use_small_networks(monkeypatch)
    resumed = train(tiny_training(cells, run_dir=tmp_path / "run", epochs=2, augment_workers=1, resume=True))
    assert open_run(tmp_path / "run").config.augment_workers == 2
    assert [row["loss"] for row in resumed.history] == pytest.approx([row["loss"] for row in whole.history], rel=1e-5)
