"""The ResNet U-Net of segmentation_models with dropout in its encoder.

The only module that imports segmentation_models, which must be told to use Keras 3 beforehand.
"""

import contextlib
import fnmatch
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
    raise ImportError("segdrop needs Keras 3; unset TF_USE_LEGACY_KERAS, which asks for the legacy Keras 2.")
os.environ["SM_FRAMEWORK"] = "tf.keras"

import h5py
import keras
import numpy as np

with contextlib.redirect_stdout(io.StringIO()):  # it prints the framework's name when imported
    import segmentation_models as sm
from classification_models.weights import WEIGHTS_COLLECTION

from .config import PLACEMENTS, check_rate
from .dropout import check_kind, insert_dropout, linear_ramp, ramp_rates
from .errors import InputError
from .selection import nearest_names

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SKIPS = ("clean", "dropped")


def build_unet(
    encoder: str = "resnet34",
    *,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    classes: int = 1,
    activation: str | None = None,
    encoder_weights: str | os.PathLike | None = "imagenet",
    encoder_dropout: float | tuple[float, float] | Mapping[str, float] = 0.0,
    spatial: bool = False,
    kind: str | None = None,
    placement: str = "between_convs",
    blocks: str | Iterable[str] | None = None,
    skips: str | None = None,
    block_size: int | None = None,
    shared_across_batch: bool = False,
    adjustable: bool = False,
    seed: int | None = None,
    encoder_freeze: bool = False,
    decoder_filters: tuple[int, ...] = (256, 128, 64, 32, 16),
    decoder_block_type: str = "upsampling",
    decoder_use_batchnorm: bool = True,
) -> keras.Model:
    """Build a U-Net whose ResNet encoder has dropout in it.

    The decoder and all weights are those of `segmentation_models.Unet`; dropout acts in training only,
    so inference equals the plain U-Net's exactly.

    The model maps `images: float32 (N, H, W, C), 0..255`, RGB, unscaled (it normalises them itself), H and W
    multiples of 32, to `probabilities: float32 (N, H, W, classes), 0..1` under every precision policy.

    Args:
        encoder: `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"` or `"resnet152"`.
        input_shape: (height, width, channels); None for any height or width.
        classes: number of classes counting the background, except 1, which is binary.
        activation: None for sigmoid (one class) or softmax (more); any Keras activation; `"linear"` for logits.
        encoder_weights: `"imagenet"`; None for random initialisation; or a file: a Keras 2 HDF5 weight file
            (the format of the ImageNet files) or a `.keras` model whose encoder has the same layer names.
            With other than 3 channels, input channel i takes pretrained channel i mod 3 and the kernels are
            scaled by 3 / channels; for one channel they are summed.
        encoder_dropout: probability of dropping, in [0, 1); or (first, last), a linear ramp over the depth of the
            chosen units; or a mapping from blocks to rates, `{"stage3": 0.1, "stage4_unit1": 0.2}`, each key taken
            whole.
        spatial: shorthand for `kind="spatial"`.
        kind: what is dropped together: `"element"` (default) single values, `"spatial"` whole feature maps,
            `"block"` squares of maps, `"path"` a sample's whole residual branch (with `placement="branch_end"`).
        placement: where in the chosen units. `"between_convs"`: before the last convolution, inside the residual
            branch; `"branch_end"`: after the last convolution, before the addition; `"block_end"`: after the
            addition, where it shifts BatchNorm's variance most; `"activations"`: after every activation. Or
            `"bottleneck"`: after the encoder's last activation; `"skips"`: on the decoder's side of the skips.
        blocks: stages, units or globs (`"stage3"`, `"stage4_unit1"`, `"stage*_unit1"`). Default: stage3 and
            stage4 without the encoder's last unit. Of the skips: `"relu0"`, `"stage2"`, `"stage3"`, `"stage4"`,
            by default all; not for the bottleneck, which is one place.
        skips: `"clean"` (default): where a site's own output is a skip, the decoder receives it undropped;
            `"dropped"`: it receives the dropped one. `placement="skips"` is `"dropped"`.
        block_size: side of the squares of `kind="block"` in pixels of the feature map, 3 by default.
        shared_across_batch: drop the same in all samples of a batch.
        adjustable: make the rates changeable during training (`segdrop.DropoutSchedule`).
        seed: seed of the dropout masks.
        encoder_freeze: freeze all encoder layers, BatchNorm included.
        decoder_filters, decoder_block_type, decoder_use_batchnorm: as in `segmentation_models.Unet`.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        InputError: an argument outside its range, an unknown name, unusable weights.

    References:
        Zagoruyko and Komodakis 2016 (dropout between the convolutions); Tompson et al. 2015 (spatial dropout).
    """
    if encoder not in ENCODERS:
        raise InputError(f"`encoder` must be one of {', '.join(ENCODERS)}, got encoder={encoder!r}.")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise InputError(f"`classes` must be a whole number of at least 1, got classes={classes!r}.")
    if placement not in PLACEMENTS:
        raise InputError(f"`placement` must be one of {', '.join(PLACEMENTS)}, got placement={placement!r}.")
    if skips not in (None, *SKIPS):
        raise InputError(f"`skips` must be one of {', '.join(SKIPS)}, got skips={skips!r}.")
    if placement == "skips" and skips == "clean":
        raise InputError("placement='skips' drops on the skips, which skips='clean' forbids; leave `skips` out.")
    kind = resolve_kind(kind, spatial)
    check_kind(kind, block_size)
    if kind == "path" and placement != "branch_end":
        raise InputError(
            f"kind='path' drops whole residual branches and needs placement='branch_end', got placement={placement!r}."
        )
    _check_input_shape(input_shape)
    if keras.config.image_data_format() != "channels_last":
        raise InputError("build_unet needs keras.config.set_image_data_format('channels_last').")

    model = sm.Unet(
        encoder,
        input_shape=tuple(input_shape),
        classes=classes,
        activation=activation or ("sigmoid" if classes == 1 else "softmax"),
        encoder_weights=None,
        decoder_filters=tuple(decoder_filters),
        decoder_block_type=decoder_block_type,
        decoder_use_batchnorm=decoder_use_batchnorm,
    )
    sites = _sites(model, placement)
    rates = _unit_rates(list(sites), encoder_dropout, blocks, placement)
    if encoder_weights is not None:
        path = imagenet_file(encoder) if encoder_weights == "imagenet" else Path(encoder_weights)
        _load_encoder(model, path)
    model = _with_float32_head(model)
    if encoder_freeze:
        set_encoder_trainable(model, False)
    if not rates:
        return model
    if placement == "block_end":
        warnings.warn(
            "placement='block_end' shifts BatchNorm's variance most: up to 2-fold at rate 0.2 and 23-fold at 0.5 on a "
            "trained network, against 1.3 and 1.9 for 'between_convs' (docs/dropout.md); prefer 'between_convs'.",
            stacklevel=2,
        )
    site_rates = {site: rate for unit, rate in rates.items() for site in sites[unit]}
    return insert_dropout(
        model,
        site_rates,
        kind=kind,
        block_size=block_size,
        shared_across_batch=shared_across_batch,
        adjustable=adjustable,
        bypass=_bypass(model, site_rates, placement, skips),
        seed=seed,
    )


