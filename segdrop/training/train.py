"""Train a network: from a configuration to a run folder."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.panel import Panel

from ..config.arms import any_dropout, changes_of, without_dropout
from ..config.checks import check_type
from ..config.train import TrainConfig, default_run_dir
from ..data.augment import A, restore
from ..data.dataset import Dataset
from ..data.opening import open_configured
from ..data.splits import part_of, split_dataset
from ..errors import InputError
from ..files import remove_partial, write_atomically
from ..folders.run import (
    RunRecord,
    add_warning,
    create_run,
    lock_training,
    open_run,
    recorded_split,
    start_run,
)
from ..folders.state import best_epoch, load_history
from ..folders.sweep import sweep_split
from ..nets.checkpoints import Loaded
from ..nets.transfer import Transferred
from ..printing import say
from ..scoring.temperature import Temperature
from ..show import plots
from ..show.console import Console
from ..show.plan import plan_table
from .building import build_model, find_weights, rebase, record_of, start_from
from .callbacks import TensorBoardPanels
from .device import choose_device, this_machine
from .finishing import example_panels, finish
from .planning import make_plan
from .replicas import strategy_for
from .samples import Samples, augmentation_of
from .session import Session
from .terminal import epoch_lines
from .watching import Watch, nothing_learnt


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
        InputError, FileNotFoundError, FileExistsError: the configuration, data or folder cannot be used, another
            process trains into it, or the loss or the weights are no longer finite.

    Example:
        >>> config = segdrop.TrainConfig(encoder="resnet18", encoder_weights="none", encoder_dropout=0.2, epochs=1)
        >>> result = segdrop.train(config)
        Device: ...
        >>> result.metrics["test"]["images"], len(result.history)
        (16, 1)
        >>> sorted(path.name for path in result.run_dir.iterdir())
        ['config.json', 'curves.png', 'examples.png', 'history.csv', 'metrics.json', 'model.keras', 'per_image.csv',
         'split.csv', 'tensorboard']
    """
    check_type(config, "config", TrainConfig)
    if not isinstance(augmentation, A.BaseCompose | A.BasicTransform | None):
        raise InputError(f"`augmentation` must be a pipeline of Albumentations, got augmentation={augmentation!r}.")
    if config.resume and augmentation is not None:
        raise InputError("`augmentation` is not for a run that goes on, which keeps its own; leave it out.")
    with contextlib.ExitStack() as locks:
        run = _resume(config, locks) if config.resume else _begin(config, augmentation, locks)
        _announce(run, resumed=config.resume)
        return _train(run)


