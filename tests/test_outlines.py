"""Annotations of COCO and labelme become masks: which pixels, which class, and what is wrong with them."""

import json
import re

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from test_layouts import GREY, lay, square

from segdrop import InputError
from segdrop.data.opening import open_dataset
from segdrop.data.outlines import fill
from segdrop.data.plain import write_plain

RNG = np.random.default_rng(0)
COMPRESSED = "S5`0`0000000EB4>LB4>LB4>LB4>LB4>700000000000000a7AZ2"
BOX = [4, 8, 12, 8, 12, 16, 4, 16]  # x, y: `square(4)`


def drawn(outline, shape=(32, 40)):
    mask = np.zeros(shape, np.uint8)
    fill(mask, np.array(outline, float), 1)
    return mask


@pytest.mark.parametrize("corners", [3, 4, 7, 30])
def test_the_pixels_are_those_whose_centre_lies_within(corners):
    outline = RNG.uniform((0, 0), (40, 32), (corners, 2))
    radius = outline - outline.mean(axis=0)
    outline = outline[np.argsort(np.arctan2(radius[:, 1], radius[:, 0]))]  # does not cross itself
    y, x = np.mgrid[:32, :40] + 0.5
    inside = Polygon(outline).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(32, 40)
    np.testing.assert_array_equal(drawn(outline), inside)


@pytest.mark.parametrize(
    ("outline", "rows", "columns"),
    [
        ([(4, 8), (12, 8), (12, 16), (4, 16)], slice(8, 16), slice(4, 12)),
        ([(-9, -9), (7, -9), (7, 5), (-9, 5)], slice(0, 5), slice(0, 7)),
        ([(30, 20), (99, 20), (99, 99), (30, 99)], slice(20, 32), slice(30, 40)),
        ([(50, 2), (60, 2), (60, 9), (50, 9)], slice(0, 0), slice(0, 0)),
        ([(-9, -9), (-2, -9), (-2, -1)], slice(0, 0), slice(0, 0)),
    ],
)
def test_what_lies_outside_of_the_image_is_cut_off(outline, rows, columns):
    expected = np.zeros((32, 40), np.uint8)
    expected[rows, columns] = 1
    np.testing.assert_array_equal(drawn(outline), expected)


def test_of_a_finely_drawn_outline_only_what_passes_a_row_of_pixels_takes_time(monkeypatch):
    angle = np.linspace(0, 2 * np.pi, 10**5, endpoint=False)
    outline = 16 + 9.3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    steps, arange = [], np.arange
    monkeypatch.setattr(np, "arange", lambda *numbers: steps.append(1) or arange(*numbers))
    mask = drawn(outline)
    assert len(steps) <= 2 * 20
    y, x = np.mgrid[:32, :40] + 0.5
    np.testing.assert_array_equal(mask, np.hypot(x - 16, y - 16) < 9.3)


def test_an_outline_that_crosses_itself_leaves_out_what_it_goes_round_twice():
    twice = [(2, 2), (22, 2), (22, 22), (2, 22), (2, 2), (8, 8), (16, 8), (16, 16), (8, 16), (8, 8)]
    expected = np.zeros((32, 40), np.uint8)
    expected[2:22, 2:22], expected[8:16, 8:16] = 1, 0
    np.testing.assert_array_equal(drawn(twice), expected)


def coco(annotations, names=("a.png", "b.png"), categories=((3, "cell"), (1, "vein"))):
    return {
        "images": [{"id": i, "file_name": name, "height": 32, "width": 40} for i, name in enumerate(names)],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [{"id": 70 + i, **one} for i, one in enumerate(annotations)],
    }


def of(image, category, segmentation):
    return {"image_id": image, "category_id": category, "segmentation": segmentation}


