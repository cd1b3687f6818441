"""Dropout layers put into a functional Keras model, taken out of it, and left on for Monte Carlo sampling."""

import re
import zlib
from collections.abc import Iterable, Mapping

import keras

from ..config.checks import check_rate, check_seed
from ..errors import InputError
from ..layers import SUFFIX, check_rank, is_dropout, layer_of_kind
from .custom import Maker, check_rests, make_layer, resolve_layer
from .graph import Call, Part, consumers, downstream, functional_view, layers_by_path, maker, trace, upstream
from .rebuild import insert_after, rebuild
from .selection import Selector, as_selectors, select, select_sites


def insert_dropout(
    model: keras.Model,
    sites: Selector | Iterable[Selector] | Mapping[Selector, float],
    rate: float | tuple[float, float] | None = None,
    *,
    kind: str | None = None,
    block_size: int | None = None,
    shared_across_batch: bool = False,
    adjustable: bool = False,
    dropout_layer: Maker | None = None,
    bypass: Selector | Iterable[Selector] = (),
    nested: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Return a copy of `model` with a dropout layer after each of the layers in `sites`.

    The copy has its own variables holding the same values; `model` is left as it is. Dropout acts in
    training mode only, so inference gives exactly what `model` gives. Weight paths, layer names and `trainable`
    flags are those of `model`, and weight files load both ways, unless a warning says otherwise (networks with
    parallel branches, see `insert_layers`). The copy is not compiled.

    Args:
        model: a functional or Sequential Keras 3 model, built.
        sites: layer names or globs (`"stage3_*_relu2"`), layer classes, predicates of a layer
            (`segdrop.activations` is one), several of them, or a mapping from them to a rate each. The new layer
            after layer `L` is called `L_dropout`. A layer that is called several times gets one dropout layer,
            which draws anew in each call.
        rate: probability of dropping, in [0, 1); or (first, last), a linear ramp over the sites in the model's
            order. Left out when `sites` is a mapping.
        kind: what is dropped together. `"element"`, the default: single values (`keras.layers.Dropout`). `"spatial"`:
            whole feature maps (`SpatialDropout1D` to `3D`, by rank). `"block"`: squares of a map (`DropBlock2D`).
            `"path"`: all of a sample, which needs the end of a residual branch (stochastic depth).
        block_size: side of the squares of `kind="block"`, in pixels of the feature map; 3 by default.
        shared_across_batch: drop the same in all samples of a batch.
        adjustable: make layers whose rate can change in training (`segdrop.DropoutSchedule`); they are segdrop's
            own and load after `import segdrop.layers`. So does `kind="block"`; all other layers are Keras's.
        dropout_layer: a class of your own instead of a `kind`, or a function that makes a layer; called for each site
            as `dropout_layer(rate, name=..., seed=..., dtype=...)`, without `seed` and `dtype` where it does not take
            them. The layer has the attribute `rate` and no weights, keeps the shape, and returns its input where
            `training` is false; its `get_config` has the rate (docs/dropout.md).
        bypass: selectors of layers that go on receiving a site's output as it was *before* dropout.
        nested: enter models within the model; their layers are called by path, `"backbone/conv1"`.
        seed: makes the masks reproducible; each site draws from a stream of its own, which depends on
            `seed` and the site's place in the order of `sites`.

    Raises:
        InputError: a selector that matches no layer, a site named twice or already followed by dropout, a
            rate outside [0, 1), a site whose output does not suit `kind`, a `dropout_layer` that gives another layer
            than is said above.
        TypeError: `model` is not a functional or Sequential Keras 3 model.

    Example:
        >>> plain = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> model = segdrop.insert_dropout(plain, "stage4_*_relu2", (0.1, 0.2), kind="spatial")
        >>> [(layer.name, layer.rate) for layer in model.layers if "dropout" in layer.name]
        [('stage4_unit1_relu2_dropout', 0.1), ('stage4_unit2_relu2_dropout', 0.2)]
        >>> images = np.ones((1, 32, 32, 3), "float32")
        >>> np.array_equal(model(images), plain(images))
        True

    References:
        Tompson et al. 2015 (spatial); Ghiasi et al. 2018 (block); Huang et al. 2016 (path, linear ramp).
    """
    view = functional_view(model)
    known = layers_by_path(view, nested)
    kind = resolve_layer(
        dropout_layer, kind, block_size=block_size, shared_across_batch=shared_across_batch, adjustable=adjustable
    )
    check_seed(seed)
    rates = _site_rates(known, view, sites, rate)
    _check_sites(known, view, rates, kind)

    own: list[tuple[keras.layers.Layer, tuple]] = []

    def layer_for(order: int, path: str):
        layer = known[path].layer

        def make(output):
            options = {
                "name": f"{layer.name}{SUFFIX}",
                # Seeds follow the order of the sites, not their names, some of which come from a global counter.
                "seed": None if seed is None else stream_name(seed, order),
                # The compute dtype, not the policy: SpatialDropout2D stores only a dtype in its config, so a
                # mixed policy would come back from disk as float32. The layer has no weights to keep in float32.
                "dtype": output.dtype,
            }
            if dropout_layer is not None:
                own.append((make_layer(dropout_layer, rates[path], **options), output.shape))
                return own[-1][0]
            return layer_of_kind(
                kind,
                rates[path],
                len(output.shape),
                data_format=getattr(layer, "data_format", None) or keras.config.image_data_format(),
                block_size=block_size,
                shared=shared_across_batch,
                adjustable=adjustable,
                **options,
            )

        return make

    makers = {path: layer_for(order, path) for order, path in enumerate(rates)}
    dropped = insert_after(view, known, makers, bypass)
    for layer, shape in own:
        check_rests(layer, shape)
    return dropped


def _check_sites(known: dict[str, Part], view: keras.Model, sites: Iterable[str], kind: str | None) -> None:
    """Raise InputError unless `kind` can be put behind each of the sites, and none has dropout."""
    calls = trace(view) if kind == "path" else []
    outputs = {id(tensor) for tensor in view.outputs}
    for path in sites:
        _check_kind_fits(known[path], path, kind, calls, outputs)
        if f"{path}{SUFFIX}" in known:
            raise InputError(f"Site {path!r} is already followed by dropout; insert into the plain model.")


def remove_dropout(model: keras.Model, *, all: bool = False) -> keras.Model:
    """Return a copy of `model` without the dropout that segdrop inserted, or without any.

    Inference output, weights and their paths are those of `model`, which is left as it is.

    Args:
        all: take out every dropout layer, not only those called `L_dropout` behind a layer `L`.

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2)
        >>> plain = segdrop.remove_dropout(model)
        >>> len(segdrop.dropout_table(model)), len(segdrop.dropout_table(plain))
        (3, 0)
    """

    def call(path, layer, args, kwargs):
        if is_dropout(layer):
            received = keras.tree.flatten((args, kwargs))[0]
            producer = received._keras_history.operation
            # What was inserted behind inserted dropout has the suffix twice, and its producer is out already.
            if all or re.fullmatch(re.escape(producer.name) + f"({SUFFIX})+", layer.name):
                return received
        return layer(*args, **kwargs)

    return rebuild(model, call)


def stream_name(seed: int, order: int) -> int:
    return zlib.crc32(f"{seed}/{order}".encode())


def _site_rates(known, view, sites, rate) -> dict[str, float]:
    """Map the path of every matched layer to its rate."""
    if isinstance(sites, Mapping):
        if rate is not None:
            raise InputError(f"`rate` must be left out when `sites` maps names to rates, got rate={rate!r}.")
        by_selector = {selector: check_rate(value) for selector, value in sites.items()}
        paths = select_sites(known, list(by_selector), view)
        values = [value for selector, value in by_selector.items() for _ in select(known, selector, view, "sites")]
        return dict(zip(paths, values, strict=True))
    ramp = ramp_rates(rate)
    one_rate = None if ramp else check_rate(rate)
    paths = select_sites(known, as_selectors(sites, "sites"), view)
    if one_rate is not None:
        return dict.fromkeys(paths, one_rate)
    by_depth = [path for path in known if path in paths]
    values = dict(zip(by_depth, linear_ramp(*ramp, len(by_depth)), strict=True))
    return {path: values[path] for path in paths}


def ramp_rates(rate, name: str = "rate") -> tuple[float, float] | None:
    """The two ends of a ramp, or None where `rate` is no pair."""
    if not isinstance(rate, (tuple, list)):
        return None
    if len(rate) != 2:
        raise InputError(f"`{name}` must be one number or two, the first and the last of a ramp, got {name}={rate!r}.")
    return check_rate(rate[0], name), check_rate(rate[1], name)


def linear_ramp(first: float, last: float, count: int) -> list[float]:
    """`count` rates from `first` to `last`; a single one is `last`."""
    if count == 1:
        return [last]
    return [round(first + (last - first) * i / (count - 1), 6) for i in range(count)]


def _check_kind_fits(part: Part, path: str, kind: str | None, calls: list[Call], outputs: set[int]) -> None:
    shapes = [tuple(tensor.shape) for tensors in part.outputs for tensor in tensors]
    if len({len(shape) for shape in shapes}) > 1:
        raise InputError(f"Site {path!r} is called on tensors of different ranks, {shapes}; choose other layers.")
    shape = shapes[0]
    if kind is not None:
        check_rank(kind, shape, path)
    if kind != "path":
        return
    own = [call for call in calls if call.path == path]
    is_output = any(id(tensor) in outputs for tensors in part.outputs for tensor in tensors)
    if is_output or not own or not all(ends_branch(call, calls) for call in own):
        raise InputError(
            f"kind='path' needs the end of a residual branch; the output of site {path!r} is not only added to its "
            "own input or a projection of it."
        )


def ends_branch(call: Call, calls: list[Call]) -> bool:
    """Whether a call's output goes into additions alone, where the other summand is a shortcut past the call."""
    receivers = consumers(calls, call)
    return bool(receivers) and all(
        type(receiver.layer).__name__ in _SUMS
        and any(_is_shortcut(tensor, call, calls) for tensor in set(receiver.inputs) - set(call.outputs))
        for receiver in receivers
    )


# The layer, the operation `a + b`, and InceptionResNetV2's scaled addition.
_SUMS = ("Add", "CustomScaleLayer")


def _is_shortcut(tensor: int, call: Call, calls: list[Call]) -> bool:
    """Whether the tensor is what the branch of `call` starts from, or a projection of it shorter than the branch."""
    branch = upstream(calls, call.outputs)
    before = {needed for step in branch for needed in step.inputs}
    length = 0
    while tensor not in before:
        made_by = maker(calls, tensor)
        if made_by is None or len(made_by.inputs) != 1:
            return False
        length += bool(getattr(made_by.layer, "weights", ()))
        (tensor,) = made_by.inputs
    after = {id(dependent) for dependent in downstream(calls, [tensor])}
    return (
        length < sum(id(step) in after and bool(getattr(step.layer, "weights", ())) for step in branch) or length == 0
    )
