"""Checkpoints in the layout of torchvision's and timm's ResNets, with random tensors."""

import numpy as np
from safetensors.numpy import save_file

from segdrop.nets.torchvision import RESNETS


def random_tensors(encoder, seed=0, classes=5):
    """All tensors of a ResNet by torchvision's names; maps keep their size from layer to layer."""
    rng, tensors = np.random.default_rng(seed), {}
    blocks, depth = RESNETS[encoder]

    def convolution(name, inputs, outputs, size):
        tensors[f"{name}.weight"] = rng.normal(0, (2 / (inputs * size**2)) ** 0.5, (outputs, inputs, size, size))

    def norm(name, channels):
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1, channels)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, channels)
        tensors[f"{name}.running_mean"] = rng.normal(0, 0.1, channels)
        tensors[f"{name}.running_var"] = rng.uniform(0.5, 1.5, channels)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)

    convolution("conv1", 3, 64, 7)
    norm("bn1", 64)
    inputs = 64
    for layer, count in enumerate(blocks, 1):
        filters = 64 * 2 ** (layer - 1)
        width = filters if depth == 2 else 4 * filters
        for block in range(count):
            name = f"layer{layer}.{block}"
            shapes = [(inputs, filters, 3), (filters, filters, 3)]
            if depth == 3:
                shapes = [(inputs, filters, 1), (filters, filters, 3), (filters, width, 1)]
            for number, shape in enumerate(shapes, 1):
                convolution(f"{name}.conv{number}", *shape)
                norm(f"{name}.bn{number}", shape[1])
            if block == 0 and (layer > 1 or inputs != width):
                convolution(f"{name}.downsample.0", inputs, width, 1)
                norm(f"{name}.downsample.1", width)
            inputs = width
    tensors["fc.weight"], tensors["fc.bias"] = rng.normal(0, 0.1, (classes, inputs)), np.zeros(classes)
    return {name: value.astype("i8" if "num_batches" in name else "f4") for name, value in tensors.items()}


def write_safetensors(path, tensors):
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path
