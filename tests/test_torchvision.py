"""torchvision's ResNets: against a forward pass in NumPy, and as U-Nets like the others."""

import keras
import numpy as np
import pytest
from torchvision_files import random_tensors, write_safetensors

from segdrop import build_unet, dropout_table, verify
from segdrop.nets.checkpoints import load_checkpoint
from segdrop.nets.sites import encoder_end, encoder_layers
from segdrop.nets.torchvision import IMAGENET_MEAN, IMAGENET_STD, RESNETS, build_resnet, skips_of

IMAGE = np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3)).astype("float32")


def convolve(x, kernel, stride=1):
    """torch's conv2d of (N, C, H, W) with (F, C, k, k), padded by k // 2."""
    size = kernel.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,fcij->nfhw", windows, kernel, optimize=True)


def normalise(x, tensors, name):
    weight, bias, mean, var = (
        tensors[f"{name}.{p}"][:, None, None] for p in "weight bias running_mean running_var".split()
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def forward(tensors, images, blocks, depth):
    """What torchvision's ResNet computes, by its own definition: (N, C, H, W) after the stem's ReLU and each layer."""
    x = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    x = np.maximum(normalise(convolve(x.transpose(0, 3, 1, 2), tensors["conv1.weight"], 2), tensors, "bn1"), 0)
    maps = [x]
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = x
            for number in range(1, depth + 1):
                # torchvision's bottleneck has its stride in the second convolution, its basic block in the first.
                step = stride if number == depth - 1 else 1
                y = normalise(convolve(y, tensors[f"{name}.conv{number}.weight"], step), tensors, f"{name}.bn{number}")
                y = np.maximum(y, 0) if number < depth else y
            if f"{name}.downsample.0.weight" in tensors:
                x = normalise(
                    convolve(x, tensors[f"{name}.downsample.0.weight"], stride), tensors, f"{name}.downsample.1"
                )
            x = np.maximum(x + y, 0)
        maps.append(x)
    return maps


@pytest.mark.parametrize("encoder", ["torchvision_resnet18", "torchvision_resnet50"])
def test_the_maps_are_those_of_the_definition(encoder, tmp_path):
    tensors = random_tensors(encoder)
    model = build_resnet(encoder)
    load_checkpoint(model, encoder, write_safetensors(tmp_path / "w.safetensors", tensors))
    names = [*reversed(skips_of(encoder)), encoder_name(model)]
    found = keras.Model(model.input, [model.get_layer(name).output for name in names]).predict_on_batch(IMAGE)
    for ours, theirs in zip(found, forward(tensors, IMAGE.astype(float), *RESNETS[encoder]), strict=True):
        theirs = theirs.transpose(0, 2, 3, 1)
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def encoder_name(model):
    return model.layers[-1].name


@pytest.mark.parametrize(
    ("encoder", "sites"),
    [
        ("torchvision_resnet18", ["stage3_unit1_relu1", "stage3_unit2_relu1", "stage4_unit1_relu1"]),
        (
            "torchvision_resnet50",
            [f"stage3_unit{n}_relu2" for n in range(1, 7)] + [f"stage4_unit{n}_relu2" for n in (1, 2)],
        ),
    ],
)
def test_dropout_goes_before_the_last_convolution_of_the_deep_units_by_default(encoder, sites):
    model = build_unet(encoder, encoder_weights=None, encoder_dropout=0.2, spatial=True)
    table = dropout_table(model)
    assert [row["after"] for row in table] == sites
    assert {(row["place"], row["kind"], row["part"]) for row in table} == {("between_convs", "spatial", "encoder")}


@pytest.mark.parametrize(
    ("placement", "after"),
    [
        ("between_convs", ["stage2_unit2_relu1"]),
        ("branch_end", ["stage2_unit2_bn2"]),
        ("block_end", ["stage2_unit2_relu2"]),
        ("activations", ["stage2_unit2_relu1", "stage2_unit2_relu2"]),
    ],
)
def test_placements_mean_what_they_mean_in_the_other_encoders(placement, after):
    options = {"blocks": "stage2_unit2", "placement": placement}
    if placement == "block_end":
        with pytest.warns(UserWarning, match="block_end"):
            model = build_unet("torchvision_resnet18", encoder_weights=None, encoder_dropout=0.2, **options)
    else:
        model = build_unet("torchvision_resnet18", encoder_weights=None, encoder_dropout=0.2, **options)
    assert [row["after"] for row in dropout_table(model)] == after


def test_the_bottleneck_is_the_end_of_the_last_stage_and_the_skips_are_the_ends_of_the_others():
    end = build_unet("torchvision_resnet18", encoder_weights=None, encoder_dropout=0.2, placement="bottleneck")
    assert [(row["after"], row["place"]) for row in dropout_table(end)] == [("stage4_unit2_relu2", "bottleneck")]
    skips = build_unet("torchvision_resnet18", encoder_weights=None, encoder_dropout=0.2, placement="skips")
    assert {row["after"] for row in dropout_table(skips)} == set(skips_of("torchvision_resnet18"))
    assert {row["place"] for row in dropout_table(skips)} == {"skips"}


def test_a_clean_skip_is_received_undropped():
    options = {"encoder_weights": None, "encoder_dropout": 0.5, "placement": "activations", "blocks": "stage3_unit2"}
    for skips, reached in (("clean", []), ("dropped", ["stage3_unit2_relu2"])):
        table = dropout_table(build_unet("torchvision_resnet18", skips=skips, **options))
        assert table[-1]["after"] == "stage3_unit2_relu2" and table[-1]["skips"] == reached


def test_dropout_changes_nothing_at_inference(tmp_path):
    file = write_safetensors(tmp_path / "w.safetensors", random_tensors("torchvision_resnet18"))
    plain = build_unet("torchvision_resnet18", encoder_weights=file)
    dropped = build_unet(
        "torchvision_resnet18", encoder_weights=file, encoder_dropout=0.2, kind="path", placement="branch_end"
    )
    dropped.set_weights(plain.get_weights())
    assert "inference is the same" in {row["check"] for row in verify(plain, dropped, draws=200)}


def test_freezing_covers_the_encoder_and_nothing_else():
    model = build_unet("torchvision_resnet18", encoder_weights=None, encoder_freeze=True)
    assert encoder_end(model).name == "stage4_unit2_relu2"
    encoder = {layer.name for layer in encoder_layers(model)}
    trains = {layer.name for layer in model.layers if layer.trainable and layer.weights}
    assert not encoder & trains and {"final_conv", "decoder_stage0a_conv"} <= trains


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_first_kernel_is_spread_over_the_channels_there_are(channels, tmp_path):
    tensors = random_tensors("torchvision_resnet18")
    file = write_safetensors(tmp_path / "w.safetensors", tensors)
    model = build_unet("torchvision_resnet18", input_shape=(64, 64, channels), encoder_weights=file)
    kernel, stored = model.get_layer("conv0").get_weights()[0], tensors["conv1.weight"].transpose(2, 3, 1, 0)
    assert kernel.shape[2] == channels
    if channels == 1:
        np.testing.assert_allclose(kernel[:, :, 0], stored.sum(axis=2), rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(
            kernel[:, :, channels - 1], stored[:, :, (channels - 1) % 3] * 3 / channels, rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", sorted(RESNETS))
def test_every_depth_has_the_tensors_of_its_checkpoint(encoder, tmp_path):
    model = build_resnet(encoder)
    loaded = load_checkpoint(model, encoder, write_safetensors(tmp_path / "w.safetensors", random_tensors(encoder)))
    norms = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    assert loaded.tensors == 6 * norms  # each has a convolution before it and a counter of batches
