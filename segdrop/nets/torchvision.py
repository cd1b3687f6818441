"""torchvision's ResNets in Keras, layer for layer, so that weights trained with PyTorch can be loaded into them.

Post-activation: BatchNorm and ReLU come after each convolution, and the last ReLU of a unit after the addition.
segmentation_models' own ResNets have them before, and no exact mapping of the weights leads from one to the other.
"""

import keras
import numpy as np
from keras import layers

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
# Units of the four stages, and convolutions of a unit.
RESNETS = {
    "torchvision_resnet18": ((2, 2, 2, 2), 2),
    "torchvision_resnet34": ((3, 4, 6, 3), 2),
    "torchvision_resnet50": ((3, 4, 6, 3), 3),
    "torchvision_resnet101": ((3, 4, 23, 3), 3),
    "torchvision_resnet152": ((3, 8, 36, 3), 3),
}


def build_resnet(
    name: str,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> keras.Model:
    """One of `RESNETS` without its classifier, with random weights.

    It maps images, float32 (N, H, W, C), 0..255, to the last stage's maps, (N, H/32, W/32, 512 or 2048), and brings the
    images to `mean` 0 and `std` 1 itself. Its layers are called as in segmentation_models: `conv0`, `relu0`,
    `stage3_unit2_conv1`, ...; the output of a unit is its last `relu`.

    Args:
        mean, std: of the images that the weights were trained on, in 0..1; input channel i takes those of i mod 3,
            a single one their mean.

    Example:
        >>> from segdrop.nets.torchvision import build_resnet
        >>> build_resnet("torchvision_resnet18", (64, 64, 3)).output_shape
        (None, 2, 2, 512)
    """
    units, depth = RESNETS[name]
    image = keras.Input(input_shape, name="data")
    channels = input_shape[2]
    # Grey is the mean of the colours.
    mean, std = (np.resize(np.mean(v) if channels == 1 else v, channels) for v in (mean, std))
    x = layers.Rescaling((1 / (255 * std)).tolist(), (-mean / std).tolist(), name="normalization")(image)
    x = _convolution(x, 64, 7, 2, "conv0", "bn0")
    x = layers.ReLU(name="relu0")(x)
    x = layers.ZeroPadding2D(1, name="pooling0_pad")(x)  # nothing is below 0 here
    x = layers.MaxPooling2D(3, 2, name="pooling0")(x)
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            stride = 2 if unit == 1 and stage > 1 else 1
            x = _unit(x, 64 * 2 ** (stage - 1), depth, stride, f"stage{stage}_unit{unit}_", projects=unit == 1)
    return keras.Model(image, x, name=name)


def skips_of(name: str) -> tuple[str, ...]:
    """The layers whose outputs go to a U-Net's decoder, the coarsest first.

    Example:
        >>> skips_of("torchvision_resnet50")
        ('stage3_unit6_relu3', 'stage2_unit4_relu3', 'stage1_unit3_relu3', 'relu0')
    """
    units, depth = RESNETS[name]
    return (*(f"stage{stage}_unit{units[stage - 1]}_relu{depth}" for stage in (3, 2, 1)), "relu0")


def _unit(x, filters: int, depth: int, stride: int, name: str, projects: bool):
    """A residual unit of two convolutions, or of three, the middle one of which has the stride."""
    width = filters if depth == 2 else 4 * filters
    shapes = [(filters, 3), (filters, 3)] if depth == 2 else [(filters, 1), (filters, 3), (width, 1)]
    branch = x
    for number, (channels, kernel) in enumerate(shapes, 1):
        branch = _convolution(
            branch, channels, kernel, stride if number == depth - 1 else 1, f"{name}conv{number}", f"{name}bn{number}"
        )
        if number < depth:
            branch = layers.ReLU(name=f"{name}relu{number}")(branch)
    if projects and (stride > 1 or x.shape[-1] != width):
        x = _convolution(x, width, 1, stride, f"{name}sc", f"{name}sc_bn")
        # Keras orders layers, and weights in files, by their distance from the output: two steps that do nothing keep
        # the branch's before the shortcut's, with dropout at the end of the branch or without.
        for step in (1, 2):
            branch = layers.Identity(name=f"{name}step{step}")(branch)
    return layers.ReLU(name=f"{name}relu{depth}")(layers.Add(name=f"{name}add")([branch, x]))


def _convolution(x, filters: int, kernel: int, stride: int, name: str, norm: str):
    """A convolution with torch's padding, the same on both sides, and its BatchNorm."""
    if stride > 1 and kernel > 1:  # "same" would pad the end alone
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    padding = "valid" if stride > 1 or kernel == 1 else "same"
    x = layers.Conv2D(filters, kernel, stride, padding, use_bias=False, kernel_initializer="he_normal", name=name)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=norm)(x)
