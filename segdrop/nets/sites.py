"""Where in a U-Net dropout goes: placements, units, rates."""

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Mapping

import keras

from ..anatomy import CENTER, DEEP, FIRST_UPSAMPLING, UNIT, is_decoder, part_of_unit, units_in
from ..config.checks import check_rate
from ..errors import InputError
from ..surgery.dropout import ends_branch, linear_ramp, ramp_rates
from ..surgery.graph import Call, consumers, is_input, maker, trace
from ..surgery.selection import activations, nearest_names
from .skips import SIDE


def encoder_end(model: keras.Model) -> keras.layers.Layer | None:
    """The last layer of a U-Net's encoder, which its decoder begins with; None where there is none."""
    first = next((layer for layer in model.layers if layer.name in FIRST_UPSAMPLING), None)
    if first is None:
        return None
    end = _maker(first.input)
    while is_decoder(end.name):  # the library's center block, behind encoders that end in a pooling
        end = _maker(end.input)
    return end


def encoder_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a U-Net's encoder, inserted dropout included, in the model's order."""
    return keras.Model(model.input, encoder_end(model).output).layers


def set_encoder_trainable(model: keras.Model, trainable: bool) -> None:
    """Freeze or unfreeze the whole encoder; frozen BatchNorm keeps its moving statistics. Compile afterwards."""
    for layer in encoder_layers(model):
        layer.trainable = trainable


def _units(model) -> list[str]:
    """The residual units of the encoder in the order of depth: stage1_unit1, ..."""
    return list(units_in(layer.name for layer in model.layers))


def stages(model) -> list[str]:
    """The stages of residual units of the encoder in the order of depth: stage1, ...; empty where it has none."""
    return list(dict.fromkeys(unit.split("_")[0] for unit in _units(model)))


def _match_units(units: list[str], pattern: str, argument: str) -> list[str]:
    """The units that a pattern matches whole or up to an underscore: stage3 is that of stage3_unit1, too."""
    matched = [unit for unit in units if any(fnmatch.fnmatchcase(start, pattern) for start in _starts(unit))]
    if not matched:
        counts = Counter(unit.split("_")[0] for unit in units)
        sizes = ", ".join(f"{stage} ({count} units)" if count > 1 else stage for stage, count in counts.items())
        raise InputError(
            f"`{argument}` names no unit of this encoder: {pattern!r}. "
            + (f"It has {sizes}; nearest" if len(counts) < 12 else "Nearest")
            + f": {nearest_names(pattern, [*counts, *units])}."
        )
    return matched


def _starts(name: str) -> list[str]:
    return list(itertools.accumulate(name.split("_"), "{}_{}".format))


def unit_rates(model, sites: Mapping[str, list[str]], encoder_dropout, blocks, placement) -> dict[str, float]:
    """Map each unit of `placement_sites` that gets dropout to its rate."""
    units = list(sites)
    by_block = isinstance(encoder_dropout, Mapping)
    if placement == "bottleneck" and (by_block or blocks is not None):
        raise InputError("placement='bottleneck' is one place: leave `blocks` out and give one rate.")
    if by_block:
        if blocks is not None:
            raise InputError("`blocks` must be left out when `encoder_dropout` maps blocks to rates.")
        by_pattern = {pattern: check_rate(rate, "encoder_dropout") for pattern, rate in encoder_dropout.items()}
    else:
        blocks = _default_units(model, sites, placement) if blocks is None else blocks
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
        for unit in _match_units(units, pattern, "encoder_dropout" if by_block else "blocks"):
            if rates.get(unit, rate) != rate:
                raise InputError(f"`encoder_dropout` gives {unit!r} two rates: {rates[unit]} and {rate}.")
            rates[unit] = rate
    return {unit: rate for unit, rate in rates.items() if rate > 0}


def _default_units(model, sites: Mapping[str, list[str]], placement: str) -> list[str]:
    """Where dropout goes unless blocks are named: the two deepest scales, without the encoder's last unit."""
    units = list(sites)
    if placement == "layers":
        raise InputError("placement='layers' needs `blocks`: names or globs of the layers that dropout follows.")
    if placement in ("bottleneck", "skips"):
        return units
    if _units(model):
        return [unit for unit in units[:-1] if unit.startswith(DEEP)]
    sides = {call.path: call.shapes[0][1] for call in trace(model, (SIDE, SIDE))}
    end = sides[encoder_end(model).name]
    return [unit for unit in units[:-1] if sides[unit] <= 2 * end]


def placement_sites(model, placement: str) -> dict[str, list[str]]:
    """For each unit, or each place of its own, the layers that dropout follows; in the order of depth.

    Raises:
        InputError: the encoder has no such places; the message lists what it has.
    """
    if placement == "bottleneck":
        end = encoder_end(model).name
        return {end: [end]}
    if placement == "skips":
        skips = sorted(name for name, _ in _skips(model))
        return {re.sub(r"_relu\d$", "", name): [name] for name in skips}
    if placement == "layers":
        return {layer.name: [layer.name] for layer in encoder_layers(model) if not is_input(layer)}
    units = _units(model)
    if units:
        return {unit: _unit_sites(model, unit, placement) for unit in units}
    return {name: [name] for name in _layer_sites(model, placement)}


