"""Tiles: every pixel once in the mean, the same result as the whole image, row by row, from any row on."""

import keras
import numpy as np
import pytest

from segdrop import InputError
from segdrop.data.tiles import in_tiles, tile_offsets, tile_rows

RNG = np.random.default_rng(0)


def picture(height, width):
    return RNG.uniform(0, 255, (height, width, 3)).astype("float32")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 200), (64, 64), (65, 63), (150, 97), (256, 40)])
def test_what_looks_at_single_pixels_gives_the_same_in_tiles(height, width):
    image = picture(height, width)
    merged = in_tiles(lambda images: images[..., :2] ** 2, image, 64, 32)
    assert merged.shape == (height, width, 2)
    np.testing.assert_allclose(merged, image[..., :2] ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("length", "offsets"),
    [(40, [0]), (64, [0]), (65, [0, 32]), (96, [0, 32]), (129, [0, 32, 64, 96]), (160, [0, 32, 64, 96])],
)
def test_offsets_are_multiples_of_32_and_reach_the_end(length, offsets):
    assert tile_offsets(length, 64, 32) == offsets


def blur(size, strides=1):
    """A network that looks `size // 2` pixels far, with zeros beyond the image as convolutions have them."""
    inputs = keras.Input((None, None, 3))
    layers = [keras.layers.Conv2D(2, size, padding="same", strides=strides)]
    if strides > 1:
        layers.append(keras.layers.UpSampling2D(strides))
    output = inputs
    for layer in layers:
        output = layer(output)
    model = keras.Model(inputs, output)
    model.set_weights([RNG.normal(0, 0.03, w.shape) for w in model.weights])
    return model.predict_on_batch


@pytest.mark.parametrize("strides", [1, 4])
def test_a_margin_of_half_the_receptive_field_gives_what_the_whole_image_gives(strides):
    network, image = blur(25, strides), picture(224, 288) / 255
    merged = in_tiles(network, image, 96, 32, margin=16)
    np.testing.assert_allclose(merged, network(image[None])[0], rtol=0, atol=1e-4)


def test_without_a_margin_borders_of_tiles_have_little_weight():
    network, image = blur(25), picture(224, 288)
    whole = network(image[None])[0]
    merged = in_tiles(network, image, 96, 32)
    assert 0 < np.abs(merged - whole).mean() < np.abs(whole).mean() / 10


@pytest.mark.parametrize("start", range(8))
def test_starting_at_a_later_row_of_tiles_gives_the_same_rows(start):
    image, network = picture(250, 130), blur(9)
    tops = tile_offsets(250, 64, 32)
    assert len(tops) == 7

    def rows(start):
        return dict(
            tile_rows(lambda images, key: network(images) + key, lambda a, b: image[a:b], 250, 130, 64, 32, start=start)
        )

    everything, later = rows(0), rows(start)
    assert list(everything) == tops and list(later) == tops[start:]
    for top, merged in later.items():
        np.testing.assert_allclose(merged, everything[top], rtol=1e-5)


def test_rows_are_read_once_from_the_top_down():
    image, asked = picture(300, 64), []

    def read(top, bottom):
        asked.append((top, bottom))
        return image[top:bottom]

    for _ in tile_rows(lambda images, key: images, read, 300, 64, 96, 32):
        pass
    assert asked[0][0] == 0 and asked[-1][1] == 300
    assert [first for first, _ in asked[1:]] == [last for _, last in asked[:-1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((50, 0), "multiples of 32, got tile=50"),
        ((64, 20), "multiples of 32, got tile=64, overlap=20"),
        ((64, 64), "`overlap` must be at most half of tile=64"),
        ((64, 32, 17), "`margin` at most half of overlap, got overlap=32, margin=17"),
        ((0, 0), "`tile` must be a whole number of at least 32"),
    ],
)
def test_tiles_that_do_not_fit_are_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        in_tiles(lambda images: images, picture(64, 64), *arguments)
