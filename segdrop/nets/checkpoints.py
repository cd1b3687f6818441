"""Weights trained with PyTorch: read from a file, and fitted to one of torchvision's ResNets in Keras."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ..errors import InputError, first_line
from ..files import file_digest
from . import hub
from .channels import fit_channels
from .torchvision import RESNETS

SUFFIXES = (".safetensors", ".pth", ".pt")
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "teacher", "student", "net")  # a teacher is the better of two
_NORM = ("weight", "bias", "running_mean", "running_var")  # Keras's order: gamma, beta, mean, variance


@dataclass(frozen=True)
class Loaded:
    """What was loaded into an encoder.

    Attributes:
        file: its path.
        sha256: of the file's content.
        tensors: how many tensors of the encoder the file has; all are loaded.
        left_out: the names of the others.
        revision: the commit of a file from the Hub.
    """

    file: str
    sha256: str
    tensors: int
    left_out: tuple[str, ...]
    revision: str | None = None

    def __str__(self) -> str:
        rest = f"; left out: {', '.join(self.left_out[:4])}" if self.left_out else ""
        rest += f" and {len(self.left_out) - 4} more" if len(self.left_out) > 4 else ""
        return f"{self.tensors} of {self.tensors} encoder tensors from {self.file}{rest}"


def load_checkpoint(model: keras.Model, encoder: str, path: Path) -> Loaded:
    """Load a file of PyTorch's into the encoder of `model`, or raise and leave the model as it is.

    Args:
        model: a network with the layers of `torchvision.build_resnet`; its input may have any number of channels.
        encoder: which of `RESNETS` it is.
        path: `.safetensors`, or `.pth` and `.pt` as `torch.save` writes them: a dictionary of tensors, bare or wrapped
            (`state_dict`, `model`, `teacher`), with prefixes (`module.`, `encoder.`, `backbone.`) or without.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is another network's, is damaged, or lacks a tensor; the first is named.
    """
    own, left_out = _encoder_tensors(path)
    wanted = {layer: names_of(layer) for layer in _weighted(model)}
    _check_family(own, wanted, encoder, path)
    values = {layer: _values(model.get_layer(layer), names, own, path) for layer, names in wanted.items()}
    if not any(value[0].any() for layer, value in values.items() if "bn" not in layer):
        raise InputError(f"{path} holds nothing but zeros; it is no trained network.")
    for layer, value in values.items():
        model.get_layer(layer).set_weights(value)
    return _loaded(path, own, left_out)


def describe_checkpoint(path: Path) -> Loaded:
    """What `load_checkpoint` would load."""
    return _loaded(path, *_encoder_tensors(path))


def encoder_of_file(path: Path) -> str:
    """Which of `RESNETS` a file's tensors are of.

    Raises:
        FileNotFoundError, InputError: there is no such file, it cannot be read, or it is of none of them.
    """
    own, _ = _encoder_tensors(path)
    encoder = _encoder_of(set(own))
    if encoder is None:
        raise InputError(f"{path} is of none of the encoders {', '.join(RESNETS)}; say with `encoder` which it is for.")
    return encoder


def _encoder_tensors(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tensors of a file that are a ResNet's without its classifier, and the names of the others."""
    tensors = _without_prefix(read_checkpoint(path), path)
    own = {name: tensor for name, tensor in tensors.items() if re.match(r"(conv1|bn1|layer\d+)\.", name)}
    return own, tuple(sorted(set(tensors) - set(own)))


def _loaded(path: Path, own: Mapping, left_out: tuple[str, ...]) -> Loaded:
    return Loaded(str(path), file_digest(path), len(own), left_out, hub.revision_of(path))


