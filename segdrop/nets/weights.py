"""Pretrained weights: found, read, and fitted to other input channels."""

import contextlib
import io
import os
from pathlib import Path

import h5py
import keras
import numpy as np
from classification_models.weights import WEIGHTS_COLLECTION

from ..config.fields import LIBRARY_RESNETS
from ..errors import InputError, first_line
from . import hub
from .channels import fit_channels
from .checkpoints import load_checkpoint
from .encoders import check_published
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
    stored = _read_weights(path)
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


def _read_weights(path: Path) -> dict[str, list[np.ndarray]]:
    if path.suffix == ".keras":
        return {layer.name: layer.get_weights() for layer in load_model(path).layers}
    try:
        with h5py.File(path) as file:
            if "layers" in file and "layer_names" not in file.attrs:
                return _keras_3_weights(file)
            group = file.get("model_weights", file)
            return {
                name: [np.asarray(group[name][weight]) for weight in group[name].attrs["weight_names"]]
                for name in (_text(n) for n in group.attrs["layer_names"])
            }
    except Exception as error:  # HDF5's own come as any of Python's
        raise InputError(
            f"{path} is neither a .keras model, its weights (.weights.h5) nor a Keras 2 HDF5 weight file: "
            f"{first_line(error)}."
        ) from error


def _keras_3_weights(file: h5py.File) -> dict[str, list[np.ndarray]]:
    """What `save_weights` has written: a group `vars` for each layer, whose number is that of its class and not its
    name; but the group tells it."""
    stored = {}

    def visit(_, group) -> None:
        if isinstance(group, h5py.Group) and "name" in group.attrs and len(group):
            stored[_text(group.attrs["name"])] = [np.asarray(group[str(index)]) for index in range(len(group))]

    file.visititems(visit)
    return stored


def _text(name) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
