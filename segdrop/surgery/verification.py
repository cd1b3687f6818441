"""Proof that a model is another one with working dropout in it and nothing else changed."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np

from ..anatomy import HEAD, is_decoder
from ..config.checks import check_whole
from ..config.fields import DROPOUT_KINDS
from ..errors import InputError, VerificationError, first_line
from ..layers import DropBlock2D, is_dropout, kind_of, rate_of
from ..show.tables import Table
from .graph import Call, functional_view, trace

STANDARD_ERRORS = 5.0  # two-sided, some ten comparisons: a sound layer fails in less than 1 of 10^5 tables
REBASED = 1e-4  # of the outputs' largest value, by which `rebase_batchnorm` may change them in float32
KEPT_SIDE = 8  # side of the maps on which masks are drawn, which need not be the model's


def verify(
    plain: keras.Model,
    dropped: keras.Model,
    images: np.ndarray | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
    rebased: bool = False,
) -> Table:
    """Check that `dropped` is `plain` with working dropout in it, and nothing else changed.

    Checked, in this order: that both give the same at inference, to the last bit; that every layer but the added
    dropout has the same configuration; that every weight has the same path, shape and value; that training mode gives
    something else; for each added dropout layer, over `draws` masks, that what is kept is multiplied by 1 / (1 - rate)
    and nothing else happens to it, that the share kept is 1 - rate, and that the mean output equals the input, or of a
    layer of your own that it changes its input in training; that inference leaves BatchNorm's statistics as they are
    and training moves them. Both models are left as they were, with their random state.

    Args:
        images: a batch of inputs for both; by default two images of uniform noise in 0..255 made from `seed`, with
            sides of 64 where the model leaves them open.
        draws: masks drawn from each dropout layer.
        rebased: `dropped` has been through `rebase_batchnorm`: BatchNorm's weights have values of their own, outputs
            are the same to 1e-4 of their largest value, as it promises in float32, and dropout need not be there.

    Returns:
        A table with a row per check: `check`, `where`, `found`, `expected`.

    Raises:
        VerificationError: the first difference.
        InputError: `images` do not fit, or must be given, or there are less than 100 draws.

    Example:
        >>> plain = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> dropped = segdrop.insert_dropout(plain, "stage4_unit1_relu2", 0.2, seed=0)
        >>> checks = segdrop.verify(plain, dropped, draws=200)
        >>> checks[1]["check"], checks[1]["found"]
        ('inference is the same', 'largest difference 0')
    """
    plain, dropped = functional_view(plain), functional_view(dropped)
    check_whole(draws, "draws", minimum=100)
    shapes = [[tuple(tensor.shape) for tensor in model.inputs] for model in (dropped, plain)]
    if shapes[0] != shapes[1]:
        raise VerificationError(f"The inputs differ: found {shapes[0]}, expected {shapes[1]}.")
    if images is None:
        images = _noise(plain, seed)
    rows = []
    with _states_kept(plain, dropped):
        for check in _checks(plain, dropped, images, draws, rebased):
            if not check.passed:
                raise VerificationError(f"{check.name}: {check.where}: found {check.found}, expected {check.expected}.")
            told = {"where": check.where, "found": str(check.found), "expected": str(check.expected)}
            rows.append({"check": check.name, **told})
    return Table(rows, f"{len(rows)} checks passed")


@dataclass(frozen=True)
class _Check:
    """One comparison: whether it passed, what was compared, where, and what was found and expected."""

    passed: bool
    name: str
    where: str
    found: object
    expected: object


def _checks(plain: keras.Model, dropped: keras.Model, images, draws: int, rebased: bool) -> Iterator[_Check]:
    """All checks in their order; the models run while they are gone through."""
    plain_calls, dropped_calls = trace(plain), trace(dropped)
    added = _added(plain_calls, dropped_calls)
    before = _statistics(dropped)
    try:
        reference, output = _flat(plain(images, training=False)), _flat(dropped(images, training=False))
    except (ValueError, TypeError) as error:
        raise InputError(f"`images` do not fit the model: {first_line(error)}") from error
    shapes = [tensor.shape for tensor in output], [tensor.shape for tensor in reference]
    yield _Check(shapes[0] == shapes[1], "outputs have the same shapes", "outputs", *shapes)
    pairs = list(zip(reference, output, strict=True))
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    equal = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)  # an untrained network may overflow
    expected = "0"
    if rebased:
        bound = REBASED * max(float(np.abs(a).max()) for a, _ in pairs)
        equal, expected = difference <= bound, f"at most {bound:.3g}"
    yield _Check(equal, "inference is the same", "outputs", f"largest difference {difference:g}", expected)
    paths = {call.path for call in added}
    yield from _check_configs(plain_calls, [call for call in dropped_calls if call.path not in paths])
    yield from _check_weights(plain, dropped, rebased)
    rests = _equal(before, _statistics(dropped))
    yield _Check(rests, "BatchNorm rests at inference", "moving statistics", "equal" if rests else "moved", "equal")
    yield _Check(
        bool(added) or rebased, "dropout was added", "dropout layers", len(added), "any" if rebased else "at least 1"
    )
    for call in added:
        yield from _check_layer(call, draws)
    acting = any(rate_of(call.layer) > 0 for call in added)
    trained = _flat(dropped(images, training=True))
    moved = _statistics(dropped)
    again = _flat(plain(images, training=True))
    same = all(np.array_equal(a, b) for a, b in zip(again, trained, strict=True))
    # With batch statistics, and so in training, a rebased network computes something else.
    if acting or not (rebased or any(is_dropout(call.layer) for call in plain_calls)):
        found, expected = ("equal" if same else "different"), ("different" if acting else "equal")
        yield _Check(same != acting, "training mode differs", "outputs", found, expected)
    if before and any(_trains_batchnorm(call.layer) for call in dropped_calls):
        rests = _equal(before, moved)
        found = "equal" if rests else "moved"
        yield _Check(not rests, "BatchNorm is moved by training", "moving statistics", found, "moved")


def _check_configs(plain: list[Call], rest: list[Call]) -> Iterator[_Check]:
    # The order of calls that do not depend on each other may differ: compare by name.
    ours, theirs = _by_name(rest), _by_name(plain)
    for name in [*theirs, *ours]:
        if ours.get(name) != theirs.get(name):
            yield _Check(False, "layers are the same", name, _brief(ours.get(name)), _brief(theirs.get(name)))
    decoder = sum(is_decoder(call.path) or call.path == HEAD for call in rest)
    where = f"{len(ours)} layers, {decoder} of them the decoder's" if decoder else f"{len(ours)} layers"
    yield _Check(True, "layers are the same", where, "equal configurations", "equal configurations")


def _by_name(calls: list[Call]) -> dict[str, dict]:
    """Configurations by name; layers that Keras numbers by a global counter by their order of appearance."""
    counts: dict[str, int] = {}
    result = {}
    for call in sorted(calls, key=lambda call: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", call.path)]):
        name, config = call.path, _config(call.layer)
        if not getattr(call.layer, "weights", None) and (match := re.fullmatch(r"(.*?)_?\d*", name)):
            kind = f"{match[1]} ({type(call.layer).__name__})"
            counts[kind] = counts.get(kind, 0) + 1
            name = f"{kind} {counts[kind]}"
            config.pop("name", None)
        result[name] = config
    return result


def _config(layer) -> dict:
    try:
        return {key: repr(value) for key, value in layer.get_config().items()}
    except NotImplementedError:  # an operation of keras.ops without one
        return {"class": type(layer).__name__}


def _brief(config) -> str:
    return "no such layer" if config is None else repr(config)


def _check_weights(plain, dropped, rebased: bool) -> Iterator[_Check]:
    ours, theirs = _by_path(dropped), _by_path(plain)
    norms = {layer.name for layer in plain._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)}
    free = {path for path in theirs if rebased and norms & set(path.split("/"))}
    for path in [*theirs, *ours]:
        if path not in ours or path not in theirs:
            place = "the first model" if path in theirs else "the second model"
            yield _Check(False, "weights have the same paths", path, f"only in {place}", "in both")
    for path, expected in theirs.items():
        weight = ours[path]
        if weight.shape != expected.shape:
            yield _Check(False, "weights have the same shapes", path, weight.shape, expected.shape)
        values = (keras.ops.convert_to_numpy(one) for one in (weight, expected))
        if path not in free and not np.array_equal(*values):
            yield _Check(False, "weights have the same values", path, "other values", "equal values")
    order = "" if list(ours) == list(theirs) else ", in another order: weight files do not load between the two"
    equal = f"equal, but for the values of {len(free)} of BatchNorm's" if free else "equal"
    yield _Check(True, "weights are the same", f"{len(ours)} weights", f"{equal}{order}", "equal path, shape, value")


def _by_path(model) -> dict:
    """Weights by path; unnamed ones, which Keras numbers by a global counter, and equal paths by their order."""
    counts: dict[str, int] = {}
    result = {}
    for weight in model.weights:
        path = re.sub(r"/variable(_\d+)?$", "/variable", weight.path)
        counts[path] = counts.get(path, 0) + 1
        result[path if counts[path] == 1 else f"{path} ({counts[path]})"] = weight
    return result


def _check_layer(call: Call, draws: int) -> Iterator[_Check]:
    layer, rate, (kind, shared) = call.layer, rate_of(call.layer), kind_of(call.layer)
    if kind == "other":
        return
    if kind not in DROPOUT_KINDS:
        found, expected = ("changed" if flag else "as it was" for flag in (_acts(call, draws), rate > 0))
        yield _Check(found == expected, f"the input in training ({kind})", call.path, found, expected)
        return
    mask = draw_masks(layer, len(call.shapes[0]), draws)
    scale = 1 / (1 - rate)
    tolerance = 2e-2 if layer.compute_dtype != "float32" else 1e-5
    kept = mask != 0
    wrong = np.abs(mask[kept] / scale - 1) > tolerance
    label = f"{kind}, shared" if shared else kind
    values = sorted(float(f"{v:.4g}") for v in np.unique(mask))
    yield _Check(
        not wrong.any(), f"kept values are rescaled ({label})", call.path, f"values {values[:4]}", f"0 and {scale:.4g}"
    )
    share, error = mean_and_error(kept)
    # Keras's layers draw in the compute dtype: bfloat16 has 128 steps below 1.
    rounding = 1 / 128 if layer.compute_dtype == "bfloat16" else 1e-12
    yield _Check(
        abs(share - (1 - rate)) <= STANDARD_ERRORS * error + rounding,
        f"share kept ({label})",
        call.path,
        f"{share:.5f} +- {error:.5f}",
        f"{1 - rate:.5f}",
    )
    mean, error = mean_and_error(mask)
    # In half precision the scale itself is rounded, too.
    yield _Check(
        abs(mean - 1) <= STANDARD_ERRORS * error + (1e-12 if tolerance < 1e-3 else scale * tolerance),
        f"mean output equals the input ({label})",
        call.path,
        f"{mean:.5f} +- {error:.5f}",
        "1",
    )


def _acts(call: Call, draws: int) -> bool:
    """Whether a dropout layer changes an input of ones in training mode, once in `draws` times."""
    ones = np.ones([2, *(KEPT_SIDE if side is None else side for side in call.shapes[0][1:])], "float32")
    return any((_flat(call.layer(ones, training=True))[0] != 1).any() for _ in range(draws))


def draw_masks(layer, rank: int, draws: int, channels: int = 8) -> np.ndarray:
    """What a dropout layer makes of ones in training mode, `draws` times: float64 (draws, ...)."""
    side = max(KEPT_SIDE, layer.block_size) if isinstance(layer, DropBlock2D) else KEPT_SIDE
    shape = (*[side] * (rank - 2), channels)
    if keras.config.image_data_format() == "channels_first" and rank > 2:
        shape = (channels, *[side] * (rank - 2))
    if kind_of(layer)[1]:  # the batch shares a mask: each draw is a call
        parts = [layer(np.ones((1, *shape), "float32"), training=True) for _ in range(draws)]
    else:
        parts = [layer(np.ones((draws, *shape), "float32"), training=True)]
    return np.concatenate([keras.ops.convert_to_numpy(keras.ops.cast(p, "float32")) for p in parts]).astype(float)


def mean_and_error(masks: np.ndarray) -> tuple[float, float]:
    """Mean over the draws and its standard error, from the spread of the draws' means."""
    per_draw = masks.reshape(len(masks), -1).mean(axis=1)
    return float(per_draw.mean()), float(per_draw.std(ddof=1) / np.sqrt(len(per_draw)))


def _added(plain: list[Call], dropped: list[Call]) -> list[Call]:
    there = {call.path for call in plain}
    return list({call.path: call for call in dropped if is_dropout(call.layer) and call.path not in there}.values())


def _noise(model, seed: int) -> list[np.ndarray] | np.ndarray:
    rng = np.random.default_rng(seed)
    batches = []
    for tensor in model.inputs:
        if not keras.backend.is_float_dtype(tensor.dtype):
            raise InputError(f"`images` must be given: the model's input is {tensor.dtype}, not a float image.")
        shape = (2, *(64 if side is None else side for side in tensor.shape[1:]))
        batches.append(rng.uniform(0, 255, shape).astype(tensor.dtype))
    return keras.tree.pack_sequence_as(model.input, batches)


def _flat(outputs) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")) for tensor in keras.tree.flatten(outputs)]


def _statistics(model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(weight) for weight in model.non_trainable_weights if "moving_" in weight.path]


def _equal(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _trains_batchnorm(layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization) and layer.trainable


@contextlib.contextmanager
def _states_kept(*models):
    """Put back what calls change: moving statistics and random state."""
    variables = [variable for model in models for variable in model.non_trainable_variables]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
