"""Pretrained weights: found, read, and fitted to other input channels."""

import contextlib
import io
import os
from pathlib import Path

import keras
import numpy as np
from classification_models.weights import WEIGHTS_COLLECTION

from ..config.fields import LIBRARY_RESNETS
from ..errors import InputError, first_line
from . import hub
from .channels import fit_channels
from .checkpoints import load_checkpoint
from .encoders import check_published
from .hdf5 import read_hdf5
from .sites import encoder_layers
from .stored import load_model
from .torchvision import RESNETS


def resolve_weights(encoder: str, weights: str | os.PathLike) -> str:
    """The file that `encoder_weights` means, downloaded where it has to be; `"imagenet"` where the encoder's library
    reads its own.

    Raises:
        InputError: it cannot be had.
    """
    if weights == "imagenet":
        if encoder in RESNETS:
            return str(hub.hub_file(hub.IMAGENET[encoder]))
        if encoder in LIBRARY_RESNETS:
            return str(imagenet_file(encoder))
        check_published(encoder)
        return "imagenet"
    path = Path(weights)
    if encoder in RESNETS and not path.exists() and hub.is_repository(os.fspath(weights)):
        return str(hub.hub_file(os.fspath(weights)))
    return str(path)


def imagenet_file(encoder: str) -> Path:
    """Path of the encoder's ImageNet weight file, downloaded into Keras's cache when it is not there.

    Raises:
        InputError: it is not cached and cannot be downloaded; the message names file, folder and alternative.
    """
    entry = next(
        e for e in WEIGHTS_COLLECTION if e["model"] == encoder and e["dataset"] == "imagenet" and not e["include_top"]
    )
    try:
        # Progress goes to stdout, which belongs to the caller.
        with contextlib.redirect_stdout(io.StringIO()):
            return Path(
                keras.utils.get_file(entry["name"], entry["url"], cache_subdir="models", file_hash=entry["md5"])
            )
    except Exception as error:  # get_file raises bare Exception when a download fails
        folder = Path(os.environ.get("KERAS_HOME", "~/.keras"), "models")
        raise InputError(
            f"The ImageNet weights of {encoder} are not cached and could not be downloaded "
            f"({first_line(error)}); put {entry['url']} into {folder}, or use encoder_weights=None "
            "(--encoder-weights none) for random initialisation."
        ) from error


def load_encoder(model, encoder: str, path: Path) -> None:
    """Copy the weights of `path` into the encoder's layers, fitted to the model's input channels."""
    if not path.is_file():
        raise FileNotFoundError(f"`encoder_weights` names no file: {path}.")
    if encoder in RESNETS and path.suffix not in (".keras", ".h5"):
        load_checkpoint(model, encoder, path)
        return
    stored = _layers_of_model(path) if path.suffix == ".keras" else read_hdf5(path)
    channels = model.input_shape[-1]
    pending = []
    for layer in encoder_layers(model):
        if not layer.weights:
            continue
        if layer.name not in stored:
            raise InputError(f"{path} has no weights for layer {layer.name!r}; it is not a file of this encoder.")
        values = stored[layer.name]
        if len(values) == len(layer.weights):  # those that see the image's channels
            fit = zip(values, layer.weights, strict=True)
            values = [v if v.shape == tuple(w.shape) else fit_channels(v, channels) for v, w in fit]
        if [v.shape for v in values] != [tuple(w.shape) for w in layer.weights]:
            raise InputError(
                f"{path}: layer {layer.name!r} has weights of shape {[v.shape for v in values]}, "
                f"the encoder needs {[tuple(w.shape) for w in layer.weights]}."
            )
        pending.append((layer, values))
    for layer, values in pending:
        layer.set_weights(values)


def _layers_of_model(path: Path) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in load_model(path).layers}
