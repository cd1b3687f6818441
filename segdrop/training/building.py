"""The network that a configuration describes, and the record of what was built."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from ..config.importing import import_object
from ..config.train import TrainConfig
from ..data.augment import describe
from ..data.values import constant_images, faint_images, values_of
from ..errors import InputError
from ..files import file_digest
from ..folders.run import CONFIG, MODEL, RunRecord, model_file, open_run, package_versions
from ..layers import is_custom, is_dropout
from ..nets.batchnorm import rebase_batchnorm
from ..nets.checkpoints import SUFFIXES, describe_checkpoint
from ..nets.stored import load_model
from ..nets.torchvision import RESNETS
from ..nets.transfer import Transferred, transfer
from ..nets.unet import build_unet
from ..nets.weights import resolve_weights
from .device import precision_policy
from .samples import Samples

RANDOM_WEIGHTS = (
    "The encoder starts from RANDOM weights: no ImageNet weights are cached and none could be downloaded. "
    "Expect worse results than with them, on small data sets much worse."
)


def find_weights(config: TrainConfig) -> str:
    """Path of the file of the encoder's weights, "imagenet" where its library reads its own, or "random"."""
    if config.encoder_from_run:
        return str(_earlier(config)[0])
    if config.encoder_weights == "none":
        return "random"
    if config.encoder_weights not in ("auto", "imagenet"):
        return resolve_weights(config.encoder, config.encoder_weights)
    try:
        return resolve_weights(config.encoder, "imagenet")
    except InputError:
        if config.encoder_weights == "imagenet":
            raise
        return "random"


def build_model(config: TrainConfig, class_names: Sequence[str], weights: str | None, precision: str) -> keras.Model:
    """The network with the encoder's weights as `find_weights` has found them, None being random ones, too; those of an
    earlier run are `start_from`'s to load."""
    if config.ema is not None and keras.backend.backend() != "tensorflow":
        raise InputError(f"`ema` needs Keras's backend tensorflow, got {keras.backend.backend()}.")
    weights = None if weights == "random" or config.encoder_from_run else weights
    own = None if config.dropout_layer is None else import_object(config.dropout_layer, "dropout_layer")
    keras.utils.set_random_seed(config.seed)
    with precision_policy(precision):
        model = build_unet(
            config.encoder,
            input_shape=(None, None, config.input_channels),
            classes=_outputs(config, len(class_names)),
            activation="sigmoid" if config.multilabel else None,
            encoder_weights=weights,
            encoder_dropout=config.encoder_dropout,
            kind=config.kind,
            placement=config.dropout_placement,
            blocks=config.dropout_blocks,
            skips=config.skips,
            block_size=config.dropout_block_size,
            shared_across_batch=config.dropout_shared,
            adjustable=config.dropout_schedule != "constant",
            dropout_layer=own,
            seed=config.seed,
            bn_momentum=config.bn_momentum,
        )
    _check_registered(model, config)
    return model


def _outputs(config: TrainConfig, classes: int) -> int:
    """How many channels the network gives for so many classes, the background counted."""
    if config.multilabel:
        return classes - 1
    return 1 if classes == 2 and config.classes != 2 else classes


def _check_registered(model: keras.Model, config: TrainConfig) -> None:
    """Raise InputError unless Keras will know the user's own layers again in the file of the model."""
    for layer in model.layers:
        name = keras.saving.get_registered_name(type(layer))
        if is_dropout(layer) and is_custom(layer) and keras.saving.get_registered_object(name) is not type(layer):
            raise InputError(
                f"`dropout_layer` {config.dropout_layer} makes layers that Keras cannot load again; put "
                f"@keras.saving.register_keras_serializable() before the class {type(layer).__name__}."
            )


def start_from(model: keras.Model, config: TrainConfig) -> Transferred | None:
    """Give the network the weights that `--init-from` asks for; None where it asks for none.

    Raises:
        FileNotFoundError, InputError: there is no such network, or it is of other layers.
    """
    if config.init_from is None:
        return None
    path, encoder = _earlier(config)
    source = load_model(path)
    try:
        loaded, new = transfer(source, model, config.init_parts)
    except InputError as error:
        told = f"; it is of {encoder}" if encoder else ""
        told += f", so give --encoder {encoder}" if encoder not in (None, config.encoder) else ""
        raise InputError(f"`init_from` {path} does not fit {config.encoder}: {error}{told}.") from None
    return Transferred(str(path), file_digest(path), config.init_parts, len(loaded), tuple(new))


def _earlier(config: TrainConfig) -> tuple[Path, str | None]:
    """The file of the network to start from, and which encoder it has, where a run says it."""
    path = Path(str(config.init_from))
    if not path.exists():
        raise FileNotFoundError(f"`init_from` is neither a run's folder nor a file: {path}.")
    run = path.parent if path.name == MODEL else path
    if path.is_file() and not (run / CONFIG).is_file():
        return path, None
    encoder = open_run(run).config.encoder
    return model_file(run), encoder


def rebase(model: keras.Model, samples: Samples) -> None:
    """What `--rebase-batchnorm` asks for, before the first epoch."""
    if samples.config.rebase_batchnorm:
        rebase_batchnorm(model, (images for images, _ in samples.training(0, 1)))


def _describe(encoder: str, weights: str) -> dict | None:
    """What the record says of a file of PyTorch's."""
    path = Path(weights)
    return dataclasses.asdict(describe_checkpoint(path)) if encoder in RESNETS and path.suffix in SUFFIXES else None


def record_of(
    samples: Samples,
    model: keras.Model,
    run_dir: Path,
    *,
    device: str,
    precision: str,
    weights: str,
    start: Transferred | None,
    plan: Mapping | None = None,
) -> RunRecord:
    """What a new run's config.json says."""
    config, dataset = samples.config, samples.dataset
    rule, values = dataset.intensity.rule, values_of(dataset, samples.split["train"])
    return RunRecord(
        config=dataclasses.replace(config, run_dir=str(run_dir), intensity=rule),
        classes=model.output_shape[-1],
        class_names=dataset.class_names,
        images={name: len(indices) for name, indices in samples.split.items()},
        data_sha256=dataset.digest,
        encoder_weights=weights,
        weights=_describe(config.encoder, weights),
        start=None if start is None else dataclasses.asdict(start),
        plan=plan,
        warnings=(
            *((RANDOM_WEIGHTS,) if config.encoder_weights == "auto" and weights == "random" else ()),
            *faint_images(values, f"{len(samples.split['train'])} training images", rule),
            *constant_images(dataset.constant(np.sort(np.concatenate(list(samples.split.values()))))),
        ),
        mixed_precision=precision,
        device=device,
        values=values,
        augmentation=describe(samples.augmentation),
        versions=package_versions(),
    )