def resolve_kind(kind: str | None, spatial: bool) -> str:
    """The kind of dropout that `kind` and its shorthand `spatial` ask for together."""
    if kind is None:
        return "spatial" if spatial else "element"
    check_kind(kind)
    if spatial and kind != "spatial":
        raise InputError(f"`spatial` means kind='spatial' and contradicts kind={kind!r}; give one of them.")
    return kind


def encoder_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a U-Net's encoder, inserted dropout included, in the model's order."""
    return keras.Model(model.input, model.get_layer("relu1").output).layers


def set_encoder_trainable(model: keras.Model, trainable: bool) -> None:
    """Freeze or unfreeze the whole encoder; frozen BatchNorm keeps its moving statistics. Compile afterwards."""
    for layer in encoder_layers(model):
        layer.trainable = trainable


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
            f"({str(error).splitlines()[0]}); put {entry['url']} into {folder}, or use encoder_weights=None "
            "(--encoder-weights none) for random initialisation."
        ) from error


def _check_input_shape(input_shape) -> None:
    shape = tuple(input_shape)
    ok = len(shape) == 3 and isinstance(shape[2], int) and shape[2] >= 1
    if not ok or any(n is not None and (n <= 0 or n % 32) for n in shape[:2]):
        raise InputError(
            "`input_shape` must be (height, width, channels) with height and width multiples of 32 or None, "
            f"got input_shape={input_shape!r}."
        )


def _units(model) -> list[str]:
    """The residual units of the encoder in the order of depth: stage1_unit1, ..."""
    found = (re.match(r"(stage\d+_unit\d+)_conv1$", layer.name) for layer in model.layers)
    return sorted((m[1] for m in found if m), key=lambda unit: [int(n) for n in re.findall(r"\d+", unit)])


def _match_units(units: list[str], pattern: str, argument: str) -> list[str]:
    matched = [
        unit for unit in units if fnmatch.fnmatchcase(unit, pattern) or fnmatch.fnmatchcase(unit.split("_")[0], pattern)
    ]
    if not matched:
        counts = Counter(unit.split("_")[0] for unit in units)
        sizes = ", ".join(f"{stage} ({count} units)" if count > 1 else stage for stage, count in counts.items())
        raise InputError(
            f"`{argument}` names no unit of this encoder: {pattern!r}. It has {sizes}; "
            f"nearest: {nearest_names(pattern, [*counts, *units])}."
        )
    return matched


def _unit_rates(units, encoder_dropout, blocks, placement) -> dict[str, float]:
    """Map each unit that gets dropout to its rate."""
    by_block = isinstance(encoder_dropout, Mapping)
    if placement == "bottleneck" and (by_block or blocks is not None):
        raise InputError("placement='bottleneck' is one place: leave `blocks` out and give one rate.")
    if by_block:
        if blocks is not None:
            raise InputError("`blocks` must be left out when `encoder_dropout` maps blocks to rates.")
        by_pattern = {pattern: check_rate(rate, "encoder_dropout") for pattern, rate in encoder_dropout.items()}
    else:
        if blocks is None and placement not in ("bottleneck", "skips"):
            blocks = [unit for unit in units[:-1] if unit.startswith(("stage3_", "stage4_"))]
        elif blocks is None:
            blocks = units
        ramp = ramp_rates(encoder_dropout, "encoder_dropout")
        patterns = [blocks] if isinstance(blocks, str) else list(blocks)
        if ramp:
            matched = {unit for pattern in patterns for unit in _match_units(units, pattern, "blocks")}
            patterns = [unit for unit in units if unit in matched]
            by_pattern = dict(zip(patterns, linear_ramp(*ramp, len(patterns)), strict=True))
        else:
            by_pattern = dict.fromkeys(patterns, check_rate(encoder_dropout, "encoder_dropout"))
    if not by_pattern:
        raise InputError("`blocks` is empty: name a stage or unit, or give encoder_dropout=0.")
    rates: dict[str, float] = {}
    for pattern, rate in by_pattern.items():
        for unit in _match_units(units, pattern, "blocks"):
            if rates.get(unit, rate) != rate:
                raise InputError(f"`encoder_dropout` gives {unit!r} two rates: {rates[unit]} and {rate}.")
            rates[unit] = rate
    return {unit: rate for unit, rate in rates.items() if rate > 0}


def _sites(model, placement: str) -> dict[str, list[str]]:
    """For each unit, or each place of its own, the layers that dropout follows; in the order of depth."""
    if placement == "bottleneck":
        return {"relu1": ["relu1"]}
    if placement == "skips":
        skips = sorted(name for name, _ in _skips(model))
        return {name.removesuffix("_relu1"): [name] for name in skips}
    return {unit: _unit_sites(model, unit, placement) for unit in _units(model)}


def _unit_sites(model, unit: str, placement: str) -> list[str]:
    last = max(int(m[1]) for layer in model.layers if (m := re.match(rf"{unit}_conv(\d)$", layer.name)))
    if placement == "between_convs":
        return [f"{unit}_relu{last}"]
    if placement == "branch_end":
        return [f"{unit}_conv{last}"]
    if placement == "activations":
        return [f"{unit}_relu{n}" for n in range(1, last + 1)]
    # The names of the additions come from a process-global counter: find this one by what it adds.
    branch = model.get_layer(f"{unit}_conv{last}").output
    return [layer.name for layer in _consumers(model, branch)]


def _consumers(model, tensor) -> list:
    return [
        layer
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer) and any(t is tensor for t in keras.tree.flatten(layer.input))
    ]


def _skips(model) -> list[tuple[str, str]]:
    """For each skip the encoder's layer that it leaves and the decoder's that receives it."""
    encoder = {id(layer.output): layer.name for layer in encoder_layers(model)}
    return [
        (encoder[id(tensor)], layer.name)
        for layer in model.layers
        if isinstance(layer, keras.layers.Concatenate)
        for tensor in layer.input
        if id(tensor) in encoder
    ]


def _bypass(model, sites, placement: str, skips: str | None) -> list[str]:
    """The layers that receive a site's output undropped."""
    receivers = [(name, receiver) for name, receiver in _skips(model) if name in sites]
    if placement != "skips":
        return [receiver for _, receiver in receivers] if skips != "dropped" else []
    return [
        layer.name
        for name, receiver in receivers
        for layer in _consumers(model, model.get_layer(name).output)
        if layer.name != receiver
    ]


