"""Which dropout a model has, and what it affects: as a table and as a picture."""

from collections.abc import Iterable

import keras

from ..anatomy import is_decoder
from ..layers import count_units, is_dropout, kind_of, rate_of
from ..show.tables import Table
from ..surgery.graph import Call, downstream, maker, trace, upstream
from .sites import placement_of

COLUMNS = "layer after place part kind shared rate shape units dropped changes changes_decoder skips trains".split()


def dropout_table(model: keras.Model, image_size: tuple[int, int] | None = None) -> Table:
    """List the dropout layers of `model` with what each affects, in the model's order.

    A row has:
        layer: path of the dropout layer; `after`: of the layer whose output it drops.
        place: its placement as `build_unet` calls it; elsewhere "after" and the class of the layer before it.
        part: "encoder" or "decoder" where the model has a decoder, else "".
        kind: "element", "spatial", "block", "path", or another layer's; `shared`: one mask for the whole batch.
        rate: the rate of now, in [0, 1).
        shape: shape of the tensor without the batch's axis; None where it depends on the image.
        units: what is dropped or kept as one in a sample: values, maps, or 1 for a whole branch; of "block" values.
        dropped: units dropped per sample in the mean: units x rate; None where the shape is unknown.
        changes: paths of the layers whose outputs it changes, all that depend on its own.
        changes_decoder: how many of them are in the decoder.
        skips: paths of the encoder's layers through whose skips its effect reaches the decoder.
        trains: whether the weights before it train: "all", "some", "none" (frozen), or "-" where there are none.

    Args:
        image_size: height and width of the images, where the model's inputs leave them open.

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, spatial=True)
        >>> table = segdrop.dropout_table(model, image_size=(128, 128))
        >>> table[0]["after"], table[0]["shape"], table[0]["dropped"]  # 0.2 x 256 maps
        ('stage3_unit1_relu2', (8, 8, 256), 51.2)
    """
    calls = trace(model, image_size)
    decoder = decoder_paths(calls)
    rows = []
    for call in calls:
        if not is_dropout(call.layer):
            continue
        changed = downstream(calls, call.outputs)
        kind, shared = kind_of(call.layer)
        shape = call.shapes[0][1:]
        units = count_units(call.layer, call.shapes[0])
        rate = rate_of(call.layer)
        before = [weight for source in upstream(calls, call.outputs) for weight in getattr(source.layer, "weights", ())]
        after = maker(calls, call.inputs[0])
        rows.append(
            {
                "layer": call.path,
                "after": after.path if after else "the input",
                "place": placement_of(calls, call, after, decoder),
                "part": "" if not decoder else "decoder" if call.path in decoder else "encoder",
                "kind": kind,
                "shared": shared,
                "rate": rate,
                "shape": shape,
                "units": units,
                "dropped": None if units is None else float(f"{units * rate:.6g}"),
                "changes": _unique(dependent.path for dependent in changed),
                "changes_decoder": len(_unique(dependent.path for dependent in changed if dependent.path in decoder)),
                "skips": _skips_reached(calls, call, changed, decoder),
                "trains": _trains(before),
            }
        )
    return _DropoutTable(rows, keys=COLUMNS)


class _DropoutTable(Table):
    """Shows what fits into 80 columns of a terminal; files have everything."""

    def rich(self):
        places = sorted({row["place"] for row in self})
        title = (
            f"Dropout, {', '.join(places)}; changes: layers whose outputs it changes (those in the decoder); "
            "skips: how many carry it to the decoder; trains: the weights before it"
        )
        rows = [
            {
                "after": row["after"],
                **({"place": row["place"]} if len(places) > 1 else {}),
                "kind": f"{row['kind']}, shared" if row["shared"] else row["kind"],
                "rate": f"{row['rate']:.3g}",
                "shape": "x".join("?" if side is None else str(side) for side in row["shape"]),
                "dropped": "?" if row["dropped"] is None else f"{row['dropped']:.4g} of {row['units']}",
                "changes": f"{len(row['changes'])}" + (f" ({row['changes_decoder']})" if row["part"] else ""),
                "skips": len(row["skips"]),
                "trains": row["trains"],
            }
            for row in self
        ]
        return Table(rows, title).rich()

    def __str__(self) -> str:
        return super().__str__() if self else "No dropout layer."


def decoder_paths(calls: list[Call]) -> set[str]:
    """Paths of the decoder's layers: those named so, and all that depend on them."""
    named = [call for call in calls if is_decoder(call.path)]
    outputs = [tensor for call in named for tensor in call.outputs]
    return {call.path for call in [*named, *downstream(calls, outputs)]}


def _skips_reached(calls, call: Call, changed: list[Call], decoder) -> list[str]:
    """Encoder's layers whose tensor the decoder joins to its own, and that depend on this dropout."""
    affected = {tensor for dependent in changed for tensor in dependent.outputs} | set(call.outputs)
    inside = {tensor for layer_call in calls if layer_call.path in decoder for tensor in layer_call.outputs}
    joined = [
        tensor
        for layer_call in calls
        if layer_call.path in decoder and inside & set(layer_call.inputs)
        for tensor in layer_call.inputs
        if tensor in affected - inside
    ]
    makers = [maker(calls, tensor) for tensor in joined]
    makers = [maker(calls, m.inputs[0]) if m and is_dropout(m.layer) and m.inputs else m for m in makers]
    return _unique(producer.path for producer in makers if producer)


def _trains(weights) -> str:
    # Moving statistics never train.
    weights = [weight for weight in weights if "moving_" not in weight.path.split("/")[-1]]
    trainable = [weight.trainable for weight in weights]
    return "-" if not trainable else "all" if all(trainable) else "some" if any(trainable) else "none"


def _unique(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(paths))