def _unit_sites(model, unit: str, placement: str) -> list[str]:
    """The layers of a unit that dropout follows.

    Found by the graph, because the library's units have BatchNorm and ReLU before each convolution and torchvision's
    after it, and the library's additions are named by a counter of the whole process.
    """
    names = {layer.name for layer in model.layers}
    last = units_in(names)[unit]
    if placement == "activations":  # ResNeXt's last one has no number
        return [name for n in (*range(1, last + 1), "") if (name := f"{unit}_relu{n}") in names]
    conv = model.get_layer(f"{unit}_conv{last}")
    if placement == "between_convs":
        before = _maker(conv.input)
        while not _is_activation(before):  # padding
            before = _maker(before.input)
        return [before.name]
    end, add = conv, _follower(model, conv)
    while not isinstance(add, keras.layers.Add):  # torchvision's last BatchNorm, steps that do nothing, a gate
        end, add = add, _follower(model, add)
    if placement == "branch_end":
        return [end.name]
    after = _consumers(model, add.output)
    return [after[0].name if len(after) == 1 and _is_activation(after[0]) else add.name]


def _layer_sites(model, placement: str) -> list[str]:
    """The same for an encoder whose residual units, if it has any, have no such names."""
    encoder = {layer.name for layer in encoder_layers(model)}
    calls = [call for call in trace(model, (SIDE, SIDE)) if call.path in encoder]
    ends = [call for call in calls if ends_branch(call, calls)]
    found = {
        # Maps of one pixel are a gate's, which weighs the others.
        "activations": [call.path for call in calls if activations(call.layer) and call.shapes[0][1:3] != (1, 1)],
        "branch_end": [call.path for call in ends],
        "block_end": list(dict.fromkeys(_block_end(calls, call).path for call in ends)),
    }
    if not found.get(placement):
        fit = [name for name, paths in found.items() if paths]
        raise InputError(
            f"placement={placement!r} means nothing in this encoder, which has no such residual units; it can be "
            f"{', '.join(fit)}, bottleneck, skips or layers (--dropout-placement)."
        )
    return found[placement]


def _block_end(calls: list[Call], branch_end: Call) -> Call:
    """The addition that a residual branch ends in, or the activation that alone receives it."""
    addition = consumers(calls, branch_end)[0]
    receivers = consumers(calls, addition)
    return receivers[0] if len(receivers) == 1 and _is_activation(receivers[0].layer) else addition


def _maker(tensor) -> keras.layers.Layer:
    return tensor._keras_history.operation


def _is_activation(layer) -> bool:
    return isinstance(layer, (keras.layers.Activation, keras.layers.ReLU))


def _follower(model, layer) -> keras.layers.Layer:
    """The one layer that receives a layer's output; of a gate's two the product, not the mean that it is made of."""
    (follower,) = [
        receiver
        for receiver in _consumers(model, layer.output)
        if not isinstance(receiver, keras.layers.GlobalAveragePooling2D)
    ]
    return follower


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


def bypass(model, sites, placement: str, skips: str | None) -> list[str]:
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


def placement_of(calls: list[Call], call: Call, after: Call | None, decoder: set[str]) -> str:
    """The placement that puts dropout where a call of it is, as `build_unet` calls it; else what it follows.

    Args:
        after: the call whose output is dropped; None for the model's input.
        decoder: paths of the decoder's layers.
    """
    if after is None:
        return "input"
    receivers = consumers(calls, call)
    encoder_ends = any(receiver.path.startswith((*FIRST_UPSAMPLING, CENTER)) for receiver in receivers)
    if receivers and call.path not in decoder and all(receiver.path in decoder for receiver in receivers):
        return "bottleneck" if encoder_ends else "skips"
    if encoder_ends:
        return "bottleneck"
    in_encoder = bool(decoder) and call.path not in decoder
    added = _addition_before(calls, after)
    if added is not None:
        makers = [maker(calls, tensor) for tensor in added.inputs]
        if in_encoder or any(producer and re.match(UNIT, producer.path) for producer in makers):
            return "block_end"
    unit, part, number = part_of_unit(after.path) or ("", "", 0)
    if unit:
        while any(isinstance(receiver.layer, keras.layers.ZeroPadding2D) for receiver in receivers):
            receivers = [follower for receiver in receivers for follower in consumers(calls, receiver)]
        last = units_in(layer_call.path for layer_call in calls)[unit]
        if part == "relu":
            before_last = any(receiver.path == f"{unit}_conv{last}" for receiver in receivers)
            return "between_convs" if before_last else "activations"
        if any(isinstance(receiver.layer, keras.layers.Add) for receiver in receivers):
            return "branch_end"
        return f"after {part}{number}"
    if in_encoder and any(isinstance(receiver.layer, keras.layers.Add) for receiver in receivers):
        return "branch_end"
    if in_encoder and activations(after.layer):
        return "activations"
    return f"after {type(after.layer).__name__}"


def _addition_before(calls: list[Call], call: Call) -> Call | None:
    """The addition that a call is, or that it is the activation of."""
    if isinstance(call.layer, keras.layers.Add):
        return call
    producer = maker(calls, call.inputs[0]) if _is_activation(call.layer) else None
    return producer if producer is not None and isinstance(producer.layer, keras.layers.Add) else None
