"""Reading the graph of a functional Keras model: its layers, their calls, and what depends on what."""

import dataclasses
import numbers
from collections.abc import Iterable

import keras

from ..errors import InputError


def functional_view(model) -> keras.Model:
    """An uncompiled functional model over the layers of `model`: one form for Sequential and functional models.

    Raises:
        TypeError: `model` is neither, or a class of its own whose `call` does more than its graph.
    """
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if isinstance(model, keras.Model) and _calls_its_graph(model):
        try:
            if isinstance(model, keras.Sequential):
                outputs = model.outputs[0] if len(model.outputs) == 1 else model.outputs
                return with_flag_of(model, keras.Model(model.inputs[0], outputs, name=model.name))
            return with_flag_of(model, keras.Model(model.input, model.output, name=model.name))
        except (AttributeError, ValueError, TypeError):
            pass
    elif kind.startswith(("tf_keras.", "keras.engine.", "keras.src.engine.")):
        kind += ", of legacy Keras 2"
    raise TypeError(f"`model` must be a functional or built Sequential Keras 3 model, got {kind}.")


def with_flag_of(model, copy):
    """Give `copy` the model's own `trainable` flag; the property would set the flags of all its layers."""
    copy._trainable = model.trainable
    return copy


def is_input(layer) -> bool:
    return isinstance(layer, keras.layers.InputLayer)


def is_model(layer) -> bool:
    """Whether a layer is a model that can be entered."""
    known = isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and hasattr(layer, "operations"))
    return known and _calls_its_graph(layer)


def _calls_its_graph(model) -> bool:
    """Whether a model does what its graph says: a subclass may have a `call` of its own."""
    return type(model).call.__module__.startswith("keras.")


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer or operation of a model with the symbolic tensors that each of its calls in the model gives."""

    layer: keras.layers.Layer
    outputs: list[list[keras.KerasTensor]]


def layers_by_path(view: keras.Model, nested: bool = False) -> dict[str, Part]:
    """The layers and operations of a model by path, in its order; those within nested models as `model/layer`."""
    by_name = {layer.name: Part(layer, []) for layer in view.operations}
    for tensor in view.inputs:
        by_name[tensor._keras_history.operation.name].outputs.append([tensor])
    for node in call_nodes(view):
        by_name[node.operation.name].outputs.append(list(node.output_tensors))
    result = {}
    for name, part in by_name.items():
        result[name] = part
        if nested and is_model(part.layer):
            inner = layers_by_path(functional_view(part.layer), nested=True)
            result |= {f"{name}/{path}": child for path, child in inner.items() if not is_input(child.layer)}
    return result


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer in a model's graph; tensors are numbers that are unique in one `trace`."""

    path: str
    layer: keras.layers.Layer
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple, ...]
    """Shapes of the outputs, the batch's axis first; None where unknown."""


def trace(model: keras.Model, image_size: tuple[int, int] | None = None) -> list[Call]:
    """The calls of a model's layers, those within nested models too, each after what it needs.

    Args:
        image_size: height and width for inputs of dynamic size, from which all shapes are then worked out.

    Raises:
        InputError: `image_size` is not two whole numbers of at least 1.
    """
    if image_size is not None:
        _check_image_size(image_size)
    view = functional_view(model)
    shapes = [tuple(tensor.shape) for tensor in view.inputs]
    if image_size is not None:
        # Height and width are the unknown axes after the batch's.
        shapes = [
            (1, *(next(sides) if side is None else side for side in shape[1:]))
            for shape in shapes
            for sides in [iter([*image_size, *[1] * len(shape)])]
        ]
    calls: list[Call] = []
    _trace(view, list(range(len(shapes))), shapes, image_size is not None, "", calls, iter(range(len(shapes), 10**9)))
    return calls


def call_nodes(view: keras.Model) -> list:
    """Keras's records of the calls in a functional model, each after what it needs; nested models count as a layer."""
    # Keras has no public view of them; `layer.input` knows the first call of a layer only, in whichever model.
    nodes = [node for depth in sorted(view._nodes_by_depth, reverse=True) for node in view._nodes_by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def _trace(view, inputs, input_shapes, work_out, home, calls, fresh) -> list[int]:
    nodes = call_nodes(view)
    tensors = [tensor for node in nodes for tensor in node.output_tensors]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if work_out:
        given = input_shapes if len(input_shapes) > 1 else input_shapes[0]
        shapes = [tuple(shape) for shape in keras.Model(view.inputs, tensors).compute_output_shape(given)]
    shape_of = dict(zip(map(id, [*view.inputs, *tensors]), [*input_shapes, *shapes], strict=True))
    known = dict(zip(map(id, view.inputs), inputs, strict=True))
    for node in nodes:
        layer, received = node.operation, [known[id(tensor)] for tensor in node.input_tensors]
        if is_model(layer):
            inner = [shape_of[id(tensor)] for tensor in node.input_tensors]
            made = _trace(functional_view(layer), received, inner, work_out, f"{home}{layer.name}/", calls, fresh)
        else:
            made = [next(fresh) for _ in node.output_tensors]
            given = tuple(shape_of[id(tensor)] for tensor in node.output_tensors)
            calls.append(Call(home + layer.name, layer, tuple(received), tuple(made), given))
        known.update(zip(map(id, node.output_tensors), made, strict=True))
    return [known[id(tensor)] for tensor in view.outputs]


def downstream(calls: list[Call], tensors: Iterable[int]) -> list[Call]:
    """The calls whose outputs depend on any of the tensors, in the order of `calls`."""
    changed, dependents = set(tensors), []
    for call in calls:
        if changed.intersection(call.inputs):
            changed.update(call.outputs)
            dependents.append(call)
    return dependents


def upstream(calls: list[Call], tensors: Iterable[int]) -> list[Call]:
    """The calls that the tensors depend on, those that give them included, in the order of `calls`."""
    needed, dependencies = set(tensors), []
    for call in reversed(calls):
        if needed.intersection(call.outputs):
            needed.update(call.inputs)
            dependencies.append(call)
    return dependencies[::-1]


def maker(calls: list[Call], tensor: int) -> Call | None:
    """The call that gives the tensor; None for an input."""
    return next((call for call in calls if tensor in call.outputs), None)


def consumers(calls: list[Call], call: Call) -> list[Call]:
    """The calls that receive an output of `call`."""
    return [receiver for receiver in calls if set(call.outputs) & set(receiver.inputs)]


def _check_image_size(image_size) -> None:
    ok = isinstance(image_size, (tuple, list)) and len(image_size) == 2
    if not ok or any(isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1 for n in image_size):
        raise InputError(f"`image_size` must be (height, width), whole numbers of at least 1, got {image_size!r}.")
