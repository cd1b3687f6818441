"""dropout_table and draw_network: what a dropout layer affects."""

import csv
import json
import xml.etree.ElementTree as ET

import keras
import numpy as np
import pytest
from keras import layers

from segdrop import InputError, build_unet, draw_network, dropout_table, insert_dropout, monte_carlo
from segdrop.nets.sites import set_encoder_trainable


@pytest.fixture(scope="module")
def diamond():
    """in -> a -> (b -> c, d) -> sum -> e, with dropout after b: c, sum and e depend on it, d does not."""
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(4, 1, name="a")(inputs)
    c = layers.Conv2D(4, 1, name="c")(layers.Conv2D(4, 1, name="b")(a))
    total = layers.Add(name="sum")([c, layers.Conv2D(4, 1, name="d")(a)])
    model = keras.Model(inputs, layers.Conv2D(1, 1, name="e")(total))
    return insert_dropout(model, "b", 0.25)


def test_the_layers_it_changes_are_those_that_depend_on_it(diamond):
    (row,) = dropout_table(diamond)
    assert (row["layer"], row["after"]) == ("b_dropout", "b")
    assert row["changes"] == ["c", "sum", "e"]


def test_what_the_table_says_changes_is_what_changes_when_the_layer_draws(diamond):
    """The same question put to the running network: which layers' outputs move in training mode?"""
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
    probe = keras.Model(diamond.input, {layer.name: layer.output for layer in diamond.layers[1:]})
    still, drawn = probe(image), probe(image, training=True)
    moved = {name for name in still if not np.array_equal(still[name], drawn[name])}
    assert moved - {"b_dropout"} == set(dropout_table(diamond)[0]["changes"])


@pytest.mark.parametrize(
    ("options", "units", "dropped"),
    [
        ({"kind": "element"}, 8 * 8 * 4, 64.0),
        ({"kind": "spatial"}, 4, 1.0),
        ({"kind": "block"}, 8 * 8 * 4, 64.0),
        ({"kind": "spatial", "shared_across_batch": True}, 4, 1.0),
        ({"kind": "element", "adjustable": True}, 8 * 8 * 4, 64.0),
    ],
)
def test_units_and_how_many_are_dropped(options, units, dropped):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="site")(inputs))
    (row,) = dropout_table(insert_dropout(model, "site", 0.25, **options))
    assert (row["kind"], row["shared"]) == (options["kind"], "shared_across_batch" in options)
    assert (row["shape"], row["units"], row["dropped"]) == ((8, 8, 4), units, dropped)


def test_open_shapes_are_filled_in_from_an_image_size():
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2)
    assert dropout_table(model)[0]["shape"] == (None, None, 256)
    assert dropout_table(model)[0]["dropped"] is None
    assert [row["shape"] for row in dropout_table(model, (64, 128))] == [(4, 8, 256), (4, 8, 256), (2, 4, 512)]


def test_a_unet_s_table_tells_decoder_skips_and_frozen_weights():
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, spatial=True)
    table = dropout_table(model)
    assert [row["skips"] for row in table] == [["stage4_unit1_relu1"], ["stage4_unit1_relu1"], []]
    assert {row["trains"] for row in table} == {"all"}
    decoder = sum(layer.name.startswith(("decoder_", "final_conv", "sigmoid")) for layer in model.layers)
    assert {row["changes_decoder"] for row in table} == {decoder}
    set_encoder_trainable(model, False)
    assert {row["trains"] for row in dropout_table(model)} == {"none"}
    model.get_layer("conv0").trainable = True
    assert {row["trains"] for row in dropout_table(model)} == {"some"}


@pytest.mark.parametrize(("skips", "reached"), [("clean", []), ("dropped", ["stage4_unit1_relu1"])])
def test_a_clean_skip_does_not_carry_dropout_to_the_decoder(skips, reached):
    model = build_unet(
        "resnet18",
        encoder_weights=None,
        encoder_dropout=0.2,
        placement="activations",
        blocks="stage4_unit1",
        skips=skips,
    )
    assert dropout_table(model)[0]["skips"] == reached


def test_foreign_layers_a_twin_and_nested_models_are_seen():
    inner = keras.Input((6, 6, 2))
    nested = keras.Model(inner, layers.SpatialDropout2D(0.3, name="inside")(inner), name="nested")
    inputs = keras.Input((6, 6, 2))
    x = layers.GaussianDropout(0.1, name="noise")(nested(inputs))
    model = keras.Model(inputs, layers.Dropout(0.2, name="last")(x))
    rows = [(row["layer"], row["kind"], row["rate"]) for row in dropout_table(model)]
    assert rows == [("nested/inside", "spatial", 0.3), ("noise", "gaussian", 0.1), ("last", "element", 0.2)]
    assert [row["kind"] for row in dropout_table(monte_carlo(model))] == ["spatial", "gaussian", "element"]


def test_a_model_without_dropout_has_an_empty_table(plain, diamond, tmp_path):
    table = dropout_table(plain)
    assert table == [] and str(table) == "No dropout layer."
    table.to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == ",".join(dropout_table(diamond)[0]) + "\n"


def test_the_table_prints_and_is_written_as_csv_and_json(diamond, tmp_path):
    table = dropout_table(diamond)
    assert "b" in str(table) and "0.25" in str(table)
    table.to_csv(tmp_path / "t.csv")
    table.to_json(tmp_path / "t.json")
    with (tmp_path / "t.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["changes"] == "c sum e" and row["rate"] == "0.25"
    (stored,) = json.loads((tmp_path / "t.json").read_text())
    assert stored["changes"] == ["c", "sum", "e"] and stored["shape"] == [8, 8, 4]


def test_the_picture_shows_every_unit_and_marks_those_with_dropout(tmp_path):
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, blocks="stage3_unit2", kind="block")
    with pytest.MonkeyPatch.context() as patch:
        import matplotlib

        patch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text
        draw_network(model, tmp_path / "net.svg", (128, 128))
    texts = ["".join(element.itertext()).strip() for element in ET.parse(tmp_path / "net.svg").iter()]
    assert "date" not in (tmp_path / "net.svg").read_text()  # the same network, the same bytes
    words = " ".join(texts)
    for stage, units in ((1, 2), (2, 2), (3, 2), (4, 2)):
        assert words.count(f"stage{stage}") >= units
    assert "block 0.2" in words and "1 dropout layers" in words


def test_the_picture_of_the_default_network_fits_a_page_of_1280_pixels(tmp_path):
    """Whose margins leave 1,120; a pixel is three quarters of a point."""
    draw_network(build_unet("resnet34", encoder_weights=None), tmp_path / "net.svg", (128, 128))
    width = ET.parse(tmp_path / "net.svg").getroot().get("width")
    assert 600 < float(width.removesuffix("pt")) / 0.75 <= 1120


@pytest.mark.parametrize("size", [64, (64,), (0, 64), (64.5, 3), "ab"])
def test_a_wrong_image_size_is_an_error(diamond, size):
    with pytest.raises(InputError, match=r"`image_size` must be \(height, width\), whole numbers of at least 1"):
        dropout_table(diamond, size)


def test_an_unknown_kind_of_picture_is_an_error(diamond, tmp_path):
    with pytest.raises(InputError, match="name must end in one of .*svg"):
        draw_network(diamond, tmp_path / "net.xyz")
