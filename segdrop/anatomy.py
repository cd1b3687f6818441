"""The names in a ResNet U-Net of segmentation_models, by which its parts are found: the one place that knows them."""

import re
from collections.abc import Iterable

LAST_NORM = "bn1"  # after the last unit
FIRST_UPSAMPLING = ("decoder_stage0_upsampling", "decoder_stage0a_transpose")  # of the two kinds of decoder
CENTER = "center_block"  # before it, where the encoder ends in a pooling
HEAD = "final_conv"
DECODER = ("decoder_", CENTER, "fpn_", "psp_")  # how the names in the library's decoders begin
UNIT = r"stage\d+_unit\d+"
DEEP = ("stage3_", "stage4_")  # where dropout goes unless blocks are named


def is_decoder(path: str) -> bool:
    """Whether a layer is the decoder's, by its name.

    Example:
        >>> is_decoder("decoder_stage0a_conv"), is_decoder("stage4_unit1_conv1")
        (True, False)
    """
    return path.rpartition("/")[2].startswith(DECODER)


def part_of_unit(path: str) -> tuple[str, str, int] | None:
    """The unit, the part (conv, relu, ...) and its number of a layer in a residual unit; None for other layers.

    Example:
        >>> part_of_unit("stage3_unit2_relu1")
        ('stage3_unit2', 'relu', 1)
    """
    match = re.fullmatch(rf"({UNIT})_([a-z]+)(\d)", path)
    return (match[1], match[2], int(match[3])) if match else None


def units_in(paths: Iterable[str]) -> dict[str, int]:
    """The residual units in the order of depth, each with the number of its last convolution.

    Example:
        >>> units_in(["stage2_unit1_conv1", "stage2_unit1_conv2", "stage1_unit1_conv1", "stage1_unit1_conv2"])
        {'stage1_unit1': 2, 'stage2_unit1': 2}
    """
    last: dict[str, int] = {}
    for unit, part, number in filter(None, map(part_of_unit, paths)):
        if part == "conv":
            last[unit] = max(number, last.get(unit, 0))
    return dict(sorted(last.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))
