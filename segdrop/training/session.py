"""The fitting of one run, from its first epoch to its last."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..data.augmenting import Augmenters
from ..files import write_atomically, write_csv
from ..folders.run import HISTORY, MODEL
from ..folders.state import best_epoch, restore_state, save_state
from ..interrupts import check
from ..nets.batchnorm import statistics_of
from ..nets.sites import encoder_layers, set_encoder_trainable
from ..surgery.checkpointing import without_folding
from ..surgery.fast import fast
from ..surgery.rebuild import rebuild
from ..surgery.schedules import DropoutSchedule
from .background import Background
from .callbacks import Averages, Recorder, StopWhenNotFinite
from .device import count_augmenters
from .losses import SegmentationLoss
from .metrics import Dice, IoU
from .optimizer import OneDeviceAdamW, PartwiseAdamW, WarmupCosine
from .replicas import AgreedLossScale, UpdateOriginal, copy_state, replicate
from .samples import Samples


class Session:
    """Fits a network phase by phase, and keeps of each epoch its row of the history and the model if it is the best.

    Args:
        run_dir: the run's folder.
        model: the network, which is trained in place.
        samples: the images.
        history: the epochs that an earlier session has finished; their state is in the folder then.
        strategy: of several devices that each batch is divided among, or None.
        callbacks: of Keras, after its own.
        keep_state: store after each epoch what a resumed run needs.
    """

    def __init__(
        self,
        run_dir: Path,
        model: keras.Model,
        samples: Samples,
        history: Sequence[dict] = (),
        *,
        strategy: tf.distribute.Strategy | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        keep_state: bool = False,
    ):
        self.run_dir, self.model, self.samples, self.history = run_dir, model, samples, list(history)
        self.config, self.strategy, self.keep_state = samples.config, strategy, keep_state
        self.callbacks = list(callbacks)
        self.steps = samples.steps
        self.epochs = min(self.config.epochs, self.config.stop_after or self.config.epochs)
        self.validation = samples.evaluation("val")
        # What is fitted, and what predicts meanwhile: twins of `model` that share its weights, or replicas of it.
        self.trained = self.predicting = fast(model, checkpointing=self.config.checkpointing)
        self._averages = None if self.config.ema is None else Averages()
        self._background = Background()
        self._best: keras.Model | None = None  # the best model yet, from which it is written

    def fit(self) -> None:
        """Train the frozen and the free phase, from the first epoch that the history does not have."""
        resumed_at = len(self.history)
        thaw = min(self.config.freeze_epochs, self.epochs)
        for first, last, frozen in ((0, thaw, True), (thaw, self.epochs, False)):
            if first == last or resumed_at >= last:
                continue
            self.compile(first, frozen)
            if resumed_at > first:
                restore_state(self.run_dir, self._variables())
            elif resumed_at:  # with the phase before
                restore_state(self.run_dir, self.trained.variables)
            if self._out_of_patience():
                break
            try:
                with contextlib.ExitStack() as stack:
                    augmenters = stack.enter_context(
                        self.samples.augmenters(count_augmenters(self.config.augment_workers))
                    )
                    if self.config.checkpointing:
                        stack.enter_context(without_folding())
                    self._fit_phase(max(first, len(self.history)), last, augmenters)
            finally:
                self._background.wait()
        write_csv(self.run_dir / HISTORY, self.history)

    def compile(self, first_epoch: int, frozen: bool) -> None:
        """Make a phase's optimizer, and what is trained ready for it."""
        # Each phase has its own optimizer. One that had seen the frozen phase would correct its moments' bias for
        # the steps it counted, not for those the encoder took part in, and move the encoder several times too far.
        set_encoder_trainable(self.model, not frozen)
        self._best = rebuild(self.model)  # with the flags of this phase
        # On a CPU, XLA's convolutions took 1.6 times as long as oneDNN's; it does not go with several devices.
        # It would merge what is computed again for the gradient with what was computed first.
        # JAX has nothing else: without it, every operation is a call of its own.
        by_xla = keras.backend.backend() == "jax" or bool(tf.config.list_physical_devices("GPU"))
        jit_compile = "auto" if by_xla and not self.config.checkpointing else False
        if self.strategy is not None:
            self.trained = replicate(self.model, self.strategy)
            self.predicting.compile(loss=self._loss(), metrics=self._metrics(), jit_compile=jit_compile)
            jit_compile = False
        with (self.strategy or tf.distribute.get_strategy()).scope():
            self.trained.compile(
                self._optimizer(first_epoch),
                self._loss(),
                metrics=self._metrics(),
                jit_compile=jit_compile,
            )
            # Under float16 compile wraps the optimizer; build what it made, so that a state can be put into it.
            self.trained.optimizer.build(self.trained.trainable_variables)

    def _optimizer(self, first_epoch: int) -> keras.optimizers.Optimizer:
        config = self.config
        optimizer = (OneDeviceAdamW if self.strategy is None else PartwiseAdamW)(
            WarmupCosine(config.lr, config.epochs * self.steps, offset=first_epoch * self.steps),
            weight_decay=config.weight_decay,
            use_ema=config.ema is not None,
            ema_momentum=0.99 if config.ema is None else config.ema,
            gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
            name="adamw",
        )
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        # Of the layers that the twin shares with the model, Keras knows the model's calls.
        network = self.model if self.strategy is None else self.trained
        encoder = (weight for layer in encoder_layers(network) for weight in layer.trainable_weights)
        optimizer.scale_rate(encoder, config.encoder_lr)
        if config.ema is not None:
            optimizer.average_too(statistics_of(network))
        if self.strategy is not None and self.trained.dtype_policy.compute_dtype == "float16":
            return AgreedLossScale(optimizer)
        return optimizer

    def _loss(self) -> SegmentationLoss:
        weights, multilabel = self.samples.class_weights, self.samples.dataset.multilabel
        smoothing = self.config.label_smoothing
        return SegmentationLoss(
            self.config.loss, class_weights=weights, multilabel=multilabel, label_smoothing=smoothing
        )

    def _metrics(self) -> list[keras.metrics.Metric]:
        classes, multilabel = len(self.samples.dataset.class_names), self.samples.dataset.multilabel
        return [metric(classes, name=metric.__name__.lower(), multilabel=multilabel) for metric in (Dice, IoU)]

    def _fit_phase(self, first: int, last: int, augmenters: Augmenters) -> None:
        failures: list[Exception] = []
        validation = self.validation.as_tf_dataset(failures) if self.validation.plan else None
        update = []
        if self.strategy is not None:
            update, validation = [UpdateOriginal(self.predicting, validation)], None
        try:
            self.trained.fit(
                self.samples.training(first, last, failures, augmenters),
                epochs=last,
                initial_epoch=first,
                steps_per_epoch=self.steps,
                shuffle=False,  # the pipeline does
                validation_data=validation,
                callbacks=[
                    keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: check()),
                    StopWhenNotFinite(self.steps),
                    *([self._averages] if self._averages else []),
                    *update,
                    *self._schedule(),
                    Recorder(self.record_epoch),
                    *self.callbacks,
                ],
                verbose=0,
            )
        except tf.errors.OpError as error:
            raise (failures[0] if failures else error) from None

    def _schedule(self) -> list[DropoutSchedule]:
        config = self.config
        if config.dropout_schedule == "constant":
            return []
        return [DropoutSchedule(config.dropout_schedule, config.dropout_schedule_epochs or -(-config.epochs // 2))]

    def record_epoch(self, row: dict) -> None:
        """Keep an epoch: the model if it is the best yet, the state, and the history, in this order.

        They are written beside the next epoch, from a copy in memory. Whatever a kill leaves, the state tells what is
        finished, and an epoch that is run again writes the same.
        """
        self._background.wait()
        self.history.append(row)
        is_best, history = best_epoch(self.history) == row["epoch"], list(self.history)
        if is_best:
            copy_state(self.model, self._best)
        with self.own_weights():
            values = [np.asarray(variable) for variable in self._variables()] if self.keep_state else None

        def write() -> None:
            if is_best:
                write_atomically(self.run_dir / MODEL, self._best.save)
            if values is not None:
                save_state(self.run_dir, values, history)
            write_csv(self.run_dir / HISTORY, history)

        self._background.do(write)
        if self._out_of_patience():
            self.trained.stop_training = True

    def own_weights(self) -> contextlib.AbstractContextManager:
        """The network has the weights that it is trained with meanwhile, where it has their averages between epochs."""
        return self._averages.weights() if self._averages else contextlib.nullcontext()

    def validation_counts(self) -> np.ndarray | None:
        """True positives, false positives and false negatives of each class in the last epoch's validation, int64
        (classes, 3); None where there was none."""
        counts = [
            np.asarray(metric.counts).T
            for outer in self.predicting.metrics
            for metric in getattr(outer, "metrics", ())
            if isinstance(metric, Dice)
        ]
        return counts[0] if self.validation.plan and counts and counts[0].any() else None

    def _variables(self) -> list:
        """Everything that training changes: weights, BatchNorm and dropout state, then the optimizer's."""
        return [*self.trained.variables, *self.trained.optimizer.variables]

    def _out_of_patience(self) -> bool:
        if not self.history or not self.validation.plan:
            return False
        reference = max(best_epoch(self.history), self.config.freeze_epochs - 1)
        return self.history[-1]["epoch"] - reference >= self.config.patience
