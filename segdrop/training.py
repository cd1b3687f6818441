"""Training: from a configuration to a run's folder with the best model, its history and its scores."""

import contextlib
import dataclasses
import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.panel import Panel

from . import plots
from .augment import A, Sampler, describe, load_augmentation, restore
from .batchnorm import recalibrate_batchnorm
from .config import TrainConfig, default_run_dir
from .dataset import Dataset, open_dataset, part_of, split_dataset
from .errors import Diverged, InputError
from .evaluation import recorded_split, score, score_images, store_scores
from .intensity import rule_of
from .losses import SegmentationLoss
from .metrics import Dice, IoU, to_labels
from .pipeline import EvaluationBatches, evaluation_batches, steps_per_epoch, training_batches
from .replicas import AgreedLossScale, UpdateOriginal, replicate, strategy_for
from .run import (
    CONFIG,
    HISTORY,
    METRICS,
    MODEL,
    SPLIT,
    STATE,
    best_epoch,
    create_run,
    load_history,
    open_run,
    package_versions,
    remove_partial,
    restore_state,
    save_state,
    stored_config,
    write_atomically,
    write_csv,
    write_json,
)
from .schedules import DropoutSchedule
from .sweep_folder import sweep_split
from .unet import build_unet, imagenet_file, set_encoder_trainable