def write_coco(folder, content):
    lay(folder, dict.fromkeys(("images/a.png", "images/b.png"), GREY))
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_polygons_of_coco_become_classes_in_the_order_of_their_ids(tmp_path):
    later = [10, 8, 18, 8, 18, 16, 10, 16]
    content = coco([of(0, 3, [BOX, [30, 2, 36, 2, 36, 5, 30, 5]]), of(0, 1, [later])])
    dataset = open_dataset(write_coco(tmp_path, content))
    assert dataset.class_names == ("background", "vein", "cell")
    expected = square(4, 2)
    expected[2:5, 30:36] = 2
    expected[8:16, 10:18] = 1
    np.testing.assert_array_equal(dataset.read(0)[1], expected)
    assert not dataset.read(1)[1].any()
    assert dataset.understood == "2 pairs: images with the outlines in annotations.json"


def test_categories_whose_ids_are_words_come_after_those_of_numbers(tmp_path):
    kinds = ((3, "cell"), ("x", "fat"), ("b", "gap"), (1, "vein"))
    dataset = open_dataset(write_coco(tmp_path, coco([of(0, i, [BOX]) for i, _ in kinds], categories=kinds)))
    assert dataset.class_names == ("background", "vein", "cell", "gap", "fat")


def test_runs_of_coco_are_read_plain_and_compressed(tmp_path):
    """The compressed text is what pycocotools makes of this mask."""
    mask = np.zeros((32, 40), np.uint8)
    mask[3:19, 5:22], mask[8:10, 9:14], mask[20, 29] = 1, 0, 1
    down = mask.T.ravel()
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(down)) + 1, [down.size]])).tolist()
    content = coco([of(0, 3, {"counts": runs, "size": [32, 40]}), of(1, 3, {"counts": COMPRESSED, "size": [32, 40]})])
    dataset = open_dataset(write_coco(tmp_path, content))
    np.testing.assert_array_equal(dataset.read(0)[1], mask)
    np.testing.assert_array_equal(dataset.read(1)[1], mask)


def test_classes_json_orders_the_labels(tmp_path):
    write_coco(tmp_path, coco([of(0, 3, [BOX])]))
    (tmp_path / "classes.json").write_text('["background", "cell", "vein"]')
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("background", "cell", "vein")
    np.testing.assert_array_equal(dataset.read(0)[1], square(4, 1))


def test_files_of_splits_beside_their_images_are_read_together(tmp_path):
    lay(tmp_path, {"train/a.png": GREY, "valid/a.png": GREY})
    for part, left in (("train", 4), ("valid", 6)):
        box = [left, 8, left + 8, 8, left + 8, 16, left, 16]
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(coco([of(0, 3, [box])], ["a.png"])))
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("train/a", "valid/a")
    assert dataset.splits == ("train", "val")
    np.testing.assert_array_equal(dataset.read(1)[1], square(6, 1))


def labelme(*shapes, image="a.png"):
    fields = ("label", "shape_type", "points")
    named = [dict(zip(fields, shape, strict=True)) for shape in shapes]
    return {"version": "5.4", "shapes": named, "imagePath": image, "imageHeight": 32, "imageWidth": 40}


def test_files_of_splits_in_a_folder_of_their_own_find_their_images(tmp_path):
    lay(tmp_path, {"train2017/a.png": GREY, "val2017/a.png": GREY, "annotations/none.txt.png": GREY})
    for part, left in (("train", 4), ("val", 6)):
        box = [left, 8, left + 8, 8, left + 8, 16, left, 16]
        table = tmp_path / "annotations" / f"instances_{part}2017.json"
        table.write_text(json.dumps(coco([of(0, 3, [box])], ["a.png"])))
    dataset = open_dataset(tmp_path)
    assert (dataset.ids, dataset.splits) == (("train2017/a", "val2017/a"), ("train", "val"))
    np.testing.assert_array_equal(dataset.read(1)[1], square(6, 1))


def test_shapes_of_labelme_become_classes_in_the_order_of_the_alphabet(tmp_path):
    lay(tmp_path, {"a.png": GREY, "b.png": GREY, "c.png": GREY})
    box = ("vein", "rectangle", [[12, 16], [4, 8]])
    disc = ("cell", "circle", [[25, 15], [30, 15]])
    (tmp_path / "a.json").write_text(json.dumps(labelme(box, disc)))
    (tmp_path / "b.json").write_text(
        json.dumps(labelme(("cell", "polygon", np.reshape(BOX, (4, 2)).tolist()), image="b.png"))
    )
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("background", "cell", "vein")
    y, x = np.mgrid[:32, :40] + 0.5
    expected = square(4, 2) + (np.hypot(x - 25, y - 15) < 5)
    assert (dataset.read(0)[1] != expected).sum() <= 4  # a circle of 128 corners
    np.testing.assert_array_equal(dataset.read(1)[1], square(4, 1))
    assert dataset.understood == "2 pairs: *.png with *.json; 1 image(s) without annotations left out"