def _with_float32_head(model) -> keras.Model:
    """Compute `final_conv` and its activation in float32, whatever the policy; the other layers are shared."""
    head = model.get_layer("final_conv")
    if head.compute_dtype == "float32":
        return model
    activation = model.layers[-1]
    x = head.input
    for layer in (head, activation):
        layer = layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})
        x = layer(x)
    return keras.Model(model.input, x, name=model.name)


def _load_encoder(model, path: Path) -> None:
    """Copy the weights of `path` into the encoder's layers by name, fitted to the model's input channels."""
    if not path.is_file():
        raise FileNotFoundError(f"`encoder_weights` names no file: {path}.")
    stored = _read_weights(path)
    pending = []
    for layer in encoder_layers(model):
        if not layer.weights:
            continue
        if layer.name not in stored:
            raise InputError(f"{path} has no weights for layer {layer.name!r}; it is not a file of this encoder.")
        values = _fit_channels(layer, stored[layer.name])
        if [v.shape for v in values] != [tuple(w.shape) for w in layer.weights]:
            raise InputError(
                f"{path}: layer {layer.name!r} has weights of shape {[v.shape for v in values]}, "
                f"the encoder needs {[tuple(w.shape) for w in layer.weights]}."
            )
        pending.append((layer, values))
    for layer, values in pending:
        layer.set_weights(values)


