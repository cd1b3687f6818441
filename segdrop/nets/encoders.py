"""Encoders other than the ResNets: the library's others, those of keras.applications, the user's own models."""

import contextlib
import functools
import importlib
import inspect
import io
import warnings
from collections.abc import Callable, Sequence

import keras
import numpy as np

from ..errors import InputError, first_line
from ..surgery.rebuild import copy_layer
from ..surgery.selection import nearest_names
from .channels import BGR, fit_channels
from .library import Backbones, build_backbone, sm
from .plain import with_plain_layers
from .skips import check_skips, find_skips

KERAS = "keras:"
# Names of segmentation_models' for what keras.applications builds, too, and keeps.
IN_KERAS = {
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
    "mobilenet": "MobileNet",
    "mobilenetv2": "MobileNetV2",
    **{f"efficientnetb{n}": f"EfficientNetB{n}" for n in range(8)},
}


def make_encoder(
    encoder: str | keras.Model,
    input_shape: tuple[int | None, int | None, int],
    pretrained: bool,
    skips_from: Sequence[str] | None = None,
) -> tuple[keras.Model, tuple[str, ...]]:
    """An encoder that maps images, 0..255, to maps of 1/32 of their size, and the layers of its skips, the coarsest
    first.

    Args:
        encoder: `"keras:EfficientNetV2B0"` and so on, a name of segmentation_models', or a functional model, of which a
            copy is made, with its weights.
        input_shape: of the images; height and width may be None. With other than three channels, channel i takes the
            kernel of i mod 3, scaled by 3 / channels.
        pretrained: with the published ImageNet weights, for names.
        skips_from: layers of a user's choice at 1/16, 1/8, 1/4 and 1/2 of the image; by default `find_skips`.

    Raises:
        InputError: there is no such network, it has no five scales, its weights cannot be had, or `skips_from` does not
            fit.

    Example:
        >>> from segdrop.nets.encoders import make_encoder
        >>> model, skips = make_encoder("vgg16", (64, 64, 3), pretrained=False)
        >>> model.output_shape, skips
        ((None, 2, 2, 512), ('block5_conv3', 'block4_conv3', 'block3_conv3', 'block2_conv2'))
    """
    if isinstance(encoder, str):
        source, preprocess = with_plain_layers(build_source(encoder, pretrained)), _preprocessing_of(encoder)
        scale, offset, bgr = _affine(preprocess)
    else:
        source, scale, offset, bgr = encoder, np.ones(3), np.zeros(3), False
    skips = find_skips(source) if skips_from is None else check_skips(source, skips_from)
    channels = input_shape[2]

    def preprocessed(image):
        x = image
        if bgr and channels == 3:
            x = keras.ops.flip(x, axis=-1)
            x._keras_history.operation.name = BGR
        if (scale == 1).all() and not offset.any():
            return x
        values = (fit_channels(v, channels, bgr=bgr).tolist() for v in (scale, offset))
        return keras.layers.Rescaling(*values, name="preprocessing")(x)

    return _on_images(source, input_shape, preprocessed, bgr), skips


def build_source(encoder: str, pretrained: bool) -> keras.Model:
    """The network as its library builds it, for three channels and images of any size.

    Raises:
        InputError: there is no such network, or its published weights cannot be had.
    """
    weights = "imagenet" if pretrained else None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # downloads print their progress
        warnings.simplefilter("ignore")  # MobileNet: weights of 224 x 224 are taken for other sizes
        try:
            name = _name_in_keras(encoder)
            if name is not None:
                return _in_keras(name)(include_top=False, weights=weights, input_shape=(None, None, 3))
            return build_backbone(encoder, (None, None, 3), weights)
        except InputError:
            raise
        except Exception as error:  # a download's bare Exception, a network's own demands
            what = "The ImageNet weights of " if pretrained else ""
            advice = "; use encoder_weights=None (--encoder-weights none) for random ones" if pretrained else ""
            raise InputError(f"{what}{encoder} cannot be had: {first_line(error)}{advice}.") from error


@functools.cache
def check_published(encoder: str) -> None:
    """Raise InputError unless the published weights of a network can be had; they are downloaded for it."""
    build_source(encoder, pretrained=True)


def _name_in_keras(encoder: str) -> str | None:
    return encoder.removeprefix(KERAS) if encoder.startswith(KERAS) else IN_KERAS.get(encoder)


def _in_keras(name: str) -> Callable[..., keras.Model]:
    """The function of keras.applications that builds a network."""
    names = [n for n, value in vars(keras.applications).items() if inspect.isfunction(value)]
    if name not in names:
        raise InputError(
            f"`encoder` names no network of keras.applications: {name!r}; nearest: {nearest_names(name, names)}."
        )
    return getattr(keras.applications, name)


def _preprocessing_of(encoder: str) -> Callable:
    name = _name_in_keras(encoder)
    if name is not None:
        return importlib.import_module(_in_keras(name).__module__).preprocess_input
    return sm.inject_global_submodules(Backbones.get_preprocessing(encoder))


def _affine(preprocess: Callable) -> tuple[np.ndarray, np.ndarray, bool]:
    """What a function of pre-processing does to RGB: scale and offset of each channel that comes out, and whether the
    colours come out as BGR. It is asked, because the libraries have a table of modes that they do not show."""
    black = np.asarray(preprocess(np.zeros((1, 1, 1, 3), "float32"))).reshape(3).astype("float64")
    colours = np.stack(
        [np.asarray(preprocess((255 * np.eye(3, dtype="float32")[i]).reshape(1, 1, 1, 3))).reshape(3) for i in range(3)]
    )
    change = (colours - black) / 255
    return change.sum(axis=0), black, bool(change[0, 2])


def _on_images(model: keras.Model, shape, preprocessed: Callable, bgr: bool) -> keras.Model:
    """A copy of a model on images of another size or with other channels, pre-processed first."""
    image = keras.Input(shape, name="data")
    x, channels, given = preprocessed(image), shape[2], model.inputs[0].shape[-1]

    def call(layer, *args, **kwargs):
        args, kwargs = keras.tree.map_structure(lambda tensor: x if tensor is image else tensor, (args, kwargs))
        return layer(*args, **kwargs)

    def convert(layer):
        if not isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            return copy_layer(layer)
        lists = {name: value for name, value in layer.get_config().items() if isinstance(value, (list, tuple))}
        return copy_layer(
            layer, **{n: fit_channels(np.asarray(v), channels, given, bgr).tolist() for n, v in lists.items()}
        )

    copy = keras.models.clone_model(model, input_tensors=image, clone_function=convert, call_function=call)
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        twin = copy.get_layer(layer.name)
        pairs = zip(layer.get_weights(), twin.weights, strict=True)
        twin.set_weights([v if v.shape == tuple(w.shape) else fit_channels(v, channels, given, bgr) for v, w in pairs])
        if hasattr(twin, "finalize_state"):  # Normalization computes with what it derives from its weights
            twin.finalize_state()
    return copy