def test_outlines_are_written_as_masks(tmp_path):
    dataset = open_dataset(write_coco(tmp_path / "set", coco([of(0, 3, [BOX])])))
    write_plain(dataset, tmp_path / "plain")
    np.testing.assert_array_equal(open_dataset(tmp_path / "plain").read(0)[1], square(4, 1))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_are_read_as_editors_save_them(tmp_path, encoding):
    folder = write_coco(tmp_path, coco([of(0, 3, [BOX])]))
    table = folder / "annotations.json"
    table.write_text(table.read_text(), encoding=encoding)
    np.testing.assert_array_equal(open_dataset(folder).read(0)[1], square(4, 1))


@pytest.mark.parametrize("keep", [slice(0), slice(-9)])
def test_a_damaged_file_among_others_is_told(tmp_path, keep):
    lay(tmp_path, {"a.png": GREY, "b.png": GREY})
    for name in "ab":
        content = json.dumps(labelme(("cell", "rectangle", [[12, 16], [4, 8]]), image=f"{name}.png"))
        (tmp_path / f"{name}.json").write_text(content if name == "a" else content[keep])
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("a",)
    assert "1 image(s) without annotations left out; 1 JSON file(s) cannot be read; first: b" in dataset.understood
    assert re.search(r"b.json \((Expecting value|Unterminated string).*\)$", dataset.understood)


def test_a_damaged_file_alone_is_told(tmp_path):
    lay(tmp_path, {"images/a.png": GREY})
    (tmp_path / "annotations.json").write_text(json.dumps(coco([])) + "}")
    with pytest.raises(FileNotFoundError, match=r"no folder masks/, .*; 1 JSON file\(s\) .*: annotations.json .Ext"):
        open_dataset(tmp_path)