def _read_weights(path: Path) -> dict[str, list[np.ndarray]]:
    try:
        if path.suffix == ".keras":
            return {layer.name: layer.get_weights() for layer in keras.saving.load_model(path, compile=False).layers}
        with h5py.File(path) as file:
            group = file.get("model_weights", file)
            return {
                name: [np.asarray(group[name][weight]) for weight in group[name].attrs["weight_names"]]
                for name in (_text(n) for n in group.attrs["layer_names"])
            }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is neither a Keras 2 HDF5 weight file nor a .keras model: {str(error).splitlines()[0]}."
        ) from error


def _text(name) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _fit_channels(layer, values: list[np.ndarray]) -> list[np.ndarray]:
    """Spread the weights of the two layers that see three input channels over the channels there are."""
    channels = layer.input.shape[-1]
    if layer.name == "bn_data" and values[0].shape[0] == 3 != channels:
        if channels == 1:
            return [value.mean(keepdims=True) for value in values]
        return [value[np.arange(channels) % 3] for value in values]
    if layer.name == "conv0" and values[0].shape[2] == 3 != channels:
        kernel, *rest = values
        if channels == 1:
            return [kernel.sum(axis=2, keepdims=True), *rest]
        return [kernel[:, :, np.arange(channels) % 3] * (3 / channels), *rest]
    return values
