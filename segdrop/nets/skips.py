"""Which maps of an encoder go to a U-Net's decoder."""

from collections.abc import Sequence

import keras

from ..conventions import MULTIPLE
from ..errors import InputError, first_line
from ..surgery.graph import Call, maker, trace
from ..surgery.selection import activations, nearest_names

SCALES = (16, 8, 4, 2)  # of the skips, the coarsest first: a decoder joins them in this order
SIDE = 8 * MULTIPLE  # of the image by which an encoder of open size is measured


def find_skips(model: keras.Model) -> tuple[str, ...]:
    """The layers whose maps go to the decoder, at 1/16, 1/8, 1/4 and 1/2 of the image.

    Of each scale the last maps that all that follows depends on; where they come from a convolution alone, the
    activation that it has received. For the library's networks but ResNeXt these are the ones that it names.

    Raises:
        InputError: the encoder does not end at 1/32 of the image, or has no such maps at one of the scales.

    Example:
        >>> from segdrop.nets.skips import find_skips
        >>> find_skips(keras.applications.VGG16(weights=None, include_top=False))
        ('block5_conv3', 'block4_conv3', 'block3_conv3', 'block2_conv2')
    """
    calls, scales = _measured(model)
    through = [call for call in _on_every_path(calls) if call.path in scales]
    last = {scales[call.path]: call for call in through}
    missing = [scale for scale in SCALES if scale not in last]
    if missing:
        raise InputError(
            f"`encoder` {model.name!r} has no maps at {' and '.join(f'1/{n}' for n in missing)} of the image that all "
            "that follows depends on; a U-Net needs 1/2, 1/4, 1/8, 1/16 and 1/32. Choose another encoder, or name the "
            "layers (`skips_from`)."
        )
    return tuple(_activated(calls, last[scale], scales).path for scale in SCALES)


def check_skips(model: keras.Model, names: Sequence[str]) -> tuple[str, ...]:
    """`names` as the library takes them, or InputError unless they are layers at 1/16, 1/8, 1/4 and 1/2 in this order.

    Example:
        >>> from segdrop.nets.skips import check_skips
        >>> model = keras.applications.VGG16(weights=None, include_top=False)
        >>> check_skips(model, ["block5_conv1", "block4_conv1", "block3_conv1", "block2_conv1"])[0]
        'block5_conv1'
    """
    _, scales = _measured(model)
    if isinstance(names, str):
        raise InputError(f"`skips_from` must be several names, got skips_from={names!r}.")
    for name in names:
        if name not in scales:
            raise InputError(
                f"`skips_from` names no layer of {model.name!r} with maps of 1/2 to 1/32 of the image: {name!r}; "
                f"nearest: {nearest_names(str(name), scales)}."
            )
    if tuple(scales[name] for name in names) != SCALES:
        raise InputError(
            "`skips_from` must name four layers at 1/16, 1/8, 1/4 and 1/2 of the image in this order, got "
            f"{', '.join(f'{name} (1/{scales[name]})' for name in names) or 'none'}."
        )
    return tuple(names)


def _measured(model: keras.Model) -> tuple[list[Call], dict[str, int]]:
    """The calls of an encoder, and how many times smaller than the image each layer's maps are where that is a power
    of two."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        raise InputError(f"`encoder` {model.name!r} must map one image (height, width, channels) to feature maps.")
    sides = tuple(side or SIDE for side in model.inputs[0].shape[1:3])
    try:
        calls = trace(model, sides)
    except ValueError as error:  # a network's own: sizes that do not fit each other
        raise InputError(
            f"`encoder` {model.name!r} does not take images of {'x'.join(map(str, sides))}: {first_line(error)}"
        ) from error
    unknown = next((call.path for call in calls if None in call.shapes[0][1:]), None)
    if unknown is not None:
        raise InputError(
            f"`encoder` {model.name!r}: Keras cannot tell the shape of what {unknown!r} makes; give the layer an "
            "`output_shape` or a `compute_output_shape`."
        )
    scales = {}
    for call in calls:
        if isinstance(call.layer, keras.layers.Layer) and "/" not in call.path and len(call.shapes[0]) == 4:
            ratios = {side / n for side, n in zip(sides, call.shapes[0][1:3], strict=True)}
            if len(ratios) == 1 and (ratio := ratios.pop()) in (1, *SCALES, 2 * SCALES[0]):
                scales[call.path] = int(ratio)
    if (end := scales.get(calls[-1].path)) != 2 * SCALES[0]:
        size = "x".join(map(str, calls[-1].shapes[0][1:]))
        raise InputError(
            f"`encoder` {model.name!r} must halve the image exactly five times, to 1/32; of "
            f"{'x'.join(map(str, sides))} pixels it makes {size}{f', 1/{end}' if end else ''}."
        )
    return calls, {path: scale for path, scale in scales.items() if scale > 1}


def _on_every_path(calls: list[Call]) -> list[Call]:
    """The calls that everything after them depends on: nothing earlier is used again once they are made."""
    last_use = {tensor: position for position, call in enumerate(calls) for tensor in call.inputs}
    chosen, needed_until = [], 0
    for position, call in enumerate(calls):
        needed_until = max([needed_until, *(last_use[tensor] for tensor in call.inputs)])
        if needed_until <= position:
            chosen.append(call)
        needed_until = max([needed_until, *(last_use.get(tensor, 0) for tensor in call.outputs)])
    return chosen


def _activated(calls: list[Call], call: Call, scales: dict[str, int]) -> Call:
    """The activation before a call, if convolutions and the like alone lie between; else the call."""
    before = call
    while not activations(before.layer):
        producer = maker(calls, before.inputs[0]) if len(before.inputs) == 1 else None
        if producer is None or scales.get(producer.path) != scales[call.path]:
            return call
        before = producer
    return before