def _train(run: "_Run") -> TrainResult:
    model, samples, run_dir = run.model, run.samples, run.run_dir
    started = time.monotonic()
    events = run_dir / "tensorboard"
    callbacks = [
        keras.callbacks.TensorBoard(events, write_graph=False),
        TensorBoardPanels(events / "images", lambda: example_panels(session.predicting, samples, 3)[0]),
    ]
    session = Session(
        run_dir,
        model,
        samples,
        run.history,
        strategy=run.strategy,
        callbacks=callbacks,
        keep_state=True,
    )
    with epoch_lines(session.history, session.epochs, session.steps) as lines:
        session.callbacks += [lines, Watch(session, _warn)]
        session.fit()

    def draw(best: keras.Model) -> None:
        write_atomically(run_dir / "curves.png", lambda path: plots.save_curves(path, session.history))
        panels, ids = example_panels(best, samples, 4)
        write_atomically(run_dir / "examples.png", lambda path: plots.save_examples(path, panels, ids))

    # The images of a sweep's test split are scored when they are asked for.
    finished = finish(
        run_dir, samples, ("val",) if samples.config.from_sweep else ("val", "test"), draw, calibrate=True
    )
    if finished.recalibration:
        _report_recalibration(finished.recalibration)
    if finished.temperature:
        _report_temperature(finished.temperature)
    _report(finished.metrics, run_dir, session.history, time.monotonic() - started)
    if told := nothing_learnt(finished.metrics.get("val", {}).get("dice"), session.validation_counts()):
        add_warning(run_dir, told)
        _warn(told)
    return TrainResult(run_dir, session.history, finished.metrics, finished.model)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run that is ready to be trained.

    Attributes:
        record: what its config.json says.
        history: the epochs that are done.
        strategy: of several devices, or None.
        device: that trains now, in words.
    """

    run_dir: Path
    record: RunRecord
    model: keras.Model
    samples: Samples
    history: list[dict]
    strategy: tf.distribute.Strategy | None
    device: str


def _begin(config: TrainConfig, augmentation: A.Compose | None, locks: contextlib.ExitStack) -> _Run:
    """Check everything, build the network, and make the folder of a new run, which is locked then."""
    run_dir = Path(config.run_dir) if config.run_dir else default_run_dir(datetime.now())
    if not any_dropout(config) and (unused := changes_of(config, without_dropout(config))):
        warnings.warn(f"Without an encoder_dropout above 0 nothing comes of {', '.join(unused)}.", stacklevel=3)
    if augmentation is not None and config.augment_strength != 1:
        raise InputError(
            "`augment_strength` is for a preset, not for an augmentation of your own, got "
            f"augment_strength={config.augment_strength}."
        )
    if augmentation is None and config.augment != "auto":
        augmentation = augmentation_of(config)
    if run_dir.exists():
        create_run(run_dir, 0)  # says so before the data set is read
    dataset = open_configured(config)
    split = _split(config, dataset)
    device, precision = choose_device(config.mixed_precision, config.deterministic)
    plan = make_plan(config, dataset, split["train"], split["val"], this_machine(precision, config.gpus))
    config, dataset = plan.config, dataset.scaled(plan.config.scale)
    strategy, device = _strategy(config, device)
    augmentation = augmentation or augmentation_of(config)
    weights = plan.weights or find_weights(config)
    model = build_model(config, dataset.class_names, weights, precision)
    start = start_from(model, config)
    samples = Samples(config, dataset, split, augmentation)
    rebase(model, samples)
    record = record_of(
        samples, model, run_dir, device=device, precision=precision, weights=weights, start=start, plan=plan.to_json()
    )
    # The best model, and weights, moments and averages of the state and of the one before; one more of each while it
    # is written.
    copies = 2 + 3 * (3 if config.ema is None else 4)
    create_run(run_dir, needed_bytes=copies * 4 * model.count_params())
    locks.enter_context(lock_training(run_dir))
    start_run(run_dir, record, dataset, split)
    return _Run(run_dir, record, model, samples, [], strategy, device)


def _resume(config: TrainConfig, locks: contextlib.ExitStack) -> _Run:
    """Open and lock a run that was interrupted; its weights come from its state when the training goes on, or are those
    that it began with."""
    run_dir = Path(str(config.run_dir))
    record = open_run(run_dir)
    locks.enter_context(lock_training(run_dir))
    config = config.continuing(record.config)
    _check_same(config, record.config, run_dir)
    history = load_history(run_dir)
    remove_partial(run_dir)
    dataset = open_configured(config, outputs=record.classes)
    if record.data_sha256 != dataset.digest:
        raise InputError(f"{config.data} has changed since {run_dir} was started; start a new run.")
    split = {name: recorded_split(run_dir, dataset, name) for name in ("train", "val", "test")}
    device, precision = choose_device(record.mixed_precision, config.deterministic)
    strategy, device = _strategy(config, device)
    weights = None if history else record.encoder_weights
    model = build_model(config, dataset.class_names, weights, precision)
    if not history:
        start_from(model, config)
    samples = Samples(config, dataset, split, restore(record.augmentation or {}))
    if not history:
        rebase(model, samples)
    return _Run(run_dir, record, model, samples, history, strategy, device)


def _strategy(config: TrainConfig, device: str) -> tuple[tf.distribute.Strategy | None, str]:
    """The strategy of several devices, and what trains in words."""
    strategy = strategy_for(config.gpus, config.batch_size)
    return strategy, device if strategy is None else f"{strategy.num_replicas_in_sync} x {device}"


def _split(config: TrainConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    if config.from_sweep is None:
        split = split_dataset(dataset, config.seed, config.val_fraction)
    else:
        split = sweep_split(config.from_sweep, dataset)
    return {**split, "train": part_of(dataset, split["train"], config.train_fraction, config.seed)}


def _check_same(config: TrainConfig, stored: TrainConfig, run_dir: Path) -> None:
    for field in dataclasses.fields(config):
        given, kept = getattr(config, field.name), getattr(stored, field.name)
        if field.name not in ("resume", "run_dir", "augment_workers") and given != kept:
            raise InputError(f"`{field.name}` is {given!r}, but {run_dir} was started with {kept!r}; resume with that.")


def _announce(run: _Run, resumed: bool) -> None:
    dataset, record = run.samples.dataset, run.record
    sites = sum("dropout" in layer.name for layer in run.model.layers)
    counts = ", ".join(f"{len(run.samples.split[name])} {name}" for name in ("train", "val", "test"))
    say(f"Device:  {run.device}; mixed precision: {record.mixed_precision}")
    say(f"Data:    {dataset.understood}")
    held = f"{dataset.cached} of {len(dataset)} held in memory by now"  # more as they are read
    say(f"Images:  {counts}, from {dataset.path} ({held})")
    low, high = dataset.extremes_of(run.samples.split["train"].tolist())[0]
    chosen = " (chosen by --intensity auto)" if run.samples.config.intensity == "auto" else ""
    say(f"Values:  {low:g} to {high:g}, mapped to 0..255 by {dataset.intensity.rule}{chosen}")
    say(f"Classes: {', '.join(dataset.class_names)}")
    if weights := run.samples.class_weights:
        told = zip(dataset.class_names, weights, strict=True)
        say(f"Balance: {', '.join(f'{name} {weight:g}' for name, weight in told)}, in the loss")
    config, steps = record.config, run.samples.steps
    say(f"Length:  {config.epochs} epochs of {steps} steps, {config.epochs * steps} in all")
    say(f"Encoder: {config.encoder}, dropout at {sites} sites")
    say(f"Weights: {Loaded(**record.weights) if record.weights else record.encoder_weights}")
    if record.start:
        say(f"Start:   {Transferred(**record.start)}")
    if record.plan and record.plan["choices"] and not resumed:
        Console().print(plan_table(record.plan).rich())
    say(f"Run:     {run.run_dir}{' (resumed)' if resumed else ''}")
    for warning in record.warnings:
        _warn(warning)


def _report(metrics, run_dir: Path, history, seconds: float) -> None:
    best = best_epoch(history)
    which = "Best" if "val_dice" in history[0] else "Last"
    say("", f"{which} epoch {best + 1} of {len(history)}; {seconds / 60:.1f} minutes; results in {run_dir}")
    if "val_dice" in history[0] and best + 1 == len(history):
        say("The best epoch is the last: it was still improving; train longer (--epochs).")
    for name, scores in metrics.items():
        dice, iou = (_in_words(scores[key]) for key in ("dice", "iou"))
        say(f"{name:5} Dice {dice}  IoU {iou}  ({scores['images']} images)")


def _report_recalibration(recalibration: Mapping) -> None:
    told = " to ".join(_in_words(recalibration[f"val_dice_{when}"]) for when in ("before", "after"))
    verb = "kept" if recalibration["kept"] else "discarded"
    say("", f"BatchNorm recalibrated: validation Dice from {told}; {verb}.")


def _report_temperature(fitted: Temperature) -> None:
    say(
        "",
        f"Temperature {fitted.value:.2f} of the probabilities: validation NLL from {fitted.nll_before:.4f} to "
        f"{fitted.nll_after:.4f}.",
    )


def _in_words(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.4f}"


def _warn(warning: str) -> None:
    Console().print(Panel(warning, title="WARNING", style="bold yellow"))
