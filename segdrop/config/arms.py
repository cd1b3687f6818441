"""The arms of a sweep: configurations that are compared, from a grid or a search space, rate 0 among them."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..typed import without_repeats
from .fields import CROSS_ENTROPIES, SCALABLE
from .sweep import SweepConfig
from .train import PLANNED, TrainConfig

RATES, KINDS = (0.1, 0.2, 0.3, 0.5), ("spatial",)  # compared where nothing else is said
DROPOUT_FIELDS = (
    "encoder_dropout",
    "spatial",
    "dropout_kind",
    "dropout_block_size",
    "dropout_shared",
    "dropout_layer",
    "dropout_blocks",
    "dropout_placement",
    "dropout_schedule",
    "dropout_schedule_epochs",
    "skips",
)
# What an arm is known for besides dropout, in words.
_WORDS = {
    "ema": "weight averaging",
    "augment_strength": "augmentation x",
    "label_smoothing": "label smoothing",
    "weight_decay": "weight decay",
    "copy_paste": "copy-paste",
    "mixup": "mixup",
    "cutmix": "cutmix",
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
# What all arms must have in common: the data and their scores, and what a sweep sets itself.
_FIXED = {
    "seed": "give `seeds`",
    **dict.fromkeys(("minutes", "steps"), "the plan, which all arms have in common, reads it; give `epochs`"),
    **dict.fromkeys(
        (
            *("data", "images", "masks", "annotator", "run_dir", "resume", "from_sweep", "cache_mb", "gpus"),
            "augment_workers",
        ),
        "it is no part of an arm",
    ),
    **dict.fromkeys(
        (
            *("classes", "multilabel", "ignore_value", "spacing", "slice_axis", "channels", "context_slices"),
            *("stratify", "val_fraction"),
        ),
        "arms must be scored on the same images",
    ),
}


def arms_of(sweep: SweepConfig) -> list[dict]:
    """The arms of a grid: for each the fields that differ from training without dropout, in the grid's order.

    The first is {}: no dropout. Each combination of other fields has an arm without dropout too, its reference. Equal
    arms, as all kinds of dropout are at rate 0, are one. For a search, the first arm only.

    Raises:
        InputError: a field is unknown or not one to vary, or a value is impossible.

    Example:
        >>> config = segdrop.SweepConfig(grid={"encoder_dropout": [0.1, 0.2], "lr": [0.01]})
        >>> [name_of(arm) for arm in arms_of(config)]
        ['none', 'none, lr=0.01', 'element 0.1, lr=0.01', 'element 0.2, lr=0.01']
    """
    base = without_dropout(sweep.train)
    arms: list[dict] = [{}]
    for point in (
        [] if sweep.search else [point for subgrid in subgrids_of(sweep.grid) or [{}] for point in _product(subgrid)]
    ):
        for config in (without_dropout(arm_config(sweep.train, point)), arm_config(sweep.train, point)):
            changes = changes_of(config, base)
            if changes not in arms:
                arms.append(changes)
    if len(arms) == 1 and not sweep.search:
        raise InputError("`grid` has nothing to compare with rate 0; give rates above 0 or other fields.")
    names = list(map(name_of, arms))
    for name in (name for name in names if names.count(name) > 1):
        raise InputError(
            f"`grid` has two arms that are called {name!r}; take values that differ in their first digits."
        )
    return arms


def default_grid(train: TrainConfig, given: Mapping[str, Sequence]) -> dict[str, Sequence]:
    """`given`, values of fields of dropout, with the default rates and kinds unless it or `train` says which.

    Example:
        >>> default_grid(segdrop.TrainConfig(), {"encoder_dropout": [0.1, 0.3]})
        {'dropout_kind': ['spatial'], 'encoder_dropout': [0.1, 0.3]}
    """
    if any_dropout(train):
        return dict(given)
    rates = {} if "encoder_dropout" in given else {"encoder_dropout": list(RATES)}
    said = train.spatial or train.dropout_kind or train.dropout_layer or "dropout_kind" in given
    kinds = {} if said else {"dropout_kind": list(KINDS)}
    return {**rates, **kinds, **given}


def alternatives(train: TrainConfig) -> list[dict[str, list]]:
    """Grids of what else is done against overfitting: each an arm without dropout that differs in one thing.

    Weights that are averaged, stronger augmentation, smoothed labels, ten times the weight decay, objects pasted from
    other images, and rectangles of them; each unless `train` says something of it itself, or cannot have it.

    Example:
        >>> [grid] = [grid for grid in alternatives(segdrop.TrainConfig()) if "ema" in grid]
        >>> grid, len(alternatives(segdrop.TrainConfig())), len(alternatives(segdrop.TrainConfig(ema=0.9)))
        ({'encoder_dropout': [0.0], 'ema': [0.99]}, 6, 5)
    """
    possible = {
        "ema": (0.99, train.gpus == "one"),
        "augment_strength": (2.0, train.augment in (*SCALABLE, "auto")),
        "label_smoothing": (0.1, train.loss in CROSS_ENTROPIES),
        "weight_decay": (10 * _DEFAULTS["weight_decay"], True),
        "copy_paste": (0.5, train.batch_size != 1),
        "cutmix": (1.0, train.batch_size != 1 and train.mixup is None),
    }
    return [
        {"encoder_dropout": [0.0], name: [value]}
        for name, (value, can_be) in possible.items()
        if can_be and getattr(train, name) == _DEFAULTS[name]
    ]


def read_grid(text: str | None):
    """A grid from JSON, or from a file of it.

    Raises:
        FileNotFoundError, InputError: there is no such file, or it is not JSON.

    Example:
        >>> read_grid('{"encoder_dropout": [0.1, 0.3]}')
        {'encoder_dropout': [0.1, 0.3]}
    """
    if text is None:
        return None
    try:
        if text.lstrip()[:1] not in ("{", "["):
            text = Path(text).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=without_repeats)
    except ValueError as error:
        raise InputError(f"`grid` is not JSON: {error}.") from error
    except FileNotFoundError:
        raise FileNotFoundError(f"`grid` is neither JSON nor a file: {text}.") from None


def subgrids_of(grid) -> list[Mapping]:
    """A grid as a list of mappings from fields to their values.

    Raises:
        InputError: it has another form, or a field is unknown or not one to vary.

    Example:
        >>> subgrids_of({"encoder_dropout": [0.1, 0.3]})
        [{'encoder_dropout': [0.1, 0.3]}]
    """
    grid = [] if grid is None else [grid] if isinstance(grid, Mapping) else grid
    if not isinstance(grid, Sequence) or not all(isinstance(subgrid, Mapping) for subgrid in grid):
        raise InputError(f"`grid` must map fields to lists of values, or be a list of such mappings, got {grid!r}.")
    for subgrid in grid:
        for name, values in subgrid.items():
            if name not in _DEFAULTS:
                raise InputError(f"`grid` has an unknown field: {name!r}; the fields are those of `segdrop train`.")
            if name in _FIXED:
                raise InputError(f"`grid` cannot vary {name!r}: {_FIXED[name]}.")
            if not isinstance(values, Mapping) and name in PLANNED and "auto" in values:
                raise InputError(f"`grid` has auto for {name!r}, which is chosen once for all arms; give values.")
            if not isinstance(values, (list, tuple, Mapping)) or not values:
                raise InputError(f"`grid` needs a list of values for {name!r}, got {values!r}.")
    return list(grid)


def _product(subgrid: Mapping) -> list[dict]:
    ranges = [name for name, values in subgrid.items() if isinstance(values, Mapping)]
    if ranges:
        raise InputError(f"`grid` has a range for {ranges[0]!r}, which only a search can take; list the values.")
    return [dict(zip(subgrid, values, strict=True)) for values in itertools.product(*subgrid.values())]


def arm_config(train: TrainConfig, point: Mapping) -> TrainConfig:
    """`train` with the fields of `point`, in the one way of writing it that equal arms share.

    Raises:
        InputError: a value is impossible, alone or with the others.

    Example:
        >>> config = arm_config(segdrop.TrainConfig(spatial=True), {"encoder_dropout": 0.2})
        >>> config.encoder_dropout, config.spatial, config.dropout_kind
        (0.2, False, 'spatial')
    """
    if point.get("encoder_dropout") == 0:  # whatever else is said of dropout
        train, point = without_dropout(train), {**reference_of(point), "encoder_dropout": 0.0}
    try:
        config = dataclasses.replace(train, **point)
    except (InputError, TypeError) as error:
        told = ", ".join(f"{name}={value!r}" for name, value in point.items())
        raise InputError(f"`grid` has an impossible arm ({told}): {error}") from error
    if not any_dropout(config):
        return without_dropout(config)
    rates = config.encoder_dropout
    level = isinstance(rates, tuple) and rates[0] == rates[1]  # a ramp that does not rise is one rate
    return dataclasses.replace(
        config, spatial=False, dropout_kind=config.kind, encoder_dropout=rates[0] if level else rates
    )


def config_of(train: TrainConfig, changes: Mapping) -> TrainConfig:
    """The configuration of an arm, given by its changes from `train` without dropout.

    Example:
        >>> config = config_of(segdrop.TrainConfig(encoder_dropout=0.5, epochs=10), {"lr": 0.01})
        >>> config.encoder_dropout, config.epochs, config.lr
        (0.0, 10, 0.01)
    """
    return arm_config(without_dropout(train), changes)


def any_dropout(config: TrainConfig) -> bool:
    """Whether a rate is above 0.

    Example:
        >>> any_dropout(segdrop.TrainConfig(encoder_dropout=(0.0, 0.2))), any_dropout(segdrop.TrainConfig(spatial=True))
        (True, False)
    """
    return any(config.rates)


def without_dropout(config: TrainConfig) -> TrainConfig:
    """`config` with every field of dropout as it is by default.

    Example:
        >>> config = without_dropout(segdrop.TrainConfig(encoder_dropout=0.2, spatial=True, lr=0.01))
        >>> config == segdrop.TrainConfig(lr=0.01)
        True
    """
    return dataclasses.replace(config, **{name: _DEFAULTS[name] for name in DROPOUT_FIELDS})


def changes_of(config: TrainConfig, base: TrainConfig) -> dict:
    """The fields in which `config` differs from `base`, as JSON gives them back.

    Example:
        >>> changes_of(segdrop.TrainConfig(encoder_dropout=(0.1, 0.2), epochs=10), segdrop.TrainConfig(epochs=10))
        {'encoder_dropout': [0.1, 0.2]}
    """
    theirs, ours = base.to_json(), config.to_json()
    return json.loads(json.dumps({name: value for name, value in ours.items() if value != theirs[name]}))


def key_of(changes: Mapping) -> str:
    """One text for equal changes.

    Example:
        >>> key_of({"lr": 0.01, "epochs": 10}) == key_of({"epochs": 10, "lr": 0.01})
        True
    """
    return json.dumps(changes, sort_keys=True)


def reference_of(changes: Mapping) -> dict:
    """The arm without dropout that an arm is compared with.

    Example:
        >>> reference_of({"encoder_dropout": 0.2, "dropout_kind": "spatial", "lr": 0.01})
        {'lr': 0.01}
    """
    return {name: value for name, value in changes.items() if name not in DROPOUT_FIELDS}


def curve_of(changes: Mapping) -> str:
    """An arm's name without its rate: arms that differ in the rate alone share it.

    Example:
        >>> curve_of({"encoder_dropout": 0.2, "dropout_kind": "element", "dropout_placement": "block_end", "lr": 0.01})
        'element at block_end, lr=0.01'
    """
    words = []
    if "encoder_dropout" in changes:
        words.append(_what(changes))
        if "dropout_block_size" in changes:
            words.append(f"of {changes['dropout_block_size']}")
        if "dropout_placement" in changes:
            words.append(f"at {changes['dropout_placement']}")
        if "dropout_blocks" in changes:
            words.append(f"in {'+'.join(changes['dropout_blocks'])}")
        if "dropout_schedule" in changes:
            words.append(changes["dropout_schedule"])
        if "dropout_schedule_epochs" in changes:
            words.append(f"over {changes['dropout_schedule_epochs']} epochs")
        if "dropout_shared" in changes:
            words.append("shared")
        if "skips" in changes:
            words.append(f"skips {changes['skips']}")
    others = reference_of(changes)
    told = [_in_words(name, value) for name, value in others.items() if name in _WORDS]
    told += [f"{name}={value}" for name, value in others.items() if name not in _WORDS]
    return ", ".join([*([" ".join(words)] if words else []), *told])


def name_of(changes: Mapping) -> str:
    """An arm in words: "none", "spatial 0.2", "element 0.2 at block_end, lr=0.0003", "weight averaging 0.99".

    Without dropout it is "none", unless it is known for another thing.

    Example:
        >>> name_of({"encoder_dropout": 0.2, "dropout_kind": "spatial", "lr": 0.01}), name_of({})
        ('spatial 0.2, lr=0.01', 'none')
        >>> name_of({"lr": 0.01}), name_of({"lr": 0.01, "ema": 0.99}), name_of({"augment_strength": 2.0})
        ('none, lr=0.01', 'weight averaging 0.99, lr=0.01', 'augmentation x2')
    """
    if "encoder_dropout" not in changes:
        return ", ".join([*([] if changes.keys() & _WORDS.keys() else ["none"]), *filter(None, [curve_of(changes)])])
    what = _what(changes)
    return f"{what} {rate_text(changes['encoder_dropout'])}{curve_of(changes).removeprefix(what)}"


def _in_words(name: str, value) -> str:
    """A field of `_WORDS` with its value."""
    words = _WORDS[name]
    return f"no {words}" if value is None else f"{words}{'' if words.endswith(' x') else ' '}{value:.4g}"


def _what(changes: Mapping) -> str:
    """What drops in an arm with dropout: a kind, or a layer of the user's own."""
    return changes.get("dropout_layer") or changes["dropout_kind"]


def rate_text(rate) -> str:
    """A rate as it is written on the command line, with four digits at most.

    Example:
        >>> rate_text(0.25), rate_text((0.05, 0.3)), rate_text({"stage3": 0.1, "stage4": 0.2})
        ('0.25', '0.05..0.3', 'stage3=0.1,stage4=0.2')
    """
    if isinstance(rate, Mapping):
        return ",".join(f"{block}={value:.4g}" for block, value in rate.items())
    return "..".join(f"{value:.4g}" for value in (rate if isinstance(rate, (list, tuple)) else [rate]))
