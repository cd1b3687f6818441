"""The ResNet U-Net of segmentation_models with dropout in its encoder.

The only module that imports segmentation_models, which must be told to use Keras 3 beforehand.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras

from ..anatomy import HEAD
from ..config.train import ENCODERS, PLACEMENTS, SKIPS, resolve_kind
from ..errors import InputError
from ..layers import check_kind
from ..surgery.dropout import insert_dropout
from .hub import input_statistics
from .sites import bypass, placement_sites, set_encoder_trainable, unit_rates
from .torchvision import RESNETS, build_resnet, skips_of
from .weights import find_file, load_encoder

if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
    raise ImportError("segdrop needs Keras 3; unset TF_USE_LEGACY_KERAS, which asks for the legacy Keras 2.")


os.environ["SM_FRAMEWORK"] = "tf.keras"


with contextlib.redirect_stdout(io.StringIO()):  # it prints the framework's name when imported
    import segmentation_models as sm
    from segmentation_models.backbones.backbones_factory import Backbones


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
        encoder: `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"` or `"resnet152"`, the library's own; or
            `"torchvision_resnet18"` and so on, torchvision's, for weights trained with PyTorch.
        input_shape: (height, width, channels); None for any height or width.
        classes: number of classes counting the background, except 1, which is binary.
        activation: None for sigmoid (one class) or softmax (more); any Keras activation; `"linear"` for logits.
        encoder_weights: `"imagenet"`; None for random initialisation; or a file: a Keras 2 HDF5 weight file
            (the format of the ImageNet files) or a `.keras` model whose encoder has the same layer names. For
            torchvision's encoders a file of PyTorch's (`.safetensors`, or `.pth` and `.pt` where torch is installed)
            or a repository of the Hugging Face Hub, `"timm/resnet34.a1_in1k"`.
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

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, spatial=True)
        >>> [layer.name for layer in model.layers if isinstance(layer, keras.layers.SpatialDropout2D)]
        ['stage3_unit1_relu2_dropout', 'stage3_unit2_relu2_dropout', 'stage4_unit1_relu2_dropout']
        >>> np.asarray(model(np.zeros((1, 64, 96, 3), "float32"))).shape
        (1, 64, 96, 1)

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

    path = None if encoder_weights is None else find_file(encoder, encoder_weights)
    model = sm.Unet(
        encoder,
        input_shape=tuple(input_shape),
        classes=classes,
        activation=activation or ("sigmoid" if classes == 1 else "softmax"),
        encoder_weights=None,
        encoder_features=_skips_of(encoder, path),
        decoder_filters=tuple(decoder_filters),
        decoder_block_type=decoder_block_type,
        decoder_use_batchnorm=decoder_use_batchnorm,
    )
    sites = placement_sites(model, placement)
    rates = unit_rates(list(sites), encoder_dropout, blocks, placement)
    if path is not None:
        load_encoder(model, encoder, path)
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
        bypass=bypass(model, site_rates, placement, skips),
        seed=seed,
    )


def _skips_of(encoder: str, weights: Path | None) -> str | tuple[str, ...]:
    """What `encoder_features` of the library has to be; an encoder that it does not have is put into its factory."""
    if encoder not in RESNETS:
        return "default"
    statistics = None if weights is None else input_statistics(weights)
    more = {} if statistics is None else dict(zip(("mean", "std"), statistics, strict=True))

    def build(input_shape, **_):
        return build_resnet(encoder, input_shape, **more)

    Backbones._models_update[encoder] = [build, None]
    return skips_of(encoder)


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