RANDOM_WEIGHTS = (
    "The encoder starts from RANDOM weights: no ImageNet weights are cached and none could be downloaded. "
    "Expect worse results than with them, on small data sets much worse."
)
_TIMED_STEPS = 5
_console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    Attributes:
        run_dir: the run's folder.
        history: one dict per epoch: epoch, learning_rate, loss, dice, iou and their `val_` twins.
        metrics: scores of the best model by split ("val", "test"); see `segdrop.evaluate`.
        model: the best model by validation Dice.
    """

    run_dir: Path
    history: list[dict]
    metrics: dict[str, dict]
    model: keras.Model


def train(config: TrainConfig, *, augmentation: A.Compose | None = None) -> TrainResult:
    """Train a U-Net as `config` says and write everything to its run folder.

    Everything that can be wrong with the configuration and the data is found before the folder is made.

    Args:
        config: the configuration.
        augmentation: a pipeline of your own instead of `config.augment`; it is applied to the crops, with masks
            always interpolated by nearest neighbour, and must keep their size.

    Raises:
        InputError, FileNotFoundError, FileExistsError: the configuration, data or folder cannot be used, or the
            loss is no longer finite.
    """
    history: list[dict] = []
    record = None
    if config.resume:
        run_dir = Path(str(config.run_dir))
        record = open_run(run_dir)
        _check_same(config, stored_config(run_dir), run_dir)
        history = load_history(run_dir)
        remove_partial(run_dir)
        augmentation = restore(record["augmentation"])
    else:
        run_dir = Path(config.run_dir) if config.run_dir else default_run_dir(datetime.now())
        augmentation = load_augmentation(config.augment) if augmentation is None else augmentation
        if run_dir.exists():
            create_run(run_dir, 0)  # says so before the data set is read
    dataset = training_data(config)
    if record and record["data_sha256"] != dataset.digest:
        raise InputError(f"{config.data} has changed since {run_dir} was started; start a new run.")
    if record:
        split = {name: recorded_split(run_dir, dataset, name) for name in ("train", "val", "test")}
    else:
        split = _split(config, dataset)
    device, policy = choose_device(config.mixed_precision if record is None else record["mixed_precision"])
    strategy = strategy_for(config.gpus, config.batch_size)
    if strategy is not None:
        device = f"{strategy.num_replicas_in_sync} x {device}"
    weights = find_weights(config) if record is None else record["encoder_weights"]

    # A resumed run's weights come from its state.
    model = build_model(config, dataset.class_names, None if record or weights == "random" else weights, policy)
    sampler = _sampler(config, augmentation, dataset, split)
    session = _Session(config, run_dir, model, dataset, split, sampler, history, strategy)
    if record is None:
        record = session.start(device, policy, weights, augmentation)
    _announce({**record, "device": device}, dataset, split, model, run_dir, config.resume)
    started = time.monotonic()
    session.fit()
    metrics = session.finish()
    _report(metrics, record, run_dir, session.history, time.monotonic() - started)
    return TrainResult(run_dir, session.history, metrics, session.best)


def train_fold(
    config: TrainConfig, run_dir: Path, dataset: Dataset, split: dict[str, np.ndarray], precision: str, weights: str
) -> dict:
    """Train one of many: a run's folder without pictures, TensorBoard events and state, and nothing on the terminal.

    Args:
        config: the configuration; what it says of data, split, precision and weights is overruled by the arguments.
        run_dir: the run's folder, a new one.
        dataset: the data set.
        split: indices of the "train", "val" and "test" images; the test images are not touched.
        precision: off, float16 or bfloat16.
        weights: path of the encoder's weight file, or "random".

    Returns:
        dice, iou, ece, ece_foreground and brier of the best model on the validation images, None where undefined;
        train_dice, its Dice on as many training images, evenly spread, dropout off; best_epoch, counted from 0; epochs;
        train_images and val_images, how many there were; device, in words.

    Raises:
        Diverged: the loss is no longer finite.
    """
    device, _ = choose_device(precision)
    augmentation = load_augmentation(config.augment)
    split = {**split, "train": part_of(dataset, split["train"], config.train_fraction, config.seed)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, when the sweep was started
        model = build_model(config, dataset.class_names, None if weights == "random" else weights, precision)
    sampler = _sampler(config, augmentation, dataset, split)
    session = _Session(config, run_dir, model, dataset, split, sampler, [], lean=True)
    session.start(device, precision, weights, augmentation)
    session.fit()
    scores = session.finish()["val"]
    spread = np.linspace(0, len(split["train"]) - 1, min(len(split["train"]), len(split["val"]))).round().astype(int)
    sample = evaluation_batches(dataset, split["train"][spread], session.evaluation_pixels)
    return {
        **{key: scores[key] for key in ("dice", "iou")},
        **{key: scores["calibration"][key] for key in ("ece", "ece_foreground", "brier")},
        "train_dice": score(session.best, sample, dataset.class_names)["dice"],
        "best_epoch": best_epoch(session.history),
        "epochs": len(session.history),
        "train_images": len(split["train"]),
        "val_images": len(split["val"]),
        "device": device,
    }


def time_training(config: TrainConfig, dataset: Dataset, split: dict[str, np.ndarray], precision: str) -> float:
    """Estimate the seconds that `train_fold` takes from a few timed steps; patience may end it earlier."""

    def timed(call, *arguments) -> float:
        started = time.monotonic()
        call(*arguments)
        return time.monotonic() - started

    started = time.monotonic()
    split = {**split, "train": part_of(dataset, split["train"], config.train_fraction, config.seed)}
    model = build_model(config, dataset.class_names, None, precision)
    sampler = _sampler(config, load_augmentation(config.augment), dataset, split)
    session = _Session(config, Path(), model, dataset, split, sampler, [], lean=True)
    session._compile(0, frozen=False)
    batches = list(session._training_batches(0, 1).repeat().take(_TIMED_STEPS + 1))
    validation = [session.validation.read(batch)[0] for batch in session.validation.plan[:_TIMED_STEPS]]
    building = time.monotonic() - started
    # The first call of each function includes tracing it.
    tracing, *steps = [timed(model.train_on_batch, *batch) for batch in batches]
    tracing += timed(model.predict_on_batch, validation[0])
    image = float(np.median([timed(model.predict_on_batch, images) / len(images) for images in validation]))
    epoch = session.steps * float(np.median(steps)) + len(split["val"]) * image
    # The best model is loaded, traced again and scored on two sets of images.
    return 2 * building + 2 * tracing + session.epochs * epoch + 2 * len(split["val"]) * image


def training_data(config: TrainConfig) -> Dataset:
    """The data set of a configuration, opened and checked."""
    return open_dataset(
        config.data,
        classes=config.classes,
        ignore_value=config.ignore_value,
        stratify=config.stratify,
        cache_mb=config.cache_mb,
        intensity=rule_of(config),
        spacing=config.spacing,
        slice_axis=config.slice_axis,
    )


def _split(config: TrainConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    if config.from_sweep is None:
        split = split_dataset(dataset, config.seed, config.val_fraction)
    else:
        split = sweep_split(config.from_sweep, dataset)
    return {**split, "train": part_of(dataset, split["train"], config.train_fraction, config.seed)}


def _sampler(config: TrainConfig, augmentation: A.Compose, dataset: Dataset, split) -> Sampler:
    sampler = Sampler(augmentation, config.crop_size)
    sampler(*dataset.read(int(split["train"][0])), (0,))  # an augmentation that fails does so here
    return sampler


class _Session:
    """The fitting of one run: its phases, and what is kept from each epoch.

    Args:
        strategy: of several devices that each batch is divided among, or None.
        lean: keep the best model, the history and the scores alone, and print nothing.
    """

    def __init__(
        self, config: TrainConfig, run_dir, model, dataset, split, sampler, history, strategy=None, lean=False
    ):
        self.config, self.run_dir, self.model, self.history = config, run_dir, model, history
        self.sampler, self.dataset, self.split, self.lean = sampler, dataset, split, lean
        self.steps = steps_per_epoch(len(split["train"]), config.batch_size)
        self.epochs = min(config.epochs, config.stop_after or config.epochs)
        # A batch of the evaluation has as many pixels as one of the training.
        self.evaluation_pixels = config.batch_size * config.crop_size**2
        self.validation = self._evaluation("val")
        self.best: keras.Model | None = None
        self.strategy: tf.distribute.Strategy | None = strategy
        self.trained = model  # what is fitted: `model`, or its replicas on several devices

    def start(self, device: str, precision: str, weights: str, augmentation: A.Compose) -> dict:
        """Make the run's folder, with what the run is; returns the contents of its config.json."""
        config = self.config
        record = {
            "config": {**config.to_json(), "run_dir": str(self.run_dir)},
            "classes": self.model.output_shape[-1],
            "class_names": list(self.dataset.class_names),
            "images": {name: len(indices) for name, indices in self.split.items()},
            "data_sha256": self.dataset.digest,
            "encoder_weights": weights,
            "warnings": [RANDOM_WEIGHTS] if config.encoder_weights == "auto" and weights == "random" else [],
            "mixed_precision": precision,
            "device": device,
            "augmentation": describe(augmentation),
            "versions": package_versions(),
        }
        # The best model, and weights and moments of the state twice while one replaces the other.
        create_run(self.run_dir, (2 if self.lean else 8) * 4 * self.model.count_params())
        write_json(self.run_dir / CONFIG, record)
        _write_split(self.run_dir / SPLIT, self.dataset, self.split)
        return record

    def fit(self) -> None:
        """Train the frozen and the free phase, from the first epoch that the history does not have."""
        config = self.config
        resumed_at = len(self.history)
        thaw = min(config.freeze_epochs, self.epochs)
        for first, last, frozen in ((0, thaw, True), (thaw, self.epochs, False)):
            if first == last or resumed_at >= last:
                continue
            self._compile(first, frozen)
            if self.history and resumed_at > first:
                restore_state(self.run_dir, self._variables())
            elif self.history:
                restore_state(self.run_dir, self.trained.variables)
            if self._out_of_patience():
                return
            self._fit_phase(max(first, len(self.history)), last)

    def _compile(self, first_epoch: int, frozen: bool) -> None:
        # Each phase has its own optimizer. One that had seen the frozen phase would correct its moments' bias for
        # the steps it counted, not for those the encoder took part in, and move the encoder several times too far.
        set_encoder_trainable(self.model, not frozen)
        # On a CPU, XLA's convolutions took 1.6 times as long as oneDNN's; it does not go with several devices.
        jit_compile = "auto" if tf.config.list_physical_devices("GPU") else False
        if self.strategy is not None:
            self.trained = replicate(self.model, self.strategy)
            # To validate.
            self.model.compile(
                loss=SegmentationLoss(self.config.loss), metrics=self._metrics(), jit_compile=jit_compile
            )
            jit_compile = False
        with (self.strategy or tf.distribute.get_strategy()).scope():
            self.trained.compile(
                self._optimizer(first_epoch),
                SegmentationLoss(self.config.loss),
                metrics=self._metrics(),
                jit_compile=jit_compile,
            )
            # Under float16 compile wraps the optimizer; build what it made, so that a state can be put into it.
            self.trained.optimizer.build(self.trained.trainable_variables)

    def _optimizer(self, first_epoch: int) -> keras.optimizers.Optimizer:
        config = self.config
        optimizer = (_OneDeviceAdamW if self.strategy is None else keras.optimizers.AdamW)(
            WarmupCosine(config.lr, config.epochs * self.steps, offset=first_epoch * self.steps),
            weight_decay=1e-4,
            name="adamw",
        )
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        if self.strategy is not None and self.trained.dtype_policy.compute_dtype == "float16":
            return AgreedLossScale(optimizer)
        return optimizer

    def _metrics(self) -> list[keras.metrics.Metric]:
        classes = len(self.dataset.class_names)
        return [Dice(classes, name="dice"), IoU(classes, name="iou")]

    def _fit_phase(self, first: int, last: int) -> None:
        failures: list[Exception] = []
        batches = self._training_batches(first, last, failures)
        try:
            self._run_fit(batches, first, last, failures)
        except tf.errors.OpError as error:
            raise (failures[0] if failures else error) from None

    def _training_batches(self, first: int, last: int, failures: list[Exception] | None = None) -> tf.data.Dataset:
        return training_batches(
            self.dataset,
            self.split["train"],
            self.sampler,
            batch_size=self.config.batch_size,
            crop_size=self.config.crop_size,
            seed=self.config.seed,
            first_epoch=first,
            epochs=last,
            failures=failures,
        )

    def _run_fit(self, batches, first: int, last: int, failures: list[Exception]) -> None:
        validation = self.validation.as_tf_dataset(failures) if self.validation.plan else None
        update = []
        if self.strategy is not None:
            update, validation = [UpdateOriginal(self.model, validation)], None
        self.trained.fit(
            batches,
            epochs=last,
            initial_epoch=first,
            steps_per_epoch=self.steps,
            shuffle=False,  # the pipeline does
            validation_data=validation,
            callbacks=[
                _StopWhenNotFinite(self.steps),
                *update,
                *self._schedule(),
                _Recorder(self),
                *self._tensorboard(),
            ],
            verbose=0 if self.lean else "auto",
        )

    def _tensorboard(self) -> list[keras.callbacks.Callback]:
        if self.lean:
            return []
        return [keras.callbacks.TensorBoard(self.run_dir / "tensorboard", write_graph=False), _TensorBoardPanels(self)]

    def _schedule(self) -> list[DropoutSchedule]:
        config = self.config
        if config.dropout_schedule == "constant":
            return []
        return [DropoutSchedule(config.dropout_schedule, config.dropout_schedule_epochs or -(-config.epochs // 2))]

    def record_epoch(self, row: dict) -> None:
        """Keep an epoch: the model if it is the best yet, the state, and the history, in this order.

        Whatever a kill leaves, the state tells what is finished, and an epoch that is run again writes the same.
        """
        self.history.append(row)
        if best_epoch(self.history) == row["epoch"]:
            bare = keras.Model(self.model.input, self.model.output, name=self.model.name)  # not compiled
            write_atomically(self.run_dir / MODEL, bare.save)
        if not self.lean:
            save_state(self.run_dir, self._variables(), self.history)
        write_csv(self.run_dir / HISTORY, self.history)
        if self._out_of_patience():
            self.trained.stop_training = True

    def finish(self) -> dict[str, dict]:
        """Score the best model, draw the curves and examples, and declare the run finished."""
        write_csv(self.run_dir / HISTORY, self.history)
        self.best = keras.saving.load_model(self.run_dir / MODEL, compile=False)
        recalibration = self._recalibrate(self.best) if self.config.recalibrate_batchnorm else None
        metrics, rows = {}, {}
        # The test images of a sweep are for its chosen arm, once, and when they are asked for.
        for name in ("val",) if self.lean or self.config.from_sweep else ("val", "test"):
            if len(self.split[name]):
                batches = self._evaluation(name)
                threshold = metrics.get("val", {}).get("tuned_threshold")
                scores, rows[name] = score_images(
                    self.best, batches, self.dataset.class_names, tune=name == "val", threshold=threshold
                )
                metrics[name] = {"data": str(self.dataset.path), "data_sha256": self.dataset.digest, **scores}
        if not self.lean:
            write_atomically(self.run_dir / "curves.png", lambda path: plots.save_curves(path, self.history))
            panels, titles = self.example_panels(self.best, 4)
            write_atomically(self.run_dir / "examples.png", lambda path: plots.save_examples(path, panels, titles))
        write_json(self.run_dir / METRICS, {})  # there in a finished run, whatever was scored
        for name, scores in metrics.items():
            store_scores(self.run_dir, name, scores, rows[name])
        if recalibration:
            store_scores(self.run_dir, "batchnorm_recalibration", recalibration)
        (self.run_dir / STATE).unlink(missing_ok=True)
        remove_partial(self.run_dir)
        return metrics

    def _recalibrate(self, model: keras.Model) -> dict:
        """Re-estimate BatchNorm's statistics on an epoch of training crops; keep them unless validation Dice falls."""

        def dice() -> float | None:
            return score(model, self.validation, self.dataset.class_names)["dice"]

        before, old = dice(), [np.asarray(weight) for weight in model.non_trainable_weights]
        last = self.config.epochs
        recalibrate_batchnorm(model, (images for images, _ in self._training_batches(last, last + 1)))
        after = dice()
        kept = before is None or (after is not None and after >= before)
        if kept:
            write_atomically(self.run_dir / MODEL, model.save)
        else:
            for weight, value in zip(model.non_trainable_weights, old, strict=True):
                weight.assign(value)
        if self.lean:
            return {"val_dice_before": before, "val_dice_after": after, "kept": kept}
        told = " to ".join("undefined" if value is None else f"{value:.4f}" for value in (before, after))
        verb = "kept" if kept else "discarded"
        _console.print(f"\nBatchNorm recalibrated: validation Dice from {told}; {verb}.")
        return {"val_dice_before": before, "val_dice_after": after, "kept": kept}

    def example_panels(self, model: keras.Model, count: int) -> tuple[list[np.ndarray], list[str]]:
        """Panels of validation images (else of training images), evenly spread over the split, and the images' ids."""
        batches = self.validation if self.validation.plan else self._evaluation("train")
        members = [batch[0] for batch in batches.plan]
        chosen = [members[i] for i in np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)]
        panels = []
        for index in chosen:
            images, truth = batches.read([index])
            panels.append(plots.panel(images[0], truth[0, ..., 0], to_labels(model.predict_on_batch(images))[0]))
        return panels, [self.dataset.ids[index] for index in chosen]

    def _evaluation(self, name: str) -> EvaluationBatches:
        return evaluation_batches(self.dataset, self.split[name], self.evaluation_pixels)

    def _variables(self) -> list:
        """Everything that training changes: weights, BatchNorm and dropout state, then the optimizer's."""
        return [*self.trained.variables, *self.trained.optimizer.variables]

    def _out_of_patience(self) -> bool:
        if not self.history or not self.validation.plan:
            return False
        reference = max(best_epoch(self.history), self.config.freeze_epochs - 1)
        return self.history[-1]["epoch"] - reference >= self.config.patience


class _OneDeviceAdamW(keras.optimizers.AdamW):
    """AdamW that does not sum its gradients over devices.

    TensorFlow's sum registers a gradient of its own, for good, which keeps the traced step and with it all weights and
    moments: 0.4 GB for each training of a process.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


@keras.saving.register_keras_serializable("segdrop")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over the first twentieth of the steps, then cosine decay to zero.

    Args:
        peak: learning rate after warm-up.
        steps: length of the whole training.
        offset: steps already taken by an earlier phase.
    """

    def __init__(self, peak: float, steps: int, offset: int = 0):
        self.peak, self.steps, self.offset = peak, steps, offset
        warmup = max(1, steps // 20)
        self._schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup
        )

    def __call__(self, step):
        return self._schedule(step + self.offset)

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "offset": self.offset}


class _StopWhenNotFinite(keras.callbacks.Callback):
    def __init__(self, steps: int):
        super().__init__()
        self._steps, self._epoch = steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        if not math.isfinite(logs["loss"]):
            raise Diverged(
                f"The loss became {logs['loss']} at step {batch + 1} of {self._steps} in epoch {self._epoch + 1}; "
                "use a smaller --lr or --mixed-precision off."
            )


class _Recorder(keras.callbacks.Callback):
    def __init__(self, session: _Session):
        super().__init__()
        self._session = session

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs  # the dict that the callbacks after this one get
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        names = ["loss", "dice", "iou"]
        row = {"epoch": epoch, "learning_rate": logs["learning_rate"]}
        row |= {key: float(logs[key]) for key in [*names, *(f"val_{name}" for name in names)] if key in logs}
        if "dropout_rate" in logs:
            row["dropout_rate"] = logs["dropout_rate"]
        self._session.record_epoch(row)


class _TensorBoardPanels(keras.callbacks.Callback):
    """Validation images with truth and prediction, once an epoch."""

    def __init__(self, session: _Session):
        super().__init__()
        self._session = session

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(str(self._session.run_dir / "tensorboard" / "images"))

    def on_epoch_end(self, epoch, logs=None):
        panels, _ = self._session.example_panels(self._session.model, 3)
        with self._writer.as_default():
            for number, picture in enumerate(panels):
                tf.summary.image(f"image, truth, prediction/{number}", picture[None], step=epoch)

    def on_train_end(self, logs=None):
        self._writer.close()


def _check_same(config: TrainConfig, stored: TrainConfig, run_dir: Path) -> None:
    for field in dataclasses.fields(config):
        given, kept = getattr(config, field.name), getattr(stored, field.name)
        if field.name not in ("resume", "run_dir") and given != kept:
            raise InputError(f"`{field.name}` is {given!r}, but {run_dir} was started with {kept!r}; resume with that.")


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


def find_weights(config: TrainConfig) -> str:
    """Path of the encoder's weight file, or "random"."""
    if config.encoder_weights == "none":
        return "random"
    if config.encoder_weights not in ("auto", "imagenet"):
        return config.encoder_weights
    try:
        return str(imagenet_file(config.encoder))
    except InputError:
        if config.encoder_weights == "imagenet":
            raise
        return "random"


def build_model(config: TrainConfig, class_names, weights: str | None, precision: str) -> keras.Model:
    keras.utils.set_random_seed(config.seed)
    with precision_policy(precision):
        model = build_unet(
            config.encoder,
            classes=1 if len(class_names) == 2 and config.classes != 2 else len(class_names),
            encoder_weights=weights,
            encoder_dropout=config.encoder_dropout,
            spatial=config.spatial,
            kind=config.dropout_kind,
            placement=config.dropout_placement,
            blocks=config.dropout_blocks,
            skips=config.skips,
            block_size=config.dropout_block_size,
            shared_across_batch=config.dropout_shared,
            adjustable=config.dropout_schedule != "constant",
            seed=config.seed,
        )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = config.bn_momentum
    return model


def _write_split(path: Path, dataset: Dataset, split: dict[str, np.ndarray]) -> None:
    """Which image is in which split; groups as hashes salted anew, so that no name or id can be recovered."""
    salt = os.urandom(16)
    home = {int(index): name for name, indices in split.items() for index in indices}
    rows = []
    for index, name in enumerate(dataset.ids):
        if index not in home:  # a part of the training images that is not used
            continue
        row = {"id": name, "split": home[index]}
        if dataset.grouped:
            row["group"] = hashlib.blake2b(dataset.groups[index].encode(), key=salt, digest_size=8).hexdigest()
        rows.append(row)
    write_csv(path, rows)


def _announce(record, dataset: Dataset, split, model: keras.Model, run_dir: Path, resumed: bool) -> None:
    sites = sum("dropout" in layer.name for layer in model.layers)
    counts = ", ".join(f"{len(split[name])} {name}" for name in ("train", "val", "test"))
    _console.print(f"Device:  {record['device']}; mixed precision: {record['mixed_precision']}")
    _console.print(f"Images:  {counts}, from {dataset.path} ({dataset.cached} of {len(dataset)} held in memory)")
    _console.print(f"Classes: {', '.join(dataset.class_names)}")
    _console.print(f"Encoder: {record['config']['encoder']}, dropout at {sites} sites")
    _console.print(f"Weights: {record['encoder_weights']}")
    _console.print(f"Run:     {run_dir}{' (resumed)' if resumed else ''}")
    _warn(record)


def _report(metrics, record, run_dir: Path, history, seconds: float) -> None:
    best = best_epoch(history)
    which = "Best" if "val_dice" in history[0] else "Last"
    _console.print(f"\n{which} epoch {best + 1} of {len(history)}; {seconds / 60:.1f} minutes; results in {run_dir}")
    for name, scores in metrics.items():
        dice, iou = ("undefined" if scores[key] is None else f"{scores[key]:.4f}" for key in ("dice", "iou"))
        _console.print(f"{name:5} Dice {dice}  IoU {iou}  ({scores['images']} images)")
    _warn(record)


def _warn(record) -> None:
    for warning in record["warnings"]:
        Console().print(Panel(warning, title="WARNING", style="bold yellow"))