def names_of(layer: str) -> list[str]:
    """The tensors of torchvision's that a layer's weights are, in Keras's order.

    Example:
        >>> names_of("stage2_unit1_sc"), names_of("bn0")[0]
        (['layer2.0.downsample.0.weight'], 'bn1.weight')
    """
    if match := re.fullmatch(r"stage(\d)_unit(\d+)_(\w+)", layer):
        part = {"sc": "downsample.0", "sc_bn": "downsample.1"}.get(match[3], match[3])
        name = f"layer{match[1]}.{int(match[2]) - 1}.{part}"
    else:
        name = {"conv0": "conv1", "bn0": "bn1"}[layer]
    return [f"{name}.{part}" for part in (_NORM if "bn" in layer else _NORM[:1])]


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as they are stored. Nothing but tensors is ever made of it.

    Raises:
        FileNotFoundError, InputError: there is no such file, it cannot be read, or torch is needed and missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`encoder_weights` names no file: {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f'{path} needs torch: `pip install "segdrop[torch]"`; or convert it where torch is: '
            'safetensors.torch.save_file(torch.load(PATH, weights_only=True), "weights.safetensors").'
        ) from error
    try:
        stored = _unwrapped(torch.load(path, map_location="cpu", weights_only=True))
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
            for name, tensor in stored.items()
            if isinstance(name, str) and isinstance(tensor, torch.Tensor)
        }
    except Exception as error:  # an unpickler's, a zip file's, torch's own, NumPy's for a kind that it does not have
        raise InputError(f"{path} is not a file of tensors that torch can read safely: {first_line(error)}") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and NumPy's for a type that it does not have
        raise InputError(f"{path} is not a safetensors file that can be read: {first_line(error)}") from error


def _unwrapped(stored) -> Mapping:
    """The dictionary of tensors within what was stored; nothing of one that is wrapped in itself."""
    for _ in _WRAPPINGS:
        if not isinstance(stored, Mapping):
            break
        inner = next((stored[key] for key in _WRAPPINGS if isinstance(stored.get(key), Mapping)), None)
        if inner is None:
            return stored
        stored = inner
    return {}


def _without_prefix(tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The tensors of the ResNet in a file under torchvision's own names; the others keep theirs."""
    ends = ("conv1.weight", "layer1.0.conv1.weight")
    prefixes = [name.removesuffix(ends[1]) for name in tensors if name.endswith(ends[1])]
    prefixes = [prefix for prefix in prefixes if prefix + ends[0] in tensors]
    if not prefixes:
        named = ", ".join(list(tensors)[:3]) or "nothing"
        raise InputError(
            f"{path} is not of a ResNet: it has no conv1.weight and layer1.0.conv1.weight, but {named}, ...; "
            "give weights of torchvision's or timm's ResNets."
        )
    prefix = prefixes[0]
    return {name.removeprefix(prefix) if name.startswith(prefix) else name: tensors[name] for name in tensors}


def _weighted(model: keras.Model) -> list[str]:
    """The layers of the encoder that a checkpoint has weights for."""
    return [
        layer.name for layer in model.layers if layer.weights and re.match(r"(stage\d_unit|conv0$|bn0$)", layer.name)
    ]


def _check_family(own: Mapping, wanted: Mapping[str, list[str]], encoder: str, path: Path) -> None:
    """Raise InputError unless the file has the tensors of this encoder and no others; name the one that it is of."""
    needed = {name for names in wanted.values() for name in names}
    given = {name for name in own if not name.endswith("num_batches_tracked")}
    if needed == given:
        return
    missing, surplus = sorted(needed - given), sorted(given - needed)
    what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which {encoder} has not"
    other = _encoder_of(given)
    advice = f"it is of {other}" if other not in (None, encoder) else "it is damaged or of another family"
    raise InputError(f"{path} {what}: {advice}.")


def _encoder_of(names: set[str]) -> str | None:
    """Which of `RESNETS` has tensors of these names."""
    units = tuple(len({match[1] for n in names if (match := re.match(rf"layer{s}\.(\d+)\.", n))}) for s in range(1, 5))
    depth = 3 if any(name.endswith(".conv3.weight") for name in names) else 2
    return next((encoder for encoder, layout in RESNETS.items() if layout == (units, depth)), None)


def _values(layer, names: list[str], tensors: Mapping[str, np.ndarray], path: Path) -> list[np.ndarray]:
    """What a layer's weights become, float32, in Keras's layout."""
    values = []
    for name, weight in zip(names, layer.weights, strict=True):
        value = np.asarray(tensors[name], np.float32)
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
            if layer.name == "conv0":
                value = fit_channels(value, weight.shape[2])
        if value.shape != tuple(weight.shape):
            raise InputError(
                f"{path}: {name} has the shape {tensors[name].shape}, which does not fit {layer.name!r}, "
                f"{tuple(weight.shape)}; it is of another network."
            )
        if not np.isfinite(value).all():
            raise InputError(f"{path}: {name} holds values that are not finite; the file is damaged.")
        values.append(value)
    return values
