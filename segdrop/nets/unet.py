"""The U-Net of segmentation_models with dropout in its encoder."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import keras

from ..anatomy import HEAD, is_decoder
from ..config.checks import check_rate, plain
from ..config.fields import ENCODER_RULE, LIBRARY_RESNETS, PLACEMENTS, SKIPS, resolve_kind
from ..errors import InputError
from ..surgery.custom import Maker, resolve_layer
from ..surgery.dropout import insert_dropout
from .encoders import make_encoder
from .hub import input_statistics
from .library import Backbones, build_backbone, sm
from .sites import bypass, placement_sites, set_encoder_trainable, unit_rates
from .torchvision import RESNETS, build_resnet, skips_of
from .weights import load_encoder, resolve_weights


def build_unet(
    encoder: str | keras.Model = "resnet34",
    *,
    input_shape: tuple[int | None, int | None, int] | None = None,
    classes: int = 1,
    activation: str | None = None,
    encoder_weights: str | os.PathLike | None = "imagenet",
    encoder_dropout: float | tuple[float, float] | Mapping[str, float] = 0.0,
    spatial: bool = False,
    kind: str | None = None,
    placement: str = "between_convs",
    blocks: str | Iterable[str] | None = None,
    skips: str | None = None,
    skips_from: Sequence[str] | None = None,
    block_size: int | None = None,
    shared_across_batch: bool = False,
    adjustable: bool = False,
    dropout_layer: Maker | None = None,
    seed: int | None = None,
    bn_momentum: float | None = None,
    encoder_freeze: bool = False,
    decoder_filters: tuple[int, ...] = (256, 128, 64, 32, 16),
    decoder_block_type: str = "upsampling",
    decoder_use_batchnorm: bool = True,
) -> keras.Model:
    """Build a U-Net whose pretrained encoder has dropout in it.

    The decoder and all weights are those of `segmentation_models.Unet`; dropout acts in training only,
    so inference equals the plain U-Net's exactly.

    The model maps `images: float32 (N, H, W, C), 0..255`, RGB, unscaled (it normalises them itself), H and W
    multiples of 32, to `probabilities: float32 (N, H, W, classes), 0..1` under every precision policy.

    Args:
        encoder: `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"` or `"resnet152"`, the library's own;
            `"torchvision_resnet18"` and so on, torchvision's, for weights trained with PyTorch; another of the
            library's (`"vgg16"`, `"seresnet50"`, `"efficientnetb0"`, ...); `"keras:EfficientNetV2B0"` and so on, of
            keras.applications; or a functional model from images, 0..255, to maps of 1/32 of their size. Of the model
            a copy is made, with its weights. Dropout that a network of a library has of its own is left out.
        input_shape: (height, width, channels); None for any height or width. By default any and 3, or the model's.
        classes: number of classes counting the background, except 1, which is binary.
        activation: None for sigmoid (one class) or softmax (more); any Keras activation; `"linear"` for logits.
        encoder_weights: `"imagenet"`; None for random initialisation; or a file whose encoder has the same layer names:
            a `.keras` model, its weights (`.weights.h5`), or a Keras 2 HDF5 weight file, as the ImageNet files are. For
            torchvision's encoders a file of PyTorch's (`.safetensors`, or `.pth` and `.pt` where torch is installed)
            or a repository of the Hugging Face Hub, `"timm/resnet34.a1_in1k"`. A model has its own.
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
            `"bottleneck"`: after the encoder's last activation; `"skips"`: on the decoder's side of the skips;
            `"layers"`: after the layers that `blocks` names. An encoder without units of that kind has no
            `"between_convs"`, and one without residual branches no ends of them.
        blocks: stages, units or globs (`"stage3"`, `"stage4_unit1"`, `"stage*_unit1"`). Default: stage3 and
            stage4 without the encoder's last unit. Of the skips: `"relu0"`, `"stage2"`, `"stage3"`, `"stage4"`,
            by default all; not for the bottleneck, which is one place. Of other encoders the names of layers, whole or
            up to an underscore (`"block5"`, `"block6*"`); by default those of the two deepest scales but the last.
        skips: `"clean"` (default): where a site's own output is a skip, the decoder receives it undropped;
            `"dropped"`: it receives the dropped one. `placement="skips"` is `"dropped"`.
        skips_from: of encoders other than ResNets, the four layers whose maps go to the decoder, at 1/16, 1/8, 1/4 and
            1/2 of the image; by default the last ones of each scale.
        block_size: side of the squares of `kind="block"` in pixels of the feature map, 3 by default.
        shared_across_batch: drop the same in all samples of a batch.
        adjustable: make the rates changeable during training (`segdrop.DropoutSchedule`).
        dropout_layer: a layer of your own instead of a `kind`, as in `segdrop.insert_dropout`.
        seed: seed of the dropout masks.
        bn_momentum: of the moving statistics of all BatchNorms, in [0, 1); by default the libraries' own, 0.99 in most.
            These start at 0 and 1 (decoder) and lag by 1 / (1 - momentum) steps: of a `fit` of less than some
            hundred steps they are not the data's yet, and validation is far off, whatever the loss says. 0.9 is what
            `segdrop.train` takes.
        encoder_freeze: freeze all encoder layers, BatchNorm included.
        decoder_filters, decoder_block_type, decoder_use_batchnorm: as in `segmentation_models.Unet`.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        InputError: an argument outside its range, an unknown name, unusable weights.

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, spatial=True)
        >>> [layer.name for layer in model.layers if isinstance(layer, keras.layers.SpatialDropout2D)]
        ['stage3_unit1_relu2_dropout', 'stage3_unit2_relu2_dropout', 'stage4_unit1_relu2_dropout']
        >>> np.asarray(model(np.zeros((1, 64, 96, 3), "float32"))).shape
        (1, 64, 96, 1)

    References:
        Zagoruyko and Komodakis 2016 (dropout between the convolutions); Tompson et al. 2015 (spatial dropout).
    """
    _check_options(encoder, classes, placement, skips, encoder_weights, skips_from)
    bn_momentum = None if bn_momentum is None else check_rate(bn_momentum, "bn_momentum")
    kind, encoder_dropout = resolve_kind(kind, spatial), plain(encoder_dropout)
    resolve_layer(
        dropout_layer, kind, block_size=block_size, shared_across_batch=shared_across_batch, adjustable=adjustable
    )
    if kind == "path" and placement != "branch_end":
        raise InputError(
            f"kind='path' drops whole residual branches and needs placement='branch_end', got placement={placement!r}."
        )
    if input_shape is None:
        input_shape = (None, None, 3) if isinstance(encoder, str) else encoder.input_shape[1:]
    _check_input_shape(input_shape)

    weights = encoder_weights if isinstance(encoder, str) else None
    weights = None if weights is None else resolve_weights(encoder, weights)
    model = _library_unet(
        *_encoder_and_skips(encoder, tuple(input_shape), weights, skips_from),
        classes=classes,
        activation=activation or ("sigmoid" if classes == 1 else "softmax"),
        decoder_filters=tuple(decoder_filters),
        decoder_block_type=decoder_block_type,
        decoder_use_batchnorm=decoder_use_batchnorm,
    )
    rates = {}
    if blocks is not None or isinstance(encoder_dropout, bool) or encoder_dropout != 0:
        sites = placement_sites(model, placement)
        rates = unit_rates(model, sites, encoder_dropout, blocks, placement)
    if weights not in (None, "imagenet"):
        load_encoder(model, encoder, Path(weights))
    model = _with_float32_head(model)
    if bn_momentum is not None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = bn_momentum
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
        dropout_layer=dropout_layer,
        bypass=bypass(model, site_rates, placement, skips),
        seed=seed,
    )


def _check_options(encoder, classes, placement, skips, encoder_weights, skips_from) -> None:
    if isinstance(encoder, keras.Model):
        if encoder_weights not in (None, "imagenet"):
            raise InputError("`encoder_weights` must be left out where `encoder` is a model, which has its own.")
        clash = next((layer.name for layer in encoder.layers if is_decoder(layer.name) or layer.name == HEAD), None)
        if clash is not None:
            raise InputError(f"`encoder` has a layer called {clash!r}, as the decoder's are; give it another name.")
    elif not ENCODER_RULE.holds(encoder):
        raise InputError(f"`encoder` must be {ENCODER_RULE.words}, or a keras.Model, got encoder={encoder!r}.")
    elif skips_from is not None and (encoder in RESNETS or encoder in LIBRARY_RESNETS):
        raise InputError(f"`skips_from` is for encoders other than the ResNets, got encoder={encoder!r}.")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise InputError(f"`classes` must be a whole number of at least 1, got classes={classes!r}.")
    if placement not in PLACEMENTS:
        raise InputError(f"`placement` must be one of {', '.join(PLACEMENTS)}, got placement={placement!r}.")
    if skips not in (None, *SKIPS):
        raise InputError(f"`skips` must be one of {', '.join(SKIPS)}, got skips={skips!r}.")
    if placement == "skips" and skips == "clean":
        raise InputError("placement='skips' drops on the skips, which skips='clean' forbids; leave `skips` out.")
    if keras.config.image_data_format() != "channels_last":
        raise InputError("build_unet needs keras.config.set_image_data_format('channels_last').")


def _encoder_and_skips(encoder, input_shape, weights: str | None, skips_from):
    """What the library's Unet is to be built on: a name of its own, or a model; and the skips."""
    if encoder in LIBRARY_RESNETS:
        return build_backbone(encoder, input_shape), Backbones.get_feature_layers(encoder, n=4)
    if encoder in RESNETS:
        statistics = None if weights is None else input_statistics(Path(weights))
        more = {} if statistics is None else dict(zip(("mean", "std"), statistics, strict=True))
        return build_resnet(encoder, input_shape, **more), skips_of(encoder)
    return make_encoder(encoder, input_shape, weights == "imagenet", skips_from)


def _library_unet(encoder: keras.Model, skips: tuple[str, ...], **options) -> keras.Model:
    """The library's Unet on an encoder that is put into its factory for the moment."""
    key = f"segdrop/{encoder.name}"
    Backbones._models_update[key] = [lambda **_: encoder, None]
    try:
        return sm.Unet(key, encoder_weights=None, encoder_features=skips, **options)
    finally:
        del Backbones._models_update[key]


def _check_input_shape(input_shape) -> None:
    shape = tuple(input_shape)
    ok = len(shape) == 3 and isinstance(shape[2], int) and shape[2] >= 1
    if not ok or any(n is not None and (n <= 0 or n % 32) for n in shape[:2]):
        raise InputError(
            "`input_shape` must be (height, width, channels) with height and width multiples of 32 or None, "
            f"got input_shape={input_shape!r}."
        )


def _with_float32_head(model) -> keras.Model:
    """Compute `final_conv` and its activation in float32, whatever the policy; the other layers are shared."""
    head = model.get_layer(HEAD)
    if head.compute_dtype == "float32":
        return model
    activation = model.layers[-1]
    x = head.input
    for layer in (head, activation):
        layer = layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})
        x = layer(x)
    return keras.Model(model.input, x, name=model.name)