def test_other_json_files_are_passed_over(tmp_path):
    lay(tmp_path, {"Original/1.png": GREY, "Ground Truth/1.png": square(4)})
    deep = "[" * 10**6
    for name, content in (("boxes.json", '{"1": {"bbox": []}}'), ("list.json", deep), ("broken.json", "{")):
        (tmp_path / name).write_text(content)
    assert open_dataset(tmp_path).ids == ("1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco([of(0, 9, [BOX])]), "annotations.json: annotation 70 is of category 9, of which there is none"),
        (coco([of(5, 3, [BOX])]), "annotation 70 is of image 5, of which there is none"),
        (coco([of(0, 3, [])]), "annotation 70 has no outline of at least three points"),
        (coco([of(0, 3, [[1, 2, 3, 4]])]), "annotation 70 has no outline of at least three points"),
        (coco([of(0, 3, [[1, 2, 3]])]), "is no complete annotation file"),
        *(
            (
                coco([of(0, 3, {"counts": counts, "size": size})]),
                rf"annotation 70 has runs of {sum(counts)} pixels and the size \{size} for an image of \[32, 40\]",
            )
            for counts, size in (([3, 4], [32, 40]), ([], [32, 40]), ([640, 640], [40, 32]))
        ),
        (coco([of(0, 3, {"counts": "", "size": [32, 40]})]), "annotation 70 has runs of 0 pixels"),
        ({**coco([]), "images": [{**i, "id": 7} for i in coco([])["images"]]}, "has two images of the id 7"),
        (coco([], categories=((3, "cell"), (3, "vein"))), "has two categories of the id 3"),
        (coco([], categories=((3, "cell"), (1, None))), "category 1 has no name"),
        (coco([], ["a.png", "c.png"]), "annotations in annotations.json of an image c.png that is not there"),
        (coco([], ["a.png", "a.bmp"]), "`data` has two images of the id images/a: images/a.bmp and images/a.png; ren"),
        (coco([], ["a.png", "a.png"]), "two annotations of images/a.png: in annotations.json and in annotations.json"),
        ({**coco([]), "images": [{"id": 1}]}, "is no complete annotation file .KeyError"),
        (
            labelme(("cell", "line", [[1, 2], [3, 4]])),
            "shape 1 is a line; polygons, rectangles and circles have an area",
        ),
        (labelme(("cell", "polygon", [[1, 2], [3, 4]])), "shape 1 has no outline of at least three points"),
        (labelme(("cell", "polygon", [[1, 2, 3]] * 3)), "shape 1 has no outline of at least three points"),
        (labelme(("cell", "polygon", [[1, 2], [3, 4], [1e300, -1e300]])), "shape 1 has no outline of at least three"),
        (labelme(("cell", "circle", [[1, 2], [float("inf"), 4]])), "shape 1 has no outline of at least three points"),
        ({**labelme(), "imageHeight": 10**9}, "has 40 x 1000000000 pixels; cut it into tiles"),
        ({**labelme(), "imageHeight": 0}, "has an image of 40 x 0 pixels"),
        ({**labelme(), "imageHeight": float("inf")}, "is no complete annotation file .OverflowError"),
        ({k: v for k, v in labelme().items() if k != "imagePath"}, "no complete annotation file .KeyError: 'imageP"),
        ({**labelme(), "imagePath": None}, "of an image None that is not there"),
        (coco([of(0, 3, {"counts": ["a"], "size": [32, 40]})]), "is no complete annotation file .ValueError"),
        (coco([of(0, 3, {"counts": [1281, -1], "size": [32, 40]})]), "annotation 70 has a run of -1 pixels"),
        (coco([of(0, 3, {"counts": "o" * 10**6, "size": [32, 40]})]), "is no complete annotation file .ValueError"),
    ],
)
def test_a_fault_of_an_annotation_is_found_and_named(tmp_path, content, message):
    lay(tmp_path, {"images/a.bmp": GREY} if "a.bmp" in message else {})
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(write_coco(tmp_path, content))
    assert "\n" not in str(caught.value)


def many_categories(folder, count):
    """A data set with `count` categories in use, each a square of a pixel."""
    boxes = [of(0, i, [[x, y, x + 1, y, x + 1, y + 1, x, y + 1]]) for i in range(count) for y, x in [divmod(i, 40)]]
    return write_coco(folder, coco(boxes, categories=[(i, f"c{i}") for i in range(count)]))


def test_as_many_labels_as_a_mask_can_hold_are_classes(tmp_path):
    dataset = open_dataset(many_categories(tmp_path, 254))
    assert len(dataset.class_names) == 255
    np.testing.assert_array_equal(dataset.read(0)[1].ravel()[:255], [*range(1, 255), 0])


@pytest.mark.parametrize("count", [255, 400])
def test_more_labels_than_a_mask_can_hold_are_an_error(tmp_path, count):
    with pytest.raises(InputError, match=f"annotations of {count} labels, 'c0' and others, and a mask .* at most 254 "):
        open_dataset(many_categories(tmp_path, count))


def test_a_label_that_classes_json_lacks_is_an_error(tmp_path):
    write_coco(tmp_path, coco([of(0, 1, [BOX])]))
    (tmp_path / "classes.json").write_text('["background", "cell"]')
    with pytest.raises(InputError, match="annotations of 'vein', no class of classes.json: background, cell"):
        open_dataset(tmp_path)


def test_masks_beside_outlines_are_two_readings(tmp_path):
    write_coco(tmp_path, coco([of(0, 3, [BOX])]))
    lay(tmp_path, {"labels/a.png": square(4)})
    with pytest.raises(
        InputError, match=r"two ways: 1 pair: images/\*.png with labels/\*.png, or with the outlines in anno"
    ):
        open_dataset(tmp_path)


def test_a_size_other_than_the_image_s_is_an_error(tmp_path):
    content = coco([of(0, 3, [BOX])])
    content["images"][0]["height"] = 30
    with pytest.raises(InputError, match=r"1 pair\(s\) differ in size; first: a.png is 40x32, its mask 40x30"):
        open_dataset(write_coco(tmp_path, content))
